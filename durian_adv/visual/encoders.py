"""Vision encoders by name: from images to their entropies."""

from __future__ import annotations

import importlib
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch
from PIL.Image import Image

from durian_adv import _checks

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

    Returns:
        ``Encoder``: called with images, it returns their entropies.

    Raises:
        ValueError: an unknown layer, kind of features or dtype; limits of pixels where the
            processor has none; a model without weights or without a vision tower.

    >>> load_encoder(layer="stride16", size=224).name
    'efficientnet-lite0, stride16, 224 px'
    """
    _checks.choice("features", features, ("patches", "projected"))
    _checks.choice("dtype", dtype, DTYPES)
    place = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    for option, pixels in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if pixels is not None and _checks.integer(option, pixels, "a number of pixels") < 1:
            raise ValueError(f"{option}: expected at least 1 pixel, got {pixels}")
    if min_pixels is not None and max_pixels is not None and min_pixels > max_pixels:
        raise ValueError(f"min_pixels: expected at most max_pixels, {max_pixels}, got {min_pixels}")
    if name == EFFICIENTNET:
        if min_pixels is not None or max_pixels is not None:
            raise ValueError(f"min_pixels, max_pixels: expected none with {EFFICIENTNET}, which takes size")
        from durian_adv.visual.efficientnet import EfficientNetEncoder

        return EfficientNetEncoder(layer, size, place)
    arguments = name, features, place, getattr(torch, dtype), min_pixels, max_pixels
    adapter = "durian_adv.adapters.transformers_encoder"  # imports transformers, which EfficientNet does without
    return importlib.import_module(adapter).TransformersEncoder(*arguments)  # type: ignore[no-any-return]
