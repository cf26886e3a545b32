"""From rows of images to one entropy per row: each distinct image is computed once, in batches that fit together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from durian_adv.data.scoring.encoders import Encoder
from durian_adv.data.scoring.images import content
from durian_adv.data.scoring.media import Media

_PENDING_BATCHES = 8  # of other sizes, in memory at once


class _Row:
    def __init__(self, number: int, images: int) -> None:
        self.number, self.missing = number, 0
        self.values = [math.nan] * images

    def mean(self) -> float:
        """Return the mean over the row's images; NaN without one, or if one could not be read."""
        return sum(self.values) / len(self.values) if self.values else math.nan


class _Encoding:
    """Images that wait for others to fill a batch, and the rows that wait for them."""

    def __init__(self, encoder: Encoder, known: MutableMapping[bytes, float], batch_size: int) -> None:
        self.encoder, self.known, self.batch_size = encoder, known, batch_size
        self.waiting: dict[bytes, list[tuple[_Row, int]]] = {}
        self.groups: dict[Hashable, list[tuple[bytes, Any]]] = defaultdict(list)

    def add(self, image: Any, root: Path | None, row: _Row, place: int) -> None:
        """Add an image of a row; what is known is taken at once."""
        try:
            held = content(image, root)
        except Exception as error:  # files and what is in them can be wrong in any way
            raise _UnreadableError(error) from error
        if (entropy := self.known.get(held.key)) is not None:
            row.values[place] = entropy
            return
        if held.key not in self.waiting:
            try:
                group, prepared = self.encoder.prepare(held.open())
            except Exception as error:  # decoders raise whatever they please
                raise _UnreadableError(error) from error
            self.waiting[held.key] = []
            self.groups[group].append((held.key, prepared))
        self.waiting[held.key].append((row, place))
        row.missing += 1

    def encode(self, group: Hashable) -> Iterator[tuple[int, float]]:
        """Compute a batch of a group, and yield the rows that it completes."""
        members = self.groups.pop(group)
        if members[self.batch_size :]:  # of a row with many images
            self.groups[group] = members[self.batch_size :]
        keys, prepared = zip(*members[: self.batch_size], strict=True)
        found = dict(zip(keys, self.encoder.entropies(prepared), strict=True))
        self.known.update(found)
        for key, entropy in found.items():
            for row, place in self.waiting.pop(key):
                row.values[place] = entropy
                row.missing -= 1
                if not row.missing:
                    yield row.number, row.mean()

    def encode_full(self) -> Iterator[tuple[int, float]]:
        """Compute what fills a batch, and the fullest group where too many wait."""
        for group in [name for name, members in self.groups.items() if len(members) >= self.batch_size]:
            while len(self.groups.get(group, ())) >= self.batch_size:
                yield from self.encode(group)
        while sum(map(len, self.groups.values())) >= _PENDING_BATCHES * self.batch_size:
            yield from self.encode(max(self.groups, key=lambda g: len(self.groups[g])))


class _UnreadableError(Exception):
    """Why an image cannot be read: its cause."""


def row_entropies(
    rows: Iterable[Media],
    encoder: Encoder,
    known: MutableMapping[bytes, float],
    *,
    batch_size: int,
    root: Path | None,
    unreadable: Callable[[int, int, str], object],
    unscored: Callable[[int, list[str]], object],
) -> Iterator[tuple[int, float]]:
    """Yield each row's number and entropy, as they become known; the mean where a row has several images.

    Args:
        rows: the media of each row.
        encoder: of ``encoders``.
        known: entropies by the hash of the image, which are added to; an error of it is raised.
        batch_size: images that are encoded together.
        root: where relative paths start.
        unreadable: told the row, the image in it, both counted from 0, and why it cannot be read; the row's entropy is
            NaN.
        unscored: told the row and what in it has no visual entropy, such as a video; the row's entropy is NaN.
    """
    encoding = _Encoding(encoder, known, batch_size)
    for number, media in enumerate(rows):
        if media.other:
            unscored(number, media.other)
        images = [] if media.other else media.pictures  # what a part of its input has is not the row's entropy
        row = _Row(number, len(images))
        for place, image in enumerate(images):
            try:
                encoding.add(image, root, row, place)
            except _UnreadableError as error:
                name = f"{image:.200}: " if isinstance(image, str) and not image.startswith("data:") else ""
                unreadable(number, place, f"{name}{type(error.__cause__).__name__}: {error.__cause__}")
        if not row.missing:
            yield number, row.mean()
        yield from encoding.encode_full()
    while encoding.groups:
        yield from encoding.encode(next(iter(encoding.groups)))
