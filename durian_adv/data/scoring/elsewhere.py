"""Media in columns that nobody has named: told by what a cell holds, its bytes or how a path ends."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from durian_adv.data.scoring.images import SUFFIXES

_ENDS = {
    "an image": SUFFIXES,
    "a video": frozenset([".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"]),
    "a sound": frozenset([".aac", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma"]),
    "a file": frozenset([".doc", ".docx", ".pdf", ".ppt", ".pptx"]),
}
_URL = {"data:image/": "an image", "data:video/": "a video", "data:audio/": "a sound"}
_BEGINS = (
    (rb"\x89PNG|\xff\xd8\xff|GIF8|BM.{4}\0\0|II\*\0|MM\0\*|RIFF.{4}WEBP|.{4}ftyp(?:avi|hei|mif)", "an image"),
    (rb".{4}ftypM4A|RIFF.{4}WAVE|ID3|\xff[\xf2\xf3\xfb]|fLaC|OggS", "a sound"),
    (rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI |FLV\x01|\0\0\x01[\xb3\xba]", "a video"),
    (rb"%PDF|PK\x03\x04", "a file"),
)
_LONGEST = 1024  # characters of a path; longer texts are texts


def medium_of(cell: Any) -> str | None:
    """Return what medium a cell holds, "an image", "a video", "a sound" or "a file"; None where it holds none.

    >>> medium_of("clips/a.mp4"), medium_of({"bytes": b"ID3 ..."}), medium_of(["Is it in clip.mp4?", 3])
    ('a video', 'a sound', None)
    """
    if isinstance(cell, str):
        return _of_text(cell)
    if isinstance(cell, bytes):
        return next((kind for begin, kind in _BEGINS if re.match(begin, cell[:16], re.DOTALL)), None)
    if isinstance(cell, Image.Image):
        return "an image"
    if isinstance(cell, np.ndarray | torch.Tensor) and "uint8" in str(cell.dtype):
        return {3: "an image", 4: "a video"}.get(cell.ndim)
    return next((kind for part in _parts(cell) if (kind := medium_of(part)) is not None), None)


def _parts(cell: Any) -> Iterator[Any]:
    if isinstance(cell, Mapping):
        yield from cell.values()
    elif isinstance(cell, list | tuple) or (isinstance(cell, np.ndarray) and cell.dtype.kind in "OSU"):
        # a list of numbers, as of tokens, may be long, and holds nothing
        yield from () if len(cell) and isinstance(cell[0], int | float) else cell


def _of_text(text: str) -> str | None:
    start = text[:11].lower()
    if start in _URL:
        return _URL[start]
    path = re.split(r"[?#]", text.strip())[0] if "://" in text else text.strip()
    # a sentence may end in a name; a path with spaces has folders
    if len(path) > _LONGEST or "\n" in path or (" " in path and not re.match(r"\S*[/\\]", path)):
        return None
    end = path[path.rfind(".") :].lower() if "." in path else ""
    return next((kind for kind, ends in _ENDS.items() if end in ends), None)
