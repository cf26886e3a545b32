"""What several test files share: tolerances, and every estimator on one case, dense or flat."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import strategies as own
import torch
from hypothesis import strategies as st

import durian_adv
from durian_adv import baselines, weighting

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
COMPONENTS = ("advantages", "grpo", "perceptual", "reasoning", "category")

# weightings by accuracy: name -> (ours, the formula in plain Python)
WEIGHTINGS = {
    "linear": (weighting.linear, lambda p: 1 + (1 - p)),
    "linear, slope 3": (partial(weighting.linear, slope=3.0), lambda p: 1 + 3 * (1 - p)),
    "exponential": (weighting.exponential, lambda p: math.exp(1 - p)),
    "exponential, rate 4": (partial(weighting.exponential, rate=4.0), lambda p: math.exp(4 * (1 - p))),
    "power": (weighting.power, lambda p: 1.05 - p),
    "power, exponent 2.5": (partial(weighting.power, exponent=2.5), lambda p: (1.05 - p) ** 2.5),
    "focal": (weighting.focal, lambda p: (1 - p) ** 2),
    "focal, gamma 0.5": (partial(weighting.focal, gamma=0.5), lambda p: (1 - p) ** 0.5),
    "logarithmic": (weighting.logarithmic, lambda p: max(0.0, -math.log(p + 0.02))),
    "logistic": (weighting.logistic, lambda p: 0.4 + 1.1 / (1 + math.exp(10 * (p - 0.75)))),
}

# the one thing a machine may lack: everything else works without
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="no C++ compiler (g++ or clang++) on PATH: torch.compile needs one on a CPU",
)


def result_dtype(dtype):
    """The contract's dtype rule."""
    return dtype if dtype in TOLERANCE else torch.float32


def assert_matches(actual, expected, tolerance=None, where=""):
    """Agreement within the dtype's tolerance, relative to max(1, |expected|); never NaN."""
    tolerance = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    expected = np.asarray(expected, dtype=np.float64)
    actual = actual.to(torch.float64).numpy()
    assert actual.shape == expected.shape, where
    error = np.abs(actual - expected) / np.maximum(1.0, np.abs(expected))
    assert not error.size or error.max() <= tolerance, f"{where}: off by {error.max()} of {tolerance}"


def assert_same_bits(actual, expected, where=""):
    """Equality without a tolerance."""
    assert actual.dtype == expected.dtype, where
    assert torch.equal(actual, expected), f"{where}: {(actual != expected).sum()} values of {actual.numel()} differ"


def ulps(actual, expected):
    """The largest distance in units of the last place of the larger one."""
    a, b = actual.detach().numpy(), expected.detach().numpy()
    differ = a != b
    if not differ.any():
        return 0.0
    a, b = a[differ], b[differ]
    size = np.maximum(np.abs(a), np.abs(b))
    return float((np.abs(a - b) / (size - np.nextafter(size, np.zeros_like(size)))).max())


@dataclass(frozen=True)
class Case:
    """A batch with difficulty scores and buckets, dense or flat."""

    batch: own.RewardBatch
    entropy: torch.Tensor
    confidence: torch.Tensor
    buckets: torch.Tensor
    eps: float = 1e-6
    correction: int = 1

    def correctness(self):
        """Right or wrong, one per rollout: where the confidence is positive; not known where it is NaN."""
        right = torch.where(self.confidence.isnan(), torch.nan, (self.confidence > 0).double())
        return right if right.ndim == self.batch.rewards.ndim else right[:, None].expand_as(self.batch.rewards)


@st.composite
def dense_cases(draw, **kwargs):
    """A dense case; the confidence is one per prompt or one per rollout, the buckets are any integers."""
    batch = draw(own.dense_batches(**kwargs))
    rng = np.random.default_rng(draw(own.seeds))
    n = batch.prompts
    shape = draw(st.sampled_from(((n,), tuple(batch.rewards.shape))))
    kind = draw(st.sampled_from(("normal", "grid", "few", "holes")))
    return Case(
        batch,
        entropy=own.make_scores(rng, draw(st.sampled_from(own.SCORE_KINDS)), (n,)),
        confidence=own.make_scores(rng, kind, shape, draw(st.sampled_from(own.FLOATS))),
        buckets=torch.tensor(rng.choice((0, 1, -5, 2**62, 2**62 + 1), n), dtype=torch.int64),
        eps=draw(st.sampled_from((1e-6, 0.0, 1e-4))),
        correction=draw(st.sampled_from((0, 1))),
    )


