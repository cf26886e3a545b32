"""What ``--external_plugins`` of ms-swift loads. No file lies beside it: ms-swift puts the folder on ``sys.path``."""

import sys
from importlib.util import find_spec
from pathlib import Path

from swift.trainers.trainer_factory import TrainerFactory

from durian_adv.adapters.swift import misfit

if Path(sys.argv[0]).parts[-2:] == ("_megatron", "rlhf.py"):
    raise RuntimeError("megatron rlhf, with Ray or without, has trainers that Durian does not reach: use swift rlhf")
if find_spec("swift.rlhf_trainers") is None:
    raise misfit("no swift.rlhf_trainers")
TrainerFactory.TRAINER_MAPPING["grpo"] = "durian_adv.adapters.swift.trainer.DurianGRPOTrainer"
TrainerFactory.TRAINING_ARGS_MAPPING["grpo"] = "durian_adv.adapters.swift.config.DurianGRPOConfig"
