"""Anything, thrown at the public functions: every outcome is the right result or the documented error.

``make fuzz`` records 100,000 calls in ``tests/records/fuzz.csv``; ``test_fuzz.py`` makes a few. An example is one
batch in one environment with which every function is called; a *fault* replaces one of its arguments by something
that is none, and then the functions that take this argument must refuse it by name.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import datetime
import inspect
import math
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import reference
import strategies as own
import torch
from helpers import WEIGHTINGS
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import durian_adv
from durian_adv import baselines, diagnostics, weighting, window

RECORD = Path(__file__).parent / "records" / "fuzz.csv"
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
DTYPES = own.DTYPES + EIGHT_BITS + UNSIGNED
KINDS = ("binary", "normal", "equal", "holes", "tiny", "huge", "both ends", "ulps")
MEMORY = ("contiguous", "transposed", "steps", "offset", "expanded", "overlapping")
ENVIRONMENTS = ("plain", "inference mode", "no grad", "autograd", "deterministic", "float64", "bfloat16", "threads")
FAULTS = ("rank", "scalar", "shape", "complex", "sparse", "device", "list", "none", "dtype", "option")
IDS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


# --- inputs -----------------------------------------------------------------------------------------


def values(rng, kind, shape, dtype):
    """Numbers of one kind in a dtype: what it cannot hold becomes what it can."""
    if not dtype.is_floating_point:
        if dtype == torch.bool:
            return torch.tensor(rng.integers(0, 2, shape)).to(dtype)
        info = torch.iinfo(dtype)
        ends = {"huge": (max(info.min, -(2**53)), min(info.max, 2**53)), "equal": (1, 2)}.get(kind, (0, 5))
        return torch.tensor(rng.integers(*ends, shape)).to(dtype)
    info = torch.finfo(dtype)
    least, most = info.smallest_normal * info.eps, info.max
    if kind == "equal":
        out = np.full(shape, rng.choice((0.9, 1 / 3, 0.0, -1e30, least)))
    elif kind == "holes":
        out = rng.choice((np.nan, np.inf, -np.inf, 0.0, 1.0, 0.25), shape)
    elif kind == "tiny":
        out = rng.choice((least, -least, 3 * least, info.smallest_normal, 0.0), shape)
    elif kind == "huge":
        out = rng.choice((most, -most, most / 2, 1e300, 1.0), shape)
    elif kind == "both ends":
        out = rng.choice((most, least, -least, 1e-30, 0.0), shape)
    elif kind == "ulps":
        out = rng.choice((1.0, 1.0 + info.eps, 1.0 - info.eps, 1.0 + 2 * info.eps), shape)
    else:
        out = own.fill(rng, kind, shape)
    out = np.where(np.isinf(out), out, np.clip(out, -most, most))  # float8 e4m3 makes NaN of infinities
    return torch.tensor(out, dtype=torch.float64).to(dtype)


def laid_out(x, memory):
    """The same values in other memory; an overlapping layout repeats some, which is returned as it is then."""
    if x.ndim == 0 or x.numel() == 0:
        return x
    if memory == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if memory == "steps":
        return torch.stack([x, x], -1).flatten(-2)[..., ::2]
    if memory == "offset":
        return torch.cat([x.new_zeros(3), x.reshape(-1)])[3:].view(x.shape)
    if memory == "expanded":
        return x[:1].expand(x.shape)
    if memory == "overlapping":
        return x.reshape(-1).as_strided(x.shape, (1,) * x.ndim)
    return x


def numpy(x):
    """The exact values in float64."""
    return None if x is None else x.detach().to(torch.float64).numpy()


class Example:
    """A batch of everything the functions take."""

    def __init__(self, draw):
        rng = self.rng = np.random.default_rng(draw(own.seeds))
        self.environment = draw(st.sampled_from(ENVIRONMENTS))
        self.memory = draw(st.sampled_from(MEMORY))
        self.dtype = draw(st.sampled_from(DTYPES))
        self.kind = draw(st.sampled_from(KINDS))
        self.flat = draw(st.booleans())
        self.fault = draw(st.sampled_from(FAULTS)) if draw(st.integers(0, 3)) == 0 else None
        b, g = draw(st.integers(0, 5)), draw(st.integers(0, 5))
        shape = (b * g,) if self.flat else (b, g)

        def make(kind, shape, dtype):
            return laid_out(values(rng, kind, shape, dtype), self.memory)

        self.rewards = make(self.kind, shape, self.dtype)
        self.valid = laid_out(torch.tensor(rng.random(shape) < 0.8), self.memory) if draw(st.booleans()) else None
        ids = draw(st.sampled_from(IDS))
        enormous = 2 ** (8 * ids.itemsize - 2) - 1
        numbers = rng.choice((0, 1, enormous, enormous - 1, 0 if ids == torch.uint8 else -enormous), shape)
        self.prompt_index = laid_out(torch.tensor(numbers).to(ids), self.memory) if self.flat else None
        of_prompts = shape if self.flat else (b,)
        score_dtype = draw(st.sampled_from((torch.float32, torch.float64, torch.bfloat16, torch.int64)))
        score_kind = draw(st.sampled_from(("normal", "holes", "binary", "huge", "tiny")))
        self.entropy = make(score_kind, of_prompts, score_dtype) if draw(st.booleans()) else None
        per_rollout = self.flat or draw(st.booleans())
        # sums of scores of any size are told to be "within an ulp or so": their buckets are compared on short numbers
        kind = "holes" if per_rollout else score_kind
        self.confidence = make(kind, shape if per_rollout else (b,), score_dtype) if draw(st.booleans()) else None
        if self.flat and self.entropy is not None:
            self.entropy = make("binary", shape, torch.float32)
        self.buckets = make("binary", of_prompts, torch.int64)
        if self.flat:  # one per prompt
            self.buckets = self.prompt_index.long() % 2
        self.category = self.rollouts = None
        if draw(st.booleans()):  # any integers; in the flat form one per rollout, of which the largest counts
            labels = rng.choice((0, 1, 2**62, -(2**63), 2**63 - 1), of_prompts)
            self.category = laid_out(torch.tensor(labels, dtype=torch.int64), self.memory)
        if self.flat and draw(st.booleans()):  # the rows of a rollout are those of one prompt, one reward and one score
            distinct = np.unique(self.prompt_index.numpy(), return_inverse=True)[1]
            self.rollouts = torch.tensor(distinct * 4 + rng.integers(0, 3, shape), dtype=torch.int64)
            first = np.unique(self.rollouts.numpy(), return_index=True)[1]
            place = (
                torch.tensor(first)[torch.unique(self.rollouts, return_inverse=True)[1]]
                if len(first)
                else self.rollouts
            )
            self.rewards = laid_out(
                self.rewards[place], self.memory if self.memory in ("steps", "offset") else "contiguous"
            )
            self.entropy, self.confidence = (None if s is None else s[place] for s in (self.entropy, self.confidence))
        self.no_signal = draw(st.sampled_from(("keep", "drop")))
        self.scores = make(self.kind, (b * g,), self.dtype)
        self.advantages = [make("normal", shape, d) for d in (torch.float32, torch.float64, torch.bfloat16)]
        self.features = make(self.kind, (b, g, 3), self.dtype)
        self.patches = torch.tensor(rng.random((b, g)) < 0.8) if draw(st.booleans()) else None
        self.logprobs = make(self.kind, (b, g), self.dtype)
        self.tokens = torch.tensor(rng.integers(0, 2, (b, g))) if draw(st.booleans()) else None
        right = torch.tensor(rng.choice((0.0, 1.0, 0.25, np.nan), shape))
        right_dtype = draw(st.sampled_from((torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.int64)))
        self.correctness = laid_out(right.nan_to_num(0).to(right_dtype), self.memory) if draw(st.booleans()) else None
        if self.correctness is not None and right_dtype.is_floating_point:
            self.correctness = laid_out(right.to(right_dtype), self.memory)
        self.weighting = draw(st.sampled_from(sorted(WEIGHTINGS)))
        self.threshold = draw(st.sampled_from((0.5, 0.0, -1e30, 1e300)))
        self.eps = draw(st.sampled_from((1e-6, 0.0, 1e-300, 1e300)))
        self.correction = draw(st.sampled_from((0, 1)))
        self.weights = draw(st.sampled_from(((0.1, 0.2, 0.7), (1, 0, 1), (0.3, 2, 0), (1e-300, 1, 1))))
        self.four = (*self.weights, draw(st.sampled_from((0.0, 0.4, 3))))
        sizes = rng.integers(0, 4, draw(st.integers(0, 5)))
        self.lengths = sizes.tolist()
        self.packed = make(self.kind, (int(sizes.sum()),), self.dtype)
        self.rows = torch.tensor(rng.integers(0, 3, len(sizes)), dtype=torch.int64) if draw(st.booleans()) else None
        self.quantiles = draw(st.sampled_from((*own.LEVELS, 1, 2, 3, 12, 1000)))
        self.boundary = draw(st.sampled_from(("upper", "lower", "outer")))


# --- the functions: how each is called, and what is right ---------------------------------------------


def close(actual, expected, dtype, lost=0.0):
    """Agreement as the contract states it, and a plain tensor of the right dtype; `lost` is allowed besides."""
    expected = np.asarray(expected, dtype=np.float64)
    limit = torch.finfo(actual.dtype).max
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32), actual.dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}[actual.dtype]
    expected = np.clip(expected, -limit, limit)
    found = numpy(actual)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert np.isfinite(found).all(), found
    error = (np.abs(found - expected) - lost) / np.maximum(1.0, np.abs(expected))
    assert not error.size or error.max() <= tolerance, (error.max(), found, expected)


def lost_digits(x):
    """What an advantage without a scale may be off by: rewards are measured from the middle of a prompt's range."""
    finite = numpy(x.rewards)[np.isfinite(numpy(x.rewards))]
    return np.abs(finite).max(initial=0.0) * 2.0**-52


