"""How a report writes names and numbers; what is not defined is n/a."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

LONGEST_NAME = 100  # of a prompt, which may be its whole text
CALLED = {"visual_entropy": "visual entropy", "confidence": "confidence"}
_KEPT_PREFIX = 20  # characters; a shorter beginning that prompts share is not cut


def degrees(angle: float) -> str:
    """Write an angle in whole degrees."""
    return "n/a" if math.isnan(angle) else f"{angle:.0f}°"


def percent(share: float) -> str:
    """Write a share as a reader wants it: with a decimal where it is small."""
    if math.isnan(share):
        return "n/a"
    return f"{share:.0%}" if share >= 0.0995 or share == 0 else f"{share:.1%}"


def decimals(value: float, places: int = 2) -> str:
    """Write a number with so many decimals."""
    return "n/a" if math.isnan(value) else f"{value:.{places}f}"


def short(name: object) -> str:
    """Write a name so that a cell of a table holds it."""
    text = str(name)
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}…"


def told_apart(names: Iterable[object]) -> dict[str, str]:
    """Write prompts so that they can be told apart: without a long beginning that they share, and cut at the end.

    >>> names = told_apart(["You are a careful assistant. Add 1 and 1.", "You are a careful assistant. Add 2 and 2."])
    >>> list(names.values())
    ['…1 and 1.', '…2 and 2.']
    """
    texts = sorted({str(name) for name in names})
    shared = _cut(_beginning(texts[0], texts[-1])) if len(texts) > 1 else 0
    shown = {}
    for place, text in enumerate(texts):
        neighbors = texts[max(0, place - 1) : place] + texts[place + 1 : place + 2]
        differs = max((len(_beginning(text, other)) for other in neighbors), default=0)
        start = shared if differs - shared < LONGEST_NAME - _KEPT_PREFIX else _cut(text[:differs])
        shown[text] = f"{'…' * (start > 0)}{short(text[start:])}"
    return shown


def _cut(prefix: str) -> int:
    """Return where to cut a beginning: before the word in which texts differ, nowhere if it is short."""
    word = max(prefix.rfind(space) for space in " \n\t") + 1
    start = word if len(prefix) - word <= _KEPT_PREFIX else len(prefix)
    return start if start > _KEPT_PREFIX else 0


def _beginning(first: str, second: str) -> str:
    """Return what two texts begin with."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return "".join(letter for letter, _ in same)
