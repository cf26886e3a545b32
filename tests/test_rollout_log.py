"""What is read of a log is what was written into it, whatever its form and order."""

import json
import math
import re
import sys
import tracemalloc

import hypothesis.strategies as st
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given

from durian_adv import sequence_confidence
from durian_adv.data.logs import steps as step_log
from durian_adv.data.logs.steps import Options, read_log

KEYS = ("prompt", "reward", "step", "visual_entropy", "confidence", "logprobs")


def read_steps(paths, progress=lambda read: None, **options):
    return list(read_log(paths, Options(**options), progress).steps)


def write(path, rollouts):
    path.write_text("".join(json.dumps(rollout) + "\n" for rollout in rollouts))
    return path


def as_rows(steps):
    """Steps as one tuple per rollout, NaN as None."""
    rows = {}
    for step in steps:
        n = len(step.rewards)
        columns = [[math.nan] * n if c is None else c.tolist() for c in (step.visual_entropy, step.confidence)]
        names = [step.prompts[i] for i in step.prompt_index.tolist()]
        rows[step.name] = [
            tuple(None if value != value else value for value in row)
            for row in zip(names, step.rewards.tolist(), *columns, strict=True)
        ]
    return rows


def expected(rollouts, reduction="sum"):
    """The same, straight from the rollouts."""
    rows = {}
    for rollout in rollouts:
        confidence, logprobs = rollout.get("confidence"), rollout.get("logprobs")
        if confidence is None and logprobs:
            confidence = float(sequence_confidence(torch.tensor(logprobs, dtype=torch.float64), reduction=reduction))
        row = (rollout["prompt"], rollout["reward"], rollout.get("visual_entropy"), confidence)
        rows.setdefault(rollout.get("step"), []).append(row)
    # texts that are integers are integers
    return {int(name): rows[name] for name in rows} if all(str(name).isdigit() for name in rows) else rows


numbers = st.one_of(st.none(), st.floats(-10, 10), st.integers(0, 3))
KINDS = (st.integers(-2, 3), st.sampled_from(("a", "b", "é", "1")))  # a log has one of them


@st.composite
def logs(draw, kinds=KINDS):
    """Rollouts in any order; a step, and some of the scores."""
    steps = draw(st.sampled_from((None, st.integers(0, 2), st.sampled_from(("x", "1")))))
    entries = {"prompt": draw(st.sampled_from(kinds)), "reward": numbers}
    entries |= {} if steps is None else {"step": steps}
    optional = {"visual_entropy": numbers, "confidence": numbers, "logprobs": st.lists(st.floats(-9, 0), max_size=3)}
    return draw(st.lists(st.fixed_dictionaries(entries, optional=optional), min_size=1, max_size=20))


@given(logs(), st.sampled_from(("sum", "mean")))
def test_steps_hold_the_rollouts_of_the_log_in_its_order(tmp_path_factory, rollouts, reduction):
    file = write(tmp_path_factory.mktemp("log") / "log", rollouts)
    steps = read_steps([file], confidence_reduction=reduction)
    wanted = expected(rollouts, reduction)
    assert as_rows(steps) == wanted
    names = list(wanted)
    assert [step.name for step in steps] == (sorted(names) if all(isinstance(n, int) for n in names) else names)
    for step in steps:
        for score in (step.visual_entropy, step.confidence):
            assert score is None or not score.isnan().all()
        assert list(dict.fromkeys(step.prompt_index.tolist())) == list(range(len(step.prompts)))


@given(logs(kinds=KINDS[:1]))
def test_parquet_is_read_as_json_lines_are(tmp_path_factory, rollouts):
    folder = tmp_path_factory.mktemp("log")
    for rollout in rollouts:
        if "step" in rollout:
            rollout["step"] = str(rollout["step"])  # a column has one type
    table = {key: [rollout.get(key) for rollout in rollouts] for key in KEYS if any(key in r for r in rollouts)}
    for key in ("reward", "visual_entropy", "confidence"):
        if key in table:
            table[key] = pyarrow.array(table[key], pyarrow.float64())
    table["response"] = ["text"] * len(rollouts)
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "log", row_group_size=3)
    assert as_rows(read_steps([folder / "log"])) == expected(rollouts)


