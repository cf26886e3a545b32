"""CSV files with the path of an image in each row."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from durian_adv.data.logs.containers import CELL_LIMIT
from durian_adv.data.scoring.extra_info import COLUMN, EXTRA, check_columns
from durian_adv.data.scoring.media import Media, column_of_images, media_of


class Row(NamedTuple):
    """A record with the line that it ends on, as a quoted value may hold line breaks."""

    line: int
    values: list[str]


class Csv:
    """A file of comma-separated values with a header, in UTF-8, read a record at a time; an empty value is no image."""

    kinds: tuple[str, ...] = (".csv",)

    def __init__(self, path: Path, images: str | None, root: Path) -> None:
        self.root: Path | None = root
        self._path = path
        self._length = -1
        header: list[str] | None = None
        for row in self._records():
            header = row.values if header is None else header
            self._length += 1
            if len(row.values) != len(header):
                raise ValueError(
                    f"{path}, line {row.line}: expected {len(header)} values, as in the header, got {len(row.values)}"
                )
        if header is None:
            raise ValueError(f"{path}: expected a header with the names of columns, got an empty file")
        check_columns(header, f"{path}")
        if EXTRA in header:
            raise ValueError(f"{path}: expected no column {EXTRA!r}, as CSV holds no objects, got one")
        self._header = header
        self._images = column_of_images(header, images)

    def __len__(self) -> int:
        return self._length

    def rows(self) -> Iterator[Media]:
        """Return the paths."""
        records = self._records()
        next(records)
        for _, values in records:
            named = zip(self._header, values, strict=True)
            yield media_of({name: value or None for name, value in named}, self._images)

    def where(self, row: int) -> str:
        """Return the file and the row, the header not counted."""
        return f"{self._path}, row {row + 1}"

    def write(self, entropies: Sequence[float], output: Path, extra_info: bool) -> None:
        """Write the output, nothing where there is no entropy; see ``data.Source``."""
        if extra_info:
            raise ValueError(f"{output}: expected no {EXTRA}, as CSV holds no objects")
        records = self._records()
        with output.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*next(records).values, COLUMN])
            for (_, values), entropy in zip(records, entropies, strict=True):
                writer.writerow([*values, "" if math.isnan(entropy) else repr(entropy)])

    def _records(self) -> Iterator[Row]:
        csv.field_size_limit(CELL_LIMIT)  # a data URL is longer than the 131,072 characters of its default
        with self._path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            try:
                for values in reader:
                    if values:  # not a blank line
                        yield Row(reader.line_num, values)
            except (csv.Error, UnicodeDecodeError) as error:
                raise ValueError(
                    f"{self._path}, line {reader.line_num + 1}: expected CSV in UTF-8, got {error}"
                ) from None
