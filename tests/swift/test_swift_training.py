"""Whole trainings by the released ms-swift on real images; the advantages are those of the library."""

import json
import math

import pytest
import tiny
import torch

from durian_adv import ArgumentError, durian_advantage, durian_components, eigen_entropy, sequence_confidence
from durian_adv.diagnostics import durian_metrics

TWO_BUCKETS = {"num_confidence_buckets": 2, "entropy_quantiles": (0.5,), "eps": 1e-4}


def log_of(run):
    return [json.loads(line) for line in (run.out / "logging.jsonl").read_text().splitlines()]


def expected_entropy(trainer, pictures):
    """The mean entropy of images, each run alone through the tower as the model is configured."""
    inner = trainer.accelerator.unwrap_model(trainer.model)
    inner = getattr(inner, "base_model", inner)
    inner = getattr(inner, "model", inner)
    inner = getattr(inner, "model", inner)
    layer = inner.config.vision_feature_layer
    found = []
    for picture in pictures:
        pixels = trainer.template.processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            states = inner.vision_tower(pixels, output_hidden_states=True).hidden_states[layer]
        found.append(eigen_entropy(states[0, 1:]).item())  # without the class token
    return sum(found) / len(found)


def expected_confidences(trainer, batch):
    """The summed log-probability of each completion, from one forward of the rows of each step."""
    found = []
    for inputs, grpo in zip(batch["inputs"], batch["batches"], strict=True):
        kept = {name: value for name, value in inputs.items() if name not in ("use_cache", "logits_to_keep")}
        with torch.no_grad():
            logits = trainer.model(**kept).logits / trainer.temperature
        logprobs = torch.log_softmax(logits[:, :-1], -1).gather(2, inputs["input_ids"][:, 1:, None])[..., 0]
        width = grpo.completion_mask.shape[1]
        found.append(sequence_confidence(logprobs[:, -width:], grpo.completion_mask))
    return torch.cat(found)


def pictures_of(batch, rows):
    """The image of each prompt of a batch, in its order."""
    numbers = [int(sample.extra["number"]) for sample in batch["samples"][::4]]
    return [rows[number]["pictures"] for number in numbers]


def test_images_are_seen_by_the_tower_and_the_advantages_are_those_of_the_library(train):
    rows = tiny.rows()
    run = train(rows, max_steps=2)
    trainer = run.trainer
    assert any("q_proj" in name for name in trainer.moved)
    assert len(run.batches) == 2
    end = trainer.model.state_dict()
    trainer.model.load_state_dict(trainer.start)  # the policy of the first batch
    batch = run.batches[0]
    trainer.model.eval()
    rewards = batch["per_func"][:, 0].view(4, 4)
    entropy = torch.tensor([expected_entropy(trainer, pictures) for pictures in pictures_of(batch, rows)])
    assert entropy.max() - entropy.min() > 0.1
    torch.testing.assert_close(
        batch["scores"]["visual_entropy"].view(4, 4).float(), entropy[:, None].expand(4, 4), atol=1e-4, rtol=0
    )
    confidence = expected_confidences(trainer, batch)
    ours = batch["confidence"]
    torch.testing.assert_close(ours, confidence, atol=1e-3, rtol=0)
    right = durian_advantage(rewards, visual_entropy=entropy, confidence=confidence.view(4, 4), **TWO_BUCKETS)
    torch.testing.assert_close(batch["advantages"].view(4, 4), right, atol=1e-6, rtol=0)
    assert not torch.equal(batch["of_swift"], batch["advantages"])
    trainer.model.load_state_dict(end)

    for rows_of_step, grpo in zip(batch["advantages"].view(4, 4), batch["batches"], strict=True):
        assert torch.equal(grpo.advantages, rows_of_step[:, None].expand_as(grpo.advantages))  # of every token
    shown = [json.loads(line)["advantages"] for line in (run.out / "completions.jsonl").read_text().splitlines()]
    assert shown[0] == batch["advantages"].tolist()
    parts = durian_components(
        rewards,
        visual_entropy=batch["scores"]["visual_entropy"].view(4, 4)[:, 0],
        confidence=ours.view(4, 4),
        **TWO_BUCKETS,
    )
    metrics = durian_metrics(parts, rewards)
    counted = dict.fromkeys(("unscored_share", "empty_share", "nonfinite_token_share", "window_prompts"), 0.0)
    assert batch["metrics"] == pytest.approx(metrics | {f"durian/{name}": x for name, x in counted.items()}, abs=1e-6)
    logged = next(line for line in log_of(run) if "durian/prompts" in line)
    for name, value in batch["metrics"].items():
        assert logged[name] == pytest.approx(value, abs=1e-6), name


