"""One run's steps: the demonstration's loop, with shared noise, arms, two optimizers, and states that can be kept."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.rlvr.encoder import Gallery
from benchmarks.rlvr.policy import Policy
from benchmarks.rlvr.prompts import Prompts, sample_prompts
from benchmarks.rlvr.rollout import Rollouts, response_logprobs, verify
from benchmarks.rlvr.training import clipped_loss
from durian_adv import sequence_confidence
from studies.evidence.arms import Arm, Batch
from studies.evidence.conditions import Condition
from studies.evidence.sampling import sample, uniforms
from studies.evidence.suite import Suite

# what a step's random numbers are for: every (seed, step, purpose) has a stream of its own, so that a run can go on
# from any step and arms cannot disturb each other's
PROMPTS, NOISE, ARM, EXAM = range(4)


@dataclass(frozen=True)
class Sampled:
    """A step's rollouts, scored: what every arm would see here."""

    prompts: Prompts
    rollouts: Rollouts
    batch: Batch


def stream(seed: int, step: int, purpose: int) -> np.random.Generator:
    """Return the random numbers of one purpose in one step of one seed, the same for every arm and condition."""
    return np.random.default_rng([seed, step, purpose])


def collect(policy: Policy, suite: Suite, condition: Condition, seed: int, step: int) -> Sampled:
    """Sample a step's batch and score it."""
    gallery = suite.train
    prompts = sample_prompts(gallery, condition.prompts, stream(seed, step, PROMPTS))
    noise = uniforms(condition.prompts, condition.group_size, stream(seed, step, NOISE))
    rollouts = sample(policy, gallery, prompts, noise)
    paper_reward, correct = verify(prompts, rollouts)
    formatted = paper_reward - 0.9 * correct.float() > 0.05
    weight = condition.format_weight
    batch = Batch(
        rewards=(1 - weight) * correct.float() + weight * formatted.float(),
        correct=correct,
        visual_entropy=gallery.visual_entropy[prompts.scenes],
        confidence=sequence_confidence(rollouts.logprobs, rollouts.mask),
        clutter=suite.clutter[prompts.scenes],
        rng=stream(seed, step, ARM),
    )
    return Sampled(prompts, rollouts, batch)


def backward(
    policy: Policy, gallery: Gallery, sampled: Sampled, advantages: Tensor, rows: Tensor, clip: float, parts: int = 3
) -> None:
    """Add the gradient of the clipped loss over all tokens of `rows` to the weights' gradients.

    Groups whose advantages are all zero have no gradient and are not run again; the others are run in `parts`, short
    responses apart from long ones, so that little is spent on padding.
    """
    tokens = sampled.rollouts.mask[rows].sum()
    rows = rows[(advantages[rows] != 0).any(dim=1)]
    lengths = sampled.rollouts.mask[rows].sum(dim=-1).amax(dim=1)
    for some in rows[lengths.argsort(stable=True)].chunk(parts):
        if len(some):
            longest = int(sampled.rollouts.mask[some].sum(dim=-1).max())
            pieces = (piece[..., :longest] for piece in vars(sampled.rollouts).values())
            rollouts = Rollouts(*pieces)
            logprobs = response_logprobs(policy, gallery, sampled.prompts, rollouts, some)
            mask = rollouts.mask[some]
            loss = clipped_loss(logprobs, rollouts.logprobs[some], mask, advantages[some], clip)
            (loss * mask.sum() / tokens).backward()


def make_optimizer(policy: Policy, condition: Condition) -> torch.optim.Optimizer:
    """Return the condition's optimizer."""
    if condition.optimizer == "sgd":
        return torch.optim.SGD(policy.parameters(), lr=condition.lr)
    return torch.optim.AdamW(policy.parameters(), lr=condition.lr, weight_decay=0.0)


def train_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    suite: Suite,
    condition: Condition,
    arm: Arm,
    seed: int,
    step: int,
) -> dict[str, float]:
    """Train the policy in place by one step and return its numbers."""
    sampled = collect(policy, suite, condition, seed, step)
    batch = sampled.batch
    advantages = arm.advantage(batch)
    has_signal = batch.rewards.amax(dim=1) > batch.rewards.amin(dim=1)
    rows = has_signal.nonzero().squeeze(1) if arm.filters else torch.arange(condition.prompts)
    norms = []
    for some in rows.chunk(condition.updates):
        optimizer.zero_grad()
        backward(policy, suite.train, sampled, advantages, some, condition.clip)
        limit = condition.gradient_clip if condition.optimizer == "adam" else torch.inf
        norms.append(torch.nn.utils.clip_grad_norm_(policy.parameters(), limit).item())
        optimizer.step()
    return {"step": step, **step_numbers(batch, sampled.rollouts, advantages), "gradient_norm": float(np.mean(norms))}


def step_numbers(batch: Batch, rollouts: Rollouts, advantages: Tensor) -> dict[str, float]:
    """Return what a record keeps of a step; an extreme group has 1 or G - 1 right answers."""
    right, size = batch.correct.sum(dim=1), batch.correct.shape[1]
    signal = batch.rewards.amax(dim=1) > batch.rewards.amin(dim=1)
    mixed = (right > 0) & (right < size)
    return {
        "accuracy": batch.correct.float().mean().item(),
        "reward": batch.rewards.mean().item(),
        "length": rollouts.mask.sum(dim=-1).float().mean().item(),
        "effective": int(mixed.sum()),
        "extreme_success": int((right == size - 1).sum()),
        "extreme_failure": int((right == 1).sum()),
        "format_only": int((signal & ~mixed).sum()),
        "largest_advantage": advantages.abs().max().item(),
        "advantage_rms": advantages.square().mean().sqrt().item(),
        "format_only_share": _share(advantages[signal & ~mixed], advantages),
    }


def _share(part: Tensor, whole: Tensor) -> float:
    """Return the share of the sum of squares that a part has."""
    return (part.square().sum() / whole.square().sum().clamp(min=1e-30)).item()