def test_several_files_are_one_log_and_other_keys_can_be_named(tmp_path):
    first = write(tmp_path / "1", [{"uid": 1, "score": 1, "step": 0}])
    second = write(tmp_path / "2", [{"uid": 1, "score": 0, "step": 0, "reward": "left alone"}])
    (step,) = read_steps([first, second], keys={"prompt": "uid", "reward": "score"})
    assert step.rewards.tolist() == [1, 0]
    with pytest.raises(ValueError, match="1, line 1: expected the key 'prompt', got"):
        (read_steps([first]))
    with pytest.raises(ValueError, match=r"keys: expected names among prompt, reward, .*, got 'score'"):
        read_steps([first], keys={"score": "reward"})


@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 10**6))
def test_a_log_without_steps_is_cut_into_batches_of_whole_prompts(tmp_path_factory, prompts, size, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.repeat(np.arange(prompts), 3)).tolist()
    rollouts = [{"prompt": p, "reward": i, "visual_entropy": None if p % 2 else 1} for i, p in enumerate(order)]
    file = write(tmp_path_factory.mktemp("log") / "log", rollouts)
    (whole,) = read_steps([file])
    batches = read_steps([file], batch_prompts=size)
    assert [batch.name for batch in batches] == list(range(-(-prompts // size)))
    assert [p for batch in batches for p in batch.prompts] == whole.prompts
    assert all(len(batch.prompts) <= size for batch in batches)
    rows = [row for part in as_rows(batches).values() for row in part]
    assert sorted(rows, key=lambda row: row[1]) == as_rows([whole])[None]
    for batch in batches:
        assert (batch.visual_entropy is None) == all(p % 2 for p in batch.prompts)


def test_only_a_log_without_steps_can_be_cut(tmp_path):
    file = write(tmp_path / "log", [{"prompt": 1, "reward": 1, "step": 1}])
    with pytest.raises(ValueError, match=r"^batch_prompts: expected a log without steps, got one that has them$"):
        (read_steps([file], batch_prompts=2))
    with pytest.raises(ValueError, match="batch_prompts: expected a number of prompts >= 1, got 0"):
        read_steps([file], batch_prompts=0)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"prompt": 1, "reward": 1, "logprobs": -2}', r"logprobs: expected a list of numbers or null, got -2"),
        (b'{"prompt": 1, "reward": 1, "logprobs": ["x"]}', r"logprobs: expected a list of numbers or null, got \['x'"),
        (
            b'{"prompt": 1, "reward": 1, "logprobs": [-1], "mask": [1, 1]}',
            "logprobs: expected as many as the mask has, 2",
        ),
        (
            b'{"prompt": 1, "reward": 1, "logprobs": [-1], "mask": ["x"]}',
            r"mask: expected a list of 0 and 1, got \['x'",
        ),
        (
            b'{"prompt": 1, "reward": 1, "logprobs": [-1], "mask": [1], "loss_mask": [1]}',
            "expected one mask of the tokens, got mask, loss_mask: --key mask=KEY",
        ),
        (
            b'{"prompt": 1, "reward": {"accuracy": 1}}',
            r".*got an object with \['accuracy'\]: name one of them, as in --key rew",
        ),
        (b'{"prompt": 1, "reward": 1, "reward": 0}', r"expected a JSON object, got .* \(duplicate key 'reward'\)"),
        (b'{"prompt": 1, "reward": 1, "logprobs": [true]}', r"logprobs: expected a list of numbers or null"),
        (b'{"prompt": 1, "reward": 1, "logprobs": [-1' + b"0" * 400 + b"]}", "logprobs: expected a number within"),
        (b'{"prompt": 1, "reward": 1, "step": null}', "step: expected an integer or a string, got None"),
        (b'{"prompt": null, "reward": 1}', "prompt: expected a prompt id, got null"),
        (b'{"prompt": [NaN], "reward": 1}', r"prompt: expected what JSON can hold, got \[nan\]"),
        (b'{"prompt": ["a\\ud800"], "reward": 1}', r"prompt: expected text, got \['a\\ud800'\], half of a character"),
        (b'{"prompt": 1, "reward": 1, "step": 1' + b"0" * 400 + b"}", "step: expected an integer of up to 128 bits"),
        (b'{"prompt": "a\\ud800", "reward": 1}', r"prompt: expected text, got 'a\\ud800', half of a character"),
        (b'{"prompt": 1, "reward": 1, "step": 2}', "step: expected none as in the rows before, got an integer"),
        (b'{"prompt": 1, "reward": 1, "visual_entropy": "x"}', "visual_entropy: expected a number or null, got 'x'"),
        (b'{"prompt": 1, "reward": 1' + b"0" * 400 + b"}", "reward: expected a number within the range of float64"),
        (b"[]", r"expected a JSON object, got \[\]"),
        (b'{"prompt": "\xff", "reward": 1}', "expected a JSON object, got"),
        (b'{"prompt": 1, "reward": 1' + b"0" * 5000 + b"}", "expected a JSON object, got"),
        (b"[" * 100_000, "expected a JSON object, got"),
        (b'{"prompt": 1, "reward": ["' + b"x" * 1000 + b'"]}', r"reward: expected a number or null, got 'x+\.\.\.$"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(tmp_path, line, complaint):
    (tmp_path / "log").write_bytes(b'{"prompt": 1, "reward": 1}\n\n' + line)
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}/log, line 3: (.*: )?{complaint}"):
        (read_steps([tmp_path / "log"]))


def test_a_rollout_without_tokens_has_no_confidence(tmp_path):
    rows = [{"prompt": 1, "reward": 1, "logprobs": []}, {"prompt": 1, "reward": 1, "logprobs": [-1], "confidence": -9}]
    (step,) = read_steps([write(tmp_path / "log", rows)])
    assert str(step.confidence.tolist()) == "[nan, -9.0]"


def test_parquet_that_cannot_be_used_is_named(tmp_path):
    file = tmp_path / "log.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [1, 2], "score": [1.0, 0.0]}), file)
    with pytest.raises(ValueError, match=r"log\.parquet: expected the key 'reward', got \['prompt', 'score'\]"):
        (read_steps([file]))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [1, 2], "reward": ["1", "2"]}), file)
    with pytest.raises(ValueError, match=r"log\.parquet, row 1: reward: expected a number or null, got '1'"):
        (read_steps([file]))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [], "reward": []}), file)
    with pytest.raises(ValueError, match="expected at least one rollout, got none"):
        (read_steps([file]))
    file.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match="expected a parquet file, got one that cannot be read"):
        (read_steps([file]))


