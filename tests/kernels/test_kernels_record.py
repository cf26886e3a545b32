"""What a GPU would launch, held by a record and by limits of its own."""

import csv
import re
import subprocess
import sys
from importlib import metadata

import generated
import pytest
import record
import target
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import durian_adv
from durian_adv import compiled

MOST_KERNELS = 7  # of a call on 512 x 8 with both scores
OPAQUE = {"eigen_entropy", "certified_entropy_intervals", "certified_entropy_buckets"}


def faults(row):
    """What a call that is to be fused does and may not."""
    broken = [] if row["waits"] == "0" else ["waits"]
    broken += ["others"] if row["others"] else []
    broken += ["kernels"] if int(row["kernels"]) > MOST_KERNELS else []
    return broken + (["spilled bytes"] if row["function"].startswith("durian") and row["spilled bytes"] != "0" else [])


@pytest.fixture(scope="session")
def rows(capability, first):
    """Made in a process of their own: see ``record.rows``."""
    command = [sys.executable, record.__file__, str(capability), *(["--first"] if first else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return list(csv.DictReader(done.stdout.splitlines()))


def test_the_record_names_every_compiled_function():
    for capability in record.CAPABILITIES:
        names = {row["function"] for row in record.read(capability, first=False)}
        assert names == set(compiled.__all__)


def test_the_kernels_are_those_of_the_record(rows, capability, first):
    recorded = record.read(capability, first)
    differ = [f"{new} instead of {old}" for new, old in zip(rows, recorded, strict=True) if new != old]
    assert not differ, "\n".join(["python tests/kernels/record.py writes a new record", *differ])


def test_dense_calls_are_fused(rows):
    for row in rows:
        if row["function"] in OPAQUE:
            assert row["kernels"] == "0"
            assert re.fullmatch(r"1 torch\.ops\.durian_adv\.\w+\.default", row["others"])
        elif "8192 prompts" not in row["call"]:
            assert faults(row) == [], row


def test_beyond_4096_prompts_buckets_are_sorted_and_scattered(rows, first):
    if first:
        pytest.skip("only the first call of every function is looked at")
    (row,) = (row for row in rows if "8192 prompts" in row["call"])
    assert "sort" in row["others"]
    assert (row["waits"], row["spilled bytes"]) == ("0", "0")


def sorted_first(rewards, entropy):
    return durian_adv.durian_advantage(rewards, visual_entropy=entropy.sort().values)


def read_first(rewards, entropy):
    size = entropy.long().amax().item()
    torch._check(size >= 2)
    return rewards.new_ones(size) * 2


@pytest.mark.parametrize(("function", "broken"), [(sorted_first, "others"), (read_first, "waits")])
def test_an_extra_sort_and_a_wait_are_seen(function, broken, capability):
    with FakeTensorMode():
        inputs = torch.empty(512, 8, device="cuda"), torch.empty(512, device="cuda")
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        code = generated.code_of(function, *inputs)
    assert broken in faults(record.row_of(capability, "a", "b", code))


def test_deterministic_algorithms_change_no_kernel():
    call = record.calls_of_device()[1]
    torch.use_deterministic_algorithms(True)
    try:
        code = generated.code_of(call.function, *call.args, **call.kwargs)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(code.launches) <= MOST_KERNELS
    assert not code.extern


@pytest.mark.parametrize("name", sorted(target.WRITTEN_FOR))
def test_another_version_is_refused_by_name(name, monkeypatch):
    versions = {package: metadata.version(package) for package in target.WRITTEN_FOR} | {name: "9.9.9"}
    monkeypatch.setattr(target.metadata, "version", versions.get)
    with pytest.raises(RuntimeError, match=f"{name} .*, but 9.9.9 is installed"):
        target.check_versions()
