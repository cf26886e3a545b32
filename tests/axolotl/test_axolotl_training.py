"""axolotl's own training with the trainer of docs/trl.md, from a configuration file, on text."""

import json
import sys

import my_module
import pytest
import run_parts
import tiny
import torch
import yaml
from axolotl.cli.train import do_cli
from axolotl.core.trainers.grpo.args import AxolotlGRPOConfig
from axolotl.core.trainers.grpo.trainer import AxolotlGRPOTrainer
from test_trl_training import expected_confidence

from durian_adv.estimator import AdvantageEstimator

PROMPTS, GROUP = 16, 4
ASYNC = "config: expected a configuration that Config extends, got AxolotlAsyncGRPOConfig$"


@pytest.fixture
def train(tmp_path, monkeypatch):
    """`axolotl train` in this process; what it made is in ``run_parts.made``."""
    monkeypatch.setattr(sys, "argv", ["axolotl"])
    monkeypatch.chdir(tmp_path)
    run_parts.made.clear()
    model, tokenizer = tiny.build("qwen_text")
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    rows = tiny.dataset(PROMPTS, 0).to_list()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(trl=(), **more):
        config = {
            "base_model": "model",
            "rl": "grpo",
            "trainer_cls": "run_parts.Recorded",
            "trl": {
                "num_generations": GROUP,
                "max_completion_length": 8,
                "reward_funcs": ["run_parts.letters"],
                "beta": 0.0,
                **dict(trl),
            },
            "datasets": [{"path": "rows.jsonl", "ds_type": "json", "split": "train", "type": "run_parts.as_it_is"}],
            "output_dir": "out",
            "dataset_prepared_path": "prepared",
            "micro_batch_size": 8,
            "gradient_accumulation_steps": PROMPTS * GROUP // 8,
            "max_steps": 2,
            "save_steps": 1,
            "learning_rate": 1e-3,
            "optimizer": "adamw_torch",
            "lr_scheduler": "constant",
            "sequence_len": 128,
            "logging_steps": 1,
            "bf16": False,
            "fp16": False,
            "tf32": False,
            "attn_implementation": "eager",
            "dataset_num_proc": 1,
            **more,
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
        do_cli("run.yaml")
        (trainer,) = run_parts.made
        return trainer

    return run


def test_axolotl_trains_with_the_advantages_of_the_library(train, tmp_path):
    trainer = train()
    assert isinstance(trainer, AxolotlGRPOTrainer)
    assert [entry["step"] for entry in trainer.state.log_history if "durian/confidence_mean" in entry] == [1, 2]
    moved = [name for name, value in trainer.model.state_dict().items() if not torch.equal(value, trainer.start[name])]
    assert len(moved) > len(trainer.start) / 2

    estimator = AdvantageEstimator(window=256, eps=1e-4)
    prompts = torch.arange(PROMPTS * GROUP) // GROUP
    for batch in trainer.batches:
        rewards = batch["per_func"][:, 0]
        right = estimator(rewards, prompts, confidence=batch["confidence"].flatten())
        torch.testing.assert_close(batch["output"]["advantages"], right.float(), atol=1e-6, rtol=0)
        assert (batch["of_trl"] - right).abs().max() > 0.01
    assert len(trainer.batches) == 2
    assert torch.load(tmp_path / "out/checkpoint-2/durian_window.pt", weights_only=True)

    trainer.model.load_state_dict(trainer.start)  # the policy of the first batch
    batch = trainer.batches[0]
    confidence = expected_confidence(trainer, batch["output"]).view(PROMPTS, GROUP)
    torch.testing.assert_close(batch["confidence"].float(), confidence, atol=1e-4, rtol=0)


def test_the_configuration_is_axolotls_with_the_options_of_the_page(train):
    trainer = train(max_steps=1)
    theirs, ours = trainer.theirs, trainer.args
    assert (type(theirs), type(ours), ours.durian_window) == (AxolotlGRPOConfig, my_module.Config, 256)
    own = {name for name in vars(ours) if name.startswith("durian_")}
    assert set(vars(ours)) - own == set(vars(theirs))
    for name in set(vars(theirs)) - {"distributed_state"}:
        assert repr(getattr(ours, name)) == repr(getattr(theirs, name)), name
    assert (ours.learning_rate, ours.num_generations, ours.remove_unused_columns) == (1e-3, GROUP, False)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"rl": "gdpo"}, "multi_objective_aggregation: .*GDPO"),
        ({"trl": {"scale_rewards": False}}, "scale_rewards: expected 'group'"),
        ({"trl": {"use_data_producer": True}}, ASYNC),
        ({"trl": {"async_prefetch": True}}, ASYNC),
    ],
    ids=["gdpo", "scale_rewards", "use_data_producer", "async_prefetch"],
)
def test_what_is_not_supported_stops_before_it_trains(train, more, error):
    with pytest.raises((TypeError, ValueError), match=f"^{error}"):
        train(**more)
    assert not run_parts.made
