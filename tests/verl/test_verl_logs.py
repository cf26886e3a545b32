"""verl's own dumps of rollouts, written by its v0 and its v1 trainer, are read as what was sampled."""

import numpy as np
import pytest
import tiny
import torch
from tensordict import TensorDict
from test_verl_queue import stored
from verl import DataProto
from verl.trainer.ppo.ray_trainer import RayPPOTrainer
from verl.trainer.ppo.v1 import PPOTrainerSync

from durian_adv.data.logs.steps import Options, read_log


def trainer(kind, step):
    """A trainer that has what its dump needs, and nothing else."""
    made = object.__new__(kind)
    made.tokenizer, made.global_steps = tiny.tokenizer(), step
    made._init_dump_executor()
    return made


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_dump_of_v1_is_the_rollouts_of_the_queue(queue, tmp_path, outputs):
    sampled = {}
    for number in (9, 10):
        rng = np.random.default_rng(number)
        truth = {"reward_model": lambda prompt: {"ground_truth": str(prompt)}}
        batch = stored(queue, rng, prompts=6, outputs=outputs, **truth)
        made = trainer(PPOTrainerSync, number)
        made._log_rollout_data(batch, {}, str(tmp_path))
        made._shutdown_dump_executor()
        data = queue.kv_batch_get(batch.keys, batch.partition_id, select_fields=["uid", "rm_scores"])
        last = {}
        for key, scores in zip(batch.keys, data["rm_scores"].unbind(), strict=True):
            prompt, rollout, output = key.rsplit("_", 2)
            if int(output) >= last.get((prompt, rollout), (-1, 0))[0]:
                last[prompt, rollout] = int(output), float(scores.sum())
        sampled[number] = {}
        for (prompt, _), (_, score) in sorted(last.items()):
            sampled[number].setdefault(prompt, []).append(score)
    log = read_log([tmp_path], Options())
    steps = list(log.steps)
    assert [step.name for step in steps] == [9, 10]
    for step in steps:
        found = {}
        for prompt, reward in zip(step.prompt_index.tolist(), step.rewards.tolist(), strict=True):
            found.setdefault(prompt, []).append(reward)
        assert list(found.values()) == list(sampled[step.name].values())
    assert "verl rollouts" in log.read_as
    assert "a prompt is the first part of uid" in log.read_as


def test_a_dump_of_v0_is_told_apart_by_text_and_answer(tmp_path):
    prompts, rollouts = 6, 4
    order = np.random.default_rng(0).permutation(prompts * rollouts)  # as balance_batch does
    number = torch.from_numpy(order // rollouts)
    scores = torch.zeros(len(order), 3)
    scores[:, -1] = torch.from_numpy(order % rollouts % 2).float()
    # the texts of prompts 0 and 1 are alike, as two images' would be: verl decodes without special tokens
    texts = torch.where(number == 1, 0, number)[:, None].expand(-1, 3) + 40
    data = DataProto(
        batch=TensorDict({"prompts": texts, "responses": texts, "token_level_scores": scores}, batch_size=len(order)),
        non_tensor_batch={"reward_model": np.array([{"ground_truth": str(n)} for n in number.tolist()], dtype=object)},
    )
    made = trainer(RayPPOTrainer, 3)
    made._log_rollout_data(data, {"acc": [1.0] * len(order)}, {}, str(tmp_path))
    made._shutdown_dump_executor()
    log = read_log([tmp_path], Options())
    (step,) = log.steps
    assert step.name == 3
    first = {}
    assert step.prompt_index.tolist() == [first.setdefault(n, len(first)) for n in number.tolist()]
    assert step.rewards.tolist() == scores.sum(1).tolist()
    assert log.findings == []
    # with one answer for both, the size of the group tells it
    log = read_log([tmp_path], Options(keys={"prompt": "input"}))
    assert [finding.kind for finding in log.findings] == ["multiples"]
