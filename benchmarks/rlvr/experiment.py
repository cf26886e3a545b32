"""A whole run, in two halves: what every arm shares, and the RL that differs between them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.rlvr.arms import AdvantageFn
from benchmarks.rlvr.encoder import Gallery, build_gallery
from benchmarks.rlvr.evaluation import Accuracy, evaluate
from benchmarks.rlvr.policy import Policy
from benchmarks.rlvr.prompts import Prompts, ask_about
from benchmarks.rlvr.records import group_advantages, step_metrics
from benchmarks.rlvr.scenes import draw_scenes
from benchmarks.rlvr.training import Step, train
from benchmarks.rlvr.warmup import warm_up
from durian_adv.data.scoring.efficientnet import load_network


@dataclass(frozen=True)
class Start:
    """A warmed-up policy, its images, and the questions it is examined on."""

    policy: Policy
    gallery: Gallery
    held_out: Gallery
    exam: Prompts
    accuracy: Accuracy
    seconds: dict[str, float]


@dataclass(frozen=True)
class Run:
    """What RL left behind: the accuracy it reached, and numbers of its steps and of their groups."""

    accuracy: Accuracy
    steps: list[dict[str, float]]
    groups: list[dict[str, float]]
    seconds: dict[str, float]


def prepare(
    *,
    seed: int,
    images: int = 4000,
    held_out_images: int = 500,
    clutter: float = 1.0,
    layer: str = "stride16",
    warmup_steps: int = 600,
    guess_share: float = 0.35,
    samples: int = 8,
) -> Start:
    """Draw and encode the images, warm the policy up, and examine it."""
    torch.manual_seed(seed)
    streams = iter(np.random.SeedSequence(seed).spawn(4))
    clock = Clock()
    encoder = load_network(layer)
    galleries = []
    for split, count in (("train", images), ("held_out", held_out_images)):
        scenes = draw_scenes(split, count, clutter=clutter, rng=np.random.default_rng(next(streams)))
        galleries.append(build_gallery(scenes, count, encoder, title=f"{split.replace('_', '-')} images"))
    gallery, held_out = galleries
    clock.lap("images")

    policy = Policy(gallery.patches.shape[-1])
    rng = np.random.default_rng(next(streams))
    warm_up(policy, gallery, steps=warmup_steps, guess_share=guess_share, rng=rng)
    clock.lap("warm-up")

    exam = ask_about(held_out, np.arange(held_out_images), np.random.default_rng(next(streams)))
    accuracy = evaluate(policy, held_out, exam, samples=samples, seed=seed)
    clock.lap("exam before")
    return Start(policy, gallery, held_out, exam, accuracy, clock.seconds)


def reinforce(
    start: Start,
    advantage_fn: AdvantageFn,
    *,
    seed: int,
    steps: int = 30,
    prompts: int = 96,
    group_size: int = 8,
    samples: int = 8,
    on_step: Callable[[int, Step], Any] = lambda number, step: None,
) -> Run:
    """Train the start's policy in place by RL and examine it again on the same prompts."""
    clock, records, groups = Clock(), [], []
    training = train(
        start.policy,
        start.gallery,
        advantage_fn,
        steps=steps,
        prompts_per_step=prompts,
        group_size=group_size,
        rng=np.random.default_rng([seed, 1]),
        generator=torch.Generator().manual_seed(seed),
    )
    for number, step in enumerate(progress := tqdm(training, total=steps, desc="RL", unit="step")):
        metrics = step_metrics(step)
        records.append(metrics)
        groups.extend(group_advantages(step))
        on_step(number, step)
        progress.set_postfix_str(
            f"reward {metrics['reward']:.2f}, extreme {metrics['durian/extreme_ratio']:.0%},"
            f" largest |A| {metrics['largest_advantage']:.1f}"
        )
    clock.lap("RL")
    accuracy = evaluate(start.policy, start.held_out, start.exam, samples=samples, seed=seed)
    clock.lap("exam after")
    return Run(accuracy, records, groups, clock.seconds)


class Clock:
    """Seconds of each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Give the time since the last lap a name."""
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now
