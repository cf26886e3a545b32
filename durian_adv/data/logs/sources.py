"""Where a log lies: files, folders, standard input, pipes. Each is opened once, and unpacked if it is gzip."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from durian_adv.data.logs.rows import natural

STDIN = "-"
# files of a folder that are taken for parts of a log; what is in them decides how they are read
SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".pt", ".pkl", ".log")
HEAD = 64  # bytes that tell what a file is; a pipe may give them one by one
NO_ROLLOUTS = ("aggregated_results.jsonl",)  # SkyRL's means, beside its evaluations


class Files(NamedTuple):
    """The files of a log."""

    paths: list[Path]
    left_out: list[Path]  # of folders: by their names, no rollouts


def find(paths: Sequence[Path]) -> Files:
    """Return the files of paths that may be folders; those of a folder by the numbers in their names.

    Raises:
        ValueError: a folder without a file that could hold rollouts, or with the same rollouts twice.
    """
    found: list[Path] = []
    left_out: list[Path] = []
    for path in paths:
        if str(path) == STDIN or not path.is_dir():
            found.append(path)
            continue
        files = [file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path))]
        files.sort(key=lambda file: natural(str(file)))
        those = [file for file in files if _suffix(file) in SUFFIXES and not _is_other(file)]
        if not those:
            raise ValueError(f"{path}: expected a folder with files such as *.jsonl or *.parquet, got none")
        _check_subsets(path, those)
        found += those
        left_out += [file for file in files if file not in set(those)]
    return Files(found, left_out)


def size(paths: Sequence[Path]) -> int | None:
    """Return how many bytes there are to read; None where a pipe does not say it."""
    if any(str(path) == STDIN or not path.is_file() for path in paths):
        return None
    return sum(path.stat().st_size for path in paths)


@contextmanager
def opened(path: Path, progress: Callable[[int], object]) -> Iterator[IO[bytes]]:
    """Open a file once, for reading from its start; what is gzip comes unpacked.

    ``progress`` is called with how many bytes have been read of the file as it is. What can be sought in can be sought
    in; where that is needed of a pipe, ``seekable`` makes it so.
    """
    with _raw(path) as raw:
        counted = _Counted(raw, progress)
        stream = io.BufferedReader(counted, 1 << 16)
        if stream.peek(2)[:2] != b"\x1f\x8b":
            yield stream
            counted.reached(counted.seek(0, io.SEEK_END) if counted.seekable() else 0)
            return
        try:
            yield io.BufferedReader(gzip.GzipFile(fileobj=stream), 1 << 16)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{name(path)}: expected a gzip file, got one that cannot be unpacked ({error})") from None


def seekable(stream: IO[bytes]) -> IO[bytes]:
    """Return a stream that can be sought in: itself, or a copy in memory."""
    if isinstance(stream, io.BufferedReader) and isinstance(stream.raw, _Counted) and stream.seekable():
        return stream
    return io.BytesIO(stream.read())


def name(path: Path) -> str:
    """Return what to call a file in an error."""
    return "standard input" if str(path) == STDIN else str(path)


@contextmanager
def _raw(path: Path) -> Iterator[io.RawIOBase]:
    if str(path) == STDIN:
        yield sys.stdin.buffer  # type: ignore[misc]  # left open: it is not ours
        return
    with path.open("rb", buffering=0) as raw:
        yield raw


class _Counted(io.RawIOBase):
    """A stream that tells how many bytes have been read."""

    def __init__(self, raw: io.RawIOBase, progress: Callable[[int], object]) -> None:
        self._raw, self._progress = raw, progress
        self._at = self._furthest = 0  # what is read again is not counted again

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._raw.seekable()

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = self._raw.seek(offset, whence)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        read = self._raw.readinto(buffer) or 0
        while 0 < self._at + read < HEAD and (more := self._raw.readinto(memoryview(buffer)[read:])):
            read += more
        self._at += read
        self.reached(self._at)
        return read

    def reached(self, place: int) -> None:
        """Tell that everything up to here is read, or not needed."""
        if place > self._furthest:
            self._progress(place - self._furthest)
            self._furthest = place


def _is_other(path: Path) -> bool:
    """Whether a file holds no rollouts, or was not finished by a run that was killed."""
    return path.name in NO_ROLLOUTS or Path(path.stem).suffix == ".partial"


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _check_subsets(folder: Path, files: Sequence[Path]) -> None:
    """Refuse both of prime-rl's subsets of a step: all rollouts, and those of them that were trained on."""
    there = set(files)
    for file in files:
        twin = file.parent.parent / "effective" / file.name
        if file.parent.name == "all" and twin in there:
            raise ValueError(
                f"{folder}: expected each rollout once, got {file} and {twin}, which holds some of them again: name "
                "one subset, such as step_*/train/effective/traces.jsonl"
            )
