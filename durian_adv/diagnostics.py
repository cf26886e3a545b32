"""Metrics of a batch: what the normalisation saw and what it did, as plain numbers for any logger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from durian_adv._src import checks, exact
from durian_adv._src.advantages import Batch, check_rewards, measure
from durian_adv._src.buckets import num_buckets
from durian_adv._src.durian import DurianComponents
from durian_adv._src.layout import Layout, lay_out, pack


class PromptOutcomes(NamedTuple):
    """How each prompt's rollouts came out, ``(B,)``: rows in their order, or prompts by increasing ``prompt_index``."""

    rollouts: Tensor  # int64: valid ones
    correct: Tensor  # int64: of these, rewards above the threshold
    effective: Tensor  # bool: valid rewards are not all equal
    extreme_success: Tensor  # bool: effective, 3 valid rollouts or more, all but one correct
    extreme_failure: Tensor  # bool: likewise, one correct


# a kind of group, and how it is called in the names of metrics; "other" are the effective groups that are not extreme
GROUP_KINDS = ("extreme_failure", "other", "extreme_success")


def durian_metrics(
    components: DurianComponents,
    rewards: Tensor,
    *,
    prompt_index: Tensor | None = None,
    valid: Tensor | None = None,
    success_threshold: float = 0.5,
) -> dict[str, float]:
    r"""Turn components and the rewards they came from into a flat dict of numbers, all keys under ``durian/``.

    A prompt is *effective* if its valid rewards are not all equal. With n >= 3 valid rollouts, an effective prompt is
    an *extreme success* if n - 1 of them are correct and an *extreme failure* if one is (Appendix A, there n = 8).

    * ``prompts``, ``rollouts``, ``reward_mean``: prompts with a valid rollout, valid rollouts, their mean reward;
    * ``no_signal_share``: share of prompts that are not effective; ``effective``, ``extreme_success``,
      ``extreme_failure``: numbers of prompts; ``extreme_ratio``: extremes over effective (0 without any);
    * ``advantage_abs_max``, ``grpo_abs_max``, ``perceptual_abs_max``, ``reasoning_abs_max``: the largest size;
    * ``moved_from_grpo``: :math:`\lVert A - A_{grpo} \rVert / \lVert A_{grpo} \rVert`, and ``cosine_with_grpo``;
      ``perceptual_moved_from_grpo``, ``perceptual_cosine_with_grpo`` and likewise ``reasoning_...``: the same of one
      component instead of the sum, so which of them moves the advantages, and how far;
    * ``update_share_extreme_failure``, ``update_share_extreme_success``, ``update_share_other``: each kind's share of
      :math:`\sum |A|`, of all effective prompts; ``grpo_update_share_...``: the same of GRPO's advantages;
    * ``prompt_std_min``, ``prompt_std_mean``: over effective prompts;
    * ``visual_entropy_mean``, ``visual_entropy_std``, ``confidence_mean``, ``confidence_std``: over prompts with a
      finite score; ``visual_entropy_missing_share``, ``confidence_missing_share``: NaN among the prompts;
    * ``entropy_bucket_K_prompts``, ``confidence_bucket_K_prompts``: prompts in bucket K, without those that have no
      score, up to the last bucket that holds one; ``perceptual_std_K``, ``reasoning_std_K``: the std they share
      (absent for an empty bucket); ``entropy_bucket_K_error_share``, ``confidence_bucket_K_error_share``: its share of
      the rollouts that are not correct, of all prompts that have a score (Appendix B);
    * ``entropy_bucket_prompts_min``, ``confidence_bucket_prompts_min``: prompts in the smallest bucket that holds any.

    What belongs to a component that was left out is absent. Means of nothing are 0. The numbers are taken on the host.

    Args:
        components: from ``durian_components``.
        rewards: the rewards given to it, ``(B, G)``, or ``(N,)`` with ``prompt_index``.
        prompt_index: as given to it.
        valid: as given to it.
        success_threshold: a rollout is correct if its reward exceeds this.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or number, with the argument's name.

    Source: Durian (arXiv 2602.21743), Appendices A and B.

    >>> import torch
    >>> from durian_adv import durian_components
    >>> rewards = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    >>> metrics = durian_metrics(durian_components(rewards), rewards)
    >>> metrics["durian/effective"], metrics["durian/extreme_success"], metrics["durian/extreme_failure"]
    (3.0, 1.0, 1.0)
    >>> round(metrics["durian/update_share_extreme_failure"], 3)  # 3 of 3 + 3 + 3.46
    0.317
    """
    if not isinstance(components, DurianComponents):
        raise TypeError(f"components: expected DurianComponents, got {type(components).__name__}")
    success_threshold = checks.number("success_threshold", success_threshold)
    check_rewards(rewards, prompt_index, valid)
    checks.shape("components.advantages", components.advantages, rewards.shape, "rewards.shape")
    components, rewards = DurianComponents._make(map(_on_host, components)), rewards.detach().cpu()
    batch = measure(rewards, _on_host(prompt_index), _on_host(valid))
    outcomes = _outcomes(batch, rewards, success_threshold)
    size, effective = outcomes.rollouts, outcomes.effective
    there, wrong = size > 0, size - outcomes.correct

    def by_prompt(value: Tensor) -> Tensor:
        if batch.layout is None:
            return value
        return value.new_zeros(batch.layout.num_prompts).index_copy(0, batch.layout.column, value)

    found = {
        "prompts": there.sum(),
        "rollouts": size.sum(),
        "reward_mean": _mean(batch.prompts.middle + batch.prompts.unit * batch.prompts.mean, size),
        "no_signal_share": _mean(~effective, there),
        "effective": effective.sum(),
        "extreme_success": outcomes.extreme_success.sum(),
        "extreme_failure": outcomes.extreme_failure.sum(),
        "extreme_ratio": _mean(outcomes.extreme_success | outcomes.extreme_failure, effective),
        "moved_from_grpo": _moved(components.grpo, components.advantages),
        "cosine_with_grpo": _cosine(components.grpo, components.advantages),
        "prompt_std_min": _smallest(by_prompt(components.prompt_std), effective),
        "prompt_std_mean": _mean(by_prompt(components.prompt_std), effective),
    }
    for name in ("advantages", "grpo", "perceptual", "reasoning"):
        values = getattr(components, name)
        if values is not None:
            found[f"{name.removesuffix('s')}_abs_max"] = _largest(values.abs())
            if name in ("perceptual", "reasoning"):
                found[f"{name}_moved_from_grpo"] = _moved(components.grpo, values)
                found[f"{name}_cosine_with_grpo"] = _cosine(components.grpo, values)
    for prefix, values in (("", components.advantages), ("grpo_", components.grpo)):
        update = _update(values, batch.layout)
        for kind, members in group_kinds(outcomes).items():
            found[f"{prefix}update_share_{kind}"] = _mean(members, update)

    for score_name, bucket_name, std_name in (
        ("visual_entropy", "entropy_bucket", "perceptual_std"),
        ("confidence", "confidence_bucket", "reasoning_std"),
    ):
        if getattr(components, score_name) is None:
            continue
        score = by_prompt(getattr(components, score_name)).double()
        finite = there & score.isfinite()
        mean = _mean(torch.where(finite, score, 0.0), finite)
        found[f"{score_name}_mean"] = mean
        found[f"{score_name}_std"] = _mean(torch.where(finite, score - mean, 0.0) ** 2, finite).sqrt()
        found[f"{score_name}_missing_share"] = _mean(score.isnan(), there)
        scored = there & ~score.isnan()
        bucket, std = by_prompt(getattr(components, bucket_name)), by_prompt(getattr(components, std_name))
        for number in range(int(_largest(torch.where(scored, bucket + 1, 0)))):
            members = scored & (bucket == number)
            found[f"{bucket_name}_{number}_prompts"] = members.sum()
            found[f"{bucket_name}_{number}_error_share"] = _mean(members, torch.where(scored, wrong, 0))
            if members.any():
                found[f"{std_name}_{number}"] = _mean(std, members)
        _, counts = torch.unique(bucket[scored], return_counts=True)
        found[f"{bucket_name}_prompts_min"] = counts.amin() if len(counts) else torch.tensor(0)
    return {f"durian/{name}": float(value) for name, value in found.items()}


