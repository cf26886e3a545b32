"""The log of the option ``rollout_log`` on the released experience maker."""

import json

import pytest
import released
import torch
from rollout_logs import concluded, rows_of
from test_openrlhf_advantages import SETTINGS, scores_of

from durian_adv.adapters.openrlhf.maker import DurianExperienceMaker, ppo_trainer


def extra(i):
    """What a reward function returns beside the reward: an entropy per prompt, and its kind."""
    return {"visual_entropy": float(i // 4), "category": float(i // 8)}


@pytest.mark.parametrize("setting", ["uneven batches", "dynamic"])
@pytest.mark.parametrize("name", ["durian", "batch_std"])
def test_every_rollout_is_written_with_what_its_tokens_got(options, tmp_path, setting, name):
    chosen = {"estimator": name, "num_confidence_buckets": 2, "rollout_log": str(tmp_path / "log")}
    options(json.dumps(chosen))
    args = released.arguments(**SETTINGS[setting])
    made_by = released.maker(DurianExperienceMaker, args)
    for number in (5, 6):
        made_by.durian_step = number
        answers = released.rollouts(seed=number, extra_logs=extra)
        batches = made_by.compute_advantages_and_returns(released.experiences(made_by, answers))
        rows = rows_of(tmp_path / "log")[f"step_{number:08d}.parquet"]
        rewards, confidence = scores_of(batches)
        index = [i for batch in batches for i in batch.index]
        assert len(rows) == len(index) == 24
        used = [float(row[0]) for row in released.by_rollout(batches, "advantages")]
        for row, place in zip(rows, index, strict=True):
            assert row["advantage"] == pytest.approx(used[place], abs=1e-7)
            assert row["reward"] == float(rewards[place])
            assert row["confidence"] == pytest.approx(float(confidence[place]), rel=1e-6)
            assert (row["visual_entropy"], row["category"]) == (float(place // 4), str(place // 8))
            assert (row["text"], row["step"]) == (f"prompt {place // 4}", number)
        assert len({row["prompt"] for row in rows}) == 6
    assert concluded(tmp_path / "log", num_confidence_buckets=2).tone != "none"


def test_one_text_of_several_images_is_several_prompts(options, tmp_path):
    options(json.dumps({"weights": [0.3, 0, 0.7], "num_confidence_buckets": 2, "rollout_log": str(tmp_path)}))
    answers = released.rollouts(prompt="Find x.", images=lambda i: [f"image {i // 4}.png"])
    made_by = released.maker(DurianExperienceMaker, released.arguments())
    made_by.compute_advantages_and_returns(released.experiences(made_by, answers))
    (rows,) = rows_of(tmp_path).values()
    assert len({row["prompt"] for row in rows}) == len({row["group"] for row in rows}) == 6


def test_the_trainer_tells_the_maker_its_step(monkeypatch):
    from durian_adv.adapters.openrlhf import maker

    seen = []
    monkeypatch.setattr(maker, "_train_step", lambda self, samples, step: seen.append((samples, step)) or "done")
    trainer = torch.nn.Module()
    trainer.experience_maker = torch.nn.Module()
    assert maker._numbered_train_step(trainer, [1], 7) == "done"
    assert (trainer.experience_maker.durian_step, seen) == (8, [([1], 7)])
    assert ppo_trainer.BasePPOTrainer.train_step is not None


def test_a_folder_that_cannot_be_made_is_an_error_at_the_start(options, tmp_path):
    (tmp_path / "file").write_text("")
    options(json.dumps({"rollout_log": str(tmp_path / "file")}))
    with pytest.raises(
        ValueError, match=r"^DURIAN_OPTIONS\.rollout_log: expected a folder that can be made and written, "
    ):
        released.maker(DurianExperienceMaker, released.arguments())
