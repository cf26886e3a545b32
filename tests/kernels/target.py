"""A CUDA device that is not there: enough of one for Inductor to generate code for it and for Triton to assemble that.

All that is replaced in torch and Triton stands in this file. None of it is public, so other versions than those it was
written for are refused.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

WRITTEN_FOR = {"torch": "2.13.0", "triton": "3.7.0"}
# compute capability -> what differs between an A100 and an H100
PROPERTIES = {
    80: {"name": "NVIDIA A100", "multi_processor_count": 108, "shared_memory_per_block_optin": 166_912},
    90: {"name": "NVIDIA H100", "multi_processor_count": 132, "shared_memory_per_block_optin": 232_448},
}
_OF_BOTH = {
    "regs_per_multiprocessor": 65_536,
    "max_threads_per_multi_processor": 2_048,
    "max_threads_per_block": 1_024,
    "warp_size": 32,
    "total_memory": 80 * 2**30,
    "L2_cache_size": 40 * 2**20,
    "shared_memory_per_block": 49_152,
    "gcnArchName": "",
}


def check_versions() -> None:
    """Refuse versions of torch and Triton whose internals have not been looked at."""
    for name, expected in WRITTEN_FOR.items():
        found = metadata.version(name).split("+")[0]
        if found != expected:
            raise RuntimeError(
                f"tests/kernels/target.py replaces internals of {name} {expected}, but {found} is installed"
            )


def library() -> ctypes.CDLL:
    """Compile ``cpu.cpp`` into the environment, once, and load it."""
    import torch

    source = Path(__file__).with_name("cpu.cpp")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    built, root = Path(sys.prefix, f"kernels-{digest}.so"), Path(torch.__file__).parent
    if not built.exists():
        partial = built.with_suffix(".partial")
        options = ["-shared", "-fPIC", "-std=c++20", "-O2", "-mfma", "-ffp-contract=off", f"-I{root}/include"]
        subprocess.run(["g++", *options, source, "-o", partial, f"-L{root}/lib", "-lc10"], check=True)
        partial.rename(built)
    return ctypes.CDLL(str(built))


def install(capability: int) -> None:
    """Make torch and Triton of this process believe in a GPU of this compute capability."""
    check_versions()
    library()
    properties = types.SimpleNamespace(
        **PROPERTIES[capability], **_OF_BOTH, major=capability // 10, minor=capability % 10
    )
    _replace_device(properties)
    _replace_inductor()
    _replace_triton(capability, properties)


class _Context:
    """A device or a stream as a context: nothing happens."""

    cuda_stream = stream_id = 0
    device = None

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> _Context:
        return self

    def __exit__(self, *_: object) -> None: ...


def _always(value: object) -> object:
    return lambda *_, **__: value


def _replace_device(properties: types.SimpleNamespace) -> None:
    import torch
    from torch._dynamo.device_interface import CudaInterface

    of_both = {
        "is_available": _always(True),
        "device_count": _always(1),
        "current_device": _always(0),
        "set_device": _always(None),
        "get_device_properties": _always(properties),
        "is_bf16_supported": _always(True),
        "synchronize": _always(None),
        "device": _Context,
        "current_stream": _Context,
        "memory_allocated": _always(0),
    }
    of_cuda = {
        "is_initialized": _always(True),
        "_lazy_init": _always(None),
        "get_device_capability": _always((properties.major, properties.minor)),
        "get_device_name": _always(properties.name),
        "_exchange_device": _always(0),
        "_maybe_exchange_device": _always(0),
        "_DeviceGuard": _Context,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8, device="cpu"),
        "set_rng_state": _always(None),
    }
    of_interface = {"exchange_device": _always(0), "maybe_exchange_device": _always(0), "get_raw_stream": _always(0)}
    torch.version.cuda = torch.version.cuda or "13.0"
    for name, value in (of_both | of_cuda).items():
        setattr(torch.cuda, name, value)
    torch._C._cuda_getCurrentRawStream = _always(0)
    for name, value in (of_both | of_interface).items():
        setattr(CudaInterface, name, value if isinstance(value, type) else staticmethod(value))


def _replace_inductor() -> None:
    import torch
    from torch._inductor import config
    from torch._inductor.fx_passes import joint_graph
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map

    config.compile_threads = 1  # in this process, which alone knows of the device
    config.fx_graph_cache = False  # every compilation generates its code
    config.use_static_triton_launcher = False  # what it returns keeps no text
    # patterns of attention and of padded products are found by running them on the device; nothing of ours matches them
    joint_graph.lazy_init = _always(None)

    class OnTheCpu(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            here = functools.partial(tree_map, lambda x: torch.device("cpu") if isinstance(x, torch.device) else x)
            return func(*here(args), **here(kwargs or {}))

    # constants are folded by running operators on one element: here on the CPU
    folder = joint_graph.UniformValueConstantFolder
    deduce = folder._deduce_value

    def deduce_on_the_cpu(self, node):
        with OnTheCpu():
            return deduce(self, node)

    folder._deduce_value = deduce_on_the_cpu


def _replace_triton(capability: int, properties: types.SimpleNamespace) -> None:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.backends.nvidia.driver import ty_to_cpp

    class Driver(DriverBase):
        def __init__(self) -> None:
            of_device = {
                "max_shared_mem": properties.shared_memory_per_block_optin,
                "multiprocessor_count": properties.multi_processor_count,
                "max_num_regs": properties.regs_per_multiprocessor,
                "warpSize": properties.warp_size,
            }
            self.utils = types.SimpleNamespace(get_device_properties=_always(of_device))

        is_active = classmethod(_always(True))
        map_python_to_cpp_type = staticmethod(ty_to_cpp)
        get_current_target = _always(GPUTarget("cuda", capability, properties.warp_size))
        get_current_device = _always(0)
        set_current_device = _always(None)
        get_current_stream = _always(0)
        get_active_torch_device = _always(torch.device("cuda", 0))
        get_benchmarker = _always(None)

    # the modules that Inductor generates choose a driver again when they are loaded
    nvidia = triton.backends.backends["nvidia"]
    triton.backends.backends.clear()
    triton.backends.backends["nvidia"] = type(nvidia)(compiler=nvidia.compiler, driver=Driver)
    triton.runtime.driver.set_active(Driver())
