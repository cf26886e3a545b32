"""Images as data sets hold them: files, bytes, pixels; their content's hash, and how they are opened."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

# Pixels, and decoders that start no process (as that of EPS does) and reach for no other file.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_NAMES = (*FORMATS, "MPO")  # what files of these formats may call themselves: some cameras' JPEG holds several images
SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in _NAMES)

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*::?//")  # of any protocol, and fsspec's chains of them
_CHANNELS = (1, 3, 4)  # gray, RGB, RGB and transparency
_SIXTEEN_BITS = ("PNG", "PPM")  # formats whose images of mode I hold 16 bits


class Content(NamedTuple):
    """An image that has not been decoded yet."""

    key: bytes  # a hash of its file, or of what is seen
    open: Callable[[], Image.Image]  # in RGB, as it is meant to be seen


def content(image: Any, root: Path | None = None) -> Content:
    """Read an image's bytes or pixels.

    Taken are a path (below ``root``), a data or file URL, bytes, a PIL image, a uint8 array ``(H, W)`` or
    ``(H, W, C)``, a uint8 tensor ``(H, W)`` or ``(C, H, W)``, or a mapping with ``bytes``, ``path`` or ``image``, as
    the data sets of Hugging Face and verl hold them. Files are of one of ``FORMATS``, whatever their names say; nothing
    is fetched.

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
    if isinstance(image, torch.Tensor):
        image = _channels_last(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise ValueError(f"expected pixels of dtype uint8, got {image.dtype}")
        pixels = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
        image = Image.fromarray(np.ascontiguousarray(pixels))
    if not isinstance(image, Image.Image):
        raise TypeError(f"expected an image, got {type(image).__name__}")
    if isinstance(image, ImageFile.ImageFile) and image.format not in _NAMES:  # its decoder may not have run yet
        raise ValueError(f"expected one of the formats {', '.join(FORMATS)}, got {image.format}")
    picture = _seen(image)  # indices of a palette or a turned sensor's rows are not what is seen
    return Content(hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).digest(), lambda: picture)


def _channels_last(image: torch.Tensor) -> np.ndarray[Any, Any]:
    if image.ndim == 3 and image.shape[0] not in _CHANNELS:
        raise ValueError(f"expected a tensor (channels, height, width), got {tuple(image.shape)}")
    pixels: np.ndarray[Any, Any] = (image if image.ndim < 3 else image.movedim(0, -1)).cpu().numpy()
    return pixels


def _of_bytes(encoded: bytes) -> Content:
    def decode() -> Image.Image:
        try:
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        except UnidentifiedImageError:
            raise ValueError(
                f"expected an image ({', '.join(FORMATS)}), got {len(encoded)} bytes that begin with {encoded[:8]!r}"
            ) from None
        return _seen(image)

    return Content(hashlib.sha256(encoded).digest(), decode)


def _read(where: str, root: Path | None) -> bytes:
    if where.startswith("data:"):
        head, _, body = where.partition(",")
        if not head.endswith(";base64"):
            raise ValueError(f"expected a data URL in base64, got {head!r:.40}")
        return base64.b64decode(body, validate=True)
    where = where.removeprefix("file://")
    if _ADDRESS.match(where):
        raise ValueError(f"expected a file on this machine, got the address {where!r:.80}")
    path = Path(where)
    return (path if root is None else root / path).read_bytes()


def _seen(image: Image.Image) -> Image.Image:
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I;16") or (turned.mode == "I" and image.format in _SIXTEEN_BITS):
        # convert alone would cut off all that is above 255
        turned = Image.fromarray(((np.asarray(turned).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif turned.mode in ("I", "F"):
        raise ValueError(f"expected 8 or 16 bits a channel, got mode {turned.mode}, whose white is not known")
    return turned.convert("RGB")
