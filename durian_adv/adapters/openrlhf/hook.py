"""OpenRLHF: Durian's advantages in place of those of ``group_norm``, in the processes that Ray starts.

``setup`` is the hook for the key ``worker_process_setup_hook`` of a job's runtime environment. It runs in every worker
process, vLLM's among them, so nothing is imported from OpenRLHF here: its modules are changed right after their own
import, where something imports them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import torch
import wrapt

from durian_adv._src import checks, options
from durian_adv._src.errors import ArgumentError, ArgumentTypeError
from durian_adv.data.scoring import towers as vision

HOOK = "durian_adv.adapters.openrlhf.setup"
OPTIONS = "DURIAN_OPTIONS"
ENTROPY_METHOD = "durian_entropy"
TESTED = "0.11.2"
ESTIMATOR = "group_norm"


# eps is OpenRLHF's own, so that weights [1, 0, 0] are its group_norm; the paper's runs add 1e-6
EPS = 1e-9
# options of this adapter beside those of the estimator
TABLE, FEATURES = "entropy_table", "features"


class Settings(NamedTuple):
    """What a run sets: the options of ``AdvantageEstimator``, and where the visual entropy comes from."""

    options: dict[str, Any]
    entropy_table: str | None  # a file with a JSON object from image references, as the dataset has them, to entropies
    features: str  # what an entropy is computed from in the actor: "patches" of the tower, or "projected" tokens


def options_of(environment: Mapping[str, str]) -> Settings:
    """Read the options from the variable ``DURIAN_OPTIONS``: a JSON object, or the path of a file with one.

    Raises:
        TypeError, ValueError: an unknown option or variable, or a value that does not fit, by its full name.
        OSError: the file cannot be read.
    """
    for name in environment:
        if str(name).startswith("DURIAN_") and name != OPTIONS:
            raise ArgumentError(name, f"no other variable than {OPTIONS}, a JSON object or the path of a file")
    text = environment.get(OPTIONS, "")
    if not isinstance(text, str):  # in a file of YAML, an object without quotes
        raise ArgumentTypeError(OPTIONS, "text, a JSON object in quotes or a path", type(text).__name__)
    text = text.strip()
    if text and not text.startswith("{"):
        return _settings(_read_object(text), text)
    return _settings(_as_object(text or "{}", OPTIONS), OPTIONS)


def _settings(given: Mapping[str, Any], where: str) -> Settings:
    known = [*options.OPTIONS, TABLE, FEATURES]
    for name in given:
        if name not in known:
            raise ArgumentError(f"{where}.{name}", f"one of {', '.join(known)}", "an unknown option")
    rest = {name: value for name, value in given.items() if name not in (TABLE, FEATURES)}
    table, features = given.get(TABLE), given.get(FEATURES, "patches")
    checks.choice(f"{where}.{FEATURES}", features, vision.FEATURES)
    if not isinstance(table, str | None):
        raise ArgumentTypeError(f"{where}.{TABLE}", "the path of a file", type(table).__name__)
    return Settings(options.checked({"eps": EPS, **rest}, f"{where}."), table, features)


def read_table(file: str) -> dict[str, float]:
    """Read a table from image references to entropies; null means that the image has none.

    Raises:
        TypeError, ValueError: not a JSON object of numbers.
        OSError: the file cannot be read.
    """
    table = _read_object(file)
    return {name: float("nan") if x is None else checks.number(f"{file}[{name!r}]", x) for name, x in table.items()}


def _read_object(file: str) -> dict[str, Any]:
    return _as_object(Path(file).read_text(encoding="utf-8"), file)


def _as_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ArgumentError(where, "a JSON object", error) from None
    if not isinstance(value, dict):
        raise ArgumentError(where, "a JSON object", type(value).__name__)
    return value


def setup() -> None:
    """Change OpenRLHF in this process, once it is imported: the hook for ``worker_process_setup_hook``.

    Ray ends a worker whose hook raises, and the error reaches the driver with the first actor.

    Raises:
        TypeError, ValueError, OSError: the options cannot be used.
    """
    options_of(os.environ)
    wrapt.register_post_import_hook(_change_trainer, "openrlhf.trainer.ppo_trainer")
    wrapt.register_post_import_hook(_change_models, "openrlhf.trainer.ray.launcher")


def _change_trainer(ppo_trainer: ModuleType) -> None:
    try:
        from durian_adv.adapters.openrlhf import maker

        maker.install()
    except Exception as error:  # an import that failed here would succeed the next time, and leave group_norm
        if isinstance(error, ImportError | AttributeError):
            error = misfit(f"{type(error).__name__}: {error}")
        ppo_trainer.RemoteExperienceMaker = functools.partial(_refuse, error)  # type: ignore[attr-defined]  # a module


def _refuse(error: Exception, *_: object, **__: object) -> NoReturn:
    raise error


def _change_models(launcher: ModuleType) -> None:
    # on the base: Ray sends the actors' classes themselves from the driver, where nothing is changed
    base = getattr(launcher, "BaseModelActor", None)
    if base is not None:  # else the trainer refuses this OpenRLHF
        setattr(base, ENTROPY_METHOD, durian_entropy)


def misfit(what: str) -> RuntimeError:
    """Return the error for an OpenRLHF that has not what is used of it."""
    try:
        found = importlib.metadata.version("openrlhf")
    except importlib.metadata.PackageNotFoundError:
        found = "of an unknown version"
    return RuntimeError(
        f"OpenRLHF {found} does not fit durian_adv.adapters.openrlhf, which was tested with {TESTED}: {what}"
    )


def durian_entropy(self: Any, mm_train_inputs: Mapping[str, Any], features: str) -> float:
    """Return the mean entropy of a prompt's images: a method of OpenRLHF's model actors.

    ``mm_train_inputs`` is what OpenRLHF keeps of the processor's output. The vision tower runs on it once more.
    """
    from openrlhf.utils.vlm_utils import merge_mm_train_inputs

    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    inputs = merge_mm_train_inputs([mm_train_inputs], device)
    self.actor.eval()
    try:
        return tower_entropy(self.actor.model, inputs, features)
    finally:
        self.actor.train()  # as OpenRLHF leaves it


def tower_entropy(model: Any, inputs: Mapping[str, Any], features: str) -> float:
    """Run the vision tower of a model, or of an engine around it, on one prompt's images; return their mean entropy."""
    model = getattr(model, "module", model)
    found = vision.find_vision(model)
    if found is None:
        raise ArgumentError(
            "visual_entropy",
            f"a vision tower, visual_entropy in extra_logs of the reward function, an {TABLE}, or 0 for "
            f"{OPTIONS}.weights[1]",
            f"{type(model).__name__}, in which no tower was found",
        )
    grid = inputs.get("image_grid_thw")
    images = len(inputs["pixel_values"] if grid is None else grid)
    (entropy,) = vision.tower_entropies(model, found, features, {**inputs, "num_images": [images]}, [0])
    return entropy  # type: ignore[no-any-return]  # a list of floats
