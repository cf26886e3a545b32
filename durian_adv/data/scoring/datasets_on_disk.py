"""Data sets that the library datasets saved on disk (``save_to_disk``), one or several splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from durian_adv.data.scoring.data import EXTRA
from durian_adv.data.scoring.scorer import COLUMN, image_column


class DatasetOnDisk:
    """The rows of all splits, one after the other; images are read as they were saved, not decoded."""

    def __init__(self, path: Path, images: str | None, root: Path | None) -> None:
        self.root = root
        self._whole = datasets.load_from_disk(str(path))
        several = isinstance(self._whole, datasets.DatasetDict)
        self._splits = dict(self._whole) if several else {None: self._whole}
        for name, split in self._splits.items():
            where = f"{path}" if name is None else f"{path}, split {name}"
            if COLUMN in split.column_names:
                raise ValueError(f"{where}: expected no column {COLUMN!r}, which is to be written, got one")
            if not isinstance(told := split.features.get(EXTRA, {}), dict):
                raise ValueError(f"{where}: expected a column {EXTRA!r} of structs, got {told}")
        self._images = {name: image_column(split.column_names, images) for name, split in self._splits.items()}

    def __len__(self) -> int:
        return sum(map(len, self._splits.values()))

    def cells(self) -> Iterator[Any]:
        """Return the images of each row as bytes and paths."""
        for name, split in self._splits.items():
            column = self._images[name]
            one = split.with_format(None).select_columns([column])
            for row in one.cast_column(column, _encoded(one.features[column])):
                yield row[column]

    def write(self, entropies: Sequence[float], output: Path, extra_info: bool) -> None:
        """Save all splits with their entropies."""
        start, written = 0, {}
        for name, split in self._splits.items():
            values = list(entropies[start : start + len(split)])
            start += len(split)
            grown = split.add_column(COLUMN, values, feature=datasets.Value("float64"))
            if extra_info or EXTRA in split.column_names:
                kept = split.select_columns([EXTRA])[EXTRA] if EXTRA in split.column_names else [None] * len(split)
                told = [{**(info or {}), COLUMN: value} for info, value in zip(kept, values, strict=True)]
                feature = {**split.features.get(EXTRA, {}), COLUMN: datasets.Value("float64")}
                if EXTRA in grown.column_names:
                    grown = grown.remove_columns(EXTRA)
                grown = grown.add_column(EXTRA, told, feature=feature)
            written[name] = grown
        whole = written[None] if None in written else datasets.DatasetDict(written)
        whole.save_to_disk(str(output))


def _encoded(feature: Any) -> Any:
    """Return the same feature with images that are not decoded."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.Sequence | datasets.features.List | list):
        inner = feature[0] if isinstance(feature, list) else feature.feature
        return [_encoded(inner)] if isinstance(feature, list) else type(feature)(_encoded(inner))
    return feature
