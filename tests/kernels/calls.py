"""The calls whose kernels are counted: all that ``durian_adv.compiled`` compiles, at the sizes of a training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

import durian_adv


class Call(NamedTuple):
    name: str  # of the function
    form: str  # what it is called with
    args: tuple
    kwargs: dict

    @property
    def function(self) -> Callable:
        """What ``durian_adv.compiled`` compiles under this name."""
        return getattr(durian_adv, self.name)


def calls(make: Callable = torch.empty, prompts: int = 512, many: int = 8192) -> list[Call]:
    """List the calls, with tensors that ``make(*shape, dtype=...)`` makes."""

    def scores(b: int) -> dict:
        return {"visual_entropy": make(b), "confidence": make(b)}

    def flags(*shape: int) -> torch.Tensor:
        return make(*shape, dtype=torch.bool)

    def integers(*shape: int) -> torch.Tensor:
        return make(*shape, dtype=torch.int64)

    g, tokens, images = 8, (1024, 2048), (8, 1024, 1280)
    rewards, whole = make(prompts, g), scores(prompts)
    masked = whole | {"confidence": make(prompts, g), "valid": flags(prompts, g)}
    four = masked | {"category": integers(prompts), "weights": (0.1, 0.2, 0.7, 0.4), "no_signal": "drop"}
    return [
        Call("durian_advantage", "both scores", (rewards,), whole),
        Call("durian_advantage", "valid, confidence (B, G)", (rewards,), masked),
        Call("durian_advantage", "the same with category, no signal dropped", (rewards,), four),
        Call("durian_advantage", "entropy alone", (rewards,), {"visual_entropy": make(prompts)}),
        Call("durian_advantage", f"both scores, {many} prompts", (make(many, g),), scores(many)),
        Call("durian_advantage", "both scores, float64", (make(prompts, g, dtype=torch.float64),), whole),
        Call("durian_components", "both scores", (rewards,), whole),
        Call("durian_components", "valid, confidence (B, G)", (rewards,), masked),
        Call("grpo_advantage", "valid", (rewards,), {"valid": masked["valid"]}),
        Call("shared_std_advantage", "buckets", (rewards, integers(prompts)), {}),
        Call("combine_advantages", "two of three", ([rewards, None, make(prompts, g)], (0.1, 0.2, 0.7)), {}),
        Call("quantile_buckets", "levels, outer", (make(prompts), (0.25, 0.75)), {"boundary": "outer"}),
        Call("quantile_buckets", "12", (make(prompts), 12), {}),
        Call("sequence_confidence", "no mask", (make(*tokens),), {}),
        Call("sequence_confidence", "bool mask", (make(*tokens), flags(*tokens)), {}),
        Call("sequence_confidence", "int64 mask, mean", (make(*tokens), integers(*tokens)), {"reduction": "mean"}),
        Call("eigen_entropy", "images", (make(*images),), {}),
        Call("certified_entropy_intervals", "images", (make(*images),), {}),
        Call("certified_entropy_buckets", "images", (make(*images),), {}),
    ]
