"""A tiny random LLaVA on disk, and data sets with real images: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

import durian_adv

IMAGE = "<image>"
BUCKETS = {"durian_num_confidence_buckets": 2, "durian_entropy_quantiles": [0.5]}


def _tokenizer():
    """One token per byte, and the special ones."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return tokenizer


def save_model(folder, seed=0):
    """Write model and processor; the model never says the token that stands for an image."""
    tokenizer = _tokenizer()
    images = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
    )
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlavaConfig(
        text_config={
            **layers,
            **ids,
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
        },
        vision_config={
            **layers,
            "model_type": "clip_vision_model",
            "image_size": 56,
            "patch_size": 14,
            "projection_dim": 32,
        },
        image_token_index=image,
        image_seq_length=16,
        vision_feature_layer=-2,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**ids, suppress_tokens=[image])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def photograph(kind, seed=0):
    """An image between a flat one (kind 0) and white noise (kind 1)."""
    noise = np.random.default_rng(seed).integers(0, 256, (84, 84, 3))
    slope = np.linspace(64, 192, 84)[None, :, None]
    return Image.fromarray(np.clip((1 - kind) * slope + kind * noise, 0, 255).astype("uint8"))


def rows(count=8, **columns):
    """Questions with an image of their own each; a column has a value for each of them."""
    made = [{"pictures": [photograph(k / max(1, count - 1), k)]} for k in range(count)]
    return [row | {name: values[k] for name, values in columns.items()} for k, row in enumerate(made)]


def save_dataset(file, rows):
    """Write a data set of questions: ``rows`` are their columns; ``pictures`` become files beside it."""
    lines = []
    for number, row in enumerate(rows):
        row = dict(row)
        pictures = row.pop("pictures", [])
        question = row.pop("question", f"What is {'so ' * (number % 3)}in {number}?")
        names = [str(file.with_suffix("")) + f"-{number}-{i}.png" for i in range(len(pictures))]
        for name, picture in zip(names, pictures, strict=True):
            picture.save(name)
        names = row.pop("images", names)
        content = IMAGE * len(names) + question
        images = {"images": names} if names else {}
        lines.append({"messages": [{"role": "user", "content": content}], "number": str(number), **images, **row})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def arguments(model, data, out, plugins, **options):
    """The words of ``swift rlhf``: 4 prompts x 4 completions of 8 tokens per step, in batches of 4."""
    plugin = Path(durian_adv.__file__).parent / "adapters/swift/plugin/__init__.py"
    given = {
        "rlhf_type": "grpo",
        "model": model,
        "model_type": "llava1_5_hf",
        "template": "llava1_5_hf",
        "dataset": data,
        "output_dir": out,
        "external_plugins": [plugin, *(Path(__file__).with_name(name) for name in plugins)],
        "reward_funcs": ["letters"],
        "model_kwargs": BUCKETS,
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "max_completion_length": 8,
        "max_length": 256,
        "max_steps": 1,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "beta": 0,
        "tuner_type": "full",
        "torch_dtype": "float32",
        "split_dataset_ratio": 0,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": "true",  # without it two ranks without GPUs are two runs
        "add_version": "false",
        "check_model": "false",
        "load_from_cache_file": "false",
        "log_completions": "true",
        "dataset_num_proc": 1,
        "dataloader_num_workers": 0,
    }
    words = []
    for name, value in (given | {k: v for k, v in options.items() if v is not None}).items():
        values = (
            value if isinstance(value, (list, tuple)) else [json.dumps(value) if isinstance(value, dict) else value]
        )
        words += [f"--{name}", *map(str, values)]
    return words
