"""Our own adapters: ``rollout_log``, a parquet file per step, with what the run computed.

A batch was normalized as a whole, so it is a step of its own. A rollout that was not valid has no reward here, as it
had no influence there.
"""

from __future__ import annotations

from collections.abc import Iterator

from durian_adv.data.logs.formats.base import Format, Reading, has
from durian_adv.data.logs.rows import Row


def _rows(rows: Iterator[Row], reading: Reading) -> Iterator[Row]:
    reading.said["prompts, scores and categories as the run had them"] = None
    places: dict[tuple[int, int, str], dict[int, int]] = {}  # of the groups of a batch with one prompt
    for row in rows:
        values = row.values
        groups = places.setdefault((values["step"], values["batch"], values["prompt"]), {})
        place = groups.setdefault(values["group"], len(groups))
        step = f"{values['step']}.{values['batch']}" if values["batch"] else str(values["step"])
        given = {
            "step": step,
            "prompt": [values["prompt"], place] if place else values["prompt"],
            "label": values["prompt"] if values.get("text") is None else values["text"],
            "reward": values["reward"] if values["valid"] else None,
        }
        yield row._replace(given=given)


FORMAT = Format(
    "durian",
    "Durian rollouts",
    has("step", "batch", "prompt", "group", "rollout", "reward", "valid", "advantage"),
    rows=_rows,
)
