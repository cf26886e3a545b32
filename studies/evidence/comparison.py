"""Arms against arms, seed by seed: differences, their intervals, and whether they are as good as none."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from studies.evidence.records import Record

Records = Mapping[tuple[str, int], Record]
Outcome = Callable[[Record], float]


def final(record: Record) -> float:
    """Return held-out accuracy after the last step, sampled."""
    return record.head["final"]["sampled"]


def greedy(record: Record) -> float:
    """Return held-out accuracy after the last step, greedy."""
    return record.head["final"]["greedy"]


def over_the_run(record: Record) -> float:
    """Return the mean of the run's exams: how early it got there."""
    return float(np.mean([step["held_out"] for step in record.steps if "held_out" in step]))


def part(name: str) -> Outcome:
    """Return held-out accuracy on a part of the exam, such as "clutter high"."""
    return lambda record: record.head["final"][name]


@dataclass(frozen=True)
class Difference:
    """One arm minus another over the seeds that have both; accuracies are shares."""

    arm: str
    baseline: str
    seeds: int
    mean: float
    low: float  # of the 95% interval, Student's t over paired seeds
    high: float
    deviation: float  # of the paired differences
    p: float  # of the paired t test
    p_corrected: float  # Holm, over the family
    p_equivalent: float  # of two one-sided tests against the margin; Holm, over the family

    def verdict(self, margin: float) -> str:
        """Say what the tests say: a difference, none within the margin, or that more seeds are needed."""
        found = []
        if self.p_corrected < 0.05:
            found.append("different" if self.p_equivalent >= 0.05 else "different, by less than the margin")
        elif self.p_equivalent < 0.05:
            found.append(f"indistinguishable within {100 * margin:g} point{'s' * (margin != 0.01)}")
        return found[0] if found else "undecided"


def differences(
    records: Records, pairs: list[tuple[str, str]], margin: float, outcome: Outcome = final
) -> list[Difference]:
    """Compare pairs of arms, (arm, baseline), as one family."""
    found = []
    for arm, baseline in pairs:
        seeds = sorted({seed for name, seed in records if name == arm} & {s for name, s in records if name == baseline})
        if len(seeds) >= 3:
            d = np.array([outcome(records[arm, seed]) - outcome(records[baseline, seed]) for seed in seeds])
            found.append((arm, baseline, d))
    if not found:
        return []
    ps = [_paired_t(d) for _, _, d in found]
    corrected, equivalent = holm(ps), holm([equivalence(d, margin) for _, _, d in found])
    return [
        Difference(arm, baseline, len(d), float(d.mean()), *interval(d), float(d.std(ddof=1)), p, float(q), float(e))
        for (arm, baseline, d), p, q, e in zip(found, ps, corrected, equivalent, strict=True)
    ]


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return Student's t interval of a mean: ``mean ± t(n - 1) s / sqrt(n)``, the one that the paired t test inverts.

    A bootstrap over 4 or 5 seeds is too short: it resamples a deviation that is itself hardly known.

    >>> [round(end, 4) for end in interval(np.array([1.0, 2.0, 3.0, 4.0]))]
    [0.4457, 4.5543]
    """
    half = scipy.stats.t.ppf((1 + level) / 2, len(values) - 1) * scipy.stats.sem(values)
    return float(values.mean() - half), float(values.mean() + half)


def holm(ps: list[float]) -> np.ndarray:
    """Return p values corrected for their number (Holm): the k-th smallest of n times n + 1 - k, never decreasing.

    statsmodels has it too, but collects garbage at every call: 0.3 s each, and a page has 200 families.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(ps)
    stepped = np.maximum.accumulate(np.array(ps)[order] * np.arange(len(ps), 0, -1))
    corrected = np.empty(len(ps))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def equivalence(values: np.ndarray, margin: float) -> float:
    """Return the p of two one-sided t tests that the mean lies within the margin."""
    if np.ptp(values) == 0:
        return 0.0 if abs(values[0]) < margin else 1.0
    return float(DescrStatsW(values).ttost_mean(-margin, margin)[0])


def means(records: Records, arms: list[str], outcome: Outcome = final) -> dict[str, tuple[float, float, float]]:
    """Return each arm's mean over seeds and its 95% interval."""
    found = {arm: np.array([outcome(r) for (name, _), r in records.items() if name == arm]) for arm in arms}
    return {arm: (float(values.mean()), *interval(values)) for arm, values in found.items()}


def detectable(deviation: float, seeds: int, comparisons: int, power: float = 0.8) -> float:
    """Return the smallest mean difference that a paired t test at 5% over the comparisons finds with this power.

    >>> round(detectable(0.01, seeds=20, comparisons=1), 4)
    0.0066
    """
    return deviation * TTestPower().solve_power(nobs=seeds, alpha=0.05 / comparisons, power=power)


def residual_deviation(values: np.ndarray) -> tuple[float, int]:
    """Return the deviation of paired differences, from arms x seeds without their means, and its degrees of freedom."""
    residual = values - values.mean(0, keepdims=True) - values.mean(1, keepdims=True) + values.mean()
    freedom = (values.shape[0] - 1) * (values.shape[1] - 1)
    return float(np.sqrt(2 * np.square(residual).sum() / freedom)), freedom


def _paired_t(values: np.ndarray) -> float:
    if np.ptp(values) == 0:
        return 1.0 if values[0] == 0 else 0.0
    return float(scipy.stats.ttest_1samp(values, 0.0).pvalue)
