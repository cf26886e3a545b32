"""Confidence: sampler, old policy and extra forward agree; only tokens of the policy count."""

import pytest
import recorded
import tiny
import torch
from test_trl_training import expected_confidence, expected_logprobs

TEXTS = {k: ["a", "b cd", "7x", f"answer {k}"] for k in range(16)}


def first(make, family="qwen25vl", **more):
    """The trainer and its first batch, of completions that are always the same."""
    rollouts = recorded.scripted(TEXTS, **more.pop("script", {}))
    trainer = make(family, max_steps=1, arguments={"rollout_func": rollouts}, **more)
    trainer.train()
    return trainer, trainer.batches[0]


@pytest.mark.parametrize("family", ["qwen25vl", "llava", "qwen_text"])
def test_sampler_old_policy_and_extra_forward_give_the_same_confidence(make, family):
    _, extra = first(make, family)
    assert extra["forwards"] == 1
    assert "old_per_token_logps" not in extra["output"]
    _, old = first(make, family, num_iterations=2)
    assert old["forwards"] == 1  # TRL's own
    assert "old_per_token_logps" in old["output"]
    torch.testing.assert_close(old["confidence"], extra["confidence"], atol=1e-4, rtol=0)

    trainer, _ = first(make, family)
    trainer.model.load_state_dict(tiny.build(family)[0].state_dict())  # the policy that sampled
    numbers = [recorded.question(example["prompt"]) for example in extra["inputs"]]
    exact = zip(numbers, expected_logprobs(trainer, extra["output"]), strict=True)
    known = {(number, TEXTS[number][i % 4]): values.tolist() for i, (number, values) in enumerate(exact)}
    _, sampled = first(make, family, script={"logprobs": lambda number, text, count: known[number, text]})
    assert sampled["forwards"] == 0
    torch.testing.assert_close(sampled["confidence"], extra["confidence"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_sum_or_the_mean_of_the_log_probabilities_counts(make, reduction):
    trainer, batch = first(make, durian_confidence_reduction=reduction, temperature=0.7)
    trainer.model.load_state_dict(tiny.build("qwen25vl")[0].state_dict())
    expected = expected_confidence(trainer, batch["output"], reduction).view(4, 4)
    torch.testing.assert_close(batch["confidence"].float(), expected, atol=1e-3, rtol=0)
    lengths = batch["output"]["completion_mask"].sum(1)
    assert len(lengths.unique()) > 1


def test_tokens_of_tools_do_not_count(make):
    def by_hand(number, text, count):
        return [1] * (count - 1) + [0] if len(text) < 2 else [1, *[0] * (count - 2), 1]

    def sampler(number, text, count):
        return [float(-k - 1) for k in range(count)]

    _, batch = first(make, script={"masks": by_hand, "logprobs": sampler})
    numbers = [recorded.question(example["prompt"]) for example in batch["inputs"]]
    for i, number in enumerate(numbers):
        text = TEXTS[number][i % 4]
        count = len(text) + 1
        expected = sum(
            lp for lp, m in zip(sampler(number, text, count), by_hand(number, text, count), strict=True) if m
        )
        assert batch["confidence"].flatten()[i] == expected


def test_truncated_completions_that_trl_masks_are_invalid(make):
    trainer = make("qwen25vl", max_steps=1, mask_truncated_completions=True, max_completion_length=4)
    trainer.train()
    (batch,) = trainer.batches
    masked = batch["output"]["completion_mask"].sum(1) == 0
    assert masked.any()
    assert torch.equal(batch["confidence"].flatten().isnan(), masked)
    assert not batch["output"]["advantages"][masked].any()
    assert batch["metrics"]["durian/empty_share"] == masked.double().mean()
    assert batch["metrics"]["durian/rollouts"] == 16 - int(masked.sum())


def test_a_completion_of_which_no_token_counts_influences_nothing(make):
    """In TRL and elsewhere it votes: its reward of 10 makes this [-0.360, -0.566, -0.566, 0]."""

    def masks(number, text, count):
        return [int(text != "answer")] * count

    def rewards(completions, **_):
        return [10.0 if "answer" in c[0]["content"] else float(c[0]["content"] == "a") for c in completions]

    texts = {k: ["a", "b cd", "7x", "answer"] for k in range(16)}
    rollouts = recorded.scripted(texts, masks=masks)
    options = {"reward_funcs": rewards, "durian_weights": [1.0, 0.0, 0.0], "max_steps": 1}
    trainer = make("qwen25vl", arguments={"rollout_func": rollouts}, **options)
    trainer.train()
    (batch,) = trainer.batches
    for row in batch["output"]["advantages"].view(4, 4).tolist():
        assert row == pytest.approx([1.155, -0.577, -0.577, 0], abs=1e-3)
        assert row[3] == 0
    for row in batch["of_trl"].view(4, 4).tolist():
        assert row != pytest.approx([1.155, -0.577, -0.577, 0], abs=0.1)


@pytest.mark.parametrize("poison", [float("nan"), float("-inf")])
def test_a_token_whose_log_probability_is_not_finite_does_not_count(make, poison):
    def known(number, text, count):
        return [-(number + 1) / (k + 1) for k in range(count)]

    def poisoned(number, text, count):
        values = known(number, text, count)
        return [poison, *values[1:]] if text == "7x" else values

    def without_it(number, text, count):
        return [int(text != "7x"), *[1] * (count - 1)]

    _, batch = first(make, script={"logprobs": poisoned})
    _, masked = first(make, script={"logprobs": known, "masks": without_it})
    assert torch.equal(batch["confidence"], masked["confidence"])
    assert batch["confidence"].isfinite().all()
    for name in ("durian/confidence_bucket_0_prompts", "durian/reasoning_std_0", "durian/reasoning_std_1"):
        assert batch["metrics"][name] == masked["metrics"][name]
    tokens = int(batch["output"]["completion_mask"].sum())
    assert batch["metrics"]["durian/nonfinite_token_share"] == pytest.approx(4 / tokens)
    assert masked["metrics"]["durian/nonfinite_token_share"] == 0
