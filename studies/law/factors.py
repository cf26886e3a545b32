"""The factor that each estimator gives a group, in the limit of many prompts: ``f = own / std + shared``.

``shared`` is a cell's expectation of inverse stds of the buckets that its prompts may fall into, as a score of limited
quality tells little or much of what it stands for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from studies.law.outcomes import Outcomes

ENTROPY_LEVELS = (0.25, 0.75)
CONFIDENCE_LEVELS = tuple(k / 12 for k in range(1, 12))


@dataclass(frozen=True)
class Factor:
    """``own``: times 1 / std of the group; ``shared`` and its variance ``(cells,)``: added to it."""

    own: float
    shared: np.ndarray
    variance: np.ndarray


def constant(given: Outcomes) -> Factor:
    """Return Dr. GRPO's factor; that of every std over the whole batch is the same, up to the learning rate."""
    return Factor(0.0, np.ones(len(given.mass)), np.zeros(len(given.mass)))


def grpo(given: Outcomes) -> Factor:
    """Return GRPO's factor."""
    return Factor(1.0, np.zeros(len(given.mass)), np.zeros(len(given.mass)))


def by_kind(given: Outcomes, *, drop: bool = False) -> Factor:
    """Return the factor of a std that the prompts of each kind share."""
    return shared(given, np.eye(given.kind.max() + 1)[given.kind], drop=drop)


def pooled_by_kind(given: Outcomes) -> Factor:
    """Return the factor of a kind's std within prompts, without the differences between its prompts."""
    energy, mass = (np.bincount(given.kind, given.mass * moment) for moment in (given.energy, np.ones_like(given.mass)))
    inverse = np.sqrt(mass * (given.rollouts - 1) / energy)[given.kind]
    return Factor(0.0, inverse, np.zeros_like(inverse))


def durian(
    given: Outcomes,
    hidden: np.ndarray,
    *,
    quality: float = 1.0,
    drop: bool = False,
    weights: Sequence[float] = (0.1, 0.2, 0.7),
) -> Factor:
    """Return Durian's factor where both scores stand for ``hidden (cells,)``, each with an error of its own.

    Args:
        given: the groups.
        hidden: what the scores stand for: a cell's difficulty, or its kind.
        quality: the correlation of each score with ``hidden`` over the prompts.
        drop: whether groups without signal are left out of quantiles and stds.
        weights: of the component of the prompt's own std, of three buckets by quartiles, and of twelve equal ones.

    Returns:
        The factor.
    """
    first, *others = weights
    parts = [
        shared(given, buckets(given, hidden, levels, quality=quality, drop=drop), drop=drop)
        for levels in (ENTROPY_LEVELS, CONFIDENCE_LEVELS)
    ]
    mean = sum(weight * part.shared for weight, part in zip(others, parts, strict=True))
    return Factor(first, mean, sum(weight**2 * part.variance for weight, part in zip(others, parts, strict=True)))


def shared(given: Outcomes, chance: np.ndarray, *, drop: bool = False) -> Factor:
    """Return the factor of a std of all rewards in a bucket; ``chance (cells, buckets)``: of a cell's prompts."""
    mass = given.mass[:, None] * chance
    counted = (mass * given.counted[:, None] if drop else mass).sum(0)
    counted = np.where(counted > 0, counted, 1)  # an empty bucket is nobody's
    mean, square = ((mass * moment[drop][:, None]).sum(0) / counted for moment in (given.mean, given.square))
    variance = square - mean**2
    inverse = np.where(variance > 1e-15, 1 / np.sqrt(np.where(variance > 1e-15, variance, 1)), 0)
    expected = chance @ inverse
    return Factor(0.0, expected, np.maximum(chance @ inverse**2 - expected**2, 0))


def buckets(
    given: Outcomes, hidden: np.ndarray, levels: Sequence[float], *, quality: float = 1.0, drop: bool = False
) -> np.ndarray:
    """Return each cell's chance of each bucket ``(cells, buckets)`` of a score ``quality * hidden + error``.

    ``hidden`` is standardized over all prompts. Without an error, a score at a threshold belongs to the upper bucket
    as in eq. 16; a cell is never split.
    """
    mass = given.mass * (given.counted if drop else 1)
    mass = mass / mass.sum()
    mean = given.mass @ hidden
    deviation = np.sqrt(given.mass @ (hidden - mean) ** 2)
    score = quality * (hidden - mean) / (deviation if deviation > 0 else 1)
    error = np.sqrt(1 - quality**2)
    if error == 0:
        order = np.argsort(score, kind="stable")
        place = np.searchsorted(np.cumsum(mass[order]), levels, side="right")
        above = score[:, None] >= score[order][np.minimum(place, len(order) - 1)]
        above = above.astype(float)
    else:
        far = np.abs(score).max() + 9 * error
        thresholds = [brentq(lambda t, q=q: mass @ ndtr((t - score) / error) - q, -far, far) for q in levels]
        above = ndtr((score[:, None] - np.array(thresholds)) / error)
    edges = np.hstack([np.ones((len(score), 1)), above, np.zeros((len(score), 1))])
    return edges[:, :-1] - edges[:, 1:]


def difficulty(given: Outcomes) -> np.ndarray:
    """Return what perfect scores of difficulty order prompts by: normal numbers in the order of accuracies."""
    values, place = np.unique(given.accuracy, return_inverse=True)
    mass = np.bincount(place, given.mass)
    return ndtri(np.cumsum(mass) - mass / 2)[place] if len(values) > 1 else np.zeros(len(given.mass))


def kind(given: Outcomes) -> np.ndarray:
    """Return what perfect scores of the kind order prompts by."""
    return given.kind.astype(float)
