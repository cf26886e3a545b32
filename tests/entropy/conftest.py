"""Settings of the entropy tests: nothing is fetched, one thread; tiny models are those of tests/trl."""

import os
import shutil
import sys
import tempfile

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


@pytest.fixture(scope="session")
def cluster():
    """A Ray of this session's own."""
    import ray  # not in the environment of the oldest transformers

    home = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the names of sockets below it must be short
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        _temp_dir=home,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
    )
    yield
    ray.shutdown()
    shutil.rmtree(home, ignore_errors=True)
