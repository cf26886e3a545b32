"""The log of a training with ``durian_rollout_log``: what the update had, readable without an option."""

import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import recorded
import tiny
import torch
import trl
from datasets import Dataset
from rollout_logs import concluded, rows_of

from durian_adv import ArgumentError
from durian_adv.data.logs.steps import read_log

QUIET = {"num_completions_to_print": 1}


def check(rows, batch, step):
    """Every row against what the trainer had."""
    count = len(rows)
    assert count == batch["per_func"].shape[0]
    assert {row["step"] for row in rows} == {step}
    assert [row["advantage"] for row in rows] == batch["output"]["advantages"].tolist()
    assert [row["reward"] for row in rows] == batch["per_func"].nansum(1).tolist()
    assert [row["group"] for row in rows] == [i // 4 for i in range(count)]
    assert [row["rollout"] for row in rows] == list(range(count))
    assert [row["valid"] for row in rows] == batch["valid"].flatten().tolist()
    for name in ("entropy", "confidence"):
        found = [row["visual_entropy" if name == "entropy" else name] for row in rows]
        given = batch[name]
        if given is None:
            assert found == [None] * count
        else:
            of_rows = given.repeat_interleave(4) if given.ndim == 1 else given.flatten()
            assert found == of_rows.tolist()


@pytest.mark.parametrize(("family", "images"), [("qwen25vl", 1), ("qwen_text", 0)])
def test_a_training_writes_what_its_updates_had(make, tmp_path, family, images):
    data = tiny.dataset(8, images).add_column("category", ["geometry", "algebra"] * 4)
    trainer = make(family, train_dataset=data, max_steps=3, durian_rollout_log=str(tmp_path / "a" / "log"))
    changed = recorded.moved(trainer, trainer.train)
    assert changed
    files = rows_of(tmp_path / "a" / "log")
    assert list(files) == [f"step_{n:08d}.parquet" for n in (1, 2, 3)]
    for number, (rows, batch) in enumerate(zip(files.values(), trainer.batches, strict=True), 1):
        check(rows, batch, number)
        assert [row["category"] for row in rows] == [example["category"] for example in batch["inputs"]]
        numbers = [recorded.question(example["prompt"]) for example in batch["inputs"]]
        assert all(f"in {n}?" in row["text"] for row, n in zip(rows, numbers, strict=True))
    # two epochs: the same prompts have the same ids, others have others
    ids = [{(recorded.question(e["prompt"]), row["prompt"]) for e, row in zip(b["inputs"], rows, strict=True)}
           for rows, b in zip(files.values(), trainer.batches, strict=True)]  # fmt: skip
    every = set().union(*ids)
    assert len({number for number, _ in every}) == len(every) == len({prompt for _, prompt in every})

    log = read_log([tmp_path / "a" / "log"])
    assert log.read_as.startswith("Durian rollouts: 48 rollouts in 3 steps from 3 files, 12 prompts x 4 rollouts")
    assert concluded(tmp_path / "a" / "log", num_confidence_buckets=2, entropy_quantiles=(0.5,)).tone != "none"


def test_images_of_one_question_are_prompts_of_their_own_and_an_id_of_the_dataset_goes_first(make, tmp_path):
    same = [{"role": "user", "content": "What is in the picture?"}]
    data = tiny.dataset(8, 1).map(lambda row: {"prompt": same})
    trainer = make("qwen25vl", train_dataset=data, durian_rollout_log=str(tmp_path / "log"))
    trainer.train()
    ids = [row["prompt"] for rows in rows_of(tmp_path / "log").values() for row in rows]
    assert len(set(ids)) == 8
    named = data.add_column("prompt_id", list(range(100, 108)))
    trainer = make("qwen25vl", train_dataset=named, max_steps=1, durian_rollout_log=str(tmp_path / "named"))
    trainer.train()
    (rows,) = rows_of(tmp_path / "named").values()
    assert [row["prompt"] for row in rows] == [str(e["prompt_id"]) for e in trainer.batches[0]["inputs"]]
    assert {row["prompt"] for row in rows} < {str(n) for n in range(100, 108)}


class Asks:
    """An environment that asks one question of the four completions of a prompt."""

    asked = 0

    def reset(self, **_):
        Asks.asked += 1
        return f"What is in {(Asks.asked - 1) // 4}?"


@pytest.mark.skipif(not tiny.TRANSFORMERS_5, reason="TRL has environments from transformers 5.2 on")
def test_prompts_that_an_environment_asks_have_ids_of_their_own(make, tmp_path):
    def family():
        model, tokenizer = tiny.build("qwen_text")
        tokenizer.chat_template = Path(trl.__file__).with_name("chat_templates").joinpath("qwen3.jinja").read_text()
        return model, tokenizer

    empty = Dataset.from_dict({"prompt": [[{"role": "user", "content": ""}]] * 8})
    for name, data in (("text", empty), ("named", empty.add_column("prompt_id", list(range(8))))):
        given = {"train_dataset": data, "durian_rollout_log": str(tmp_path / name)}
        trainer = make(family, arguments={"environment_factory": Asks}, **given)
        trainer.train()
        rows = [row for rows in rows_of(tmp_path / name).values() for row in rows]
        assert len({row["text"] for row in rows}) == len({row["prompt"] for row in rows}) == 8
        assert len({(row["text"], row["prompt"]) for row in rows}) == 8
    assert {row["prompt"] for row in rows} == {str(i) for i in range(8)}


def test_completions_that_do_not_count_are_told_and_batches_of_one_step_are_apart(make, tmp_path):
    def some(completions, **_):
        return [None if i % 4 == 3 else value for i, value in enumerate(tiny.letters(completions))]

    options = {"steps_per_generation": 1, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 8}
    options["durian_num_confidence_buckets"] = 1
    trainer = make("qwen_text", reward_funcs=some, durian_rollout_log=str(tmp_path / "log"), **options)
    trainer.train()
    files = rows_of(tmp_path / "log")
    names = [f"step_0000000{step}{batch}.parquet" for step in (1, 2) for batch in ("", "_1")]
    assert sorted(files) == sorted(names)
    for name, batch in zip(names, trainer.batches, strict=True):
        rows = files[name]
        assert [row["reward"] is None for row in rows] == [i % 4 == 3 for i in range(8)]
        assert [row["valid"] for row in rows] == [i % 4 != 3 for i in range(8)]
        assert [row["advantage"] for row in rows] == batch["output"]["advantages"].tolist()
    steps = list(read_log([tmp_path / "log"]).steps)
    assert [step.name for step in steps] == ["1", "1.1", "2", "2.1"]
    assert [int(step.rewards.isnan().sum()) for step in steps] == [2] * 4


def test_a_run_of_another_estimator_has_the_scores_that_cost_nothing(make, tmp_path):
    data = tiny.dataset(8, 0).add_column("visual_entropy", [float(n) for n in range(8)])
    options = {"durian_estimator": "grpo", "num_iterations": 2, "train_dataset": data}
    trainer = make("qwen_text", **options, durian_rollout_log=str(tmp_path / "log"))
    trainer.train()
    (rows, *_) = rows_of(tmp_path / "log").values()
    (batch, *_) = trainer.batches
    assert batch["forwards"] == 1  # TRL's own, of the old policy
    check(rows, batch, 1)
    assert [row["visual_entropy"] for row in rows] == [float(recorded.question(e["prompt"])) for e in batch["inputs"]]
    assert None not in [row["confidence"] for row in rows]
    plain = make("qwen_text", **options, output_dir=str(tmp_path / "plain"))
    plain.train()
    assert torch.equal(plain.batches[0]["output"]["advantages"], batch["output"]["advantages"])
    costly = make("qwen_text", durian_estimator="grpo", durian_rollout_log=str(tmp_path / "costly"))
    costly.train()
    assert [batch["forwards"] for batch in costly.batches] == [0, 0]
    (rows, *_) = rows_of(tmp_path / "costly").values()
    assert {(row["visual_entropy"], row["confidence"]) for row in rows} == {(None, None)}


def test_a_resumed_run_goes_on_and_what_it_does_again_is_kept_apart(make, tmp_path, caplog):
    folder = tmp_path / "log"
    options = {"save_strategy": "steps", "save_steps": 2, "durian_rollout_log": str(folder)}
    first = make("qwen_text", max_steps=4, **options)
    first.train()
    before = rows_of(folder)
    resumed = make("qwen_text", max_steps=3, **options)
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint=str(Path(first.args.output_dir) / "checkpoint-2"))
    assert "2 files of an earlier run, step_00000003.parquet to step_00000004.parquet, are renamed" in caplog.text
    after = rows_of(folder)
    assert sorted(after) == [f"step_{n:08d}.parquet" for n in (1, 2, 3)]
    assert {name: after[name] for name in list(before)[:2]} == {name: before[name] for name in list(before)[:2]}
    check(after["step_00000003.parquet"], resumed.batches[0], 3)
    aside = sorted(path.name for path in folder.glob("*.replaced"))
    assert aside == ["step_00000003.parquet.replaced", "step_00000004.parquet.replaced"]
    assert pq.read_table(folder / aside[1]).to_pylist() == before["step_00000004.parquet"]
    log = read_log([folder])
    assert [step.name for step in log.steps] == [1, 2, 3]
    assert "left out, by their names: step_00000003.parquet.replaced" in log.read_as


