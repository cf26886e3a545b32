"""Our own format, and any other of one rollout per row whose keys the user names."""

from __future__ import annotations

from collections.abc import Iterator

from durian_adv.data.logs.formats.base import Format, Reading
from durian_adv.data.logs.rows import MASKS, Row


def _rows(rows: Iterator[Row], reading: Reading) -> Iterator[Row]:
    for row in rows:
        if reading.keys.of("logprobs") in row.values and "mask" not in reading.keys.named:
            for mask in MASKS:
                if isinstance(row.values.get(mask), list):
                    reading.said[f"log-probabilities where {mask} is 1"] = None
        yield row


FORMAT = Format("plain", "plain rollouts", recognizes=lambda row: True, rows=_rows)
