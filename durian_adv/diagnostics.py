"""Metrics of a batch: what the normalization saw and what it did, as plain numbers for any logger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from durian_adv._src import checks, exact
from durian_adv._src.advantages import Batch, batch_of, check_rewards, largest_valid
from durian_adv._src.buckets import num_buckets
from durian_adv._src.durian import DurianComponents, check_of_prompts, check_rollout_index
from durian_adv._src.errors import ArgumentError, ArgumentTypeError
from durian_adv._src.layout import (
    Layout,
    Rollouts,
    by_prompt,
    count,
    lay_out,
    one_row_per_rollout,
    pack,
    sum_of_any_size,
)
from durian_adv._src.options import NO_SIGNAL


class PromptOutcomes(NamedTuple):
    """How each prompt's rollouts came out, ``(B,)``: rows in their order, or prompts by increasing ``prompt_index``."""

    rollouts: Tensor  # int64: valid ones
    correct: Tensor  # int64: of these, rewards above the threshold
    effective: Tensor  # bool: valid rewards are not all equal
    extreme_success: Tensor  # bool: effective, 3 valid rollouts or more, all but one correct
    extreme_failure: Tensor  # bool: effective, 3 valid rollouts or more, one correct


# prompts with a score that a bucket should have on average: under 2, the std they share is one prompt's, or smaller
FEWEST_PROMPTS = 2

# a kind of group, and how it is called in the names of metrics; "other" are the effective groups that are not extreme
GROUP_KINDS = ("extreme_failure", "other", "extreme_success")


