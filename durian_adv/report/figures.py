"""The figures of a report: drawn once, written as PNG on white, and as SVG that takes its colors from the page."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from durian_adv.report.arms import METHODS
from durian_adv.report.numbers import NOTABLE, RATIO_BINS, SCORES, TENTHS, Summary
from durian_adv.report.words import CALLED, degrees

# Colors by the names that the page gives them; no two alike, as the page's stylesheet takes the place of each
COLORS = {
    "ink": "#1c2126",
    "muted": "#5b6570",
    "grid": "#e3e7ea",
    "paper": "#fefefe",
    "grpo": "#c8384b",
    "batch": "#3c6ea5",
    "durian": "#0b6e50",
    "quiet": "#98a2ad",
}
INK, MUTED, QUIET = COLORS["ink"], COLORS["muted"], COLORS["quiet"]
# Dr. GRPO and batch std are proportional in every step, so wherever a common factor drops out they are one curve
STYLES = {
    "GRPO": ("GRPO", COLORS["grpo"], "o", "-"),
    "batch std": ("Dr. GRPO and batch std", COLORS["batch"], "s", "--"),
    "Durian": ("Durian", COLORS["durian"], "D", "-"),
}
OF_SCORE = {"visual_entropy": COLORS["batch"], "confidence": COLORS["durian"]}
RC = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLORS["grid"],
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "durian-adv",
}
DRAWN_STEPS = 60  # more are joined to means of neighbors, which the axis says
DRAWN_BUCKETS = 48  # more are drawn as a line
WIDE, NARROW = 9.2, 4.4  # inches
MOST_LEVELS = 17  # of correct rollouts, as up to 0 to 16 of 16


class Picture(NamedTuple):
    """A figure as a file and as a part of a page."""

    name: str
    alt: str
    svg: str
    narrow: str  # the same for a phone


Plot = Callable[[Figure, Summary], str]


def draw(summary: Summary, folder: Path) -> dict[str, Picture]:
    """Write a PNG for each figure that has something to show into ``folder``; return the figures by name."""
    several = max(summary.columns["prompts"]) > 1  # to be compared with one another
    signal, scores = several and summary.compared > 0, several and any(map(summary.has, SCORES))
    drawn: dict[str, tuple[Plot, float, int, bool]] = {
        "pull": (_pull, 4.2, 2, signal and summary.parted),
        "extremes": (_extremes, 3.6, 1, several and summary.parted),
        "difficulty": (_difficulty, 3.6, 2, scores and summary.parted),
        "buckets": (_buckets, 4.0, 2, scores and signal),
        "changes": (_changes, 3.6, 2, scores and signal),
    }
    pictures = {}
    with matplotlib.rc_context(RC):  # type: ignore[arg-type]  # its keys are known strings
        for name, (plot, height, panels, telling) in drawn.items():
            if not telling:
                (folder / f"{name}.png").unlink(missing_ok=True)  # of another log
                continue
            figure, alt = _plotted(plot, summary, (WIDE, height))
            figure.savefig(folder / f"{name}.png", dpi=150, facecolor="white", metadata={"Software": None})
            narrow, _ = _plotted(plot, summary, (NARROW, 0.9 * height * panels))
            pictures[name] = Picture(name, alt, _svg(figure, name), _svg(narrow, f"narrow-{name}"))
    return pictures


def _plotted(plot: Plot, summary: Summary, size: tuple[float, float]) -> tuple[Figure, str]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, plot(figure, summary)


def _svg(figure: Figure, name: str) -> str:
    image = io.StringIO()
    figure.savefig(image, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_the_page(image.getvalue(), name)


def _narrow(figure: Figure) -> bool:
    """Whether panels stand below one another, for a phone."""
    return bool(figure.get_figwidth() < WIDE)


def _two(figure: Figure, *, sharey: bool = False, width_ratios: Sequence[float] | None = None) -> Sequence[Axes]:
    """Return two panels, side by side where the figure is wide enough."""
    if _narrow(figure):
        return tuple(figure.subplots(2, 1, sharey=sharey))
    return tuple(figure.subplots(1, 2, sharey=sharey, width_ratios=width_ratios))


def _for_the_page(svg: str, name: str) -> str:
    """Cut out the element, make its ids its own, and leave its colors to the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*" ([^>]*?)width="[^"]*"', r"<svg \1\2", svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for variable, color in COLORS.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def _pull(figure: Figure, summary: Summary) -> str:
    sizes = {rollouts for _, rollouts in summary.pull}
    alike = len(sizes) == 1 and max(sizes) < MOST_LEVELS
    places: dict[float, list[float]] = {}
    for (correct, rollouts), sums in summary.pull.items():
        # groups of different sizes are joined by tenths of accuracy
        place = float(correct) if alike else round(10 * correct / rollouts) / 10
        places[place] = [a + b for a, b in zip(places.get(place, [0.0] * len(sums)), sums, strict=True)]
    at = sorted(places)
    scores = any(map(summary.has, SCORES))
    panels = _two(figure)
    for axes, first, title in zip(
        panels,
        (1, 1 + len(METHODS)),
        ("Pull of a prompt: all its rollouts", "Its largest single advantage"),
        strict=True,
    ):
        for method, (label, color, marker, line) in STYLES.items():
            if method == "Durian" and not scores:
                continue  # it would cover GRPO's line
            label += " (and Durian, without scores)" * (method == "GRPO" and not scores)
            row = first + METHODS.index(method)
            values = [places[x][row] / places[x][0] for x in at]
            axes.plot(at, values, color=color, marker=marker, linestyle=line, label=label, linewidth=2)
        axes.axhline(1, color=QUIET, linewidth=1)
        axes.set_ylim(bottom=0)
        axes.set_title(title)
        axes.set_xticks(at, [f"{x:.0f}" if alike else f"{x:.0%}" for x in at])
        if len(at) > 9:
            axes.tick_params(axis="x", labelsize=8)
        axes.set_xlabel(f"rollouts that are correct, of {max(sizes)}" if alike else "accuracy of the prompt")
    panels[0].set_ylabel("1 = mean of the method's prompts")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside upper left",
        ncols=1 if _narrow(figure) else 3,
        handlelength=2.4,
    )
    return "How hard each method pulls a prompt, and its largest advantage, by how many of its rollouts are correct"


