"""The advantage stage of OpenRLHF, its own and ours on one batch in one process.

``make bench-openrlhf`` writes ``results/trainers/openrlhf.csv`` and prints a Markdown table. Timed is
``compute_advantages_and_returns`` of the released experience maker: 512 prompts x 8 responses of 2,048 tokens, at
several ``rollout.micro_batch_size``, on one thread. Times are CPU time; metrics are part of Durian's.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import records, timing
from benchmarks.amounts import amount
from benchmarks.records import Measurement

sys.path += [str(Path(__file__).resolve().parent.parent / "tests/openrlhf" / folder) for folder in ("", "absent")]
import released  # of the tests
from openrlhf.trainer.ppo_utils.experience import Experience

from durian_adv.adapters.openrlhf.maker import DurianExperienceMaker

PROMPTS, SAMPLES, TOKENS = 512, 8, 2048
RECORD = records.RESULTS / "trainers" / "openrlhf.csv"
OWN, GRPO, DURIAN = "OpenRLHF, group_norm", "Durian, weights 1, 0, 0", "Durian"
ROUNDS = {8: 3, 128: 7}  # of each micro batch size: the first takes ten seconds each


def batch(micro_batch: int) -> list[Experience]:
    """Make the batch, cut as OpenRLHF cuts it."""
    generator = torch.Generator().manual_seed(0)
    size, prompt = PROMPTS * SAMPLES, 64
    rewards = torch.rand(size, generator=generator)
    logprobs = -torch.rand(size, TOKENS, generator=generator)
    entropy = torch.rand(PROMPTS, generator=generator).repeat_interleave(SAMPLES)
    mask = torch.arange(prompt + TOKENS - 1).expand(micro_batch, -1) >= prompt - 1
    out = []
    for start in range(0, size, micro_batch):
        rows = slice(start, start + micro_batch)
        out.append(
            Experience(
                index=list(range(start, start + micro_batch)),
                prompts=[f"prompt {i // SAMPLES}" for i in range(start, start + micro_batch)],
                action_mask=mask.long(),
                action_log_probs=torch.nn.functional.pad(logprobs[rows], (prompt - 1, 0)),
                kl=torch.zeros(mask.shape),
                rewards=rewards[rows],
                info={"reward": rewards[rows], "visual_entropy": entropy[rows]},
            )
        )
    return out


def measure(micro_batch: int, watch: records.Watch, progress: Callable[[], object]) -> list[Measurement]:
    """Time the makers on one batch in turns; what computes the same has to agree."""
    args = released.arguments(SAMPLES, PROMPTS, rollout__micro_batch_size=micro_batch)
    makers = {OWN: released.maker(released.OWN, args)}
    for name, options in ((GRPO, '{"weights": [1, 0, 0]}'), (DURIAN, "{}")):
        os.environ["DURIAN_OPTIONS"] = options
        makers[name] = released.maker(DurianExperienceMaker, args)
    experiences = batch(micro_batch)
    kept = [experience.kl for experience in experiences]
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    found: dict[str, torch.Tensor] = {}
    for _ in range(ROUNDS[micro_batch]):
        for name, made_by in makers.items():
            for experience, kl in zip(experiences, kept, strict=True):
                experience.kl = kl  # which the stage takes away
            with watch:
                start = time.process_time()  # on one thread, others on the machine hardly count
                made_by.compute_advantages_and_returns(experiences)
                seconds[name].append(1e6 * (time.process_time() - start))
            found[name] = torch.cat([experience.advantages.flatten() for experience in experiences])
            progress()
    torch.testing.assert_close(found[GRPO], found[OWN], atol=1e-6, rtol=1e-6)
    case = f"{PROMPTS} x {SAMPLES}, {TOKENS} tokens, micro batch {micro_batch}"
    return [timing.compare(case, (name, values), (OWN, seconds[OWN]), "us") for name, values in seconds.items()]


def table(measurements: list[Measurement]) -> str:
    """Return what the documentation shows."""
    lines = ["| micro batch | | CPU time, median (middle 60%) | times OpenRLHF's |", "|---|---|---|---|"]
    for m in measurements:
        middle = f" ({amount(m.p20, m.unit)} to {amount(m.p80, m.unit)})" if m.rounds > 1 else ""
        size = m.case.rpartition(" ")[2]
        lines.append(f"| {size} | {m.candidate} | {amount(m.p50, m.unit)}{middle} | {m.ratio:.3g} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the record, print the table."""
    torch.set_num_threads(1)
    watch = records.Watch()
    measurements: list[Measurement] = []
    with tqdm(total=3 * sum(ROUNDS.values())) as bar:
        for micro_batch in ROUNDS:
            measurements += measure(micro_batch, watch, bar.update)
    records.write(RECORD, measurements, records.origin(("openrlhf",), watch.others))
    print(table(measurements))


if __name__ == "__main__":
    main()
