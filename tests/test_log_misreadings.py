"""The silent misreadings that were found, each with the numbers that it gave: now the right value, or a finding.

A finding that says the grouping is broken leaves no verdict; ``report``, ``metrics`` and ``curate`` tell the same.
"""

import csv
import gzip
import json
import math
import os
import subprocess
import sys

import pytest

from durian_adv.cli import main
from durian_adv.data.logs.steps import Options, read_log

NO_VERDICT = "No verdict: this log is not read as it was sampled."


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def metrics(capsys, *arguments):
    status, out, err = run(capsys, "metrics", *arguments)
    assert status == 0
    return [json.loads(line) for line in out.splitlines()], err


def report(capsys, tmp_path, *arguments):
    status, out, _ = run(capsys, "report", *arguments, "--out", tmp_path / "report")
    assert status == 0
    return out.splitlines()[0], (tmp_path / "report/report.html").read_text()


def find_x():
    """ "Find x." of image A (8 x 0) and of image B (8 x 1), beside 30 other prompts of mixed rewards."""
    rows = [
        {"input": f"question {k // 8}", "image": f"{k // 8}.png", "score": float(k % 8 < 1 + k // 8 % 6)}
        for k in range(240)
    ]
    rows[:0] = [{"input": "Find x.", "image": "a.png", "score": 0.0} for _ in range(8)]
    rows += [{"input": "Find x.", "image": "b.png", "score": 1.0} for _ in range(8)]
    return rows


def test_1_an_id_that_two_images_share_is_said_and_two_columns_mend_it(tmp_path, capsys):
    log = lines(tmp_path / "log", find_x())
    keys = ("--key", "prompt=input", "--key", "reward=score")
    (found,), err = metrics(capsys, log, *keys)
    assert (found["durian/prompts"], found["durian/no_signal_share"]) == (31, 0)
    assert "1 of 31 prompts have a multiple of the usual 8 rollouts. 30 prompts x 8 rollouts, 1 x 16." in err
    assert "input+image" in err
    headline, page = report(capsys, tmp_path, log, *keys)
    assert headline == NO_VERDICT
    assert "1 of 31 prompts have a multiple of the usual 8 rollouts" in page
    keys = ("--key", "prompt=input+image", "--key", "reward=score")
    (found,), err = metrics(capsys, log, *keys)
    assert (found["durian/prompts"], found["durian/no_signal_share"]) == (32, 0.0625)
    assert "multiple of the usual" not in err
    assert report(capsys, tmp_path, log, *keys)[0] != NO_VERDICT


def test_1_curate_says_that_a_prompt_of_16_samplings_may_be_two(tmp_path, capsys):
    log = lines(tmp_path / "log.jsonl", [{**row, "correct": row["score"]} for row in find_x()])
    stages = (tmp_path / "1.jsonl", tmp_path / "2.jsonl")
    _, _, err = run(capsys, "curate", log, *stages, "--prompt", "input")
    assert "1 of 31 prompts have a multiple of the usual 8 rollouts. 30 prompts x 8 rollouts, 1 x 16." in err
    assert "--prompt input image" in err
    assert any(json.loads(line)["input"] == "Find x." for stage in stages for line in stage.read_text().splitlines())
    for stage in stages:
        stage.unlink()
    _, _, err = run(capsys, "curate", log, *stages, "--prompt", "input", "image")
    assert "multiple of the usual" not in err
    assert "1 too hard" in err
    assert "1 too easy" in err
    assert not any(
        json.loads(line)["input"] == "Find x." for stage in stages for line in stage.read_text().splitlines()
    )


def test_1_entropies_that_differ_within_a_prompt_are_said(tmp_path, capsys):
    rows = [{"prompt": k // 8, "reward": k % 2, "visual_entropy": float(k // 8)} for k in range(64)]
    log = lines(tmp_path / "log", rows)
    assert "several visual entropies" not in metrics(capsys, log)[1]
    rows[0]["visual_entropy"] = 9.0
    log = lines(tmp_path / "log", rows)
    assert "1 of 8 prompts have several visual entropies" in metrics(capsys, log)[1]
    assert report(capsys, tmp_path, log)[0] == NO_VERDICT


def verl(uid):
    return [
        {"input": "Find x.", "output": "4", "gts": "4", "score": float(k % 8 < k // 8 % 9), "step": 1, "uid": uid(k)}
        for k in range(384)
    ]


def test_2_the_uid_of_a_row_is_not_taken_for_the_prompt(tmp_path, capsys):
    log = lines(tmp_path / "1.jsonl", verl(lambda k: f"{k // 8}_{k % 8}_0"))
    (found,), err = metrics(capsys, log)
    assert found["durian/prompts"] == 48
    assert "read as verl rollouts: 384 rollouts in 1 step, 48 prompts x 8 rollouts; a prompt is the first" in err
    keys = ("--key", "prompt=uid")
    (found,), err = metrics(capsys, log, *keys)
    assert "Every prompt has one rollout: 384 ids for 384 rollouts" in err
    headline, page = report(capsys, tmp_path, log, *keys)
    assert headline == NO_VERDICT
    assert "verl&#39;s uid is one" in page


def epochs(tmp_path):
    """Two epochs of 16 prompts x 8, with accuracies 1/8 and then 7/8, a file each."""
    for epoch, right in ((1, 1), (2, 7)):
        rows = [{"prompt": f"p{k // 8}", "reward": float(k % 8 < right)} for k in range(128)]
        lines(tmp_path / f"epoch{epoch}.jsonl", rows)
    return [tmp_path / f"epoch{epoch}.jsonl" for epoch in (1, 2)]


def test_3_steps_that_are_lost_are_said_and_the_file_s_name_mends_it(tmp_path, capsys):
    files = epochs(tmp_path)
    (found,), err = metrics(capsys, *files)
    assert (found["durian/rollouts"], found["durian/extreme_ratio"]) == (256, 0)
    assert "16 of 16 prompts have rollouts in several files, and no row names a step" in err
    assert report(capsys, tmp_path, *files)[0] == NO_VERDICT
    found, err = metrics(capsys, *files, "--file-per-step")
    assert [(row["step"], row["durian/extreme_ratio"]) for row in found] == [(1, 1.0), (2, 1.0)]
    assert "several files" not in err
    whole = tmp_path / "whole.jsonl"
    whole.write_text("".join(file.read_text() for file in files))
    _, err = metrics(capsys, whole)
    assert "Prompts come back: 16 times a prompt of 16 rollouts goes on after others, 8 rollouts at a time" in err
    assert report(capsys, tmp_path, whole)[0] == NO_VERDICT


def test_4_tokens_that_a_mask_leaves_out_do_not_count(tmp_path, capsys):
    infinite = -math.inf  # which Python writes as -Infinity
    tokens = {"logprobs": [0.0, 0.0, -0.5, -0.5, None, infinite, -0.1], "loss_mask": [0, 0, 1, 1, 1, 1, 0]}
    log = lines(tmp_path / "log", [{"prompt": 0, "reward": k, **tokens} for k in (0, 1)])
    (found,), err = metrics(capsys, log, "--confidence-reduction", "mean")
    assert found["durian/confidence_mean"] == -0.5
    assert "log-probabilities where loss_mask is 1" in err
    rows = [{"prompt": 0, "reward": k, "logprobs": [0.0, 0.0, -0.5, -0.5, -0.1, 0.0]} for k in (0, 1)]
    (found,), _ = metrics(capsys, lines(tmp_path / "log", rows), "--confidence-reduction", "mean")
    assert found["durian/confidence_mean"] == pytest.approx(-0.183, abs=5e-4)  # no mask is there


def test_5_rewards_from_0_to_100_have_a_threshold_that_is_said(tmp_path, capsys):
    rows = [{"prompt": k // 8, "reward": float(k * 37 % 101)} for k in range(808)]
    log = lines(tmp_path / "log", rows)
    (found,), err = metrics(capsys, log)
    assert "Rewards from 0 to 100, 101 distinct values: above 50 counts as correct" in err
    assert "--success-threshold" in err
    (above,), err = metrics(capsys, log, "--success-threshold", "0.5")
    assert "distinct values" not in err
    assert found["durian/extreme_ratio"] != above["durian/extreme_ratio"]
    _, page = report(capsys, tmp_path, log)
    assert "50% of them correct (above 50)" in " ".join(page.split()).replace("\n", " ")
    assert "Rewards from 0 to 100" in page


def test_6_a_pipe_loses_no_rollout(tmp_path):
    rows = [{"prompt": k // 8, "reward": float(k % 3 == 0), "note": "x" * 200} for k in range(800)]
    (tmp_path / "log.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    command = f'"{sys.executable}" -m durian_adv metrics <(zcat "{tmp_path}/log.gz")'
    out = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert json.loads(out.stdout)["durian/rollouts"] == 800


def test_7_steps_are_in_the_order_of_their_numbers_everywhere(tmp_path, capsys):
    for step in (1, 10, 11, 2):
        lines(tmp_path / f"{step}.jsonl", [{"prompt": k // 2, "reward": k % 2, "step": step} for k in range(8)])
    files = sorted(tmp_path.glob("*.jsonl"))
    assert [file.name for file in files] == ["1.jsonl", "10.jsonl", "11.jsonl", "2.jsonl"]
    assert [row["step"] for row in metrics(capsys, *files)[0]] == [1, 2, 10, 11]
    _, page = report(capsys, tmp_path, *files)
    with (tmp_path / "report/steps.csv").open() as table:
        assert [row["step"] for row in csv.DictReader(table)] == ["1", "2", "10", "11"]
    assert [page.index(f"<tr><td>{step}</td>") for step in (1, 2, 10, 11)] == sorted(
        page.index(f"<tr><td>{step}</td>") for step in (1, 2, 10, 11)
    )


def test_8_what_is_undefined_is_null_and_not_orthogonal(tmp_path, capsys):
    log = lines(tmp_path / "log", [{"prompt": k // 4, "reward": 1.0, "confidence": -1.0} for k in range(16)])
    (found,), _ = metrics(capsys, log)
    cosines = {name: value for name, value in found.items() if "cosine" in name}
    assert cosines
    assert set(cosines.values()) == {None}


def test_8_numbers_that_a_metric_has_not_are_null_in_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("durian_adv.cli.metrics.durian_metrics", lambda *_, **__: {"durian/cosine": math.nan})
    log = lines(tmp_path / "log", [{"prompt": 0, "reward": 1.0}])
    assert metrics(capsys, log)[0] == [{"durian/cosine": None}]


def test_a_step_s_name_does_not_move_the_terminal(tmp_path, capsys):
    log = lines(tmp_path / "log", [{"prompt": 0, "reward": 1.0, "step": "\x1b[31mred\n"}])
    _, err = metrics(capsys, log)
    assert "\x1b" not in err
    assert "step \\x1b[31mred\\n: no rollout has confidence" in err


def test_reading_says_as_what_and_how_much(tmp_path):
    log = read_log([lines(tmp_path / "log", [{"prompt": k // 2, "reward": 1} for k in range(5)])], Options())
    assert log.read_as == "plain rollouts: 5 rollouts in 1 step, 2 prompts x 2 rollouts, 1 x 1"
