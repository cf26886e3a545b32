"""Sums that do not depend on the order of their terms, and the number formats everything is computed in.

Floating-point addition is not associative, so an ordinary sum changes its last bits when rollouts are permuted,
padded or spread over ranks. Terms of size at most one that lie on a fixed binary grid add up without any rounding;
a sum without rounding is associative. Each term is therefore split over two grids, and each half is summed exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

# For each working dtype the two magic numbers M: (x + M) - M rounds x to the grid of M's last bit.
# float64: grids of 2^-32 and 2^-65, exact up to 2^20 terms. float32: 2^-13 and 2^-27, exact up to 2^10 terms.
_GRIDS = {
    torch.float64: (1.5 * 2.0 ** (52 - 32), 1.5 * 2.0 ** (52 - 65)),
    torch.float32: (1.5 * 2.0 ** (23 - 13), 1.5 * 2.0 ** (23 - 27)),
}


def working_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of all intermediate results on a device: float64, or float32 where there is no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of results: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def to_result(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a working value to ``dtype``; what lies beyond its range becomes its largest number, never inf."""
    limit = torch.finfo(dtype).max
    return value.clamp(-limit, limit).to(dtype)


def split(terms: Tensor) -> tuple[Tensor, Tensor]:
    """Split terms into two parts, each on a fixed grid; their sum is within 2^-66 of the term (float64)."""
    coarse, fine = _GRIDS[terms.dtype]
    high = (terms + coarse) - coarse
    return high, ((terms - high) + fine) - fine


def row_sum(terms: Tensor) -> Tensor:
    """Sum each row of ``terms (B, G)``, whose sums of absolute values are at most G, to ``(B,)``."""
    high, low = split(terms)
    return high.sum(1) + low.sum(1)


def segment_sum(terms: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Sum ``terms (B,)`` within each of ``num_segments`` segments (``segment (B,)``); absolute sums up to 2^20."""
    halves = torch.stack(split(terms), 1)
    return halves.new_zeros(num_segments, 2).index_add(0, segment, halves).sum(1)
