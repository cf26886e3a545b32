"""OpenRLHF: the experience maker with Durian's advantages; ``durian_adv.adapters.openrlhf`` puts it into trainers."""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from openrlhf.trainer import ppo_trainer
from openrlhf.trainer.ppo_utils import experience_maker
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from openrlhf.trainer.ray import launcher
from openrlhf.utils import vlm_utils
from openrlhf.utils.logging_utils import init_logger
from openrlhf.utils.utils import zero_pad_sequences
from torch import Tensor

from durian_adv._src.errors import ArgumentError
from durian_adv.adapters._entropy import require_entropy
from durian_adv.adapters._fit import misfits
from durian_adv.adapters._preflight import described, open_log, prompts_check
from durian_adv.adapters.openrlhf import settings
from durian_adv.data.logs.writer import RolloutLog, content_id
from durian_adv.estimator import AdvantageEstimator

logger = init_logger(__name__)

# What is used of OpenRLHF: where, the name, and the parameters it is called with
_USED = (
    (ppo_trainer, "RemoteExperienceMaker", None),
    (ppo_trainer.BasePPOTrainer, "_compute_rollout_stats", ("experiences",)),
    (ppo_trainer.BasePPOTrainer, "train_step", ("rollout_samples", "global_step")),
    (experience_maker, "compute_reward", ("r",)),
    (RemoteExperienceMaker, "compute_advantages_and_returns", ("experiences",)),
    (RemoteExperienceMaker, "_flatten_results", ("refs", "duplicate_factor")),
    (launcher.RayActorGroup, "async_run_method_batch", ("method_name", "kwargs")),
    (launcher.BaseModelActor, "execute_batch", ("method_name", "all_data")),
    (vlm_utils, "merge_mm_train_inputs", ("mm_train_inputs_list", "device")),
)
_FIELDS = ("index", "prompts", "images", "mm_train_inputs", "info", "rewards", "action_mask", "action_log_probs")

_rollout_stats = ppo_trainer.BasePPOTrainer._compute_rollout_stats
_train_step = ppo_trainer.BasePPOTrainer.train_step


