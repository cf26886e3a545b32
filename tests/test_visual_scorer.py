"""The scorer of batches of a data set, and the encoders by name."""

from __future__ import annotations

import logging
import math
import pickle
import sys
import types
from collections import UserDict

import numpy as np
import pyarrow as pa
import pytest
import torch
from photographs import crop, encoded
from small_encoder import SMALL, Counting, entropy, score

from durian_adv.data.scoring import EntropyScorer, load_encoder
from durian_adv.data.scoring.efficientnet import encode_images, load_network


def test_the_scorer_adds_a_column_to_a_plain_batch_and_returns_it_alone_for_other_mappings():
    scorer = EntropyScorer(**SMALL)
    batch = {"image": [crop(0), None], "q": [1, 2]}
    out = scorer(batch)
    assert list(out) == ["image", "q", "visual_entropy"]
    assert out["visual_entropy"] == pytest.approx([entropy(crop(0)), math.nan], abs=1e-6, nan_ok=True)
    assert out["visual_entropy"].dtype == np.float64
    assert list(batch) == ["image", "q"]
    assert list(scorer(UserDict(batch))) == ["visual_entropy"]
    images = EntropyScorer(images="pictures", **SMALL)({"pictures": [[crop(0)]]})
    assert images["visual_entropy"] == pytest.approx([entropy(crop(0))], abs=1e-6)


def test_the_scorer_travels_without_its_encoder_and_shares_its_cache(tmp_path):
    scorer = EntropyScorer(cache=tmp_path / "c", root=tmp_path, **SMALL)
    light = len(pickle.dumps(scorer))
    crop(0).save(tmp_path / "a.png")
    first = scorer({"images": [["a.png"]]})["visual_entropy"]
    assert scorer.load() is scorer.load()
    assert len(pickle.dumps(scorer)) == light
    other = pickle.loads(pickle.dumps(scorer))
    assert len(other.load()[1]) == 1
    assert other({"images": [["a.png"]]})["visual_entropy"] == first


def test_the_scorer_logs_what_it_cannot_read(caplog):
    with caplog.at_level(logging.WARNING):
        EntropyScorer(Counting())({"image": [crop(0), b"?"]})
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("row 2 of the batch, image 1: cannot be read, its visual entropy is NaN: ValueError")


def test_an_arrow_table_keeps_its_types_and_gets_a_column_more():
    file = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema({"images": pa.list_(file), "prompt": pa.list_(pa.struct([("role", pa.string())]))})
    rows = [
        {"images": [{"bytes": encoded(crop(0)), "path": "a"}], "prompt": [{"role": "user"}]},
        {"images": [], "prompt": None},
    ]
    table = pa.Table.from_pylist(rows, schema)
    scored = EntropyScorer(**SMALL)(table)
    assert scored.schema == schema.append(pa.field("visual_entropy", pa.float64()))
    assert scored.drop_columns(["visual_entropy"]).equals(table)
    expected = [entropy(crop(0)), math.nan]
    assert scored["visual_entropy"].to_pylist() == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert EntropyScorer(**SMALL)(scored).schema == scored.schema  # once more: the column is replaced
    named = table.append_column("pictures", table["images"].take(pa.array([1, 0])))
    assert EntropyScorer(images="pictures", **SMALL)(named)["visual_entropy"].to_pylist() == pytest.approx(
        expected[::-1], abs=1e-6, nan_ok=True
    )


COLUMNS = "'images' or 'image' or 'messages'"

# --- encoders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: EntropyScorer(batch_size=0), "batch_size: expected at least 1 image"),
        (lambda: EntropyScorer(batch_size="8"), "batch_size: expected a number of images"),
        (lambda: EntropyScorer(**SMALL)({"text": ["?"]}), f"images: expected a column {COLUMNS}, got text"),
        (lambda: EntropyScorer(**SMALL)({"a": [], "b": []}), f"images: expected a column {COLUMNS}, got a, b"),
        (lambda: EntropyScorer(**SMALL)({}), f"images: expected a column {COLUMNS}, got none"),
        (lambda: EntropyScorer(images="x", **SMALL)({"image": []}), "images: expected a column 'x', got image"),
        (
            lambda: EntropyScorer(**SMALL)([1]),
            r"batch: expected an Arrow table or a mapping of columns, got list \(batch_format='pyarrow'\)$",
        ),
        (lambda: load_encoder(layer="stem"), "layer: expected one of"),
        (lambda: load_encoder(size=31), "size: expected at least 32 pixels, got 31"),
        (lambda: load_encoder(size="32"), "size: expected a number of pixels, got str"),
        (lambda: load_encoder(features="all"), "features: expected one of"),
        (lambda: load_encoder(dtype="float8"), "dtype: expected one of"),
        (
            lambda: load_encoder(device="gpu"),
            r"device: expected a device that is available, got 'gpu' \(Expected one of cpu",
        ),
        (lambda: load_encoder(device="cuda:99"), r"device: expected a device that is available, got 'cuda:99' \("),
        (lambda: load_encoder(min_pixels=0), "min_pixels: expected at least 1 pixel, got 0"),
        (lambda: load_encoder(max_pixels=0), "max_pixels: expected at least 1 pixel, got 0"),
        (lambda: load_encoder(min_pixels=9, max_pixels=8), "min_pixels: expected at most max_pixels, 8, got 9"),
        (lambda: load_encoder(max_pixels=8), "expected none with efficientnet-lite0, which takes size"),
        (lambda: load_encoder(resize_first=8), "resize_first: expected two numbers of pixels, got 8"),
        (lambda: load_encoder(resize_first=[8]), r"resize_first: expected two numbers of pixels, got \[8\]"),
        (lambda: load_encoder(resize_first="88"), "resize_first: expected two numbers of pixels, got '88'"),
        (lambda: load_encoder(resize_first=(None, 8)), r"resize_first\[0\]: expected a number of pixels, got NoneType"),
        (lambda: load_encoder(resize_first=(0, 8)), r"resize_first\[0\]: expected at least 1 pixel, got 0"),
        (lambda: load_encoder(resize_first=(9, 8)), "resize_first: expected the smaller number first"),
    ],
)
def test_bad_arguments_are_refused_by_name(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((96, 64), (96, 64)),
        ((200, 100), (141, 70)),
        ((40, 30), (73, 55)),
        ((100, 100), (100, 100)),
        ((64, 64), (64, 64)),
    ],
)
def test_images_are_brought_between_two_numbers_of_pixels_first(size, seen):
    image = crop(0, size)
    limited = load_encoder(resize_first=(64 * 64, 100 * 100), **SMALL)
    (value,), _ = score([image], limited)
    assert value == pytest.approx(entropy(image.resize(seen)), abs=1e-6)
    (plain,), _ = score([image], load_encoder(**SMALL))
    assert (value == pytest.approx(plain, abs=1e-6)) == (size == seen)
    assert limited.name != load_encoder(**SMALL).name


