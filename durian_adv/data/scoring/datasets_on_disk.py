"""Data sets that the library datasets saved on disk (``save_to_disk``), one or several splits."""

from __future__ import annotations

import bisect
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from durian_adv.data.scoring.extra_info import COLUMN, EXTRA, check_columns
from durian_adv.data.scoring.media import Media, column_of_images, media_of

_ROWS = 256  # at a time


class DatasetOnDisk:
    """The rows of all splits, one after the other, as they were saved: nothing is decoded, fetched or embedded.

    The library embeds in what it saves every file or address that a cell of an image, sound or video names. A data set
    from somebody else would so reach for the network, or take a file of this machine into what is published later.
    Rows are therefore saved without their features, as plain structs of bytes and paths; the features are written
    beside them afterwards.
    """

    kinds: tuple[str, ...] = ("",)

    def __init__(self, path: Path, images: str | None, root: Path | None) -> None:
        self.root = root
        self._path = path
        try:
            whole = datasets.load_from_disk(str(path))
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: expected a data set saved by datasets, got {type(error).__name__}: {error}"
            ) from None
        several = isinstance(whole, datasets.DatasetDict)
        self._splits: dict[str | None, Any] = dict(whole) if several else {None: whole}
        for name, split in self._splits.items():
            check_columns(split.column_names, self._split(name))
            if not isinstance(kind := split.features.get(EXTRA, {}), dict):
                raise ValueError(f"{self._split(name)}: expected a column {EXTRA!r} of structs, got {kind}")
        self._images = {name: column_of_images(split.column_names, images) for name, split in self._splits.items()}
        self._ends = list(itertools.accumulate(map(len, self._splits.values())))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def rows(self) -> Iterator[Media]:
        """Return the media of each row."""
        for name, split in self._splits.items():
            for batch in _plain(split).with_format("arrow").iter(_ROWS):
                yield from (media_of(row, self._images[name]) for row in batch.to_pylist())

    def where(self, row: int) -> str:
        """Return the split and its row."""
        number = bisect.bisect_right(self._ends, row)
        before = self._ends[number - 1] if number else 0
        return f"{self._split(list(self._splits)[number])}, row {row - before + 1}"

    def write(self, entropies: Sequence[float], output: Path, extra_info: bool) -> None:
        """Save all splits with their entropies; see ``data.Source``."""
        written, features = {}, {}
        for (name, split), (start, end) in zip(self._splits.items(), itertools.pairwise([0, *self._ends]), strict=True):
            wanted = extra_info or EXTRA in split.column_names
            written[name] = _with_columns(_plain(split), list(entropies[start:end]), wanted)
            value = datasets.Value("float64")
            features[name] = {**split.features, COLUMN: value}
            if wanted:
                features[name][EXTRA] = {**split.features.get(EXTRA, {}), COLUMN: value}
        whole = written[None] if None in written else datasets.DatasetDict(written)
        with _bars_on_terminals():
            whole.save_to_disk(str(output))
        for name, split in self._splits.items():
            info = split.info.copy()
            info.features = datasets.Features({column: features[name][column] for column in written[name].column_names})
            info.write_to_directory(str(output if name is None else output / name))

    def _split(self, name: str | None) -> str:
        return f"{self._path}" if name is None else f"{self._path}, split {name}"


def _plain(split: Any) -> Any:
    """Return the rows without their features, of which those of media reach for files and addresses."""
    table = split.data.replace_schema_metadata(None)
    return datasets.Dataset(table, split=split.split, indices_table=split._indices)


def _with_columns(split: Any, values: list[float], extra_info: bool) -> Any:
    value = datasets.Value("float64")
    grown = split.add_column(COLUMN, values, feature=value)
    if not extra_info:
        return grown
    there = EXTRA in split.column_names
    kept = split.select_columns([EXTRA])[EXTRA] if there else [None] * len(split)
    told = [{**(info or {}), COLUMN: entropy} for info, entropy in zip(kept, values, strict=True)]
    feature = {**(split.features[EXTRA] if there else {}), COLUMN: value}
    return (grown.remove_columns(EXTRA) if there else grown).add_column(EXTRA, told, feature=feature)


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    before = datasets.are_progress_bars_disabled()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            datasets.enable_progress_bars()
