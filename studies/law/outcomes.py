"""What the groups of a structure bring, by cell (a kind and one of its accuracies): enumerated, or drawn for noise.

Of a group's rewards only three numbers matter here: its mean, its energy V (the sum of squares around the mean) and its
signal S (the sum of products with what counts, centered). Answers and formats are enumerated exactly; Gaussian terms
are drawn, the same for all cells.
"""

from dataclasses import dataclass
from math import factorial

import numpy as np
from scipy.special import ndtri
from scipy.stats import qmc

from studies.law.structure import Kind, Structure

REPLICATES, POINTS = 16, 256  # independent draws, and points of each; each point is used with both signs


@dataclass(frozen=True)
class Outcomes:
    """Expectations over the groups of each cell, ``(cells,)``; ``..._by_draw (cells, replicates)``: of each draw."""

    rollouts: int
    kind: np.ndarray
    accuracy: np.ndarray
    mass: np.ndarray  # share of the prompts, without groups that a filter removes; in all 1
    counted: np.ndarray  # of these, the share of groups with signal
    mean: tuple[np.ndarray, np.ndarray]  # E mean reward: of all groups, of groups with signal (times their share)
    square: tuple[np.ndarray, np.ndarray]  # E mean squared reward, in the same order
    signal: np.ndarray  # w = E S
    energy: np.ndarray  # v = E V
    signal_over_std_by_draw: np.ndarray  # E S / std
    energy_over_std_by_draw: np.ndarray  # E V / std; E V / std^2 is (G - 1) counted


def outcomes(structure: Structure, seed: int = 0) -> Outcomes:
    """Enumerate, and draw where a kind has noise."""
    normals = _normals(structure.rollouts, seed)
    total = sum(kind.share for kind in structure.kinds)
    parts = [_of_kind(kind, structure, normals) for kind in structure.kinds]
    mass = [kind.share / total / len(kind.accuracy) * part["passed"] for kind, part in zip(structure.kinds, parts,
            strict=True)]  # fmt: skip
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    passed = joined.pop("passed")
    passed = np.where(passed > 0, passed, 1)
    given = {name: value / (passed if value.ndim == 1 else passed[:, None]) for name, value in joined.items()}
    return Outcomes(
        rollouts=structure.rollouts,
        kind=np.concatenate([np.full(len(kind.accuracy), i) for i, kind in enumerate(structure.kinds)]),
        accuracy=np.concatenate([kind.accuracy for kind in structure.kinds]),
        mass=np.concatenate(mass) / np.concatenate(mass).sum(),
        mean=(given.pop("mean"), given.pop("mean_counted")),
        square=(given.pop("square"), given.pop("square_counted")),
        **given,
    )


def groups_of(rollouts: int, letters: int) -> np.ndarray:
    """Return every way to choose ``rollouts`` of ``letters`` without order: counts ``(ways, letters)``.

    >>> groups_of(2, 2).tolist()
    [[0, 2], [1, 1], [2, 0]]
    """
    if letters == 1:
        return np.array([[rollouts]])
    rest = [(first, row) for first in range(rollouts + 1) for row in groups_of(rollouts - first, letters - 1)]
    return np.array([[first, *row] for first, row in rest])


def probabilities(counts: np.ndarray, letters: np.ndarray) -> np.ndarray:
    """Return the multinomial probability of ``counts (ways, letters)`` under ``letters (cells, letters)``."""
    ways = np.array([factorial(int(row.sum())) / np.prod([float(factorial(int(n))) for n in row]) for row in counts])
    return ways * np.prod(letters[:, None, :] ** counts[None], axis=2)


def _normals(rollouts: int, seed: int) -> np.ndarray:
    """Return normal numbers ``(2, draws, G)``, for rewards and for graded answers, evenly spread within a replicate."""
    seeds = np.random.default_rng(seed).spawn(REPLICATES)
    points = [qmc.Sobol(2 * rollouts, rng=one).random(POINTS) for one in seeds]
    normals = ndtri(np.concatenate(points)).reshape(-1, 2, rollouts).transpose(1, 0, 2)
    return np.stack([normals, -normals], axis=2).reshape(2, -1, rollouts)


