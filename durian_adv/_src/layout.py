"""Between the caller's forms of a batch and the inner ones, and reductions over the rollouts of each prompt.

Dense rewards ``(B, G)`` become ``(G, B)``, a prompt per column; flat ones, ``(N,)`` with a prompt index, stay as they
are, so memory and time grow with the number of rollouts whatever the sizes of the groups. Sums are exact
(``exact.py``), hence the same bits in both forms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from durian_adv._src import exact
from durian_adv._src.errors import ArgumentError
from durian_adv._src.operators import operator

_LOWEST = torch.iinfo(torch.int64).min


class Rollouts(NamedTuple):
    """A batch as the caller gives it."""

    rewards: Tensor  # (B, G), or (N,) with prompt_index
    visual_entropy: Tensor | None = None
    confidence: Tensor | None = None
    prompt_index: Tensor | None = None
    valid: Tensor | None = None
    category: Tensor | None = None
    rollout_index: Tensor | None = None


class Layout(NamedTuple):
    """The prompts of the flat form."""

    prompt: Tensor  # (N,) the number of each rollout's prompt, by increasing prompt_index
    num_prompts: int


def lay_out(prompt_index: Tensor) -> Layout:
    """Number the prompts of ``prompt_index (N,)``, any integers in any order.

    Their number is read on the host, the one synchronization of the flat form.
    """
    names, prompt = torch.unique(prompt_index, return_inverse=True)
    return Layout(prompt, len(names))


def pack(value: Tensor, layout: Layout | None, fill: float | bool, dtype: torch.dtype) -> Tensor:
    """Bring ``value``, flat with a layout, else dense, into the inner form, ``(N,)`` or ``(G, B)``, in ``dtype``.

    The dense form has one row at least, as a minimum needs something to look at: without a rollout it holds ``fill``.
    """
    if layout is not None:
        return value.to(dtype)
    if value.shape[1] == 0:
        return value.new_full((1, len(value)), fill, dtype=dtype)
    if torch.compiler.is_compiling() and value.device.type == "cpu":
        opaque: Tensor = _rollouts_first(value, dtype)
        return opaque
    return _transposed(value, dtype)


def unpack_rollouts(inner: Tensor, layout: Layout | None, shape: torch.Size) -> Tensor:
    """Show a result for each rollout in the caller's form, ``shape``."""
    return inner if layout is not None else inner[: shape[1]].t()


def unpack_prompts(value: Tensor, layout: Layout | None) -> Tensor:
    """Bring a result for each prompt ``(B,)`` into the caller's form: repeated to ``(N,)`` in the flat one."""
    return value.clone() if layout is None else value[layout.prompt]


def by_prompt(value: Tensor, layout: Layout | None) -> Tensor:
    """Return one value per prompt ``(B,)`` of what ``unpack_prompts`` gave."""
    return value if layout is None else value.new_zeros(layout.num_prompts).index_copy(0, layout.prompt, value)


# --- over the rollouts of each prompt, (G, B) or (N,) to (B,), and back -------------------------------


def spread(value: Tensor, layout: Layout | None) -> Tensor:
    """Bring one value per prompt ``(B,)`` into what broadcasts with its rollouts."""
    return value if layout is None else value[layout.prompt]


def smallest(inner: Tensor, layout: Layout | None) -> Tensor:
    """Return each prompt's smallest value."""
    return inner.amin(0) if layout is None else segment_extreme(inner, layout.prompt, layout.num_prompts, "amin")


def largest(inner: Tensor, layout: Layout | None) -> Tensor:
    """Return each prompt's largest value."""
    return inner.amax(0) if layout is None else segment_extreme(inner, layout.prompt, layout.num_prompts, "amax")


def exact_sum(inner: Tensor, layout: Layout | None) -> Tensor:
    """Return each prompt's sum, exact as in ``exact.py``."""
    if layout is None:
        return exact.exact_sum(inner, 0)
    return exact.segment_sum(inner[None], layout.prompt[None], layout.num_prompts)[0]


def sum_of_any_size(inner: Tensor, layout: Layout | None) -> Tensor:
    """Return each prompt's sum of terms of any size."""
    if layout is None:
        return exact.row_sum_of_any_size(inner.t())
    return exact.segment_sum_of_any_size(inner, layout.prompt, layout.num_prompts)


def count(members: Tensor, layout: Layout | None) -> Tensor:
    """Return how many of each prompt's rollouts are members, int64."""
    if layout is None:
        return members.sum(0)
    zeros = torch.zeros(layout.num_prompts, dtype=torch.int64, device=members.device)
    return zeros.scatter_add(0, layout.prompt, members.long())


def segment_extreme(values: Tensor, segment: Tensor, num_segments: int, reduce: str) -> Tensor:
    """Return the ``"amin"`` or ``"amax"`` of ``values (N,)`` in each segment; of nothing, what leaves others alone."""
    if values.dtype.is_floating_point:
        start = torch.inf if reduce == "amin" else -torch.inf
    else:
        start = torch.iinfo(values.dtype).max if reduce == "amin" else torch.iinfo(values.dtype).min
    return values.new_full((num_segments,), start).scatter_reduce(0, segment, values, reduce)


# --- rollouts in several rows -------------------------------------------------------------------------


