"""slime: ``--save-debug-rollout-data``, a torch file per rollout id, with the samples as dicts.

A prompt is ``group_index``. Aborted samples have no reward. ``rollout_log_probs`` and ``loss_mask`` are of the
response.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from durian_adv.data.logs.formats.base import Format, Reading
from durian_adv.data.logs.rows import Row, short


def _recognizes(row: dict[str, Any]) -> bool:
    return isinstance(row.get("samples"), list) and "rollout_id" in row


def _rows(rows: Iterator[Row], reading: Reading) -> Iterator[Row]:
    for file in rows:
        for number, sample in enumerate(file.values["samples"], 1):
            where = f"{file.where}, sample {number}"
            if not isinstance(sample, dict) or "reward" not in sample:
                raise ValueError(f"{where}: expected a sample with a reward, got {short(sample)}")
            values = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in sample.items()}
            given = {
                "step": file.values["rollout_id"],
                "prompt": values.get("group_index"),
                "label": values.get("prompt"),
                "logprobs": values.get("rollout_log_probs"),
                "mask": values.get("loss_mask"),
            }
            yield Row(where, values, given)


FORMAT = Format("slime", "slime samples", _recognizes, {"prompt": "group_index"}, _rows)
