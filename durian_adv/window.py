"""Durian with a window of recent prompts: quantiles and shared stds for batches too small to have their own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from durian_adv._src import checks, exact
from durian_adv._src.durian import DurianComponents, durian_components
from durian_adv._src.layout import Layout, lay_out, pack, unpack


class Window(NamedTuple):
    """W recent prompts, oldest first: what their statistics are taken from, and nothing else.

    Every tensor is a detached copy in the working dtype (float64 where there is one), so nothing is rounded. To keep
    a window, save ``window._asdict()``: plain tensors, which ``torch.load(..., weights_only=True)`` reads.
    """

    rewards: Tensor  #: (W, G), NaN for invalid rollouts and where a prompt has fewer than others
    visual_entropy: Tensor | None  #: (W,), NaN where unknown; None if no batch had one
    confidence: Tensor | None  #: likewise


def windowed_components(
    rewards: Tensor,
    *,
    window: Window | None,
    size: int,
    visual_entropy: Tensor | None = None,
    confidence: Tensor | None = None,
    prompt_index: Tensor | None = None,
    valid: Tensor | None = None,
    weights: Sequence[float] = (0.1, 0.2, 0.7),
    entropy_quantiles: int | Sequence[float] = (0.25, 0.75),
    num_confidence_buckets: int = 12,
    eps: float = 1e-6,
    correction: int = 1,
) -> tuple[DurianComponents, Window]:
    r"""Durian's components with quantiles and shared stds over the batch and a window of recent prompts.

    The buckets of eqs. 10 and 16 lie between the quantiles of all scores, those of the batch and of the window, and
    :math:`R_a`, :math:`R_u` hold the rewards of the bucket's prompts from both. The result is ``durian_components`` of
    the two, one after the other, restricted to the batch; so the grpo component does not depend on the window, and an
    empty window changes no bit.

    The window's rewards come from older policies: it trades a bias towards them for statistics over more prompts.

    Args:
        rewards: the batch, as in ``durian_components``.
        window: what the call before returned; None at the start.
        size: how many prompts the returned window holds at most; 0 for none.
        visual_entropy: of the batch, as in ``durian_components``. None leaves the component out, and its prompts enter
            the window with an unknown entropy. Prompts of the window whose entropy is unknown are, like others without
            one, in the bucket of NaN scores.
        confidence: likewise.
        prompt_index: as in ``durian_components``. Prompts of the window are others, whatever their ids were.
        valid: as in ``durian_components``.
        weights: likewise.
        entropy_quantiles: likewise.
        num_confidence_buckets: likewise.
        eps: likewise.
        correction: likewise.

    Returns:
        The components of the batch, and the window for the next call, which holds the last ``size`` prompts of the
        window and the batch. Within a batch the last are those with the largest ``prompt_index``, or the last rows of
        dense rewards.

    Raises:
        TypeError, ValueError: as ``durian_components``; ``size`` is not an integer >= 0; ``window`` is not a ``Window``
            on the device of rewards.

    Source: Durian (arXiv 2602.21743), eqs. 2 and 10-20; the window is not in the paper.

    >>> import torch
    >>> first, second = torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    >>> score = torch.tensor([0.0])
    >>> _, window = windowed_components(first, window=None, size=8, confidence=score, num_confidence_buckets=1)
    >>> components, window = windowed_components(
    ...     second, window=window, size=8, confidence=score, num_confidence_buckets=1
    ... )
    >>> components.reasoning_std  # of the eight rewards
    tensor([0.5175])
    >>> len(window.rewards)
    2
    """
    size = checks.integer("size", size, "an integer >= 0")
    if size < 0:
        raise ValueError(f"size: expected an integer >= 0, got {size}")
    checks.tensor("rewards", rewards)
    _check_window(window, rewards)
    compute = partial(
        durian_components,
        weights=weights,
        entropy_quantiles=entropy_quantiles,
        num_confidence_buckets=num_confidence_buckets,
        eps=eps,
        correction=correction,
    )
    # in the working dtype, so that the scores it returns are those it buckets, not rounded
    exact_rewards = rewards.detach().to(exact.working_dtype(rewards.device))
    alone = compute(
        exact_rewards, visual_entropy=visual_entropy, confidence=confidence, prompt_index=prompt_index, valid=valid
    )
    layout = None if prompt_index is None else lay_out(prompt_index)
    batch = _rows(exact_rewards, valid, alone, layout)
    if window is None or len(window.rewards) == 0:
        return _rounded(alone, rewards.dtype), _last(batch, size)

    joined = _joined(window, batch)
    together = compute(
        joined.rewards,
        visual_entropy=None if visual_entropy is None else joined.visual_entropy,
        confidence=None if confidence is None else joined.confidence,
    )
    first = len(window.rewards)

    def of_batch(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        value = value[first:]
        inner = value.T if value.ndim == 2 else value
        return unpack(inner, layout, rewards.shape)

    components = DurianComponents._make(map(of_batch, together))
    return _rounded(components, rewards.dtype), _last(joined, size)


def _check_window(window: Window | None, rewards: Tensor) -> None:
    if window is None:
        return
    if not isinstance(window, Window):
        raise TypeError(f"window: expected a Window or None, got {type(window).__name__}")
    checks.tensor("window.rewards", window.rewards)
    checks.ndim("window.rewards", window.rewards, 2, "(W, G)")
    checks.same_device("window.rewards", window.rewards, "rewards", rewards)
    for name in ("visual_entropy", "confidence"):
        score = getattr(window, name)
        if score is not None:
            checks.tensor(f"window.{name}", score)
            checks.shape(f"window.{name}", score, window.rewards.shape[:1], "(W,)")
            checks.same_device(f"window.{name}", score, "rewards", rewards)


def _rows(rewards: Tensor, valid: Tensor | None, parts: DurianComponents, layout: Layout | None) -> Window:
    """Bring a batch into the form of a window: dense rewards with NaN for invalid rollouts, a prompt's own scores."""
    usable = rewards.isfinite() if valid is None else rewards.isfinite() & valid
    rewards = torch.where(usable, rewards, torch.nan)
    if layout is None:
        return Window(rewards, parts.visual_entropy, parts.confidence)

    def by_prompt(score: Tensor | None) -> Tensor | None:
        return None if score is None else score.new_zeros(layout.num_prompts).index_copy(0, layout.column, score)

    packed = pack(rewards, layout, torch.nan, rewards.dtype).T.contiguous()
    return Window(packed, by_prompt(parts.visual_entropy), by_prompt(parts.confidence))


