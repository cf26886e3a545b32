"""Difficulty prior: advantages weighted by the accuracy of the prompt's own rollouts, and ready-made weightings.

A weighting takes accuracies ``(B,)`` and returns as many weights, the harder the prompt the larger. Constants are set
by ``functools.partial`` or a lambda: ``lambda p: exponential(p, rate=2.0)``. Which forms the paper (Difficulty prior,
arXiv 2505.13261) compared is known from its reviews alone, and no constant of it is known: names, forms and constants
are this library's, but for ``logistic``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from durian_adv._src import checks, exact, scales
from durian_adv._src.advantages import Batch, batch_of, check_rewards, restore_prompts, restore_rollouts
from durian_adv._src.errors import ArgumentError, ArgumentTypeError
from durian_adv._src.layout import pack, spread

__all__ = [
    "accuracy_weights",
    "exponential",
    "focal",
    "linear",
    "logarithmic",
    "logistic",
    "power",
    "reweighted_advantage",
    "uniform",
]

Weighting = Callable[[Tensor], Tensor]


def reweighted_advantage(
    rewards: Tensor,
    *,
    weight: Weighting,
    correctness: Tensor | None = None,
    success_threshold: float = 0.5,
    normalize: bool = False,
    prompt_index: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    r"""Rewards centered by their own prompt's mean, times a weight that depends on the prompt's accuracy.

    .. math:: A_{s,i} = f(p_s) \, (r_{s,i} - \operatorname{mean}_i r_{s,\cdot})

    In place of GRPO's std, which blows up the easiest and the hardest prompts alike, f tells the hard from the easy.

    Args:
        rewards: ``(B, G)``, or ``(N,)`` with ``prompt_index``; any real dtype. Non-finite rewards are invalid.
        weight: f, from accuracies ``(B,)`` to as many weights, value by value: a function of this module
            or any other. Accuracies come in the working dtype (float64), never NaN. A weight that is not finite
            counts as 0.
        correctness: the shape of rewards: bool, or numbers from 0 to 1; NaN where not known. A prompt's accuracy is the
            mean over its valid rollouts that have one; without any, its weight is 1. None: a rollout is correct if its
            reward is above ``success_threshold``.
        success_threshold: what the reward of a correct rollout exceeds; used without ``correctness`` only.
        normalize: divide the weights by the mean of their sizes over the prompts with signal (and a known accuracy), so
            that the batch is weighted by 1 on average.
        prompt_index: ``(N,)`` integers, any values in any order; rollouts of one prompt share a value.
        valid: bool, the shape of rewards; False where a rollout does not count.

    Returns:
        The shape of rewards; float64 for float64 rewards, else float32. Exactly 0.0 for invalid rollouts and for
        prompts without signal (all valid rewards equal, or fewer than two); never NaN or infinite.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or number, with the argument's name; a ``weight`` that does not
            return a tensor of one number per prompt.

    Source: Difficulty prior (arXiv 2505.13261), online advantage differentiation.

    >>> rewards = torch.tensor([[1.0, 0.1, 0.1, 0.1], [1.0, 1.0, 1.0, 0.1]])  # 0.9 accuracy + 0.1 format
    >>> reweighted_advantage(rewards, weight=exponential)
    tensor([[ 1.4290, -0.4763, -0.4763, -0.4763],
            [ 0.2889,  0.2889,  0.2889, -0.8667]])
    """
    _check(rewards, weight, correctness, success_threshold, normalize, prompt_index, valid)
    batch = batch_of(rewards, prompt_index, valid)
    weights = _weights(batch, rewards, weight, correctness, success_threshold, normalize)
    # The unit in two steps, as weight * unit may leave the range where the advantage does not.
    unit = batch.measured.unit
    below, above = (spread(part, batch.layout) for part in (weights * unit.clamp(max=1.0), unit.clamp(min=1.0)))
    return restore_rollouts(batch.centered * below * above, batch)


def accuracy_weights(
    rewards: Tensor,
    *,
    weight: Weighting,
    correctness: Tensor | None = None,
    success_threshold: float = 0.5,
    normalize: bool = False,
    prompt_index: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Return the weights of ``reweighted_advantage``, which multiply any other centered and scaled advantage as well.

    Arguments, errors and source are those of ``reweighted_advantage``.

    Returns:
        A weight for each prompt, ``(B,)``, or repeated to ``(N,)`` with ``prompt_index``; float64 for float64 rewards,
        else float32. Always finite.

    >>> from durian_adv import durian_advantage
    >>> rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    >>> weights = accuracy_weights(rewards, weight=linear)
    >>> weights
    tensor([1.7500, 1.2500])
    >>> durian_advantage(rewards, visual_entropy=torch.tensor([3.0, 2.0])) * weights[:, None]
    tensor([[ 2.6250, -0.8750, -0.8750, -0.8750],
            [ 0.6250,  0.6250,  0.6250, -1.8750]])
    """
    _check(rewards, weight, correctness, success_threshold, normalize, prompt_index, valid)
    batch = batch_of(rewards, prompt_index, valid)
    weights = _weights(batch, rewards, weight, correctness, success_threshold, normalize)
    return restore_prompts(exact.to_result(weights, batch.dtype), batch)


