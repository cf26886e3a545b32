"""Train Qwen2.5-VL-7B on Geometry3K with Durian, with the settings of the paper as far as it states them.

    pip install "durian-adv[trl]" "trl[vllm]" math-verify pillow
    accelerate launch docs/trl_geometry3k.py --output_dir out --use_vllm True --vllm_mode colocate

Every option of ``DurianGRPOConfig`` and of TRL can be given on the command line and wins over ``PAPER``. On other
numbers of GPUs, keep the product of the first three settings at 128 prompts x 8 completions for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, load_dataset
from transformers import HfArgumentParser
from trl.rewards import accuracy_reward, think_format_reward

from durian_adv.adapters.trl import DurianGRPOConfig, DurianGRPOTrainer

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
DATA = "hiyouga/geometry3k"  # 2,101 problems with columns images, problem and answer
INSTRUCTION = (
    "Think first, between <think> and </think>. After that, give the solution and its final answer in \\boxed{}."
)
PAPER: dict[str, Any] = {
    # 512 prompts x 8 completions a generation, in 4 updates of 128 x 8: on 8 GPUs
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 16,
    "steps_per_generation": 64,
    "num_generations": 8,
    "learning_rate": 1e-6,
    "reward_weights": [0.1, 0.9],  # format and accuracy, eqs. 22-24
    "durian_weights": [0.1, 0.2, 0.7],
    "durian_num_confidence_buckets": 12,
    "durian_eps": 1e-6,
    # what the paper does not state
    "max_completion_length": 2048,
    "logging_steps": 1,
}


def prepared(problem: dict[str, Any]) -> dict[str, Any]:
    """Turn a problem into a prompt, its images and the solution that ``accuracy_reward`` reads."""
    question = problem["problem"].replace("<image>", "").strip()
    return {
        "prompt": [{"role": "user", "content": f"{question}\n{INSTRUCTION}"}],
        "images": problem["images"],
        "solution": f"${problem['answer']}$",
    }


def parsed(arguments: Sequence[str] | None = None) -> DurianGRPOConfig:
    """Read the command line over the paper's settings."""
    parser = HfArgumentParser(DurianGRPOConfig)
    parser.set_defaults(**PAPER)
    (config,) = parser.parse_args_into_dataclasses(arguments)
    return config


def trainer(model: Any, data: Dataset, config: DurianGRPOConfig, **more: Any) -> DurianGRPOTrainer:
    """Put model, data and rewards together."""
    return DurianGRPOTrainer(
        model=model,
        args=config,
        reward_funcs=[think_format_reward, accuracy_reward],
        train_dataset=data.map(prepared, remove_columns=["problem", "answer"]),
        **more,
    )


if __name__ == "__main__":
    trainer(MODEL, load_dataset(DATA, split="train"), parsed()).train()
