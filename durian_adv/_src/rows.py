"""From what a trainer has, one entry per row, to tensors: numbers with gaps, ids of any kind, tokens of any length."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from durian_adv._src import checks
from durian_adv._src.confidence import sequence_confidence
from durian_adv._src.errors import ArgumentError, ArgumentTypeError

MISSING = -1  # the number of an id that is None


class Tokens(NamedTuple):
    """Token log-probabilities of N rows, padded ``(N, T)`` or packed with ``lengths``, and which of them count."""

    logprobs: Tensor
    mask: Tensor  # bool, the shape of logprobs: in the response, and finite
    lengths: list[int] | None
    nonfinite: Tensor  # (), int64: in the response, and not finite
    total: Tensor  # (), int64: in the response


class Confidences(NamedTuple):
    """What the tokens of N rows say: finished numbers, which ranks can gather in place of the tokens."""

    confidence: Tensor  # (N,), in nats; NaN for a row without a finite token
    nonfinite: Tensor  # (), int64: tokens of the responses whose log-probability is not finite
    total: Tensor  # (), int64: tokens of the responses


def numbers(name: str, values: Any, count: int | None, device: torch.device | None = None) -> Tensor:
    """Return one number per row, ``(N,)``: NaN for None. Lists become float64; arrays keep their dtype.

    Raises:
        ArgumentError: not one number or None per row.
    """
    if isinstance(values, Tensor):
        found = checks.tensor(name, values)
    else:
        found = _of_array(values) if _is_numeric(values) else torch.from_numpy(_floats(name, values))
    _check_rows(name, found, count)
    checks.ndim(name, found, 1, "(N,)")
    return found if device is None else found.to(device)


def flags(name: str, values: Any, count: int, device: torch.device) -> Tensor:
    """Return one truth value per row, bool ``(N,)``; numbers are true unless they are 0."""
    found = numbers(name, values, count, device)
    return (found != 0) & ~found.isnan()


def keys(name: str, values: Any, count: int) -> list[Hashable]:
    """Return one hashable id per row, a tuple for a row of a tensor or array ``(N, K)``; None for NaN.

    Raises:
        ArgumentError: not one hashable id per row.
    """
    if isinstance(values, (Tensor, np.ndarray)) and values.ndim in (1, 2):
        values = values.tolist() if values.ndim == 1 else list(map(tuple, values.tolist()))
    found = _sequence(name, values, count)
    if {str, bytes, int, bool}.issuperset(map(type, found)):  # most ids are, and need no call each
        return found
    return [_key(name, value) for value in found]


def _key(name: str, value: Any) -> Hashable:
    """Return an id as plain Python has it, as a tensor of one number would equal no other of the same number."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        value = value.item()
    try:
        if isinstance(value, Tensor):
            raise TypeError("a tensor of several numbers")
        hash(value)
        known: Hashable = None if value != value else value  # NaN equals nothing
    except TypeError as error:
        raise ArgumentTypeError(name, "hashable ids", str(error)) from None
    return known


def ids(name: str, values: Any, count: int, device: torch.device) -> tuple[Tensor, Sequence[Any]]:
    """Number the ids of the rows, int64 ``(N,)``, by their order as values; return the names of the numbers, too.

    No order of the rows changes a number, of ids that can be sorted. A row of a tensor or array ``(N, K)`` is an id.
    None and NaN are ``MISSING``.

    Raises:
        ArgumentError: not one hashable id per row.
    """
    if _is_numeric(values):
        values = _of_array(values)
    if isinstance(values, Tensor):
        number, names = _tensor_ids(name, values, count)
        return number.to(device), names
    found = keys(name, values, count)
    names = ordered(found)
    place = {key: i for i, key in enumerate(names)}
    number = torch.tensor([MISSING if key is None else place[key] for key in found], dtype=torch.int64, device=device)
    return number, names


def ordered(keys: Sequence[Hashable]) -> list[Hashable]:
    """Return the distinct ids but None, sorted: by value where they can be compared, else by type and text."""
    distinct = [key for key in dict.fromkeys(keys) if key is not None]
    try:
        return sorted(distinct)  # type: ignore[type-var]  # what cannot be compared is sorted below
    except TypeError:
        return sorted(distinct, key=lambda key: (type(key).__name__, repr(key)))


def tokens(logprobs: Any, mask: Any, count: int, device: torch.device) -> Tokens:
    """Return the tokens of the rows; ``mask`` None, or None for a row: all of them are the response's.

    A row of log-probabilities that is None has no tokens, whatever its mask.

    Raises:
        ArgumentError: rows that do not fit, by number.
    """
    if _is_padded(logprobs) and (mask is None or _is_padded(mask)):
        values = _padded("logprobs", logprobs, count).to(device)
        keep = torch.ones_like(values, dtype=torch.bool) if mask is None else _padded("mask", mask, count) != 0
        checks.shape("mask", keep, values.shape, "logprobs.shape")
        keep, lengths = keep.to(device), None
    else:
        given = zip(_sequence("logprobs", logprobs, count), _rows_of_mask(mask, count), strict=True)
        pairs = [_row_tokens(number, *pair) for number, pair in enumerate(given)]
        lengths = [len(row) for row, _ in pairs]
        nothing = torch.zeros(0, dtype=torch.float64, device="cpu")
        values = torch.cat([nothing, *(row for row, _ in pairs)]).to(device)
        keep = torch.cat([nothing, *(row for _, row in pairs)]).to(device) != 0
    finite = values.isfinite()
    return Tokens(values, keep & finite, lengths, (keep & ~finite).sum(), keep.sum())


