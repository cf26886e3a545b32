"""Tiny random vision-language models with processors, and data sets made in memory: nothing is downloaded.

Models have two layers of width 32. Their processors are put together from parts that need no torchvision: the
processors of the Qwen family and SmolVLM insist on one for videos, so these are built by their common base alone.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
import transformers
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin

WORDS = 512  # positions
TRANSFORMERS_5 = int(transformers.__version__.split(".")[0]) >= 5

_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(image="", extra=()):
    """One token a byte, and some special ones; ``image`` is what the chat template writes for an image."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    out = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
    out.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *extra]})
    out.chat_template = _TEMPLATE.replace("IMAGE", image)
    return out


def _image_processor(name, **options):
    """The image processor that works on PIL images: a class of its own in transformers 5, the slow one in 4."""
    return (getattr(transformers, f"{name}Pil", None) or getattr(transformers, name))(**options)


def _without_video(cls, image_processor, tok, **attributes):
    """A processor of class ``cls`` that has no video processor."""

    def init(self, image_processor=None, tokenizer=None, chat_template=None, **_):
        for name, value in attributes.items():
            setattr(self, name, value)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    parts = {"attributes": ["image_processor", "tokenizer"], "tokenizer_class": "PreTrainedTokenizerFast"}
    made = type(cls.__name__, (cls,), {"__init__": init, **parts})
    return made(image_processor, tok, chat_template=tok.chat_template)


def _text(tok, **more):
    return {
        "vocab_size": len(tok),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": WORDS,
        "bos_token_id": None,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
        **more,
    }


def _rope(section):
    """Rotary positions of the Qwen-VL models, as transformers 5 and 4 spell them."""
    if TRANSFORMERS_5:
        return {"rope_parameters": {"rope_type": "default", "mrope_section": section, "rope_theta": 10000.0}}
    return {"rope_scaling": {"rope_type": "default", "type": "default", "mrope_section": section}}


def _qwen(config, model, processor, patch, text, vision, side=(4, 8)):
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tok = tokenizer("<|vision_start|><|image_pad|><|vision_end|>", marks)
    ids = {mark: tok.convert_tokens_to_ids(mark) for mark in marks}
    pixels = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2}
    images = _image_processor(
        "Qwen2VLImageProcessor", min_pixels=(side[0] * patch) ** 2, max_pixels=(side[1] * patch) ** 2, **pixels
    )
    names = ("image_token", "video_token", "vision_start_token", "vision_end_token")
    tokens = dict(zip(names, ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"), strict=True))
    tokens |= {f"{name}_id": ids[token] for name, token in tokens.items()}
    made = config(
        text_config=_text(tok, **text),
        vision_config={"depth": 2, "num_heads": 4, "patch_size": patch, "spatial_merge_size": 2, **vision},
        tie_word_embeddings=False,
        **{name: value for name, value in tokens.items() if name.endswith("_id")},
    )
    return model(made), _without_video(processor, images, tok, **tokens)


def qwen25vl(side=(4, 8), text=None, **vision):
    """``side``: the fewest and the most patches along an image; the rest widens the model for benchmarks."""
    return _qwen(
        transformers.Qwen2_5_VLConfig,
        transformers.Qwen2_5_VLForConditionalGeneration,
        transformers.Qwen2_5_VLProcessor,
        14,
        {**_rope([1, 1, 2]), **(text or {})},
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "temporal_patch_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            **vision,
        },
        side,
    )


def qwen3vl():
    return _qwen(
        transformers.Qwen3VLConfig,
        transformers.Qwen3VLForConditionalGeneration,
        transformers.Qwen3VLProcessor,
        16,
        {"head_dim": 8, **_rope([2, 1, 1])},
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "temporal_patch_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
    )


def llava():
    tok = tokenizer("<image>", ["<image>"])
    images = _image_processor("CLIPImageProcessor", size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = transformers.LlavaProcessor(
        images,
        tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tok.chat_template,
    )
    config = transformers.LlavaConfig(
        text_config=_text(tok, model_type="llama"),
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 56,
            "patch_size": 14,
            "projection_dim": 32,
        },
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def smolvlm(splitting=False):
    marks = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    marks += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tok = tokenizer("<image>", marks)
    size = {"longest_edge": 112 if splitting else 56}
    options = {"do_image_splitting": splitting, "size": size, "max_image_size": {"longest_edge": 56}}
    if not TRANSFORMERS_5:  # whose SmolVLMProcessor needs torchvision; the images of the two are laid out alike
        images = _image_processor("Idefics3ImageProcessor", **options)
        processor = transformers.Idefics3Processor(images, tok, image_seq_len=4, chat_template=tok.chat_template)
    else:
        processor = _without_video(
            transformers.SmolVLMProcessor,
            _image_processor("SmolVLMImageProcessor", **options),
            tok,
            fake_image_token="<fake_token_around_image>",
            image_token="<image>",
            image_token_id=tok.convert_tokens_to_ids("<image>"),
            end_of_utterance_token="<end_of_utterance>",
            global_image_token="<global-img>",
            image_seq_len=4,
            video_token="<video>",
            video_processor=SimpleNamespace(num_frames=1, fps=1),  # read by apply_chat_template
        )
    config = transformers.SmolVLMConfig(
        text_config=_text(tok, model_type="llama"),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 56,
            "patch_size": 14,
        },
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tok.pad_token_id,
    )
    return transformers.SmolVLMForConditionalGeneration(config), processor


def qwen_text():
    tok = tokenizer()
    config = transformers.Qwen2Config(**_text(tok), tie_word_embeddings=False)
    return transformers.Qwen2ForCausalLM(config), tok


BUILDERS = {build.__name__: build for build in (qwen25vl, qwen3vl, llava, smolvlm, qwen_text)}


def build(family, seed=0, **options):
    """A model with random weights and its processor; the same for the same seed."""
    torch.manual_seed(seed)
    return BUILDERS[family](**options)


def no_image_tokens(model):
    """Generation options that keep a random model from sampling image tokens, which only some TRL versions see to."""
    ids = {getattr(model.config, name, None) for name in ("image_token_id", "image_token_index", "video_token_id")}
    return {"suppress_tokens": sorted(ids - {None})} if ids - {None} else None


def photograph(kind, size=(84, 84), seed=0):
    """An image between a flat one (kind 0) and white noise (kind 1)."""
    rng = np.random.default_rng(seed)
    width, height = size
    noise = rng.integers(0, 256, (height, width, 3))
    slope = np.linspace(64, 192, width)[None, :, None]
    return Image.fromarray(np.clip((1 - kind) * slope + kind * noise, 0, 255).astype("uint8"))


def dataset(prompts=8, images=1, parts=False, **columns):
    """Questions of different lengths, each with ``images`` images of its own (0: none); as a string or as parts."""
    texts = [f"What is {'so ' * (k % 3)}in {k}?" for k in range(prompts)]
    contents = [[{"type": "text", "text": text}] if parts else text for text in texts]
    data = {"prompt": [[{"role": "user", "content": content}] for content in contents]}
    pictures = [
        [photograph((k + i / 4) / prompts, (84, 84 - 14 * (k % 3)), 100 * i + k) for i in range(images)]
        for k in range(prompts)
    ]
    if images == 1:
        data["image"] = [one[0] for one in pictures]
    elif images:
        data["images"] = pictures
    return Dataset.from_dict(data | columns)


def letters(completions, **_):
    """A reward in eighths: how many of the first characters are letters."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(character.isalpha() for character in text[:8]) / 8 for text in texts]
