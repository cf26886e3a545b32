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

from durian_adv import (
    baselines,
    combine_advantages,
    durian_advantage,
    durian_components,
    eigen_entropy,
    grpo_advantage,
    quantile_buckets,
    shared_std_advantage,
)
from durian_adv.baselines import rloo_advantage
from durian_adv.diagnostics import durian_metrics

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


# --- found by readers of this library ----------------------------------------------------------------


@pytest.mark.parametrize(("patches", "features", "dead"), [(256, 128, 0.9), (576, 384, 0.8), (196, 192, 0.8)])
def test_features_that_are_constant_in_most_columns_do_not_stop_the_eigensolver(patches, features, dead):
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        alive = torch.rand(features, generator=generator) > dead
        image = torch.randn(patches, features, generator=generator) * alive
        expected = reference.eigen_entropy(image.double().numpy())
        assert abs(eigen_entropy(image).item() - expected) < 2e-6


def test_features_after_a_relu_have_the_entropy_of_the_reference():
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        shift = 3 * torch.randn(160, generator=generator)
        image = torch.relu(torch.randn(200, 160, generator=generator) - shift)
        assert abs(eigen_entropy(image).item() - reference.eigen_entropy(image.double().numpy())) < 2e-6


def test_the_memory_layout_of_features_changes_no_bit_of_their_entropy():
    maps = torch.randn(3, 100, 9, 10, generator=torch.Generator().manual_seed(0))
    view = maps.flatten(2).transpose(1, 2)
    assert not view.is_contiguous()
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(eigen_entropy(view.to(dtype)), eigen_entropy(view.contiguous().to(dtype)))


def test_weights_and_rewards_at_the_end_of_the_range_leave_invalid_rollouts_at_zero():
    rewards = torch.tensor([[1.0] + [0.0] * 7 + [float("nan")]])
    advantages = durian_advantage(rewards, weights=(1.7e308, 0, 0))
    assert torch.isfinite(advantages).all()
    assert advantages[0, 8] == 0
    extreme = torch.tensor([[1.7e308, -1.7e308, float("nan")]], dtype=torch.float64)
    assert torch.isfinite(rloo_advantage(extreme)).all()
    assert rloo_advantage(extreme)[0, 2] == 0


def test_infinite_scores_are_reported_as_they_are_and_left_out_of_their_mean():
    rewards = torch.tensor([[1.0, 0.0]] * 4)
    parts = durian_components(rewards, confidence=torch.tensor([-float("inf"), 1.0, 2.0, float("nan")]))
    assert parts.confidence[0] == -float("inf")
    assert durian_metrics(parts, rewards)["durian/confidence_mean"] == 1.5


def test_an_error_about_one_of_several_advantages_names_that_one():
    with pytest.raises(
        ValueError, match=r"advantages\[2\]: expected shape advantages\[1\]\.shape = \(2,\), got \(3,\)"
    ):
        combine_advantages([None, torch.ones(2), torch.ones(3)], [1, 1, 1])


@pytest.mark.parametrize("argument", [{"eps": 10**400}, {"weights": (10**400, 1, 1)}])
def test_an_integer_beyond_all_floats_is_not_a_finite_number(argument):
    with pytest.raises(ValueError, match="expected a finite number"):
        durian_advantage(torch.zeros(2, 2), **argument)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn])
def test_scores_of_any_real_dtype_have_buckets(dtype):
    scores = torch.tensor([3.0, 1.0, 4.0, 2.0]).to(dtype)
    assert quantile_buckets(scores, 2).tolist() == [1, 0, 1, 0]


def test_integers_of_numpy_are_integers():
    rewards = torch.tensor([[1.0, 0.0]])
    assert torch.equal(grpo_advantage(rewards, correction=np.int64(1)), grpo_advantage(rewards))
    assert quantile_buckets(torch.tensor([1.0, 2.0]), np.int64(2)).tolist() == [0, 1]
    assert eigen_entropy(torch.ones(5, 3), lengths=[np.int64(2), np.int64(3)]).tolist() == [0, 0]


UNUSUAL = {
    "sparse": lambda x: x.to_sparse(),
    "sparse rows": lambda x: x.to_sparse_csr(),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "jagged": lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")  # torch's, about tensors that few use
@pytest.mark.parametrize("kind", UNUSUAL)
def test_a_tensor_without_strides_is_refused_by_name(kind):
    # they failed deep inside, or passed as if dense: found by fuzzing
    rewards = torch.zeros(3, 2)
    with pytest.raises(TypeError, match=r"^rewards: expected an ordinary dense tensor, got "):
        grpo_advantage(UNUSUAL[kind](rewards))
    with pytest.raises(TypeError, match=r"^confidence: expected an ordinary dense tensor, got "):
        durian_advantage(rewards, confidence=UNUSUAL[kind](rewards))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint64])
def test_metrics_take_rewards_of_every_dtype(dtype):
    rewards = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]).to(dtype)  # no comparison of such numbers in torch
    metrics = durian_metrics(durian_components(rewards), rewards)
    assert (metrics["durian/extreme_success"], metrics["durian/effective"]) == (1.0, 1.0)
