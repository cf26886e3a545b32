"""The text of every error about an argument: its name, what was expected, what came."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from durian_adv import (
    baselines,
    certified_entropy_buckets,
    certified_entropy_intervals,
    combine_advantages,
    durian_advantage,
    durian_components,
    eigen_entropy,
    grpo_advantage,
    quantile_buckets,
    sequence_confidence,
    shared_std_advantage,
)
from durian_adv._src import checks
from durian_adv._src.errors import ArgumentError, ArgumentTypeError
from durian_adv.diagnostics import cosine, durian_metrics, few_prompts_warning, prompt_outcomes, update_by_prompt
from durian_adv.window import Window, windowed_components

R, F4 = torch.zeros(3, 4), torch.zeros(4)
I3, I4 = torch.zeros(3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
META = torch.zeros(3, device="meta")
IMAGES = torch.zeros(2, 5, 3)
PARTS = durian_components(R)

WINDOW = Window(*[torch.zeros(3, dtype=torch.float64)] * 5)

MESSAGES = [
    (lambda: grpo_advantage([[1.0, 0.0]]), TypeError, "rewards: expected a torch.Tensor, got list"),
    (
        lambda: grpo_advantage(torch.zeros(2, 3, dtype=torch.complex64)),
        TypeError,
        "rewards: expected a real dtype, got torch.complex64",
    ),
    (
        lambda: grpo_advantage(torch.zeros(2, 3).to_sparse()),
        TypeError,
        "rewards: expected an ordinary dense tensor, got torch.sparse_coo",
    ),
    (
        lambda: grpo_advantage(torch.zeros(4)),
        ValueError,
        "rewards: expected shape (B, G), or (N,) with prompt_index, got (4,)",
    ),
    (
        lambda: grpo_advantage(R, prompt_index=I3),
        ValueError,
        "rewards: expected shape (N,) with prompt_index, got (3, 4)",
    ),
    (
        lambda: grpo_advantage(F4, prompt_index=F4),
        TypeError,
        "prompt_index: expected an integer dtype, got torch.float32",
    ),
    (
        lambda: grpo_advantage(F4, prompt_index=I4 > 0),
        TypeError,
        "prompt_index: expected an integer dtype, got torch.bool",
    ),
    (
        lambda: grpo_advantage(F4, prompt_index=[0, 0, 1, 1]),
        TypeError,
        "prompt_index: expected a torch.Tensor, got list",
    ),
    (lambda: grpo_advantage(F4, prompt_index=I3), ValueError, "prompt_index: expected shape (N,) = (4,), got (3,)"),
    (
        lambda: grpo_advantage(F4, prompt_index=I4.to("meta")),
        ValueError,
        "prompt_index: expected device cpu, as rewards, got meta",
    ),
    (lambda: grpo_advantage(R, valid=R), TypeError, "valid: expected dtype torch.bool, got torch.float32"),
    (lambda: grpo_advantage(R, valid=I3 > 0), ValueError, "valid: expected shape rewards.shape = (3, 4), got (3,)"),
    (
        lambda: grpo_advantage(F4, prompt_index=I4, valid=I3 > 0),
        ValueError,
        "valid: expected shape rewards.shape = (4,), got (3,)",
    ),
    (
        lambda: grpo_advantage(R, valid=(R > 0).to("meta")),
        ValueError,
        "valid: expected device cpu, as rewards, got meta",
    ),
    (lambda: grpo_advantage(R, valid=[[True]]), TypeError, "valid: expected a torch.Tensor, got list"),
    (lambda: grpo_advantage(R, eps=-1.0), ValueError, "eps: expected a number >= 0, got -1.0"),
    (lambda: grpo_advantage(R, eps="1"), TypeError, "eps: expected a number, got str"),
    (lambda: grpo_advantage(R, eps=True), TypeError, "eps: expected a number, got bool"),
    (lambda: grpo_advantage(R, eps=torch.tensor(1.0)), TypeError, "eps: expected a number, got Tensor"),
    (lambda: grpo_advantage(R, eps=math.nan), ValueError, "eps: expected a finite number, got nan"),
    (lambda: grpo_advantage(R, eps=math.inf), ValueError, "eps: expected a finite number, got inf"),
    (lambda: grpo_advantage(R, eps=-math.inf), ValueError, "eps: expected a finite number, got -inf"),
    (lambda: grpo_advantage(R, correction=2), ValueError, "correction: expected 0 or 1, got 2"),
    (lambda: grpo_advantage(R, correction=-1), ValueError, "correction: expected 0 or 1, got -1"),
    (lambda: grpo_advantage(R, correction=0.5), TypeError, "correction: expected the integer 0 or 1, got float"),
    (lambda: grpo_advantage(R, correction=True), TypeError, "correction: expected the integer 0 or 1, got bool"),
    (
        lambda: grpo_advantage(R, correction=torch.tensor(1)),
        TypeError,
        "correction: expected the integer 0 or 1, got Tensor",
    ),
    (lambda: shared_std_advantage(R, I4), ValueError, "buckets: expected shape (B,) = (3,), got (4,)"),
    (lambda: shared_std_advantage(R, R), TypeError, "buckets: expected an integer dtype, got torch.float32"),
    (lambda: shared_std_advantage(R, [0, 1, 1]), TypeError, "buckets: expected a torch.Tensor, got list"),
    (lambda: shared_std_advantage(R, I3.to("meta")), ValueError, "buckets: expected device cpu, as rewards, got meta"),
    (
        lambda: shared_std_advantage(F4, I3, prompt_index=I4),
        ValueError,
        "buckets: expected shape (N,) = (4,), got (3,)",
    ),
    (lambda: shared_std_advantage(R, I3, eps=-1), ValueError, "eps: expected a number >= 0, got -1"),
    (lambda: shared_std_advantage(R, I3, correction=3), ValueError, "correction: expected 0 or 1, got 3"),
    (
        lambda: shared_std_advantage(R[0], I3),
        ValueError,
        "rewards: expected shape (B, G), or (N,) with prompt_index, got (4,)",
    ),
    (lambda: shared_std_advantage(R, I3, valid=R), TypeError, "valid: expected dtype torch.bool, got torch.float32"),
    (lambda: combine_advantages(R, (1.0,)), TypeError, "advantages: expected a sequence of tensors, got Tensor"),
    (lambda: combine_advantages({R}, (1.0,)), TypeError, "advantages: expected a sequence of tensors, got set"),
    (
        lambda: combine_advantages([None, None], (1.0, 1.0)),
        ValueError,
        "advantages: expected at least one tensor, got 2 times None",
    ),
    (lambda: combine_advantages([], ()), ValueError, "advantages: expected at least one tensor, got 0 times None"),
    (
        lambda: combine_advantages([R, F4], (1, 1)),
        ValueError,
        "advantages[1]: expected shape advantages[0].shape = (3, 4), got (4,)",
    ),
    (
        lambda: combine_advantages([None, R, F4], (1, 1, 1)),
        ValueError,
        "advantages[2]: expected shape advantages[1].shape = (3, 4), got (4,)",
    ),
    (
        lambda: combine_advantages([R, R.to("meta")], (1, 1)),
        ValueError,
        "advantages[1]: expected device cpu, as advantages[0], got meta",
    ),
    (lambda: combine_advantages([R, 1.0], (1, 1)), TypeError, "advantages[1]: expected a torch.Tensor, got float"),
    (lambda: combine_advantages([R, R], (1,)), ValueError, "weights: expected 2 numbers, got 1"),
    (lambda: combine_advantages([R, R], (1, -1)), ValueError, "weights[1]: expected a number >= 0, got -1.0"),
    (lambda: combine_advantages([R, R], (1, "1")), TypeError, "weights[1]: expected a number, got str"),
    (lambda: combine_advantages([R, R], (1, math.nan)), ValueError, "weights[1]: expected a finite number, got nan"),
    (lambda: combine_advantages([R, R], "11"), TypeError, "weights: expected a sequence of 2 numbers, got str"),
    (lambda: combine_advantages([R, R], b"11"), TypeError, "weights: expected a sequence of 2 numbers, got bytes"),
    (
        lambda: combine_advantages([R, R], torch.ones(2)),
        TypeError,
        "weights: expected a sequence of 2 numbers, got Tensor",
    ),
    (lambda: combine_advantages([R, R], 1), TypeError, "weights: expected a sequence of 2 numbers, got int"),
    (
        lambda: combine_advantages([R, R], (1e308, 1e308)),
        ValueError,
        "weights: expected a finite sum, got (1e+308, 1e+308)",
    ),
    (
        lambda: combine_advantages([R, R], (0, 0)),
        ValueError,
        "weights: expected a positive sum over the components that have an input, got (0.0, 0.0)",
    ),
    (
        lambda: combine_advantages([R, None], (0, 1)),
        ValueError,
        "weights: expected a positive sum over the components that have an input, got (0.0, 1.0)",
    ),
    (
        lambda: durian_advantage(R, visual_entropy=F4),
        ValueError,
        "visual_entropy: expected shape (B,) = (3,), got (4,)",
    ),
    (
        lambda: durian_advantage(R, visual_entropy=R),
        ValueError,
        "visual_entropy: expected shape (B,) = (3,), got (3, 4)",
    ),
    (
        lambda: durian_advantage(R, visual_entropy=META),
        ValueError,
        "visual_entropy: expected device cpu, as rewards, got meta",
    ),
    (lambda: durian_advantage(R, visual_entropy=1.0), TypeError, "visual_entropy: expected a torch.Tensor, got float"),
    (
        lambda: durian_advantage(R, visual_entropy=torch.zeros(3, dtype=torch.complex64)),
        TypeError,
        "visual_entropy: expected a real dtype, got torch.complex64",
    ),
    (
        lambda: durian_advantage(R, confidence=F4),
        ValueError,
        "confidence: expected shape (B,) or (B, G) = (3,), got (4,)",
    ),
    (
        lambda: durian_advantage(R, confidence=R.T),
        ValueError,
        "confidence: expected shape (B,) or (B, G) = (3, 4), got (4, 3)",
    ),
    (
        lambda: durian_advantage(R, confidence=R[None]),
        ValueError,
        "confidence: expected shape (B,) or (B, G) = (3,), got (1, 3, 4)",
    ),
    (lambda: durian_advantage(R, confidence=META), ValueError, "confidence: expected device cpu, as rewards, got meta"),
    (lambda: durian_advantage(R, confidence=[0.0]), TypeError, "confidence: expected a torch.Tensor, got list"),
    (
        lambda: durian_advantage(F4, prompt_index=I4, visual_entropy=I3),
        ValueError,
        "visual_entropy: expected shape (N,) = (4,), got (3,)",
    ),
    (
        lambda: durian_advantage(F4, prompt_index=I4, confidence=R),
        ValueError,
        "confidence: expected shape (N,) = (4,), got (3, 4)",
    ),
    (lambda: durian_advantage(R, weights=(1, 2)), ValueError, "weights: expected 3 or 4 numbers, got 2"),
    (lambda: durian_advantage(R, weights=(1, -2, 3)), ValueError, "weights[1]: expected a number >= 0, got -2.0"),
    (
        lambda: durian_advantage(R, weights=(0, 1, 1)),
        ValueError,
        "weights: expected a positive sum over the components that have an input, got (0.0, 1.0, 1.0)",
    ),
    (lambda: durian_advantage(R, weights=3), TypeError, "weights: expected a sequence of 3 or 4 numbers, got int"),
    (
        lambda: durian_advantage(R, confidence=I3, weights=(0, 1, 0)),
        ValueError,
        "weights: expected a positive sum over the components that have an input, got (0.0, 1.0, 0.0)",
    ),
    (
        lambda: durian_advantage(R, entropy_quantiles=0),
        ValueError,
        "entropy_quantiles: expected at least 1 bucket, got 0",
    ),
    (
        lambda: durian_advantage(R, entropy_quantiles="ab"),
        TypeError,
        "entropy_quantiles: expected an int or a sequence of levels, got str",
    ),
    (
        lambda: durian_advantage(R, entropy_quantiles=0.5),
        TypeError,
        "entropy_quantiles: expected an int or a sequence of levels, got float",
    ),
    (
        lambda: durian_advantage(R, entropy_quantiles=(0.5, 0.5)),
        ValueError,
        "entropy_quantiles: expected increasing levels, got (0.5, 0.5)",
    ),
    (
        lambda: durian_advantage(R, entropy_quantiles=(0.7, 0.2)),
        ValueError,
        "entropy_quantiles: expected increasing levels, got (0.7, 0.2)",
    ),
    (
        lambda: durian_advantage(R, entropy_quantiles=(0.0, 0.5)),
        ValueError,
        "entropy_quantiles: expected levels in (0, 1), got (0.0, 0.5)",
    ),
    (
        lambda: durian_advantage(R, entropy_quantiles=(0.5, 1.0)),
        ValueError,
        "entropy_quantiles: expected levels in (0, 1), got (0.5, 1.0)",
    ),
    (
        lambda: durian_advantage(R, entropy_quantiles=(0.5, "1")),
        TypeError,
        "entropy_quantiles[1]: expected a number, got str",
    ),
    (
        lambda: durian_advantage(R, num_confidence_buckets=0),
        ValueError,
        "num_confidence_buckets: expected at least 1 bucket, got 0",
    ),
    (
        lambda: durian_advantage(R, num_confidence_buckets=2.0),
        TypeError,
        "num_confidence_buckets: expected an int, got float",
    ),
    (
        lambda: durian_advantage(R, num_confidence_buckets=True),
        TypeError,
        "num_confidence_buckets: expected an int, got bool",
    ),
    (
        lambda: durian_advantage(R, num_confidence_buckets=None),
        TypeError,
        "num_confidence_buckets: expected an int, got NoneType",
    ),
    (
        lambda: durian_advantage(R, num_confidence_buckets=2**24 + 1),
        ValueError,
        "num_confidence_buckets: expected at most 16777216 buckets, got 16777217",
    ),
    (lambda: durian_advantage(R, eps=-0.5), ValueError, "eps: expected a number >= 0, got -0.5"),
    (lambda: durian_advantage(R, correction="1"), TypeError, "correction: expected the integer 0 or 1, got str"),
    (
        lambda: durian_advantage(R, process_group=1),
        TypeError,
        "process_group: expected a torch.distributed.ProcessGroup with this rank, got int",
    ),
    (
        lambda: durian_components(R, visual_entropy=F4),
        ValueError,
        "visual_entropy: expected shape (B,) = (3,), got (4,)",
    ),
    (lambda: quantile_buckets(R, 2), ValueError, "scores: expected shape (B,), got (3, 4)"),
    (lambda: quantile_buckets([1.0], 2), TypeError, "scores: expected a torch.Tensor, got list"),
    (lambda: quantile_buckets(F4, 0), ValueError, "quantiles: expected at least 1 bucket, got 0"),
    (lambda: quantile_buckets(F4, 2.5), TypeError, "quantiles: expected an int or a sequence of levels, got float"),
    (lambda: quantile_buckets(F4, b"12"), TypeError, "quantiles: expected an int or a sequence of levels, got bytes"),
    (lambda: quantile_buckets(F4, (0.2, 0.2)), ValueError, "quantiles: expected increasing levels, got (0.2, 0.2)"),
    (lambda: quantile_buckets(F4, (0.2, 1.5)), ValueError, "quantiles: expected levels in (0, 1), got (0.2, 1.5)"),
    (lambda: quantile_buckets(F4, (0.2, math.nan)), ValueError, "quantiles[1]: expected a finite number, got nan"),
    (
        lambda: quantile_buckets(F4, 2, boundary="inner"),
        ValueError,
        "boundary: expected one of 'upper', 'lower', 'outer', got 'inner'",
    ),
    (
        lambda: quantile_buckets(F4, 2, boundary=None),
        ValueError,
        "boundary: expected one of 'upper', 'lower', 'outer', got None",
    ),
    (lambda: sequence_confidence(torch.tensor(1.0)), ValueError, "logprobs: expected shape (..., T), got ()"),
    (lambda: sequence_confidence([0.0]), TypeError, "logprobs: expected a torch.Tensor, got list"),
    (lambda: sequence_confidence(R, R[0]), ValueError, "mask: expected shape logprobs.shape = (3, 4), got (4,)"),
    (lambda: sequence_confidence(R, R.to("meta")), ValueError, "mask: expected device cpu, as logprobs, got meta"),
    (lambda: sequence_confidence(R, [1]), TypeError, "mask: expected a torch.Tensor, got list"),
    (
        lambda: sequence_confidence(R, reduction="median"),
        ValueError,
        "reduction: expected one of 'sum', 'mean', got 'median'",
    ),
    (lambda: eigen_entropy(F4), ValueError, "features: expected shape (..., P, D), got (4,)"),
    (lambda: eigen_entropy([1.0]), TypeError, "features: expected a torch.Tensor, got list"),
    (
        lambda: eigen_entropy(torch.zeros(3, 2, dtype=torch.complex64)),
        TypeError,
        "features: expected a real dtype, got torch.complex64",
    ),
    (lambda: eigen_entropy(IMAGES, mask=R), ValueError, "mask: expected shape (..., P) = (2, 5), got (3, 4)"),
    (
        lambda: eigen_entropy(IMAGES, mask=torch.ones(2, 5, device="meta")),
        ValueError,
        "mask: expected device cpu, as features, got meta",
    ),
    (lambda: eigen_entropy(IMAGES, mask=[1]), TypeError, "mask: expected a torch.Tensor, got list"),
    (lambda: eigen_entropy(IMAGES, normalize=1), TypeError, "normalize: expected a bool, got int"),
    (
        lambda: eigen_entropy(IMAGES, lengths=[5, 5]),
        ValueError,
        "features: expected shape (sum(lengths), D) with lengths, got (2, 5, 3)",
    ),
    (lambda: eigen_entropy(R, lengths=[1, 1]), ValueError, "lengths: expected a sum of 3, the rows of features, got 2"),
    (lambda: eigen_entropy(R, lengths=[4, -1]), ValueError, "lengths: expected no negative length, got -1"),
    (
        lambda: eigen_entropy(R, lengths=torch.tensor([4, -1])),
        ValueError,
        "lengths: expected no negative length, got -1",
    ),
    (
        lambda: eigen_entropy(R, lengths=torch.tensor([1, 1])),
        ValueError,
        "lengths: expected a sum of 3, the rows of features, got 2",
    ),
    (
        lambda: eigen_entropy(R, lengths=torch.tensor([[3]])),
        ValueError,
        "lengths: expected shape (images,), got (1, 1)",
    ),
    (
        lambda: eigen_entropy(R, lengths=torch.tensor([3.0])),
        TypeError,
        "lengths: expected an integer dtype, got torch.float32",
    ),
    (lambda: eigen_entropy(R, lengths=[3.0]), TypeError, "lengths[0]: expected an integer, got float"),
    (
        lambda: eigen_entropy(R, lengths="3"),
        TypeError,
        "lengths: expected a 1-D tensor or a sequence of integers, got str",
    ),
    (
        lambda: eigen_entropy(R, lengths=b"3"),
        TypeError,
        "lengths: expected a 1-D tensor or a sequence of integers, got bytes",
    ),
    (
        lambda: eigen_entropy(R, lengths=3),
        TypeError,
        "lengths: expected a 1-D tensor or a sequence of integers, got int",
    ),
    (
        lambda: eigen_entropy(R, mask=torch.ones(3), lengths=[3]),
        ValueError,
        "mask: expected None together with lengths (packed features have no padding), got a mask",
    ),
    (
        lambda: certified_entropy_buckets(R),
        ValueError,
        "features: expected shape (B, P, D), or (sum(lengths), D) with lengths, got (3, 4)",
    ),
    (lambda: certified_entropy_buckets(F4), ValueError, "features: expected shape (..., P, D), got (4,)"),
    (
        lambda: certified_entropy_buckets(IMAGES, quantiles=0),
        ValueError,
        "quantiles: expected at least 1 bucket, got 0",
    ),
    (
        lambda: certified_entropy_buckets(IMAGES, quantiles=(0.9, 0.1)),
        ValueError,
        "quantiles: expected increasing levels, got (0.9, 0.1)",
    ),
    (
        lambda: certified_entropy_buckets(IMAGES, mask=R),
        ValueError,
        "mask: expected shape (..., P) = (2, 5), got (3, 4)",
    ),
    (
        lambda: certified_entropy_buckets(R, lengths=[1]),
        ValueError,
        "lengths: expected a sum of 3, the rows of features, got 1",
    ),
    (lambda: certified_entropy_intervals(F4), ValueError, "features: expected shape (..., P, D), got (4,)"),
    (
        lambda: certified_entropy_intervals(R, mask=torch.ones(3), lengths=[3]),
        ValueError,
        "mask: expected None together with lengths (packed features have no padding), got a mask",
    ),
    (
        lambda: baselines.dr_grpo_advantage(F4),
        ValueError,
        "rewards: expected shape (B, G), or (N,) with prompt_index, got (4,)",
    ),
    (lambda: baselines.rloo_advantage(R, valid=R), TypeError, "valid: expected dtype torch.bool, got torch.float32"),
    (lambda: baselines.batch_std_advantage(R, eps=-1), ValueError, "eps: expected a number >= 0, got -1"),
    (lambda: baselines.batch_std_advantage(R, correction=2), ValueError, "correction: expected 0 or 1, got 2"),
    (
        lambda: baselines.batch_std_advantage(F4),
        ValueError,
        "rewards: expected shape (B, G), or (N,) with prompt_index, got (4,)",
    ),
    (
        lambda: baselines.reinforce_plus_plus_advantage(F4),
        ValueError,
        "rewards: expected shape (B, G), or (N,) with prompt_index, got (4,)",
    ),
    (lambda: baselines.reinforce_plus_plus_advantage(R, eps=-1), ValueError, "eps: expected a number >= 0, got -1"),
    (
        lambda: baselines.reinforce_plus_plus_advantage(R, correction=2),
        ValueError,
        "correction: expected 0 or 1, got 2",
    ),
    (
        lambda: baselines.reinforce_plus_plus_baseline_advantage(R, eps=-1),
        ValueError,
        "eps: expected a number >= 0, got -1",
    ),
    (
        lambda: baselines.reinforce_plus_plus_baseline_advantage(R, correction=2),
        ValueError,
        "correction: expected 0 or 1, got 2",
    ),
    (
        lambda: baselines.reinforce_plus_plus_baseline_advantage(F4),
        ValueError,
        "rewards: expected shape (B, G), or (N,) with prompt_index, got (4,)",
    ),
    (lambda: windowed_components(R, window=None, size=-1), ValueError, "size: expected an integer >= 0, got -1"),
    (lambda: windowed_components(R, window=None, size=1.5), TypeError, "size: expected an integer >= 0, got float"),
    (lambda: windowed_components([1], window=None, size=1), TypeError, "rewards: expected a torch.Tensor, got list"),
    (
        lambda: windowed_components(R, window=(R, None, None), size=1),
        TypeError,
        "window: expected a Window or None, got tuple",
    ),
    (
        lambda: windowed_components(R, window=WINDOW._replace(rollouts=[1]), size=1),
        TypeError,
        "window.rollouts: expected a torch.Tensor, got list",
    ),
    (
        lambda: windowed_components(R, window=WINDOW._replace(rollouts=R), size=1),
        ValueError,
        "window.rollouts: expected shape (W,), got (3, 4)",
    ),
    (
        lambda: windowed_components(R, window=WINDOW._replace(mean=F4), size=1),
        ValueError,
        "window.mean: expected shape (W,) = (3,), got (4,)",
    ),
    (
        lambda: windowed_components(R, window=WINDOW._replace(visual_entropy=F4), size=1),
        ValueError,
        "window.visual_entropy: expected shape (W,) = (3,), got (4,)",
    ),
    (
        lambda: windowed_components(R, window=WINDOW._replace(confidence=[0.0]), size=1),
        TypeError,
        "window.confidence: expected a torch.Tensor, got list",
    ),
    (lambda: windowed_components(R, window=None, size=1, eps=-1), ValueError, "eps: expected a number >= 0, got -1"),
    (lambda: durian_metrics(R, R), TypeError, "components: expected DurianComponents, got Tensor"),
    (
        lambda: durian_metrics(PARTS, R, success_threshold="0"),
        TypeError,
        "success_threshold: expected a number, got str",
    ),
    (
        lambda: durian_metrics(PARTS, R, success_threshold=math.nan),
        ValueError,
        "success_threshold: expected a finite number, got nan",
    ),
    (
        lambda: durian_metrics(PARTS, torch.zeros(2, 4)),
        ValueError,
        "components.advantages: expected shape rewards.shape = (2, 4), got (3, 4)",
    ),
    (
        lambda: durian_metrics(PARTS, F4),
        ValueError,
        "rewards: expected shape (B, G), or (N,) with prompt_index, got (4,)",
    ),
    (
        lambda: durian_metrics(PARTS, R, no_signal="no"),
        ValueError,
        "no_signal: expected one of 'keep', 'drop', got 'no'",
    ),
    (lambda: durian_metrics(PARTS, R, valid=R), TypeError, "valid: expected dtype torch.bool, got torch.float32"),
    (lambda: prompt_outcomes(F4), ValueError, "rewards: expected shape (B, G), or (N,) with prompt_index, got (4,)"),
    (
        lambda: prompt_outcomes(R, success_threshold=math.inf),
        ValueError,
        "success_threshold: expected a finite number, got inf",
    ),
    (lambda: prompt_outcomes(R, valid=R), TypeError, "valid: expected dtype torch.bool, got torch.float32"),
    (lambda: update_by_prompt([1.0]), TypeError, "advantages: expected a torch.Tensor, got list"),
    (
        lambda: update_by_prompt(F4),
        ValueError,
        "advantages: expected shape (B, G), or (N,) with prompt_index, got (4,)",
    ),
    (
        lambda: update_by_prompt(R, prompt_index=I3),
        ValueError,
        "advantages: expected shape (N,) with prompt_index, got (3, 4)",
    ),
    (
        lambda: update_by_prompt(F4, prompt_index=F4),
        TypeError,
        "prompt_index: expected an integer dtype, got torch.float32",
    ),
    (lambda: update_by_prompt(F4, prompt_index=I3), ValueError, "prompt_index: expected shape (N,) = (4,), got (3,)"),
    (
        lambda: update_by_prompt(F4, prompt_index=I4.to("meta")),
        ValueError,
        "prompt_index: expected device cpu, as advantages, got meta",
    ),
    (lambda: cosine(1.0, R), TypeError, "first: expected a torch.Tensor, got float"),
    (lambda: cosine(R, 1.0), TypeError, "second: expected a torch.Tensor, got float"),
    (lambda: cosine(R, F4), ValueError, "second: expected shape first.shape = (3, 4), got (4,)"),
    (lambda: cosine(R[:, 0], META), ValueError, "second: expected device cpu, as first, got meta"),
    (lambda: few_prompts_warning(R), TypeError, "components: expected DurianComponents, got Tensor"),
    (lambda: few_prompts_warning(PARTS, window=-1), ValueError, "window: expected an integer >= 0, got -1"),
    (lambda: few_prompts_warning(PARTS, window=0.5), TypeError, "window: expected an integer >= 0, got float"),
    (lambda: few_prompts_warning(PARTS, fewest="2"), TypeError, "fewest: expected a number, got str"),
    (
        lambda: few_prompts_warning(PARTS, prompt_index=R[:, 0]),
        TypeError,
        "prompt_index: expected an integer dtype, got torch.float32",
    ),
    (
        lambda: few_prompts_warning(PARTS, prompt_index=I4),
        ValueError,
        "prompt_index: expected shape (N,) = (3,), got (4,)",
    ),
    (
        lambda: few_prompts_warning(PARTS, entropy_quantiles=(2.0,)),
        ValueError,
        "entropy_quantiles: expected levels in (0, 1), got (2.0,)",
    ),
    (
        lambda: few_prompts_warning(PARTS, num_confidence_buckets=0),
        ValueError,
        "num_confidence_buckets: expected at least 1 bucket, got 0",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), MESSAGES, ids=[message for *_, message in MESSAGES])
def test_a_message_names_the_argument_and_tells_what_was_expected_and_what_came(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert {ArgumentError: ValueError, ArgumentTypeError: TypeError}.get(raised.type, raised.type) is error
    assert str(raised.value) == message


def test_arguments_at_the_ends_of_what_is_allowed_are_taken_as_they_are():
    largest = sys.float_info.max
    assert [checks.number("x", value) for value in (largest, -largest, 3)] == [largest, -largest, 3.0]
    assert [checks.epsilon(value) for value in (0, 2.5)] == [0.0, 2.5]
    assert math.copysign(1, checks.epsilon(-0.0)) == 1
    assert [checks.correction(value) for value in (0, 1)] == [0, 1]
    assert checks.levels("quantiles", ()) == 1
    assert checks.bucket_count("buckets", 2**24) == 2**24
    assert checks.integer("x", np.int64(3), "an integer") == 3


@pytest.mark.filterwarnings("ignore")  # torch's, about tensors that few use
def test_tensors_of_other_layouts_are_called_by_their_kind():
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    quantized = torch.quantize_per_tensor(torch.zeros(2, 3), 0.1, 0, torch.qint8)
    for value, kind in ((nested, "a nested one"), (quantized, "a quantized one, torch.qint8")):
        with pytest.raises(TypeError) as raised:
            grpo_advantage(value)
        assert str(raised.value) == f"rewards: expected an ordinary dense tensor, got {kind}"
