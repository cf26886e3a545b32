"""``durian-adv curate``: the prompts worth training on, in two stages, by the base model's accuracy."""

from __future__ import annotations

import argparse
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from durian_adv.cli.terminal import bar, tell


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "curate",
        help="prompts of moderate accuracy, in two stages",
        description="Read samplings of a base model: a row with a prompt id and whether one is correct, or with a list "
        "of such outcomes, or with a number of correct ones beside a number of samplings, or with a pass rate; write "
        "the prompts of stage 1 (medium) and stage 2 (medium to hard) as two tables, with accuracies and their "
        "intervals. With --dataset the rows of a data set are written instead, with a column accuracy. Tables are "
        "parquet or JSON lines, by their names (.parquet, .jsonl).",
    )
    command.set_defaults(run=run)
    command.add_argument("table", type=Path, help="table of samplings, or folder that rollout_log of a trainer wrote")
    command.add_argument("stage1", type=Path, help="table to write for stage 1; must not exist")
    command.add_argument("stage2", type=Path, help="table to write for stage 2; must not exist")
    _add_columns(command)
    _add_band(command)
    command.add_argument(
        "--dataset", type=Path, metavar="TABLE", help="data set whose rows are split (default: the prompts themselves)"
    )
    command.add_argument(
        "--id", nargs="+", default=["id"], metavar="COLUMN", help="prompt id in the data set (default: id)"
    )
    command.add_argument("--picture", type=Path, metavar="FILE", help="histogram of accuracies to draw (default: none)")


def _add_columns(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--prompt",
        nargs="+",
        default=["prompt"],
        metavar="COLUMN",
        help="prompt id, several columns together where one repeats, such as step prompt (default: prompt)",
    )
    command.add_argument(
        "--correct",
        default="correct",
        metavar="COLUMN",
        help="0 or 1, true or false, null for an unknown outcome; a list of them; or a count, with --samplings "
        "(default: correct)",
    )
    command.add_argument(
        "--samplings",
        metavar="COLUMN|N",
        help="number of samplings of a row, of which --correct is the correct ones or --rate the share "
        "(default: the column samplings where there is one)",
    )
    command.add_argument(
        "--rate",
        metavar="COLUMN",
        help="pass rate from 0 to 1, in the place of --correct; needs --samplings (default: none)",
    )
    command.add_argument(
        "--above", type=float, metavar="X", help="value that a correct outcome exceeds (default: outcomes are 0 or 1)"
    )


def _add_band(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--band",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="lowest and highest accuracy to keep (default: 0.084 0.87)",
    )
    command.add_argument(
        "--cut", type=float, metavar="P", help="accuracy below which a prompt is of stage 2 (default: 1/3)"
    )
    command.add_argument(
        "--keep",
        choices=("estimate", "possible", "certain"),
        help="part of a prompt's interval that must lie in the band: accuracy, some, or all (default: estimate)",
    )
    command.add_argument(
        "--confidence-level", type=float, metavar="LEVEL", help="confidence level of the interval (default: 0.95)"
    )
    command.add_argument(
        "--method", choices=("wilson", "wilsoncc", "exact"), help="method of the interval (default: wilson)"
    )


def run(options: argparse.Namespace) -> None:
    """Write the two stages, and say what became of the prompts."""
    try:
        _run(options)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: expected what pip install 'durian-adv[curation]' brings") from None


def _run(options: argparse.Namespace) -> None:
    from durian_adv.data import aside, curation, tables

    outputs = [options.stage1, options.stage2, *([options.picture] if options.picture else [])]
    for path in outputs[:2]:  # before any work
        tables.suffix(path)
    aside.check_free(outputs)
    found = _curation(options)
    data, fates = _prompts(options, found) if options.dataset is None else _rows(options, found)
    with aside.written(outputs) as (first, second, *picture):
        for fate, path, output in (("stage_1", first, options.stage1), ("stage_2", second, options.stage2)):
            with aside.naming(output):
                data.write([each == fate for each in fates], path, output)
        for path in picture:
            with aside.naming(options.picture):
                curation.accuracy_figure(found).savefig(path)
    counts = Counter(fates)
    told = [f"{counts[fate]} {fate.replace('_', ' ')}" for fate in (*curation.FATES, "not sampled") if counts[fate]]
    tell("curate", f"{len(fates)} prompts: {', '.join(told) or 'none'}")


