"""TRL: ``DurianGRPOTrainer``, GRPO with difficulty-aware advantages, as a drop-in for ``trl.GRPOTrainer``."""

from durian_adv.adapters.trl.config import DurianGRPOConfig
from durian_adv.adapters.trl.trainer import NEWEST_TESTED, OLDEST_TESTED, DurianGRPOTrainer

__all__ = ["NEWEST_TESTED", "OLDEST_TESTED", "DurianGRPOConfig", "DurianGRPOTrainer"]
