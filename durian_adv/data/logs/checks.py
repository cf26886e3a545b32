"""Whether a log was read as it was sampled: what its groups, entropies and rewards say, with the option that mends it.

A wrong grouping is silent: prompts that are merged, split or joined over steps give numbers that look like any others.
These functions look at counts alone, so that ``report``, ``metrics`` and ``curate`` tell the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# of the rollouts: a grouping with more in suspicious groups is called broken, and nothing is concluded from it
BROKEN_SHARE = 0.01
# of the prompts: where fewer have the most frequent group size, sizes vary by nature and multiples of it mean nothing
USUAL_SHARE = 0.5
FEW_VALUES = 4  # of rewards: accuracy and format give as many; more are no plain right and wrong
_KEPT_VALUES = 1000  # distinct rewards that are counted


class Finding(NamedTuple):
    """One thing that a log's grouping says."""

    kind: str
    title: str
    text: str  # the likely cause, and the option that mends it
    broken: bool  # whether no conclusion may be drawn


class Mend(NamedTuple):
    """The options of a command that mend a grouping."""

    prompt: str  # an id of several columns
    step: str  # steps that are told apart


OF_LOGS = Mend("--key prompt=input+image", "--key step=KEY or --file-per-step")


class Facts(NamedTuple):
    """What the checks look at: counts over the steps of a log."""

    sizes: Counter[int]  # rollouts per prompt and step -> how many such groups
    runs: Counter[int]  # lengths of the runs of consecutive rollouts of one prompt
    entropies: int = 0  # groups in which the visual entropy differs
    steps: int = 0
    spans: int = 0  # groups whose rollouts stand in several files, where no row names a step
    values: frozenset[float] = frozenset()  # distinct rewards, up to some 1,000

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return self.sizes.total()

    @property
    def rollouts(self) -> int:
        """How many rollouts there are."""
        return sum(size * groups for size, groups in self.sizes.items())


NONE = Facts(Counter(), Counter())


def facts(
    prompt_index: Tensor, rewards: Tensor, visual_entropy: Tensor | None = None, files: Tensor | None = None
) -> Facts:
    """Return the facts of one step.

    Args:
        prompt_index: ``(N,)`` positions of prompts, in the order of the log.
        rewards: ``(N,)``, NaN where unknown.
        visual_entropy: ``(N,)``, NaN where unknown.
        files: ``(N,)`` in which file a rollout stands, where a file may be a step.

    >>> facts(torch.tensor([0, 0, 1, 1, 0]), torch.tensor([1.0, 0, 0, 0, 1])).sizes
    Counter({3: 1, 2: 1})
    """
    counts = torch.bincount(prompt_index)
    sizes = Counter(counts[counts > 0].tolist())
    _, lengths = torch.unique_consecutive(prompt_index, return_counts=True)
    differing = 0
    if visual_entropy is not None:
        known = ~visual_entropy.isnan()
        index, values = prompt_index[known], visual_entropy[known]
        low = values.new_full((len(counts),), math.inf).scatter_reduce(0, index, values, "amin")
        high = values.new_full((len(counts),), -math.inf).scatter_reduce(0, index, values, "amax")
        differing = int((high > low).sum())
    spans = 0
    if files is not None and len(files):
        pairs = torch.unique(torch.stack([prompt_index, files]), dim=1)[0]
        spans = int((torch.bincount(pairs) > 1).sum())
    distinct = torch.unique(rewards[rewards.isfinite()]).tolist()
    return Facts(sizes, Counter(lengths.tolist()), differing, 1, spans, _kept(distinct))


def merged(parts: Iterable[Facts]) -> Facts:
    """Return the facts of several steps as one."""
    sizes: Counter[int] = Counter()
    runs: Counter[int] = Counter()
    values: set[float] = set()
    entropies = steps = spans = 0
    for part in parts:
        sizes.update(part.sizes)
        runs.update(part.runs)
        entropies, steps, spans = entropies + part.entropies, steps + part.steps, spans + part.spans
        values = set(_kept(sorted(values | part.values)))
    return Facts(sizes, runs, entropies, steps, spans, frozenset(values))


def _kept(values: Sequence[float]) -> frozenset[float]:
    """Return values, from the smallest up, in a bounded number: the largest is always among them."""
    return frozenset([*values[: _KEPT_VALUES - 1], *values[-1:]])


def usual(counts: Counter[int]) -> int | None:
    """Return the size of most groups; None where no size has at least half of them."""
    if not counts:
        return None
    size, groups = max(counts.items(), key=lambda pair: (pair[1], -pair[0]))
    return size if groups >= USUAL_SHARE * counts.total() else None


def described(sizes: Counter[int], most: int = 6) -> str:
    """Write how large groups are: ``30 prompts x 8 rollouts, 1 x 16``.

    >>> described(Counter({8: 30, 16: 1}))
    '30 prompts x 8 rollouts, 1 x 16'
    """
    if not sizes:
        return "no prompts"
    ordered = sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0]))
    (size, groups), *others = ordered
    told = f"{groups:,} prompt{'s' * (groups != 1)} x {size:,} rollout{'s' * (size != 1)}"
    told += "".join(f", {count:,} x {n:,}" for n, count in others[: most - 1])
    rest = sum(count for _, count in others[most - 1 :])
    return told + (f", {rest:,} of other sizes" if rest else "")