def _extremes(figure: Figure, summary: Summary) -> str:
    axes = figure.subplots()
    order, x, label = _steps(summary)
    shown = (
        ("no_signal_share", "no signal (of all prompts)", QUIET, "o", "-"),
        ("extreme_failure", "one correct (of those with signal)", COLORS["grpo"], "v", "-"),
        ("extreme_success", "one wrong (of those with signal)", COLORS["batch"], "^", "--"),
    )
    if len(x) == 1:
        values = [summary.columns[name][0] for name, *_ in shown]
        bars = axes.barh([text for _, text, *_ in shown], values, color=[color for _, _, color, *_ in shown])
        axes.bar_label(bars, [f"{value:.0%}" for value in values], padding=4)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlim(0, max(0.05, 1.15 * max(values)))
        return "Shares of prompts without signal and of extreme prompts"
    for name, text, color, marker, line in shown:
        values = _joined([summary.columns[name][place] for place in order])
        some = marker if len(values) <= 60 else None
        axes.plot(_joined(x), values, color=color, marker=some, linestyle=line, label=text, markersize=4)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("share of prompts")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(label)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper left", ncols=1 if _narrow(figure) else 3, handlelength=2.4
    )
    return "Shares of prompts without signal and of extreme prompts, over the steps"


def _difficulty(figure: Figure, summary: Summary) -> str:
    panels = _two(figure, sharey=True)
    for axes, score in zip(panels, SCORES, strict=True):
        expected = "should fall" if score == "visual_entropy" else "should rise"
        if not _titled(axes, score, f"by {CALLED[score]}: {expected}", summary):
            continue
        tenths = [(number, tenth) for number, tenth in enumerate(summary.tenths(score), 1) if tenth.prompts]
        accuracy, error = [t.accuracy for _, t in tenths], [2 * t.error for _, t in tenths]
        axes.errorbar([n for n, _ in tenths], accuracy, error, color=OF_SCORE[score], marker="o", capsize=3)
        axes.set_xticks(range(1, TENTHS + 1))
        axes.set_xlabel(f"tenth of prompts, low to high {CALLED[score]}")
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[0].set_ylabel("correct rollouts\n(bar: two standard errors)")
    return "Accuracy of prompts by tenths of visual entropy and of confidence"


def _buckets(figure: Figure, summary: Summary) -> str:
    sizes = [max(3, min(DRAWN_BUCKETS, len(summary.buckets(score)))) for score in SCORES]
    panels = _two(figure, sharey=True, width_ratios=sizes)
    top = 1.0
    for axes, score in zip(panels, SCORES, strict=True):
        if not _titled(axes, score, f"by {CALLED[score]}", summary):
            continue
        buckets = summary.buckets(score)
        stds = [bucket.std for bucket in buckets.values()]
        top = max(top, *(bucket.high for bucket in buckets.values()))
        axes.axhline(1, color=INK, linewidth=1, linestyle="--")
        names = [number + 1 for number in buckets]
        if len(buckets) > DRAWN_BUCKETS:
            axes.plot(names, stds, color=OF_SCORE[score])
        else:
            axes.bar(names, stds, color=OF_SCORE[score], width=0.72)
            if len(summary.names) > 1:
                spread = [(bucket.low, bucket.high) for bucket in buckets.values()]
                axes.vlines(names, *zip(*spread, strict=True), color=INK, linewidth=1.2)
            axes.set_xticks(names, [f"{n}\n{b.prompts:.0f}" for n, b in zip(names, buckets.values(), strict=True)])
    figure.supxlabel("bucket, from low to high; below it, prompts per step", fontsize=10)
    panels[0].set_ylim(0, 1.1 * top)
    line = "\n(line: 10 to 90% of the steps)" * (len(summary.names) > 1)
    panels[0].set_ylabel(f"std of the bucket\n1 = std of all rewards{line}")
    return "The std that each bucket of visual entropy and of confidence shares, and how many prompts are in it"


