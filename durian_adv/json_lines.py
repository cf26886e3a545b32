"""JSON lines, read a line at a time: what cannot be used is named with its file and line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def objects(
    path: Path, progress: Callable[[int], object] = lambda read: None
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    r"""Give each object with its line's number and what to call it in an error; blank lines are skipped.

    Args:
        path: the file.
        progress: called with how many bytes have been read, line by line.

    Raises:
        ValueError: a line that is no JSON object.

    >>> file = getfixture("tmp_path") / "lines"
    >>> _ = file.write_text('{"id": "2024-01-01"}\n\n{"id": 7}\n')
    >>> [(number, row) for number, _, row in objects(file)]
    [(1, {'id': '2024-01-01'}), (3, {'id': 7})]
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            progress(len(line))
            if line.strip():
                where = f"{path}, line {number}"
                yield number, where, _object(line, where)


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # also not UTF-8, a number of thousands of digits, or nested deeply
        text = line.strip()[:60].decode(errors="replace")
        raise ValueError(f"{where}: expected a JSON object, got {text!r} ({error})") from None
    if not isinstance(row, dict):
        text = repr(row)
        raise ValueError(f"{where}: expected a JSON object, got {text[:60]}{'...' * (len(text) > 60)}")
    return row
