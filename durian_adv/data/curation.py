"""Which prompts to train on, by the accuracy of the base model over several samplings of each.

Needs NumPy and SciPy, and Matplotlib for the picture: ``pip install "durian-adv[curation]"``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from durian_adv._src import checks
from durian_adv._src.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEEP = ("estimate", "possible", "certain")
METHODS = ("wilson", "wilsoncc", "exact")
_MOST_BARS = 64
_MOST_SAMPLINGS = 2**53  # float64 counts as far
FATES = ("too_hard", "stage_2", "stage_1", "too_easy", "uncertain")


class Curation(NamedTuple):
    """What ``curate`` returns: one value per prompt, in the order in which prompts first appear."""

    prompt: NDArray[Any]
    samplings: NDArray[np.int64]  # those whose outcome is known
    correct: NDArray[np.int64]
    accuracy: NDArray[np.float64]  # NaN without a sampling
    low: NDArray[np.float64]  # the interval around the accuracy
    high: NDArray[np.float64]
    fate: NDArray[np.str_]  # one of FATES
    band: tuple[float, float]
    cut: float

    def of(self, fate: str) -> NDArray[Any]:
        """Return the prompts of one fate, such as ``"stage_1"``."""
        checks.choice("fate", fate, FATES)
        chosen: NDArray[Any] = self.prompt[self.fate == fate]
        return chosen


def curate(
    correct: ArrayLike,
    *,
    samplings: ArrayLike | None = None,
    prompts: Sequence[Any] | NDArray[Any] | None = None,
    band: tuple[float, float] = (0.084, 0.87),
    cut: float = 1 / 3,
    keep: str = "estimate",
    confidence_level: float = 0.95,
    method: str = "wilson",
) -> Curation:
    """Keep prompts of moderate accuracy, and split them into two stages of training.

    A prompt is kept if its accuracy p lies in the band, both edges included; stage 2 (medium to hard) takes those with
    ``p < cut``, stage 1 (medium) the others. With k samplings p is an estimate: 0 of 8 is what a prompt that is solved
    a fifth of the time gives one time in six. ``keep`` says what to make of that, by the interval that
    ``scipy.stats.binomtest`` puts around p:

    * ``"estimate"``: p counts, the interval is only reported;
    * ``"possible"``: keep a prompt unless its whole interval lies outside the band, on one side;
    * ``"certain"``: keep a prompt only if its whole interval lies in the band.

    Args:
        correct: ``(B, k)``, one prompt per row; or ``(N,)`` with ``prompts``: bool, 0 or 1; NaN or None: not known.
            With ``samplings``, ``(B,)``: how many of them are correct.
        samplings: how many there are, one number for all prompts or ``(B,)``.
        prompts: each row's prompt, ``(B,)``; or each sampling's prompt, ``(N,)``, any hashable ids in any order.
        band: the lowest and the highest accuracy that are kept.
        cut: accuracies below are of stage 2; lies in the band.
        keep: ``"estimate"``, ``"possible"`` or ``"certain"``.
        confidence_level: of the interval.
        method: of the interval, one of SciPy's: ``"wilson"``, ``"wilsoncc"`` or ``"exact"`` (Clopper-Pearson).

    Returns:
        ``Curation``. A prompt's fate is ``"stage_1"``, ``"stage_2"``, ``"too_hard"`` (p below the band), ``"too_easy"``
        (above) or ``"uncertain"`` (p is in the band, but not certainly; or there is no sampling).

    Raises:
        TypeError, ValueError: a wrong shape, or an outcome other than 0, 1 or NaN, with the argument's name.

    Source: Difficulty prior (arXiv 2505.13261), offline data curation: the numbers of the band are those of its
    reviews; the cut and the intervals are ours.

    >>> found = curate([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]], prompts=["a", "b", "c", "d"])
    >>> found.accuracy.tolist(), found.fate.tolist()
    ([0.0, 0.25, 0.5, 1.0], ['too_hard', 'stage_2', 'stage_1', 'too_easy'])
    >>> curate([[0, 0, 0, 0]], keep="possible").fate.tolist()  # 4 samplings exclude little
    ['stage_2']
    >>> curate([0, 3, 12], samplings=24).fate.tolist()
    ['too_hard', 'stage_2', 'stage_1']
    """
    checks.choice("keep", keep, KEEP)
    checks.choice("method", method, METHODS)
    lowest, highest = _band(band)
    cut = checks.number("cut", cut)
    if not lowest <= cut <= highest:
        raise ArgumentError("cut", f"a number in the band [{lowest}, {highest}]", cut)
    confidence_level = checks.number("confidence_level", confidence_level)
    if not 0 < confidence_level < 1:
        raise ArgumentError("confidence_level", "a number in (0, 1)", confidence_level)

    outcomes = _array("correct", correct, "bool, 0, 1 or NaN")
    known, right = _outcomes(outcomes, prompts) if samplings is None else _numbers(outcomes, samplings)
    ids, row = _rows(len(outcomes), prompts)
    known, right = (np.bincount(row, counts, len(ids)).astype(np.int64) for counts in (known, right))
    with np.errstate(invalid="ignore"):
        accuracy = right / known
    pairs = zip(right.tolist(), known.tolist(), strict=True)
    interval = functools.cache(functools.partial(_interval, level=confidence_level, method=method))
    low, high = np.array([interval(k, n) for k, n in pairs], dtype=np.float64).reshape(-1, 2).T
    fate = _fates(known, accuracy, low, high, keep=keep, band=(lowest, highest), cut=cut)
    return Curation(ids, known, right, accuracy, low, high, fate, (lowest, highest), cut)


def _fates(
    known: NDArray[np.int64],
    accuracy: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    *,
    keep: str,
    band: tuple[float, float],
    cut: float,
) -> NDArray[np.str_]:
    lowest, highest = band
    kept = {
        "estimate": (lowest <= accuracy) & (accuracy <= highest),
        "possible": (high >= lowest) & (low <= highest) & (known > 0),
        "certain": (low >= lowest) & (high <= highest),
    }[keep]
    return np.select(
        [kept & (accuracy < cut), kept, accuracy < lowest, accuracy > highest],
        ["stage_2", "stage_1", "too_hard", "too_easy"],
        "uncertain",
    )


def accuracy_figure(curation: Curation) -> Figure:
    """Draw how many prompts have which accuracy, and what becomes of them: U-shaped for most data and base models.

    Args:
        curation: from ``curate``.

    Returns:
        A figure of Matplotlib, to be saved or shown.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.

    >>> accuracy_figure(curate([[0, 1], [1, 1]])).savefig  # doctest: +ELLIPSIS
    <bound method ...>
    """
    from matplotlib.figure import Figure  # takes a second, and nobody else here needs it

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    known = curation.samplings > 0
    counts = np.unique(curation.samplings[known])
    # a bar for each accuracy there can be, as wider ones would hold one or two of them by turns
    bars = int(counts[0]) if len(counts) == 1 and counts[0] <= _MOST_BARS else 10
    edges = (np.arange(bars + 2) - 0.5) / bars
    colors = dict(zip(FATES, ("#b35806", "#2166ac", "#92c5de", "#f1a340", "#bababa"), strict=True))
    shown = [fate for fate in FATES if (curation.fate[known] == fate).any()]
    names = [f"{fate.replace('_', ' ')}: {int((curation.fate == fate).sum()):,}" for fate in shown]
    if shown:
        axes.hist(
            [curation.accuracy[known & (curation.fate == fate)] for fate in shown],
            bins=edges.tolist(),
            stacked=True,
            color=[colors[fate] for fate in shown],
            label=names,
            edgecolor="white",
            linewidth=0.5,
        )
        axes.legend(frameon=False)
    _mark_band(axes, curation)
    low, high = curation.band
    axes.set(
        xlabel=f"accuracy over {_range_of(counts)} samplings (gray: the band {low:g} to {high:g})",
        ylabel="prompts",
        title=f"{int(known.sum()):,} prompts by accuracy",
        xlim=(float(edges[0]), float(edges[-1])),
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _mark_band(axes: Any, curation: Curation) -> None:
    low, high = curation.band
    axes.axvspan(low, high, color="0.93", zorder=0)
    axes.axvline(curation.cut, color="0.5", linestyle=":")
    axes.annotate(
        f"cut {curation.cut:.2g}",
        (curation.cut, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, -11),
        textcoords="offset points",
        color="0.4",
        fontsize=8,
    )


def _range_of(counts: NDArray[np.int64]) -> str:
    return " to ".join(str(count) for count in counts[[0, -1] if len(counts) > 1 else slice(None)]) or "0"


def _band(band: object) -> tuple[float, float]:
    if isinstance(band, (str, bytes)) or not isinstance(band, Sequence) or len(band) != 2:
        raise ArgumentTypeError("band", "two numbers, the lowest and the highest accuracy", repr(band))
    low, high = (checks.number(f"band[{i}]", edge) for i, edge in enumerate(band))
    if not 0 <= low < high <= 1:
        raise ArgumentError("band", "0 <= low < high <= 1", (low, high))
    return low, high


def _interval(right: int, samplings: int, level: float, method: str) -> tuple[float, float]:
    if samplings == 0:
        return 0.0, 1.0
    found = binomtest(right, samplings).proportion_ci(level, method=method)
    return float(found.low), float(found.high)


def _array(name: str, values: ArrayLike, expected: str) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)  # None becomes NaN
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentTypeError(name, f"an array of {expected}", f"{values!r:.60} ({error})") from None


def _outcomes(outcomes: NDArray[np.float64], prompts: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return each row's number of known samplings and of correct ones."""
    if outcomes.ndim not in (1, 2):
        raise ArgumentError("correct", "shape (B, k), or (N,) with prompts", outcomes.shape)
    if outcomes.ndim == 1 and prompts is None:
        raise ArgumentError("prompts", f"the prompt of each sampling with correct of shape {outcomes.shape}")
    known = ~np.isnan(outcomes)
    wrong = known & (outcomes != 0) & (outcomes != 1)
    if wrong.any():
        raise ArgumentError("correct", "0, 1 or NaN", outcomes[wrong][0])
    right = np.where(known, outcomes, 0.0)
    return (known.sum(1), right.sum(1)) if outcomes.ndim == 2 else (known, right)


