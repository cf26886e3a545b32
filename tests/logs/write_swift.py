"""Write swift.jsonl with the trainer code of ms-swift 4.6.0: ``python tests/logs/write_swift.py`` beside it.

``GRPOTrainer._prepare_metrics`` and ``log`` run as released; what a training would have put into the trainer's log is
put there by hand: 4 prompts of 8 rollouts per step, two rewards, and in step 10 two prompts of one text, side by side.
"""

import random
import statistics
from collections import defaultdict, deque
from pathlib import Path
from types import SimpleNamespace

from swift.rlhf_trainers import GRPOTrainer
from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

FOLDER = Path(__file__).parent
TEXTS = {
    9: ["<|im_start|>user\nWhat is 1 + 1?", "What is 2 + 2?", "What is 3 + 3?", "What is 4 + 4?"],
    10: ["<image>Find x.", "<image>Find x.", "What is 5 + 5?", "What is 6 + 6?"],
    11: ["What is 7 + 7?", "What is 8 + 8?", "What is 9 + 9?", "What is 10 + 10?"],
}


def trainer(step):
    self = object.__new__(GRPOTrainer)
    self.args = SimpleNamespace(
        output_dir=str(FOLDER),
        log_completions=True,
        wandb_log_unique_prompts=False,
        num_completions_to_print=None,
        generation_batch_size=32,
        log_entropy=False,
        report_to=[],
        include_num_input_tokens_seen="no",
    )
    self.top_entropy_quantile = 1.0
    self.model = SimpleNamespace(training=True)
    self.accelerator = SimpleNamespace(is_main_process=True)
    self.state = TrainerState(global_step=step)
    self.control = TrainerControl()
    self.callback_handler = CallbackHandler([DefaultFlowCallback], None, None, None, None)
    self.custom_metrics = {"train": {}, "eval": {}}
    self._prepare_metrics()
    return self


def main():
    (FOLDER / "completions.jsonl").unlink(missing_ok=True)
    draw = random.Random(0)
    for step, texts in TEXTS.items():
        self = trainer(step)
        self._logs["solution"] = deque(maxlen=32)
        for number, text in enumerate(texts):
            right = [float(draw.random() < (number + 1) / 5) for _ in range(8)]
            form = [float(draw.random() < 0.9) for _ in range(8)]
            total = [0.9 * a + 0.1 * b for a, b in zip(right, form, strict=True)]  # reward_weights 0.9 0.1
            mean, std = statistics.fmean(total), statistics.stdev(total)
            self._logs["prompt"].extend([text] * 8)
            self._logs["completion"].extend(f"{draw.randrange(10)}" for _ in range(8))
            self._logs["rewards"]["MultiModalAccuracyORM"].extend(right)
            self._logs["rewards"]["Format"].extend(form)
            self._logs["advantages"].extend((value - mean) / (std + 1e-4) for value in total)
            self._logs["solution"].extend([str(number)] * 8)
        self._metrics["train"] = defaultdict(list, {"reward": [0.5]})
        self.log({"loss": 0.0})
    (FOLDER / "completions.jsonl").rename(FOLDER / "swift.jsonl")


if __name__ == "__main__":
    main()
