"""The functions of ``durian_adv``, compiled: same names, arguments, results and errors, a fraction of the time.

Each is one graph for all sizes (0 and 1 aside), levels, weights and eps. The first call compiles, which takes some ten
seconds, and so does another one for other dtypes, another set of arguments that are given, another number of weights or
``no_signal``, or a number of buckets of 1 or 2; also sizes of 0 and 1, and whether autograd is on. Beyond torch's limit
of such variants, 8 per function, a call warns and runs uncompiled. The flat form, packed log-probabilities and calls
with a process group run as they are: the sizes of prompts and rows, and what other ranks hold, are values, which no
graph can know before it runs.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch._dynamo import exc

import durian_adv

__all__ = [
    "certified_entropy_buckets",
    "certified_entropy_intervals",
    "combine_advantages",
    "durian_advantage",
    "durian_components",
    "eigen_entropy",
    "grpo_advantage",
    "quantile_buckets",
    "sequence_confidence",
    "shared_std_advantage",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")
# what versions of torch raise at their limit of variants
_LIMIT_ERRORS: tuple[type[Exception], ...] = tuple(
    getattr(exc, name) for name in ("FailOnRecompileLimitHit", "RecompileLimitExceeded") if hasattr(exc, name)
)
_COMPILER_ERRORS: tuple[type[Exception], ...] = (exc.TorchDynamoException, *_LIMIT_ERRORS)

# Each call checks what its graph depends on. Most of that is whether the library's own functions and constants are
# still what they were, which takes time and needs no check; versions of torch without the filter check it.
_FILTER = getattr(torch.compiler, "skip_guard_on_globals_unsafe", None)
_OPTIONS: dict[str, Any] = {} if _FILTER is None else {"guard_filter_fn": _FILTER}
# arguments whose values decide about shapes
_RAGGED = ("prompt_index", "process_group", "rollout_index")


def _compiled(function: Callable[_P, _R], ragged: Sequence[str] = _RAGGED) -> Callable[_P, _R]:
    options = dict(_OPTIONS)  # torch empties what it gets
    one_graph = torch.compile(function, fullgraph=True, dynamic=True, options=options)

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if any(kwargs.get(name) is not None for name in ragged):
            return function(*args, **kwargs)
        try:
            return one_graph(*args, **kwargs)
        except _COMPILER_ERRORS as failure:
            result = function(*args, **kwargs)  # where an argument is at fault this says so, the compiler would not
            if not isinstance(failure, _LIMIT_ERRORS):
                raise
            warnings.warn(
                f"{function.__name__}: torch compiles so many variants and no more "
                "(torch._dynamo.config.recompile_limit); this one runs uncompiled",
                stacklevel=2,
            )
            return result

    return call


certified_entropy_buckets = _compiled(durian_adv.certified_entropy_buckets)
certified_entropy_intervals = _compiled(durian_adv.certified_entropy_intervals)
combine_advantages = _compiled(durian_adv.combine_advantages)
durian_advantage = _compiled(durian_adv.durian_advantage)
durian_components = _compiled(durian_adv.durian_components)
eigen_entropy = _compiled(durian_adv.eigen_entropy)
grpo_advantage = _compiled(durian_adv.grpo_advantage)
quantile_buckets = _compiled(durian_adv.quantile_buckets)
sequence_confidence = _compiled(durian_adv.sequence_confidence, (*_RAGGED, "lengths"))
shared_std_advantage = _compiled(durian_adv.shared_std_advantage)
