"""Metrics of a batch: what the normalisation saw and what it did, as plain numbers for any logger."""

from __future__ import annotations

import torch
from torch import Tensor

from durian_adv import _checks, exact, ragged
from durian_adv.advantages import check_rewards, measure
from durian_adv.durian import DurianComponents


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
    * ``prompt_std_min``, ``prompt_std_mean``: over effective prompts;
    * ``visual_entropy_mean``, ``visual_entropy_std``, ``confidence_mean``, ``confidence_std``: over prompts with a
      finite score; ``visual_entropy_missing_share``, ``confidence_missing_share``: NaN among the prompts;
    * ``entropy_bucket_K_prompts``, ``confidence_bucket_K_prompts``: prompts in bucket K, without those that have no
      score, up to the last bucket that holds one; ``perceptual_std_K``, ``reasoning_std_K``: the std they share
      (absent for an empty bucket).

    What belongs to a component that was left out is absent. Means of nothing are 0. The numbers are taken on the host.

    Args:
        components: from ``durian_components``.
        rewards: the rewards given to it, ``(B, G)``, or ``(N,)`` with ``prompt_index``.
        prompt_index: as given to it.
        valid: as given to it.
        success_threshold: a rollout is correct if its reward exceeds this.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or number, with the argument's name.

    Source: Durian (arXiv 2602.21743), Appendix A.

    >>> import torch
    >>> from durian_adv import durian_components
    >>> rewards = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    >>> metrics = durian_metrics(durian_components(rewards), rewards)
    >>> metrics["durian/effective"], metrics["durian/extreme_success"], metrics["durian/extreme_failure"]
    (3.0, 1.0, 1.0)
    """
    if not isinstance(components, DurianComponents):
        raise TypeError(f"components: expected DurianComponents, got {type(components).__name__}")
    success_threshold = _checks.number("success_threshold", success_threshold)
    check_rewards(rewards, prompt_index, valid)
    _checks.shape("components.advantages", components.advantages, rewards.shape, "rewards.shape")
    components, rewards = DurianComponents._make(map(_on_host, components)), rewards.detach().cpu()
    batch = measure(rewards, _on_host(prompt_index), _on_host(valid))
    correct = ragged.pack(rewards, batch.layout, torch.nan, torch.float64) > success_threshold
    hits = (correct & batch.valid).sum(0)

    def by_prompt(value: Tensor) -> Tensor:
        if batch.layout is None:
            return value
        return value.new_zeros(batch.layout.num_prompts).index_copy(0, batch.layout.column, value)

    size = batch.prompts.size
    there, effective = size > 0, batch.prompts.has_signal
    extreme_success = effective & (size > 2) & (hits == size - 1)
    extreme_failure = effective & (size > 2) & (hits == 1)
    grpo, moved = components.grpo.double(), (components.advantages - components.grpo).double()
    found = {
        "prompts": there.sum(),
        "rollouts": size.sum(),
        "reward_mean": _mean(batch.prompts.middle + batch.prompts.unit * batch.prompts.mean, size),
        "no_signal_share": _mean(~effective, there),
        "effective": effective.sum(),
        "extreme_success": extreme_success.sum(),
        "extreme_failure": extreme_failure.sum(),
        "extreme_ratio": _mean(extreme_success | extreme_failure, effective),
        "moved_from_grpo": moved.norm() / exact.nonzero(grpo.norm()),
        "cosine_with_grpo": torch.sum(_direction(grpo) * _direction(grpo + moved)),
        "prompt_std_min": _smallest(by_prompt(components.prompt_std), effective),
        "prompt_std_mean": _mean(by_prompt(components.prompt_std), effective),
    }
    for name in ("advantages", "grpo", "perceptual", "reasoning"):
        values = getattr(components, name)
        if values is not None:
            found[f"{name.removesuffix('s')}_abs_max"] = _largest(values.abs())

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
            if members.any():
                found[f"{std_name}_{number}"] = _mean(std, members)
    return {f"durian/{name}": float(value) for name, value in found.items()}


def _on_host(value: Tensor | None) -> Tensor | None:
    return value.cpu() if isinstance(value, Tensor) else value


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    weight = weight.double()
    return (torch.where(weight > 0, values, 0).double() * weight).sum() / weight.sum().clamp(min=1)


def _largest(values: Tensor) -> Tensor:
    return values.amax() if values.numel() else values.new_zeros(())


def _smallest(values: Tensor, members: Tensor) -> Tensor:
    smallest = -_largest(torch.where(members, -values, -torch.inf))
    return torch.where(smallest.isfinite(), smallest, 0.0)


def _direction(values: Tensor) -> Tensor:
    return values / exact.nonzero(values.norm())
