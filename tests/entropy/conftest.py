"""Settings of the entropy tests on released packages: nothing is fetched, one thread; tiny models are those of tests/trl."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import tiny
import torch
from transformers.utils import logging

torch.set_num_threads(1)
logging.set_verbosity_error()


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of tiny models with random weights, as ``save_pretrained`` leaves them; and the models themselves."""
    saved = {}
    for family in ("qwen25vl", "qwen3vl", "llava", "smolvlm"):
        model, processor = tiny.build(family)
        saved[family] = tmp_path_factory.mktemp(family), model.eval(), processor
        model.save_pretrained(saved[family][0])
        processor.image_processor.save_pretrained(saved[family][0])
    return saved
