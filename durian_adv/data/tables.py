"""Tables on disk, parquet and JSON lines, told apart by the file's name; what was read is written as it was."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet

from durian_adv.data import json_lines

SUFFIXES = (".parquet", ".jsonl")
_ROWS = 8192  # of a parquet file at a time


class Table(NamedTuple):
    """A whole table, and what to call its rows in an error."""

    path: Path
    rows: Any  # a table of Arrow from parquet; from JSON lines a list of objects, as Arrow would guess their types
    numbers: Sequence[int]  # of each row in its file
    compression: Mapping[str, str] = {}  # of each column of a parquet file

    @property
    def names(self) -> list[str]:
        """The columns, or the keys of all objects."""
        if isinstance(self.rows, list):
            return list(dict.fromkeys(key for row in self.rows for key in row))
        return list(self.rows.column_names)

    def column(self, name: str) -> list[Any]:
        """Return a column's values, None where an object has none; or say that there is no such column."""
        _check_names(self.path, [name], self.names)
        if isinstance(self.rows, list):
            return [row.get(name) for row in self.rows]
        values: list[Any] = self.rows.column(name).to_pylist()
        return values

    def with_column(self, name: str, values: Sequence[float | None]) -> Table:
        """Return the table with a column of numbers more."""
        if isinstance(self.rows, list):
            rows: Any = [{**row, name: value} for row, value in zip(self.rows, values, strict=True)]
        else:
            rows = self.rows.append_column(name, pa.array(values, pa.float64()))
        return self._replace(rows=rows)

    def write(self, chosen: Sequence[bool], path: Path, called: Path | None = None) -> None:
        """Write the chosen rows; in parquet types and compression are those of the whole table.

        In errors the file is ``called`` by the name that it will have, where it is written aside.
        """
        called = called or path
        if isinstance(self.rows, list) and suffix(path) == ".jsonl":
            _write_lines((row for row, wanted in zip(self.rows, chosen, strict=True) if wanted), path, called)
        else:
            table = _columns(self.rows, self.names, called) if isinstance(self.rows, list) else self.rows
            write_table(table.filter(pa.array(chosen, pa.bool_())), path, self.compression, called)


def suffix(path: Path) -> str:
    """Return ``.parquet`` or ``.jsonl``; others are refused."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    return path.suffix


def where(path: Path, number: int) -> str:
    """Return what to call a row, numbered from 1, in an error."""
    return json_lines.where(path, number) if suffix(path) == ".jsonl" else f"{path}, row {number}"


def read_table(path: Path) -> Table:
    """Read a whole table."""
    if suffix(path) == ".jsonl":
        lines = [(line.number, line.row) for line in json_lines.objects(path)]
        return Table(path, [row for _, row in lines], [number for number, _ in lines])
    with arrow_errors(path):
        file = open_parquet(path)
        rows = file.read()
    return Table(path, rows, range(1, len(rows) + 1), compression(file))


def read_columns(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[int, list[Any]]]:
    """Give each row's number and its values of some columns, None where an object has none, a few rows at a time.

    Columns that are ``optional`` come last; their values are None where the table has no such column.
    """
    if suffix(path) == ".jsonl":
        there: dict[str, None] = {}
        for line in json_lines.objects(path):
            there.update(dict.fromkeys(line.row))
            yield line.number, [line.row.get(name) for name in (*names, *optional)]
        _check_names(path, names, there)
        return
    with arrow_errors(path):
        file = open_parquet(path)
        _check_names(path, names, file.schema_arrow.names)
        found = [name for name in (*names, *optional) if name in file.schema_arrow.names]
        number = 0
        for rows in file.iter_batches(_ROWS, columns=list(dict.fromkeys(found))):
            columns = {name: rows.column(name).to_pylist() for name in found}
            for place in range(len(rows)):
                number += 1
                yield number, [columns[name][place] if name in columns else None for name in (*names, *optional)]


def open_parquet(path: Path) -> Any:
    """Open a parquet file; one with two columns of one name is refused."""
    with arrow_errors(path):
        file = pyarrow.parquet.ParquetFile(path)
    check_unique(file.schema_arrow.names, f"{path}")
    return file


def check_unique(names: Sequence[str], where: str) -> None:
    """Check that no two columns have one name."""
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"{where}: expected columns of different names, got {twice[0]!r} twice")


def compression(file: Any) -> dict[str, str]:
    """Return the codec of each column of a parquet file, as its first rows have it, in the words of a writer."""
    if file.metadata.num_row_groups == 0:
        return {}
    group = file.metadata.row_group(0)
    columns = (group.column(place) for place in range(group.num_columns))
    return {c.path_in_schema: c.compression.replace("UNCOMPRESSED", "NONE") for c in columns}


@contextmanager
def parquet_writer(path: Path, schema: Any, kept: Mapping[str, str]) -> Iterator[Any]:
    """Open a parquet file to be written; a column that was not read is compressed as the first of those that were."""
    default = next(iter(kept.values()), "SNAPPY")
    codecs = {column: kept.get(column, default) for column in _leaves(schema)}
    with pyarrow.parquet.ParquetWriter(path, schema, compression=codecs) as writer:
        yield writer


def _leaves(schema: Any) -> list[str]:
    """Return what parquet calls the columns of a schema: those inside structs and lists are columns of their own."""
    file = pa.BufferOutputStream()
    pyarrow.parquet.write_table(schema.empty_table(), file)
    leaves = pyarrow.parquet.ParquetFile(pa.BufferReader(file.getvalue())).schema
    return [leaves.column(place).path for place in range(len(leaves))]


def write_table(table: Any, path: Path, kept: Mapping[str, str] | None = None, called: Path | None = None) -> None:
    """Write a whole table of Arrow; NaN becomes null in JSON, which knows none.

    Args:
        table: of Arrow.
        path: a name that ends in ``.parquet`` or ``.jsonl``.
        kept: of parquet, the codec of each column, as ``compression`` gives it.
        called: the file's name in errors, if it is another.
    """
    if suffix(path) == ".parquet":
        with parquet_writer(path, table.schema, kept or {}) as writer:
            writer.write_table(table)
    else:
        _write_lines(table.to_pylist(), path, called or path)


def json_line(row: dict[str, Any]) -> str:
    """Return a row as a line of JSON, with null for NaN."""
    return json.dumps(json_lines.without_nan(row), ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def arrow_errors(path: Path) -> Iterator[None]:
    """Name the file in errors of Arrow, which knows its bytes alone."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # of the file system, which names it
            raise
        told = " ".join(f"{error}".split())  # Arrow's own, of several lines
        raise ValueError(f"{path}: expected a table in parquet, got one that cannot be read ({told})") from None


def _check_names(path: Path, names: Sequence[str], there: Collection[str]) -> None:
    for name in names:
        if name not in there:
            raise ValueError(f"{path}: expected a column {name!r}, got {', '.join(there) or 'none'}")


def _write_lines(rows: Iterable[dict[str, Any]], path: Path, called: Path) -> None:
    with path.open("w", encoding="utf-8") as lines:
        for number, row in enumerate(rows, 1):
            try:
                lines.write(json_line(row))
            except (TypeError, ValueError, RecursionError) as error:  # bytes, infinity, half a character
                raise ValueError(
                    f"{called}, line {number}: expected what JSON can hold, got another ({error})"
                ) from None


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
