"""Groups of consecutive rollouts, where a trainer guarantees them and writes no id: their size is derived and checked.

A group's size divides the length of every run of rollouts with one prompt text: two neighbors may ask the same of two
images. Of the divisors, the largest is taken under which the logged advantages follow from the rewards: in each group
they sum to zero and are proportional to reward minus mean, whatever std they were divided by.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from durian_adv.data.logs.checks import Finding
from durian_adv.data.logs.formats.base import Reading
from durian_adv.data.logs.rows import Row, identity, label, missing, number, weighted

TOLERANCE = 1e-3  # of advantages, which trainers compute in float32


def rows(
    rows: Iterator[Row], reading: Reading, advantage: str, rewards: Callable[[list[Row]], list[list[str]]]
) -> Iterator[Row]:
    """Give the rows with ``prompt``, ``label`` and ``reward``, step by step.

    Args:
        rows: of a file, in its order.
        reading: what is told of the log, and is told.
        advantage: the key of the logged advantages.
        rewards: of a step's rows, which columns may be the rewards, the likeliest first.
    """
    for _, step in itertools.groupby(rows, key=lambda row: row.given.get("step", row.values.get("step"))):
        yield from _step(list(step), reading, advantage, rewards)


def _step(
    step: list[Row], reading: Reading, advantage: str, rewards: Callable[[list[Row]], list[list[str]]]
) -> Iterator[Row]:
    named = reading.keys.named
    prompts = [identity(row.values["prompt"], row.where) for row in step]
    choices = [[named["reward"]]] if "reward" in named else [columns for columns in rewards(step) if columns]
    if not choices:
        raise ValueError(f"{step[0].where}: expected a column of rewards, got none: --key reward=KEY names it")
    logged = torch.tensor(
        [number(row.values.get(advantage), row.where, advantage) for row in step], dtype=torch.float64
    )
    sums = ["+".join(columns) for columns in choices]
    totals = [torch.tensor([_total(row, key) for row in step], dtype=torch.float64) for key in sums]
    size, choice, explained = _derive(prompts, totals, logged, reading.group_size)
    _tell(reading, choices[choice], size, explained, bool(logged.isfinite().any()))
    met: dict[str, int] = {}
    for place, (row, prompt, reward) in enumerate(zip(step, prompts, totals[choice].tolist(), strict=True)):
        if size > 1 and place % size == 0:  # 1: no size divides all runs, and a prompt is its text
            met[prompt] = met.get(prompt, -1) + 1
        given = {"prompt": [prompt, met.get(prompt, 0)], "label": label(row.values["prompt"]), "reward": reward}
        yield row._replace(given={**row.given, **given})


def _total(row: Row, key: str) -> float:
    value = weighted(row.values, key, row.where)
    if missing(value):
        raise ValueError(f"{row.where}: expected the key {key!r}, got {', '.join(row.values)}")
    return number(value, row.where, key)


def _derive(
    prompts: Sequence[str], totals: Sequence[Tensor], logged: Tensor, told: int | None
) -> tuple[int, int, bool]:
    """Return the size of the groups, which rewards were taken, and whether they explain the advantages."""
    runs = [len(list(run)) for _, run in itertools.groupby(prompts)]
    common = math.gcd(*runs)
    sizes = [told] if told else [size for size in range(common, 1, -1) if common % size == 0]
    for size in sizes:  # a small size may fit by chance, so the largest goes first
        for choice, rewards in enumerate(totals):
            if len(rewards) % size == 0 and explains(rewards.view(-1, size), logged.view(-1, size)):
                return size, choice, True
    return told or common, 0, False


def explains(rewards: Tensor, advantages: Tensor) -> bool:
    """Whether advantages ``(B, G)`` are, in each group, a positive multiple of the rewards minus their mean.

    Groups in which a number is not known are left out.
    """
    known = (rewards.isfinite() & advantages.isfinite()).all(1)
    centered = rewards[known] - rewards[known].mean(1, keepdim=True)
    given = advantages[known]
    length, size = centered.norm(dim=1, keepdim=True), given.norm(dim=1, keepdim=True)
    # where all rewards are equal, all advantages are 0, but for the round-off that trainers divide by a tiny std
    flat = centered.abs().amax(1) <= 1e-9 * rewards[known].abs().amax(1).clamp(min=1.0)
    off = (given * length - centered * size).abs() > TOLERANCE * length * size.clamp(min=TOLERANCE)
    wrong = torch.where(flat, (given.abs() > 0.1).any(1), off.any(1) | (size.squeeze(1) == 0))
    return len(given) > 0 and not bool(wrong.any())


def _tell(reading: Reading, columns: list[str], size: int, explained: bool, logged: bool) -> None:
    rewards = " + ".join(columns)
    reading.said[f"reward = {rewards}"] = None
    reading.said[f"groups of {size} consecutive rollouts" if size > 1 else "groups by the text of the prompt"] = None
    if logged and not explained:
        within = f"Within groups of {size} consecutive rollouts" if size > 1 else "Within prompts of one text"
        reading.findings["advantages"] = Finding(
            "advantages",
            "The logged advantages do not follow from the rewards that are read",
            f"{within} they are no multiple of {rewards} minus its mean, "
            "in at least one step. Rewards may have weights (--key reward=accuracy*0.9+format*0.1), or groups another "
            "size (--group-size).",
            broken=False,
        )