# Powers and logistic functions are written with exp and log, whose bits do not depend on a value's place in its tensor:
# torch.pow and torch.sigmoid round the last few values of a tensor otherwise than those before.


def linear(accuracy: Tensor, *, slope: float = 1.0) -> Tensor:
    """``1 + slope (1 - p)``: from ``1 + slope`` down to 1.

    >>> linear(torch.tensor([0.0, 0.5, 1.0]))
    tensor([2.0000, 1.5000, 1.0000])
    """
    return 1.0 + checks.number("slope", slope) * (1.0 - accuracy)


def exponential(accuracy: Tensor, *, rate: float = 1.0) -> Tensor:
    """``exp(rate (1 - p))``: from ``e^rate`` down to 1; steep with a large rate.

    >>> exponential(torch.tensor([0.0, 0.5, 1.0]))
    tensor([2.7183, 1.6487, 1.0000])
    """
    return torch.exp(checks.number("rate", rate) * (1.0 - accuracy))


def power(accuracy: Tensor, *, exponent: float = 1.0) -> Tensor:
    """``(1.05 - p)^exponent``: nearly 0 for a prompt that is always solved.

    >>> power(torch.tensor([0.0, 0.5, 1.0]))
    tensor([1.0500, 0.5500, 0.0500])
    """
    return torch.exp(checks.number("exponent", exponent) * torch.log(1.05 - accuracy))


def focal(accuracy: Tensor, *, gamma: float = 2.0) -> Tensor:
    """``(1 - p)^gamma``, gamma > 0, as in the focal loss (arXiv 1708.02002).

    >>> focal(torch.tensor([0.0, 0.5, 1.0]))
    tensor([1.0000, 0.2500, 0.0000])
    """
    gamma = checks.number("gamma", gamma)
    if gamma <= 0:
        raise ArgumentError("gamma", "a number > 0", gamma)
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
    low, high = checks.number("low", low), checks.number("high", high)
    steepness, middle = checks.number("steepness", steepness), checks.number("middle", middle)
    return low + (high - low) / (1.0 + torch.exp(steepness * (accuracy - middle)))


def uniform(accuracy: Tensor, *, generator: torch.Generator, low: float = 0.0, high: float = 2.0) -> Tensor:
    """Draw from ``[low, high)`` whatever the accuracy: the control that a weighting must beat.

    The draws go by the order of the prompts, the only weights here that do.

    >>> uniform(torch.tensor([0.0, 0.5, 1.0]), generator=torch.Generator().manual_seed(0))
    tensor([0.9925, 1.5364, 0.1770])
    """
    low, high = checks.number("low", low), checks.number("high", high)
    drawn = torch.rand(accuracy.shape, generator=generator, dtype=accuracy.dtype, device=accuracy.device)
    return low + (high - low) * drawn


def _check(
    rewards: Tensor,
    weight: Weighting,
    correctness: Tensor | None,
    success_threshold: float,
    normalize: bool,
    prompt_index: Tensor | None,
    valid: Tensor | None,
) -> None:
    if not callable(weight):
        raise ArgumentTypeError("weight", "a function from accuracies (B,) to weights", type(weight).__name__)
    checks.number("success_threshold", success_threshold)
    if not isinstance(normalize, bool):
        raise ArgumentTypeError("normalize", "a bool", type(normalize).__name__)
    check_rewards(rewards, prompt_index, valid)
    if correctness is not None:
        checks.tensor("correctness", correctness)
        checks.shape("correctness", correctness, rewards.shape, "rewards.shape")
        checks.same_device("correctness", correctness, "rewards", rewards)


def _weights(
    batch: Batch,
    rewards: Tensor,
    weight: Weighting,
    correctness: Tensor | None,
    success_threshold: float,
    normalize: bool,
) -> Tensor:
    """Return one finite weight a prompt, ``(B,)`` in the working dtype."""
    dtype = exact.working_dtype(rewards.device)
    given = rewards if correctness is None else correctness
    correct = pack(given.detach(), batch.layout, torch.nan, dtype)
    if correctness is None:
        correct = (correct > success_threshold).to(dtype)
    accuracy = scales.prompt_means(correct, batch.valid & ~correct.isnan(), batch.layout)
    known = ~accuracy.isnan()
    weights = weight(torch.where(known, accuracy, 0.5))
    if not isinstance(weights, Tensor):
        raise ArgumentTypeError("weight", "a function that returns a torch.Tensor", type(weights).__name__)
    weights = checks.tensor("weight", weights)
    checks.shape("weight", weights, accuracy.shape, "(B,)")
    weights = weights.to(dtype)
    weights = torch.where(weights.abs() < torch.inf, weights, 0.0)  # which NaN is not either
    if normalize:
        weights = _of_mean_one(weights, batch.measured.has_signal & known)
    return torch.where(known, weights, 1.0)


def _of_mean_one(weights: Tensor, counted: Tensor) -> Tensor:
    sizes = torch.where(counted, weights.abs(), 0.0)
    largest = exact.safe_divisor(torch.cat([sizes, sizes.new_zeros(1)]).amax())  # first, as a sum might overflow
    mean = exact.exact_sum(sizes / largest, 0) / counted.sum().clamp(min=1)
    return weights / largest / exact.safe_divisor(mean)
