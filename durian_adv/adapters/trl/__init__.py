"""TRL: ``DurianGRPOTrainer``, GRPO with difficulty-aware advantages, as a drop-in for ``trl.GRPOTrainer``."""

from durian_adv.adapters.trl.config import DurianGRPOConfig
from durian_adv.adapters.trl.trainer import DurianGRPOTrainer

__all__ = ["DurianGRPOConfig", "DurianGRPOTrainer"]
