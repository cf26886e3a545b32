"""Quantile buckets: which prompts share a std."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from durian_adv import _checks, exact

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

    A threshold lies between two neighbouring order statistics, so scores are compared with those and never with an
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
    scores = _checks.tensor("scores", scores)
    _checks.ndim("scores", scores, 1, "(B,)")
    levels = _checks.levels("quantiles", quantiles)
    _checks.choice("boundary", boundary, _BOUNDARIES)
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
    missing = scores.isnan()
    last = (~missing).sum().clamp(min=1) - 1  # NaN sorts last: the order statistics are 0..last
    if isinstance(levels, int):
        steps = torch.arange(1, levels, device=scores.device) * last
        below, above = steps // levels, (steps + levels - 1) // levels
        outer_from = (levels - 1) // 2  # the first k (from 0) with level (k + 1) / b >= 1/2
    else:
        # float64 as in NumPy; a device without it may round a position that falls beside a whole number
        last = last.to(exact.working_dtype(scores.device))
        position = torch.stack([level * last for level in levels])  # a tensor of levels would wait for a GPU
        below, above = position.floor().long(), position.ceil().long()
        outer_from = sum(level < 0.5 for level in levels)
    ordered = scores.sort().values
    scores = scores.contiguous()
    lower_from = {"upper": 0, "lower": len(below), "outer": outer_from}[boundary]
    # s > t exactly when s > x[floor(pos)]; s >= t exactly when s >= x[ceil(pos)]
    bucket = torch.searchsorted(ordered[below[:lower_from]], scores, right=False)
    bucket = bucket + torch.searchsorted(ordered[above[lower_from:]], scores, right=True)
    if boundary == "outer" and len(below) > 0:
        bucket = torch.where(scores > ordered[below[:1]], bucket, 0)
    return torch.where(missing, num_buckets(levels) - 1, bucket)


def small_numbers(labels: Tensor) -> Tensor:
    """Renumber arbitrary integer ``labels (B,)`` within ``0..B-1``: by how many labels are smaller."""
    return torch.searchsorted(labels.sort().values, labels.contiguous())
