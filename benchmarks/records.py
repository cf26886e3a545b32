"""Records of measurements: one CSV a topic, every row with what was run, on what, and when."""

import csv
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch

import durian_adv

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

T = TypeVar("T")


@dataclass(frozen=True)
class Measurement:
    """A candidate against its baseline. Texts in a CSV are numbers of four digits here: what is read is what was kept.

    The ratio is the median over rounds of candidate over baseline in one round, not the ratio of the medians.
    """

    case: str
    candidate: str
    baseline: str
    p20: float
    p50: float
    p80: float
    unit: str  # of the three: us, bytes
    ratio: float
    ratio_p20: float
    ratio_p80: float
    target: str = ""  # of the ratio: "<= 10", ">= 100", or nothing
    rounds: int = 1
    calls: int = 1  # a round
    figure: str = ""  # the panel it is drawn in; empty: none
    size: int = 0  # its place on the x axis
    size_unit: str = ""  # what size counts

    @property
    def met(self) -> bool:
        """Whether the ratio is on the right side of its target."""
        relation, bound = self.target.split()
        return self.ratio <= float(bound) if relation == "<=" else self.ratio >= float(bound)


@dataclass(frozen=True)
class Origin:
    """What a measurement was made on and with."""

    cpu: str
    cores: int
    threads: int
    memory_gib: int
    load: float  # of the machine in the minute before the start: near 0 when nothing else runs
    python: str
    torch: str
    numpy: str
    einops: str
    durian_adv: str
    revision: str
    packages: str  # released packages measured against
    date: str  # UTC


def origin(packages: Iterable[str] = ()) -> Origin:
    """Describe this process and its machine; ``packages`` are further distributions whose versions matter."""
    return Origin(
        cpu=_cpu(),
        cores=os.cpu_count() or 0,
        threads=torch.get_num_threads(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        load=round(os.getloadavg()[0], 2),
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=version("numpy"),
        einops=version("einops"),
        durian_adv=durian_adv.__version__,
        revision=_revision(),
        packages=", ".join(f"{name} {version(name)}" for name in packages),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    )


def write(path: Path, measurements: Iterable[Measurement], where: Origin) -> None:
    """Write a topic's measurements, each with its origin."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for measurement in measurements:
            row = asdict(measurement) | asdict(where)
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})


def read(path: Path) -> tuple[list[Measurement], Origin]:
    """Read what ``write`` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [_parse(Measurement, row) for row in rows], _parse(Origin, rows[0])


def topics() -> list[str]:
    """Name the topics there are records of."""
    return sorted(path.stem for path in RESULTS.glob("*.csv"))


def _parse(kind: type[T], row: dict[str, str]) -> T:
    return kind(**{field.name: field.type(row[field.name]) for field in fields(kind)})


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines: Sequence[str] = info.read_text().splitlines() if info.exists() else ()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{name or platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def _revision() -> str:
    """Return the commit, with a plus if the library differs from it; nothing outside a repository."""

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else ""

    commit = git("rev-parse", "--short", "HEAD")
    return f"{commit}+" if commit and git("status", "--porcelain", "durian_adv") else commit


COLUMNS = [field.name for kind in (Measurement, Origin) for field in fields(kind)]
