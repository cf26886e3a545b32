"""The arms of the comparison, one line each: how rewards become advantages, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from durian_adv import durian_components, grpo_advantage, quantile_buckets, shared_std_advantage
from durian_adv.baselines import (
    batch_std_advantage,
    dr_grpo_advantage,
    reinforce_plus_plus_baseline_advantage,
    rloo_advantage,
)
from durian_adv.weighting import exponential, reweighted_advantage


@dataclass(frozen=True)
class Batch:
    """What an arm may look at: B prompts with G responses each."""

    rewards: Tensor  # (B, G)
    correct: Tensor  # (B, G)
    visual_entropy: Tensor  # (B,)
    confidence: Tensor  # (B, G)
    clutter: Tensor  # (B,) the truth that visual entropy stands for
    rng: np.random.Generator  # for arms that toss coins; its own stream


@dataclass(frozen=True)
class Arm:
    """An advantage estimator, and whether groups without signal leave the loss's mean over tokens (DAPO's filter)."""

    advantage: Callable[[Batch], Tensor]
    filters: bool = False


def durian(
    batch: Batch,
    weights: tuple[float, float, float] = (0.1, 0.2, 0.7),
    *,
    entropy: Tensor | None = None,
    confidence: Tensor | None = None,
    buckets: int = 12,
) -> Tensor:
    """Durian with as many confidence buckets as 8 prompts each can fill; the scores may be others than its own."""
    return durian_components(
        batch.rewards,
        visual_entropy=batch.visual_entropy if entropy is None else entropy,
        confidence=batch.confidence if confidence is None else confidence,
        weights=weights,
        num_confidence_buckets=max(1, min(buckets, len(batch.rewards) // 8)),
    ).advantages


def shuffled(batch: Batch) -> Tensor:
    """Durian's default with scores of other prompts: buckets of the same sizes that know nothing of difficulty."""
    by_entropy, by_confidence = (torch.from_numpy(batch.rng.permutation(len(batch.rewards))) for _ in range(2))
    return durian(batch, entropy=batch.visual_entropy[by_entropy], confidence=batch.confidence[by_confidence])


def pooled_std(batch: Batch) -> Tensor:
    """Divide ``r - mean`` by the root of the mean within-prompt variance."""
    centered = dr_grpo_advantage(batch.rewards)
    size = batch.rewards.shape[1]
    return centered / (centered.square().mean() * size / (size - 1)).sqrt().clamp(min=1e-6)


def by_accuracy(batch: Batch) -> Tensor:
    """Share the std among prompts of like group accuracy, in as many buckets as Durian has."""
    accuracy = batch.correct.float().mean(dim=1)
    return shared_std_advantage(batch.rewards, quantile_buckets(accuracy, max(1, min(12, len(accuracy) // 8))))


ARMS: dict[str, Arm] = {
    "grpo": Arm(lambda batch: grpo_advantage(batch.rewards)),
    "dr-grpo": Arm(lambda batch: dr_grpo_advantage(batch.rewards)),
    "batch-std": Arm(lambda batch: batch_std_advantage(batch.rewards)),
    "durian": Arm(durian),
    "durian-622": Arm(lambda batch: durian(batch, (0.6, 0.2, 0.2))),
    "perceptual": Arm(lambda batch: durian(batch, (0.0, 1.0, 0.0))),
    "reasoning": Arm(lambda batch: durian(batch, (0.0, 0.0, 1.0))),
    "random-buckets": Arm(shuffled),
    "rloo": Arm(lambda batch: rloo_advantage(batch.rewards)),
    "reinforce++-baseline": Arm(lambda batch: reinforce_plus_plus_baseline_advantage(batch.rewards)),
    "pooled-std": Arm(pooled_std),
    "grpo-filter": Arm(lambda batch: grpo_advantage(batch.rewards), filters=True),
    "by-accuracy": Arm(by_accuracy),
    "difficulty-prior": Arm(
        lambda batch: reweighted_advantage(batch.rewards, weight=exponential, correctness=batch.correct)
    ),
    "by-clutter": Arm(lambda batch: durian(batch, (0.0, 1.0, 0.0), entropy=batch.clutter)),
}
MAIN, OTHERS = tuple(ARMS)[:8], tuple(ARMS)[8:]

# The paper's sweeps: weights (the default and (.6, .2, .2) stand above) and numbers of confidence buckets.
WEIGHTS = ((0.15, 0.25, 0.6), (0.2, 0.1, 0.7), (0.3, 0.1, 0.6), (0.4, 0.3, 0.3), (0.7, 0.1, 0.2))
BUCKETS = (4, 6, 20, 32)
ARMS |= {f"weights-{'-'.join(map(str, w))}": Arm(partial(durian, weights=w)) for w in WEIGHTS}
ARMS |= {f"buckets-{count}": Arm(partial(durian, buckets=count)) for count in BUCKETS}