class DurianExperienceMaker(RemoteExperienceMaker):
    """OpenRLHF's experience maker, in which Durian's advantages take the place of those of ``group_norm``.

    KL, length penalties, ``reward.clip_range`` (of the normalized value), dynamic batches and all else are OpenRLHF's.

    A prompt's visual entropy is ``Experience.info["visual_entropy"]``, where the reward or agent function returns it in
    its ``extra_logs``; else the mean over its images in the ``entropy_table``; else it is computed in the actor, for
    prompts whose images the model sees. A response's confidence comes from ``action_log_probs``, a prompt's category,
    a number, from ``Experience.info["category"]``.

    Raises:
        TypeError, ValueError: the options, or the estimator that OpenRLHF was started with, do not fit.
        ModuleNotFoundError: pyarrow is not installed, for a rollout log.
        RuntimeError: this version of OpenRLHF does not fit.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not hasattr(getattr(self.args, "rollout", None), "n_samples_per_prompt"):
            raise settings.misfit("no rollout.n_samples_per_prompt among its arguments")
        self._settings = settings.options_of(os.environ)
        self._estimator = AdvantageEstimator(**self._settings.options)
        self._samples = int(self.args.rollout.n_samples_per_prompt)
        self.durian_metrics: dict[str, float] = {}
        self.durian_step = 0  # that the batch belongs to
        folder = self._settings.rollout_log
        self._log = None if folder is None else open_log(f"{settings.OPTIONS}.rollout_log", folder)
        if self.advantage_estimator != settings.ESTIMATOR:
            raise ArgumentError(
                "algo.advantage.estimator",
                f"{settings.ESTIMATOR!r}, in whose place Durian's advantages are put",
                f"{self.advantage_estimator!r}. Without Durian, leave {settings.HOOK} out of the runtime environment",
            )
        file = self._settings.entropy_table
        self._entropy_table = None if file is None else settings.read_table(file)
        images = getattr(self.args.data, "max_images_per_prompt", 0) > 0
        check = prompts_check(self.args.rollout.batch_size, self._estimator, images)
        level = logging.INFO if check.state == "ok" else logging.WARNING
        logger.log(level, "Durian: %s; %s", described(self._estimator), check.finding)

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """OpenRLHF's own, with Durian's advantages where it has those of ``group_norm``."""
        prompts = self._prompts(experiences)
        own: Iterator[Tensor] | None = None

        def with_durian(r: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal own
            if own is None:  # not before: by now the rewards have their length penalties
                own = iter(self._advantages(experiences, prompts))
            advantages = next(own, None)
            if advantages is None or advantages.shape != r.shape:
                raise settings.misfit("compute_reward is not called once for each Experience, in their order")
            return upstream(advantages, *args, **kwargs)

        with _in_place_of_compute_reward(with_durian) as upstream:
            experiences = super().compute_advantages_and_returns(experiences)
        if experiences and (own is None or next(own, None) is not None):
            raise settings.misfit("compute_reward is not called once for each Experience, in their order")
        return experiences

    def _prompts(self, experiences: Sequence[Experience]) -> np.ndarray:
        """Return the prompt of each rollout, ``(N,)``, as OpenRLHF numbers them.

        A rollout's ``index`` is its place before dynamic batches change the order, in which the rollouts of a prompt,
        always ``n_samples_per_prompt``, follow each other.
        """
        samples = self._samples
        index: np.ndarray = np.fromiter(_chained(experiences, "index"), np.int64)
        if len(index) % samples or not np.array_equal(np.sort(index), np.arange(len(index))):
            raise ArgumentError(
                "index",
                f"0 to N - 1 in any order, N a multiple of n_samples_per_prompt={samples}",
                f"{len(index)} numbers from {index.min()} to {index.max()}",
            )
        prompts = index // samples
        texts = list(_chained(experiences, "prompts"))
        if len(texts) == len(prompts) and len(set(zip(prompts.tolist(), texts, strict=True))) > len(index) // samples:
            raise ArgumentError(
                "prompts",
                f"n_samples_per_prompt={samples} rollouts of each prompt, one after the other by index",
                "different prompts among them: OpenRLHF would take them for one",
            )
        return prompts

    def _advantages(self, experiences: Sequence[Experience], prompts: np.ndarray) -> Sequence[Tensor]:
        """Return the advantages of each Experience's rollouts; keep the metrics."""
        needs, weight = self._estimator.needs, f"{settings.OPTIONS}.weights"
        logprobs = entropy = category = None
        if needs("confidence") or self._log is not None:
            logprobs = zero_pad_sequences([e.action_log_probs for e in experiences], side="right")
        if needs("visual_entropy"):
            entropy = self._entropies(experiences, prompts)
            images = any(value is not None for value in _chained(experiences, "mm_train_inputs"))
            if images or any(_references(value) for value in _chained(experiences, "images")):
                require_entropy(entropy, f"{weight}[1]")
            entropy = torch.full((len(prompts),), torch.nan) if entropy is None else entropy
        elif self._log is not None:
            entropy = _returned(experiences, "visual_entropy")
        if needs("category"):
            category = _returned(experiences, "category")
            if category is None:
                expected = f"a number in extra_logs of the reward function, for {weight}[3] > 0"
                raise ArgumentError("info['category']", expected, "none")
        advantages = self._estimator(
            torch.cat([e.rewards for e in experiences]),
            prompts,
            logprobs=logprobs,
            mask=zero_pad_sequences([e.action_mask.bool() for e in experiences], side="right"),
            visual_entropy=entropy,
            category=category,
        )
        self.durian_metrics = self._estimator.metrics
        if self._log is not None:
            self._write(experiences, self._log, category)
        return torch.split(advantages, [len(e.index) for e in experiences])

    def _write(self, experiences: Sequence[Experience], log: RolloutLog, category: Tensor | None) -> None:
        """Write the batch into the rollout log; a prompt is its text and what names its images."""
        texts = list(_chained(experiences, "prompts"))
        images = list(_chained(experiences, "images")) or [None] * len(texts)
        category = _returned(experiences, "category") if category is None else category
        log.write(
            self.durian_step,
            self._estimator.record,
            prompts=[content_id(*prompt) for prompt in zip(texts, images, strict=True)] or None,
            texts=texts or None,
            category=None if category is None else category.tolist(),
        )

    def _entropies(self, experiences: Sequence[Experience], prompts: np.ndarray) -> Tensor | None:
        """Return the visual entropy of each rollout, ``(N,)``, NaN for a prompt without an image; None without any."""
        if (returned := _returned(experiences, "visual_entropy")) is not None:
            return returned
        # the first rollout of each prompt by its number, whatever the order of the batch is
        first = np.argsort(np.fromiter(_chained(experiences, "index"), np.int64))[:: self._samples]
        name = "images" if self._entropy_table is not None else "mm_train_inputs"
        found = list(_chained(experiences, name))
        if not any(value is not None for value in found):
            return None
        if len(found) != len(prompts):
            raise ArgumentError(name, f"one per rollout, {len(prompts)}", len(found))
        if self._entropy_table is None:
            _check_images(found, list(_chained(experiences, "images")), first[prompts])
        of_prompts = [found[i] for i in first]
        entropies = self._looked_up(of_prompts) if self._entropy_table is not None else self._computed(of_prompts)
        return torch.tensor(entropies, dtype=torch.float64)[torch.from_numpy(prompts)]

    def _looked_up(self, images: Sequence[Any]) -> list[float]:
        """Return the mean of each prompt's images that have an entropy in the table."""
        table = self._entropy_table or {}

        def of_prompt(references: Any) -> float:
            listed = _references(references)
            for reference in listed:
                if not isinstance(reference, str) or reference not in table:
                    raise ArgumentError(
                        str(self._settings.entropy_table),
                        "the entropy of every image of the dataset",
                        f"none for {reference!r}",
                    )
            known = [table[reference] for reference in listed if not math.isnan(table[reference])]
            return sum(known) / len(known) if known else float("nan")

        return [of_prompt(references) for references in images]

    def _computed(self, inputs: Sequence[Any]) -> list[float]:
        """Have the actor compute the entropy of each prompt's images."""
        group, entropies = self.actor_model_group, [float("nan")] * len(inputs)
        there = [i for i, value in enumerate(inputs) if value is not None]
        # as many calls on every rank: where a tower is sharded, all of them take part in each
        ranks = len(group._actor_handlers) // group.duplicate_actors
        padded = there + there[-1:] * (-len(there) % ranks)
        refs = group.async_run_method_batch(
            method_name=settings.ENTROPY_METHOD,
            mm_train_inputs=[inputs[i] for i in padded],
            features=[self._settings.features] * len(padded),
        )
        for i, entropy in zip(padded, self._flatten_results(refs, group.duplicate_actors), strict=True):
            entropies[i] = entropy
        return entropies


