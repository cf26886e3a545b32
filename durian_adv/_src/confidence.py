"""Sequence confidence: the model's log-probability of its own responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from durian_adv._src import checks, exact
from durian_adv._src.errors import ArgumentError, ArgumentTypeError
from durian_adv._src.layout import segment_extreme
from durian_adv._src.operators import operator

_REDUCTIONS = ("sum", "mean")
# tokens summed at a time: a few MB, which stay in a processor's cache; elsewhere few launches, and memory is bounded
_BLOCK, _BLOCK_ELSEWHERE = 2**18, 2**27


def sequence_confidence(
    logprobs: Tensor,
    mask: Tensor | None = None,
    *,
    reduction: Literal["sum", "mean"] = "sum",
    lengths: Tensor | Sequence[int] | None = None,
    rollout_index: Tensor | None = None,
) -> Tensor:
    r"""Reduce token log-probabilities to one confidence per response.

    .. math:: L_{s,i} = \sum_t \log \pi(o_{s,i,t} \mid o_{s,i,<t}, q_s), \quad\text{or its mean over the tokens}

    High means confident, hence easy. A sum falls with the length of the response, a mean does not; the paper's formula
    is the sum, its text speaks of an average.

    Args:
        logprobs: ``(..., T)``, or packed ``(sum(lengths),)`` with ``lengths``: in nats, any real dtype. Minus infinity
            is a value like others.
        mask: the shape of ``logprobs``, bool or numeric, nonzero where a token counts; None where all do. Masked tokens
            influence nothing, whatever is in them.
        reduction: ``"sum"`` or ``"mean"`` over the tokens that count.
        lengths: how many tokens of packed log-probabilities each row has, 0 included. They are read on the host.
        rollout_index: one integer per row, ``(N,)``; log-probabilities are then ``(N, T)`` or packed. Rows of one
            rollout (turns, cut trajectories) share a value, across prompts, and each gets the confidence of the whole
            rollout, over the tokens of all its rows.

    Returns:
        ``(...)``, or ``(len(lengths),)``: float64 for float64 log-probabilities, else float32. NaN for a response
        without a token.

    Raises:
        TypeError: complex log-probabilities or mask, lengths or rollouts that are not integers.
        ValueError: a scalar, a mask or index of another shape or device, an unknown reduction, lengths that do not sum
            to the number of tokens.

    Source: Durian (arXiv 2602.21743), eq. 14. The printed equation lost its logarithm.

    >>> import torch
    >>> logprobs = torch.tensor([[-1.0, -2.0, -9.0], [-1.0, -1.0, -1.0]])
    >>> mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    >>> sequence_confidence(logprobs, mask)
    tensor([-3., -3.])
    >>> sequence_confidence(logprobs, mask, reduction="mean")
    tensor([-1.5000, -1.0000])
    >>> sequence_confidence(torch.tensor([-1.0, -2.0, -1.0, -1.0, -1.0]), lengths=[2, 3])
    tensor([-3., -3.])
    >>> sequence_confidence(logprobs, mask, reduction="mean", rollout_index=torch.tensor([7, 7]))
    tensor([-1.2000, -1.2000])
    """
    logprobs = checks.tensor("logprobs", logprobs)
    if logprobs.ndim == 0:
        raise ArgumentError("logprobs", "shape (..., T)", "()")
    checks.choice("reduction", reduction, _REDUCTIONS)
    if mask is not None:
        mask = checks.tensor("mask", mask)
        checks.shape("mask", mask, logprobs.shape, "logprobs.shape")
        checks.same_device("mask", mask, "logprobs", logprobs)
    if lengths is not None or rollout_index is not None:
        total, size = _sums_by_rollout(logprobs, mask, _lengths(lengths, logprobs), rollout_index)
    elif torch.compiler.is_compiling():  # which fuses, and could not trace a loop over a changing number of blocks
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


def _lengths(lengths: Tensor | Sequence[int] | None, logprobs: Tensor) -> Tensor | None:
    """Check the lengths of packed log-probabilities, values included."""
    if lengths is None:
        return None
    checks.ndim("logprobs", logprobs, 1, "(sum(lengths),) with lengths")
    if isinstance(lengths, Tensor):
        checked = checks.tensor("lengths", lengths, integer=True)
        checks.ndim("lengths", checked, 1, "(rows,)")
        sizes = checked.tolist()
    elif isinstance(lengths, Sequence) and not isinstance(lengths, (str, bytes)):
        sizes = [checks.integer(f"lengths[{i}]", size, "an integer") for i, size in enumerate(lengths)]
    else:
        raise ArgumentTypeError("lengths", "a 1-D tensor or a sequence of integers", type(lengths).__name__)
    if any(size < 0 for size in sizes):
        raise ArgumentError("lengths", "no negative length", min(sizes))
    if sum(sizes) != len(logprobs):
        raise ArgumentError("lengths", f"a sum of {len(logprobs)}, the number of logprobs", sum(sizes))
    return torch.tensor(sizes, dtype=torch.int64, device=logprobs.device)


def _sums_by_rollout(
    logprobs: Tensor, mask: Tensor | None, lengths: Tensor | None, rollout_index: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Sum what counts of each row, or of the rollout it belongs to, and count it: one value per row.

    Sums are exact on grids that fit the rollout's largest token, so it does not show how its tokens lie in rows.
    """
    if lengths is None:
        checks.ndim("logprobs", logprobs, 2, "(N, T) with rollout_index")
        lengths = torch.full(logprobs.shape[:1], logprobs.shape[1], device=logprobs.device)
    rollout, count = torch.arange(len(lengths), device=logprobs.device), len(lengths)
    if rollout_index is not None:
        checks.tensor("rollout_index", rollout_index, integer=True)
        checks.shape("rollout_index", rollout_index, lengths.shape, "(N,), one per row,")
        checks.same_device("rollout_index", rollout_index, "logprobs", logprobs)
        names, rollout = torch.unique(rollout_index, return_inverse=True)
        count = len(names)
    dtype = exact.working_dtype(logprobs.device)
    zeros = torch.zeros(count, dtype=dtype, device=logprobs.device)
    largest, size, plain, high, low = zeros, zeros.long(), zeros, zeros, zeros
    for terms, segment in _tokens(logprobs, mask, lengths, rollout, dtype):
        sizes = torch.where(terms.isnan(), torch.inf, terms.abs())
        largest = torch.maximum(largest, segment_extreme(sizes, segment, count, "amax"))
        size = size.scatter_add(0, segment, torch.ones_like(segment))
        plain = plain.scatter_add(0, segment, terms)
    unit = exact.power_of_two(largest)
    divisor = exact.safe_divisor(unit)
    for terms, segment in _tokens(logprobs, mask, lengths, rollout, dtype):
        coarse, fine = exact.split(terms / divisor[segment])
        high, low = high.scatter_add(0, segment, coarse), low.scatter_add(0, segment, fine)
    total = torch.where(unit < torch.inf, (high + low) * unit, plain)
    return total[rollout], size[rollout]


