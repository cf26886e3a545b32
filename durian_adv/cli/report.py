"""``durian-adv report``: whether Durian would change anything for logged rollouts, as a page."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from durian_adv.cli import rollouts
from durian_adv.data.logs.steps import Log

if TYPE_CHECKING:  # matplotlib and the like, of an extra
    from durian_adv.report.numbers import Summary


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "report",
        help="page on whether Durian would change anything for logged rollouts",
        description="Compare what GRPO, Dr. GRPO, batch std and Durian would do with logged rollouts. Write a "
        f"self-contained report.html, its figures as PNG, and steps.csv. {rollouts.KEYS}",
    )
    command.set_defaults(run=run)
    rollouts.add_options(command)
    command.add_argument(
        "--out",
        type=Path,
        default=Path("durian-report"),
        metavar="FOLDER",
        help="output folder (default: durian-report)",
    )


def run(options: argparse.Namespace) -> None:
    """Write the report of a rollout log."""
    try:
        from tqdm import tqdm

        from durian_adv.data.logs import sources
        from durian_adv.report import figures, page
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: pip install 'durian-adv[report]'") from None
    chosen = rollouts.of_components(options)
    size = sources.size(sources.find(options.log).paths)
    with tqdm(total=size, unit="B", unit_scale=True, desc="reading", disable=None) as bar:
        log = rollouts.read(options, bar.update)
    rollouts.tell(log, "report")
    summary = _summary(log, chosen)
    for step in tqdm(log.steps, total=log.length, unit=" steps", desc="computing", disable=None):
        summary.add(step)
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = figures.draw(summary, options.out)
    page.write_steps(summary, options.out / "steps.csv")
    first, *others = options.log
    shown = {"success_threshold": log.success_threshold, "confidence_reduction": options.confidence_reduction}
    headlines = page.write(
        summary,
        pictures,
        options.out / "report.html",
        log=f"{first} and {len(others)} more" if others else str(first),
        options=chosen | shown,
    )
    print(*headlines, options.out / "report.html", sep="\n")


def _summary(log: Log, chosen: dict[str, Any]) -> Summary:
    """Return a summary of no step yet, with the options that were chosen."""
    from durian_adv.report.numbers import Summary

    return Summary(
        partial(rollouts.components, **chosen),
        success_threshold=log.success_threshold,
        eps=chosen["eps"],
        correction=chosen["correction"],
        read_as=log.read_as,
        grouping=log.findings,
    )
