"""The advantage stage of verl, its own estimators and ours on one batch in one process.

``.venv-verl/bin/python -m benchmarks.verl_cost`` writes ``results/trainers/verl.csv`` and prints a Markdown table.
Timed is ``ray_trainer.compute_advantage``, which every trainer of verl calls: 512 prompts x 8 responses of 2,048
tokens, with masks of int64 as verl has them, on one thread. Times are CPU time; metrics are part of Durian's. Then the
whole advantage step of the v1 trainer, which fetches the batch from its queue and stores the advantages there; several
processes take part, so that is time on the clock.
"""

from __future__ import annotations

import os
import time
import timeit
from collections.abc import Mapping

import torch

from benchmarks import records, timing
from benchmarks.amounts import amount
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


def build_step() -> Mapping[str, Function]:
    """Return v1's advantage steps over one batch in a queue, whose rows carry an entropy."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    import transfer_queue
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf, open_dict
    from verl.trainer.ppo.v1 import PPOTrainerSync
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    ray.init(include_dashboard=False, num_cpus=8, object_store_memory=2**30)
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer")
    config.transfer_queue.enable = True
    config.transfer_queue.backend.SimpleStorage.num_data_storage_units = 1  # each takes a CPU of Ray's
    transfer_queue.init(config.transfer_queue)
    generator = torch.Generator().manual_seed(0)
    keys, rows = [], []
    for prompt in range(PROMPTS):
        for rollout in range(ROLLOUTS):
            length = int(torch.randint(TOKENS // 4, TOKENS + 1, (1,), generator=generator))
            scores = torch.zeros(length)
            scores[-1] = torch.rand((), generator=generator).round()
            keys.append(f"{prompt:032x}_{rollout}_0")
            rows.append(
                {
                    "uid": f"{prompt:032x}",
                    "prompts": torch.ones(32, dtype=torch.int64),
                    "responses": torch.ones(length, dtype=torch.int64),
                    "response_mask": torch.ones(length, dtype=torch.int64),
                    "rm_scores": scores,
                    "old_log_probs": -torch.rand(length, generator=generator),
                    "position_ids": torch.arange(length),
                    "visual_entropy": float(prompt),
                }
            )
    tags = [{"status": "success", "seq_len": 32 + len(row["responses"])} for row in rows]
    batch = transfer_queue.kv_batch_put(
        keys=keys, partition_id="train", fields=list_of_dict_to_tensordict(rows), tags=tags
    )

    def call(estimator: str, options: Mapping[str, object] | None = None) -> Function:
        with open_dict(config):
            algorithm = OmegaConf.merge(config.algorithm, {"adv_estimator": estimator, "durian": options or {}})
        trainer = object.__new__(PPOTrainerSync)
        trainer.config = OmegaConf.create({"algorithm": algorithm, "actor_rollout_ref": {"rollout": {"n": ROLLOUTS}}})
        return lambda: trainer._compute_advantage(batch, metrics={})

    return {
        "verl, grpo": call("grpo"),
        "durian": call("durian"),
        "durian, weights 1, 0, 0": call("durian", {"weights": [1.0, 0.0, 0.0]}),
    }


def cpu_clock(function: Function, calls: int) -> float:
    """Time calls by what this process computes: on one thread, others on the machine hardly count."""
    return timeit.timeit(function, number=calls, timer=time.process_time)


def tables(measurements: list[Measurement]) -> list[str]:
    """Return what the documentation shows: of the stage and of v1's step."""
    cases = list(dict.fromkeys(m.case for m in measurements))
    kinds = zip(cases, ("CPU time", "time"), strict=True)
    return [_table([m for m in measurements if m.case == case], kind) for case, kind in kinds]


def _table(measurements: list[Measurement], kind: str) -> str:
    lines = [f"| estimator | {kind}, median (middle 60%) | times verl's `grpo` |", "|---|---|---|"]
    for m in measurements:
        middle = f"{amount(m.p20, m.unit)} to {amount(m.p80, m.unit)}"
        lines.append(f"| {m.candidate} | {amount(m.p50, m.unit)} ({middle}) | {m.ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the record, print the table."""
    torch.set_num_threads(1)
    watch = records.Watch()
    size = f"{PROMPTS} x {ROLLOUTS}, {TOKENS} tokens"
    stage = timing.measure_all("verl", [Case(size, build, rounds=15)], watch, clock=cpu_clock)
    step = timing.measure_all("verl v1", [Case(f"{size}, v1's step over its queue", build_step, rounds=9)], watch)
    records.write(RECORD, [*stage, *step], records.origin(("verl", "tensordict"), watch.others))
    print(*tables([*stage, *step]), sep="\n\n")


if __name__ == "__main__":
    main()
