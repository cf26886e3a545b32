"""The advantage stage of verl, its own estimators and ours on one batch in one process.

``.venv-verl/bin/python -m benchmarks.verl_cost`` writes ``results/trainers/verl.csv`` and prints a Markdown table.
Timed is ``ray_trainer.compute_advantage``, which every trainer of verl calls: 512 prompts x 8 responses of 2,048
tokens, with masks of int64 as verl has them, on one thread. Times are CPU time; metrics are part of Durian's.
"""

from __future__ import annotations

import time
import timeit
from collections.abc import Mapping

import torch

from benchmarks import records, timing
from benchmarks.page import amount
from benchmarks.records import Measurement
from benchmarks.timing import Case, Function

PROMPTS, ROLLOUTS, TOKENS = 512, 8, 2048
RECORD = records.RESULTS / "trainers" / "verl.csv"


def build() -> Mapping[str, Function]:
    """Return the calls, each on the same batch."""
    import numpy as np
    from omegaconf import OmegaConf
    from tensordict import TensorDict
    from verl import DataProto
    from verl.trainer.ppo import ray_trainer

    generator = torch.Generator().manual_seed(0)
    size = PROMPTS * ROLLOUTS
    lengths = torch.randint(TOKENS // 4, TOKENS + 1, (size,), generator=generator)
    mask = (torch.arange(TOKENS) < lengths[:, None]).to(torch.int64)
    rewards = torch.zeros(size, TOKENS)
    rewards[torch.arange(size), lengths - 1] = torch.rand(size, generator=generator).round()
    tensors = {
        "token_level_rewards": rewards,
        "response_mask": mask,
        "old_log_probs": -torch.rand(size, TOKENS, generator=generator),
    }
    uid = np.repeat([f"{i:032x}" for i in range(PROMPTS)], ROLLOUTS).astype(object)
    entropy = torch.rand(PROMPTS, generator=generator).tolist()
    extra = np.array([{"visual_entropy": entropy[i // ROLLOUTS]} for i in range(size)], dtype=object)
    data = DataProto(TensorDict(tensors, batch_size=size), {"uid": uid, "extra_info": extra})

    def call(estimator: str, options: Mapping[str, object] | None = None, changed: bool = True) -> Function:
        config = OmegaConf.create({"durian": options or {}})
        function = ray_trainer.compute_advantage
        function = function if changed else function.__wrapped__  # type: ignore[attr-defined]  # of functools
        return lambda: function(data, estimator, config=config)

    return {
        "verl, grpo": call("grpo"),
        "verl, grpo without the plugin": call("grpo", changed=False),
        "verl, grpo_vectorized": call("grpo_vectorized"),
        "durian": call("durian"),
        "durian, weights 1, 0, 0": call("durian", {"weights": [1.0, 0.0, 0.0]}),
    }


def cpu_clock(function: Function, calls: int) -> float:
    """Time calls by what this process computes: on one thread, others on the machine hardly count."""
    return timeit.timeit(function, number=calls, timer=time.process_time)


def table(measurements: list[Measurement]) -> str:
    """Return what the documentation shows."""
    lines = ["| estimator | CPU time, median (middle 60%) | times verl's `grpo` |", "|---|---|---|"]
    for m in measurements:
        middle = f"{amount(m.p20, m.unit)} to {amount(m.p80, m.unit)}"
        lines.append(f"| {m.candidate} | {amount(m.p50, m.unit)} ({middle}) | {m.ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the record, print the table."""
    torch.set_num_threads(1)
    watch = records.Watch()
    case = Case(f"{PROMPTS} x {ROLLOUTS}, {TOKENS} tokens", build, rounds=15)
    measurements = timing.measure_all("verl", [case], watch, clock=cpu_clock)
    records.write(RECORD, measurements, records.origin(("verl", "tensordict"), watch.others))
    print(table(measurements))


if __name__ == "__main__":
    main()
