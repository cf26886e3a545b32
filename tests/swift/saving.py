"""A file for ``--external_plugins``, after ``recorded.py``: what a rank recorded is saved when its training ends."""

import os

import recording
import torch


class Saving(recording.Recorded):
    def train(self, *args, **kwargs):
        result = super().train(*args, **kwargs)
        names = ("advantages", "rewards", "scores", "metrics")
        kept = [
            {name: batch[name] for name in names} | {"used": torch.stack([s.advantages for s in batch["samples"]])}
            for batch in self.batches
        ]
        torch.save(kept, f"{os.environ['RECORDS']}/rank{self.accelerator.process_index}.pt")
        return result


recording.Recorded = Saving
