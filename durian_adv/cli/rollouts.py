"""What commands over a rollout log share: its options, and from a step to Durian's components."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import durian_adv
from durian_adv._src.durian import DurianComponents
from durian_adv.data.logs.steps import Step, read_steps

KEYS = (
    "Rollouts are JSON objects, one a line, or rows of parquet files, with the keys prompt, reward and, where there, "
    "step, visual_entropy, confidence, and logprobs (a list; used where confidence is not there)."
)
OF_COMPONENTS = ("weights", "entropy_quantiles", "num_confidence_buckets", "eps", "correction")


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the log and the options of Durian."""
    command.add_argument("log", type=Path, nargs="+", help="files of JSON lines or parquet, in this order")
    command.add_argument(
        "--key", action="append", default=[], metavar="NAME=KEY", help="what the log calls a key: reward=score"
    )
    command.add_argument(
        "--batch-prompts", type=int, metavar="N", help="of a log without steps, take each N prompts as a step"
    )
    command.add_argument("--confidence-reduction", choices=("sum", "mean"), default="sum", help="of logprobs")
    command.add_argument(
        "--weights", type=float, nargs=3, metavar=("GRPO", "PERC", "REAS"), help="of the three components"
    )
    command.add_argument(
        "--entropy-quantiles", type=float, nargs="+", metavar="LEVEL", help="that part the buckets of visual entropy"
    )
    command.add_argument("--num-confidence-buckets", type=int, metavar="N", help="of equally many prompts")
    command.add_argument("--eps", type=float, metavar="X", help="added to each std")
    command.add_argument("--correction", type=int, choices=(0, 1), help="each std divides by the number less this")
    command.add_argument("--success-threshold", type=float, metavar="REWARD", help="rewards above it are correct")


def steps(options: argparse.Namespace, progress: Callable[[int], object] = lambda read: None) -> Iterator[Step]:
    """Give the steps of the log."""
    keys = {}
    for pair in options.key:
        name, equals, key = pair.partition("=")
        if not equals:
            raise ValueError(f"--key: expected NAME=KEY, got {pair!r}")
        keys[name] = key
    return read_steps(
        options.log,
        keys=keys,
        confidence_reduction=options.confidence_reduction,
        batch_prompts=options.batch_prompts,
        progress=progress,
    )


def components(step: Step, options: argparse.Namespace) -> DurianComponents:
    """Return Durian's components for a step, with the options that were given."""
    return durian_adv.durian_components(
        step.rewards,
        visual_entropy=step.visual_entropy,
        confidence=step.confidence,
        prompt_index=step.prompt_index,
        **given(options, *OF_COMPONENTS),
    )


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the options that were given; the defaults of the others are those of the functions."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}
