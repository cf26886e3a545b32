"""Cost of advantages, against the plain GRPO expression and against released trainers: ``make bench``.

Rewards are 0 or 1, float32; every candidate gets the same ones. What computes the same is checked to agree first.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks import released, timing
from benchmarks.timing import Case, Function
from durian_adv import compiled, durian_advantage, grpo_advantage, shared_std_advantage

PLAIN = "plain GRPO expression"
DURIAN, DURIAN_COMPILED = "durian_advantage, eager", "durian_advantage, compiled"
VERL_LOOP = f"{released.VERL}, loop"
MAIN = (512, 8)  # the batch of the paper
SIZES = ((128, 8), MAIN, (2048, 8), (8192, 8), (16384, 16))
LOOP_LIMIT = 2**16  # rewards: beyond it the loop takes seconds per call, and its line is straight


def plain_grpo(rewards: Tensor, eps: float = 1e-6) -> Tensor:
    """Center and scale each row, as one would write it in a training script."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + eps)


class Batch:
    """One batch of rewards and scores, dense and flat."""

    def __init__(self, prompts: int, rollouts: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rewards = torch.randint(0, 2, (prompts, rollouts), generator=generator).float()
        self.entropy = torch.rand(prompts, generator=generator)
        self.confidence = -torch.rand(prompts, rollouts, generator=generator)
        self.buckets = torch.randint(0, 12, (prompts,), generator=generator)
        self.index = torch.arange(prompts).repeat_interleave(rollouts)
        self.order = torch.randperm(prompts * rollouts, generator=generator)
        # as verl numbers prompts: a string for each rollout
        self.ids = np.array([f"prompt-{i:08d}" for i in self.index.tolist()], dtype=object)

    @property
    def scores(self) -> dict[str, Tensor]:
        """The two difficulty scores, dense."""
        return {"visual_entropy": self.entropy, "confidence": self.confidence}


def name(prompts: int, rollouts: int) -> str:
    """Write a size as it is read."""
    return f"{prompts:,} x {rollouts}"


def verl_loop(batch: Batch) -> dict[str, Function]:
    """Return the loop of verl where a call does not take seconds."""
    if batch.rewards.numel() > LOOP_LIMIT:
        return {}
    return {VERL_LOOP: partial(released.verl_grpo, batch.rewards.flatten(), batch.ids)}


def released_grpo(batch: Batch) -> dict[str, Function]:
    """Return the GRPO advantages of released packages, checked against the plain expression."""
    rewards, width = batch.rewards.flatten(), batch.rewards.shape[1]
    trl = released.trl_grpo()
    functions: dict[str, Callable[[], Tensor]] = {
        f"{released.VERL}, vectorized": partial(released.verl_grpo_vectorized, rewards, batch.ids),
        f"{released.TRL}, inlined": partial(trl, rewards, width),
        **verl_loop(batch),
    }
    mixed = (batch.rewards.amax(1) > batch.rewards.amin(1)).repeat_interleave(width)
    for function in functions.values():  # eps is 1e-4 in one of them, and groups without signal differ
        torch.testing.assert_close(function()[mixed], plain_grpo(batch.rewards).flatten()[mixed], rtol=1e-3, atol=0)
    return functions


def durian(prompts: int, rollouts: int) -> dict[str, Function]:
    """All three components, against GRPO."""
    batch = Batch(prompts, rollouts)
    eager = partial(durian_advantage, batch.rewards, **batch.scores)
    fused = partial(compiled.durian_advantage, batch.rewards, **batch.scores)
    torch.testing.assert_close(fused(), eager(), rtol=1e-6, atol=1e-6)
    return {
        PLAIN: partial(plain_grpo, batch.rewards),
        DURIAN: eager,
        DURIAN_COMPILED: fused,
        **verl_loop(batch),
    }


def grpo(prompts: int, rollouts: int, plain: Callable[[Tensor], Tensor]) -> dict[str, Function]:
    """GRPO itself, ours and theirs."""
    batch = Batch(prompts, rollouts)
    fused = partial(compiled.grpo_advantage, batch.rewards)
    torch.testing.assert_close(fused(), plain_grpo(batch.rewards), rtol=1e-5, atol=1e-5)
    return {
        PLAIN: partial(plain_grpo, batch.rewards),
        f"{PLAIN}, compiled": partial(plain, batch.rewards),
        "grpo_advantage, eager": partial(grpo_advantage, batch.rewards),
        "grpo_advantage, compiled": fused,
        **released_grpo(batch),
    }


def shared_std(prompts: int, rollouts: int) -> dict[str, Function]:
    """One shared std over twelve buckets."""
    batch = Batch(prompts, rollouts)
    return {
        PLAIN: partial(plain_grpo, batch.rewards),
        "shared_std_advantage, eager": partial(shared_std_advantage, batch.rewards, batch.buckets),
        "shared_std_advantage, compiled": partial(compiled.shared_std_advantage, batch.rewards, batch.buckets),
    }


def ragged(prompts: int, rollouts: int) -> dict[str, Function]:
    """The flat form, shuffled, against the dense one."""
    batch = Batch(prompts, rollouts)
    dense = partial(durian_advantage, batch.rewards, **batch.scores)
    flat = partial(
        durian_advantage,
        batch.rewards.flatten()[batch.order],
        visual_entropy=batch.entropy[batch.index[batch.order]],
        confidence=batch.confidence.flatten()[batch.order],
        prompt_index=batch.index[batch.order],
    )
    if not torch.equal(flat(), dense().flatten()[batch.order]):
        raise AssertionError("ragged and dense advantages differ")
    return {"dense (B, G)": dense, "flat (N,), shuffled": flat}


def growth(function: Callable[..., Tensor]) -> dict[str, Function]:
    """One function at both ends of the sizes."""
    batches = {name(*size): Batch(*size) for size in (MAIN, SIZES[-1])}
    return {size: partial(function, batch.rewards, **batch.scores) for size, batch in batches.items()}


def scaling(
    figure: str,
    build: Callable[..., dict[str, Function]],
    *arguments: Callable[..., Tensor],
    targets: dict[tuple[str, str], str] | None = None,
) -> list[Case]:
    """Return one case per size, with the most important size first, because compilation happens there."""
    return [
        Case(
            name(*size),
            partial(build, *size, *arguments),
            targets=targets or {} if size == MAIN else {},
            rounds=40 if size == MAIN else 7,
            figure=figure,
            size=size[0] * size[1],
            size_unit="rewards",
        )
        for size in sorted(SIZES, key=lambda size: size != MAIN)
    ]


def cases() -> list[Case]:
    """List what is measured."""
    fast_plain = torch.compile(plain_grpo, fullgraph=True, dynamic=True)
    targets = {
        (DURIAN, PLAIN): "<= 10",
        (DURIAN_COMPILED, PLAIN): "<= 4",
        (VERL_LOOP, DURIAN): ">= 50",
        (VERL_LOOP, DURIAN_COMPILED): ">= 100",
    }
    ends = name(*SIZES[-1]), name(*MAIN)
    times_larger = SIZES[-1][0] * SIZES[-1][1] // (MAIN[0] * MAIN[1])
    return [
        *scaling("durian_advantage, all three components", durian, targets=targets),
        *scaling("grpo_advantage", grpo, fast_plain),
        *scaling("shared_std_advantage, 12 buckets", shared_std),
        Case(
            f"durian_advantage, {name(*MAIN)}",
            partial(ragged, *MAIN),
            targets={("flat (N,), shuffled", "dense (B, G)"): "<= 3"},
            rounds=40,
        ),
        *(
            Case(f"durian_advantage, {how}", partial(growth, function), targets={ends: f"<= {times_larger}"})
            for how, function in (("eager", durian_advantage), ("compiled", compiled.durian_advantage))
        ),
    ]


if __name__ == "__main__":
    timing.run("advantage", cases(), packages=("verl", "trl"))
