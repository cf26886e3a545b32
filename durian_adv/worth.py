"""The worth of an estimator, estimated from a log of rollouts: how much of the best possible step it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from durian_adv._src import checks, exact
from durian_adv._src.advantages import Batch, batch_of, check_rewards, largest_valid
from durian_adv._src.durian import check_of_prompts
from durian_adv._src.errors import ArgumentTypeError
from durian_adv._src.layout import Layout, count, pack, spread, sum_of_any_size

# of the sum of a prompt's |A|: beyond it advantages are not centered by prompt; logs round to few digits
_OFF_CENTER = 0.01


class Worth(NamedTuple):
    """What an estimator is worth on a log, both as a share of the best; NaN where not defined."""

    worth: float
    standard_error: float  # over prompts


def predicted_worth(
    rewards: Tensor,
    advantages: Mapping[str, Tensor],
    *,
    correctness: Tensor | None = None,
    category: Tensor | None = None,
    prompt_index: Tensor | None = None,
    valid: Tensor | None = None,
) -> dict[str, Worth]:
    r"""Estimate what each estimator is worth: its squared signal over its noise, as a share of the best.

    .. math::
        \frac{(\sum_{s,i} A_{s,i} (c_{s,i} - \bar c_s))^2}{\sum_{s,i} A_{s,i}^2 \; \sum_k W_k^2 / V_k}, \quad
        W_k = \sum_{s \in k, i} (r_{s,i} - \bar r_s)(c_{s,i} - \bar c_s), \quad
        V_k = \sum_{s \in k, i} (r_{s,i} - \bar r_s)^2

    c is what counts and k a category of prompts. 1 is the best that one factor per category can reach, so without
    categories an estimator may exceed 1. If noise alone bounds the learning rate, an estimator of worth 0.8 needs
    1 / 0.8 times as many steps as the best; trained with Adam, differences were smaller (docs/law.md, The test).

    It assumes that the noise of a step exceeds its signal, that all prompts pull in one direction and rollouts count
    alike, that c is what should improve, and that the log's prompts are drawn independently. Without ``correctness``
    rewards are what counts: then one factor for all is best whatever the categories, and the number says how far an
    estimator is from it, but nothing of units or noise. The best factor of each single prompt cannot be estimated
    without bias from its few rollouts; that of a category can.

    Both the worth, corrected for its bias, and its standard error are a jackknife's over prompts. It may therefore lie
    slightly above 1; below 0, the estimator's steps reduce what counts.

    Args:
        rewards: ``(B, G)``, or ``(N,)`` with ``prompt_index``, one row per rollout; any real dtype.
        advantages: of each estimator by its name, in the shape of rewards.
        correctness: the shape of rewards: what counts, 0 or 1 or graded; bool or numbers. A prompt with a valid rollout
            whose correctness is not finite is left out. None: rewards.
        category: ``(B,)``, or ``(N,)`` with ``prompt_index``: integers, a known kind of prompt. None: one.
        prompt_index: ``(N,)`` integers, any values in any order; rollouts of one prompt share a value.
        valid: bool, the shape of rewards; False where a rollout does not count.

    Returns:
        By name the worth and its standard error. NaN where fewer than two prompts have signal, where nothing that
        counts differs, and for advantages that are all 0, not finite, or not centered by prompt (REINFORCE++).

    Raises:
        TypeError, ValueError: a wrong dtype or shape, with the argument's name.

    >>> import torch
    >>> from durian_adv import grpo_advantage
    >>> from durian_adv.baselines import dr_grpo_advantage
    >>> draw = torch.Generator().manual_seed(0)
    >>> rewards = (torch.rand(256, 8, generator=draw) < torch.rand(256, 1, generator=draw) ** 2).double()
    >>> found = predicted_worth(rewards, {"grpo": grpo_advantage(rewards), "dr_grpo": dr_grpo_advantage(rewards)})
    >>> f"{found['grpo'].worth:.2f}", f"{found['dr_grpo'].worth:.2f}"
    ('0.98', '1.00')
    """
    _check(rewards, advantages, correctness, category, prompt_index, valid)
    rewards, answered = rewards.detach().cpu(), (rewards if correctness is None else correctness).detach().cpu()
    category, prompt_index, valid = (None if x is None else x.cpu() for x in (category, prompt_index, valid))
    batch, answers = batch_of(rewards, prompt_index, valid), _answers(answered, rewards, prompt_index, valid)
    layout = batch.layout
    known = count(batch.valid & ~answers.valid, layout) == 0
    energy = torch.where(known, _in_one_unit(batch, 2) * batch.measured.squares, 0.0)
    of_answers = answers.centered * spread(_in_one_unit(answers, 1), layout)
    signal = torch.where(known, _in_one_unit(batch, 1) * sum_of_any_size(batch.centered * of_answers, layout), 0.0)
    labels = torch.zeros_like(known, dtype=torch.int64) if category is None else largest_valid(category, batch)
    best = _best(signal, energy, torch.unique(labels, return_inverse=True)[1])
    members = known & (batch.measured.size > 0)
    found = {}
    for name, value in advantages.items():
        a = pack(value.detach().cpu(), layout, 0.0, torch.float64)
        found[name] = _of(torch.where(batch.valid & spread(known, layout), a, 0.0), of_answers, best, members, layout)
    return found


def _of(a: Tensor, answers: Tensor, best: tuple[Tensor, Tensor], members: Tensor, layout: Layout | None) -> Worth:
    """Return the jackknife over prompts of one estimator's worth."""
    largest = a.abs().amax() if a.numel() else a.new_zeros(())
    a = a / exact.safe_divisor(largest)
    energy, off = sum_of_any_size(a * a, layout), sum_of_any_size(a, layout).abs()
    signal = sum_of_any_size(a * answers, layout)
    if not largest.isfinite() or (off > _OFF_CENTER * sum_of_any_size(a.abs(), layout)).any():
        return Worth(torch.nan, torch.nan)
    whole, without = best
    value = _ratio(_total(signal), _total(energy), whole)
    left = _ratio(_total(signal) - signal, _total(energy) - energy, without)
    prompts = members.sum()
    moved = torch.where(members, left - value, 0.0)  # NaN where one prompt holds all signal
    mean = _total(moved) / prompts
    error = (_total(torch.where(members, (moved - mean) ** 2, 0.0)) * (prompts - 1) / prompts).sqrt()
    return Worth(float(value - (prompts - 1) * mean), float(error))