def _changes(figure: Figure, summary: Summary) -> str:
    histogram, angles = _two(figure)
    counts = summary.ratios.tolist()
    middles = [(a + b) / 2 for a, b in itertools.pairwise(RATIO_BINS)]
    total = sum(counts)
    shown = [number for number, count in enumerate(counts) if count]
    histogram.bar(middles, [count / total for count in counts], width=0.115, color=COLORS["durian"])
    histogram.axvline(0, color=INK, linewidth=1)
    widest = max(1.0, *(abs(RATIO_BINS[n + side]) for n in (shown[0], shown[-1]) for side in (0, 1)))
    histogram.set_xlim(-widest - 0.05, widest + 0.05)
    histogram.set_xticks([k for k in (-3, -2, -1, 0, 1, 2, 3) if abs(k) <= widest])
    histogram.xaxis.set_major_formatter(FuncFormatter(lambda power, _: f"{2.0**power:.3g} x"))
    histogram.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    histogram.set_title(f"{summary.notable / summary.compared:.0%} of prompts change by a factor over {NOTABLE}")
    histogram.set_xlabel("Durian's pull over GRPO's")
    histogram.set_ylabel("share of prompts with signal")

    order, x, label = _steps(summary)
    angles.set_title("Angle to GRPO's advantages")
    others = {method: style for method, style in STYLES.items() if method != "GRPO"}
    if len(x) == 1:
        found = [summary.angle("GRPO", method) for method in others]
        colors = [color for _, color, _, _ in others.values()]
        bars = angles.bar([label for label, *_ in others.values()], found, color=colors, width=0.6)
        angles.bar_label(bars, list(map(degrees, found)), padding=2)
    else:
        for method, (text, color, _, line) in others.items():
            cosines = [summary.columns[f"GRPO to {method}"][place] for place in order]
            drawn = [(at, _degrees(cosine)) for at, cosine in zip(x, cosines, strict=True) if not math.isnan(cosine)]
            places, values = ([pair[side] for pair in drawn] for side in (0, 1))
            angles.plot(_joined(places), _joined(values), color=color, linestyle=line, label=text)
        angles.xaxis.set_major_locator(MaxNLocator(integer=True))
        angles.set_xlabel(label)
        angles.legend(loc="upper right", ncols=2, handlelength=2.4)
    angles.set_ylim(0, max(10.0, 1.2 * angles.get_ylim()[1]))
    angles.yaxis.set_major_locator(MaxNLocator(integer=True))
    angles.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}°"))
    return "How many times as hard Durian pulls a prompt as GRPO does, and the angle between methods and GRPO"


def _titled(axes: Axes, score: str, title: str, summary: Summary) -> bool:
    axes.set_title(title[0].upper() + title[1:])
    if summary.has(score):
        return True
    axes.set_axis_off()
    axes.text(0.5, 0.5, f"no {CALLED[score]} in this log", ha="center", transform=axes.transAxes, color=MUTED)
    return False


def _steps(summary: Summary) -> tuple[list[int], list[float], str]:
    """Return the order of the steps, where they are drawn, and the axis' name: by their numbers if all have one."""
    numbers = {place: float(name) for place, name in enumerate(summary.names) if isinstance(name, int)}
    if len(numbers) == len(summary.names):
        order = sorted(numbers, key=numbers.__getitem__)
        return order, [numbers[place] for place in order], f"step{_smoothed(len(order))}"
    order = list(range(len(summary.names)))
    return order, [float(place + 1) for place in order], f"steps, in the order of the log{_smoothed(len(order))}"


def _each(steps: int) -> int:
    """Return how many neighboring steps are drawn as their mean."""
    return -(-steps // DRAWN_STEPS) or 1


def _smoothed(steps: int) -> str:
    return f" (each point: mean of {_each(steps)} steps)" if _each(steps) > 1 else ""


def _joined(values: Sequence[float]) -> list[float]:
    """Return at most ``DRAWN_STEPS`` values: means of neighbors where there are more, without those that are NaN."""
    each = _each(len(values))
    parts = [values[start : start + each] for start in range(0, len(values), each)]
    defined = [[value for value in part if not math.isnan(value)] for part in parts]
    return [sum(part) / len(part) if part else math.nan for part in defined]


def _degrees(cosine: float) -> float:
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
