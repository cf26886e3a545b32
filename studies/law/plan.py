"""The runs of the declared experiment, in their order, and the learning rates that the pilots chose."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from studies.evidence.records import Record
from studies.law import declaration, task, training
from studies.law.training import Dose

ARMS = ("GRPO", "batch std", "Durian, dropped", "random buckets", "std by kind")  # kept is dropped where all differ
ORDER = {
    "variance": ("9", "1", "4", "2"),
    "unit": ("0.1", "1", "0.25", "0.5"),
    "tie_break": ("0.1", "0", "0.03", "0.01"),
}
PILOTED = 2  # of the doses of an outcome, the first ones of its order: the ends; rates between them are interpolated
ALIKE = (
    "Durian, dropped",
    "random buckets",
    "std by kind",
)  # one factor for all where kinds do not differ: batch std's
PILOT_SEEDS, SEEDS = (1000, 1001), tuple(range(20))
RATES = (0.002, 0.004, 0.008)  # of Adam; grows by factors of 2 while the best is at an edge
Found = Mapping[str, Record]
# not declared, run after the first dose to find out why differences were smaller than predicted: plain SGD at R = 9
SGD, SGD_DOSE, SGD_ARMS, SGD_RATES = (
    "sgd",
    "9",
    ("batch std", "Durian, dropped", "std by kind"),
    (1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
)
SGD_SEEDS = (2000, 2001, 2002, 2003)


@dataclass(frozen=True)
class Run:
    """One arm, one seed, one dose, one learning rate: one record."""

    outcome: str
    dose: str
    arm: str
    seed: int
    rate: float
    pilot: bool = False

    @property
    def name(self) -> str:
        """Return the record's path below the results, without its ending."""
        folder = f"{self.outcome}-{self.dose}"
        return (
            f"pilot-{folder}-{self.rate:g}/{self.arm}-{self.seed}" if self.pilot else f"{folder}/{self.arm}-{self.seed}"
        )


def dose_of(outcome: str, dose: str) -> Dose:
    """Return what makes the rewards at a dose."""
    if outcome in ("variance", SGD):
        return Dose(noise=(0.0, declaration.read()["noise_std_by_ratio"][dose]))
    if outcome == "unit":
        return Dose(unit=(1.0, float(dose)))
    return Dose(noise=(float(dose), float(dose)), filtered=False)


def arms_of(outcome: str) -> tuple[str, ...]:
    """Return the arms that differ; without the filter, groups without signal are kept by one arm and dropped by one."""
    return ARMS if outcome != "tie_break" else ("Durian, kept", *ARMS)


def settings(run: Run) -> dict[str, object]:
    """Return what a record of this run must say."""
    constants = {name: value for module in (task, training) for name, value in vars(module).items()
                 if name.isupper() and isinstance(value, int | float | tuple)}  # fmt: skip
    made = {name: list(value) if isinstance(value, tuple) else value for name, value in sorted(constants.items())}
    dose = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(dose_of(run.outcome, run.dose)).items()}
    return {**asdict(run), "rewards": dose, "constants": made}


def main_runs(outcome: str, found: Found, doses: tuple[str, ...] = ()) -> list[Run]:
    """Return the runs that count, dose by dose and seed by seed; their rates need the pilots."""
    rates = {(dose, arm): rate_of(outcome, dose, arm, found) for dose in ORDER[outcome] for arm in arms_of(outcome)}
    return [
        Run(outcome, dose, arm, seed, rates[dose, arm])
        for dose in (doses or ORDER[outcome])
        for seed in SEEDS
        for arm in arms_of(outcome)
    ]


def pilot_runs(outcome: str, found: Found) -> list[Run]:
    """Return the pilots; where the best rate so far is at an edge, with one more beyond it."""
    return [
        Run(outcome, dose, arm, seed, rate, pilot=True)
        for dose in ORDER[outcome][:PILOTED]
        for seed in PILOT_SEEDS
        for arm in arms_of(outcome)
        if piloted(outcome, dose, arm) == arm
        for rate in grid(outcome, dose, arm, found)
    ]


def sgd_runs() -> list[Run]:
    """Return the runs with plain SGD."""
    return [
        Run(SGD, SGD_DOSE, arm, seed, rate, pilot=True) for seed in SGD_SEEDS for rate in SGD_RATES for arm in SGD_ARMS
    ]


def sweep(outcome: str, dose: str, arm: str, found: Found, rates: tuple[float, ...]) -> dict[float, float]:
    """Return the mean last accuracy of the pilots by rate, of rates whose pilots are all there."""
    means = {}
    for rate in rates:
        names = [Run(outcome, dose, arm, seed, rate, pilot=True).name for seed in PILOT_SEEDS]
        if all(name in found for name in names):
            means[rate] = float(np.mean([found[name].steps[-1]["held_out"] for name in names]))
    return means


def grid(outcome: str, dose: str, arm: str, found: Found) -> tuple[float, ...]:
    """Return the rates to try: more beyond an edge as long as the best is there."""
    rates = RATES
    while len(means := sweep(outcome, dose, arm, found, rates)) == len(rates):
        best = max(means, key=means.__getitem__)
        if best == rates[0]:
            rates = (rates[0] / 2, *rates)
        elif best == rates[-1]:
            rates = (*rates, rates[-1] * 2)
        else:
            break
    return rates


def rate_of(outcome: str, dose: str, arm: str, found: Found) -> float:
    """Return an arm's learning rate, to two digits.

    At a piloted dose it is the top of the parabola through the best rate of the grid and its neighbors, accuracy over
    the logarithm of the rate; between two piloted doses, interpolated in its logarithm over the places of the doses.
    """
    order = declaration.DOSES[outcome]
    ends = [dose for dose in order if dose in ORDER[outcome][:PILOTED]]
    best = []
    for end in ends:
        chosen = piloted(outcome, end, arm)
        best.append(_top(sweep(outcome, end, chosen, found, grid(outcome, end, chosen, found))))
    places = [order.index(end) for end in ends]
    return float(f"{2 ** np.interp(order.index(dose), places, best):.2g}")


def piloted(outcome: str, dose: str, arm: str) -> str:
    """Return the arm whose pilots choose an arm's rate at a dose."""
    return "batch std" if outcome != "tie_break" and dose == "1" and arm in ALIKE else arm


def _top(means: dict[float, float]) -> float:
    rates = sorted(means)
    if len(rates) < 3 or (best := rates.index(max(means, key=means.__getitem__))) in (0, len(rates) - 1):
        raise ValueError("learning rates: the pilots are not done; run python -m studies.law pilot")
    near = rates[best - 1 : best + 2]
    square, slope, _ = np.polyfit(np.log2(near), [means[rate] for rate in near], 2)
    return float(-slope / (2 * square))
