"""Exact zeros where there is no signal, and finite results for every finite reward."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import strategies as own
import torch
from helpers import Case, assert_matches, estimates
from hypothesis import given
from hypothesis import strategies as st

from durian_adv import baselines, durian_components, grpo_advantage, shared_std_advantage

MAXIMUM = {d: torch.finfo(d).max for d in own.FLOATS}
SMALLEST = {d: torch.finfo(d).smallest_normal * torch.finfo(d).eps for d in own.FLOATS}


def plain_case(rewards, valid=None, eps=0.0, correction=1, seed=0):
    """A case with random scores around the rewards."""
    rng = np.random.default_rng(seed)
    n = rewards.shape[0]
    return Case(
        own.RewardBatch(rewards, valid),
        entropy=torch.tensor(rng.normal(size=n)),
        confidence=torch.tensor(rng.normal(size=n)),
        buckets=torch.tensor(rng.integers(0, 2, n)),
        eps=eps,
        correction=correction,
    )


# --- no signal --------------------------------------------------------------------------------------

constants = st.one_of(
    st.sampled_from((0.9, 1 / 3, 0.1, 1e30, -1e30, 1e-40, 5e-324, 1.0, 0.0, -0.0, 3.4e38, 1.7e308)),
    st.floats(allow_nan=False, allow_infinity=False),
)


@given(
    st.lists(constants, min_size=1, max_size=6),
    st.integers(1, 17),
    st.sampled_from(own.FLOATS + own.NARROW),
    st.sampled_from((0.0, 1e-9, 1e-6)),
    st.sampled_from((0, 1)),
)
def test_prompts_whose_rewards_are_all_equal_get_exactly_zero(values, width, dtype, eps, correction):
    rewards = torch.tensor(values, dtype=torch.float64).to(dtype)[:, None].repeat(1, width)
    for name, advantages in estimates(plain_case(rewards, eps=eps, correction=correction)).items():
        assert name == "rpp" or not advantages.any(), name
        assert torch.isfinite(advantages).all(), name


@given(own.dense_batches(dtypes=own.FLOATS + own.NARROW), own.seeds, st.sampled_from((0.0, 1e-6)))
def test_prompts_without_a_signal_get_exactly_zero_beside_prompts_with_one(batch, seed, eps):
    usable = batch.usable()
    high = torch.where(usable, batch.rewards, float("-inf")).amax(1, keepdim=True)
    low = torch.where(usable, batch.rewards, float("inf")).amin(1, keepdim=True)
    silent = (~usable | ~(high > low)).expand_as(usable)
    case = plain_case(batch.rewards, batch.valid, eps, seed=seed)
    for name, advantages in estimates(case).items():
        if name != "rpp":
            assert not advantages[silent].any(), name
        assert not advantages[~usable].any(), name


@given(st.integers(1, 9), st.floats(allow_nan=False, width=32), st.sampled_from((0, 1)), st.sampled_from((0.0, 1e-6)))
def test_one_valid_rollout_is_no_signal(width, value, correction, eps):
    rewards = torch.full((2, width), float("nan"))
    rewards[0, 0] = value
    rewards[1, -1] = 1.0
    for name, advantages in estimates(plain_case(rewards, eps=eps, correction=correction)).items():
        assert name == "rpp" or not advantages.any(), name
        assert torch.isfinite(advantages).all(), name


def test_a_difference_of_one_unit_in_the_last_place_is_a_signal():
    for dtype in own.FLOATS:
        for value in (0.9, 1e30, 0.0, 1e-30):
            low = torch.tensor(value, dtype=dtype)
            high = torch.nextafter(low, torch.tensor(float("inf"), dtype=dtype))
            rewards = torch.stack([low, high])[None]
            assert_matches(grpo_advantage(rewards, eps=0.0), [[-(0.5**0.5), 0.5**0.5]])


@pytest.mark.parametrize("dtype", own.FLOATS)
def test_the_std_of_equal_rewards_is_reported_as_exactly_zero(dtype):
    rewards = torch.full((5, 8), 0.9, dtype=dtype)
    parts = durian_components(rewards, visual_entropy=torch.arange(5.0), confidence=torch.arange(5.0))
    for std in (parts.prompt_std, parts.perceptual_std, parts.reasoning_std):
        assert std.shape == (5,)
        assert not std.any()
    assert not parts.has_signal.any()


def test_the_whole_batch_equal_is_no_signal_for_reinforce_plus_plus():
    for eps in (0.0, 1e-9):
        for dtype in own.FLOATS:
            advantages = baselines.reinforce_plus_plus_advantage(torch.full((512, 8), 0.9, dtype=dtype), eps=eps)
            assert not advantages.any()


# --- the ends of the range --------------------------------------------------------------------------


@st.composite
def extreme_rewards(draw):
    """Rows of the largest, the smallest and ordinary numbers, in one dtype."""
    dtype = draw(st.sampled_from(own.FLOATS))
    big, small = MAXIMUM[dtype], SMALLEST[dtype]
    palette = (big, -big, big / 2, small, -small, 3 * small, torch.finfo(dtype).tiny, 0.0, 1.0, -1.0, 1e-30, 1e30)
    rng = np.random.default_rng(draw(own.seeds))
    few = rng.choice(palette, draw(st.integers(1, 4)))
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 8)))
    return torch.tensor(rng.choice(few, shape), dtype=torch.float64).to(dtype)


@given(extreme_rewards(), st.sampled_from((0.0, 1e-6, 1e-300)), st.sampled_from((0, 1)))
def test_no_finite_reward_gives_nan_or_infinity(rewards, eps, correction):
    for name, advantages in estimates(plain_case(rewards, eps=eps, correction=correction)).items():
        assert torch.isfinite(advantages).all(), name


@given(extreme_rewards(), st.sampled_from((0.0, 1e-6)), st.sampled_from((0, 1)))
def test_the_ends_of_the_range_agree_with_the_reference(rewards, eps, correction):
    values, options = own.as_numpy(rewards), {"eps": eps, "correction": correction}
    numbers = np.arange(len(values)) % 2
    assert_matches(grpo_advantage(rewards, **options), reference.grpo(values, **options))
    assert_matches(
        shared_std_advantage(rewards, torch.tensor(numbers), **options),
        reference.shared_std(values, numbers, **options),
    )
    for ours, theirs in (
        (baselines.batch_std_advantage, reference.batch_std),
        (baselines.reinforce_plus_plus_advantage, reference.reinforce_plus_plus),
        (baselines.reinforce_plus_plus_baseline_advantage, reference.reinforce_plus_plus_baseline),
    ):
        assert_matches(ours(rewards, **options), theirs(values, **options), where=ours.__name__)


@given(extreme_rewards())
def test_the_reported_stds_are_finite(rewards):
    n = rewards.shape[0]
    parts = durian_components(rewards, visual_entropy=torch.arange(n), confidence=torch.arange(n) / 2)
    for std in (parts.prompt_std, parts.perceptual_std, parts.reasoning_std):
        assert torch.isfinite(std).all()
        assert (std >= 0).all()


@pytest.mark.parametrize("dtype", own.FLOATS)
@pytest.mark.parametrize("low_high", ["subnormal", "maximum", "both", "upper", "lower"])
def test_a_binary_group_is_a_binary_group_at_either_end_of_the_range(dtype, low_high):
    low, high = {
        "subnormal": (0.0, SMALLEST[dtype]),
        "maximum": (-MAXIMUM[dtype], MAXIMUM[dtype]),
        "both": (SMALLEST[dtype], MAXIMUM[dtype]),
        "upper": (MAXIMUM[dtype] / 2, MAXIMUM[dtype]),
        "lower": (-MAXIMUM[dtype], -0.75 * MAXIMUM[dtype]),
    }[low_high]
    binary = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    rewards = torch.where(binary, torch.tensor(high, dtype=dtype), torch.tensor(low, dtype=dtype))
    expected = estimates(plain_case(binary.to(dtype), eps=0.0))
    for name, advantages in estimates(plain_case(rewards, eps=0.0)).items():
        if name not in ("dr_grpo", "rloo", "reweighted", "reweighted_to_one"):
            assert_matches(advantages, own.as_numpy(expected[name]), where=name)


@pytest.mark.parametrize("dtype", own.FLOATS)
def test_a_huge_prompt_does_not_drown_the_grpo_of_a_tiny_one(dtype):
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 3, dtype=dtype)
    rewards[1] *= MAXIMUM[dtype]
    rewards[2] *= SMALLEST[dtype]
    advantages = grpo_advantage(rewards, eps=0.0)
    assert_matches(advantages, [[1.5, -0.5, -0.5, -0.5]] * 3)
