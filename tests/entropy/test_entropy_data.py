"""The scorer in datasets and Ray, and data sets on disk through the command: on the released packages."""

from __future__ import annotations

import json
import math

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import ray
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from photographs import crop, encoded

from durian_adv.cli import main
from durian_adv.data.hints import with_hint
from durian_adv.data.scoring import EntropyScorer

SMALL = {"layer": "stride8", "size": 64}
FLAGS = ["--layer", "stride8", "--size", "64"]
ONE = Features({"image": Image(), "question": Value("string")})
SEVERAL = Features({"images": List(Image()), "question": Value("string")})


def one_each(count=6):
    return {"image": [crop(i) for i in range(count)], "question": [f"q{i}" for i in range(count)]}


def direct(cells):
    """What the scorer makes of the images themselves."""
    return EntropyScorer(**SMALL)({"image": cells})["visual_entropy"].tolist()


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


# --- datasets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_datasets_map_adds_the_column_and_keeps_the_others(batch_size):
    dataset = Dataset.from_dict(one_each(), features=ONE)
    scored = dataset.map(EntropyScorer(**SMALL), batched=True, batch_size=batch_size)
    assert scored["visual_entropy"] == pytest.approx(direct(one_each()["image"]), abs=1e-5)
    assert scored.features["visual_entropy"] == Value("float64")
    assert scored.remove_columns("visual_entropy").features == dataset.features
    assert scored.data.column("image").equals(dataset.data.column("image"))  # not encoded again


def test_datasets_map_takes_several_images_a_row_in_several_processes(tmp_path):
    rows = {"images": [[crop(0), crop(1)], [], [crop(2)], [crop(0)]], "question": list("abcd")}
    dataset = Dataset.from_dict(rows, features=SEVERAL)
    scorer = EntropyScorer(cache=tmp_path / "c", **SMALL)
    scored = dataset.map(scorer, batched=True, batch_size=2, num_proc=2)
    a, b, c = direct([crop(0), crop(1), crop(2)])
    assert scored["visual_entropy"] == pytest.approx([(a + b) / 2, math.nan, c, a], abs=1e-5, nan_ok=True)
    assert len(scorer.load()[1]) == 3


def test_datasets_recognizes_the_scorer_it_has_mapped_with():
    dataset = Dataset.from_dict(one_each(2), features=ONE)
    used = EntropyScorer(**SMALL)
    used({"image": [crop(0)]})  # a scorer that has loaded its encoder is the same scorer
    prints = [dataset.map(s, batched=True)._fingerprint for s in (used, EntropyScorer(**SMALL))]
    other = dataset.map(EntropyScorer(layer="stride8", size=96), batched=True)._fingerprint
    assert prints[0] == prints[1] != other


def test_encoded_images_that_are_broken_are_nan():
    cells = [{"bytes": encoded(crop(0)), "path": None}, {"bytes": b"?", "path": None}]
    dataset = Dataset.from_dict({"image": cells}, features=Features({"image": Image(decode=False)}))
    values = dataset.map(EntropyScorer(**SMALL), batched=True)["visual_entropy"]
    assert values == pytest.approx([direct([crop(0)])[0], math.nan], abs=1e-5, nan_ok=True)


def test_hints_map_over_a_dataset_of_messages_and_leave_the_original():
    prompt = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]},
    ]
    rows = {"prompt": [prompt] * 3, "accuracy": [0.1, 0.9, None], "answer": ["4"] * 3}
    dataset = Dataset.from_dict(rows)
    before = dataset.to_list()
    hinted = dataset.map(with_hint)
    assert dataset.to_list() == before
    assert hinted.column_names == dataset.column_names
    texts = [[part["text"] for part in row["prompt"][1]["content"]] for row in hinted]
    assert texts[0][0] == "2 + 2?"
    assert "10%" in texts[0][1]
    assert texts[1:] == [["2 + 2?"]] * 2


# --- data sets on disk ------------------------------------------------------------------------------


