"""Records of measurements: one CSV per topic, whose rows tell what was run, on what, and when."""

import csv
import math
import os
import platform
import subprocess
import time
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
    unit: str  # of the three: us, bytes, GB/s, or what is counted
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

    device: str  # that did the work: "cpu", or a GPU with its driver
    cpu: str
    cores: int
    threads: int
    memory_gib: int
    others: float  # cores that other processes kept busy during the rounds; NaN where it cannot be told
    python: str
    torch: str
    numpy: str
    einops: str
    durian_adv: str
    revision: str
    packages: str  # released packages measured against
    date: str  # UTC


class Watch:
    """A context that adds up how busy other processes keep the machine while it is entered, which may be often."""

    def __init__(self) -> None:
        self.wall = self.busy = 0.0

    def __enter__(self) -> None:
        self.wall -= time.perf_counter()
        self.busy -= _busy() - time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter()
        self.busy += _busy() - time.process_time()

    @property
    def others(self) -> float:
        """Cores in use by others, on average."""
        return max(0.0, self.busy / self.wall) if self.wall else math.nan


def _busy() -> float:
    """Return the seconds that all cores together were busy since the machine started."""
    file = Path("/proc/stat")
    if not file.exists():
        return math.nan
    user, nice, system, _idle, _waiting, *interrupts = map(float, file.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def origin(packages: Iterable[str] = (), others: float = math.nan, device: str = "cpu") -> Origin:
    """Describe this process and its machine; ``packages`` are further distributions whose versions matter."""
    return Origin(
        device=device,
        cpu=_cpu(),
        cores=os.cpu_count() or 0,
        threads=torch.get_num_threads(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        others=others,
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
