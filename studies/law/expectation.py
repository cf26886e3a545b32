"""The differences expected before the runs that count, in points: the pilots' curves at the predicted worths."""

import json
from pathlib import Path

import numpy as np

from studies.law import declaration, plan
from studies.law.analysis import REFERENCE, straight
from studies.law.plan import Found, Run

PATH = Path(__file__).parent / "records" / "expected.json"


def expected(outcome: str, found: Found) -> dict[str, object]:
    """Return the rates chosen, and each arm's expected last accuracy minus that of a std by kind.

    The curve of a dose is the mean of the pilots of std by kind (at R = 1: batch std) at the best rate of the grid;
    between piloted doses, curves are interpolated over the places of the doses.
    """
    order = declaration.DOSES[outcome]
    ends = [dose for dose in order if dose in plan.ORDER[outcome][: plan.PILOTED]]
    curves = np.array([_curve(outcome, dose, found) for dose in ends])
    steps = np.arange(curves.shape[1]) * (declaration.STEPS / (curves.shape[1] - 1))
    places = [order.index(dose) for dose in ends]
    points: dict[str, dict[str, float]] = {}
    for place, dose in enumerate(order):
        curve = np.array([np.interp(place, places, column) for column in curves.T])
        worth = declaration.read()["predicted_worth"][outcome][dose]
        for arm in plan.arms_of(outcome):
            end = straight(declaration.STEPS * worth[arm] / worth[REFERENCE], steps, curve)
            points.setdefault(dose, {})[arm] = round(100 * (end - float(curve[-1])), 2)
    rates = {dose: {arm: plan.rate_of(outcome, dose, arm, found) for arm in plan.arms_of(outcome)} for dose in order}
    return {"learning_rates": rates, "points_minus_std_by_kind": points}


def _curve(outcome: str, dose: str, found: Found) -> np.ndarray:
    arm = plan.piloted(outcome, dose, REFERENCE)
    means = plan.sweep(outcome, dose, arm, found, plan.grid(outcome, dose, arm, found))
    best = max(means, key=means.__getitem__)
    runs = [Run(outcome, dose, arm, seed, best, pilot=True).name for seed in plan.PILOT_SEEDS]
    return np.mean([[row["held_out"] for row in found[name].steps] for name in runs], axis=0)


def write(outcome: str, found: Found) -> None:
    """Write what is expected of an outcome."""
    kept = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    PATH.write_text(json.dumps({**kept, outcome: expected(outcome, found)}, indent=1) + "\n", encoding="utf-8")
    print(PATH.read_text(encoding="utf-8"))
