"""What trainers with a flat batch and a configuration file share: the options, and one call from a batch to tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from durian_adv import DurianComponents, durian_components, sequence_confidence
from durian_adv._src import checks
from durian_adv.diagnostics import durian_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class DurianOptions:
    """Options of Durian in a trainer's configuration; those of ``durian_components`` under their own names.

    ``confidence_reduction`` is that of ``sequence_confidence``. A rollout counts as correct in the metrics if its
    reward exceeds ``success_threshold``.
    """

    weights: Sequence[float] = (0.1, 0.2, 0.7)
    entropy_quantiles: int | Sequence[float] = (0.25, 0.75)
    num_confidence_buckets: int = 12
    confidence_reduction: Literal["sum", "mean"] = "sum"
    eps: float = 1e-6
    success_threshold: float = 0.5

    def __post_init__(self) -> None:
        checks.choice("confidence_reduction", self.confidence_reduction, ("sum", "mean"))
        checks.number("success_threshold", self.success_threshold)
        nothing = torch.zeros(0)  # the library's own checks, before any rollout is made
        durian_components(nothing[:, None], visual_entropy=nothing, confidence=nothing, **self.of_components())

    def of_components(self) -> dict[str, Any]:
        """Return what ``durian_components`` takes beside the data."""
        names = ("weights", "entropy_quantiles", "num_confidence_buckets", "eps")
        return {name: getattr(self, name) for name in names}


Options = TypeVar("Options", bound=DurianOptions)


def read_options(
    given: Mapping[str, Any] | None,
    where: str,
    kind: type[Options] = DurianOptions,  # type: ignore[assignment]  # a type variable has no default before Python 3.13
) -> Options:
    """Make options of a part of a trainer's configuration; ``where`` is its name there, for errors.

    ``kind`` is ``DurianOptions`` or what an adapter makes of it.

    Raises:
        TypeError, ValueError: an unknown option, or a value that does not fit, by its full name.
    """
    given = {} if given is None else dict(given)
    known = [field.name for field in dataclasses.fields(kind)]
    for name in given:
        if name not in known:
            raise ValueError(f"{where}.{name}: expected one of {', '.join(known)}, got an unknown option")
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}.{error}") from None


def prompt_numbers(ids: Sequence[Any] | np.ndarray) -> Tensor:
    """Number the prompts of a batch, ``(N,)``, from one id per rollout: strings, UUIDs or integers."""
    return torch.from_numpy(np.unique(np.asarray(ids).astype(str), return_inverse=True)[1].reshape(-1))


def batch_advantages(
    rewards: Tensor,
    prompt_index: Tensor,
    *,
    logprobs: Tensor | None,
    mask: Tensor | None,
    visual_entropy: Tensor | None,
    images: bool = False,
    valid: Tensor | None = None,
    options: DurianOptions,
) -> tuple[DurianComponents, dict[str, float]]:
    """Return the components, each ``(N,)``, and the metrics of a batch of rollouts.

    A component with weight 0 is left out, and so is the perceptual one where no rollout has an entropy.

    Args:
        rewards: one per rollout, ``(N,)``; NaN where there is none.
        prompt_index: each rollout's prompt, ``(N,)``.
        logprobs: of the sampled tokens, ``(N, T)``; needed where reasoning has a weight.
        mask: True or 1 for the response's tokens, ``(N, T)``.
        visual_entropy: one per rollout, ``(N,)``, NaN for a prompt without an image; None without any.
        images: whether the trainer has images (or videos) for some of the prompts: then some must have an entropy.
        valid: False for rows that are not rollouts (padding), ``(N,)``.
        options: of Durian.

    Raises:
        ValueError: log-probabilities or entropies that a component with a weight needs are not there, or the entropies
            of a prompt differ.
    """
    _, perceptual, reasoning = options.weights
    if perceptual == 0 or (visual_entropy is not None and bool(visual_entropy.isnan().all())):
        visual_entropy = None
    if perceptual > 0 and images and visual_entropy is None:
        raise ValueError(
            "visual_entropy: expected a number for prompts with images, for weights[1] > 0, got none. Compute it "
            "beforehand (durian-adv entropy), or set weights[1] to 0"
        )
    confidence = None
    if reasoning > 0:
        if logprobs is None:
            raise ValueError("logprobs: expected the sampled tokens' log-probabilities for weights[2] > 0, got None")
        confidence = sequence_confidence(logprobs, mask, reduction=options.confidence_reduction)
    components = durian_components(
        rewards,
        visual_entropy=visual_entropy,
        confidence=confidence,
        prompt_index=prompt_index,
        valid=valid,
        **options.of_components(),
    )
    if visual_entropy is not None:  # shapes and types are those of the library by now
        _check_one_a_prompt(visual_entropy, prompt_index, valid)
    metrics = durian_metrics(
        components, rewards, prompt_index=prompt_index, valid=valid, success_threshold=options.success_threshold
    )
    return components, metrics


def _check_one_a_prompt(visual_entropy: Tensor, prompt_index: Tensor, valid: Tensor | None) -> None:
    """Refuse entropies that differ between rollouts of a prompt: the library would take their mean."""
    known = ~visual_entropy.isnan() if valid is None else ~visual_entropy.isnan() & (valid != 0)
    values, index = visual_entropy[known], torch.unique(prompt_index[known], return_inverse=True)[1]
    low = torch.full_like(values, torch.inf).scatter_reduce(0, index, values, "amin")
    high = torch.full_like(values, -torch.inf).scatter_reduce(0, index, values, "amax")
    differ = low < high
    if differ.any():
        raise ValueError(
            "visual_entropy: expected one number for all rollouts of a prompt, whose images they share, "
            f"got {low[differ][0]:g} and {high[differ][0]:g}"
        )


def prompts_a_bucket(prompts: float, options: DurianOptions, images: bool) -> tuple[str, bool]:
    """Say how many prompts of a batch share a std, and whether that is enough: 2 per bucket on average."""
    levels = options.entropy_quantiles
    buckets = {
        "visual entropy": (levels if isinstance(levels, int) else len(levels) + 1) if images else 0,
        "confidence": options.num_confidence_buckets,
    }
    used = {name: n for (name, n), w in zip(buckets.items(), options.weights[1:], strict=True) if w > 0 and n > 0}
    sizes = [f"{prompts / n:.1f} per bucket in {n} buckets of {name}" for name, n in used.items()]
    text = ", ".join([f"{prompts:g} prompts per batch", *sizes])
    if all(prompts >= 2 * n for n in used.values()):
        return text, True
    return (
        f"{text}. With fewer than 2 per bucket, advantages may exceed GRPO's: take more prompts or fewer buckets",
        False,
    )
