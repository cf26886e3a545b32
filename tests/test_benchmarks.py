"""The machinery of the benchmarks. Nothing here is timed."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

import durian_adv
from benchmarks import amounts, gpu, log_size, records, timing
from benchmarks.confidence import peak_memory
from benchmarks.records import Measurement
from durian_adv.data.logs.steps import read_log


def measurement(**changes):
    values = {"p20": 1.0, "p50": 2.0, "p80": 3.0, "ratio_p20": 0.5, "ratio": 1.0, "ratio_p80": 2.0} | changes
    return Measurement("a case", "this", "that", unit="us", **values)


def test_a_record_comes_back_as_it_was_written(tmp_path):
    first = measurement(p50=1234.0, target="<= 3", figure="a, figure", size=8, size_unit="rewards")
    written = [first, measurement(ratio=0.25)]
    origin = records.origin(packages=("einops",), others=0.25)
    records.write(tmp_path / "x.csv", written, origin)
    assert records.read(tmp_path / "x.csv") == (written, origin)


@pytest.mark.parametrize(
    ("ratio", "target", "met"),
    [
        (3.9, "<= 4", True),
        (4.0, "<= 4", True),
        (4.1, "<= 4", False),
        (99.0, ">= 100", False),
        (100.0, ">= 100", True),
        (0.59, "<= 0.6", True),
    ],
)
def test_a_target_is_met_on_its_own_side(ratio, target, met):
    assert measurement(ratio=ratio, target=target).met is met


def test_the_ratio_is_the_median_of_the_rounds_ratios():
    # the medians are 3 and 2, so their ratio would be 1.5
    found = timing.compare("a case", ("this", [1.0, 3.0, 12.0]), ("that", [1.0, 2.0, 3.0]), "us")
    assert (found.p50, found.ratio) == (3.0, 1.5)
    found = timing.compare("a case", ("this", [1.0, 3.0, 12.0]), ("that", [3.0, 2.0, 1.0]), "us")
    assert (found.p50, found.ratio) == (3.0, 1.5)
    found = timing.compare("a case", ("this", [8.0, 3.0, 12.0]), ("that", [2.0, 3.0, 4.0]), "us")
    assert (found.p50, found.ratio) == (8.0, 3.0)


def test_quantiles_are_those_of_the_rounds():
    found = timing.compare("a case", ("this", [float(i) for i in range(11)]), ("that", [1.0] * 11), "us")
    assert (found.p20, found.p50, found.p80) == (2.0, 5.0, 8.0)
    assert (found.ratio_p20, found.ratio, found.ratio_p80) == (2.0, 5.0, 8.0)


def test_every_round_runs_every_function_and_each_pair_gets_its_row(monkeypatch):
    monkeypatch.setattr(timing, "ROUND_SECONDS", 1e-9)  # one call per round
    runs = Counter()
    case = timing.Case(
        "a case",
        lambda: {name: lambda name=name: runs.update([name]) for name in "abc"},
        targets={("c", "b"): ">= 2", ("b", "a"): "<= 9"},
        rounds=4,
        figure="a figure",
        size=3,
        size_unit="things",
    )
    found = timing.measure(case, records.Watch())
    assert set(runs.values()) == {1 + 1 + 4}  # a first call, one to count by, the rounds
    assert [(m.candidate, m.baseline, m.target, m.figure) for m in found] == [
        ("a", "a", "", "a figure"),
        ("b", "a", "<= 9", "a figure"),
        ("c", "a", "", "a figure"),
        ("c", "b", ">= 2", ""),
    ]
    assert {(m.rounds, m.calls, m.unit) for m in found} == {(4, 1, "us")}


def test_peak_memory_counts_what_is_held_at_one_time():
    x = torch.zeros(1000, dtype=torch.float64)
    assert peak_memory(lambda: x) == 0
    assert peak_memory(lambda: x.clone()) == 8000
    assert peak_memory(lambda: x.clone().neg().neg().neg()) == 16000  # each is freed after the next one is made
    assert peak_memory(lambda: x.clone() + x.clone()) == 24000


def test_what_others_used_is_known_once_something_was_watched():
    watch = records.Watch()
    assert math.isnan(watch.others)
    for _ in range(2):
        with watch:
            sum(range(1000))
    assert watch.others >= 0 or not Path("/proc/stat").exists()


def test_both_forms_of_a_long_log_hold_the_same_rollouts(tmp_path):
    logs = []
    for form in log_size.FORMS:
        log_size.write_log(tmp_path / f"log{form}", 5_000)
        logs.append(list(read_log([tmp_path / f"log{form}"]).steps))
    for first, second in zip(*logs, strict=True):
        assert first.name == second.name
        pairs = zip(first[2:], second[2:], strict=True)
        assert all(a is b is None or torch.equal(a, b) for a, b in pairs)
    assert [len(step.rewards) for step in logs[0]] == [4096, 904]
    assert all(0.2 < step.rewards.mean() < 0.8 for step in logs[0])


def test_what_a_command_takes_is_measured_against_a_hundredth_of_the_log(monkeypatch):
    monkeypatch.setattr(log_size, "FORMS", (".jsonl",))
    found = log_size.measure("metrics", 3_000, records.Watch())
    assert [(m.unit, m.size, m.candidate, m.baseline) for m in found] == [
        ("us", 30, "30 rollouts", "30 rollouts"),
        ("bytes", 30, "30 rollouts", "30 rollouts"),
        ("us", 3_000, "3,000 rollouts", "30 rollouts"),
        ("bytes", 3_000, "3,000 rollouts", "30 rollouts"),
    ]
    assert found[3].ratio == found[3].p50 / found[1].p50
    assert 50e6 < found[1].p50 < 5e9  # a process that imports torch
    assert log_size.table(found).count("durian-adv metrics, jsonl") == 2


def test_a_command_that_fails_is_not_measured(tmp_path):
    with pytest.raises(RuntimeError, match=r"durian-adv metrics: expected exit status 0, got 2: .*No such file"):
        log_size.cost(["metrics", str(tmp_path / "none")])


def test_the_gpu_script_runs_dry_and_records_what_it_would_measure(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "compiled", durian_adv)  # what is not compiled needs no compiler
    monkeypatch.setattr(gpu, "DRY_RECORD", tmp_path / "dry.csv")
    gpu.main(["--dry-run"])
    measurements, origin = records.read(tmp_path / "dry.csv")
    assert origin.device == "cpu"
    waits = [m for m in measurements if m.unit == "waits"]
    assert {"durian_advantage, compiled", "quantile_buckets", "rloo_advantage"} <= {m.candidate for m in waits}
    aims = Counter(m.target for m in measurements if m.target)
    # kernels; nothing waits; the replay's and the intervals' time; the bandwidth with and without masks
    assert aims == {"<= 7": 2, "<= 0": len(waits), "<= 1": 2, ">= 0.85": 3}


def test_the_gpu_script_refuses_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu.main([])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.5, "us", "0.5 µs"),
        (999.0, "us", "999 µs"),
        (1234.0, "us", "1.23 ms"),
        (4.436e4, "us", "44.4 ms"),
        (1.13e6, "us", "1.13 s"),
        (7.553e7, "bytes", "75.5 MB"),
    ],
)
def test_amounts_are_written_in_the_unit_that_suits_them(value, unit, text):
    assert amounts.amount(value, unit) == text
