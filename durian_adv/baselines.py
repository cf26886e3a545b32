"""The estimators Durian is compared with: other choices of center and scale over the same scales.

Rewards, ``prompt_index``, ``valid``, ``eps``, ``correction``, results and errors are those of ``grpo_advantage``.
"""

from __future__ import annotations

from torch import Tensor

from durian_adv._src import checks, scales
from durian_adv._src.advantages import Batch, batch_of, check_rewards, grpo_advantage, scaled


def dr_grpo_advantage(rewards: Tensor, *, prompt_index: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
    """Dr. GRPO (arXiv 2503.20783): ``r - mean``, the prompt's mean, no scale.

    Arguments, shapes, result and errors are those of ``grpo_advantage``.

    >>> import torch
    >>> dr_grpo_advantage(torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
    tensor([[ 0.2500,  0.2500,  0.2500, -0.7500]])
    """
    check_rewards(rewards, prompt_index, valid)
    batch = batch_of(rewards, prompt_index, valid)
    return scaled(batch, batch.measured.unit)


def rloo_advantage(rewards: Tensor, *, prompt_index: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
    """RLOO (arXiv 2402.14740): ``r_i`` minus the mean of the prompt's other rewards, ``(r - mean) n / (n - 1)``.

    Arguments, shapes, result and errors are those of ``grpo_advantage``.

    >>> import torch
    >>> rloo_advantage(torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
    tensor([[ 0.3333,  0.3333,  0.3333, -1.0000]])
    """
    check_rewards(rewards, prompt_index, valid)
    batch = batch_of(rewards, prompt_index, valid)
    size = batch.measured.size
    return scaled(batch, batch.measured.unit * (size / (size - 1).clamp(min=1)))


def batch_std_advantage(
    rewards: Tensor,
    *,
    prompt_index: Tensor | None = None,
    valid: Tensor | None = None,
    eps: float = 1e-6,
    correction: int = 1,
) -> Tensor:
    """LitePPO (arXiv 2508.08221), TRL's ``scale_rewards="batch"``: ``(r - mean) / (std of all rewards + eps)``.

    Arguments, shapes, result and errors are those of ``grpo_advantage``.

    >>> import torch
    >>> batch_std_advantage(torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]))
    tensor([[ 0.4830,  0.4830,  0.4830, -1.4491],
            [ 0.9661,  0.9661, -0.9661, -0.9661]])
    """
    eps, correction = checks.epsilon(eps), checks.correction(correction)
    check_rewards(rewards, prompt_index, valid)
    batch = batch_of(rewards, prompt_index, valid)
    return _over_the_batch(batch, batch.measured, eps, correction)


def reinforce_plus_plus_baseline_advantage(
    rewards: Tensor,
    *,
    prompt_index: Tensor | None = None,
    valid: Tensor | None = None,
    eps: float = 1e-6,
    correction: int = 1,
) -> Tensor:
    """REINFORCE++-baseline (arXiv 2501.03262): ``A' = r - mean``, then ``A' / (std of all A' + eps)``.

    Arguments, shapes, result and errors are those of ``grpo_advantage``.

    >>> import torch
    >>> reinforce_plus_plus_baseline_advantage(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    tensor([[ 1.2247, -1.2247],
            [ 0.0000,  0.0000]])
    """
    eps, correction = checks.epsilon(eps), checks.correction(correction)
    check_rewards(rewards, prompt_index, valid)
    batch = batch_of(rewards, prompt_index, valid)
    return _over_the_batch(batch, scales.around_zero(batch.measured), eps, correction)


def reinforce_plus_plus_advantage(
    rewards: Tensor,
    *,
    prompt_index: Tensor | None = None,
    valid: Tensor | None = None,
    eps: float = 1e-6,
    correction: int = 1,
) -> Tensor:
    """REINFORCE++ (arXiv 2501.03262): ``(r - mean of all rewards) / (std of all rewards + eps)``.

    The whole batch is one group, so a prompt whose own rewards are all equal has an advantage like any other.

    Arguments, shapes, result and errors are those of ``grpo_advantage``.

    >>> import torch
    >>> reinforce_plus_plus_advantage(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    tensor([[ 0.5000,  0.5000],
            [ 0.5000, -1.5000]])
    """
    check_rewards(rewards, prompt_index, valid)
    whole = rewards.reshape(1, -1)
    mask = None if valid is None else valid.reshape(1, -1)
    return grpo_advantage(whole, valid=mask, eps=eps, correction=correction).reshape(rewards.shape)


def _over_the_batch(batch: Batch, measured: scales.Measured, eps: float, correction: int) -> Tensor:
    # bucket 0 for all, in two: torch 2.6 compiles a scatter to a constant index, or into one place, wrongly
    everyone = (measured.size < 0).long()
    shared = scales.bucket_std(measured, everyone[None], 2, correction)
    return scaled(batch, scales.factor(measured, shared, eps)[0])
