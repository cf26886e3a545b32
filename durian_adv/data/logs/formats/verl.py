"""verl: ``trainer.rollout_data_dir/STEP.jsonl``, one rollout per line, in its v0 and its v1 trainer.

v1 writes ``uid``, the key of a row, ``{prompt}_{rollout}_{output}``; only the last output of a rollout has part in
GRPO's advantages there (``compute_advantage_for_multi_trajectories``), so only it is read. v0 writes no id and reorders
rows, so a prompt is its text and its ground truth: two images under one text and one answer are one prompt, which the
checks of group sizes find.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from durian_adv.data.logs.formats.base import Format, Reading, has
from durian_adv.data.logs.rows import Row, short

_UID = re.compile(r"(.+)_([0-9]+)_([0-9]+)")


def _rows(rows: Iterator[Row], reading: Reading) -> Iterator[Row]:
    last: Row | None = None
    session: tuple[str, str] | None = None
    done: set[tuple[str, str]] = set()
    for row in rows:
        text, uid = row.values.get("input"), row.values.get("uid")
        if not isinstance(uid, str):
            reading.said["a prompt is its input and gts (verl v0 writes no id)"] = None
            yield row._replace(given={"prompt": [text, row.values.get("gts")], "label": text})
            continue
        found = _UID.fullmatch(uid)
        if found is None:  # the uid of a prompt
            yield row._replace(given={"prompt": uid, "label": text})
            continue
        reading.said["a prompt is the first part of uid"] = None
        now = found[1], found[2]
        if now != session:
            if last is not None:
                yield last
            if now in done:
                raise ValueError(
                    f"{row.where}: uid: expected a rollout's outputs in a row, as verl writes, got {short(uid)} apart"
                )
            done.add(now)
        last, session = row._replace(given={"prompt": found[1], "label": text}), now
    if last is not None:
        yield last


FORMAT = Format(
    "verl", "verl rollouts", has("input", "output", "score", "step"), {"reward": "score"}, _rows, unread=("output",)
)
