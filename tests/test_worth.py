"""The worth of estimators on a log: against the reference, the law, and what it must not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import strategies as own
import torch
from hypothesis import given
from hypothesis import strategies as st

from durian_adv import grpo_advantage, shared_std_advantage
from durian_adv.baselines import (
    batch_std_advantage,
    dr_grpo_advantage,
    reinforce_plus_plus_advantage,
    reinforce_plus_plus_baseline_advantage,
    rloo_advantage,
)
from durian_adv.worth import Worth, predicted_worth
from studies.law import factors, outcomes, sampling
from studies.law import worth as law
from studies.law.structure import PAPER_FIRST, Kind, Structure

KINDS = ("binary", "weighted", "ties", "normal")
ESTIMATORS = {"grpo": grpo_advantage, "dr": dr_grpo_advantage, "rpp": reinforce_plus_plus_advantage}


@st.composite
def logs(draw):
    """A batch, what counts (some unknown), kinds of prompts, in either form."""
    flat, limits = draw(st.booleans()), {"kinds": KINDS, "scales": (1.0, 1e-3, 1e3), "offsets": (0.0, 1.0)}
    batch = draw((own.flat_batches if flat else own.dense_batches)(**limits))
    rng = np.random.default_rng(draw(own.seeds))
    correct = torch.tensor(rng.integers(0, 2, batch.rewards.shape).astype(np.float64))
    correct[torch.tensor(rng.random(correct.shape) < draw(st.sampled_from((0.0, 0.02))))] = torch.nan
    category = draw(own.categories(batch)).get("category")
    return batch, {"correctness": correct, "category": category}


def worths(batch, **options):
    advantages = {name: f(batch.rewards, **batch.kwargs) for name, f in ESTIMATORS.items()}
    return advantages, predicted_worth(batch.rewards, advantages, **batch.kwargs, **options)


@given(logs(), st.booleans(), st.booleans())
def test_worths_are_those_of_the_reference(log, with_answers, with_categories):
    batch, options = log
    options["correctness"] = options["correctness"] if with_answers else None
    options["category"] = options["category"] if with_categories else None
    advantages, found = worths(batch, **options)
    for name, value in advantages.items():
        correct = own.as_numpy(batch.rewards if options["correctness"] is None else options["correctness"])
        category = own.as_numpy(options["category"])
        expected = reference.worth(
            batch.for_reference["rewards"], own.as_numpy(value), correct, category,
            batch.for_reference["valid"], batch.for_reference["prompt_index"],
        )  # fmt: skip
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-6)


@given(logs(), own.seeds, st.sampled_from((2.0**-9, 8.0)), st.sampled_from((1e-30, 1.0, 1e30)))
def test_order_and_units_do_not_count(log, seed, unit, scale):
    batch, options = log
    advantages, found = worths(batch, **options)
    order = torch.tensor(np.random.default_rng(seed).permutation(len(batch.rewards)), dtype=torch.int64)
    moved = {name: None if x is None else x[order] for name, x in (batch.kwargs | options).items()}
    again = predicted_worth(
        batch.rewards[order].double() * unit, {n: a[order].double() * scale for n, a in advantages.items()}, **moved
    )
    for name, value in found.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-9, atol=1e-9)
    in_order = predicted_worth(batch.rewards[order], {n: a[order] for n, a in advantages.items()}, **moved)
    assert str(in_order) == str(found)  # to the bit, NaN included


def test_one_factor_for_all_is_worth_one_where_rewards_are_what_counts():
    rewards = torch.tensor(np.random.default_rng(0).normal(size=(64, 8)) * np.logspace(-2, 2, 64)[:, None])
    same = (dr_grpo_advantage, batch_std_advantage, rloo_advantage, reinforce_plus_plus_baseline_advantage)
    found = predicted_worth(rewards, {f.__name__: f(rewards) for f in same})
    for name, (value, error) in found.items():
        assert (value, error) == pytest.approx((1.0, 0.0), abs=1e-9), name


def test_worth_by_hand():
    """Two prompts with one right of two each, units 1 and 3: S = .5 + .5, N = .5 + .5, W = .5 + 1.5, V = .5 + 4.5."""
    rewards, correct = torch.tensor([[1.0, 0], [3, 0]]), torch.tensor([[1, 0], [1, 0]])
    advantages = {"unit": torch.tensor([[0.5, -0.5], [0.5, -0.5]]), "dr": dr_grpo_advantage(rewards)}
    one = predicted_worth(rewards, advantages, correctness=correct)
    # whole: 1 / (1 * 4 / 5) = 1.25; without a prompt: .25 / (.5 * .5) = 1
    assert one["unit"] == pytest.approx((2 * 1.25 - 1, 0.0))
    assert one["dr"] == pytest.approx((1.0, 0.0))
    each = predicted_worth(rewards, advantages, correctness=correct, category=torch.tensor([7, -7]))
    assert each["unit"] == pytest.approx((1.0, 0.0))
    assert each["dr"] == pytest.approx((2 * 0.8 - 1, 0.0))  # whole: 4 / (5 * 1)


CASES = {
    "binary": Structure((Kind(PAPER_FIRST),)),
    "tie-break": Structure((Kind(PAPER_FIRST, noise=0.02),)),
    "format": Structure((Kind(PAPER_FIRST, format_weight=0.1, format_rate=0.9),)),
    "units": Structure((Kind(PAPER_FIRST, noise=0.01), Kind(PAPER_FIRST, unit=0.1, noise=0.01))),
    "judge": Structure((Kind(PAPER_FIRST, noise=0.1), Kind(PAPER_FIRST, noise=1.0))),
}


@pytest.mark.parametrize("name", CASES)
def test_a_simulated_log_gives_the_laws_value_within_its_error(name):
    log = sampling.sample(CASES[name], 4096, np.random.default_rng(5))
    arms = {"grpo": factors.grpo, "batch std": factors.constant, "std by kind": factors.by_kind}
    advantages = {arm: sampling.ADVANTAGES[arm](log) for arm in arms}
    found = predicted_worth(log.rewards, advantages, correctness=log.answers, category=log.kind)
    expected = outcomes.outcomes(CASES[name])
    for arm, factor in arms.items():
        value, error = found[arm]
        assert error < 0.012
        assert value == pytest.approx(law.worth(expected, factor(expected)).value, abs=3.5 * error + 0.001), arm


def test_the_standard_error_is_that_of_repeated_logs():
    rng, found = np.random.default_rng(6), []
    for _ in range(60):
        log = sampling.sample(CASES["tie-break"], 128, rng)
        found.append(predicted_worth(log.rewards, {"grpo": grpo_advantage(log.rewards)}, correctness=log.answers))
    values, errors = np.array([one["grpo"] for one in found]).T
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.3)
    assert values.mean() == pytest.approx(0.6157, abs=3.5 * values.std(ddof=1) / 60**0.5)


def test_steps_that_reduce_what_counts_are_worth_less_than_nothing():
    rewards = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 0, 1]])
    advantages = {"grpo": grpo_advantage(rewards)}
    (ahead,), (back,) = (
        predicted_worth(rewards, advantages, correctness=c).values() for c in (rewards, 1 - rewards)
    )  # fmt: skip
    assert back.worth == -ahead.worth < 0
    assert back.standard_error == ahead.standard_error


NAN = (math.nan, math.nan)
BINARY = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("rewards", "advantages", "correctness"),
    [
        (torch.ones(3, 4), torch.zeros(3, 4), None),
        (BINARY, torch.zeros(3, 3), None),
        (BINARY, torch.full((3, 3), torch.nan), None),
        (BINARY, torch.full((3, 3), torch.inf), None),
        (BINARY, grpo_advantage(BINARY), torch.ones(3, 3)),
        (BINARY, grpo_advantage(BINARY), torch.full((3, 3), torch.nan)),
        (BINARY[:1], grpo_advantage(BINARY[:1]), None),
        (BINARY[::2], grpo_advantage(BINARY[::2]), None),
        (BINARY, reinforce_plus_plus_advantage(BINARY), None),
        (torch.zeros(0, 4), torch.zeros(0, 4), None),
        (torch.zeros(4, 0), torch.zeros(4, 0), None),
    ],
    ids=["no signal", "no advantages", "NaN", "infinite", "all right", "answers unknown", "one prompt",
         "one prompt with signal", "not centered", "no prompt", "no rollout"],
)  # fmt: skip
def test_what_is_not_defined_is_nan(rewards, advantages, correctness):
    (found,) = predicted_worth(rewards, {"x": advantages}, correctness=correctness).values()
    assert isinstance(found, Worth)
    assert found == pytest.approx(NAN, nan_ok=True)


def test_a_prompt_whose_answers_are_unknown_and_invalid_rollouts_do_not_count():
    rewards = torch.tensor([[1.0, 0, 0, 1], [1, 1, 0, 0], [0, 1, 0, 1], [9, 1, 2, 3]])
    correct = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 0, 1], [1, math.nan, 1, 0]])
    valid = torch.tensor([[True] * 4, [True, True, True, False], [True] * 4, [True] * 4])
    advantages = grpo_advantage(rewards, valid=valid)
    expected = predicted_worth(rewards[:3], {"x": advantages[:3]}, correctness=correct[:3], valid=valid[:3])
    found = predicted_worth(rewards, {"x": advantages}, correctness=correct, valid=valid)
    assert found["x"] == pytest.approx(expected["x"])
    advantages[1, 3] = correct[1, 3] = math.nan  # what stands in an invalid rollout
    assert predicted_worth(rewards, {"x": advantages}, correctness=correct, valid=valid) == found


def test_what_counts_in_an_invalid_rollout_has_no_say_whatever_it_is():
    rewards = torch.tensor(np.random.default_rng(2).normal(size=(9, 4)))
    correct, valid = (rewards > 0.3).double(), torch.ones(9, 4, dtype=torch.bool)
    valid[2:5, 1] = False
    advantages = {"x": grpo_advantage(rewards, valid=valid)}
    expected = predicted_worth(rewards, advantages, correctness=correct, valid=valid)
    correct[3, 1] = 1e300
    assert predicted_worth(rewards, advantages, correctness=correct, valid=valid) == expected


def test_a_prompt_without_a_valid_rollout_is_no_prompt():
    rewards = torch.tensor(np.random.default_rng(3).normal(size=(6, 4)))
    advantages, valid = grpo_advantage(rewards), torch.ones(6, 4, dtype=torch.bool)
    valid[5] = False
    expected = predicted_worth(rewards[:5], {"x": advantages[:5]}, correctness=rewards[:5] > 0)
    found = predicted_worth(rewards, {"x": advantages}, correctness=rewards > 0, valid=valid)
    assert found["x"] == pytest.approx(expected["x"], rel=1e-12)


@pytest.mark.parametrize("power", [600, -600])
def test_powers_of_two_move_no_bit_even_at_the_ends_of_float64(power):
    rewards = torch.tensor(np.random.default_rng(4).normal(size=(9, 4)))
    rewards[7] = 1.0  # no signal
    advantages, correct = grpo_advantage(rewards), rewards > 0.3
    expected = predicted_worth(rewards, {"x": advantages}, correctness=correct)
    assert predicted_worth(rewards * 2.0**power, {"x": advantages}, correctness=correct) == expected
    assert predicted_worth(rewards, {"x": advantages * 2.0**power}, correctness=correct) == expected


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("off", "defined"), [(0.008, True), (0.012, False)])
def test_a_hundredth_off_center_is_a_log_s_rounding_and_more_is_another_kind_of_advantage(off, defined, flat):
    rewards = torch.tensor([[1.0, 0], [3, 0], [0, 2]])
    advantages = torch.tensor([[0.5, -0.5], [0.5, -0.5], [-0.5 * (1 - off), 0.5 * (1 + off)]]).double()
    if flat:
        index = torch.arange(3).repeat_interleave(2)
        found = predicted_worth(rewards.flatten(), {"x": advantages.flatten()}, prompt_index=index)
    else:
        found = predicted_worth(rewards, {"x": advantages})
    assert math.isfinite(found["x"].worth) == defined


def test_rewards_that_say_nothing_of_what_counts_have_no_best():
    rewards, correct = torch.tensor([[1.0, 1, 0, 0]] * 3), torch.tensor([[1.0, 0, 1, 0]] * 3)
    found = predicted_worth(rewards, {"x": correct - 0.5}, correctness=correct)
    assert found["x"] == pytest.approx(NAN, nan_ok=True)


def test_dense_and_flat_forms_agree_to_the_bit():
    rewards = torch.tensor(np.random.default_rng(1).normal(size=(9, 4)))
    correct, kind = rewards > 0.3, torch.arange(9) % 3
    advantages = shared_std_advantage(rewards, kind)
    index = torch.arange(9).repeat_interleave(4)
    dense = predicted_worth(rewards, {"x": advantages}, correctness=correct, category=kind)
    flat = predicted_worth(
        rewards.flatten(), {"x": advantages.flatten()}, correctness=correct.flatten(), category=kind[index],
        prompt_index=index,
    )  # fmt: skip
    assert dense == flat


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"advantages": BINARY}, TypeError, "advantages: expected a mapping of names to tensors, got Tensor"),
        (
            {"advantages": {"grpo": BINARY[0]}},
            ValueError,
            r"advantages\['grpo'\]: expected shape rewards.shape = \(3, 3\), got \(3,\)",
        ),
        ({"advantages": {"grpo": [1.0]}}, TypeError, r"advantages\['grpo'\]: expected a torch.Tensor, got list"),
        ({"correctness": BINARY[0]}, ValueError, r"correctness: expected shape rewards.shape = \(3, 3\), got \(3,\)"),
        ({"category": BINARY[0]}, TypeError, "category: expected an integer dtype, got torch.float32"),
        ({"category": torch.arange(2)}, ValueError, r"category: expected shape \(B,\) = \(3,\), got \(2,\)"),
        ({"valid": BINARY}, TypeError, "valid: expected dtype torch.bool"),
        (
            {"correctness": torch.empty(3, 3, device="meta")},
            ValueError,
            "correctness: expected device cpu, as rewards, got meta",
        ),
    ],
)
def test_arguments_at_fault_are_named(options, error, message):
    with pytest.raises(error, match=message):
        predicted_worth(**({"rewards": BINARY, "advantages": {}} | options))


def test_no_estimator_no_worth():
    assert predicted_worth(BINARY, {}) == {}
