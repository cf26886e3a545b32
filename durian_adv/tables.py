"""Tables on disk, parquet and JSON lines, told apart by the file's name; what was read is written as it was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet

from durian_adv import json_lines

SUFFIXES = (".parquet", ".jsonl")


class Table(NamedTuple):
    """A whole table, and what to call its rows in an error."""

    path: Path
    rows: Any  # a table of Arrow from parquet; from JSON lines a list of objects, as Arrow would guess their types
    places: Sequence[str]  # of each row: "line 3"

    @property
    def names(self) -> list[str]:
        """The columns, or the keys of all objects."""
        if isinstance(self.rows, list):
            return list(dict.fromkeys(key for row in self.rows for key in row))
        return list(self.rows.column_names)

    def column(self, name: str) -> list[Any]:
        """Return a column's values, None where an object has none; or say that there is no such column."""
        if name not in self.names:
            raise ValueError(f"{self.path}: expected a column {name!r}, got {', '.join(self.names) or 'none'}")
        if isinstance(self.rows, list):
            return [row.get(name) for row in self.rows]
        values: list[Any] = self.rows.column(name).to_pylist()
        return values

    def where(self, row: int) -> str:
        """Return what to call a row in an error."""
        return f"{self.path}, {self.places[row]}"

    def with_column(self, name: str, values: Sequence[float | None]) -> Table:
        """Return the table with a column of numbers more."""
        if isinstance(self.rows, list):
            rows: Any = [{**row, name: value} for row, value in zip(self.rows, values, strict=True)]
        else:
            rows = self.rows.append_column(name, pa.array(values, pa.float64()))
        return self._replace(rows=rows)

    def write(self, chosen: Sequence[bool], path: Path) -> None:
        """Write the chosen rows; in parquet the types are those of all rows."""
        if isinstance(self.rows, list) and suffix(path) == ".jsonl":
            _write_lines((row for row, wanted in zip(self.rows, chosen, strict=True) if wanted), path)
        else:
            table = _columns(self.rows, self.names, path) if isinstance(self.rows, list) else self.rows
            write_table(table.filter(pa.array(chosen, pa.bool_())), path)


def suffix(path: Path) -> str:
    """Return ``.parquet`` or ``.jsonl``; others are refused."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    return path.suffix


def read_table(path: Path) -> Table:
    """Read a whole table."""
    if suffix(path) == ".jsonl":
        lines = list(json_lines.objects(path))
        return Table(path, [row for *_, row in lines], [f"line {number}" for number, *_ in lines])
    try:
        rows = pyarrow.parquet.read_table(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: expected a table, got {error}") from None
    return Table(path, rows, [f"row {number + 1}" for number in range(len(rows))])


def write_table(table: Any, path: Path) -> None:
    """Write a whole table of Arrow; NaN becomes null in JSON, which knows none."""
    if suffix(path) == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        _write_lines(table.to_pylist(), path)


def json_line(row: dict[str, Any]) -> str:
    """Return a row as a line of JSON, with null for NaN."""
    return json.dumps(_without_nan(row), ensure_ascii=False, allow_nan=False) + "\n"


def _write_lines(rows: Iterable[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8") as lines:
        for number, row in enumerate(rows, 1):
            try:
                lines.write(json_line(row))
            except (TypeError, ValueError, RecursionError) as error:  # bytes, infinity, half a character
                raise ValueError(f"{path}, line {number}: expected what JSON can hold, got another ({error})") from None


def _columns(rows: list[dict[str, Any]], names: list[str], path: Path) -> Any:
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError, ValueError) as error:
            raise ValueError(
                f"{path}: expected a column {name!r} of one type, as parquet needs, got another ({error}); "
                "JSON lines hold any"
            ) from None
    return pa.table(columns)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value