def test_a_fault_of_the_disk_ends_the_training_with_the_path(make, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"^durian_rollout_log: expected a folder that can be made and .*/file"):
        make("qwen_text", durian_rollout_log=str(tmp_path / "file"))
    trainer = make("qwen_text", durian_rollout_log=str(tmp_path / "log"))
    (tmp_path / "log").rmdir()
    with pytest.raises(OSError, match="log"):
        trainer.train()


def test_the_table_of_completions_has_the_columns_and_evaluations_are_left_out(make, tmp_path):
    def halves(completions, **_):
        return [0.5 for _ in completions]

    trainer = make(
        "qwen25vl",
        reward_funcs=[tiny.letters, halves],
        reward_weights=[0.75, 0.5],
        log_completions=True,
        eval_strategy="steps",
        eval_steps=1,
        num_generations_eval=1,
        per_device_eval_batch_size=3,
        arguments={"eval_dataset": tiny.dataset(3)},
        **QUIET,
    )
    trainer.train()
    folder = Path(trainer.args.output_dir, "completions")
    training = [batch for batch in trainer.batches if batch["training"]]
    log = read_log([folder])
    steps = list(log.steps)
    # TRL writes the table of an evaluation over that of the step: the last 16 completions, 3 of them the evaluation's
    assert "evaluations left out" in log.read_as
    for step, batch in zip(steps, training, strict=True):
        wanted = (batch["per_func"] * torch.tensor([0.75, 0.5])).nansum(1)[3:].double()
        torch.testing.assert_close(step.rewards, wanted)
        assert step.prompt_index.tolist() == [(i + 3) // 4 for i in range(13)]
        assert torch.equal(step.visual_entropy, batch["entropy"].repeat_interleave(4)[3:].double())
        assert torch.equal(step.confidence, batch["confidence"].flatten()[3:].double())
    assert concluded(folder, num_confidence_buckets=2, entropy_quantiles=(0.5,)).tone != "none"
