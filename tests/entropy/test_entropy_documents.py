"""The examples of the pages that need released packages, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import ray
from datasets import Dataset, Features, Image, Value
from photographs import crop, encoded

from durian_adv.data.hints import with_hint

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def block(page, word):
    """The one Python block without a prompt that holds a word."""
    found = [b for b in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL) if ">>>" not in b]
    (text,) = [b for b in found if word in b]
    return text


def test_datasets_map(tmp_path):
    rows = {"image": [crop(i, (84, 84)) for i in range(3)]}
    Dataset.from_dict(rows, features=Features({"image": Image()})).save_to_disk(tmp_path)
    names = {"folder": str(tmp_path), "encoder": "efficientnet-lite0"}
    exec(block("entropy.md", "load_from_disk"), names)
    assert all(value > 0 for value in names["scored"]["visual_entropy"])


def test_ray_on_a_tower(cluster, tmp_path, models):
    table = pa.table({"image": [encoded(crop(i, (84, 84))) for i in range(4)]})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    encoder = str(models["qwen25vl"][0])
    names = {
        "files": str(tmp_path / "in.parquet"),
        "encoder": encoder,
        "actors": 1,
        "gpus": 0,
        "output": str(tmp_path / "out"),
    }
    exec(block("entropy.md", "import ray"), names)
    values = [row["visual_entropy"] for row in ray.data.read_parquet(str(tmp_path / "out")).take_all()]
    assert len(values) == 4
    assert all(value > 0 for value in values)


def test_hints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    features = Features(
        {"prompt": [{"role": Value("string"), "content": Value("string")}], "accuracy": Value("float64")}
    )
    rows = {"prompt": [[{"role": "user", "content": "?"}]], "accuracy": [0.1]}
    Dataset.from_dict(rows, features=features).to_parquet("stage2.parquet")
    names = {"with_hint": with_hint}
    exec(block("difficulty-prior.md", "stage2.map"), names)
    assert names["stage2"][0]["prompt"][0]["content"].startswith("?\n\nHint: this problem is very hard; about 10%")


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
