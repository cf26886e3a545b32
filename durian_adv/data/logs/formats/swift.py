"""ms-swift: ``completions.jsonl`` of ``log_completions``, one line per logging step, every value a list.

Columns: step, prompt, completion, one per reward function, advantages, and others. Under Megatron ``gen_step`` is the
step, and through Ray a line is a rollout. A prompt's ``num_generations`` rollouts stand one after another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from durian_adv.data.logs.formats import consecutive
from durian_adv.data.logs.formats.base import Format, Reading, one_per_row
from durian_adv.data.logs.rows import Row


def _recognizes(row: dict[str, Any]) -> bool:
    if not {"prompt", "completion"} <= set(row):
        return False
    columns = all(isinstance(row[name], list) for name in ("prompt", "completion"))
    return ("step" in row and columns and "advantages" in row) or "gen_step" in row


def _rows(rows: Iterator[Row], reading: Reading) -> Iterator[Row]:
    return consecutive.rows(_entries(rows), reading, "advantages", _rewards)


def _entries(rows: Iterator[Row]) -> Iterator[Row]:
    for line in rows:
        of_columns = isinstance(line.values["completion"], list)
        for row in one_per_row(line.values, line.where) if of_columns else [line]:
            step = row.values["step"] if "step" in row.values else row.values.get("gen_step")
            yield row._replace(given={"step": step})


def _rewards(step: list[Row]) -> list[list[str]]:
    names = list(step[0].values)
    end = names.index("advantages") if "advantages" in names else len(names)
    return [[name for name in names[names.index("completion") + 1 : end] if name != "gen_step"]]


FORMAT = Format("ms-swift", "ms-swift completions", _recognizes, rows=_rows)
