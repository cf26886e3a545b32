"""A short run of the TRL adapter under a local tracker, and the picture of its metrics: docs/trl.png.

    make .venv-trl/.installed && .venv-trl/bin/pip install matplotlib
    .venv-trl/bin/python -m benchmarks.trl_tracker

Trains the tiny random Qwen2.5-VL of the tests for 60 steps of 16 prompts x 8 completions with TensorBoard as tracker,
without an account or a network, reads back what TensorBoard stored and draws it. A completion is right if it begins
with enough letters, more of them for noisier images. About 1 minute on one core.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from durian_adv.adapters.trl import DurianGRPOConfig, DurianGRPOTrainer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/trl"))
import tiny  # noqa: E402  # the models of the tests

PANELS = {
    "rewards and groups": ("reward_mean", "no_signal_share", "extreme_ratio"),
    "how far from GRPO": ("moved_from_grpo", "cosine_with_grpo"),
    "largest advantage": ("advantage_abs_max", "grpo_abs_max", "perceptual_abs_max", "reasoning_abs_max"),
    "std by bucket of visual entropy": ("perceptual_std_0", "perceptual_std_1", "perceptual_std_2"),
    "std by bucket of confidence": ("reasoning_std_0", "reasoning_std_1", "reasoning_std_2", "reasoning_std_3"),
    "spread of the scores": ("visual_entropy_std", "confidence_std"),
    "visual entropy, nats": ("visual_entropy_mean",),
    "confidence, nats": ("confidence_mean",),
}


def letters_first(completions: list[Any], needed: list[int], **_: Any) -> list[float]:
    """Reward 1 if at least ``needed`` of the first 8 characters are letters, else 0."""
    texts = [completion[0]["content"] for completion in completions]
    return [float(sum(c.isalpha() for c in text[:8]) >= n) for text, n in zip(texts, needed, strict=True)]


def train(folder: str) -> None:
    """Run, and leave TensorBoard's events in the folder."""
    model, processor = tiny.build("qwen25vl")
    data = tiny.dataset(64)
    data = data.add_column("needed", [1 + k // 20 for k in range(64)])
    config = DurianGRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=8,
        num_generations=8,
        max_completion_length=8,
        max_steps=60,
        learning_rate=5e-4,
        logging_steps=1,
        report_to="tensorboard",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        durian_num_confidence_buckets=4,
        durian_window=48,
        generation_kwargs=tiny.no_image_tokens(model),
    )
    DurianGRPOTrainer(
        model=model, reward_funcs=letters_first, args=config, train_dataset=data, processing_class=processor
    ).train()


def draw(folder: str, file: Path) -> None:
    """Draw what TensorBoard stored."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    events = next(Path(folder).rglob("events*"), None) or next(Path(folder).parent.rglob("events*"))
    board = EventAccumulator(str(events.parent)).Reload()
    figure, axes = plt.subplots(2, 4, figsize=(14, 6), layout="constrained")
    for axis, (title, names) in zip(axes.flat, PANELS.items(), strict=True):
        for name in names:
            points = board.Scalars(f"train/durian/{name}")
            axis.plot([p.step for p in points], [p.value for p in points], label=name, linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.legend(fontsize=7)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
    figure.savefig(file, dpi=70)


def main() -> None:
    """Train, read back, draw."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TENSORBOARD_LOGGING_DIR"] = folder
        train(folder)
        draw(folder, ROOT / "docs/trl.png")


if __name__ == "__main__":
    main()