def of_rewards(x):
    return {"prompt_index": x.prompt_index, "valid": x.valid}


def std(x):
    return {"eps": x.eps, "correction": x.correction}


def for_oracle(x):
    return {"rewards": numpy(x.rewards), "valid": numpy(x.valid), "prompt_index": x.prompt_index}


def options(x):
    chosen = {"weights": x.four if x.category is not None else x.weights, "no_signal": x.no_signal}
    chosen |= {"entropy_quantiles": x.quantiles, "num_confidence_buckets": 3, "category": x.category}
    scores = {"visual_entropy": x.entropy, "confidence": x.confidence, "rollout_index": x.rollouts}
    return chosen | scores | of_rewards(x) | std(x)


def durian_oracle(x):
    chosen = options(x) | for_oracle(x)
    chosen |= {"visual_entropy": numpy(x.entropy), "confidence": numpy(x.confidence)}
    return reference.durian(**chosen)


def check_parts(x, parts):
    expected = durian_oracle(x)
    for name in ("advantages", "grpo", "perceptual", "reasoning", "category"):
        if expected[name] is None:
            assert getattr(parts, name) is None, name
        else:
            close(getattr(parts, name), expected[name], x.dtype)
    for name in ("entropy_bucket", "confidence_bucket", "has_signal"):
        if expected[name] is not None:
            assert getattr(parts, name).tolist() == expected[name].tolist(), name


