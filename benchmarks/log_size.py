"""How the commands over logs grow with the log: ``python -m benchmarks.log_size``, 10 million rollouts by default.

Logs of random rollouts, 512 prompts x 8 per step, are written as parquet and JSON lines into a temporary folder. Each
command reads each of them in a process of its own, whose time and largest resident memory the kernel tells. The
baseline is the same command on a hundredth of the log: what a ratio of memory has over 1 is what grows. Writes
``results/commands/``, a file a command, and prints a Markdown table. Takes 2 GB of disk and, by default, half an hour.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from tqdm import tqdm

from benchmarks import records
from benchmarks.amounts import amount, short
from benchmarks.records import Measurement

PROMPTS, ROLLOUTS = 512, 8  # a step
FEWER = 100  # times, in the baseline
FORMS = (".jsonl", ".parquet")
COMMANDS = ("report", "metrics", "curate")
FOLDER = records.RESULTS / "commands"


class Cost(NamedTuple):
    """What a process took."""

    seconds: float
    peak: int  # bytes of resident memory


def steps(rollouts: int) -> Iterator[dict[str, np.ndarray]]:
    """Give the columns of each step of a log: binary rewards, harder where entropy is high and confidence low."""
    rng = np.random.default_rng(0)
    for step, start in enumerate(range(0, rollouts, PROMPTS * ROLLOUTS)):
        count = min(PROMPTS * ROLLOUTS, rollouts - start)
        prompt = np.arange(count) // ROLLOUTS
        difficulty = rng.normal(size=PROMPTS)[prompt]
        yield {
            "step": np.full(count, step),
            "prompt": prompt,
            "reward": (rng.normal(size=count) > difficulty).astype(np.float64),
            "visual_entropy": np.round(4 + 0.3 * difficulty, 6),
            "confidence": np.round(-40 - 10 * difficulty + 5 * rng.normal(size=count), 6),
        }


def write_log(path: Path, rollouts: int) -> None:
    """Write a log, one step at a time."""
    if path.suffix == ".parquet":
        writer = None
        for columns in steps(rollouts):
            table = pa.table(columns)
            writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
        return
    with path.open("w") as file:
        for columns in steps(rollouts):
            names = list(columns)
            line = "{" + ", ".join(f'"{name}": %s' for name in names) + "}\n"
            file.writelines(line % row for row in zip(*(columns[name].tolist() for name in names), strict=True))


def commands(log: Path, out: Path) -> dict[str, list[str]]:
    """Return the words of each command on a log."""
    return {
        "report": ["report", str(log), "--out", str(out)],
        "metrics": ["metrics", str(log)],
        "curate": [
            *("curate", str(log), f"{out}-1.parquet", f"{out}-2.parquet"),
            *("--prompt", "step", "prompt", "--correct", "reward"),
        ],
    }


def cost(words: Sequence[str]) -> Cost:
    """Run ``durian-adv`` in a process of its own."""
    code = "import sys; from durian_adv.cli import main; sys.exit(main(sys.argv[1:]))"
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        told = process.stderr.read().decode()
        _, status, used = os.wait4(process.pid, 0)  # of this process alone, which getrusage does not tell
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"durian-adv {words[0]}: expected exit status 0, got {process.returncode}: {told}")
    return Cost(time.perf_counter() - start, used.ru_maxrss * 1024)  # kibibytes on Linux


def measure(name: str, rollouts: int, watch: records.Watch) -> list[Measurement]:
    """Run a command on a log and on a hundredth of it, in both forms."""
    found: list[Measurement] = []
    sizes = (max(1, rollouts // FEWER), rollouts)
    with tempfile.TemporaryDirectory(prefix="durian-adv-") as folder, tqdm(total=len(FORMS) * len(sizes)) as bar:
        for form in FORMS:
            log, costs = Path(folder) / f"log{form}", []
            for size in sizes:
                bar.set_description(f"{name}: writing {size:,} rollouts, {form[1:]}")
                write_log(log, size)
                bar.set_description(f"durian-adv {name}, {size:,} rollouts, {form[1:]}")
                with watch:
                    costs.append(cost(commands(log, Path(folder) / f"{size}{form[1:]}")[name]))
                found += _rows(f"durian-adv {name}, {form[1:]}", size, costs[-1], sizes[0], costs[0])
                log.unlink()
                bar.update()
    return found


def _rows(case: str, size: int, taken: Cost, fewer: int, base: Cost) -> Iterator[Measurement]:
    for unit, value, first in (("us", 1e6 * taken.seconds, 1e6 * base.seconds), ("bytes", taken.peak, base.peak)):
        ratio = value / first
        yield Measurement(
            case,
            f"{size:,} rollouts",
            f"{fewer:,} rollouts",
            *(value, value, value),
            unit,
            *(ratio, ratio, ratio),
            size=size,
            size_unit="rollouts",
        )


def table(measurements: Sequence[Measurement]) -> str:
    """Return what the documentation shows."""
    lines = ["| command, log | rollouts | time | largest memory | of that on a hundredth |", "|---|---|---|---|---|"]
    for seconds, memory in zip(measurements[::2], measurements[1::2], strict=True):
        cells = (seconds.case, f"{seconds.size:,}", amount(seconds.p50, "us"), amount(memory.p50, "bytes"))
        lines.append(f"| {' | '.join(cells)} | {short(memory.ratio)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the record, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=10_000_000)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the records, one a command")
    options = parser.parse_args(arguments)
    for name in options.commands:
        watch = records.Watch()
        measurements = measure(name, options.rollouts, watch)
        records.write(options.folder / f"{name}.csv", measurements, records.origin(("pyarrow",), watch.others))
        print(table(measurements), flush=True)


if __name__ == "__main__":
    main()
