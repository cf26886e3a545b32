"""The law: its inequality, its closed forms, and its enumerations against batches drawn through the library."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, multinomial

from durian_adv import durian_components, shared_std_advantage
from studies.evidence.closed_forms import cosine_bound
from studies.law import declaration, sampling
from studies.law.__main__ import main
from studies.law.cases import PLAIN, cases, estimators, noise_for, noisy_kinds
from studies.law.factors import (
    CONFIDENCE_LEVELS,
    Factor,
    buckets,
    by_kind,
    constant,
    difficulty,
    durian,
    grpo,
    kind,
    pooled_by_kind,
    shared,
)
from studies.law.outcomes import groups_of, outcomes, probabilities
from studies.law.structure import PAPER_FIRST, PAPER_LAST, Kind, Structure
from studies.law.worth import (
    best_of,
    grpo_on_gaussian,
    hardest_factor,
    largest_advantage,
    one_std,
    std_by_kind,
    worth,
    worth_of_factors,
)


def of(structure, factor, **options):
    return worth(outcomes(structure), factor(outcomes(structure)), **options).value


@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.floats(0.01, 100))
def test_no_factors_are_worth_more_than_signal_over_noise(size, seed, scale):
    f, w, v = np.random.default_rng(seed).uniform(0.01, 10, (3, size))
    assert worth_of_factors(f, w, v) <= 1 + 1e-12
    assert worth_of_factors(scale * w / v, w, v) == pytest.approx(1)
    assert worth_of_factors(scale * f, w, v) == pytest.approx(worth_of_factors(f, w, v))


@settings(max_examples=10)  # two kinds with noise: 0.3 s
@given(st.floats(1, 100))
def test_two_kinds_are_worth_their_closed_forms(ratio):
    w, v = np.ones(2), np.array([1.0, ratio])
    assert one_std(ratio) == pytest.approx(worth_of_factors(np.ones(2), w, v))
    assert std_by_kind(ratio) == pytest.approx(worth_of_factors(1 / np.sqrt(v), w, v))
    noisy = noisy_kinds(ratio)
    assert of(noisy, constant) == pytest.approx(one_std(ratio))
    assert of(noisy, pooled_by_kind) == pytest.approx(std_by_kind(ratio))


@pytest.mark.parametrize(("ratio", "one", "each"), [(2, 0.889, 0.971), (4, 0.64, 0.90), (9, 0.36, 0.80)])
def test_the_numbers_of_two_kinds(ratio, one, each):
    assert (one_std(ratio), std_by_kind(ratio)) == pytest.approx((one, each), abs=0.0006)


@pytest.mark.parametrize(("rollouts", "expected"), [(8, 0.931), (4, 0.849), (2, 2 / math.pi)])
def test_grpo_pays_for_the_std_of_g_gaussian_rewards(rollouts, expected):
    assert grpo_on_gaussian(rollouts) == pytest.approx(expected, abs=0.0005)
    given = outcomes(Structure((Kind((0.5,), spread=1.0),), rollouts))
    found = worth(given, grpo(given))
    assert 0 < found.error < 0.003
    assert found.value == pytest.approx(expected, abs=4 * found.error)
    # and where what counts vanishes in noise
    given = outcomes(Structure((Kind((0.5,), noise=8.0),), rollouts))
    found = worth(given, grpo(given))
    assert found.value == pytest.approx(expected, abs=4 * found.error + 0.01)


def test_the_numbers_of_right_or_wrong():
    for accuracy in (PAPER_FIRST, PAPER_LAST):
        given = outcomes(Structure((Kind(accuracy),)))
        assert worth(given, grpo(given)).value == pytest.approx(0.974, abs=0.0006)
        assert worth(given, constant(given)).value == pytest.approx(1)
        assert worth(given, durian(given, difficulty(given))).value == pytest.approx(0.88, abs=0.015)
        assert worth(given, durian(given, difficulty(given), drop=True)).value == pytest.approx(0.99, abs=0.002)
    assert best_of(given) == pytest.approx(best_of(given, "cell"))


@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=5), st.integers(2, 9), st.floats(0, 1), st.booleans())
def test_dropped_groups_keep_to_the_bound_and_kept_ones_to_one(accuracy, rollouts, quality, drop):
    """Worth is the squared cosine with Dr. GRPO where rewards are right or wrong."""
    given = outcomes(Structure((Kind(tuple(accuracy)),), rollouts))
    found = worth(given, durian(given, difficulty(given), quality=quality, drop=drop)).value
    assert found <= 1 + 1e-9
    # a bucket's std may be 1/2 for odd G too, which no group's own is
    assert found >= cosine_bound((rollouts - 1) ** 0.5 / rollouts, 0.5) ** 2 - 1e-9 or not drop


def test_the_largest_advantage_with_dropped_groups_is_that_of_a_bucket_of_one_right():
    one_of_eight = torch.eye(8, dtype=torch.float64)[:1].repeat(512, 1)
    found = shared_std_advantage(one_of_eight, torch.zeros(512, dtype=torch.int64), correction=0)
    assert found.max() == pytest.approx(largest_advantage(8), rel=1e-5)
    assert largest_advantage(8) < 2.7


def test_grpos_factor_on_the_hardest_prompts_has_a_limit_and_a_buckets_has_none():
    for accuracy, factor in ((0.01, 10.05), (0.02, 7.14)):
        given = outcomes(Structure((Kind((accuracy,)),)))
        over = given.energy_over_std_by_draw.mean() / given.energy[0]  # mean 1 / std, weighted by energy
        assert over == pytest.approx(hardest_factor(8), rel=0.03)
        assert shared(given, np.ones((1, 1))).shared[0] == pytest.approx(factor, abs=0.01)
    assert hardest_factor(8) == pytest.approx(float(1 / torch.eye(8, dtype=torch.float64)[0].std()))


@pytest.mark.parametrize(
    ("case", "estimator", "expected"),
    [
        ("tie-break", "GRPO", 0.62),
        ("format", "GRPO", 0.73),
        ("tie-break", "batch std", 1.0),
        ("format", "batch std", 1.0),
        ("tie-break", "Durian, kept", 0.95),
        ("format", "Durian, kept", 0.95),
        ("units, tie-break", "batch std", 0.62),
        ("units, tie-break", "GRPO", 0.62),
        ("units, tie-break", "Durian, kept", 0.81),
        ("units, tie-break", "std by kind", 1.0),
        ("filtered", "GRPO", 0.974),
    ],
)
def test_the_numbers_of_small_terms_and_units(case, estimator, expected):
    given = outcomes(cases()[case].structure)
    assert worth(given, estimators(given)[estimator]).value == pytest.approx(expected, abs=0.006)


def test_a_tie_break_costs_grpo_the_share_of_groups_whose_answers_agree():
    plain, tied = (outcomes(Structure((Kind(PAPER_FIRST, noise=noise),))) for noise in (0.0, 1e-4))
    signal = float(plain.mass @ plain.counted)
    assert signal == pytest.approx(323 / 512, abs=0.002)  # the paper's first step
    assert worth(tied, grpo(tied)).value == pytest.approx(worth(plain, grpo(plain)).value * signal, abs=1e-4)


def test_terms_that_say_nothing_of_the_answer_take_the_update_of_grpo_and_not_of_shared_stds():
    """64 x 8: 37 prompts of equal answers and a small term; the others right half of the time."""
    kinds = (Kind((1e-9,), share=37), Kind((0.5,), share=27))
    rng, shares = np.random.default_rng(0), []
    for _ in range(20):
        log = sampling.sample(Structure(kinds), 64, rng, quality=0.0)
        rewards = log.rewards + 3.4e-4 * torch.from_numpy(rng.normal(size=(64, 8)))
        parts = durian_components(rewards, visual_entropy=log.visual_entropy, confidence=log.confidence)
        silent = log.kind == 0
        shares.append([
            float(a[silent].abs().sum() / a.abs().sum())
            for a in (parts.grpo, parts.advantages, parts.perceptual)
        ])  # fmt: skip
    grpos, durians, bucket = np.mean(shares, axis=0)
    assert grpos == pytest.approx(0.57, abs=0.04)
    assert 0.05 < durians < 0.2
    assert bucket < 0.002


# --- enumerations against formulas and drawn batches -----------------------------------------------------------------


@settings(max_examples=20)  # answers, formats and noise: up to 0.2 s
@given(st.integers(2, 5), st.floats(0.001, 0.999), st.floats(0.1, 10), st.floats(0, 3), st.floats(0, 0.5))
def test_signal_and_energy_are_a_covariance_and_a_variance(rollouts, p, unit, noise, weight):
    one = Kind((p,), unit=unit, noise=noise, format_weight=weight, format_rate=0.9)
    given = outcomes(Structure((one,), rollouts))
    variance = unit**2 * ((1 - weight) ** 2 * p * (1 - p) + weight**2 * 0.09) + noise**2
    assert given.signal[0] == pytest.approx((rollouts - 1) * unit * (1 - weight) * p * (1 - p), rel=1e-9)
    assert given.energy[0] == pytest.approx((rollouts - 1) * variance, rel=1e-9)
    mean = unit * ((1 - weight) * p + weight * (0.9 if weight else 1))
    assert given.mean[0][0] == pytest.approx(mean, rel=1e-9)
    assert given.square[0][0] - given.mean[0][0] ** 2 == pytest.approx(variance, rel=1e-6)


def test_probabilities_are_scipys():
    counts, letters = groups_of(5, 3), np.array([[0.2, 0.3, 0.5], [0.0, 0.1, 0.9]])
    np.testing.assert_allclose(probabilities(counts, letters), [multinomial.pmf(counts, 5, p) for p in letters])
    assert len(groups_of(8, 4)) == math.comb(11, 3)
    given = outcomes(Structure((Kind((0.3,)),), 5, filtered=True))
    assert given.signal[0] == pytest.approx(
        sum(binom.pmf(k, 5, 0.3) * k * (5 - k) / 5 for k in range(1, 5)) / (1 - 0.3**5 - 0.7**5)
    )


def test_a_filter_takes_prompts_in_proportion_to_what_passes():
    given = outcomes(Structure((Kind((0.5, 0.01)),), 2, filtered=True))
    assert given.mass == pytest.approx(np.array([0.5, 0.0198]) / 0.5198)


DRAWN = {
    "binary": "difficulty",
    "format": "difficulty",
    "tie-break": "difficulty",
    "filtered": "difficulty",
    "units, tie-break": "kind",
    "noise 9": "kind",
}


@pytest.mark.parametrize("name", DRAWN)
def test_batches_through_the_library_have_the_worth_of_the_limit(name):
    """Twelve batches of 512 x 8, each estimator by one factor for all, whose worth is known exactly."""
    structure = cases()[name].structure
    rng, given = np.random.default_rng(3), outcomes(cases()[name].structure)
    batches = [sampling.sample(structure, 512, rng, quality=0.8, of=DRAWN[name]) for _ in range(12)]
    names = {"GRPO": "grpo", "Durian, kept": "durian, kept", "Durian, dropped": "durian, dropped",
             "std by kind": "std by kind"}  # fmt: skip
    limit, best = estimators(given), best_of(given)
    one = sampling.drawn_worth(batches, sampling.ADVANTAGES["dr. grpo"], best)
    assert one.value == pytest.approx(worth(given, constant(given)).value, abs=4 * one.error)
    for arm, ours in names.items():
        drawn = sampling.drawn_worth(batches, sampling.ADVANTAGES[ours], best).value / one.value
        expected = worth(given, limit[arm]).value
        assert drawn * worth(given, constant(given)).value == pytest.approx(expected, abs=0.03), arm


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 1), st.booleans())
def test_chances_of_buckets_are_those_of_equal_buckets(seed, quality, drop):
    given = outcomes(Structure((Kind(PAPER_FIRST),)))
    hidden = np.random.default_rng(seed).normal(size=len(given.mass))
    chance = buckets(given, hidden, CONFIDENCE_LEVELS, quality=quality, drop=drop)
    mass = given.mass * (given.counted if drop else 1)
    np.testing.assert_allclose(chance.sum(1), 1)
    assert (chance >= -1e-12).all()
    np.testing.assert_allclose(mass @ chance / mass.sum(), 1 / 12, atol=1e-9 if quality < 1 else 0.012)


def test_perfect_scores_of_the_kind_are_a_std_per_kind():
    given = outcomes(noisy_kinds(4.0))
    found = durian(given, kind(given), weights=(0.0, 0.3, 0.7))
    np.testing.assert_allclose(found.shared, by_kind(given).shared)
    np.testing.assert_allclose(found.variance, 0, atol=1e-12)
    blind = durian(given, kind(given), quality=0.0, weights=(0.0, 0.3, 0.7))
    assert worth(given, blind).value == pytest.approx(worth(given, constant(given)).value)
    assert isinstance(blind, Factor)


def test_the_noise_for_a_ratio_gives_that_ratio():
    for filtered in (False, True):
        for ratio in (1.0, 4.0):
            given = outcomes(noisy_kinds(ratio, PLAIN, filtered=filtered))
            mass, energy = (np.bincount(given.kind, x) for x in (given.mass, given.mass * given.energy))
            assert energy[1] / mass[1] / (energy[0] / mass[0]) == pytest.approx(ratio)
    assert noise_for(1.0) == 0


def test_what_is_drawn_says_how_well_it_is_known():
    given = [outcomes(Structure((Kind(PAPER_FIRST, noise=1.0),)), seed) for seed in range(12)]
    found = [worth(one, grpo(one)) for one in given]
    assert np.std([one.value for one in found], ddof=1) == pytest.approx(np.mean([o.error for o in found]), rel=0.5)


# --- what is declared ------------------------------------------------------------------------------------------------


def test_the_declaration_names_arms_that_exist_and_predicts_each():
    plan = declaration.declare()
    for doses in plan["predicted_worth"].values():
        for row in doses.values():
            assert list(row) == list(plan["arms"])
    variance = plan["predicted_worth"]["variance"]
    assert [row["batch std"] for row in variance.values()] == pytest.approx(
        [one_std(float(r)) for r in variance], abs=6e-4
    )
    gains = [row["Durian, dropped"] - row["batch std"] for row in variance.values()]
    assert gains == sorted(gains)


def test_the_command_wants_to_know_what_to_do(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "page" in capsys.readouterr().err
