"""The example for SkyRL, in the released package: its configuration, its trainer's method and its batch."""

import inspect

import numpy as np
import pytest
import torch
from elsewhere import example
from skyrl.backends.skyrl_train.training_batch import TrainingInputBatch, pad_training_input_batch
from skyrl.backends.skyrl_train.utils import ppo_utils
from skyrl.train.config import SkyRLTrainConfig
from skyrl.train.entrypoints import main_base
from skyrl.train.entrypoints.main_base import BasePPOExp
from skyrl.train.trainer import RayPPOTrainer

from durian_adv import durian_components, sequence_confidence
from durian_adv.diagnostics import durian_metrics

PROMPTS, ROLLOUTS, TOKENS = 32, 4, 6


@pytest.fixture(scope="module")
def names():
    return example("skyrl")


def batch(pad_size=0):
    draw = torch.Generator().manual_seed(0)
    rows = PROMPTS * ROLLOUTS
    lengths = torch.randint(1, TOKENS + 1, (rows, 1), generator=draw)
    mask = (torch.arange(TOKENS) < lengths).long()
    rewards = torch.zeros(rows, TOKENS)
    rewards[torch.arange(rows), lengths[:, 0] - 1] = torch.randint(0, 2, (rows,), generator=draw).float()
    order = torch.randperm(rows, generator=draw)
    made = TrainingInputBatch(
        {
            "sequences": torch.zeros(rows, TOKENS, dtype=torch.long),
            "attention_mask": mask.clone(),
            "response_mask": mask,
            "loss_mask": mask * (torch.rand(rows, TOKENS, generator=draw) < 0.8),  # tokens of tools do not count
            "rewards": rewards,
            "values": None,
            "action_log_probs": -torch.rand(rows, TOKENS, generator=draw),
        }
    )
    made.metadata = {"uids": [str(int(i) // ROLLOUTS) for i in order], "avg_response_length": 3.0}
    return pad_training_input_batch(made, pad_size)


def trainer(made):
    out = made.__new__(made)
    out.cfg, out.all_metrics = SkyRLTrainConfig.from_cli_overrides([]), {}
    return out


def expected(data, weights):
    real = len(data["rewards"]) - data.metadata["pad_size"]
    rewards, mask = data["rewards"][:real].sum(-1), data["loss_mask"][:real]
    index = torch.tensor([int(uid) for uid in data.metadata["uids"][:real]])
    confidence = sequence_confidence(data["action_log_probs"][:real], mask)
    given = {"prompt_index": index, "valid": mask.bool().any(1) if weights[2] else None}
    parts = durian_components(rewards, confidence=confidence, weights=weights, **given)
    return parts, rewards, given


@pytest.mark.parametrize("pad_size", [0, 3])
def test_the_example_gives_the_librarys_advantages_and_metrics(names, pad_size):
    data = batch(pad_size)
    parts, rewards, given = expected(data, (0.1, 0.2, 0.7))  # a row without a token is invalid
    made = trainer(names["DurianTrainer"])
    data = made.compute_advantages_and_returns(data)
    count = len(rewards)
    assert torch.equal(data["advantages"][:count], parts.advantages[:, None] * data["response_mask"][:count])
    assert bool(data["advantages"].any())
    assert not data["advantages"][count:].any()
    assert torch.equal(data["returns"], data["advantages"])
    metrics = durian_metrics(parts, rewards, **given)
    assert {name: made.all_metrics[name] for name in metrics} == metrics


def test_the_grpo_component_is_skyrls_grpo():
    data = batch()
    parts, rewards, given = expected(data, (1, 0, 0))
    own = trainer(RayPPOTrainer).compute_advantages_and_returns(data)["advantages"]
    index = given["prompt_index"]
    signal = torch.tensor([rewards[index == i].unique().numel() > 1 for i in index])
    ours = parts.advantages[:, None] * data["response_mask"]
    torch.testing.assert_close(ours[signal], own[signal], atol=1e-6, rtol=1e-6)
    assert not ours[~signal].any()


def test_the_experiment_makes_the_trainer_of_the_example(names, monkeypatch):
    """BasePPOExp calls get_trainer with names, all of which RayPPOTrainer takes."""
    called = {}
    monkeypatch.setattr(RayPPOTrainer, "__init__", lambda self, **parts: called.update(parts))
    parts = set(inspect.signature(BasePPOExp.get_trainer).parameters) - {"self"}
    made = names["DurianExp"].get_trainer(object.__new__(names["DurianExp"]), **dict.fromkeys(parts))
    assert type(made) is names["DurianTrainer"]
    assert set(called) == parts
    source = inspect.getsource(main_base)
    assert "self.get_trainer(\n            cfg=self.cfg," in source


def test_main_starts_what_the_example_puts_in_its_place(names):
    """SkyRL's main looks its entry point up when it runs."""
    assert "ray.get(skyrl_entrypoint.remote(cfg))" in inspect.getsource(main_base.main)
    assert "BasePPOExp(cfg)" in inspect.getsource(main_base.skyrl_entrypoint._function)


def test_step_wise_trajectories_are_refused(names):
    made = trainer(names["DurianTrainer"])
    made.cfg.generator.step_wise_trajectories = True
    with pytest.raises(ValueError, match="step_wise_trajectories"):
        made.compute_advantages_and_returns(batch())


def test_an_estimator_of_the_registry_sees_no_log_probabilities():
    """What the page says of the other hook."""
    given = []
    ppo_utils.AdvantageEstimatorRegistry.register("seen", lambda **names: given.append(names) or (None, None))
    rewards = torch.zeros(2, 3)
    ppo_utils.compute_advantages_and_returns(rewards, rewards, np.array(["a", "a"]), "seen", config=None)
    assert set(given[0]) == {
        "token_level_rewards", "response_mask", "index", "values", "grpo_norm_by_std", "gamma", "lambd", "config",
    }  # fmt: skip
