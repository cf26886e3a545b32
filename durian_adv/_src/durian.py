"""Durian: difficulty buckets, shared stds and their weighted sum, from rewards and difficulty scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from durian_adv._src import checks, distributed, exact, layout, partitions, scales
from durian_adv._src.advantages import (
    Batch,
    batch_of,
    check_rewards,
    largest_valid,
    left_weights,
    restore_prompts,
    scaled,
    weighted_sum,
)
from durian_adv._src.buckets import bucket_numbers, num_buckets, small_numbers
from durian_adv._src.errors import ArgumentError
from durian_adv._src.layout import Rollouts, Rows, pack
from durian_adv._src.options import NO_SIGNAL


class DurianComponents(NamedTuple):
    """What ``durian_components`` returns; what belongs to a component that was left out is None.

    ``advantages``, ``grpo``, ``perceptual``, ``reasoning`` and ``category`` have the shape of rewards. The others hold
    one value per prompt: ``(B,)``, or repeated to ``(N,)`` with ``prompt_index``.
    """

    advantages: Tensor  #: the weighted sum, eq. 20
    grpo: Tensor  #: scaled by the prompt's own std, eq. 2
    perceptual: Tensor | None  #: scaled by the entropy bucket's std, eqs. 11-13
    reasoning: Tensor | None  #: scaled by the confidence bucket's std, eqs. 17-19
    entropy_bucket: Tensor | None  #: int64, eq. 10; one more bucket for prompts without an entropy
    confidence_bucket: Tensor | None  #: int64, eq. 16; one more bucket for prompts without a confidence
    prompt_std: Tensor  #: in units of rewards, as all stds here
    perceptual_std: Tensor | None  #: of the entropy bucket
    reasoning_std: Tensor | None  #: of the confidence bucket
    has_signal: Tensor  #: bool: not all valid rewards are equal
    visual_entropy: Tensor | None  #: the score that was bucketed, NaN where there is none
    confidence: Tensor | None  #: the score that was bucketed, eq. 15; NaN where there is none
    category: Tensor | None = None  #: scaled by the category's std, as eqs. 11-13
    category_std: Tensor | None = None  #: of the category


_OF_ROLLOUTS = ("advantages", "grpo", "perceptual", "reasoning", "category")
_SCORES = ("visual_entropy", "confidence")


class Options(NamedTuple):
    """What ``durian_advantage`` takes besides rollouts."""

    weights: Sequence[float]
    no_signal: str
    entropy_quantiles: int | Sequence[float]
    num_confidence_buckets: int
    eps: float
    correction: int


class Checked(NamedTuple):
    """Options that have been checked, with weights only of the components that have an input."""

    weights: list[float]
    drop: bool
    entropy_levels: int | tuple[float, ...]
    confidence_levels: int
    eps: float
    correction: int


class Population(NamedTuple):
    """Prompts that quantiles and shared stds are taken from, ``(B,)`` each."""

    measured: scales.Measured
    visual_entropy: Tensor | None  # NaN where unknown
    confidence: Tensor | None  # NaN where unknown
    category: Tensor | None  # int64


class Parts(NamedTuple):
    """What the results are made of. The components that are present come in the order of eq. 20, GRPO first."""

    batch: Batch
    population: Population  # of the batch and what came before it
    factors: list[Tensor]  # 1 to 4, (B,) each, of centered rewards
    weights: list[float]
    scales: list[scales.Scale]  # (1, B) each, or (1 to 4, B) in one
    scores: dict[str, Tensor]  # by component, one per prompt
    buckets: dict[str, Tensor]  # by component, one per prompt


def durian_advantage(
    rewards: Tensor,
    *,
    visual_entropy: Tensor | None = None,
    confidence: Tensor | None = None,
    prompt_index: Tensor | None = None,
    valid: Tensor | None = None,
    category: Tensor | None = None,
    rollout_index: Tensor | None = None,
    weights: Sequence[float] = (0.1, 0.2, 0.7),
    no_signal: str = "keep",
    entropy_quantiles: int | Sequence[float] = (0.25, 0.75),
    num_confidence_buckets: int = 12,
    eps: float = 1e-6,
    correction: int = 1,
    process_group: Any = None,
) -> Tensor:
    r"""Advantages normalized by difficulty: Durian.

    .. math::
        A_{s,i} = (r_{s,i} - \operatorname{mean}_i r_{s,\cdot}) \left[
        \frac{w_0}{\operatorname{std}_i r_{s,\cdot} + \epsilon} + \frac{w_1}{\operatorname{std} R_{a(s)} + \epsilon} +
        \frac{w_2}{\operatorname{std} R_{u(s)} + \epsilon} + \frac{w_3}{\operatorname{std} R_{c(s)} + \epsilon} \right]

    with :math:`R_{a(s)}` all rewards of the prompts in the same bucket of visual entropy, :math:`R_{u(s)}` those of
    the prompts in the same bucket of confidence, and :math:`R_{c(s)}` those of the prompts of the same category.

    Args:
        rewards: ``(B, G)``, or ``(N,)`` with ``prompt_index``; any real dtype. Non-finite rewards are invalid.
        visual_entropy: ``(B,)``, or ``(N,)`` with ``prompt_index``, from ``eigen_entropy``; NaN: the prompt has no
            image. None leaves the component out; the other weights are scaled up to the same sum.
        confidence: ``(B,)`` or ``(B, G)``, or ``(N,)`` with ``prompt_index``, from ``sequence_confidence``; higher is
            more confident, NaN unknown. A prompt's score is the mean over its valid rollouts that have one (eq. 15).
            None leaves the component out.
        prompt_index: ``(N,)`` integers, any values in any order; rollouts of one prompt share a value.
        valid: bool, the shape of rewards; False where a rollout does not count.
        category: ``(B,)``, or ``(N,)`` with ``prompt_index``: integers of any value, a known kind of prompt such as its
            data source or task. In the flat form the largest of a prompt's valid rollouts counts, should they differ;
            a prompt without a valid rollout has none. Needs a fourth weight; None leaves the component out.
        rollout_index: ``(N,)`` integers, with ``prompt_index``: rows of one rollout (turns, cut trajectories) share a
            value, and the rollout counts once. Its valid rows must agree in the reward, and in the confidence and the
            visual entropy where these are known; every one of them gets the rollout's advantage. None: every row is a
            rollout.
        weights: of the GRPO, perceptual, reasoning and (if there is a fourth) category component.
        no_signal: ``"keep"``: prompts without signal (all valid rewards equal) count in quantiles and shared stds, as
            in the paper's GRPO runs; ``"drop"``: they do not, as if their rollouts were not valid, as in its DAPO runs.
        entropy_quantiles: levels of the entropy buckets, or their number; boundary values go outwards (eq. 10).
        num_confidence_buckets: how many equally probable buckets of confidence; boundary values go up (eq. 16).
        eps: added to every std, in units of rewards; finite and not negative.
        correction: every std divides by the number of its rewards minus this, 0 or 1.
        process_group: a ``torch.distributed`` group whose ranks hold different rollouts of one batch, any number each:
            dense rows are a rank's own prompts; ids of ``prompt_index`` and ``rollout_index`` are global, and a
            prompt's rollouts, or a rollout's rows, may lie on several ranks. Copies would count twice, so the group is
            that of data parallelism, without tensor-parallel ranks. Results are, to the bit, those of one process with
            the whole batch. All ranks must call.

    Returns:
        The shape of rewards; float64 for float64 rewards, else float32. Exactly 0.0 for invalid rollouts and for
        prompts without signal; never NaN or infinite.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, level, name or number, with the argument's name; ``category`` with
            three weights; valid rows of a rollout that differ, with the prompt and both values, or lie under two
            prompts.
        RuntimeError: the arguments of another rank of ``process_group`` were refused there.

    Source: Durian (arXiv 2602.21743), eqs. 2 and 10-20. Categories are not in the paper.

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
    >>> durian_advantage(rewards, category=torch.tensor([0, 0, 1, 1]), weights=(0, 0, 0, 1))  # by kind of prompt
    tensor([[ 0.4830,  0.4830,  0.4830, -1.4491],
            [ 0.9661,  0.9661, -0.9661, -0.9661],
            [-0.7071, -0.7071, -0.7071,  2.1213],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    given = Rollouts(rewards, visual_entropy, confidence, prompt_index, valid, category, rollout_index)
    options = Options(weights, no_signal, entropy_quantiles, num_confidence_buckets, eps, correction)
    rollouts, checked, rows, share = _prepared(given, options, process_group)
    advantages = _advantages(parts_of(rollouts, checked))
    if rows is not None:
        advantages = layout.expand_rollouts(advantages, rows)
    if share is None:
        return advantages
    return exact.to_result(distributed.rollouts_of(share, advantages), exact.result_dtype(rewards.dtype))


def durian_components(
    rewards: Tensor,
    *,
    visual_entropy: Tensor | None = None,
    confidence: Tensor | None = None,
    prompt_index: Tensor | None = None,
    valid: Tensor | None = None,
    category: Tensor | None = None,
    rollout_index: Tensor | None = None,
    weights: Sequence[float] = (0.1, 0.2, 0.7),
    no_signal: str = "keep",
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
        scores, one per prompt.

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
    given = Rollouts(rewards, visual_entropy, confidence, prompt_index, valid, category, rollout_index)
    options = Options(weights, no_signal, entropy_quantiles, num_confidence_buckets, eps, correction)
    rollouts, checked, rows, share = _prepared(given, options, process_group)
    components = components_of(parts_of(rollouts, checked))
    if rows is not None:
        components = expanded(components, rows)
    if share is None:
        return components
    return _own(components, share, exact.result_dtype(rewards.dtype))


def expanded(components: DurianComponents, rows: Rows) -> DurianComponents:
    """Repeat the components of rollouts to their rows."""

    def expand(name: str, value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        return layout.expand_rollouts(value, rows) if name in _OF_ROLLOUTS else layout.expand_prompts(value, rows)

    return DurianComponents._make(expand(name, value) for name, value in components._asdict().items())


def components_of(parts: Parts) -> DurianComponents:
    """Bring the parts into the caller's form."""
    batch, names = parts.batch, ["grpo", *parts.buckets]
    stds = [std for scale in parts.scales for std in exact.to_result(scale.std * scale.unit, batch.dtype)]
    by_component = dict(zip(names, parts.factors, strict=True))
    std_of = dict(zip(names, stds, strict=True))
    scores = {name: score.to(batch.dtype) for name, score in parts.scores.items()}

    def of_rollouts(name: str) -> Tensor | None:
        return scaled(batch, by_component[name]) if name in by_component else None

    def of_prompts(values: dict[str, Tensor], name: str) -> Tensor | None:
        return restore_prompts(values[name], batch) if name in values else None

    return DurianComponents(
        advantages=_advantages(parts),
        grpo=scaled(batch, by_component["grpo"]),
        perceptual=of_rollouts("perceptual"),
        reasoning=of_rollouts("reasoning"),
        entropy_bucket=of_prompts(parts.buckets, "perceptual"),
        confidence_bucket=of_prompts(parts.buckets, "reasoning"),
        prompt_std=restore_prompts(std_of["grpo"], batch),
        perceptual_std=of_prompts(std_of, "perceptual"),
        reasoning_std=of_prompts(std_of, "reasoning"),
        has_signal=restore_prompts(batch.measured.has_signal, batch),
        visual_entropy=of_prompts(scores, "perceptual"),
        confidence=of_prompts(scores, "reasoning"),
        category=of_rollouts("category"),
        category_std=of_prompts(std_of, "category"),
    )


def parts_of(rollouts: Rollouts, checked: Checked, earlier: Population | None = None) -> Parts:
    """Compute everything for rollouts that have been checked, every row a rollout.

    Quantiles and shared stds are taken over the prompts of the batch and those that came ``earlier``.
    """
    # In inference mode an operation costs a seventh less; what is returned is made from these tensors outside of it.
    # A compiler has no such cost.
    with torch.no_grad() if torch.compiler.is_compiling() else torch.inference_mode():
        batch = batch_of(rollouts.rewards, rollouts.prompt_index, rollouts.valid)
        population = _population(rollouts, batch)
        if earlier is not None:
            population = _joined(earlier, population)
        if checked.drop:
            population = _without_silent(population)
        own = scales.Scale(*(part[None] for part in scales.own_std(batch.measured, checked.correction)))
        given = (rollouts.visual_entropy, rollouts.confidence, rollouts.category)
        buckets, most = _buckets(population, [value is not None for value in given], checked)
        if not buckets:
            factors = list(scales.factor(batch.measured, own, checked.eps))
            return Parts(batch, population, factors, checked.weights, [own], {}, {})
        # all components in one, or one by one where a compiler would write to memory what is put together
        apart = partitions.in_pairs(population.measured.size)
        rows = [bucket[None] for bucket in buckets.values()] if apart else [torch.stack(list(buckets.values()))]
        shared = [scales.bucket_std(population.measured, row, most, checked.correction) for row in rows]
        given_scores = (("perceptual", population.visual_entropy), ("reasoning", population.confidence))
        scores = {name: score for name, score in given_scores if score is not None and name in buckets}
        if earlier is not None:
            first = len(earlier.measured.size)
            shared = [scales.Scale(*(part[:, first:] for part in scale)) for scale in shared]
            scores, buckets = ({name: x[first:] for name, x in of.items()} for of in (scores, buckets))
        stds = [own, *shared] if apart else [scales.Scale(*map(torch.cat, zip(own, *shared, strict=True)))]
        factors = [factor for scale in stds for factor in scales.factor(batch.measured, scale, checked.eps)]
        return Parts(batch, population, factors, checked.weights, stds, scores, buckets)


def _population(rollouts: Rollouts, batch: Batch) -> Population:
    entropy, confidence, category = rollouts.visual_entropy, rollouts.confidence, rollouts.category
    has_rollout = batch.measured.size > 0
    return Population(
        batch.measured,
        None if entropy is None else _prompt_score(entropy, batch, has_rollout),
        None if confidence is None else _prompt_score(confidence, batch, has_rollout),
        None if category is None else largest_valid(category, batch),
    )


def _joined(earlier: Population, batch: Population) -> Population:
    """Put the prompts of the batch after those that came earlier."""

    def scores(before: Tensor | None, now: Tensor | None) -> Tensor | None:
        if before is None and now is None:
            return None
        sides = ((before, earlier.measured.size), (now, batch.measured.size))
        return torch.cat([torch.full_like(size, torch.nan) if score is None else score for score, size in sides])

    return Population(
        scales.joined(earlier.measured, batch.measured),
        scores(earlier.visual_entropy, batch.visual_entropy),
        scores(earlier.confidence, batch.confidence),
        None if earlier.category is None or batch.category is None else torch.cat([earlier.category, batch.category]),
    )


def _without_silent(population: Population) -> Population:
    """Return the population in which no rollout of a prompt without signal is valid."""

    def kept(score: Tensor | None) -> Tensor | None:
        return None if score is None else torch.where(population.measured.has_signal, score, torch.nan)

    measured = scales.without_silent(population.measured)
    return Population(measured, kept(population.visual_entropy), kept(population.confidence), population.category)


def _buckets(population: Population, present: Sequence[bool], checked: Checked) -> tuple[dict[str, Tensor], int]:
    """Number the bucket of every prompt, by component; and say how many buckets there are at most."""
    measured, entropy, confidence, category = population
    buckets, most = {}, 0
    for name, score, levels, boundary, is_present in (
        ("perceptual", entropy, checked.entropy_levels, "outer", present[0]),
        ("reasoning", confidence, checked.confidence_levels, "upper", present[1]),
    ):
        if score is not None and is_present:
            buckets[name] = bucket_numbers(score, levels, boundary)
            most = max(most, num_buckets(levels))
    if category is not None:
        # a prompt without a valid rollout has no category, whatever it is said to be
        count = len(category)
        buckets["category"] = torch.where(measured.size > 0, small_numbers(category), count)
        most = most + count + 1  # a sum, as a graph for all sizes knows no maximum
    return buckets, most


def _advantages(parts: Parts) -> Tensor:
    # all components share the centered rewards, so eq. 20 is taken on the factors
    return scaled(parts.batch, weighted_sum(parts.factors, parts.weights))


def _prepared(
    given: Rollouts, options: Options, process_group: Any
) -> tuple[Rollouts, Checked, Rows | None, distributed.Share | None]:
    """Check the arguments, gather the rollouts of all ranks and reduce rows to rollouts; with the ways back."""
    share = rows = None
    if process_group is None:
        checked = check(given, options)
    else:
        given, share = distributed.gather(given, lambda: check(given, options), process_group)
        checked = check(given, options)
    if given.rollout_index is not None:
        given, rows = layout.one_row_per_rollout(given)
    return given, checked, rows, share


def _own(components: DurianComponents, share: distributed.Share, dtype: torch.dtype) -> DurianComponents:
    """Cut this rank's part out of the components of all ranks."""

    def own(name: str, value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        part = (distributed.rollouts_of if name in _OF_ROLLOUTS else distributed.prompts_of)(share, value)
        if not part.is_floating_point():
            return part
        return part.to(dtype) if name in _SCORES else exact.to_result(part, dtype)

    return DurianComponents._make(own(name, value) for name, value in components._asdict().items())


def check(rollouts: Rollouts, options: Options) -> Checked:
    """Check all arguments without reading a value."""
    rewards, visual_entropy, confidence, prompt_index, valid, category, rollout_index = rollouts
    weights = checks.weights(options.weights, 3, 4)
    if category is not None and len(weights) == 3:
        raise ArgumentError("weights", "4 numbers with category, the last one its own", len(weights))
    present = (True, visual_entropy is not None, confidence is not None, category is not None)
    left = left_weights(weights, present[: len(weights)])
    checks.choice("no_signal", options.no_signal, NO_SIGNAL)
    entropy_levels = checks.levels("entropy_quantiles", options.entropy_quantiles)
    confidence_levels = checks.bucket_count("num_confidence_buckets", options.num_confidence_buckets)
    eps, correction = checks.epsilon(options.eps), checks.correction(options.correction)
    check_rewards(rewards, prompt_index, valid)
    if visual_entropy is not None:
        check_of_prompts("visual_entropy", checks.tensor("visual_entropy", visual_entropy), rewards)
    if confidence is not None:
        per_rollout = checks.tensor("confidence", confidence).ndim == rewards.ndim
        check_of_prompts("confidence", confidence, rewards, "(B,) or (B, G)", per_rollout)
    if category is not None:
        check_of_prompts("category", checks.tensor("category", category, integer=True), rewards)
    check_rollout_index(rollout_index, prompt_index, rewards)
    return Checked(left, options.no_signal == "drop", entropy_levels, confidence_levels, eps, correction)


def check_rollout_index(rollout_index: Tensor | None, prompt_index: Tensor | None, rewards: Tensor) -> None:
    """Check ``rollout_index``, which goes with ``prompt_index`` only."""
    if rollout_index is None:
        return
    if prompt_index is None:
        raise ArgumentError("rollout_index", "prompt_index with it, as dense rewards have one slot per rollout", "None")
    checks.tensor("rollout_index", rollout_index, integer=True)
    checks.shape("rollout_index", rollout_index, rewards.shape, "(N,)")
    checks.same_device("rollout_index", rollout_index, "rewards", rewards)


def check_of_prompts(name: str, value: Tensor, rewards: Tensor, form: str = "(B,)", per_rollout: bool = False) -> None:
    """Check the shape and the device of what comes per prompt, or per rollout."""
    checks.shape(name, value, rewards.shape[: 1 + per_rollout], form if rewards.ndim == 2 else "(N,)")
    checks.same_device(name, value, "rewards", rewards)


def _prompt_score(scores: Tensor, batch: Batch, has_rollout: Tensor) -> Tensor:
    """Return one score per prompt (eq. 15): NaN where the prompt has no valid rollout with a score."""
    dtype = exact.working_dtype(scores.device)
    if batch.layout is None and scores.ndim == 1:
        return torch.where(has_rollout, scores.detach().to(dtype), torch.nan)
    values = pack(scores.detach(), batch.layout, torch.nan, dtype)
    return scales.prompt_means(values, batch.valid & ~values.isnan(), batch.layout)
