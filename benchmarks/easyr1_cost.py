"""EasyR1's advantage stage, its own GRPO against ours: ``make bench-easyr1 EASYR1=...``, with a checkout of EasyR1.

Its ``compute_advantage`` and the adapter's ``put_advantages`` get the same ``DataProto`` of 512 x 8 rollouts, in one
process, turn by turn; both spread advantages over tokens, and ours includes confidences and metrics. What computes the
same is checked to agree first. Writes ``results/trainers/easyr1.csv`` and prints a Markdown table.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import verl
from verl.protocol import DataProto

from benchmarks import page, records, timing
from benchmarks.timing import Case
from durian_adv.adapters.easyr1.batch import put_advantages
from durian_adv.estimator import AdvantageEstimator

sys.path += [str(Path(__file__).resolve().parent.parent / "tests/easyr1" / folder) for folder in ("", "standins")]
import batches  # of the tests
from verl.trainer.ray_trainer import compute_advantage  # with the tests' stand-in for vLLM

PROMPTS, ROLLOUTS = 512, 8
BASELINE = f"EasyR1 {verl.__version__}, GRPO"


def build(tokens: int) -> dict[str, Callable[[], object]]:
    """Make the batch and what is timed on it."""
    entropy = np.random.default_rng(0).normal(4, 1, PROMPTS).tolist()
    data = batches.batch(batches.binary(PROMPTS, ROLLOUTS), tokens=tokens, entropy=entropy)
    grpo, durian = AdvantageEstimator(weights=(1, 0, 0)), AdvantageEstimator()
    timed = {
        BASELINE: lambda: compute_advantage(data, "grpo"),
        "Durian, weights 1, 0, 0": lambda: put_advantages(data, grpo),
        "Durian": lambda: put_advantages(data, durian),
    }
    check(data, *list(timed.values())[:2])
    return timed


def check(data: DataProto, theirs: Callable[[], object], ours: Callable[[], object]) -> None:
    """Require the same advantages where there is a signal; without one theirs are noise and ours 0."""
    found = []
    for compute in (theirs, ours):
        compute()
        found.append(data.batch["advantages"].clone())
    signal = found[1] != 0
    torch.testing.assert_close(found[1][signal], found[0][signal], rtol=1e-6, atol=1e-6)


def main() -> None:
    """Measure, write the record and print the table."""
    torch.set_num_threads(1)
    cases = [
        Case(f"{PROMPTS} x {ROLLOUTS}, {tokens:,} token{'s'[: tokens > 1]}", lambda tokens=tokens: build(tokens))
        for tokens in (1, 2048)
    ]
    watch = records.Watch()
    measurements = timing.measure_all("easyr1", cases, watch)
    where = records.origin(("ray", "tensordict"), watch.others)
    records.write(records.RESULTS / "trainers" / "easyr1.csv", measurements, where)
    print(page.made_on(where), page.table(measurements, targets=False), sep="\n\n")


if __name__ == "__main__":
    main()
