"""JSON lines, read a line at a time: what cannot be used is named with its file and line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
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
        ValueError: a line that is no JSON object.

    >>> file = getfixture("tmp_path") / "lines"
    >>> _ = file.write_text('{"id": "2024-01-01"}\n\n{"id": 7}\n')
    >>> [(line.number, line.row) for line in objects(file)]
    [(1, {'id': '2024-01-01'}), (3, {'id': 7})]
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            progress(len(line))
            if text := line.strip():
                yield Line(number, text, _object(text, path, number))


def where(path: Path, number: int) -> str:
    """Return what to call a line in an error."""
    return f"{path}, line {number}"


def _object(text: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also not UTF-8, a number of thousands of digits, or nested deeply
        begins = text[:60].decode(errors="replace")
        raise ValueError(f"{where(path, number)}: expected a JSON object, got {begins!r} ({error})") from None
    if not isinstance(row, dict):
        begins = repr(row)
        more = "..." * (len(begins) > 60)
        raise ValueError(f"{where(path, number)}: expected a JSON object, got {begins[:60]}{more}")
    return row
