"""JSON lines and JSON arrays with images, of which every row is written as it was read, with a key more."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from durian_adv.data import json_lines
from durian_adv.data.scoring.extra_info import check_columns, check_row, with_keys
from durian_adv.data.scoring.media import Media, column_of_images, media_of


class JsonLines:
    """A file of JSON lines, read a line at a time."""

    kinds: tuple[str, ...] = (".jsonl",)

    def __init__(self, path: Path, images: str | None, root: Path) -> None:
        self.root: Path | None = root
        self._path = path
        self._numbers = array("Q")  # of the line of each row, as blank lines are skipped
        keys: dict[str, None] = {}
        for number, _, row in json_lines.objects(path):
            self._numbers.append(number)
            check_row(row, json_lines.where(path, number))
            keys |= dict.fromkeys(row)
        check_columns(list(keys), f"{path}")
        self._images = column_of_images(list(keys), images)

    def __len__(self) -> int:
        return len(self._numbers)

    def rows(self) -> Iterator[Media]:
        """Return what stands under the keys of media; nothing where they are missing."""
        return (media_of(line.row, self._images) for line in json_lines.objects(self._path))

    def where(self, row: int) -> str:
        """Return the file and the line."""
        return json_lines.where(self._path, self._numbers[row])

    def write(self, entropies: Sequence[float], output: Path, extra_info: bool) -> None:
        """Write the output; see ``data.Source``."""
        with output.open("wb") as lines:
            for (_, text, row), entropy in zip(json_lines.objects(self._path), entropies, strict=True):
                # keys outside of ASCII may be half characters, which no other encoding of errors gives back
                line = with_keys(row, text.decode("utf-8-sig"), entropy, extra_info)
                lines.write(line.encode() + b"\n")


class JsonArray:
    """A file with a JSON array of objects, or with JSON lines, as the name .json has either; held as a whole."""

    kinds: tuple[str, ...] = (".json", ".jsonl")

    def __init__(self, path: Path, images: str | None, root: Path) -> None:
        self.root: Path | None = root
        self._path = path
        self._rows: list[dict[str, Any]] = []
        self._texts: list[str] = []
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected JSON in UTF-8, got {error}") from None
        for number, (begin, end, row) in enumerate(_elements(text, path), 1):
            check_row(row, f"{path}, row {number}")
            self._rows.append(row)
            self._texts.append(text[begin:end])
        keys = list(dict.fromkeys(key for row in self._rows for key in row))
        check_columns(keys, f"{path}")
        self._images = column_of_images(keys, images)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self) -> Iterator[Media]:
        """Return what stands under the keys of media; nothing where they are missing."""
        return (media_of(row, self._images) for row in self._rows)

    def where(self, row: int) -> str:
        """Return the file and the row."""
        return f"{self._path}, row {row + 1}"

    def write(self, entropies: Sequence[float], output: Path, extra_info: bool) -> None:
        """Write an array with one row per line, or JSON lines, by the output's name; see ``data.Source``."""
        rows = zip(self._rows, self._texts, entropies, strict=True)
        written = [with_keys(row, text, entropy, extra_info) for row, text, entropy in rows]
        with output.open("w", encoding="utf-8", newline="\n") as file:
            if output.suffix == ".json":
                file.write("[\n" + ",\n".join(written) + "\n]\n")
            else:
                # outside of strings a line break is a space, and inside none is allowed
                file.writelines(row.replace("\r", " ").replace("\n", " ") + "\n" for row in written)


def _elements(text: str, path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Give where each object of the array, or of the lines, begins and ends, and the object."""
    place = _skip(text, 0)
    array_of_rows = text.startswith("[", place)
    place = _skip(text, place + array_of_rows)
    number = 0
    while place < len(text) and not (array_of_rows and text.startswith("]", place)):
        number += 1
        begin = place
        row, place = _object(text, begin, f"{path}, row {number}")
        yield begin, place, row
        place = _skip(text, place)
        if array_of_rows and not text.startswith("]", place):
            if not text.startswith(",", place):
                raise ValueError(f"{path}, row {number}: expected a comma or the end of the array after it")
            place = _skip(text, place + 1)
            if text.startswith("]", place):
                raise ValueError(f"{path}, row {number}: expected a row after the comma, got the end of the array")
    if array_of_rows and text[place : place + 1] != "]":
        raise ValueError(f"{path}: expected the end of the array, got the end of the file after {number} rows")
    if text[place + array_of_rows :].strip():
        raise ValueError(f"{path}: expected nothing after the array, got {text[place + 1 :].strip()[:60]!r}")


def _object(text: str, begin: int, where: str) -> tuple[dict[str, Any], int]:
    try:
        row, end = json.JSONDecoder(object_pairs_hook=json_lines.unique).raw_decode(text, begin)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected a JSON object, got {text[begin : begin + 60]!r} ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object, got {text[begin : min(end, begin + 60)]}")
    return row, end


def _skip(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\t", "\n", "\r"):
        place += 1
    return place
