"""What a row of a data set shows a model: images, frames of videos, and what has no visual entropy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from durian_adv.data.scoring.elsewhere import medium_of

IMAGES, CHATS, VIDEOS, SOUNDS = ("images", "image"), ("messages", "prompt"), ("videos", "video"), ("audios", "audio")
_OTHER_PARTS = ("file", "input_file", "document")  # of a message


class Media(NamedTuple):
    """The media of one row."""

    pictures: list[Any]  # what images.content takes
    other: list[str]  # what cannot be scored, in words
    beside: tuple[str, ...] = ()  # what columns of any other name hold beside the pictures, in words


def column_of_images(columns: Sequence[str], wanted: str | None) -> str | None:
    """Return the column that holds the images; None where a column of videos alone may have some, frame by frame.

    Without a wish it is ``images``, or else ``image``, or else ``messages``.

    Raises:
        ValueError: no such column.
    """
    names = (*IMAGES, CHATS[0]) if wanted is None else (wanted,)
    for name in names:
        if name in columns:
            return name
    if wanted is None and any(name in columns for name in VIDEOS):
        return None
    expected = " or ".join(map(repr, names))
    raise ValueError(f"images: expected a column {expected}, got {', '.join(columns) or 'none'}")


def media_of(row: Mapping[str, Any], images: str | None) -> Media:
    """Return the media of a row.

    A list inside a column of images is the frames of a video; a list of chat messages has its images in their parts.
    What a column of any other name holds is an input, too, that is not scored, if the row has no pictures; else it is
    named beside them.

    >>> media_of({"images": ["a.png", ["b.png", "c.png"]], "video": "d.mp4"}, "images")
    Media(pictures=['a.png', 'b.png', 'c.png'], other=['a video'], beside=())
    >>> parts = [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "?"}]
    >>> media_of({"messages": [{"role": "user", "content": parts}]}, "messages")
    Media(pictures=['a.png'], other=[], beside=())
    >>> media_of({"images": None, "clip": "a.mp4"}, "images").other
    ["a video in the column 'clip'"]
    """
    found = Media([], []) if images is None else pictures_of(row.get(images))
    for name in VIDEOS:
        if name != images and (videos := row.get(name)) is not None:
            for video in [videos] if name == "video" else _items(videos):
                _add_video(video, found)
    for name in SOUNDS:
        if name != images and row.get(name) is not None and len(_items(row[name])):
            found.other.append("a sound")
    for name in CHATS:
        if name != images and _is_chat(chat := row.get(name)):
            inside = pictures_of(chat)
            found.other.extend(inside.other)
            if inside.pictures and not found.pictures:
                found.other.append(f"an image in the column {name!r}")
    named = {images, *VIDEOS, *SOUNDS, *CHATS}
    held = {name: medium_of(cell) for name, cell in row.items() if name not in named}
    elsewhere = [f"{kind} in the column {name!r}" for name, kind in held.items() if kind is not None]
    if found.pictures:
        return found._replace(beside=tuple(elsewhere))
    found.other.extend(elsewhere)
    return found


def pictures_of(cell: Any) -> Media:
    """Return the media of one cell of a column of images, or of chat messages."""
    found = Media([], [])
    if _is_chat(cell):
        for part in _parts(cell):
            _add_part(part, found)
        return found
    for item in _items(cell):
        if isinstance(item, Mapping) and item.get("video") is not None:
            _add_video(item, found)
        elif isinstance(item, list | tuple):
            found.pictures.extend(item)  # frame by frame
        else:
            found.pictures.append(item)
    return found


def _items(cell: Any) -> Sequence[Any]:
    if cell is None:
        return []
    if isinstance(cell, np.ndarray):
        return list(cell) if cell.dtype.kind in "OSU" or cell.ndim == 4 else [cell]
    if isinstance(cell, torch.Tensor):
        return list(cell) if cell.ndim == 4 else [cell]
    if isinstance(cell, Sequence) and not isinstance(cell, (str, bytes)):
        return list(cell)
    return [cell]


def _is_chat(cell: Any) -> bool:
    return (
        isinstance(cell, list | tuple | np.ndarray)
        and len(cell) > 0
        and all(isinstance(message, Mapping) and "role" in message for message in cell)
    )


def _parts(chat: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for message in chat:
        content = message.get("content")
        if isinstance(content, list | tuple | np.ndarray):
            yield from (part for part in content if isinstance(part, Mapping))


def _add_part(part: Mapping[str, Any], found: Media) -> None:
    """Add the medium of a part of a message; one without content, as ``{"type": "image"}``, stands for another's."""
    held = {name: value for name, value in part.items() if value is not None}
    kind = str(held.pop("type", next(iter(held), "")))
    if "video" in kind:
        if held:
            _add_video(held.get("video", held), found)
    elif "image" in kind:
        if held:
            image = next((held[name] for name in ("image", "image_url", "url", "path", "bytes") if name in held), held)
            found.pictures.append(image["url"] if isinstance(image, Mapping) and "url" in image else image)
    elif "audio" in kind and held:
        found.other.append("a sound")
    elif kind in _OTHER_PARTS and held:
        found.other.append("a file")


def _add_video(video: Any, found: Media) -> None:
    """Add the frames of a video, where it is a list of them."""
    if isinstance(video, Mapping):
        held = {name: value for name, value in video.items() if value is not None and name != "type"}
        video = held.get("video", held or None)
    if video is None:
        return
    if isinstance(video, list | tuple) or (isinstance(video, np.ndarray | torch.Tensor) and video.ndim != 3):
        found.pictures.extend(video)
    else:
        found.other.append("a video")