def prompt_outcomes(
    rewards: Tensor,
    *,
    prompt_index: Tensor | None = None,
    valid: Tensor | None = None,
    success_threshold: float = 0.5,
) -> PromptOutcomes:
    """Count each prompt's valid and correct rollouts, and tell effective and extreme prompts from others.

    Arguments and errors are those of ``durian_metrics``. Source: Durian (arXiv 2602.21743), Appendix A.

    Returns:
        ``PromptOutcomes``.

    >>> import torch
    >>> outcomes = prompt_outcomes(torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]))
    >>> outcomes.correct, outcomes.extreme_success
    (tensor([3, 2, 0]), tensor([ True, False, False]))
    """
    success_threshold = checks.number("success_threshold", success_threshold)
    check_rewards(rewards, prompt_index, valid)
    return _outcomes(measure(rewards, prompt_index, valid), rewards.detach(), success_threshold)


def group_kinds(outcomes: PromptOutcomes) -> dict[str, Tensor]:
    """Return, for each of ``GROUP_KINDS``, which prompts are of that kind, bool ``(B,)``; the others have no signal.

    Args:
        outcomes: from ``prompt_outcomes``.

    Returns:
        A dict of ``"extreme_failure"``, ``"other"`` and ``"extreme_success"``.

    >>> import torch
    >>> group_kinds(prompt_outcomes(torch.tensor([[1.0, 0, 0], [0, 0, 0]])))["extreme_failure"]
    tensor([ True, False])
    """
    extreme = outcomes.extreme_failure | outcomes.extreme_success
    members = (outcomes.extreme_failure, outcomes.effective & ~extreme, outcomes.extreme_success)
    return dict(zip(GROUP_KINDS, members, strict=True))