def test_an_empty_log_names_its_files(tmp_path):
    files = [write(tmp_path / name, []) for name in ("a", "b")]
    with pytest.raises(ValueError, match=r"/a, /\S+/b: expected at least one rollout, got none$"):
        (read_steps(files))


def test_numbers_and_ids_go_up_to_the_ends_of_their_ranges(tmp_path):
    largest = int(sys.float_info.max)
    rows = [{"prompt": 2**128 - 1, "reward": largest}, {"prompt": 1 - 2**128, "reward": -largest}]
    (step,) = read_steps([write(tmp_path / "log", rows)])
    assert step.prompts == [2**128 - 1, 1 - 2**128]
    assert step.rewards.tolist() == [largest, -largest]


def test_columns_that_are_not_asked_for_are_not_read(tmp_path):
    dates = pyarrow.array([2**30], pyarrow.int32()).cast(pyarrow.date32())  # which Python has no date for
    with pytest.raises((ValueError, OverflowError)):
        dates.to_pylist()
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [1], "reward": [0.5], "when": dates}), tmp_path / "log")
    (step,) = read_steps([tmp_path / "log"])
    assert step.rewards.tolist() == [0.5]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    file = tmp_path / "log.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [1], "reward": [1]}), file)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'durian-adv\[report\]'"):
        (read_steps([file]))


