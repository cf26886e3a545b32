"""verl: the checks of ``durian-adv preflight verl``, which takes the options of ``python -m verl.trainer.main_ppo``."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import verl
from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf

import durian_adv
from durian_adv.adapters import _ray
from durian_adv.adapters._preflight import Check, described, log_folder, no_images, prompts_check, verdict
from durian_adv.adapters.verl import estimator as adapter
from durian_adv.estimator import AdvantageEstimator

MODULE = "durian_adv.adapters.verl"  # as users name it where verl does not load its plugins


def checks(arguments: Sequence[str]) -> Iterator[Check]:
    """Yield what is found about a run with these options."""
    parser = argparse.ArgumentParser(prog="durian-adv preflight verl", allow_abbrev=False)
    parser.add_argument("--no-ray", action="store_true", help="do not start or ask Ray about its workers")
    parser.add_argument("--program", help="module that is run, such as verl.trainer.main_ppo")
    parser.add_argument("--config-path", type=Path, help="a folder with a configuration of your own")
    parser.add_argument("--config-name", default="ppo_trainer")
    given, overrides = parser.parse_known_args(arguments)

    config = _config(given.config_path, given.config_name, overrides)
    yield _plugin(config)
    yield from _program(given.program)
    for reason in adapter.import_changed():
        yield Check("warning", "internals", f"not checked, as it cannot be imported here: {reason}")
    name = config.algorithm.adv_estimator
    text = f"algorithm.adv_estimator is {name}, for Durian it must be {adapter.NAME}"
    yield verdict(name == adapter.NAME, "estimator", text)
    try:
        estimator = adapter.check_config(config)
    except (RuntimeError, TypeError, ValueError) as error:
        yield Check("problem", "options", str(error))
        estimator = AdvantageEstimator()
    else:
        yield Check("ok", "options", described(estimator))
        _, folder = adapter.options_of(config.algorithm)
        if folder is not None:
            yield log_folder(adapter.LOG, folder)
    yield from _of_scores(config, estimator)
    if not given.no_ray:
        yield from _workers(config)


def _of_scores(config: Any, estimator: AdvantageEstimator) -> Iterator[Check]:
    data = Data()
    yield from _data(config, data)
    if data.prompts:
        yield _entropy(config, estimator, data)
        if estimator.needs("category"):
            yield _category(data)
    if data.images and estimator.needs("visual_entropy"):
        yield _tower(config)
    yield _confidence(config, estimator)
    yield _prompts(config, estimator, data.images)


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


def _external(config: Any) -> list[str]:
    """Return the modules that the option external_lib names: one, several or none."""
    named = config.actor_rollout_ref.model.external_lib
    return [named] if isinstance(named, str) else list(named or ())


def _plugin(config: Any) -> Check:
    """Tell whether verl loads the estimator by itself, as an entry point or by the names of modules it is given."""
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    named = os.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(",")
    by_entry_point = "durian_adv.adapters.verl.plugin" in sys.modules  # which nothing else imports
    by_option = MODULE in _external(config)
    trainer = adapter.trainer_of(config)
    if by_entry_point or MODULE in named or (by_option and _external_reaches(trainer)):
        versions = f"verl {verl.__version__} loads durian_adv {durian_adv.__version__}"
        return Check("ok", "plugin", f"{versions}; tested with verl {adapter.TESTED}")
    text = (
        f"verl {verl.__version__} does not load durian_adv (VERL_USE_EXTERNAL_PLUGINS is {policy}): set "
        f"VERL_USE_EXTERNAL_MODULES={MODULE} for all of the run's processes"
    )
    if by_option:
        text += f", as {trainer} does not load actor_rollout_ref.model.external_lib where the estimator is needed"
    return Check("problem", "plugin", text)


def _external_reaches(trainer: str) -> bool:
    """Tell whether a trainer loads the modules of external_lib in the process that computes advantages."""
    return trainer in ("v0", "v1") and adapter.exists("verl.trainer.ppo.v1")  # since verl 0.9


def _program(given: str | None) -> Iterator[Check]:
    """Tell whether Durian works in the program, which the configuration does not name."""
    name, refused = given or "verl.trainer.main_ppo", f"{adapter.SYNC} is refused, as {adapter.refusal_of_sync()}"
    if not adapter.exists(name):
        yield Check("problem", "program", f"--program: {name} cannot be found, with verl {verl.__version__}")
    elif name == adapter.SYNC:
        yield Check("problem", "program", refused)
    elif given is None and adapter.exists(adapter.SYNC):
        yield Check("warning", "program", f"taken to be {name}, as --program does not name it; {refused}")
    else:
        yield Check("ok", "program", name)


@dataclasses.dataclass
class Data:
    """What the training files hold; no prompts where none was looked into."""

    images: bool = False
    prompts: int = 0
    kinds: bool = False  # whether there is a column of categories
    known: dict[str, int] = dataclasses.field(default_factory=dict)  # prompts with an entropy, by its carrier


def _data(config: Any, data: Data) -> Iterator[Check]:
    """Look into the training files, at no more than the entropies; tell which of them cannot be looked into."""
    files = config.data.train_files
    for file in [files] if isinstance(files, str) else files or ():
        if "://" in file or not file.endswith(".parquet"):
            yield Check("warning", "data", f"{file}: not looked into, only .parquet on this machine is")
            continue
        try:
            _look_into(os.path.expanduser(file), config, data)
        except (OSError, pyarrow.ArrowException) as error:
            yield Check("problem", "data", f"{file}: {error}")
    if not data.prompts:
        yield Check("warning", "data", "no prompts were looked into, so nothing is known about images and entropies")


def _look_into(file: str, config: Any, data: Data) -> None:
    parquet = pyarrow.parquet.ParquetFile(file)
    schema = parquet.schema_arrow
    data.prompts += parquet.metadata.num_rows
    keys = config.data.get("image_key", "images"), config.data.get("video_key", "videos")
    data.images |= any(_has_values(parquet, key) for key in keys)
    data.images |= not _SEEN.isdisjoint(_kinds_of_content(parquet, config.data.get("prompt_key", "prompt")))
    data.kinds |= any(name in schema.names for name in adapter.CATEGORY)
    extra = schema.field("extra_info").type if "extra_info" in schema.names else None
    carriers = ["visual_entropy"] if "visual_entropy" in schema.names else []
    if extra is not None and pyarrow.types.is_struct(extra) and extra.get_field_index("visual_entropy") >= 0:
        carriers.append("extra_info.visual_entropy")
    for carrier in carriers:
        values = parquet.read(columns=[carrier]).flatten().column(carrier).to_pylist()
        known = sum(isinstance(value, int | float) and not math.isnan(value) for value in values)
        data.known[carrier] = data.known.get(carrier, 0) + known


_SEEN = {"image", "image_url", "video", "video_url"}  # parts of a message


def _has_values(parquet: Any, column: str) -> bool:
    """Tell whether a row has something in a column, such as a list that is not empty; without reading it."""
    for i in range(len(parquet.schema)):
        leaf = parquet.schema.column(i)
        if leaf.path.split(".")[0] != column or str(leaf.logical_type) == "Null":
            continue
        for group in range(parquet.num_row_groups):
            values = parquet.metadata.row_group(group).column(i)
            # an empty list counts as a null; without statistics there may be something
            if values.statistics is None or values.statistics.null_count < values.num_values:
                return True
    return False


def _kinds_of_content(parquet: Any, column: str) -> set[str | None]:
    """Return the types of the parts of messages; none where a message is a string."""
    paths = (parquet.schema.column(i).path for i in range(len(parquet.schema)))
    found: set[str | None] = set()
    for path in paths:
        if path.split(".")[0] == column and ".content." in path and path.endswith(".type"):
            values = parquet.read(columns=[path]).column(column).combine_chunks()
            while pyarrow.types.is_nested(values.type):
                values = values.field(0) if pyarrow.types.is_struct(values.type) else values.flatten()
            found |= {*values.unique().to_pylist()}
    return found


# what does not reach the advantage step
_LOST = {
    "fully_async": ("visual_entropy", "extra_info.visual_entropy"),
    "one_step_off": ("visual_entropy",),
    "v0": ("visual_entropy",),
    "v1": (),
}


def _entropy(config: Any, estimator: AdvantageEstimator, data: Data) -> Check:
    """Tell whether the entropy is there, and whether it reaches the advantage step."""
    if not estimator.needs("visual_entropy"):
        return Check("ok", "entropy", "not needed, the perceptual component has weight 0")
    if not data.images:
        return no_images("entropy", estimator, "no images")
    trainer = adapter.trainer_of(config)
    carriers = [name for name, known in data.known.items() if known > 0]
    reaching = [name for name in carriers if name not in _LOST[trainer]]
    if not reaching:
        text = "the dataset has images and no entropy of them"
        if carriers:
            text = f"the dataset's {' and '.join(carriers)} does not reach the advantage step of {trainer}"
            if "extra_info.visual_entropy" not in _LOST[trainer]:
                text += ", extra_info.visual_entropy would"
        if _reward_function(config):
            return Check("warning", "entropy", f"{text}; the reward function must return visual_entropy")
        return Check("problem", "entropy", f"{text}, and there is no reward function of yours to return it")
    known = data.known[reaching[0]]
    text = f"the dataset's {reaching[0]}, for {known} of {data.prompts} prompts"
    return verdict(known == data.prompts, "entropy", text, otherwise="warning")


def _reward_function(config: Any) -> Any:
    """Return the path of a reward function of one's own, which verl before 0.7.1 has at another place."""
    paths = (OmegaConf.select(config, f"{at}custom_reward_function.path") for at in ("reward.", ""))
    return next(filter(None, paths), None)