def check_confidence(x, result, reduction):
    size = x.logprobs.shape[-1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    assert result.dtype == dtype
    for i, row in enumerate(numpy(x.logprobs)):
        mask = None if x.tokens is None else numpy(x.tokens)[i]
        terms = row if mask is None else row[mask != 0]
        bound = math.fsum(abs(t) / 2**60 for t in terms if math.isfinite(t)) * 2**30
        if bound > 1e250:  # sums beyond float64 are nobody's log-probabilities: that they raise nothing is enough
            continue
        expected = torch.tensor(reference.sequence_confidence(row, mask, reduction), dtype=torch.float64)
        expected = expected.to(dtype).double().item()
        found = result[i].double().item()
        scale = max(1.0, *(abs(t) for t in terms if math.isfinite(t)), 0.0) if len(terms) else 1.0
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}[dtype] * scale * max(size, 1)
        same = found == expected or (math.isnan(found) and math.isnan(expected))
        assert same or abs(found - expected) <= tolerance, (found, expected)


def check_packed(x, result):
    rollouts = range(len(x.lengths)) if x.rows is None else x.rows.tolist()
    rows = dict.fromkeys(rollouts, ())
    for name, part in zip(rollouts, torch.split(x.packed.detach().double(), x.lengths), strict=True):
        rows[name] = (*rows[name], *part.tolist())
    for i, name in enumerate(rollouts):
        alone = durian_adv.sequence_confidence(torch.tensor([rows[name]], dtype=torch.float64)).to(result.dtype)
        assert torch.equal(result[i : i + 1].nan_to_num(7.5), alone.nan_to_num(7.5)), (result[i], alone)


