"""Entropies that are known already, in a file that outlives the process: whoever is killed goes on from there."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

_SECONDS = 60.0  # to wait for other processes that write


class Cache(MutableMapping[bytes, float]):
    """A mapping from an image's hash to its entropy for one encoder, in an SQLite file that several may share."""

    def __init__(self, path: Path, encoder: str) -> None:
        self._encoder = encoder
        if not path.parent.is_dir():
            raise ValueError(f"{path}: expected a name in a folder that is there, got none")
        try:
            self._file = sqlite3.connect(path, timeout=_SECONDS)
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS entropies (encoder TEXT, image BLOB, entropy REAL, "
                "PRIMARY KEY (encoder, image)) WITHOUT ROWID"
            )
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: expected a cache of entropies, got another file ({error})") from None

    def __getitem__(self, image: bytes) -> float:
        row = self._file.execute(
            "SELECT entropy FROM entropies WHERE encoder = ? AND image = ?", (self._encoder, image)
        ).fetchone()
        if row is None:
            raise KeyError(image)
        return math.nan if row[0] is None else float(row[0])  # SQLite keeps NaN as NULL

    def __setitem__(self, image: bytes, entropy: float) -> None:
        self.update({image: entropy})

    def update(self, found: Mapping[bytes, float]) -> None:  # type: ignore[override]  # in one transaction
        """Keep the entropies of a batch."""
        rows = [(self._encoder, image, entropy) for image, entropy in found.items()]
        with self._file:
            self._file.executemany("INSERT OR REPLACE INTO entropies VALUES (?, ?, ?)", rows)

    def __delitem__(self, image: bytes) -> None:
        raise TypeError("a cache of entropies forgets nothing")

    def __iter__(self) -> Iterator[bytes]:
        query = "SELECT image FROM entropies WHERE encoder = ?"
        return (image for (image,) in self._file.execute(query, (self._encoder,)))

    def __len__(self) -> int:
        query = "SELECT count(*) FROM entropies WHERE encoder = ?"
        return int(self._file.execute(query, (self._encoder,)).fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._file.close()