def _returned(experiences: Sequence[Experience], name: str) -> Tensor | None:
    """Return what the reward function gave for each rollout in its extra_logs, ``(N,)``; None if it gave nothing."""
    returned = [e.info.get(name) for e in experiences]
    if all(values is None for values in returned):
        return None
    sizes = [0 if values is None else len(values) for values in returned]
    expected = [len(e.index) for e in experiences]
    if sizes != expected:  # a key that one rollout lacks shortens OpenRLHF's vector
        text = f"one per rollout, {sum(expected)}; return it in extra_logs for every rollout, nan where there is none"
        raise ArgumentError(f"info[{name!r}]", text, sum(sizes))
    return torch.cat(returned).double()


def install() -> None:
    """Put the maker and its metrics into OpenRLHF's trainers, or nothing at all."""
    check_fit()
    ppo_trainer.RemoteExperienceMaker = DurianExperienceMaker
    ppo_trainer.BasePPOTrainer._compute_rollout_stats = _rollout_stats_and_metrics
    ppo_trainer.BasePPOTrainer.train_step = _numbered_train_step


def _numbered_train_step(self: Any, rollout_samples: Any, global_step: int) -> Any:
    self.experience_maker.durian_step = global_step + 1
    return _train_step(self, rollout_samples, global_step)


def _rollout_stats_and_metrics(self: Any, experiences: Sequence[Experience]) -> dict[str, float]:
    return {**_rollout_stats(self, experiences), **self.experience_maker.durian_metrics}


def check_fit() -> None:
    """Raise RuntimeError if this OpenRLHF does not have what is used here."""
    for misfit in misfits(_USED):
        raise settings.misfit(misfit)
    for name in _FIELDS:
        if name not in Experience.__dataclass_fields__:
            raise settings.misfit(f"Experience has no {name}")


def _chained(experiences: Sequence[Experience], name: str) -> Iterator[Any]:
    return itertools.chain.from_iterable(getattr(experience, name) or () for experience in experiences)


def _references(images: Any) -> list[Any]:
    """Return the images of a prompt, which has one, a list, or none."""
    listed = images if isinstance(images, list) else [images]
    return [reference for reference in listed if reference is not None]


def _check_images(inputs: Sequence[Any], references: Sequence[Any], firsts: np.ndarray) -> None:
    """Require that a rollout's inputs are its prompt's images, which an environment may have added some to."""

    def shapes(values: Any) -> dict[str, Any]:
        return {name: getattr(value, "shape", None) for name, value in (values or {}).items()}

    of_first = {first: shapes(inputs[first]) for first in set(firsts.tolist())}
    differ = any(shapes(values) != of_first[first] for values, first in zip(inputs, firsts.tolist(), strict=True))
    if not differ and len(references) == len(inputs):
        counts = [(len((inputs[i] or {}).get("image_grid_thw", ())), len(_references(references[i]))) for i in of_first]
        differ = any(seen > given for seen, given in counts)
    if differ:
        raise ArgumentError(
            "mm_train_inputs",
            "a prompt's own images and no others, the same for all of its rollouts; where an environment shows more, "
            "return visual_entropy in extra_logs, or name an entropy_table",
        )


@contextmanager
def _in_place_of_compute_reward(function: Callable[..., Tensor]) -> Iterator[Callable[..., Tensor]]:
    upstream = experience_maker.compute_reward
    experience_maker.compute_reward = function
    try:
        yield upstream
    finally:
        experience_maker.compute_reward = upstream
