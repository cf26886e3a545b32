"""Encoders of transformers: towers of vision-language models, and vision models."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
import transformers
from photographs import crop, encoded

from durian_adv import eigen_entropy
from durian_adv.data.scoring import load_encoder
from durian_adv.data.scoring.media import pictures_of
from durian_adv.data.scoring.rows import row_entropies

FAMILIES = ("qwen25vl", "qwen3vl", "llava", "smolvlm")
IMAGES = [crop(0, (84, 84)), crop(1, (84, 84)), crop(3, (112, 84)), crop(4, (84, 84)), crop(5, (56, 112))]


def features_of(family, model, processor, image, kind):
    """One image's features by a forward of its own, without the hook that the encoder uses."""
    inputs = processor.image_processor(images=[image], return_tensors="pt")
    core = model.model
    with torch.no_grad():
        if family.startswith("qwen"):
            seen = []
            hook = core.visual.merger.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
            core.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
            hook.remove()
            return seen[0][kind == "projected"]
        if family == "llava":
            states = core.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
            return (core.multi_modal_projector(states) if kind == "projected" else states)[0]
        pixels = inputs["pixel_values"][0]  # one image, its tiles
        states = core.vision_model(pixels).last_hidden_state
        return (core.connector(states) if kind == "projected" else states)[0]


def refuse(*what):
    pytest.fail(str(what))


def scores(encoder, images, batch_size=3):
    found = dict(
        row_entropies(
            map(pictures_of, images), encoder, {}, batch_size=batch_size, root=None, unreadable=refuse, unscored=refuse
        )
    )
    return [found[i] for i in range(len(images))]


