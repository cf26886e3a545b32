"""Steps of rollouts as a report takes them, and what it adds up of them."""

import json
from functools import partial

import numpy as np
import torch

from durian_adv import durian_components
from durian_adv.cli import main
from durian_adv.data.logs.steps import Step
from durian_adv.report.numbers import Summary


def components(rewards, visual_entropy, confidence, prompt_index, buckets=3):
    return durian_components(
        rewards,
        visual_entropy=visual_entropy,
        confidence=confidence,
        prompt_index=prompt_index,
        num_confidence_buckets=buckets,
    )


def of_step(step, weights=(0.1, 0.2, 0.7), buckets=3, **options):
    """Durian's components as a report takes them; a fourth weight is that of the category."""
    return durian_components(
        step.rewards,
        visual_entropy=step.visual_entropy,
        confidence=step.confidence,
        prompt_index=step.prompt_index,
        category=step.category if len(weights) == 4 else None,
        weights=weights,
        num_confidence_buckets=buckets,
        **options,
    )


def a_step(seed, name=0, prompts=30, width=8, entropy=True, confidence=True, slope=2.0):
    """Rewards that depend on the confidence by ``slope`` and on nothing else."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=prompts)
    right = rng.random((prompts, width)) < 1 / (1 + np.exp(-slope * score))[:, None]
    index = torch.arange(prompts).repeat_interleave(width)
    return Step(
        name,
        [f"p{i}" for i in range(prompts)],
        index,
        torch.tensor(0.9 * right + 0.1).flatten(),
        torch.tensor(rng.normal(size=prompts))[index] if entropy else None,
        torch.tensor(score)[index] if confidence else None,
    )


def summed(*steps, buckets=3):
    summary = Summary(partial(of_step, buckets=buckets))
    for step in steps:
        summary.add(step)
    return summary


def lines(steps):
    for step in steps:
        for i, prompt in enumerate(step.prompt_index.tolist()):
            row = {"prompt": step.prompts[prompt], "reward": step.rewards[i].item()}
            if step.name is not None:
                row["step"] = step.name
            for score in ("visual_entropy", "confidence", "category"):
                if getattr(step, score) is not None:
                    row[score] = getattr(step, score)[i].item()
            yield json.dumps(row) + "\n"


def report(tmp_path, capsys, steps, *options):
    """The status, the page and what was printed."""
    (tmp_path / "log.jsonl").write_text("".join(lines(steps)))
    status = main(["report", str(tmp_path / "log.jsonl"), "--out", str(tmp_path / "out"), *options])
    page = tmp_path / "out/report.html"
    return status, page.read_text() if page.exists() else "", capsys.readouterr()
