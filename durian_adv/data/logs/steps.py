"""Rollout logs, as JSON lines or parquet: checked row by row, and given out step by step in bounded memory."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import torch
from torch import Tensor

from durian_adv import sequence_confidence
from durian_adv.data import json_lines

Name = str | int

COLUMNS = ("prompt", "reward", "step", "visual_entropy", "confidence", "logprobs")
_TOLD = {int: "an integer", str: "a string", type(None): "none"}
_HELD = 1 << 20  # rollouts in memory before they go to the disk
_LARGEST = 1 << 22  # rollouts of a step, whose statistics take some 0.7 kB each


class Step(NamedTuple):
    """The N rollouts of one step, in the order of the log."""

    name: Name | None  # None where the log has no steps
    prompts: list[Name]  # (B,) what the log calls them, in the order of their first rollouts
    prompt_index: Tensor  # (N,) int64, positions in prompts
    rewards: Tensor  # (N,) float64, NaN for null
    visual_entropy: Tensor | None  # (N,) float64, NaN for null; None if no rollout of the step has one
    confidence: Tensor | None  # likewise


def read_steps(
    files: Sequence[Path],
    *,
    keys: Mapping[str, str] | None = None,
    confidence_reduction: Literal["sum", "mean"] = "sum",
    batch_prompts: int | None = None,
    progress: Callable[[int], object] = lambda read: None,
) -> Iterator[Step]:
    r"""Read and check a whole log, then give its steps one by one, in the order of their first rollouts.

    A rollout is a JSON object a line, or a row of a parquet file, with

    * ``prompt``: a string or an integer, shared by the rollouts of a prompt; all are of one type;
    * ``reward``: a number; null where there is none;
    * ``step``: a string or an integer, where there are steps; all rollouts have one then;
    * ``visual_entropy``, ``confidence``: a number, or null where unknown;
    * ``logprobs``: of the sampled tokens, a list of numbers; used by rollouts without ``confidence``.

    Other keys are left alone. Rollouts stand in any order, steps may be mixed. What is needed of them lies in a
    temporary file, 32 bytes a rollout, so memory holds no more than one step and a million rollouts.

    Args:
        files: of one log, in this order.
        keys: what the log calls a column, where it is another name.
        confidence_reduction: of ``logprobs``, as in ``sequence_confidence``.
        batch_prompts: of a log without steps, make a step of each so many prompts, in the order of their first
            rollouts; steps are then numbered from 0.
        progress: called with how many bytes have been read, time and again.

    Raises:
        ValueError: what cannot be used, with its file and line (or row); a step of more than 4,194,304 rollouts.
        OSError: a file that cannot be read.
        ModuleNotFoundError: a parquet file, and pyarrow is not installed.

    >>> folder = getfixture("tmp_path")
    >>> file = folder / "rollouts.jsonl"
    >>> _ = file.write_text('{"prompt": "a", "reward": 1}\n{"prompt": "a", "reward": 0, "logprobs": [-0.5, -1]}\n')
    >>> [step] = read_steps([file])
    >>> step.prompts, step.rewards.tolist(), step.confidence.tolist()
    (['a'], [1.0, 0.0], [nan, -1.5])
    """
    names = {column: column for column in COLUMNS} | dict(keys or {})
    if len(names) > len(COLUMNS):
        raise ValueError(f"keys: expected names among {', '.join(COLUMNS)}, got {list(names)[len(COLUMNS)]!r}")
    if batch_prompts is not None and batch_prompts < 1:
        raise ValueError(f"batch_prompts: expected a number of prompts >= 1, got {batch_prompts}")
    return _steps(files, names, confidence_reduction, batch_prompts, progress)


def _steps(
    files: Sequence[Path],
    names: dict[str, str],
    reduction: Literal["sum", "mean"],
    batch_prompts: int | None,
    progress: Callable[[int], object],
) -> Iterator[Step]:
    with tempfile.TemporaryFile(prefix="durian-adv-") as file:
        spool = _Spool(file)
        kinds: tuple[type, ...] = ()
        for path in files:
            for where, row in _rows(path, names, progress):
                values = _values(row, names, reduction, where)
                now = type(values[0]), type(values[1])
                kinds = kinds or now
                if now != kinds:  # 1 and "1", or no step at all, would be other groups for no reason that is seen
                    pairs = zip(("step", "prompt"), kinds, now, strict=True)
                    column, old, new = next(pair for pair in pairs if pair[1] is not pair[2])
                    raise ValueError(
                        f"{where}: {names[column]}: expected {_TOLD[old]} as in the rows before, got {_TOLD[new]}"
                    )
                spool.add(*values)
        if not spool.places:
            raise ValueError(f"{', '.join(map(str, files))}: expected at least one rollout, got none")
        if batch_prompts is not None and list(spool.places) != [None]:
            raise ValueError("batch_prompts: expected a log without steps, got one that has them")
        for name in spool.places:
            step = _step(name, spool.chunks(name))
            if batch_prompts is None:
                if len(step.rewards) > _LARGEST:
                    one = "a log without steps, which is one step" if name is None else f"step {_short(name)}"
                    raise ValueError(
                        f"{', '.join(map(str, files))}: expected at most {_LARGEST:,} rollouts a step, got "
                        f"{len(step.rewards):,} in {one}; --batch-prompts makes steps of a log without"
                    )
                yield step
            else:
                yield from _batches(step, batch_prompts)


def _values(
    row: dict[str, Any], names: dict[str, str], reduction: Literal["sum", "mean"], where: str
) -> tuple[Name | None, Name, float, float, float]:
    """Return a rollout's step, prompt, reward, entropy and confidence; the numbers NaN where there are none."""
    _require(row, names, where)
    step = _name(row, names["step"], where) if names["step"] in row else None
    entropy, confidence = (_number(row, names[score], where) for score in ("visual_entropy", "confidence"))
    if confidence != confidence and row.get(names["logprobs"]) is not None:
        confidence = _of_logprobs(row[names["logprobs"]], reduction, f"{where}: {names['logprobs']}")
    return step, _name(row, names["prompt"], where), _number(row, names["reward"], where), entropy, confidence


