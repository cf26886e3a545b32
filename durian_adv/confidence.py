"""Sequence confidence: the model's log-probability of its own responses."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from durian_adv import _checks, exact

_REDUCTIONS = ("sum", "mean")


def sequence_confidence(
    logprobs: Tensor, mask: Tensor | None = None, *, reduction: Literal["sum", "mean"] = "sum"
) -> Tensor:
    r"""Reduce token log-probabilities to one confidence a response.

    .. math:: L_{s,i} = \sum_t \log \pi(o_{s,i,t} \mid o_{s,i,<t}, q_s), \quad\text{or its mean over the tokens}

    High means confident, hence easy. A sum falls with the length of the response, a mean does not; the paper's formula
    is the sum, its text speaks of an average.

    Args:
        logprobs: ``(..., T)``, floating, in nats. Minus infinity is a value like others.
        mask: ``(..., T)``, bool or numeric, nonzero where a token counts; None where all do. Masked tokens influence
            nothing, whatever is in them.
        reduction: ``"sum"`` or ``"mean"`` over the tokens that count.

    Returns:
        ``(...)``: float64 for float64 log-probabilities, else float32. NaN for a response without a token.

    Raises:
        TypeError: log-probabilities that are not floating, a complex mask.
        ValueError: a scalar, a mask of another shape or device, an unknown reduction.

    Source: Durian (arXiv 2602.21743), eq. 14. The printed equation lost its logarithm.

    >>> import torch
    >>> logprobs = torch.tensor([[-1.0, -2.0, -9.0], [-1.0, -1.0, -1.0]])
    >>> mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    >>> sequence_confidence(logprobs, mask)
    tensor([-3., -3.])
    >>> sequence_confidence(logprobs, mask, reduction="mean")
    tensor([-1.5000, -1.0000])
    """
    logprobs = _checks.tensor("logprobs", logprobs)
    if not logprobs.is_floating_point():
        raise TypeError(f"logprobs: expected a floating dtype, got {logprobs.dtype}")
    if logprobs.ndim == 0:
        raise ValueError("logprobs: expected shape (..., T), got ()")
    _checks.choice("reduction", reduction, _REDUCTIONS)
    dtype = exact.result_dtype(logprobs.dtype)
    if mask is None:
        total = logprobs.sum(-1, dtype=dtype)
        count = torch.full_like(total, logprobs.shape[-1])
    else:
        mask = _checks.tensor("mask", mask)
        _checks.shape("mask", mask, logprobs.shape, "logprobs.shape")
        _checks.same_device("mask", mask, "logprobs", logprobs)
        counted = mask != 0
        total = torch.where(counted, logprobs, 0.0).sum(-1, dtype=dtype)
        count = counted.sum(-1)
    if reduction == "mean":
        total = total / count
    return torch.where(count > 0, total, torch.nan)
