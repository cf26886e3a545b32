"""What a report says of a log, added up step by step: memory grows with the steps, never with the rollouts."""

from __future__ import annotations

import heapq
import math
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from durian_adv import DurianComponents, durian_components, quantile_buckets
from durian_adv._src import exact
from durian_adv.data.logs.checks import Finding
from durian_adv.data.logs.steps import Name, Step
from durian_adv.diagnostics import (
    GROUP_KINDS,
    PromptOutcomes,
    cosine,
    durian_metrics,
    group_kinds,
    prompt_outcomes,
    update_by_prompt,
)
from durian_adv.report import arms
from durian_adv.report.arms import METHODS
from durian_adv.worth import Worth

SCORES = {"visual_entropy": ("entropy_bucket", "perceptual_std"), "confidence": ("confidence_bucket", "reasoning_std")}
TENTHS = 10
RATIO_BINS = [k / 8 for k in range(-24, 25)]  # edges, in powers of two: from an eighth to eight times
NOTABLE = 1.25  # how many times as hard, or as softly, is a notable change
LISTED = 5  # prompts that change most, each way
_FEW_VALUES = 3  # distinct rewards per step that are looked at: more than two are not binary
_SHUFFLES = 4  # times that the scores are shuffled per step, for stds by chance


class Change(NamedTuple):
    """How a prompt is pulled: its share of its step's sum of |A|."""

    ratio: float  # of Durian's share to GRPO's
    order: int  # in the log, so that ties are settled alike in every run
    step: Name | None
    prompt: Name
    correct: int
    rollouts: int
    grpo: float
    durian: float


class Tenth(NamedTuple):
    """Prompts whose score lies in one tenth of their step's scores, from the lowest up."""

    prompts: int
    accuracy: float  # mean over the prompts
    error: float  # standard error of this mean; 0 for fewer than two prompts
    errors: float  # share of all wrong rollouts (Appendix B); NaN if none is wrong


class Bucket(NamedTuple):
    """A bucket over the steps that have one."""

    std: float  # over that of all rewards of the step: mean over steps
    low: float  # 10% of the steps
    high: float  # 90%
    prompts: float  # mean over steps
    fewest: int


