"""TRL: ``DurianGRPOTrainer``, GRPO with difficulty-aware advantages, as a drop-in for ``trl.GRPOTrainer``.

``DurianMixin`` and ``DurianConfig`` do the same for a subclass of TRL's trainer and configuration.
"""

from durian_adv.adapters.trl.config import DurianConfig, DurianGRPOConfig
from durian_adv.adapters.trl.trainer import DurianGRPOTrainer, DurianMixin

__all__ = ["DurianConfig", "DurianGRPOConfig", "DurianGRPOTrainer", "DurianMixin"]
