"""Pictures of the evidence, each drawn from records alone."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from benchmarks.figures import BASELINE, COLORS, MET, NOT_MET, STYLE, save
from studies.evidence import closed_forms, declaration, mechanism, records
from studies.evidence.arms import MAIN
from studies.evidence.comparison import Difference, Records
from studies.evidence.conditions import LONG_PILOTS, PILOTS

ARM_COLORS = {arm: (*COLORS, "#222222", "#a0a7ad")[number] for number, arm in enumerate(MAIN)}
KINDS = ("extreme", "between", "balanced", "format_only")


def forest(
    found: list[Difference], margin: float, detectable: float, title: str, path: Path, sources: list[Path]
) -> None:
    """Draw each paired difference with its interval, the margin of equivalence and what the runs can resolve."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(9, 1.8 + 0.42 * len(found)), layout="constrained")
        axes.axvspan(
            -100 * margin, 100 * margin, color="#eef3ee", label=f"margin of equivalence: {100 * margin:g} point"
        )
        for side in (-1, 1):
            label = f"smallest difference declared detectable: {100 * detectable:.2f}" if side > 0 else None
            axes.axvline(100 * side * detectable, color=BASELINE, linestyle=":", label=label)
        _intervals(axes, found, [f"{d.arm} - {d.baseline}" for d in found])
        axes.set_xlabel("held-out accuracy, percentage points (mean over seeds; bar: 95% interval, paired t)")
        axes.set_title(title, loc="left", weight="bold")
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.14), ncols=2)
        save(figure, path, sources)


def conditions(found: dict[str, list[Difference]], margin: float, path: Path, sources: list[Path]) -> None:
    """Draw the same differences under each condition, one panel per pair of arms."""
    pairs = [(d.arm, d.baseline) for d in next(iter(found.values()))]
    with plt.rc_context(STYLE):
        size = (14, 1.6 + 0.5 * len(found))
        figure, panels = plt.subplots(1, len(pairs), figsize=size, sharey=True, sharex=True, layout="constrained")
        for axes, pair in zip(panels, pairs, strict=True):
            axes.axvspan(-100 * margin, 100 * margin, color="#eef3ee")
            chosen = [d for some in found.values() for d in some if (d.arm, d.baseline) == pair]
            labels = [f"{about}\n({d.seeds} seeds)" for about, d in zip(found, chosen, strict=True)]
            _intervals(axes, chosen, labels)
            axes.set_title(" - ".join(pair), loc="left", weight="bold")
        figure.supxlabel(
            "held-out accuracy, percentage points (bar: 95% interval, paired t; red: p < 0.05 corrected;"
            f" shade: {100 * margin:g} point)",
            fontsize="medium",
        )
        save(figure, path, sources)