def _category(data: Data) -> Check:
    text = f"column {' or '.join(adapter.CATEGORY)}: the dataset has {'one' if data.kinds else 'none'} of them"
    return verdict(data.kinds, "category", text)


def _tower(config: Any) -> Check:
    """Tell whether an entropy computed beforehand stays that of the model."""
    model = config.actor_rollout_ref.model
    if model.lora_rank > 0 and model.exclude_modules:
        text = (
            f"under LoRA only adapters are trained, none in {model.exclude_modules}: entropies computed beforehand are"
        )
        return Check("ok", "vision tower", f"{text} exact if that is the whole tower")
    text = "trained: entropies computed beforehand are those of the model before training, an approximation"
    if config.actor_rollout_ref.actor.get("freeze_vision_tower", False):
        text += f". verl {verl.__version__} does nothing with actor_rollout_ref.actor.freeze_vision_tower"
    return Check("warning", "vision tower", text)


def _confidence(config: Any, estimator: AdvantageEstimator) -> Check:
    """Tell whose log-probabilities the confidence is taken from."""
    if not estimator.needs("confidence"):
        return Check("ok", "confidence", "not needed, the reasoning component has weight 0")
    bypass = OmegaConf.select(config, "algorithm.rollout_correction.bypass_mode")
    rollout = config.actor_rollout_ref.rollout
    if bypass and (rollout.top_p < 1 or rollout.top_k > 0):
        text = "from the sampler's log-probabilities, larger than the policy's because of top_p or top_k"
        return Check("warning", "confidence", text)
    return Check("ok", "confidence", f"from the {'sampler' if bypass else 'old policy'}'s log-probabilities")


