"""The picture of the law: worth over the ratio of variances, and over the quality of scores."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.figures import BASELINE, COLORS, STYLE, save


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


def _lines(axes: Axes, curves: dict[str, list[tuple[float, float]]]) -> None:
    for (name, points), color in zip(curves.items(), (*COLORS, BASELINE), strict=False):
        axes.plot(*zip(*points, strict=True), color=color, label=name, linewidth=1.8)
    axes.legend(loc="lower left")
