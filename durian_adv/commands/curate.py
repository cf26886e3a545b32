"""``durian-adv curate``: the prompts worth training on, in two stages, by the base model's accuracy."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "curate",
        help="keep prompts of moderate accuracy, in two stages",
        description="Read samplings of a base model, one a row with a prompt id and whether it is correct; write the "
        "prompts of stage 1 (medium) and stage 2 (medium to hard) as two tables, with accuracies and their intervals. "
        "With --dataset the rows of a data set are written instead, with a column accuracy. Tables are parquet or "
        "JSON lines, by their names (.parquet, .jsonl).",
    )
    command.set_defaults(run=run)
    command.add_argument("samplings", type=Path, help="a table of samplings")
    command.add_argument("stage1", type=Path, help="the table to write for stage 1")
    command.add_argument("stage2", type=Path, help="the table to write for stage 2")
    command.add_argument(
        "--prompt",
        nargs="+",
        default=["prompt"],
        metavar="COLUMN",
        help="the prompt id (default: prompt); several columns together where one repeats, such as step prompt",
    )
    command.add_argument(
        "--correct", default="correct", metavar="COLUMN", help="0 or 1, true or false, null: not known"
    )
    command.add_argument("--above", type=float, metavar="X", help="a sampling is correct if its column exceeds X")
    command.add_argument("--band", type=float, nargs=2, metavar=("LOW", "HIGH"), help="accuracies to keep")
    command.add_argument("--cut", type=float, metavar="P", help="accuracies below are of stage 2")
    command.add_argument("--keep", choices=("estimate", "possible", "certain"), help="how intervals count")
    command.add_argument("--confidence-level", type=float, metavar="LEVEL")
    command.add_argument("--method", choices=("wilson", "wilsoncc", "exact"), help="of the interval")
    command.add_argument("--dataset", type=Path, metavar="TABLE", help="the data set whose rows are to be split")
    command.add_argument("--id", nargs="+", default=["id"], metavar="COLUMN", help="its prompt id (default: id)")
    command.add_argument("--picture", type=Path, metavar="FILE", help="draw the histogram of accuracies")


def run(options: argparse.Namespace) -> None:
    """Write the two stages, and say what became of the prompts."""
    try:
        _run(options)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: expected what pip install 'durian-adv[curation]' brings") from None


def _run(options: argparse.Namespace) -> None:
    import pyarrow as pa

    from durian_adv import curation, tables

    for path in (options.stage1, options.stage2):
        tables.suffix(path)  # before any work
    samplings = tables.read_table(options.samplings)
    prompts = _ids(samplings, options.prompt, options.samplings)
    correct = tables.column(samplings, options.correct, options.samplings)
    if options.above is not None:
        correct = [None if value is None or value != value else value > options.above for value in correct]
    names = ("band", "cut", "keep", "confidence_level", "method")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    found = curation.curate(correct, prompts=prompts, **given)

    if options.dataset is None:
        rows = pa.table(
            {
                **dict(zip(options.prompt, map(pa.array, zip(*found.prompt, strict=True)), strict=False)),
                **{name: getattr(found, name) for name in ("samplings", "correct", "accuracy", "low", "high")},
            }
        )
        fates = found.fate.tolist()
    else:
        data = tables.read_table(options.dataset)
        number = {prompt: i for i, prompt in enumerate(found.prompt.tolist())}
        places = [number.get(name) for name in _ids(data, options.id, options.dataset)]
        if "accuracy" in data.column_names:
            raise ValueError(f"{options.dataset}: expected no column 'accuracy', which is to be written, got one")
        accuracy = [None if i is None else float(found.accuracy[i]) for i in places]
        rows = data.append_column("accuracy", pa.array(accuracy, pa.float64()))
        fates = ["not sampled" if i is None else str(found.fate[i]) for i in places]
    for name, path in (("stage_1", options.stage1), ("stage_2", options.stage2)):
        tables.write_table(rows.filter(pa.array([fate == name for fate in fates], pa.bool_())), path)
    if options.picture is not None:
        curation.accuracy_figure(found).savefig(options.picture)
    counts = Counter(fates)
    told = [f"{counts[fate]} {fate.replace('_', ' ')}" for fate in (*curation.FATES, "not sampled") if counts[fate]]
    print(f"durian-adv curate: {len(fates)} prompts: {', '.join(told) or 'none'}", file=sys.stderr)


def _ids(table: Any, names: list[str], path: Path) -> list[tuple[Any, ...]]:
    from durian_adv import tables

    return list(zip(*(tables.column(table, name, path) for name in names), strict=True))
