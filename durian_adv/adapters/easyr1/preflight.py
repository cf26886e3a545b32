"""EasyR1: what would go wrong in a training, told before its first rollouts; import it with EasyR1 installed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import verl
from datasets import load_dataset
from datasets.exceptions import DatasetsError
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from durian_adv._src.errors import ArgumentError
from durian_adv.adapters._preflight import Check, log_folder, no_images, prompts_check, verdict
from durian_adv.adapters.easyr1 import trainer
from durian_adv.adapters.easyr1.batch import CATEGORY, COLUMN, check_columns
from durian_adv.estimator import AdvantageEstimator


def checks(arguments: Sequence[str]) -> Iterator[Check]:
    """Check the words of an EasyR1 command line (``config=... algorithm.adv_estimator=durian ...``) for Durian.

    Nothing is started: the configuration is read, and the training data up to the first entropy.

    Raises:
        OSError, ValueError: words or a file that are no configuration of EasyR1.
    """
    try:
        trainer.check_fit()
    except RuntimeError as error:
        yield Check("problem", "EasyR1", str(error))
        return
    yield Check("ok", "EasyR1", f"{verl.__version__} fits")
    config = _read(arguments)
    estimator = config.algorithm.adv_estimator
    if estimator != trainer.NAME:
        yield Check("problem", "algorithm.adv_estimator", f"expected {trainer.NAME}, got {estimator}")
        return
    try:
        options, folder = trainer.options_of(config)
        estimator = AdvantageEstimator(**options)
    except ArgumentError as error:
        yield Check("problem", error.name, error.reason)
        return
    if folder is not None:
        yield log_folder(trainer.LOG, folder)
    yield from _of_rollouts(config)
    yield from _of_data(config, estimator)


def _read(arguments: Sequence[str]) -> Any:
    given = OmegaConf.from_cli(list(arguments))
    parts = [OmegaConf.structured(trainer.DurianPPOConfig())]
    if (file := given.pop("config", None)) is not None:
        parts.append(OmegaConf.load(file))
    try:
        return OmegaConf.merge(*parts, given)
    except OmegaConfBaseException as error:
        raise ValueError(str(error)) from error


def _of_rollouts(config: Any) -> Iterator[Check]:
    rollouts, algorithm = config.worker.rollout.n, config.algorithm
    if rollouts < 2:
        yield Check("problem", "worker.rollout.n", f"expected at least 2 rollouts per prompt, got {rollouts}")
    if not algorithm.disable_kl and not algorithm.use_kl_loss:
        text = "the KL penalty is a part of the rewards, so prompts that are all right or all wrong have a signal"
        yield Check("warning", "algorithm.use_kl_loss", f"false: {text}")
    if algorithm.online_filtering and algorithm.filter_key == "overall":
        text = "with a format reward, prompts that are all wrong in good format stay; accuracy filters them"
        yield Check("warning", "algorithm.filter_key", f"overall: {text}")


def _of_data(config: Any, estimator: AdvantageEstimator) -> Iterator[Check]:
    looked_for = [name for name in (COLUMN, CATEGORY) if estimator.needs(name)]
    columns: list[str] = []
    reason = None
    if looked_for:
        try:
            data = _data(config.data.train_files)
            columns = list(next(iter(data), ()))
            reason = None if columns else f"expected prompts, got none in {config.data.train_files}"
        except (OSError, ValueError, DatasetsError) as error:
            reason = str(error)
    images = [key for key in (config.data.image_key, config.data.video_key) if key in columns]
    yield prompts_check(config.data.rollout_batch_size, estimator, bool(images) or reason is not None)
    if reason is not None:
        yield Check("problem", "data.train_files", reason)
    elif looked_for:
        yield from _of_columns(config, estimator, data, columns, images)


def _of_columns(
    config: Any, estimator: AdvantageEstimator, data: Any, columns: list[str], images: list[str]
) -> Iterator[Check]:
    try:
        check_columns(images, columns, estimator)
    except ArgumentError as error:
        yield Check("problem", error.name, error.reason)
        return
    if estimator.needs("category"):
        yield Check("ok", CATEGORY, "the training data have this column")
    if estimator.needs("visual_entropy"):
        yield from _of_entropy(config, estimator, data, columns, images)


def _of_entropy(
    config: Any, estimator: AdvantageEstimator, data: Any, columns: list[str], images: list[str]
) -> Iterator[Check]:
    if COLUMN not in columns:
        keys = f"{config.data.image_key} or {config.data.video_key}"
        yield no_images(COLUMN, estimator, f"no column {keys} in the training data")
        return
    for row in data.select_columns([COLUMN]):
        value = row[COLUMN]
        if value is not None and not isinstance(value, int | float):
            yield Check("problem", COLUMN, f"expected one number or null per prompt, got {value!r}")
            return
        if value is not None and not math.isnan(value):
            break
    else:
        yield verdict(not images, COLUMN, "expected a number for prompts with images, got none in the training data")
        return
    yield Check("ok", COLUMN, "the training data have this column")
    if not config.worker.actor.model.freeze_vision_tower:
        text = "the entropies of the dataset are those of the tower before training"
        yield Check("warning", "worker.actor.model.freeze_vision_tower", f"false: {text}")


def _data(files: str) -> Any:
    """Return the training data, which EasyR1 takes as a file, a folder or a name on the hub."""
    name, _, split = files.partition("@")
    path = Path(name)
    options: dict[str, Any] = {"path": name}
    if path.exists():
        inside = [path] if path.is_file() else sorted(path.iterdir())
        if not inside:
            raise ValueError(f"expected files, got an empty folder {name}")
        suffix = inside[0].suffix[1:].replace("jsonl", "json")
        options = {"path": suffix, "data_files" if path.is_file() else "data_dir": name}
    return load_dataset(split=split or "train", streaming=True, **options)
