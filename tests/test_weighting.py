"""Difficulty prior: weights by accuracy, and the advantages they multiply."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import reference
import strategies as own
import torch
from helpers import WEIGHTINGS, assert_matches, assert_same_bits, result_dtype
from hypothesis import given
from hypothesis import strategies as st

from durian_adv import durian_advantage, weighting
from durian_adv.baselines import dr_grpo_advantage
from durian_adv.weighting import accuracy_weights, reweighted_advantage

moderate = {"scales": (1.0, 1e-3, 1e3)}
names, switches = st.sampled_from(sorted(WEIGHTINGS)), st.booleans()


def make_correctness(seed, shape):
    """Right, wrong, partly right, or not known."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3)
    values = rng.integers(0, 2, shape).astype(float) if kind < 2 else rng.integers(0, 9, shape) / 8
    return torch.tensor(np.where(rng.random(shape) < (0.2 if kind else 0.0), np.nan, values))


@given(own.dense_batches(dtypes=own.DTYPES, **moderate), own.seeds, names, switches)
def test_agrees_with_the_reference_on_dense_batches(batch, seed, name, normalize):
    ours, formula = WEIGHTINGS[name]
    correct = make_correctness(seed, batch.rewards.shape)
    options = {"weight": ours, "correctness": correct, "normalize": normalize, "valid": batch.valid}
    expected = {"f": formula, "correct": correct.numpy(), "normalize": normalize, **batch.for_reference}
    advantages, weights = (f(batch.rewards, **options) for f in (reweighted_advantage, accuracy_weights))
    assert advantages.dtype == weights.dtype == result_dtype(batch.rewards.dtype)
    assert_matches(advantages, reference.reweighted(**expected), where=name)
    assert_matches(weights, reference.accuracy_weights(**expected), where=name)


@given(own.flat_batches(dtypes=own.DTYPES, **moderate), own.seeds, names, switches)
def test_agrees_with_the_reference_on_ragged_batches(batch, seed, name, normalize):
    ours, formula = WEIGHTINGS[name]
    correct = make_correctness(seed, batch.rewards.shape)
    options = {"weight": ours, "correctness": correct, "normalize": normalize, **batch.kwargs}
    expected = {"f": formula, "correct": correct.numpy(), "normalize": normalize, **batch.for_reference}
    assert_matches(reweighted_advantage(batch.rewards, **options), reference.reweighted(**expected), where=name)
    assert_matches(accuracy_weights(batch.rewards, **options), reference.accuracy_weights(**expected), where=name)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_weighting_falls_with_accuracy_and_is_its_formula(name):
    ours, formula = WEIGHTINGS[name]
    accuracy = torch.linspace(0, 1, 49, dtype=torch.float64)
    weights = ours(accuracy)
    assert_matches(weights, [formula(p) for p in accuracy.tolist()])
    assert (weights[1:] <= weights[:-1]).all()
    assert (weights >= 0).all()
    assert weights[0] > weights[-1]


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_weighting_gives_a_value_the_same_bits_wherever_it_stands(name):
    generator = torch.Generator().manual_seed(0)
    for size in range(1, 40):
        accuracy = torch.rand(size, generator=generator, dtype=torch.float64)
        one_by_one = torch.cat([WEIGHTINGS[name][0](p[None]) for p in accuracy])
        assert_same_bits(WEIGHTINGS[name][0](accuracy), one_by_one)


def test_the_control_is_uniform_and_repeats_with_its_generator():
    accuracy = torch.linspace(0, 1, 4000, dtype=torch.float64)
    draws = [
        weighting.uniform(accuracy, generator=torch.Generator().manual_seed(seed), low=1.0, high=3.0)
        for seed in (0, 0, 1)
    ]
    assert_same_bits(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert 1 <= draws[0].min() < 1.01
    assert 2.99 < draws[0].max() < 3
    assert abs(np.corrcoef(draws[0].numpy(), accuracy.numpy())[0, 1]) < 0.05
    with torch.device("meta"):  # a default device of the caller has no say
        plain = weighting.uniform(accuracy, generator=torch.Generator("cpu").manual_seed(0))
    assert (plain.device.type, plain.dtype) == ("cpu", torch.float64)
    assert plain.min() < 0.01
    assert 1.99 < plain.max() < 2


# --- the accuracy -----------------------------------------------------------------------------------


def test_accuracy_comes_from_correctness_and_not_from_the_rewards_that_format_is_mixed_into():
    rewards = torch.tensor([[1.0, 0.1, 0.1, 0.0], [0.9, 1.0, 0.9, 0.1]], dtype=torch.float64)
    correct = torch.tensor([[True, False, False, False], [True, True, True, False]])
    seen = []

    def f(p):
        seen.append(p)
        return 2.0 - p

    weights = accuracy_weights(rewards, weight=f, correctness=correct)
    assert_same_bits(seen[0], torch.tensor([0.25, 0.75], dtype=torch.float64))
    assert_same_bits(weights, torch.tensor([1.75, 1.25], dtype=torch.float64))
    # without it: what exceeds the threshold is correct
    assert_same_bits(accuracy_weights(rewards, weight=f), weights)
    assert_same_bits(accuracy_weights(rewards, weight=f, success_threshold=0.95)[1], torch.tensor(1.75).double())
    assert accuracy_weights(rewards, weight=f, success_threshold=0.9).tolist() == [1.75, 1.75]  # 0.9 is not above it
    advantages = reweighted_advantage(rewards, weight=f)
    assert_same_bits(advantages, reweighted_advantage(rewards, weight=f, correctness=correct))


def test_a_weighting_is_asked_for_numbers_from_0_to_1_only():
    seen = []
    accuracy_weights(
        torch.tensor([[1.0, 0.0], [math.nan, math.inf], [1.0, 1.0]]), weight=lambda p: seen.append(p) or p.clone()
    )
    assert ((seen[0] >= 0) & (seen[0] <= 1)).all()


def test_weights_of_another_dtype_are_those_numbers():
    rewards = torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16, torch.int64):

        def f(p, dtype=dtype):
            return (300.0 / (1.1 + p)).to(dtype)

        for normalize in (False, True):
            narrow = accuracy_weights(rewards, weight=f, normalize=normalize)
            assert_same_bits(narrow, accuracy_weights(rewards, weight=lambda p: f(p).double(), normalize=normalize))


