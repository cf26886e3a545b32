"""10,000 calls in a training loop: memory must not grow, nothing may be compiled again.

``make endurance`` writes ``tests/records/endurance.csv`` and the picture ``docs/endurance.png``; ``test_endurance.py``
makes a few. A step calls everything a step of training does, on a batch of another size each time.
"""

from __future__ import annotations

import csv
import datetime
import gc
import platform
import sys
from pathlib import Path

import torch

from durian_adv import compiled, diagnostics, durian_advantage, eigen_entropy, sequence_confidence, window

RECORD = Path(__file__).parent / "records" / "endurance.csv"
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "endurance.png"
STEPS, WARM_UP, EVERY = 1_700, 300, 50  # six calls a step


def resident_mb():
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def live_tensors():
    """Tensors that something holds."""
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def graphs():
    """How many graphs torch has compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def step(generator, kept, advantage):
    """One step on a batch of random size; returns the window for the next."""
    b, g, t, p = (
        int(torch.randint(low, high, (), generator=generator)) for low, high in ((2, 65), (2, 17), (2, 40), (2, 12))
    )
    rewards = torch.randint(0, 2, (b, g), generator=generator).float()
    confidence = sequence_confidence(-torch.rand(b, g, t, generator=generator), torch.ones(b, g, t))
    entropy = eigen_entropy(torch.randn(b, p, 6, generator=generator))
    parts, kept = window.windowed_components(
        rewards, window=kept, size=100, visual_entropy=entropy, confidence=confidence, num_confidence_buckets=4
    )
    metrics = diagnostics.durian_metrics(parts, rewards)
    ids = torch.randint(0, b, (b * g,), generator=generator)
    flat = durian_advantage(rewards.flatten(), confidence=confidence.flatten(), prompt_index=ids)
    dense = advantage(rewards, visual_entropy=entropy, confidence=confidence)
    assert metrics["durian/prompts"] == b
    assert flat.isfinite().all()
    assert dense.shape == rewards.shape
    return kept


def observed(steps, every, advantage, progress=iter):
    """Make so many steps; return (step, MB, live tensors, graphs) every so often."""
    generator, kept, rows = torch.Generator().manual_seed(0), None, []
    for number in progress(range(steps + 1)):
        kept = step(generator, kept, advantage)
        if number % every == 0:
            rows.append((number, round(resident_mb(), 2), live_tensors(), graphs()))
    return rows


def growth(rows, warm_up):
    """Between the end of the warm-up and the end: MB, tensors, graphs."""
    first = next(row for row in rows if row[0] >= warm_up)
    return tuple(round(last - start, 2) for start, last in zip(first[1:], rows[-1][1:], strict=True))


def draw(rows):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    steps, memory, tensors, compiled_graphs = zip(*rows, strict=True)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
    for axis, values, name in zip(
        axes,
        (memory, tensors, compiled_graphs),
        ("resident memory, MB", "live tensors", "compiled graphs"),
        strict=True,
    ):
        axis.plot(steps, values, color="#2b6cb0")
        axis.axvspan(0, WARM_UP, color="#e2e8f0", label="warm-up")
        axis.set(title=name, xlabel="training steps", ylim=(0, 1.25 * max(values)), xlim=(0, max(steps)))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="lower right")
    figure.savefig(PICTURE, dpi=110)


def main():
    from tqdm import tqdm

    torch.set_num_threads(1)
    rows = observed(STEPS, EVERY, compiled.durian_advantage, lambda x: tqdm(x, unit=" steps", mininterval=5))
    RECORD.parent.mkdir(exist_ok=True)
    with RECORD.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("date", "versions", "steps", "resident_mb", "live_tensors", "graphs"))
        versions = f"torch {torch.__version__}, Python {platform.python_version()}"
        out.writerows((datetime.datetime.now(datetime.UTC).date(), versions, *row) for row in rows)
    draw(rows)
    mb, tensors, more_graphs = growth(rows, WARM_UP)
    print(
        f"from step {WARM_UP} to {STEPS}: {mb:+} MB, {tensors:+} tensors, {more_graphs:+} graphs; {RECORD}, {PICTURE}"
    )
    if mb > 8 or tensors > 0 or more_graphs > 0:
        sys.exit("memory grew, or something was compiled again")


if __name__ == "__main__":
    main()
