"""A tiny text model, a tiny Qwen2.5-VL, and data for them in verl's form: nothing is downloaded.

The images are scikit-image's photographs, cropped and stored as PNG.
"""

import io
import random
from pathlib import Path

import numpy as np
import pandas as pd
import skimage
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLProcessor
from transformers.processing_utils import ProcessorMixin

# transformers 4 has it under the plain name
ImageProcessor = getattr(transformers, "Qwen2VLImageProcessorPil", None) or transformers.Qwen2VLImageProcessor

MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}={% endif %}"
)
PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "moon", "rocket")


class WithoutVideo(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without its part for videos, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **_):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([self.image_token, self.video_token])
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def get_attributes(cls):
        return ["image_processor", "tokenizer"]

    @classmethod
    def from_pretrained(cls, path, **_):
        return cls(ImageProcessor.from_pretrained(path), AutoTokenizer.from_pretrained(path), TEMPLATE)


WithoutVideo.__name__ = "Qwen2_5_VLProcessor"  # verl asks for the name
AutoProcessor.register(Qwen2_5_VLConfig, WithoutVideo, exist_ok=True)


def tokenizer():
    """One token a byte, and some special ones."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    out = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    out.add_special_tokens({"additional_special_tokens": list(MARKS)})
    out.chat_template = TEMPLATE
    return out


def _text(tok):
    return {
        "vocab_size": len(tok),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
    }


def save_text_model(folder):
    tok = tokenizer()
    torch.manual_seed(0)
    config = transformers.Qwen2Config(**_text(tok), tie_word_embeddings=False)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def save_vision_model(folder):
    tok = tokenizer()
    ids = dict(zip(MARKS, tok.convert_tokens_to_ids(list(MARKS)), strict=True))
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config={**_text(tok), "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    pixels = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    image_processor = ImageProcessor(min_pixels=56**2, max_pixels=84**2, **pixels)
    image_processor.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def photograph(number):
    """A crop of one of the photographs, as PNG."""
    image = Image.fromarray(getattr(skimage.data, PHOTOGRAPHS[number % len(PHOTOGRAPHS)])()).convert("RGB")
    rng = random.Random(number)
    side = rng.randint(84, min(image.size))
    left, top = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
    file = io.BytesIO()
    image.crop((left, top, left + side, top + side)).resize((84, 84 - 28 * (number % 2))).save(file, "PNG")
    return file.getvalue()


def rows(count, images=None, entropy=None, column=False, extra="visual_entropy"):
    """Problems in verl's form; the entropy as a column, in extra_info under a name, or both."""
    out = []
    for i in range(count):
        question = f"{i % 10}+{(i * 7) % 10}"
        row = {
            "data_source": "tiny",
            "prompt": [{"role": "user", "content": f"<image>{question}" if images else question}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(i % 10)},
            "extra_info": {"index": i},
        }
        if images:
            row["images"] = [{"bytes": images[i]}]
        if entropy is not None and column:
            row["visual_entropy"] = entropy[i]
        if entropy is not None and extra:
            row["extra_info"][extra] = entropy[i]
        out.append(row)
    return out


def save_rows(path, data):
    pd.DataFrame(data).to_parquet(path)
    return str(path)


def weights(folder):
    """The weights of a saved model by name."""
    from safetensors.torch import load_file

    return {name: value for file in Path(folder).glob("*.safetensors") for name, value in load_file(file).items()}


def share_moved(before, after):
    """The share of the weights that differ by more than rounding."""
    assert before.keys() == after.keys()
    return float(np.mean([not torch.allclose(before[name], after[name], atol=1e-7, rtol=0) for name in before]))
