"""Durian with a window of recent prompts: quantiles and shared stds for batches too small to have their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from durian_adv._src import checks, exact, layout, scales
from durian_adv._src.durian import (
    DurianComponents,
    Options,
    Population,
    check,
    components_of,
    expanded,
    parts_of,
)
from durian_adv._src.errors import ArgumentError, ArgumentTypeError
from durian_adv._src.layout import Rollouts


class Window(NamedTuple):
    """W recent prompts, oldest first: what quantiles and shared stds need to know of them, and nothing else.

    Every tensor is a detached ``(W,)`` copy in the working dtype (float64 where there is one), so nothing is rounded,
    and memory does not depend on the sizes of the groups. To keep a window, save ``window._asdict()``: plain tensors,
    which ``torch.load(..., weights_only=True)`` reads and ``load_window`` checks.
    """

    rollouts: Tensor  #: number of valid rollouts, at least 1
    low: Tensor  #: smallest valid reward
    high: Tensor  #: largest valid reward
    mean: Tensor  #: of the valid rewards, from the middle of their range in units of a power of two near its half
    squares: Tensor  #: sum of squared distances from the mean, in squares of these units
    visual_entropy: Tensor | None = None  #: NaN where unknown; None if no batch had one
    confidence: Tensor | None = None  #: NaN where unknown; None if no batch had one
    category: Tensor | None = None  #: int64; None if no batch had one


_OPTIONAL = ("visual_entropy", "confidence", "category")


def windowed_components(
    rewards: Tensor,
    *,
    window: Window | None,
    size: int,
    visual_entropy: Tensor | None = None,
    confidence: Tensor | None = None,
    prompt_index: Tensor | None = None,
    valid: Tensor | None = None,
    category: Tensor | None = None,
    rollout_index: Tensor | None = None,
    weights: Sequence[float] = (0.1, 0.2, 0.7),
    no_signal: str = "keep",
    entropy_quantiles: int | Sequence[float] = (0.25, 0.75),
    num_confidence_buckets: int = 12,
    eps: float = 1e-6,
    correction: int = 1,
) -> tuple[DurianComponents, Window]:
    r"""Durian's components with quantiles and shared stds over the batch and a window of recent prompts.

    The buckets of eqs. 10 and 16 lie between the quantiles of all scores, those of the batch and of the window, and
    :math:`R_a`, :math:`R_u` hold the rewards of the bucket's prompts from both, as :math:`R_c` those of the category's.
    The result is ``durian_components`` of the two, one after the other, restricted to the batch; so the grpo component
    does not depend on the window, and an empty window changes no bit.

    The window's rewards come from older policies: it trades a bias towards them for statistics over more prompts.

    Args:
        rewards: the batch, as in ``durian_components``.
        window: what the call before returned; None at the start.
        size: how many prompts the returned window holds at most; 0 for none.
        visual_entropy: of the batch, as in ``durian_components``. None leaves the component out, and its prompts enter
            the window with an unknown entropy. Prompts of the window whose entropy is unknown are, like others without
            one, in the bucket of NaN scores.
        confidence: of the batch, as in ``durian_components``. None: as for ``visual_entropy``.
        prompt_index: as in ``durian_components``. Prompts of the window are others, whatever their ids were.
        valid: as in ``durian_components``.
        category: of the batch, as in ``durian_components``: in every batch of a window, or in none.
        rollout_index: as in ``durian_components``.
        weights: as in ``durian_components``.
        no_signal: as in ``durian_components``; with ``"drop"`` prompts without signal do not enter the window.
        entropy_quantiles: as in ``durian_components``.
        num_confidence_buckets: as in ``durian_components``.
        eps: as in ``durian_components``.
        correction: as in ``durian_components``.

    Returns:
        The components of the batch, and the window for the next call, which holds the last ``size`` prompts of the
        window and the batch that have a valid rollout. Within a batch the last are those with the largest
        ``prompt_index``, or the last rows of dense rewards.

    Raises:
        TypeError, ValueError: as ``durian_components``; ``size`` is not an integer >= 0; ``window`` is not a ``Window``
            on the device of rewards, or has categories where the batch has none, or the other way round.

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
    >>> len(window.rollouts)
    2
    """
    size = checks.integer("size", size, "an integer >= 0")
    if size < 0:
        raise ArgumentError("size", "an integer >= 0", size)
    given = Rollouts(rewards, visual_entropy, confidence, prompt_index, valid, category, rollout_index)
    checked = check(given, Options(weights, no_signal, entropy_quantiles, num_confidence_buckets, eps, correction))
    _check_window(window, rewards, category)
    rows = None
    if rollout_index is not None:
        given, rows = layout.one_row_per_rollout(given)
    earlier = None if window is None or len(window.rollouts) == 0 else _population(window)
    parts = parts_of(given, checked, earlier)
    components = components_of(parts)
    if rows is not None:
        components = expanded(components, rows)
    return components, _last(parts.population, size)


def load_window(state: Mapping[str, Tensor | None], device: torch.device | str = "cpu") -> Window:
    """Return the window that was saved as ``window._asdict()``, on a device.

    Args:
        state: the saved fields.
        device: of the rewards to come.

    Returns:
        The window, for the next call of ``windowed_components``.

    Raises:
        ArgumentError: fields are missing or unknown, as in a window of another version, or do not fit together.

    >>> window = Window(*[torch.ones(2, dtype=torch.float64)] * 5)
    >>> load_window(window._asdict()).rollouts
    tensor([1., 1.], dtype=torch.float64)
    """
    if not isinstance(state, Mapping):
        raise ArgumentTypeError("window", f"a dict of {', '.join(Window._fields)}", type(state).__name__)
    if set(state) != set(Window._fields):
        raise ArgumentError("window", f"the fields {', '.join(Window._fields)}", ", ".join(map(str, state)) or "none")
    window = Window(
        **{
            name: value.to(device) if isinstance(value, Tensor) else value  # type: ignore[arg-type]  # checked below
            for name, value in state.items()
        }
    )
    _check_fields(window)
    return window


def _check_window(window: Window | None, rewards: Tensor, category: Tensor | None) -> None:
    if window is None:
        return
    if not isinstance(window, Window):
        raise ArgumentTypeError("window", "a Window or None", type(window).__name__)
    _check_fields(window)
    checks.same_device("window.rollouts", window.rollouts, "rewards", rewards)
    if len(window.rollouts) > 0 and (window.category is None) != (category is None):
        side = "window" if category is None else "batch"
        raise ArgumentError("category", "one in every batch of a window or in none", f"one in the {side} alone")


def _check_fields(window: Window) -> None:
    for name, value in window._asdict().items():
        if value is None and name in _OPTIONAL:
            continue
        checks.tensor(f"window.{name}", value, integer=name == "category")
        checks.ndim(f"window.{name}", value, 1, "(W,)")
        checks.shape(f"window.{name}", value, window.rollouts.shape, "(W,)")
        checks.same_device(f"window.{name}", value, "window.rollouts", window.rollouts)


def _population(window: Window) -> Population:
    dtype = exact.working_dtype(window.rollouts.device)
    *moments, entropy, confidence = (None if value is None else value.to(dtype) for value in window[:-1])
    return Population(scales.from_moments(*moments), entropy, confidence, window.category)  # type: ignore[arg-type]


def _last(population: Population, size: int) -> Window:
    """Return the last ``size`` prompts with a valid rollout, in memory of their own."""
    measured = population.measured
    places = (measured.size > 0).nonzero()[:, 0]
    places = places[max(0, len(places) - size) :]
    moments = (measured.size, measured.low, measured.high, measured.mean, measured.squares)
    scores = (population.visual_entropy, population.confidence, population.category)
    return Window._make(None if value is None else value[places] for value in (*moments, *scores))
