"""Parquet files with images, one or a folder of them, read and written a few rows at a time."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from durian_adv.data import tables
from durian_adv.data.scoring.extra_info import EXTRA, check_columns, with_columns
from durian_adv.data.scoring.media import Media, column_of_images, media_of

_ROWS = 256  # of a file at a time


class Parquet:
    """A parquet file; what is written has its columns, types, metadata and compression."""

    kinds: tuple[str, ...] = (".parquet",)

    def __init__(self, path: Path, images: str | None, root: Path) -> None:
        self.root: Path | None = root
        self._path = path
        self._schema = tables.open_parquet(path).schema_arrow
        names = self._schema.names
        check_columns(names, f"{path}")
        if EXTRA in names and not pa.types.is_struct(kind := self._schema.field(EXTRA).type):
            raise ValueError(f"{path}: expected a column {EXTRA!r} of structs, got {kind}")
        self._images = column_of_images(names, images)
        # numbers and dates are no media
        self._media = [field.name for field in self._schema if not pa.types.is_primitive(field.type)]

    def __len__(self) -> int:
        return int(tables.open_parquet(self._path).metadata.num_rows)

    def rows(self) -> Iterator[Media]:
        """Return the columns of media."""
        for rows in self._batches(self._media):
            yield from (media_of(row, self._images) for row in rows.to_pylist())

    def where(self, row: int) -> str:
        """Return the file and the row."""
        return tables.where(self._path, row + 1)

    def write(self, entropies: Sequence[float], output: Path, extra_info: bool) -> None:
        """Write the output; see ``data.Source``."""
        start = 0
        kept = tables.compression(tables.open_parquet(self._path))
        empty = self._schema.empty_table()
        schema = with_columns(empty, pa.array([], pa.float64()), extra_info).schema
        with tables.parquet_writer(output, schema, kept) as writer:
            for rows in self._batches(None):
                values = pa.array(entropies[start : start + len(rows)], pa.float64())
                start += len(rows)
                table = pa.Table.from_batches([rows]).replace_schema_metadata(self._schema.metadata)
                writer.write_table(with_columns(table, values, extra_info))

    def _batches(self, columns: Sequence[str] | None) -> Iterator[Any]:
        with tables.arrow_errors(self._path):
            batches = tables.open_parquet(self._path).iter_batches(_ROWS, columns=columns)
        while True:
            with tables.arrow_errors(self._path):  # of what is read, not of what is written meanwhile
                rows = next(batches, None)
            if rows is None:
                return
            yield rows


class Shards:
    """All parquet files of a folder and those below it, by their names; what is written is a folder of the same."""

    kinds: tuple[str, ...] = ("",)

    def __init__(self, path: Path, files: Sequence[Path], images: str | None, root: Path) -> None:
        self.root: Path | None = root
        self._path = path
        self._files = {file.relative_to(path): Parquet(file, images, root) for file in files}
        self._ends = list(itertools.accumulate(map(len, self._files.values())))

    def __len__(self) -> int:
        return self._ends[-1]

    def rows(self) -> Iterator[Media]:
        """Return the media of one file after the other."""
        return itertools.chain.from_iterable(file.rows() for file in self._files.values())

    def where(self, row: int) -> str:
        """Return the file and its row."""
        number = bisect.bisect_right(self._ends, row)
        before = self._ends[number - 1] if number else 0
        return list(self._files.values())[number].where(row - before)

    def write(self, entropies: Sequence[float], output: Path, extra_info: bool) -> None:
        """Write each file below a new folder, under its name; see ``data.Source``."""
        output.mkdir()
        for (name, file), (start, end) in zip(self._files.items(), itertools.pairwise([0, *self._ends]), strict=True):
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            file.write(entropies[start:end], output / name, extra_info)
