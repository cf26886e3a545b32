"""Mean and spread of rewards by prompt, and their std over any partition of the prompts.

Every estimator of the library is a centre and a scale taken from here. Three devices make the results exact to the
last bits, whatever the rewards:

* rewards are measured from the middle of their range in units of (a power of two close to) its half, so that offsets
  and scales drop out before anything is squared, nothing overflows, and signal is a comparison (``max > min``);
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
    """Each row of a masked ``(B, G)`` matrix, measured from the middle of its range in units of its size."""

    size: Tensor  # (B,) number of valid entries
    low: Tensor  # (B,) smallest valid entry, +inf without one
    high: Tensor  # (B,) largest valid entry, -inf without one
    has_signal: Tensor  # (B,) bool, low < high
    middle: Tensor  # (B,) the point that is zero in units
    unit: Tensor  # (B,) the largest power of two in half the range, so that dividing is exact; 0 without signal
    total: Tensor  # (B,) sum of the entries, in units from the middle
    mean: Tensor  # (B,) their mean, in units from the middle
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
    middle, unit = _middle_and_unit(low, high, has_signal)
    in_units = torch.where(valid, (values - middle[:, None]) / exact.nonzero(unit)[:, None], 0.0)
    total = exact.row_sum(in_units)
    mean = total / size.clamp(min=1)
    centred = torch.where(valid, in_units - mean[:, None], 0.0)
    squares = exact.row_sum(centred * centred)
    return Rows(size, low, high, has_signal, middle, unit, total, mean, centred, squares)


def row_means(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of each row's valid entries: NaN without one, the value itself where all agree.

    The sum is rounded once before it is divided, so that rows of short numbers that have one mean get one result.
    Infinite entries give what a sum would: inf, -inf, or NaN where both meet.
    """
    measured = rows(values, valid)
    low, high = measured.low, measured.high
    total = measured.middle * measured.size + measured.unit * measured.total
    mean = torch.where(
        total.isfinite(), total / measured.size.clamp(min=1), measured.middle + measured.unit * measured.mean
    )
    mean = torch.where(low.isfinite() & high.isfinite(), mean, low + high)
    return torch.where(measured.has_signal, mean, torch.where(measured.size > 0, high, torch.nan))


def around_zero(measured: Rows) -> Rows:
    """Shift every row so that its mean is 0."""
    size, unit, zero = measured.size, measured.unit, torch.zeros_like(measured.unit)
    return Rows(size, -unit, unit, measured.has_signal, zero, unit, zero, zero, measured.centred, measured.squares)


def own_std(prompts: Rows, correction: int) -> Scale:
    """Return each prompt's own std (eq. 2)."""
    return Scale(_std(prompts.squares, prompts.size, correction), prompts.unit)


def bucket_std(prompts: Rows, bucket: Tensor, num_buckets: int, correction: int) -> Scale:
    """Return for each prompt the std of all rewards in its bucket around the bucket's mean (eqs. 11-13, 17-19).

    ``bucket (B,)`` holds int64 numbers in ``[0, num_buckets)``. For a bucket with mean M, in its units:
    ``sum_s [squares_s + size_s (mean_s - M)^2]``, over the ``sum_s size_s - correction`` degrees of freedom.
    """
    low = prompts.low.new_full((num_buckets,), torch.inf).scatter_reduce(0, bucket, prompts.low, "amin")
    high = prompts.high.new_full((num_buckets,), -torch.inf).scatter_reduce(0, bucket, prompts.high, "amax")
    has_signal = high > low
    middle, unit = _middle_and_unit(low, high, has_signal)

    divisor = exact.nonzero(unit)[bucket]
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
    unit = exact.nonzero(scale.unit)
    # In units of the scale, as std * unit may overflow where the quotient does not. Of two tensors, as torch takes
    # number / tensor for number * (1 / tensor), and 0 * (1 / 5e-324) is not a number.
    eps_in_units = torch.full_like(unit, eps) / unit
    divisor = torch.where(prompts.has_signal, scale.std + eps_in_units, 1.0)
    return torch.where(prompts.has_signal, prompts.unit / unit / divisor, 0.0)


def _middle_and_unit(low: Tensor, high: Tensor, has_signal: Tensor) -> tuple[Tensor, Tensor]:
    # halves first: low + high may overflow; without signal the value itself, for which value - middle is exactly 0
    alone = torch.where(high.isfinite(), high, 0.0)
    middle = torch.where(has_signal, 0.5 * low + 0.5 * high, alone)
    # the larger side, as the middle of subnormal numbers is rounded
    half = torch.where(has_signal, torch.maximum(high - middle, middle - low), 0.0)
    return middle, exact.power_of_two(half)


def _std(squares: Tensor, size: Tensor, correction: int) -> Tensor:
    return (squares / (size - correction).clamp(min=1)).sqrt()
