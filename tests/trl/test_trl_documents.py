"""The script and the page for people: they parse, they start, and what they show is so."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import recorded
import tiny
import torch
from datasets import Dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trl.rewards import accuracy_reward, think_format_reward

from durian_adv.adapters.trl import DurianGRPOTrainer
from durian_adv.adapters.trl.trainer import _TABLE

ROOT = Path(__file__).resolve().parents[2]
CPU = ["--use_cpu", "True", "--bf16", "False", "--report_to", "none", "--save_strategy", "no"]


@pytest.fixture
def script():
    """The Geometry3K script as a module."""
    spec = importlib.util.spec_from_file_location("trl_geometry3k", ROOT / "docs/trl_geometry3k.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def geometry(count=4):
    """Problems with the columns of Geometry3K."""
    return Dataset.from_dict(
        {
            "images": [[tiny.photograph(k / count, seed=k)] for k in range(count)],
            "problem": [f"<image>Find x, if x = {k}." for k in range(count)],
            "answer": [str(k) for k in range(count)],
        }
    )


def test_the_script_has_the_settings_of_the_paper(script):
    config = script.parsed(["--output_dir", "out", *CPU])
    gpus = 8
    prompts = config.per_device_train_batch_size * gpus // config.num_generations
    assert prompts * config.steps_per_generation == 512
    assert prompts * config.gradient_accumulation_steps == 128
    assert (config.num_generations, config.learning_rate) == (8, 1e-6)
    assert config.reward_weights == [0.1, 0.9]
    assert config.durian_eps == 1e-6
    assert script.parsed(["--output_dir", "out", *CPU, "--learning_rate", "1e-4"]).learning_rate == 1e-4


def test_the_script_starts_on_the_tiny_model(script, tmp_path):
    model, processor = tiny.build("qwen25vl")
    small = ["--max_steps", "1", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"]
    small += ["--steps_per_generation", "4", "--max_completion_length", "8", "--gradient_checkpointing", "False"]
    config = script.parsed(["--output_dir", str(tmp_path), *CPU, *small, "--durian_window", "64"])
    trainer = script.trainer(model, geometry(), config, processing_class=processor)
    assert isinstance(trainer, DurianGRPOTrainer)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["durian/prompts"] == 2
    assert "rewards/accuracy_reward/mean" in log
    assert "rewards/think_format_reward/mean" in log


def test_the_rewards_of_the_script_score_its_answers(script):
    example = script.prepared(geometry()[3])
    assert example["prompt"][0]["content"].startswith("Find x, if x = 3.\n")
    good, bad = "<think>\nx is given.\n</think>\nSo \\boxed{3}.", "\\boxed{4}"
    completions = [[{"role": "assistant", "content": text}] for text in (good, bad)]
    assert accuracy_reward(completions, [example["solution"]] * 2) == [1.0, 0.0]
    assert think_format_reward(completions) == [1.0, 0.0]
    assert "<image>" not in str(example["prompt"])


def test_the_code_of_the_page_parses_and_its_names_exist():
    page = (ROOT / "docs/trl.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block)
    columns = {f"durian_{name}" for name in _TABLE}
    for option in set(re.findall(r"`(durian_\w+)`", page)) - columns:
        assert option in recorded.DurianGRPOConfig.__dataclass_fields__, option
    for option in (name for name in recorded.DurianGRPOConfig.__dataclass_fields__ if name.startswith("durian_")):
        assert option in page, option


def test_the_page_says_what_every_metric_tells(make):
    page = (ROOT / "docs/trl.md").read_text()
    trainer = make(max_steps=1)
    trainer.train()
    for name in trainer.batches[0]["metrics"]:
        assert re.sub(r"_\d+", "_K", name.removeprefix("durian/")) in page, name


@pytest.mark.filterwarnings("ignore:a generation batch of 2 prompts")
def test_the_diff_of_the_page_leads_from_a_grpo_script_to_a_durian_script(tmp_path):
    page = (ROOT / "docs/trl.md").read_text()
    diff = re.search(r"```diff\n(.*?)```", page, re.DOTALL).group(1).splitlines()
    assert len(diff) == 5
    for drop, names in (("-", "GRPOTrainer"), ("+", "DurianGRPOTrainer")):
        code = "\n".join(line[2:] for line in diff if not line.startswith("+" if drop == "-" else "-"))
        assert names in code
        model, processor = tiny.build("qwen25vl")
        given = {"model": model, "processor": processor, "dataset": tiny.dataset(8), "reward": tiny.letters}
        more = {"use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 1, "save_strategy": "no"}
        more |= {"max_completion_length": 8, "generation_kwargs": tiny.no_image_tokens(model)}
        exec(code.replace('"out"', f'"{tmp_path}", **more'), given | {"more": more})


def test_the_metrics_reach_a_tracker_on_this_machine(make, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    more = {} if tiny.TRANSFORMERS_5 else {"logging_dir": str(tmp_path / "board")}
    trainer = make(report_to="tensorboard", max_steps=3, **more)
    trainer.train()
    board = EventAccumulator(str(next((tmp_path / "board").rglob("events*")).parent)).Reload()
    for name, value in trainer.batches[-1]["metrics"].items():
        events = board.Scalars(f"train/{name}")
        assert len(events) == 3
        assert events[-1].value == pytest.approx(value, rel=1e-5, abs=1e-6)
    assert torch.isfinite(torch.tensor(trainer.batches[-1]["metrics"]["durian/advantage_abs_max"]))