def parity(batch, group=4):
    """Ours are ms-swift's advantages where there is signal, and 0 where there is none; return how many have signal."""
    signal = 0
    columns = (batch[name].view(-1, group) for name in ("rewards", "advantages", "of_swift"))
    for rewards, ours, theirs in zip(*columns, strict=True):
        if rewards.min() == rewards.max():
            assert not ours.any()
        else:
            signal += 1
            assert ((ours - theirs).abs() <= 1e-5 * theirs.abs().clamp(min=1)).all()
    return signal


NOBODY = -1.0  # ms-swift takes None out of a list
GRPO = {"durian_weights": [1, 0, 0]}
NO_SIGNAL = [[0.9] * 4, [0, 1, 0, 0], [0.25, 0.5, 0.5, 1.5], [1, 1, 1, 0]] * 2


def test_weights_1_0_0_are_ms_swifts_own_grpo_where_there_is_signal_and_zero_where_there_is_none(train):
    run = train(tiny.rows(script=NO_SIGNAL), durian=GRPO, reward_funcs=["written"], max_steps=2)
    assert sum(parity(batch) for batch in run.batches) == 6
    for batch in run.batches:
        assert batch["scores"]["visual_entropy"].isnan().all()  # a score without weight is not computed


def test_a_folder_that_the_rollout_log_cannot_use_is_refused_before_the_first_batch(train):
    with pytest.raises(ArgumentError, match=r"^durian_rollout_log: expected a folder that can be made and writ"):
        train(durian={**tiny.BUCKETS, "durian_rollout_log": "/proc/nothing/log"}, max_steps=1)


def test_a_column_wins_over_the_tower_and_a_prompt_without_an_image_has_no_entropy(train):
    rows = tiny.rows(visual_entropy=[1.5, None, 0.5, 0.25, 3.0, 0.75, None, 2.0], script=NO_SIGNAL)
    del rows[1]["pictures"]
    run = train(rows, reward_funcs=["written"], max_steps=2)
    for batch in run.batches:
        numbers = [int(sample.extra["number"]) for sample in batch["samples"]]
        column = [rows[number]["visual_entropy"] for number in numbers]
        found = batch["scores"]["visual_entropy"].tolist()
        assert [None if math.isnan(x) else x for x in found] == column
        missing = len({number for number in numbers if number in (1, 6)})
        assert batch["metrics"]["durian/visual_entropy_missing_share"] == missing / 4
        confidence = batch["confidence"].view(4, 4)
        right = durian_advantage(
            batch["rewards"].view(4, 4),
            visual_entropy=batch["scores"]["visual_entropy"].view(4, 4)[:, 0],
            confidence=confidence,
            **TWO_BUCKETS,
        )
        assert torch.equal(batch["advantages"].view(4, 4), right)


def test_prompts_with_and_without_images_train_together_and_the_tower_sees_only_images(train):
    rows = tiny.rows()
    for number in (0, 3, 5):
        del rows[number]["pictures"]
    rows[1]["pictures"] += [tiny.photograph(0.9, 7)]
    run = train(rows, max_steps=2)
    seen = {}
    for batch in run.batches:
        for sample, entropy in zip(batch["samples"], batch["scores"]["visual_entropy"].tolist(), strict=True):
            seen.setdefault(int(sample.extra["number"]), set()).add(entropy)
    trainer = run.trainer
    trainer.model.eval()
    assert sorted(seen) == list(range(8))
    for number, found in seen.items():
        if number in (0, 3, 5):
            assert all(map(math.isnan, found))
        else:  # the vision tower is frozen, as ms-swift does by default
            right = expected_entropy(trainer, rows[number]["pictures"])
            assert sorted(found) == pytest.approx([right] * len(found), abs=1e-4)


def test_what_nobody_scores_has_no_advantage_and_changes_nothing(train):
    rewards = [[NOBODY, 1, 1, 0], [1, NOBODY, NOBODY, NOBODY], [0, 1, NOBODY, 1], [NOBODY] * 4]
    rows = tiny.rows(4, script=rewards)
    run = train(rows, durian=GRPO, reward_funcs=["written"])
    (batch,) = run.batches
    place = [int(sample.extra["number"]) for sample in batch["samples"][::4]]
    ours, theirs = (
        dict(zip(place, batch[name].view(4, 4).tolist(), strict=True)) for name in ("advantages", "of_swift")
    )
    std = math.sqrt(1 / 3)
    assert ours[0] == pytest.approx([0, 1 / 3 / (std + 1e-4), 1 / 3 / (std + 1e-4), -2 / 3 / (std + 1e-4)], abs=1e-6)
    assert theirs[0][0] == pytest.approx(-0.866, abs=1e-3)  # a reward of 0 to ms-swift
    assert ours[1] == [0] * 4
    assert ours[2][2] == 0
    assert ours[3] == [0] * 4
    assert batch["metrics"]["durian/unscored_share"] == 9 / 16