def _ratio(signal: Tensor, energy: Tensor, best: Tensor) -> Tensor:
    defined = (energy > 0) & (best > 0)
    return torch.where(defined, signal * signal.abs() / torch.where(defined, energy * best, 1.0), torch.nan)


def _best(signal: Tensor, energy: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of W^2 / V over categories, of all prompts and without each of them ``(B,)``."""
    categories = len(torch.unique(labels))
    w, v = (exact.segment_sum_of_any_size(x, labels, categories) for x in (signal, energy))
    each = _square_over(w, v)
    return _total(each), _total(each) - each[labels] + _square_over(w[labels] - signal, v[labels] - energy)


def _square_over(signal: Tensor, energy: Tensor) -> Tensor:
    return torch.where(energy > 0, signal**2 / exact.safe_divisor(energy), 0.0)


def _answers(correctness: Tensor, rewards: Tensor, prompt_index: Tensor | None, valid: Tensor | None) -> Batch:
    usable = rewards.double().isfinite() if valid is None else rewards.double().isfinite() & valid
    return batch_of(correctness, prompt_index, usable)


def _in_one_unit(batch: Batch, power: int) -> Tensor:
    """Return each prompt's unit, to a power, in the largest unit of a prompt with signal; 0 without signal."""
    unit = torch.where(batch.measured.has_signal, batch.measured.unit, 0.0)
    return (unit / exact.safe_divisor(unit.amax() if unit.numel() else unit.new_zeros(()))) ** power


def _total(values: Tensor) -> Tensor:
    return exact.row_sum_of_any_size(values) if values.numel() else values.new_zeros(())


def _check(
    rewards: Tensor,
    advantages: Mapping[str, Tensor],
    correctness: Tensor | None,
    category: Tensor | None,
    prompt_index: Tensor | None,
    valid: Tensor | None,
) -> None:
    check_rewards(rewards, prompt_index, valid)
    if not isinstance(advantages, Mapping):
        raise ArgumentTypeError("advantages", "a mapping of names to tensors", type(advantages).__name__)
    named = {f"advantages[{name!r}]": value for name, value in advantages.items()}
    if correctness is not None:
        named["correctness"] = correctness
    for name, value in named.items():
        checks.shape(name, checks.tensor(name, value), rewards.shape, "rewards.shape")
        checks.same_device(name, value, "rewards", rewards)
    if category is not None:
        check_of_prompts("category", checks.tensor("category", category, integer=True), rewards)