class Summary:
    """Numbers of a log; ``add`` takes its steps, the methods then tell what there was."""

    def __init__(
        self,
        components: arms.Components,
        *,
        success_threshold: float = 0.5,
        eps: float = 1e-6,
        correction: int = 1,
        read_as: str = "",
        grouping: Sequence[Finding] = (),
    ) -> None:
        """Start with nothing.

        Args:
            components: of a step; options that it is given by name take the place of those that were chosen.
            success_threshold: as in ``durian_metrics``.
            eps: of batch std.
            correction: of batch std, 1 for the sample std or 0 for the population std.
            read_as: what the log was read as.
            grouping: what is suspicious of it.
        """
        self._components = components
        self.read_as, self.grouping = read_as, grouping
        self._eps, self._correction = eps, correction
        self.success_threshold = success_threshold
        self.smallest, self.largest = math.inf, -math.inf  # reward of all
        self.values: set[float] = set()  # distinct rewards, no more than are needed to know that there are many
        self.categories: set[int] = set()
        self.names: list[Name | None] = []
        # one number per step, NaN where there is none
        self.columns: defaultdict[str, array[float]] = defaultdict(lambda: array("d", [math.nan] * len(self.names)))
        self.kinds: defaultdict[str, int] = defaultdict(int)  # prompts
        # of effective prompts with so many correct of so many rollouts: how many; under each method their pull, and
        # their largest |A|; where 1 is the mean of their step
        self.pull: defaultdict[tuple[int, int], list[float]] = defaultdict(lambda: [0.0] * (1 + 2 * len(METHODS)))
        self.ratios = torch.zeros(len(RATIO_BINS) - 1, dtype=torch.int64)
        self.notable = self.compared = 0
        self.raised: list[Change] = []
        self.lowered: list[Change] = []
        self._tenths = {score: torch.zeros(4, TENTHS, dtype=torch.float64) for score in SCORES}
        self._buckets: dict[str, defaultdict[int, tuple[array[float], array[float]]]] = {
            score: defaultdict(lambda: (array("d"), array("d"))) for score in SCORES
        }
        self._generator = torch.Generator().manual_seed(0)

    def add(self, step: Step) -> None:
        """Take one step."""
        rewards, index = step.rewards, step.prompt_index
        known = rewards[rewards.isfinite()]
        if len(known):
            self.smallest = min(self.smallest, float(known.amin()))
            self.largest = max(self.largest, float(known.amax()))
            if len(self.values) < _FEW_VALUES:
                self.values.update(torch.unique(known)[:_FEW_VALUES].tolist())
        parts = self._components(step)
        outcomes = prompt_outcomes(rewards, prompt_index=index, success_threshold=self.success_threshold)
        compared = arms.advantages(step, parts, self._components, eps=self._eps, correction=self._correction)
        # only ratios of pulls matter, and sums of the largest numbers would overflow
        in_units = {name: values / exact.safe_divisor(values.abs().amax()) for name, values in compared.items()}
        pulls = {name: update_by_prompt(values, prompt_index=index) for name, values in in_units.items()}
        metrics = durian_metrics(parts, rewards, prompt_index=index, success_threshold=self.success_threshold)
        self._put("std of all rewards", self._std_of_all(step))
        self._add_numbers(metrics, compared, outcomes, pulls)
        for name, found in arms.worth(step, compared, self.success_threshold).items():
            self._put(f"worth, {name}", found.worth)
            self._put(f"error of worth, {name}", found.standard_error)
        self._add_pulls(step, outcomes, [pulls[name] for name in METHODS], [in_units[name] for name in METHODS])
        for score, (bucket, shared) in SCORES.items():
            if getattr(parts, score) is not None:
                self._add_score(score, _by_prompt(getattr(parts, score), index, len(step.prompts)), outcomes)
                self._add_buckets(score, bucket, shared, metrics)
        self._add_chance(step, parts, outcomes)
        if step.category is not None:
            self._add_categories(step, step.category, outcomes)
        self.names.append(step.name)
        for values in self.columns.values():
            values.extend([math.nan] * (len(self.names) - len(values)))

    def _put(self, column: str, value: float) -> None:
        self.columns[column].append(value)

    def _std_of_all(self, step: Step) -> float:
        """Return what batch std divides by: the std of a bucket that all prompts share."""
        alike = torch.zeros_like(step.rewards)
        shared = durian_components(
            step.rewards,
            confidence=alike,
            prompt_index=step.prompt_index,
            correction=self._correction,
        ).reasoning_std
        assert shared is not None  # as there is a confidence
        return float(shared.amax())

    def _add_numbers(
        self,
        metrics: dict[str, float],
        advantages: Mapping[str, Tensor],
        outcomes: PromptOutcomes,
        pulls: Mapping[str, Tensor],
    ) -> None:
        for name in ("prompts", "rollouts", "reward_mean", "no_signal_share", "effective", "extreme_ratio"):
            self._put(name, metrics[f"durian/{name}"])
        correct, rollouts = int(outcomes.correct.sum()), int(outcomes.rollouts.sum())
        self._put("accuracy", _share(correct, rollouts))
        for name in ("extreme_failure", "extreme_success"):
            self._put(name, _share(metrics[f"durian/{name}"], metrics["durian/effective"]))
        self.kinds["no_signal"] += int(((outcomes.rollouts > 0) & ~outcomes.effective).sum())
        members = group_kinds(outcomes)
        for kind in GROUP_KINDS:
            self.kinds[kind] += int(members[kind].sum())
        for method, values in advantages.items():
            pull = pulls[method]
            self._put(f"largest, {method}", float(values.abs().amax()))
            self._put(f"GRPO to {method}", cosine(advantages["GRPO"], values))
            self._put(f"Durian to {method}", cosine(advantages["Durian"], values))
            total = float(pull.sum())
            for kind in GROUP_KINDS:
                self._put(f"{kind}, {method}", _share(float(pull[members[kind]].sum()), total))

    def _add_pulls(
        self, step: Step, outcomes: PromptOutcomes, pulls: list[Tensor], advantages: Sequence[Tensor]
    ) -> None:
        # advantages far below eps are rounded to 0: such prompts pull at nothing
        chosen = (outcomes.effective & (torch.stack(pulls) > 0).all(0)).nonzero().squeeze(1)
        if len(chosen) == 0:
            return
        largest_of = [
            values.new_zeros(len(step.prompts)).scatter_reduce(0, step.prompt_index, values.abs(), "amax")
            for values in advantages
        ]
        # (twice the methods, effective prompts)
        relative = torch.stack([values[chosen] / values[chosen].mean() for values in (*pulls, *largest_of)])
        level = torch.stack([outcomes.correct[chosen], outcomes.rollouts[chosen]])
        levels, place, counts = torch.unique(level, dim=1, return_inverse=True, return_counts=True)
        sums = relative.new_zeros(len(relative), levels.shape[1]).index_add(1, place, relative)
        for column, (correct, rollouts) in enumerate(levels.T.tolist()):
            kept = self.pull[correct, rollouts]
            for i, value in enumerate([float(counts[column]), *sums[:, column].tolist()]):
                kept[i] += value
        self._add_changes(step, outcomes, chosen, relative[0] / len(chosen), relative[len(METHODS) - 1] / len(chosen))

    def _add_changes(self, step: Step, outcomes: PromptOutcomes, chosen: Tensor, grpo: Tensor, durian: Tensor) -> None:
        """Compare the prompts' shares of the update."""
        ratio = durian / grpo
        power = ratio.log2().clamp(RATIO_BINS[0], RATIO_BINS[-1] - 1e-9)
        bins = torch.floor((power - RATIO_BINS[0]) * 8).long()
        self.ratios += torch.bincount(bins, minlength=len(self.ratios))
        self.notable += int(((ratio > NOTABLE) | (ratio < 1 / NOTABLE)).sum())
        few = min(LISTED, len(chosen))
        for largest, kept_so_far in ((True, self.raised), (False, self.lowered)):
            changes = []
            for place in ratio.topk(few, largest=largest).indices.tolist():
                prompt, order = int(chosen[place]), self.compared + place
                changes.append(
                    Change(
                        ratio=float(ratio[place]),
                        order=-order if largest else order,
                        step=step.name,
                        prompt=step.prompts[prompt],
                        correct=int(outcomes.correct[prompt]),
                        rollouts=int(outcomes.rollouts[prompt]),
                        grpo=float(grpo[place]),
                        durian=float(durian[place]),
                    )
                )
            pick = heapq.nlargest if largest else heapq.nsmallest
            kept_so_far[:] = pick(LISTED, [*kept_so_far, *changes])
        self.compared += len(chosen)

    def _add_score(self, name: str, score: Tensor, outcomes: PromptOutcomes) -> None:
        scored = (~score.isnan()).nonzero().squeeze(1)  # prompts without a rollout have none
        self._put(f"scored, {name}", float(len(scored)))
        tenth = quantile_buckets(score[scored], TENTHS)
        rollouts, correct = outcomes.rollouts[scored].double(), outcomes.correct[scored].double()
        accuracy = correct / rollouts
        values = torch.stack([torch.ones_like(accuracy), accuracy, accuracy**2, rollouts - correct])
        self._tenths[name].index_add_(1, tenth, values)

    def _add_buckets(self, score: str, bucket: str, shared: str, metrics: dict[str, float]) -> None:
        self._put(f"fewest, {score}", metrics[f"durian/{bucket}_prompts_min"])
        whole = self.columns["std of all rewards"][-1] or 1.0
        number = 0
        while (prompts := metrics.get(f"durian/{bucket}_{number}_prompts")) is not None:
            std = metrics.get(f"durian/{shared}_{number}")
            if std is not None:
                for column, value in zip(self._buckets[score][number], (std / whole, prompts), strict=True):
                    column.append(value)
            number += 1

    def _add_chance(self, step: Step, parts: DurianComponents, outcomes: PromptOutcomes) -> None:
        """Compare how much the shared stds differ with how much they do in buckets of shuffled prompts."""
        index, chosen = step.prompt_index, outcomes.effective
        present = {name: getattr(parts, name) for name in SCORES if getattr(parts, name) is not None}
        scores = {name: _by_prompt(score, index, len(step.prompts)) for name, score in present.items()}
        for name in scores:
            std = _by_prompt(getattr(parts, SCORES[name][1]), index, len(step.prompts))
            self._put(f"spread, {name}", _spread(std[chosen]))
        chance: defaultdict[str, float] = defaultdict(float)
        for _ in range(_SHUFFLES if scores else 0):
            shuffled = {name: self._shuffled(score)[index] for name, score in scores.items()}
            by_chance = self._components(
                step._replace(visual_entropy=shuffled.get("visual_entropy"), confidence=shuffled.get("confidence"))
            )
            for name in scores:
                std = _by_prompt(getattr(by_chance, SCORES[name][1]), index, len(step.prompts))
                chance[name] += _spread(std[chosen]) / _SHUFFLES
        for name in scores:
            self._put(f"spread by chance, {name}", chance[name])

    def _add_categories(self, step: Step, category: Tensor, outcomes: PromptOutcomes) -> None:
        """Compare how much the stds of the categories differ with how much they do when categories are shuffled."""
        index, count = step.prompt_index, len(step.prompts)
        self.categories.update(torch.unique(category).tolist())
        of_prompts = _by_prompt(category, index, count)
        spreads = []
        for shuffled in range(1 + _SHUFFLES):
            if shuffled:
                of_prompts = of_prompts[torch.randperm(count, generator=self._generator)]
            std = arms.by_category(step._replace(category=of_prompts[index]), self._components).category_std
            assert std is not None  # as there is a category
            spreads.append(_spread(_by_prompt(std, index, count)[outcomes.effective]))
        self._put("spread, category", spreads[0])
        self._put("spread by chance, category", math.fsum(spreads[1:]) / _SHUFFLES)

    def _shuffled(self, score: Tensor) -> Tensor:
        scored = (~score.isnan()).nonzero().squeeze(1)
        moved = score.clone()
        moved[scored] = score[scored[torch.randperm(len(scored), generator=self._generator)]]
        return moved

    @property
    def parted(self) -> bool:
        """Whether the threshold parts the rewards: else all rollouts are correct, or none is, and that says nothing."""
        return self.smallest <= self.success_threshold < self.largest

    @property
    def binary(self) -> bool:
        """Whether rewards take two values."""
        return len(self.values) == 2

    def has(self, score: str) -> bool:
        """Whether a step had this score."""
        return bool(self._buckets[score])

    def mean(self, column: str, *, of_effective: bool = True) -> float:
        """Return the mean of a column over the steps, by default over those with signal; NaN without any."""
        pairs = zip(self.columns[column], self.columns["effective"], strict=True)
        values = [value for value, effective in pairs if not math.isnan(value) and (effective or not of_effective)]
        return _share(math.fsum(values), len(values))

    def angle(self, first: str, second: str) -> float:
        """Return the angle between the advantages of GRPO or Durian and a method in degrees: median of the steps.

        Steps without signal have none; NaN if no step has one.
        """
        cosines = sorted(value for value in self.columns[f"{first} to {second}"] if not math.isnan(value))
        if not cosines:
            return math.nan
        middle = (cosines[(len(cosines) - 1) // 2] + cosines[len(cosines) // 2]) / 2
        return math.degrees(math.acos(middle))

    def worth(self, method: str) -> Worth:
        """Return what an estimator is predicted to be worth: mean of the steps that define it; NaN if none does."""
        values, errors = (self.columns[f"{name}, {method}"] for name in ("worth", "error of worth"))
        found = [pair for pair in zip(values, errors, strict=True) if not any(map(math.isnan, pair))]
        mean = _share(math.fsum(value for value, _ in found), len(found))
        return Worth(mean, _share(math.hypot(*(error for _, error in found)), len(found)))

    def extreme(self, method: str) -> float:
        """Return the share of the update that extreme groups carry: mean of the steps that define it."""
        return sum(self.mean(f"{kind}, {method}") for kind in ("extreme_failure", "extreme_success"))

    def most(self, method: str) -> float:
        """Return the largest absolute advantage; NaN if no step has the estimator's inputs."""
        return max((value for value in self.columns[f"largest, {method}"] if not math.isnan(value)), default=math.nan)

    def tenths(self, score: str) -> list[Tenth]:
        """Return the tenths of a score, from the lowest up; without prompts none."""
        wrong = float(self._tenths[score][3].sum())
        found = []
        for n, total, squares, errors in self._tenths[score].T.tolist():
            accuracy = total / n if n else 0.0
            variance = max(0.0, squares / n - accuracy**2) * n / (n - 1) if n > 1 else 0.0
            found.append(Tenth(int(n), accuracy, math.sqrt(variance / max(1, n)), _share(errors, wrong)))
        return found

    def buckets(self, score: str) -> dict[int, Bucket]:
        """Return the buckets of a score by number."""
        found = {}
        for number, (stds, prompts) in sorted(self._buckets[score].items()):
            ordered = sorted(stds)
            low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.9))
            mean = math.fsum(prompts) / len(prompts)
            found[number] = Bucket(math.fsum(stds) / len(stds), low, high, mean, int(min(prompts)))
        return found


def _share(part: float, whole: float) -> float:
    """Return a part over the whole; NaN of nothing."""
    return part / whole if whole else math.nan


def _by_prompt(value: Tensor, index: Tensor, prompts: int) -> Tensor:
    return value.new_zeros(prompts).index_copy(0, index, value)


def _spread(std: Tensor) -> float:
    """Return the std of the logarithm: 0.1 where stds differ by about 10%."""
    positive = std[std > 0].log()
    return float(positive.std(correction=0)) if len(positive) else 0.0
