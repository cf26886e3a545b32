"""verl on a CPU, for tests: a platform that pretends to have one GPU, and a sampler of Hugging Face models.

Imported by verl in each of its processes (``VERL_USE_EXTERNAL_MODULES=verl_cpu``). Trainers, workers, data, rewards,
the queue, losses and optimizers are verl's own.
"""

import importlib.util

import torch.distributed
from verl.workers.rollout import base
from verl.workers.rollout.replica import RolloutReplicaRegistry

if importlib.util.find_spec("verl.plugin") is not None:
    import verl_platform  # noqa: F401
else:
    import verl_platform_older  # noqa: F401

_init_process_group = torch.distributed.init_process_group


def _one_backend(backend=None, *args, **kwargs):
    """verl names one backend for the host and one for the device; here they are the same."""
    kwargs.pop("device_id", None)
    return _init_process_group("gloo", *args, **kwargs)


torch.distributed.init_process_group = _one_backend


def _replica():
    from verl_sampler import Replica

    return Replica


RolloutReplicaRegistry.register("huggingface", _replica)
base._ROLLOUT_REGISTRY["huggingface", "async"] = "verl_sampler.Adapter"