def _require(columns: Collection[str], names: dict[str, str], where: str) -> None:
    for column in ("prompt", "reward"):
        if names[column] not in columns:
            raise ValueError(f"{where}: expected the key {names[column]!r}, got {_short(sorted(columns))}")


def _name(row: dict[str, Any], key: str, where: str) -> Name:
    value = row[key]
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise ValueError(f"{where}: {key}: expected an integer or a string, got {_short(value)}")
    if isinstance(value, int):
        if abs(value) >> 128:  # larger ones are no ids, and a step is a place on an axis
            raise ValueError(f"{where}: {key}: expected an integer of up to 128 bits, got a larger one")
    elif not value.isascii():  # half a character cannot be written into any page
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{where}: {key}: expected text, got {_short(value)}, half of a character") from None
    return value


def _number(row: dict[str, Any], key: str, where: str) -> float:
    value = row.get(key)
    if value is None:
        return math.nan
    if not isinstance(value, (int, float)):
        raise ValueError(f"{where}: {key}: expected a number or null, got {_short(value)}")
    return _float(value, f"{where}: {key}")


def _of_logprobs(values: object, reduction: Literal["sum", "mean"], where: str) -> float:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{where}: expected a list of numbers or null, got {_short(values)}")
    logprobs = torch.tensor([_float(value, where) for value in values], dtype=torch.float64)
    return float(sequence_confidence(logprobs, reduction=reduction))


class _Chunk(NamedTuple):
    """Some rollouts of one step; prompts as positions among the names that come here."""

    names: dict[Name, int]
    prompts: array[int]
    rewards: array[float]
    visual_entropy: array[float]
    confidence: array[float]


