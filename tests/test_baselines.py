"""The family: Dr. GRPO, batch std, RLOO, REINFORCE++ and its baseline form."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import reference
import strategies as own
import torch
from helpers import assert_matches, assert_same_bits, result_dtype
from hypothesis import given
from hypothesis import strategies as st

from durian_adv import baselines, shared_std_advantage

WITHOUT_STD = (
    (baselines.dr_grpo_advantage, reference.dr_grpo),
    (baselines.rloo_advantage, reference.rloo),
)
WITH_STD = (
    (baselines.batch_std_advantage, reference.batch_std),
    (baselines.reinforce_plus_plus_advantage, reference.reinforce_plus_plus),
    (baselines.reinforce_plus_plus_baseline_advantage, reference.reinforce_plus_plus_baseline),
)
epsilons = st.sampled_from((1e-6, 0.0, 1e-4))
corrections = st.sampled_from((0, 1))
moderate = {"scales": (1.0, 1e-3, 1e3)}


def assert_relative(actual, expected):
    """Differences of rewards are relative to the largest of them."""
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    assert_matches(actual.to(torch.float64) / scale, expected / scale, 1e-12 if actual.dtype == torch.float64 else 1e-6)


@given(own.dense_batches(dtypes=own.DTYPES), epsilons, corrections)
def test_estimators_with_a_std_agree_with_the_reference_on_dense_batches(batch, eps, correction):
    for ours, theirs in WITH_STD:
        actual = ours(batch.rewards, valid=batch.valid, eps=eps, correction=correction)
        assert actual.dtype == result_dtype(batch.rewards.dtype)
        assert_matches(actual, theirs(**batch.for_reference, eps=eps, correction=correction), where=ours.__name__)


@given(own.flat_batches(dtypes=own.DTYPES), epsilons, corrections)
def test_estimators_with_a_std_agree_with_the_reference_on_ragged_batches(batch, eps, correction):
    for ours, theirs in WITH_STD:
        actual = ours(batch.rewards, **batch.kwargs, eps=eps, correction=correction)
        assert_matches(actual, theirs(**batch.for_reference, eps=eps, correction=correction), where=ours.__name__)


@given(own.dense_batches(dtypes=own.DTYPES, **moderate))
def test_differences_agree_with_the_reference_on_dense_batches(batch):
    for ours, theirs in WITHOUT_STD:
        actual = ours(batch.rewards, valid=batch.valid)
        assert actual.dtype == result_dtype(batch.rewards.dtype)
        assert_matches(actual, theirs(**batch.for_reference), where=ours.__name__)


@given(own.flat_batches(dtypes=own.DTYPES))
def test_differences_agree_with_the_reference_on_ragged_batches(batch):
    for ours, theirs in WITHOUT_STD:
        assert_matches(ours(batch.rewards, **batch.kwargs), theirs(**batch.for_reference), where=ours.__name__)


@given(own.dense_batches(), epsilons, corrections)
def test_batch_std_is_one_bucket_bitwise(batch, eps, correction):
    options = {"valid": batch.valid, "eps": eps, "correction": correction}
    one = torch.full((batch.prompts,), -4, dtype=torch.int64)
    assert_same_bits(
        baselines.batch_std_advantage(batch.rewards, **options),
        shared_std_advantage(batch.rewards, one, **options),
    )


@given(own.dense_batches(masked=False, kinds=("normal", "binary", "weighted"), offsets=(0.0, 1.0), **moderate))
def test_rloo_is_dr_grpo_times_g_over_g_minus_one(batch):
    width = batch.rewards.shape[1]
    expected = own.as_numpy(baselines.dr_grpo_advantage(batch.rewards)) * width / max(width - 1, 1)
    assert_matches(
        baselines.rloo_advantage(batch.rewards), expected, None if batch.rewards.dtype == torch.float64 else 2e-6
    )


@pytest.mark.parametrize("dtype", own.FLOATS)
def test_worked_examples(dtype):
    rewards = torch.tensor([[1, 1, 1, 0], [2, 0, 0, 0]], dtype=dtype)
    mean = np.array([[0.75], [0.5]])
    centered = rewards.numpy() - mean
    everything = rewards.numpy().ravel()
    assert_matches(baselines.dr_grpo_advantage(rewards), centered)
    assert_matches(baselines.rloo_advantage(rewards), centered * 4 / 3)
    assert_matches(baselines.batch_std_advantage(rewards, eps=0.0), centered / everything.std(ddof=1))
    assert_matches(
        baselines.reinforce_plus_plus_advantage(rewards, eps=0.0, correction=0),
        (rewards.numpy() - everything.mean()) / everything.std(),
    )
    assert_matches(baselines.reinforce_plus_plus_baseline_advantage(rewards, eps=0.0), centered / centered.std(ddof=1))


def test_reinforce_plus_plus_has_no_zero_rule_for_a_prompt():
    rewards = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    advantages = baselines.reinforce_plus_plus_advantage(rewards, eps=0.0, correction=0)
    assert_matches(advantages, [[1.0, 1.0], [-1.0, -1.0]])


@pytest.mark.parametrize("shape", [(0, 4), (0, 0), (3, 0)])
def test_empty_batches_give_empty_results(shape):
    nothing = torch.zeros(0, dtype=torch.int64)
    for ours, _ in WITHOUT_STD + WITH_STD:
        assert ours(torch.zeros(shape)).shape == shape
        assert ours(torch.zeros(0), prompt_index=nothing).shape == (0,)


@pytest.mark.parametrize("value", [5e-324, -5e-324, 1.5e-323, 1.7976931348623157e308])
def test_equal_rewards_are_no_signal_at_the_ends_of_the_range(value):
    # halves of subnormal numbers are rounded: the middle of two equal ones is neither without care
    rewards = torch.full((2, 3), value, dtype=torch.float64)
    for estimator, _ in (*WITHOUT_STD, *WITH_STD[:1]):
        assert not estimator(rewards).any()
    buckets = torch.zeros(2, dtype=torch.int64)
    assert not shared_std_advantage(rewards, buckets, eps=0.0).any()


@pytest.mark.parametrize("estimator", [ours for ours, _ in (*WITHOUT_STD, *WITH_STD)])
def test_arguments_are_checked_and_eps_is_small(estimator):
    rewards = torch.tensor([[1.0, 0.0, 0.5], [0.25, 0.0, 0.0]], dtype=torch.float64)
    with pytest.raises(TypeError, match=r"^valid: expected dtype torch\.bool, got torch\.float64$"):
        estimator(rewards, valid=rewards)
    with pytest.raises(ValueError, match=r"^valid: expected shape rewards\.shape = \(2, 3\), got \(3,\)$"):
        estimator(rewards, valid=torch.ones(3, dtype=torch.bool))
    if "eps" in inspect.signature(estimator).parameters:
        assert_same_bits(estimator(rewards), estimator(rewards, eps=1e-6))
