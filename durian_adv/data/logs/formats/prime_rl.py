"""prime-rl, and verifiers from its version 1: ``traces.jsonl``, one episode per line, with the traces of its agents.

A rollout is a trace that trains the policy; an episode that failed before any has none, and counts as one without a
reward. A prompt is the group (where several agents are trained, with the agent), without groups the task. The reward is
the sum of score x weight; log-probabilities are those of all sampled nodes, each once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from durian_adv.data.logs.formats.base import Format, Reading
from durian_adv.data.logs.rows import Row, lookup, missing, number


def _recognizes(row: dict[str, Any]) -> bool:
    return isinstance(row.get("traces"), list) and isinstance(row.get("task"), dict)


def _rows(rows: Iterator[Row], reading: Reading) -> Iterator[Row]:
    reading.said["reward = sum of score x weight"] = None
    for row in rows:
        episode = row.values
        group = _first(episode, "group.id", "task.key", "task.hash")
        if group is None:
            raise ValueError(f"{row.where}: expected a group.id, a task.key or a task.hash, got none")
        step = lookup(episode, "run.work.step")
        common = {"label": lookup(episode, "task.data.prompt")}
        common = {name: value for name, value in common.items() if not missing(value)}
        common |= {} if missing(step) else {"step": step}
        trained = [trace for trace in episode["traces"] if trace.get("agent", {}).get("trainable", True)]
        if not trained:
            yield row._replace(given={**common, "prompt": [group, None], "reward": None})
        for trace in trained:
            agent = trace.get("agent", {}).get("name") if len(trained) > 1 else None
            given = {"reward": _reward(trace, row.where), "logprobs": _logprobs(trace)}
            yield row._replace(given={**common, **given, "prompt": [group, agent]})


def _first(episode: dict[str, Any], *paths: str) -> Any:
    found = (lookup(episode, path) for path in paths)
    return next((value for value in found if value is not None and not missing(value)), None)


def _reward(trace: dict[str, Any], where: str) -> float | None:
    scored = {name: reward for name, reward in trace.get("rewards", {}).items() if reward is not None}
    if not scored:  # scoring did not run
        return None
    total = 0.0
    for name, reward in scored.items():
        total += number(reward.get("score"), where, f"rewards.{name}.score") * reward.get("weight", 1.0)
    return total


def _logprobs(trace: dict[str, Any]) -> list[float] | None:
    values = [value for node in trace.get("nodes", []) for value in node.get("logprobs", [])]  # none of what was asked
    return values or None


FORMAT = Format("prime-rl", "prime-rl and verifiers v1 traces", _recognizes, rows=_rows)
