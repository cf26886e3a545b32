"""The experiment that will test the law, declared before it is run: `declaration.json`, with what the law predicts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from studies.law.cases import PLAIN, QUALITY, estimators, noise_for, noisy_kinds
from studies.law.outcomes import outcomes
from studies.law.structure import Structure
from studies.law.worth import worth

PATH = Path(__file__).parent / "declaration.json"
REWARDED = replace(PLAIN, format_weight=0.1, format_rate=0.95)
RATIOS, UNITS, TIE_BREAKS = (1.0, 2.0, 4.0, 9.0), (1.0, 0.5, 0.25, 0.1), (0.0, 0.01, 0.03, 0.1)
STEPS, SEEDS = 200, 20

PLAN = {
    "status": "declared, not run",
    "question": "Do differences in held-out accuracy between normalizations follow the worth that the law predicts?",
    "task": {
        "policy": "a sequence policy of about 30,000 parameters that perceives a picture, then computes step by step",
        "prompts_per_step": 512,
        "rollouts": 8,
        "steps": STEPS,
        "difficulty": "accuracies of the first step fitted to Appendix A of arXiv 2602.21743 (logit-normal, mean -0.98,"
        " deviation 2.36)",
        "dials": "perception noise and reasoning depth, separate, set so that the shares of errors over the buckets are"
        " those of its Tables 5 and 6",
        "rewards": "0.9 accuracy + 0.1 format, 5% format slips before training",
        "kinds": "two halves of the prompts with the same accuracies; one of them gets the dose",
        "scores": f"visual entropy and confidence, correlated {QUALITY} with the kind; the correlation measured in the"
        " pilots replaces this number in the predictions before the first run that counts",
    },
    "arms": {
        "GRPO": "grpo_advantage",
        "batch std": "batch_std_advantage",
        "Durian, kept": 'durian_advantage, defaults, no_signal="keep"',
        "Durian, dropped": 'durian_advantage, defaults, no_signal="drop"',
        "random buckets": "durian_advantage, defaults, scores of other prompts",
        "std by kind": "shared_std_advantage(rewards, kind)",
    },
    "doses": {
        "variance": "primary: noise in one kind, so that within-prompt variances are 1 to R; groups all right or all"
        " wrong are replaced by others (kept and dropped are then one arm)",
        "unit": "second: the rewards of one kind times a unit; the same filter",
        "tie_break": "third: noise of this std in all rewards, one kind, without the filter",
    },
    "learning_rates": "each arm and dose at its best of five rates a factor of 2 apart, by 4 seeds that are used for"
    " nothing else; if the best is at an edge, the grid grows until it is not",
    "seeds": SEEDS,
    "pairing": "all arms of a seed share initial weights, prompts and the order of prompts",
    "primary_outcome": "held-out accuracy after the last step, sampled, on prompts without noise; Durian (dropped)"
    " minus batch std at R = 1, 2, 4, 9",
    "secondary_outcomes": "the same of every arm minus GRPO and minus std by kind, at every dose; steps until"
    " GRPO's last accuracy is reached; the worth that durian_adv.worth estimates on each run's first 20 steps",
    "prediction": f"with A(t) the mean learning curve of std by kind at that dose and h its worth, an arm of worth g"
    f" ends at A({STEPS} g / h); differences of these are the predicted differences",
    "analysis": "paired differences by seed, 95% intervals by Student's t, Holm's correction over the four doses; the"
    " slope of observed on predicted differences, of all arms minus std by kind at all R > 1, with its interval over"
    " seeds",
    "the_law_holds_if": "the interval of the slope excludes 0 and includes 1",
    "the_law_fails_if": "the interval of the slope includes 0, or Durian minus batch std does not grow with R; a slope"
    " whose interval excludes both 0 and 1 is reported as a law of the right sign and the wrong size",
    "stopping": "all seeds of all arms at a dose are run before anything is compared; doses in the order given;"
    " interrupted runs go on where they stopped",
}


def structures() -> dict[str, dict[str, Structure]]:
    """Return the structure of each dose."""
    return {
        "variance": {f"{ratio:g}": noisy_kinds(ratio, REWARDED, filtered=True) for ratio in RATIOS},
        "unit": {
            f"{unit:g}": Structure((REWARDED, replace(REWARDED, unit=unit)), filtered=True) for unit in UNITS
        },
        "tie_break": {f"{std:g}": Structure((replace(REWARDED, noise=std),)) for std in TIE_BREAKS},
    }  # fmt: skip


def predictions() -> dict[str, dict[str, dict[str, float]]]:
    """Return the worth of each arm at each dose, best factor per kind 1, to three digits."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, doses in structures().items():
        for dose, structure in doses.items():
            given = outcomes(structure)
            of_dose = {arm: round(worth(given, factor).value, 3) for arm, factor in estimators(given).items()}
            found.setdefault(name, {})[dose] = of_dose
    return found


def declare() -> dict[str, Any]:
    """Return the whole declaration."""
    noise = {f"{ratio:g}": round(noise_for(ratio, REWARDED, filtered=True), 3) for ratio in RATIOS}
    return PLAN | {"noise_std_by_ratio": noise, "predicted_worth": predictions()}


def write() -> None:
    """Write the declaration."""
    PATH.write_text(json.dumps(declare(), indent=1) + "\n", encoding="utf-8")


def read() -> dict[str, Any]:
    """Return the declaration that was written."""
    found: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
    return found
