"""Rollout logs: read as their formats say, checked row by row, and given out step by step."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor

from durian_adv.data.logs import checks, containers, sources
from durian_adv.data.logs.checks import Facts, Finding
from durian_adv.data.logs.formats.base import Format, Reading
from durian_adv.data.logs.known import FORMATS, recognize
from durian_adv.data.logs.rows import COLUMNS, Keys, Reduction, Rollout, Row, natural, rollout, short

Name = str | int
_TOLD = {int: "an integer", str: "a string", type(None): "none"}
_LONG = 64  # characters of an id that is not held as it is
_LARGEST = 1 << 22  # rollouts of a step, whose statistics take some 0.7 kB each


class Step(NamedTuple):
    """The N rollouts of one step, in the order of the log."""

    name: Name | None  # None where the log has no steps
    prompts: list[Name]  # (B,) what the log calls them, in the order of their first rollouts
    prompt_index: Tensor  # (N,) int64, positions in prompts
    rewards: Tensor  # (N,) float64, NaN for null
    visual_entropy: Tensor | None  # (N,) float64, NaN for null; None if no rollout of the step has one
    confidence: Tensor | None  # (N,) float64, NaN for null; None if no rollout of the step has one
    category: Tensor | None = None  # (N,) int64, -1 for null; None if the log has none


class Log(NamedTuple):
    """A log that has been read."""

    read_as: str  # the format, how columns were taken, how much there is
    findings: list[Finding]  # what is suspicious of it; those that are broken leave no room for a conclusion
    success_threshold: float  # as given, else derived from the rewards
    length: int  # how many steps there are
    steps: Iterator[Step]  # once


class Options(NamedTuple):
    """How a log is read."""

    keys: Mapping[str, str] = {}
    format: str | None = None
    file_per_step: bool | None = None
    group_size: int | None = None
    confidence_reduction: Reduction = "sum"
    batch_prompts: int | None = None
    success_threshold: float | None = None


_DEFAULTS = Options()


def read_log(
    paths: Sequence[Path], options: Options = _DEFAULTS, progress: Callable[[int], object] = lambda read: None
) -> Log:
    r"""Read and check a whole log.

    A rollout has a ``prompt`` (any JSON value but null, shared by the rollouts of a prompt; ``1`` and ``"1"`` differ),
    a ``reward`` (a number, or null where there is none), and where they are known a ``step`` (a string or an integer;
    all rollouts have one then), ``visual_entropy``, ``confidence`` (numbers or null) and ``logprobs`` (of the tokens, a
    list of numbers; null and what ``mask`` leaves out do not count), used by rollouts without ``confidence``, and
    ``category`` (any JSON value, a known kind of prompt; null is a kind of its own). Where each is found, the format
    says, which the first row of each file decides. Other keys are left alone. Rollouts stand in any order, steps may be
    mixed.

    Steps come in numeric order where their names are numbers, or texts that differ by numbers only, else in the order
    of their first rollouts. Memory holds 40 bytes per rollout (75 at the most, while they are sorted into steps), and
    the text of each distinct prompt once.

    Args:
        paths: files of one log, folders of them, or ``-`` for standard input; each is opened once.
        options: ``keys`` says what the log calls a column: a key, a key within objects (``rewards.accuracy``), several
            joined by ``+`` for the prompt, a weighted sum (``accuracy*0.9+format*0.1``) for the reward. ``format``
            forces a format. ``file_per_step`` takes the step from the file's name, or says that files are parts of one
            log (False). ``group_size`` takes so many consecutive rollouts as a prompt. ``confidence_reduction`` is as
            in ``sequence_confidence``. ``batch_prompts`` makes, of a log without steps, a step of each so many prompts.
        progress: called with how many bytes have been read, time and again.

    Raises:
        ValueError: what cannot be used, with its file and line (or row); a step of more than 4,194,304 rollouts.
        OSError: a file that cannot be read.
        ModuleNotFoundError: a parquet file, and pyarrow is not installed.

    >>> folder = getfixture("tmp_path")
    >>> file = folder / "rollouts.jsonl"
    >>> _ = file.write_text('{"prompt": "a", "reward": 1}\n{"prompt": "a", "reward": 0, "logprobs": [-0.5, -1]}\n')
    >>> log = read_log([file])
    >>> log.read_as
    'plain rollouts: 2 rollouts in 1 step, 1 prompt x 2 rollouts'
    >>> [step] = log.steps
    >>> step.prompts, step.rewards.tolist(), step.confidence.tolist()
    (['a'], [1.0, 0.0], [nan, -1.5])
    """
    _check(options)
    files = sources.find(paths)
    table = _Table()
    formats: dict[str, None] = {}
    said: dict[str, None] = {}
    findings: dict[str, Finding] = {}
    names = _step_names(files.paths) if options.file_per_step else {}
    for number, path in enumerate(files.paths):
        reading = Reading(Keys(options.keys, {}), path.name, options.group_size, said, findings)
        with sources.opened(path, progress) as stream:
            for title, where, each in _rollouts(stream, sources.name(path), reading, options):
                formats[title] = None
                table.add(where, each._replace(step=names[path]) if names else each, number)
    told = ", ".join(map(str, paths))
    if not table.steps:
        raise ValueError(f"{told}: expected at least one rollout, got none")
    return _log(table, options, told, files, [", ".join(formats), *said], list(findings.values()))


def _check(options: Options) -> None:
    unknown = [name for name in options.keys if name not in COLUMNS]
    if unknown:
        raise ValueError(f"keys: expected names among {', '.join(COLUMNS)}, got {unknown[0]!r}")
    if options.batch_prompts is not None and options.batch_prompts < 1:
        raise ValueError(f"batch_prompts: expected a number of prompts >= 1, got {options.batch_prompts}")
    if options.group_size is not None and options.group_size < 2:
        raise ValueError(f"group_size: expected a number of rollouts >= 2, got {options.group_size}")
    if options.format is not None and options.format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(sorted(FORMATS))}, got {options.format!r}")


def _step_names(files: Sequence[Path]) -> dict[Path, Name]:
    """Return the step of each file: the last number in its name, if all have another; else the name."""
    numbers = {file: re.findall(r"[0-9]+", file.name.split(".")[0]) for file in files}
    last = {file: int(found[-1]) for file, found in numbers.items() if found}
    if len(set(last.values())) == len(files):
        return dict(last)
    return {file: str(file) for file in files}


def _rollouts(stream: IO[bytes], name: str, reading: Reading, options: Options) -> Iterator[tuple[str, str, Rollout]]:
    """Give the rollouts of a file, each with the title of its format and its place."""
    chosen: list[Format] = []

    def needed(first: Row, names: Collection[str]) -> Collection[str]:
        format = FORMATS[options.format] if options.format else recognize(first.values)
        chosen.append(format)
        reading.keys = Keys(options.keys, format.keys)
        if format.name == "plain":
            reading.keys.require(names, first.where)
            return reading.keys.roots()
        return (set(first.values) - set(format.unread)) | reading.keys.roots()

    rows = containers.rows(stream, name, needed)
    first = next(rows, None)
    if first is None:
        return
    if not chosen:
        needed(first, first.values)
    keys, format = reading.keys, chosen[0]
    for position, row in enumerate(_of_format(format, _chained(first, rows), reading)):
        each = rollout(row, keys, options.confidence_reduction)
        if options.group_size and format.name not in ("trl", "ms-swift"):
            place = position // options.group_size
            each = each._replace(prompt=f"{each.prompt} {name} {place}")
        yield format.title, row.where, each


def _of_format(format: Format, rows: Iterator[Row], reading: Reading) -> Iterator[Row]:
    """Give the rows of a format; one that has not what the format has, as where it was forced, is refused."""
    last: list[Row] = []

    def noted() -> Iterator[Row]:
        for row in rows:
            last[:] = [row]
            yield row

    given = format.rows(noted(), reading)
    while True:
        try:
            row = next(given)
        except StopIteration:
            return
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            lacks = f"one without the key {error}" if isinstance(error, KeyError) else f"another ({error})"
            raise ValueError(f"{last[0].where}: expected a row of {format.title}, got {lacks}") from error
        yield row


def _chained(first: Row, rows: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rows


class _Table:
    """The rollouts of a log, column by column, 40 bytes each; a prompt's text is held once."""

    def __init__(self) -> None:
        self.step, self.prompt = array("q"), array("q")  # numbers of steps and of prompts
        self.scores = array("d"), array("d"), array("d")  # rewards, visual entropies, confidences
        self.steps: dict[Name | None, int] = {}
        self.numbers: dict[str | bytes, int] = {}  # of prompts, by their ids
        self.labels: list[Name] = []
        self.first_of_kind: dict[str, Name] = {}  # prompts whose ids are numbers, texts, ...
        self.files: dict[int, int] = {}  # file -> its first rollout
        self.categories: dict[str | None, int] = {None: -1}
        self.of_prompts: array[int] = array("q")  # the category of each prompt
        self.mixed: dict[int, None] = {}  # prompts of several categories

    def add(self, where: str, each: Rollout, file: int) -> None:
        """Take a rollout."""
        number = self.steps.get(each.step)
        if number is None:
            self._check_kind(where, each.step)
            number = self.steps[each.step] = len(self.steps)
        self.files.setdefault(file, len(self.step))
        self.step.append(number)
        text: str | bytes = each.prompt  # a digest of long ones, which would be held twice
        if len(each.prompt) > _LONG:
            text = hashlib.blake2b(each.prompt.encode(), digest_size=16).digest()
        number = self.numbers.setdefault(text, len(self.labels))
        if number == len(self.labels):
            self.labels.append(each.label)
            self.first_of_kind.setdefault(_kind(each.prompt), each.label)
            self.of_prompts.append(self._category(each))
        elif self.of_prompts[number] != self._category(each):
            self.mixed[number] = None
        self.prompt.append(number)
        for column, value in zip(self.scores, each[3:6], strict=True):
            column.append(value)

    def _category(self, each: Rollout) -> int:
        return self.categories.setdefault(each.category, len(self.categories) - 1)

    def _check_kind(self, where: str, step: Name | None) -> None:
        """Refuse steps of several types: 1 and "1", or none at all, would be other steps for no reason that is seen."""
        other = next(iter(self.steps), step)
        if type(other) is not type(step):
            raise ValueError(
                f"{where}: step: expected {_TOLD[type(other)]} as in the rows before, got {_TOLD[type(step)]}"
            )

    def rows(self) -> dict[Name | None, Tensor]:
        """Return which rollouts each step has, in the order of the log."""
        step = torch.frombuffer(self.step, dtype=torch.int64)
        counts = torch.bincount(step).tolist()
        return dict(zip(self.steps, torch.split(torch.argsort(step, stable=True), counts), strict=True))

    def of(self, rows: Tensor, name: Name | None) -> Step:
        """Return a step; prompts in the order of their first rollouts."""
        numbers, index = torch.unique(torch.frombuffer(self.prompt, dtype=torch.int64)[rows], return_inverse=True)
        place = torch.arange(len(index))
        first = place.new_full((len(numbers),), len(index)).scatter_reduce(0, index, place, "amin")
        order = first.argsort()
        rank = torch.empty_like(order).scatter(0, order, torch.arange(len(order)))
        rewards, entropy, confidence = (torch.frombuffer(c, dtype=torch.float64)[rows] for c in self.scores)
        labels = [self.labels[number] for number in numbers[order].tolist()]
        category = None
        if len(self.categories) > 1 and not self.mixed:
            category = torch.tensor(self.of_prompts)[numbers][index]
        return Step(name, labels, rank[index], rewards, _known(entropy), _known(confidence), category)

    def facts(self, rows: Tensor, name: Name | None, several_files: bool) -> Facts:
        """Return what the checks look at, of one step."""
        step, files = self.of(rows, name), None
        if several_files and name is None:
            files = torch.searchsorted(torch.tensor(list(self.files.values())), rows, right=True)
        return checks.facts(step.prompt_index, step.rewards, step.visual_entropy, files)


