"""The RL loop: sample, verify, normalize with `durian_adv`, update. Copy it into a loop of your own."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from benchmarks.rlvr.arms import AdvantageFn
from benchmarks.rlvr.encoder import Gallery
from benchmarks.rlvr.policy import Policy
from benchmarks.rlvr.prompts import Prompts, sample_prompts
from benchmarks.rlvr.rollout import Rollouts, response_logprobs, sample_responses, verify
from durian_adv import sequence_confidence


@dataclass(frozen=True)
class Step:
    """What one step sampled, how it was scored and what it was pushed towards."""

    prompts: Prompts
    rollouts: Rollouts
    rewards: Tensor  # (B, G)
    correct: Tensor  # (B, G)
    visual_entropy: Tensor  # (B,)
    confidence: Tensor  # (B, G)
    advantages: Tensor  # (B, G)


def train(
    policy: Policy,
    gallery: Gallery,
    advantage_fn: AdvantageFn,
    *,
    steps: int,
    prompts_per_step: int,
    group_size: int = 8,
    updates: int = 2,
    lr: float = 1e-4,
    clip: float = 0.2,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> Iterator[Step]:
    """Train the policy in place, one step each time the next item is asked for."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0)
    for _ in range(steps):
        prompts = sample_prompts(gallery, prompts_per_step, rng)
        rollouts = sample_responses(policy, gallery, prompts, group_size, generator)
        rewards, correct = verify(prompts, rollouts)

        visual_entropy = gallery.visual_entropy[prompts.scenes]  # computed once per image, when it was encoded
        confidence = sequence_confidence(rollouts.logprobs, rollouts.mask)
        advantages = advantage_fn(rewards, visual_entropy, confidence)

        # The advantage was taken over the whole batch; only now is the batch split.
        for rows in torch.arange(prompts_per_step).chunk(updates):
            logprobs = response_logprobs(policy, gallery, prompts, rollouts, rows)
            loss = clipped_loss(logprobs, rollouts.logprobs[rows], rollouts.mask[rows], advantages[rows], clip)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
        yield Step(prompts, rollouts, rewards, correct, visual_entropy, confidence, advantages)


def clipped_loss(logprobs: Tensor, sampled_logprobs: Tensor, mask: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Return PPO's clipped loss over tokens (B, G, T), every token weighing the same; no KL term."""
    ratio = (logprobs - sampled_logprobs).exp()
    advantages = rearrange(advantages, "b g -> b g 1")
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -(gain * mask).sum() / mask.sum()
