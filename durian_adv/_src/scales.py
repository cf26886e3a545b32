"""Mean and spread of rewards by prompt, and their std over any partition of the measured.

Every estimator of the library is a center and a scale taken from here. Three devices make the results exact to the
last bits, whatever the rewards:

* rewards are measured from the middle of their range in units of (a power of two close to) its half, so that offsets
  and scales drop out before anything is squared, nothing overflows, and signal is a comparison (``max > min``);
* sums run over fixed grids (``exact.py``), so no order, padding or packing changes a bit;
* a bucket's sum of squares is put together from those of its prompts and their distances from the bucket's mean,
  which are positive terms: nothing cancels.

Rewards come in one of the inner forms of ``layout.py``. In the dense one, ``(G, B)``, a value per prompt ``(B,)``
broadcasts as it is, and reductions over the few rollouts of a prompt vectorize across the many measured.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from durian_adv._src import exact, partitions
from durian_adv._src.layout import Layout, count, exact_sum, largest, smallest, spread


class Measured(NamedTuple):
    """What every scale is made of: ``(B,)``, one value per prompt."""

    size: Tensor  # number of valid rewards, in the working dtype
    low: Tensor  # smallest valid reward, +inf without one
    high: Tensor  # largest valid reward, -inf without one
    has_signal: Tensor  # bool, low < high
    middle: Tensor  # the point that is zero in units, NaN without a valid reward
    unit: Tensor  # the largest power of two in half the range, so that dividing is exact; 1 without signal
    mean: Tensor  # mean reward, in units from the middle; NaN without a valid reward
    squares: Tensor  # sum of squared distances from the mean, in units


class Scale(NamedTuple):
    """A std for each prompt: ``std * unit``."""

    std: Tensor  # in units
    unit: Tensor  # in rewards


def measure(values: Tensor, valid: Tensor, layout: Layout | None) -> tuple[Measured, Tensor]:
    """Measure the rewards of each prompt, ``values (G, B)`` with G >= 1, or ``(N,)`` with a layout.

    Returns what scales are made of, and what they scale: each valid reward's distance from its prompt's mean, in
    units; 0 for invalid rewards, which play no part.
    """
    low, high = _range(values, valid, layout)
    has_signal = high > low
    size = count(valid, layout).to(values.dtype)
    middle, unit = _middle_and_unit(low, high, has_signal)
    in_units = torch.where(valid, (values - spread(middle, layout)) / spread(unit, layout), 0.0)
    mean = exact_sum(in_units, layout) / size
    centered = torch.where(valid, in_units - spread(mean, layout), 0.0)
    squares = exact_sum(centered * centered, layout)
    return Measured(size, low, high, has_signal, middle, unit, mean, squares), centered


def from_moments(size: Tensor, low: Tensor, high: Tensor, mean: Tensor, squares: Tensor) -> Measured:
    """Complete what ``measure`` once returned; the rest of it follows from the range."""
    has_signal = high > low
    middle, unit = _middle_and_unit(low, high, has_signal)
    return Measured(size, low, high, has_signal, middle, unit, mean, squares)


def joined(first: Measured, second: Measured) -> Measured:
    """Put the prompts of one after those of the other."""
    return Measured._make(map(torch.cat, zip(first, second, strict=True)))


def without_silent(measured: Measured) -> Measured:
    """Call all rewards of prompts without signal invalid: then they count in no scale."""

    def kept(value: Tensor, otherwise: float) -> Tensor:
        return torch.where(measured.has_signal, value, otherwise)

    return measured._replace(
        size=kept(measured.size, 0.0),
        low=kept(measured.low, torch.inf),
        high=kept(measured.high, -torch.inf),
    )


def prompt_means(values: Tensor, valid: Tensor, layout: Layout | None) -> Tensor:
    """Return the mean of each prompt's valid values: NaN without one, the value itself where all agree.

    The sum is rounded once before it is divided, so that prompts of short numbers that have one mean get one result.
    Infinite values give what a sum would: inf, -inf, or NaN where both meet.
    """
    low, high = _range(values, valid, layout)
    unit = exact.power_of_two(torch.maximum(high, -low).abs())  # inf without a value
    total = exact_sum(torch.where(valid, values, 0.0) / spread(exact.safe_divisor(unit), layout), layout)
    # a mean lies between the extremes, also after rounding: where these agree it is their value
    mean = (total / count(valid, layout) * unit).clamp(low, high)
    return torch.where(unit < torch.inf, mean, low + high)


def around_zero(measured: Measured) -> Measured:
    """Shift every prompt's rewards so that their mean is 0."""
    zero = torch.zeros_like(measured.unit)
    high = torch.where(measured.has_signal, measured.unit, zero)
    return measured._replace(low=-high, high=high, middle=zero, mean=zero)


