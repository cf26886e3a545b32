"""The window of recent prompts in training: what it does, when it warns, and that a checkpoint keeps it."""

import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import recorded
import resumed
import tiny
import torch

from durian_adv import grpo_advantage
from durian_adv.adapters.trl import DurianGRPOTrainer
from durian_adv.window import windowed_components

HERE = Path(__file__).resolve().parent
OPTIONS = {"num_confidence_buckets": 3, "entropy_quantiles": (0.5,), "eps": 1e-4}


def by_hand(batches, size):
    """The advantages of some batches, through the library's window."""
    window = None
    for batch in batches:
        parts, window = windowed_components(
            batch["per_func"][:, 0].view(-1, 4),
            window=window,
            size=size,
            visual_entropy=batch["entropy"],
            confidence=batch["confidence"],
            **OPTIONS,
        )
        yield parts.advantages.flatten(), window


@pytest.mark.filterwarnings("ignore:a generation batch of 4 prompts")
@pytest.mark.parametrize("size", [0, 3, 32])
def test_training_goes_through_the_librarys_window_and_evaluation_leaves_it_alone(make, size):
    trainer = make(
        durian_window=size,
        durian_num_confidence_buckets=3,
        max_steps=4,
        per_device_eval_batch_size=8,
        eval_strategy="steps",
        eval_steps=2,
        arguments={"eval_dataset": tiny.dataset(2)},
    )
    trainer.train()
    training = [batch for batch in trainer.batches if batch["training"]]
    assert len(training) == 4
    assert len(trainer.batches) > 4
    expected = list(by_hand(training, size))
    for batch, (advantages, _) in zip(training, expected, strict=True):
        assert torch.equal(batch["output"]["advantages"], advantages.float())
    window = trainer._estimator.state_dict()["window"]
    assert (window is None) == (size == 0)
    for name, value in (window or {}).items():
        right = getattr(expected[-1][1], name)
        assert value is right is None or torch.equal(value, right), name
        assert value is None or len(value) == min(size, 16)
    alone = [advantages for batch in training for advantages, _ in by_hand([batch], 0)]
    same = [torch.equal(batch["output"]["advantages"], a.float()) for batch, a in zip(training, alone, strict=True)]
    assert same == ([True] * 4 if size == 0 else [True, False, False, False])


def few(caught):
    return [str(w.message) for w in caught if "a generation batch of" in str(w.message)]


def warned(make, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make("qwen25vl", **options).train()
    return few(caught)


def test_too_few_prompts_for_the_buckets_are_warned_of_once(make):
    (message,) = warned(make, durian_num_confidence_buckets=12, durian_entropy_quantiles=[0.25, 0.75])
    start = "a generation batch of 4 prompts with visual entropy for 3 buckets and 4 prompts with confidence for 12 "
    assert message.startswith(start)
    (message,) = warned(make, durian_num_confidence_buckets=3)
    assert "of 4 prompts with confidence for 3 buckets: " in message
    assert "durian_window" in message


def test_enough_prompts_or_a_window_that_holds_enough_are_not_warned_of(make):
    assert warned(make) == []  # 4 prompts for 2 and 2 buckets
    assert warned(make, durian_num_confidence_buckets=12, durian_window=20) == []
    assert len(warned(make, durian_num_confidence_buckets=12, durian_window=19)) == 1
    # a component without weight has no buckets to fill
    assert warned(make, durian_num_confidence_buckets=12, durian_weights=[0.5, 0.5, 0.0]) == []


def train(out, *words):
    return subprocess.run([sys.executable, HERE / "resumed.py", out, *words], capture_output=True, text=True)


def test_a_run_that_is_killed_and_resumed_goes_on_as_if_it_had_not_been(tmp_path):
    resumed.main(tmp_path / "whole")
    killed = train(tmp_path / "cut", "kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "cut/checkpoint-2/durian_window.pt").exists()
    assert not (tmp_path / "cut/end.pt").exists()
    done = train(tmp_path / "cut", "resume")
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / name / "end.pt", weights_only=True) for name in ("whole", "cut"))
    assert len(one["advantages"]) == 4
    assert len(other["advantages"]) == 2  # steps 3 and 4
    assert len(one["window"]["mean"]) == 6
    for name in ("rollouts", "low", "high", "mean", "squares", "visual_entropy", "confidence"):
        assert torch.equal(other["window"][name], one["window"][name])
    for expected, found in zip(one["advantages"][2:], other["advantages"], strict=True):
        assert torch.equal(found, expected)
    for name, value in one["model"].items():
        assert torch.equal(other["model"][name], value)


