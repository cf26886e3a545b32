"""Difficulty-aware advantage normalization (Durian) for RL with language models, as pure tensor functions."""

from durian_adv._src import interrupts as _interrupts  # noqa: F401  # first, as torch takes seconds
from durian_adv._src.advantages import combine_advantages, grpo_advantage, shared_std_advantage
from durian_adv._src.buckets import quantile_buckets
from durian_adv._src.certified import certified_entropy_buckets, certified_entropy_intervals
from durian_adv._src.confidence import sequence_confidence
from durian_adv._src.durian import DurianComponents, durian_advantage, durian_components
from durian_adv._src.entropy import eigen_entropy
from durian_adv._src.errors import ArgumentError, ArgumentTypeError

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "DurianComponents",
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
