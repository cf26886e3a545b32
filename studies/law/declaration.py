"""The experiment that will test the law, declared before it is run: `declaration.json`, with what the law predicts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from studies.law.cases import QUALITY, REWARDED, estimators, noise_for, noisy_kinds
from studies.law.outcomes import outcomes
from studies.law.structure import Structure
from studies.law.worth import worth

PATH = Path(__file__).parent / "declaration.json"
TASK = Path(__file__).parent / "records" / "task.json"  # what `check` measured on the pilots' seeds
RATIOS, UNITS, TIE_BREAKS = (1.0, 2.0, 4.0, 9.0), (1.0, 0.5, 0.25, 0.1), (0.0, 0.01, 0.03, 0.1)
DOSES = {name: [f"{dose:g}" for dose in doses]
         for name, doses in (("variance", RATIOS), ("unit", UNITS), ("tie_break", TIE_BREAKS))}  # fmt: skip
STEPS, SEEDS = 200, 20

AMENDMENTS = {
    "when": "2026-11-29 16:03 UTC, before the first pilot of a learning rate; the slope, and the rates that arms share"
    " at R = 1, at 16:09 UTC, after 13 pilots at R = 9; all before any run that counts",
    "scores": "the correlation with the kind is measured after the filter, and the mean of the two scores replaces 0.8"
    " in the predictions; what the scores know beside the kind is the noise of the picture, and the policy's own"
    " log-probability",
    "optimizer": "Adam, one update per step on the rollouts just sampled, so that no ratio is ever clipped; no KL term",
    "held_out": "2,048 prompts per seed; the accuracy of sampling is computed exactly, summed over all responses",
    "filter": "at most 4,096 prompts are tried per step; a step that finds fewer than 512 takes those it found",
    "learning_rates": "3 rates a factor of 2 apart instead of 5, growing while the best is at an edge; 2 seeds instead"
    " of 4; at R = 1 and 9 only, and interpolated between them; the rate is the top of the parabola through the best"
    " rate and its neighbors. At R = 1, where kinds do not differ and the law gives them one factor, Durian, random"
    " buckets and std by kind take batch std's rate. Reason: a part of one shared core for two hours",
    "slope": "through the origin, as no predicted difference is no difference; one per seed, observed differences of"
    " that seed on predicted ones, and Student's t over seeds; curves are straight between exams and beyond the last",
    "order": "doses in the order 9, 1, 4, 2 instead of 1, 2, 4, 9: if time ends the experiment, the largest predicted"
    " difference and the control are there. Nothing is compared at a dose before all its seeds and arms are there",
    "arms": "kept and dropped are one arm under the filter and are run once",
    "second_and_third": "unit and tie_break are run after the variance doses, if there is time, in the same way",
}

PLAN = {
    "status": "amended before the first pilot; see amendments",
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
    "amendments": AMENDMENTS,
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
            arms = estimators(given, quality())
            of_dose = {arm: round(worth(given, factor).value, 3) for arm, factor in arms.items()}
            found.setdefault(name, {})[dose] = of_dose
    return found


def declare() -> dict[str, Any]:
    """Return the whole declaration."""
    noise = {f"{ratio:g}": round(noise_for(ratio, REWARDED, filtered=True), 3) for ratio in RATIOS}
    return PLAN | {"measured_task": measured(), "noise_std_by_ratio": noise, "predicted_worth": predictions()}


def measured() -> dict[str, Any]:
    """Return what the task was found to have."""
    found: dict[str, Any] = json.loads(TASK.read_text(encoding="utf-8"))
    return found


def quality() -> float:
    """Return the correlation of the scores with the kind, the mean of both."""
    first, second = measured()["correlation"]
    return float(first + second) / 2


def write() -> None:
    """Write the declaration."""
    PATH.write_text(json.dumps(declare(), indent=1) + "\n", encoding="utf-8")


def read() -> dict[str, Any]:
    """Return the declaration that was written."""
    found: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
    return found
