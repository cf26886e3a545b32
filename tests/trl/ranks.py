"""Train on several ranks and save what each saw. Run by a test under torchrun, and in the test itself on one rank."""

import os
import shutil
import sys
from pathlib import Path

import conftest  # noqa: F401  # its settings
import recorded
import tiny
import torch
import torch.distributed as dist
from trl import GRPOTrainer

WORDS = ["a", "bc 1", "d?", "efg", "1 2 3", "hijkl", "?", "mn", "o1", "pqrst", "u v w", "x"]
TEXTS = {k: [WORDS[(3 * k + j * (1 + k % 3)) % 12] + "z" * (k * j % 5) for j in range(4)] for k in range(12)}


class OnOneRank(GRPOTrainer):
    """What a trainer on rank 0 alone returns: other images than those of the prompts, or other rows."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.accelerator.process_index == 0:
            other = {"num_images": None} if self.spoiled == "images" else {"advantages": output["advantages"] + 1}
            return output | other
        return output


class Spoiled(recorded.Recorded, OnOneRank):
    pass


def scores(batch):
    """What can be compared of a batch."""
    return {
        "numbers": [recorded.question(example["prompt"]) for example in batch["inputs"]],
        **{name: batch[name] for name in ("per_func", "entropy", "confidence", "table", "metrics", "training")},
        "advantages": batch["output"]["advantages"],
        "of_trl": batch["of_trl"],
        "completion_ids": batch["output"]["completion_ids"],
    }


def seen_on_one_rank(prompts, trainer):
    """Completions from elsewhere, for which only rank 0 has run the vision tower."""
    if trainer.accelerator.process_index == 0:
        images = [part["image"] for prompt in prompts for part in prompt[-1]["content"] if part["type"] == "image"]
        pixels = trainer.processing_class.image_processor(images=images, return_tensors="pt")
        with torch.no_grad():
            trainer.model.get_image_features(pixels["pixel_values"], pixels["image_grid_thw"])
    return recorded.scripted(TEXTS)(prompts, trainer)


def scripted(out, world, rollouts=None, **more):
    """Two steps on completions that are always the same: 12 per step, 3 prompts of 4, so that one lies on two ranks."""
    trainer = recorded.make(
        "qwen3vl",
        output_dir=out,
        train_dataset=tiny.dataset(12),
        per_device_train_batch_size=6 // world,
        gradient_accumulation_steps=2,
        durian_window=2,
        durian_num_confidence_buckets=2,
        arguments={"rollout_func": rollouts or recorded.scripted(TEXTS)},
        **more,
    )
    return trainer


def main(out):
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    # transformers 4.57 cannot load the state of an optimizer on several CPU ranks
    first = scripted(
        *(f"{out}/first", world),
        save_strategy="steps",
        save_steps=1,
        save_only_model=True,
        durian_rollout_log=f"{out}/log",
    )
    first.train()
    dist.barrier()  # the main process has written
    if rank == 0:
        shutil.copytree(f"{out}/log", f"{out}/log-of-first")
    resumed = scripted(f"{out}/first", world, durian_rollout_log=f"{out}/log")
    resumed.train(resume_from_checkpoint=f"{out}/first/checkpoint-1")
    generated = recorded.make(
        "qwen25vl",
        output_dir=f"{out}/generated",
        train_dataset=tiny.dataset(12),
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=3,
        num_generations_eval=2,
        eval_strategy="steps",
        eval_steps=1,
        max_steps=1,
        arguments={"eval_dataset": tiny.dataset(5)},
    )
    changed = recorded.moved(generated, generated.train)
    assert changed
    uneven = scripted(f"{out}/uneven", world, seen_on_one_rank, max_steps=1)
    calls = []
    uneven._vision.connector.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    uneven.train()
    refused = {}
    for kind in ("images", "rows"):
        spoiled = scripted(f"{out}/{kind}", world, max_steps=1, trainer=Spoiled)
        spoiled.spoiled = kind
        try:
            spoiled.train()
        except (RuntimeError, ValueError) as error:  # on both ranks, which go on together
            refused[kind] = str(error)
    large = recorded.make(  # an evaluation of 16, and a table of TRL's of 8 rows
        "qwen_text",
        output_dir=f"{out}/large",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=8,
        num_generations_eval=4,
        arguments={"eval_dataset": tiny.dataset(4, 0)},
    )
    large.evaluate()
    runs = {"uneven": uneven, "first": first, "resumed": resumed, "generated": generated}
    saved = {name: [scores(batch) for batch in trainer.batches] for name, trainer in runs.items()}
    saved["refused"], saved["large"] = refused, large.batches[0]["output"]["advantages"]
    saved["calls"] = calls.count(False)
    saved["logs"] = [sorted(log) for log in generated.state.log_history]
    saved["weights"] = first.model.state_dict()
    torch.save(saved, Path(out, f"rank{rank}.pt"))
    dist.barrier()
    os._exit(0)  # torch's way out may abort, or wait forever for a thread of gloo that waits for the interpreter


if __name__ == "__main__":
    main(*sys.argv[1:])
