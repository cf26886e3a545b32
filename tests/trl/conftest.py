"""Settings of the TRL tests: nothing is fetched, one thread, no reports."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from transformers.utils import logging

torch.set_num_threads(1)
logging.set_verbosity_error()


@pytest.fixture
def make(tmp_path):
    """``recorded.make`` with an output directory of this test's own."""
    import recorded

    return lambda *args, **kwargs: recorded.make(*args, **{"output_dir": str(tmp_path / "out"), **kwargs})