def _tokens(
    logprobs: Tensor, mask: Tensor | None, lengths: Tensor, rollout: Tensor, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the tokens that count, block by block, and the rollout of each."""
    tokens, ends = logprobs.reshape(-1), lengths.cumsum(0)
    counted = None if mask is None else mask.reshape(-1)
    block = _BLOCK if logprobs.device.type == "cpu" else _BLOCK_ELSEWHERE
    for start in range(0, len(tokens), block):
        place = torch.arange(start, min(start + block, len(tokens)), device=tokens.device)
        terms, segment = tokens[place].to(dtype), rollout[torch.searchsorted(ends, place, right=True)]
        if counted is None:
            yield terms, segment
        else:
            kept = counted[place] != 0
            yield terms[kept], segment[kept]


def _loadable(mask: Tensor) -> Tensor:
    """Bring a mask into a dtype that inductor's code for processors loads many values of at once: 8 times as fast."""
    if mask.device.type == "cpu" and not mask.dtype.is_floating_point and mask.itemsize < 4:
        if mask.dtype == torch.bool:
            mask = _bytes_of(mask)
        return mask.to(torch.int32)
    return mask


def _as_bytes(mask: Tensor) -> Tensor:
    return mask.view(torch.uint8).clone(memory_format=torch.contiguous_format)


# Inductor would cast value by value what it can look into.
_bytes_of = operator("as_bytes(Tensor mask) -> Tensor", _as_bytes, _as_bytes)
