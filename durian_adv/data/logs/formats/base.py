"""What a format is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from durian_adv.data.logs.checks import Finding
from durian_adv.data.logs.rows import Keys, Row


@dataclass
class Reading:
    """What a reader is told of a log, and what it tells."""

    keys: Keys
    file: str  # the name of the file that is read now, without its folder
    group_size: int | None = None  # of consecutive rollouts, as the user says
    said: dict[str, None] = field(default_factory=dict)  # how columns were taken, in the order of saying
    findings: dict[str, Finding] = field(default_factory=dict)  # by kind


def as_they_are(rows: Iterator[Row], reading: Reading) -> Iterator[Row]:
    """Give the rows of a format that has a rollout in each."""
    return rows


class Format(NamedTuple):
    """How a trainer writes rollouts."""

    name: str  # for --format
    title: str
    recognizes: Callable[[dict[str, Any]], bool]  # by the first row of a file
    keys: Mapping[str, str] = {}  # where its columns are
    rows: Callable[[Iterator[Row], Reading], Iterator[Row]] = as_they_are
    unread: tuple[str, ...] = ()  # large columns that nothing is made of


def has(*keys: str) -> Callable[[dict[str, Any]], bool]:
    """Recognize a row by its keys."""
    return lambda row: set(keys) <= set(row)


def one_per_row(columns: Mapping[str, Any], place: str) -> Iterator[Row]:
    """Give rows out of columns, which are lists of one length; what is no list belongs to every row."""
    lengths = {name: len(values) for name, values in columns.items() if isinstance(values, list)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ValueError(f"{place}: expected columns of one length, got {told}")
    for number in range(max(lengths.values(), default=0)):
        row = {name: values[number] if name in lengths else values for name, values in columns.items()}
        yield Row(f"{place}, entry {number + 1}", row)