class _Spool:
    """Rollouts by step, in a temporary file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.places: dict[Name | None, array[int]] = {}  # of each step's chunks, in the order of the steps
        self.open: dict[Name | None, _Chunk] = {}
        self.waiting = 0

    def add(self, step: Name | None, prompt: Name, reward: float, entropy: float, confidence: float) -> None:
        chunk = self.open.get(step)
        if chunk is None:
            self.places.setdefault(step, array("q"))
            chunk = self.open[step] = _Chunk({}, array("q"), array("d"), array("d"), array("d"))
        chunk.prompts.append(chunk.names.setdefault(prompt, len(chunk.names)))
        chunk.rewards.append(reward)
        chunk.visual_entropy.append(entropy)
        chunk.confidence.append(confidence)
        self.waiting += 1
        if self.waiting == _HELD:
            for waiting, its_chunk in self.open.items():
                self._write(waiting, its_chunk)
            self.open, self.waiting = {}, 0

    def _write(self, step: Name | None, chunk: _Chunk) -> None:
        self.places[step].append(self.file.seek(0, 2))
        names = json.dumps(list(chunk.names)).encode()
        array("q", [len(names), len(chunk.prompts)]).tofile(self.file)
        self.file.write(names)
        for column in chunk[1:]:
            column.tofile(self.file)

    def chunks(self, step: Name | None) -> Iterator[_Chunk]:
        for place in self.places[step]:
            self.file.seek(place)
            lengths = array("q")
            lengths.fromfile(self.file, 2)
            names = json.loads(self.file.read(lengths[0]))
            columns: list[array[Any]] = [array(kind) for kind in "qddd"]
            for column in columns:
                column.fromfile(self.file, lengths[1])
            yield _Chunk({name: number for number, name in enumerate(names)}, *columns)
        if step in self.open:
            yield self.open[step]


def _step(name: Name | None, chunks: Iterator[_Chunk]) -> Step:
    numbers: dict[Name, int] = {}
    index: list[Tensor] = []
    columns: tuple[list[Tensor], ...] = ([], [], [])
    for chunk in chunks:
        number = torch.tensor([numbers.setdefault(prompt, len(numbers)) for prompt in chunk.names])
        index.append(number[torch.tensor(chunk.prompts)])
        for column, values in zip(columns, chunk[2:], strict=True):
            column.append(torch.tensor(values, dtype=torch.float64))
    rewards, entropy, confidence = (torch.cat(column) for column in columns)
    return Step(name, list(numbers), torch.cat(index), rewards, _known(entropy), _known(confidence))


def _batches(step: Step, size: int) -> Iterator[Step]:
    order = torch.argsort(step.prompt_index // size, stable=True)
    counts = torch.bincount(step.prompt_index // size)
    for number, rows in enumerate(torch.split(order, counts.tolist())):
        first = number * size
        entropy, confidence = (None if s is None else _known(s[rows]) for s in (step.visual_entropy, step.confidence))
        prompts = step.prompts[first : first + size]
        yield Step(number, prompts, step.prompt_index[rows] - first, step.rewards[rows], entropy, confidence)


def _known(score: Tensor) -> Tensor | None:
    return None if bool(score.isnan().all()) else score


def _rows(file: Path, names: dict[str, str], progress: Callable[[int], object]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give each row with what to call it in an error."""
    with file.open("rb") as lines:
        if lines.read(4) == b"PAR1":
            yield from _parquet_rows(file, names, progress)
            return
    for line in json_lines.objects(file, progress):
        yield json_lines.where(file, line.number), line.row


def _parquet_rows(
    file: Path, names: dict[str, str], progress: Callable[[int], object]
) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{file}: a parquet file needs pyarrow: pip install 'durian-adv[report]', or write JSON lines"
        ) from None
    try:
        table = pyarrow.parquet.ParquetFile(file)
        there = table.schema_arrow.names
        _require(there, names, str(file))
        number, each = 0, file.stat().st_size / max(1, table.metadata.num_rows)
        for batch in table.iter_batches(8192, columns=[name for name in names.values() if name in there]):
            for row in batch.to_pylist():
                number += 1
                yield f"{file}, row {number}", row
            progress(round(len(batch) * each))
    except pyarrow.ArrowException as error:
        raise ValueError(f"{file}: expected a parquet file, got one that cannot be read ({error})") from None


def _float(value: float, where: str) -> float:
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ValueError(f"{where}: expected a number within the range of float64, got one far outside")
    return float(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