class Rows(NamedTuple):
    """Which rollout each row of a batch belongs to."""

    rollout: Tensor  # (N,) the number of the row's rollout, 0..M-1
    first: Tensor  # (M,) the row that stands for each rollout: its first valid one, or its first
    valid: Tensor  # (N,) bool: the rows that count


def one_row_per_rollout(given: Rollouts, prompt_names: Sequence[object] | None = None) -> tuple[Rollouts, Rows]:
    """Reduce a flat batch with ``rollout_index`` to one row per rollout, which must agree on what they say of it.

    Args:
        given: checked arguments, with ``prompt_index`` and ``rollout_index``.
        prompt_names: what errors call the prompts, where ``prompt_index`` and ``rollout_index`` are not the caller's
            but number them from 0; None: by their index.

    Returns:
        The batch with M rows, without ``rollout_index``; and the way back, for ``expand_rollouts`` and
        ``expand_prompts``.

    Raises:
        ArgumentError: a rollout has valid rows under two prompts, or its valid rows differ in the reward, or in a
            known confidence or visual entropy.
    """
    rewards, entropy, confidence, prompt_index, valid, category, rollout_index = given
    assert prompt_index is not None
    assert rollout_index is not None
    working = exact.working_dtype(rewards.device)
    values = rewards.detach().to(working)
    counted = values.isfinite() if valid is None else values.isfinite() & valid

    def name_of(row: int) -> object:
        number = int(prompt_index[row])
        return number if prompt_names is None else prompt_names[number]

    rows = _rows(prompt_index, rollout_index, counted, name_of)

    def place_of(row: int) -> str:
        rollout = f"rollout {int(rollout_index[row])}" if prompt_names is None else "a rollout"
        return f"{rollout} of prompt {name_of(row)}"

    def agreed(name: str, score: Tensor) -> Tensor:
        return _agreed(name, score.detach().to(working), rows, place_of)

    agreed("rewards", values)
    reduced = Rollouts(
        rewards.detach()[rows.first],
        None if entropy is None else agreed("visual_entropy", entropy),
        None if confidence is None else agreed("confidence", confidence),
        prompt_index[rows.first],
        counted[rows.first],
        None if category is None else _largest_valid(category.long(), counted, rows),
    )
    return reduced, rows


def expand_rollouts(value: Tensor, rows: Rows) -> Tensor:
    """Give every valid row the value of its rollout, ``(M,)`` to ``(N,)``, and the others 0."""
    return torch.where(rows.valid, value[rows.rollout], 0)


def expand_prompts(value: Tensor, rows: Rows) -> Tensor:
    """Give every row the value of its prompt, which ``value (M,)`` repeats for each rollout."""
    return value[rows.rollout]


def _rows(prompt_index: Tensor, rollout_index: Tensor, valid: Tensor, name_of: Callable[[int], object]) -> Rows:
    _, prompt = torch.unique(prompt_index, return_inverse=True)
    names, rollout = torch.unique(rollout_index, return_inverse=True)
    # ids alone are not enough, as an invalid row may bear those of another prompt
    pairs, number = torch.unique(prompt * len(names) + rollout, return_inverse=True)
    place = torch.arange(len(number), device=number.device)
    first = segment_extreme(torch.where(valid, place, place + len(place)), number, len(pairs), "amin")
    rows = Rows(number, first % max(1, len(place)), valid)
    own = prompt[valid], rollout[valid]
    low, high = (segment_extreme(*own, len(names), reduce) for reduce in ("amin", "amax"))
    twice = low < high
    if twice.any():
        which = int(twice.nonzero()[0])
        under = " and ".join(
            str(name_of(int(((rollout == which) & (prompt == side[which]) & valid).nonzero()[0])))
            for side in (low, high)
        )
        raise ArgumentError(
            "rollout_index", "the rows of a rollout under one prompt", f"rollout {int(names[which])} under {under}"
        )
    return rows


def _agreed(name: str, values: Tensor, rows: Rows, place_of: Callable[[int], str]) -> Tensor:
    """Return the one value ``(M,)`` that the valid rows of each rollout know; NaN where they know none."""
    known = rows.valid & ~values.isnan()
    low, high = (
        segment_extreme(values[known], rows.rollout[known], len(rows.first), reduce) for reduce in ("amin", "amax")
    )
    differ = low < high
    if differ.any():
        which = int(differ.nonzero()[0])
        both = f"{low[which].item()!r} and {high[which].item()!r}"
        place = place_of(int(rows.first[which]))
        raise ArgumentError(name, "one value in all valid rows of a rollout", f"{both} in {place}")
    return torch.where(low == high, low, torch.nan)


def _largest_valid(category: Tensor, valid: Tensor, rows: Rows) -> Tensor:
    return segment_extreme(torch.where(valid, category, _LOWEST), rows.rollout, len(rows.first), "amax")


def _transposed(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.t().to(dtype, copy=True, memory_format=torch.contiguous_format)


# Inductor would read the transposed tensor in place, in steps of G, and for a processor make a loop of scalars of every
# sum over rollouts. As an operator that it cannot look into, the copy is made, and the sums run along the prompts.
_rollouts_first = operator("transposed(Tensor value, ScalarType dtype) -> Tensor", _transposed, _transposed)
