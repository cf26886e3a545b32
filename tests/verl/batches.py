"""Batches in verl's form: uneven prompts in any order, NaN rewards, responses and masks of any length."""

import numpy as np
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo import ray_trainer

from durian_adv import durian_components, sequence_confidence

LENGTH = 6


def algorithm(**options):
    """verl's ``algorithm`` with options of Durian."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", ["algorithm.adv_estimator=durian"]).algorithm
    OmegaConf.set_struct(config, False)
    config.durian = options
    return config


ALGORITHM = algorithm()


def with_options(**options):
    return OmegaConf.merge(ALGORITHM, {"durian": options})


def random_batch(rng, prompts=6, nan=0.1, kinds=3):
    """Prompts with 1 to 5 responses each, shuffled; the reward on the last token of a response, as verl has it."""
    counts = rng.integers(1, 6, prompts)
    uid = np.repeat([f"{rng.integers(2**62):x}" for _ in range(prompts)], counts).astype(object)
    rng.shuffle(uid)
    size = len(uid)
    lengths = rng.integers(1, LENGTH + 1, size)
    mask = torch.from_numpy(np.arange(LENGTH) < lengths[:, None]).to(torch.int64)
    mask[:, 1:-1] &= torch.from_numpy(rng.random((size, LENGTH - 2)) < 0.8)  # what tools said is not the policy's
    rewards = torch.from_numpy(rng.integers(0, kinds, size) / max(1, kinds - 1)).float()
    rewards[torch.from_numpy(rng.random(size) < nan)] = torch.nan
    by_token = torch.zeros(size, LENGTH)
    by_token[torch.arange(size), torch.from_numpy(lengths - 1)] = rewards
    tensors = {
        "token_level_rewards": by_token,
        "response_mask": mask,
        "old_log_probs": torch.from_numpy(-rng.random((size, LENGTH)) * 3).float() * (mask + 0.5),
    }
    return DataProto(batch=TensorDict(tensors, batch_size=size), non_tensor_batch={"uid": uid})


def rewards_of(data):
    return data.batch["token_level_rewards"].sum(-1)


def numbers(uid):
    return torch.from_numpy(np.unique(uid.astype(str), return_inverse=True)[1])


def advantage(data, estimator="durian", estimator_="durian", **options):
    """What verl's own function makes of a batch: ``(N, T)``; ``estimator_`` is our option of that name."""
    copy = DataProto(batch=data.batch.clone(), non_tensor_batch=dict(data.non_tensor_batch))
    return ray_trainer.compute_advantage(copy, estimator, config=with_options(estimator=estimator_, **options))


def expected(data, entropy=None, valid=None, weights=(0.1, 0.2, 0.7), reduction="sum", **options):
    """The components of a batch from the library alone."""
    mask = data.batch["response_mask"]
    confidence = sequence_confidence(data.batch["old_log_probs"], mask, reduction=reduction)
    has_tokens = (mask != 0).any(1)
    return durian_components(
        rewards_of(data),
        prompt_index=numbers(data.non_tensor_batch["uid"]),
        visual_entropy=entropy,
        confidence=confidence,
        valid=has_tokens if valid is None else has_tokens & valid,
        weights=weights,
        **options,
    )


# what the estimator counts beside the metrics of the library, in a batch in which all is as it should be
COUNTED = dict.fromkeys(
    (f"durian/{name}" for name in ("unscored_share", "empty_share", "nonfinite_token_share", "window_prompts")), 0.0
)
