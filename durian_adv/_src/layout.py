"""Between the caller's forms, dense ``(B, G)`` or flat ``(N,)`` with a prompt index, and the inner one, ``(G, B)``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Where each of the N rollouts of the flat form stands in the inner form."""

    row: Tensor  # (N,) the rollout's number within its prompt
    column: Tensor  # (N,) the prompt's number, 0..num_prompts-1
    num_prompts: int
    num_rollouts: int  # of the prompt that has most


def lay_out(prompt_index: Tensor) -> Layout:
    """Lay out rollouts by prompt: ``prompt_index (N,)`` holds any integers in any order.

    The sizes are read on the host, the one synchronisation of the flat form.
    """
    _, column, counts = torch.unique(prompt_index, return_inverse=True, return_counts=True)
    by_prompt = torch.argsort(column, stable=True)
    first = counts.cumsum(0) - counts
    place = torch.arange(len(column), device=column.device)
    row = torch.empty_like(column)
    row[by_prompt] = place - first[column[by_prompt]]
    most = int(counts.max()) if len(counts) else 0
    return Layout(row, column, len(counts), most)


def pack(value: Tensor, layout: Layout | None, fill: float | bool, dtype: torch.dtype) -> Tensor:
    """Bring ``value``, flat with a layout, else dense, into the inner form ``(G, B)`` in ``dtype``.

    Slots that no rollout takes hold ``fill``. There is one row at least, as a minimum needs something to look at.
    """
    if layout is not None:
        inner = value.new_full((max(1, layout.num_rollouts), layout.num_prompts), fill, dtype=dtype)
        inner[layout.row, layout.column] = value.to(dtype)
        return inner
    if value.shape[1] == 0:
        return value.new_full((1, len(value)), fill, dtype=dtype)
    if torch.compiler.is_compiling() and value.device.type == "cpu":
        opaque: Tensor = torch.ops.durian_adv.transposed(value, dtype)
        return opaque
    return _transposed(value, dtype)


def unpack(inner: Tensor, layout: Layout | None, shape: torch.Size) -> Tensor:
    """Bring ``inner (G, B)``, or a value a prompt ``(B,)``, into the caller's form of rollouts, ``shape``."""
    if layout is not None:
        return inner[layout.column] if inner.ndim == 1 else inner[layout.row, layout.column]
    if inner.ndim == 1:
        return inner.clone()
    return inner[: shape[1]].t().contiguous()


def _transposed(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.t().to(dtype, copy=True, memory_format=torch.contiguous_format)


# Inductor would read the transposed tensor in place, in steps of G, and for a processor make a loop of scalars of every
# sum over rollouts. As an operator that it cannot look into, the copy is made, and the sums run along the prompts.
torch.library.define("durian_adv::transposed", "(Tensor value, ScalarType dtype) -> Tensor")
torch.library.impl("durian_adv::transposed", "cpu", _transposed)
torch.library.register_fake("durian_adv::transposed", _transposed)
