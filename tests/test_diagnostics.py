"""Metrics against counts made by hand and by loops."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from durian_adv import durian_components
from durian_adv.diagnostics import durian_metrics

SUCCESS = [1, 1, 1, 1, 1, 1, 1, 0]
FAILURE = [0, 0, 0, 1, 0, 0, 0, 0]
BALANCED = [1, 0, 1, 0, 1, 0, 1, 0]
RIGHT, WRONG = [1] * 8, [0] * 8
BATCH = torch.tensor([SUCCESS, FAILURE, FAILURE, BALANCED, RIGHT, WRONG], dtype=torch.float64)
ENTROPY = torch.tensor([1.0, 2.0, 3.0, 4.0, math.nan, 5.0])


def of(rewards, *, threshold=0.5, **scores):
    shape = {key: scores[key] for key in ("prompt_index", "valid") if key in scores}
    return durian_metrics(durian_components(rewards, **scores), rewards, **shape, success_threshold=threshold)


def test_extreme_groups_are_those_of_appendix_a():
    found = of(BATCH)
    assert found["durian/prompts"] == 6
    assert found["durian/rollouts"] == 48
    assert found["durian/effective"] == 4
    assert found["durian/extreme_success"] == 1
    assert found["durian/extreme_failure"] == 2
    assert found["durian/extreme_ratio"] == 3 / 4
    assert found["durian/no_signal_share"] == 2 / 6
    assert found["durian/reward_mean"] == pytest.approx(BATCH.mean().item(), abs=1e-15)


def test_correct_is_above_the_threshold_while_effective_means_unequal():
    mixed = 0.9 * BATCH + 0.1
    counts = ("prompts", "effective", "extreme_success", "extreme_failure", "extreme_ratio", "no_signal_share")
    for name in counts:
        assert of(mixed)[f"durian/{name}"] == of(BATCH)[f"durian/{name}"]
    format_only = torch.tensor([[0.1, 0.0, 0.0, 0.0]])
    assert of(format_only)["durian/effective"] == 1
    assert of(format_only)["durian/extreme_ratio"] == 0
    assert of(format_only, threshold=0.05)["durian/extreme_failure"] == 1


def test_two_rollouts_are_never_extreme():
    assert of(torch.tensor([[1.0, 0.0]]))["durian/extreme_ratio"] == 0


def test_buckets_scores_and_stds_are_those_of_the_components():
    parts = durian_components(BATCH, visual_entropy=ENTROPY, confidence=torch.arange(6.0), num_confidence_buckets=2)
    found = durian_metrics(parts, BATCH)
    assert found["durian/visual_entropy_mean"] == 3
    assert found["durian/visual_entropy_std"] == pytest.approx(2**0.5)
    assert found["durian/visual_entropy_missing_share"] == 1 / 6
    assert [found[f"durian/entropy_bucket_{k}_prompts"] for k in range(3)] == [2, 1, 2]
    assert [found[f"durian/confidence_bucket_{k}_prompts"] for k in range(2)] == [3, 3]
    assert "durian/entropy_bucket_3_prompts" not in found
    assert found["durian/perceptual_std_1"] == pytest.approx(BATCH[2].std().item())
    assert found["durian/reasoning_std_0"] == pytest.approx(BATCH[:3].std().item())
    assert found["durian/prompt_std_min"] == pytest.approx(BATCH[0].std().item())
    assert found["durian/prompt_std_mean"] == pytest.approx(BATCH[:4].std(1).mean().item())


def test_a_bucket_between_others_may_be_empty_and_then_has_no_std():
    scores = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    found = of(BATCH, confidence=scores, num_confidence_buckets=4)
    empty = [k for k in range(4) if found[f"durian/confidence_bucket_{k}_prompts"] == 0]
    assert empty
    assert not any(f"durian/reasoning_std_{k}" in found for k in empty)


def test_the_move_away_from_grpo_is_a_norm_and_an_angle():
    parts = durian_components(BATCH, visual_entropy=ENTROPY, weights=(1, 3, 0))
    found = durian_metrics(parts, BATCH)
    a, g = parts.advantages.flatten().numpy(), parts.grpo.flatten().numpy()
    assert found["durian/moved_from_grpo"] == pytest.approx(np.linalg.norm(a - g) / np.linalg.norm(g))
    assert found["durian/cosine_with_grpo"] == pytest.approx(a @ g / np.linalg.norm(a) / np.linalg.norm(g))
    assert found["durian/advantage_abs_max"] == abs(a).max()
    assert found["durian/perceptual_abs_max"] == parts.perceptual.abs().max().item()
    assert "durian/reasoning_abs_max" not in found


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 9))
def test_the_flat_form_in_any_order_has_the_same_metrics(seed, prompts, width):
    rng = np.random.default_rng(seed)
    rewards = torch.tensor(rng.integers(0, 2, (prompts, width)), dtype=torch.float64)
    valid = torch.tensor(rng.random((prompts, width)) < 0.8)
    entropy, confidence = torch.tensor(rng.random(prompts)), torch.tensor(rng.random((prompts, width)))
    dense = of(rewards, valid=valid, visual_entropy=entropy, confidence=confidence)
    order = torch.tensor(rng.permutation(prompts * width))
    flat = of(
        rewards.flatten()[order],
        valid=valid.flatten()[order],
        visual_entropy=entropy.repeat_interleave(width)[order],
        confidence=confidence.flatten()[order],
        prompt_index=torch.arange(prompts).repeat_interleave(width)[order],
    )
    assert flat == pytest.approx(dense, rel=1e-12, abs=1e-12)
    assert all(type(value) is float and math.isfinite(value) for value in dense.values())


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (1, 1)])
def test_batches_without_anything_to_see_give_finite_numbers(shape):
    found = of(torch.zeros(shape), visual_entropy=torch.zeros(shape[0]))
    assert all(math.isfinite(value) for value in found.values())
    assert found["durian/extreme_ratio"] == 0


def test_wrong_arguments_are_named():
    parts = durian_components(BATCH)
    with pytest.raises(TypeError, match="components: expected DurianComponents"):
        durian_metrics(BATCH, BATCH)
    with pytest.raises(ValueError, match=r"components\.advantages: expected shape"):
        durian_metrics(parts, BATCH[:3])
    with pytest.raises(ValueError, match="success_threshold: expected a finite number"):
        durian_metrics(parts, BATCH, success_threshold=math.nan)
