"""A batch whose rollouts lie on several ranks, brought together: every rank then computes on all of it.

A call is two all-gathers: a header of 72 bytes per rank, then 16 to 48 bytes per rollout, padded to the
rank that has most. All that can be wrong is in the headers, so that ranks raise together instead of
waiting for one another.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from durian_adv._src.errors import ArgumentError, ArgumentTypeError
from durian_adv._src.layout import Rollouts


class Share(NamedTuple):
    """Which of the gathered rollouts are this rank's, and in what form it gave them."""

    start: int
    stop: int
    shape: torch.Size
    device: torch.device


class _Header(NamedTuple):
    refused: int  # 1 if this rank's arguments are at fault
    flat: int  # 1 with prompt_index
    entropy: int  # 1 if given
    confidence: int  # 1 if given
    category: int  # 1 if given
    rollout_index: int  # 1 if given
    options: int  # a checksum
    rollouts: int
    prompts: int  # of the dense form


def gather(local: Rollouts, check: Callable[[], object], group: Any) -> tuple[Rollouts, Share]:
    """Return the rollouts of all ranks in the flat form, float64, and which of them are this rank's.

    Args:
        local: this rank's rollouts.
        check: raises an error if an argument of this rank is at fault, else returns the options,
            which must be the same on all ranks.
        group: a ``torch.distributed`` process group that this rank belongs to.

    Raises:
        TypeError: ``group`` is not a process group of this rank.
        ValueError: ranks differ in which arguments they give, or in the options.
        RuntimeError: the arguments of another rank were refused there.
    """
    if not isinstance(group, dist.ProcessGroup):
        raise ArgumentTypeError(
            "process_group", "a torch.distributed.ProcessGroup with this rank", type(group).__name__
        )
    # gloo moves no tensors of GPUs
    home = local.rewards.device if isinstance(local.rewards, Tensor) else torch.device("cpu")
    device = torch.device("cpu") if dist.get_backend(group) == "gloo" else home
    error, columns = None, torch.empty(0)
    try:
        header = _header(local, check())
        columns = _columns(local, device)
    except Exception as refusal:  # raised below, once the other ranks know
        error, header = refusal, _Header(1, *[0] * (len(_Header._fields) - 1))
    encoded = torch.tensor(header, dtype=torch.int64, device=device)
    headers = [_Header(*row.tolist()) for row in _all_gather(encoded, group)]
    if error is not None:
        raise error
    _compare(headers, dist.get_rank(group))

    rank = dist.get_rank(group)
    sizes = [header.rollouts for header in headers]
    columns[0] += sum(header.prompts for header in headers[:rank])  # prompts of the dense form are a rank's own
    payload = columns.new_zeros(len(columns), max(sizes))
    payload[:, : sizes[rank]] = columns
    received = _all_gather(payload, group)
    whole = torch.cat([part[:, :size] for part, size in zip(received, sizes, strict=True)], 1)
    prompt_index, rewards, *others = whole.unbind()
    gathered = Rollouts(
        rewards=rewards.view(torch.float64),
        visual_entropy=others.pop(0).view(torch.float64) if header.entropy else None,
        confidence=others.pop(0).view(torch.float64) if header.confidence else None,
        prompt_index=prompt_index,
        category=others.pop(0) if header.category else None,
        rollout_index=others.pop(0) if header.rollout_index else None,
    )
    start = sum(sizes[:rank])
    return gathered, Share(start, start + sizes[rank], local.rewards.shape, home)


def rollouts_of(share: Share, values: Tensor) -> Tensor:
    """Cut this rank's rollouts out of ``values (N,)``, in the shape of its rewards."""
    own = values[share.start : share.stop].to(share.device)
    if len(share.shape) == 2:
        own = own.reshape(share.shape[0], max(1, share.shape[1]))[:, : share.shape[1]]
    return own.contiguous()


def prompts_of(share: Share, values: Tensor) -> Tensor:
    """Cut this rank's part out of ``values (N,)``, which repeat one value per prompt: ``(B,)``, or ``(N,)`` if flat."""
    own = values[share.start : share.stop].to(share.device)
    if len(share.shape) == 2:
        own = own.reshape(share.shape[0], max(1, share.shape[1]))[:, 0]
    return own.contiguous()


def _header(local: Rollouts, options: object) -> _Header:
    flat = local.prompt_index is not None
    rows, width = (len(local.rewards), 1) if flat else local.rewards.shape
    return _Header(
        refused=0,
        flat=flat,
        entropy=local.visual_entropy is not None,
        confidence=local.confidence is not None,
        category=local.category is not None,
        rollout_index=local.rollout_index is not None,
        options=zlib.crc32(repr(options).encode()),
        rollouts=rows * max(1, width),
        prompts=0 if flat else rows,
    )


def _compare(headers: list[_Header], rank: int) -> None:
    refused = [r for r, header in enumerate(headers) if header.refused]
    if refused:
        raise RuntimeError(f"process_group: the arguments of ranks {refused} were refused there")
    for field, name in (
        ("flat", "prompt_index"),
        ("entropy", "visual_entropy"),
        ("confidence", "confidence"),
        ("category", "category"),
        ("rollout_index", "rollout_index"),
    ):
        given = [r for r, header in enumerate(headers) if getattr(header, field)]
        if 0 < len(given) < len(headers):
            raise ArgumentError(name, f"on all {len(headers)} ranks of process_group or on none", f"on {given}")
    others = [r for r, header in enumerate(headers) if header.options != headers[rank].options]
    if others:
        raise ArgumentError(
            "weights, no_signal, entropy_quantiles, num_confidence_buckets, eps, correction",
            "the same on all ranks of process_group",
            f"others on {others} than on {rank}",
        )


def _columns(local: Rollouts, device: torch.device) -> Tensor:
    """Return the payload, int64 ``(columns, N)``: prompt, reward and what else is given, floats by their bits."""
    rewards = local.rewards.detach().to(device).to(torch.float64)
    if local.valid is not None:
        rewards = torch.where(local.valid.to(device), rewards, torch.nan)
    if local.prompt_index is not None:
        prompt_index = local.prompt_index.to(device).long()
    else:
        if rewards.shape[1] == 0:  # a prompt without rollouts sends one that is invalid
            rewards = rewards.new_full((len(rewards), 1), torch.nan)
        prompt_index = torch.arange(len(rewards), device=device)[:, None].expand_as(rewards)
    columns = [prompt_index.reshape(-1), _bits(rewards)]
    for score in (local.visual_entropy, local.confidence):
        if score is not None:
            columns.append(_bits(_of_rollouts(score.detach().to(device).to(torch.float64), rewards)))
    for label in (local.category, local.rollout_index):
        if label is not None:
            columns.append(_of_rollouts(label.to(device).long(), rewards).reshape(-1))
    return torch.stack(columns)


def _of_rollouts(values: Tensor, rewards: Tensor) -> Tensor:
    """Repeat values of dense prompts to their rollouts; a prompt without rollouts has one, of an unknown score."""
    if values.ndim < rewards.ndim:
        return values[:, None].expand_as(rewards)
    return torch.full_like(rewards, torch.nan) if values.ndim == 2 and values.shape[1] == 0 else values


def _bits(values: Tensor) -> Tensor:
    return values.reshape(-1).contiguous().view(torch.int64)


def _all_gather(sent: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    received = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    dist.all_gather(received, sent, group=group)
    return received