def _by_replicate(values: np.ndarray) -> np.ndarray:
    """Average ``(ways, draws)`` over each replicate; without a draw, all replicates are alike."""
    return np.broadcast_to(values, (len(values), max(REPLICATES, values.shape[1]))).reshape(
        len(values), REPLICATES, -1).mean(2)  # fmt: skip


def _of_kind(kind: Kind, structure: Structure, normals: np.ndarray) -> dict[str, np.ndarray]:
    """Return expectations of a kind's cells, not divided by the share of groups that pass the filter."""
    accuracy, size = np.asarray(kind.accuracy), structure.rollouts
    counts, answers, formats, chances = _answers(kind, size, accuracy)
    ways = [np.repeat(np.arange(counts.shape[1]), row) for row in counts]
    c, m = answers[np.array(ways)], formats[np.array(ways)]  # (ways, G)
    right = c.sum(1)
    if structure.filtered and not kind.spread:
        chances = chances * ((right > 0) & (right < size))
    base = kind.unit * ((1 - kind.format_weight) * c + kind.format_weight * m)
    rewards, c = base[:, None], c[:, None]  # (ways, draws, G)
    if kind.spread:
        c = c + kind.spread * normals[1]
        rewards = rewards + kind.unit * (1 - kind.format_weight) * kind.spread * normals[1]
    if kind.noise:
        rewards = rewards + kind.noise * normals[0]
    apart = rewards - rewards.mean(2, keepdims=True)
    std = np.sqrt((apart**2).sum(2) / (size - 1))
    signal = np.ptp(rewards, axis=2) > 1e-12 * kind.unit
    over = np.where(signal, 1 / np.where(signal, std, 1), 0)
    by_draw = {
        "signal_over_std_by_draw": chances @ _by_replicate(over * (apart * (c - c.mean(2, keepdims=True))).sum(2)),
        "energy_over_std_by_draw": chances @ _by_replicate(over * (apart**2).sum(2)),
    }
    return by_draw | _moments(kind, chances, base, right, signal[:, 0], accuracy)


def _answers(kind: Kind, size: int, accuracy: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return counts of each letter, the answer and the format it stands for, and the probability of the counts."""
    p, q, one = accuracy[:, None], kind.format_rate, np.ones((len(accuracy), 1))
    if kind.spread:  # what is enumerated is the format; answers are drawn around the accuracy
        answers, formats, letters = np.zeros(2), np.array([1.0, 0.0]), np.hstack([q * one, (1 - q) * one])
    else:
        answers, formats = np.array([1.0, 1, 0, 0]), np.array([1.0, 0, 1, 0])
        letters = np.hstack([p * q, p * (1 - q), (1 - p) * q, (1 - p) * (1 - q)])
    if not kind.format_weight:  # the format changes nothing
        answers, letters = answers[::2], letters[:, ::2] + letters[:, 1::2]
        formats = np.ones_like(answers)
    counts = groups_of(size, len(answers))
    return counts, answers, formats, probabilities(counts, letters)


def _moments(
    kind: Kind, chances: np.ndarray, base: np.ndarray, right: np.ndarray, signal: np.ndarray, accuracy: np.ndarray
) -> dict[str, np.ndarray]:
    """Return what needs no draw: Gaussian terms add their variance."""
    size, part = base.shape[1], kind.unit * (1 - kind.format_weight)
    variance = kind.noise**2 + (part * kind.spread) ** 2
    offset = part * accuracy[:, None] if kind.spread else 0.0
    mean = base.mean(1) + offset  # (cells or 1, ways)
    square = (base**2).mean(1) + 2 * offset * base.mean(1) + offset**2 + variance
    inside = base.var(1) * size
    counted = chances * signal
    of_answers = part * (right * (size - right) / size + (size - 1) * kind.spread**2)
    return {
        "passed": chances.sum(1),
        "counted": counted.sum(1),
        "mean": (chances * mean).sum(1),
        "mean_counted": (counted * mean).sum(1),
        "square": (chances * square).sum(1),
        "square_counted": (counted * square).sum(1),
        "signal": chances @ of_answers,
        "energy": chances @ (inside + (size - 1) * variance),
    }
