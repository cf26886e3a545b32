"""Settings of the tests: the target that this process believes in, before anything is imported."""

import os

import target

CAPABILITY = int(os.environ.get("KERNELS_CAPABILITY", "90"))
target.install(CAPABILITY)

import pytest  # noqa: E402  # after the target is there
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def capability():
    """The compute capability, times ten."""
    return CAPABILITY
