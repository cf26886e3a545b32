"""Test settings: Hypothesis profiles, threads, interrupts."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

_COMMON = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("ci", max_examples=100, derandomize=True, **_COMMON)
settings.register_profile("nightly", max_examples=5000, **_COMMON)
settings.register_profile(  # a first look: few examples, and failures are shown as found
    "quick", max_examples=30, derandomize=True, phases=[Phase.explicit, Phase.generate], **_COMMON
)
settings.register_profile(  # many runs of the whole suite: see docs/trust.md
    "mutants", max_examples=6, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate], **_COMMON
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell leaves it to what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

with contextlib.suppress(ModuleNotFoundError):
    from tqdm import tqdm

    # its own is shared by forks: a mutant that is killed while it holds it would stop all that come after
    tqdm.set_lock(threading.RLock())

torch.set_num_threads(1)  # the arrays are small: a second thread costs more than it saves


@pytest.fixture
def fresh_dynamo():
    """A compiler that remembers nothing of the tests before."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
