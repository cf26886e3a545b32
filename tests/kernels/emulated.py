"""Generated code, executed on the CPU: the wrapper as it is, its kernels by ``ptx.py``."""

from __future__ import annotations

import inspect
import re

import generated
import numpy as np
import ptx
import torch
from torch._inductor.runtime.triton_heuristics import GridExpr

MEMORY = 2**28


class _Kernel:
    """What the generated code knows by a kernel's name."""

    def __init__(self, device: Device, name: str, source: str, contract: bool | None) -> None:
        self.device, self.choices = device, generated.assembled(name, source, contract)
        self.programs = [ptx.parse(choice.ptx) for choice in self.choices]

    def run(self, *values, stream: int) -> None:
        number = min(self.device.choice, len(self.choices) - 1)
        chosen, program = self.choices[number], self.programs[number]
        names = [name for name in chosen.tuner.fn.arg_names if name not in chosen.config.kwargs]
        given = dict(zip(names, values, strict=True))
        meta = chosen.tuner._create_compile_meta(chosen.config)
        grid = GridExpr.from_meta(chosen.tuner.inductor_meta, chosen.config).eval_slow(given)
        passed = [given[name] for name in names if meta["signature"][name] != "constexpr"]
        passed = [self.device.address(x) if isinstance(x, torch.Tensor) else x for x in passed]
        shared = max(chosen.shared, 8)
        ptx.Run(program, grid, passed, self.device.memory, shared, self.device.order).execute()


class Device:
    """Runs the code of one graph.

    ``choice`` is the number of the configuration that every kernel takes, ``order`` shuffles atomics, and ``contract``
    says whether products and sums are contracted; None: as it was generated.
    """

    def __init__(self, code: generated.Code, contract: bool | None = None) -> None:
        self.code, self.choice = code, 0
        self.order: np.random.Generator | None = None
        self.kernels = {name: _Kernel(self, name, source, contract) for name, source in code.kernels.items()}
        source = generated._KERNEL.sub("", code.source)
        source = re.sub(
            r"^from torch\._C import _cuda_getCurrentRawStream as get_raw_stream$", "", source, flags=re.MULTILINE
        )
        source = source.replace("async_compile.wait(globals())", "").replace("device='cuda:0'", "device='cpu'")
        self.names = {"__name__": "generated", **self.kernels}
        exec(compile(source, "<generated>", "exec"), self.names)
        self.names |= {
            "empty_strided_cuda": self.empty,
            "copy_if_misaligned": lambda x: x,
            "get_raw_stream": lambda _: 0,
            "assert_size_stride": lambda *_: None,
        }

    def empty(self, size, stride, dtype):
        """A tensor in the memory of the device."""
        count = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if 0 not in size else 0
        start = self.memory.allocate(max(1, count) * dtype.itemsize)
        flat = torch.from_numpy(self.memory.bytes)[start : start + max(1, count) * dtype.itemsize].view(dtype)
        return flat.as_strided(size, stride)

    def address(self, tensor: torch.Tensor) -> int:
        """Where a tensor is in the device's memory; what an operator of torch made, as a sort, is brought there."""
        start = tensor.data_ptr() - self.memory.bytes.ctypes.data
        if 0 <= start < len(self.memory.bytes):
            return start
        if tensor.data_ptr() not in self.brought:
            copy = self.empty(tensor.shape, tensor.stride(), tensor.dtype).copy_(tensor)
            self.brought[tensor.data_ptr()] = tensor, copy
        return self.address(self.brought[tensor.data_ptr()][1])

    def __call__(self, function, *args, **kwargs) -> list[torch.Tensor]:
        """Run the code for these arguments of the function it was generated from; return the tensors of its result."""
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        self.memory, self.brought = ptx.Memory(MEMORY), {}
        values = [self._argument(eval(name, {"L": bound.arguments})) for name in self.code.arguments]  # noqa: S307  # names by Dynamo
        return [result.clone() for result in self.names["call"](values)]

    def _argument(self, value):
        if isinstance(value, float):
            return torch.tensor(value, dtype=torch.float64)
        if not isinstance(value, torch.Tensor):
            return value
        copy = self.empty(value.shape, value.stride(), value.dtype)
        return copy.copy_(value)
