"""Entropies from the vision tower of any model of transformers: a vision-language model's, or a vision model."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from PIL.Image import Image
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

# transformers 5.10 gives it from the top to those alone who have torchvision
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import logging

from durian_adv import eigen_entropy
from durian_adv._src.errors import ArgumentError
from durian_adv.data.scoring import towers as tower_features

_LANGUAGE_MODELS = ("language_model", "text_model")


class TransformersEncoder:
    """A frozen vision tower with its image processor; see ``durian_adv.data.scoring.load_encoder``."""

    def __init__(
        self,
        path: str,
        features: str,
        device: torch.device,
        dtype: torch.dtype,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        model = _load(path, dtype)
        self._processor = AutoImageProcessor.from_pretrained(path, use_fast=False)  # the one that needs no torchvision
        self._size = _pixel_limits(self._processor, path, min_pixels, max_pixels)
        self._features = features
        self._vision = tower_features.find_vision(model)
        if self._vision is None:
            if hasattr(model, "vision_model"):
                model = model.vision_model  # of CLIP and its like
            elif model.main_input_name != "pixel_values":
                raise ArgumentError(path, "a model with a vision tower", type(model).__name__)
            if features != "patches":
                raise ArgumentError("features", "'patches' of a vision model, where nothing projects", repr(features))
        for name in _LANGUAGE_MODELS:
            if hasattr(model, name):
                setattr(model, name, None)  # most of the weights, and none of the entropy
        self.name = f"{path}, {features}, {dtype}, {_fingerprint(model, self._processor, self._size)}"
        self._model = model.to(device).eval().requires_grad_(False)
        self._device, self._dtype = device, dtype

    def prepare(self, image: Image) -> tuple[Hashable, dict[str, Tensor]]:
        """Run the processor on one image."""
        # said, as the height of an image of 1 or 3 rows is taken for its channels otherwise
        inputs: dict[str, Tensor] = dict(
            self._processor(images=[image], input_data_format="channels_last", return_tensors="pt", **self._size)
        )
        if "image_grid_thw" in inputs:
            return None, inputs  # packed, so images of any size go together
        return tuple((name, tuple(value.shape)) for name, value in sorted(inputs.items())), inputs

    @torch.inference_mode()
    def entropies(self, prepared: Sequence[dict[str, Tensor]]) -> list[float]:
        """Run the tower on a batch."""
        batch: dict[str, Any] = {
            name: torch.cat([one[name] for one in prepared]).to(self._device) for name in prepared[0]
        }
        batch["pixel_values"] = batch["pixel_values"].to(self._dtype)
        if self._vision is None:
            states = self._model(**batch).last_hidden_state
            return eigen_entropy(self._patches(states, batch["pixel_values"])).tolist()
        batch["num_images"] = [1] * len(prepared)
        samples = list(range(len(prepared)))
        found: list[float] = tower_features.tower_entropies(self._model, self._vision, self._features, batch, samples)
        return found

    def _patches(self, states: Tensor, pixels: Tensor) -> Tensor:
        """Return patches ``(B, P, D)``, without the class and register tokens that stand before them."""
        if states.ndim == 4:  # of a convolutional network
            return rearrange(states, "b d h w -> b (h w) d")
        side = getattr(self._model.config, "patch_size", None)
        if not isinstance(side, int):
            return states
        patches = (pixels.shape[-2] // side) * (pixels.shape[-1] // side)
        return states[:, max(0, states.shape[1] - patches) :]


def _load(path: str, dtype: torch.dtype) -> Any:
    language = type(AutoConfig.from_pretrained(path)) in AutoModelForImageTextToText._model_mapping
    # a vision-language model as a whole, as transformers 4 does not find the weights of every one of its parts
    auto = AutoModelForImageTextToText if language else AutoModel
    with _quiet():
        model, report = auto.from_pretrained(path, dtype=dtype, output_loading_info=True)
    # weights that are not there are drawn at random; a pooling head is not used
    missing = sorted(name for name in report["missing_keys"] if "pool" not in name and "head" not in name)
    if missing:
        raise ValueError(
            f"{path}: expected all weights of {type(model).__name__}, got none for {missing[0]} and "
            f"{len(missing) - 1} more"
        )
    return model.model if language else model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from telling what is said here, and from progress bars where nobody watches."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # what is missing is said by _load, and what is not used does not matter
    if bars and not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _pixel_limits(processor: Any, path: str, least: int | None, most: int | None) -> dict[str, dict[str, int]]:
    """Return the size to say with every image, where it is a range of numbers of pixels, as for Qwen's processors."""
    size: dict[str, int] = {}
    if hasattr(processor, "merge_size"):
        # read again, as the processor of transformers 4 forgets a size that its file tells, such as Qwen3-VL's
        told, _ = type(processor).get_image_processor_dict(path)
        limits = {"shortest_edge": told.get("min_pixels"), "longest_edge": told.get("max_pixels")}
        size = dict(processor.size) | (told.get("size") or {}) | {k: v for k, v in limits.items() if v is not None}
    if "shortest_edge" not in size or "longest_edge" not in size:
        if least is None and most is None:
            return {}
        expected = f"none with {type(processor).__name__}, which does not resize by them"
        raise ArgumentError("min_pixels, max_pixels", expected)
    low = size["shortest_edge"] if least is None else least
    high = size["longest_edge"] if most is None else most
    if low > high:
        raise ArgumentError("min_pixels", f"at most max_pixels, {high}", low)
    return {"size": {"shortest_edge": low, "longest_edge": high}}


def _fingerprint(model: Any, processor: Any, size: dict[str, Any]) -> str:
    """Tell weights and settings apart: entropies of others must not be taken for theirs."""
    digest = hashlib.sha256(f"{model.config.to_json_string()}{processor.to_json_string()}{size}".encode())
    for name, values in model.state_dict().items():
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