def estimates(case):
    """Every estimator of the library on one case: name -> advantages of the shape of the rewards."""
    batch, std = case.batch, {"eps": case.eps, "correction": case.correction}
    parts = durian_adv.durian_components(
        batch.rewards,
        visual_entropy=case.entropy,
        confidence=case.confidence,
        num_confidence_buckets=3,
        category=case.buckets,
        weights=(0.1, 0.2, 0.7, 0.4),
        **batch.kwargs,
        **std,
    )
    out = {name: getattr(parts, name) for name in COMPONENTS}
    out["grpo_advantage"] = durian_adv.grpo_advantage(batch.rewards, **batch.kwargs, **std)
    out["shared_std"] = durian_adv.shared_std_advantage(batch.rewards, case.buckets, **batch.kwargs, **std)
    out["dr_grpo"] = baselines.dr_grpo_advantage(batch.rewards, **batch.kwargs)
    out["batch_std"] = baselines.batch_std_advantage(batch.rewards, **batch.kwargs, **std)
    out["rloo"] = baselines.rloo_advantage(batch.rewards, **batch.kwargs)
    out["rpp"] = baselines.reinforce_plus_plus_advantage(batch.rewards, **batch.kwargs, **std)
    out["rpp_baseline"] = baselines.reinforce_plus_plus_baseline_advantage(batch.rewards, **batch.kwargs, **std)
    for name, normalize in (("reweighted", False), ("reweighted_to_one", True)):
        out[name] = weighting.reweighted_advantage(
            batch.rewards,
            weight=weighting.logistic,
            correctness=case.correctness(),
            normalize=normalize,
            **batch.kwargs,
        )
    return out


def rearranged(case, rows, columns):
    """The prompts of a dense case in the order `rows`, each prompt's rollouts in its order of `columns`."""

    def move(x):
        if x is None:
            return None
        return x[rows] if x.ndim == 1 else torch.gather(x, 1, columns)[rows]

    batch = own.RewardBatch(move(case.batch.rewards), move(case.batch.valid))
    return replace(
        case, batch=batch, entropy=move(case.entropy), confidence=move(case.confidence), buckets=move(case.buckets)
    )


def padded(case, rng, more_rows, more_columns):
    """The same case with invalid rollouts and empty prompts around it, anything in their slots."""
    prompts, width = case.batch.rewards.shape
    shape = (prompts + more_rows, width + more_columns)

    def grow(x, filler):
        filler[tuple(slice(n) for n in x.shape)] = x
        return filler

    blank = torch.zeros(shape, dtype=case.batch.rewards.dtype)
    rewards = own.poison(rng, blank, torch.zeros(shape, dtype=torch.bool))
    flags = torch.ones_like(case.batch.rewards, dtype=torch.bool) if case.batch.valid is None else case.batch.valid
    noise = torch.tensor(rng.choice((*own.POISON, -0.25, 1.5), shape))
    confidence = noise.to(case.confidence.dtype)
    return replace(
        case,
        batch=own.RewardBatch(grow(case.batch.rewards, rewards), grow(flags, torch.zeros(shape, dtype=torch.bool))),
        entropy=grow(case.entropy, noise[:, 0].clone()),
        confidence=grow(case.confidence, confidence if case.confidence.ndim == 2 else confidence[:, 0].clone()),
        buckets=grow(case.buckets, torch.tensor(rng.choice((0, 1, 9), shape[0]), dtype=torch.int64)),
    )


def packed(case, rng):
    """The dense case in the flat form, under arbitrary ids in any order, and the positions it came from.

    Invalid rollouts are left out or kept at random; what their slots hold must not matter.
    """
    prompts, width = case.batch.rewards.shape
    keep = case.batch.usable() | torch.tensor(rng.random((prompts, width)) < 0.5)
    position = torch.tensor(rng.permutation(np.flatnonzero(keep.numpy())), dtype=torch.int64)
    row = position // max(width, 1)
    ok = case.batch.usable().flatten()[position]

    def spread(x, garbage):
        flat = x.flatten()[position] if x.ndim == 2 else x[row]
        noise = torch.tensor(rng.choice(garbage, flat.shape)).to(flat.dtype)
        return torch.where(ok, flat, noise)

    batch = own.RewardBatch(
        case.batch.rewards.flatten()[position],
        None if case.batch.valid is None else case.batch.valid.flatten()[position],
        torch.tensor(own.make_ids(rng, prompts), dtype=torch.int64)[row],
    )
    flat = replace(
        case,
        batch=batch,
        entropy=spread(case.entropy, own.POISON),
        confidence=spread(case.confidence, own.POISON),
        buckets=spread(case.buckets, (0, 1, 7)),
    )
    return flat, position