@pytest.mark.parametrize("kind", ["patches", "projected"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_has_the_entropy_of_its_own_features_whatever_its_batch(models, family, kind):
    folder, model, processor = models[family]
    encoder = load_encoder(str(folder), features=kind, device="cpu")
    expected = [eigen_entropy(features_of(family, model, processor, image, kind)).item() for image in IMAGES]
    assert len(set(np.round(expected, 4))) == len(IMAGES)
    for batch_size in (1, 3):
        assert scores(encoder, IMAGES, batch_size) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_tower_is_kept_and_nothing_is_trained(models, family):
    folder, model, _ = models[family]
    encoder = load_encoder(str(folder), device="cpu")
    kept, whole = (sum(p.numel() for p in m.parameters()) for m in (encoder._model, model))
    assert kept < whole - model.get_input_embeddings().weight.numel()
    assert not any(p.requires_grad for p in encoder._model.parameters())
    assert not encoder._model.training


def test_packed_images_of_any_size_go_together_and_others_by_their_size(models):
    packed, padded = (load_encoder(str(models[family][0]), device="cpu") for family in ("qwen25vl", "smolvlm"))
    assert len({packed.prepare(image)[0] for image in IMAGES}) == 1
    sizes = {padded.prepare(image)[0] for image in IMAGES}
    assert {dict(size)["pixel_values"] for size in sizes} == {(1, 1, 3, 56, 56)}


def test_half_precision_moves_an_entropy_a_little(models):
    folder = str(models["qwen25vl"][0])
    exact, rounded = (scores(load_encoder(folder, device="cpu", dtype=d), IMAGES) for d in ("float32", "bfloat16"))
    assert exact != rounded
    assert rounded == pytest.approx(exact, abs=0.05)


def test_the_name_tells_weights_features_and_dtypes_apart(models, tmp_path):
    folder, model, processor = models["llava"]
    names = {load_encoder(str(folder), device="cpu", **options).name for options in (
        {}, {"features": "projected"}, {"dtype": "bfloat16"},
    )}  # fmt: skip
    assert len(names) == 3
    assert load_encoder(str(folder), device="cpu").name in names
    bias = next(p for name, p in model.model.vision_tower.named_parameters() if name.endswith("fc1.bias"))
    bias.data += 1
    model.save_pretrained(tmp_path)
    bias.data -= 1
    processor.image_processor.save_pretrained(tmp_path)
    other = load_encoder(str(tmp_path), device="cpu").name.split(", ")[1:]
    assert other not in [name.split(", ")[1:] for name in names]


@pytest.mark.parametrize("change", ["sign", "processor", "settings", "nothing"])
def test_the_name_tells_every_change_of_the_model_and_its_processor(models, tmp_path, change):
    folder, model, _ = models["qwen25vl"]
    before = load_encoder(str(folder), device="cpu").name
    home = tmp_path / "model"
    shutil.copytree(folder, home)
    weight = next(p for name, p in model.model.visual.named_parameters() if name.endswith("weight"))
    if change == "sign":  # of which sums of sizes know nothing
        weight.data.neg_()
        model.save_pretrained(home)
        weight.data.neg_()
    elif change != "nothing":
        name, section, key = {
            "processor": ("*processor_config.json", None, "image_mean"),
            "settings": ("config.json", "vision_config", "fullatt_block_indexes"),
        }[change]
        (file,) = home.glob(name)
        told = json.loads(file.read_text())
        part = told if section is None else told[section]
        part[key] = [0] if section else [0.1, 0.2, 0.3]
        file.write_text(json.dumps(told))
    after = load_encoder(str(home), device="cpu").name
    assert (after.split(", ")[1:] == before.split(", ")[1:]) == (change == "nothing")


@pytest.mark.parametrize("family", FAMILIES)
def test_images_resized_first_are_seen_by_the_processor_as_they_were_resized(models, family):
    folder = str(models[family][0])
    limited = load_encoder(folder, device="cpu", resize_first=(64 * 64, 100 * 100))
    found = scores(limited, [crop(0, (200, 100)), crop(1, (40, 30)), crop(2, (90, 90))])
    resized = [crop(0, (200, 100)).resize((141, 70)), crop(1, (40, 30)).resize((73, 55)), crop(2, (90, 90))]
    assert found == pytest.approx(scores(load_encoder(folder, device="cpu"), resized), abs=1e-4)


@pytest.mark.parametrize("family", ["qwen25vl", "qwen3vl"])
def test_limits_of_pixels_are_those_of_the_processor_and_part_of_the_name(models, family):
    folder, _, processor = models[family]
    image, names = crop(0, (224, 224)), set()
    for limits in ({}, {"max_pixels": 6272}, {"min_pixels": 200704, "max_pixels": 400000}):
        encoder = load_encoder(str(folder), device="cpu", **limits)
        names.add(encoder.name)
        one = processor.image_processor
        side = one.patch_size * one.merge_size
        t, h, w = encoder.prepare(image)[1]["image_grid_thw"][0].tolist()
        pixels = t * h * w * one.patch_size**2
        assert pixels <= limits.get("max_pixels", math.inf)
        assert pixels >= limits.get("min_pixels", 0)
        assert pixels >= limits.get("max_pixels", 0) / 2 - side**2
    assert len(names) == 3
    with pytest.raises(ValueError, match=r"min_pixels: expected at most max_pixels, [0-9]+, got 1000000000"):
        load_encoder(str(folder), device="cpu", min_pixels=10**9)


def patches(encoder, image):
    return int(encoder.prepare(image)[1]["image_grid_thw"].prod())


@pytest.mark.parametrize("family", ["qwen25vl", "qwen3vl"])
def test_each_limit_alone_changes_the_number_of_patches(models, family):
    folder, _, processor = models[family]
    side = processor.image_processor.patch_size
    for limits, size, low, high in (
        ({"max_pixels": 16 * side**2}, (224, 224), 4, 16),
        ({"min_pixels": 36 * side**2}, (40, 40), 36, 64),
        ({"min_pixels": 256 * side**2, "max_pixels": 576 * side**2}, (84, 84), 256, 576),
    ):
        image = crop(0, size)
        count = patches(load_encoder(str(folder), device="cpu", **limits), image)
        assert low <= count <= high
        assert count != patches(load_encoder(str(folder), device="cpu"), image)


@pytest.mark.parametrize(
    "told",
    [
        {"size": {"shortest_edge": 200704, "longest_edge": 400000}},  # as Qwen3-VL's file
        {"min_pixels": 200704, "max_pixels": 400000},  # as Qwen2.5-VL's
        {"size": {"shortest_edge": 1, "longest_edge": 2}, "min_pixels": 200704, "max_pixels": 400000},  # saved by both
    ],
)
def test_the_limits_of_the_processors_own_file_are_kept(models, tmp_path, told):
    folder, _, _ = models["qwen25vl"]
    shutil.copytree(folder, tmp_path / "model")
    (file,) = (tmp_path / "model").glob("*processor_config.json")
    kept = json.loads(file.read_text())
    kept = {name: value for name, value in kept.items() if name not in ("size", "min_pixels", "max_pixels")}
    file.write_text(json.dumps(kept | told))
    encoder = load_encoder(str(tmp_path / "model"), device="cpu")
    assert 200704 <= patches(encoder, crop(0, (84, 84))) * 14**2 <= 400000
    assert 200704 <= patches(encoder, crop(0, (400, 400)).resize((900, 900))) * 14**2 <= 400000
    wide = load_encoder(str(tmp_path / "model"), device="cpu", max_pixels=10**6)
    assert 400000 < patches(wide, crop(0, (400, 400)).resize((900, 900))) * 14**2 <= 10**6


@pytest.mark.parametrize("family", ["llava", "smolvlm"])
def test_limits_of_pixels_are_refused_where_the_processor_has_none(models, family):
    with pytest.raises(ValueError, match="min_pixels, max_pixels: expected none with"):
        load_encoder(str(models[family][0]), device="cpu", max_pixels=12544)


VISION_MODELS = {
    "vit": (transformers.ViTConfig, transformers.ViTModel, {"image_size": 56, "patch_size": 14}, 1),
    "dinov2": (transformers.Dinov2Config, transformers.Dinov2Model, {"image_size": 56, "patch_size": 14}, 1),
    "registers": (
        transformers.Dinov2WithRegistersConfig,
        transformers.Dinov2WithRegistersModel,
        {"image_size": 56, "patch_size": 14, "num_register_tokens": 4},
        5,
    ),
    "siglip": (
        transformers.SiglipVisionConfig,
        transformers.SiglipVisionModel,
        {"image_size": 56, "patch_size": 14},
        0,
    ),
}


@pytest.mark.parametrize("name", VISION_MODELS)
def test_a_vision_model_gives_the_entropy_of_its_patches_without_class_and_register_tokens(name, tmp_path):
    config, build, options, before = VISION_MODELS[name]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = build(config(**sizes, **options)).eval()
    model.save_pretrained(tmp_path)
    processor = getattr(transformers, "ViTImageProcessorPil", transformers.ViTImageProcessor)(
        size={"height": 56, "width": 56}
    )
    processor.save_pretrained(tmp_path)
    inputs = processor(images=IMAGES, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    assert states.shape[1] == 16 + before
    expected = eigen_entropy(states[:, before:])
    assert scores(load_encoder(str(tmp_path), device="cpu"), IMAGES) == pytest.approx(expected.tolist(), abs=1e-4)
    with pytest.raises(ValueError, match="features: expected 'patches' of a vision model"):
        load_encoder(str(tmp_path), features="projected", device="cpu")


def test_a_convolutional_network_gives_the_entropy_of_its_feature_map(tmp_path):
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    model = transformers.ResNetModel(config).eval()
    model.save_pretrained(tmp_path)
    processor = getattr(transformers, "ViTImageProcessorPil", transformers.ViTImageProcessor)(
        size={"height": 64, "width": 64}
    )
    processor.save_pretrained(tmp_path)
    with torch.no_grad():
        states = model(**processor(images=IMAGES, return_tensors="pt")).last_hidden_state
    expected = eigen_entropy(states.flatten(2).mT).tolist()
    assert scores(load_encoder(str(tmp_path), device="cpu"), IMAGES) == pytest.approx(expected, abs=1e-4)


def test_clip_gives_the_entropy_of_its_vision_tower(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**sizes, "vocab_size": 64}, vision_config={**sizes, "image_size": 56, "patch_size": 14}
        )
    ).eval()
    model.save_pretrained(tmp_path)
    processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
    )
    processor.save_pretrained(tmp_path)
    with torch.no_grad():
        states = model.vision_model(**processor(images=IMAGES, return_tensors="pt")).last_hidden_state
    assert scores(load_encoder(str(tmp_path), device="cpu"), IMAGES) == pytest.approx(
        eigen_entropy(states[:, 1:]).tolist(), abs=1e-4
    )