def test_a_dataset_on_disk_comes_back_with_a_column_more(tmp_path, capsys):
    cells = [{"bytes": encoded(crop(0)), "path": None}, {"bytes": b"?", "path": None}, None]
    features = Features(ONE | {"image": Image(decode=False)})
    raw = Dataset.from_dict({"image": cells, "question": list("abc")}, features=features)
    dataset = raw.cast_column("image", Image())
    dataset.save_to_disk(tmp_path / "in")
    assert main(["entropy", str(tmp_path / "in"), str(tmp_path / "out"), *FLAGS]) == 0
    assert "in, row 2, image 1: cannot be read" in capsys.readouterr().err
    scored = datasets.load_from_disk(tmp_path / "out")
    assert scored["visual_entropy"] == pytest.approx([direct([crop(0)])[0], math.nan, math.nan], abs=1e-5, nan_ok=True)
    assert scored.remove_columns("visual_entropy").features == dataset.features
    assert scored["question"][:] == ["a", "b", "c"]
    assert np.array_equal(np.asarray(scored[0]["image"]), np.asarray(crop(0)))


def test_splits_stay_splits_and_extra_info_takes_the_entropy(tmp_path):
    rows = {"images": [[crop(0), crop(1)], [crop(2)]], "question": ["a", "b"]}
    train = Dataset.from_dict(rows, features=SEVERAL)
    infos = [{"index": 1}, None]
    test = Dataset.from_dict(
        rows | {"extra_info": infos}, features=Features(SEVERAL | {"extra_info": {"index": Value("int64")}})
    ).select([1, 0])
    DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "in")
    assert main(["entropy", str(tmp_path / "in"), str(tmp_path / "out"), *FLAGS]) == 0
    scored = datasets.load_from_disk(tmp_path / "out")
    a, b, c = direct([crop(0), crop(1), crop(2)])
    assert scored["train"]["visual_entropy"] == pytest.approx([(a + b) / 2, c], abs=1e-5)
    assert "extra_info" not in scored["train"].column_names
    assert [row["extra_info"]["visual_entropy"] for row in scored["test"]] == scored["test"]["visual_entropy"][:]
    assert [row["extra_info"]["index"] for row in scored["test"]] == [None, 1]
    assert scored["test"]["visual_entropy"] == pytest.approx([c, (a + b) / 2], abs=1e-5)


def test_a_dataset_that_has_the_column_and_a_name_with_a_suffix_are_refused(tmp_path, capsys):
    Dataset.from_dict({"image": ["x"], "visual_entropy": [1.0]}).save_to_disk(tmp_path / "in")
    assert main(["entropy", str(tmp_path / "in"), str(tmp_path / "out"), *FLAGS]) == 2
    assert "expected no column 'visual_entropy'" in capsys.readouterr().err
    Dataset.from_dict({"image": ["x"]}).save_to_disk(tmp_path / "other")
    assert main(["entropy", str(tmp_path / "other"), str(tmp_path / "out.parquet"), *FLAGS]) == 2
    assert "no suffix, as a folder is written" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [[], ["--extra-info"]])
def test_a_parquet_file_of_datasets_is_one_again(tmp_path, extra):
    dataset = Dataset.from_dict(one_each(3), features=ONE)
    dataset.to_parquet(tmp_path / "in.parquet")
    assert main(["entropy", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), *FLAGS, *extra]) == 0
    scored = Dataset.from_parquet(str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "cache"))
    assert scored["visual_entropy"] == pytest.approx(direct(one_each(3)["image"]), abs=1e-5)
    assert scored.features["image"] == Image()
    assert np.array_equal(np.asarray(scored[2]["image"]), np.asarray(crop(2)))
    if extra:
        assert [row["extra_info"]["visual_entropy"] for row in scored] == scored["visual_entropy"][:]


def test_the_command_takes_a_vision_language_model(tmp_path, models, capsys):
    folder, _, _ = models["qwen25vl"]
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(5):
        crop(i, (84, 84)).save(photos / f"{i}.png")
    values = {}
    for kind in ("patches", "projected"):
        out = tmp_path / f"{kind}.jsonl"
        arguments = ["--encoder", str(folder), "--features", kind, "--device", "cpu", "--batch-size", "2"]
        assert main(["entropy", str(photos), str(out), *arguments]) == 0
        values[kind] = [json.loads(line)["visual_entropy"] for line in out.read_text().splitlines()]
        scorer = EntropyScorer(str(folder), features=kind, device="cpu")
        assert values[kind] == pytest.approx(
            scorer({"image": [crop(i, (84, 84)) for i in range(5)]})["visual_entropy"].tolist(), abs=1e-4
        )
    assert values["patches"] != values["projected"]
    assert "5 images computed" in capsys.readouterr().err


