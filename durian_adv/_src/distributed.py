"""A batch whose rollouts lie on several ranks, brought together: every rank then computes on all of it.

A call is two all-gathers: a header of 56 bytes a rank, then 16 to 32 bytes a rollout, padded to the rank that has most.
All that can be wrong is in the headers, so that ranks raise together instead of waiting for one another.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Rollouts(NamedTuple):
    """A batch as the caller gives it."""

    rewards: Tensor  # (B, G), or (N,) with prompt_index
    visual_entropy: Tensor | None
    confidence: Tensor | None
    prompt_index: Tensor | None
    valid: Tensor | None


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
    confidence: int  # likewise
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
        raise TypeError(
            f"process_group: expected a torch.distributed.ProcessGroup with this rank, got {type(group).__name__}"
        )
    # gloo moves no tensors of GPUs
    home = local.rewards.device if isinstance(local.rewards, Tensor) else torch.device("cpu")
    device = torch.device("cpu") if dist.get_backend(group) == "gloo" else home
    error, columns = None, torch.empty(0)
    try:
        header = _header(local, check())
        columns = _columns(local, device)
    except Exception as refusal:  # raised below, once the other ranks know
        error, header = refusal, _Header(1, 0, 0, 0, 0, 0, 0)
    mine = torch.tensor(header, dtype=torch.int64, device=device)
    headers = [_Header(*row.tolist()) for row in _all_gather(mine, group)]
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
    prompt_index, rewards, *scores = whole.unbind()
    entropy = scores.pop(0).view(torch.float64) if header.entropy else None
    confidence = scores.pop(0).view(torch.float64) if header.confidence else None
    start = sum(sizes[:rank])
    share = Share(start, start + sizes[rank], local.rewards.shape, home)
    return Rollouts(rewards.view(torch.float64), entropy, confidence, prompt_index, None), share


def rollouts_of(share: Share, values: Tensor) -> Tensor:
    """Cut this rank's rollouts out of ``values (N,)``, in the shape of its rewards."""
    own = values[share.start : share.stop].to(share.device)
    if len(share.shape) == 2:
        own = own.reshape(share.shape[0], max(1, share.shape[1]))[:, : share.shape[1]]
    return own.contiguous()


def prompts_of(share: Share, values: Tensor) -> Tensor:
    """Cut this rank's part out of ``values (N,)``, which repeat one value a prompt: ``(B,)``, or ``(N,)`` if flat."""
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
        options=zlib.crc32(repr(options).encode()),
        rollouts=rows * max(1, width),
        prompts=0 if flat else rows,
    )


def _compare(headers: list[_Header], rank: int) -> None:
    refused = [r for r, header in enumerate(headers) if header.refused]
    if refused:
        raise RuntimeError(f"process_group: the arguments of ranks {refused} were refused there")
    for field, name in (("flat", "prompt_index"), ("entropy", "visual_entropy"), ("confidence", "confidence")):
        given = [r for r, header in enumerate(headers) if getattr(header, field)]
        if 0 < len(given) < len(headers):
            raise ValueError(
                f"{name}: expected on all {len(headers)} ranks of process_group or on none, got on {given}"
            )
    others = [r for r, header in enumerate(headers) if header.options != headers[rank].options]
    if others:
        raise ValueError(
            "weights, entropy_quantiles, num_confidence_buckets, eps, correction: expected the same on all ranks of "
            f"process_group, got others on {others} than on {rank}"
        )


def _columns(local: Rollouts, device: torch.device) -> Tensor:
    """Return the payload, int64 ``(columns, rollouts)``: prompt, reward and scores, floats by their bits."""
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
            values = score.detach().to(device).to(torch.float64)
            if values.ndim < rewards.ndim:
                values = values[:, None].expand_as(rewards)
            elif values.ndim == 2 and values.shape[1] == 0:
                values = torch.full_like(rewards, torch.nan)
            columns.append(_bits(values))
    return torch.stack(columns)


def _bits(values: Tensor) -> Tensor:
    return values.reshape(-1).contiguous().view(torch.int64)


def _all_gather(mine: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    received = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(received, mine, group=group)
    return received
