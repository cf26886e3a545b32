"""From a row of a log to a rollout: which key means what, prompt ids, numbers, tokens."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import sys
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import torch

from durian_adv import sequence_confidence

Name = str | int
Reduction = Literal["sum", "mean"]

COLUMNS = ("prompt", "reward", "step", "visual_entropy", "confidence", "logprobs", "mask", "category")
# what trainers call the mask of the sampled tokens; one that is there is used with logprobs
MASKS = ("mask", "response_mask", "loss_mask", "token_loss_mask", "completion_mask", "action_mask")
_MISSING: Any = object()
_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode


class Row(NamedTuple):
    """A row as the file holds it, and what the reader of its format has made of it."""

    where: str  # in an error
    values: dict[str, Any]
    given: Mapping[str, Any] = {}  # values by the names of COLUMNS, and "label"; a key that the user names goes before


class Rollout(NamedTuple):
    """What is needed of a rollout."""

    step: Name | None
    prompt: str  # identity: the canonical JSON text of its id
    label: Name  # what to call the prompt
    reward: float  # NaN where there is none
    visual_entropy: float  # NaN where unknown
    confidence: float  # NaN where unknown
    category: str | None = None  # the canonical JSON text of its prompt's kind


class Keys:
    """Where the columns are: as the user says, else as the format does, else by their own names."""

    def __init__(self, named: Mapping[str, str], of_format: Mapping[str, str]) -> None:
        """Keep both, and the key of each column."""
        self.named, self.of_format = named, of_format
        self._keys = {column: named.get(column) or of_format.get(column, column) for column in COLUMNS}

    def of(self, column: str) -> str:
        """Return the key of a column."""
        return self._keys[column]

    def roots(self) -> set[str]:
        """Return every top-level key that could be read."""
        keys = [self.of(column) for column in COLUMNS] + list(MASKS)
        parts = [part for key in keys for part in (key, *(path for path, _ in _terms(key)))]
        return {name for part in parts for name in (part, part.split(".")[0])}

    def require(self, names: Collection[str], where: str) -> None:
        """Refuse a log that has no prompt or no reward; a key within an object is looked for in every row."""
        for column in ("prompt", "reward"):
            key = self.of(column)
            if key not in names and not any(path.split(".")[0] in names for path, _ in _terms(key)):
                raise ValueError(
                    f"{where}: expected the key {key!r}, got {short(sorted(names))}; --key {column}=KEY names another"
                )


def rollout(row: Row, keys: Keys, reduction: Reduction) -> Rollout:
    """Read and check a row.

    Raises:
        ValueError: what cannot be used, with the row's place and key.
    """
    where = row.where
    prompt, reward, step = _value(row, keys, "prompt"), _value(row, keys, "reward"), _value(row, keys, "step")
    if prompt is _MISSING or reward is _MISSING:
        keys.require(row.values, where)
        key = keys.of("prompt" if prompt is _MISSING else "reward")
        raise ValueError(f"{where}: expected the key {key!r}, got {short(sorted(row.values))}")
    entropy = number(_value(row, keys, "visual_entropy"), where, keys.of("visual_entropy"))
    confidence = number(_value(row, keys, "confidence"), where, keys.of("confidence"))
    if math.isnan(confidence):
        confidence = _of_logprobs(row, keys, reduction)
    return Rollout(
        None if step is _MISSING else _step(step, where, keys.of("step")),
        identity(prompt, where, keys.of("prompt")),
        label(prompt if "prompt" in keys.named else _label(row, keys, prompt)),
        _reward(reward, where, keys.of("reward")),
        entropy,
        confidence,
        _category(row, keys),
    )


def identity(value: Any, where: str = "", key: str = "prompt") -> str:
    """Return the canonical JSON text of an id: keys sorted, no spaces, whole numbers as integers.

    >>> identity({"b": 1.0, "a": [None, "x"]}), identity(1) == identity("1")
    ('{"a":[null,"x"],"b":1}', False)
    """
    if value is None or (isinstance(value, _Joined) and all(part is None for part in value)):
        raise ValueError(f"{where}: {key}: expected a prompt id, got null")
    try:
        text = str(value) if type(value) is int else _encode(value if isinstance(value, str) else _plain(value))
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: {key}: expected text, got {short(value)}, half of a character") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {key}: expected what JSON can hold, got {short(value)} ({error})") from None
    return text


def label(value: Any) -> Name:
    """Return what to call a prompt: its text where it is a text or messages, else its id."""
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) and "content" in part for part in value):
        return "\n".join(map(_content, value))
    return identity(value)


def number(value: Any, where: str, key: str) -> float:
    """Return a number, NaN for null and for a key that is not there."""
    if type(value) is float:
        return value
    if value is None or value is _MISSING:
        return math.nan
    if not isinstance(value, (int, float)):
        raise ValueError(f"{where}: {key}: expected a number or null, got {short(value)}")
    return _float(value, where, key)


def weighted(values: Mapping[str, Any], key: str, where: str) -> Any:
    """Return the value of a key, or a sum of keys with their weights: ``accuracy*0.9+format*0.1``.

    Parts that are null are left out; null, where all are.
    """
    if (value := lookup(values, key)) is not _MISSING:
        return value
    terms = _terms(key)
    if len(terms) == 1 and terms[0][1] is None:
        return _MISSING
    parts = [(lookup(values, path), path, 1.0 if weight is None else weight) for path, weight in terms]
    if any(value is _MISSING for value, _, _ in parts):
        return _MISSING
    products = [number(value, where, path) * weight for value, path, weight in parts]
    known = [product for product in products if not math.isnan(product)]
    return math.fsum(known) if known else None


def lookup(values: Mapping[str, Any], path: str) -> Any:
    """Return the value of a key, or of a key within objects: ``rewards.accuracy``."""
    if path in values:
        return values[path]
    if "." not in path:
        return _MISSING
    found: Any = values
    for part in path.split("."):
        if found is None:  # an object that is null has null in it
            return None
        if not isinstance(found, dict) or part not in found:
            return _MISSING
        found = found[part]
    return found


def missing(value: Any) -> bool:
    """Whether ``lookup`` or ``weighted`` found no such key."""
    return value is _MISSING


def short(value: object) -> str:
    """Write a value so that a line of a terminal holds it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


