"""The log that our adapters write: what a reader gets of it is what the estimator had, whatever happens on the way."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from PIL import Image
from rollout_logs import concluded, rows_of

from durian_adv import ArgumentError
from durian_adv.cli import main
from durian_adv.data.logs import writer
from durian_adv.data.logs.steps import read_log
from durian_adv.data.logs.writer import RolloutLog, content_id
from durian_adv.estimator import AdvantageEstimator

IDS = st.one_of(st.integers(0, 5), st.sampled_from("abcdé"), st.tuples(st.integers(0, 2), st.sampled_from("xy")))
SCORES = st.none() | st.floats(-10, 10)


@st.composite
def batches(draw):
    """Rows of 2 to 6 prompts; rollouts in one row or several, rows without reward, rows that do not exist."""
    prompts = draw(st.lists(IDS, min_size=2, max_size=6, unique_by=lambda x: (type(x).__name__, x)))
    rows = []
    for prompt in prompts:
        entropy = draw(SCORES)
        for rollout in range(draw(st.integers(2, 4))):
            reward, confidence = draw(st.none() | st.sampled_from([0.0, 0.5, 1.0, 3.0])), draw(SCORES)
            for _ in range(draw(st.integers(1, 2))):
                rows.append((prompt, rollout, reward, entropy, confidence, draw(st.booleans() | st.just(True))))
    order = draw(st.permutations(range(len(rows))))
    return [rows[i] for i in order]


def call(rows, **options):
    prompts, rollouts, rewards, entropy, confidence, valid = map(list, zip(*rows, strict=True))
    estimator = AdvantageEstimator(estimator="grpo", **options)
    scores = {"visual_entropy": entropy, "confidence": confidence}
    try:
        return estimator, estimator(rewards, prompts, rollouts=rollouts, valid=valid, **scores)
    except ArgumentError:  # no two rollouts of one prompt
        reject()


@given(batches())
def test_a_row_of_the_log_is_a_rollout_with_what_it_had(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("log")
    estimator, advantages = call(rows)
    RolloutLog(folder).write(3, estimator.record, category=[str(row[0]) for row in rows])
    (written,) = rows_of(folder).values()
    expected = {}  # rollout -> its rows
    for place, row in enumerate(rows):
        expected.setdefault(row[:2], []).append((place, *row[2:]))
    assert len(written) == len(expected)
    for row in written:
        prompt, rollout = rows[row["rollout"]][:2]
        of_rollout = expected.pop((prompt, rollout))
        counted = [each for each in of_rollout if each[1] is not None and each[4]]
        assert row["valid"] == bool(counted)
        first = counted[0] if counted else of_rollout[0]
        assert row["rollout"] == first[0]
        assert row["reward"] == first[1]
        assert row["advantage"] == float(advantages[first[0]])
        assert (row["visual_entropy"], row["confidence"]) == (first[2], first[3])
        assert row["category"] == str(prompt)
    assert expected == {}
    groups = {}
    for row in written:
        groups.setdefault(row["group"], set()).add(rows[row["rollout"]][0])
    assert all(len(prompts) == 1 for prompts in groups.values())
    assert len({next(iter(prompts)) for prompts in groups.values()}) == len(groups)


@given(batches())
def test_what_is_read_of_a_log_normalizes_as_the_run_did(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("log")
    estimator, _ = call(rows)
    RolloutLog(folder).write(1, estimator.record)
    (step,) = read_log([folder]).steps
    written = [row for rows in rows_of(folder).values() for row in rows]
    again = AdvantageEstimator(estimator="grpo")(step.rewards, step.prompt_index)
    assert again.tolist() == [row["advantage"] for row in written]


def some(count=32, seed=0, prompts=4, prompt="{}"):
    draw = np.random.default_rng(seed)
    size = count // prompts
    estimator = AdvantageEstimator(num_confidence_buckets=2)
    rewards = draw.integers(0, 2, count).astype(float).tolist()
    estimator(rewards, [prompt.format(i // size) for i in range(count)], confidence=draw.normal(size=count).tolist())
    return estimator.record


def test_a_page_with_a_verdict_needs_no_option(tmp_path, capsys):
    log = RolloutLog(tmp_path / "log")
    for step in range(3):
        log.write(step, some(512, step, 64))
    assert concluded(tmp_path / "log").tone != "none"
    assert main(["report", str(tmp_path / "log"), "--out", str(tmp_path / "report")]) == 0
    out, err = capsys.readouterr()
    assert "read as Durian rollouts: 1,536 rollouts in 3 steps from 3 files, 192 prompts x 8 rollouts" in err
    assert "Durian would change" in out
    assert main(["metrics", str(tmp_path / "log")]) == 0
    assert capsys.readouterr().out.count("\n") == 3


def test_prompts_are_curated_from_the_log_of_a_run(tmp_path, capsys):
    log, estimator = RolloutLog(tmp_path / "log"), AdvantageEstimator(estimator="grpo")
    right = {"a": [1, 0, 0, 0], "b": [1, 1, 1, 1], "c": [1, 1, 0, 0]}
    for step, invalid in enumerate((False, True)):  # in the second step the right one of a does not count
        rewards = [reward * 10.0 for values in right.values() for reward in values]
        estimator(rewards, [name for name in right for _ in range(4)], valid=[not invalid] + [True] * 11)
        log.write(step, estimator.record)
    words = ["curate", str(tmp_path / "log"), str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")]
    assert main(words) == 0
    err = capsys.readouterr().err
    assert "read as Durian rollouts: 24; correct where reward is above 5" in err
    assert "3 prompts: 1 stage 2, 1 stage 1, 1 too easy" in err
    kept = [json.loads(path.read_text()) for path in (tmp_path / "1.jsonl", tmp_path / "2.jsonl")]
    assert [(row["prompt"], row["samplings"], row["correct"]) for row in kept] == [("c", 8, 4), ("a", 7, 1)]
    for path in tmp_path.glob("*.jsonl"):
        path.unlink()
    assert main([*words, "--above", "20"]) == 0
    assert "above 20" in capsys.readouterr().err
    assert main([*words[:2], *(f"{name}x.jsonl" for name in words[2:]), "--correct", "prompt"]) == 2
    assert "row 1: prompt: expected a number or null, got 'a'" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.jsonl").write_text('{"prompt": "a", "correct": 1}\n')
    assert main(["curate", str(tmp_path / "other"), str(tmp_path / "x.jsonl"), str(tmp_path / "y.jsonl")]) == 2
    assert "a.jsonl: expected a column 'reward'" in capsys.readouterr().err


def test_steps_of_several_batches_are_read_one_by_one_in_their_order(tmp_path):
    log = RolloutLog(tmp_path)
    for number, step in enumerate((9, 9, 10, 10, 10, 100)):
        log.write(step, some(seed=number))
    names = [f"step_{n:08d}{batch}.parquet" for n, batch in ((9, ""), (9, "_1"), (10, ""), (10, "_1"), (10, "_2"))]
    assert set(rows_of(tmp_path)) == {*names, "step_00000100.parquet"}
    steps = list(read_log([tmp_path]).steps)
    assert [step.name for step in steps] == ["9", "9.1", "10", "10.1", "10.2", "100"]
    for number, step in enumerate(steps):
        assert step.rewards.tolist() == some(seed=number).rewards.tolist()
    with pytest.raises(ArgumentError, match=r"^step: expected 100, of the batch before, or a later one, got 99"):
        log.write(99, some())


def test_groups_of_one_prompt_in_a_batch_stay_apart(tmp_path):
    """An epoch ends within a batch: the prompt that comes again is a group of its own, as it was in the update."""
    log = RolloutLog(tmp_path)
    prompts = ["a"] * 8 + ["b"] * 16 + ["a"] * 8
    log.write(1, some(), prompts=prompts, texts=[f"text of {p}" for p in prompts])
    (step,) = read_log([tmp_path]).steps
    assert step.prompt_index.tolist() == [i // 8 for i in range(32)]
    assert step.prompts == ["text of a", "text of b", "text of b", "text of a"]
    assert [row["prompt"] for row in rows_of(tmp_path)["step_00000001.parquet"]] == prompts


def test_rows_that_are_no_rollouts_are_left_out(tmp_path):
    log, estimator = RolloutLog(tmp_path), AdvantageEstimator(estimator="grpo")
    estimator([1.0, 0.0, 0.0, 5.0, None], ["a", "a", "a", "a", None], valid=[True, True, True, False, False])
    log.write(1, estimator.record, exists=torch.tensor([1, 1, 1, 0, 1]))
    log.write(2, estimator.record)
    assert [row["rollout"] for row in rows_of(tmp_path)["step_00000001.parquet"]] == [0, 1, 2]
    assert [row["valid"] for row in rows_of(tmp_path)["step_00000002.parquet"]] == [True, True, True, False]
    first, second = read_log([tmp_path]).steps
    assert first.rewards.tolist() == [1, 0, 0]
    assert second.rewards[:3].tolist() == [1, 0, 0]
    assert math.isnan(second.rewards[3])  # a reward that had no part in the update


def test_a_run_that_begins_again_writes_over_nothing(tmp_path, caplog):
    folder, log = tmp_path, RolloutLog(tmp_path)
    for step in range(5):
        log.write(step, some(seed=step))
    (folder / "notes.txt").write_text("mine")
    with caplog.at_level(logging.WARNING):
        RolloutLog(folder).write(3, some(seed=33))
        RolloutLog(folder).write(3, some(seed=333))
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: 2 files of an earlier run, step_00000003.parquet to step_00000004.parquet, are renamed to "
        "*.replaced, as this run begins at step 3",
        f"{folder}: 1 files of an earlier run, step_00000003.parquet to step_00000003.parquet, are renamed to "
        "*.replaced, as this run begins at step 3",
    ]
    kept = {path.name: [row["reward"] for row in pq.read_table(path).to_pylist()] for path in folder.glob("step*")}
    seeds = {"2.parquet": 2, "3.parquet": 333, "3.parquet.replaced": 3, "3.parquet.replaced_1": 33,
             "4.parquet.replaced": 4}  # fmt: skip
    assert {name: kept[f"step_0000000{name}"] for name in seeds} == {
        name: some(seed=seed).rewards.tolist() for name, seed in seeds.items()
    }
    log = read_log([folder])
    assert [step.name for step in log.steps] == [0, 1, 2, 3]
    assert "left out, by their names: notes.txt, step_00000003.parquet.replaced" in log.read_as
    caplog.clear()
    RolloutLog(folder).write(4, some())  # a run that goes on where the other ended renames nothing
    assert caplog.records == []


def test_a_run_beside_another_is_an_error_that_names_the_file(tmp_path):
    one, other = RolloutLog(tmp_path), RolloutLog(tmp_path)
    one.write(1, some())
    other.write(2, some())
    with pytest.raises(FileExistsError, match=r"step_00000002\.parquet: another run has written it"):
        one.write(2, some())


WRITE = """
import sys
sys.path.insert(0, "tests")
from test_rollout_writer import RolloutLog, some
log, record = RolloutLog(sys.argv[1]), some(4096, prompts=512, prompt="x" * 40 + "{}")
print("ready", flush=True)
for step in range(10**9):
    log.write(step, record)
