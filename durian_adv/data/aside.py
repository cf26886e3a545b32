"""Output written aside, then renamed: what has its final name is whole, whenever the process ends."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def check_free(paths: Sequence[Path]) -> None:
    """Check that every name can be written to, before any work.

    Names that a killed run had renamed already, while others of the same run were not yet, are free.

    Raises:
        ValueError: a name that exists or is given twice, or whose parent directory does not exist.
    """
    half_done = _renamed_before(paths)
    for place, path in enumerate(paths):
        if not path.parent.is_dir():
            raise ValueError(f"{path}: parent directory does not exist")
        if path.resolve() in [other.resolve() for other in paths[:place]]:
            raise ValueError(f"{path}: given for two outputs")
        if os.path.lexists(path) and not half_done:
            raise ValueError(f"{path}: already exists")


@contextmanager
def written(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Give a name aside for each output; rename all at the end, or remove them if there was an error.

    Between the renames of several outputs a journal beside the first one names them all: a run that is killed there is
    repeated by starting it again (``check_free``).

    >>> path = getfixture("tmp_path") / "table.jsonl"
    >>> with written([path]) as (aside,):
    ...     _ = aside.write_text("{}")
    ...     print(aside.name, path.exists())
    table.partial.jsonl False
    >>> path.exists(), aside.exists()
    (True, False)
    """
    asides = [path.with_name(f"{path.stem}.partial{path.suffix}") for path in paths]
    try:
        for aside in asides:
            _remove(aside)  # of a run that was killed
        yield asides
        _rename(asides, paths)
    except BaseException:
        for aside in asides:
            _remove(aside)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the output in errors of the disk that name no file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or str(path) in str(error):
            raise
        raise OSError(f"{path}: cannot be written: {error.strerror or error}") from None


def _rename(asides: Sequence[Path], paths: Sequence[Path]) -> None:
    journal = _journal(paths)
    if len(paths) > 1:
        whole = journal.with_name(journal.name + ".partial")
        whole.write_text(_names(paths), encoding="utf-8")
        os.replace(whole, journal)
    for aside, path in zip(asides, paths, strict=True):
        os.replace(aside, path)
    journal.unlink(missing_ok=True)


def _renamed_before(paths: Sequence[Path]) -> bool:
    try:
        return _journal(paths).read_text(encoding="utf-8") == _names(paths)
    except (OSError, UnicodeDecodeError):
        return False


def _journal(paths: Sequence[Path]) -> Path:
    return paths[0].with_name(paths[0].name + ".renaming")


def _names(paths: Sequence[Path]) -> str:
    return json.dumps([os.fsdecode(path.resolve()) for path in paths])


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
