"""What Durian adds to a step of TRL's GRPO: ``.venv-trl/bin/python -m benchmarks.trl_cost`` prints a Markdown table.

The baseline is TRL's own ``GRPOTrainer`` in the same run, turn by turn: a random Qwen2.5-VL with a vision tower of
width 320 on images of 100 patches, 4 prompts x 4 completions of 32 tokens per step. Medians over the steps, with the
range of the middle half.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from durian_adv.adapters.trl import DurianGRPOConfig, DurianGRPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/trl"))
import tiny  # the models of the tests

STEPS, ROUNDS = 6, 3


class Clock(TrainerCallback):
    """CPU seconds of each step but the first: on one thread, others on the machine do not count."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start."""
        self.start = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop."""
        if state.global_step > 1:
            self.seconds.append(time.process_time() - self.start)


def steps(durian: bool, column: bool = False, **options: Any) -> list[float]:
    """Train a fresh model for a few steps; return their seconds."""
    text = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
    rope = {"mrope_section": [4, 6, 6], "rope_type": "default", "rope_theta": 10000.0}
    vision = {"hidden_size": 320, "intermediate_size": 640, "num_heads": 8}
    vision["out_hidden_size"] = 128
    model, processor = tiny.build("qwen25vl", side=(10, 10), text={**text, "rope_parameters": rope}, **vision)
    data = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": f"What is in {k}?"}] for k in range(64)],
            "image": [tiny.photograph(k / 64, (140, 140), k) for k in range(64)],
            **({"visual_entropy": [float(k) for k in range(64)]} if column else {}),
        }
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = (DurianGRPOConfig if durian else GRPOConfig)(
            output_dir=folder,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            num_generations=4,
            max_completion_length=32,
            max_steps=STEPS,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            logging_steps=STEPS,
            generation_kwargs=tiny.no_image_tokens(model),
            **({"durian_num_confidence_buckets": 4, "durian_entropy_quantiles": [0.5]} if durian else {}),
            **options,
        )
        (DurianGRPOTrainer if durian else GRPOTrainer)(
            model=model,
            reward_funcs=tiny.letters,
            args=config,
            train_dataset=data,
            processing_class=processor,
            callbacks=[clock],
        ).train()
    return clock.seconds


ARMS: dict[str, dict[str, Any]] = {
    "TRL's GRPO": {"durian": False},
    "Durian": {"durian": True},
    "Durian, column `visual_entropy`": {"durian": True, "column": True},
    "Durian, `durian_weights` 0.3, 0, 0.7": {"durian": True, "durian_weights": [0.3, 0.0, 0.7]},
    "TRL's GRPO, `num_iterations=2`": {"durian": False, "num_iterations": 2},
    "Durian, `num_iterations=2`": {"durian": True, "num_iterations": 2},
}


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(ROUNDS):
        for arm, options in ARMS.items():
            seconds[arm] += steps(**options)
    print(f"{torch.__version__=}, one thread, {ROUNDS} rounds of {STEPS - 1} steps\n")
    print("| | CPU seconds per step, median (middle half) | times GRPO |\n|---|---|---|")
    for arm, values in seconds.items():
        baseline = seconds["TRL's GRPO, `num_iterations=2`" if "iterations" in arm else "TRL's GRPO"]
        low, median, high = statistics.quantiles(values, n=4)
        print(f"| {arm} | {median:.2f} ({low:.2f} to {high:.2f}) | {median / statistics.median(baseline):.2f} |")


if __name__ == "__main__":
    main()
