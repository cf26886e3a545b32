"""ms-swift: ``DurianGRPOTrainer``, its GRPO trainer with Durian's advantages, which the plugin puts into its place."""

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
from durian_adv.adapters._preflight import described, open_log, prompts_check
from durian_adv.adapters._trainer import evaluator, load_window, save_window
from durian_adv.adapters.swift import require_fit
from durian_adv.data.logs.rows import label
from durian_adv.data.logs.writer import content_id
from durian_adv.data.scoring import towers
from durian_adv.estimator import AdvantageEstimator


class DurianGRPOTrainer(GRPOTrainer):
    """ms-swift's GRPO trainer with Durian's advantages; ``args`` is a ``DurianGRPOConfig``.

    A prompt's visual entropy is that of the column ``visual_entropy``; else the mean over its images, which are seen in
    the vision tower while the old policy's log-probabilities are computed. Confidences come from these, over the tokens
    that are trained. A completion without a reward or without such a token gets 0 and influences nothing.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require_fit(self)
        if self.template.sequence_parallel_size > 1:
            raise ArgumentError("sequence_parallel_size", "1, as samples lie on other ranks beyond", "more")
        self._estimator = AdvantageEstimator(**self.args.durian_options)
        self._vision: Any = towers.find_vision(self.accelerator.unwrap_model(self.model))
        self._wanted: Any = iter(())
        folder = self.args.durian_rollout_log if self.accelerator.is_main_process else None
        self._log = None if folder is None else open_log("durian_rollout_log", folder)
        prompts = self.args.generation_batch_size / self.num_generations
        check = prompts_check(prompts, self._estimator, self.is_multimodal)
        log = get_logger().info if check.state == "ok" else get_logger().warning
        log(f"Durian: {described(self._estimator)}; {check.finding}")

    def _add_prompt_id_to_inputs(self, samples: list[Any]) -> list[Any]:
        """Make ids of all that a prompt consists of; ms-swift's know only its messages, and only within a batch."""
        for x in super()._add_prompt_id_to_inputs(samples):
            x.prompt_id = content_id(x.messages, x.images, x.videos, x.audios, x.tools, x.objects)
        return samples

    def _prepare_batch_inputs(self, samples: list[Any]) -> Any:
        chunks = self.split_by_mini_batches(samples) if self._uses_tower(samples) else ()
        first = {x.prompt_id: x for x in reversed(samples)}
        self._wanted = iter([[first[x.prompt_id] is x for x in chunk for _ in x.images or ()] for chunk in chunks])
        self._caught: list[float] = []
        return super()._prepare_batch_inputs(samples)

    def _uses_tower(self, samples: list[Any]) -> bool:
        """Return whether entropies are taken from the tower; not where a teacher's forward cannot be told apart."""
        column = any("visual_entropy" in x.extra for x in samples)
        teacher = any(x.teacher_prompt or x.teacher_images is not None for x in samples)
        return self._estimator.needs("visual_entropy") and self._vision is not None and not (column or teacher)

    def _get_per_token_logps_and_entropies(self, model: Any, model_inputs: Any, grpo_batch: Any, **kwargs: Any) -> Any:
        """See the images of a completion of each prompt pass, in the old policy's forward, the first of a batch."""
        first = model is self.model and grpo_batch.old_per_token_logps is None
        if not first or (wanted := next(self._wanted, None)) is None:
            return super()._get_per_token_logps_and_entropies(model, model_inputs, grpo_batch, **kwargs)
        with towers.caught_entropies(self._vision, self.args.durian_features, wanted) as caught:
            found = super()._get_per_token_logps_and_entropies(model, model_inputs, grpo_batch, **kwargs)
        self._caught += caught
        return found

    def _compute_advantages(self, samples: list[Any], rewards_per_func: Tensor, batch_encoded_inputs: Any) -> Tensor:
        own: Tensor = super()._compute_advantages(samples, rewards_per_func, batch_encoded_inputs)  # and its metrics
        mode, group = ("train", self.num_generations) if self.model.training else ("eval", self.num_generations_eval)
        if group == 1:  # nothing to compare a completion with, and ms-swift's own advantages are 0
            return own
        batches = [encoded["grpo_batch"] for encoded in batch_encoded_inputs]
        rows, scores = self._scores(samples, batches)
        prompts: list[Any] = [i // group for i in range(len(own))]  # they lie side by side; one may be drawn twice
        if self.dynamic_num_samples:  # but where rollouts have as many rows as they like
            prompts, scores["rollouts"] = rows["prompts"], rows["rollouts"]
        estimator = self._estimator if mode == "train" else evaluator(self._estimator, len(set(prompts)))
        advantages = estimator(self._rewards(rewards_per_func, batches), prompts, **scores)
        if self._log is not None and mode == "train":
            named = {name: rows[name] for name in ("prompts", "texts", "category")}
            self._log.write(self.state.global_step + 1, estimator.record, **named)
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

    def _scores(self, samples: list[Any], batches: list[Any]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
        """Return what is known of every row of the whole batch, and what the estimator takes of it."""
        entropies = [sample.extra.get("visual_entropy") for sample in samples]
        if self._uses_tower(samples):
            entropies = towers.mean_by_sample(self._caught, [len(sample.images or ()) for sample in samples])
        trained = [b.completion_mask.bool() & ~(b.truncated_mask[:, None] & self.overlong_filter) for b in batches]
        local = {
            "prompts": [sample.prompt_id for sample in samples],
            "rollouts": [sample.request_id for sample in samples],
            "texts": [str(label([m for m in x.messages if m["role"] != "assistant"])) for x in samples],
            "images": [bool(sample.images or sample.videos) for sample in samples],
            "of_tools": [bool(x.rollout_infos.get("images") or x.rollout_infos.get("videos")) for x in samples],
            "category": [sample.extra.get("category") for sample in samples],
            "entropies": [math.nan if value is None else float(value) for value in entropies],
            "logprobs": [row.cpu() for batch in batches for row in batch.old_per_token_logps],
            "mask": [row.cpu() for mask in trained for row in mask],
        }
        ranks = gather_object([local])  # ms-swift gathers the text of every row as well
        rows = {name: [value for rank in ranks for value in rank[name]] for name in local}
        if self._uses_tower(samples) and any(rows["of_tools"]):  # which are not the prompt's
            raise ArgumentError("visual_entropy", "a column of the dataset, as a scheduler returns images", "none")
        known = {p: x for p, x in zip(rows["prompts"], rows["entropies"], strict=True) if not math.isnan(x)}
        entropy = torch.tensor([known.get(prompt, math.nan) for prompt in rows["prompts"]], dtype=torch.float64)
        if any(rows["images"]) and self._estimator.needs("visual_entropy"):
            require_entropy(entropy, "durian_weights[1]")
        kinds = rows["category"] if self._estimator.needs("category") else []
        scores = {"visual_entropy": entropy, "category": kinds if any(kind is not None for kind in kinds) else None}
        return rows, scores | {name: rows[name] for name in ("logprobs", "mask")}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            save_window(self._estimator, Path(self.state.last_model_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and not self.args.resume_only_model:
            load_window(self._estimator, Path(checkpoint))