def test_rollouts_whose_correctness_is_not_known_do_not_count_and_a_prompt_without_any_has_weight_one():
    nan = math.nan
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    correct = torch.tensor([[1.0, 0.0, nan, nan], [nan, nan, nan, nan], [0.0, 0.0, 0.0, 1.0]])
    valid = torch.tensor([[True] * 4, [True] * 4, [True] * 3 + [False]])
    weights = accuracy_weights(rewards, weight=weighting.linear, correctness=correct, valid=valid)
    assert weights.tolist() == [1.5, 1.0, 2.0]
    normalized = accuracy_weights(rewards, weight=weighting.linear, correctness=correct, valid=valid, normalize=True)
    assert normalized.tolist() == pytest.approx([1.0, 1.0, 2.0 / 1.5])  # the last has no signal, nor has it a say


@given(own.dense_batches(), own.seeds)
def test_normalized_weights_have_mean_one_over_the_prompts_with_a_signal(batch, seed):
    correct = make_correctness(seed, batch.rewards.shape).nan_to_num(0.5)
    options = {"weight": weighting.exponential, "correctness": correct, "valid": batch.valid}
    normalized = accuracy_weights(batch.rewards, normalize=True, **options).double()
    signal = torch.tensor(reference.Batch(**batch.for_reference).signal(), dtype=torch.bool)
    if signal.any():
        assert normalized[signal].mean().item() == pytest.approx(1.0, abs=1e-6)
    plain = accuracy_weights(batch.rewards, **options).double()
    ratio = (normalized / plain)[batch.usable().any(1)]  # of the others, the accuracy is not known
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-6)


# --- composition and degenerate weights -------------------------------------------------------------


@given(own.dense_batches(kinds=("normal", "binary", "weighted"), **moderate), own.seeds)
def test_weights_times_the_centered_rewards_are_the_reweighted_advantage(batch, seed):
    correct = make_correctness(seed, batch.rewards.shape)
    options = {"valid": batch.valid, "weight": weighting.exponential, "correctness": correct}
    weights = accuracy_weights(batch.rewards, **options)
    product = dr_grpo_advantage(batch.rewards, valid=batch.valid) * weights[:, None]
    tolerance = 1e-12 if product.dtype == torch.float64 else 2e-6
    assert_matches(reweighted_advantage(batch.rewards, **options), own.as_numpy(product), tolerance)


def test_weights_compose_with_durian_dense_and_flat():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    index = torch.arange(3).repeat_interleave(4)
    weights = accuracy_weights(rewards, weight=weighting.linear)
    dense = durian_advantage(rewards) * weights[:, None]
    flat = durian_advantage(rewards.flatten(), prompt_index=index) * accuracy_weights(
        rewards.flatten(), weight=weighting.linear, prompt_index=index
    )
    assert_same_bits(flat, dense.flatten())
    assert not dense[2].any()
    assert_matches(dense[:2], own.as_numpy(durian_advantage(rewards)[:2]) * [[1.75], [1.25]])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_counts_as_zero(value):
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    options = {"weight": lambda p: torch.full_like(p, value)}
    assert accuracy_weights(rewards, **options).tolist() == [0.0, 0.0]
    assert not reweighted_advantage(rewards, **options).any()
    assert not reweighted_advantage(rewards, normalize=True, **options).any()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", own.FLOATS)
@pytest.mark.parametrize("normalize", [False, True])
def test_the_largest_weights_and_rewards_give_no_infinity_and_keep_zeros(sign, dtype, normalize):
    largest = torch.finfo(dtype).max
    rewards = torch.tensor([[largest, -largest, 0.0], [largest] * 3, [math.nan, 1.0, 2.0]], dtype=dtype)
    advantages = reweighted_advantage(
        rewards, weight=lambda p: torch.full_like(p, sign * torch.finfo(p.dtype).max), normalize=normalize
    )
    assert torch.isfinite(advantages).all()
    assert not advantages[1].any()
    assert advantages[2, 0] == 0
    assert (advantages[0, 0] * sign) > 0


