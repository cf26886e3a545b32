"""Data sets that ``durian-adv entropy`` reads and writes: folders of images, JSON lines, parquet, datasets on disk.

None is held in memory as a whole. What is written is what was read, with one column more.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from durian_adv.data import json_lines, tables
from durian_adv.data.scoring.images import images_of
from durian_adv.data.scoring.scorer import COLUMN, image_column

EXTRA = "extra_info"  # where verl looks for what is not one of its own columns
_ROWS = 256  # of a parquet file at a time


class Source(Protocol):
    """A data set with images."""

    root: Path | None  # where its relative paths start

    def __len__(self) -> int:
        """Return the number of rows."""

    def cells(self) -> Iterator[Any]:
        """Return the images of each row: none, one or a list."""

    def write(self, entropies: Sequence[float], output: Path, extra_info: bool) -> None:
        """Write all rows with their entropies; in ``extra_info`` too where there is one, or where it is wanted."""


def open_source(path: Path, images: str | None, root: Path | None) -> Source:
    """Open a data set by what it is on disk."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a folder or a file, got nothing there")
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            on_disk = "durian_adv.data.scoring.datasets_on_disk"  # imports datasets, which tables do without
            return importlib.import_module(on_disk).DatasetOnDisk(path, images, root)  # type: ignore[no-any-return]
        return Folder(path)
    if tables.suffix(path) == ".parquet":
        return Parquet(path, images, root or path.parent)
    return JsonLines(path, images, root or path.parent)


def for_output(source: Source, output: Path) -> Source:
    """Return the data set in the form that this output has; refuse a name that does not fit, before hours of work."""
    if output.exists():
        raise ValueError(f"{output}: expected a name that is not taken yet")
    if not output.parent.is_dir():
        raise ValueError(f"{output}: expected a name in a folder that is there, got none")
    if output.suffix == ".json":
        return ByImage(source)
    kinds = {Folder: tables.SUFFIXES, JsonLines: (".jsonl",), Parquet: (".parquet",)}.get(type(source), ("",))
    if output.suffix not in kinds:
        expected = f"{' or '.join(kinds)}" if kinds != ("",) else "no suffix, as a folder is written,"
        raise ValueError(f"{output}: expected a name with {expected} for this input, or with .json")
    return source


