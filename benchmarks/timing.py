"""Times side by side: each round times all candidates of a case in random order, so slow moments hit all alike."""

import math
import random
import statistics
import timeit
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from benchmarks import records
from benchmarks.records import Measurement

ROUND_SECONDS = 0.01  # at least, for each candidate: far above the clock's grain and a call's overhead

Function = Callable[[], object]
Clock = Callable[[Function, int], float]  # how many seconds so many calls take


@dataclass(frozen=True)
class Case:
    """Functions that are timed together; all are compared with the first one, the baseline."""

    name: str
    build: Callable[[], Mapping[str, Function]]  # when its turn comes, so that one case's tensors exist at a time
    targets: Mapping[tuple[str, str], str] = field(default_factory=dict)  # (candidate, baseline): target of the ratio
    rounds: int = 15
    figure: str = ""
    size: int = 0
    size_unit: str = ""


def host_clock(function: Function, calls: int) -> float:
    """Time calls that are done when they return."""
    return timeit.timeit(function, number=calls)


def run(topic: str, cases: Sequence[Case], packages: Iterable[str] = (), extra: Iterable[Measurement] = ()) -> None:
    """Measure the cases of a topic on one thread and write its record; ``extra`` is what was measured otherwise."""
    torch.set_num_threads(1)
    watch = records.Watch()
    measurements = [*extra, *measure_all(topic, cases, watch)]
    records.write(records.RESULTS / f"{topic}.csv", measurements, records.origin(packages, watch.others))


def measure_all(
    topic: str, cases: Sequence[Case], watch: records.Watch, clock: Clock = host_clock
) -> list[Measurement]:
    """Measure cases one after the other, with a progress bar."""
    measurements: list[Measurement] = []
    with tqdm(total=sum(case.rounds for case in cases)) as bar:
        for case in cases:
            bar.set_description(f"{topic}: {case.name}")
            measurements += measure(case, watch, clock, bar.update)
    return measurements


def measure(
    case: Case, watch: records.Watch, clock: Clock = host_clock, progress: Callable[[], object] = lambda: None
) -> list[Measurement]:
    """Time the functions of a case in interleaved rounds: a row for each, and one for each further pair of a target."""
    functions = case.build()
    calls = {name: _calls(function, clock) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    order, shuffle = list(functions), random.Random(0).shuffle
    for _ in range(case.rounds):
        shuffle(order)
        with watch:
            for name in order:
                times[name].append(1e6 * clock(functions[name], calls[name]) / calls[name])
        progress()
    first = next(iter(functions))
    pairs = dict.fromkeys([(name, first) for name in functions] + list(case.targets))
    return [
        compare(
            case.name,
            (candidate, times[candidate]),
            (baseline, times[baseline]),
            "us",
            target=case.targets.get((candidate, baseline), ""),
            calls=calls[candidate],
            # a curve is drawn once, whatever else it is compared with
            figure=case.figure if baseline == first else "",
            size=case.size,
            size_unit=case.size_unit,
        )
        for candidate, baseline in pairs
    ]


def compare(
    case: str,
    candidate: tuple[str, Sequence[float]],
    baseline: tuple[str, Sequence[float]],
    unit: str,
    *,
    target: str = "",
    calls: int = 1,
    figure: str = "",
    size: int = 0,
    size_unit: str = "",
) -> Measurement:
    """Summarize two series of rounds, each with its name: quantiles of the candidate and of each round's ratio."""
    ratios = [a / b for a, b in zip(candidate[1], baseline[1], strict=True)]
    p20, p50, p80 = _quantiles(candidate[1])
    ratio_p20, ratio, ratio_p80 = _quantiles(ratios)
    return Measurement(
        case,
        candidate[0],
        baseline[0],
        p20,
        p50,
        p80,
        unit,
        ratio,
        ratio_p20,
        ratio_p80,
        target=target,
        rounds=len(ratios),
        calls=calls,
        figure=figure,
        size=size,
        size_unit=size_unit,
    )


def _calls(function: Function, clock: Clock) -> int:
    """Return how many calls fill a round; the first one, which may compile, does not count unless it takes minutes."""
    if clock(function, 1) > 60:
        return 1
    single = clock(function, 1)
    if single < ROUND_SECONDS:
        single = min(clock(function, 1) for _ in range(3))
    return math.ceil(ROUND_SECONDS / single)


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return (values[0],) * 3
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]