def test_progress_counts_the_bytes_of_every_file(tmp_path):
    lines = write(tmp_path / "lines", [{"prompt": 1, "reward": 1}] * 9)
    table = tmp_path / "table"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [1] * 9, "reward": [1] * 9}), table)
    for file in (lines, table):
        read = []
        (read_steps([file], progress=read.append))
        assert sum(read) == file.stat().st_size


def test_memory_is_some_bytes_per_rollout_and_the_text_of_each_prompt_once(tmp_path):
    row = '{"prompt": "%064d", "reward": 1, "step": %d, "confidence": -1.5}\n'

    def peak(steps):
        file = tmp_path / "log"
        file.write_text("".join(row % (i // 8 % 50, i // 400) for i in range(400 * steps)))
        tracemalloc.start()
        assert sum(len(step.rewards) for step in read_log([file]).steps) == 400 * steps
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1)  # what is loaded but once
    assert peak(100) - peak(10) < 90 * 400 * 48  # bytes: 32 each, and arrays grow ahead


def test_batches_keep_the_order_of_the_log_and_every_score(tmp_path):
    order = (0, 2, 1, 0, 3, 1, 2, 3)
    rows = [{"prompt": f"p{i}", "reward": n, "visual_entropy": n / 2, "confidence": -n} for n, i in enumerate(order)]
    first, second = read_steps([write(tmp_path / "log", rows)], batch_prompts=2)
    # prompts by their first rollout: p0 and p2, then p1 and p3
    for step, wanted in ((first, [0, 1, 3, 6]), (second, [2, 4, 5, 7])):
        assert step.rewards.tolist() == wanted
        assert step.visual_entropy.tolist() == [n / 2 for n in wanted]
        assert step.confidence.tolist() == [-n for n in wanted]
        assert [step.prompts[i] for i in step.prompt_index.tolist()] == [f"p{order[n]}" for n in wanted]


def test_a_step_that_memory_may_not_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(step_log, "_LARGEST", 3)
    rows = [{"prompt": i // 2, "reward": i % 2} for i in range(4)]
    file = write(tmp_path / "log", rows)
    told = "log: expected at most 3 rollouts per step, got 4 in a log without steps, which is one step; --batch-prompts"
    with pytest.raises(ValueError, match=f"{told} makes steps of a log without$"):
        (read_steps([file]))
    two = [write(tmp_path / "one", rows[:2]), write(tmp_path / "two", rows[2:])]
    with pytest.raises(ValueError, match=r"one, [^,]*two: expected at most 3 rollouts per step, got 4"):
        (read_steps(two))
    assert len(read_steps([file], batch_prompts=1)) == 2
    assert len(read_steps([write(tmp_path / "log", rows[:3])])) == 1
    assert len(read_steps([write(tmp_path / "log", [{**row, "step": row["prompt"]} for row in rows])])) == 2
    with pytest.raises(ValueError, match="expected at most 3 rollouts per step, got 4 in step 'a'; --batch-prompts"):
        (read_steps([write(tmp_path / "log", [{**row, "step": "a"} for row in rows])]))


def test_of_a_parquet_file_the_row_is_named_and_its_bytes_are_counted(tmp_path):
    file = tmp_path / "log"
    for rewards in ([1.0], [1.0, 2.0, None]):
        pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"] * len(rewards), "reward": rewards}), file)
        read = []
        (read_steps([file], progress=read.append))
        assert sum(read) == file.stat().st_size
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", "b", None], "reward": [1.0] * 3}), file)
    with pytest.raises(ValueError, match=r"log, row 3: prompt: expected a prompt id, got null$"):
        (read_steps([file]))


@pytest.mark.parametrize("size", [55, 56, 57, 58, 70])
def test_a_value_in_an_error_is_cut_after_60_characters(tmp_path, size):
    file = write(tmp_path / "log", [{"prompt": 1, "reward": f"[{'x' * size}]"}])
    shown = f"'[{'x' * size}]'"
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    with pytest.raises(ValueError, match="expected a number or null, got ") as raised:
        (read_steps([file]))
    assert str(raised.value).endswith(f"got {shown}")
