"""``durian-adv curate``: the prompts worth training on, in two stages, by the base model's accuracy."""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from durian_adv.tables import Table


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
    from durian_adv import curation, tables

    stages = {"stage_1": options.stage1, "stage_2": options.stage2}
    outputs = [*stages.values(), *([options.picture] if options.picture else [])]
    for path in stages.values():  # before any work
        tables.suffix(path)
    for place, path in enumerate(outputs):
        if path.exists() or path.resolve() in [other.resolve() for other in outputs[:place]]:
            raise ValueError(f"{path}: expected a name that is not taken yet")
    samplings = tables.read_table(options.samplings)
    prompts = _ids(samplings, options.prompt)
    names = ("band", "cut", "keep", "confidence_level", "method")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    correct = _outcomes(samplings, options.correct, options.above)
    found = curation.curate(correct, prompts=prompts, **given)

    if options.dataset is None:
        columns = {name: getattr(found, name).tolist() for name in ("samplings", "correct", "accuracy", "low", "high")}
        made = [
            dict(zip((*options.prompt, *columns), (*prompt, *values), strict=True))
            for prompt, *values in zip(found.prompt, *columns.values(), strict=True)
        ]
        data, fates = samplings._replace(rows=made), found.fate.tolist()
    else:
        data = tables.read_table(options.dataset)
        number = {_text(prompt): i for i, prompt in enumerate(found.prompt)}
        wanted = _ids(data, options.id)
        places = [number.get(_text(name)) for name in wanted]
        if wanted and places == [None] * len(places):
            raise ValueError(
                f"{options.dataset}: expected ids that are prompts of {options.samplings}, got none, such as "
                f"{_told(wanted[0])} where a prompt is {_told(prompts[0]) if prompts else 'not there'}"
            )
        if "accuracy" in data.names:
            raise ValueError(f"{options.dataset}: expected no column 'accuracy', which is to be written, got one")
        data = data.with_column("accuracy", [None if i is None else float(found.accuracy[i]) for i in places])
        fates = ["not sampled" if i is None else str(found.fate[i]) for i in places]
    try:
        for name, path in stages.items():
            data.write([fate == name for fate in fates], path)
        if options.picture is not None:
            curation.accuracy_figure(found).savefig(options.picture)
    except BaseException:  # one stage without the other would be taken for the whole
        for path in outputs:
            path.unlink(missing_ok=True)
        raise
    counts = Counter(fates)
    told = [f"{counts[fate]} {fate.replace('_', ' ')}" for fate in (*curation.FATES, "not sampled") if counts[fate]]
    print(f"durian-adv curate: {len(fates)} prompts: {', '.join(told) or 'none'}", file=sys.stderr)


def _ids(table: Table, names: list[str]) -> list[tuple[Any, ...]]:
    """Return the id of each row; two that are written alike, as 1 and "1", are refused."""
    ids = list(zip(*(table.column(name) for name in names), strict=True))
    first: dict[tuple[str, ...], tuple[Any, ...]] = {}
    for row, name in enumerate(ids):
        for key, value in zip(names, name, strict=True):
            if value is None or value != value or isinstance(value, (bool, list, dict)):
                raise ValueError(f"{table.where(row)}: {key}: expected an integer or a string, got {value!r:.60}")
        if (other := first.setdefault(_text(name), name)) != name:
            raise ValueError(
                f"{table.where(row)}: expected ids of one type, got {_told(name)} where another row has {_told(other)}"
            )
    return ids


def _text(name: tuple[Any, ...]) -> tuple[str, ...]:
    """Return an id as text: a table may hold as numbers what another holds as strings."""
    return tuple(str(int(part) if isinstance(part, float) and part.is_integer() else part) for part in name)


def _told(name: tuple[Any, ...]) -> str:
    return ", ".join(f"{part!r:.60}" for part in name)


def _outcomes(table: Table, name: str, above: float | None) -> list[float]:
    """Return 1 for each sampling that is correct, 0 for others, NaN where that is not known."""
    outcomes: list[float] = []
    for row, value in enumerate(table.column(name)):
        if value is None or (isinstance(value, float) and value != value):
            outcomes.append(math.nan)
        elif not isinstance(value, (bool, int, float)) or (above is None and value not in (0, 1)):
            expected = "0, 1, true, false or null" if above is None else "a number or null"
            raise ValueError(f"{table.where(row)}: {name}: expected {expected}, got {value!r:.60}")
        else:
            outcomes.append(float(value if above is None else value > above))
    return outcomes
