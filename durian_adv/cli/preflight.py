"""``durian-adv preflight``: checks of a training run with Durian before it starts."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

# trainer -> module with checks(arguments), an iterator of Check; the module may need the trainer
TRAINERS = {name: f"durian_adv.adapters.{name}.preflight" for name in ("easyr1", "openrlhf", "verl")}


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "preflight",
        help="checks of a training run before it starts",
        description="Check a training run before it starts. Give the name of the trainer, then the options of the run "
        "as the trainer takes them. The exit status is 2 if there is a problem.",
    )
    command.set_defaults(run=run)
    command.add_argument("trainer", choices=sorted(TRAINERS), help="trainer of the run")
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="options of the run")


def run(options: argparse.Namespace) -> None:
    """Print each check as soon as it is made."""
    try:
        trainer = importlib.import_module(TRAINERS[options.trainer])
    except ImportError as error:
        raise ValueError(f"{options.trainer} cannot be checked here: {error}") from None
    problems = 0
    for check in trainer.checks(options.arguments):
        print(f"{check.state:<8} {check.subject}: {check.finding}", flush=True)
        problems += check.state == "problem"
    if problems:
        raise ValueError(f"{problems} problem{'s' if problems > 1 else ''}")
