"""Group advantages: the prompt's own std, a std shared by buckets of prompts, and their weighted sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from durian_adv._src import checks, exact, scales
from durian_adv._src.buckets import small_numbers
from durian_adv._src.errors import ArgumentError, ArgumentTypeError
from durian_adv._src.layout import Layout, largest, lay_out, pack, spread, unpack_prompts, unpack_rollouts


class Batch(NamedTuple):
    """Rewards in the inner form, measured; and the way back to the caller's form."""

    measured: scales.Measured  # (B,)
    centered: Tensor  # (G, B) or (N,): in units from the prompt's mean, 0 for invalid rewards
    valid: Tensor  # as rewards
    layout: Layout | None  # of the flat form
    shape: torch.Size  # of the caller's rewards
    dtype: torch.dtype  # of the results


def check_rewards(rewards: Tensor, prompt_index: Tensor | None, valid: Tensor | None) -> None:
    """Check rewards in either form and what has their shape."""
    checks.tensor("rewards", rewards)
    if prompt_index is None:
        checks.ndim("rewards", rewards, 2, "(B, G), or (N,) with prompt_index")
    else:
        checks.ndim("rewards", rewards, 1, "(N,) with prompt_index")
        checks.tensor("prompt_index", prompt_index, integer=True)
        checks.shape("prompt_index", prompt_index, rewards.shape, "(N,)")
        checks.same_device("prompt_index", prompt_index, "rewards", rewards)
    if valid is not None:
        checks.tensor("valid", valid, boolean=True)
        checks.shape("valid", valid, rewards.shape, "rewards.shape")
        checks.same_device("valid", valid, "rewards", rewards)


def batch_of(rewards: Tensor, prompt_index: Tensor | None, valid: Tensor | None) -> Batch:
    """Measure each prompt's rewards, which have been checked; non-finite rewards become invalid."""
    rewards = rewards.detach()
    layout = None if prompt_index is None else lay_out(prompt_index)
    values = pack(rewards, layout, torch.nan, exact.working_dtype(rewards.device))
    usable = values.abs() < torch.inf  # which NaN is not either
    if valid is not None:
        usable = usable & pack(valid, layout, False, torch.bool)
    measured, centered = scales.measure(values, usable, layout)
    return Batch(measured, centered, usable, layout, rewards.shape, exact.result_dtype(rewards.dtype))


def restore_rollouts(value: Tensor, batch: Batch) -> Tensor:
    """Round a result for each rollout, ``(G, B)`` or ``(N,)``, in the caller's form."""
    return exact.to_result(unpack_rollouts(value, batch.layout, batch.shape), batch.dtype)


def restore_prompts(value: Tensor, batch: Batch) -> Tensor:
    """Bring a result for each prompt, ``(B,)``, into the caller's form."""
    return unpack_prompts(value, batch.layout)


def scaled(batch: Batch, factor: Tensor) -> Tensor:
    """Return ``centered * factor (B,)`` in the caller's form: estimators of one factor end here."""
    factor = factor.clamp(max=torch.finfo(factor.dtype).max)  # as 0 * inf is not a number
    return restore_rollouts(batch.centered * spread(factor, batch.layout), batch)


def largest_valid(labels: Tensor, batch: Batch) -> Tensor:
    """Return one label per prompt, int64 ``(B,)``: in the flat form the largest of its valid rollouts'."""
    labels = labels.long()
    if batch.layout is None:
        return labels
    return largest(torch.where(batch.valid, labels, torch.iinfo(torch.int64).min), batch.layout)


