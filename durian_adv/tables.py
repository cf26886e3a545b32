"""Tables on disk, as Arrow tables: parquet and JSON lines, told apart by the file's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

SUFFIXES = (".parquet", ".jsonl")


def suffix(path: Path) -> str:
    """Return ``.parquet`` or ``.jsonl``; others are refused."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    return path.suffix


def read_table(path: Path) -> Any:
    """Read a whole table."""
    if suffix(path) == ".parquet":
        return _read(pyarrow.parquet.read_table, path)
    if path.stat().st_size == 0:
        return pa.table({})
    return _read(pyarrow.json.read_json, path)


def write_table(table: Any, path: Path) -> None:
    """Write a whole table; NaN becomes null in JSON, which knows none."""
    if suffix(path) == ".parquet":
        pyarrow.parquet.write_table(table, path)
        return
    with path.open("w", encoding="utf-8") as lines:
        for row in table.to_pylist():
            lines.write(json_line(row))


def json_line(row: dict[str, Any]) -> str:
    """Return a row as a line of JSON, with null for NaN."""
    return json.dumps(_without_nan(row), ensure_ascii=False, allow_nan=False) + "\n"


def column(table: Any, name: str, path: Path) -> list[Any]:
    """Return a column's values, or say that there is none."""
    if name not in table.column_names:
        raise ValueError(f"{path}: expected a column {name!r}, got {', '.join(table.column_names) or 'none'}")
    values: list[Any] = table.column(name).to_pylist()
    return values


def _read(reader: Any, path: Path) -> Any:
    try:
        return reader(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: expected a table, got {error}") from None


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value
