"""EasyR1's ``RayPPOTrainer`` in this process: its own loop over workers that draw tokens in place of a model.

``standins/cpu_worker.py`` has a model; these are for the many short runs that compare one thing each.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import ray
import torch
from verl.protocol import DataProto
from verl.trainer.ray_trainer import RayPPOTrainer
from verl.utils.logger import logger
from verl.utils.py_functional import unflatten_dict

from durian_adv.adapters.easyr1.trainer import DurianPPOConfig, DurianRayPPOTrainer

PROMPT, RESPONSE = 5, 6


class Kept(logger.Logger):
    """Write what EasyR1 logs, as its own logger of files does, which 0.3.2 does not have."""

    def __init__(self, config):
        self.folder = Path(config["trainer"]["save_checkpoint_path"])
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "experiment_config.json").write_text(json.dumps(config))

    def log(self, data, step):
        with (self.folder / "experiment_log.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **unflatten_dict(data)}) + "\n")


logger.LOGGERS["kept"] = Kept


def config(estimator="durian", *, prompts=16, n=4, rollout_batch_size=None, durian=None, **algorithm):
    made = DurianPPOConfig(durian=durian or {})
    made.algorithm.adv_estimator = estimator
    made.algorithm.disable_kl = True
    made.data.rollout_batch_size = rollout_batch_size or prompts
    made.worker.actor.global_batch_size = made.worker.critic.global_batch_size = 8
    made.worker.rollout.n = n
    made.trainer.max_steps = 2
    made.trainer.logger = ("kept",)
    for name, value in algorithm.items():
        setattr(made.algorithm, name, value)
    return made


class Loader(list):
    """Batches of prompts; the dataset's columns are those that EasyR1's ``RLHFDataset`` leaves."""

    def __init__(self, prompts, columns, entropy=(), images=False, batches=12):
        self.dataset = SimpleNamespace(dataset=SimpleNamespace(column_names=list(columns)))
        draw = torch.Generator().manual_seed(0)
        for at in range(batches):
            ids = torch.randint(100, (prompts, PROMPT), generator=draw)
            raw = np.empty(prompts, dtype=object)
            raw[:] = ids.tolist()
            rows = {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "position_ids": torch.arange(PROMPT).expand(prompts, -1).clone(),
                "raw_prompt_ids": raw,
                "ground_truth": np.array([""] * prompts, dtype=object),
            }
            if len(entropy):
                rows["visual_entropy"] = np.array(entropy[at * prompts :][:prompts], dtype=object)
            if images:
                rows["multi_modal_data"] = np.array([{"images": [0]}] * prompts, dtype=object)
            self.append(rows)

    def state_dict(self):
        return {}


class Workers:
    """Draw responses of different lengths and their log-probabilities; keep what the update gets."""

    world_size = 2

    def __init__(self, n):
        self.n, self.draw, self.seen = n, torch.Generator().manual_seed(1), []

    def prepare_rollout_engine(self): ...

    def release_rollout_engine(self): ...

    def generate_sequences(self, prompts):
        n = prompts.meta_info.get("n", self.n)
        both = prompts.batch["input_ids"].repeat_interleave(n, 0)
        responses = torch.randint(100, (len(both), RESPONSE), generator=self.draw)
        lengths = torch.randint(1, RESPONSE + 1, (len(both), 1), generator=self.draw)
        mask = (torch.arange(RESPONSE) < lengths).long()
        tensors = {
            "prompts": both,
            "responses": responses,
            "input_ids": torch.cat([both, responses], 1),
            "attention_mask": torch.cat([torch.ones_like(both), mask], 1),
            "response_mask": mask,
            "position_ids": torch.arange(PROMPT + RESPONSE).expand(len(both), -1).clone(),
        }
        images = prompts.non_tensor_batch.get("multi_modal_data")
        return DataProto.from_dict(tensors, {} if images is None else {"multi_modal_data": np.repeat(images, n)})

    def _log_probs(self, data, name):
        made = -torch.rand(data.batch["responses"].shape, generator=self.draw)
        return DataProto.from_dict({name: made})

    def compute_log_probs(self, data):
        return self._log_probs(data, "old_log_probs")

    def compute_ref_log_probs(self, data):
        return self._log_probs(data, "ref_log_probs")

    def compute_values(self, data):
        return self._log_probs(data, "values")

    def update_actor(self, data):
        self.seen.append(data)
        return DataProto(non_tensor_batch={"actor/loss": np.array([0.0])})

    update_critic = update_actor

    def save_checkpoint(self, path, save_model_only=False):
        Path(path).mkdir(parents=True, exist_ok=True)


def paper_reward(data):
    """0.1 for the format and 0.9 for the answer, by the response's first two tokens; on its last one."""
    responses, lengths = data.batch["responses"], data.batch["response_mask"].sum(-1)
    chance = data.batch["prompts"][:, 0]  # prompts from hard to easy
    accuracy, form = (responses[:, 0] < chance).float(), (responses[:, 1 % RESPONSE] < 80).float()
    scores = torch.zeros(responses.shape)
    scores[torch.arange(len(scores)), lengths - 1] = 0.9 * accuracy + 0.1 * form
    columns = {"overall": scores.sum(-1), "accuracy": accuracy, "format": form}
    return scores, {name: value.tolist() for name, value in columns.items()}


def trainer(given, columns=("problem", "answer"), made=DurianRayPPOTrainer, reward=paper_reward, **loader):
    workers = Workers(given.worker.rollout.n)
    remote = SimpleNamespace(compute_reward=SimpleNamespace(remote=lambda data: ray.put(reward(data))))
    out = made(
        config=given,
        tokenizer=None,
        processor=None,
        train_dataloader=Loader(given.data.rollout_batch_size, columns, **loader),
        val_dataloader=None,
        role_worker_mapping={},
        resource_pool_manager=SimpleNamespace(get_num_gpus=lambda: 1),
        reward_fn=remote,
    )
    out.actor_rollout_ref_wg = out.critic_wg = workers
    return out


def seen(given, folder, **how):
    """Train for some steps; return what the updates of the actor got."""
    given.trainer.save_checkpoint_path = str(folder)
    made = trainer(given, **how)
    made.fit()
    return made.actor_rollout_ref_wg.seen


__all__ = ["RayPPOTrainer", "config", "paper_reward", "seen", "trainer"]
