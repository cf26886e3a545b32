"""Samplings of a base model in the forms in which people keep them, counted for each prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from durian_adv._src.errors import ArgumentError
from durian_adv.data import tables
from durian_adv.data.logs import checks, sources

Id = tuple[Any, ...]
Where = Callable[[int], str]  # what to call a row in an error, by its number
SAMPLINGS = "samplings"  # the column of numbers of samplings that is taken without being named
_ROUNDED = 0.005  # rates are often written with two decimals


class Form(NamedTuple):
    """How a table holds its samplings."""

    prompt: list[str]  # the columns of the prompt id
    correct: str = "correct"  # the column of an outcome, of a list of outcomes or, with samplings, of a count
    rate: str | None = None  # the column of a pass rate from 0 to 1, in the place of correct
    samplings: str | int | None = None  # the column of the number of samplings of a row, or that number
    above: float | None = None  # an outcome is correct if it exceeds this

    def check(self) -> None:
        """Check that the parts go together.

        Raises:
            ArgumentError: a rate without a number of samplings; a threshold for counts or rates.
        """
        if self.rate is not None and self.samplings is None:
            raise ArgumentError("--samplings", "a column or a number, as a rate alone says nothing of its certainty")
        if self.above is not None and self.samplings is not None:
            raise ArgumentError("--above", "none with --samplings, as counts and rates are of correct ones already")


def count(path: Path, form: Form, progress: Callable[[Iterable[Any]], Iterable[Any]]) -> dict[Id, list[int]]:
    r"""Return each prompt's number of samplings whose outcome is known, of correct ones, and of all; rows are not kept.

    Args:
        path: a table; rows of one prompt are added up.
        form: how it holds the samplings.
        progress: wraps the rows as they are read.

    Raises:
        ValueError: what cannot be used, with its file and row.

    >>> file = getfixture("tmp_path") / "table.jsonl"
    >>> _ = file.write_text('{"prompt": "a", "correct": [1, 0, null]}\n{"prompt": "b", "correct": 3, "samplings": 8}\n')
    >>> count(file, Form(["prompt"]), iter)
    Traceback (most recent call last):
    ValueError: ...table.jsonl, line 2: samplings: expected none, as in the rows before, got 8
    >>> _ = file.write_text('{"prompt": "a", "pass": 0.33}\n{"prompt": "b", "pass": 0.5}\n')
    >>> count(file, Form(["prompt"], rate="pass", samplings=6), iter)
    {('a',): [6, 2, 6], ('b',): [6, 3, 6]}
    """
    form.check()
    value = form.correct if form.rate is None else form.rate
    named = [form.samplings] if isinstance(form.samplings, str) else []
    optional = [SAMPLINGS] if form.samplings is None else []
    found: dict[Id, list[int]] = {}
    first: dict[tuple[str, ...], Id] = {}
    counted: bool | None = None
    for number, values in progress(tables.read_columns(path, [*form.prompt, value, *named], optional)):
        where = tables.where(path, number)
        samplings = form.samplings if isinstance(form.samplings, int) else values[-1]
        if counted is None:
            counted = form.samplings is not None or samplings is not None
        elif not counted and samplings is not None:
            raise ValueError(f"{where}: {SAMPLINGS}: expected none, as in the rows before, got {samplings!r:.60}")
        name = check_id(tuple(values[: len(form.prompt)]), form.prompt, where, first)
        cell = values[len(form.prompt)]
        row = _counts(cell, samplings, form, where) if counted else _outcomes(cell, form, where)
        found[name] = [total + more for total, more in zip(found.get(name, (0, 0, 0)), row, strict=True)]
    return found


def of_rollout_log(
    folder: Path, form: Form, progress: Callable[[Iterable[Any]], Iterable[Any]]
) -> tuple[dict[Id, list[int]], float]:
    """Return the same of a folder that ``rollout_log`` of an adapter wrote, and above which reward one is correct.

    A rollout is a sampling; one that was not valid has no outcome. The threshold is ``form.above``, else that of
    ``durian_adv.data.logs.checks``.

    Raises:
        ValueError: another folder; what cannot be used, with its file and row.
    """
    rewards: list[tuple[Id, float | None]] = []
    first: dict[tuple[str, ...], Id] = {}
    for path in sources.find([folder]).paths:
        for number, values in progress(tables.read_columns(path, [*form.prompt, form.correct, "valid"])):
            where = tables.where(path, number)
            name = check_id(tuple(values[: len(form.prompt)]), form.prompt, where, first)
            reward = values[-2] if values[-1] else None
            if reward is not None and not isinstance(reward, (int, float)):
                raise ValueError(f"{where}: {form.correct}: expected a number or null, got {reward!r:.60}")
            rewards.append((name, reward))
    known = frozenset(reward for _, reward in rewards if reward is not None)
    above = checks.threshold(known) if form.above is None else form.above
    found: dict[Id, list[int]] = {}
    for name, reward in rewards:
        numbers = found.setdefault(name, [0, 0, 0])
        numbers[0] += reward is not None
        numbers[1] += reward is not None and reward > above
        numbers[2] += 1
    return found, above


def check_id(name: Id, columns: list[str], where: str, first: dict[tuple[str, ...], Id]) -> Id:
    """Check an id; two that are written alike, as 1 and "1", are refused, for which ``first`` keeps those before."""
    for key, value in zip(columns, name, strict=True):
        if value is None or isinstance(value, (bool, list, dict)) or value != value:  # NaN
            raise ValueError(f"{where}: {key}: expected an integer or a string, got {value!r:.60}")
    if (other := first.setdefault(text_of(name), name)) != name:
        raise ValueError(f"{where}: expected ids of one type, got {shown(name)} where another row has {shown(other)}")
    return name


def text_of(name: Id) -> tuple[str, ...]:
    """Return an id as text: a table may hold as numbers what another holds as strings."""
    return tuple(str(int(part) if isinstance(part, float) and part.is_integer() else part) for part in name)


def shown(name: Id) -> str:
    """Return an id for a message."""
    return ", ".join(f"{part!r:.60}" for part in name)


def _outcomes(value: Any, form: Form, where: str) -> tuple[int, int, int]:
    """Return the number of known samplings, of correct ones and of all, of one outcome or a list of them."""
    outcomes = [_outcome(one, form, where) for one in (value if isinstance(value, list) else [value])]
    known = [outcome for outcome in outcomes if outcome is not None]
    return len(known), sum(known), len(outcomes)


def _counts(value: Any, samplings: Any, form: Form, where: str) -> tuple[int, int, int]:
    """Return the number of samplings, of correct ones and of all, of a row that tells them."""
    number = _integer(samplings, form.samplings if isinstance(form.samplings, str) else SAMPLINGS, where)
    if form.rate is not None:
        return number, _of_rate(value, number, form.rate, where), number
    if form.above is not None:
        raise ValueError(f"{where}: {SAMPLINGS}: expected none with --above, as it makes {form.correct} a count")
    correct = _integer(value, form.correct, where)
    if correct > number:
        raise ValueError(f"{where}: {form.correct}: expected at most the number of samplings, {number}, got {correct}")
    return number, correct, number


def _outcome(value: Any, form: Form, where: str) -> int | None:
    """Return 1 for a sampling that is correct, 0 for another, None where that is not known."""
    if value is None or value != value:  # NaN
        return None
    if not isinstance(value, (bool, int, float)) or (form.above is None and value not in (0, 1)):
        expected = "0, 1, true, false or null" if form.above is None else "a number or null"
        hint = "; counts need --samplings" if form.above is None and isinstance(value, int) else ""
        raise ValueError(f"{where}: {form.correct}: expected {expected}, got {value!r:.60}{hint}")
    return int(value if form.above is None else value > form.above)


def _integer(value: Any, column: str, where: str) -> int:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not whole or isinstance(value, bool) or value < 0:
        raise ValueError(f"{where}: {column}: expected an integer from 0 up, got {value!r:.60}")
    return int(value)


def _of_rate(rate: Any, samplings: int, column: str, where: str) -> int:
    """Return how many of the samplings a rate says are correct."""
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate <= 1:
        raise ValueError(f"{where}: {column}: expected a rate from 0 to 1, got {rate!r:.60}")
    correct = round(rate * samplings)
    if abs(rate * samplings - correct) > _ROUNDED * samplings + 1e-9:
        raise ValueError(
            f"{where}: {column}: expected a rate of {samplings} samplings, to two decimals, such as "
            f"{correct / samplings:.4g}, got {rate!r:.60}"
        )
    return correct