def update_by_prompt(advantages: Tensor, *, prompt_index: Tensor | None = None) -> Tensor:
    r"""Sum each prompt's :math:`|A|`, how hard it pulls: ``(B,)``, in the order of ``PromptOutcomes``.

    Args:
        advantages: ``(B, G)``, or ``(N,)`` with ``prompt_index``; finite, as every estimator here returns them.
        prompt_index: as in ``durian_components``.

    Returns:
        float64 (float32 on devices without it), ``(B,)``.

    Raises:
        TypeError, ValueError: a wrong dtype or shape, with the argument's name.

    >>> import torch
    >>> update_by_prompt(torch.tensor([[0.5, 0.5, -1.0], [0.0, 0.0, 0.0]]))
    tensor([2., 0.], dtype=torch.float64)
    """
    checks.tensor("advantages", advantages)
    if prompt_index is None:
        checks.ndim("advantages", advantages, 2, "(B, G), or (N,) with prompt_index")
    else:
        checks.ndim("advantages", advantages, 1, "(N,) with prompt_index")
        checks.tensor("prompt_index", prompt_index, integer=True)
        checks.shape("prompt_index", prompt_index, advantages.shape, "(N,)")
        checks.same_device("prompt_index", prompt_index, "advantages", advantages)
    return _update(advantages.detach(), None if prompt_index is None else lay_out(prompt_index))


def cosine(first: Tensor, second: Tensor) -> float:
    """Return the cosine of the angle between two tensors of advantages of one shape; 0 where one is all 0.

    Args:
        first: of any shape.
        second: of the same shape.

    Returns:
        A number from -1 to 1.

    Raises:
        TypeError, ValueError: no tensors, or shapes that differ.

    >>> import torch
    >>> round(cosine(torch.tensor([[1.0, -1.0]]), torch.tensor([[3.0, 0.0]])), 4)
    0.7071
    """
    first, second = checks.tensor("first", first), checks.tensor("second", second)
    checks.shape("second", second, first.shape, "first.shape")
    checks.same_device("second", second, "first", first)
    return float(_cosine(first.cpu(), second.cpu()))


