"""What ``--external_plugins`` of ms-swift loads. No file lies beside it: ms-swift puts the folder on ``sys.path``."""

from importlib.util import find_spec

from swift.arguments import ModelArguments
from swift.trainers.trainer_factory import TrainerFactory

from durian_adv.adapters.swift import misfit

if find_spec("swift.rlhf_trainers") is None:
    raise misfit("no swift.rlhf_trainers")
check = ModelArguments.__post_init__  # all arguments of a run call it after they have loaded plugins


def check_trainer(args: object) -> None:
    """Refuse what constructs Megatron's own trainers of GRPO, whichever script or Ray worker that is."""
    if getattr(args, "rlhf_type", None) == "grpo" and "'swift.megatron." in str(type(args).__mro__):
        raise RuntimeError("megatron rlhf, Ray or not, has trainers that Durian does not reach: use swift rlhf")
    check(args)


ModelArguments.__post_init__ = check_trainer
TrainerFactory.TRAINER_MAPPING["grpo"] = "durian_adv.adapters.swift.trainer.DurianGRPOTrainer"
TrainerFactory.TRAINING_ARGS_MAPPING["grpo"] = "durian_adv.adapters.swift.config.DurianGRPOConfig"
