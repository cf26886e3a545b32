"""One test for each defect that has been measured in a published trainer, by its name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import strategies as own
import torch
from helpers import Case, assert_matches, assert_same_bits, estimates
from torch.utils._python_dispatch import TorchDispatchMode

from durian_adv import baselines, durian_advantage, grpo_advantage, shared_std_advantage

NAN = float("nan")
EPSILONS = (0.0, 1e-9, 1e-8, 1e-6, 1e-4)


@pytest.mark.parametrize("eps", EPSILONS)
@pytest.mark.parametrize("dtype", own.FLOATS)
def test_all_equal_groups_are_exactly_zero_at_512x8_rewards_0_9(dtype, eps):
    rewards = torch.full((512, 8), 0.9, dtype=dtype)
    rng = np.random.default_rng(0)
    case = Case(
        own.RewardBatch(rewards),
        entropy=torch.tensor(rng.normal(size=512)),
        confidence=torch.tensor(rng.normal(size=512)),
        buckets=torch.tensor(rng.integers(0, 12, 512)),
        eps=eps,
    )
    for name, advantages in estimates(case).items():
        assert not advantages.any(), name


@pytest.mark.parametrize("eps", EPSILONS)
def test_no_signal_groups_carry_none_of_the_sum_of_squares_beside_groups_with_a_signal(eps):
    rng = np.random.default_rng(1)
    rewards = torch.tensor(0.1 + 0.9 * (rng.random((512, 8)) < 0.5), dtype=torch.float32)
    rewards[::2] = rewards[::2, :1]  # half of the groups agree
    silent = rewards.amax(1) == rewards.amin(1)
    scores = torch.tensor(rng.normal(size=512))
    for advantages in (
        grpo_advantage(rewards, eps=eps),
        durian_advantage(rewards, visual_entropy=scores, confidence=scores.flip(0), eps=eps),
    ):
        assert silent.sum() >= 256
        assert not advantages[silent].any()
        assert advantages[~silent].any(1).all()


@pytest.mark.parametrize("eps", EPSILONS)
def test_the_value_of_a_group_does_not_depend_on_the_batch_shape(eps):
    group = torch.tensor([[0.9] * 8, [0.9] * 7 + [0.1]], dtype=torch.float32)
    alone = torch.cat([grpo_advantage(g[None], eps=eps) for g in group])
    for size in (2, 3, 64, 512):
        batch = torch.rand(size, 8, generator=torch.Generator().manual_seed(size))
        batch[:2] = group
        assert_same_bits(grpo_advantage(batch, eps=eps)[:2], alone)


def test_the_variance_is_not_one_pass_rewards_0_1_0_1_plus_1e4():
    rewards = torch.tensor([[0.0, 1.0, 0.0, 1.0]], dtype=torch.float32)
    std = math.sqrt(4 / 3 * 0.25)  # 0.577
    expected = np.array([[-0.5, 0.5, -0.5, 0.5]]) / (std + 1e-6)
    for offset in (0.0, 1e4, -1e4, 1e6):
        assert_matches(grpo_advantage(rewards + offset), expected)
        assert_matches(shared_std_advantage(rewards + offset, torch.tensor([3])), expected)
        assert_matches(baselines.batch_std_advantage(rewards + offset), expected)
        assert_matches(baselines.reinforce_plus_plus_advantage(rewards + offset), expected)


def test_a_small_spread_on_a_large_offset_has_its_own_std():
    rewards = torch.tensor([[0.9, 0.9 + 2**-20, 0.9, 0.9 + 2**-20]], dtype=torch.float32)
    expected = reference.grpo(own.as_numpy(rewards), eps=1e-9)
    assert_matches(grpo_advantage(rewards, eps=1e-9), expected)
    assert abs(expected).max() > 0.86


@pytest.mark.parametrize("eps", EPSILONS)
@pytest.mark.parametrize("reward", [1.0, -3.0, 0.9, 1e30])
def test_a_group_of_one_gets_zero_and_not_its_raw_reward(reward, eps):
    rewards = torch.tensor([[reward], [0.5]])
    index = torch.tensor([4, -4])
    for estimator in (
        grpo_advantage,
        lambda r, **kw: shared_std_advantage(r, torch.tensor([0, 0]), **kw),
        lambda r, **kw: durian_advantage(
            r, visual_entropy=torch.tensor([1.0, 2.0]), confidence=torch.tensor([1.0, 1.0]), **kw
        ),
        baselines.batch_std_advantage,
        baselines.reinforce_plus_plus_baseline_advantage,
    ):
        for correction in (0, 1):
            assert not estimator(rewards, eps=eps, correction=correction).any()
            assert not estimator(rewards[:, 0], prompt_index=index, eps=eps, correction=correction).any()
    assert not baselines.rloo_advantage(rewards).any()
    assert not baselines.dr_grpo_advantage(rewards).any()


@pytest.mark.parametrize("bad", [NAN, float("inf"), float("-inf")])
def test_one_nan_reward_does_not_spoil_its_group(bad):
    whole = torch.tensor([[1.0, 0.0, bad, 0.0], [1.0, 1.0, 0.0, 0.0]])
    rest = torch.tensor([[1.0, 0.0, 0.0]])
    advantages = grpo_advantage(whole)
    assert_same_bits(advantages[:1, [0, 1, 3]], grpo_advantage(rest))
    assert advantages[0, 2].item() == 0.0
    assert_same_bits(advantages[1:], grpo_advantage(whole[1:]))


def test_unscorable_completions_do_not_count_as_zero_and_earn_nothing():
    # a reward function that returns None for a completion: NaN in the tensor
    scored = [1.0, None, 0.5, None, 1.0]
    rewards = torch.tensor([[NAN if r is None else r for r in scored]], dtype=torch.float64)
    m, s = np.mean([1.0, 0.5, 1.0]), np.std([1.0, 0.5, 1.0], ddof=1)
    expected = [[0.0 if r is None else (r - m) / s for r in scored]]
    assert_matches(grpo_advantage(rewards, eps=0.0), expected)
    assert_matches(shared_std_advantage(rewards, torch.tensor([0]), eps=0.0), expected)


def test_groups_are_made_by_their_ids_and_never_by_a_stride():
    # after filtering, the groups have 3, 1 and 4 rollouts: a stride of 4 would mix prompts of 0.5 and 1e6
    rewards = torch.tensor([1e6, 1e6 + 1, 1e6, 7.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    index = torch.tensor([10, 10, 10, 20, 30, 30, 30, 30])
    expected = torch.zeros(8, dtype=torch.float64)
    for name in (10, 20, 30):
        rows = index == name
        expected[rows] = grpo_advantage(rewards[rows][None])[0]
    for order in (torch.arange(8), torch.tensor([7, 0, 4, 3, 1, 6, 2, 5])):
        advantages = grpo_advantage(rewards[order], prompt_index=index[order])
        assert_same_bits(advantages, expected[order])
        assert advantages.abs().max() < 1.2


def test_a_tiny_spread_is_blown_up_by_its_own_std_and_not_by_a_shared_one():
    rewards = torch.tensor([[1.0, 1.0, 1.0, 1.0001], [1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    tiny = 1.0001 - 1.0
    own_std = tiny / 2  # of three equal values and a fourth
    assert grpo_advantage(rewards)[0, 3].item() == pytest.approx(0.75 * tiny / (own_std + 1e-6), abs=1e-9)
    assert grpo_advantage(rewards)[0, 3].item() == pytest.approx(1.47, abs=5e-3)
    std = np.std(rewards.numpy().ravel(), ddof=1)
    shared = shared_std_advantage(rewards, torch.tensor([0, 0]))
    assert shared[0, 3].item() == pytest.approx(0.75 * tiny / (std + 1e-6), abs=1e-12)
    assert shared[0, 3].item() < 2e-4


class _Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += 1
        return function(*args, **(kwargs or {}))


def _operations(estimator, prompts, width, flat):
    generator = torch.Generator().manual_seed(prompts)
    rewards = torch.rand(prompts, width, generator=generator)
    scores = torch.rand(prompts, generator=generator)
    kwargs = {"visual_entropy": scores, "confidence": scores.flip(0)} if estimator is durian_advantage else {}
    if flat:
        kwargs = {k: v.repeat_interleave(width) for k, v in kwargs.items()}
        kwargs["prompt_index"] = torch.arange(prompts).repeat_interleave(width)
        rewards = rewards.flatten()
    with _Counting() as count:
        estimator(rewards, **kwargs)
    return count.operations


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    "estimator", [grpo_advantage, durian_advantage, baselines.reinforce_plus_plus_baseline_advantage]
)
def test_no_python_loop_over_rollouts_the_number_of_operations_is_independent_of_the_batch(estimator, flat):
    counts = {_operations(estimator, b, g, flat) for b, g in ((4, 2), (8, 4), (512, 8), (4096, 2))}
    assert len(counts) == 1, counts