class Folder:
    """Images in a folder and those below it, by their names; what is written is a table of paths and entropies."""

    def __init__(self, path: Path) -> None:
        self.root: Path | None = path
        suffixes = Image.registered_extensions()
        found = (file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
        self._files = sorted(file.relative_to(path).as_posix() for file in found)
        if not self._files:
            raise ValueError(f"{path}: expected a folder with images, got none")
        for name in self._files:
            _check_text(name, f"{path}")

    def __len__(self) -> int:
        return len(self._files)

    def cells(self) -> Iterator[Any]:
        """Return paths below the folder."""
        return iter(self._files)

    def write(self, entropies: Sequence[float], output: Path, extra_info: bool) -> None:
        """Write the output; see ``Source``."""
        columns: dict[str, Any] = {"image": self._files, COLUMN: pa.array(entropies, pa.float64())}
        if extra_info:
            columns[EXTRA] = [{COLUMN: entropy} for entropy in entropies]
        tables.write_table(pa.table(columns), output)


class JsonLines:
    """A file of JSON lines, of which every line is written as it was read, with a key more."""

    def __init__(self, path: Path, images: str | None, root: Path) -> None:
        self.root: Path | None = root
        self._path = path
        keys: dict[str, None] = {}
        self._length = 0
        for number, _, row in json_lines.objects(path):
            self._length += 1
            if EXTRA in row:
                _check_extra(row, json_lines.where(path, number))
            keys |= dict.fromkeys(row)
        if COLUMN in keys:
            raise ValueError(f"{path}: expected no key {COLUMN!r}, which is to be written, got one")
        self._images = image_column(list(keys), images)

    def __len__(self) -> int:
        return self._length

    def cells(self) -> Iterator[Any]:
        """Return what stands under the key of images; nothing where it is missing."""
        return (line.row.get(self._images) for line in json_lines.objects(self._path))

    def write(self, entropies: Sequence[float], output: Path, extra_info: bool) -> None:
        """Write the output; see ``Source``."""
        with output.open("wb") as lines:
            for (_, line, row), entropy in zip(json_lines.objects(self._path), entropies, strict=True):
                if EXTRA in row:
                    row[EXTRA] = {**(row[EXTRA] or {}), COLUMN: entropy}
                    lines.write(tables.json_line({**row, COLUMN: entropy}).encode())
                    continue
                added: dict[str, Any] = {COLUMN: entropy} | ({EXTRA: {COLUMN: entropy}} if extra_info else {})
                # the line itself with keys more: numbers, NaN and escapes stay as they were written
                comma = b", " if row else b""
                lines.write(line.removesuffix(b"}") + comma + tables.json_line(added).encode().removeprefix(b"{"))


class ByImage:
    """The distinct images of a data set by their paths; what is written is a JSON object from path to entropy."""

    def __init__(self, source: Source) -> None:
        self.root = source.root
        self._paths: dict[str, None] = {}
        for cell in source.cells():
            for image in images_of(cell):
                if not isinstance(image, str):
                    raise ValueError(f"images: expected paths for a table by image, got {type(image).__name__}")
                _check_text(image, "images")
                self._paths[image] = None

    def __len__(self) -> int:
        return len(self._paths)

    def cells(self) -> Iterator[Any]:
        """Return the paths."""
        return iter(self._paths)

    def write(self, entropies: Sequence[float], output: Path, extra_info: bool) -> None:
        """Write the object; ``extra_info`` has no place in it."""
        output.write_text(tables.json_line(dict(zip(self._paths, entropies, strict=True))), encoding="utf-8")


class Parquet:
    """A parquet file, read and written a few rows at a time."""

    def __init__(self, path: Path, images: str | None, root: Path) -> None:
        self.root: Path | None = root
        self._path = path
        try:
            self._schema = self._file().schema_arrow
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: expected a parquet file, got {error}") from None
        names = self._schema.names
        if COLUMN in names:
            raise ValueError(f"{path}: expected no column {COLUMN!r}, which is to be written, got one")
        if EXTRA in names and not pa.types.is_struct(told := self._schema.field(EXTRA).type):
            raise ValueError(f"{path}: expected a column {EXTRA!r} of structs, got {told}")
        self._images = image_column(names, images)

    def __len__(self) -> int:
        return int(self._file().metadata.num_rows)

    def cells(self) -> Iterator[Any]:
        """Return the column of images."""
        for rows in self._file().iter_batches(_ROWS, columns=[self._images]):
            yield from rows.column(0).to_pylist()

    def write(self, entropies: Sequence[float], output: Path, extra_info: bool) -> None:
        """Write the output; see ``Source``."""
        writer, start = None, 0
        wanted = extra_info or EXTRA in self._schema.names
        for rows in self._batches():
            values = pa.array(entropies[start : start + len(rows)], pa.float64())
            start += len(rows)
            table = rows.append_column(COLUMN, values)
            if wanted:
                table = _with_extra(table, values)
            table = table.replace_schema_metadata(_metadata(self._schema.metadata, wanted))
            if writer is None:
                writer = pyarrow.parquet.ParquetWriter(output, table.schema)
            writer.write_table(table)
        assert writer is not None  # an empty file gives one empty batch
        writer.close()

    def _batches(self) -> Iterator[Any]:
        empty = True
        for rows in self._file().iter_batches(_ROWS):
            empty = False
            yield pa.Table.from_batches([rows])
        if empty:
            yield self._schema.empty_table()

    def _file(self) -> Any:
        return pyarrow.parquet.ParquetFile(self._path)


def _with_extra(table: Any, values: Any) -> Any:
    """Put the entropies into the struct ``extra_info``, which is made where it is missing."""
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
        told = json.loads(kept[b"huggingface"])
        features = told.get("info", {}).get("features")
        if features is not None:
            value = {"dtype": "float64", "_type": "Value"}
            features[COLUMN] = value
            if extra_info:
                features[EXTRA] = {**features.get(EXTRA, {}), COLUMN: value}
            kept[b"huggingface"] = json.dumps(told).encode()
    return kept


def _check_extra(row: Mapping[str, Any], where: str) -> None:
    """Check that a row can be written again, which one with ``extra_info`` is."""
    if not isinstance(row[EXTRA], dict | None):
        raise ValueError(f"{where}: expected {EXTRA} to be an object, got {type(row[EXTRA]).__name__}")
    try:
        tables.json_line(dict(row)).encode()
    except (ValueError, RecursionError) as error:  # infinity, half a character, or nested deeply
        raise ValueError(f"{where}: expected what JSON can hold beside {EXTRA}, got {error}") from None


def _check_text(path: str, where: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: expected paths in UTF-8, got {path!r}") from None
