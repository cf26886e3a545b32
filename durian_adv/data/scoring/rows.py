"""From rows of images to one entropy a row: each distinct image is computed once, in batches that fit together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from durian_adv.data.scoring.encoders import Encoder
from durian_adv.data.scoring.images import content, images_of

_PENDING_BATCHES = 8  # of other sizes, in memory at once


class _Row:
    def __init__(self, number: int, images: int) -> None:
        self.number, self.missing = number, 0
        self.values = [math.nan] * images

    def mean(self) -> float:
        """Return the mean over the row's images; NaN without one, or if one could not be read."""
        return sum(self.values) / len(self.values) if self.values else math.nan


def row_entropies(
    cells: Iterable[Any],
    encoder: Encoder,
    known: MutableMapping[bytes, float],
    *,
    batch_size: int,
    root: Path | None,
    unreadable: Callable[[int, int, str], object],
) -> Iterator[tuple[int, float]]:
    """Yield each row's number and entropy, as they become known; the mean where a row has several images.

    Args:
        cells: the images of each row, as ``images.images_of`` takes them.
        encoder: of ``encoders``.
        known: entropies by the hash of the image, which are added to.
        batch_size: images that are encoded together.
        root: where relative paths start.
        unreadable: told the row, the image in it, and why it cannot be read; the row's entropy is NaN.
    """
    waiting: dict[bytes, list[tuple[_Row, int]]] = {}
    groups: dict[Hashable, list[tuple[bytes, Any]]] = defaultdict(list)

    def encode(group: Hashable) -> Iterator[tuple[int, float]]:
        members = groups.pop(group)
        if members[batch_size:]:  # of a row with many images
            groups[group] = members[batch_size:]
        keys, prepared = zip(*members[:batch_size], strict=True)
        found = dict(zip(keys, encoder.entropies(prepared), strict=True))
        known.update(found)
        for key, entropy in found.items():
            for row, place in waiting.pop(key):
                row.values[place] = entropy
                row.missing -= 1
                if not row.missing:
                    yield row.number, row.mean()

    for number, cell in enumerate(cells):
        images = images_of(cell)
        row = _Row(number, len(images))
        touched = set()
        for place, image in enumerate(images):
            try:
                held = content(image, root)
                if (entropy := known.get(held.key)) is not None:
                    row.values[place] = entropy
                    continue
                if held.key not in waiting:
                    group, prepared = encoder.prepare(held.open())
                    waiting[held.key] = []
                    groups[group].append((held.key, prepared))
                    touched.add(group)
            except Exception as error:  # decoders raise whatever they please
                name = f"{image:.200}: " if isinstance(image, str) and not image.startswith("data:") else ""
                unreadable(number, place, f"{name}{type(error).__name__}: {error}")
                continue
            waiting[held.key].append((row, place))
            row.missing += 1
        if not row.missing:
            yield number, row.mean()
        for group in touched:
            while len(groups.get(group, ())) >= batch_size:
                yield from encode(group)
        while sum(map(len, groups.values())) >= _PENDING_BATCHES * batch_size:
            yield from encode(max(groups, key=lambda g: len(groups[g])))
    while groups:
        yield from encode(next(iter(groups)))