def curves(found: Records, arms: tuple[str, ...], title: str, path: Path, sources: list[Path]) -> None:
    """Draw held-out accuracy over the steps, means over seeds; and each arm minus the first one."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
        for arm in arms:
            some = {seed: record for (name, seed), record in found.items() if name == arm}
            base = {seed: record for (name, seed), record in found.items() if name == arms[0]}
            if not some:
                continue
            steps, values = _exams(list(some.values()))
            left.plot(steps, values.mean(0), "o-", markersize=4, color=ARM_COLORS.get(arm), label=arm)
            seeds = sorted(set(some) & set(base))
            if arm != arms[0] and seeds:
                paired = [_exams([each[seed] for seed in seeds])[1] for each in (some, base)]
                difference = 100 * (paired[0] - paired[1])
                error = difference.std(0, ddof=1) / np.sqrt(len(seeds)) if len(seeds) > 1 else 0 * steps
                right.plot(steps, difference.mean(0), "o-", markersize=4, color=ARM_COLORS.get(arm), label=arm)
                right.fill_between(steps, difference.mean(0) - error, difference.mean(0) + error,
                                   color=ARM_COLORS.get(arm), alpha=0.1, linewidth=0)  # fmt: skip
        left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        left.set_ylabel("held-out accuracy, sampled")
        right.axhline(0, color="#222222", linewidth=1)
        right.set_ylabel(f"minus {arms[0]}, points (band: one standard error)")
        for axes in (left, right):
            axes.set_xlabel("RL steps")
        left.set_title(title, loc="left", weight="bold")
        left.legend(ncols=2)
        save(figure, path, sources)


def bound(path: Path, source: Path) -> None:
    """Draw how the cosine of GRPO and Dr. GRPO may fall with the group size, and how far it does fall."""
    rows = [row for row in mechanism.read(source) if row["arm"] == "grpo"]
    sizes = np.unique(np.geomspace(2, 64, 60).round().astype(int) // 2 * 2)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.5, 4.6), layout="constrained")
        panels = (
            ("binary", closed_forms.binary_bound, COLORS[0]),
            ("0.9 + 0.1 format", closed_forms.format_bound, COLORS[2]),
        )
        for rewards, formula, color in panels:
            axes.plot(sizes, [formula(int(size)) for size in sizes], "--", color=color, label=f"bound, {rewards}")
            for checkpoint, marker in zip(sorted({row["checkpoint"] for row in rows}), "osD", strict=False):
                chosen = [r for r in rows if r["rewards"] == rewards and r["checkpoint"] == checkpoint]
                chosen.sort(key=lambda row: row["group_size"])
                axes.plot([r["group_size"] for r in chosen], [r["cosine"] for r in chosen], marker + "-", color=color,
                          markersize=5, alpha=0.8, label=f"measured, {rewards}, step {checkpoint:.0f}")  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks([2, 4, 8, 16, 32, 64], ["2", "4", "8", "16", "32", "64"])
        axes.set_ylim(0.2, 1.02)
        axes.set_xlabel("responses per prompt, G")
        axes.set_ylabel("cosine of advantages")
        axes.set_title("GRPO against Dr. GRPO: how far apart they can be, and are", loc="left", weight="bold")
        axes.legend(ncols=2, loc="lower left")
        save(figure, path, [source])


def shares(path: Path, source: Path) -> None:
    """Draw which groups carry the update under each arm, as shares of squared advantages, at the last checkpoint."""
    rows = mechanism.read(source)
    last = max(row["checkpoint"] for row in rows)
    colors = dict(zip(KINDS, (COLORS[2], COLORS[3], COLORS[0], COLORS[4]), strict=True))
    names = {"extreme": "extreme: 1 or 7 of 8 right", "between": "between", "balanced": "balanced: 3 to 5 of 8",
             "format_only": "differ in format alone"}  # fmt: skip
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(12, 4.8), sharey=True, layout="constrained")
        for axes, rewards in zip(panels, ("binary", "0.9 + 0.1 format"), strict=True):
            chosen = [row for row in rows if row["checkpoint"] == last and row["rewards"] == rewards][::-1]
            left = np.zeros(len(chosen))
            for kind in KINDS:
                width = np.array([row[f"square_share_{kind}"] for row in chosen])
                axes.barh([row["arm"] for row in chosen], width, left=left, color=colors[kind], label=names[kind])
                left += width
            axes.set_title(f"rewards: {rewards}, step {last:.0f}", loc="left", weight="bold")
            axes.set_xlabel("share of the sum of squared advantages")
            axes.grid(axis="y", visible=False)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        save(figure, path, [source])


def sweep(path: Path, sources: list[Path]) -> None:
    """Draw the learning-rate sweep, all arms."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.5, 4.4), layout="constrained")
        tables = {pilot.lr: declaration.sweep(pilot) for pilot in PILOTS}
        for number, arm in enumerate(MAIN):
            values = [table[number].mean() for table in tables.values()]
            axes.plot(list(tables), values, "o-", color=ARM_COLORS[arm], label=arm)
        for pilot in LONG_PILOTS:
            means = dict(zip(pilot.arms, declaration.sweep(pilot).mean(axis=1), strict=True))
            for arm, value in means.items():
                axes.plot(pilot.lr, value, "s", color=ARM_COLORS[arm], markersize=7, fillstyle="none")
        axes.set_xscale("log")
        axes.set_xticks(list(tables), [f"{rate:g}" for rate in tables])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("learning rate of Adam")
        axes.set_ylabel(f"held-out accuracy; dots {PILOTS[0].steps} steps, squares {LONG_PILOTS[0].steps}")
        axes.set_title("The learning-rate sweep, all arms", loc="left", weight="bold")
        axes.legend(ncols=2)
        save(figure, path, sources)


def extremes(found: Records, paper: dict[int, float], path: Path, sources: list[Path]) -> None:
    """Draw the share of extreme groups among the effective ones over the steps, beside the paper's."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.5, 4.4), layout="constrained")
        for arm in ("grpo", "batch-std", "durian"):
            some = [record for (name, _), record in found.items() if name == arm]
            if some:
                ratio = np.mean([_ratios(record.steps) for record in some], axis=0)
                smooth = np.convolve(ratio, np.ones(9) / 9, mode="valid")
                axes.plot(np.arange(len(smooth)) + 5, smooth, color=ARM_COLORS[arm], label=f"{arm}, here")
        axes.plot(list(paper), list(paper.values()), "x--", color=BASELINE, label="the paper, 512 x 8")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(0, 0.6)
        axes.set_xlabel("RL steps (ours: mean over seeds and 9 steps)")
        axes.set_ylabel("extreme of effective groups")
        axes.set_title("1 or 7 of 8 right, among groups with signal", loc="left", weight="bold")
        axes.legend()
        save(figure, path, sources)


def _intervals(axes: Axes, found: list[Difference], labels: list[str]) -> None:
    """Draw differences below one another, each with its interval."""
    axes.axvline(0, color="#222222", linewidth=1)
    for height, d in enumerate(found[::-1]):
        color = NOT_MET if d.p_corrected < 0.05 else MET
        axes.plot([100 * d.low, 100 * d.high], [height, height], color=color, linewidth=3, alpha=0.45)
        axes.plot(100 * d.mean, height, "o", color=color)
    axes.set_yticks(range(len(found)), labels[::-1])
    axes.set_ylim(-0.7, len(found) - 0.3)
    axes.grid(axis="y", visible=False)


def _ratios(steps: list[dict[str, float]]) -> list[float]:
    return [(row["extreme_success"] + row["extreme_failure"]) / max(row["effective"], 1) for row in steps]


def _exams(some: list[records.Record]) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps after which a run is examined, and the accuracies, (runs, exams)."""
    steps = [int(row["step"]) + 1 for row in some[0].steps if "held_out" in row]
    return np.array(steps), np.array([[row["held_out"] for row in r.steps if "held_out" in row] for r in some])
