"""TRL: ``DurianGRPOTrainer``, GRPO with difficulty-aware advantages, as a drop-in for ``trl.GRPOTrainer``."""

from __future__ import annotations

import inspect
import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import trl
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from durian_adv import DurianComponents, durian_components, sequence_confidence
from durian_adv._src import exact
from durian_adv.adapters.trl.config import DurianGRPOConfig
from durian_adv.data.scoring import towers
from durian_adv.diagnostics import durian_metrics, few_prompts_warning
from durian_adv.window import Window, windowed_components

__all__ = ["DurianGRPOConfig", "DurianGRPOTrainer"]

OLDEST_TESTED, NEWEST_TESTED = "1.0.0", "1.16.0"
WINDOW_FILE = "durian_window.pt"

# What is used of GRPOTrainer beyond its public interface: methods with the parameters they are called with
_METHODS = {
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_generate_and_score_completions": ("inputs",),
    "_get_per_token_logps_and_entropies": ("model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"),
    "_get_output_dir": ("trial",),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_save_checkpoint": ("model", "trial"),
    "_set_signature_columns_if_needed": (),
}
_ATTRIBUTES = ("accelerator", "num_generations", "num_generations_eval", "reward_weights", "_logs", "_metrics")


class DurianGRPOTrainer(GRPOTrainer):
    """``trl.GRPOTrainer`` with Durian's advantages; takes the same arguments, and a ``DurianGRPOConfig`` as ``args``.

    A prompt's visual entropy is that of the dataset's column ``visual_entropy``; else it is taken from the model's
    vision tower in forwards that TRL runs anyway, or, where these do not see every image, in one more forward of the
    tower. With several images it is their mean. Prompts without an image, or with None in the column, have none.

    A completion's confidence is taken from the log-probabilities of the sampler, else from those of the old policy,
    else from one more forward without gradients. Tokens of tools and of truncated completions that TRL masks do not
    count.

    Raises:
        TypeError: ``args`` is not a ``DurianGRPOConfig``.
        RuntimeError: this version of TRL does not have the internals that are used here, or they do something else.
    """

    _tag_names = ["trl", "grpo", "durian"]  # noqa: RUF012  # as TRL declares it
    _name = "Durian"
    _paper = {  # noqa: RUF012  # as TRL declares it
        "title": "Enhancing Multi-Modal LLMs Reasoning via Difficulty-Aware Group Normalization",
        "id": "2602.21743",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for method, parameters in _METHODS.items():
            found = getattr(GRPOTrainer, method, None)
            if found is None:
                raise _misfit(f"no method {method}")
            if not set(parameters) <= set(inspect.signature(found).parameters):
                raise _misfit(f"{method} does not take {', '.join(parameters)}")
        config = inspect.signature(GRPOTrainer.__init__).bind(self, *args, **kwargs).arguments.get("args")
        if not isinstance(config, DurianGRPOConfig):
            raise TypeError(f"args: expected a DurianGRPOConfig, got {type(config).__name__}")
        super().__init__(*args, **kwargs)
        for attribute in _ATTRIBUTES:
            if not hasattr(self, attribute):
                raise _misfit(f"no attribute {attribute}")
        if "advantages" not in self._logs:
            raise _misfit("no advantages in the completions table")
        self._set_signature_columns_if_needed()
        self._signature_columns.append("visual_entropy")  # kept where unused columns are removed
        self._vision = towers.find_vision(self.model)
        self._window: Window | None = None
        self._rewards_per_func: Tensor | None = None
        self._warned_of_few_prompts = False

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards_per_func = super()._calculate_rewards(*args, **kwargs)
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        mode = "train" if self.model.training else "eval"
        group = self.num_generations if mode == "train" else self.num_generations_eval
        self._rewards_per_func = None
        with self._watch_images(inputs, group) as caught:
            output = super()._generate_and_score_completions(inputs)
        rewards = self._rewards(len(inputs), group)
        with torch.no_grad():
            entropy, confidence = self._scores(inputs, output, group, caught)
        scores = {"visual_entropy": entropy, "confidence": confidence, **self.args.durian_options}
        if mode == "train":
            parts, self._window = windowed_components(
                rewards, window=self._window, size=self.args.durian_window, **scores
            )
            self._warn_of_few_prompts(parts)
        else:  # other prompts, perhaps with other numbers of completions: they stay apart from the window
            parts = durian_components(rewards, **scores)

        advantages = parts.advantages.flatten().to(output["advantages"])
        start = self.accelerator.process_index * len(inputs)
        output["advantages"] = advantages[start : start + len(inputs)]
        table = self._logs["advantages"]
        for _ in range(min(len(advantages), len(table))):
            table.pop()  # TRL's own
        table.extend(advantages.tolist())
        # of the whole batch, so the same on every rank
        metrics = durian_metrics(parts, rewards, success_threshold=self.args.durian_success_threshold)
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        return output  # type: ignore[no-any-return]  # TRL is not typed

    def _rewards(self, local: int, group: int) -> Tensor:
        """Return the rewards of the whole batch, one prompt per row; NaN where no function gave one."""
        per_func = self._rewards_per_func
        if per_func is None:
            raise _misfit("scoring does not call _calculate_rewards")
        total = local * self.accelerator.num_processes
        if len(per_func) != total or total % group:
            raise _misfit(f"{len(per_func)} rewards for {total} completions in groups of {group}")
        # TRL's own rule: a function that returns None adds nothing, unless all do
        rewards = (per_func * self.reward_weights.to(per_func.device)).nansum(1)
        return torch.where(per_func.isnan().all(1), torch.nan, rewards).view(-1, group)

    def _scores(
        self, inputs: list[dict[str, Any]], output: dict[str, Any], group: int, caught: list[float]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return entropy ``(B,)`` and confidence ``(B, G)`` of the whole batch; None for a component without weight."""
        _, perceptual, reasoning = self.args.durian_weights
        device = output["advantages"].device
        dtype = exact.working_dtype(device)
        entropy = confidence = None
        if perceptual > 0:
            local = torch.tensor(self._entropies(inputs, output, group, caught), dtype=dtype, device=device)
            by_prompt = self.accelerator.gather(local).view(-1, group)
            # of a prompt that lies on several ranks, each may know the entropy
            known = (~by_prompt.isnan()).int().argmax(1, keepdim=True)
            entropy = by_prompt.gather(1, known).squeeze(1)
            if bool(entropy.isnan().all()):
                entropy = None  # no images in this batch
        if reasoning > 0:
            local = self._confidences(output).to(dtype)
            confidence = self.accelerator.gather(local).view(-1, group)
        return entropy, confidence

    def _watch_images(self, inputs: list[dict[str, Any]], group: int) -> AbstractContextManager[list[float]]:
        """Catch the entropies of one completion per prompt during the forwards that TRL runs.

        Completions of a prompt lie one after the other. So every G-th of a rank, from its first on, is one of each
        prompt there, but for a last one that goes on with the first of the next rank.
        """
        if self._vision is None or self.args.durian_weights[1] == 0 or _has_column(inputs):
            return nullcontext([])
        wanted = [i % group == 0 for i, count in enumerate(map(_num_images, inputs)) for _ in range(count)]
        return towers.caught_entropies(self._vision, self.args.durian_features, wanted)

    def _entropies(
        self, inputs: list[dict[str, Any]], output: dict[str, Any], group: int, caught: list[float]
    ) -> list[float]:
        """Return the entropy of this rank's completions, NaN where not known or not needed."""
        if _has_column(inputs):
            column = [example.get("visual_entropy") for example in inputs]
            return [math.nan if value is None else float(value) for value in column]
        nothing = [math.nan] * len(inputs)
        images = output.get("num_images") or [0] * len(inputs)
        if self._vision is None:
            if any(images):
                raise ValueError(
                    f"visual entropy: no vision tower found in {type(self.model).__name__}. Put a column "
                    "visual_entropy into the dataset, or set durian_weights[1] to 0"
                )
            return nothing
        missed = images != list(map(_num_images, inputs)) or len(caught) != sum(images)
        # a sharded tower needs every rank in every call
        if not bool(self.accelerator.gather(torch.tensor([missed], device=output["advantages"].device)).any()):
            return towers.mean_by_sample(caught, images)
        if any(images):
            one_a_prompt = list(range(0, len(inputs), group))
            model = self.accelerator.unwrap_model(self.model)
            with self.accelerator.autocast():
                found = towers.tower_entropies(model, self._vision, self.args.durian_features, output, one_a_prompt)
            for i, value in zip(one_a_prompt, found, strict=True):
                nothing[i] = value
        return nothing

    def _confidences(self, output: dict[str, Any]) -> Tensor:
        """Return the confidence of this rank's completions, from the cheapest log-probabilities at hand."""
        mask = output["completion_mask"]
        if "tool_mask" in output:
            mask = mask * output["tool_mask"]
        for name in ("sampling_per_token_logps", "old_per_token_logps"):
            if name in output:
                logprobs = output[name]
                break
        else:
            accepted = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
            logprobs = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([output["prompt_ids"], output["completion_ids"]], 1),
                torch.cat([output["prompt_mask"], output["completion_mask"]], 1),
                mask.shape[1],
                batch_size=min(len(mask), self._batch_size_of_a_forward()),
                **{name: output[name] for name in accepted if name in output},
            )[0]
        return sequence_confidence(logprobs, mask, reduction=self.args.durian_confidence_reduction)

    def _batch_size_of_a_forward(self) -> int:
        args = self.args
        size: int = args.per_device_train_batch_size if self.model.training else args.per_device_eval_batch_size
        return size

    def _warn_of_few_prompts(self, parts: DurianComponents) -> None:
        """Warn once if the buckets of the batch and a full window hold fewer than 2 prompts on average."""
        if self._warned_of_few_prompts or not self.accelerator.is_main_process:
            return
        text = few_prompts_warning(
            parts,
            entropy_quantiles=self.args.durian_entropy_quantiles,
            num_confidence_buckets=self.args.durian_num_confidence_buckets,
            window=self.args.durian_window,
        )
        if text is not None:
            self._warned_of_few_prompts = True
            warnings.warn(f"a generation batch of {text} See durian_window.", stacklevel=2)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.durian_window > 0 and self._window is not None and self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            torch.save(self._window._asdict(), folder / WINDOW_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.args.durian_window == 0 or checkpoint is None:
            return
        file = Path(checkpoint, WINDOW_FILE)
        if file.exists():
            saved = torch.load(file, map_location="cpu", weights_only=True)
            device = self.accelerator.device
            self._window = Window._make(v if v is None else v.to(device) for v in map(saved.get, Window._fields))
        else:
            warnings.warn(f"{checkpoint} has no {WINDOW_FILE}: the window of recent prompts starts empty", stacklevel=2)


def _misfit(what: str) -> RuntimeError:
    return RuntimeError(
        f"TRL {trl.__version__} does not fit DurianGRPOTrainer, which was tested with {OLDEST_TESTED} to "
        f"{NEWEST_TESTED}: {what}"
    )


def _has_column(inputs: list[dict[str, Any]]) -> bool:
    return any("visual_entropy" in example for example in inputs)


def _num_images(example: dict[str, Any]) -> int:
    """Count the images of an example where TRL looks for them: in its columns, else in the messages of its prompt."""
    for column in ("images", "image"):
        if column in example:
            images = example[column]
            return 0 if images is None else len(images) if column == "images" else 1
    messages = [message for message in example.get("prompt") or () if isinstance(message, dict)]
    parts = [part for message in messages for part in message.get("content") or ()]  # of a string: its characters
    return sum(isinstance(part, dict) and part.get("type") == "image" for part in parts)
