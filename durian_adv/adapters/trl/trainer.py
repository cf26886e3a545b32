"""TRL: ``DurianGRPOTrainer``, GRPO with difficulty-aware advantages, as a drop-in for ``trl.GRPOTrainer``."""

from __future__ import annotations

import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import trl
from accelerate.utils import gather_object
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from durian_adv._src import exact, rows
from durian_adv._src.errors import ArgumentError, ArgumentTypeError
from durian_adv.adapters._entropy import require_entropy
from durian_adv.adapters._fit import misfits
from durian_adv.adapters._preflight import open_log, prompts_check
from durian_adv.adapters._trainer import evaluator, load_window, save_window
from durian_adv.adapters.trl import forward
from durian_adv.adapters.trl.config import DurianConfig, check_base
from durian_adv.data.logs.rows import label
from durian_adv.data.logs.writer import PROMPT_ID, content_id
from durian_adv.data.scoring import towers
from durian_adv.estimator import AdvantageEstimator, Record

OLDEST_TESTED, NEWEST_TESTED = "1.0.0", "1.16.0"

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
_ATTRIBUTES = (
    "accelerator",
    "num_generations",
    "num_generations_eval",
    "reward_weights",
    "_logs",
    "_metrics",
    "log_completions",
)
_LOGPROBS = ("sampling_per_token_logps", "old_per_token_logps")
# what stands in TRL's table of completions beside its own columns, with durian_ before it
_TABLE = ("prompt", "group", "reward", "visual_entropy", "confidence", "category", "valid")

_Trainer: Any = GRPOTrainer if TYPE_CHECKING else object


