"""``python -m verl.trainer.main_ppo`` in a process of its own, on a CPU, with tiny models."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from packaging.version import Version

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
VERL = Version(importlib.metadata.version("verl"))
TRAINS = Version("0.7.1") <= VERL  # on a CPU, with what is here
V1 = Version("0.9") <= VERL  # which brought the v1 trainer, platforms, and plugins that load themselves
ADAPTER = "durian_adv.adapters.verl"
SUPPORT = ["verl_cpu", "tiny"] if TRAINS else ["tiny"]


class Run(NamedTuple):
    status: int
    text: str  # what it wrote
    steps: list[dict[str, float]]  # the metrics of each step


def environment(**more):
    """What the processes of a run need to know; Ray hands it on to all of them."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "VERL_USE_EXTERNAL_MODULES": ",".join(SUPPORT if V1 else [*SUPPORT, ADAPTER]),
        "VERL_PLATFORM": "cpu",
        "VERL_LOGGING_LEVEL": "WARN",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_DEDUP_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        **more,
    }


def overrides(model, data, reward="letters", estimator="durian", mode="sync", steps=2, images=False, **more):
    """The command line of a small run; ``mode`` is v0 or a mode of the v1 trainer."""
    names = {
        "algorithm.adv_estimator": estimator,
        "trainer.device": "cpu" if V1 else "cuda",  # of which Ray is told that there is one
        "trainer.n_gpus_per_node": 1,
        "trainer.nnodes": 1,
        "trainer.logger": "[console,file]",
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.save_freq": -1,
        "trainer.total_training_steps": steps,
        "trainer.total_epochs": 8,
        "trainer.resume_mode": "disable",
        "data.train_files": data,
        "data.val_files": data,
        "data.train_batch_size": 4,
        "data.max_prompt_length": 64,
        "data.max_response_length": 8,
        "data.dataloader_num_workers": 0,
        "data.filter_overlong_prompts_workers": 1,
        "data.return_raw_chat": True,
        "actor_rollout_ref.model.path": model,
        "actor_rollout_ref.model.use_remove_padding": False,
        "actor_rollout_ref.model.enable_gradient_checkpointing": False,
        "+actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
        "actor_rollout_ref.actor.strategy": "fsdp2",
        "actor_rollout_ref.actor.fsdp_config.strategy": "fsdp2",
        "actor_rollout_ref.actor.fsdp_config.dtype": "float32",
        "actor_rollout_ref.actor.fsdp_config.use_torch_compile": False,
        "actor_rollout_ref.actor.use_torch_compile": False,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 16,
        "actor_rollout_ref.actor.optim.lr": 1e-3,
        "actor_rollout_ref.rollout.name": "huggingface",
        "actor_rollout_ref.rollout.n": 4,
        "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 16,
        "actor_rollout_ref.rollout.agent.num_workers": 1,
        "actor_rollout_ref.rollout.calculate_log_probs": True,
        "reward.custom_reward_function.path": HERE / "rewarding.py",
        "reward.custom_reward_function.name": reward,
        "reward.num_workers": 1,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "+ray_kwargs.ray_init.num_gpus": 1,
        "ray_kwargs.ray_init.num_cpus": 16,
        "+ray_kwargs.ray_init.include_dashboard": False,
        "+ray_kwargs.ray_init.object_store_memory": 200_000_000,
    }
    if Version("0.7.1") > VERL:
        names = {name.replace("reward.custom_", "custom_"): value for name, value in names.items()}
        del names["reward.num_workers"]
    if Version("0.8") > VERL:
        del names["transfer_queue.backend.SimpleStorage.num_data_storage_units"]
    if Version("0.7.1") <= VERL < Version("0.8"):
        names["trainer.use_legacy_worker_impl"] = "disable"  # the others need a GPU
    if V1:
        names["trainer.use_v1"] = mode != "v0"
    if mode != "v0":
        names["trainer.v1.trainer_mode"] = mode
    if images:
        names |= {"data.custom_cls.path": HERE / "pictures.py", "data.custom_cls.name": "Pictures"}
    names |= more
    return [f"{name}={value}" for name, value in names.items()]


def train(words, timeout=1500, module="verl.trainer.main_ppo", **variables):
    """Run it to its end."""
    with tempfile.TemporaryDirectory(prefix="verl") as folder:  # a short path: Ray's sockets lie in it
        log = Path(folder, "metrics.jsonl")
        limit = ["timeout", "--kill-after=10", str(timeout)]
        own = [f"+ray_kwargs.ray_init._temp_dir={folder}/ray", f"hydra.run.dir={folder}/hydra"]
        found = subprocess.run(
            [*limit, sys.executable, "-W", "ignore", "-m", module, *words, *own],
            env=environment(VERL_FILE_LOGGER_PATH=str(log), **variables),
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = log.read_text().splitlines() if log.exists() else []
    return Run(found.returncode, found.stdout + found.stderr, [json.loads(line)["data"] for line in lines])
