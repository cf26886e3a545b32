"""Sums that do not depend on the order of their terms, and the number formats everything is computed in.

Floating-point addition is not associative, so an ordinary sum changes its last bits when rollouts are permuted,
padded or spread over ranks. Terms of limited size that lie on a fixed binary grid add up without any rounding; a sum
without rounding is associative. Each term is therefore split over two grids, and each half is summed exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The integer dtype of the same width, and the bits of the exponent.
_EXPONENTS = {torch.float64: (torch.int64, 0x7FF << 52), torch.float32: (torch.int32, 0xFF << 23)}


def working_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of all intermediate results on a device: float64, or float32 where there is no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of results: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def to_result(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a working value to ``dtype``, contiguous; beyond its range, to its largest number, never to inf."""
    limit = torch.finfo(dtype).max
    # to another dtype, one copy does both; to the same one, `to` returns what it got, transposed or not
    return value.clamp(-limit, limit).to(dtype, memory_format=torch.contiguous_format).contiguous()


def power_of_two(value: Tensor) -> Tensor:
    """Return the largest power of two that does not exceed ``value >= 0``; subnormal numbers and 0 as they are."""
    integer, exponent = _EXPONENTS[value.dtype]
    power = (value.view(integer) & exponent).view(value.dtype)
    return torch.maximum(power, value.clamp(max=torch.finfo(value.dtype).smallest_normal))  # 0 for subnormal numbers


def safe_divisor(value: Tensor) -> Tensor:
    """Return ``value >= 0`` with 1 in place of 0: a divisor where nothing is to be divided."""
    return torch.where(value > 0, value, 1.0)


def split(terms: Tensor) -> tuple[Tensor, Tensor]:
    """Split terms into two parts, each on a fixed grid; their sum is within 2^-65 of the term (float64)."""
    # (x + M) - M rounds x to the grid of M's last bit. Literals, as torch.compile makes an input of any other float.
    if terms.dtype == torch.float64:  # grids of 2^-31 and 2^-64, exact for sums up to 2^22
        coarse, fine = 1.5 * 2.0**21, 1.5 * 2.0**-12
    else:  # 2^-12 and 2^-25, exact for sums up to 2^12
        coarse, fine = 1.5 * 2.0**11, 1.5 * 2.0**-2
    high = (terms + coarse) - coarse
    return high, ((terms - high) + fine) - fine


def exact_sum(terms: Tensor, dim: int) -> Tensor:
    """Sum over a dimension; exact while the absolute values sum to at most 2^22 (float64)."""
    high, low = split(terms)
    return high.sum(dim) + low.sum(dim)


def row_sum_of_any_size(terms: Tensor) -> Tensor:
    """Sum ``terms (..., T)``, T >= 1, of any size over the last dimension, on grids that fit each row's largest term.

    The rounding of at most 2^21 terms does not depend on their order, nor on zeros among them. Terms that are not
    finite give what an ordinary sum gives.
    """
    unit = power_of_two(terms.abs().amax(-1))
    total = exact_sum(terms / safe_divisor(unit)[..., None], -1) * unit
    return torch.where(unit < torch.inf, total, terms.sum(-1))


def segment_sum(terms: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Sum each row of ``terms (C, B)`` within the segments that ``segment (C, B)`` numbers from 0.

    Exact as ``exact_sum`` is. Returns ``(C, num_segments)``.
    """
    high, low = split(terms)
    zeros = terms.new_zeros(len(terms), num_segments)
    return zeros.scatter_add(1, segment, high) + zeros.scatter_add(1, segment, low)


def segment_sum_of_any_size(terms: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Sum ``terms (N,)`` of any size within the segments that ``segment (N,)`` numbers from 0.

    As ``row_sum_of_any_size`` of each segment, bit for bit. Returns ``(num_segments,)``.
    """
    size = torch.where(terms.isnan(), torch.inf, terms.abs())
    unit = power_of_two(terms.new_zeros(num_segments).scatter_reduce(0, segment, size, "amax"))
    in_units = terms / safe_divisor(unit)[segment]
    total = segment_sum(in_units[None], segment[None], num_segments)[0] * unit
    plain = terms.new_zeros(num_segments).scatter_add(0, segment, terms)
    return torch.where(unit < torch.inf, total, plain)