def test_a_model_whose_checkpoint_transformers_does_not_load_by_itself_resumes_from_its_folder(make, tmp_path):
    # it saves Qwen2.5-VL under other names than those under which it looks for the weights
    options = {"train_dataset": tiny.dataset(16), "durian_window": 6, "save_strategy": "steps", "save_steps": 2}
    trainer = make("qwen25vl", max_steps=4, **options)
    trainer.train()
    checkpoint = str(tmp_path / "out/checkpoint-2")

    def from_folder():
        model, processor = tiny.build("qwen25vl")
        return type(model).from_pretrained(checkpoint), processor

    again = make(from_folder, max_steps=4, **options)
    again.train(resume_from_checkpoint=checkpoint)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    one, other = (t._estimator.state_dict()["window"] for t in (trainer, again))
    assert torch.equal(one["mean"], other["mean"])


def test_a_checkpoint_without_a_window_starts_an_empty_one_and_says_so(make, tmp_path):
    trainer = make("qwen_text", save_strategy="steps", save_steps=1, max_steps=1)
    trainer.train()
    assert not list(tmp_path.rglob("durian_window.pt"))  # without a window nothing is written
    again = make("qwen_text", max_steps=2, durian_window=32)
    with pytest.warns(UserWarning, match=r"checkpoint-1/durian_window\.pt does not exist: the window of rec"):
        again.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-1"))
    assert len(again.batches) == 1
    assert len(again._estimator.state_dict()["window"]["mean"]) == 4
    assert isinstance(again, recorded.Recorded)


@pytest.mark.parametrize("damage", [b"", b"no file of torch's", None])
def test_a_damaged_window_stops_the_run_with_the_name_of_its_file(make, tmp_path, damage):
    options = {"durian_window": 32, "durian_num_confidence_buckets": 2, "save_strategy": "steps", "save_steps": 1}
    make("qwen_text", max_steps=1, **options).train()
    file = tmp_path / "out/checkpoint-1/durian_window.pt"
    assert [path.name for path in file.parent.glob("durian*")] == [file.name]
    torch.save({"window": None}, file) if damage is None else file.write_bytes(damage)
    with pytest.raises(RuntimeError, match=r"checkpoint-1/durian_window\.pt cannot be read as a window of recent"):
        make("qwen_text", max_steps=2, **options).train(resume_from_checkpoint=str(file.parent))


def test_one_prompt_per_batch_is_refused_or_takes_a_window(make):
    one = {"gradient_accumulation_steps": 1, "max_steps": 2}
    with pytest.raises(ValueError, match=r"^prompts: expected several prompts per call, or window > 0"):
        make("qwen_text", **one).train()
    make("qwen_text", durian_weights=[1.0, 0.0, 0.0], **one).train()
    trainer = make("qwen_text", durian_window=16, durian_num_confidence_buckets=1, **one)
    trainer.train()
    assert len(trainer._estimator.state_dict()["window"]["mean"]) == 2


def test_an_evaluation_on_one_prompt_is_grpo_and_moves_nothing(make):
    trainer = make(
        "qwen_text",
        max_steps=1,
        per_device_eval_batch_size=4,
        eval_strategy="steps",
        eval_steps=1,
        arguments={"eval_dataset": tiny.dataset(1, 0)},
    )
    trainer.train()
    train, evaluation = trainer.batches
    assert (train["training"], evaluation["training"]) == (True, False)
    expected = grpo_advantage(evaluation["per_func"].view(1, 4), eps=1e-4)
    assert torch.equal(evaluation["output"]["advantages"].view(1, 4), expected)


def test_an_evaluation_with_one_completion_per_prompt_is_trls_own(make):
    trainer = make(
        "qwen_text",
        max_steps=1,
        num_generations_eval=1,
        per_device_eval_batch_size=4,
        eval_strategy="steps",
        eval_steps=1,
        trainer=DurianGRPOTrainer,
        arguments={"eval_dataset": tiny.dataset(4, 0)},
    )
    trainer.train()
    (log,) = [log for log in trainer.state.log_history if "eval_reward" in log]
    assert not any("durian" in name for name in log)
