"""``durian-adv metrics``: what Durian would do with logged rollouts, in numbers."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from durian_adv.cli import rollouts
from durian_adv.diagnostics import durian_metrics


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "metrics",
        help="what Durian would do with logged rollouts, in numbers",
        description=f"Write the metrics of each step of a log of rollouts, one JSON object a line. {rollouts.KEYS}",
    )
    command.set_defaults(run=run)
    rollouts.add_options(command)


def run(options: argparse.Namespace) -> None:
    """Print the metrics of each step of a rollout log."""
    for step in rollouts.steps(options):
        # a score that no rollout of the step has leaves its component out
        for name in ("visual_entropy", "confidence"):
            if getattr(step, name) is None:
                where = "" if step.name is None else f"step {step.name}: "
                print(f"durian-adv metrics: {where}no rollout has {name}, its component is left out", file=sys.stderr)
        found = durian_metrics(
            rollouts.components(step, options),
            step.rewards,
            prompt_index=step.prompt_index,
            **rollouts.given(options, "success_threshold"),
        )
        print(json.dumps(({} if step.name is None else {"step": step.name}) | found))
