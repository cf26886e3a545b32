"""Runs of the plan, one after the other; stopped at any moment, it goes on with the run it was at."""

import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.records import ROOT
from studies.evidence import records
from studies.law import plan, training
from studies.law.plan import Found, Run

TABLE = Path(__file__).parent / "records" / "runs.parquet"  # committed
FOLDER = ROOT / "out" / "law" / "runs"  # finished runs that are not in the table yet
CACHE = ROOT / "out" / "law" / "warm"


def found(folder: Path = FOLDER, table: Path = TABLE) -> Found:
    """Return every finished run by name."""
    return {**records.read_table(table), **records.read_folder(folder)}


def run_all(
    planned: Callable[[Found], Sequence[Run]],
    *,
    part: tuple[int, int] = (1, 1),
    folder: Path = FOLDER,
    table: Path = TABLE,
    cache: Path = CACHE,
    steps: int = training.STEPS,
) -> int:
    """Train every planned run of this part of the seeds that has no record; return how many. A plan may grow."""
    trained = 0
    with tqdm(unit="run", desc="runs", mininterval=1, smoothing=0.05) as progress:
        seed: training.Seed | None = None
        while missing := _missing(planned(done := found(folder, table)), done, part):
            progress.total = trained + len(missing)
            for run in missing:
                progress.set_postfix_str(run.name)
                if seed is None or seed.number != run.seed:
                    seed = training.load_seed(run.seed, cache)
                records.write(folder / f"{run.name}.csv", perform(run, seed, steps))
                trained += 1
                progress.update()
    return trained


def perform(run: Run, seed: training.Seed, steps: int = training.STEPS) -> records.Record:
    """Train one run."""
    began = time.process_time()
    dose = plan.dose_of(run.outcome, run.dose)
    rows, worth = training.train(seed, run.arm, dose, run.rate, steps, sgd=run.outcome == plan.SGD)
    rows = [{name: float(f"{value:.6g}") for name, value in row.items()} for row in rows]
    spent = round(time.process_time() - began, 1)
    head = plan.settings(run) | {"worth": round(worth, 4), "cpu_seconds": spent, "origin": origin()}
    return records.Record(head, rows)


def origin() -> dict[str, object]:
    """Return what a number may depend on besides the settings."""
    versions = {name: version(name) for name in ("torch", "numpy", "durian-adv")}
    where = {"python": platform.python_version(), "cpu": torch.backends.cpu.get_cpu_capability()}
    return where | versions | {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M")}


def _missing(runs: Sequence[Run], done: Found, part: tuple[int, int]) -> list[Run]:
    """Return what is to be trained, and refuse to mix records of other settings."""
    for run in runs:
        if run.name in done:
            head, wanted = done[run.name].head, plan.settings(run)
            if different := [name for name, value in wanted.items() if head[name] != value]:
                raise ValueError(f"{run.name}: its record has other {', '.join(different)}; move it away")
    number, parts = part
    return [run for run in runs if run.name not in done and run.seed % parts == number - 1]
