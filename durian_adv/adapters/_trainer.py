"""What trainers derived from transformers' share: an estimator for evaluations, and the window in checkpoints."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from durian_adv.data import aside
from durian_adv.estimator import AdvantageEstimator

STATE_FILE = "durian_window.pt"


def evaluator(estimator: AdvantageEstimator, prompts: int) -> AdvantageEstimator:
    """Return an estimator for other prompts, perhaps with other numbers of completions: apart from the window."""
    options = {**estimator.options, "window": 0}
    if prompts == 1 and AdvantageEstimator(**options).needs_prompts:
        options["estimator"] = "grpo"  # the last batch of an evaluation may be a prompt alone: no reason to stop
    return AdvantageEstimator(**options)


def save_window(estimator: AdvantageEstimator, folder: Path) -> None:
    """Write the window, where there is one, into the folder of a checkpoint."""
    if not estimator.options["window"]:
        return
    file = folder / STATE_FILE
    with aside.naming(file), aside.written([file]) as (partial,):  # a run that is killed here leaves no damaged file
        torch.save(estimator.state_dict(), partial)


def load_window(estimator: AdvantageEstimator, folder: Path) -> None:
    """Take up the window, where there is one, from the folder of a checkpoint; if it is not there, warn.

    Raises:
        RuntimeError: the file is damaged.
    """
    if not estimator.options["window"]:
        return
    file = folder / STATE_FILE
    if not file.exists():
        warnings.warn(f"{file} does not exist: the window of recent prompts starts empty", stacklevel=3)
        return
    try:
        estimator.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # of a damaged file torch raises many kinds
        raise RuntimeError(f"{file} cannot be read as a window of recent prompts: {error}") from error
