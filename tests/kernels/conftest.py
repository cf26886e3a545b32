"""Settings of the tests: the target that this process believes in, before anything is imported."""

import os
import shutil

import pytest
import target

if shutil.which("g++") is None:  # as for what compiles on a CPU: skipped, and said
    pytest.exit("skipped: tests/kernels needs g++", returncode=0)
CAPABILITY = int(os.environ.get("KERNELS_CAPABILITY", "90"))
target.install(CAPABILITY)

import torch  # noqa: E402  # after the target is there

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--first", action="store_true", help="only the first call of every function")


@pytest.fixture(scope="session")
def first(pytestconfig):
    """Whether only the first call of every function is looked at."""
    return pytestconfig.getoption("first")


@pytest.fixture(scope="session")
def capability():
    """The compute capability, times ten."""
    return CAPABILITY
