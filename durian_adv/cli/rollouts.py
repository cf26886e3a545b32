"""What commands over a rollout log share: its options, and from a step to Durian's components."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import durian_adv
from durian_adv._src.durian import DurianComponents
from durian_adv._src.options import add_arguments, checked
from durian_adv.data.logs.known import FORMATS
from durian_adv.data.logs.steps import Log, Options, Step, read_log

KEYS = (
    "A log is any number of files or folders, as a trainer wrote them, or rollouts as JSON objects with the keys "
    "prompt, reward and, where there, step, category, visual_entropy, confidence, and logprobs (a list; used where "
    "confidence is not there)."
)
OF_COMPONENTS = ("weights", "entropy_quantiles", "num_confidence_buckets", "no_signal", "eps", "correction")


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the log and the options of Durian."""
    add_log_options(command)
    add_arguments(command, OF_COMPONENTS)


def add_log_options(command: argparse.ArgumentParser) -> None:
    """Declare the log and how it is read."""
    command.add_argument(
        "log", type=Path, nargs="+", help="files of one log, in this order; folders of them; - for standard input"
    )
    command.add_argument(
        "--format",
        choices=sorted(FORMATS),
        help="writer of the log (default: recognized by the first row of each file)",
    )
    command.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="NAME=KEY",
        help="key in the log of prompt, reward, step, category, visual_entropy, confidence, logprobs or mask, "
        "such as reward=score, reward=rewards.accuracy, reward=accuracy*0.9+format*0.1, prompt=input+image (default: "
        "the keys of the format)",
    )
    command.add_argument(
        "--group-size", type=int, metavar="N", help="consecutive rollouts per prompt (default: prompts are told by ids)"
    )
    command.add_argument(
        "--file-per-step",
        action=argparse.BooleanOptionalAction,
        help="step of a rollout from the number in its file's name, or with --no- files as parts of one log (default: "
        "neither; prompts that lie in several files are warned of)",
    )
    command.add_argument(
        "--batch-prompts", type=int, metavar="N", help="prompts per step of a log without steps (default: all)"
    )
    add_arguments(command, ["confidence_reduction"])
    command.add_argument(
        "--success-threshold",
        type=float,
        metavar="REWARD",
        help="reward above which a rollout is correct (default: 0.5, or the middle of rewards that leave 0 to 1)",
    )


def read(options: argparse.Namespace, progress: Callable[[int], object] = lambda read: None) -> Log:
    """Read the log as the options say."""
    keys = {}
    for pair in options.key:
        name, equals, key = pair.partition("=")
        if not equals:
            raise ValueError(f"--key: expected NAME=KEY, got {pair!r}")
        keys[name] = key
    names = ("format", "file_per_step", "group_size", "confidence_reduction", "batch_prompts", "success_threshold")
    return read_log(options.log, Options(keys, **{name: getattr(options, name) for name in names}), progress)


def tell(log: Log, command: str) -> None:
    """Say on standard error as what a log was read, and what is suspicious of it."""
    say(command, f"read as {log.read_as}")
    for finding in log.findings:
        say(command, f"{finding.title}. {finding.text}")


def say(command: str, text: str) -> None:
    """Write a line to standard error; what a log brings into it cannot move a terminal."""
    print(f"durian-adv {command}: {printable(text)}", file=sys.stderr)


def printable(text: str) -> str:
    """Return a text in one line, with escapes for what is not to be seen."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def components(step: Step, **options: Any) -> DurianComponents:
    """Return Durian's components for a step; the category has part where there is a fourth weight."""
    return durian_adv.durian_components(
        step.rewards,
        visual_entropy=step.visual_entropy,
        confidence=step.confidence,
        category=step.category if len(options["weights"]) == 4 else None,
        prompt_index=step.prompt_index,
        **options,
    )


def of_components(options: argparse.Namespace) -> dict[str, Any]:
    """Return what ``durian_components`` takes beside the data, checked."""
    return checked({name: getattr(options, name) for name in OF_COMPONENTS}, allowed=OF_COMPONENTS)
