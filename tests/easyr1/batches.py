"""Batches as EasyR1's driver has them when it computes advantages."""

import uuid

import numpy as np
import torch
from verl.protocol import DataProto


def batch(rewards, *, seed=0, tokens=7, entropy=(), images=False, shuffle=True):
    """Make a ``DataProto`` of one list of rewards per prompt; ``entropy`` is the dataset's column, one per prompt.

    A reward is that of its response's last token, as EasyR1's reward managers put it; rows lie in any order, as they do
    after its ``_balance_batch``.
    """
    draw = np.random.default_rng(seed)
    flat = [(s, reward) for s, group in enumerate(rewards) for reward in group]
    order = draw.permutation(len(flat)) if shuffle else np.arange(len(flat))
    uids = [str(uuid.UUID(bytes=draw.bytes(16))) for _ in rewards]
    lengths = torch.from_numpy(draw.integers(1, tokens + 1, len(flat)))
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    token_level = torch.zeros(len(flat), tokens)
    for row, at in enumerate(order):
        token_level[row, lengths[row] - 1] = flat[at][1]
    prompts = [flat[at][0] for at in order]
    columns = {"uid": np.array([uids[s] for s in prompts], dtype=object)}
    if len(entropy):
        columns["visual_entropy"] = np.array([entropy[s] for s in prompts], dtype=object)
    if images:
        columns["multi_modal_data"] = np.array([{"images": [s]} for s in prompts], dtype=object)
    tensors = {
        "token_level_rewards": token_level,
        "token_level_scores": token_level.clone(),
        "response_mask": mask,
        # what stands in the slots after a response is whatever the actor computed for padding
        "old_log_probs": -torch.from_numpy(draw.exponential(2.0, (len(flat), tokens))).float(),
    }
    return DataProto.from_dict(tensors=tensors, non_tensors=columns)


def binary(prompts, group, *, seed=0, format_reward=0.1):
    """Rewards of the paper, 0.1 for the format and 0.9 for the answer, of prompts from hard to easy."""
    draw = np.random.default_rng(seed)
    chance = np.linspace(0, 1, prompts)
    right = draw.random((prompts, group)) < chance[:, None]
    return (format_reward + (1 - format_reward) * right).astype(np.float32).tolist()


def numbers(uid):
    """Each row's prompt as a number."""
    return torch.from_numpy(np.unique(np.asarray(uid).astype(str), return_inverse=True)[1])
