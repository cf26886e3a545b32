"""A tiny random Qwen2.5-VL, a dataset of PNG images with a column of their entropies, and the words of a training."""

import io
import json
import sys
from pathlib import Path

import torch
from datasets import Dataset

sys.path.append(str(Path(__file__).resolve().parents[1] / "trl"))
import tiny

# the processor without videos, which need torchvision
PROCESSOR = """
from transformers import Qwen2_5_VLProcessor
from transformers.processing_utils import ProcessorMixin


class TinyProcessor(Qwen2_5_VLProcessor):
    attributes = ["image_processor", "tokenizer"]
    image_processor_class, tokenizer_class = "Qwen2VLImageProcessor", "PreTrainedTokenizerFast"

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **_):
        for name in ("image", "video"):
            setattr(self, f"{name}_token", f"<|{name}_pad|>")
            setattr(self, f"{name}_token_id", tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>"))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
"""

REWARD = """
REWARD_NAME, REWARD_TYPE = "letters", "batch"


def compute_score(reward_inputs, format_weight):
    scores = []
    for given in reward_inputs:
        accuracy = float(given["response"][:1].isalpha())
        form = float(len(given["response"]) > 2)
        overall = (1 - format_weight) * accuracy + format_weight * form
        scores.append({"overall": overall, "format": form, "accuracy": accuracy})
    return scores
"""


def model(folder):
    made, processor = tiny.build("qwen25vl")
    made.save_pretrained(folder)
    torch.save(made.state_dict(), folder.parent / "start.pt")
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    (folder / "processing_tiny.py").write_text(PROCESSOR)
    mapping = {"processor_class": "TinyProcessor", "auto_map": {"AutoProcessor": "processing_tiny.TinyProcessor"}}
    (folder / "processor_config.json").write_text(json.dumps(mapping))
    return folder


def data(path, prompts=32, column=True):
    rows = []
    for k in range(prompts):
        png = io.BytesIO()
        tiny.photograph(k / prompts, (84, 84 - 14 * (k % 3)), k).save(png, "PNG")
        rows.append({"problem": f"<image>What is in {k}?", "answer": "A", "images": [{"bytes": png.getvalue()}]})
        rows[-1] |= {"visual_entropy": k / prompts if k % 5 else None} if column else {}
    Dataset.from_list(rows).to_parquet(path)
    return path


def words(folder, column=True, **more):
    """The command line of a short training in ``folder``, with what ``more`` changes, dots written as ``__``."""
    reward = folder / "reward.py"
    reward.write_text(REWARD)
    given = {
        "data.train_files": data(folder / "train.parquet", column=column),
        "data.val_files": data(folder / "val.parquet", 4),
        "data.prompt_key": "problem",
        "data.max_prompt_length": 128,
        "data.max_response_length": 8,
        "data.rollout_batch_size": 16,
        "data.val_batch_size": 4,
        "data.min_pixels": 3136,
        "data.filter_overlong_prompts_workers": 1,
        "algorithm.disable_kl": "true",
        "worker.actor.global_batch_size": 8,
        "worker.actor.micro_batch_size_per_device_for_update": 8,
        "worker.actor.micro_batch_size_per_device_for_experience": 8,
        "worker.actor.padding_free": "false",
        "worker.actor.dynamic_batching": "false",
        "worker.actor.use_torch_compile": "false",
        "worker.actor.optim.lr": 1e-3,
        "worker.actor.model.model_path": model(folder / "model"),
        "worker.rollout.n": 4,
        "worker.rollout.disable_tqdm": "true",
        "worker.rollout.tensor_parallel_size": 1,
        "worker.rollout.val_override_config.n": 1,
        "worker.rollout.val_override_config.folder": folder,  # EasyR1 passes it on, to cpu_worker.py
        "worker.reward.reward_function": f"{reward}:compute_score",
        "worker.reward.reward_function_kwargs.format_weight": 0.1,
        "trainer.max_steps": 2,
        "trainer.logger": "[file]",
        "trainer.val_freq": -1,
        "trainer.save_freq": -1,
        "trainer.n_gpus_per_node": 1,
        "trainer.val_before_train": "false",
        "trainer.save_checkpoint_path": folder / "out",
    }
    given |= {name.replace("__", "."): value for name, value in more.items()}
    return [f"{name}={value}" for name, value in given.items()]
