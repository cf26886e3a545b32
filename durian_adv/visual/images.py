"""Images as data sets hold them: files, bytes, pixels; their content's hash, and how they are opened."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


class Content(NamedTuple):
    """An image that has not been decoded yet."""

    key: bytes  # a hash of what it holds
    open: Callable[[], Image.Image]  # in RGB, as it is meant to be seen


def images_of(cell: Any) -> list[Any]:
    """Return the images of a row's cell: none, one, or a list of them."""
    if cell is None:
        return []
    if isinstance(cell, np.ndarray):
        return list(cell) if cell.dtype.kind in "OSU" or cell.ndim == 4 else [cell]
    if isinstance(cell, Sequence) and not isinstance(cell, (str, bytes)):
        return list(cell)
    return [cell]


def content(image: Any, root: Path | None = None) -> Content:
    """Read an image's bytes or pixels.

    Taken are a path (below ``root``), a data or file URL, bytes, a PIL image, a uint8 array, or a mapping with
    ``bytes``, ``path`` or ``image``, as the data sets of Hugging Face and verl hold them.

    Raises:
        OSError, ValueError, TypeError: there is no such file, or this is no image.
    """
    if isinstance(image, Mapping):
        for name in ("bytes", "path", "image"):
            if image.get(name) is not None:
                return content(image[name], root)
        raise ValueError(f"expected bytes, a path or an image, got a mapping of {sorted(image)}")
    if isinstance(image, (str, Path)):
        return _of_bytes(_read(str(image), root))
    if isinstance(image, bytes):
        return _of_bytes(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise ValueError(f"expected pixels of dtype uint8, got {image.dtype}")
        pixels = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
        image = Image.fromarray(np.ascontiguousarray(pixels))
    if not isinstance(image, Image.Image):
        raise TypeError(f"expected an image, got {type(image).__name__}")
    picture = image
    layout = f"{picture.mode} {picture.size} {picture.getexif().get(0x0112)}".encode()  # with the orientation
    return Content(hashlib.sha256(layout + picture.tobytes()).digest(), lambda: _seen(picture))


def _of_bytes(encoded: bytes) -> Content:
    def decode() -> Image.Image:
        try:
            image = Image.open(io.BytesIO(encoded))
        except UnidentifiedImageError:
            raise ValueError(f"expected an image, got {len(encoded)} bytes that begin with {encoded[:8]!r}") from None
        return _seen(image)

    return Content(hashlib.sha256(encoded).digest(), decode)


def _read(where: str, root: Path | None) -> bytes:
    if where.startswith("data:"):
        head, _, body = where.partition(",")
        if not head.endswith(";base64"):
            raise ValueError(f"expected a data URL in base64, got {head!r:.40}")
        return base64.b64decode(body, validate=True)
    if where.startswith(("http://", "https://")):
        raise ValueError(f"expected an image that is here, got the address {where!r:.80}")
    path = Path(where.removeprefix("file://"))
    return (path if root is None else root / path).read_bytes()


def _seen(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image).convert("RGB")
