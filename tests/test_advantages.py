"""GRPO (equation 2), the std shared by a bucket (11-13, 17-19), and the weighted sum (20)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import strategies as own
import torch
from helpers import assert_matches, assert_same_bits, result_dtype
from hypothesis import given
from hypothesis import strategies as st

from durian_adv import combine_advantages, grpo_advantage, shared_std_advantage
from durian_adv._src import advantages

epsilons = st.sampled_from((1e-6, 0.0, 1e-9, 1e-4, 1.0))
corrections = st.sampled_from((0, 1))


# --- agreement with the reference -------------------------------------------------------------------


@given(own.dense_batches(dtypes=own.DTYPES), epsilons, corrections)
def test_grpo_agrees_with_the_reference_on_dense_batches(batch, eps, correction):
    actual = grpo_advantage(batch.rewards, valid=batch.valid, eps=eps, correction=correction)
    assert actual.dtype == result_dtype(batch.rewards.dtype)
    assert_matches(actual, reference.grpo(**batch.for_reference, eps=eps, correction=correction))


@given(own.flat_batches(dtypes=own.DTYPES), epsilons, corrections)
def test_grpo_agrees_with_the_reference_on_ragged_batches(batch, eps, correction):
    actual = grpo_advantage(batch.rewards, **batch.kwargs, eps=eps, correction=correction)
    assert_matches(actual, reference.grpo(**batch.for_reference, eps=eps, correction=correction))


@given(own.dense_batches(dtypes=own.DTYPES), own.seeds, epsilons, corrections)
def test_shared_std_agrees_with_the_reference_for_any_bucket_numbers(batch, seed, eps, correction):
    numbers = np.random.default_rng(seed).choice((0, 1, -7, 2**62, 2**62 + 1, -(2**63)), batch.prompts)
    actual = shared_std_advantage(
        batch.rewards, torch.tensor(numbers), valid=batch.valid, eps=eps, correction=correction
    )
    assert actual.dtype == result_dtype(batch.rewards.dtype)
    expected = reference.shared_std(**batch.for_reference, buckets=numbers, eps=eps, correction=correction)
    assert_matches(actual, expected)


@given(own.flat_batches(), own.seeds, epsilons, corrections)
def test_shared_std_agrees_with_the_reference_on_ragged_batches(batch, seed, eps, correction):
    numbers = batch.prompt_index % (np.random.default_rng(seed).integers(1, 5))
    actual = shared_std_advantage(batch.rewards, numbers, **batch.kwargs, eps=eps, correction=correction)
    expected = reference.shared_std(**batch.for_reference, buckets=numbers.numpy(), eps=eps, correction=correction)
    assert_matches(actual, expected)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_bucket_numbers_may_have_any_integer_dtype(dtype):
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    numbers = torch.tensor([0, 1, 0])
    assert_same_bits(shared_std_advantage(rewards, numbers.to(dtype)), shared_std_advantage(rewards, numbers))


# --- the identities of the method -------------------------------------------------------------------


@given(own.dense_batches(), epsilons, corrections)
def test_one_prompt_a_bucket_is_grpo(batch, eps, correction):
    own_bucket = torch.arange(batch.prompts) * -3 + 5
    shared = shared_std_advantage(batch.rewards, own_bucket, valid=batch.valid, eps=eps, correction=correction)
    assert_matches(
        shared, own.as_numpy(grpo_advantage(batch.rewards, valid=batch.valid, eps=eps, correction=correction))
    )


@given(own.dense_batches(kinds=("binary",), scales=(1.0,), offsets=(0.0,), by_row=False), corrections)
def test_the_std_of_binary_rewards_is_the_square_root_of_their_bernoulli_variance(batch, correction):
    batch = own.RewardBatch(batch.rewards.to(torch.float64), batch.valid)
    count = batch.usable()
    n = int(count.sum())
    advantages = shared_std_advantage(
        batch.rewards, torch.zeros(batch.prompts, dtype=torch.int64), valid=batch.valid, eps=0.0, correction=correction
    )
    if n == 0:
        assert not advantages.any()
        return
    total = torch.where(count, batch.rewards, 0.0)
    m = float(total.sum()) / n
    center = total.sum(1, keepdim=True) / count.sum(1, keepdim=True).clamp(min=1)
    spread = math.sqrt(n / max(n - correction, 1) * m * (1 - m))
    expected = torch.where(count, batch.rewards - center, 0.0) / (spread or 1.0)
    assert_matches(advantages, expected.numpy())


@pytest.mark.parametrize("dtype", own.FLOATS)
@pytest.mark.parametrize("correct", range(1, 8))
def test_binary_groups_of_eight_follow_from_their_accuracy(correct, dtype):
    rewards = torch.tensor([[1.0] * correct + [0.0] * (8 - correct)], dtype=dtype)
    p = correct / 8
    std = math.sqrt(8 / 7 * p * (1 - p))
    expected = [[(1 - p) / std] * correct + [-p / std] * (8 - correct)]
    assert_matches(grpo_advantage(rewards, eps=0.0), expected)


def test_an_extreme_group_of_eight_gets_2_6_times_the_balanced_advantage():
    extreme = grpo_advantage(torch.tensor([[1.0] + [0.0] * 7], dtype=torch.float64))
    balanced = grpo_advantage(torch.tensor([[1.0] * 4 + [0.0] * 4], dtype=torch.float64))
    assert extreme[0, 0].item() == pytest.approx(2.4749, abs=5e-5)
    assert extreme[0, 1].item() == pytest.approx(-0.3536, abs=5e-5)
    assert balanced[0, 0].item() == pytest.approx(0.9354, abs=5e-5)
    assert (extreme[0, 0] / balanced[0, 0]).item() == pytest.approx(math.sqrt(7), abs=1e-5)


@given(own.dense_batches(masked=False), st.sampled_from((1e-6, 0.0)))
def test_the_advantages_of_a_prompt_sum_to_zero(batch, eps):
    advantages = grpo_advantage(batch.rewards, eps=eps)
    assert_matches(
        advantages.to(torch.float64).sum(1),
        np.zeros(batch.prompts),
        10 * (1e-6 if advantages.dtype == torch.float32 else 1e-12),
    )


@given(own.dense_batches(masked=False, kinds=("normal", "ties", "weighted"), scales=(1.0,), offsets=(0.0,)))
def test_the_variance_of_a_prompt_with_a_signal_is_one_at_eps_zero(batch):
    advantages = grpo_advantage(batch.rewards.to(torch.float64), eps=0.0, correction=0)
    signal = batch.rewards.amax(1) > batch.rewards.amin(1)
    assert_matches(advantages.square().mean(1), signal.to(torch.float64).numpy())


# --- shift and scale --------------------------------------------------------------------------------


@given(own.dense_batches(dtypes=(torch.int64,)), st.sampled_from((1e4, -1e4, 3e6)), corrections)
def test_a_common_offset_that_the_dtype_can_hold_changes_nothing(batch, offset, correction):
    rewards = batch.rewards.to(torch.float32)
    plain = grpo_advantage(rewards, valid=batch.valid, correction=correction)
    assert_matches(grpo_advantage(rewards + offset, valid=batch.valid, correction=correction), own.as_numpy(plain))
    numbers = torch.arange(batch.prompts) % 2
    plain = shared_std_advantage(rewards, numbers, valid=batch.valid, correction=correction)
    shifted = shared_std_advantage(rewards + offset, numbers, valid=batch.valid, correction=correction)
    assert_matches(shifted, own.as_numpy(plain))


@given(own.dense_batches(dtypes=(torch.int64,)), st.sampled_from((2.0**40, -(2.0**44))))
def test_a_huge_common_offset_changes_nothing_in_float64(batch, offset):
    rewards = batch.rewards.to(torch.float64)
    numbers = torch.arange(batch.prompts) % 2
    for function in (grpo_advantage, lambda r, **kw: shared_std_advantage(r, numbers, **kw)):
        plain = function(rewards, valid=batch.valid)
        assert_matches(function(rewards + offset, valid=batch.valid), own.as_numpy(plain))


@given(
    own.dense_batches(scales=(1.0,), kinds=("normal", "ties", "binary"), offsets=(0.0,)),
    st.integers(-60, 60),
)
def test_a_positive_scale_cancels_at_eps_zero(batch, power):
    scaled = batch.rewards * 2.0**power
    numbers = torch.zeros(batch.prompts, dtype=torch.int64)
    for function in (grpo_advantage, lambda r, **kw: shared_std_advantage(r, numbers, **kw)):
        plain = function(batch.rewards, valid=batch.valid, eps=0.0)
        assert_matches(function(scaled, valid=batch.valid, eps=0.0), own.as_numpy(plain))


@given(own.dense_batches(dtypes=(torch.float64,), scales=(1.0,)), st.sampled_from((1e-6, 1e-3)))
def test_negated_rewards_negate_the_advantages(batch, eps):
    negative = grpo_advantage(-batch.rewards, valid=batch.valid, eps=eps)
    assert_matches(-negative, own.as_numpy(grpo_advantage(batch.rewards, valid=batch.valid, eps=eps)))


# --- the weighted sum -------------------------------------------------------------------------------


@given(own.seeds, st.lists(st.booleans(), min_size=1, max_size=5), st.sampled_from(own.FLOATS))
def test_the_combination_agrees_with_the_reference_and_spreads_the_weight_of_what_is_absent(seed, there, dtype):
    rng = np.random.default_rng(seed)
    there[rng.integers(len(there))] = True
    weights = [float(w) for w in rng.choice((0.1, 0.2, 0.7, 1.0, 3.0), len(there))]
    parts = [torch.tensor(rng.normal(size=(3, 4))).to(dtype) if t else None for t in there]
    actual = combine_advantages(parts, weights)
    assert actual.dtype == dtype
    assert_matches(actual, reference.combine([own.as_numpy(p) for p in parts], weights))


def test_the_weight_of_an_absent_component_goes_to_the_others_in_proportion():
    a = torch.tensor([1.0, -1.0], dtype=torch.float64)
    b = torch.tensor([3.0, 5.0], dtype=torch.float64)
    actual = combine_advantages([a, None, b], [0.1, 0.2, 0.7])
    scale = (0.1 + 0.2 + 0.7) / (0.1 + 0.7)
    assert_matches(actual, (scale * 0.1 * a + scale * 0.7 * b).numpy())


def test_a_component_of_weight_zero_counts_for_nothing():
    a, b = torch.tensor([1.0, -2.0]), torch.tensor([float("1e30"), 4.0])
    assert_matches(combine_advantages((a, b), (2.0, 0.0)), [2.0, -4.0])


# --- degenerate shapes ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 4), (0, 0), (3, 0)])
@pytest.mark.parametrize("dtype", own.DTYPES)
def test_empty_batches_give_empty_results(shape, dtype):
    rewards = torch.zeros(shape, dtype=dtype)
    for actual in (
        grpo_advantage(rewards),
        grpo_advantage(rewards, valid=torch.ones(shape, dtype=torch.bool)),
        shared_std_advantage(rewards, torch.zeros(shape[0], dtype=torch.int64)),
    ):
        assert actual.shape == shape
        assert actual.dtype == result_dtype(dtype)


def test_an_empty_ragged_batch_gives_an_empty_result():
    nothing = torch.zeros(0, dtype=torch.int64)
    assert grpo_advantage(torch.zeros(0), prompt_index=nothing).shape == (0,)
    assert shared_std_advantage(torch.zeros(0), nothing, prompt_index=nothing).shape == (0,)


def test_a_weighted_sum_is_rounded_once():
    one, little = torch.tensor([1.0]), torch.tensor([3 * 2.0**-26])  # two of which are more than half a last place
    assert combine_advantages((one, little, little), (1, 1, 1)).item() == 1 + 2.0**-23


def test_weights_are_taken_as_they_are_where_nothing_is_left_out():
    weights = (0.3, 0.2, 0.7)
    assert tuple(w / sum(weights) * sum(weights) for w in weights) != weights
    assert tuple(advantages.left_weights(weights, [True] * 3)) == weights
    left = advantages.left_weights(weights, [True, False, True])
    assert left == pytest.approx([w * sum(weights) / (weights[0] + weights[2]) for w in weights[::2]])
