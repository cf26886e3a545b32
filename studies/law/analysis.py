"""What the experiment shows, as declared: predicted and observed differences, dose by dose, from the records alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from studies.evidence.comparison import holm, interval
from studies.law import declaration, plan
from studies.law.plan import Found, Run

REFERENCE = "std by kind"
PRIMARY = ("Durian, dropped", "batch std")


@dataclass(frozen=True)
class Dose:
    """A dose whose runs are all there: accuracies ``(arms, seeds, exams)``, a share, and the steps of the exams."""

    name: str
    arms: tuple[str, ...]
    steps: np.ndarray
    accuracy: np.ndarray
    worth: dict[str, float]  # of each arm, predicted
    measured_worth: np.ndarray  # (arms, seeds): on the first 20 steps

    def last(self, arm: str) -> np.ndarray:
        """Return the last accuracy by seed."""
        return self.accuracy[self.arms.index(arm), :, -1]

    def observed(self, arm: str, baseline: str = REFERENCE) -> np.ndarray:
        """Return the paired differences by seed."""
        return self.last(arm) - self.last(baseline)

    def predicted(self, arm: str, baseline: str = REFERENCE) -> float:
        """Return A(T g / h) of one arm minus that of the other; A, h: the reference's mean curve and worth."""
        curve = self.accuracy[self.arms.index(REFERENCE)].mean(0)
        ends = [self.steps[-1] * self.worth[name] / self.worth[REFERENCE] for name in (arm, baseline)]
        return straight(ends[0], self.steps, curve) - straight(ends[1], self.steps, curve)


@dataclass(frozen=True)
class Difference:
    """One arm minus another at a dose; shares."""

    dose: str
    arm: str
    baseline: str
    seeds: int
    predicted: float
    mean: float
    low: float  # of the 95% interval, Student's t over paired seeds
    high: float
    p: float


def straight(x: float, steps: np.ndarray, curve: np.ndarray) -> float:
    """Read a curve that is straight between its points, and beyond the last as before it.

    >>> straight(30.0, np.array([0.0, 10.0, 20.0]), np.array([0.0, 2.0, 3.0]))
    4.0
    """
    slope = (curve[-1] - curve[-2]) / (steps[-1] - steps[-2])
    return float(curve[-1] + (x - steps[-1]) * slope) if x > steps[-1] else float(np.interp(x, steps, curve))


def complete(outcome: str, found: Found) -> dict[str, Dose]:
    """Return the doses of which every seed of every arm is there, in their natural order."""
    doses = {}
    for dose in declaration.DOSES[outcome]:
        names = [[run_name(outcome, dose, arm, seed) for seed in plan.SEEDS] for arm in plan.arms_of(outcome)]
        if all(name in found for row in names for name in row):
            doses[dose] = _dose(outcome, dose, [[found[name] for name in row] for row in names])
    return doses


def run_name(outcome: str, dose: str, arm: str, seed: int) -> str:
    """Return a record's name."""
    return Run(outcome, dose, arm, seed, 0.0).name


def counted(outcome: str, found: Found) -> dict[str, int]:
    """Return how many runs of each dose are there."""
    arms = plan.arms_of(outcome)
    return {dose: sum(run_name(outcome, dose, arm, seed) in found for arm in arms for seed in plan.SEEDS)
            for dose in declaration.DOSES[outcome]}  # fmt: skip


def compare(doses: Sequence[Dose], pairs: Sequence[tuple[str, str]]) -> list[Difference]:
    """Compare pairs of arms at each dose."""
    found = []
    for dose in doses:
        for arm, baseline in pairs:
            d = dose.observed(arm, baseline)
            p = float(scipy.stats.ttest_1samp(d, 0.0).pvalue) if np.ptp(d) else 1.0
            found.append(
                Difference(
                    dose.name, arm, baseline, len(d), dose.predicted(arm, baseline), float(d.mean()), *interval(d), p
                )
            )
    return found


def corrected(found: Sequence[Difference], family: int) -> np.ndarray:
    """Return p values corrected (Holm) over all doses of the family, of those that were not run too."""
    return holm([d.p for d in found] + [1.0] * (family - len(found)))[: len(found)]


def slopes(
    doses: Sequence[Dose],
    arms: Sequence[str] | None = None,
    predicted: Callable[[Dose, str], float] = Dose.predicted,
) -> np.ndarray:
    """Return each seed's slope, through the origin, of observed on predicted differences from std by kind."""
    pairs = [(dose, arm) for dose in doses for arm in (arms or dose.arms) if arm != REFERENCE]
    observed = [dose.observed(arm) for dose, arm in pairs]
    x = np.array([predicted(dose, arm) for dose, arm in pairs])
    return np.asarray(x @ np.array(observed) / (x @ x))


def verdict(low: float, high: float) -> str:
    """Say what the declaration says of a slope's interval."""
    if low <= 0:
        return "fails"
    return "holds" if low <= 1 <= high else "has the right sign and the wrong size"


def reached(dose: Dose, arm: str, baseline: str = "GRPO") -> float:
    """Return after how many steps an arm's mean curve is where the baseline ended; NaN if it is not."""
    curve, others = (dose.accuracy[dose.arms.index(name)].mean(0) for name in (arm, baseline))
    target = others[-1]
    above = np.nonzero(curve >= target)[0]
    if not len(above):
        return float("nan")
    k = int(above[0])
    return float(np.interp(target, curve[max(k - 1, 0) : k + 1], dose.steps[max(k - 1, 0) : k + 1]))


def speed(dose: Dose, arm: str) -> tuple[float, float, float]:
    """Return how fast an arm learns: the steps that std by kind needs to get where it ends, over those it took.

    With a 95% interval: a jackknife over seeds. The law predicts the ratio of the worths.
    """
    own, reference = (dose.accuracy[dose.arms.index(name)] for name in (arm, REFERENCE))
    seeds = np.arange(len(own))
    whole = _speed(dose.steps, own.mean(0), reference.mean(0))
    without = [_speed(dose.steps, own[seeds != k].mean(0), reference[seeds != k].mean(0)) for k in seeds]
    error = np.sqrt((len(seeds) - 1) * np.var(without))
    half = float(scipy.stats.t.ppf(0.975, len(seeds) - 1) * error)
    return whole, whole - half, whole + half


def _speed(steps: np.ndarray, own: np.ndarray, reference: np.ndarray) -> float:
    """Read at which step a rising curve is where another ends, beyond the last step as straight as before it."""
    last = steps[-1] + (own[-1] - reference[-1]) * (steps[-1] - steps[-2]) / (reference[-1] - reference[-2])
    inside = np.interp(own[-1], np.maximum.accumulate(reference), steps)
    return float(last if own[-1] > reference[-1] else inside) / float(steps[-1])


def _dose(outcome: str, dose: str, records: list[list[plan.Record]]) -> Dose:
    accuracy = np.array([[[row["held_out"] for row in record.steps] for record in row] for row in records])
    steps = np.array([row["step"] for row in records[0][0].steps])
    worth = declaration.read()["predicted_worth"][outcome][dose]
    measured = np.array([[record.head["worth"] for record in row] for row in records])
    return Dose(dose, plan.arms_of(outcome), steps, accuracy, worth, measured)
