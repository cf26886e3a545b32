"""Vision encoders by name: from images to their entropies."""

from __future__ import annotations

import importlib
import math
import operator
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch
from PIL.Image import Image

from durian_adv._src import checks
from durian_adv._src.errors import ArgumentError, ArgumentTypeError

EFFICIENTNET = "efficientnet-lite0"
DTYPES = ("float32", "bfloat16", "float16")


class Encoder(Protocol):
    """What turns images into entropies, batch by batch."""

    @property
    def name(self) -> str:
        """All that entropies depend on beside the image; those of one name may be kept together."""

    def prepare(self, image: Image) -> tuple[Hashable, Any]:
        """Return the encoder's input for an RGB image, and what inputs of one batch must have in common."""

    def entropies(self, prepared: Sequence[Any]) -> list[float]:
        """Return one entropy, in nats, for each input of a batch."""


def load_encoder(
    name: str = EFFICIENTNET,
    *,
    features: str = "patches",
    layer: str = "head",
    size: int = 448,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    resize_first: Sequence[int] | None = None,
) -> Encoder:
    """Load a frozen vision encoder.

    Args:
        name: ``"efficientnet-lite0"``, whose weights come in a package; or the name or the folder of a model of
            transformers: a vision-language model (of which only the vision tower is kept), or a vision model.
        features: ``"patches"``, a vision-language model's before they are merged or projected, or ``"projected"``, the
            tokens that the language model sees.
        layer: of EfficientNet: ``"stride8"``, ``"stride16"``, ``"stride32"`` or ``"head"``.
        size: of EfficientNet: side of the square that images are resized to. Others resize by their own processor.
        device: where it runs; a GPU where there is one by default.
        dtype: of a model of transformers: ``"float32"``, ``"bfloat16"`` or ``"float16"``. The eigenvalues are computed
            in float32 in any case.
        min_pixels: images of fewer are enlarged, by a model of transformers whose processor has such limits (Qwen's);
            its own limit by default.
        max_pixels: images of more are made smaller.
        resize_first: two numbers of pixels, between which every image is brought before it goes to the encoder and its
            processor: as by a trainer, such as EasyR1, that resizes images itself.

    Returns:
        ``Encoder``: called with images, it returns their entropies.

    Raises:
        TypeError, ValueError: an unknown layer, kind of features or dtype; a device that is not there; limits of pixels
            that are none, or where the processor has none; a model without weights or without a vision tower.

    >>> load_encoder(layer="stride16", size=224).name
    'efficientnet-lite0, stride16, 224 px'
    """
    checks.choice("features", features, ("patches", "projected"))
    checks.choice("dtype", dtype, DTYPES)
    place = _place(device)
    for option, pixels in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if pixels is not None:
            _check_pixels(option, pixels)
    if min_pixels is not None and max_pixels is not None and min_pixels > max_pixels:
        raise ArgumentError("min_pixels", f"at most max_pixels, {max_pixels}", min_pixels)
    if resize_first is not None:
        _check_pair("resize_first", resize_first)
    if name == EFFICIENTNET:
        if min_pixels is not None or max_pixels is not None:
            raise ArgumentError("min_pixels, max_pixels", f"none with {EFFICIENTNET}, which takes size")
        from durian_adv.data.scoring.efficientnet import EfficientNetEncoder

        encoder: Encoder = EfficientNetEncoder(layer, size, place)
    else:
        adapter = (
            "durian_adv.data.scoring.transformers_encoder"  # imports transformers, which EfficientNet does without
        )
        arguments = name, features, place, getattr(torch, dtype), min_pixels, max_pixels
        encoder = importlib.import_module(adapter).TransformersEncoder(*arguments)
    return encoder if resize_first is None else _ResizedFirst(encoder, *resize_first)


class _ResizedFirst:
    """An encoder that sees images after they were resized."""

    def __init__(self, encoder: Encoder, least: int, most: int) -> None:
        self.name = f"{encoder.name}, resized to {least} to {most} pixels first"
        self._encoder, self._least, self._most = encoder, least, most

    def prepare(self, image: Image) -> tuple[Hashable, Any]:
        """Resize, and leave the rest to the encoder."""
        for limit, outside in ((self._most, operator.gt), (self._least, operator.lt)):
            if outside(pixels := image.width * image.height, limit):
                scale = math.sqrt(limit / pixels)
                image = image.resize((int(image.width * scale), int(image.height * scale)))
        return self._encoder.prepare(image)

    def entropies(self, prepared: Sequence[Any]) -> list[float]:
        """Return those of the encoder."""
        return self._encoder.entropies(prepared)


def _place(device: str | torch.device | None) -> torch.device:
    """Return the device, after a look whether it is there."""
    try:
        place = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts that it has it
        why = f"{error}".splitlines()[0]
        raise ArgumentError("device", "a device that is available", f"{str(device)!r} ({why})") from None
    return place


def _check_pair(name: str, pair: object) -> None:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise ArgumentTypeError(name, "two numbers of pixels", repr(pair))
    for place, pixels in enumerate(pair):
        _check_pixels(f"{name}[{place}]", pixels)
    if pair[0] > pair[1]:
        raise ArgumentError(name, "the smaller number first", repr(pair))


def _check_pixels(name: str, pixels: object) -> None:
    if (number := checks.integer(name, pixels, "a number of pixels")) < 1:
        raise ArgumentError(name, "at least 1 pixel", number)
