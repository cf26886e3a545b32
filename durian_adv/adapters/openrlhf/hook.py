"""OpenRLHF: Durian's advantages in place of those of ``group_norm``, in the processes that Ray starts.

``setup`` is the hook for the key ``worker_process_setup_hook`` of a job's runtime environment. It runs in every worker
process, vLLM's among them, so nothing is imported from OpenRLHF here: its modules are changed right after their own
import, where something imports them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NoReturn

import torch
import wrapt

from durian_adv._src.errors import ArgumentError
from durian_adv.adapters.openrlhf.settings import ENTROPY_METHOD, OPTIONS, TABLE, misfit, options_of
from durian_adv.data.scoring import towers as vision


def setup() -> None:
    """Change OpenRLHF in this process, once it is imported: the hook for ``worker_process_setup_hook``.

    Ray ends a worker whose hook raises, and the error reaches the driver with the first actor.

    Raises:
        TypeError, ValueError: the options cannot be used.
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
