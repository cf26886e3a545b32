"""What holds a log's rows: JSON lines, JSON arrays, tables of trackers, CSV, parquet, torch files, EasyR1's text.

What a file is, its first bytes say, not its name.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Iterator
from typing import IO, Any

from durian_adv.data import json_lines
from durian_adv.data.logs.rows import Row, short
from durian_adv.data.logs.sources import HEAD, seekable

# of a first row and the names of all columns, some of which JSON could not hold: those that are needed
Chosen = Callable[[Row, Collection[str]], Collection[str]]

_ROWS = 8192  # of a parquet file at a time
_TEXT_LOG = re.compile(rb"\s*\[prompt\] ")
_MARKS = ("prompt", "output", "ground_truth", "score")  # of EasyR1's text log
CELL_LIMIT = 1 << 30  # characters of a cell of CSV


def rows(stream: IO[bytes], name: str, chosen: Chosen) -> Iterator[Row]:
    """Give the rows of a file that has been opened.

    Args:
        stream: from its start.
        name: of the file, for errors.
        chosen: says which columns are needed; only parquet asks.

    Raises:
        ValueError: what cannot be read, with its line, row or item.
        ModuleNotFoundError: a parquet file, and pyarrow is not installed.
    """
    begins: bytes = stream.peek(HEAD)[:HEAD]  # type: ignore[attr-defined]  # a BufferedReader
    text = begins.removeprefix(b"\xef\xbb\xbf").lstrip()
    if begins.startswith(b"PAR1"):
        return _parquet(seekable(stream), name, chosen)
    if begins.startswith(b"PK\x03\x04"):
        return _torch(seekable(stream), name)
    if re.match(rb"\x80[\x02-\x05]", begins):
        raise ValueError(f"{name}: {PICKLE}")
    if _TEXT_LOG.match(begins):
        return _text_log(stream, name)
    if text[:1] == b"[" or text.rstrip() == b"{" or re.match(rb"\{\s*\n", text):
        return _document(stream, name)
    if text[:1] == b"{" or not text:
        return _lines(stream, name)
    return _csv(stream, name)


PICKLE = (
    "expected a file that only holds data, got a pickle, which can run any program when it is read. Where you trust "
    "it, load it yourself and write JSON lines: one object per rollout with prompt, reward, step and logprobs"
)


def _lines(stream: IO[bytes], name: str) -> Iterator[Row]:
    for line in json_lines.of_lines(stream, name):
        place = json_lines.where(name, line.number)
        if _is_table(line.row):
            yield from _table(line.row, place)
        else:
            yield Row(place, line.row)


def _document(stream: IO[bytes], name: str) -> Iterator[Row]:
    """One JSON value over any number of lines: an array of rows, a table of a tracker, or one row."""
    try:
        value = json_lines.loads(stream.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: expected a JSON array or JSON lines, got another ({error})") from None
    if isinstance(value, dict):
        yield from _table(value, name) if _is_table(value) else [Row(name, value)]
        return
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{name}, item {number}: expected a JSON object, got {short(row)}")
        yield Row(f"{name}, item {number}", row)


def _is_table(value: dict[str, Any]) -> bool:
    """Whether this is how Weights & Biases exports a table."""
    return isinstance(value.get("columns"), list) and isinstance(value.get("data"), list)


def _table(value: dict[str, Any], name: str) -> Iterator[Row]:
    columns, data = value["columns"], value["data"]
    _check_unique(columns, name)
    for number, row in enumerate(data, 1):
        if not isinstance(row, list) or len(row) != len(columns):
            raise ValueError(f"{name}, row {number}: expected a list of {len(columns)} cells, got {short(row)}")
        yield Row(f"{name}, row {number}", dict(zip(map(str, columns), row, strict=True)))


def _csv(stream: IO[bytes], name: str) -> Iterator[Row]:
    """Comma-separated values with a header; a cell that is JSON is what it says, an empty one is null."""
    csv.field_size_limit(CELL_LIMIT)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    table = csv.reader(text, strict=True)
    try:
        columns: list[str] = []
        for cells in table:
            place = f"{name}, line {table.line_num}"
            if not columns:
                columns = _header(cells, name)
            elif cells and len(cells) != len(columns):
                raise ValueError(f"{place}: expected {len(columns)} cells, got {len(cells)}")
            elif cells:
                yield Row(place, dict(zip(columns, map(_cell, cells), strict=True)))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{name}, line {table.line_num}: expected CSV, got another ({error})") from None
    finally:
        text.detach()  # whoever opened the stream closes it


def _header(cells: list[str], name: str) -> list[str]:
    if len(cells) < 2:
        raise ValueError(f"{name}: expected JSON lines, parquet, or CSV with a header, got {short(''.join(cells))}")
    _check_unique(cells, name)
    return cells


_CELLS = {"": None, "True": True, "False": False, "nan": math.nan}  # as Python and pandas write them


def _cell(text: str) -> Any:
    if text in _CELLS:
        return _CELLS[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _parquet(stream: IO[bytes], name: str, chosen: Chosen) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{name}: a parquet file needs pyarrow: pip install 'durian-adv[report]', or write JSON lines"
        ) from None
    try:
        table = pyarrow.parquet.ParquetFile(stream)
        schema = table.schema_arrow
        _check_unique(schema.names, name)
        plain = [field.name for field in schema if _is_plain(field.type)]
        first = next(table.iter_batches(1, columns=plain), None)
        head = first.to_pylist()[0] if first is not None and len(first) else dict.fromkeys(plain)
        needed = chosen(Row(name, head), schema.names)
        columns = [column for column in schema.names if column in needed]
        number = itertools.count(1)
        for batch in table.iter_batches(_ROWS, columns=columns):
            for row in batch.to_pylist():
                yield Row(f"{name}, row {next(number)}", row)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{name}: expected a parquet file, got one that cannot be read ({error})") from None


def _is_plain(kind: Any) -> bool:
    """Whether JSON could hold a column: no images, dates, decimals."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    if types.is_struct(kind):
        return all(_is_plain(field.type) for field in kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_plain(kind.value_type)
    tests = (
        types.is_string,
        types.is_large_string,
        types.is_integer,
        types.is_floating,
        types.is_boolean,
        types.is_null,
    )
    return any(test(kind) for test in tests)


def _torch(stream: IO[bytes], name: str) -> Iterator[Row]:
    """A file of ``torch.save``: one row, of whatever it holds; read without running anything."""
    import torch

    try:
        value = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # torch says in many ways that a file is not data alone
        first = f"{error}".partition("\n")[0]
        raise ValueError(
            f"{name}: expected a torch file of numbers, texts, lists and tensors, got one that weights_only=True does "
            f"not load ({first}). Where you trust it, load it yourself and save it again without "
            "other objects (in slime's samples: multimodal_inputs, multimodal_train_inputs)"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected a torch file that holds a dict, got {type(value).__name__}")
    yield Row(name, value)


def _text_log(stream: IO[bytes], name: str) -> Iterator[Row]:
    """EasyR1's text log: blocks of four marked texts, each over any number of lines, and a blank line."""
    texts: list[list[str]] = []
    started = 0
    for number, raw in enumerate(stream, 1):
        line = raw.decode(errors="replace").rstrip("\n")
        mark = _MARKS[len(texts) % 4]
        ended = len(texts) == 4 and texts[3][-1] == ""
        if line.startswith(f"[{mark}] ") and (ended or len(texts) < 4):
            if ended:
                yield _block(texts, f"{name}, line {started}")
                texts = []
            started = started if texts else number
            texts.append([line.removeprefix(f"[{mark}] ")])
        elif texts:
            texts[-1].append(line)
    yield _block(texts, f"{name}, line {started}")


def _block(texts: list[list[str]], place: str) -> Row:
    if len(texts) < len(_MARKS):
        raise ValueError(f"{place}: expected [{_MARKS[len(texts)]}] after [{_MARKS[len(texts) - 1]}], got the end")
    values: dict[str, Any] = {mark: "\n".join(lines) for mark, lines in zip(_MARKS, texts, strict=True)}
    try:
        values["score"] = float(values["score"].strip())
    except ValueError:
        raise ValueError(f"{place}: score: expected a number, got {short(values['score'])}") from None
    return Row(place, values)


def _check_unique(columns: Collection[Any], name: str) -> None:
    names = list(columns)
    for column in names:
        if names.count(column) > 1:
            raise ValueError(f"{name}: expected each column once, got {column!r} twice")
