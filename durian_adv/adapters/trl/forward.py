"""TRL: what a forward for log-probabilities takes of a batch, and where it puts them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

# What TRL and its experimental trainers, and Unsloth, put into a batch that is no input of a forward beside tokens.
_NO_INPUTS = {
    *("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "num_items_in_batch"),
    *("advantages", "old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps"),
    *("importance_sampling_ratio", "sampling_topk_logps", "sampling_topk_token_ids"),
    *("max_left_pad", "unsloth_sample_weight", "unsloth_rollout_logps_as_old"),
}
_OF_TRL = set(inspect.signature(getattr(GRPOTrainer, "_get_per_token_logps_and_entropies", dict)).parameters)


def inputs(output: dict[str, Any]) -> dict[str, Any]:
    """Return what a forward has to take beside tokens: all of a batch that is not known to be something else."""
    return {name: value for name, value in output.items() if value is not None and name not in _NO_INPUTS}


def refused(forward: Callable[..., Any], names: Iterable[str]) -> Iterator[str]:
    """Give the names of the inputs that a forward does not take, or drops, so that it would run without them.

    ``**kwargs`` of a wrapper go to TRL's own forward, and Unsloth's forward keeps the keys that it has a list of.
    """
    taken = inspect.signature(forward).parameters
    kept = set(taken)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        unsloth = sys.modules.get("unsloth_zoo.rl_replacements")
        kept |= _OF_TRL.union(getattr(unsloth, "grpo_companion_vision_keys", tuple)())
    return (name for name in names if name not in kept)


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
