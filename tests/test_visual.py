"""Visual entropies of data sets: images in all their forms, batches, the cache, the scorer, the command."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from collections import UserDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from photographs import crop, encoded
from PIL import Image

from durian_adv import eigen_entropy
from durian_adv.cli import main
from durian_adv.visual import EntropyScorer, load_encoder
from durian_adv.visual.cache import Cache
from durian_adv.visual.efficientnet import encode_images, load_network
from durian_adv.visual.images import content, images_of
from durian_adv.visual.scoring import row_entropies

SMALL = {"layer": "stride8", "size": 64}  # a real encoder that takes milliseconds
FLAGS = ["--layer", "stride8", "--size", "64"]


@pytest.fixture(scope="module")
def network():
    return load_network("stride8")


@pytest.fixture(scope="module")
def entropy(network):
    """What the entropy of an image is, straight from its formula."""

    def measure(image):
        square = image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
        features = encode_images(network, [np.asarray(square)])
        return eigen_entropy(rearrange(features, "1 d h w -> (h w) d")).item()

    return measure


OPTIONS = {"batch_size": 2, "root": None, "unreadable": print}


class Counting:
    """An encoder that keeps count of what it is asked for."""

    def __init__(self, grouped=False):
        self.inner, self.grouped, self.batches = load_encoder(**SMALL), grouped, []
        self.name = self.inner.name

    def prepare(self, image):
        return (image.size if self.grouped else None), self.inner.prepare(image)[1]

    def entropies(self, prepared):
        self.batches.append(len(prepared))
        return self.inner.entropies(prepared)


@pytest.fixture(scope="module")
def encoder():
    return Counting()


def score(cells, encoder, known=None, **options):
    """Entropies of rows in the order of rows, and what could not be read."""
    told = []
    found = dict(
        row_entropies(
            cells,
            encoder,
            {} if known is None else known,
            **{"batch_size": 4, "root": None, "unreadable": lambda *what: told.append(what), **options},
        )
    )
    assert sorted(found) == list(range(len(cells)))
    return [found[row] for row in range(len(cells))], told


# --- images in all their forms ----------------------------------------------------------------------


def forms(image, folder):
    """One image in every form in which data sets hold it, losslessly."""
    png = encoded(image)
    (folder / "image.png").write_bytes(png)
    return {
        "PIL": image,
        "bytes": png,
        "pixels": np.asarray(image),
        "path": "image.png",
        "absolute path": str(folder / "image.png"),
        "Path": folder / "image.png",
        "file URL": f"file://{folder}/image.png",
        "data URL": f"data:image/png;base64,{base64.b64encode(png).decode()}",
        "Hugging Face, bytes": {"bytes": png, "path": "somewhere.png"},
        "Hugging Face, path": {"bytes": None, "path": "image.png"},
        "verl": {"image": str(folder / "image.png")},
        "verl, PIL": {"image": image},
    }


def test_every_form_of_an_image_has_its_entropy(tmp_path, encoder, entropy):
    image = crop(0)
    found = forms(image, tmp_path)
    values, told = score(list(found.values()), encoder, root=tmp_path)
    assert not told
    assert values == pytest.approx([entropy(image)] * len(found), abs=1e-6)


def test_grey_palette_and_transparent_images_are_seen_in_rgb(encoder, entropy):
    image = crop(2)
    grey = image.convert("L")
    cells = [grey, image.convert("RGBA"), encoded(image.convert("RGBA")), np.asarray(grey), np.asarray(grey)[..., None]]
    values, _ = score(cells, encoder)
    assert values == pytest.approx([entropy(grey), entropy(image), entropy(image), *[entropy(grey)] * 2], abs=1e-6)


def test_a_photograph_is_turned_as_its_camera_was(encoder, entropy):
    image = crop(1, (96, 64))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera lay on its side
    cells = [image, image.transpose(Image.Transpose.ROTATE_270), encoded(image, exif=turned)]
    (plain, right, tagged), _ = score(cells, encoder)
    assert tagged == pytest.approx(right, abs=1e-6)
    assert tagged != pytest.approx(plain, abs=1e-4)


def test_cells_hold_no_image_one_or_several():
    a, b = crop(0), crop(1)
    assert images_of(None) == []
    assert images_of([]) == []
    assert images_of(a) == [a]
    assert images_of("x.png") == ["x.png"]
    assert images_of(b"x") == [b"x"]
    assert images_of({"bytes": b"x"}) == [{"bytes": b"x"}]
    assert images_of((a, b)) == [a, b]
    assert len(images_of(np.zeros((2, 4, 4, 3), dtype=np.uint8))) == 2
    assert len(images_of(np.zeros((4, 4, 3), dtype=np.uint8))) == 1
    assert len(images_of(np.array([a, None, b], dtype=object))) == 3
    assert images_of(np.array(["a.png", "b.png"])) == ["a.png", "b.png"]
    assert images_of(np.array([b"x"])) == [b"x"]


def test_the_hash_tells_images_apart_by_what_they_hold():
    a = crop(0)
    other_rows = Image.frombytes("RGB", (32, 128), a.tobytes())  # the same pixels, otherwise cut into rows
    keys = {content(x).key for x in (a, crop(1), a.convert("L"), a.rotate(90), other_rows)}
    assert len(keys) == 5
    assert content(a).key == content(a.copy()).key == content(np.asarray(a)).key
    assert content(encoded(a)).key == content(encoded(a)).key != content(encoded(crop(1))).key


def test_palettes_tell_images_apart_and_images_that_look_alike_are_one(encoder, entropy):
    indices = np.asarray(crop(0).convert("L")) // 64
    pair = []
    for colours in ([0, 0, 0, 9, 9, 9, 20, 20, 20, 30, 30, 30], [255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 200, 99]):
        image = Image.fromarray(indices, "L").copy()
        image.putpalette(colours)
        assert image.mode == "P"
        pair.append(image)
    assert content(pair[0]).key != content(pair[1]).key == content(pair[1].convert("RGB")).key
    values, _ = score(pair, encoder)
    assert values == pytest.approx([entropy(image) for image in pair], abs=1e-6)
    assert values[0] != pytest.approx(values[1], abs=1e-3)
    clear = pair[0].copy()
    clear.info["transparency"] = 0  # the encoder sees the same
    assert content(clear).key == content(pair[0]).key


@pytest.mark.parametrize("held", ["PNG", "PIL", "old PNG"])
def test_16_bits_are_scaled_to_8(held):
    grey = crop(2).convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    if held == "old PNG":  # as other versions of Pillow open one
        deep = deep.convert("I")
        deep.format = "PNG"
    seen = content(encoded(deep) if held == "PNG" else deep).open()
    assert np.array_equal(np.asarray(seen), np.asarray(grey.convert("RGB")))
    between = np.array([[128, 129, 385, 386, 65406, 65535]], dtype=np.uint16)
    seen = np.asarray(content(Image.fromarray(between)).open())[..., 0]
    assert np.array_equal(seen, np.round(between / 257))
    with pytest.raises(ValueError, match="expected 8 or 16 bits a channel, got mode F"):
        content(grey.convert("F"))


def test_tensors_are_read_with_their_channels_first(encoder, entropy):
    image, grey = crop(0), crop(1).convert("L")
    tensor = torch.tensor(np.asarray(image)).movedim(-1, 0)
    assert content(tensor).key == content(image).key
    flat = torch.tensor(np.asarray(grey))
    values, told = score([tensor, flat, flat[None], torch.stack([tensor, tensor])], encoder)
    assert not told
    assert values == pytest.approx([entropy(image), entropy(grey), entropy(grey), entropy(image)], abs=1e-6)
    with pytest.raises(ValueError, match=r"expected a tensor \(channels, height, width\), got \(64, 64, 3\)"):
        content(torch.zeros(64, 64, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="expected pixels of dtype uint8, got float32"):
        content(torch.zeros(3, 4, 4))


def test_an_arrow_table_keeps_its_types_and_gets_a_column_more(entropy):
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


BROKEN = {
    "no file": ("none.png", "none.png: FileNotFoundError"),
    "no image": (b"not an image", "expected an image, got 12 bytes that begin with b'not an i'"),
    "half an image": (encoded(crop(0, (128, 128)))[:4000], "OSError"),
    "address": ("https://example.com/x.png", "expected an image that is here"),
    "data URL of text": ("data:text/plain,hello", "expected a data URL in base64"),
    "data URL with a typo": (
        f"data:image/png;base64,!{base64.b64encode(encoded(crop(0))).decode()}",
        "Only base64 data is allowed",
    ),
    "floats": (np.zeros((4, 4, 3)), "expected pixels of dtype uint8, got float64"),
    "number": (3, "TypeError: expected an image, got int"),
    "None in a list": ([None], "TypeError: expected an image, got NoneType"),
    "empty mapping": ({"bytes": None, "path": None}, "expected bytes, a path or an image"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_reported_and_nan_and_its_neighbours_are_untouched(kind, encoder, entropy):
    cell, why = BROKEN[kind]
    values, ((row, place, told),) = score([crop(0), cell, crop(1)], encoder)
    assert (row, place) == (1, 0)
    assert why in told
    assert math.isnan(values[1])
    assert [values[0], values[2]] == pytest.approx([entropy(crop(0)), entropy(crop(1))], abs=1e-6)


# --- rows and batches -------------------------------------------------------------------------------


def test_several_images_have_their_mean_and_one_that_cannot_be_read_makes_it_nan(encoder, entropy):
    a, b, c = (crop(i) for i in range(3))
    values, told = score([[a, b, c], [], None, [a, b"?"], [a]], encoder)
    assert values[0] == pytest.approx((entropy(a) + entropy(b) + entropy(c)) / 3, abs=1e-6)
    assert all(math.isnan(v) for v in values[1:4])
    assert values[4] == pytest.approx(entropy(a), abs=1e-6)
    assert [what[:2] for what in told] == [(3, 1)]


@settings(max_examples=15)
@given(st.lists(st.lists(st.integers(0, 6), max_size=3), max_size=12), st.integers(1, 5), st.booleans())
def test_each_distinct_image_is_computed_once_whatever_the_rows_and_batches(rows, batch_size, grouped):
    sizes = [(64, 64), (64, 48), (48, 64)]
    images = [crop(i, sizes[i % 3]) for i in range(7)]
    single, encoder = Counting(), Counting(grouped)
    alone = {i: single.entropies([single.prepare(images[i])[1]])[0] for i in {i for row in rows for i in row}}
    values, told = score([[images[i] for i in row] for row in rows], encoder, batch_size=batch_size)
    assert not told
    assert sum(encoder.batches) == len(alone)
    assert max(encoder.batches, default=0) <= batch_size
    for row, value in zip(rows, values, strict=True):
        expected = sum(alone[i] for i in row) / len(row) if row else math.nan
        assert value == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_images_wait_for_others_of_their_size_but_not_forever():
    cells = [crop(i, (33 + i, 64)) for i in range(20)]  # no two of one size
    encoder, taken = Counting(grouped=True), []
    found = row_entropies((taken.append(i) or c for i, c in enumerate(cells)), encoder, {}, **OPTIONS)
    next(found)
    assert len(taken) == 16  # eight batches of two
    assert len(list(found)) == 19
    assert encoder.batches == [1] * 20
    two = Counting(grouped=True)
    score([crop(i, (64, 48 + 16 * (i % 2))) for i in range(8)], two)
    assert two.batches == [4, 4]


# --- the cache --------------------------------------------------------------------------------------


def test_the_cache_keeps_entropies_by_image_and_encoder(tmp_path):
    first, other = (Cache(tmp_path / "c", name) for name in ("one", "two"))
    first.update({b"a": 1.5, b"b": math.nan})
    first[b"c"] = 2.0
    assert first[b"a"] == 1.5
    assert math.isnan(first[b"b"])
    assert sorted(first) == [b"a", b"b", b"c"]
    assert (len(first), len(other)) == (3, 0)
    assert b"a" not in other
    with pytest.raises(TypeError, match="forgets nothing"):
        del first[b"a"]
    first.close()
    assert Cache(tmp_path / "c", "one")[b"c"] == 2.0


def test_another_file_is_no_cache(tmp_path):
    (tmp_path / "c").write_text("something else " * 100)
    with pytest.raises(ValueError, match="c: expected a cache of entropies"):
        Cache(tmp_path / "c", "one")


def test_what_is_known_is_not_computed_again(tmp_path):
    cells = [crop(i) for i in range(3)]
    known = Cache(tmp_path / "c", "x")
    before, _ = score(cells, Counting(), known)
    idle = Counting()
    again, _ = score([*cells, [cells[0], cells[1]]], idle, known)
    assert again == [*before, (before[0] + before[1]) / 2]
    assert idle.batches == []


# --- the scorer -------------------------------------------------------------------------------------


def test_the_scorer_adds_a_column_to_a_plain_batch_and_returns_it_alone_for_other_mappings(entropy):
    scorer = EntropyScorer(**SMALL)
    batch = {"image": [crop(0), None], "q": [1, 2]}
    out = scorer(batch)
    assert list(out) == ["image", "q", "visual_entropy"]
    assert out["visual_entropy"] == pytest.approx([entropy(crop(0)), math.nan], abs=1e-6, nan_ok=True)
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
    assert other({"images": [["a.png"]]})["visual_entropy"] == first
    assert len(other.load()[1]) == 1


def test_the_scorer_logs_what_it_cannot_read(caplog):
    with caplog.at_level(logging.WARNING):
        EntropyScorer(Counting())({"image": [crop(0), b"?"]})
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("row 1 of the batch, image 0: cannot be read, its visual entropy is NaN: ValueError")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: EntropyScorer(batch_size=0), "batch_size: expected at least 1 image"),
        (lambda: EntropyScorer(batch_size="8"), "batch_size: expected a number of images"),
        (lambda: EntropyScorer(**SMALL)({"text": ["?"]}), "images: expected a column 'images' or 'image', got text"),
        (lambda: EntropyScorer(images="x", **SMALL)({"image": []}), "images: expected a column 'x', got image"),
        (lambda: EntropyScorer(**SMALL)([1]), "batch: expected an Arrow table or a mapping of columns, got list"),
        (lambda: load_encoder(layer="stem"), "layer: expected one of"),
        (lambda: load_encoder(size=16), "size: expected at least 32 pixels"),
        (lambda: load_encoder(features="all"), "features: expected one of"),
        (lambda: load_encoder(dtype="float8"), "dtype: expected one of"),
        (lambda: load_encoder(min_pixels=0), "min_pixels: expected at least 1 pixel, got 0"),
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
def test_images_are_brought_between_two_numbers_of_pixels_first(entropy, size, seen):
    image = crop(0, size)
    limited = load_encoder(resize_first=(64 * 64, 100 * 100), **SMALL)
    (value,), _ = score([image], limited)
    assert value == pytest.approx(entropy(image.resize(seen)), abs=1e-6)
    (plain,), _ = score([image], load_encoder(**SMALL))
    assert (value == pytest.approx(plain, abs=1e-6)) == (size == seen)
    assert limited.name != load_encoder(**SMALL).name


# --- the command ------------------------------------------------------------------------------------


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path):
    """Photographs, one twice, one broken, and something else."""
    home = tmp_path / "photos"
    (home / "more").mkdir(parents=True)
    for i in range(4):
        crop(i).save(home / f"{i}.png")
    crop(0).save(home / "more" / "again.PNG")
    (home / "broken.jpg").write_bytes(b"?")
    (home / "notes.txt").write_text("no image")
    return home


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_folder_becomes_a_table(folder, tmp_path, capsys, entropy, suffix):
    out = tmp_path / f"out{suffix}"
    assert main(["entropy", str(folder), str(out), "--extra-info", *FLAGS]) == 0
    rows = lines(out) if suffix == ".jsonl" else pyarrow.parquet.read_table(out).to_pylist()
    assert [row["image"] for row in rows] == ["0.png", "1.png", "2.png", "3.png", "broken.jpg", "more/again.PNG"]
    expected = [*(entropy(crop(i)) for i in range(4)), math.nan, entropy(crop(0))]
    for row, value in zip(rows, expected, strict=True):
        for found in (row["visual_entropy"], row["extra_info"]["visual_entropy"]):
            assert (math.nan if found is None else found) == pytest.approx(value, abs=1e-6, nan_ok=True)
    err = capsys.readouterr().err
    assert "row 4, image 0: cannot be read: broken.jpg: ValueError: expected an image, got 1 bytes" in err
    assert "6 rows, 4 images computed (efficientnet-lite0, stride8, 64 px), 0 known before, 1 not readable" in err
    assert "100%" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == [out.name, "photos"]


def test_a_run_without_a_readable_image_fails_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"image": "none.png"}\n{"image": null}\n')
    cache = tmp_path / "c"
    for flags in ([], ["--cache", str(cache)]):
        assert main(["entropy", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), *FLAGS, *flags]) == 2
        assert "in.jsonl: expected images that can be read, got none among 1; nothing is" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "in.jsonl"]


@pytest.mark.parametrize("extra", [[], ["--extra-info"]])
def test_the_text_of_a_json_line_stays(folder, tmp_path, extra):
    line = r'{"image":"photos/0.png", "a": NaN, "b": -Infinity, "c": 1.50e400, "d": "\ud800\u00e9", "e": 0.10}'
    (tmp_path / "in.jsonl").write_bytes(f"{line}\r\n{{}}".encode())
    assert main(["entropy", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), *FLAGS, *extra]) == 0
    first, second = (tmp_path / "out.jsonl").read_text().splitlines()
    assert first.startswith(line[:-1] + ', "visual_entropy": ')
    found = json.loads(first)
    assert found["visual_entropy"] > 0
    assert second.startswith('{"visual_entropy": null')
    assert "extra_info" not in found if not extra else found["extra_info"]["visual_entropy"] == found["visual_entropy"]


def test_json_lines_come_back_as_they_were_with_a_key_more(folder, tmp_path, entropy):
    rows = [
        {"problem": "<image>?", "images": ["photos/0.png", "photos/1.png"], "answer": "4", "mixed": 1},
        {"problem": "no image", "answer": ["é", None], "mixed": "x"},
        {"images": "photos/2.png", "extra_info": {"index": 3}},
        {"images": ["photos/broken.jpg"], "extra_info": None},
    ]
    table = tmp_path / "in.jsonl"
    table.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    assert main(["entropy", str(table), str(tmp_path / "out.jsonl"), *FLAGS]) == 0
    values = [(entropy(crop(0)) + entropy(crop(1))) / 2, None, entropy(crop(2)), None]
    for row, value, found in zip(rows, values, lines(tmp_path / "out.jsonl"), strict=True):
        assert found.pop("visual_entropy") == pytest.approx(value, abs=1e-6)
        if "extra_info" in row:
            assert found["extra_info"].pop("visual_entropy") == pytest.approx(value, abs=1e-6)
            row = {**row, "extra_info": row["extra_info"] or {}}
        assert found == row
        assert list(found) == list(row)


@pytest.mark.parametrize("extra", ["none", "struct", "made", "no struct"])
def test_a_parquet_file_comes_back_as_it_was_with_a_column_more(tmp_path, capsys, entropy, extra):
    images = [[{"bytes": encoded(crop(i)), "path": None}] for i in range(3)] * 200
    columns = {"prompt": [[{"role": "user", "content": str(i)}] for i in range(600)], "images": images}
    if extra == "struct":
        columns["extra_info"] = [None if i % 5 == 4 else {"index": i, "split": "train"} for i in range(600)]
    elif extra == "no struct":
        columns["extra_info"] = ["x"] * 600
    before = pa.table(columns).replace_schema_metadata({"of": "somebody"})
    pyarrow.parquet.write_table(before, tmp_path / "in.parquet")
    options = ["--extra-info"] if extra == "made" else []
    status = main(["entropy", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), *options, *FLAGS])
    if extra == "no struct":
        assert status == 2
        assert "expected a column 'extra_info' of structs, got string" in capsys.readouterr().err
        return
    assert status == 0
    assert "600 rows, 3 images computed" in capsys.readouterr().err
    after = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert after.schema.metadata[b"of"] == b"somebody"
    values = after.column("visual_entropy").to_pylist()
    assert values == pytest.approx([entropy(crop(i)) for i in range(3)] * 200, abs=1e-6)
    for name in ("prompt", "images"):
        assert after.column(name).equals(before.column(name))
    if extra != "none":
        told = after.column("extra_info").to_pylist()
        assert [row.pop("visual_entropy") for row in told] == values
        kept = columns.get("extra_info", [None] * 600)
        assert told == [row or ({} if extra == "made" else {"index": None, "split": None}) for row in kept]


def test_a_table_by_image_has_every_image_once_by_its_path(folder, tmp_path, capsys, entropy):
    rows = [{"images": ["photos/0.png", "photos/1.png"]}, {"images": "photos/0.png"}, {"images": ["photos/broken.jpg"]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["entropy", str(tmp_path / "in.jsonl"), str(tmp_path / "out.json"), *FLAGS]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found) == ["photos/0.png", "photos/1.png", "photos/broken.jpg"]
    assert list(found.values()) == pytest.approx([entropy(crop(0)), entropy(crop(1)), None], abs=1e-6)
    pyarrow.parquet.write_table(pa.table({"image": [b"x"]}), tmp_path / "in.parquet")
    assert main(["entropy", str(tmp_path / "in.parquet"), str(tmp_path / "other.json"), *FLAGS]) == 2
    assert "images: expected paths for a table by image, got bytes" in capsys.readouterr().err


@pytest.mark.parametrize("features", [None, {}, {"extra_info": {"index": {"dtype": "int64", "_type": "Value"}}}])
@pytest.mark.parametrize("extra", [False, True])
def test_what_datasets_keeps_in_a_parquet_file_learns_of_the_columns(tmp_path, features, extra):
    told = {} if features is None else {"info": {"features": features}}
    columns = {"image": [encoded(crop(0))]} | ({"extra_info": [{"index": 1}]} if features else {})
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(told)})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    options = [*FLAGS, *(["--extra-info"] if extra else [])]
    assert main(["entropy", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), *options]) == 0
    found = json.loads(pyarrow.parquet.read_schema(tmp_path / "out.parquet").metadata[b"huggingface"])
    if features is None:
        assert found == told
        return
    value = {"dtype": "float64", "_type": "Value"}
    expected = {**features, "visual_entropy": value}
    if extra or features:
        expected["extra_info"] = {**features.get("extra_info", {}), "visual_entropy": value}
    assert found == {"info": {"features": expected}}


@pytest.mark.parametrize("folder_left", [False, True])
def test_what_a_killed_run_left_half_written_is_replaced(folder, tmp_path, folder_left):
    left = tmp_path / "out.partial.jsonl"
    if folder_left:
        left.mkdir()
        (left / "x").write_text("half")
    else:
        left.write_text("half")
    assert main(["entropy", str(folder), str(tmp_path / "out.jsonl"), *FLAGS]) == 0
    assert len(lines(tmp_path / "out.jsonl")) == 6
    assert not left.exists()


def test_tables_without_rows_are_tables_with_a_column_more(tmp_path):
    pyarrow.parquet.write_table(pa.table({"image": pa.array([], pa.string())}), tmp_path / "in.parquet")
    assert main(["entropy", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), *FLAGS]) == 0
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").column_names == ["image", "visual_entropy"]


def test_a_killed_run_goes_on_where_it_was(tmp_path, capsys):
    home = tmp_path / "photos"
    home.mkdir()
    for i in range(12):
        crop(i, (128, 128)).save(home / f"{i:02}.png")
    arguments = ["entropy", str(home), str(tmp_path / "out.jsonl"), "--batch-size", "1", "--size", "512"]
    code = "import sys; from durian_adv.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL)
    cache, known = tmp_path / "out.jsonl.cache", 0
    for _ in range(2400):
        if cache.exists():
            try:
                file = sqlite3.connect(f"file:{cache}?mode=ro", uri=True)
                known = file.execute("SELECT count(*) FROM entropies").fetchone()[0]
                file.close()
            except sqlite3.OperationalError:  # just being written
                known = 0
        if known >= 2:
            break
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out.jsonl").exists()

    assert main(arguments) == 0
    summary = capsys.readouterr().err.splitlines()[-1]
    computed, before = (int(summary.split(text)[0].split()[-1]) for text in (" images computed", " known before"))
    assert before >= 2
    assert computed + before == 12
    assert not cache.exists()
    untouched = tmp_path / "whole.jsonl"
    assert main(["entropy", str(home), str(untouched), "--batch-size", "1", "--size", "512"]) == 0
    assert untouched.read_text() == (tmp_path / "out.jsonl").read_text()


def test_a_cache_of_ones_own_serves_other_data_sets_and_other_encoders_do_not_use_it(folder, tmp_path, capsys):
    cache = tmp_path / "kept"
    for name, flags, computed, known in (
        ("a", FLAGS, 4, 0),
        ("b", FLAGS, 0, 4),
        ("c", [*FLAGS[:3], "96"], 4, 0),
        ("d", [*FLAGS, "--resize-first", "8000", "9000"], 4, 0),
    ):
        assert main(["entropy", str(folder), str(tmp_path / f"{name}.jsonl"), "--cache", str(cache), *flags]) == 0
        assert f"{computed} images computed" in (err := capsys.readouterr().err)
        assert f"{known} known before" in err
    assert cache.exists()


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda p: None, ["none", "out.jsonl"], "none: expected a folder or a file, got nothing there"),
        (lambda p: (p / "in.csv").write_text("a"), ["in.csv", "out.csv"], "in.csv: expected a name that ends in"),
        (lambda p: (p / "in").mkdir(), ["in", "out.jsonl"], "in: expected a folder with images, got none"),
        (
            lambda p: (p / "in.jsonl").write_text("{"),
            ["in.jsonl", "o.jsonl"],
            "line 1: expected a JSON object, got '{'",
        ),
        (lambda p: (p / "in.jsonl").write_text("[]"), ["in.jsonl", "o.jsonl"], "line 1: expected a JSON object"),
        (
            lambda p: (p / "in.jsonl").write_bytes('{"image": "x"}'.encode("utf-16-le")),
            ["in.jsonl", "o.jsonl"],
            "line 1: expected a JSON object",
        ),
        (lambda p: (p / "in.jsonl").write_text("{}"), ["in.jsonl", "o.jsonl"], "images: expected a column"),
        (
            lambda p: (p / "in.jsonl").write_text('{"visual_entropy": 1, "image": "x"}'),
            ["in.jsonl", "o.jsonl"],
            "expected no key 'visual_entropy'",
        ),
        (
            lambda p: (p / "in.jsonl").write_bytes(b'{"image": "x"}\n{"image": "\xff"}'),
            ["in.jsonl", "o.jsonl"],
            "in.jsonl, line 2: expected a JSON object, got",
        ),
        (
            lambda p: (p / "in.jsonl").write_text('{"image": "x", "extra_info": "a"}'),
            ["in.jsonl", "o.jsonl"],
            "in.jsonl, line 1: expected extra_info to be an object, got str",
        ),
        (
            lambda p: (p / "in.jsonl").write_text('{"image": "x", "extra_info": {}, "b": Infinity}'),
            ["in.jsonl", "o.jsonl"],
            "in.jsonl, line 1: expected what JSON can hold beside extra_info",
        ),
        (
            lambda p: (p / "in.jsonl").write_text(r'{"image": "x", "extra_info": {}, "b": "\ud800"}'),
            ["in.jsonl", "o.jsonl"],
            "in.jsonl, line 1: expected what JSON can hold beside extra_info",
        ),
        (
            lambda p: (p / "in.jsonl").write_text(r'{"image": "\ud800"}'),
            ["in.jsonl", "o.json"],
            "images: expected paths in UTF-8",
        ),
        (
            lambda p: pyarrow.parquet.write_table(pa.table({"image": ["x"], "extra_info": ["a"]}), p / "in.parquet"),
            ["in.parquet", "o.parquet"],
            "in.parquet: expected a column 'extra_info' of structs, got string",
        ),
        (
            lambda p: (p / "in.jsonl").write_text('{"image": "x"}'),
            ["in.jsonl", "none/o.jsonl"],
            "o.jsonl: expected a name in a folder that is there",
        ),
        (
            lambda p: (p / "in.jsonl").write_text('{"image": "x"}'),
            ["in.jsonl", "o.jsonl", "--cache", "none/c"],
            "c: expected a name in a folder that is there",
        ),
        (lambda p: (p / "in.parquet").write_text("x"), ["in.parquet", "o.parquet"], "expected a parquet file, got"),
        (
            lambda p: pyarrow.parquet.write_table(pa.table({"image": [], "visual_entropy": []}), p / "in.parquet"),
            ["in.parquet", "o.parquet"],
            "expected no column 'visual_entropy'",
        ),
        (
            lambda p: (p / "in.jsonl").write_text('{"image": "x"}'),
            ["in.jsonl", "o.parquet"],
            "o.parquet: expected a name with .jsonl for this input, or with .json",
        ),
        (
            lambda p: (p / "in.jsonl").write_text('{"image": "x"}'),
            ["in.jsonl", "in.jsonl"],
            "in.jsonl: expected a name that is not taken yet",
        ),
        (
            lambda p: (p / "in.jsonl").write_text('{"image": "x"}'),
            ["in.jsonl", "o.jsonl", "--batch-size", "0"],
            "--batch-size: expected at least 1 image",
        ),
    ],
)
def test_what_cannot_be_used_is_an_error_without_a_traceback(tmp_path, monkeypatch, capsys, make, arguments, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    assert main(["entropy", *arguments, *FLAGS]) == 2
    assert message in capsys.readouterr().err


def test_an_encoder_on_a_gpu_by_default_where_there_is_one():
    place = next(load_encoder(**SMALL)._network.parameters()).device.type
    assert place == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("missing", "options"), [("datasets", []), ("transformers", ["--encoder", "some/model"]), ("tqdm", [])]
)
def test_a_package_that_is_not_there_is_named_with_the_extra_that_brings_it(
    folder, tmp_path, monkeypatch, capsys, missing, options
):
    monkeypatch.setitem(sys.modules, missing, None)
    for adapter in ("datasets_on_disk", "transformers_encoder"):
        monkeypatch.delitem(sys.modules, f"durian_adv.adapters.{adapter}", raising=False)
    if missing == "datasets":
        (folder / "state.json").write_text("{}")
    assert main(["entropy", str(folder), str(tmp_path / "out.jsonl"), *options]) == 2
    err = capsys.readouterr().err
    assert missing in err
    assert "expected what pip install 'durian-adv[entropy]' brings" in err
