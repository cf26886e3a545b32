"""JSON, read without losing anything: lines are named in errors, and an object that repeats a key is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Line(NamedTuple):
    """An object with the line that it stands on."""

    number: int  # from 1
    text: bytes  # as it was written, without spaces around it
    row: dict[str, Any]


def objects(path: Path, progress: Callable[[int], object] = lambda read: None) -> Iterator[Line]:
    r"""Give each object with its line; blank lines are skipped.

    Args:
        path: the file.
        progress: called with how many bytes have been read, line by line.

    Raises:
        ValueError: a line that is no JSON object, or whose object has a key twice.

    >>> file = getfixture("tmp_path") / "lines"
    >>> _ = file.write_text('{"id": "2024-01-01"}\n\n{"id": 7}\n')
    >>> [(line.number, line.row) for line in objects(file)]
    [(1, {'id': '2024-01-01'}), (3, {'id': 7})]
    """
    with path.open("rb") as lines:
        yield from of_lines(lines, path, progress)


def of_lines(
    lines: Iterable[bytes], path: Path | str, progress: Callable[[int], object] = lambda read: None
) -> Iterator[Line]:
    """Give each object of lines that are read already; ``path`` is what an error calls them."""
    for number, line in enumerate(lines, 1):
        progress(len(line))
        if text := line.strip():
            yield Line(number, text, _object(text, path, number))


def loads(text: str) -> Any:
    """Return a JSON value; a key that an object has twice is a ``ValueError`` that names it.

    >>> loads('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: duplicate key 'a'
    """
    return _DECODE(text)


def where(path: Path | str, number: int) -> str:
    """Return what to call a line in an error."""
    return f"{path}, line {number}"


def without_nan(value: Any) -> Any:
    """Return a value that JSON can hold: null for NaN, which it does not know."""
    if isinstance(value, dict):
        return {name: without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these keys and values; a key that stands there twice is a ``ValueError`` that names it."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {next(name for name in names if names.count(name) > 1)!r}")
    return row


_DECODE = json.JSONDecoder(object_pairs_hook=unique).decode


def _object(text: bytes, path: Path | str, number: int) -> dict[str, Any]:
    try:
        row = loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also not UTF-8, a number of thousands of digits, or nested deeply
        begins = text[:60].decode(errors="replace")
        raise ValueError(f"{where(path, number)}: expected a JSON object, got {begins!r} ({error})") from None
    if not isinstance(row, dict):
        begins = repr(row)
        more = "..." * (len(begins) > 60)
        raise ValueError(f"{where(path, number)}: expected a JSON object, got {begins[:60]}{more}")
    return row
