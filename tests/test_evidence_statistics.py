"""The statistics of the evidence: intervals, tests, verdicts, power."""

import numpy as np
import pytest

from studies.evidence import comparison, records
from studies.evidence.arms import ARMS
from studies.evidence.conditions import CONDITIONS


def record_of(final: float) -> records.Record:
    return records.Record({"final": {"sampled": final}}, [])


def test_intervals_do_not_depend_on_what_was_drawn_before():
    found = [comparison.interquartile_means(runs_with(0.02, 0.005), ["a", "b"]) for _ in range(2)]
    np.random.seed(7)
    wanted = np.random.random(3).tolist()
    np.random.seed(7)
    found.append(comparison.interquartile_means(runs_with(0.02, 0.005), ["a", "b"]))
    assert np.random.random(3).tolist() == wanted  # nor does what is drawn later on them
    assert found[0] == found[1] == found[2]
    point, low, high = found[0]["a"]
    assert low < point < high


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


def test_every_arm_of_the_plan_exists():
    assert {arm for condition in CONDITIONS.values() for arm in condition.arms} == set(ARMS)
