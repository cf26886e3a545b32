"""Difficulty hints: a sentence in the prompt that tells the model how hard it is and asks for matching care.

A hint depends only on the prompt's accuracy. Nothing else of an example is read, its reference answer least of all.
"""

from __future__ import annotations

import copy
import itertools
import numbers
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from durian_adv._src import checks
from durian_adv._src.errors import ArgumentError, ArgumentTypeError

SLOTS = ("accuracy", "level")


class Band(NamedTuple):
    """A hint for prompts with ``low <= accuracy < high``, or ``<= high`` where ``high`` is 1."""

    low: float
    high: float
    level: str
    template: str  # with the slots {accuracy} and {level}, which may have a format: {accuracy:.0%}


DEFAULT_TEMPLATE = (
    "Hint: this problem is {level}; about {accuracy:.0%} of earlier attempts were correct. Think it through in depth "
    "before you answer, and check your answer before you give it: go over each step again, or solve the problem in "
    "another way, and compare."
)
DEFAULT_BANDS = (
    Band(0.0, 0.2, "very hard", DEFAULT_TEMPLATE),
    Band(0.2, 1 / 3, "hard", DEFAULT_TEMPLATE),
)


def hint(accuracy: float | None, bands: Sequence[Band] = DEFAULT_BANDS) -> str | None:
    """Return the hint for a prompt of this accuracy, or None if no band covers it or it is unknown (None, NaN).

    Args:
        accuracy: share of correct samples of the base model, from 0 to 1, as ``curation.curate`` returns it.
        bands: which accuracies get which hint; they do not overlap. The default covers stage 2 of
            ``curation.curate``.

    Returns:
        The text, or None.

    Raises:
        TypeError, ValueError: an accuracy outside of [0, 1]; bands that overlap or are empty; a template with a slot
            other than ``{accuracy}`` and ``{level}``.

    Source: Difficulty prior (arXiv 2505.13261), difficulty hints; wording and bands are ours.

    >>> hint(0.25, [Band(0.0, 0.5, "hard", "This is {level} ({accuracy:.0%} solved). Check your answer.")])
    'This is hard (25% solved). Check your answer.'
    >>> hint(0.75) is None
    True
    """
    for band in bands:
        _check_band(band)
    ordered = sorted(bands)
    for one, other in itertools.pairwise(ordered):
        if other.low < one.high:
            raise ArgumentError("bands", "bands that do not overlap", f"{one[:2]} and {other[:2]}")
    if accuracy is None or accuracy != accuracy:  # NaN
        return None
    # a scalar of NumPy is a real number too, and what pandas gives
    real = isinstance(accuracy, numbers.Real) and not isinstance(accuracy, bool)
    accuracy = checks.number("accuracy", float(accuracy) if real else accuracy)
    if not 0 <= accuracy <= 1:
        raise ArgumentError("accuracy", "a number from 0 to 1", accuracy)
    for band in bands:
        if band.low <= accuracy < band.high or accuracy == band.high == 1:
            return band.template.format(accuracy=accuracy, level=band.level)
    return None


def with_hint(
    example: Mapping[str, Any],
    *,
    messages: str = "prompt",
    accuracy: str = "accuracy",
    bands: Sequence[Band] = DEFAULT_BANDS,
) -> dict[str, Any]:
    r"""Return an example's prompt with the hint for its accuracy appended to the last user message.

    For ``datasets.map``, which replaces the column ``messages`` by what is returned; pass other options through
    ``functools.partial``. The example is not changed, and only these two of its columns are read.

    Args:
        example: with a prompt, a list of chat messages (whose content is a string or a list of parts) or a plain
            string, and an accuracy.
        messages: name of the prompt's column.
        accuracy: name of the accuracy's column; None or NaN there means no hint.
        bands: as in ``hint``.

    Returns:
        ``{messages: the new prompt}``.

    Raises:
        ValueError: a missing column, or a prompt without a user message.
        TypeError: a prompt of another form.

    >>> example = {"prompt": [{"role": "user", "content": "2 + 2?"}], "accuracy": 0.1, "answer": "4"}
    >>> bands = [Band(0.0, 0.5, "hard", "This is {level}.")]
    >>> with_hint(example, bands=bands)
    {'prompt': [{'role': 'user', 'content': '2 + 2?\n\nThis is hard.'}]}
    """
    for column in (messages, accuracy):
        if column not in example:
            raise ArgumentError(column, "a column of this name", sorted(example))
    text = hint(example[accuracy], bands)
    prompt = copy.deepcopy(example[messages])  # messages are nested: whoever changes the new one changes no other
    return {messages: prompt if text is None else _with_text(prompt, text, messages)}


def _with_text(prompt: Any, text: str, name: str) -> Any:
    if isinstance(prompt, str):
        return f"{prompt}\n\n{text}"
    if not isinstance(prompt, Sequence) or not all(isinstance(message, Mapping) for message in prompt):
        raise ArgumentTypeError(name, "a string or a list of chat messages", type(prompt).__name__)
    of_user = [i for i, message in enumerate(prompt) if message.get("role") == "user"]
    if not of_user:
        raise ArgumentError(name, "a message of the user", [message.get("role") for message in prompt])
    last = of_user[-1]
    content = prompt[last].get("content")
    if isinstance(content, str):
        content = f"{content}\n\n{text}"
    elif isinstance(content, Sequence):
        content = [*content, {"type": "text", "text": text}]
    else:
        raise ArgumentTypeError(f"{name}[{last}]", "content that is a string or a list", type(content).__name__)
    return [*prompt[:last], {**prompt[last], "content": content}, *prompt[last + 1 :]]


def _check_band(band: object) -> None:
    if not isinstance(band, Band):
        raise ArgumentTypeError("bands", "a sequence of Band", f"one of {type(band).__name__}")
    low, high = checks.number("low", band.low), checks.number("high", band.high)
    if not 0 <= low < high <= 1:
        raise ArgumentError("bands", "0 <= low < high <= 1", (low, high))
    # exact names: {accuracy.__class__} would reach into objects, and any other name into nothing that a hint may tell
    for _, slot, layout, _ in string.Formatter().parse(band.template):
        if slot is not None and (slot not in SLOTS or "{" in (layout or "")):
            raise ArgumentError("bands", f"no slots but {' and '.join(SLOTS)} in a template", repr(band.template))