def _numbers(right: NDArray[np.float64], samplings: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the numbers given, after a check."""
    given = _array("samplings", samplings, "integers")
    if right.ndim != 1:
        raise ArgumentError("correct", "shape (B,) with samplings", right.shape)
    if given.shape not in ((), right.shape):
        raise ArgumentError("samplings", f"one integer, or as many as correct, {right.shape}", given.shape)
    known = np.broadcast_to(given, right.shape)
    for name, numbers, most in (("samplings", known, _MOST_SAMPLINGS), ("correct", right, known)):
        bad = ~((numbers >= 0) & (numbers <= most) & (numbers == np.floor(numbers)))
        if bad.any():
            bound = "" if name == "samplings" else ", no more than samplings"
            raise ArgumentError(name, f"integers from 0 up{bound}", numbers[bad][0])
    return known, right


def _rows(count: int, prompts: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the distinct ids, and which of them each row has."""
    ids = list(range(count) if prompts is None else prompts)
    if len(ids) != count:
        raise ArgumentError("prompts", f"{count} ids, one per row of correct", len(ids))
    number: dict[Any, int] = {}
    row = np.array([number.setdefault(i, len(number)) for i in ids], dtype=np.int64)
    unique = np.empty(len(number), dtype=object)  # ids may be tuples, which NumPy would take apart
    unique[:] = list(number)
    return unique, row
