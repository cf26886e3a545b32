"""verl: the checks of ``durian-adv preflight verl``, which takes the options of ``python -m verl.trainer.main_ppo``."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
import ray
import verl
from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import durian_adv
from durian_adv.adapters import verl as adapter
from durian_adv.adapters.batch import DurianOptions
from durian_adv.commands.preflight import Check


def checks(arguments: Sequence[str]) -> Iterator[Check]:
    """Yield what is found about a run with these options."""
    parser = argparse.ArgumentParser(prog="durian-adv preflight verl", allow_abbrev=False)
    parser.add_argument("--no-ray", action="store_true", help="do not start or ask Ray about its workers")
    parser.add_argument("--config-path", type=Path, help="a folder with a configuration of your own")
    parser.add_argument("--config-name", default="ppo_trainer")
    given, overrides = parser.parse_known_args(arguments)

    config = _config(given.config_path, given.config_name, overrides)
    yield _plugin(config)
    estimator = config.algorithm.adv_estimator
    state: Any = "ok" if estimator == adapter.NAME else "problem"
    yield Check(state, "estimator", f"algorithm.adv_estimator is {estimator}, for Durian it must be {adapter.NAME}")
    try:
        options = adapter.check_config(config)
    except (RuntimeError, TypeError, ValueError) as error:
        yield Check("problem", "options", str(error))
        options = DurianOptions()
    else:
        yield Check("ok", "options", repr(options))
    data = _data(config)
    yield _entropy(config, options, data)
    if data.images and options.weights[1] > 0:
        yield _tower(config)
    yield _confidence(config, options)
    yield _buckets(config, options, data.images)
    if not given.no_ray:
        yield from _workers(config)


def _config(path: Path | None, name: str, overrides: Sequence[str]) -> Any:
    """Compose the configuration as main_ppo does."""
    folder: AbstractContextManager[Any]
    if path is None:
        folder = initialize_config_module("verl.trainer.config", version_base=None)
    else:
        folder = initialize_config_dir(str(path.resolve()), version_base=None)
    with folder:
        try:
            config = compose(name, list(overrides))
        except HydraException as error:
            raise ValueError(str(error)) from None
    OmegaConf.resolve(config)
    return config


def _plugin(config: Any) -> Check:
    """Tell whether verl loads the estimator by itself, as an entry point or by the names of modules it is given."""
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    named = os.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(",")
    by_entry_point = "durian_adv.adapters.verl_plugin" in sys.modules  # which nothing else imports
    if by_entry_point or adapter.__name__ in (*named, config.actor_rollout_ref.model.external_lib):
        versions = f"verl {verl.__version__} loads durian_adv {durian_adv.__version__}"
        return Check("ok", "plugin", f"{versions}; tested with verl {adapter.TESTED}")
    return Check("problem", "plugin", f"verl does not load durian_adv: VERL_USE_EXTERNAL_PLUGINS is {policy}")


class Data(NamedTuple):
    """What the training files hold."""

    images: bool
    carrier: str | None  # of the entropy
    prompts: int
    known: int  # prompts with an entropy


def _data(config: Any) -> Data:
    """Look into the training files, at no more than the entropies."""
    files = config.data.train_files
    out = Data(False, None, 0, 0)
    for file in [files] if isinstance(files, str) else files:
        if not file.endswith(".parquet"):
            raise ValueError(f"data.train_files: only .parquet is looked into, got {file}")
        parquet = pyarrow.parquet.ParquetFile(os.path.expanduser(file))
        schema = parquet.schema_arrow
        extra = schema.field("extra_info").type if "extra_info" in schema.names else None
        path = None
        if "visual_entropy" in schema.names:
            path = "visual_entropy"
        elif extra is not None and pyarrow.types.is_struct(extra) and extra.get_field_index("visual_entropy") >= 0:
            path = "extra_info.visual_entropy"
        known = 0
        if path:
            column = parquet.read(columns=[path]).flatten().column(path)
            known = sum(value is not None and not math.isnan(value) for value in column.to_pylist())
        out = Data(
            out.images or config.data.get("image_key", "images") in schema.names,
            out.carrier or path,
            out.prompts + parquet.metadata.num_rows,
            out.known + known,
        )
    return out


def _entropy(config: Any, options: DurianOptions, data: Data) -> Check:
    """Tell whether the entropy is there, and whether it reaches the advantage step."""
    if options.weights[1] == 0:
        return Check("ok", "entropy", "not needed, the perceptual component has weight 0")
    if not data.images:
        return Check(
            "ok", "entropy", "no images: the perceptual component is left out, the other weights are scaled up"
        )
    trainer = "fully_async" if "async_training" in config else "v1" if config.trainer.use_v1 else "v0"
    lost = {"fully_async": (None, "visual_entropy", "extra_info.visual_entropy"), "v0": (None, "visual_entropy")}
    if data.carrier in lost.get(trainer, (None,)):
        text = "the dataset has images and no entropy of them"
        if data.carrier is not None:
            text = f"the dataset's {data.carrier} does not reach the advantage step of {trainer}"
        if trainer == "v0" and data.carrier is not None:
            text += ", extra_info.visual_entropy would"
        if config.reward.custom_reward_function.path:
            return Check("warning", "entropy", f"{text}; the reward function must return visual_entropy")
        return Check("problem", "entropy", f"{text}, and there is no reward function of yours to return it")
    state: Any = "ok" if data.known == data.prompts else "warning"
    return Check(state, "entropy", f"the dataset's {data.carrier}, for {data.known} of {data.prompts} prompts")


def _tower(config: Any) -> Check:
    """Tell whether an entropy computed beforehand stays that of the model."""
    if config.actor_rollout_ref.actor.get("freeze_vision_tower", False):
        return Check("ok", "vision tower", "frozen, entropies computed beforehand are exact")
    return Check(
        "warning",
        "vision tower",
        "trained: entropies computed beforehand are those of the model before training, an approximation. "
        "actor_rollout_ref.actor.freeze_vision_tower=true makes them exact",
    )


def _confidence(config: Any, options: DurianOptions) -> Check:
    """Tell whose log-probabilities the confidence is taken from."""
    if options.weights[2] == 0:
        return Check("ok", "confidence", "not needed, the reasoning component has weight 0")
    bypass = OmegaConf.select(config, "algorithm.rollout_correction.bypass_mode")
    rollout = config.actor_rollout_ref.rollout
    if bypass and (rollout.top_p < 1 or rollout.top_k > 0):
        text = "from the sampler's log-probabilities, larger than the policy's because of top_p or top_k"
        return Check("warning", "confidence", text)
    return Check("ok", "confidence", f"from the {'sampler' if bypass else 'old policy'}'s log-probabilities")


def _buckets(config: Any, options: DurianOptions, images: bool) -> Check:
    """Tell how many prompts share a std."""
    prompts = config.data.train_batch_size
    mode = OmegaConf.select(config, f"trainer.v1.{config.trainer.v1.trainer_mode}") or {}
    if config.trainer.use_v1:
        prompts //= mode.get("parameter_sync_step", 1)
    levels = options.entropy_quantiles
    buckets = {
        "visual entropy": (levels if isinstance(levels, int) else len(levels) + 1) if images else 0,
        "confidence": options.num_confidence_buckets,
    }
    used = {name: n for (name, n), w in zip(buckets.items(), options.weights[1:], strict=True) if w > 0 and n > 0}
    text = f"{prompts} prompts an advantage step" + "".join(
        f", {prompts / n:.1f} a bucket in {n} buckets of {name}" for name, n in used.items()
    )
    if any(prompts < 2 * n for n in used.values()):
        text += ". With fewer than 2 a bucket, advantages may exceed GRPO's: take more prompts or fewer buckets"
        return Check("warning", "prompts", text)
    return Check("ok", "prompts", text)


def _workers(config: Any) -> Iterator[Check]:
    """Tell whether verl loads the estimator in a worker on each node of the Ray that main_ppo would use."""
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    if not ray.is_initialized():
        given = OmegaConf.to_container(config.ray_kwargs.get("ray_init", {}), resolve=True)
        environment = {**get_ppo_ray_runtime_env(config), **given.pop("runtime_env", {})}
        ray.init(**{"log_to_driver": False, **given, "runtime_env": environment})
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker may not have it
    ask = ray.remote(num_cpus=0)(_asked)
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        where = f"node {node['NodeManagerAddress']}"
        try:
            found = ray.get(
                ask.options(scheduling_strategy=here).remote(config.actor_rollout_ref.model.external_lib), timeout=300
            )
        except ray.exceptions.RayError as error:
            yield Check("problem", "workers", f"{where}: {str(error).strip().splitlines()[-1]}")
            continue
        if isinstance(found, str):
            yield Check("problem", "workers", f"{where}: {found}")
        else:
            yield Check("ok", "workers", f"{where}: verl {found[0]} loads durian_adv {found[1]}")


def _asked(external_lib: str | None) -> tuple[str, str] | str:
    """Ask verl in this process; runs in a worker that may not have durian_adv."""
    import importlib
    import importlib.metadata
    import sys

    import verl.trainer.ppo.v1
    from verl.trainer.ppo import core_algos

    if external_lib:
        importlib.import_module(external_lib)
    if "durian" not in core_algos.ADV_ESTIMATOR_REGISTRY:
        return "verl does not know the estimator durian; is durian_adv installed there?"
    loaded = sys.modules.get("durian_adv.adapters.verl")
    if loaded is None:
        return "durian_adv did not load"
    return "; ".join(loaded._misfits) or (verl.__version__, sys.modules["durian_adv"].__version__)
