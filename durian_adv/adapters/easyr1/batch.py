"""EasyR1: Durian's advantages for its batch, a ``DataProto``; ``durian_adv.adapters.easyr1`` has the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from durian_adv.adapters._batch import DurianOptions, batch_advantages, prompt_numbers

COLUMN = "visual_entropy"


def put_advantages(data: Any, options: DurianOptions) -> dict[str, float]:
    """Put ``advantages`` and ``returns`` into a ``DataProto`` as EasyR1's ``compute_advantage`` does; return metrics.

    A rollout's reward is the sum of its ``token_level_rewards``, its prompt that of its ``uid``, its confidence that of
    its ``old_log_probs`` where ``response_mask`` is 1, its visual entropy that of the dataset's column
    ``visual_entropy`` (None or NaN: no image). A rollout whose reward is not finite gets 0 and influences nothing.

    Raises:
        ValueError: there are images (or videos) and no column, or none of them has a number there, and
            ``options.weights`` count them; or a column that is not numbers.
    """
    batch, columns = data.batch, data.non_tensor_batch
    images = any(any(map(len, given.values())) for given in columns.get("multi_modal_data", ()) if given)
    check_entropy(images, columns, options)
    mask = batch["response_mask"]
    components, metrics = batch_advantages(
        batch["token_level_rewards"].sum(-1),
        prompt_numbers(columns["uid"]),
        logprobs=batch.get("old_log_probs", None),
        mask=mask,
        visual_entropy=_entropy(columns),
        images=images,
        options=options,
    )
    batch["advantages"] = components.advantages.unsqueeze(-1) * mask
    batch["returns"] = batch["advantages"]
    return metrics


def check_entropy(images: object, columns: Collection[str], options: DurianOptions) -> None:
    """Raise ValueError if there are images whose entropy has a weight and no column of it."""
    if images and COLUMN not in columns and options.weights[1] > 0:
        raise ValueError(
            f"{COLUMN}: expected a column of the dataset, for durian.weights[1] = {options.weights[1]} and images; got "
            f"{', '.join(columns)}. Add it (docs/easyr1.md), or set durian.weights[1] to 0"
        )


def _entropy(columns: Mapping[str, np.ndarray]) -> Tensor | None:
    if COLUMN not in columns:
        return None
    try:
        return torch.from_numpy(np.array(columns[COLUMN], dtype=np.float64))  # None becomes NaN
    except (TypeError, ValueError) as error:
        raise ValueError(f"{COLUMN}: expected one number or None per prompt in the dataset, got {error}") from None