def own_std(measured: Measured, correction: int) -> Scale:
    """Return each prompt's own std (eq. 2)."""
    return Scale(_std(measured.squares, measured.size, correction), measured.unit)


def bucket_std(measured: Measured, bucket: Tensor, num_buckets: int, correction: int) -> Scale:
    """Return for each prompt the std of all rewards in its bucket around the bucket's mean (eqs. 11-13, 17-19).

    ``bucket (C, B)`` holds int64 numbers in ``[0, num_buckets)``, a row for each of C partitions of the prompts; so
    does the result. For a bucket with mean M, in its units: ``sum_s [squares_s + size_s (mean_s - M)^2]``, over the
    ``sum_s size_s - correction`` degrees of freedom.
    """
    of = partitions.partitions_of(bucket, num_buckets, partitions.in_pairs(bucket))
    low, high = partitions.smallest(measured.low, of), partitions.largest(measured.high, of)
    sizes = partitions.total(measured.size, of)
    middle, unit = _middle_and_unit(low, high, high > low)

    own_unit = partitions.spread(unit, of)
    ratio = (measured.unit / own_unit).clamp(max=2.0)  # more only without signal, where it does not count
    offset = (measured.middle - partitions.spread(middle, of)) / own_unit + ratio * measured.mean
    offset = torch.where(measured.low <= measured.high, offset, 0.0)  # not empty
    mean = partitions.exact_total(measured.size * offset, of) / sizes.clamp(min=1)
    offset = offset - partitions.spread(mean, of)
    squares = measured.squares * ratio * ratio + measured.size * offset * offset
    std = _std(partitions.exact_total(squares, of), sizes, correction)
    return Scale(partitions.spread(std, of), own_unit)


def factor(measured: Measured, scale: Scale, eps: float) -> Tensor:
    """Return the factor that turns centered rewards into ``(r - mean) / (std + eps)``; 0 without signal."""
    # In units of the scale, as std * unit may overflow where the quotient does not. Of two tensors, as torch takes
    # number / tensor for number * (1 / tensor), and 0 * (1 / 5e-324) is not a number.
    eps_in_units = torch.full_like(scale.unit, eps) / scale.unit
    return torch.where(measured.has_signal, measured.unit / scale.unit / (scale.std + eps_in_units), 0.0)


def _range(values: Tensor, valid: Tensor, layout: Layout | None) -> tuple[Tensor, Tensor]:
    low = smallest(torch.where(valid, values, torch.inf), layout)
    return low, largest(torch.where(valid, values, -torch.inf), layout)


def _middle_and_unit(low: Tensor, high: Tensor, has_signal: Tensor) -> tuple[Tensor, Tensor]:
    # halves first, as low + high may overflow; clamped, as halves of subnormal numbers are rounded: without signal the
    # middle is the value itself, and value - middle exactly 0
    middle = (0.5 * low + 0.5 * high).clamp(low, high)
    half = torch.where(has_signal, torch.maximum(high - middle, middle - low), 1.0)
    return middle, exact.power_of_two(half)


def _std(squares: Tensor, size: Tensor, correction: int) -> Tensor:
    return (squares / (size - correction).clamp(min=1)).sqrt()