def check_entropy(x, result, normalize):
    tolerance = 1e-12 if x.dtype == torch.float64 else 2e-6
    for i, image in enumerate(numpy(x.features)):
        mask = None if x.patches is None else x.patches[i].numpy()
        expected = reference.eigen_entropy(image, mask, normalize)
        found = result[i].item()
        assert (math.isnan(found) and math.isnan(expected)) or abs(found - expected) <= tolerance, (found, expected)


def check_buckets(x, result):
    assert result.tolist() == reference.buckets(numpy(x.scores), x.quantiles, x.boundary).tolist()


def check_certified(x, result):
    entropies = durian_adv.eigen_entropy(x.features, mask=x.patches)
    assert torch.equal(result, durian_adv.quantile_buckets(entropies, x.quantiles, boundary="outer"))


def check_intervals(x, result):
    entropies = durian_adv.eigen_entropy(x.features, mask=x.patches)
    inside = (result[0] <= entropies) & (entropies <= result[1])
    assert bool((inside | entropies.isnan()).all())


def check_windowed(x, result):
    parts, kept = result
    check_parts(x, parts)
    batch = reference.Batch(**for_oracle(x))
    counted = batch.signal() if x.no_signal == "drop" else [bool(live) for live in batch.live]
    assert len(kept.rollouts) == min(4, sum(counted))


def check_metrics(x, result):
    assert all(isinstance(value, float) and not math.isinf(value) for value in result.values())
    batch = reference.Batch(**for_oracle(x), rollout_index=x.rollouts)
    assert result["durian/rollouts"] == sum(map(len, batch.live))
    assert math.isnan(result["durian/extreme_ratio"]) == (result["durian/effective"] == 0)


def check_outcomes(x, result):
    outcomes, kinds = result
    expected = reference.outcomes(**for_oracle(x), threshold=x.threshold)
    assert outcomes.rollouts.tolist() == [n for n, _, _ in expected]
    assert outcomes.correct.tolist() == [hits for _, hits, _ in expected]
    assert outcomes.effective.tolist() == [kind != "none" for _, _, kind in expected]
    for name, members in kinds.items():
        assert members.tolist() == [kind == name for _, _, kind in expected], name


def check_update(x, result):
    expected = reference.update_of_prompts(numpy(x.advantages[x.correction]), x.prompt_index)
    np.testing.assert_allclose(numpy(result), expected, rtol=1e-12)