def durian_metrics(
    components: DurianComponents,
    rewards: Tensor,
    *,
    prompt_index: Tensor | None = None,
    valid: Tensor | None = None,
    success_threshold: float = 0.5,
    category: Tensor | None = None,
    rollout_index: Tensor | None = None,
    no_signal: str = "keep",
) -> dict[str, float]:
    r"""Turn components and the rewards they came from into a flat dict of numbers, all keys under ``durian/``.

    A prompt is *effective* if its valid rewards are not all equal. With n >= 3 valid rollouts, an effective prompt is
    an *extreme success* if n - 1 of them are correct and an *extreme failure* if one is (Appendix A, there n = 8).

    * ``prompts``, ``rollouts``, ``reward_mean``: prompts with a valid rollout, valid rollouts, their mean reward;
    * ``no_signal_share``: share of prompts that are not effective; ``effective``, ``extreme_success``,
      ``extreme_failure``: numbers of prompts; ``extreme_ratio``: extremes over effective;
    * ``advantage_abs_max``, ``grpo_abs_max``, ``perceptual_abs_max``, ``reasoning_abs_max``, ``category_abs_max``: the
      largest absolute value;
    * ``moved_from_grpo``: :math:`\lVert A - A_{grpo} \rVert / \lVert A_{grpo} \rVert`, and ``cosine_with_grpo``;
      ``perceptual_moved_from_grpo``, ``perceptual_cosine_with_grpo``, and those of ``reasoning`` and ``category``: the
      same of one component instead of the sum, so which of them moves the advantages, and how far;
    * ``update_share_extreme_failure``, ``update_share_extreme_success``, ``update_share_other``: each kind's share of
      :math:`\sum |A|`, of all effective prompts; ``grpo_update_share_...``: the same of GRPO's advantages;
    * ``prompt_std_min``, ``prompt_std_mean``: over effective prompts;
    * ``visual_entropy_mean``, ``visual_entropy_std``, ``confidence_mean``, ``confidence_std``: over prompts with a
      finite score; ``visual_entropy_missing_share``, ``confidence_missing_share``: NaN among the prompts, with
      ``no_signal="drop"`` among those that have signal, as the others have no score then;
    * ``entropy_bucket_K_prompts``, ``confidence_bucket_K_prompts``: prompts in bucket K, without those that have no
      score, up to the last bucket that holds one; ``perceptual_std_K``, ``reasoning_std_K``: the std they share
      (absent for an empty bucket); ``entropy_bucket_K_error_share``, ``confidence_bucket_K_error_share``: its share of
      the rollouts that are not correct, of all prompts that have a score (Appendix B);
    * ``entropy_bucket_prompts_min``, ``confidence_bucket_prompts_min``: prompts in the smallest bucket that holds any;
    * ``category_std_min``, ``category_std_mean``, ``category_std_max``: over effective prompts; ``categories``,
      ``category_prompts_min``: how many categories hold a prompt, and prompts in the smallest of them.

    What belongs to a component that was left out is absent, as are the last two without ``category``. What is not
    defined is NaN: means, shares and extremes of nothing, and distances and angles from advantages that are all 0. All
    others are finite; what lies beyond float64's range is its largest number. The numbers are taken on the host.

    Args:
        components: from ``durian_components``.
        rewards: the rewards given to it, ``(B, G)``, or ``(N,)`` with ``prompt_index``.
        prompt_index: as given to it.
        valid: as given to it.
        success_threshold: a rollout is correct if its reward exceeds this.
        category: as given to it.
        rollout_index: as given to it; a rollout counts once.
        no_signal: as given to it.

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
    _check_components(components)
    success_threshold = checks.number("success_threshold", success_threshold)
    check_rewards(rewards, prompt_index, valid)
    checks.shape("components.advantages", components.advantages, rewards.shape, "rewards.shape")
    if category is not None:
        check_of_prompts("category", checks.tensor("category", category, integer=True), rewards)
    check_rollout_index(rollout_index, prompt_index, rewards)
    checks.choice("no_signal", no_signal, NO_SIGNAL)
    given = Rollouts(rewards.detach(), None, None, prompt_index, valid, category, rollout_index)
    given, components = Rollouts._make(map(_on_host, given)), DurianComponents._make(map(_on_host, components))
    if rollout_index is not None:
        given, rows = one_row_per_rollout(given)
        components = DurianComponents._make(None if value is None else value[rows.first] for value in components)
    batch = batch_of(given.rewards, given.prompt_index, given.valid)
    outcomes = _outcomes(batch, given.rewards, success_threshold)
    counted = outcomes.effective if no_signal == "drop" else outcomes.rollouts > 0
    found = (
        _of_groups(batch, outcomes)
        | _of_advantages(components, batch, outcomes)
        | _of_update(components, batch, outcomes)
        | _of_scores("visual_entropy", "entropy_bucket", "perceptual_std", components, batch, outcomes, counted)
        | _of_scores("confidence", "confidence_bucket", "reasoning_std", components, batch, outcomes, counted)
        | _of_categories(components, given.category, batch, outcomes)
    )
    largest = torch.finfo(torch.float64).max
    return {f"durian/{name}": float(value.double().clamp(-largest, largest)) for name, value in found.items()}


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
    return _outcomes(batch_of(rewards, prompt_index, valid), rewards.detach(), success_threshold)


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
        float64 (float32 on devices without it), ``(B,)``; finite.

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
    working = exact.working_dtype(advantages.device)
    layout = None if prompt_index is None else lay_out(prompt_index)
    return exact.to_result(_update(advantages.detach(), layout), working)


def cosine(first: Tensor, second: Tensor) -> float:
    """Return the cosine of the angle between two tensors of advantages of one shape.

    Args:
        first: of any shape.
        second: of the same shape.

    Returns:
        A number from -1 to 1; NaN where one of them is all 0, or not finite.

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
    fewest: float = FEWEST_PROMPTS,
) -> str | None:
    """Say which buckets are too many for the prompts of a batch; None if none are, or no prompt has a score.

    Args:
        components: from ``durian_components`` or ``windowed_components``.
        prompt_index: as given to it.
        entropy_quantiles: as given to it.
        num_confidence_buckets: as given to it.
        window: how many prompts the window may hold.
        fewest: as in ``too_few_prompts``.

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
    _check_components(components)
    if prompt_index is not None:
        checks.tensor("prompt_index", prompt_index, integer=True)
        checks.shape("prompt_index", prompt_index, components.has_signal.shape, "(N,)")
    entropy_levels = checks.levels("entropy_quantiles", entropy_quantiles)
    confidence_levels = checks.bucket_count("num_confidence_buckets", num_confidence_buckets)
    counts = {}
    for name, score, levels in (
        ("visual entropy", components.visual_entropy, entropy_levels),
        ("confidence", components.confidence, confidence_levels),
    ):
        if score is not None:
            scored = ~score.isnan()
            prompts = int(scored.sum()) if prompt_index is None else len(torch.unique(prompt_index[scored]))
            counts[name] = (prompts, num_buckets(levels) - 1)
    return too_few_prompts(counts, window=window, fewest=fewest)


def too_few_prompts(
    counts: Mapping[str, tuple[float, int]], *, window: int = 0, fewest: float = FEWEST_PROMPTS
) -> str | None:
    """Say which buckets are too many for so many prompts, the one rule for it; None if none are.

    Args:
        counts: for each score, such as ``"confidence"``, how many prompts of a batch have it (0: its component has no
            input, which is no fault), and in how many buckets they are.
        window: how many prompts of a window come on top.
        fewest: prompts, those of the window included, that a bucket should have on average.

    Returns:
        A sentence for a log or a warning, or None.

    Raises:
        TypeError, ValueError: a wrong type or number, with the argument's name.

    >>> too_few_prompts({"confidence": (24, 12), "visual entropy": (5, 3)}).split(":")[0]
    '5 prompts with visual entropy for 3 buckets'
    >>> too_few_prompts({"confidence": (24, 12)})
    """
    window = checks.integer("window", window, "an integer >= 0")
    if window < 0:
        raise ArgumentError("window", "an integer >= 0", window)
    fewest = checks.number("fewest", fewest)
    few = [
        f"{prompts:g} prompts with {name} for {buckets} buckets"
        for name, (prompts, buckets) in counts.items()
        if prompts and prompts + window < fewest * buckets
    ]
    if not few:
        return None
    beside = f", beside a window of {window}" if window else ""
    return (
        f"{' and '.join(few)}{beside}: with fewer than {fewest:g} prompts per bucket, the std they share is that of "
        "one or a few prompts, or smaller than any prompt's, so advantages may exceed GRPO's. Use more prompts per "
        "batch, fewer buckets, or a window of recent prompts."
    )


def _check_components(components: object) -> None:
    if not isinstance(components, DurianComponents):
        raise ArgumentTypeError("components", "DurianComponents", type(components).__name__)


def _outcomes(batch: Batch, rewards: Tensor, success_threshold: float) -> PromptOutcomes:
    # 8-bit floats know no comparison
    correct = pack(rewards, batch.layout, torch.nan, exact.working_dtype(rewards.device)) > success_threshold
    hits, size = count(correct & batch.valid, batch.layout), count(batch.valid, batch.layout)
    effective = batch.measured.has_signal
    many = effective & (size > 2)
    return PromptOutcomes(size, hits, effective, many & (hits == size - 1), many & (hits == 1))


def _update(advantages: Tensor, layout: Layout | None) -> Tensor:
    packed = pack(advantages, layout, 0.0, exact.working_dtype(advantages.device))
    return sum_of_any_size(packed.abs(), layout)


def _on_host(value: Tensor | None) -> Tensor | None:
    return value.cpu() if isinstance(value, Tensor) else value


# --- groups of metrics, without the prefix ------------------------------------------------------------


def _of_groups(batch: Batch, outcomes: PromptOutcomes) -> dict[str, Tensor]:
    measured, size, effective = batch.measured, outcomes.rollouts, outcomes.effective
    used = size > 0
    means = (measured.middle + measured.unit * measured.mean).clamp(measured.low, measured.high)
    return {
        "prompts": used.sum(),
        "rollouts": size.sum(),
        "reward_mean": _mean(means, size),
        "no_signal_share": _mean(~effective, used),
        "effective": effective.sum(),
        "extreme_success": outcomes.extreme_success.sum(),
        "extreme_failure": outcomes.extreme_failure.sum(),
        "extreme_ratio": _mean(outcomes.extreme_success | outcomes.extreme_failure, effective),
    }


def _of_advantages(components: DurianComponents, batch: Batch, outcomes: PromptOutcomes) -> dict[str, Tensor]:
    grpo, any_rollout = components.grpo, batch.valid.any()
    found = {
        "moved_from_grpo": _moved(grpo, components.advantages),
        "cosine_with_grpo": _cosine(grpo, components.advantages),
    }
    own_std = by_prompt(components.prompt_std, batch.layout)
    found["prompt_std_min"] = _smallest(own_std, outcomes.effective)
    found["prompt_std_mean"] = _mean(own_std, outcomes.effective)
    for name in ("advantages", "grpo", "perceptual", "reasoning", "category"):
        values = getattr(components, name)
        if values is not None:
            found[f"{name.removesuffix('s')}_abs_max"] = torch.where(any_rollout, _largest(values.abs()), torch.nan)
            if name not in ("advantages", "grpo"):
                found[f"{name}_moved_from_grpo"] = _moved(grpo, values)
                found[f"{name}_cosine_with_grpo"] = _cosine(grpo, values)
    return found


def _of_update(components: DurianComponents, batch: Batch, outcomes: PromptOutcomes) -> dict[str, Tensor]:
    found = {}
    for prefix, values in (("", components.advantages), ("grpo_", components.grpo)):
        largest = exact.safe_divisor(_largest(values.abs()).double())  # first, as sums of the largest leave the range
        update = _update(values.double() / largest, batch.layout)
        for kind, members in group_kinds(outcomes).items():
            found[f"{prefix}update_share_{kind}"] = _mean(members, update)
    return found


def _of_scores(
    score_name: str,
    bucket_name: str,
    std_name: str,
    components: DurianComponents,
    batch: Batch,
    outcomes: PromptOutcomes,
    used: Tensor,
) -> dict[str, Tensor]:
    """``used``: the prompts that quantiles are taken over."""
    if getattr(components, score_name) is None:
        return {}
    fields = (getattr(components, name) for name in (score_name, bucket_name, std_name))
    score, bucket, std = (by_prompt(field, batch.layout) for field in fields)
    score = score.double()
    finite, scored = used & score.isfinite(), used & ~score.isnan()
    mean = _mean(score, finite)
    found = {
        f"{score_name}_mean": mean,
        f"{score_name}_std": _spread(score, mean, finite),
        f"{score_name}_missing_share": _mean(score.isnan(), used),
    }
    wrong = torch.where(scored, outcomes.rollouts - outcomes.correct, 0)
    for number in range(int(_largest(torch.where(scored, bucket + 1, 0)))):
        members = scored & (bucket == number)
        found[f"{bucket_name}_{number}_prompts"] = members.sum()
        found[f"{bucket_name}_{number}_error_share"] = _mean(members, wrong)
        if members.any():
            found[f"{std_name}_{number}"] = _mean(std, members)
    found[f"{bucket_name}_prompts_min"] = _fewest(bucket[scored])
    return found


def _of_categories(
    components: DurianComponents, category: Tensor | None, batch: Batch, outcomes: PromptOutcomes
) -> dict[str, Tensor]:
    found = {}
    if components.category_std is not None:
        std, effective = by_prompt(components.category_std, batch.layout), outcomes.effective
        found["category_std_min"] = _smallest(std, effective)
        found["category_std_mean"] = _mean(std, effective)
        found["category_std_max"] = -_smallest(-std, effective)
    if category is not None:
        used = largest_valid(category, batch)[outcomes.rollouts > 0]
        found["categories"] = torch.tensor(len(torch.unique(used)), device=used.device)
        found["category_prompts_min"] = _fewest(used)
    return found


# --- numbers of many, NaN where they are not defined ---------------------------------------------------


def _sum(values: Tensor) -> Tensor:
    """Sum all values on grids, so that the order of a batch does not show in its metrics."""
    values = values.double().flatten()
    return exact.row_sum_of_any_size(values) if values.numel() else values.new_zeros(())


def _norm(values: Tensor) -> Tensor:
    return _sum(values**2).sqrt()


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    weight = weight.double()
    members, values = weight > 0, values.double()
    low, high = _smallest(values, members), -_smallest(-values, members)
    values = torch.where(members, values, 0.0)
    # sums of the largest numbers leave the range, and a mean that is rounded may leave that of its values
    unit, most = (exact.safe_divisor(exact.power_of_two(_largest(x.abs()))) for x in (values, weight))
    weight = weight / most
    mean = _sum(values / unit * weight) / _sum(weight) * unit
    return mean.clamp(low, high)


def _spread(values: Tensor, mean: Tensor, members: Tensor) -> Tensor:
    """Return the standard deviation of the members around their mean."""
    unit = exact.safe_divisor(exact.power_of_two(_largest(torch.where(members, values.abs(), 0.0))))
    return _mean((values / unit - mean / unit) ** 2, members).sqrt() * unit


def _fewest(labels: Tensor) -> Tensor:
    """Return how often the rarest label occurs."""
    counts = torch.unique(labels, return_counts=True)[1].double()
    return _smallest(counts, torch.ones_like(counts, dtype=torch.bool))


def _largest(values: Tensor) -> Tensor:
    return values.amax() if values.numel() else values.new_zeros(())


def _smallest(values: Tensor, members: Tensor) -> Tensor:
    smallest = -_largest(torch.where(members, -values, -torch.inf))
    return torch.where(members.any(), smallest, torch.nan)


def _moved(start: Tensor, end: Tensor) -> Tensor:
    start, end = start.double(), end.double()
    size = _largest(start.abs())
    # squares of what is far from 1 leave the range
    both = exact.safe_divisor(torch.maximum(size, _largest(end.abs())))
    return _norm(end / both - start / both) * (both / size) / _norm(start / exact.safe_divisor(size))


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    cosine = _sum(_direction(first.double()) * _direction(second.double())).clamp(-1, 1)
    return torch.where(first.any() & second.any(), cosine, torch.nan)


def _direction(values: Tensor) -> Tensor:
    values = values / exact.safe_divisor(_largest(values.abs()))
    return values / exact.safe_divisor(_norm(values))
