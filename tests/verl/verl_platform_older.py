"""The same for verl 0.7.1 to 0.8, which ask torch: where there is no CUDA, their device is ``torch.cpu``."""

import torch
from verl.utils import attention_utils, device, npu_flash_attn_utils
from verl.workers.engine import EngineRegistry
from verl_device import Device

torch.cpu = Device("cpu")
device.get_resource_name = lambda: "GPU"  # of which Ray is told that there is one
for of_backend in EngineRegistry._engines.values():
    for of_device in of_backend.values():
        of_device["cpu"] = of_device.get("cuda")
# of flash-attn, which needs a GPU to be installed, what verl has itself for other devices
attention_utils._get_attention_functions = lambda: (
    npu_flash_attn_utils.index_first_axis,
    npu_flash_attn_utils.pad_input,
    npu_flash_attn_utils.rearrange,
    npu_flash_attn_utils.unpad_input,
)
