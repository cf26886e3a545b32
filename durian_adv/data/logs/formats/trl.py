"""TRL: ``completions/completions_STEP.parquet`` of ``log_completions=True``, or the same table exported from a tracker.

Columns: step, prompt, completion, one per reward function, those that reward functions log beside, advantage. Images
are not in it, and there is no id: TRL guarantees that a prompt's ``num_generations`` rollouts stand one after another.
In a table of our adapter's, columns with ``durian_`` before their names say groups, rewards and scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from durian_adv.data.logs.formats import consecutive
from durian_adv.data.logs.formats.base import Format, Reading, has
from durian_adv.data.logs.rows import COLUMNS, Row, label

_OTHERS = {"step", "prompt", "completion", "advantage", *COLUMNS}


def _rows(rows: Iterator[Row], reading: Reading) -> Iterator[Row]:
    first = next(rows)
    rows = itertools.chain([first], rows)
    if "durian_group" in first.values:
        return _of_ours(rows, reading)
    return consecutive.rows(rows, reading, "advantage", _rewards)


def _of_ours(rows: Iterator[Row], reading: Reading) -> Iterator[Row]:
    reading.said["groups, rewards and scores by the columns durian_*"] = None
    for row in rows:
        values = {
            name.removeprefix("durian_"): value for name, value in row.values.items() if name.startswith("durian_")
        }
        if values["group"] is None:
            reading.said["evaluations left out"] = None
            continue
        scores = {name: values[name] for name in ("visual_entropy", "confidence", "category")}
        given = {
            "prompt": [values["prompt"], values["group"]],
            "label": label(row.values["prompt"]),
            "reward": values["reward"] if values["valid"] else None,
        }
        yield row._replace(given={**row.given, **given, **scores})


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
