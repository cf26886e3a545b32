"""Train 4 steps with a window and save at 2; be killed after step 3, or resume at 2. Run by a test, in a process."""

import os
import signal
import sys
from pathlib import Path

import conftest  # noqa: F401  # its settings
import recorded
import tiny
import torch
from transformers import TrainerCallback


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def main(out, how=""):
    trainer = recorded.make(
        "qwen3vl",
        train_dataset=tiny.dataset(16),  # one epoch: with each, TRL's sampler starts its order anew on resuming
        output_dir=out,
        max_steps=4,
        durian_window=6,
        durian_num_confidence_buckets=3,
        save_strategy="steps",
        save_steps=2,
        arguments={"callbacks": [Kill()] if how == "kill" else None},
    )
    trainer.train(resume_from_checkpoint=f"{out}/checkpoint-2" if how == "resume" else None)
    end = {
        "model": trainer.model.state_dict(),
        "window": trainer._estimator.state_dict()["window"],
        "advantages": [batch["output"]["advantages"] for batch in trainer.batches],
    }
    torch.save(end, Path(out, "end.pt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
