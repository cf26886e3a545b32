"""The statistics of the evidence: intervals, tests, verdicts, power."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from studies.evidence import closed_forms, comparison, paper, prose, records
from studies.evidence.arms import ARMS
from studies.evidence.conditions import CONDITIONS


def record_of(final: float) -> records.Record:
    return records.Record({"final": {"sampled": final}}, [])


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40), st.sampled_from([0.8, 0.95]))
def test_an_interval_is_scipys_t_interval(values, level):
    values = np.array(values)
    expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(level) if np.ptp(values) else [values[0]] * 2
    assert comparison.interval(values, level) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize("seeds", [4, 5, 20])
def test_an_interval_covers_the_mean_as_often_as_it_says(seeds):
    """By simulation, 4,000 times: four standard errors of the count are 1.4 points."""
    draws = np.random.default_rng(seeds).normal(0.3, 2.0, (4000, seeds))
    ends = np.array([comparison.interval(values) for values in draws])
    covered = ((ends[:, 0] <= 0.3) & (ends[:, 1] >= 0.3)).mean()
    assert covered == pytest.approx(0.95, abs=0.014)


def test_an_interval_excludes_zero_exactly_where_the_t_test_finds_a_difference():
    (found,) = comparison.differences(runs_with(0.0024, 0.005), [("a", "b")], 0.01)
    assert found.low > 0
    assert found.p < 0.05
    (found,) = comparison.differences(runs_with(0.0023, 0.005), [("a", "b")], 0.01)
    assert found.low < 0
    assert found.p > 0.05


def test_an_arms_mean_has_the_interval_of_its_own_seeds():
    found = comparison.means(runs_with(0.02, 0.005), ["a", "b"])
    finals = np.array(
        [record.head["final"]["sampled"] for (arm, _), record in runs_with(0.02, 0.005).items() if arm == "a"]
    )
    assert list(found) == ["a", "b"]
    assert found["a"] == (finals.mean(), *comparison.interval(finals))


def runs_with(difference: float, deviation: float, seeds: int = 20) -> comparison.Records:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=seeds)
    noise = deviation * (noise - noise.mean()) / noise.std(ddof=1)
    shared = rng.normal(0.5, 0.1, seeds)
    return {("a", s): record_of(shared[s] + difference + noise[s]) for s in range(seeds)} | {
        ("b", s): record_of(shared[s]) for s in range(seeds)
    }


def test_a_difference_is_paired_by_seed():
    (found,) = comparison.differences(runs_with(0.02, 0.005), [("a", "b")], 0.01)
    assert (found.mean, found.deviation, found.seeds) == (pytest.approx(0.02), pytest.approx(0.005), 20)
    assert 0.0170 < found.low < 0.0190 < 0.0210 < found.high < 0.0230
    assert found.verdict(0.01) == "different"


@pytest.mark.parametrize(
    ("difference", "deviation", "verdict"),
    [
        (0.0005, 0.005, "indistinguishable within 1 point"),
        (0.005, 0.005, "different, by less than the margin"),
        (0.005, 0.05, "undecided"),
    ],
)
def test_verdicts(difference, deviation, verdict):
    (found,) = comparison.differences(runs_with(difference, deviation), [("a", "b")], 0.01)
    assert found.verdict(0.01) == verdict


@settings(max_examples=20)  # theirs takes 0.3 s
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_the_correction_is_statsmodels(ps):
    np.testing.assert_allclose(comparison.holm(ps), multipletests(ps, method="holm")[1], rtol=1e-12, atol=0)


def test_holm_corrects_over_the_family():
    records_ = runs_with(0.002, 0.005)
    (alone,) = comparison.differences(records_, [("a", "b")], 0.01)
    family = comparison.differences(records_, [("a", "b"), ("b", "a")], 0.01)
    assert alone.p_corrected == alone.p
    assert family[0].p_corrected == pytest.approx(2 * alone.p)


def test_seeds_that_one_arm_lacks_are_left_out_and_two_are_too_few():
    some = {key: record for key, record in runs_with(0.02, 0.005, 6).items() if key != ("b", 3)}
    (found,) = comparison.differences(some, [("a", "b")], 0.01)
    assert found.seeds == 5
    few = {key: record for key, record in some.items() if key[1] < 2}
    assert comparison.differences(few, [("a", "b")], 0.01) == []


def test_what_is_declared_detectable_is_found_that_often():
    """The power routine against simulation: 20 seeds, 10 comparisons, one of them true."""
    size = comparison.detectable(1.0, 20, 10)
    rng, found = np.random.default_rng(1), 0
    for _ in range(2000):
        d = rng.normal(size, 1.0, 20)
        t = d.mean() / (d.std(ddof=1) / np.sqrt(20))
        found += abs(t) > 3.1737  # the 0.9975 quantile of t with 19 degrees of freedom
    assert found / 2000 == pytest.approx(0.8, abs=0.03)


def test_the_deviation_of_paired_differences_comes_from_residuals():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(8, 1)) + rng.normal(size=(1, 4000)) + 0.3 * rng.normal(size=(8, 4000))
    deviation, freedom = comparison.residual_deviation(values)
    assert deviation == pytest.approx(0.3 * np.sqrt(2), rel=0.02)
    assert freedom == 7 * 3999


# --- what is said of them -------------------------------------------------------------------------------------------


def difference(mean: float, deviation: float) -> comparison.Difference:
    return comparison.differences(runs_with(mean, deviation), [("a", "b")], 0.01)[0]


ALIKE, LARGE, UNKNOWN = difference(0.0005, 0.005), difference(0.03, 0.005), difference(0.005, 0.05)
PAIRS = (("durian", "grpo"), ("durian", "batch-std"), ("batch-std", "grpo"))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ((ALIKE, ALIKE, ALIKE), "No reason was found to leave the normalization you have.**"),
        ((ALIKE, UNKNOWN, ALIKE), "and none is excluded yet"),
        ((LARGE, UNKNOWN, ALIKE), "There is a reason to change, under conditions like these:** a minus b +3.00 ["),
        ((ALIKE, ALIKE), "Too few runs"),
    ],
)
def test_the_advice_follows_the_verdicts(found, words):
    assert words in prose.advice(0.01, dict(zip(PAIRS, found, strict=False)))


def test_the_papers_error_shares_imply_these_stds():
    """Its confidence tenths on We-Math by hand: 13.4% and 4.2% of the errors, 28.2% of all answers wrong."""
    most, least = (10 * share / 101.4 * 0.282 for share in (13.4, 4.2))
    assert sum(paper.REASONING["We-Math"]) == pytest.approx(100.4, abs=1.1)
    by_hand = (most * (1 - most)) ** 0.5 / (least * (1 - least)) ** 0.5
    assert paper.std_ratio() == pytest.approx(by_hand, rel=0.01)
    assert closed_forms.cosine_bound(1.0, paper.std_ratio()) > 0.979


def test_every_arm_of_the_plan_exists():
    assert {arm for condition in CONDITIONS.values() for arm in condition.arms} == set(ARMS)
