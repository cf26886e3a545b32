"""Mean and spread of rewards by prompt, and their std over any partition of the prompts.

Every estimator of the library is a centre and a scale taken from here. Three devices make the results exact to the
last bits, whatever the rewards:

* rewards are measured from the middle of their range in units of (a power of two close to) its half, so that offsets
  and scales drop out before anything is squared, nothing overflows, and signal is a comparison (``max > min``);
* sums run over fixed grids (``exact.py``), so no order, padding or packing changes a bit;
* a bucket's sum of squares is put together from those of its prompts and their distances from the bucket's mean,
  which are positive terms: nothing cancels.

Rewards come as ``(G, B)``, a prompt a column: a value a prompt ``(B,)`` then broadcasts as it is, and reductions over
the few rollouts of a prompt run along the many prompts, which processors like.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from durian_adv._src import exact


class Prompts(NamedTuple):
    """What the scales are made of, a value a prompt; and what they scale."""

    size: Tensor  # (B,) number of valid rewards, in the working dtype
    low: Tensor  # (B,) smallest valid reward, +inf without one
    high: Tensor  # (B,) largest valid reward, -inf without one
    has_signal: Tensor  # (B,) bool, low < high
    middle: Tensor  # (B,) the point that is zero in units, NaN without a valid reward
    unit: Tensor  # (B,) the largest power of two in half the range, so that dividing is exact; 1 without signal
    mean: Tensor  # (B,) mean reward, in units from the middle; NaN without a valid reward
    squares: Tensor  # (B,) sum of centred^2
    centred: Tensor  # (G, B) distance from the mean in units, 0 for invalid rewards


class Scale(NamedTuple):
    """A std for each prompt: ``std * unit``."""

    std: Tensor  # in units
    unit: Tensor  # in rewards


def prompts(values: Tensor, valid: Tensor) -> Prompts:
    """Centre and measure the rewards of each prompt, ``values (G, B)``, G >= 1; invalid ones play no part."""
    low, high = _range(values, valid)
    has_signal = high > low
    size = valid.sum(0).to(values.dtype)
    middle, unit = _middle_and_unit(low, high, has_signal)
    in_units = torch.where(valid, (values - middle) / unit, 0.0)
    mean = exact.exact_sum(in_units, 0) / size
    centred = torch.where(valid, in_units - mean, 0.0)
    squares = exact.exact_sum(centred * centred, 0)
    return Prompts(size, low, high, has_signal, middle, unit, mean, squares, centred)


def prompt_means(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of each prompt's valid ``values (G, B)``: NaN without one, the value itself where all agree.

    The sum is rounded once before it is divided, so that prompts of short numbers that have one mean get one result.
    Infinite values give what a sum would: inf, -inf, or NaN where both meet.
    """
    low, high = _range(values, valid)
    unit = exact.power_of_two(torch.maximum(high, -low).abs())  # inf without a value
    total = exact.exact_sum(torch.where(valid, values, 0.0) / exact.nonzero(unit), 0)
    # a mean lies between the extremes, also after rounding: where these agree it is their value
    mean = (total / valid.sum(0) * unit).clamp(low, high)
    return torch.where(unit < torch.inf, mean, low + high)


def around_zero(measured: Prompts) -> Prompts:
    """Shift every prompt's rewards so that their mean is 0."""
    zero = torch.zeros_like(measured.unit)
    high = torch.where(measured.has_signal, measured.unit, zero)
    size, has_signal, unit, squares = measured.size, measured.has_signal, measured.unit, measured.squares
    return Prompts(size, -high, high, has_signal, zero, unit, zero, squares, measured.centred)


def own_std(prompts: Prompts, correction: int) -> Scale:
    """Return each prompt's own std (eq. 2)."""
    return Scale(_std(prompts.squares, prompts.size, correction), prompts.unit)


def bucket_std(prompts: Prompts, bucket: Tensor, num_buckets: int, correction: int) -> Scale:
    """Return for each prompt the std of all rewards in its bucket around the bucket's mean (eqs. 11-13, 17-19).

    ``bucket (C, B)`` holds int64 numbers in ``[0, num_buckets)``, a row for each of C partitions of the prompts; so
    does the result. For a bucket with mean M, in its units: ``sum_s [squares_s + size_s (mean_s - M)^2]``, over the
    ``sum_s size_s - correction`` degrees of freedom.
    """

    def over_buckets(value: Tensor, start: float, reduce: str) -> Tensor:
        return value.new_full((len(bucket), num_buckets), start).scatter_reduce(
            1, bucket, value.expand_as(bucket), reduce
        )

    low, high = over_buckets(prompts.low, torch.inf, "amin"), over_buckets(prompts.high, -torch.inf, "amax")
    sizes = over_buckets(prompts.size, 0.0, "sum")
    middle, unit = _middle_and_unit(low, high, high > low)

    own_unit = unit.gather(1, bucket)
    ratio = (prompts.unit / own_unit).clamp(max=2.0)  # more only without signal, where it does not count
    offset = (prompts.middle - middle.gather(1, bucket)) / own_unit + ratio * prompts.mean
    offset = torch.where(prompts.low <= prompts.high, offset, 0.0)  # not empty
    mean = exact.segment_sum(prompts.size * offset, bucket, num_buckets) / sizes.clamp(min=1)
    offset = offset - mean.gather(1, bucket)
    squares = prompts.squares * ratio * ratio + prompts.size * offset * offset
    std = _std(exact.segment_sum(squares, bucket, num_buckets), sizes, correction)
    return Scale(std.gather(1, bucket), own_unit)


def inverse(prompts: Prompts, scale: Scale, eps: float) -> Tensor:
    """Return the factor that turns ``centred`` into ``(r - mean) / (std + eps)``; 0 without signal."""
    # In units of the scale, as std * unit may overflow where the quotient does not. Of two tensors, as torch takes
    # number / tensor for number * (1 / tensor), and 0 * (1 / 5e-324) is not a number.
    eps_in_units = torch.full_like(scale.unit, eps) / scale.unit
    return torch.where(prompts.has_signal, prompts.unit / scale.unit / (scale.std + eps_in_units), 0.0)


def _range(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(valid, values, torch.inf).amin(0), torch.where(valid, values, -torch.inf).amax(0)


def _middle_and_unit(low: Tensor, high: Tensor, has_signal: Tensor) -> tuple[Tensor, Tensor]:
    # halves first, as low + high may overflow; clamped, as halves of subnormal numbers are rounded: without signal the
    # middle is the value itself, and value - middle exactly 0
    middle = (0.5 * low + 0.5 * high).clamp(low, high)
    half = torch.where(has_signal, torch.maximum(high - middle, middle - low), 1.0)
    return middle, exact.power_of_two(half)


def _std(squares: Tensor, size: Tensor, correction: int) -> Tensor:
    return (squares / (size - correction).clamp(min=1)).sqrt()
