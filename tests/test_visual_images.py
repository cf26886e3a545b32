"""Images in all the forms in which data sets hold them."""

from __future__ import annotations

import base64
import math

import numpy as np
import pytest
import torch
from photographs import crop, encoded
from PIL import Image
from small_encoder import entropy, score, shared_encoder

from durian_adv.data.scoring.images import content
from durian_adv.data.scoring.media import pictures_of


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


def test_every_form_of_an_image_has_its_entropy(tmp_path):
    image = crop(0)
    found = forms(image, tmp_path)
    values, told = score(list(found.values()), shared_encoder(), root=tmp_path)
    assert not told
    assert values == pytest.approx([entropy(image)] * len(found), abs=1e-6)


def test_gray_palette_and_transparent_images_are_seen_in_rgb():
    image = crop(2)
    gray = image.convert("L")
    cells = [gray, image.convert("RGBA"), encoded(image.convert("RGBA")), np.asarray(gray), np.asarray(gray)[..., None]]
    values, _ = score(cells, shared_encoder())
    assert values == pytest.approx([entropy(gray), entropy(image), entropy(image), *[entropy(gray)] * 2], abs=1e-6)


def test_a_photograph_is_turned_as_its_camera_was():
    image = crop(1, (96, 64))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera lay on its side
    cells = [image, image.transpose(Image.Transpose.ROTATE_270), encoded(image, exif=turned)]
    (plain, right, tagged), _ = score(cells, shared_encoder())
    assert tagged == pytest.approx(right, abs=1e-6)
    assert tagged != pytest.approx(plain, abs=1e-4)


def images_of(cell):
    return pictures_of(cell).pictures


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


def test_palettes_tell_images_apart_and_images_that_look_alike_are_one():
    indices = np.asarray(crop(0).convert("L")) // 64
    pair = []
    for colors in ([0, 0, 0, 9, 9, 9, 20, 20, 20, 30, 30, 30], [255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 200, 99]):
        image = Image.fromarray(indices, "L").copy()
        image.putpalette(colors)
        assert image.mode == "P"
        pair.append(image)
    assert content(pair[0]).key != content(pair[1]).key == content(pair[1].convert("RGB")).key
    values, _ = score(pair, shared_encoder())
    assert values == pytest.approx([entropy(image) for image in pair], abs=1e-6)
    assert values[0] != pytest.approx(values[1], abs=1e-3)
    clear = pair[0].copy()
    clear.info["transparency"] = 0  # the encoder sees the same
    assert content(clear).key == content(pair[0]).key


@pytest.mark.parametrize("held", ["PNG", "PIL", "old PNG"])
def test_16_bits_are_scaled_to_8(held):
    gray = crop(2).convert("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    if held == "old PNG":  # as other versions of Pillow open one
        deep = deep.convert("I")
        deep.format = "PNG"
    seen = content(encoded(deep) if held == "PNG" else deep).open()
    assert np.array_equal(np.asarray(seen), np.asarray(gray.convert("RGB")))
    between = np.array([[128, 129, 385, 386, 65406, 65535]], dtype=np.uint16)
    seen = np.asarray(content(Image.fromarray(between)).open())[..., 0]
    assert np.array_equal(seen, np.round(between / 257))
    for mode in ("I", "F"):  # integers of 32 bits, and floats
        with pytest.raises(ValueError, match=f"expected 8 or 16 bits a channel, got mode {mode}, whose white is not"):
            content(gray.convert(mode))


def test_tensors_are_read_with_their_channels_first():
    image, gray = crop(0), crop(1).convert("L")
    tensor = torch.tensor(np.asarray(image)).movedim(-1, 0)
    assert content(tensor).key == content(image).key
    flat = torch.tensor(np.asarray(gray))
    values, told = score([tensor, flat, flat[None], torch.stack([tensor, tensor])], shared_encoder())
    assert not told
    assert values == pytest.approx([entropy(image), entropy(gray), entropy(gray), entropy(image)], abs=1e-6)
    with pytest.raises(ValueError, match=r"expected a tensor \(channels, height, width\), got \(64, 64, 3\)"):
        content(torch.zeros(64, 64, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="expected pixels of dtype uint8, got float32"):
        content(torch.zeros(3, 4, 4))


BROKEN = {
    "no file": ("none.png", "none.png: FileNotFoundError"),
    "no image": (b"not an image", "got 12 bytes that begin with b'not an i'"),
    "half an image": (encoded(crop(0, (128, 128)))[:4000], "OSError"),
    "address": ("https://example.com/x.png", "expected a file on this machine, got the address 'https://example.com/x"),
    "address without encryption": ("http://example.com/x.png", "expected a file on this machine, got the address"),
    "data URL of text": ("data:text/plain,hello", "expected a data URL in base64"),
    "data URL with a typo": (
        f"data:image/png;base64,!{base64.b64encode(encoded(crop(0))).decode()}",
        "Only base64 data is allowed",
    ),
    "data URL with a comma more": ("data:image/png;base64,AAAA,AAAA", "Only base64 data is allowed"),
    "floats": (np.zeros((4, 4, 3)), "expected pixels of dtype uint8, got float64"),
    "number": (3, "TypeError: expected an image, got int"),
    "ftp": ("ftp://example.com/x.png", "expected a file on this machine, got the address"),
    "s3": ("s3://bucket/x.png", "expected a file on this machine, got the address"),
    "chain": ("zip://a.png::https://example.com/x.zip", "expected a file on this machine, got the address"),
    "file of elsewhere": ("file://https://example.com/x.png", "expected a file on this machine, got the address"),
    "None in a list": ([None], "TypeError: expected an image, got NoneType"),
    "empty mapping": ({"bytes": None, "path": None}, "expected bytes, a path or an image"),
}


def test_a_path_is_named_and_the_text_of_a_data_url_is_not():
    _, ((_, _, path), (_, _, url)) = score(["a" * 300, "data:text/plain,hello"], shared_encoder())
    assert path.startswith(f"{'a' * 200}: OSError")
    assert url.startswith("ValueError: expected a data URL in base64, got 'data:text/plain'")


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_reported_and_nan_and_its_neighbors_are_untouched(kind):
    cell, why = BROKEN[kind]
    values, ((row, place, told),) = score([crop(0), cell, crop(1)], shared_encoder())
    assert (row, place) == (1, 0)
    assert why in told
    assert math.isnan(values[1])
    assert [values[0], values[2]] == pytest.approx([entropy(crop(0)), entropy(crop(1))], abs=1e-6)