def _prompts(config: Any, estimator: AdvantageEstimator, images: bool) -> Check:
    """Tell how many prompts share a std."""
    prompts = adapter.prompts_of(config)
    if prompts is None:
        size = config.data.train_batch_size
        return Check("warning", "prompts", f"data.train_batch_size is {size}: how many share a std is not known")
    return prompts_check(prompts, estimator, images)


def _workers(config: Any) -> Iterator[Check]:
    """Tell whether verl loads the estimator in a worker on each node of the Ray that main_ppo would use."""
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    given = OmegaConf.to_container(config.ray_kwargs.get("ray_init", {}), resolve=True)
    takes_config = inspect.signature(get_ppo_ray_runtime_env).parameters  # since verl 0.9
    own = get_ppo_ray_runtime_env(config) if takes_config else get_ppo_ray_runtime_env()
    environment = {**own, **given.pop("runtime_env", {})}
    external = _external(config) if _external_reaches(adapter.trainer_of(config)) else []
    yield from _ray.asked_on_every_node(_loaded, external, **given, runtime_env=environment)


def _loaded(external_libs: list[str]) -> tuple[bool, str]:
    """Ask verl in this process, a worker's, which may not have durian_adv."""
    import importlib.util
    import sys

    import verl
    from verl.trainer.ppo import core_algos, ray_trainer  # noqa: F401  # before external_libs, as a trainer does

    if importlib.util.find_spec("verl.trainer.ppo.v1") is not None:
        importlib.import_module("verl.trainer.ppo.v1")

    for name in external_libs:
        importlib.import_module(name)
    if "durian" not in core_algos.ADV_ESTIMATOR_REGISTRY:
        return False, "verl does not know the estimator durian; is durian_adv installed there?"
    loaded = sys.modules.get("durian_adv.adapters.verl.estimator")
    if loaded is None:
        return False, "durian_adv did not load"
    absent = [f"; not checked, as it cannot be imported there: {reason}" for reason in loaded.import_changed()]
    if loaded._misfits:
        return False, "; ".join(loaded._misfits)
    return True, f"verl {verl.__version__} loads durian_adv {sys.modules['durian_adv'].__version__}{''.join(absent)}"
