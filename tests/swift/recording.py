"""A trainer that keeps what went in and what came out of every batch, and ms-swift's own advantages."""

from __future__ import annotations

import torch
from swift.rlhf_trainers import GRPOTrainer

from durian_adv._src.options import OPTIONS as OF_ESTIMATOR
from durian_adv.adapters.swift.trainer import DurianGRPOTrainer

TRAINERS = []
TOKENS = ("logprobs", "mask")
OPTIONS = [f"DURIAN_{name.upper()}" for name in (*OF_ESTIMATOR, "features", "rollout_log")]


class BetweenSwiftAndOurs(GRPOTrainer):
    """Keeps what ms-swift computed, before it is replaced."""

    def _compute_advantages(self, *args):
        self.of_swift = super()._compute_advantages(*args)
        return self.of_swift


class Recorded(DurianGRPOTrainer, BetweenSwiftAndOurs):
    """Keeps one dict per batch in ``batches``."""

    def __init__(self, *args, **kwargs):
        self.batches = []
        TRAINERS.append(self)
        super().__init__(*args, **kwargs)
        self.start = {name: value.clone() for name, value in self.model.state_dict().items()}

    @property
    def moved(self):
        """The names of the parameters that training has changed."""
        return [name for name, value in self.model.state_dict().items() if not value.equal(self.start[name])]

    def _rewards(self, *args):
        self.rewards = super()._rewards(*args)
        return self.rewards

    def _scores(self, *args):
        self.found = super()._scores(*args)
        return self.found

    def _compute_advantages(self, samples, rewards_per_func, batches):
        advantages = super()._compute_advantages(samples, rewards_per_func, batches)
        mode = "train" if self.model.training else "eval"
        rows, scores = self.found
        self.batches.append(
            {
                "advantages": advantages,
                "of_swift": self.of_swift,
                "rewards": self.rewards,
                "per_func": rewards_per_func,
                "prompts": rows["prompts"],
                "rollouts": rows["rollouts"],
                "scores": scores,
                "confidence": torch.stack(
                    [(row * mask).sum() for row, mask in zip(*map(scores.get, TOKENS), strict=True)]
                ),
                "samples": list(samples),
                "batches": [encoded["grpo_batch"] for encoded in batches],
                "inputs": [dict(encoded["model_inputs"]) for encoded in batches],
                "mode": mode,
                "metrics": {name: v[-1] for name, v in self._metrics[mode].items() if name.startswith("durian/")},
            }
        )
        return advantages