@pytest.mark.parametrize("weight", [2.7, -2.7, 0.3, 1e-300])
@pytest.mark.parametrize("size", [1.7976931348623157e308, 1.0, 5e-324])
def test_a_weight_and_the_size_of_the_rewards_leave_the_range_together_only(size, weight):
    # found by fuzzing: unit * weight was beyond the range of float64 where the advantage is within
    rewards = torch.tensor([[size, -size, 0.0, -size / 2, size]], dtype=torch.float64)
    found = reweighted_advantage(rewards, weight=lambda p: torch.full_like(p, weight))
    formula = {"f": lambda p: weight, "correct": (rewards > 0.5).numpy()}
    np.testing.assert_allclose(found, reference.reweighted(rewards.numpy(), **formula), rtol=1e-14, atol=1e-323)


def test_a_negative_weight_turns_an_advantage_around_also_when_normalized():
    rewards = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    sign = torch.tensor([2.0, -6.0], dtype=torch.float64)
    for normalize, expected in ((False, [[1.0, -1.0], [-3.0, 3.0]]), (True, [[0.25, -0.25], [-0.75, 0.75]])):
        advantages = reweighted_advantage(rewards, weight=lambda p: sign, normalize=normalize)
        assert advantages.tolist() == expected


@pytest.mark.parametrize("shape", [(0, 4), (0, 0), (3, 0)])
@pytest.mark.parametrize("normalize", [False, True])
def test_empty_batches_give_empty_results(shape, normalize):
    options = {"weight": weighting.exponential, "normalize": normalize}
    nothing = torch.zeros(0, dtype=torch.int64)
    assert reweighted_advantage(torch.zeros(shape), **options).shape == shape
    assert accuracy_weights(torch.zeros(shape), **options).tolist() == [1.0] * shape[0]
    assert reweighted_advantage(torch.zeros(0), prompt_index=nothing, **options).shape == (0,)


def test_weights_do_not_require_grad_where_the_function_has_parameters():
    slope = torch.ones((), requires_grad=True)
    rewards = torch.tensor([[1.0, 0.0]])
    assert not reweighted_advantage(rewards, weight=lambda p: slope * (1 - p)).requires_grad


# --- errors -----------------------------------------------------------------------------------------

REWARDS = torch.tensor([[1.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": None}, r"weight: expected a function from accuracies \(B,\) to weights, got NoneType"),
        ({"weight": 2.0}, r"weight: expected a function from accuracies \(B,\) to weights, got float"),
        ({"weight": lambda p: 1.0}, "weight: expected a function that returns a torch.Tensor, got float"),
        ({"weight": lambda p: p[:1]}, r"weight: expected shape \(B,\) = \(2,\), got \(1,\)"),
        ({"weight": lambda p: p.sum()}, r"weight: expected shape \(B,\) = \(2,\), got \(\)"),
        ({"weight": lambda p: p * 1j}, "weight: expected a real dtype"),
        ({"correctness": [[1, 0], [0, 0]]}, "correctness: expected a torch.Tensor"),
        ({"correctness": torch.ones(2)}, r"correctness: expected shape rewards.shape = \(2, 2\), got \(2,\)"),
        ({"correctness": torch.ones(2, 2, device="meta")}, "correctness: expected device cpu, as rewards, got meta"),
        ({"success_threshold": "0.5"}, "success_threshold: expected a number"),
        ({"success_threshold": math.nan}, "success_threshold: expected a finite number"),
        ({"normalize": 1}, "normalize: expected a bool, got int"),
        ({"valid": torch.ones(2, 2)}, "valid: expected dtype torch.bool, got torch.float32"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, message):
    for function in (reweighted_advantage, accuracy_weights):
        with pytest.raises((TypeError, ValueError), match=message):
            function(REWARDS, **{"weight": weighting.linear, **options})


READY_MADE = [name for name in weighting.__all__ if not name.endswith(("_weights", "_advantage"))]


@pytest.mark.parametrize("value", ["1", None, math.inf, math.nan])
@pytest.mark.parametrize("name", READY_MADE)
def test_bad_constants_are_refused_by_name(name, value):
    function = getattr(weighting, name)
    given = {"generator": torch.Generator()} if name == "uniform" else {}
    for constant in inspect.signature(function).parameters:
        if constant not in ("accuracy", "generator"):
            with pytest.raises((TypeError, ValueError), match=f"^{constant}: expected a (finite )?number, got"):
                function(torch.tensor([0.5]), **given, **{constant: value})


def test_focal_weights_need_a_positive_exponent():
    for gamma in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"^gamma: expected a number > 0, got {gamma}$"):
            weighting.focal(torch.tensor([0.5]), gamma=gamma)