def check_cosine(x, result):
    _, expected = reference.moved(*(numpy(x.advantages[i]) for i in (x.correction, 1)))
    both_undefined = math.isnan(result) and math.isnan(expected)
    assert both_undefined or abs(result - expected) <= 1e-12, (result, expected)


def check_warning(x, result):
    batch = reference.Batch(**for_oracle(x))
    few = False
    for scores, count in ((x.entropy, reference_buckets(x.quantiles)), (x.confidence, 3)):
        if scores is not None:
            known = sum(not math.isnan(score) for score in reference.prompt_scores(batch, numpy(scores)))
            few |= 0 < known < 2 * count
    assert (result is not None) == few, result


def reference_buckets(levels):
    return levels if isinstance(levels, int) else len(levels) + 1


def outcomes(rewards, prompt_index, valid, success_threshold):
    options = {"prompt_index": prompt_index, "valid": valid, "success_threshold": success_threshold}
    found = diagnostics.prompt_outcomes(rewards, **options)
    return found, diagnostics.group_kinds(found)


def warning(rewards, prompt_index, **chosen):
    if chosen["no_signal"] == "drop":  # which takes prompts off the count, as the oracle does not
        chosen["no_signal"] = "keep"
    parts = durian_adv.durian_components(rewards, prompt_index=prompt_index, **chosen)
    counts = {name: chosen[name] for name in ("entropy_quantiles", "num_confidence_buckets")}
    return diagnostics.few_prompts_warning(parts, prompt_index=prompt_index, **counts)


def weighted(x):
    chosen = {"weight": WEIGHTINGS[x.weighting][0], "normalize": bool(x.correction)}
    return chosen | {"correctness": x.correctness, "success_threshold": x.threshold} | of_rewards(x)


def weighted_oracle(function, x):
    correct = x.correctness
    correct = numpy(x.rewards) > x.threshold if correct is None else numpy(correct)
    formula = WEIGHTINGS[x.weighting][1]
    return function(f=formula, correct=correct, normalize=bool(x.correction), **for_oracle(x))


def check_weighted(x, result):
    weights = weighted_oracle(reference.accuracy_weights, x)
    expected = weighted_oracle(reference.reweighted, x)
    close(result, expected, x.dtype, lost_digits(x) * np.abs(weights).max(initial=0.0))


def metrics(rewards, **chosen):
    parts = durian_adv.durian_components(rewards, **chosen)
    shape = {name: chosen[name] for name in ("prompt_index", "valid", "category", "rollout_index")}
    return diagnostics.durian_metrics(parts, rewards, **shape)


def combined(x, result):
    dtype = torch.float64
    close(result, reference.combine([numpy(a) for a in x.advantages], x.weights), dtype)


