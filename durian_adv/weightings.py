"""Weights of a prompt by its accuracy p: ready-made functions for ``prior.reweighted_advantage``.

Each takes accuracies ``(B,)`` and returns as many weights, the harder the prompt the larger. Constants are set by
``functools.partial`` or a lambda: ``lambda p: exponential(p, rate=2.0)``. Which forms the paper (Difficulty prior,
arXiv 2505.13261) compared is known from its reviews alone, and no constant of it is known: names, forms and constants
are this library's, but for ``logistic``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from durian_adv import _checks

__all__ = ["exponential", "focal", "linear", "logarithmic", "logistic", "power", "uniform"]

# Powers and logistic functions are written with exp and log, whose bits do not depend on a value's place in its tensor:
# torch.pow and torch.sigmoid round the last few values of a tensor otherwise than those before.


def linear(accuracy: Tensor, *, slope: float = 1.0) -> Tensor:
    """``1 + slope (1 - p)``: from ``1 + slope`` down to 1.

    >>> linear(torch.tensor([0.0, 0.5, 1.0]))
    tensor([2.0000, 1.5000, 1.0000])
    """
    return 1.0 + _checks.number("slope", slope) * (1.0 - accuracy)


def exponential(accuracy: Tensor, *, rate: float = 1.0) -> Tensor:
    """``exp(rate (1 - p))``: from ``e^rate`` down to 1; steep with a large rate.

    >>> exponential(torch.tensor([0.0, 0.5, 1.0]))
    tensor([2.7183, 1.6487, 1.0000])
    """
    return torch.exp(_checks.number("rate", rate) * (1.0 - accuracy))


def power(accuracy: Tensor, *, exponent: float = 1.0) -> Tensor:
    """``(1.05 - p)^exponent``: nearly 0 for a prompt that is always solved.

    >>> power(torch.tensor([0.0, 0.5, 1.0]))
    tensor([1.0500, 0.5500, 0.0500])
    """
    return torch.exp(_checks.number("exponent", exponent) * torch.log(1.05 - accuracy))


def focal(accuracy: Tensor, *, gamma: float = 2.0) -> Tensor:
    """``(1 - p)^gamma``, gamma > 0, as in the focal loss (arXiv 1708.02002).

    >>> focal(torch.tensor([0.0, 0.5, 1.0]))
    tensor([1.0000, 0.2500, 0.0000])
    """
    gamma = _checks.number("gamma", gamma)
    if gamma <= 0:
        raise ValueError(f"gamma: expected a number > 0, got {gamma}")
    return torch.exp(gamma * torch.log(1.0 - accuracy))


def logarithmic(accuracy: Tensor) -> Tensor:
    """``-log(p + 0.02)``, and 0 where that is negative (p > 0.98): from 3.9 down to 0.

    >>> logarithmic(torch.tensor([0.0, 0.5, 1.0]))
    tensor([3.9120, 0.6539, 0.0000])
    """
    return (-torch.log(accuracy + 0.02)).clamp(min=0.0)


def logistic(
    accuracy: Tensor, *, low: float = 0.4, high: float = 1.5, steepness: float = 10.0, middle: float = 0.75
) -> Tensor:
    """``low + (high - low) / (1 + exp(steepness (p - middle)))``: flat at both ends.

    The form and the constants are those of GRPO-LEAD (arXiv 2504.09696), which gives rollouts with a negative
    advantage the weight of ``1 - p`` instead; here all rollouts of a prompt have one weight.

    >>> logistic(torch.tensor([0.0, 0.75, 1.0]))
    tensor([1.4994, 0.9500, 0.4834])
    """
    low, high = _checks.number("low", low), _checks.number("high", high)
    steepness, middle = _checks.number("steepness", steepness), _checks.number("middle", middle)
    return low + (high - low) / (1.0 + torch.exp(steepness * (accuracy - middle)))


def uniform(accuracy: Tensor, *, generator: torch.Generator, low: float = 0.0, high: float = 2.0) -> Tensor:
    """Draw from ``[low, high)`` whatever the accuracy: the control that a weighting must beat.

    The draws go by the order of the prompts, the only weights here that do.

    >>> uniform(torch.tensor([0.0, 0.5, 1.0]), generator=torch.Generator().manual_seed(0))
    tensor([0.9925, 1.5364, 0.1770])
    """
    low, high = _checks.number("low", low), _checks.number("high", high)
    drawn = torch.rand(accuracy.shape, generator=generator, dtype=accuracy.dtype, device=accuracy.device)
    return low + (high - low) * drawn