class _Joined(list[Any]):
    """Several columns that are one id."""


def _label(row: Row, keys: Keys, prompt: Any) -> Any:
    if "label" in row.given:
        found = row.given["label"]
    else:
        found = lookup(row.values, keys.of_format["label"]) if "label" in keys.of_format else prompt
    return prompt if found is None or found is _MISSING else found


def _value(row: Row, keys: Keys, column: str) -> Any:
    if row.given and column not in keys.named and column in row.given:
        return row.given[column]
    key = keys.of(column)
    if key in row.values:
        return row.values[key]
    if column == "reward":
        return weighted(row.values, key, row.where)
    value = lookup(row.values, key)
    if value is _MISSING and column == "prompt" and "+" in key:
        parts = [lookup(row.values, path) for path in key.split("+")]
        return _MISSING if any(part is _MISSING for part in parts) else _Joined(parts)
    return value


@functools.lru_cache(maxsize=64)
def _terms(key: str) -> tuple[tuple[str, float | None], ...]:
    """Return the keys of a sum and their weights, None where none stands."""
    terms = []
    for part in key.split("+"):
        path, times, weight = part.strip().rpartition("*")
        try:
            terms.append((path.strip(), float(weight)) if times else (part.strip(), None))
        except ValueError:
            terms.append((part.strip(), None))
    return tuple(terms)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):  # an image of a parquet file
        return {"sha256": hashlib.sha256(value).hexdigest()}
    return value


def _content(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, list):
        parts = [part.get("text") or "" for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _step(value: Any, where: str, key: str) -> Name:
    if isinstance(value, float) and value.is_integer():  # a column of integers with a gap, in a table
        value = int(value)
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise ValueError(f"{where}: {key}: expected an integer or a string, got {short(value)}")
    if isinstance(value, int):
        if abs(value) >> 128:  # a step is a place on an axis
            raise ValueError(f"{where}: {key}: expected an integer of up to 128 bits, got a larger one")
    else:
        identity(value, where, key)
    return value


def _category(row: Row, keys: Keys) -> str | None:
    value, key = _value(row, keys, "category"), keys.of("category")
    if value is _MISSING and "category" in keys.named:
        raise ValueError(f"{row.where}: expected the key {key!r}, got {short(sorted(row.values))}")
    return None if value is None or value is _MISSING else identity(value, row.where, key)


def _reward(value: Any, where: str, key: str) -> float:
    """Return a reward; a list is one for each token, of which the sum counts."""
    if isinstance(value, list):
        return math.fsum(number(part, where, key) for part in value) if value else math.nan
    if isinstance(value, dict):
        raise ValueError(
            f"{where}: {key}: expected a number or null, got an object with {short(sorted(value))}: name one of them, "
            f"as in --key reward={key}.{next(iter(value), 'KEY')}"
        )
    return number(value, where, key)


def _of_logprobs(row: Row, keys: Keys, reduction: Reduction) -> float:
    values, key = _value(row, keys, "logprobs"), keys.of("logprobs")
    if values is None or values is _MISSING:
        return math.nan
    where = f"{row.where}: {key}"
    mask = masked(row, keys)
    numbers = (int, float, type(None))
    if not isinstance(values, list) or not all(isinstance(v, numbers) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{where}: expected a list of numbers or null, got {short(values)}")
    logprobs = torch.tensor([number(v, row.where, key) for v in values], dtype=torch.float64)
    counts = logprobs.isfinite()
    if mask is not None:
        if len(mask) != len(values):
            raise ValueError(
                f"{where}: expected as many as the mask has, {len(mask)}, got {len(values)}; --key mask=KEY names "
                "another mask"
            )
        counts &= torch.tensor([bool(m) for m in mask], dtype=torch.bool)
    return float(sequence_confidence(logprobs, counts, reduction=reduction))


def masked(row: Row, keys: Keys) -> list[Any] | None:
    """Return the mask of a row's tokens, None where there is none."""
    if "mask" in keys.named or "mask" in row.given or "mask" in keys.of_format:
        value = _value(row, keys, "mask")
        names = [keys.of("mask")]
    else:
        names = [name for name in MASKS if isinstance(row.values.get(name), list)]
        if len(names) > 1:
            raise ValueError(f"{row.where}: expected one mask of the tokens, got {', '.join(names)}: --key mask=KEY")
        value = row.values[names[0]] if names else None
    if value is None or value is _MISSING:
        return None
    if not isinstance(value, list) or not all(isinstance(m, (bool, int, float)) for m in value):
        raise ValueError(f"{row.where}: {names[0]}: expected a list of 0 and 1, got {short(value)}")
    return value


def natural(name: str) -> tuple[Any, ...]:
    """Return a key that sorts names by the numbers in them: ``2.jsonl`` before ``10.jsonl``."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name))


def _float(value: float, where: str, key: str) -> float:
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ValueError(f"{where}: {key}: expected a number within the range of float64, got one far outside")
    return float(value)
