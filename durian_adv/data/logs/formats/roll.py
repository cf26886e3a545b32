"""ROLL: ``rollout_dump_data.step_N.jsonl``, one line of columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from durian_adv.data.logs.formats.base import Format, Reading, one_per_row
from durian_adv.data.logs.rows import Row


def _recognizes(row: dict[str, Any]) -> bool:
    return all(isinstance(row.get(name), list) for name in ("global_step", "responses", "scores"))


def _rows(rows: Iterator[Row], reading: Reading) -> Iterator[Row]:
    for columns in rows:
        for row in one_per_row(columns.values, columns.where):
            prompt = row.values["id"] if row.values.get("id") is not None else row.values.get("prompt")
            yield row._replace(given={"prompt": prompt, "label": row.values.get("prompt", prompt)})


FORMAT = Format("roll", "ROLL rollouts", _recognizes, {"reward": "scores", "step": "global_step"}, _rows)
