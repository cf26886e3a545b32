"""What verl asks of a device, answered for a CPU."""

import types

import torch
from torch import cpu


class Device(types.ModuleType):
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
        return getattr(cpu, name, lambda *_, **__: 0)
