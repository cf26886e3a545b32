"""Durian: difficulty buckets, shared stds and their weighted sum, from rewards and two difficulty scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from durian_adv._src import checks, distributed, exact, scales
from durian_adv._src.advantages import Batch, check_rewards, left_weights, measure, restore, scaled, weighted_sum
from durian_adv._src.buckets import bucket_numbers, num_buckets
from durian_adv._src.distributed import Rollouts
from durian_adv._src.layout import pack


class DurianComponents(NamedTuple):
    """What ``durian_components`` returns; what belongs to a component that was left out is None.

    The first four have the shape of rewards. The others hold one value a prompt: ``(B,)``, or repeated to ``(N,)`` with
    ``prompt_index``.
    """

    advantages: Tensor  #: the weighted sum, eq. 20
    grpo: Tensor  #: scaled by the prompt's own std, eq. 2
    perceptual: Tensor | None  #: scaled by the entropy bucket's std, eqs. 11-13
    reasoning: Tensor | None  #: scaled by the confidence bucket's std, eqs. 17-19
    entropy_bucket: Tensor | None  #: int64, eq. 10; one more bucket for prompts without an entropy
    confidence_bucket: Tensor | None  #: int64, eq. 16; one more bucket for prompts without a confidence
    prompt_std: Tensor  #: in units of rewards, as the two below
    perceptual_std: Tensor | None  #: likewise, of the bucket
    reasoning_std: Tensor | None  #: likewise, of the bucket
    has_signal: Tensor  #: bool: not all valid rewards are equal
    visual_entropy: Tensor | None  #: the score that was bucketed, NaN where there is none
    confidence: Tensor | None  #: likewise, eq. 15


_OF_ROLLOUTS = ("advantages", "grpo", "perceptual", "reasoning")
_SCORES = ("visual_entropy", "confidence")


class _Options(NamedTuple):
    weights: Sequence[float]
    entropy_quantiles: int | Sequence[float]
    num_confidence_buckets: int
    eps: float
    correction: int


class _Parts(NamedTuple):
    """What the results are made of. The components that are present come in the order of eq. 20, GRPO first."""

    batch: Batch
    factors: Tensor  # (1 to 3, B), of centred rewards
    weights: list[float]
    scales: scales.Scale  # (1 to 3, B)
    scores: dict[str, Tensor]  # by component, one a prompt
    buckets: dict[str, Tensor]  # likewise


def durian_advantage(
    rewards: Tensor,
    *,
    visual_entropy: Tensor | None = None,
    confidence: Tensor | None = None,
    prompt_index: Tensor | None = None,
    valid: Tensor | None = None,
    weights: Sequence[float] = (0.1, 0.2, 0.7),
    entropy_quantiles: int | Sequence[float] = (0.25, 0.75),
    num_confidence_buckets: int = 12,
    eps: float = 1e-6,
    correction: int = 1,
    process_group: Any = None,
) -> Tensor:
    r"""Advantages normalised by difficulty: Durian.

    .. math::
        A_{s,i} = (r_{s,i} - \operatorname{mean}_i r_{s,\cdot}) \left[
        \frac{w_0}{\operatorname{std}_i r_{s,\cdot} + \epsilon} + \frac{w_1}{\operatorname{std} R_{a(s)} + \epsilon} +
        \frac{w_2}{\operatorname{std} R_{u(s)} + \epsilon} \right]

    with :math:`R_{a(s)}` all rewards of the prompts in the same bucket of visual entropy, and :math:`R_{u(s)}` those of
    the prompts in the same bucket of confidence.

    Args:
        rewards: ``(B, G)``, or ``(N,)`` with ``prompt_index``; any real dtype. Non-finite rewards are invalid.
        visual_entropy: ``(B,)``, or ``(N,)`` with ``prompt_index``, from ``eigen_entropy``; NaN: the prompt has no
            image. None leaves the component out; the other weights are scaled up to the same sum.
        confidence: ``(B,)`` or ``(B, G)``, or ``(N,)`` with ``prompt_index``, from ``sequence_confidence``; higher is
            more confident, NaN unknown. A prompt's score is the mean over its valid rollouts that have one (eq. 15).
            None leaves the component out.
        prompt_index: ``(N,)`` integers, any values in any order; rollouts of one prompt share a value.
        valid: bool, the shape of rewards; False where a rollout does not count.
        weights: of the GRPO, perceptual and reasoning component.
        entropy_quantiles: levels of the entropy buckets, or their number; boundary values go outwards (eq. 10).
        num_confidence_buckets: how many equally probable buckets of confidence; boundary values go up (eq. 16).
        eps: added to every std, in units of rewards; finite and not negative.
        correction: every std divides by the number of its rewards minus this, 0 or 1.
        process_group: a ``torch.distributed`` group whose ranks hold different rollouts of one batch, any number each:
            dense rows are a rank's own prompts; ids of ``prompt_index`` are global, and a prompt's rollouts may lie on
            several ranks. Results are, to the bit, those of one process with the whole batch. All ranks must call.

    Returns:
        The shape of rewards; float64 for float64 rewards, else float32. Exactly 0.0 for invalid rollouts and for
        prompts without signal; never NaN or infinite.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, level or number, with the argument's name.
        RuntimeError: the arguments of another rank of ``process_group`` were refused there.

    Source: Durian (arXiv 2602.21743), eqs. 2 and 10-20.

    >>> import torch
    >>> rewards = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    >>> entropy, confidence = torch.tensor([1.0, 2, 3, 4]), torch.tensor([-3.0, -1, -4, -2])
    >>> durian_advantage(
    ...     rewards, visual_entropy=entropy, confidence=confidence, weights=(0.6, 0.2, 0.2), num_confidence_buckets=2
    ... )
    tensor([[ 0.4935,  0.4935,  0.4935, -1.4806],
            [ 0.9289,  0.9289, -0.9289, -0.9289],
            [-0.4901, -0.4901, -0.4901,  1.4704],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    rollouts = Rollouts(rewards, visual_entropy, confidence, prompt_index, valid)
    options = _Options(weights, entropy_quantiles, num_confidence_buckets, eps, correction)
    if process_group is None:
        return _advantages(_parts(rollouts, options))
    whole, share = _gather(rollouts, options, process_group)
    advantages = _advantages(_parts(whole, options))
    return exact.to_result(distributed.rollouts_of(share, advantages), exact.result_dtype(rewards.dtype))


def durian_components(
    rewards: Tensor,
    *,
    visual_entropy: Tensor | None = None,
    confidence: Tensor | None = None,
    prompt_index: Tensor | None = None,
    valid: Tensor | None = None,
    weights: Sequence[float] = (0.1, 0.2, 0.7),
    entropy_quantiles: int | Sequence[float] = (0.25, 0.75),
    num_confidence_buckets: int = 12,
    eps: float = 1e-6,
    correction: int = 1,
    process_group: Any = None,
) -> DurianComponents:
    """Durian's advantages with everything they are made of.

    Arguments, errors and source are those of ``durian_advantage``, whose result is the first field.

    Returns:
        ``DurianComponents``: the advantages and their components in the shape of rewards; buckets, stds, signal and
        scores, one a prompt.

    >>> import torch
    >>> rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> components = durian_components(rewards, visual_entropy=torch.tensor([2.0, 1.0, float("nan")]))
    >>> components.entropy_bucket
    tensor([2, 0, 3])
    >>> components.has_signal
    tensor([ True, False,  True])
    >>> components.reasoning is None
    True
    """
    rollouts = Rollouts(rewards, visual_entropy, confidence, prompt_index, valid)
    options = _Options(weights, entropy_quantiles, num_confidence_buckets, eps, correction)
    if process_group is None:
        return _components(_parts(rollouts, options))
    whole, share = _gather(rollouts, options, process_group)
    dtype = exact.result_dtype(rewards.dtype)

    def own(name: str, value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        cut = distributed.rollouts_of if name in _OF_ROLLOUTS else distributed.prompts_of
        mine = cut(share, value)
        if not mine.is_floating_point():
            return mine
        return mine.to(dtype) if name in _SCORES else exact.to_result(mine, dtype)

    components = _components(_parts(whole, options))
    return DurianComponents._make(own(name, value) for name, value in components._asdict().items())


def _components(parts: _Parts) -> DurianComponents:
    batch, names = parts.batch, ["grpo", *parts.buckets]
    stds = exact.to_result(parts.scales.std * parts.scales.unit, batch.dtype)
    by_component = dict(zip(names, parts.factors, strict=True))
    std_of = dict(zip(names, stds, strict=True))
    scores = {name: score.to(batch.dtype) for name, score in parts.scores.items()}

    def of_rollouts(name: str) -> Tensor | None:
        return scaled(batch, by_component[name]) if name in by_component else None

    def of_prompts(values: dict[str, Tensor], name: str) -> Tensor | None:
        return restore(values[name], batch) if name in values else None

    return DurianComponents(
        advantages=_advantages(parts),
        grpo=scaled(batch, by_component["grpo"]),
        perceptual=of_rollouts("perceptual"),
        reasoning=of_rollouts("reasoning"),
        entropy_bucket=of_prompts(parts.buckets, "perceptual"),
        confidence_bucket=of_prompts(parts.buckets, "reasoning"),
        prompt_std=restore(std_of["grpo"], batch),
        perceptual_std=of_prompts(std_of, "perceptual"),
        reasoning_std=of_prompts(std_of, "reasoning"),
        has_signal=restore(batch.prompts.has_signal, batch),
        visual_entropy=of_prompts(scores, "perceptual"),
        confidence=of_prompts(scores, "reasoning"),
    )


def _parts(rollouts: Rollouts, options: _Options) -> _Parts:
    rewards, visual_entropy, confidence, prompt_index, valid = rollouts
    scale, entropy_levels, confidence_levels, eps, correction = _check(rollouts, options)
    # In inference mode an operation costs a seventh less; what is returned is made from these tensors outside of it.
    # A compiler has no such cost.
    with torch.no_grad() if torch.compiler.is_compiling() else torch.inference_mode():
        batch = measure(rewards, prompt_index, valid)
        own = scales.own_std(batch.prompts, correction)
        if visual_entropy is None and confidence is None:
            alone = scales.Scale(own.std[None], own.unit[None])
            return _Parts(batch, scales.inverse(batch.prompts, alone, eps), scale, alone, {}, {})

        scores, buckets, most = {}, {}, 0
        for name, score, levels, boundary in (
            ("perceptual", visual_entropy, entropy_levels, "outer"),
            ("reasoning", confidence, confidence_levels, "upper"),
        ):
            if score is not None:
                scores[name] = _prompt_score(score, batch)
                buckets[name] = bucket_numbers(scores[name], levels, boundary)
                most = max(most, num_buckets(levels))
        shared = scales.bucket_std(batch.prompts, torch.stack(list(buckets.values())), most, correction)
        stds = scales.Scale(*(torch.cat([mine[None], ours]) for mine, ours in zip(own, shared, strict=True)))
        return _Parts(batch, scales.inverse(batch.prompts, stds, eps), scale, stds, scores, buckets)


def _advantages(parts: _Parts) -> Tensor:
    # all components share the centred rewards, so eq. 20 is taken on the factors
    return scaled(parts.batch, weighted_sum(parts.factors.unbind(), parts.weights))


def _gather(rollouts: Rollouts, options: _Options, process_group: Any) -> tuple[Rollouts, distributed.Share]:
    return distributed.gather(rollouts, lambda: _check(rollouts, options), process_group)


def _check(rollouts: Rollouts, options: _Options) -> tuple[list[float], int | tuple[float, ...], int, float, int]:
    """Check all arguments; return the weights of the components that are present, and the other options."""
    rewards, visual_entropy, confidence, prompt_index, valid = rollouts
    present = (True, visual_entropy is not None, confidence is not None)
    scale = left_weights(checks.weights(options.weights, 3), present)
    entropy_levels = checks.levels("entropy_quantiles", options.entropy_quantiles)
    confidence_levels = checks.bucket_count("num_confidence_buckets", options.num_confidence_buckets)
    eps, correction = checks.epsilon(options.eps), checks.correction(options.correction)
    check_rewards(rewards, prompt_index, valid)
    if visual_entropy is not None:
        _check_score("visual_entropy", visual_entropy, rewards, "(B,)", rewards.shape[:1])
    if confidence is not None:
        a_rollout = isinstance(confidence, Tensor) and confidence.ndim == rewards.ndim
        _check_score("confidence", confidence, rewards, "(B,) or (B, G)", rewards.shape[: 1 + a_rollout])
    return scale, entropy_levels, confidence_levels, eps, correction


def _check_score(name: str, score: Tensor, rewards: Tensor, layout: str, shape: torch.Size) -> None:
    checks.tensor(name, score)
    checks.shape(name, score, shape, layout if rewards.ndim == 2 else "(N,)")
    checks.same_device(name, score, "rewards", rewards)


def _prompt_score(scores: Tensor, batch: Batch) -> Tensor:
    """Return one score a prompt (eq. 15): NaN where the prompt has no valid rollout with a score."""
    dtype = exact.working_dtype(scores.device)
    if batch.layout is None and scores.ndim == 1:
        return torch.where(batch.prompts.low <= batch.prompts.high, scores.detach().to(dtype), torch.nan)
    values = pack(scores.detach(), batch.layout, torch.nan, dtype)
    return scales.prompt_means(values, batch.valid & (values == values))  # not NaN
