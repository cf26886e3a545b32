"""NeMo-RL: ``train_data_stepN.jsonl``, one rollout per line, each value in a list of length 1.

There is no id: a prompt is its tokens, those before the first that was sampled. Log-probabilities are of all positions,
and ``token_loss_mask`` says which were sampled. With dynamic sampling, ``filtered_rewards`` belong to the rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from durian_adv.data.logs.formats.base import Format, Reading, has
from durian_adv.data.logs.rows import Row, short

_STEP = re.compile(r"train_data_step([0-9]+)")


def _rows(rows: Iterator[Row], reading: Reading) -> Iterator[Row]:
    step = _STEP.match(reading.file)
    reading.said["a prompt is the tokens before the first sampled one"] = None
    reading.said["log-probabilities where token_loss_mask is 1"] = None
    for row in rows:
        values = {name: _single(value, name, row.where) for name, value in row.values.items() if name != "idx"}
        mask, tokens = values["token_loss_mask"], values["token_ids"]
        first = next((place for place, sampled in enumerate(mask) if sampled), len(mask))
        given: dict[str, Any] = {
            "prompt": tokens[:first],
            "label": values.get("content"),
            "logprobs": values.get("generation_logprobs"),
            "mask": mask,
            "reward": values["filtered_rewards"] if "filtered_rewards" in values else values["rewards"],
        }
        if step is not None:
            given["step"] = int(step[1])
        yield Row(row.where, values, given)


def _single(value: Any, name: str, where: str) -> Any:
    if not isinstance(value, list) or len(value) != 1:
        raise ValueError(f"{where}: {name}: expected a list of length 1, got {short(value)}")
    return value[0]


FORMAT = Format(
    "nemo-rl",
    "NeMo-RL train data",
    has("rewards", "token_ids", "token_loss_mask"),
    {"reward": "rewards"},
    _rows,
)
