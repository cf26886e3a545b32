"""Data sets that ``durian-adv entropy`` reads and writes, by what they are on disk.

What is written is what was read, with one column more. But for JSON arrays none is held in memory as a whole.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from durian_adv.data import aside, tables
from durian_adv.data.scoring import csv_file, json_rows, parquet
from durian_adv.data.scoring.extra_info import COLUMN, EXTRA
from durian_adv.data.scoring.images import SUFFIXES
from durian_adv.data.scoring.media import Media

Unscored = Callable[[str, list[str]], object]  # told what to call a row, and what in it has no visual entropy


class Source(Protocol):
    """A data set with images."""

    root: Path | None  # where its relative paths start
    kinds: tuple[str, ...]  # suffixes that an output may have; "" is a folder

    def __len__(self) -> int:
        """Return the number of rows."""

    def rows(self) -> Iterator[Media]:
        """Return the media of each row."""

    def where(self, row: int) -> str:
        """Return what to call a row, counted from 0, in a message, where it is counted from 1."""

    def write(self, entropies: Sequence[float], output: Path, extra_info: bool) -> None:
        """Write all rows with their entropies; in ``extra_info`` too where there is one, or where it is wanted."""


def open_source(path: Path, images: str | None, root: Path | None) -> Source:
    """Open a data set by what it is on disk.

    Raises:
        FileNotFoundError, ValueError: nothing there; a file that cannot be used, by name and row.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: does not exist")
    if path.is_dir():
        return _open_folder(path, images, root)
    if path.suffix == ".csv":
        return csv_file.Csv(path, images, root or path.parent)
    if path.suffix == ".json":
        return json_rows.JsonArray(path, images, root or path.parent)
    if path.suffix == ".jsonl":
        return json_rows.JsonLines(path, images, root or path.parent)
    if path.suffix == ".parquet":
        return parquet.Parquet(path, images, root or path.parent)
    raise ValueError(f"{path}: expected a folder, or a name that ends in .parquet, .jsonl, .json or .csv")


def for_output(source: Source, output: Path, by_image: bool, unscored: Unscored) -> Source:
    """Return the data set in the form that this output has; refuse a name that does not fit, before hours of work."""
    aside.check_free([output])
    if output.suffix == ".json" and (by_image or ".json" not in source.kinds):
        return ByImage(source, unscored)
    if by_image:
        raise ValueError(f"{output}: expected a name that ends in .json, for a table by image")
    if output.suffix not in source.kinds:
        named = "no suffix, as a folder is written," if source.kinds == ("",) else " or ".join(source.kinds)
        raise ValueError(f"{output}: expected a name with {named} for this input, or with .json for a table by image")
    return source


def _open_folder(path: Path, images: str | None, root: Path | None) -> Source:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        on_disk = "durian_adv.data.scoring.datasets_on_disk"  # imports datasets, which tables do without
        return importlib.import_module(on_disk).DatasetOnDisk(path, images, root)  # type: ignore[no-any-return]
    shards = sorted(file for file in path.rglob("*.parquet") if file.is_file())
    pictures = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if shards and pictures:
        raise ValueError(
            f"{path}: expected a folder of images or one of parquet files, got {pictures[0].relative_to(path)} beside "
            f"{shards[0].relative_to(path)}; name the folder inside it that holds the one or the other"
        )
    if shards:
        return parquet.Shards(path, shards, images, root or path)
    if not pictures:
        raise ValueError(f"{path}: expected a folder with images or parquet files, got none")
    return Folder(path, [picture.relative_to(path).as_posix() for picture in pictures])


class Folder:
    """Images in a folder and those below it, by their names; what is written is a table of paths and entropies."""

    kinds: tuple[str, ...] = tables.SUFFIXES

    def __init__(self, path: Path, files: list[str]) -> None:
        self.root: Path | None = path
        self._files = files
        for name in files:
            _check_text(name, f"{path}")

    def __len__(self) -> int:
        return len(self._files)

    def rows(self) -> Iterator[Media]:
        """Return paths below the folder."""
        return (Media([file], []) for file in self._files)

    def where(self, row: int) -> str:
        """Return the number of a file and the folder."""
        return f"{self.root}, row {row + 1}"

    def write(self, entropies: Sequence[float], output: Path, extra_info: bool) -> None:
        """Write the output; see ``Source``."""
        columns: dict[str, Any] = {"image": self._files, COLUMN: pa.array(entropies, pa.float64())}
        if extra_info:
            columns[EXTRA] = [{COLUMN: entropy} for entropy in entropies]
        tables.write_table(pa.table(columns), output)


class ByImage:
    """The distinct images of a data set by their paths; what is written is a JSON object from path to entropy."""

    kinds: tuple[str, ...] = (".json",)

    def __init__(self, source: Source, unscored: Unscored) -> None:
        self.root = source.root
        self._paths: dict[str, str] = {}  # where each was seen first
        for row, media in enumerate(source.rows()):
            if media.other:
                unscored(source.where(row), media.other)
            for image in media.pictures:
                if not isinstance(image, str):
                    raise ValueError(
                        f"{source.where(row)}: expected paths for a table by image, got {type(image).__name__}"
                    )
                _check_text(image, source.where(row))
                self._paths.setdefault(image, source.where(row))

    def __len__(self) -> int:
        return len(self._paths)

    def rows(self) -> Iterator[Media]:
        """Return the paths."""
        return (Media([path], []) for path in self._paths)

    def where(self, row: int) -> str:
        """Return where an image was seen first."""
        return list(self._paths.values())[row]

    def write(self, entropies: Sequence[float], output: Path, extra_info: bool) -> None:
        """Write the object; ``extra_info`` has no place in it."""
        output.write_text(tables.json_line(dict(zip(self._paths, entropies, strict=True))), encoding="utf-8")


def _check_text(path: str, where: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: expected paths in UTF-8, got {path!r}") from None