def test_a_function_that_scores_nothing_counts_as_ms_swift_counts_it(train):
    rewards = [[NOBODY, 1, 0, 0]] * 8
    run = train(tiny.rows(script=rewards), durian=GRPO, reward_funcs=["written", "letters"], reward_weights=[0.25, 2.0])
    (batch,) = run.batches
    letters = batch["per_func"][:, 1]
    right = torch.tensor([0, 0.25, 0, 0] * 4) + 2 * letters
    torch.testing.assert_close(batch["rewards"], right)
    assert parity(batch)


def test_lora_trains_with_the_same_scores_beside_a_reference_that_is_the_model_itself(train):
    rows = tiny.rows()
    run = train(rows, tuner_type="lora", target_modules=["q_proj", "v_proj"], beta=0.1)
    assert run.trainer.moved
    assert all("lora" in name for name in run.trainer.moved)
    (batch,) = run.batches
    assert batch["batches"][0].ref_per_token_logps is not None
    run.trainer.model.load_state_dict(run.trainer.start)
    run.trainer.model.eval()
    right = [expected_entropy(run.trainer, pictures) for pictures in pictures_of(batch, rows)]
    assert batch["scores"]["visual_entropy"].view(4, 4)[:, 0].tolist() == pytest.approx(right, abs=1e-4)


def test_kl_in_reward_is_ms_swifts(train):
    rows = tiny.rows()
    run = train(rows, durian=GRPO, beta=0.5, kl_in_reward="true", max_steps=2, learning_rate=0.05)
    first, second = run.batches
    assert parity(first)
    assert parity(second) == 4
    summed = second["per_func"].sum(1)
    kl = torch.cat(
        [((b.old_per_token_logps - b.ref_per_token_logps) * b.completion_mask).sum(1) for b in second["batches"]]
    )
    assert kl.abs().max() > 0.01
    torch.testing.assert_close(second["rewards"], summed - 0.5 * kl)


def test_dapo_sampling_brings_its_own_prompts_and_their_entropies(train):
    flat, right = [1.0] * 4, [0, 1, 1, 0.5]
    rows = tiny.rows(script=[flat, right, flat, flat, right, right, flat, right])
    run = train(rows, reward_funcs=["written"], dynamic_sample="true", max_resample_times=20, seed=3)
    (batch,) = run.batches
    numbers = [int(sample.extra["number"]) for sample in batch["samples"]]
    assert set(numbers) <= {1, 4, 5, 7}
    assert batch["metrics"]["durian/no_signal_share"] == 0
    run.trainer.model.eval()
    entropies = {n: expected_entropy(run.trainer, rows[n]["pictures"]) for n in set(numbers)}
    assert batch["scores"]["visual_entropy"].tolist() == pytest.approx([entropies[n] for n in numbers], abs=1e-4)
    parts = durian_components(
        batch["rewards"].view(4, 4),
        visual_entropy=batch["scores"]["visual_entropy"].view(4, 4)[:, 0],
        confidence=batch["confidence"].view(4, 4),
        **TWO_BUCKETS,
    )
    assert torch.equal(batch["advantages"].view(4, 4), parts.advantages)


def test_truncated_completions_that_are_not_trained_influence_nothing(train):
    run = train(overlong_filter="true", max_steps=2)
    truncated = 0
    for batch in run.batches:
        cut = torch.cat([grpo.truncated_mask for grpo in batch["batches"]])
        assert cut.any()
        assert not batch["advantages"][cut].any()
        assert [bool(mask.any()) for mask in batch["scores"]["mask"]] == (~cut).tolist()
        assert batch["metrics"]["durian/empty_share"] == cut.float().mean()
        truncated += int((~cut).sum())
    assert truncated


def test_evaluation_may_have_another_number_of_completions_and_leaves_the_window_alone(train, tmp_path):
    file = tiny.save_dataset(tmp_path / "eval.jsonl", tiny.rows(6))
    run = train(
        val_dataset=file,
        durian={"durian_window": 64, "durian_num_confidence_buckets": 2},
        num_generations_eval=2,
        per_device_eval_batch_size=6,
        eval_strategy="steps",
        eval_steps=1,
        eval_on_start="true",
    )
    assert [batch["mode"] for batch in run.batches] == ["eval", "eval", "train", "eval", "eval"]
    assert [len(batch["advantages"]) for batch in run.batches] == [6, 6, 16, 6, 6]
    assert [batch["metrics"]["durian/window_prompts"] for batch in run.batches] == [0] * 5
    for batch in run.batches:
        if batch["mode"] == "eval":
            right = durian_advantage(
                batch["rewards"].view(3, 2),
                visual_entropy=batch["scores"]["visual_entropy"].view(3, 2)[:, 0],
                confidence=batch["confidence"].view(3, 2),
                num_confidence_buckets=2,
                eps=1e-4,
            )
            assert torch.equal(batch["advantages"].view(3, 2), right)
    assert any("eval_durian/prompts" in line for line in log_of(run))
