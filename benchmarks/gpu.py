"""What a GPU does with the library, in one run and one record: ``python -m benchmarks.gpu``.

Kernels and time of a captured CUDA graph, synchronizations, bandwidth, and entropies of a training batch of images. The
record is ``benchmarks/results/gpu.csv``; ``python -m benchmarks.page`` takes it over into the page. With ``--dry-run``
everything runs at small sizes on the CPU, to prove the script; that record lands in ``out/`` and says nothing.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import durian_adv
from benchmarks import records, timing
from benchmarks.device import cuda_clock, described, kernels, replayed, synchronizes
from benchmarks.records import Measurement
from benchmarks.timing import Case, Function, compare
from durian_adv import baselines, compiled


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    prompts: int = 512
    rollouts: int = 8
    responses: int = 4096
    tokens: int = 8192
    images: int = 512
    patches: int = 1024
    features: int = 1280
    images_exact: int = 64
    rounds: int = 15
    slow_rounds: int = 5


DRY = Sizes(
    prompts=32,
    responses=64,
    tokens=128,
    images=8,
    patches=400,
    features=480,
    images_exact=4,
    rounds=2,
    slow_rounds=2,
)
DRY_RECORD = records.ROOT / "out" / "gpu-dry-run.csv"
BASELINES = (
    "dr_grpo_advantage",
    "batch_std_advantage",
    "rloo_advantage",
    "reinforce_plus_plus_advantage",
    "reinforce_plus_plus_baseline_advantage",
)
PLAIN, DURIAN, INTERVALS = "plain GRPO expression", "durian_advantage", "certified intervals"


class Batch:
    """Rewards, scores and log-probabilities on a device."""

    def __init__(self, sizes: Sizes, device: str) -> None:
        generator = torch.Generator(device).manual_seed(0)
        shape = (sizes.prompts, sizes.rollouts)
        self.rewards = torch.randint(0, 2, shape, generator=generator, device=device).float()
        self.valid = torch.rand(shape, generator=generator, device=device) < 0.9
        self.entropy = torch.rand(sizes.prompts, generator=generator, device=device)
        self.confidence = -torch.rand(shape, generator=generator, device=device)
        self.buckets = torch.randint(0, 12, (sizes.prompts,), generator=generator, device=device)
        tokens = (sizes.responses, sizes.tokens)
        self.logprobs = torch.empty(tokens, device=device).exponential_(generator=generator).neg_()
        lengths = torch.randint(1, sizes.tokens + 1, (sizes.responses, 1), generator=generator, device=device)
        self.mask = torch.arange(sizes.tokens, device=device) < lengths

    @property
    def scores(self) -> dict[str, Tensor]:
        """The two difficulty scores."""
        return {"visual_entropy": self.entropy, "confidence": self.confidence}


def images(sizes: Sizes, device: str) -> Tensor:
    """Draw features whose spectra fall as k^-a, a from 0.8 to 1.6 over the images, in random directions."""
    generator = torch.Generator(device).manual_seed(0)
    normal = partial(torch.randn, generator=generator, device=device)
    exponents = torch.linspace(0.8, 1.6, sizes.images, device=device)[:, None]
    scale = torch.arange(1, sizes.features + 1, device=device) ** (-exponents / 2)
    directions = torch.linalg.qr(normal(sizes.features, sizes.features)).Q
    features = torch.empty(sizes.images, sizes.patches, sizes.features, device=device)
    for image, fall in zip(features, scale, strict=True):  # one by one, for the memory's sake
        torch.matmul(normal(sizes.patches, sizes.features) * fall, directions.T, out=image)
    return features


def counts(batch: Batch, device: str) -> list[Measurement]:
    """Count kernels and synchronizations, each against a target of its own."""
    durian = partial(compiled.durian_advantage, batch.rewards, **batch.scores)
    size = " x ".join(map(str, batch.rewards.shape))
    what = "kernels" if device == "cuda" else "operators"
    found = [
        compare(
            size, (f"{DURIAN}, {how}", [float(kernels(function, device))]), (f"one of {what}", [1.0]), what, target=t
        )
        for how, function, t in (
            ("eager", partial(durian_adv.durian_advantage, batch.rewards, **batch.scores), ""),
            ("compiled", durian, "<= 7"),
        )
    ]
    components = partial(compiled.durian_components, batch.rewards, **batch.scores)
    launched = ("durian_components, compiled", [float(kernels(components, device))])
    found.append(compare(size, launched, (f"one of {what}", [1.0]), what, target="<= 7"))
    for name, function in without_synchronization(batch).items():
        waits = float(synchronizes(function, device))
        found.append(compare("waits for the GPU", (name, [waits]), ("one wait", [1.0]), "waits", target="<= 0"))
    return found


def without_synchronization(batch: Batch) -> dict[str, Function]:
    """Return everything that must not wait for the GPU: all but eigenvalues and the packing of ragged batches."""
    masks = {"no mask": None, "bool mask": batch.mask, "int64 mask": batch.mask.long()}
    advantages = durian_adv.grpo_advantage(batch.rewards)
    return {
        "durian_advantage, eager": partial(durian_adv.durian_advantage, batch.rewards, **batch.scores),
        "durian_advantage, eager, masked": partial(
            durian_adv.durian_advantage, batch.rewards, valid=batch.valid, **batch.scores
        ),
        "durian_advantage, compiled": partial(compiled.durian_advantage, batch.rewards, **batch.scores),
        "durian_components": partial(durian_adv.durian_components, batch.rewards, **batch.scores),
        "durian_components, compiled": partial(compiled.durian_components, batch.rewards, **batch.scores),
        "grpo_advantage": partial(durian_adv.grpo_advantage, batch.rewards),
        "shared_std_advantage": partial(durian_adv.shared_std_advantage, batch.rewards, batch.buckets),
        "combine_advantages": partial(durian_adv.combine_advantages, [advantages, None, advantages], (0.1, 0.2, 0.7)),
        "quantile_buckets": partial(durian_adv.quantile_buckets, batch.entropy, (0.25, 0.75), boundary="outer"),
        **{name: partial(getattr(baselines, name), batch.rewards) for name in BASELINES},
        **{
            f"sequence_confidence, {how}, {kind}": partial(function, batch.logprobs, mask)
            for how, function in (("eager", durian_adv.sequence_confidence), ("compiled", compiled.sequence_confidence))
            for kind, mask in masks.items()
        },
    }


def replays(batch: Batch, device: str) -> dict[str, Function]:
    """A captured call of 512 x 8."""
    rewards = batch.rewards
    durian = partial(compiled.durian_advantage, rewards, **batch.scores)
    return {
        PLAIN: replayed(lambda: (rewards - rewards.mean(1, True)) / (rewards.std(1, keepdim=True) + 1e-6), device),
        f"{DURIAN}, eager": replayed(partial(durian_adv.durian_advantage, rewards, **batch.scores), device),
        f"{DURIAN}, compiled": replayed(durian, device),
    }


def confidences(batch: Batch) -> dict[str, tuple[Function, int]]:
    """Confidences, against copying the log-probabilities: functions with the bytes they must move."""
    other, fused = torch.empty_like(batch.logprobs), compiled.sequence_confidence
    numeric, size = batch.mask.long(), batch.logprobs.nbytes
    return {
        "copy": (lambda: other.copy_(batch.logprobs), 2 * size),
        "confidence, eager, no mask": (partial(durian_adv.sequence_confidence, batch.logprobs), size),
        "confidence, compiled, no mask": (partial(fused, batch.logprobs), size),
        "confidence, compiled, bool mask": (partial(fused, batch.logprobs, batch.mask), size + batch.mask.nbytes),
        "confidence, compiled, int64 mask": (partial(fused, batch.logprobs, numeric), size + numeric.nbytes),
    }


def entropies(sizes: Sizes, device: str) -> dict[str, Function]:
    """Intervals and buckets of all images of a batch, against their Gram matrices alone."""
    features = images(sizes, device)

    def grams() -> None:
        for block in features.split(64):  # as many matrices as one would keep
            torch.matmul(block, block.mT)

    return {
        "Gram products": grams,
        INTERVALS: partial(durian_adv.certified_entropy_intervals, features),
        "certified buckets, exact where needed": partial(durian_adv.certified_entropy_buckets, features),
    }


def exact(sizes: Sizes, device: str) -> dict[str, Function]:
    """Exact entropies of some of the images, by the CPU and by the device, checked to agree."""
    features = images(sizes, device)[:: max(1, sizes.images // sizes.images_exact)]
    copy = features.cpu()
    here, there = durian_adv.eigen_entropy(copy), durian_adv.eigen_entropy(features).cpu()
    torch.testing.assert_close(there, here, rtol=0, atol=1e-5)

    def batched() -> None:
        centered = features - features.mean(1, keepdim=True)
        torch.linalg.eigvalsh(centered @ centered.mT)

    return {
        "eigen_entropy, on the CPU": partial(durian_adv.eigen_entropy, copy),
        "eigen_entropy": partial(durian_adv.eigen_entropy, features),
        "torch.linalg.eigvalsh of all Gram matrices at once": batched,
    }


def bandwidth(m: Measurement, moved: int, copied: int) -> Measurement:
    """Turn a time into a bandwidth, and its ratio into the share of a copy's bandwidth."""
    return replace(
        m,
        p20=moved / 1e3 / m.p80,
        p50=moved / 1e3 / m.p50,
        p80=moved / 1e3 / m.p20,
        unit="GB/s",
        ratio=moved / copied / m.ratio,
        ratio_p20=moved / copied / m.ratio_p80,
        ratio_p80=moved / copied / m.ratio_p20,
        target=">= 0.85" if "compiled" in m.candidate else "",
    )


