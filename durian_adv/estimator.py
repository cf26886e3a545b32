"""One object that any trainer calls: from what it has, one entry per row of its batch, to advantages."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from durian_adv import baselines, weighting
from durian_adv._src import layout, options, rows
from durian_adv._src.advantages import grpo_advantage
from durian_adv._src.durian import DurianComponents, durian_components
from durian_adv._src.errors import ArgumentError
from durian_adv.diagnostics import durian_metrics
from durian_adv.window import Window, load_window, windowed_components

__all__ = ["AdvantageEstimator", "Record"]

_OF_STD: dict[str, Callable[..., Tensor]] = {
    "grpo": grpo_advantage,
    "batch_std": baselines.batch_std_advantage,
    "reinforce_plus_plus": baselines.reinforce_plus_plus_advantage,
    "reinforce_plus_plus_baseline": baselines.reinforce_plus_plus_baseline_advantage,
}
_WITHOUT_STD: dict[str, Callable[..., Tensor]] = {
    "dr_grpo": baselines.dr_grpo_advantage,
    "rloo": baselines.rloo_advantage,
}
# estimators whose scale is taken over several prompts: of one prompt alone they are GRPO
_POOLED = ("batch_std", "reinforce_plus_plus", "reinforce_plus_plus_baseline")
_STATE = ("window", "categories", "generator")


class Record(NamedTuple):
    """The M rollouts of a call, one entry each: what they were given, and what they got. Logs are made of it."""

    row: Tensor  # (M,) int64, the row of the call that stands for each rollout
    prompt: Tensor  # (M,) int64, positions in names; -1 where a row has no prompt
    names: Sequence[Any]  # the ids of the prompts
    rewards: Tensor  # (M,), NaN where not scored
    visual_entropy: Tensor | None  # (M,), NaN where unknown; given, with a weight or without
    confidence: Tensor | None  # (M,), the same
    valid: Tensor  # (M,) bool
    advantages: Tensor  # (M,)


class _Batch(NamedTuple):
    """A batch as tensors: one entry per rollout, and the way back to the rows."""

    rollouts: layout.Rollouts
    rows: layout.Rows | None  # None where every row is a rollout
    metrics: dict[str, float]  # what was counted on the way
    names: Sequence[Any]  # ids of the prompts
    scores: dict[str, Tensor | None]  # of the rows, those without a weight, too

    def record(self, advantages: Tensor) -> Record:
        """Return the record of the rollouts with their advantages."""
        found, prompt = self.rollouts, self.rollouts.prompt_index
        assert prompt is not None
        assert found.valid is not None
        row = torch.arange(len(prompt), device=prompt.device) if self.rows is None else self.rows.first
        scores = {
            name: getattr(found, name) if values is None or getattr(found, name) is not None else values[row]
            for name, values in self.scores.items()
        }
        return Record(row, prompt, self.names, found.rewards, **scores, valid=found.valid, advantages=advantages)


class AdvantageEstimator:
    """Advantages for any trainer: Durian or another estimator, with a window and metrics where they are wanted.

    Call it once per batch with one entry per row; it returns one advantage per row. On a whole batch the result is,
    bit for bit, that of ``durian_advantage`` (or the estimator's function in ``durian_adv.baselines`` and
    ``durian_adv.weighting``); the estimator adds what trainers have and functions do not take: lists with None, ids of
    any kind, token log-probabilities of any lengths, rollouts in several rows, and a memory of recent prompts.

    Args:
        estimator: ``"durian"``, ``"grpo"``, ``"dr_grpo"``, ``"batch_std"``, ``"rloo"``, ``"reinforce_plus_plus"``,
            ``"reinforce_plus_plus_baseline"`` or ``"difficulty_prior"``.
        weights: of the GRPO, perceptual and reasoning components (eq. 20), and of the category component if there is a
            fourth. A component with weight 0 needs no input.
        entropy_quantiles: levels of the entropy buckets, or their number (eq. 10).
        num_confidence_buckets: number of equally probable confidence buckets (eq. 16).
        confidence_reduction: ``"sum"`` or ``"mean"`` of a rollout's token log-probabilities (eq. 14).
        no_signal: ``"keep"`` or ``"drop"``: whether prompts whose rewards are all equal count in quantiles and shared
            stds.
        window: number of recent prompts that also count in quantiles and shared stds; 0 for none.
        eps: added to every std, in units of rewards.
        correction: every std divides by the number of its rewards minus this, 0 or 1.
        success_threshold: reward above which a rollout counts as correct, in metrics and the difficulty prior.
        weighting: name of a weighting in ``durian_adv.weighting``, for ``"difficulty_prior"``.

    Attributes:
        metrics: numbers of the last call, as ``durian_metrics`` gives them, and under the same prefix what the
            estimator counted: ``unscored_share`` and ``empty_share`` (no reward; a mask without a token) of the rows
            that are not ``valid=False``,
            ``nonfinite_token_share`` of the response's tokens, ``window_prompts``.
        record: the rollouts of the last call with their scores and advantages, a ``Record``; None before the first.

    Raises:
        TypeError, ValueError: an option that does not fit, by its name.

    Source: Durian (arXiv 2602.21743), eqs. 2 and 10-20; the others as their functions say.

    >>> estimator = AdvantageEstimator(weights=(0.5, 0.0, 0.5), num_confidence_buckets=1)
    >>> advantages = estimator(
    ...     rewards=[1.0, 0.0, None, 1.0, 0.0, 0.0],
    ...     prompts=["a", "a", "a", "b", "b", "b"],
    ...     logprobs=[[-0.5, -1.0], [-2.0], [-0.1], [-1.0], [-1.0, -1.0, None], [-0.2]],
    ... )
    >>> advantages
    tensor([ 0.8100, -0.8100,  0.0000,  1.1859, -0.5930, -0.5930],
           dtype=torch.float64)
    >>> estimator.metrics["durian/prompts"], estimator.metrics["durian/unscored_share"]
    (2.0, 0.16666666666666666)
    """

    def __init__(
        self,
        *,
        estimator: str = "durian",
        weights: Sequence[float] = (0.1, 0.2, 0.7),
        entropy_quantiles: int | Sequence[float] = (0.25, 0.75),
        num_confidence_buckets: int = 12,
        confidence_reduction: Literal["sum", "mean"] = "sum",
        no_signal: Literal["keep", "drop"] = "keep",
        window: int = 0,
        eps: float = 1e-6,
        correction: int = 1,
        success_threshold: float = 0.5,
        weighting: str = "exponential",
    ) -> None:
        """Check the options."""
        given = {name: value for name, value in locals().items() if name in options.OPTIONS}
        self.options = options.checked(given)
        self.metrics: dict[str, float] = {}
        self.record: Record | None = None
        self._window: Window | None = None
        self._categories: dict[Hashable, int] = {}
        self._generator: Tensor | None = None  # the state of the random control's

    def __call__(
        self,
        rewards: Any,
        prompts: Any,
        logprobs: Any = None,
        mask: Any = None,
        confidence: Any = None,
        visual_entropy: Any = None,
        category: Any = None,
        rollouts: Any = None,
        valid: Any = None,
    ) -> Tensor:
        """Return the advantages of a batch of N rows.

        A row is invalid, which gets exactly 0.0 and influences nothing, if it has no reward, if its mask has no token,
        or if ``valid`` says so. Tokens whose log-probability is not finite do not count.

        Args:
            rewards: N numbers, a tensor, an array or a list; None or NaN where a row was not scored.
            prompts: N ids of any hashable kind, or a tensor ``(N,)``, or ``(N, K)`` where a row is an id; rows of one
                prompt share it, and images belong to it. None only for a row that is invalid.
            logprobs: the sampled tokens' log-probabilities, ``(N, T)`` or N sequences of any lengths, in nats; None for
                a row whose confidence is not known.
            mask: nonzero for the tokens of the response, as ``logprobs``; None: all of them.
            confidence: N finished confidences in place of ``logprobs``, not beside them; None where unknown.
            visual_entropy: N entropies in nats, None for a prompt without an image; the same for all rows of a prompt.
            category: N known kinds of prompts, hashable, the same for all rows of a prompt; None is a kind of its own.
                Needs a fourth weight.
            rollouts: N ids, unique within a prompt: rows of one rollout share it, and the rollout counts once. None,
                for a row or for all: a row is a rollout.
            valid: N truth values.

        Returns:
            ``(N,)``, on the device of rewards if these are a tensor; float64 for float64 rewards and lists, else
            float32.

        Raises:
            TypeError, ValueError: entries that do not fit, by argument and row; scores that differ within a prompt;
                rewards that differ within a rollout; ids that no two rollouts share; ``confidence`` beside
                ``logprobs``; a call that would silently be GRPO: one prompt without a window, or no score at all, while
                components that need them have a weight.
        """
        if logprobs is not None and confidence is not None:
            raise ArgumentError("confidence", "None beside logprobs, of which it is made", type(confidence).__name__)
        given = {"confidence": confidence, "visual_entropy": visual_entropy, "category": category}
        batch = self._batch(rewards, prompts, logprobs, mask, given, rollouts, valid)
        recent = 0 if self._window is None else len(self._window[0])
        components = self._components(batch.rollouts)
        of_rollouts = batch.rollouts
        self.metrics = {**batch.metrics, "durian/window_prompts": float(recent)} | durian_metrics(
            components,
            of_rollouts.rewards,
            prompt_index=of_rollouts.prompt_index,
            valid=of_rollouts.valid,
            success_threshold=self.options["success_threshold"],
            category=of_rollouts.category,
            no_signal=self.options["no_signal"],
        )
        self.record = batch.record(components.advantages)
        if batch.rows is None:
            return components.advantages
        return layout.expand_rollouts(components.advantages, batch.rows)

    def needs(self, score: str) -> bool:
        """Return whether this score (``"visual_entropy"``, ``"confidence"``, ``"category"``) has a weight."""
        weights = dict(zip(("grpo", "visual_entropy", "confidence", "category"), self.options["weights"], strict=False))
        return bool(self.options["estimator"] == "durian" and weights.get(score, 0.0) > 0)

    @property
    def needs_prompts(self) -> bool:
        """Whether one prompt alone is refused: the scale is shared by several, and there is no window."""
        name, weights = self.options["estimator"], self.options["weights"]
        pooled = sum(weights[1:]) > 0 if name == "durian" else name in _POOLED
        return bool(pooled and not self.options["window"])

    def state_dict(self) -> dict[str, Any]:
        """Return what later calls depend on: plain values, which ``torch.load(..., weights_only=True)`` reads."""
        window = None if self._window is None else self._window._asdict()
        categories = {_saved(key): number for key, number in self._categories.items()}
        return {"window": window, "categories": categories, "generator": self._generator}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` returned.

        Raises:
            TypeError, ValueError: something else.
        """
        if not isinstance(state, Mapping) or set(state) != set(_STATE):
            got = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise ArgumentError("state", f"the state of an AdvantageEstimator, with {', '.join(_STATE)}", got)
        window, categories, generator = (state[name] for name in _STATE)
        if not isinstance(categories, Mapping):
            raise ArgumentError("state['categories']", "numbers by category", type(categories).__name__)
        if not isinstance(generator, Tensor | None):
            raise ArgumentError("state['generator']", "a tensor or None", type(generator).__name__)
        self._window = None if window is None else load_window(window)
        self._categories, self._generator = dict(categories), generator

    # --- from rows to tensors -------------------------------------------------------------------------

    def _batch(
        self,
        rewards: Any,
        prompts: Any,
        logprobs: Any,
        mask: Any,
        given: dict[str, Any],
        rollouts: Any,
        valid: Any,
    ) -> _Batch:
        values = rows.numbers("rewards", rewards, None)
        count, device = len(values), values.device
        prompt, names = rows.ids("prompts", prompts, count, device)
        usable = values.isfinite()
        real = torch.ones_like(usable) if valid is None else rows.flags("valid", valid, count, device)
        metrics = {"durian/unscored_share": _share(~usable[real])}
        usable = usable & real
        if mask is not None:
            full = rows.has_tokens(mask, count, device)
            metrics["durian/empty_share"] = _share(~full[real])
            usable = usable & full
        _require_ids(prompt, usable)
        rollout = None if rollouts is None else _rollout_numbers(prompt, rollouts)
        self._check_groups(prompt, rollout, real)

        if logprobs is not None:
            reduction = self.options["confidence_reduction"]
            found = rows.confidences(logprobs, mask, count, device, reduction=reduction, usable=usable, rollout=rollout)
            given["confidence"] = found.confidence
            metrics["durian/nonfinite_token_share"] = rows.share(found.nonfinite, found.total)
        known = {
            name: None if given[name] is None else rows.numbers(name, given[name], count, device)
            for name in ("visual_entropy", "confidence")
        }
        scores = self._scores(given | known, prompt, usable, names)
        flat = layout.Rollouts(values, prompt_index=prompt, valid=usable, rollout_index=rollout, **scores)
        if rollout is None:
            return _Batch(flat, None, metrics, names, known)
        return _Batch(*layout.one_row_per_rollout(flat, names), metrics, names, known)

    def _scores(
        self, given: dict[str, Any], prompt: Tensor, usable: Tensor, names: Sequence[Any]
    ) -> dict[str, Tensor | None]:
        """Return the scores that have a weight; None for one that no row has."""
        count, device = len(prompt), prompt.device
        durian, weights = self.options["estimator"] == "durian", self.options["weights"]
        if durian and given["category"] is not None and len(weights) < 4:
            raise ArgumentError("weights", "a fourth number, for category", f"{len(weights)} numbers")
        needed = [name for name in given if self.needs(name)]
        scores: dict[str, Tensor | None] = dict.fromkeys(given)
        for name in needed:
            if given[name] is None:
                continue
            if name == "category":
                scores[name] = self._category_numbers(given[name], count, device)
            else:
                scores[name] = None if bool(given[name].isnan().all()) else given[name]
        if count and needed and all(scores[name] is None for name in needed):
            absent = all(given[name] is None for name in needed)
            if absent or bool(usable.any()):
                raise ArgumentError(
                    " or ".join(needed),
                    f"for weights {tuple(weights)}, whose components need them (without them this is estimator='grpo')",
                    "None" if absent else "none that is known",
                )
        for name in ("visual_entropy", "category"):
            if (score := scores[name]) is not None:
                _require_one_per_prompt(name, score, prompt, usable, names)
        return scores

    def _category_numbers(self, category: Any, count: int, device: torch.device) -> Tensor:
        keys, numbers = rows.keys("category", category, count), self._categories
        for key in keys:
            if key not in numbers:
                numbers[key] = numbers.get(_saved(key), len(numbers))
        return torch.tensor([numbers[key] for key in keys], dtype=torch.int64, device=device)

    def _check_groups(self, prompt: Tensor, rollout: Tensor | None, real: Tensor) -> None:
        """Refuse ids that no two rollouts share, and one prompt where others are needed.

        Prompts without a row that is ``real`` are padding; of the others the rows that are not count, as it says
        nothing of the ids that one rollout of a prompt was cut.
        """
        name = self.options["estimator"]
        there = torch.isin(prompt, prompt[real]) & (prompt != rows.MISSING)
        known = prompt[there]
        if rollout is not None:  # of each the prompt
            known = torch.zeros_like(prompt).scatter(0, rollout[there], known)[torch.unique(rollout[there])]
        sizes = torch.unique(known, return_counts=True)[1]
        if len(sizes) > 1 and int(sizes.max()) == 1 and name != "reinforce_plus_plus":
            raise ArgumentError(
                "prompts",
                "ids that the rollouts of a prompt share",
                f"{len(sizes)} ids for {len(sizes)} rollouts; are they ids of rows?",
            )
        if len(sizes) == 1 and self.needs_prompts:
            raise ArgumentError(
                "prompts",
                "several prompts per call, or window > 0: of one prompt alone this is GRPO (estimator='grpo')",
                "1 prompt",
            )

    # --- from tensors to advantages -------------------------------------------------------------------

    def _components(self, batch: layout.Rollouts) -> DurianComponents:
        """Return components whose ``advantages`` are the estimator's, for rollouts in the flat form."""
        chosen = self.options
        if chosen["estimator"] == "durian":
            return self._durian(batch, **_some(chosen, "weights", "entropy_quantiles", "num_confidence_buckets"))
        of_std = _some(chosen, "eps", "correction")
        data: dict[str, Any] = {"prompt_index": batch.prompt_index, "valid": batch.valid}
        components = durian_components(batch.rewards, **data, **of_std)
        if chosen["no_signal"] == "drop":
            data["valid"] = data["valid"] & components.has_signal
        return components._replace(advantages=self._advantages(batch, data, of_std))

    def _advantages(self, batch: layout.Rollouts, data: dict[str, Any], of_std: dict[str, Any]) -> Tensor:
        """Return the advantages of an estimator other than Durian."""
        name = self.options["estimator"]
        if name == "difficulty_prior":
            return weighting.reweighted_advantage(
                batch.rewards, weight=self._weighting, success_threshold=self.options["success_threshold"], **data
            )
        if name == "batch_std" and self.options["window"]:
            # batch std is the std of a bucket that all prompts share
            alike = torch.zeros(len(batch.rewards), dtype=torch.float32, device=batch.rewards.device)
            return self._durian(
                batch._replace(confidence=alike), weights=(0.0, 0.0, 1.0), num_confidence_buckets=1
            ).advantages
        if name in _WITHOUT_STD:
            return _WITHOUT_STD[name](batch.rewards, **data)
        return _OF_STD[name](batch.rewards, **data, **of_std)

    def _durian(self, batch: layout.Rollouts, **chosen: Any) -> DurianComponents:
        """Return Durian's components, with the window where there is one."""
        compute: Callable[..., Any] = partial(
            durian_components if self.options["window"] == 0 else windowed_components,
            batch.rewards,
            visual_entropy=batch.visual_entropy,
            confidence=batch.confidence,
            category=batch.category,
            prompt_index=batch.prompt_index,
            valid=batch.valid,
            **chosen,
            **_some(self.options, "no_signal", "eps", "correction"),
        )
        if self.options["window"] == 0:
            components: DurianComponents = compute()
            return components
        if self._window is not None:
            moved = (None if x is None else x.to(batch.rewards.device) for x in self._window)
            self._window = Window._make(moved)
        components, self._window = compute(window=self._window, size=self.options["window"])
        return components

    def _weighting(self, accuracy: Tensor) -> Tensor:
        """Weight prompts by their accuracy; the random control goes on where the last call stopped."""
        function: Callable[..., Tensor] = getattr(weighting, self.options["weighting"])
        if self.options["weighting"] != "uniform":
            return function(accuracy)
        generator = torch.Generator(accuracy.device).manual_seed(0)
        if self._generator is not None:
            generator.set_state(self._generator)
        drawn = function(accuracy, generator=generator)
        self._generator = generator.get_state()
        return drawn