def _log(
    table: _Table, options: Options, told: str, files: sources.Files, said: list[str], findings: list[Finding]
) -> Log:
    rows = table.rows()
    names = _in_order(list(rows))
    if options.batch_prompts is not None and names != [None]:
        raise ValueError("batch_prompts: expected a log without steps, got one that has them")
    for name in names:
        if options.batch_prompts is None and len(rows[name]) > _LARGEST:
            one = "a log without steps, which is one step" if name is None else f"step {short(name)}"
            raise ValueError(
                f"{told}: expected at most {_LARGEST:,} rollouts per step, got "
                f"{len(rows[name]):,} in {one}; --batch-prompts makes steps of a log without"
            )
    several = len(files.paths) > 1 and options.file_per_step is None
    found = checks.merged(table.facts(rows[name], name, several) for name in names)
    findings = findings + checks.grouping(found) + _kinds(table) + _categories(table)
    scale = checks.scale(found.values, options.success_threshold)
    threshold = options.success_threshold
    shown = _shown(names)
    return Log(
        _read_as(said, found, len(names), files),
        findings + ([scale] if scale else []),
        checks.threshold(found.values) if threshold is None else threshold,
        len(names) if options.batch_prompts is None else -(-found.groups // options.batch_prompts),
        _steps(table, {as_shown: rows[name] for name, as_shown in shown.items()}, options.batch_prompts),
    )


def _steps(table: _Table, rows: dict[Name | None, Tensor], batch_prompts: int | None) -> Iterator[Step]:
    for name, of_step in rows.items():
        step = table.of(of_step, name)
        if batch_prompts is None:
            yield step
        else:
            yield from _batches(step, batch_prompts)


def _batches(step: Step, size: int) -> Iterator[Step]:
    order = torch.argsort(step.prompt_index // size, stable=True)
    counts = torch.bincount(step.prompt_index // size)
    for number, rows in enumerate(torch.split(order, counts.tolist())):
        first = number * size
        entropy, confidence = (None if s is None else _known(s[rows]) for s in (step.visual_entropy, step.confidence))
        prompts = step.prompts[first : first + size]
        category = None if step.category is None else step.category[rows]
        yield Step(number, prompts, step.prompt_index[rows] - first, step.rewards[rows], entropy, confidence, category)


def _in_order(names: list[Name | None]) -> list[Name | None]:
    """Return steps by their numbers, where they are numbers or texts that differ by numbers only."""
    if all(isinstance(name, int) for name in names):
        return sorted(names)  # type: ignore[type-var]  # all are integers
    if len({re.sub(r"[0-9]+", "0", str(name)) for name in names}) == 1:
        return sorted(names, key=lambda name: natural(str(name)))
    return names


def _shown(names: list[Name | None]) -> dict[Name | None, Name | None]:
    """Return what to call each step: texts that are integers are integers, as ms-swift writes them."""
    texts = all(isinstance(name, str) and re.fullmatch(r"0|[1-9][0-9]{0,17}", name) for name in names)
    return {name: int(name) if texts and name is not None else name for name in names}


def _kinds(table: _Table) -> list[Finding]:
    """Say that ids of several kinds are several prompts."""
    if len(table.first_of_kind) == 1:
        return []
    told = " and ".join(f"{short(name)} ({kind})" for kind, name in table.first_of_kind.items())
    return [
        Finding(
            "kinds",
            f"Prompt ids are of several kinds: {told}",
            'Ids of different types are different prompts: 1 is not "1". Write those alike that should be the same.',
            broken=False,
        )
    ]


def _categories(table: _Table) -> list[Finding]:
    """Say that what belongs to rollouts is no category of prompts."""
    if not table.mixed:
        return []
    first = short(table.labels[next(iter(table.mixed))])
    return [
        Finding(
            "categories",
            f"{len(table.mixed):,} of {len(table.labels):,} prompts have several categories: the category is left out",
            f"The first is {first}. A category is a known kind of prompt, the same for its rollouts. Either the column "
            "belongs to rollouts (--key category=KEY names another), or several prompts share an id, which several "
            f"columns tell apart ({checks.OF_LOGS.prompt}).",
            broken=False,
        )
    ]


def _kind(identity: str) -> str:
    """Return the kind of an id by how its JSON text begins."""
    kinds = {'"': "text", "[": "list", "{": "object", "t": "boolean", "f": "boolean"}
    return kinds.get(identity[0], "number")


def _read_as(said: list[str], found: Facts, steps: int, files: sources.Files) -> str:
    counted = f"{found.rollouts:,} rollout{'s' * (found.rollouts != 1)} in {steps:,} step{'s' * (steps != 1)}"
    if len(files.paths) > 1:
        counted += f" from {len(files.paths):,} files"
    title, *how = said
    left = f"; left out, by their names: {', '.join(file.name for file in files.left_out)}" if files.left_out else ""
    return f"{title}: {counted}, {checks.described(found.sizes)}{''.join(f'; {one}' for one in how)}{left}"


def _known(score: Tensor) -> Tensor | None:
    return None if bool(score.isnan().all()) else score
