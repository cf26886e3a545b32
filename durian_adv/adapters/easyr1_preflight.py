"""EasyR1: what would go wrong in a training, told before its first rollouts; import it with EasyR1 installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import verl
from datasets import load_dataset
from omegaconf import OmegaConf

from durian_adv.adapters import easyr1
from durian_adv.adapters.batch import DurianOptions, read_options
from durian_adv.adapters.easyr1_batch import COLUMN, check_entropy

Finding = tuple[str, str]  # "ok", "warning" or "error", and what was found


def preflight(words: Sequence[str]) -> list[Finding]:
    """Check the words of an EasyR1 command line (``config=... algorithm.adv_estimator=durian ...``) for Durian.

    Nothing is started: the configuration is read, and the first row of the training data.

    Raises:
        OSError, ValueError: words or a file that are no configuration of EasyR1.
    """
    try:
        easyr1.check_fit()
    except RuntimeError as error:
        return [("error", str(error))]
    found: list[Finding] = [("ok", f"EasyR1 {verl.__version__} fits")]
    config = _read(words)
    estimator = config.algorithm.adv_estimator
    if estimator != easyr1.NAME:
        return [*found, ("error", f"algorithm.adv_estimator: expected {easyr1.NAME}, got {estimator}")]
    try:
        options = read_options(config.durian, easyr1.NAME)
    except (TypeError, ValueError) as error:
        return [*found, ("error", str(error))]
    return [*found, *_of_rollouts(config), *_of_buckets(config, options), *_of_entropy(config, options)]


def _read(words: Sequence[str]) -> Any:
    given = OmegaConf.from_cli(list(words))
    parts = [OmegaConf.structured(easyr1.DurianPPOConfig())]
    if (file := given.pop("config", None)) is not None:
        parts.append(OmegaConf.load(file))
    return OmegaConf.merge(*parts, given)


def _of_rollouts(config: Any) -> list[Finding]:
    found: list[Finding] = []
    if config.worker.rollout.n < 2:
        found.append(
            ("error", f"worker.rollout.n: expected at least 2 rollouts a prompt, got {config.worker.rollout.n}")
        )
    algorithm = config.algorithm
    if not algorithm.disable_kl and not algorithm.use_kl_loss:
        text = "the KL penalty is a part of the rewards: prompts whose answers are all right or all wrong have a signal"
        found.append(("warning", f"algorithm.use_kl_loss is false: {text}"))
    if algorithm.online_filtering and algorithm.filter_key == "overall":
        text = "with a format reward, prompts that are all wrong in good format stay; accuracy filters them"
        found.append(("warning", f"algorithm.filter_key is overall: {text}"))
    return found


def _of_buckets(config: Any, options: DurianOptions) -> list[Finding]:
    prompts, found = config.data.rollout_batch_size, []
    quantiles = options.entropy_quantiles
    of_entropy = quantiles if isinstance(quantiles, int) else len(quantiles) + 1
    for score, weight, buckets in (
        ("visual entropy", options.weights[1], of_entropy),
        ("confidence", options.weights[2], options.num_confidence_buckets),
    ):
        if weight > 0:
            level = "ok" if prompts >= 2 * buckets else "warning"
            text = f"{prompts} prompts a step in {buckets} buckets of {score}, {prompts / buckets:.3g} each"
            found.append((level, text if level == "ok" else f"{text}: fewer than 2 share a std"))
    return found


def _of_entropy(config: Any, options: DurianOptions) -> list[Finding]:
    if options.weights[1] == 0:
        return []
    columns = _columns(config.data.train_files)
    try:
        check_entropy(config.data.image_key in columns, columns, options)
    except ValueError as error:
        return [("error", str(error))]
    if COLUMN not in columns:
        return [("ok", f"no column {config.data.image_key} in the training data: the perceptual component is left out")]
    found: list[Finding] = [("ok", f"the training data have the column {COLUMN}")]
    if not config.worker.actor.model.freeze_vision_tower:
        text = "the entropies of the dataset are those of the tower before training"
        found.append(("warning", f"worker.actor.model.freeze_vision_tower is false: {text}"))
    return found


def _columns(files: str) -> list[str]:
    """Return the columns of training data, which EasyR1 takes as a file, a folder or a name on the hub."""
    name, _, split = files.partition("@")
    path = Path(name)
    options: dict[str, Any] = {"path": name}
    if path.exists():
        suffix = (path if path.is_file() else sorted(path.iterdir())[0]).suffix[1:].replace("jsonl", "json")
        options = {"path": suffix, "data_files" if path.is_file() else "data_dir": name}
    return list(next(iter(load_dataset(split=split or "train", streaming=True, **options))))
