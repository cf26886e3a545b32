"""From the flat form ``(N,)`` with a prompt index to the dense form ``(B, G)`` with a mask, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Where each of the N rollouts stands in the dense form."""

    row: Tensor  # (N,) the prompt's number, 0..num_prompts-1
    column: Tensor  # (N,) the rollout's number within its prompt
    num_prompts: int
    num_rollouts: int  # of the prompt that has most


def layout(prompt_index: Tensor) -> Layout:
    """Lay out rollouts by prompt: ``prompt_index (N,)`` holds any integers in any order.

    The sizes are read on the host, the one synchronisation of the flat form.
    """
    _, row, counts = torch.unique(prompt_index, return_inverse=True, return_counts=True)
    by_prompt = torch.argsort(row, stable=True)
    first = counts.cumsum(0) - counts
    place = torch.arange(len(row), device=row.device)
    column = torch.empty_like(row)
    column[by_prompt] = place - first[row[by_prompt]]
    widest = int(counts.max()) if len(counts) else 0
    return Layout(row, column, len(counts), widest)


def pack(flat: Tensor, layout: Layout, fill: float | bool) -> Tensor:
    """Bring ``flat (N,)`` into ``(B, G)``; slots that no rollout takes hold ``fill``."""
    dense = flat.new_full((layout.num_prompts, layout.num_rollouts), fill)
    dense[layout.row, layout.column] = flat
    return dense


def unpack(dense: Tensor, layout: Layout) -> Tensor:
    """Bring ``dense (B, G)``, or a value a prompt ``(B,)``, back to ``(N,)``."""
    return dense[layout.row] if dense.ndim == 1 else dense[layout.row, layout.column]