def few_prompts_warning(
    components: DurianComponents,
    *,
    prompt_index: Tensor | None = None,
    entropy_quantiles: int | Sequence[float] = (0.25, 0.75),
    num_confidence_buckets: int = 12,
    window: int = 0,
    fewest: float = 2,
) -> str | None:
    """Say which buckets are too many for the prompts of a batch; None if none are, or no prompt has a score.

    Args:
        components: from ``durian_components`` or ``windowed_components``.
        prompt_index: as given to it.
        entropy_quantiles: as given to it.
        num_confidence_buckets: as given to it.
        window: how many prompts the window may hold.
        fewest: prompts with a score, those of the window included, that a bucket should have on average. Under 2, the
            std they share is one prompt's, or smaller than any prompt's.

    Returns:
        A sentence for a log or a warning, or None.

    Raises:
        TypeError, ValueError: a wrong type or number, with the argument's name.

    >>> import torch
    >>> from durian_adv import durian_components
    >>> parts = durian_components(torch.rand(4, 8), confidence=torch.rand(4))
    >>> few_prompts_warning(parts).split(":")[0]
    '4 prompts with confidence for 12 buckets'
    >>> few_prompts_warning(parts, window=256)
    """
    if not isinstance(components, DurianComponents):
        raise TypeError(f"components: expected DurianComponents, got {type(components).__name__}")
    window = checks.integer("window", window, "an integer >= 0")
    if window < 0:
        raise ValueError(f"window: expected an integer >= 0, got {window}")
    fewest = checks.number("fewest", fewest)
    if prompt_index is not None:
        checks.tensor("prompt_index", prompt_index, integer=True)
        checks.shape("prompt_index", prompt_index, components.has_signal.shape, "(N,)")
    few = []
    for name, score, levels in (
        ("visual entropy", components.visual_entropy, checks.levels("entropy_quantiles", entropy_quantiles)),
        (
            "confidence",
            components.confidence,
            checks.bucket_count("num_confidence_buckets", num_confidence_buckets),
        ),
    ):
        if score is None:
            continue
        scored = ~score.isnan()
        prompts = int(scored.sum()) if prompt_index is None else len(torch.unique(prompt_index[scored]))
        buckets = num_buckets(levels) - 1
        if prompts and prompts + window < fewest * buckets:
            few.append(f"{prompts} prompts with {name} for {buckets} buckets")
    if not few:
        return None
    beside = f", beside a window of {window}" if window else ""
    return (
        f"{' and '.join(few)}{beside}: with fewer than {fewest:g} prompts a bucket, the std they share is that of one "
        "or a few prompts, or smaller than any prompt's, so advantages may exceed GRPO's. Take more prompts a batch, "
        "fewer buckets, or a window of recent prompts."
    )


def _outcomes(batch: Batch, rewards: Tensor, success_threshold: float) -> PromptOutcomes:
    # 8-bit floats know no comparison
    correct = pack(rewards, batch.layout, torch.nan, exact.working_dtype(rewards.device)) > success_threshold
    hits, size, effective = (correct & batch.valid).sum(0), batch.valid.sum(0), batch.prompts.has_signal
    many = effective & (size > 2)
    return PromptOutcomes(size, hits, effective, many & (hits == size - 1), many & (hits == 1))


def _update(advantages: Tensor, layout: Layout | None) -> Tensor:
    packed = pack(advantages, layout, 0.0, exact.working_dtype(advantages.device))
    return exact.row_sum_of_any_size(packed.abs().t())


def _on_host(value: Tensor | None) -> Tensor | None:
    return value.cpu() if isinstance(value, Tensor) else value


def _sum(values: Tensor) -> Tensor:
    """Sum all values on grids, so that the order of a batch does not show in its metrics."""
    values = values.double().flatten()
    return exact.row_sum_of_any_size(values) if values.numel() else values.new_zeros(())


def _norm(values: Tensor) -> Tensor:
    return _sum(values.double() ** 2).sqrt()


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    weight = weight.double()
    values = torch.where(weight > 0, values, 0).double()
    unit = exact.nonzero(exact.power_of_two(_largest(values.abs())))  # sums of the largest numbers leave the range
    return _sum(values / unit * weight) / _sum(weight).clamp(min=1) * unit


def _largest(values: Tensor) -> Tensor:
    return values.amax() if values.numel() else values.new_zeros(())


def _smallest(values: Tensor, members: Tensor) -> Tensor:
    smallest = -_largest(torch.where(members, -values, -torch.inf))
    return torch.where(smallest.isfinite(), smallest, 0.0)


def _moved(start: Tensor, end: Tensor) -> Tensor:
    start, end = start.double(), end.double()
    size = exact.nonzero(_largest(start.abs()))  # squares of what is far from 1 leave the range
    return _norm((end - start) / size) / exact.nonzero(_norm(start / size))


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    return _sum(_direction(first.double()) * _direction(second.double())).clamp(-1, 1)


def _direction(values: Tensor) -> Tensor:
    values = values / exact.nonzero(_largest(values.abs()))
    return values / exact.nonzero(_norm(values))