def test_an_encoder_on_a_gpu_by_default_where_there_is_one():
    place = next(load_encoder(**SMALL)._network.parameters()).device.type
    assert place == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [("stride8", (40, 16, 16)), ("stride16", (112, 8, 8)), ("stride32", (320, 4, 4)), ("head", (1280, 4, 4))],
)
def test_a_layer_has_its_features_of_patches(layer, shape):
    images = [np.asarray(crop(number, (128, 128))) for number in (0, 1)]
    network = load_network(layer)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    pixels = torch.tensor(np.stack(images)).movedim(-1, 1).double()
    features = encode_images(network, images)
    assert features.shape == (2, *shape)
    assert torch.equal(features, network(((pixels - 127) / 128).float()))  # as the network was trained


def test_a_network_has_the_layer_of_16_pixels_a_patch_if_none_is_asked_for():
    image = np.asarray(crop(0))
    assert torch.equal(encode_images(load_network(), [image]), encode_images(load_network("stride16"), [image]))


def test_encoders_are_named_by_all_that_entropies_depend_on():
    assert load_encoder().name == EntropyScorer().load()[0].name == "efficientnet-lite0, head, 448 px"
    assert load_encoder(layer="stride16", size=32).name == "efficientnet-lite0, stride16, 32 px"
    assert load_encoder(resize_first=(1, 1), **SMALL).name.endswith("resized to 1 to 1 pixels first")
    limited = load_encoder(resize_first=(64, 100), **SMALL)
    assert limited.name == "efficientnet-lite0, stride8, 64 px, resized to 64 to 100 pixels first"


def test_a_model_of_transformers_gets_its_options(monkeypatch):
    adapter = types.ModuleType("adapter")  # the real one is tested beside transformers, in tests/entropy
    adapter.TransformersEncoder = lambda *given: types.SimpleNamespace(name=given)
    monkeypatch.setitem(sys.modules, "durian_adv.data.scoring.transformers_encoder", adapter)
    options = {"features": "projected", "device": "cpu", "dtype": "bfloat16", "min_pixels": 9, "max_pixels": 9}
    expected = ("some/model", "projected", torch.device("cpu"), torch.bfloat16, 9, 9)
    assert load_encoder("some/model", **options).name == expected
    assert EntropyScorer("some/model", **options).load()[0].name == expected
    assert load_encoder("some/model", device="cpu").name == (
        *expected[:1],
        "patches",
        expected[2],
        torch.float32,
        *[None] * 2,
    )


def test_the_options_of_the_scorer_reach_its_encoder_and_its_batches(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(crop(0)))
    for options, name in (({"layer": "stride32"}, "stride32, 64 px"), ({"size": 96}, "stride8, 96 px")):
        assert EntropyScorer(**{**SMALL, **options}).load()[0].name == f"efficientnet-lite0, {name}"
    assert EntropyScorer(resize_first=(64, 99), **SMALL).load()[0].name.endswith("64 to 99 pixels first")
    for options, at_fault in (
        ({"features": "all"}, "features"),
        ({"dtype": "int"}, "dtype"),
        ({"device": "x"}, "device"),
    ):
        with pytest.raises(ValueError, match=f"^{at_fault}: "):
            EntropyScorer(**SMALL, **options).load()
    for batch_size, batches in (({"batch_size": 2}, [2, 2, 2, 2, 1]), ({"batch_size": 1}, [1] * 9), ({}, [8, 1])):
        encoder = Counting()
        scorer = EntropyScorer(encoder, root=str(tmp_path), cache=str(tmp_path / f"c{len(batches)}"), **batch_size)
        scorer({"image": ["a.png", *map(crop, range(1, 9))]})
        assert encoder.batches == batches
        assert len(scorer.load()[1]) == 9