"""


def test_a_run_that_is_killed_leaves_whole_files(tmp_path):
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        run = subprocess.Popen([sys.executable, "-c", WRITE, str(folder)], stdout=subprocess.PIPE)
        run.stdout.readline()
        while not list(folder.glob("step_00000000.parquet")):
            time.sleep(0.01)
        time.sleep(0.05 + 0.013 * attempt)
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdout.close()
        (folder / "step_99999999.partial.parquet").write_bytes(b"PAR1")  # as where it is killed within a file
        steps = [step.name for step in read_log([folder]).steps]
        assert steps == list(range(len(steps)))


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000)); " + WRITE


def test_a_full_disk_is_an_error_with_the_path_and_leaves_no_half_file(tmp_path):
    run = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("OSError: ")
    assert f"{tmp_path}/step_00000000" in last
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        RolloutLog(tmp_path / "file" / "log")


def test_without_pyarrow_the_extra_is_named_at_the_start():
    code = "import sys; sys.modules['pyarrow'] = None; from durian_adv.data.logs.writer import RolloutLog; "
    run = subprocess.run([sys.executable, "-c", code + "RolloutLog('x')"], capture_output=True, text=True)
    assert run.stderr.strip().splitlines()[-1] == (
        "ModuleNotFoundError: rollout_log: a log of parquet files needs pyarrow: pip install 'durian-adv[report]'"
    )
    assert not Path("x").exists()


def test_entries_that_do_not_fit_are_refused(tmp_path):
    log = RolloutLog(tmp_path)
    with pytest.raises(ArgumentError, match=r"^record: expected the record of an estimator that was called, got N"):
        log.write(1, AdvantageEstimator().record)
    for name in ("prompts", "texts", "category"):
        with pytest.raises(ArgumentError, match=f"^{name}: expected an entry per row of the batch, got 31"):
            log.write(1, some(), **{name: ["a"] * 31})
    assert list(tmp_path.iterdir()) == []


def test_ids_of_any_kind_are_written_as_text(tmp_path):
    log, estimator = RolloutLog(tmp_path), AdvantageEstimator(estimator="grpo")
    ids = [np.int64(7), "seven", ("a", 1), 1.5]
    estimator([1.0, 0.0] * 4, [name for name in ids for _ in range(2)])
    log.write(1, estimator.record, category=[None, math.nan, np.float64(2), 3, "x", ("y",), True, None])
    rows = rows_of(tmp_path)["step_00000001.parquet"]
    assert [row["prompt"] for row in rows[::2]] == ["7", "seven", '["a",1]', "1.5"]
    assert [row["category"] for row in rows] == [None, None, "2", "3", "x", '["y"]', "true", None]


def picture(color, size=(4, 6)):
    return Image.new("RGB", size, color)


def test_the_id_of_a_content_differs_where_the_content_does():
    values = [
        ("a",), ("b",), ("a", None), ("a", "b"), (["a", "b"],), ("ab",), ({"a": "b"},), ({"a": ["b"]},), (b"a",),
        (1,), ("1",), (1.0,), (True,), (picture("red"),), (picture("blue"),), (picture("red", (6, 4)),),
        (picture("red").convert("L"),), (np.zeros(4),), (np.zeros((2, 2)),), (np.zeros(4, "int64"),), ([],), ({},), (),
        ([[]], []), ([], [[]]), ("\ud800",),
    ]  # fmt: skip
    ids = [content_id(*value) for value in values]
    assert len(set(ids)) == len(ids)
    assert ids == [content_id(*value) for value in values]
    assert content_id({"a": 1, "b": 2}) == content_id({"b": 2, "a": 1})
    assert content_id(picture("red")) == content_id(picture("red"))
    with pytest.raises(ArgumentError, match=r"^prompt: expected text, .* or a column prompt_id, got SimpleNamespace"):
        content_id([SimpleNamespace()])
    assert os.sep not in ids[0]


def test_without_pyarrow_the_error_names_the_extra(monkeypatch):
    writer._arrow.cache_clear()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"rollout_log: a log of parquet files needs pyarrow: pip install"):
        writer._arrow()
