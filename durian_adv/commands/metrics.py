"""``durian-adv metrics``: what Durian would do with logged rollouts, in numbers."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

import durian_adv
from durian_adv.diagnostics import durian_metrics

_SCORES = ("visual_entropy", "confidence")


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "metrics",
        help="what Durian would do with logged rollouts",
        description="Read rollouts, one JSON object a line with the keys prompt, reward and, where there, "
        "visual_entropy, confidence and step; write the metrics of each step, one JSON object a line.",
    )
    command.set_defaults(run=run)
    command.add_argument("log", type=Path, help="a file of JSON lines")
    command.add_argument("--weights", type=float, nargs=3, metavar=("GRPO", "PERC", "REAS"))
    command.add_argument("--entropy-quantiles", type=float, nargs="+", metavar="LEVEL")
    command.add_argument("--num-confidence-buckets", type=int, metavar="N")
    command.add_argument("--eps", type=float)
    command.add_argument("--correction", type=int, choices=(0, 1))
    command.add_argument("--success-threshold", type=float, metavar="REWARD")


def run(options: argparse.Namespace) -> None:
    """Print the metrics of each step of a rollout log."""
    steps: dict[Any, list[dict[str, Any]]] = {}
    with options.log.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                rollout = _rollout(line, f"{options.log}, line {number}")
                steps.setdefault(rollout.get("step"), []).append(rollout)
    if not steps:
        raise ValueError(f"{options.log}: expected at least one rollout, got none")
    for step, rollouts in steps.items():
        numbers: dict[Any, int] = {}
        prompt_index = torch.tensor([numbers.setdefault(rollout["prompt"], len(numbers)) for rollout in rollouts])
        rewards = _column(rollouts, "reward")
        # a score that no rollout of the step has leaves its component out
        scores = {name: _column(rollouts, name) for name in _SCORES if any(name in rollout for rollout in rollouts)}
        for name in _SCORES:
            if name not in scores:
                where = "" if step is None else f"step {step}: "
                print(f"durian-adv metrics: {where}no rollout has {name}, its component is left out", file=sys.stderr)
        components = durian_adv.durian_components(
            rewards,
            visual_entropy=scores.get("visual_entropy"),
            confidence=scores.get("confidence"),
            prompt_index=prompt_index,
            **_given(options, "weights", "entropy_quantiles", "num_confidence_buckets", "eps", "correction"),
        )
        found = durian_metrics(components, rewards, prompt_index=prompt_index, **_given(options, "success_threshold"))
        print(json.dumps(({} if step is None else {"step": step}) | found))


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the options that were given; the defaults of the others are those of the functions."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _rollout(line: str, where: str) -> dict[str, Any]:
    try:
        rollout = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: expected a JSON object, got {line.strip()[:60]!r} ({error})") from None
    if not isinstance(rollout, dict):
        raise ValueError(f"{where}: expected a JSON object, got {line.strip()[:60]!r}")
    for key in ("prompt", "reward"):
        if key not in rollout:
            raise ValueError(f"{where}: expected the key {key!r}, got {sorted(rollout)}")
    for key in ("prompt", "step"):
        if key in rollout and (not isinstance(rollout[key], (str, int)) or isinstance(rollout[key], bool)):
            raise ValueError(f"{where}: {key}: expected an integer or a string, got {rollout[key]!r}")
    for key in ("reward", *_SCORES):
        if not isinstance(rollout.get(key), (int, float, type(None))):
            raise ValueError(f"{where}: {key}: expected a number or null, got {rollout[key]!r}")
        if abs(rollout.get(key) or 0) > sys.float_info.max and isinstance(rollout[key], int):
            raise ValueError(f"{where}: {key}: expected a number within the range of float64, got one far outside")
    return rollout


def _column(rollouts: list[dict[str, Any]], key: str) -> torch.Tensor:
    values = [rollout.get(key) for rollout in rollouts]
    return torch.tensor([math.nan if value is None else float(value) for value in values], dtype=torch.float64)