# name -> (function, its arguments, the check of its result, the fields that carry its dtype under test)
FUNCTIONS = {
    "durian_advantage": (
        durian_adv.durian_advantage,
        lambda x: {"rewards": x.rewards} | options(x),
        lambda x, r: close(r, durian_oracle(x)["advantages"], x.dtype),
    ),
    "durian_components": (durian_adv.durian_components, lambda x: {"rewards": x.rewards} | options(x), check_parts),
    "windowed_components": (
        window.windowed_components,
        lambda x: {"rewards": x.rewards, "window": None, "size": 4} | options(x),
        check_windowed,
    ),
    "durian_metrics": (metrics, lambda x: {"rewards": x.rewards} | options(x), check_metrics),
    "prompt_outcomes": (
        outcomes,
        lambda x: {"rewards": x.rewards, "success_threshold": x.threshold} | of_rewards(x),
        check_outcomes,
    ),
    "update_by_prompt": (
        diagnostics.update_by_prompt,
        lambda x: {"advantages": x.advantages[x.correction], "prompt_index": x.prompt_index},
        check_update,
    ),
    "cosine": (
        diagnostics.cosine,
        lambda x: {"first": x.advantages[x.correction], "second": x.advantages[1]},
        check_cosine,
    ),
    "few_prompts_warning": (warning, lambda x: {"rewards": x.rewards} | options(x), check_warning),
    "reweighted_advantage": (
        weighting.reweighted_advantage,
        lambda x: {"rewards": x.rewards} | weighted(x),
        check_weighted,
    ),
    "accuracy_weights": (
        weighting.accuracy_weights,
        lambda x: {"rewards": x.rewards} | weighted(x),
        lambda x, r: close(r, weighted_oracle(reference.accuracy_weights, x), x.dtype),
    ),
    "grpo_advantage": (
        durian_adv.grpo_advantage,
        lambda x: {"rewards": x.rewards} | of_rewards(x) | std(x),
        lambda x, r: close(r, reference.grpo(**for_oracle(x), **std(x)), x.dtype),
    ),
    "shared_std_advantage": (
        durian_adv.shared_std_advantage,
        lambda x: {"rewards": x.rewards, "buckets": x.buckets} | of_rewards(x) | std(x),
        lambda x, r: close(r, reference.shared_std(**for_oracle(x), buckets=x.buckets.numpy(), **std(x)), x.dtype),
    ),
    "combine_advantages": (
        durian_adv.combine_advantages,
        lambda x: {"advantages": x.advantages, "weights": x.weights},
        combined,
    ),
    "quantile_buckets": (
        durian_adv.quantile_buckets,
        lambda x: {"scores": x.scores, "quantiles": x.quantiles, "boundary": x.boundary},
        check_buckets,
    ),
    "sequence_confidence": (
        durian_adv.sequence_confidence,
        lambda x: (
            {"logprobs": x.packed, "lengths": x.lengths, "rollout_index": x.rows}
            if x.flat
            else {"logprobs": x.logprobs, "mask": x.tokens, "reduction": ("sum", "mean")[x.correction]}
        ),
        lambda x, r: check_packed(x, r) if x.flat else check_confidence(x, r, ("sum", "mean")[x.correction]),
    ),
    "eigen_entropy": (
        durian_adv.eigen_entropy,
        lambda x: {"features": x.features, "mask": x.patches, "normalize": bool(x.correction)},
        lambda x, r: check_entropy(x, r, bool(x.correction)),
    ),
    "certified_entropy_buckets": (
        durian_adv.certified_entropy_buckets,
        lambda x: {"features": x.features, "mask": x.patches, "quantiles": x.quantiles},
        check_certified,
    ),
    "certified_entropy_intervals": (
        durian_adv.certified_entropy_intervals,
        lambda x: {"features": x.features, "mask": x.patches},
        check_intervals,
    ),
    **{
        f"{name}_advantage": (
            getattr(baselines, f"{name}_advantage"),
            lambda x: {"rewards": x.rewards} | of_rewards(x),
            lambda x, r, name=name: close(r, getattr(reference, name)(**for_oracle(x)), x.dtype, lost_digits(x)),
        )
        for name in ("dr_grpo", "rloo")
    },
    **{
        f"{name}_advantage": (
            getattr(baselines, f"{name}_advantage"),
            lambda x: {"rewards": x.rewards} | of_rewards(x) | std(x),
            lambda x, r, name=name: close(r, getattr(reference, name)(**for_oracle(x), **std(x)), x.dtype),
        )
        for name in ("batch_std", "reinforce_plus_plus", "reinforce_plus_plus_baseline")
    },
}


# --- faults -----------------------------------------------------------------------------------------

