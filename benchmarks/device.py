"""A GPU, or the CPU that stands in for it in a dry run: clocks, CUDA graphs, kernels and synchronizations."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import Function


def cuda_clock(function: Function, calls: int) -> float:
    """Time calls from the start of the first to the end of the last on the GPU."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def replayed(function: Function, device: str) -> Function:
    """Return the replay of a function captured as a CUDA graph; on the CPU the function itself."""
    if device == "cpu":
        return function
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()

    def replay() -> object:
        graph.replay()
        return result  # the memory the graph writes to

    return replay


def kernels(function: Function, device: str) -> int:
    """Count the kernels one call launches, copies and fills among them; on the CPU the operators it calls."""
    function()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        function()
        if device == "cuda":
            torch.cuda.synchronize()
    events = profiler.events()
    if device == "cuda":
        return sum(event.device_type == DeviceType.CUDA and not event.is_user_annotation for event in events)
    return sum(event.cpu_parent is None for event in events)


@contextmanager
def no_synchronization(device: str) -> Iterator[None]:
    """Raise at the first wait of the host for the GPU."""
    if device == "cpu":
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def synchronizes(function: Function, device: str) -> bool:
    """Tell whether a call waits for the GPU; what is only done once, such as compiling, is done before."""
    function()
    try:
        with no_synchronization(device):
            function()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    return False


def described(device: str) -> str:
    """Name the GPU with its memory, driver-side CUDA and compute capability."""
    if device == "cpu":
        return "cpu"
    p = torch.cuda.get_device_properties(0)
    return f"{p.name} ({p.total_memory / 2**30:.0f} GiB, {p.major}.{p.minor}), CUDA {torch.version.cuda}"
