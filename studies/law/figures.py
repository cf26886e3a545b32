"""The picture of the law: worth over the ratio of variances, and over the quality of scores."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from benchmarks.figures import BASELINE, COLORS, MARKERS, STYLE, save
from studies.law import runner
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


def draw_test(found: list[Difference], primary: list[Difference], path: Path) -> None:
    """Draw measured over predicted differences, and Durian minus batch std over the ratio, with 95% intervals."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), width_ratios=(1.2, 1), layout="constrained")
        arms, doses = (list(dict.fromkeys(getattr(d, name) for d in found)) for name in ("arm", "dose"))
        for d in found:
            color, marker = COLORS[arms.index(d.arm)], MARKERS[doses.index(d.dose)]
            _interval(left, 100 * d.predicted, d, color, marker)
        ends = [100 * f(d.predicted for d in found) for f in (min, max)]
        left.plot(ends, ends, color=BASELINE, linewidth=1, linestyle="--", zorder=0)
        left.axhline(0, color=BASELINE, linewidth=0.8, zorder=0)
        left.set_xlabel("predicted difference from a std by kind, points")
        left.set_ylabel("measured, points of held-out accuracy")
        left.set_title("Predicted and measured, all arms", loc="left", weight="bold")
        keys = [Line2D([], [], color=color, label=arm) for arm, color in zip(arms, COLORS, strict=False)]
        keys += [Line2D([], [], color=BASELINE, marker=marker, linestyle="", label=f"R = {dose}")
                 for dose, marker in zip(doses, MARKERS, strict=False)]  # fmt: skip
        keys.append(Line2D([], [], color=BASELINE, linestyle="--", label="as predicted"))
        left.legend(handles=keys, loc="center left", bbox_to_anchor=(1.0, 0.5))
        ratios = [float(d.dose) for d in primary]
        points = [100 * d.predicted for d in primary]
        right.plot(ratios, points, color=BASELINE, linestyle="--", marker="D", label="predicted")
        for d in primary:
            _interval(right, float(d.dose), d, COLORS[0], "o", label="measured" if d is primary[0] else None)
        right.axhline(0, color=BASELINE, linewidth=0.8, zorder=0)
        right.set_xscale("log", base=2)
        right.set_xticks([1, 2, 4, 9], ["1", "2", "4", "9"])
        right.set_xlim(0.85, 10.5)
        right.set_xlabel("ratio of the within-prompt variances of two kinds")
        right.set_title("Durian minus batch std, points", loc="left", weight="bold")
        right.legend(loc="center left")
        save(figure, path, [runner.TABLE])


def _interval(axes: Axes, x: float, d: Difference, color: str, marker: str, **options: Any) -> None:
    sides = [[100 * (d.mean - d.low)], [100 * (d.high - d.mean)]]
    axes.errorbar([x], [100 * d.mean], sides, color=color, marker=marker, capsize=3, linewidth=1.4, **options)


def _lines(axes: Axes, curves: dict[str, list[tuple[float, float]]]) -> None:
    for (name, points), color in zip(curves.items(), (*COLORS, BASELINE), strict=False):
        axes.plot(*zip(*points, strict=True), color=color, label=name, linewidth=1.8)
    axes.legend(loc="lower left")
