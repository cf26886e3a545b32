"""What the main comparison will be able to see, written down before it is run: `declared.json`, from the pilots."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from studies.evidence import comparison, records
from studies.evidence.arms import MAIN
from studies.evidence.conditions import LONG_PILOTS, MAIN_CONDITION, PILOTS, Condition
from studies.evidence.suite import Suite

PATH = records.RECORDS / "declared.json"
MARGIN = 0.01  # of accuracy: half of the two points that the paper reports for Durian over GRPO
BASELINE = "grpo"
# Durian against what it must beat to be worth its parts: one line of batch std, no std, buckets that know nothing
PAIRS = [(arm, BASELINE) for arm in MAIN if arm != BASELINE] + [
    ("durian", other) for other in ("batch-std", "dr-grpo", "random-buckets")
]


def sweep(condition: Condition) -> np.ndarray:
    """Return a pilot's final accuracies, arms x seeds."""
    found = records.of_condition(condition.name)
    seeds = range(condition.first_seed, condition.first_seed + condition.seeds)
    return np.array([[comparison.final(found[arm, seed]) for seed in seeds] for arm in condition.arms])


def declare(warm: str) -> dict[str, Any]:
    """Choose the learning rate and compute what can be detected."""
    short, long = ({pilot.lr: sweep(pilot) for pilot in pilots} for pilots in (PILOTS, LONG_PILOTS))
    best = sorted(short, key=lambda rate: -short[rate].mean())[: len(long)]
    if set(best) != set(long):
        raise ValueError(f"LONG_PILOTS: expected the sweep's best rates, {best}, got {list(long)}")
    chosen = max(long, key=lambda rate: long[rate].mean())
    if chosen != MAIN_CONDITION.lr:
        raise ValueError(f"MAIN_CONDITION.lr: expected {chosen:g}, the pilots' best, got {MAIN_CONDITION.lr:g}")
    found = [comparison.residual_deviation(table) for table in long.values()]
    freedom = sum(each for _, each in found)
    deviation = float(np.sqrt(sum(each * value**2 for value, each in found) / freedom))
    # A deviation from few degrees of freedom may be too small by chance: its upper 80% limit is declared beside it.
    cautious = deviation * np.sqrt(freedom / scipy.stats.chi2.ppf(0.2, freedom))
    plan = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "warm": warm,
        "learning_rate": chosen,
        "sweep": {pilot.name: {arm: round(float(row.mean()), 6) for arm, row in zip(pilot.arms, table, strict=True)}
                  for pilot, table in zip((*PILOTS, *LONG_PILOTS), (*short.values(), *long.values()), strict=True)},
        "primary_outcome": "held-out accuracy after the last step, sampled, 2,000 prompts x 16",
        "paired_deviation": round(deviation, 6),
        "degrees_of_freedom": freedom,
        "paired_deviation_upper_80": round(float(cautious), 6),
        "comparisons": PAIRS,
        "seeds": MAIN_CONDITION.seeds,
        "margin_of_equivalence": MARGIN,
        "smallest_detectable": {
            "at_the_deviation": round(comparison.detectable(deviation, MAIN_CONDITION.seeds, len(PAIRS)), 6),
            "at_its_upper_limit": round(comparison.detectable(float(cautious), MAIN_CONDITION.seeds, len(PAIRS)), 6),
        },
    }  # fmt: skip
    return plan


def write(suite: Suite, path: Path = PATH) -> None:
    """Write the declaration; once runs of the main comparison exist it is too late."""
    if any(records.of_condition(MAIN_CONDITION.name, found) for found in (records.read_table(), records.read_folder())):
        raise FileExistsError(f"{path}: the main comparison has begun, so nothing can be declared before it any more")
    plan = declare(suite.weights_digest)
    path.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


def read(path: Path = PATH) -> dict[str, Any]:
    """Return the declaration."""
    return json.loads(path.read_text(encoding="utf-8"))
