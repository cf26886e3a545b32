"""EasyR1: Durian's advantages for its batch, a ``DataProto``; ``durian_adv.adapters.easyr1`` has the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from durian_adv._src.errors import ArgumentError
from durian_adv.adapters._entropy import require_entropy
from durian_adv.data.logs.writer import PROMPT_ID, RolloutLog
from durian_adv.estimator import AdvantageEstimator

COLUMN, CATEGORY = "visual_entropy", "category"


def put_advantages(
    data: Any, estimator: AdvantageEstimator, log: RolloutLog | None = None, step: int = 0
) -> dict[str, float]:
    """Put ``advantages`` and ``returns`` into a ``DataProto`` as EasyR1's ``compute_advantage`` does; return metrics.

    A rollout's reward is the sum of its ``token_level_rewards``, its prompt that of its ``uid``, its confidence that of
    its ``old_log_probs`` where ``response_mask`` is 1, its visual entropy that of the dataset's column
    ``visual_entropy`` (None or NaN: no image), its category that of the column ``category``. A rollout whose reward is
    not finite, or of which no token counts, gets 0 and influences nothing. Where there is a ``log``, the batch is
    written into it as that of ``step``; a dataset's column ``prompt_id`` names the prompts there.

    Raises:
        ValueError: there are images (or videos) and no column, or none of them has a number there, and the estimator
            needs them; a column that is not numbers; no column of categories where these have a weight.
    """
    batch, columns = data.batch, data.non_tensor_batch
    images = any(any(map(len, given.values())) for given in columns.get("multi_modal_data", ()) if given)
    check_columns(images, columns, estimator)
    mask = batch["response_mask"]
    advantages = estimator(
        batch["token_level_rewards"].sum(-1),
        columns["uid"],
        logprobs=batch.get("old_log_probs", None),
        mask=mask,
        visual_entropy=_entropy(columns, images, estimator) if log or estimator.needs("visual_entropy") else None,
        category=columns[CATEGORY] if estimator.needs("category") else None,
    )
    batch["advantages"] = advantages.unsqueeze(-1) * mask
    batch["returns"] = batch["advantages"]
    if log is not None:
        log.write(step, estimator.record, prompts=columns.get(PROMPT_ID), category=columns.get(CATEGORY))
    return estimator.metrics


def check_columns(images: object, columns: Collection[str], estimator: AdvantageEstimator) -> None:
    """Raise an ``ArgumentError`` if the dataset lacks a column that the estimator needs."""
    weights = estimator.options["weights"]
    if images and COLUMN not in columns and estimator.needs("visual_entropy"):
        raise ArgumentError(
            COLUMN,
            f"a column of the dataset, for durian.weights[1] = {weights[1]} and images",
            f"{', '.join(columns)}. Add it (docs/easyr1.md), or set durian.weights[1] to 0",
        )
    if CATEGORY not in columns and estimator.needs("category"):
        expected = f"a column of the dataset, for durian.weights[3] = {weights[3]}"
        raise ArgumentError(CATEGORY, expected, ", ".join(columns))


def _entropy(columns: Mapping[str, np.ndarray], images: bool, estimator: AdvantageEstimator) -> np.ndarray:
    given = columns.get(COLUMN, np.full(len(columns["uid"]), np.nan))
    try:
        entropy = np.array(given, dtype=np.float64)  # None becomes NaN
    except (TypeError, ValueError) as error:
        raise ArgumentError(COLUMN, "one number or None per prompt in the dataset", error) from None
    if images and estimator.needs("visual_entropy"):
        require_entropy(torch.from_numpy(entropy), "durian.weights[1]")
    return entropy