class DurianMixin(_Trainer):
    """Durian's advantages for ``trl.GRPOTrainer`` or a subclass of it, which stands behind this class as a base.

    A prompt's visual entropy is that of the dataset's column ``visual_entropy``; else it is taken from the model's
    vision tower in forwards that TRL runs anyway, or, where these do not see every image, in one more forward of the
    tower. With several images it is their mean. Prompts without an image, or with None in the column, have none.

    A completion's confidence is taken from the log-probabilities of the sampler, else from those of the old policy,
    else from one more forward without gradients. Tokens of tools, and those whose log-probability is not finite, do not
    count. A completion without any other token, as of a truncated one that TRL masks, gets 0 and influences nothing.

    A prompt's category is that of the dataset's column ``category``, where ``durian_weights`` has a fourth number.

    Raises:
        TypeError: ``args`` has no options of Durian.
        RuntimeError: this version of TRL does not have the internals that are used here, or they do something else.
    """

    _tag_names = ["trl", "grpo", "durian"]  # noqa: RUF012  # as TRL declares it
    _name = "Durian"
    _paper = {  # noqa: RUF012  # as TRL declares it
        "title": "Enhancing Multi-Modal LLMs Reasoning via Difficulty-Aware Group Normalization",
        "id": "2602.21743",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check_base(self, DurianMixin, "GRPOTrainer", GRPOTrainer)
        config = kwargs.get("args", args[2] if len(args) > 2 else None)
        if not isinstance(config, DurianConfig):
            raise ArgumentTypeError("args", "a DurianGRPOConfig", type(config).__name__)
        bases = type(self).__mro__
        self._base: Any = bases[bases.index(DurianMixin) + 1]
        for misfit in misfits((self._base, name, parameters) for name, parameters in _METHODS.items()):
            raise _misfit(misfit)
        super().__init__(*args, **kwargs)
        for misfit in misfits((self, name, None) for name in _ATTRIBUTES):
            raise _misfit(misfit)
        for column in ("advantages", "extra", "prompt"):
            if column not in self._logs:
                raise _misfit(f"no {column} in the completions table")
        self._set_signature_columns_if_needed()
        # kept where unused columns are removed
        self._signature_columns.extend(("visual_entropy", "category", PROMPT_ID))
        self._vision = towers.find_vision(self.model)
        self._estimator = AdvantageEstimator(**self.args.durian_options)
        self._rewards_per_func: Tensor | None = None
        self._warned_of_few_prompts = False
        folder = self.args.durian_rollout_log
        self._is_logged = folder is not None or self.log_completions
        # every rank has the whole batch: one writes
        writes = folder is not None and self.accelerator.is_main_process
        self._log = open_log("durian_rollout_log", folder) if writes else None

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards_per_func = super()._calculate_rewards(*args, **kwargs)
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        mode = "train" if self.model.training else "eval"
        group = self.num_generations if mode == "train" else self.num_generations_eval
        self._rewards_per_func = None
        images = list(map(_num_images, inputs))  # before TRL puts those of columns into messages
        with self._watch_images(inputs, group, images) as caught:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        rewards = self._rewards(len(inputs), group)
        if group == 1:  # in evaluation: nothing to compare a completion with, and TRL's own advantages are 0
            self._extend_table(dict.fromkeys(_TABLE), len(rewards))
            return output
        start, table = self.accelerator.process_index * len(inputs), self._logs["advantages"]
        if len(table) >= len(rewards):  # the table is shorter than a large batch of an evaluation
            own = output["advantages"]
            logged = own.new_tensor(list(table)[-len(rewards) :][start : start + len(inputs)])
            if self._anywhere(not torch.equal(logged.nan_to_num(), own.nan_to_num()), own.device):
                raise _misfit(f"{self._base.__name__} gives rows other advantages than those of the batch it scored")
        with torch.no_grad():
            scores, counted = self._scores(inputs, output, group, caught, images)
        prompts = torch.arange(len(rewards), device=rewards.device) // group
        estimator = self._estimator if mode == "train" else evaluator(self._estimator, len(rewards) // group)
        advantages = estimator(rewards, prompts, **scores).to(output["advantages"])
        if mode == "train":
            self._warn_of_few_prompts(len(rewards) // group)

        output["advantages"] = advantages[start : start + len(inputs)]
        for _ in range(min(len(advantages), len(table))):
            table.pop()  # TRL's own
        table.extend(advantages.tolist())
        self._keep(inputs, group, estimator.record if mode == "train" else None, len(advantages))
        # of the whole batch, so the same on every rank; TRL logs means over steps: those where a number is defined
        for name, value in (estimator.metrics | counted).items():
            if not math.isnan(value):
                self._metrics[mode][name].append(value)
        return output

    def _keep(self, inputs: list[dict[str, Any]], group: int, record: Record | None, count: int) -> None:
        """Put the rollouts of a batch into the rollout log and TRL's table; None is an evaluation's, in neither."""
        columns: dict[str, Any] = dict.fromkeys(_TABLE)
        if record is not None and self._is_logged:
            # of every prompt one completion on some rank, as in _watch_images
            ids = gather_object([None if i % group else _prompt_id(example) for i, example in enumerate(inputs)])
            firsts = [next(known for known in ids[i : i + group] if known is not None) for i in range(0, count, group)]
            texts = [str(label(prompt)) for prompt in list(self._logs["prompt"])[-count:]]
            if getattr(self, "environments", None) and not any(PROMPT_ID in example for example in inputs):
                # an environment goes on with the dataset's prompt, which may be empty
                firsts = [content_id(first, texts[i * group]) for i, first in enumerate(firsts)]
            prompts = [firsts[i // group] for i in range(count)]
            category = gather_object([example.get("category") for example in inputs])
            if self._log is not None:
                step = self.state.global_step + 1
                self._log.write(step, record, prompts=prompts, texts=texts, category=category)
            columns = {
                "prompt": prompts,
                "group": record.prompt,
                "reward": record.rewards,
                "visual_entropy": record.visual_entropy,
                "confidence": record.confidence,
                "category": category,
                "valid": record.valid,
            }
        self._extend_table(columns, count)

    def _extend_table(self, columns: dict[str, Any], count: int) -> None:
        """Put columns of a batch into TRL's table of completions, None for those that are not known."""
        if self.log_completions:
            for name, values in columns.items():
                given = values.tolist() if isinstance(values, Tensor) else values
                self._logs["extra"][f"durian_{name}"].extend([None] * count if given is None else given)

    def _rewards(self, local: int, group: int) -> Tensor:
        """Return the rewards of the whole batch, ``(N,)``; NaN where no function gave one."""
        per_func = self._rewards_per_func
        if per_func is None:
            raise _misfit("scoring does not call _calculate_rewards")
        total = local * self.accelerator.num_processes
        if len(per_func) != total or total % group:
            raise _misfit(f"{len(per_func)} rewards for {total} completions in groups of {group}")
        # TRL's own rule: a function that returns None adds nothing, unless all do
        rewards = (per_func * self.reward_weights.to(per_func.device)).nansum(1)
        return torch.where(per_func.isnan().all(1), torch.nan, rewards)

    def _scores(
        self, inputs: list[dict[str, Any]], output: dict[str, Any], group: int, caught: list[float], images: list[int]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Return what the estimator takes of the whole batch beside rewards, and metrics; ranks gather no tokens."""
        mask = output["completion_mask"]
        if "tool_mask" in output:
            mask = mask * output["tool_mask"]
        counted = {}
        # to the estimator one token stands for all of a completion
        scores = {"mask": self.accelerator.gather(rows.has_tokens(mask, len(mask), mask.device))[:, None]}
        # a log has scores without a weight, too, where they cost nothing
        if self._estimator.needs("visual_entropy") or (self._is_logged and _has_column(inputs)):
            scores["visual_entropy"] = self._gathered_entropies(inputs, output, group, caught, images)
        at_hand = any(output.get(name) is not None for name in _LOGPROBS)
        if self._estimator.needs("confidence") or (self._is_logged and at_hand):
            found = rows.confidences(
                self._logprobs(output, mask),
                mask,
                len(mask),
                mask.device,
                reduction=self.args.durian_confidence_reduction,
            )
            scores["confidence"] = self.accelerator.gather(found.confidence.to(exact.working_dtype(mask.device)))
            tokens = self.accelerator.gather(torch.stack([found.nonfinite, found.total])).view(-1, 2).sum(0)
            counted["durian/nonfinite_token_share"] = rows.share(*tokens)
        if self._estimator.needs("category"):
            category = gather_object([example.get("category") for example in inputs])
            scores["category"] = category if any(kind is not None for kind in category) else None
        return scores, counted

    def _gathered_entropies(
        self, inputs: list[dict[str, Any]], output: dict[str, Any], group: int, caught: list[float], images: list[int]
    ) -> Tensor | None:
        """Return the entropy of every completion of the whole batch; None where none can be known."""
        found = self._entropies(inputs, output, group, caught, images)
        device = output["advantages"].device
        local = torch.tensor(found, dtype=exact.working_dtype(device), device=device)
        by_prompt: Tensor = self.accelerator.gather(local).view(-1, group)
        if bool(by_prompt.isnan().all()):
            if self._estimator.needs("visual_entropy") and self._anywhere(any(images), device):
                require_entropy(None, "durian_weights[1]")
            if self._vision is None:
                return None
        # of a prompt that lies on several ranks, each may know the entropy, to rounding
        known = (~by_prompt.isnan()).int().argmax(1, keepdim=True)
        return by_prompt.gather(1, known).expand_as(by_prompt).flatten()

    def _anywhere(self, here: bool, device: torch.device) -> bool:
        """Tell whether something is so on any rank."""
        return bool(self.accelerator.gather(torch.tensor([here], device=device)).any())

    def _watch_images(
        self, inputs: list[dict[str, Any]], group: int, images: list[int]
    ) -> AbstractContextManager[list[float]]:
        """Catch the entropies of one completion per prompt during the forwards that TRL runs.

        Completions of a prompt lie one after the other. So every G-th of a rank, from its first on, is one of each
        prompt there, but for a last one that goes on with the first of the next rank.
        """
        if self._vision is None or not self._estimator.needs("visual_entropy") or _has_column(inputs):
            return nullcontext([])
        wanted = [i % group == 0 for i, count in enumerate(images) for _ in range(count)]
        return towers.caught_entropies(self._vision, self.args.durian_features, wanted)

    def _entropies(
        self, inputs: list[dict[str, Any]], output: dict[str, Any], group: int, caught: list[float], own: list[int]
    ) -> list[float]:
        """Return the entropy of this rank's completions, NaN where not known or not needed."""
        if _has_column(inputs):
            column = [example.get("visual_entropy") for example in inputs]
            return [math.nan if value is None else float(value) for value in column]
        nothing = [math.nan] * len(inputs)
        images = output.get("num_images") or [0] * len(inputs)
        if self._vision is None:
            if any(images):
                raise ArgumentError(
                    "visual_entropy",
                    "a vision tower, a column visual_entropy in the dataset, or 0 for durian_weights[1]",
                    f"{type(self.model).__name__}, in which no tower was found",
                )
            return nothing
        # what is so on one rank is so for all: a sharded tower needs every rank in every call, and an error everywhere
        here = torch.tensor([images != own, len(caught) != sum(images)], device=output["advantages"].device)
        differ, missed = self.accelerator.gather(here).view(-1, 2).any(0).tolist()
        if differ:
            raise ArgumentError(
                "visual_entropy",
                "a column of the dataset where a batch's images are not those of its prompts (tools return images, or "
                "TRL leaves them out)",
                f"{sum(images)} images of prompts with {sum(own)} on rank {self.accelerator.process_index}",
            )
        if not missed:
            return towers.mean_by_sample(caught, images)
        if any(images):
            one_a_prompt = list(range(0, len(inputs), group))
            model = self.accelerator.unwrap_model(self.model)
            with self.accelerator.autocast():
                found = towers.tower_entropies(model, self._vision, self.args.durian_features, output, one_a_prompt)
            for i, value in zip(one_a_prompt, found, strict=True):
                nothing[i] = value
        return nothing

    def _logprobs(self, output: dict[str, Any], mask: Tensor) -> Tensor:
        """Return the log-probabilities of this rank's completions, the cheapest at hand."""
        found = next((output[name] for name in _LOGPROBS if output.get(name) is not None), None)
        sampled = output.get("sampling_per_token_logps") is not None
        if found is None:
            more = forward.inputs(output)
            for name in forward.refused(self._base._get_per_token_logps_and_entropies, more):
                raise _misfit(f"_get_per_token_logps_and_entropies does not take {name}")
            found = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([output["prompt_ids"], output["completion_ids"]], 1),
                torch.cat([output["prompt_mask"], output["completion_mask"]], 1),
                mask.shape[1],
                batch_size=min(len(mask), self._batch_size_of_a_forward()),
                **more,
            )[0]
        logprobs = found if sampled else forward.of_completions(found, output, self._pad())
        if logprobs is None or logprobs.shape != mask.shape:
            raise _misfit(f"log-probabilities of shape {tuple(found.shape)} for tokens of {tuple(mask.shape)}")
        return logprobs

    def _pad(self) -> int:
        tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
        return int(tokenizer.pad_token_id)

    def _batch_size_of_a_forward(self) -> int:
        args = self.args
        size: int = args.per_device_train_batch_size if self.model.training else args.per_device_eval_batch_size
        return size

    def _warn_of_few_prompts(self, prompts: int) -> None:
        """Warn once if the buckets of the batch and a full window hold too few prompts."""
        if self._warned_of_few_prompts or not self.accelerator.is_main_process:
            return
        images = "durian/visual_entropy_mean" in self._estimator.metrics
        check = prompts_check(prompts, self._estimator, images)
        if check.state != "ok":
            self._warned_of_few_prompts = True
            warnings.warn(f"a generation batch of {check.finding} See durian_window.", stacklevel=2)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            step = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            save_window(self._estimator, Path(self._get_output_dir(trial=trial), step))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_window(self._estimator, Path(checkpoint))


class DurianGRPOTrainer(DurianMixin, GRPOTrainer):
    """``trl.GRPOTrainer`` with Durian's advantages; takes the same arguments, and a ``DurianGRPOConfig`` as ``args``.

    ``DurianMixin`` says where scores come from, and what is refused.
    """


def _misfit(what: str) -> RuntimeError:
    return RuntimeError(
        f"TRL {trl.__version__} does not fit DurianGRPOTrainer, which was tested with {OLDEST_TESTED} to "
        f"{NEWEST_TESTED}: {what}"
    )


def _has_column(inputs: list[dict[str, Any]]) -> bool:
    return any("visual_entropy" in example for example in inputs)


def _prompt_id(example: dict[str, Any]) -> str:
    """Return the dataset's id of a prompt, else one made of what it asks."""
    if example.get(PROMPT_ID) is not None:
        return str(example[PROMPT_ID])
    return content_id(example.get("prompt"), example.get("image"), example.get("images"))


def _num_images(example: dict[str, Any]) -> int:
    """Count the images of an example where TRL looks for them: in its columns, and in the messages of its prompt."""
    messages = [message for message in example.get("prompt") or () if isinstance(message, dict)]
    every = [part for message in messages for part in message.get("content") or ()]  # of a string: its characters
    parts = [part for part in every if isinstance(part, dict) and part.get("type") == "image"]
    for column in ("images", "image"):
        if column in example:  # whose images take the places of parts that have none
            images = example[column]
            in_column = 0 if images is None else len(images) if column == "images" else 1
            return in_column + sum(part.get("image") is not None for part in parts)
    return len(parts)
