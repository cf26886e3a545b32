"""What ``--external_plugins`` of ms-swift loads. No file lies beside it: ms-swift puts the folder on ``sys.path``."""

import sys
from importlib.util import find_spec
from pathlib import Path

from durian_adv.adapters.swift import misfit

if Path(sys.argv[0]).parts[-2:] == ("_megatron", "rlhf.py"):
    raise RuntimeError("megatron rlhf, with Ray or without, has trainers that Durian does not reach: use swift rlhf")
for module in ("swift.trainers.trainer_factory", "swift.rl_core", "swift.rlhf_trainers"):
    if find_spec(module) is None:
        raise misfit(f"no {module}")

from swift.trainers.trainer_factory import TrainerFactory  # noqa: E402  # in a version that has it

TrainerFactory.TRAINER_MAPPING["grpo"] = "durian_adv.adapters.swift.trainer.DurianGRPOTrainer"
TrainerFactory.TRAINING_ARGS_MAPPING["grpo"] = "durian_adv.adapters.swift.config.DurianGRPOConfig"
