"""One figure of a run; every title is computed from the numbers under it."""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

BEFORE, AFTER, GRAY = "#9aa5b1", "#0b6e4f", "#5c6670"
ARM_STYLES = {
    "grpo": ("GRPO", "#d1495b"),
    "batch-std": ("batch std", "#8d99ae"),
    "durian": ("Durian", "#0b6e4f"),
}
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ec",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def draw_figure(results: dict[str, Any], examples: list[dict[str, Any]], path: Path) -> None:
    """Write the figure of a run's results; `examples` are the prompts to show with some of their responses."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(16.5, 10), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.2, rect=(0, 0, 1, 0.935))
        figure.suptitle(_headline(results), fontsize=14, x=0.008, y=0.985, ha="left")
        _examples(axes[0, 0], examples)
        _accuracy(axes[0, 1], results["accuracy"])
        _reward(axes[0, 2], results["steps"])
        _shares(axes[1, 0], results["steps"], results["settings"]["group_size"])
        _advantages(axes[1, 1], results["groups"])
        _stds(axes[1, 2], results["bucket_std"])
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _headline(results: dict[str, Any]) -> str:
    settings = results["settings"]
    return (
        f"A {results['parameters'] / 1e6:.1f}M-parameter policy answers questions about photographs:"
        f" {settings['steps']} RL steps of {settings['prompts']} prompts x {settings['group_size']} responses"
        f" with {ARM_STYLES[settings['arm']][0]} advantages"
    )


def _titles(axes: Axes, headline: str, detail: str) -> None:
    axes.set_title(f"{headline}\n", fontsize=12, weight="bold", loc="left").set_in_layout(False)
    _write(axes, 0.0, 1.015, detail, color=GRAY, fontsize=10.5)


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Write at a fraction of the axes, without moving the layout."""
    axes.text(x, y, text, transform=axes.transAxes, **style).set_in_layout(False)


def _examples(axes: Axes, examples: list[dict[str, Any]]) -> None:
    _titles(axes, "The task: count colored shapes, ignore clutter", "held-out images of low and high visual entropy H")
    axes.set_axis_off()
    for index, example in enumerate(examples):
        top = 0.97 - 0.52 * index
        picture = axes.inset_axes((0.0, top - 0.44, 0.38, 0.44), anchor="NW")
        picture.imshow(example["image"])
        picture.set_axis_off()
        lines = [f"{example['question']}  (right: {example['answer']})", f"H = {example['visual_entropy']:.2f} nats"]
        for when, label in (("before", "after warm-up"), ("after", "after RL")):
            lines += ["", f"a sample {label}:"]
            response = example[when].replace("{ ", "{").replace(" }", "}")
            lines += textwrap.wrap(response, 46, initial_indent="  ", subsequent_indent="     ")
        _write(axes, 0.4, top, "\n".join(lines), va="top", fontsize=8.5)


def _accuracy(axes: Axes, accuracy: dict[str, Any]) -> None:
    for offset, when, label, color in ((-0.19, "before", "after warm-up", BEFORE), (0.19, "after", "after RL", AFTER)):
        heights = [100 * accuracy[kind][when] for kind in ("sampled", "greedy")]
        bars = axes.bar(np.arange(2) + offset, heights, width=0.36, color=color, label=label)
        axes.bar_label(bars, fmt="%.1f%%", padding=2)
    before, after = (100 * accuracy["sampled"][when] for when in ("before", "after"))
    low, high = (100 * bound for bound in accuracy["sampled_change_interval"])
    _titles(
        axes,
        f"Accuracy on new photographs: {before:.0f}% → {after:.0f}%",
        f"sampled: {after - before:+.1f} points, paired 95% interval [{low:+.1f}, {high:+.1f}]",
    )
    axes.set_xticks([0, 1], [f"sampled, {accuracy['samples']} responses each", "greedy"])
    axes.set_ylabel(f"right answers (% of {accuracy['prompts']} prompts)")
    axes.set_ylim(0, 100)
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left", ncols=2)


def _reward(axes: Axes, steps: list[dict[str, float]]) -> None:
    reward = np.array([step["reward"] for step in steps])
    _curve(axes, reward, AFTER, "mean of 5 steps")
    first, last = _thirds(reward)
    _titles(
        axes, "Reward of the sampled responses", f"{first:.2f} in the first third of the steps, {last:.2f} in the last"
    )
    axes.plot([], [], "o", color=AFTER, alpha=0.35, markersize=4, label="one step")
    axes.set_xlabel("RL step")
    axes.set_ylabel("mean reward (0.1 format + 0.9 accuracy)")
    axes.legend(loc="lower right")


