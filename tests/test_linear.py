"""Memory and time of the flat form grow with the number of rows, whatever the sizes of the groups."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import durian_adv
from durian_adv import baselines, weighting

# N prompts of one rollout and one prompt of N: a grid of prompts times rollouts would have N * N places
PROGRAM = """
import json, resource, sys
import torch
from durian_adv import baselines, diagnostics, weighting, window, worth
from durian_adv import *

n, chosen = int(sys.argv[1]), sys.argv[2:]
generator = torch.Generator().manual_seed(0)
index = torch.cat([torch.arange(n), torch.full((n,), n)])[torch.randperm(2 * n, generator=generator)]
rewards = (torch.rand(2 * n, generator=generator) < 0.5).float()
score = torch.rand(2 * n, generator=generator)
flat = {"prompt_index": index}
full = flat | {"visual_entropy": score, "confidence": score, "category": index % 7, "weights": (1, 1, 1, 1)}
rows = full | {"rollout_index": torch.arange(2 * n), "no_signal": "drop"}


def windows():
    _, kept = window.windowed_components(rewards, window=None, size=64, **rows)
    return window.windowed_components(rewards, window=kept, size=64, **rows)


def metrics():
    of = {name: rows[name] for name in ("prompt_index", "category", "rollout_index")}
    return diagnostics.durian_metrics(durian_components(rewards, **rows), rewards, **of)


family = {name: f for name, f in vars(baselines).items() if name.endswith("_advantage")}
calls = {name: lambda f=f: f(rewards, **flat) for name, f in family.items()}
calls |= {
    "durian_advantage": lambda: durian_advantage(rewards, **full),
    "durian_components": lambda: durian_components(rewards, **rows),
    "shared_std_advantage": lambda: shared_std_advantage(rewards, index % 5, **flat),
    "reweighted_advantage": lambda: weighting.reweighted_advantage(rewards, weight=weighting.linear, **flat),
    "accuracy_weights": lambda: weighting.accuracy_weights(rewards, weight=weighting.linear, **flat),
    "windowed_components": windows,
    "durian_metrics": metrics,
    "prompt_outcomes": lambda: diagnostics.prompt_outcomes(rewards, **flat),
    "update_by_prompt": lambda: diagnostics.update_by_prompt(rewards, **flat),
    "predicted_worth": lambda: worth.predicted_worth(rewards, {"": rewards}, category=index % 7, **flat),
    "sequence_confidence": lambda: sequence_confidence(rewards[:, None], rollout_index=index),
}
found = {}
for name in chosen or calls:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calls[name]()
    found[name] = (before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(found))
"""


def peaks(n, *names):
    """The peak of resident memory before and after each call, in MB, in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, str(n), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return {name: (before / 1024, after / 1024) for name, (before, after) in json.loads(done.stdout).items()}


def test_no_function_makes_a_grid_of_skewed_groups():
    found = peaks(20_000)  # 3.2 GB as a grid of float64
    flat = {
        name
        for module in (durian_adv, baselines, weighting)
        for name, function in vars(module).items()
        if name.endswith(("_advantage", "_components", "_weights"))
        if inspect.isfunction(function) and "prompt_index" in inspect.signature(function).parameters
    }
    assert flat <= set(found)
    for name, (before, after) in found.items():
        assert after - before < 200, name


def test_a_million_prompts_of_one_rollout_and_one_prompt_of_a_million_take_under_two_gigabytes():
    ((_, after),) = peaks(10**6, "durian_components").values()
    assert after < 2048
