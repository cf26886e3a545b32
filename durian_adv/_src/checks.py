"""Argument checks: facts that need no tensor value, so they cost nothing and trace.

Every message says the argument's name, what was expected and what came.
"""

from __future__ import annotations

import itertools
import math
import operator
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from durian_adv._src.errors import ArgumentError, ArgumentTypeError

_LARGEST = sys.float_info.max
_MOST_BUCKETS = 2**24


def tensor(name: str, value: object, *, boolean: bool = False, integer: bool = False) -> Tensor:
    """Check that ``value`` is a real tensor (``boolean``: only bool, ``integer``: only integers); detach it."""
    if not isinstance(value, Tensor) or hasattr(value, "device_mesh"):  # a DTensor's values lie elsewhere too
        raise ArgumentTypeError(name, "a torch.Tensor", type(value).__name__)
    dtype = value.dtype
    if value.layout is not torch.strided or value.is_nested or value.is_quantized:
        raise ArgumentTypeError(name, "an ordinary dense tensor", _unusual(value))
    if boolean and dtype != torch.bool:
        raise ArgumentTypeError(name, "dtype torch.bool", dtype)
    if integer and (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool):
        raise ArgumentTypeError(name, "an integer dtype", dtype)
    if dtype.is_complex:
        raise ArgumentTypeError(name, "a real dtype", dtype)
    return value.detach()


def _unusual(value: Tensor) -> str:
    if value.is_quantized:
        return f"a quantized one, {value.dtype}"
    return "a nested one" if value.is_nested else str(value.layout)


def ndim(name: str, value: Tensor, expected: int, layout: str) -> None:
    """Check the number of dimensions; ``layout`` names them, as in ``(B, G)``."""
    if value.ndim != expected:
        raise ArgumentError(name, f"shape {layout}", tuple(value.shape))


def shape(name: str, value: Tensor, expected: Sequence[int], layout: str) -> None:
    """Check the exact shape; ``layout`` says in letters where it comes from."""
    if tuple(value.shape) != tuple(expected):
        raise ArgumentError(name, f"shape {layout} = {tuple(expected)}", tuple(value.shape))


def same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Check that two tensors lie on one device."""
    if value.device != other.device:
        raise ArgumentError(name, f"device {other.device}, as {other_name}", value.device)


def number(name: str, value: object) -> float:
    """Check for a finite plain number (no bool, no tensor: reading one would wait for its device)."""
    if isinstance(value, (bool, Tensor)) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(name, "a number", type(value).__name__)
    if not -_LARGEST <= value <= _LARGEST:  # math.isfinite does not trace
        raise ArgumentError(name, "a finite number", value)
    return float(value)


def integer(name: str, value: object, expected: str) -> int:
    """Check for a plain integer, of Python or NumPy."""
    if isinstance(value, (bool, Tensor)):
        raise ArgumentTypeError(name, expected, type(value).__name__)
    if type(value) is int:  # as it is: a symbol of torch.compile stays one, and another value compiles nothing
        return value
    try:
        return operator.index(value)  # type: ignore[arg-type]  # what has no index is told so below
    except TypeError:
        raise ArgumentTypeError(name, expected, type(value).__name__) from None


def epsilon(value: object) -> float:
    """Check ``eps``: a finite number, not negative."""
    checked = number("eps", value)
    if checked < 0:
        raise ArgumentError("eps", "a number >= 0", value)
    return checked + 0.0  # -0.0 is 0.0


def correction(value: object) -> int:
    """Check ``correction``: 0 (population std) or 1 (sample std)."""
    checked = integer("correction", value, "the integer 0 or 1")
    if checked not in (0, 1):
        raise ArgumentError("correction", "0 or 1", checked)
    return checked


def weights(value: object, *counts: int) -> tuple[float, ...]:
    """Check ``weights``: as many finite numbers as one of ``counts``, none negative."""
    if isinstance(value, (str, bytes, Tensor)) or not isinstance(value, Sequence):
        raise ArgumentTypeError(
            "weights", f"a sequence of {' or '.join(map(str, counts))} numbers", type(value).__name__
        )
    if len(value) not in counts:
        raise ArgumentError("weights", f"{' or '.join(map(str, counts))} numbers", len(value))
    checked = tuple(number(f"weights[{i}]", weight) for i, weight in enumerate(value))
    for i, weight in enumerate(checked):
        if weight < 0:
            raise ArgumentError(f"weights[{i}]", "a number >= 0", weight)
    if not sum(checked) < math.inf:
        raise ArgumentError("weights", "a finite sum", checked)
    return checked


def levels(name: str, value: object) -> int | tuple[float, ...]:
    """Check quantiles: a number of buckets, or increasing levels strictly between 0 and 1."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return bucket_count(name, value, "an int or a sequence of levels")
    checked = tuple(number(f"{name}[{i}]", level) for i, level in enumerate(value))
    if any(not 0 < level < 1 for level in checked):
        raise ArgumentError(name, "levels in (0, 1)", checked)
    if any(a >= b for a, b in itertools.pairwise(checked)):
        raise ArgumentError(name, "increasing levels", checked)
    return checked or 1  # no threshold, one bucket


def bucket_count(name: str, value: object, expected: str = "an int") -> int:
    """Check a number of buckets: an integer, at least 1."""
    count = integer(name, value, expected)
    if count < 1:
        raise ArgumentError(name, "at least 1 bucket", count)
    if count > _MOST_BUCKETS:
        raise ArgumentError(name, f"at most {_MOST_BUCKETS} buckets", count)
    return count


def choice(name: str, value: object, options: Sequence[str]) -> None:
    """Check a name against the names there are."""
    if value not in options:
        raise ArgumentError(name, f"one of {', '.join(map(repr, options))}", f"{value!r}")
