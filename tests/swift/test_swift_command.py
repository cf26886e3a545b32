"""The command ``swift rlhf`` as the page shows it, on one rank and on two; checkpoints with a window."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from rollout_logs import concluded, rows_of

from durian_adv.adapters._trainer import STATE_FILE
from durian_adv.estimator import AdvantageEstimator

SWIFT = Path(sys.executable).with_name("swift")


def ran(words, folder, **variables):
    """Run the command in a folder of its own; return what it printed."""
    environment = os.environ | variables
    run = subprocess.run([SWIFT, "rlhf", *words], capture_output=True, text=True, env=environment, cwd=folder)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout + run.stderr


def logs(out):
    return [json.loads(line) for line in (out / "logging.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_command_trains(model, tmp_path, ranks):
    data = tiny.save_dataset(tmp_path / "data.jsonl", tiny.rows())
    out = tmp_path / "out"
    (tmp_path / "trl.py").write_text("raise ImportError('of the folder')\n")  # of a plugin, it would come first
    words = tiny.arguments(
        model,
        data,
        out,
        ["recorded.py", "saving.py"],
        gradient_accumulation_steps=4 // ranks,
        per_device_train_batch_size=4,
        max_steps=2,
        model_kwargs={**tiny.BUCKETS, "durian_window": 4, "durian_rollout_log": str(tmp_path / "log")},
    )
    variables = {"RECORDS": str(tmp_path)}
    if ranks > 1:
        variables |= {"NPROC_PER_NODE": str(ranks), "MASTER_PORT": str(29500 + os.getpid() % 2000)}
    printed = ran(words, tmp_path, **variables)
    assert "Durian: estimator=durian, weights=(0.1, 0.2, 0.7)" in printed
    steps = [line for line in logs(out) if "durian/prompts" in line]
    assert [line["durian/prompts"] for line in steps] == [4, 4]
    assert [line["durian/window_prompts"] for line in steps] == [0, 4]

    records = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(ranks)]
    estimator = AdvantageEstimator(num_confidence_buckets=2, entropy_quantiles=(0.5,), window=4, eps=1e-4)
    for step, batch in enumerate(records[0]):
        right = estimator(batch["rewards"], torch.arange(16) // 4, **batch["scores"])
        local = [record[step] for record in records]
        for other in local:  # every rank knows the whole batch
            assert torch.equal(other["advantages"], right)
            assert other["scores"]["visual_entropy"].tolist() == batch["scores"]["visual_entropy"].tolist()
            assert other["metrics"] == batch["metrics"]
        assert torch.equal(torch.cat([other["used"] for other in local]), right.to(torch.float32))
        assert not batch["scores"]["visual_entropy"].isnan().any()
        assert len(set(batch["scores"]["visual_entropy"].tolist())) == 4
    files = rows_of(tmp_path / "log")
    assert list(files) == ["step_00000001.parquet", "step_00000002.parquet"]
    for rows, batch in zip(files.values(), records[0], strict=True):
        assert [row["advantage"] for row in rows] == batch["advantages"].tolist()
    assert concluded(tmp_path / "log", num_confidence_buckets=2, entropy_quantiles=(0.5,)).tone != "none"


def test_a_prompt_may_lie_on_two_ranks(model, tmp_path):
    data = tiny.save_dataset(tmp_path / "data.jsonl", tiny.rows())
    words = tiny.arguments(
        model,
        data,
        tmp_path / "out",
        ["recorded.py", "saving.py"],
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        dynamic_sample="true",
        beta=0.1,
        kl_in_reward="true",
    )
    ran(words, tmp_path, RECORDS=str(tmp_path), NPROC_PER_NODE="2", MASTER_PORT=str(27500 + os.getpid() % 2000))
    (first,), (second,) = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2))
    assert len(first["used"]) == len(second["used"]) == 6  # 3 prompts of 4
    assert torch.equal(first["advantages"], second["advantages"])
    entropy = first["scores"]["visual_entropy"].view(3, 4)
    assert torch.equal(entropy, entropy[:, :1].expand(3, 4))
    assert not entropy.isnan().any()
    right = AdvantageEstimator(num_confidence_buckets=2, entropy_quantiles=(0.5,), eps=1e-4)(
        first["rewards"], torch.arange(12) // 4, **first["scores"]
    )
    assert torch.equal(torch.cat([first["used"], second["used"]]), right.to(torch.float32))


WINDOW = {"durian_window": 6, "durian_num_confidence_buckets": 3}


def test_a_run_goes_on_with_its_window(train):
    script = [[k % 3 / 2, 1, 0, k / 16] for k in range(16)]
    options = {"durian": WINDOW, "reward_funcs": ["written"], "max_steps": 4, "tuner_type": "lora", "save_steps": 2}
    whole = train(tiny.rows(16, script=script), save_strategy="steps", **options)
    checkpoint = whole.out / "checkpoint-2"
    assert (checkpoint / STATE_FILE).exists()
    assert [batch["metrics"]["durian/window_prompts"] for batch in whole.batches] == [0, 4, 6, 6]
    state = AdvantageEstimator(**whole.trainer._estimator.options)
    state.load_state_dict(torch.load(checkpoint / STATE_FILE, weights_only=True))
    resumed = train(tiny.rows(16, script=script), save_strategy="no", resume_from_checkpoint=checkpoint, **options)
    assert [batch["metrics"]["durian/window_prompts"] for batch in resumed.batches] == [6, 6]
    for ours, theirs in zip(resumed.batches, whole.batches[2:], strict=True):
        assert [s.extra["number"] for s in ours["samples"]] == [s.extra["number"] for s in theirs["samples"]]
        torch.testing.assert_close(ours["advantages"], theirs["advantages"])
    again = state(resumed.batches[0]["rewards"], torch.arange(16) // 4, **resumed.batches[0]["scores"])
    assert torch.equal(again, resumed.batches[0]["advantages"])


def test_a_damaged_window_is_an_error_and_a_missing_one_a_warning(train):
    options = {"durian": WINDOW, "tuner_type": "lora", "max_steps": 2}
    run = train(save_strategy="steps", save_steps=1, **options)
    file = run.out / "checkpoint-1" / STATE_FILE
    file.write_bytes(b"damaged")
    with pytest.raises(RuntimeError, match=f"{STATE_FILE} cannot be read as a window of recent prompts"):
        train(resume_from_checkpoint=file.parent, **options)
    only_weights = train(resume_from_checkpoint=file.parent, resume_only_model="true", **options)
    assert only_weights.batches[0]["metrics"]["durian/window_prompts"] == 0
    file.unlink()
    with pytest.warns(UserWarning, match=f"{STATE_FILE} does not exist: the window of recent prompts starts empty"):
        train(resume_from_checkpoint=file.parent, **options)