def _joined(window: Window, batch: Window) -> Window:
    """Put the prompts of the batch after those of the window."""
    width = max(window.rewards.shape[1], batch.rewards.shape[1])

    def scores(before: Tensor | None, now: Tensor | None) -> Tensor | None:
        if before is None and now is None:
            return None
        sides = ((before, window.rewards), (now, batch.rewards))
        return torch.cat([r.new_full(r.shape[:1], torch.nan) if s is None else s.to(r.dtype) for s, r in sides])

    return Window(
        torch.cat([F.pad(r, (0, width - r.shape[1]), value=torch.nan) for r in (window.rewards, batch.rewards)]),
        scores(window.visual_entropy, batch.visual_entropy),
        scores(window.confidence, batch.confidence),
    )


def _last(prompts: Window, size: int) -> Window:
    """Return the last ``size`` prompts, in memory of their own: a view would keep, and save, all of them."""
    start = max(0, len(prompts.rewards) - size)
    return Window._make(None if value is None else value[start:].clone() for value in prompts)


def _rounded(parts: DurianComponents, dtype: torch.dtype) -> DurianComponents:
    """Round a result for exact rewards to that for rewards of ``dtype``."""
    dtype = exact.result_dtype(dtype)

    def rounded(name: str, value: Tensor | None) -> Tensor | None:
        if value is None or not value.is_floating_point():
            return value
        return value.to(dtype) if name in ("visual_entropy", "confidence") else exact.to_result(value, dtype)

    return DurianComponents._make(rounded(name, value) for name, value in parts._asdict().items())