def against_time(m: Measurement, microseconds: float) -> Measurement:
    """Hold a time against a fixed one."""
    low, middle, high = (time / microseconds for time in (m.p20, m.p50, m.p80))
    return replace(m, baseline=f"{microseconds:,.0f} µs", ratio=middle, ratio_p20=low, ratio_p80=high, target="<= 1")


def run(sizes: Sizes, device: str, path: Path) -> list[str]:
    """Measure everything and write the record; return what went wrong: a part that fails loses no other."""
    clock = cuda_clock if device == "cuda" else timing.host_clock
    watch, batch = records.Watch(), Batch(sizes, device)

    def measure(name: str, build: Callable[[], dict[str, Function]], rounds: int) -> list[Measurement]:
        return timing.measure_all("gpu", [Case(name, build, rounds=rounds)], watch, clock)

    def of_replays() -> list[Measurement]:
        name = f"{sizes.prompts} x {sizes.rollouts}, CUDA-graph replay"
        times = measure(name, partial(replays, batch, device), sizes.rounds)
        return times + [against_time(m, 30) for m in times if m.candidate == f"{DURIAN}, compiled"]

    def of_confidences() -> list[Measurement]:
        calls = confidences(batch)
        name, functions = f"{sizes.responses:,} x {sizes.tokens:,}", {name: call for name, (call, _) in calls.items()}
        times = measure(name, lambda: functions, sizes.rounds)
        return [bandwidth(m, calls[m.candidate][1], calls["copy"][1]) for m in times]

    def of_entropies() -> list[Measurement]:
        name = f"{sizes.images} images of {sizes.patches:,} x {sizes.features:,}"
        times = measure(name, partial(entropies, sizes, device), sizes.slow_rounds)
        return times + [against_time(m, 60_000) for m in times if m.candidate == INTERVALS]

    def of_exact() -> list[Measurement]:
        return measure(f"{sizes.images_exact} of these images", partial(exact, sizes, device), sizes.slow_rounds)

    found: list[Measurement] = []
    failures: list[str] = []
    for part in (partial(counts, batch, device), of_replays, of_confidences, of_entropies, of_exact):
        try:
            found += part()
        except (RuntimeError, AssertionError) as error:  # a failed capture, kernel, compilation or comparison
            failures.append(f"{getattr(part, '__name__', 'counts')}: {error}")
    records.write(path, found, records.origin(others=watch.others, device=described(device)))
    print(f"written: {path}")
    return failures


def main(arguments: list[str] | None = None) -> None:
    """Run on the GPU, or dry on the CPU; refuse where neither is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="small sizes on the CPU, a record in out/")
    if parser.parse_args(arguments).dry_run:
        failures = run(DRY, "cpu", DRY_RECORD)
    elif torch.cuda.is_available():
        failures = run(Sizes(), "cuda", records.RESULTS / "gpu.csv")
    else:
        sys.exit("no CUDA device here, so nothing is measured; --dry-run proves the script on the CPU")
    if failures:
        sys.exit("not measured:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
