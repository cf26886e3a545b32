"""TRL: what a forward for log-probabilities takes of a batch, and where it puts them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from durian_adv.adapters._fit import accepts

# Parts of the names under which images, videos and what belongs to them stand in a batch; each is a forward's argument.
_OF_IMAGES = re.compile("pixel|image|video|audio|tile|spatial_shapes|token_type|per_grid")


def image_inputs(output: dict[str, Any]) -> dict[str, Any]:
    """Return what a forward takes beside tokens."""
    return {name: value for name, value in output.items() if value is not None and _OF_IMAGES.search(name)}


def refused(forward: Callable[..., Any], names: dict[str, Any]) -> Iterator[str]:
    """Give the names of the inputs that a forward does not take, so that it would run without them."""
    return (name for name in names if not accepts(forward, [name]))


def of_completions(logprobs: Tensor, output: dict[str, Any], pad: int) -> Tensor | None:
    """Return the log-probabilities of the completions' tokens, ``(B, C)``; None if they have another width.

    Unsloth moves padding tokens to the right before a forward on text, and returns as many columns more as the shortest
    prompt has padding: a completion begins in a column of its own. It scores no padding token: NaN.
    """
    completions: Tensor = output["completion_ids"]
    count, width = completions.shape
    shift = output.get("max_left_pad")  # set by Unsloth, on text
    extra = 0 if shift is None else int(shift.max())
    if logprobs.shape != (count, width + extra):
        return None
    if shift is None:
        return logprobs
    real = torch.cat([output["prompt_ids"], completions], 1) != pad
    columns = real.cumsum(1)[:, -width:] - 1 - (real.shape[1] - logprobs.shape[1])
    return logprobs.gather(1, columns.clamp(min=0)).where(real[:, -width:], torch.nan)
