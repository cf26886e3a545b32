"""What a run keeps of its steps: plain numbers for results.json and the figure, one line per rollout for a file."""

import json
from collections.abc import Iterator

from benchmarks.rlvr.arms import ARMS, durian
from benchmarks.rlvr.training import Step
from durian_adv.diagnostics import durian_metrics


def step_metrics(step: Step) -> dict[str, float]:
    """Return one step's numbers; those under `durian/` are of Durian's advantages whichever arm trains."""
    components = durian(step.rewards, step.visual_entropy, step.confidence)
    return {
        "reward": step.rewards.mean().item(),
        "accuracy": step.correct.float().mean().item(),
        "response_length": step.rollouts.mask.sum(dim=-1).float().mean().item(),
        "largest_advantage": step.advantages.abs().max().item(),
        "batch_std": step.rewards.std().item(),
        **durian_metrics(components, step.rewards),
    }


def group_advantages(step: Step) -> list[dict[str, float]]:
    """Return, for each group, how many answers are right and its largest |advantage| under every arm."""
    columns = {"right": step.correct.sum(dim=1).tolist()}
    for name, advantage_fn in ARMS.items():
        advantages = advantage_fn(step.rewards, step.visual_entropy, step.confidence)
        columns[name] = advantages.abs().amax(dim=1).tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def rollout_lines(number: int, step: Step) -> Iterator[str]:
    """Yield one line of JSON per rollout: what an analysis of a finished run needs."""
    for prompt, entropy in enumerate(step.visual_entropy.tolist()):
        group = zip(step.rewards[prompt].tolist(), step.confidence[prompt].tolist(), strict=True)
        for reward, confidence in group:
            line = {"step": number, "prompt": prompt, "reward": round(reward, 6)}
            yield json.dumps({**line, "visual_entropy": entropy, "confidence": confidence}) + "\n"
