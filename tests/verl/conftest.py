"""Settings of the verl tests: a CPU platform, nothing is fetched, one thread, a Ray of their own."""

import os
import tempfile
from pathlib import Path

import training

os.environ.update(training.environment())

import pytest
import torch

torch.set_num_threads(1)

# for a verl that has v0 alone
OLDER = ("test_verl_estimator.py", "test_verl_older.py", "test_verl_refused.py", "test_verl_training.py")
collect_ignore = (
    ["test_verl_older.py"]
    if training.V1
    else [file.name for file in Path(__file__).parent.glob("test_*.py") if file.name not in OLDER]
)


@pytest.fixture(scope="session")
def local_ray():
    """A local Ray with room of its own."""
    import ray

    with tempfile.TemporaryDirectory(prefix="verl") as folder:
        ray.init(num_cpus=8, num_gpus=1, include_dashboard=False, _temp_dir=folder, object_store_memory=200_000_000)
        yield ray
        ray.shutdown()


@pytest.fixture(scope="session")
def queue(local_ray):
    """verl's TransferQueue, with what verl configures."""
    import transfer_queue
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer").transfer_queue
    config.enable = True
    config.backend.SimpleStorage.num_data_storage_units = 1
    transfer_queue.init(config)
    yield transfer_queue
    transfer_queue.close()
