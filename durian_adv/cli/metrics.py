"""``durian-adv metrics``: what Durian would do with logged rollouts, in numbers."""

from __future__ import annotations

import argparse
import json
from typing import Any

from durian_adv.cli import rollouts
from durian_adv.data import json_lines
from durian_adv.diagnostics import durian_metrics


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "metrics",
        help="metrics of Durian on logged rollouts, per step",
        description=f"Write the metrics of each step of a log of rollouts, one JSON object a line. {rollouts.KEYS}",
    )
    command.set_defaults(run=run)
    rollouts.add_options(command)


def run(options: argparse.Namespace) -> None:
    """Print the metrics of each step of a rollout log; null where one is undefined."""
    log, chosen = rollouts.read(options), rollouts.of_components(options)
    rollouts.tell(log, "metrics")
    for step in log.steps:
        # a score that no rollout of the step has leaves its component out
        for name in ("visual_entropy", "confidence"):
            if getattr(step, name) is None:
                where = "" if step.name is None else f"step {step.name}: "
                rollouts.say("metrics", f"{where}no rollout has {name}, its component is left out")
        found = durian_metrics(
            rollouts.components(step, **chosen),
            step.rewards,
            prompt_index=step.prompt_index,
            success_threshold=log.success_threshold,
            category=step.category if len(chosen["weights"]) == 4 else None,
            no_signal=chosen["no_signal"],
        )
        row = ({} if step.name is None else {"step": step.name}) | json_lines.without_nan(found)
        print(json.dumps(row, allow_nan=False))
