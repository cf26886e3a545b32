"""``durian-adv curate``: the prompts worth training on, in two stages, by the base model's accuracy."""

from __future__ import annotations

import argparse
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Id = tuple[Any, ...]
Where = Callable[[int], str]  # what to call a row in an error, by its number


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
    command.add_argument("--confidence-level", type=float, metavar="LEVEL", help="of the interval")
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
    from tqdm import tqdm

    from durian_adv.data import curation, tables
    from durian_adv.data.logs import checks

    stages = {"stage_1": options.stage1, "stage_2": options.stage2}
    outputs = [*stages.values(), *([options.picture] if options.picture else [])]
    for path in stages.values():  # before any work
        tables.suffix(path)
    for place, path in enumerate(outputs):
        if path.exists() or path.resolve() in [other.resolve() for other in outputs[:place]]:
            raise ValueError(f"{path}: expected a name that is not taken yet")
    read = [*options.prompt, options.correct]
    rows = tqdm(tables.read_columns(options.samplings, read), desc="reading", unit=" samplings", disable=None)
    prompts = _counts(rows, functools.partial(tables.where, options.samplings), read, options.above)
    names = ("band", "cut", "keep", "confidence_level", "method")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    samplings, correct = ([counts[place] for counts in prompts.values()] for place in (0, 1))
    found = curation.curate(correct, samplings=samplings, prompts=list(prompts), **given)
    sizes = Counter(counts[2] for counts in prompts.values())
    mend = checks.Mend("--prompt input image", "--prompt step prompt")
    for finding in checks.grouping(checks.NONE._replace(sizes=sizes), mend):
        print(f"durian-adv curate: {finding.title}. {finding.text}", file=sys.stderr)

    if options.dataset is None:
        columns = {name: getattr(found, name).tolist() for name in ("samplings", "correct", "accuracy", "low", "high")}
        made = [
            dict(zip((*options.prompt, *columns), (*prompt, *values), strict=True))
            for prompt, *values in zip(found.prompt, *columns.values(), strict=True)
        ]
        data, fates = tables.Table(options.samplings, made, ()), found.fate.tolist()
    else:
        data = tables.read_table(options.dataset)
        number = {_text(prompt): i for i, prompt in enumerate(found.prompt)}
        where = functools.partial(tables.where, options.dataset)
        ids = zip(*(data.column(name) for name in options.id), strict=True)
        first: dict[tuple[str, ...], Id] = {}
        wanted = [_id(name, options.id, where, number, first) for number, name in zip(data.numbers, ids, strict=True)]
        places = [number.get(_text(name)) for name in wanted]
        if wanted and places == [None] * len(places):
            raise ValueError(
                f"{options.dataset}: expected ids that are prompts of {options.samplings}, got none, such as "
                f"{_told(wanted[0])} where a prompt is {_told(next(iter(prompts))) if prompts else 'not there'}"
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


def _counts(
    rows: Iterable[tuple[int, list[Any]]], where: Where, names: list[str], above: float | None
) -> dict[Id, list[int]]:
    """Return each prompt's number of samplings whose outcome is known, of correct ones, and of all.

    Rows are not kept.
    """
    *of_prompt, correct = names
    found: dict[Id, list[int]] = {}
    first: dict[tuple[str, ...], Id] = {}
    for number, (*values, value) in rows:
        counts = found.setdefault(_id(tuple(values), of_prompt, where, number, first), [0, 0, 0])
        counts[2] += 1
        outcome = _outcome(value, above, where, number, correct)
        if outcome is not None:
            counts[0] += 1
            counts[1] += outcome
    return found


def _id(name: Id, columns: list[str], where: Where, number: int, first: dict[tuple[str, ...], Id]) -> Id:
    """Check an id; two that are written alike, as 1 and "1", are refused, for which ``first`` keeps those before."""
    for key, value in zip(columns, name, strict=True):
        if value is None or value != value or isinstance(value, (bool, list, dict)):
            raise ValueError(f"{where(number)}: {key}: expected an integer or a string, got {value!r:.60}")
    if (other := first.setdefault(_text(name), name)) != name:
        raise ValueError(
            f"{where(number)}: expected ids of one type, got {_told(name)} where another row has {_told(other)}"
        )
    return name


def _text(name: tuple[Any, ...]) -> tuple[str, ...]:
    """Return an id as text: a table may hold as numbers what another holds as strings."""
    return tuple(str(int(part) if isinstance(part, float) and part.is_integer() else part) for part in name)


def _told(name: tuple[Any, ...]) -> str:
    return ", ".join(f"{part!r:.60}" for part in name)


def _outcome(value: Any, above: float | None, where: Where, number: int, column: str) -> int | None:
    """Return 1 for a sampling that is correct, 0 for another, None where that is not known."""
    if value is None or value != value:  # NaN
        return None
    if not isinstance(value, (bool, int, float)) or (above is None and value not in (0, 1)):
        expected = "0, 1, true, false or null" if above is None else "a number or null"
        raise ValueError(f"{where(number)}: {column}: expected {expected}, got {value!r:.60}")
    return int(value if above is None else value > above)