BAD_OPTIONS = {
    "eps": (-1.0, math.nan, math.inf, "0", True, torch.tensor(1.0), None, 10**400),
    "correction": (2, -1, 0.5, True, None),
    "weights": ((1, 2), "abc", (1, 2, -3), (0, 0, 0), (math.nan, 1, 1), 3, (1e308, 1e308, 1e308)),
    "entropy_quantiles": (0, (0.5, 0.5), (0.0,), "ab", 1.5, (0.7, 0.2), 2**40),
    "num_confidence_buckets": (0, -1, 2.0, None, 2**40),
    "quantiles": (0, (0.5, 0.5), (1.0,), "ab", 1.5, None),
    "boundary": ("inner", None, 1),
    "reduction": ("median", None),
    "no_signal": ("Keep", None, True),
    "lengths": ("12", [-1], [1.5], 3.0),
    "normalize": (1, None, "yes"),
    "size": (-1, 2.5, None),
    "success_threshold": (math.nan, "0.5", True, None),
    "weight": (None, 2.0, "linear", lambda p: 1.0, lambda p: p[None], lambda p: p * 1j),
}
TENSORS = ("rewards", "buckets", "scores", "logprobs", "features", "visual_entropy", "confidence", "mask",
           "category", "rollout_index", "correctness", "advantages", "first", "second")  # fmt: skip


def spoil(rng, fault, arguments):
    """One argument replaced by what none of its kind can be: its name and the arguments, or None."""
    if fault == "option":
        names = [n for n in arguments if n in BAD_OPTIONS]
        if not names:
            return None
        name = names[rng.integers(len(names))]
        return name, arguments | {name: BAD_OPTIONS[name][rng.integers(len(BAD_OPTIONS[name]))]}
    present = [n for n in (*TENSORS, "prompt_index", "valid") if isinstance(arguments.get(n), torch.Tensor)]
    if not present:
        return None
    name = present[rng.integers(len(present))]
    x = arguments[name]
    if fault == "dtype":  # only these have one
        wrong = {"prompt_index": torch.float32, "valid": torch.int64, "buckets": torch.float32}
        wrong |= {"category": torch.float32, "rollout_index": torch.float32}
        chosen = [n for n in present if n in wrong]
        if not chosen:
            return None
        return chosen[0], arguments | {chosen[0]: arguments[chosen[0]].to(wrong[chosen[0]])}
    scores = ("visual_entropy", "confidence")
    optional = (*scores, "mask", "valid", "prompt_index", "correctness", "category", "rollout_index")
    if fault == "none" and name in optional:
        return None  # allowed, or another form
    if fault in ("shape", "device") and name in ("scores", "rewards", "logprobs", "features", "advantages"):
        return None  # the first argument has no other to agree with
    if fault == "rank" and name in ("logprobs", "features"):
        return None  # of any number of dimensions
    bad = {
        "rank": lambda: x.reshape(*x.shape, 1, 1),
        "scalar": lambda: torch.zeros((), dtype=x.dtype),
        "shape": lambda: torch.zeros(*x.shape[:-1], x.shape[-1] + 1, dtype=x.dtype),
        "complex": lambda: torch.zeros(x.shape, dtype=torch.complex64),
        "sparse": lambda: torch.zeros(x.shape).to_sparse(),
        "device": lambda: x.to("meta"),
        "list": lambda: x.tolist(),
        "none": lambda: None,
    }[fault]()
    return name, arguments | {name: bad}


# --- one example ------------------------------------------------------------------------------------


@contextlib.contextmanager
def environment(name):
    """The state of the process that a caller may have."""
    before = torch.get_default_dtype()
    try:
        if name == "inference mode":
            with torch.inference_mode():
                yield
        elif name == "no grad":
            with torch.no_grad():
                yield
        elif name == "deterministic":
            torch.use_deterministic_algorithms(True)
            yield
        else:
            if name in ("float64", "bfloat16"):
                torch.set_default_dtype(getattr(torch, name))
            yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(before)


def given_tensors(arguments):
    for value in arguments.values():
        for x in value if isinstance(value, list) else [value]:
            if isinstance(x, torch.Tensor) and x.layout == torch.strided:
                yield x


