"""The log of ``algorithm.durian.rollout_log``: what verl's v0 and v1 advantage steps had."""

import batches
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from rollout_logs import concluded, rows_of
from test_verl_queue import scores, step, stored
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.ray_trainer import RayPPOTrainer
from verl.trainer.ppo.v1 import PPOTrainerSync

from durian_adv.adapters.verl import estimator as adapter
from durian_adv.data.logs.steps import read_log


def begun(kind, number, **options):
    """A trainer of verl's that has started, as far as our hook sees it."""
    made = object.__new__(kind)
    made.global_steps = number
    made.config = OmegaConf.create({"algorithm": batches.with_options(**options)})
    adapter._begin(made)
    return made


@pytest.mark.parametrize("name", ["durian", "grpo"])
def test_a_batch_of_v0_is_written_as_it_was_normalized(tmp_path, name):
    options = {"rollout_log": str(tmp_path / "log"), "num_confidence_buckets": 2}
    trainer = begun(RayPPOTrainer, 7, **options)
    for number in (7, 8):
        trainer.global_steps = number
        data = batches.random_batch(np.random.default_rng(number), prompts=12)
        uid = data.non_tensor_batch["uid"]
        kinds = np.array([f"source {int(prompt[-1], 16) % 2}" for prompt in uid], dtype=object)
        data.non_tensor_batch["data_source"] = kinds
        messages = [[{"role": "user", "content": f"What is {prompt}?"}] for prompt in uid]
        data.non_tensor_batch["raw_prompt"] = np.array([*messages, None], dtype=object)[:-1]
        out = batches.advantage(data, estimator_=name, **options)
        rows = rows_of(tmp_path / "log")[f"step_{number:08d}.parquet"]
        used = torch.where(data.batch["response_mask"] != 0, out.batch["advantages"], 0)
        at = torch.arange(len(rows)), (data.batch["response_mask"] != 0).int().argmax(1)
        assert [row["advantage"] for row in rows] == used[at].tolist()
        assert any(row["advantage"] for row in rows)
        assert [row["prompt"] for row in rows] == uid.tolist()
        assert [row["category"] for row in rows] == kinds.tolist()
        assert [row["text"] for row in rows] == [f"What is {prompt}?" for prompt in uid]
        wanted = batches.rewards_of(data)
        assert [row["reward"] is None for row in rows] == wanted.isnan().tolist()
        assert [row["reward"] for row in rows if row["reward"] is not None] == wanted[~wanted.isnan()].tolist()
        mask = data.batch["response_mask"] != 0
        confidence = torch.where(mask, data.batch["old_log_probs"], 0).sum(1)
        for row, value in zip(rows, confidence.tolist(), strict=True):  # with a weight or without
            assert row["confidence"] == (pytest.approx(value, rel=1e-6) if row["valid"] else None)
    assert sorted(rows_of(tmp_path / "log")) == ["step_00000007.parquet", "step_00000008.parquet"]
    assert concluded(tmp_path / "log", num_confidence_buckets=2)
    assert [s.name for s in read_log([tmp_path / "log"]).steps] == [7, 8]


def test_the_queue_of_v1_is_written_without_its_padding_and_a_rollout_once(queue, tmp_path):
    options = {"rollout_log": str(tmp_path / "log"), "num_confidence_buckets": 2}
    trainer = begun(PPOTrainerSync, 3, **options)
    entropy = {"visual_entropy": lambda prompt: float(prompt)}
    batch = stored(queue, np.random.default_rng(2), prompts=7, outputs=3, **entropy)
    real = dict(zip(batch.keys, scores(batch)[0].tolist(), strict=True))
    padded = upsample_batch_to_divisible_size(batch, len(batch) + 3, eos_token_id=1)
    assert len(padded.keys) > len(real)
    advantages, _, _ = step(PPOTrainerSync, padded, **options)
    (rows,) = rows_of(tmp_path / "log").values()
    last = {}
    for key in real:
        prompt, rollout, output = key.rsplit("_", 2)
        last[prompt, rollout] = max(last.get((prompt, rollout), 0), int(output))
    assert len(rows) == len(last)
    expected = {f"{prompt}_{rollout}_{output}" for (prompt, rollout), output in last.items()}
    used = dict(zip(padded.keys, advantages, strict=True))
    seen = {}
    for row in rows:
        key = padded.keys[row["rollout"]]
        prompt, rollout, _ = key.rsplit("_", 2)
        seen[f"{prompt}_{rollout}_{last[prompt, rollout]}"] = row
        assert row["prompt"] == prompt
        assert row["advantage"] == float(used[key][0])
        assert row["step"] == trainer.global_steps == 3
    assert seen.keys() == expected
    assert {key: row["reward"] for key, row in seen.items()} == {key: real[key] for key in expected}
    assert len({row["visual_entropy"] for row in rows}) == 7
    assert concluded(tmp_path / "log", num_confidence_buckets=1, entropy_quantiles=(0.5,))


def test_what_cannot_be_written_is_told_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^algorithm\.durian\.rollout_log: expected a folder that can be made.*file"):
        begun(RayPPOTrainer, 1, rollout_log=str(tmp_path / "file"))
    adapter._trainer = None
    data = batches.random_batch(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^algorithm\.durian\.rollout_log: expected a trainer of verl's"):
        batches.advantage(data, num_confidence_buckets=2, rollout_log=str(tmp_path / "log"))
    with pytest.raises(ValueError, match=r"^algorithm\.durian\.rollout_log: expected the path of a folder"):
        batches.advantage(data, rollout_log=3)


def test_texts_with_images_in_them_are_not_fetched():
    picture = [{"role": "user", "content": [{"type": "image", "image": object()}]}]

    def column(name):
        yield picture
        raise AssertionError("fetched more than the first")

    assert adapter._texts(adapter.Rows({}, column)) is None
    assert adapter._texts(adapter.Rows({}, lambda name: None)) is None
