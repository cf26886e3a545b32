"""A few hundred of the calls that ``make fuzz`` makes 100,000 of, and what its record says."""

import csv
import inspect

import fuzz
import pytest
import torch
from test_api import public_names

import durian_adv
from durian_adv import baselines, diagnostics, weighting, window
from durian_adv._src import checks, scales


def test_whatever_comes_the_result_is_right_or_the_error_the_documented_one():
    counts = fuzz.counted(800, start=1000)
    outcomes = {outcome for _, _, outcome in counts}
    assert outcomes == {"right", "documented error"}
    assert {name for what, name, _ in counts if what == "function"} == set(fuzz.FUNCTIONS)


def test_every_public_function_of_tensors_is_called():
    modules = (durian_adv, baselines, diagnostics, weighting, window)
    public = {name for module in modules for name in public_names(module) if inspect.isfunction(getattr(module, name))}
    ready_made = {n for n in weighting.__all__ if not n.endswith(("_weights", "_advantage"))}
    # group_kinds is called on what prompt_outcomes returns, the other two take no tensor
    assert set(fuzz.FUNCTIONS) == public - ready_made - {"group_kinds", "load_window", "too_few_prompts"}


def test_a_wrong_statistic_is_found(monkeypatch):
    right = scales.own_std
    monkeypatch.setattr(scales, "own_std", lambda prompts, correction: right(prompts, 1))
    with pytest.raises(AssertionError):
        fuzz.counted(4000, start=1000)


def test_an_argument_that_is_not_checked_is_found(monkeypatch):
    monkeypatch.setattr(checks, "same_device", lambda *_: None)
    monkeypatch.setattr(checks, "shape", lambda *_: None)
    with pytest.raises((AssertionError, RuntimeError, IndexError, BaseExceptionGroup, pytest.fail.Exception)):
        fuzz.counted(800, start=1000)


def test_the_process_is_left_as_it_was():
    for name in fuzz.ENVIRONMENTS:
        with fuzz.environment(name):
            pass
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_record_has_100_000_calls_of_every_function_and_kind():
    with fuzz.RECORD.open(newline="") as file:
        rows = list(csv.DictReader(file))
    calls = {}
    for row in rows:
        calls.setdefault(row["by"], {}).setdefault(row["name"], 0)
        calls[row["by"]][row["name"]] += int(row["calls"])
    assert sum(calls["function"].values()) >= 100_000
    assert set(calls["function"]) == set(fuzz.FUNCTIONS)
    assert set(calls["environment"]) == set(fuzz.ENVIRONMENTS)
    assert set(calls["memory"]) == set(fuzz.MEMORY)
    assert set(calls["dtype"]) == {str(dtype) for dtype in fuzz.DTYPES}
    assert set(calls["fault"]) == set(fuzz.FAULTS)
    assert {row["outcome"] for row in rows} == {"right", "documented error"}
