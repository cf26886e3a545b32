"""TRL: ``completions/completions_STEP.parquet`` of ``log_completions=True``, or the same table exported from a tracker.

Columns: step, prompt, completion, one per reward function, those that reward functions log beside, advantage. Images
are not in it, and there is no id: TRL guarantees that a prompt's ``num_generations`` rollouts stand one after another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from durian_adv.data.logs.formats import consecutive
from durian_adv.data.logs.formats.base import Format, Reading, has
from durian_adv.data.logs.rows import COLUMNS, Row

_OTHERS = {"step", "prompt", "completion", "advantage", *COLUMNS}


def _rows(rows: Iterator[Row], reading: Reading) -> Iterator[Row]:
    return consecutive.rows(rows, reading, "advantage", _rewards)


def _rewards(step: list[Row]) -> list[list[str]]:
    """Return which columns may be the rewards, the likeliest first: what reward functions log stands behind them."""
    names = [name for name in step[0].values if name not in _OTHERS - {"reward"} and _are_numbers(step, name)]
    return [names[:count] for count in range(len(names), 0, -1)]


def _are_numbers(step: list[Row], name: str) -> bool:
    values: list[Any] = [row.values.get(name) for row in step]
    return all(value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) for value in values)


FORMAT = Format(
    "trl", "TRL completions", has("step", "prompt", "completion", "advantage"), rows=_rows, unread=("completion",)
)
