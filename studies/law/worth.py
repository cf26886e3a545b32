r"""The law: how much of the best possible step an estimator's factors leave.

.. math:: \frac{(\sum_s f_s w_s)^2}{\sum_s f_s^2 v_s \, \sum_s w_s^2 / v_s}
"""

from math import gamma, sqrt
from typing import NamedTuple

import numpy as np

from studies.law.factors import Factor
from studies.law.outcomes import Outcomes


class Estimate(NamedTuple):
    """A number, and its standard error where it was drawn; 0 where it was enumerated."""

    value: float
    error: float = 0.0


def worth_of_factors(f: np.ndarray, w: np.ndarray, v: np.ndarray) -> float:
    """Return the worth of fixed factors.

    >>> round(worth_of_factors(np.ones(2), np.ones(2), np.array([1.0, 4.0])), 6)
    0.64
    """
    return float((f @ w) ** 2 / (f**2 @ v * (w @ (w / v))))


def worth(given: Outcomes, factor: Factor, *, each: str = "kind") -> Estimate:
    """Return the worth of an estimator among the prompts of a structure.

    Args:
        given: the groups.
        factor: the estimator's.
        each: what has one factor in the best there is, whose worth is 1: every ``"kind"``, or every ``"cell"`` (kind
            and accuracy), a curriculum that no std gives.

    Returns:
        The worth; above 1 where an estimator does better than any one factor per kind.
    """
    mass, shared = given.mass, factor.shared
    signal = factor.own * (mass @ given.signal_over_std_by_draw) + mass @ (shared * given.signal)
    noise = factor.own**2 * (given.rollouts - 1) * (mass @ given.counted)
    noise = noise + mass @ ((shared**2 + factor.variance) * given.energy)
    noise = noise + 2 * factor.own * ((mass * shared) @ given.energy_over_std_by_draw)
    value = signal.mean() ** 2 / (noise.mean() * best_of(given, each))
    moved = value * (2 * signal / signal.mean() - noise / noise.mean())
    return Estimate(float(value), _error_of_mean(moved))


def best_of(given: Outcomes, each: str = "kind") -> float:
    """Return what the best factors bring per prompt: the sum of w^2 / v over kinds or cells."""
    labels = given.kind if each == "kind" else np.arange(len(given.kind))
    w, v = (np.bincount(labels, given.mass * moment) for moment in (given.signal, given.energy))
    return float(w[v > 0] @ (w[v > 0] / v[v > 0]))


def _error_of_mean(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / sqrt(len(values))) if np.ptp(values) else 0.0  # else nothing was drawn


# --- closed forms -----------------------------------------------------------------------------------------------------


def one_std(ratio: float) -> float:
    """Return the worth of one std for two equal kinds with variances 1 and ``ratio`` at equal signal.

    >>> round(one_std(9), 3)
    0.36
    """
    return 4 * ratio / (1 + ratio) ** 2


def std_by_kind(ratio: float) -> float:
    """Return the worth of a std per kind for the same.

    >>> round(std_by_kind(9), 3)
    0.8
    """
    return (1 + sqrt(ratio)) ** 2 / (2 * (1 + ratio))


def grpo_on_gaussian(rollouts: int) -> float:
    r"""Return the worth of GRPO where rewards are Gaussian noise but for a vanishing signal: :math:`c_4(G)^2`.

    :math:`c_4(G) = \sqrt{2/(G-1)} \, \Gamma(G/2) / \Gamma((G-1)/2)`, the mean of a sample std of G normal numbers.

    >>> [round(grpo_on_gaussian(size), 3) for size in (2, 4, 8, 16)]
    [0.637, 0.849, 0.931, 0.967]
    """
    return 2 / (rollouts - 1) * (gamma(rollouts / 2) / gamma((rollouts - 1) / 2)) ** 2


def hardest_factor(rollouts: int) -> float:
    """Return GRPO's factor in a group of one right, the limit of its expected factor on ever harder prompts.

    >>> round(hardest_factor(8), 3)
    2.828
    """
    return sqrt(rollouts)


def largest_advantage(rollouts: int) -> float:
    """Return the largest advantage, binary rewards, groups dropped: 1 - 1/G over the least std, sqrt(G - 1) / G.

    >>> round(largest_advantage(8), 3)
    2.646
    """
    return sqrt(rollouts - 1)
