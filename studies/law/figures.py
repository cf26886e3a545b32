"""The picture of the law: worth over the ratio of variances, and over the quality of scores."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from benchmarks.figures import BASELINE, COLORS, MARKERS, STYLE, save
from studies.law import runner, training
from studies.law.analysis import Difference


def draw(curves: dict[str, dict[str, list[tuple[float, float]]]], path: Path, source: Path) -> None:
    """Draw the curves of both panels, drawn from ``source``."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), sharey=True, layout="constrained")
        _lines(left, curves["ratio"])
        left.set_xscale("log", base=2)
        left.set_xticks([1, 2, 4, 9, 16], ["1", "2", "4", "9", "16"])
        left.set_xlabel("ratio of the within-prompt variances of two kinds (judge noise)")
        left.set_ylabel("predicted worth (1: the best factor per kind)")
        left.set_title("Kinds that differ in noise", loc="left", weight="bold")
        _lines(right, curves["quality"])
        right.set_xlabel("correlation of Durian's two scores with what they stand for")
        right.set_title("Durian, by the quality of its scores", loc="left", weight="bold")
        left.set_ylim(0.15, 1.03)
        save(figure, path, [source])


def draw_test(outcomes: dict[str, tuple[list[Difference], list[Difference]]], path: Path) -> None:
    """Draw a row per outcome: measured over predicted differences of all arms, and the primary one over the doses.

    Intervals are 95%. The key of an outcome is what its doses are.
    """
    with plt.rc_context(STYLE):
        size = (13, 5 * len(outcomes))
        figure, rows = plt.subplots(
            len(outcomes), 2, figsize=size, width_ratios=(1.2, 1), layout="constrained", squeeze=False
        )
        for (left, right), (dial, (found, primary)) in zip(rows, outcomes.items(), strict=True):
            _measured_over_predicted(left, dial, found)
            _over_doses(right, dial, primary)
        save(figure, path, [runner.TABLE])


def _measured_over_predicted(axes: Axes, dial: str, found: list[Difference]) -> None:
    arms, doses = (list(dict.fromkeys(getattr(d, name) for d in found)) for name in ("arm", "dose"))
    colors = dict(zip(training.ARMS, COLORS, strict=False))  # the same in every row
    for d in found:
        _interval(axes, 100 * d.predicted, d, colors[d.arm], MARKERS[doses.index(d.dose)])
    ends = [100 * f(d.predicted for d in found) for f in (min, max)]
    axes.plot(ends, ends, color=BASELINE, linewidth=1, linestyle="--", zorder=0)
    axes.axhline(0, color=BASELINE, linewidth=0.8, zorder=0)
    axes.set_xlabel("predicted difference from a std by kind, points")
    axes.set_ylabel("measured, points of held-out accuracy")
    axes.set_title(f"All arms, by {dial}", loc="left", weight="bold")
    keys = [Line2D([], [], color=colors[arm], label=arm) for arm in arms]
    keys += [Line2D([], [], color=BASELINE, marker=marker, linestyle="", label=dose)
             for dose, marker in zip(doses, MARKERS, strict=False)]  # fmt: skip
    keys.append(Line2D([], [], color=BASELINE, linestyle="--", label="as predicted"))
    axes.legend(handles=keys, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _over_doses(axes: Axes, dial: str, primary: list[Difference]) -> None:
    places = list(range(len(primary)))
    axes.plot(places, [100 * d.predicted for d in primary], color=BASELINE, linestyle="--", marker="D",
              label="predicted")  # fmt: skip
    for place, d in zip(places, primary, strict=True):
        _interval(axes, place, d, COLORS[0], "o", label=None if place else "measured")
    axes.axhline(0, color=BASELINE, linewidth=0.8, zorder=0)
    axes.set_xticks(places, [d.dose for d in primary])
    axes.set_xlabel(dial)
    axes.set_title(f"{primary[0].arm} minus {primary[0].baseline}, points", loc="left", weight="bold")
    axes.legend(loc="best")


def _interval(axes: Axes, x: float, d: Difference, color: str, marker: str, **options: Any) -> None:
    sides = [[100 * (d.mean - d.low)], [100 * (d.high - d.mean)]]
    axes.errorbar([x], [100 * d.mean], sides, color=color, marker=marker, capsize=3, linewidth=1.4, **options)


def _lines(axes: Axes, curves: dict[str, list[tuple[float, float]]]) -> None:
    for (name, points), color in zip(curves.items(), (*COLORS, BASELINE), strict=False):
        axes.plot(*zip(*points, strict=True), color=color, label=name, linewidth=1.8)
    axes.legend(loc="lower left")