def _shares(axes: Axes, steps: list[dict[str, float]], group_size: int) -> None:
    no_signal, extreme = (
        100 * np.array([step[f"durian/{name}"] for step in steps]) for name in ("no_signal_share", "extreme_ratio")
    )
    one = f"1 or {group_size - 1} of {group_size} right"
    _curve(axes, no_signal, GRAY, "no signal: all rewards equal (% of all groups)")
    _curve(axes, extreme, ARM_STYLES["grpo"][1], f"extreme: {one} (% of groups with signal)")
    changes = ["{:.0f} → {:.0f}%".format(*_thirds(curve)) for curve in (no_signal, extreme)]
    _titles(
        axes,
        "Groups without signal, and extreme ones",
        f"first → last third: no signal {changes[0]}, extreme {changes[1]}",
    )
    axes.set_xlabel("RL step")
    axes.set_ylabel("share of groups (%)")
    axes.set_ylim(0, 1.3 * max(no_signal.max(), extreme.max()) or 1.0)
    axes.legend(loc="upper left")


def _advantages(axes: Axes, groups: dict[str, Any]) -> None:
    names = list(groups["count"])
    for index, (arm, (label, color)) in enumerate(ARM_STYLES.items()):
        x = np.arange(len(names)) + 0.25 * (index - 1)
        mean, low, high, top = (
            np.array([groups["largest_advantage"][name][arm][key] for name in names])
            for key in ("mean", "p5", "p95", "max")
        )
        axes.bar(x, mean, width=0.22, color=color, label=label)
        axes.vlines(x, low, high, color="#222222", linewidth=1.2)
        axes.plot(x, top, "x", color=color, markersize=6)
        for place, value in zip(x, mean, strict=True):
            axes.text(place, 0.04, f"{value:.2f}", ha="center", color="white", fontsize=8.5)
    ratios = [f"{groups['extreme_over_balanced'][arm]:.1f} x ({label})" for arm, (label, _) in ARM_STYLES.items()]
    _titles(
        axes,
        "How hard an extreme group pulls, on the same batches",
        f"extreme over balanced: {', '.join(ratios)}",
    )
    axes.set_xticks(range(len(names)), [f"{name}\n({groups['count'][name]} groups)" for name in names])
    axes.set_ylabel("largest |advantage| in a group")
    axes.set_ylim(0, 1.35 * max(groups["largest_of_all"].values()) or 1.0)
    axes.grid(axis="x", visible=False)
    spread = axes.vlines([], [], [], color="#222222", linewidth=1.2, label="5-95% of the groups")
    (largest,) = axes.plot([], [], "x", color=GRAY, label="largest of all groups")
    axes.legend(handles=[*axes.containers, spread, largest], loc="upper center", ncols=2)


def _stds(axes: Axes, stds: dict[str, Any]) -> None:
    start, ranges = 0, []
    for scores, color, name in (("entropy", "#30638e", "visual entropy"), ("confidence", "#edae49", "confidence")):
        mean, low, high = (np.array(stds[scores][key]) for key in ("mean", "p10", "p90"))
        x = start + np.arange(len(mean))
        axes.bar(x, mean, color=color, width=0.75, label=f"buckets of {name}, low to high")
        axes.vlines(x, low, high, color="#222222", linewidth=1.2)
        ranges.append(f"{mean.min():.2f} to {mean.max():.2f} by {name}")
        start += len(mean) + 1
    sizes = [len(stds[scores]["mean"]) for scores in ("entropy", "confidence")]
    axes.set_xticks(
        [*range(sizes[0]), *range(sizes[0] + 1, sum(sizes) + 1)],
        [str(bucket + 1) for size in sizes for bucket in range(size)],
    )
    (batch,) = stds["batch"]["mean"]
    whole = axes.axhline(
        batch, color="#222222", linestyle="--", linewidth=1.2, label=f"std of the whole batch, {batch:.2f}"
    )
    _titles(axes, "Durian divides by the std of a bucket", ", ".join(ranges))
    axes.set_xlabel("bucket")
    axes.set_ylabel("std of rewards (mean, and 10-90% of steps)")
    axes.set_ylim(0, 1.5 * batch or 1.0)
    axes.grid(axis="x", visible=False)
    axes.legend(handles=[*axes.containers, whole], loc="upper left")


def _curve(axes: Axes, values: np.ndarray, color: str, label: str) -> None:
    """Plot one dot per step and the mean of five steps."""
    steps = np.arange(1, len(values) + 1)
    smooth = [values[max(0, step - 3) : step + 2].mean() for step in steps]
    axes.plot(steps, values, "o", color=color, alpha=0.35, markersize=4)
    axes.plot(steps, smooth, color=color, linewidth=2, label=label)


def _thirds(values: np.ndarray) -> tuple[float, float]:
    third = max(1, len(values) // 3)
    return values[:third].mean(), values[-third:].mean()