def _some(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: values[name] for name in names}


def _saved(key: Hashable) -> Hashable:
    """Return a category as a checkpoint holds it: its text where ``weights_only=True`` would not load its class."""
    return key if type(key) in (str, bytes, bool, int, float, type(None)) else f"{type(key).__name__} {key!r}"


def _share(members: Tensor) -> float:
    return float(members.double().mean())  # NaN of nothing


def _rollout_numbers(prompt: Tensor, rollouts: Any) -> Tensor:
    """Number the rollouts: rows that share prompt and id, a row of its own where the id is None."""
    number, _ = rows.ids("rollouts", rollouts, len(prompt), prompt.device)
    alone = number == rows.MISSING
    number = torch.where(alone, len(number) + torch.arange(len(number), device=number.device), number)
    # as one integer: unique columns take 50 times as long
    pairs: Tensor = torch.unique(prompt * (2 * len(number)) + number, return_inverse=True)[1]
    return pairs


def _require_ids(prompt: Tensor, usable: Tensor) -> None:
    nameless = usable & (prompt == rows.MISSING)
    if bool(nameless.any()):
        row = int(nameless.nonzero()[0])
        raise ArgumentError(f"prompts[{row}]", "an id, for a row that is valid", "None")


def _require_one_per_prompt(name: str, score: Tensor, prompt: Tensor, usable: Tensor, names: Sequence[Any]) -> None:
    """Refuse scores that differ within a prompt: its rows share the images, and the kind."""
    known = usable & ~score.isnan()
    values, index = score[known], prompt[known]
    count = len(names)
    low = layout.segment_extreme(values, index, count, "amin")
    high = layout.segment_extreme(values, index, count, "amax")
    differ = low < high
    if bool(differ.any()):
        place = int(differ.nonzero()[0])
        pair = " and ".join(f"{float(x):g}" for x in (low[place], high[place]))
        raise ArgumentError(name, "one value for all rows of a prompt", f"{pair} for prompt {names[place]!r:.60}")
