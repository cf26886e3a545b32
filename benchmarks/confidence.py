"""Cost of ``sequence_confidence``, against the sum one would write by hand: ``make bench``.

Log-probabilities are float32. Masks count the first tokens of each response, as padding on the right does.
"""

import itertools
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import timing
from benchmarks.records import Measurement
from benchmarks.timing import Case, Function
from durian_adv import compiled, sequence_confidence

MAIN = (4096, 2048)
LENGTHS, RESPONSES = (128, 512, 8192), (64, 512, 16384)
# the least that torch.compile makes of a sum in float64: what ours can come down to
FLOOR = "logprobs.double().sum(-1).float(), compiled for one size"
SUM, WHERE = "logprobs.sum(-1)", "torch.where(mask, logprobs, 0).sum(-1)"
EAGER, COMPILED = "eager, {}", "compiled, {}"
NO_MASK, BOOL, INT64 = "no mask", "bool mask", "int64 mask"


def batch(responses: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Draw log-probabilities and a bool mask."""
    generator = torch.Generator().manual_seed(0)
    logprobs = torch.empty(responses, tokens).exponential_(generator=generator).neg_()
    lengths = torch.randint(tokens // 4, tokens + 1, (responses, 1), generator=generator)
    return logprobs, torch.arange(tokens) < lengths


def without_mask(responses: int, tokens: int) -> dict[str, Function]:
    """All tokens count."""
    logprobs, _ = batch(responses, tokens)
    functions: dict[str, Callable[[], Tensor]] = {
        SUM: lambda: logprobs.sum(-1),
        EAGER.format(NO_MASK): partial(sequence_confidence, logprobs),
        COMPILED.format(NO_MASK): partial(compiled.sequence_confidence, logprobs),
    }
    if logprobs.shape == MAIN:
        least = torch.compile(lambda values: values.double().sum(-1).float(), fullgraph=True, dynamic=False)
        functions[FLOOR] = partial(least, logprobs)
    return checked(functions)


def with_mask(responses: int, tokens: int) -> dict[str, Function]:
    """Tokens count where the mask says so; trainers pass masks of int64."""
    logprobs, mask = batch(responses, tokens)
    numeric = mask.long()
    functions: dict[str, Callable[[], Tensor]] = {
        WHERE: lambda: torch.where(mask, logprobs, 0).sum(-1),
        EAGER.format(BOOL): partial(sequence_confidence, logprobs, mask),
        EAGER.format(INT64): partial(sequence_confidence, logprobs, numeric),
        COMPILED.format(BOOL): partial(compiled.sequence_confidence, logprobs, mask),
        COMPILED.format(INT64): partial(compiled.sequence_confidence, logprobs, numeric),
    }
    return checked(functions)


def checked(functions: dict[str, Callable[[], Tensor]]) -> dict[str, Function]:
    """Return the functions if they agree."""
    expected, *others = [function() for function in functions.values()]
    for other in others:
        torch.testing.assert_close(other, expected, rtol=1e-5, atol=0)
    return dict(functions)


def peak_memory(function: Function) -> int:
    """Return how many bytes of tensors a call holds at most at one time, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    changes = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return max(itertools.accumulate((event["args"]["Bytes"] for event in changes), initial=0))


def memory() -> list[Measurement]:
    """Measure what eager calls need beyond their input: at most one copy of it."""
    logprobs, mask = batch(*MAIN)
    whole = [float(logprobs.nbytes)]
    masks = {NO_MASK: None, BOOL: mask, INT64: mask.long()}
    calls = {
        **{EAGER.format(kind): (partial(sequence_confidence, logprobs, m), "<= 1") for kind, m in masks.items()},
        WHERE: (lambda: torch.where(mask, logprobs, 0).sum(-1), ""),
    }
    return [
        timing.compare(
            f"{size(*MAIN)}, peak memory",
            (name, [float(peak_memory(call))]),
            ("the log-probabilities", whole),
            "bytes",
            target=target,
        )
        for name, (call, target) in calls.items()
    ]


def size(responses: int, tokens: int) -> str:
    """Write a size as it is read."""
    return f"{responses:,} x {tokens:,}"


def cases() -> list[Case]:
    """List what is measured; the case that counts comes first, as it is the one that is compiled at."""
    free, masked, numeric = COMPILED.format(NO_MASK), COMPILED.format(BOOL), COMPILED.format(INT64)
    forms = (
        ("without a mask", without_mask, {(free, SUM): "<= 1.5", (free, FLOOR): ""}),
        ("with a mask", with_mask, {(masked, WHERE): "<= 0.6", (numeric, WHERE): "<= 0.6"}),
    )
    found = []
    for title, build, targets in forms:
        sweeps = (
            ("tokens per response (4,096 responses)", 1, [MAIN, *((MAIN[0], t) for t in LENGTHS)]),
            ("responses (of 2,048 tokens)", 0, [MAIN, *((b, MAIN[1]) for b in RESPONSES)]),
        )
        for axis, place, sizes in sweeps:
            for shape in sizes:
                first = shape == MAIN and place == 1
                found.append(
                    Case(
                        f"{size(*shape)}, {title}",
                        partial(build, *shape),
                        targets=targets if first else {},
                        rounds=40 if first else 7,
                        figure=f"sequence_confidence {title}, {'tokens' if place else 'responses'}",
                        size=shape[place],
                        size_unit=axis,
                    )
                )
    return found


if __name__ == "__main__":
    timing.run("confidence", cases(), extra=memory())
