"""One check that an installed trainer has what an adapter uses of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

Use = tuple[Any, str, Sequence[str] | None]
"""An owner, a dotted name in it, and the parameters it is called with; None where it is not called."""


def misfits(uses: Iterable[Use]) -> Iterator[str]:
    """Give, in words, what is missing, or does not take the parameters that it is called with."""
    for owner, name, parameters in uses:
        where = getattr(owner, "__name__", str(owner))
        found = resolved(owner, name)
        if found is None or (parameters is not None and not callable(found)):
            yield f"{where} has no {name}"
        elif parameters is not None and not accepts(found, parameters):
            yield f"{where}.{name} does not take {', '.join(parameters)}"


def resolved(owner: Any, name: str) -> Any:
    """Return ``owner.a.b`` for the name ``a.b``; None if it is not there."""
    for part in name.split("."):
        owner = getattr(owner, part, None)
    return owner


def accepts(function: Callable[..., Any], parameters: Sequence[str]) -> bool:
    """Return whether a function takes parameters of these names; one with ``**kwargs`` takes any (a wrapper's)."""
    taken = inspect.signature(function).parameters
    return set(parameters) <= set(taken) or any(p.kind is p.VAR_KEYWORD for p in taken.values())