def grouping(found: Facts, mend: Mend = OF_LOGS) -> list[Finding]:
    """Return what is suspicious of the groups.

    >>> [finding.kind for finding in grouping(NONE._replace(sizes=Counter({1: 384})))]
    ['single']
    """
    sizes = found.sizes
    if set(sizes) == {1} and found.groups > 1:
        return [
            Finding(
                "single",
                f"Every prompt has one rollout: {found.groups:,} ids for {found.groups:,} rollouts",
                "So no rollout can be compared with another. The likely cause is an id of the row, not of the prompt "
                f"(verl's uid is one): name the columns that the rollouts of a prompt share ({mend.prompt}).",
                broken=True,
            )
        ]
    checks = (_merged_prompts(found, mend), _lone(found, mend), _several_entropies(found, mend), _lost_steps(found))
    return [finding for finding in checks if finding is not None]


def _merged_prompts(found: Facts, mend: Mend) -> Finding | None:
    size = usual(found.sizes)
    if size is None or size == 1:
        return None
    many = {n: groups for n, groups in found.sizes.items() if n > size and n % size == 0}
    if not many:
        return None
    groups, rollouts = sum(many.values()), sum(n * groups for n, groups in many.items())
    return Finding(
        "multiples",
        f"{groups:,} of {found.groups:,} prompts have a multiple of the usual {size} rollouts",
        f"{described(found.sizes)}. The likely cause is that several prompts share an id (a question asked of several "
        f"images, an empty text), which several columns tell apart ({mend.prompt}), or that several steps are read as "
        f"one ({mend.step}).",
        broken=rollouts > BROKEN_SHARE * found.rollouts,
    )


def _lone(found: Facts, mend: Mend) -> Finding | None:
    groups = found.sizes[1]
    if not groups or len(found.sizes) == 1:
        return None
    return Finding(
        "lone",
        f"{groups:,} of {found.groups:,} prompts have one rollout",
        "They have no signal, as nothing can be compared with them. The likely cause is that rollouts were filtered, "
        f"or that an id is of the row and not of the prompt, which another column mends ({mend.prompt}).",
        broken=groups > 0.5 * found.groups,
    )


def _several_entropies(found: Facts, mend: Mend) -> Finding | None:
    if not found.entropies:
        return None
    return Finding(
        "entropies",
        f"{found.entropies:,} of {found.groups:,} prompts have several visual entropies",
        "An image has one entropy, so the likely cause is that prompts of several images share an id, which several "
        f"columns tell apart ({mend.prompt}).",
        broken=found.entropies > BROKEN_SHARE * found.groups,
    )


def _lost_steps(found: Facts) -> Finding | None:
    """Look for prompts that come back: in another file, or after others, always with as many rollouts."""
    if found.spans:
        return Finding(
            "steps",
            f"{found.spans:,} of {found.groups:,} prompts have rollouts in several files, and no row names a step",
            "The likely cause is a file per step: --file-per-step takes each file as one. Where the files are parts of "
            "one sampling, --no-file-per-step says so.",
            broken=found.spans > BROKEN_SHARE * found.groups,
        )
    size, run = usual(found.sizes), usual(found.runs)
    back = found.runs.total() - found.groups
    if size is None or run is None or run == 1 or size == run or size % run or set(found.runs) != {run}:
        return None
    return Finding(
        "steps",
        f"Prompts come back: {back:,} times a prompt of {size} rollouts goes on after others, {run} rollouts at a time",
        f"The likely cause is that several steps or epochs are read as one ({OF_LOGS.step}), or that several prompts "
        f"share an id: --group-size {run} takes each {run} consecutive rollouts as a prompt.",
        broken=True,
    )


def threshold(values: frozenset[float]) -> float:
    """Return which rewards are correct where nobody says it: above 0.5 in [0, 1], else above the middle of their range.

    >>> threshold(frozenset({0.0, 1.0})), threshold(frozenset({-1.0, 1.0})), threshold(frozenset({0.0, 40.0, 100.0}))
    (0.5, 0.0, 50.0)
    """
    if not values or (min(values) >= 0 and max(values) <= 1):
        return 0.5
    return min(values) / 2 + max(values) / 2


def scale(values: frozenset[float], given: float | None = None) -> Finding | None:
    """Return what is to be said of the rewards' scale, where no threshold is given."""
    outside = bool(values) and (min(values) < 0 or max(values) > 1)
    if given is not None or not (outside or len(values) > FEW_VALUES):
        return None
    many = f"{len(values):,}" if len(values) < _KEPT_VALUES else f"at least {_KEPT_VALUES:,}"
    derived = threshold(values)
    why = "The middle of their range is taken, as they are not 0 to 1" if outside else "The middle of 0 to 1 is taken"
    return Finding(
        "scale",
        f"Rewards from {min(values):g} to {max(values):g}, {many} distinct values: above {derived:g} counts as correct",
        f"{why}. What goes by correct rollouts depends on it (accuracy, extreme prompts): --success-threshold sets it.",
        broken=False,
    )
