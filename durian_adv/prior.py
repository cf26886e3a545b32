"""Difficulty prior: advantages weighted by the accuracy of the prompt's own rollouts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from durian_adv import _checks, exact, ragged, statistics
from durian_adv.advantages import Batch, check_rewards, measure, restore

__all__ = ["accuracy_weights", "reweighted_advantage"]

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
    r"""Rewards centred by their own prompt's mean, times a weight that depends on the prompt's accuracy.

    .. math:: A_{s,i} = f(p_s) \, (r_{s,i} - \operatorname{mean}_i r_{s,\cdot})

    In place of GRPO's std, which blows up the easiest and the hardest prompts alike, f tells the hard from the easy.

    Args:
        rewards: ``(B, G)``, or ``(N,)`` with ``prompt_index``; any real dtype. Non-finite rewards are invalid.
        weight: f, from accuracies ``(B,)`` to as many weights, value by value: a function of ``durian_adv.weightings``
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
            return a tensor of one number a prompt.

    Source: Difficulty prior (arXiv 2505.13261), online advantage differentiation.

    >>> from durian_adv.weightings import exponential
    >>> rewards = torch.tensor([[1.0, 0.1, 0.1, 0.1], [1.0, 1.0, 1.0, 0.1]])  # 0.9 accuracy + 0.1 format
    >>> reweighted_advantage(rewards, weight=exponential)
    tensor([[ 1.4290, -0.4763, -0.4763, -0.4763],
            [ 0.2889,  0.2889,  0.2889, -0.8667]])
    """
    _check(rewards, weight, correctness, success_threshold, normalize, prompt_index, valid)
    batch = measure(rewards, prompt_index, valid)
    weights = _weights(batch, rewards, weight, correctness, success_threshold, normalize)
    # The unit in two steps, as weight * unit may leave the range where the advantage does not.
    advantages = (
        batch.prompts.centred * (weights * batch.prompts.unit.clamp(max=1.0)) * batch.prompts.unit.clamp(min=1.0)
    )
    return restore(exact.to_result(advantages, batch.dtype), batch)


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
    """Return the weights of ``reweighted_advantage``, which multiply any other centred and scaled advantage as well.

    Arguments, errors and source are those of ``reweighted_advantage``.

    Returns:
        A weight for each prompt, ``(B,)``, or repeated to ``(N,)`` with ``prompt_index``; float64 for float64 rewards,
        else float32. Always finite.

    >>> from durian_adv import durian_advantage
    >>> from durian_adv.weightings import linear
    >>> rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    >>> weights = accuracy_weights(rewards, weight=linear)
    >>> weights
    tensor([1.7500, 1.2500])
    >>> durian_advantage(rewards, visual_entropy=torch.tensor([3.0, 2.0])) * weights[:, None]
    tensor([[ 2.6250, -0.8750, -0.8750, -0.8750],
            [ 0.6250,  0.6250,  0.6250, -1.8750]])
    """
    _check(rewards, weight, correctness, success_threshold, normalize, prompt_index, valid)
    batch = measure(rewards, prompt_index, valid)
    weights = _weights(batch, rewards, weight, correctness, success_threshold, normalize)
    return restore(exact.to_result(weights, batch.dtype), batch)


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
        raise TypeError(f"weight: expected a function from accuracies (B,) to weights, got {type(weight).__name__}")
    _checks.number("success_threshold", success_threshold)
    if not isinstance(normalize, bool):
        raise TypeError(f"normalize: expected a bool, got {type(normalize).__name__}")
    check_rewards(rewards, prompt_index, valid)
    if correctness is not None:
        _checks.tensor("correctness", correctness)
        _checks.shape("correctness", correctness, rewards.shape, "rewards.shape")
        _checks.same_device("correctness", correctness, "rewards", rewards)


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
    correct = ragged.pack(given.detach(), batch.layout, torch.nan, dtype)
    if correctness is None:
        correct = (correct > success_threshold).to(dtype)
    accuracy = statistics.prompt_means(correct, batch.valid & (correct == correct))  # not NaN
    known = accuracy == accuracy
    weights = weight(torch.where(known, accuracy, 0.5))
    if not isinstance(weights, Tensor):
        raise TypeError(f"weight: expected a function that returns a torch.Tensor, got {type(weights).__name__}")
    weights = _checks.tensor("weight", weights)
    _checks.shape("weight", weights, accuracy.shape, "(B,)")
    weights = weights.to(dtype)
    weights = torch.where(weights.abs() < torch.inf, weights, 0.0)  # which NaN is not either
    if normalize:
        weights = _of_mean_one(weights, batch.prompts.has_signal & known)
    return torch.where(known, weights, 1.0)


def _of_mean_one(weights: Tensor, counted: Tensor) -> Tensor:
    sizes = torch.where(counted, weights.abs(), 0.0)
    largest = exact.nonzero(torch.cat([sizes, sizes.new_zeros(1)]).amax())  # first, as a sum might overflow
    mean = exact.exact_sum(sizes / largest, 0) / counted.sum().clamp(min=1)
    return weights / largest / exact.nonzero(mean)
