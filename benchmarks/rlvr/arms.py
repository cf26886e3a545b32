"""The advantage estimators that a run can train with, one line each."""

from collections.abc import Callable

from torch import Tensor

from durian_adv import DurianComponents, durian_components, grpo_advantage
from durian_adv.baselines import batch_std_advantage

# rewards (B, G), visual entropy (B,) and confidence (B, G) in, advantages (B, G) out
AdvantageFn = Callable[[Tensor, Tensor, Tensor], Tensor]

ARMS: dict[str, AdvantageFn] = {
    "grpo": lambda rewards, entropy, confidence: grpo_advantage(rewards),
    "batch-std": lambda rewards, entropy, confidence: batch_std_advantage(rewards),
    "durian": lambda rewards, entropy, confidence: durian(rewards, entropy, confidence).advantages,
}


def durian(rewards: Tensor, visual_entropy: Tensor, confidence: Tensor) -> DurianComponents:
    """Call Durian with as many of its 12 confidence buckets as 8 prompts each can fill: a std needs prompts."""
    buckets = max(1, min(12, len(rewards) // 8))
    return durian_components(
        rewards, visual_entropy=visual_entropy, confidence=confidence, num_confidence_buckets=buckets
    )