def test_a_language_model_and_weights_that_are_missing_are_refused(tmp_path, models):
    text = tmp_path / "text"
    config = transformers.Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    transformers.Qwen2Model(config).save_pretrained(text)
    models["llava"][2].image_processor.save_pretrained(text)
    with pytest.raises(ValueError, match="text: expected a model with a vision tower, got Qwen2Model"):
        load_encoder(str(text), device="cpu")

    bare = tmp_path / "bare"
    vit = transformers.ViTModel(transformers.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4))
    vit.save_pretrained(
        bare, state_dict={k: v for k, v in vit.state_dict().items() if "layer.1" not in k and "layers.1" not in k}
    )
    models["llava"][2].image_processor.save_pretrained(bare)
    with pytest.raises(ValueError, match="bare: expected all weights of ViTModel, got none for"):
        load_encoder(str(bare), device="cpu")


def test_an_image_that_the_processor_refuses_is_reported(models):
    told = []
    encoder = load_encoder(str(models["qwen25vl"][0]), device="cpu")
    options = {"batch_size": 2, "root": None, "unreadable": lambda *what: told.append(what), "unscored": refuse}
    found = dict(row_entropies(map(pictures_of, [encoded(crop(0, (300, 1))), crop(0)]), encoder, {}, **options))
    assert math.isnan(found[0])
    assert found[1] > 0
    assert "aspect ratio" in told[0][2]
