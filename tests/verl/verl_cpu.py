"""verl on a CPU, for tests: a platform that pretends to have one GPU, and a sampler of Hugging Face models.

Imported by verl in each of its processes (``VERL_USE_EXTERNAL_MODULES=verl_cpu``). Trainers, workers, data, rewards,
the queue, losses and optimizers are verl's own.
"""

import contextlib
import os
import types

import torch
import torch.distributed
from verl.plugin.platform import platform_manager
from verl.plugin.platform.platform_base import PlatformBase
from verl.workers.rollout import base
from verl.workers.rollout.replica import RolloutReplicaRegistry

os.environ["VERL_PLATFORM"] = "cpu"
os.environ["VERL_ENGINE_DEVICE"] = "cuda"  # the name under which verl registers its FSDP engine


class _Device(types.ModuleType):
    """torch.cpu, with zeros for what only GPUs count."""

    def current_device(self):
        return torch.device("cpu")

    def device_count(self):
        return 1

    def get_rng_state(self, *_):
        return torch.get_rng_state()

    def set_rng_state(self, state, *_):
        torch.set_rng_state(state)

    def mem_get_info(self, *_):
        return 1 << 33, 1 << 34

    def get_device_name(self, *_):
        return "CPU"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(torch.cpu, name, lambda *_, **__: 0)


@platform_manager.PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    device_name = vendor_name = "cpu"
    device_module = _Device("cpu")

    def is_available(self):
        return True

    def current_device(self):
        return torch.device("cpu")

    def device_count(self):
        return 1

    def set_device(self, device_index):
        pass

    def synchronize(self, device_index=None):
        pass

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def manual_seed_all(self, seed):
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings):
        pass

    def empty_cache(self):
        pass

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg):
        return contextlib.nullcontext()

    def profiler_start(self):
        pass

    def profiler_stop(self):
        pass

    def ray_resource_name(self):
        return "GPU"  # of which Ray is told that there is one

    def ray_noset_envvars(self):
        return []

    def is_ipc_supported(self):
        return False

    def cudart(self):
        return None


platform_manager.set_platform(PlatformCPU())

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
