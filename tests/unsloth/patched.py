"""Unsloth without a GPU: imported first, as its users do, and with TRL's GRPO replaced, as it does on a GPU."""

import os
import tempfile

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "UNSLOTH_ALLOW_CPU": "1",
    "UNSLOTH_COMPILE_DISABLE": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    # rows in one sequence need the attention of a GPU, and the check of their result passes what a random model mixes
    "UNSLOTH_GRPO_PREFIX_GROUPER": "0",
    "UNSLOTH_GRPO_SEQ_PACKING": "0",
}
os.environ.update(SETTINGS)
_written = tempfile.TemporaryDirectory(prefix="unsloth")  # where it writes the trainer it makes of TRL's source
os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", _written.name)


def replace():
    """Replace ``trl.GRPOTrainer``, which ``UNSLOTH_ALLOW_CPU`` alone leaves as it is."""
    import unsloth  # noqa: F401
    from unsloth.models import rl

    rl.patch_trl_disable_gradient_checkpointing()
    rl._patch_trl_rl_trainers("grpo_trainer")


def build(family):
    """A tiny model of transformers with Unsloth's switches: its own loader reads the properties of a GPU."""
    import tiny
    from unsloth.models.vision import FastBaseModel

    model, processor = tiny.build(family)
    model._unsloth_user_float32 = True  # as the loader marks a model with dtype=float32
    model.for_training = lambda use_gradient_checkpointing=False: FastBaseModel.for_training(
        model, use_gradient_checkpointing
    )
    model.for_inference = lambda: FastBaseModel.for_inference(model)
    return model, processor
