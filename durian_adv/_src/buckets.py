"""Quantile buckets: which prompts share a std."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from durian_adv._src import checks, exact, partitions

_BOUNDARIES = ("upper", "lower", "outer")


def quantile_buckets(
    scores: Tensor,
    quantiles: int | Sequence[float],
    *,
    boundary: Literal["upper", "lower", "outer"] = "upper",
) -> Tensor:
    r"""Number the bucket of each score between the quantiles of all scores.

    With thresholds :math:`t_1 \le \dots \le t_K`, the quantiles of the scores by linear interpolation
    (position :math:`q (n - 1)` among n sorted scores), the bucket of s is

    * ``"upper"``: the number of thresholds with :math:`s \ge t_k` (eq. 16),
    * ``"lower"``: the number of thresholds with :math:`s > t_k`,
    * ``"outer"``: thresholds of levels under 1/2 count as in ``"lower"``, the others as in ``"upper"``, and a score at
      or below the first threshold is in bucket 0 (eq. 10: both boundary values belong to the outer buckets).

    A threshold lies between two neighboring order statistics, so scores are compared with those and never with an
    interpolated value: only ranks decide, and no rounding moves a score.

    Args:
        scores: ``(B,)``, any real dtype. Infinite scores are ordered as usual. NaN scores share one bucket of
            their own, numbered after the others, and do not move the quantiles.
        quantiles: a number b of equally probable buckets (levels k/b, positions exactly ``k (n - 1) / b``), or
            increasing levels in (0, 1).
        boundary: where a score that equals a threshold goes.

    Returns:
        int64 ``(B,)``: 0 to K, and K + 1 for NaN scores.

    Raises:
        TypeError: an argument has a type that cannot be meant.
        ValueError: wrong shape, levels out of order or out of range, an unknown boundary.

    Source: Durian (arXiv 2602.21743), eqs. 10 and 16.

    >>> import torch
    >>> quantile_buckets(torch.tensor([1.0, 2.0, 3.0, 4.0]), (0.25, 0.75), boundary="outer")
    tensor([0, 1, 1, 2])
    >>> quantile_buckets(torch.tensor([-3.0, -1.0, float("nan"), -4.0, -2.0]), 2)
    tensor([0, 1, 2, 0, 1])
    """
    scores = checks.tensor("scores", scores)
    checks.ndim("scores", scores, 1, "(B,)")
    levels = checks.levels("quantiles", quantiles)
    checks.choice("boundary", boundary, _BOUNDARIES)
    return bucket_numbers(scores, levels, boundary)


def num_buckets(levels: int | tuple[float, ...]) -> int:
    """Return how many buckets ``levels`` make, the one for NaN included."""
    return (levels if isinstance(levels, int) else len(levels) + 1) + 1


def bucket_numbers(scores: Tensor, levels: int | tuple[float, ...], boundary: str) -> Tensor:
    """Compute ``quantile_buckets`` for arguments that have been checked."""
    if len(scores) == 0:
        return torch.zeros_like(scores, dtype=torch.int64)
    # what can be sorted and searched on all devices; exact but for uint64 beyond 2^53
    if scores.dtype == torch.uint64:
        scores = scores.to(exact.working_dtype(scores.device))
    elif scores.dtype.is_floating_point:
        scores = scores.float() if scores.itemsize < 4 else scores
    else:
        scores = scores.long()
    scores = scores.contiguous()
    missing = scores.isnan()
    count = num_buckets(levels) - 2
    if count == 0:
        return missing.long()
    # A threshold lies between the order statistics at floor(pos) and ceil(pos): s > t exactly when s > x[floor(pos)],
    # s >= t exactly when s >= x[ceil(pos)]. The first thresholds are compared in the one way, the others in the other.
    first = {"upper": 0, "lower": count, "outer": _outer(levels)}[boundary]
    passed = _passed_by_counting if partitions.in_pairs(scores) else _passed_by_sorting
    bucket, reached = passed(scores, missing, levels, first, count)
    if first == 0:
        bucket = reached
    elif first < count:
        # a score at or below the first threshold is in bucket 0, whatever it reaches
        bucket = bucket + torch.minimum(reached, bucket * count)
    return bucket.masked_fill(missing, count + 1)


def _passed_by_sorting(
    scores: Tensor, missing: Tensor, levels: int | tuple[float, ...], first: int, count: int
) -> tuple[Tensor, Tensor]:
    """Return how many of the ``first`` thresholds each score exceeds, and how many of the others it reaches.

    Where there are no thresholds of a kind, anything stands for their number, as nothing is made of it.
    """
    last = (len(scores) - 1 - missing.count_nonzero()).clamp(min=0)  # NaN sorts last: the others are 0..last
    thresholds = scores.sort().values.index_select(0, _positions(levels, first, last))
    exceeded = torch.searchsorted(thresholds[:first], scores) if first > 0 else scores
    reached = torch.searchsorted(thresholds[first:], scores, right=True) if first < count else scores
    return exceeded, reached


def _passed_by_counting(
    scores: Tensor, missing: Tensor, levels: int | tuple[float, ...], first: int, count: int
) -> tuple[Tensor, Tensor]:
    """Return the same from ranks: s > x[k] if more than k scores are less than s, s >= x[k] if more are not greater."""
    less, upto, known = partitions.ranks(scores)
    last = (known - 1).clamp(min=0)
    if not isinstance(levels, int):
        positions = _positions_of_levels(levels, first, last)
        passed = [(position < (less if i < first else upto)).long() for i, position in enumerate(positions)]
        none = torch.zeros_like(less)
        return sum(passed[:first], none), sum(passed[first:], none)
    # of the positions k last / b, k = 1, 2, ...: floor(.) < less exactly if k last < less b, and
    # ceil(.) < upto exactly if k last <= (upto - 1) b
    divisor = last.clamp(min=1)
    exceeded = torch.div(less * levels - 1, divisor, rounding_mode="floor").clamp(0, first)
    reached = torch.div((upto - 1) * levels, divisor, rounding_mode="floor").clamp(first, count)
    return exceeded, torch.where(last > 0, reached, count) - first


def _outer(levels: int | tuple[float, ...]) -> int:
    """Return how many thresholds "outer" compares by s > t: those of levels under 1/2, and the first in any case."""
    if isinstance(levels, int):
        return min(levels - 1, max(1, (levels - 1) // 2))
    return max(1, len([level for level in levels if level < 0.5]))


def _positions(levels: int | tuple[float, ...], first: int, last: Tensor) -> Tensor:
    """Return the thresholds' positions among order statistics 0 to ``last``: the ``first`` rounded down, others up."""
    if isinstance(levels, int):
        steps = torch.arange(1, levels, device=last.device) * last
        up = steps + (levels - 1)
        return (torch.cat([steps[:first], up[first:]]) if first else up) // levels
    return torch.stack(_positions_of_levels(levels, first, last)).long()


def _positions_of_levels(levels: tuple[float, ...], first: int, last: Tensor) -> list[Tensor]:
    # float64 as in NumPy; a device without it may round a position that falls beside a whole number
    last = last.to(exact.working_dtype(last.device))
    exactly = [level * last for level in levels]  # one by one, as a tensor of levels would wait for a GPU
    return [position.floor() if i < first else position.ceil() for i, position in enumerate(exactly)]


def small_numbers(labels: Tensor) -> Tensor:
    """Renumber arbitrary integer ``labels (B,)`` within ``0..B-1``: by how many labels are smaller."""
    if partitions.in_pairs(labels):
        return partitions.ranks(labels)[0]
    return torch.searchsorted(labels.sort().values, labels.contiguous())
