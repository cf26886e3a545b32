"""Sequence confidence: the model's log-probability of its own responses."""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from durian_adv._src import checks, exact

_REDUCTIONS = ("sum", "mean")
# tokens summed at a time: a few MB, which stay in a processor's cache; elsewhere few launches, and memory is bounded
_BLOCK, _BLOCK_ELSEWHERE = 2**18, 2**27


def sequence_confidence(
    logprobs: Tensor, mask: Tensor | None = None, *, reduction: Literal["sum", "mean"] = "sum"
) -> Tensor:
    r"""Reduce token log-probabilities to one confidence a response.

    .. math:: L_{s,i} = \sum_t \log \pi(o_{s,i,t} \mid o_{s,i,<t}, q_s), \quad\text{or its mean over the tokens}

    High means confident, hence easy. A sum falls with the length of the response, a mean does not; the paper's formula
    is the sum, its text speaks of an average.

    Args:
        logprobs: ``(..., T)`` in nats, any real dtype. Minus infinity is a value like others.
        mask: ``(..., T)``, bool or numeric, nonzero where a token counts; None where all do. Masked tokens influence
            nothing, whatever is in them.
        reduction: ``"sum"`` or ``"mean"`` over the tokens that count.

    Returns:
        ``(...)``: float64 for float64 log-probabilities, else float32. NaN for a response without a token.

    Raises:
        TypeError: complex log-probabilities or mask.
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
    logprobs = checks.tensor("logprobs", logprobs)
    if logprobs.ndim == 0:
        raise ValueError("logprobs: expected shape (..., T), got ()")
    checks.choice("reduction", reduction, _REDUCTIONS)
    if mask is not None:
        mask = checks.tensor("mask", mask)
        checks.shape("mask", mask, logprobs.shape, "logprobs.shape")
        checks.same_device("mask", mask, "logprobs", logprobs)
    if torch.compiler.is_compiling():  # which fuses, and could not trace a loop over a changing number of blocks
        total, size = _sums(logprobs, mask if mask is None else _loadable(mask))
    else:
        total, size = _sums_by_blocks(logprobs, mask)
    if reduction == "mean":
        total = total / size
    return torch.where(size > 0, total, torch.nan).to(exact.result_dtype(logprobs.dtype))


def _sums(logprobs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum what counts over the last dimension in the working dtype, and count it.

    How far a sequence is padded changes the order of its sum. Rounded to float32, a sum in float64 does not show it;
    float64 log-probabilities, which nothing hides, are summed without an order.
    """
    if mask is None:
        counted, size = logprobs, torch.full(logprobs.shape[:-1], logprobs.shape[-1], device=logprobs.device)
    else:
        mask = mask if mask.dtype == torch.bool else mask != 0
        counted, size = torch.where(mask, logprobs, 0), mask.sum(-1)
    if logprobs.dtype == torch.float64 and logprobs.shape[-1] > 0:
        return exact.row_sum_of_any_size(counted), size
    return counted.sum(-1, dtype=exact.working_dtype(logprobs.device)), size


def _sums_by_blocks(logprobs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Do the same block by block: the input is never copied whole."""
    tokens = rearrange(logprobs, "... t -> (...) t")
    block = _BLOCK if logprobs.device.type == "cpu" else _BLOCK_ELSEWHERE
    rows = max(1, block // max(1, tokens.shape[1]))
    blocks = torch.split(tokens, rows)
    masks = [None] * len(blocks) if mask is None else torch.split(rearrange(mask, "... t -> (...) t"), rows)
    sums = [_sums(block, m) for block, m in zip(blocks, masks, strict=True)]
    totals, sizes = (torch.cat(column).reshape(logprobs.shape[:-1]) for column in zip(*sums, strict=True))
    return totals, sizes


def _loadable(mask: Tensor) -> Tensor:
    """Bring a mask into a dtype that inductor's code for processors loads many values of at once: 8 times as fast."""
    if mask.device.type == "cpu" and not mask.dtype.is_floating_point and mask.itemsize < 4:
        if mask.dtype == torch.bool:
            mask = torch.ops.durian_adv.as_bytes(mask)
        return mask.to(torch.int32)
    return mask


def _as_bytes(mask: Tensor) -> Tensor:
    return mask.view(torch.uint8).clone(memory_format=torch.contiguous_format)


# An operator, as inductor would cast value by value what it can look into.
torch.library.define("durian_adv::as_bytes", "(Tensor mask) -> Tensor")
torch.library.impl("durian_adv::as_bytes", "cpu", _as_bytes)
torch.library.register_fake("durian_adv::as_bytes", _as_bytes)
