"""What a rollout log of a run holds, and what the report concludes from it, in the environment of any trainer."""

import functools
from pathlib import Path

import pyarrow.parquet as pq

from durian_adv.cli import rollouts
from durian_adv.data.logs.steps import Options, read_log
from durian_adv.report.numbers import Summary
from durian_adv.report.verdict import verdict


def rows_of(folder):
    """The rows of each file, in the order of the steps."""
    return {path.name: pq.read_table(path).to_pylist() for path in sorted(Path(folder).glob("*.parquet"))}


def concluded(folder, **options):
    """The verdict of the report on a log, read without an option; ``options`` are those of Durian."""
    log = read_log([Path(folder)], Options())
    chosen = {"weights": (0.1, 0.2, 0.7), **options}
    summary = Summary(functools.partial(rollouts.components, **chosen), read_as=log.read_as, grouping=log.findings)
    for step in log.steps:
        summary.add(step)
    return verdict(summary)
