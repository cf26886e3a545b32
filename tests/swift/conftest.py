"""Settings of the ms-swift tests: nothing is fetched, one thread, no GPU, and a training in this process."""

import os

os.environ.update(
    {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "USE_HF": "1",
    }
)

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of the tiny model."""
    folder = tmp_path_factory.mktemp("model")
    tiny.save_model(folder)
    return folder


@pytest.fixture
def train(model, tmp_path):
    """``train(rows, option=value, ...)`` runs ``swift rlhf`` in this process and returns what was recorded."""
    import recording
    from swift.pipelines import rlhf_main

    def run(rows=None, plugins=("recorded.py",), durian=None, **options):
        recording.TRAINERS.clear()
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        out.mkdir()
        data = tiny.save_dataset(out / "data.jsonl", tiny.rows() if rows is None else rows)
        try:
            rlhf_main(tiny.arguments(model, data, out, plugins, model_kwargs=durian, **options))
        finally:
            for name in recording.OPTIONS:  # ms-swift has made them of model_kwargs
                os.environ.pop(name, None)
        (trainer,) = recording.TRAINERS
        return SimpleNamespace(trainer=trainer, batches=trainer.batches, out=Path(trainer.args.output_dir))

    return run
