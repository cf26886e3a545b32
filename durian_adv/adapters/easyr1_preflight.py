"""EasyR1: what would go wrong in a training, told before its first rollouts; import it with EasyR1 installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import verl
from datasets import load_dataset
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from durian_adv.adapters import easyr1
from durian_adv.adapters.batch import DurianOptions, read_options
from durian_adv.adapters.easyr1_batch import COLUMN, check_entropy
from durian_adv.commands.preflight import Check


def checks(arguments: Sequence[str]) -> Iterator[Check]:
    """Check the words of an EasyR1 command line (``config=... algorithm.adv_estimator=durian ...``) for Durian.

    Nothing is started: the configuration is read, and the first row of the training data.

    Raises:
        OSError, ValueError: words or a file that are no configuration of EasyR1.
    """
    try:
        easyr1.check_fit()
    except RuntimeError as error:
        yield Check("problem", "EasyR1", str(error))
        return
    yield Check("ok", "EasyR1", f"{verl.__version__} fits")
    config = _read(arguments)
    estimator = config.algorithm.adv_estimator
    if estimator != easyr1.NAME:
        yield Check("problem", "algorithm.adv_estimator", f"expected {easyr1.NAME}, got {estimator}")
        return
    try:
        options: DurianOptions = read_options(config.durian, easyr1.NAME)
    except (TypeError, ValueError) as error:
        yield Check("problem", *str(error).split(": ", 1))
        return
    yield from _of_rollouts(config)
    yield from _of_buckets(config, options)
    yield from _of_entropy(config, options)


def _read(arguments: Sequence[str]) -> Any:
    given = OmegaConf.from_cli(list(arguments))
    parts = [OmegaConf.structured(easyr1.DurianPPOConfig())]
    if (file := given.pop("config", None)) is not None:
        parts.append(OmegaConf.load(file))
    try:
        return OmegaConf.merge(*parts, given)
    except OmegaConfBaseException as error:
        raise ValueError(str(error)) from error


def _of_rollouts(config: Any) -> Iterator[Check]:
    rollouts, algorithm = config.worker.rollout.n, config.algorithm
    if rollouts < 2:
        yield Check("problem", "worker.rollout.n", f"expected at least 2 rollouts a prompt, got {rollouts}")
    if not algorithm.disable_kl and not algorithm.use_kl_loss:
        text = "the KL penalty is a part of the rewards, so prompts that are all right or all wrong have a signal"
        yield Check("warning", "algorithm.use_kl_loss", f"false: {text}")
    if algorithm.online_filtering and algorithm.filter_key == "overall":
        text = "with a format reward, prompts that are all wrong in good format stay; accuracy filters them"
        yield Check("warning", "algorithm.filter_key", f"overall: {text}")


def _of_buckets(config: Any, options: DurianOptions) -> Iterator[Check]:
    prompts, quantiles = config.data.rollout_batch_size, options.entropy_quantiles
    for score, weight, buckets in (
        ("visual entropy", options.weights[1], quantiles if isinstance(quantiles, int) else len(quantiles) + 1),
        ("confidence", options.weights[2], options.num_confidence_buckets),
    ):
        if weight > 0:
            few = prompts < 2 * buckets
            text = f"{prompts} prompts a step in {buckets} buckets, {prompts / buckets:.3g} each"
            yield Check("warning" if few else "ok", score, text + ": fewer than 2 share a std" * few)


def _of_entropy(config: Any, options: DurianOptions) -> Iterator[Check]:
    if options.weights[1] == 0:
        return
    columns, images = _columns(config.data.train_files), config.data.image_key
    try:
        check_entropy(images in columns, columns, options)
    except ValueError as error:
        yield Check("problem", *str(error).split(": ", 1))
        return
    if COLUMN not in columns:
        yield Check("ok", COLUMN, f"no column {images} in the training data: the perceptual component is left out")
        return
    yield Check("ok", COLUMN, "the training data have this column")
    if not config.worker.actor.model.freeze_vision_tower:
        text = "the entropies of the dataset are those of the tower before training"
        yield Check("warning", "worker.actor.model.freeze_vision_tower", f"false: {text}")


def _columns(files: str) -> list[str]:
    """Return the columns of training data, which EasyR1 takes as a file, a folder or a name on the hub."""
    name, _, split = files.partition("@")
    path = Path(name)
    options: dict[str, Any] = {"path": name}
    if path.exists():
        suffix = (path if path.is_file() else sorted(path.iterdir())[0]).suffix[1:].replace("jsonl", "json")
        options = {"path": suffix, "data_files" if path.is_file() else "data_dir": name}
    return list(next(iter(load_dataset(split=split or "train", streaming=True, **options))))
