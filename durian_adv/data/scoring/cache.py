"""Entropies that are known already, in a file that outlives the process: whoever is killed goes on from there."""

from __future__ import annotations

import math
import sqlite3
import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path

_SECONDS = 60.0  # to wait for other processes that write
_COLUMNS = ["encoder", "image", "entropy"]
# by the primary code of SQLite, https://www.sqlite.org/rescode.html
_FAULTS = {
    sqlite3.SQLITE_BUSY: "another process has been writing to this cache for {seconds:g} seconds; start again later",
    sqlite3.SQLITE_LOCKED: "another process has been writing to this cache for {seconds:g} seconds; start again later",
    sqlite3.SQLITE_NOTADB: "expected a cache of entropies, got another file",
    sqlite3.SQLITE_CORRUPT: "this cache is damaged; delete it, and its entropies are computed again",
    sqlite3.SQLITE_FULL: "no space is left for this cache",
    sqlite3.SQLITE_READONLY: "this cache cannot be written to",
    sqlite3.SQLITE_CANTOPEN: "this cache cannot be opened or made",
    sqlite3.SQLITE_PERM: "this cache cannot be opened or made",
    sqlite3.SQLITE_IOERR: "this cache cannot be read or written",
}


class CacheError(OSError):
    """A cache that cannot be used: its path, what is wrong, and what SQLite says of it."""


class Cache(MutableMapping[bytes, float]):
    """A mapping from an image's hash to its entropy for one encoder, in an SQLite file that several may share.

    Args:
        path: the file, which is made where it does not exist.
        encoder: the name of the encoder.

    Raises:
        CacheError: from every method, where the file cannot be used.
    """

    def __init__(self, path: Path, encoder: str) -> None:
        self._path, self._encoder = path, encoder
        if not path.parent.is_dir():
            raise CacheError(f"{path}: parent directory does not exist")
        with self._errors():
            self._file = sqlite3.connect(path, timeout=_SECONDS)
            try:
                self._file.execute(
                    "CREATE TABLE IF NOT EXISTS entropies (encoder TEXT, image BLOB, entropy REAL, "
                    "PRIMARY KEY (encoder, image)) WITHOUT ROWID"
                )
                columns = [name for _, name, *_ in self._file.execute("PRAGMA table_info(entropies)")]
                if columns != _COLUMNS:
                    raise CacheError(
                        f"{path}: expected a cache of entropies, with the columns {', '.join(_COLUMNS)}, got another "
                        f"file, with {', '.join(columns)}"
                    )
            except BaseException:
                self._file.close()
                raise
        weakref.finalize(self, _closed, self._file)  # a scorer is dropped, not closed

    def __getitem__(self, image: bytes) -> float:
        query = "SELECT entropy FROM entropies WHERE encoder = ? AND image = ?"
        with self._errors():
            row = self._file.execute(query, (self._encoder, image)).fetchone()
        if row is None:
            raise KeyError(image)
        if not isinstance(row[0], float | None):
            raise CacheError(f"{self._path}: this cache is damaged: expected an entropy, got {row[0]!r:.60}")
        return math.nan if row[0] is None else row[0]  # SQLite keeps NaN as NULL

    def __setitem__(self, image: bytes, entropy: float) -> None:
        self.update({image: entropy})

    def update(self, found: Mapping[bytes, float]) -> None:  # type: ignore[override]  # in one transaction
        """Keep the entropies of a batch."""
        rows = [(self._encoder, image, entropy) for image, entropy in found.items()]
        with self._errors(), self._file:
            self._file.executemany("INSERT OR REPLACE INTO entropies VALUES (?, ?, ?)", rows)

    def __delitem__(self, image: bytes) -> None:
        raise TypeError("a cache of entropies forgets nothing")

    def __iter__(self) -> Iterator[bytes]:
        query = "SELECT image FROM entropies WHERE encoder = ?"
        with self._errors():
            found = self._file.execute(query, (self._encoder,)).fetchall()
        return (image for (image,) in found)

    def __len__(self) -> int:
        query = "SELECT count(*) FROM entropies WHERE encoder = ?"
        with self._errors():
            return int(self._file.execute(query, (self._encoder,)).fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says more than is needed
            fault = _FAULTS.get(code, "this cache cannot be used").format(seconds=_SECONDS)
            raise CacheError(f"{self._path}: {fault} ({error})") from None


def _closed(file: sqlite3.Connection) -> None:
    with suppress(sqlite3.ProgrammingError):  # in a thread that did not open it
        file.close()
