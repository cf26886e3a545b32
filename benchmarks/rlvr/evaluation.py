"""Accuracy on held-out photographs, and the paired interval of its change."""

from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from benchmarks.rlvr.encoder import Gallery
from benchmarks.rlvr.policy import Policy
from benchmarks.rlvr.prompts import Prompts
from benchmarks.rlvr.rollout import sample_responses, verify


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers to each prompt, (B,)."""

    sampled: Tensor
    greedy: Tensor
    samples: int


def evaluate(policy: Policy, gallery: Gallery, prompts: Prompts, *, samples: int, seed: int) -> Accuracy:
    """Answer every prompt `samples` times at temperature 1, and once greedily."""
    generator = torch.Generator().manual_seed(seed)
    _, sampled = verify(prompts, sample_responses(policy, gallery, prompts, samples, generator))
    _, greedy = verify(prompts, sample_responses(policy, gallery, prompts, 1))
    return Accuracy(sampled.float().mean(dim=1), greedy.float().mean(dim=1), samples)


def paired_interval(before: Tensor, after: Tensor, *, seed: int) -> tuple[float, float]:
    """Return the bootstrap 95% interval of the mean change, by resampling prompts."""
    change = (after - before).double().numpy()
    result = scipy.stats.bootstrap(
        (change,), np.mean, n_resamples=4999, method="percentile", rng=np.random.default_rng(seed)
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
