"""Reductions over the prompts of each bucket, and ranks among all prompts, in the form that suits the machine.

As a rule buckets are numbered, scattered to and gathered from, and ranks come from a sort: time and memory grow with
the prompts. A compiler for GPUs can fuse none of that: each becomes a kernel of its own, with another one to clear what
it adds to, and a launch takes longer than the work on some hundred prompts. There every prompt is compared with every
other one, and what is reduced over a prompt's bucket is at once where the next step needs it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from durian_adv._src import exact

# Pairs are B^2, so there is a turn: docs/gpu.md counts the bytes of both forms.
MAX_PROMPTS_IN_PAIRS = 4096


def in_pairs(of_prompts: Tensor) -> bool:
    """Say whether the prompts of ``of_prompts (..., B)`` are to be compared in pairs."""
    device = of_prompts.device.type
    return torch.compiler.is_compiling() and device != "cpu" and 0 < of_prompts.shape[-1] <= MAX_PROMPTS_IN_PAIRS


class Partitions(NamedTuple):
    """C partitions of the prompts into buckets."""

    bucket: Tensor  # (C, B) int64
    num_buckets: int  # buckets are numbered from 0 to less than this
    pairs: Tensor | None  # (C, B, B) whether two prompts share a bucket; None: buckets are scattered to


def partitions_of(bucket: Tensor, num_buckets: int, pairs: bool) -> Partitions:
    """Take ``bucket (C, B)`` in one of the two forms."""
    if not pairs:
        return Partitions(bucket, num_buckets, None)
    bucket = _written(bucket)
    return Partitions(bucket, num_buckets, bucket[:, :, None] == bucket[:, None, :])


def smallest(value: Tensor, of: Partitions) -> Tensor:
    """Return the smallest of ``value (B,)`` in each bucket; ``spread`` gives the values of buckets to their prompts."""
    return _reduced(value, of, torch.inf, "amin")


def largest(value: Tensor, of: Partitions) -> Tensor:
    """Return the largest of ``value (B,)`` in each bucket."""
    return _reduced(value, of, -torch.inf, "amax")


def total(value: Tensor, of: Partitions) -> Tensor:
    """Return the sum of ``value (B,)``, whole numbers, in each bucket."""
    return _reduced(value, of, 0.0, "sum")


def exact_total(terms: Tensor, of: Partitions) -> Tensor:
    """Return the sum of ``terms (C, B)`` in each bucket, exact as in ``exact.py``."""
    if of.pairs is None:
        return exact.segment_sum(terms, of.bucket, of.num_buckets)
    return exact.exact_sum(torch.where(of.pairs, terms[:, None, :], 0.0), -1)


def spread(of_buckets: Tensor, of: Partitions) -> Tensor:
    """Give every prompt the value of its bucket: ``(C, B)``."""
    return of_buckets.gather(1, of.bucket) if of.pairs is None else of_buckets


def _written(value: Tensor) -> Tensor:
    """Have a compiler write down a value for each prompt that it would compute again for each pair."""
    return value.as_strided(value.shape, value.stride())


def _reduced(value: Tensor, of: Partitions, start: float, reduce: str) -> Tensor:
    if of.pairs is None:
        buckets = value.new_full((len(of.bucket), of.num_buckets), start)
        return buckets.scatter_reduce(1, of.bucket, value.expand_as(of.bucket), reduce)
    members: Tensor = getattr(torch.where(of.pairs, value, start), reduce)(-1)
    return members


def ranks(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count for each of ``values (B,)`` how many are less, how many are not greater, and how many are not NaN."""
    own, other = values[:, None], values[None, :]
    # the last count is the same for all: as one of pairs, too, it needs no pass of its own
    return (other < own).sum(1), (other <= own).sum(1), (~other.isnan()).expand(len(values), -1).sum(1)
