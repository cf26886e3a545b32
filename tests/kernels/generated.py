"""What Inductor generates for a call on the device of ``target.py``: its code, and what ptxas makes of its kernels."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch._inductor import graph
from torch._inductor.codecache import PyCodeCache
from torch._inductor.compile_fx import compile_fx
from torch._subclasses.fake_tensor import FakeTensorMode

PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
_KERNEL = re.compile(
    r"^(\w+) = async_compile\.triton\('\w+', '''(.*?)''', device_str='cuda'\)$", re.MULTILINE | re.DOTALL
)
# what code of the wrapper launches besides Triton's kernels; an assertion on the host launches nothing
_EXTERN = re.compile(r"\b((?:aten|extern_kernels|torch\.ops)(?:\.\w+)+)\(|(\.copy_|copy_if_misaligned)\(")


class Code(NamedTuple):
    """The code of one graph."""

    source: str
    arguments: list[str]  # of the graph: expressions of L, the arguments of the function by name

    @property
    def call(self) -> str:
        """The lines that run for each call."""
        return re.search(r"^    def call\(self, args\):$(.*?)^runner = ", self.source, re.MULTILINE | re.DOTALL)[1]

    @property
    def kernels(self) -> dict[str, str]:
        """The source of each distinct kernel."""
        return dict(_KERNEL.findall(self.source))

    @property
    def launches(self) -> list[str]:
        """The kernels of Triton that a call launches, in order."""
        return re.findall(r"^\s+(triton_\w+)\.run\(", self.call, re.MULTILINE)

    @property
    def extern(self) -> Counter:
        """What a call runs besides Triton's kernels."""
        lines = [line for line in self.call.splitlines() if not line.strip().startswith("#")]
        found = (a or b for line in lines for a, b in _EXTERN.findall(line))
        return Counter(name for name in found if "assert" not in name and name != "copy_if_misaligned")

    @property
    def waits(self) -> int:
        """How often a call reads a value from the device; options are floats of the CPU, and read there."""
        return sum(1 for name in re.findall(r"(\w+)\.item\(\)", self.call) if not self.is_on_cpu(name))

    def is_on_cpu(self, name: str) -> bool:
        return f"{name} = rand_strided((), (), device='cpu'" in self.source


class _Generated(BaseException):
    """Ends a compilation when its code is there: nothing of it could run. Not an Exception, which torch would wrap."""


def code_of(function, *args, dynamic: bool = True, **kwargs) -> Code:
    """Generate the code of a call with tensors of the device, which are fake."""
    sources, arguments = [], []

    def backend(module, inputs):
        nodes = module.graph.find_nodes(op="placeholder")
        arguments[:] = [node.meta["grapharg"].source.name for node in nodes]  # the last graph: tracing may start again
        return compile_fx(module, inputs)

    def stop(source):
        sources.append(source)
        raise _Generated

    torch._dynamo.reset()
    graph.GraphLowering.save_output_code = stop
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend)(*args, **kwargs)
    except _Generated:
        return Code(sources[0], arguments)
    finally:
        graph.GraphLowering.save_output_code = None
    raise RuntimeError("no code was generated")


class Assembled(NamedTuple):
    """One kernel under one configuration that the autotuner may choose."""

    tuner: object
    config: object
    ptx: str
    shared: int  # bytes


def assembled(name: str, source: str, contract: bool | None = None) -> list[Assembled]:
    """Compile one kernel to PTX, under each of its configurations; ``contract``: into FMA, None: as generated."""
    tuner = getattr(PyCodeCache.load(source), name)
    if contract is not None:
        tuner.triton_meta["enable_fp_fusion"] = contract
    found = []
    for choice in tuner.configs:
        binary = tuner._precompile_config(choice).kernel
        found.append(Assembled(tuner, choice, binary.asm["ptx"], binary.metadata.shared))
    return found


class Usage(NamedTuple):
    registers: int
    spilled: int  # bytes, stored and loaded


def usage(ptx: str, folder: Path) -> Usage:
    """What ptxas says of a kernel."""
    architecture = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]
    file = folder / "kernel.ptx"
    file.write_text(ptx)
    command = [PTXAS, "--verbose", f"--gpu-name={architecture}", file, "-o", folder / "kernel.cubin"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    return Usage(int(re.search(r"Used (\d+) registers", said)[1]), int(spilled[1]) + int(spilled[2]))
