"""Settings of the OpenRLHF tests: nothing is fetched, one thread, and names for the two packages that need a GPU."""

import importlib.metadata
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["DS_ACCELERATOR"] = "cpu"
sys.path.append(str(Path(__file__).resolve().parent / "absent"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "trl"))  # for the tiny models

import pytest
import torch
from packaging.version import Version
from transformers.utils import logging

from durian_adv.adapters.openrlhf.settings import OLDEST_TESTED

WORKS = Version(importlib.metadata.version("openrlhf")) >= Version(OLDEST_TESTED)
collect_ignore = [
    file.name
    for file in Path(__file__).parent.glob("test_*.py")
    if (file.name == "test_openrlhf_refused.py") == WORKS  # all the others if it does not work
]

torch.set_num_threads(1)
logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def options(monkeypatch):
    """Set the options of Durian, of which there are none at the start of a test."""
    for name in list(os.environ):
        if name.startswith("DURIAN_"):
            monkeypatch.delenv(name)
    return lambda text: monkeypatch.setenv("DURIAN_OPTIONS", text)
