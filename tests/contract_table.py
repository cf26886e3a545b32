"""Every public function in one list, with arguments for it of any size, dtype and device."""

from __future__ import annotations

from functools import partial

import torch

import durian_adv
from durian_adv import baselines, weighting

SIZES = {"b": 5, "g": 3, "p": 7, "d": 8, "t": 6}


def _values(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Inputs:
    """Tensors of the given sizes; `own` is the dtype under test, everything else stays as it is."""

    def __init__(self, own=torch.float32, device="cpu", **sizes):
        s = {**SIZES, **sizes}
        b, g, p, d, t = (s[k] for k in "bgpdt")
        generator = torch.Generator().manual_seed(b + 10 * g + 100 * p + 1000 * t)

        def cast(x):
            return x.abs().mul(2).to(own).to(device) if not own.is_floating_point else x.to(own).to(device)

        self.rewards = cast(_values(generator, b, g))
        self.valid = (torch.rand(b, g, generator=generator) < 0.8).to(device)
        self.entropy = cast(_values(generator, b).abs()) if own.is_floating_point else _values(generator, b).to(device)
        self.rollout_confidence = _values(generator, b, g).to(torch.float32).to(device)
        self.prompt_confidence = _values(generator, b).to(device)
        self.buckets = (torch.arange(b) % 3).to(device)
        self.scores = cast(_values(generator, b))
        self.advantages = [cast(_values(generator, b, g)) for _ in range(3)]
        self.features = cast(_values(generator, b, p, d) + 1)
        self.patches = (torch.rand(b, p, generator=generator) < 0.8).to(device)
        self.logprobs = cast(-_values(generator, b, g, t).abs())
        self.tokens = (torch.rand(b, g, t, generator=generator) < 0.8).to(torch.int64).to(device)


# name -> (function, what it is called with); the dtype under test is that of the positional arguments
TABLE = {
    "durian_advantage": (
        durian_adv.durian_advantage,
        lambda x: (
            (x.rewards,),
            {"visual_entropy": x.entropy, "confidence": x.prompt_confidence, "valid": x.valid, "no_signal": "drop"},
        ),
    ),
    "durian_components": (
        durian_adv.durian_components,
        lambda x: (
            (x.rewards,),
            {"visual_entropy": x.entropy, "confidence": x.rollout_confidence, "valid": x.valid}
            | {"category": x.buckets, "weights": (0.1, 0.2, 0.7, 0.4)},
        ),
    ),
    "eigen_entropy": (durian_adv.eigen_entropy, lambda x: ((x.features,), {"mask": x.patches})),
    "certified_entropy_intervals": (
        durian_adv.certified_entropy_intervals,
        lambda x: ((x.features,), {"mask": x.patches}),
    ),
    "certified_entropy_buckets": (
        durian_adv.certified_entropy_buckets,
        lambda x: ((x.features,), {"mask": x.patches}),
    ),
    "sequence_confidence": (durian_adv.sequence_confidence, lambda x: ((x.logprobs, x.tokens), {})),
    "quantile_buckets": (durian_adv.quantile_buckets, lambda x: ((x.scores, 4), {"boundary": "outer"})),
    "grpo_advantage": (durian_adv.grpo_advantage, lambda x: ((x.rewards,), {"valid": x.valid})),
    "shared_std_advantage": (
        durian_adv.shared_std_advantage,
        lambda x: ((x.rewards, x.buckets), {"valid": x.valid}),
    ),
    "combine_advantages": (
        durian_adv.combine_advantages,
        lambda x: (([x.advantages[0], None, x.advantages[1]], (0.1, 0.2, 0.7)), {}),
    ),
    **{
        name: (getattr(baselines, name), lambda x: ((x.rewards,), {"valid": x.valid}))
        for name in (
            "dr_grpo_advantage",
            "batch_std_advantage",
            "rloo_advantage",
            "reinforce_plus_plus_advantage",
            "reinforce_plus_plus_baseline_advantage",
        )
    },
    **{
        name: (
            partial(getattr(weighting, name), weight=weighting.exponential, normalize=True),
            lambda x: ((x.rewards,), {"valid": x.valid, "correctness": x.rollout_confidence}),
        )
        for name in ("accuracy_weights", "reweighted_advantage")
    },
}

OF_REWARDS = [n for n in TABLE if n.endswith("_advantage") or n in ("durian_components", "accuracy_weights")]
OF_STD = [
    n
    for n in OF_REWARDS
    if n not in ("dr_grpo_advantage", "rloo_advantage", "reweighted_advantage", "accuracy_weights")
]


def call(name, inputs):
    """The public function on these inputs."""
    function, arguments = TABLE[name]
    args, kwargs = arguments(inputs)
    return function(*args, **kwargs)


def tensors(result):
    """The tensors of a result, a named tuple or not."""
    return [result] if isinstance(result, torch.Tensor) else [x for x in result if x is not None]