def results(value):
    parts = value if isinstance(value, tuple) else [value]
    for part in parts:
        if isinstance(part, tuple):
            yield from results(part)
        elif isinstance(part, torch.Tensor):
            yield part


def bits(x):
    return x.detach().reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)


def run(x, count, pool):
    """Call every function on one example; count outcomes."""
    for name, (function, arguments_of, check) in FUNCTIONS.items():
        arguments = arguments_of(x)
        spoiled = spoil(x.rng, x.fault, arguments) if x.fault else None
        if spoiled is not None:
            refuse(function, *spoiled)
            count(name, "documented error", x)
            continue
        if x.environment == "autograd":
            for tensor in given_tensors(arguments):
                if tensor.dtype in (torch.float32, torch.float64):
                    tensor.requires_grad_(True)
        before = [bits(t) for t in given_tensors(arguments)]
        with environment(x.environment):
            if x.environment == "threads":
                calls = [pool.submit(function, **arguments) for _ in range(3)]
                result, *others = (call.result() for call in calls)
                for other in others:
                    assert all(map(same_bits, results(result), results(other))), name
            else:
                result = function(**arguments)
        for a, b in zip(before, given_tensors(arguments), strict=True):
            assert torch.equal(a, bits(b)), f"{name} wrote to an argument"
        for part in results(result):
            assert not part.requires_grad, name
            assert not part.is_inference() or x.environment == "inference mode", name
        check(x, result)
        count(name, "right", x)


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def refuse(function, spoiled, arguments):
    """The function must refuse the argument that was spoiled, by its name, with a documented type of error."""
    # where two do not fit, the other may be named
    names = "|".join({spoiled, *inspect.signature(function).parameters})
    with pytest.raises((TypeError, ValueError), match=rf"^({names})(\[\d+\])?(\.\w+)?: expected "):
        function(**arguments)


@st.composite
def examples(draw):
    """An example, all of it drawn."""
    return Example(draw)


def counted(calls, start, bar=None):
    """Fuzz until there are so many calls; return how many there were of each kind."""
    counts = collections.Counter()
    made, number = 0, start

    def count(name, outcome, x):
        nonlocal made
        made += 1
        for what, which in (
            ("function", name), ("environment", x.environment), ("memory", x.memory), ("dtype", str(x.dtype)),
            ("values", x.kind), ("fault", x.fault if outcome == "documented error" else None),
        ):  # fmt: skip
            if which is not None:
                counts[what, which, outcome] += 1

    with ThreadPoolExecutor(3) as pool:
        while made < calls:

            @seed(number)
            @settings(
                max_examples=min(500, 1 + (calls - made) // len(FUNCTIONS)),
                deadline=None,
                database=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            )
            @given(examples())
            def several(x):
                before = made
                run(x, count, pool)
                if bar is not None:
                    bar.update(made - before)

            several()
            number += 1
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first 500 examples; the next have the next")
    chosen = parser.parse_args()
    from tqdm import tqdm

    torch.set_num_threads(1)
    with tqdm(total=chosen.calls, unit=" calls", mininterval=5) as bar:
        counts = counted(chosen.calls, chosen.seed, bar)
    RECORD.parent.mkdir(exist_ok=True)
    with RECORD.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("date", "versions", "seed", "by", "name", "outcome", "calls"))
        versions = f"torch {torch.__version__}, Python {platform.python_version()}"
        date = datetime.datetime.now(datetime.UTC).date()
        for (what, which, outcome), n in sorted(counts.items()):
            out.writerow((date, versions, chosen.seed, what, which, outcome, n))
    by_outcome = collections.Counter()
    for (what, _, outcome), n in counts.items():
        by_outcome[outcome] += n * (what == "function")
    print(f"{sum(by_outcome.values())} calls: {dict(by_outcome)}; {RECORD}")


if __name__ == "__main__":
    main()