def confidences(
    logprobs: Any,
    mask: Any,
    count: int,
    device: torch.device,
    *,
    reduction: Literal["sum", "mean"],
    usable: Tensor | None = None,
    rollout: Tensor | None = None,
) -> Confidences:
    """Reduce the finite tokens of each row, or of all rows of its ``rollout``, to a confidence.

    A row that is not ``usable`` says nothing of its rollout either.

    Raises:
        ArgumentError: rows that do not fit, by number.
    """
    found = tokens(logprobs, mask, count, device)
    keep = found.mask if usable is None else found.mask & repeated(usable, found)
    values = sequence_confidence(
        found.logprobs, keep, reduction=reduction, lengths=found.lengths, rollout_index=rollout
    )
    return Confidences(values, found.nonfinite, found.total)


def share(members: Tensor, total: Tensor) -> float:
    """Return the share of some in a total, both counted; NaN where there is nothing."""
    return float(members.double() / total.double())


def repeated(values: Tensor, tokens: Tokens) -> Tensor:
    """Repeat one value per row to its tokens."""
    if tokens.lengths is None:
        return values[:, None]
    return values.repeat_interleave(torch.tensor(tokens.lengths, dtype=torch.int64, device=values.device))


def has_tokens(mask: Any, count: int, device: torch.device) -> Tensor:
    """Return which rows have a token that counts, bool ``(N,)``: True for a row whose mask is None."""
    if _is_padded(mask):
        return (_padded("mask", mask, count) != 0).any(1).to(device)
    found = [
        row is None or bool((_row("mask", i, row, 0.0) != 0).any()) for i, row in enumerate(_rows_of_mask(mask, count))
    ]
    return torch.tensor(found, dtype=torch.bool, device=device)


def _rows_of_mask(mask: Any, count: int) -> list[Any]:
    return [None] * count if mask is None else _sequence("mask", mask, count)


def _row_tokens(number: int, logprobs: Any, mask: Any) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities and the mask of one row, float64."""
    nothing = torch.zeros(0, dtype=torch.float64, device="cpu")
    values = nothing if logprobs is None else _row("logprobs", number, logprobs, torch.nan)
    if logprobs is None or mask is None:
        return values, torch.ones_like(values)
    keep = _row("mask", number, mask, 0.0)
    if len(keep) != len(values):
        raise ArgumentError(f"mask[{number}]", f"{len(values)} tokens, as logprobs[{number}]", len(keep))
    return values, keep


def _row(name: str, number: int, row: Any, gap: float) -> Tensor:
    """Return the tokens of one row, float64; ``gap`` for None among them."""
    if isinstance(row, Tensor):
        found = row.detach().to("cpu", torch.float64)
    else:
        found = torch.from_numpy(_floats(f"{name}[{number}]", row, gap))
    if found.ndim != 1:
        raise ArgumentError(f"{name}[{number}]", "one number per token", f"shape {tuple(found.shape)}")
    return found


def _is_padded(values: Any) -> bool:
    return isinstance(values, Tensor) or _is_numeric(values)


def _is_numeric(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind in "biuf"


def _of_array(values: np.ndarray[Any, Any]) -> Tensor:
    """Return an array of numbers as a tensor of its dtype; float64 for one that torch has not."""
    values = np.require(values, values.dtype.newbyteorder("="), ["C", "W"])  # what is read-only would be warned of
    return torch.from_numpy(values.astype(np.float64) if values.dtype == np.longdouble else values)


def _padded(name: str, values: Any, count: int) -> Tensor:
    found = checks.tensor(name, values) if isinstance(values, Tensor) else _of_array(values)
    checks.ndim(name, found, 2, "(N, T)")
    _check_rows(name, found, count)
    return found


def _floats(name: str, values: Any, gap: float = math.nan) -> np.ndarray[Any, np.dtype[np.float64]]:
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, np.ndarray)):
        raise ArgumentTypeError(name, "a tensor, an array or a list of numbers", type(values).__name__)
    try:
        return np.array([gap if value is None else value for value in values], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(name, "numbers or None", str(error)) from None


def _sequence(name: str, values: Any, count: int) -> list[Any]:
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, np.ndarray, Tensor)):
        raise ArgumentTypeError(name, "a tensor, an array or a list, one entry per row", type(values).__name__)
    if len(values) != count:
        raise ArgumentError(name, f"{count} entries, one per row", len(values))
    return list(values)


def _tensor_ids(name: str, values: Tensor, count: int) -> tuple[Tensor, Sequence[Any]]:
    values = checks.tensor(name, values)
    if values.ndim not in (1, 2):
        raise ArgumentError(name, "shape (N,), or (N, K) where a row is an id", tuple(values.shape))
    _check_rows(name, values, count)
    names, number = torch.unique(values, dim=0, return_inverse=True)
    number = number.reshape(count)
    if values.dtype.is_floating_point:
        number = number.masked_fill(values.isnan() if values.ndim == 1 else values.isnan().any(1), MISSING)
    return number, names.tolist()


def _check_rows(name: str, values: Tensor, count: int | None) -> None:
    if values.ndim == 0 or (count is not None and len(values) != count):
        expected = "one entry per row" if count is None else f"{count} entries, one per row"
        raise ArgumentError(name, expected, f"shape {tuple(values.shape)}")