def grpo_advantage(
    rewards: Tensor,
    *,
    prompt_index: Tensor | None = None,
    valid: Tensor | None = None,
    eps: float = 1e-6,
    correction: int = 1,
) -> Tensor:
    r"""Rewards centered and scaled by their own prompt's mean and std.

    .. math:: A_{s,i} = \frac{r_{s,i} - \operatorname{mean}_i r_{s,\cdot}}{\operatorname{std}_i r_{s,\cdot} + \epsilon}

    Args:
        rewards: ``(B, G)``, or ``(N,)`` with ``prompt_index``; any real dtype. Non-finite rewards are invalid.
        prompt_index: ``(N,)`` integers, any values in any order; rollouts of one prompt share a value.
        valid: bool, the shape of rewards; False where a rollout does not count.
        eps: added to the std, in units of rewards; finite and not negative.
        correction: the std divides by the number of rollouts minus this, 0 or 1.

    Returns:
        The shape of rewards; float64 for float64 rewards, else float32. Exactly 0.0 for invalid rollouts and for
        prompts without signal (all valid rewards equal, or fewer than two).

    Raises:
        TypeError, ValueError: a wrong dtype, shape or number, with the argument's name.

    Source: Durian (arXiv 2602.21743), eq. 2; GRPO (arXiv 2402.03300).

    >>> import torch
    >>> grpo_advantage(torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.9, 0.9, 0.9, 0.9]]))
    tensor([[ 0.5000,  0.5000,  0.5000, -1.5000],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    eps, correction = checks.epsilon(eps), checks.correction(correction)
    check_rewards(rewards, prompt_index, valid)
    batch = batch_of(rewards, prompt_index, valid)
    own = scales.own_std(batch.measured, correction)
    return scaled(batch, scales.factor(batch.measured, own, eps))


def shared_std_advantage(
    rewards: Tensor,
    buckets: Tensor,
    *,
    prompt_index: Tensor | None = None,
    valid: Tensor | None = None,
    eps: float = 1e-6,
    correction: int = 1,
) -> Tensor:
    r"""Rewards centered by their own prompt's mean and scaled by a std that the prompts of a bucket share.

    .. math:: A_{s,i} = \frac{r_{s,i} - \operatorname{mean}_i r_{s,\cdot}}{\operatorname{std}(R_{b(s)}) + \epsilon}

    :math:`R_b` holds all rewards of the bucket's prompts, and its std is taken around the bucket's mean. One bucket for
    all prompts gives "group mean, batch std"; one prompt per bucket gives GRPO.

    Args:
        rewards: ``(B, G)``, or ``(N,)`` with ``prompt_index``; any real dtype. Non-finite rewards are invalid.
        buckets: ``(B,)``, or ``(N,)`` with ``prompt_index``: integers of any value, one per prompt. In the flat form
            the largest of a prompt's valid rollouts counts, should they differ.
        prompt_index: ``(N,)`` integers, any values in any order; rollouts of one prompt share a value.
        valid: bool, the shape of rewards; False where a rollout does not count.
        eps: added to the std, in units of rewards; finite and not negative.
        correction: the std divides by the number of the bucket's rewards minus this, 0 or 1.

    Returns:
        The shape of rewards; float64 for float64 rewards, else float32. Exactly 0.0 for invalid rollouts and for
        prompts without signal.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or number, with the argument's name.

    Source: Durian (arXiv 2602.21743), eqs. 11-13 and 17-19.

    >>> import torch
    >>> rewards = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    >>> shared_std_advantage(rewards, torch.tensor([7, 7]))
    tensor([[ 0.4830,  0.4830,  0.4830, -1.4491],
            [ 0.9661,  0.9661, -0.9661, -0.9661]])
    """
    eps, correction = checks.epsilon(eps), checks.correction(correction)
    check_rewards(rewards, prompt_index, valid)
    buckets = checks.tensor("buckets", buckets, integer=True)
    if prompt_index is None:
        checks.shape("buckets", buckets, rewards.shape[:1], "(B,)")
    else:
        checks.shape("buckets", buckets, rewards.shape, "(N,)")
    checks.same_device("buckets", buckets, "rewards", rewards)
    batch = batch_of(rewards, prompt_index, valid)
    labels = largest_valid(buckets, batch)
    shared = scales.bucket_std(batch.measured, small_numbers(labels)[None], len(labels), correction)
    return scaled(batch, scales.factor(batch.measured, shared, eps)[0])


def combine_advantages(advantages: Sequence[Tensor | None], weights: Sequence[float]) -> Tensor:
    r"""Weighted sum of advantages.

    .. math:: A = \sum_c w_c A_c

    A component that is None is left out, and the weights of the others are scaled up to the same sum.

    Args:
        advantages: tensors of one shape, or None; at least one tensor.
        weights: as many finite numbers, none negative.

    Returns:
        The common shape; float64 if one of the tensors is, else float32.

    Raises:
        TypeError, ValueError: shapes that differ, a wrong number of weights, weights that are negative, not finite, or
            sum to zero over the components that are left.

    Source: Durian (arXiv 2602.21743), eq. 20.

    >>> import torch
    >>> a, b = torch.tensor([1.0, -1.0]), torch.tensor([2.0, -2.0])
    >>> combine_advantages((a, b), (0.5, 0.25))
    tensor([ 1., -1.])
    >>> combine_advantages((a, None), (0.5, 0.25))
    tensor([ 0.7500, -0.7500])
    """
    if isinstance(advantages, Tensor) or not isinstance(advantages, Sequence):
        raise ArgumentTypeError("advantages", "a sequence of tensors", type(advantages).__name__)
    named = [(f"advantages[{i}]", a) for i, a in enumerate(advantages) if a is not None]
    present = [checks.tensor(name, a) for name, a in named]
    if not present:
        raise ArgumentError("advantages", "at least one tensor", f"{len(advantages)} times None")
    for name, a in named[1:]:
        checks.shape(name, a, present[0].shape, f"{named[0][0]}.shape")
        checks.same_device(name, a, named[0][0], present[0])
    scale = left_weights(checks.weights(weights, len(advantages)), [a is not None for a in advantages])
    dtype = torch.float64 if any(a.dtype == torch.float64 for a in present) else torch.float32
    working = exact.working_dtype(present[0].device)
    total = weighted_sum([a.to(working) for a in present], scale)
    return exact.to_result(total, dtype)


def left_weights(weights: tuple[float, ...], present: Sequence[bool]) -> list[float]:
    """Return the weights of the components that are present, scaled up to the sum of all."""
    left = [weight for weight, has_input in zip(weights, present, strict=True) if has_input]
    if sum(left) == 0:
        raise ArgumentError("weights", "a positive sum over the components that have an input", weights)
    return left if all(present) else [weight / sum(left) * sum(weights) for weight in left]


def weighted_sum(terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Add ``weight * term`` in the given order (eq. 20)."""
    total = terms[0] * weights[0]
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        total = total + term * weight
    return total