# --- Ray --------------------------------------------------------------------------------------------


def rows_of(dataset):
    return sorted(dataset.take_all(), key=lambda row: row["question"])


@pytest.mark.parametrize("form", ["pixels", "bytes", "several"])
def test_ray_map_batches_adds_the_column_and_keeps_the_others(cluster, form):
    images = [crop(i) for i in range(5)]
    cells = {
        "pixels": [np.asarray(image) for image in images],
        "bytes": [encoded(image) for image in images],
        "several": [[encoded(images[i]), encoded(images[0])] for i in range(5)],
    }[form]
    column = "images" if form == "several" else "image"
    dataset = ray.data.from_items([{column: cell, "question": i} for i, cell in enumerate(cells)])
    scored = rows_of(dataset.map_batches(EntropyScorer(**SMALL), batch_size=2))
    alone = direct(images)
    expected = [(value + alone[0]) / 2 for value in alone] if form == "several" else alone
    assert [row["visual_entropy"] for row in scored] == pytest.approx(expected, abs=1e-5)
    assert [row["question"] for row in scored] == list(range(5))
    assert set(scored[0]) == {column, "question", "visual_entropy"}


def test_ray_writes_lists_of_images_and_messages_with_the_types_they_had(cluster, tmp_path):
    file = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema({"images": pa.list_(file), "prompt": pa.list_(message), "question": pa.int64()})
    rows = [
        {
            "images": [{"bytes": encoded(crop(j)), "path": f"{j}.png"} for j in range(i)],
            "prompt": [{"role": "user", "content": f"q{i}"}] * (1 + i % 2),
            "question": i,
        }
        for i in range(4)
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "in.parquet")
    read = ray.data.read_parquet(str(tmp_path / "in.parquet"))
    scored = read.map_batches(
        EntropyScorer, fn_constructor_kwargs=SMALL, batch_format="pyarrow", concurrency=1, batch_size=3
    )
    scored.write_parquet(str(tmp_path / "out"))
    files = [str(p) for p in sorted((tmp_path / "out").glob("*.parquet"))]
    for written in files:
        types = pyarrow.parquet.read_schema(written)
        assert types.remove_metadata() == schema.append(pa.field("visual_entropy", pa.float64()))
    back = Dataset.from_parquet(files, cache_dir=str(tmp_path / "cache")).sort("question")
    assert back.remove_columns("visual_entropy").to_list() == rows
    alone = direct([crop(j) for j in range(3)])
    expected = [math.nan, *(sum(alone[:i]) / i for i in (1, 2, 3))]
    assert back["visual_entropy"][:] == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_datasets_in_the_format_of_torch_have_their_entropies():
    images = [crop(0), crop(1, (96, 64)), crop(2)]
    dataset = Dataset.from_dict({"image": images, "question": list("abc")}, features=ONE).with_format("torch")
    scored = dataset.map(EntropyScorer(**SMALL), batched=True, batch_size=2).with_format(None)
    assert scored["visual_entropy"][:] == pytest.approx(direct(images), abs=1e-5)


def test_ray_actors_load_the_encoder_themselves_and_broken_images_are_nan(cluster):
    cells = [encoded(crop(0)), b"?", encoded(crop(1))] * 4
    dataset = ray.data.from_items([{"image": cell, "question": i} for i, cell in enumerate(cells)])
    scored = rows_of(dataset.map_batches(EntropyScorer, fn_constructor_kwargs=SMALL, concurrency=2, batch_size=3))
    a, b = direct([crop(0), crop(1)])
    assert [row["visual_entropy"] for row in scored] == pytest.approx([a, math.nan, b] * 4, abs=1e-5, nan_ok=True)
