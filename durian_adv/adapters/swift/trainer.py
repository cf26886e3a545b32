"""ms-swift: ``DurianGRPOTrainer``, its GRPO trainer with Durian's advantages, which the plugin puts into its place."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from swift.rlhf_trainers import GRPOTrainer
from swift.utils import get_logger
from torch import Tensor

from durian_adv._src.errors import ArgumentError
from durian_adv.adapters._entropy import require_entropy
from durian_adv.adapters._preflight import described, prompts_check
from durian_adv.adapters._trainer import evaluator, load_window, save_window
from durian_adv.adapters.swift import misfit, require_fit
from durian_adv.data.scoring import towers
from durian_adv.estimator import AdvantageEstimator

_PROMPT = ("messages", "images", "videos", "audios", "tools", "objects")


class DurianGRPOTrainer(GRPOTrainer):
    """ms-swift's GRPO trainer with Durian's advantages; ``args`` is a ``DurianGRPOConfig``.

    A prompt's visual entropy is that of the dataset's column ``visual_entropy``; else it is taken from the vision tower
    while the old policy's log-probabilities are computed, the mean over the images of a completion. Confidences come
    from these log-probabilities, over the tokens that are trained. A completion without a reward, or without such a
    token, as of a truncated one under ``overlong_filter``, gets 0 and influences nothing.

    Raises:
        RuntimeError: this version of ms-swift does not fit.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require_fit(self)
        if self.template.sequence_parallel_size > 1:
            raise ArgumentError("sequence_parallel_size", "1, as samples lie on other ranks beyond", "more")
        self._estimator = AdvantageEstimator(**self.args.durian_options)
        self._vision: Any = towers.find_vision(self.accelerator.unwrap_model(self.model))
        self._chunks: Any = iter(())
        prompts = self.args.generation_batch_size / self.num_generations
        check = prompts_check(prompts, self._estimator, self.is_multimodal)
        log = get_logger().info if check.state == "ok" else get_logger().warning
        log(f"Durian: {described(self._estimator)}; {check.finding}")

    def _add_prompt_id_to_inputs(self, samples: list[Any]) -> list[Any]:
        """Make ids of all that a prompt consists of; ms-swift's know only its messages, and only within a batch."""
        for sample in super()._add_prompt_id_to_inputs(samples):
            parts = json.dumps([getattr(sample, name) for name in _PROMPT], default=_digest)
            sample.prompt_id = _digest(parts.encode())
        return samples

    def _prepare_batch_inputs(self, samples: list[Any]) -> Any:
        self._chunks = iter(self.split_by_mini_batches(samples) if self._uses_tower(samples) else ())
        self._caught: list[float] = []
        self._met: set[str] = set()
        return super()._prepare_batch_inputs(samples)

    def _uses_tower(self, samples: list[Any]) -> bool:
        """Return whether entropies are taken from the tower; not where a teacher's forward cannot be told apart."""
        column = any("visual_entropy" in x.extra for x in samples)
        teacher = any(x.teacher_prompt or x.teacher_images is not None for x in samples)
        return self._estimator.needs("visual_entropy") and self._vision is not None and not (column or teacher)

    def _get_per_token_logps_and_entropies(self, model: Any, model_inputs: Any, grpo_batch: Any, **kwargs: Any) -> Any:
        """See the images of each prompt pass once, in the first forward of a batch, which is the old policy's."""
        first = model is self.model and grpo_batch.old_per_token_logps is None
        chunk = next(self._chunks, None) if first else None
        if chunk is None:
            return super()._get_per_token_logps_and_entropies(model, model_inputs, grpo_batch, **kwargs)
        wanted: list[bool] = []
        for sample in chunk:
            wanted += [sample.prompt_id not in self._met] * len(sample.images or ())
            self._met.add(sample.prompt_id)
        with towers.caught_entropies(self._vision, self.args.durian_features, wanted) as caught:
            found = super()._get_per_token_logps_and_entropies(model, model_inputs, grpo_batch, **kwargs)
        self._caught += caught
        return found

    def _compute_advantages(self, samples: list[Any], rewards_per_func: Tensor, batch_encoded_inputs: Any) -> Tensor:
        own: Tensor = super()._compute_advantages(samples, rewards_per_func, batch_encoded_inputs)  # and its metrics
        mode = "train" if self.model.training else "eval"
        group = self.num_generations if mode == "train" else self.num_generations_eval
        if group == 1:  # nothing to compare a completion with, and ms-swift's own advantages are 0
            return own
        batches = [encoded["grpo_batch"] for encoded in batch_encoded_inputs]
        prompts, rollouts, scores = self._scores(samples, batches)
        if len(prompts) != len(own):
            raise misfit(f"{len(own)} advantages for {len(prompts)} completions")
        if not self.dynamic_num_samples:  # prompts lie one after the other, and one may be drawn twice
            prompts, rollouts = [i // group for i in range(len(own))], None
        estimator = self._estimator if mode == "train" else evaluator(self._estimator, len(set(prompts)))
        advantages = estimator(self._rewards(rewards_per_func, batches), prompts, rollouts=rollouts, **scores)
        for name, value in estimator.metrics.items():
            if not math.isnan(value):  # ms-swift logs means over steps: those where a number is defined
                self._metrics[mode][name].append(value)
        return advantages.to(own)

    def _rewards(self, rewards_per_func: Tensor, batches: list[Any]) -> Tensor:
        """Return the rewards of the whole batch by ms-swift's own rules; NaN where no function gave one."""
        rewards = (rewards_per_func * self.reward_weights).nansum(1)
        if self.kl_in_reward and self.beta != 0.0:
            kl = [((b.old_per_token_logps - b.ref_per_token_logps) * b.completion_mask).sum(-1) for b in batches]
            rewards = rewards - self.beta * torch.tensor(gather_object(torch.cat(kl).tolist())).to(rewards)
        return torch.where(rewards_per_func.isnan().all(1), torch.nan, rewards)

    def _scores(self, samples: list[Any], batches: list[Any]) -> tuple[Any, Any, dict[str, Any]]:
        """Return prompts and rollouts of the whole batch, and what else the estimator takes of it."""
        entropies = [sample.extra.get("visual_entropy") for sample in samples]
        if self._uses_tower(samples):
            entropies = towers.mean_by_sample(self._caught, [len(sample.images or ()) for sample in samples])
        tokens = [row for batch in batches for row in self._trained_tokens(batch)]
        local = [
            (x.prompt_id, x.request_id, bool(x.images or x.videos), entropy, x.extra.get("category"), row)
            for x, entropy, row in zip(samples, entropies, tokens, strict=True)
        ]
        # ms-swift gathers the text of every row as well
        prompts, rollouts, images, entropies, category, tokens = map(list, zip(*gather_object(local), strict=True))
        scores: dict[str, Any] = {"logprobs": tokens, "mask": [torch.ones_like(row) for row in tokens]}
        if self._estimator.needs("visual_entropy"):
            known = {p: x for p, x in zip(prompts, entropies, strict=True) if x is not None and not math.isnan(x)}
            scores["visual_entropy"] = torch.tensor([known.get(p, math.nan) for p in prompts], dtype=torch.float64)
            if any(images):
                require_entropy(scores["visual_entropy"], "durian_weights[1]")
        if self._estimator.needs("category") and any(kind is not None for kind in category):
            scores["category"] = category
        return prompts, rollouts, scores

    def _trained_tokens(self, batch: Any) -> list[Tensor]:
        """Return the log-probabilities of each row's tokens that are trained."""
        trained = batch.completion_mask.bool()
        if self.overlong_filter:
            trained = trained & ~batch.truncated_mask[:, None]
        return [row[kept].cpu() for row, kept in zip(batch.old_per_token_logps, trained, strict=True)]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            save_window(self._estimator, Path(self.state.last_model_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and not self.args.resume_only_model:
            load_window(self._estimator, Path(checkpoint))


def _digest(content: Any) -> str:
    """Return a name of bytes, or of what has them: an image, an array."""
    data = content if isinstance(content, bytes) else content.tobytes()
    return f"{getattr(content, 'size', '')}{hashlib.sha256(data).hexdigest()}"
