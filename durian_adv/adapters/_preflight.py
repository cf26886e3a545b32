"""What every preflight says, and every trainer at its start: one vocabulary for the findings about a run."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from durian_adv._src.errors import ArgumentError
from durian_adv.data.logs.writer import RolloutLog
from durian_adv.diagnostics import too_few_prompts
from durian_adv.estimator import AdvantageEstimator

UNUSED = "%s is given and has no effect, as %s is %s"  # what a trainer logs of options of another estimator


class Check(NamedTuple):
    """One finding. A problem is what stops a run, or makes it another one than asked for."""

    state: Literal["ok", "warning", "problem"]
    subject: str
    finding: str


def verdict(good: object, subject: str, finding: str, *, otherwise: Literal["warning", "problem"] = "problem") -> Check:
    """Return a check that is ok if ``good``, and ``otherwise`` a problem or a warning."""
    return Check("ok" if good else otherwise, subject, finding)


def described(estimator: AdvantageEstimator) -> str:
    """Return the options of an estimator as a line of a log."""
    return ", ".join(f"{name}={value}" for name, value in estimator.options.items())


def no_images(subject: str, estimator: AdvantageEstimator, where: str) -> Check:
    """Tell what training data without images mean for an estimator that counts their entropies."""
    others = estimator.needs("confidence") or estimator.needs("category")
    left = "the perceptual component is left out, the other weights are scaled up"
    return verdict(others, subject, f"{where}: {left if others else 'no component has a score, which a run refuses'}")


def prompts_check(prompts: float, estimator: AdvantageEstimator, images: bool) -> Check:
    """Tell how many prompts share a std, from the number of prompts per batch, and whether these are enough.

    ``images``: whether prompts have any, so that there are buckets of visual entropy.
    """
    options, window = estimator.options, estimator.options["window"]
    if prompts == 1 and estimator.needs_prompts:
        text = (
            "1 prompt per batch, which the estimator refuses: the scale is shared by several. Use more, or window > 0"
        )
        return Check("problem", "prompts", text)
    levels = options["entropy_quantiles"]
    buckets = {}
    if images and estimator.needs("visual_entropy"):
        buckets["visual entropy"] = levels if isinstance(levels, int) else len(levels) + 1
    if estimator.needs("confidence"):
        buckets["confidence"] = options["num_confidence_buckets"]
    few = too_few_prompts({name: (prompts, count) for name, count in buckets.items()}, window=window)
    if few is not None:
        return Check("warning", "prompts", few)
    beside = f" and {window} in the window" if window else ""
    sizes = [
        f"{(prompts + window) / count:.1f} per bucket in {count} buckets of {name}" for name, count in buckets.items()
    ]
    return Check("ok", "prompts", ", ".join([f"{prompts:g} prompt{'s' * (prompts != 1)} per batch{beside}", *sizes]))


def open_log(option: str, folder: str) -> RolloutLog:
    """Return the rollout log in a folder that ``option`` names, once a log within it could be written, and removed.

    Raises:
        ArgumentError: the folder cannot be made or written, by its option.
        ModuleNotFoundError: pyarrow is not installed.
    """
    try:
        log = RolloutLog(folder)
        with tempfile.TemporaryDirectory(prefix=".trial_", dir=folder) as trial:
            estimator = AdvantageEstimator(estimator="grpo")
            estimator([0.0, 1.0], [0, 0])
            RolloutLog(trial).write(0, estimator.record)
    except (OSError, ValueError) as error:  # a ValueError: no path, with a byte 0
        raise ArgumentError(option, "a folder that can be made and written", f"{folder!r}: {error}") from None
    return log


def log_folder(option: str, folder: str) -> Check:
    """Tell whether a run can write its rollouts into a folder, which is left as it was, or not made."""
    path = Path(folder)
    missing = [part for part in (path, *path.parents) if not os.path.exists(part)]  # False, too, where none can be
    try:
        open_log(option, folder)
        earlier = sum(part.match("step_*.parquet") for part in path.iterdir())
    except (ArgumentError, ImportError, OSError) as error:
        return Check("problem", "rollout log", str(error))
    finally:
        for part in missing:
            with suppress(OSError, ValueError):  # never made, or a run has begun to write there
                part.rmdir()
    text = f"{option}: {folder} can be written"
    if earlier:
        text += f"; {earlier} of an earlier run's steps are there: those from this run's first step on get other names"
    return Check("ok", "rollout log", text)
