"""The column ``visual_entropy``, and verl's column ``extra_info``, which takes it too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from durian_adv.data import tables

COLUMN = "visual_entropy"
EXTRA = "extra_info"  # where verl looks for what is not one of its own columns


def check_columns(columns: Sequence[str], where: str) -> None:
    """Check that the columns have different names and that the one to be written is not there yet."""
    tables.check_unique(columns, where)
    if COLUMN in columns:
        raise ValueError(f"{where}: expected no column {COLUMN!r}, which is to be written, got one")


def with_keys(row: Mapping[str, Any], text: str, entropy: float, extra_info: bool) -> str:
    """Return the text of a JSON object with its entropy: numbers, NaN and escapes stay as they were written.

    A row that has ``extra_info`` is written anew, with null for NaN.

    >>> with_keys({"a": 1.5}, '{"a": 1.50}', 3.25, False)
    '{"a": 1.50, "visual_entropy": 3.25}'
    """
    if EXTRA in row:
        whole = {**row, EXTRA: {**(row[EXTRA] or {}), COLUMN: entropy}, COLUMN: entropy}
        return tables.json_line(whole).removesuffix("\n")
    added: dict[str, Any] = {COLUMN: entropy} | ({EXTRA: {COLUMN: entropy}} if extra_info else {})
    comma = ", " if row else ""
    more = tables.json_line(added).removesuffix("\n").removeprefix("{")
    return text.removesuffix("}").rstrip() + comma + more


def check_row(row: Mapping[str, Any], where: str) -> None:
    """Check that a row can be written again, which one with ``extra_info`` is."""
    if EXTRA not in row:
        return
    if not isinstance(row[EXTRA], dict | None):
        raise ValueError(f"{where}: expected {EXTRA} to be an object, got {type(row[EXTRA]).__name__}")
    try:
        tables.json_line(dict(row)).encode()
    except (ValueError, RecursionError) as error:  # infinity, half a character, or nested deeply
        raise ValueError(f"{where}: expected what JSON can hold beside {EXTRA}, got {error}") from None


def with_columns(table: Any, values: Any, extra_info: bool) -> Any:
    """Return a table of Arrow with its entropies; in the struct ``extra_info`` too, which is made where missing."""
    wanted = extra_info or EXTRA in table.column_names
    kept = _metadata(table.schema.metadata, wanted)
    table = table.append_column(COLUMN, values)
    if wanted:
        table = _with_extra(table, values)
    return table.replace_schema_metadata(kept)


def _with_extra(table: Any, values: Any) -> Any:
    if EXTRA not in table.column_names:
        return table.append_column(EXTRA, pa.StructArray.from_arrays([values], [COLUMN]))
    place = table.column_names.index(EXTRA)
    column = table.column(place).combine_chunks()
    names = [field.name for field in column.type if field.name != COLUMN]
    arrays = [column.field(name) for name in names]
    return table.set_column(place, EXTRA, pa.StructArray.from_arrays([*arrays, values], [*names, COLUMN]))


def _metadata(metadata: Mapping[bytes, bytes] | None, extra_info: bool) -> dict[bytes, bytes]:
    """Add the columns to the features that the library datasets keeps in a file."""
    kept = dict(metadata or {})
    if b"huggingface" in kept:
        whole = json.loads(kept[b"huggingface"])
        features = whole.get("info", {}).get("features")
        if features is not None:
            value = {"dtype": "float64", "_type": "Value"}
            features[COLUMN] = value
            if extra_info:
                features[EXTRA] = {**features.get(EXTRA, {}), COLUMN: value}
            kept[b"huggingface"] = json.dumps(whole).encode()
    return kept
