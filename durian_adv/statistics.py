"""Mean and spread of rewards by prompt, and their std over any partition of the prompts.

Every estimator of the library is a centre and a scale taken from here. Three devices make the results exact to the
last bits, whatever the rewards:

* rewards are measured from the middle of their range in units of its half, so that offsets and scales drop out before
  anything is squared, nothing overflows, and whether a prompt has signal is a comparison (``max > min``);
* sums run over fixed grids (``exact.py``), so no order, padding or packing changes a bit;
* a bucket's sum of squares is put together from those of its prompts and their distances from the bucket's mean,
  which are positive terms: nothing cancels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from durian_adv import exact


class Rows(NamedTuple):
    """Each row of a masked ``(B, G)`` matrix, measured from the middle of its range in half-ranges ("units")."""

    size: Tensor  # (B,) number of valid entries
    low: Tensor  # (B,) smallest valid entry, +inf without one
    high: Tensor  # (B,) largest valid entry, -inf without one
    has_signal: Tensor  # (B,) bool, low < high
    middle: Tensor  # (B,) the point that is zero in units
    unit: Tensor  # (B,) half the range, 0 without signal
    mean: Tensor  # (B,) mean, in units from the middle
    centred: Tensor  # (B, G) distance from the mean in units, 0 for invalid entries
    squares: Tensor  # (B,) sum of centred^2


class Scale(NamedTuple):
    """A std for each prompt: ``std * unit``."""

    std: Tensor  # (B,) in units
    unit: Tensor  # (B,) in rewards


def rows(values: Tensor, valid: Tensor) -> Rows:
    """Centre and measure the rows of ``values (B, G)``, G >= 1, in a working dtype; invalid entries play no part."""
    low = torch.where(valid, values, torch.inf).amin(1)
    high = torch.where(valid, values, -torch.inf).amax(1)
    size = valid.sum(1)
    has_signal = high > low
    # halves first: low + high may overflow; without signal the value itself, for which values - middle is exactly 0
    middle = torch.where(has_signal, 0.5 * low + 0.5 * high, torch.where(size > 0, high, 0.0))
    # the larger side: for subnormal numbers the middle is rounded, and the units must stay within [-1, 1]
    unit = torch.where(has_signal, torch.maximum(high - middle, middle - low), 0.0)
    in_units = torch.where(valid, (values - middle[:, None]) / _nonzero(unit)[:, None], 0.0)
    mean = exact.row_sum(in_units) / size.clamp(min=1)
    centred = torch.where(valid, in_units - mean[:, None], 0.0)
    squares = exact.row_sum(centred * centred)
    return Rows(size, low, high, has_signal, middle, unit, mean, centred, squares)


def row_means(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of each row's valid entries: NaN without one, the value itself where all agree.

    Infinite entries give what a sum would: inf, -inf, or NaN where both meet.
    """
    measured = rows(values, valid)
    low, high = measured.low, measured.high
    finite = measured.middle + measured.unit * measured.mean
    mean = torch.where(low.isfinite() & high.isfinite(), finite, low + high)
    return torch.where(measured.has_signal, mean, torch.where(measured.size > 0, high, torch.nan))


def own_std(prompts: Rows, correction: int) -> Scale:
    """Return each prompt's own std (eq. 2)."""
    return Scale(_std(prompts.squares, prompts.size, correction), prompts.unit)


def bucket_std(prompts: Rows, bucket: Tensor, num_buckets: int, correction: int) -> Scale:
    """Return for each prompt the std of all rewards in its bucket around the bucket's mean (eqs. 11-13, 17-19).

    ``bucket (B,)`` holds int64 numbers in ``[0, num_buckets)``. For a bucket with mean M, in units of its half-range:
    ``sum_s [squares_s + size_s (mean_s - M)^2]``, over the ``sum_s size_s - correction`` degrees of freedom.
    """
    low = prompts.low.new_full((num_buckets,), torch.inf).scatter_reduce(0, bucket, prompts.low, "amin")
    high = prompts.high.new_full((num_buckets,), -torch.inf).scatter_reduce(0, bucket, prompts.high, "amax")
    has_signal = high > low
    middle = torch.where(has_signal, 0.5 * low + 0.5 * high, torch.where(high.isfinite(), high, 0.0))
    unit = torch.where(has_signal, torch.maximum(high - middle, middle - low), 0.0)

    divisor = _nonzero(unit)[bucket]
    size = prompts.size.to(unit.dtype)
    sizes = size.new_zeros(num_buckets).index_add(0, bucket, size)
    ratio = prompts.unit / divisor
    offset = torch.where(prompts.size > 0, prompts.middle - middle[bucket], 0.0) / divisor + ratio * prompts.mean
    mean = exact.segment_sum(size * offset, bucket, num_buckets) / sizes.clamp(min=1)
    apart = offset - mean[bucket]
    squares = prompts.squares * ratio * ratio + size * apart * apart
    std = _std(exact.segment_sum(squares, bucket, num_buckets), sizes, correction)
    return Scale(std[bucket], unit[bucket])


def inverse(prompts: Rows, scale: Scale, eps: float) -> Tensor:
    """Return the factor ``(B,)`` that turns ``centred`` into ``(r - mean) / (std + eps)``; 0 without signal."""
    unit = _nonzero(scale.unit)
    # in units of the scale, as std * unit may overflow where the quotient does not
    divisor = torch.where(prompts.has_signal, scale.std + eps / unit, 1.0)
    return torch.where(prompts.has_signal, prompts.unit / unit / divisor, 0.0)


def _std(squares: Tensor, size: Tensor, correction: int) -> Tensor:
    return (squares / (size - correction).clamp(min=1)).sqrt()


def _nonzero(unit: Tensor) -> Tensor:
    return torch.where(unit > 0, unit, 1.0)
