"""The same worth of any estimator at the size of a real batch: drawn batches, and the library's own functions."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from durian_adv import durian_advantage, grpo_advantage, shared_std_advantage
from durian_adv.baselines import batch_std_advantage, dr_grpo_advantage
from studies.law.structure import Kind, Structure
from studies.law.worth import Estimate


@dataclass(frozen=True)
class Sample:
    """A batch of B prompts with G rollouts each."""

    rewards: Tensor  # (B, G)
    answers: Tensor  # (B, G): what counts
    kind: Tensor  # (B,)
    difficulty: Tensor  # (B,) logit of the accuracy
    visual_entropy: Tensor  # (B,)
    confidence: Tensor  # (B,)


def sample(
    structure: Structure, prompts: int, rng: np.random.Generator, *, quality: float = 1.0, of: str = "difficulty"
) -> Sample:
    """Draw a batch; both scores stand for a prompt's difficulty or ``of="kind"``, each with an error of its own."""
    total = sum(kind.share for kind in structure.kinds)
    numbers = np.arange(len(structure.kinds))
    kept: list[tuple[int, float, np.ndarray, np.ndarray]] = []
    while len(kept) < prompts:
        number = int(rng.choice(numbers, p=[kind.share / total for kind in structure.kinds]))
        drawn = structure.kinds[number]
        accuracy = float(rng.choice(drawn.accuracy))
        answers, rewards = group(drawn, accuracy, structure.rollouts, rng)
        if not structure.filtered or drawn.spread or 0 < answers.sum() < len(answers):
            kept.append((number, accuracy, answers, rewards))
    kinds, accuracies, answers, rewards = (np.array(column) for column in zip(*kept, strict=True))
    difficulty = np.log(accuracies / (1 - accuracies))
    hidden = kinds.astype(float) if of == "kind" else difficulty
    hidden = (hidden - hidden.mean()) / (hidden.std() or 1)
    scores = quality * hidden + np.sqrt(1 - quality**2) * rng.normal(size=(2, prompts))
    return Sample(*map(torch.from_numpy, (rewards, answers, kinds, difficulty, scores[0].copy(), scores[1].copy())))


def group(kind: Kind, accuracy: float, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw what counts and the rewards of one prompt's rollouts."""
    answers = (rng.random(size) < accuracy).astype(float)
    if kind.spread:
        answers = accuracy + kind.spread * rng.normal(size=size)
    kept = rng.random(size) < kind.format_rate
    rewards = kind.unit * ((1 - kind.format_weight) * answers + kind.format_weight * kept)
    return answers, rewards + kind.noise * rng.normal(size=size)


def scored_durian(batch: Sample, no_signal: str = "keep") -> Tensor:
    """Return Durian's advantages, with defaults."""
    scores = {"visual_entropy": batch.visual_entropy, "confidence": batch.confidence}
    return durian_advantage(batch.rewards, **scores, no_signal=no_signal)


ADVANTAGES: dict[str, Callable[[Sample], Tensor]] = {
    "grpo": lambda batch: grpo_advantage(batch.rewards),
    "dr. grpo": lambda batch: dr_grpo_advantage(batch.rewards),
    "batch std": lambda batch: batch_std_advantage(batch.rewards),
    "std by kind": lambda batch: shared_std_advantage(batch.rewards, batch.kind),
    "durian, kept": scored_durian,
    "durian, dropped": lambda batch: scored_durian(batch, "drop"),
}


def drawn_worth(batches: list[Sample], advantage: Callable[[Sample], Tensor], best: float) -> Estimate:
    """Return the worth of an estimator over batches of one size, with its standard error over batches.

    Args:
        batches: two or more, of one size.
        advantage: of a batch, ``(B, G)``, centered by prompt.
        best: the sum of ``w^2 / v`` that one prompt brings on average (``worth.best_of``).

    Returns:
        The estimate.
    """
    signal, noise = [], []
    for batch in batches:
        a = advantage(batch)
        signal.append(float((a * (batch.answers - batch.answers.mean(1, keepdim=True))).sum()))
        noise.append(float((a**2).sum()))
    s, n = np.array(signal), np.array(noise)
    value = s.mean() ** 2 / (n.mean() * best * len(batches[0].rewards))
    moved = value * (2 * s / s.mean() - n / n.mean())
    return Estimate(float(value), float(moved.std(ddof=1) / np.sqrt(len(batches))))