def _curation(options: argparse.Namespace) -> Any:
    """Return what becomes of each prompt of the table of samplings."""
    from durian_adv.data import curation, samplings
    from durian_adv.data.logs import checks

    given = options.samplings
    number = int(given) if given is not None and given.isdecimal() else given
    form = samplings.Form(options.prompt, options.correct, options.rate, number, options.above)

    def shown(rows: Any) -> Any:
        return bar(iterable=rows, desc="reading", unit=" rows")

    is_log = options.table.is_dir()
    if is_log:
        form = form._replace(correct="reward" if form.correct == "correct" else form.correct)
        prompts, above = samplings.of_rollout_log(options.table, form, shown)
        rollouts = sum(numbers[2] for numbers in prompts.values())
        tell("curate", f"read as Durian rollouts: {rollouts:,}; correct where {form.correct} is above {above:g}")
    else:
        prompts = samplings.count(options.table, form, shown)
    names = ("band", "cut", "keep", "confidence_level", "method")
    chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    sizes = Counter(numbers[2] for numbers in prompts.values())
    mend = checks.Mend("--prompt input image", "--prompt step prompt")
    # of a log a prompt's steps are added up, so its sizes say nothing of the grouping
    for finding in [] if is_log else checks.grouping(checks.NONE._replace(sizes=sizes), mend):
        tell("curate", f"{finding.title}. {finding.text}")
    known, correct = ([numbers[place] for numbers in prompts.values()] for place in (0, 1))
    return curation.curate(correct, samplings=known, prompts=list(prompts), **chosen)


def _prompts(options: argparse.Namespace, found: Any) -> tuple[Any, Sequence[str]]:
    """Return the prompts themselves as a table, and the fate of each."""
    from durian_adv.data import tables

    columns = {name: getattr(found, name).tolist() for name in ("samplings", "correct", "accuracy", "low", "high")}
    made = [
        dict(zip((*options.prompt, *columns), (*prompt, *values), strict=True))
        for prompt, *values in zip(found.prompt, *columns.values(), strict=True)
    ]
    return tables.Table(options.table, made, ()), found.fate.tolist()


def _rows(options: argparse.Namespace, found: Any) -> tuple[Any, Sequence[str]]:
    """Return the rows of the data set with the accuracies of their prompts, and the fate of each."""
    from durian_adv.data import samplings, tables

    data = tables.read_table(options.dataset)
    if "accuracy" in data.names:
        raise ValueError(f"{options.dataset}: expected no column 'accuracy', which is to be written, got one")
    place = {samplings.text_of(prompt): i for i, prompt in enumerate(found.prompt)}
    where = functools.partial(tables.where, options.dataset)
    first: dict[tuple[str, ...], samplings.Id] = {}
    ids = [
        samplings.check_id(name, options.id, where(number), first)
        for number, name in zip(
            data.numbers, zip(*(data.column(name) for name in options.id), strict=True), strict=True
        )
    ]
    places = [place.get(samplings.text_of(name)) for name in ids]
    if ids and places == [None] * len(places):
        prompts = f"prompts look like {samplings.shown(found.prompt[0])}" if len(found.prompt) else "there are none"
        example = f"for example {samplings.shown(ids[0])}; {prompts}"
        raise ValueError(f"{options.dataset}: no id matches a prompt of {options.table} ({example})")
    data = data.with_column("accuracy", [None if i is None else float(found.accuracy[i]) for i in places])
    return data, ["not sampled" if i is None else str(found.fate[i]) for i in places]
