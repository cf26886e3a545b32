"""A tiny Qwen2.5-VL on disk, PNG images, what OpenRLHF's own code makes of them, and their entropies without a hook."""

from __future__ import annotations

import tiny
import torch
from openrlhf.models import Actor
from openrlhf.utils.vlm_utils import process_prompt_with_images

from durian_adv import eigen_entropy

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def saved(folder):
    """Save the model; return its folder and its processor."""
    model, processor = tiny.build("qwen25vl")
    model.save_pretrained(folder / "model")
    return str(folder / "model"), processor


def actor(model, **options):
    """OpenRLHF's own model class around it."""
    return Actor(model, attn_implementation="sdpa", param_dtype="bf16", **options).eval()


def image_file(folder, k, kinds=8):
    """Write an image, from flat to noisy, as a PNG; return its path."""
    path = folder / f"{k}.png"
    tiny.photograph(k / kinds, (84, 84 - 14 * (k % 3)), k).save(path)
    return str(path)


def inputs(processor, files):
    """Token ids and ``mm_train_inputs`` of a prompt with some images."""
    prompt = IMAGE * len(files) + "What is it?"
    ids, inputs, _ = process_prompt_with_images(processor, prompt, files)
    return ids, inputs


def entropy(model, inputs, features="patches"):
    """The mean entropy of a prompt's images, each one sent through the tower by itself."""
    visual = model.model.visual if hasattr(model.model, "visual") else model.visual
    values, sizes = [], inputs["image_grid_thw"].prod(-1).tolist()
    for pixels, grid in zip(inputs["pixel_values"].split(sizes), inputs["image_grid_thw"], strict=True):
        kept = []
        hooks = [
            visual.merger.register_forward_pre_hook(lambda _, args, kept=kept: kept.append(args[0])),
            visual.merger.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out)),
        ]
        with torch.no_grad():
            visual(pixels, grid_thw=grid[None])
        for hook in hooks:
            hook.remove()
        values.append(eigen_entropy(kept[features == "projected"]).item())
    return sum(values) / len(values)
