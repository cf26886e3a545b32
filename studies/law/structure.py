"""Structures of rewards: kinds of prompts, and what a rollout's reward is made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, ndtri


@dataclass(frozen=True)
class Kind:
    """Prompts whose rewards are made alike: ``unit * ((1 - b) c + b m) + noise * z``.

    c: what counts, 1 with probability ``accuracy``, else 0 (``spread`` > 0: graded, Gaussian around it); m: whether the
    format is kept; b: ``format_weight``; z: standard normal. Format and z are independent of all else.
    """

    accuracy: Sequence[float]  # equally likely accuracies of its prompts
    share: float = 1.0  # of the prompts, up to a common factor
    unit: float = 1.0
    noise: float = 0.0  # std, in rewards: a judge's noise where large, a tie-break or length term where small
    format_weight: float = 0.0
    format_rate: float = 1.0
    spread: float = 0.0  # std of a graded c


@dataclass(frozen=True)
class Structure:
    """Kinds of prompts, and how many rollouts each prompt gets."""

    kinds: tuple[Kind, ...]
    rollouts: int = 8
    filtered: bool = False  # groups whose answers are all right or all wrong are replaced by others


def logit_normal(mean: float, deviation: float, points: int = 200) -> tuple[float, ...]:
    """Return equally likely accuracies whose logits are normal.

    >>> [round(p, 3) for p in logit_normal(0.0, 1.0, 3)]
    [0.275, 0.5, 0.725]
    """
    return tuple(expit(mean + deviation * ndtri(levels(points))).tolist())


def levels(points: int) -> np.ndarray:
    """Return the middles of equal intervals of (0, 1)."""
    return (np.arange(points) + 0.5) / points


# fitted to the groups with signal, and with one right or one wrong of 8, in Appendix A of arXiv 2602.21743
PAPER_FIRST = logit_normal(-0.98, 2.36)  # step 1
PAPER_LAST = logit_normal(0.98, 2.58)  # step 60
