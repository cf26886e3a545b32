"""Hypothesis strategies: batches of rewards, difficulty scores, and images of patch features.

Hypothesis draws the shape, the kind and a seed; NumPy fills the array from the seed. That keeps 200
examples of a property under a few seconds, and what matters (which kind, which shape) still shrinks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st

FLOATS = (torch.float32, torch.float64)
NARROW = (torch.float16, torch.bfloat16)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
DTYPES = FLOATS + NARROW + INTEGERS

KINDS = ("binary", "weighted", "ties", "normal", "mixed")
SCALES = (1.0, 1e-3, 1e3, 1e-30, 1e30)
OFFSETS = (0.0, 1.0, -1e4, 1e8)
POISON = (float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 0.0, 7.0)
LEVELS = ((0.25, 0.75), (0.5,), (0.1, 0.9), (0.3, 0.5, 0.7), (0.01,), (0.2, 0.4, 0.6, 0.8), (0.6, 0.8), (0.1, 0.3))

seeds = st.integers(0, 2**32 - 1)


def as_numpy(tensor):
    """The same values in float64 (exact for every dtype used here), or None."""
    return None if tensor is None else tensor.to(torch.float64).numpy()


@dataclass(frozen=True)
class RewardBatch:
    """The arguments of a function of rewards: dense, or flat where prompt_index is given."""

    rewards: torch.Tensor
    valid: torch.Tensor | None = None
    prompt_index: torch.Tensor | None = None

    @property
    def prompts(self):
        """How many prompts there are."""
        if self.prompt_index is None:
            return self.rewards.shape[0]
        return len(set(self.prompt_index.tolist()))

    @property
    def kwargs(self):
        """The keyword arguments for the library."""
        return {"valid": self.valid, "prompt_index": self.prompt_index}

    @property
    def for_reference(self):
        """The arguments for the oracle: float64 rewards, bools, ids."""
        return {
            "rewards": as_numpy(self.rewards),
            "valid": None if self.valid is None else self.valid.numpy(),
            "prompt_index": None if self.prompt_index is None else self.prompt_index.numpy(),
        }

    def usable(self):
        """Which rollouts count."""
        finite = torch.isfinite(self.rewards.to(torch.float64))
        return finite if self.valid is None else finite & self.valid

    def with_rewards(self, rewards):
        """The same batch with other rewards."""
        return replace(self, rewards=rewards)


def fill(rng, kind, shape):
    """Float64 rewards of one kind, about 1 in size."""
    if kind == "binary":
        return rng.integers(0, 2, shape).astype(np.float64)
    if kind == "weighted":  # 0.1 * format + 0.9 * accuracy, equations 22-24
        return 0.1 * rng.integers(0, 2, shape) + 0.9 * rng.integers(0, 2, shape)
    if kind == "ties":
        return rng.choice(rng.normal(size=3), shape)
    if kind == "mixed":
        return rng.normal(size=shape) * 10.0 ** rng.uniform(-8, 8, shape)
    return rng.normal(size=shape)


def make_rewards(rng, kind, shape, dtype, scale=1.0, offset=0.0, flat_rows=0.0, by_row=False):
    """A tensor of rewards: scaled, shifted, with some rows all equal, perhaps each row on its own scale."""
    if dtype in INTEGERS:
        top = 2 if dtype == torch.bool or kind == "binary" else 5
        values = rng.integers(0, top, shape).astype(np.float64)
    else:
        values = fill(rng, kind, shape) + offset
        if by_row:
            values = values * 10.0 ** rng.integers(-6, 7, (*shape[:-1], 1))
        values = values * scale
    if len(shape) == 2 and shape[1] > 0:
        same = rng.random(shape[0]) < flat_rows
        values[same] = values[same, :1]
    if dtype == torch.float32:
        values = np.clip(values, -3e38, 3e38)
    return torch.tensor(values).to(dtype)


def poison(rng, rewards, usable):
    """The same rewards with something else in every slot that does not count."""
    if rewards.dtype in INTEGERS:
        noise = torch.tensor(rng.integers(0, 2, rewards.shape)).to(rewards.dtype)
    else:
        noise = torch.tensor(rng.choice(POISON, rewards.shape)).to(rewards.dtype)
    return torch.where(usable, rewards, noise)


@st.composite
def dense_batches(
    draw,
    dtypes=FLOATS,
    kinds=KINDS,
    scales=SCALES,
    offsets=OFFSETS,
    masked=True,
    by_row=True,
    min_prompts=0,
    max_prompts=12,
):
    """A (B, G) batch, G from 1, with masked and non-finite slots."""
    rng = np.random.default_rng(draw(seeds))
    shape = (draw(st.integers(min_prompts, max_prompts)), draw(st.integers(1, 9)))
    dtype = draw(st.sampled_from(dtypes))
    rewards = make_rewards(
        rng,
        draw(st.sampled_from(kinds)),
        shape,
        dtype,
        scale=draw(st.sampled_from(scales)) if dtype not in NARROW else 1.0,
        offset=draw(st.sampled_from(offsets)) if dtype not in NARROW else 0.0,
        flat_rows=draw(st.sampled_from((0.0, 0.3))),
        by_row=by_row and dtype in FLOATS and draw(st.booleans()),
    )
    how = draw(st.sampled_from(("none", "mask", "holes", "both"))) if masked else "none"
    keep = draw(st.sampled_from((0.5, 0.9)))
    valid = torch.tensor(rng.random(shape) < keep) if how in ("mask", "both") else None
    batch = RewardBatch(rewards, valid)
    if how in ("holes", "both") and dtype not in INTEGERS:
        holes = torch.tensor(rng.random(shape) < 0.15)
        bad = torch.tensor(rng.choice(POISON[:3], shape)).to(dtype)
        batch = replace(batch, rewards=torch.where(holes, bad, rewards))
    if valid is not None:
        batch = replace(batch, rewards=poison(rng, batch.rewards, valid))
    return batch


def make_ids(rng, count):
    """Distinct int64 ids: small, negative or huge, neighbors among them, in no order."""
    pool = np.unique(rng.choice((1, 2**20, 2**61), 4 * count + 8) * rng.integers(-3, 4, 4 * count + 8))
    pool = np.unique(pool[:, None] + np.arange(2))  # huge neighbors, which a float64 cannot tell apart
    extra = np.arange(1000, 1000 + count)
    return rng.permutation(np.unique(np.concatenate([pool, extra])))[:count].astype(np.int64)


@st.composite
def flat_batches(draw, dtypes=FLOATS, kinds=KINDS, scales=SCALES, offsets=OFFSETS):
    """A ragged (N,) batch: arbitrary ids, any order, some rollouts invalid."""
    rng = np.random.default_rng(draw(seeds))
    sizes = np.array(draw(st.lists(st.integers(1, 7), max_size=10)), dtype=np.int64)
    ids = np.repeat(make_ids(rng, len(sizes)), sizes)
    dtype = draw(st.sampled_from(dtypes))
    rewards = make_rewards(
        rng,
        draw(st.sampled_from(kinds)),
        ids.shape,
        dtype,
        scale=draw(st.sampled_from(scales)) if dtype not in NARROW else 1.0,
        offset=draw(st.sampled_from(offsets)) if dtype not in NARROW else 0.0,
    )
    valid = None
    if draw(st.booleans()):
        valid = torch.tensor(rng.random(ids.shape) < 0.8)
        rewards = poison(rng, rewards, valid)
    order = rng.permutation(len(ids))
    return RewardBatch(
        rewards[order], None if valid is None else valid[order], torch.tensor(ids[order], dtype=torch.int64)
    )


def make_scores(rng, kind, shape, dtype=torch.float64):
    """Difficulty scores. "grid" ones are multiples of 1/8, so that ties and exact means abound."""
    if kind == "normal":
        values = rng.normal(size=shape)
    else:
        values = rng.integers(-16, 17, shape) / 8.0 if kind == "grid" else rng.integers(0, 3, shape) / 2.0
    if kind == "holes":
        values = np.where(rng.random(shape) < 0.3, np.nan, values)
    if kind == "infinite":
        values = np.where(rng.random(shape) < 0.3, rng.choice((np.inf, -np.inf), shape), values)
    return torch.tensor(values, dtype=torch.float64).to(dtype)


SCORE_KINDS = ("normal", "grid", "few", "holes", "infinite")


@st.composite
def scores(draw, size=None, dtypes=FLOATS):
    """One difficulty score a prompt, with ties, NaN and infinities."""
    rng = np.random.default_rng(draw(seeds))
    n = draw(st.integers(0, 24)) if size is None else size
    return make_scores(rng, draw(st.sampled_from(SCORE_KINDS)), (n,), draw(st.sampled_from(dtypes)))


@st.composite
def quantiles(draw):
    """A number of buckets, or increasing levels."""
    return draw(st.one_of(st.integers(1, 16), st.sampled_from(LEVELS)))


@st.composite
def difficulty(draw, batch):
    """`visual_entropy` and `confidence` for a batch: absent, per prompt or per rollout."""
    rng = np.random.default_rng(draw(seeds))
    dtype = draw(st.sampled_from(FLOATS))

    def one(per_rollout):
        kind = draw(st.sampled_from(SCORE_KINDS))
        if batch.prompt_index is None:
            if per_rollout:
                return make_scores(rng, draw(st.sampled_from(("grid", "few", "holes"))), batch.rewards.shape, dtype)
            return make_scores(rng, kind, (batch.prompts,), dtype)
        if per_rollout:
            return make_scores(rng, draw(st.sampled_from(("grid", "few", "holes"))), batch.rewards.shape, dtype)
        names, position = np.unique(batch.prompt_index.numpy(), return_inverse=True)
        return make_scores(rng, kind, (len(names),), dtype)[torch.tensor(position)]

    entropy = one(batch.prompt_index is not None and draw(st.booleans())) if draw(st.integers(0, 4)) else None
    confidence = one(draw(st.booleans())) if draw(st.integers(0, 4)) else None
    return {"visual_entropy": entropy, "confidence": confidence}


@st.composite
def categories(draw, batch):
    """`category` for a batch, and a fourth weight for it; or neither."""
    if not draw(st.booleans()):
        return {}
    rng = np.random.default_rng(draw(seeds))
    size = batch.prompts if batch.prompt_index is None else len(batch.rewards)
    labels = rng.choice((0, 1, -5, 2**62, 2**62 + 1, -(2**63), 2**63 - 1)[: draw(st.integers(1, 7))], size)
    if batch.prompt_index is not None and draw(st.booleans()):  # one per prompt; else the largest of a prompt's rows
        labels = labels[np.unique(batch.prompt_index.numpy(), return_inverse=True)[1]]
    return {"category": torch.tensor(labels, dtype=torch.int64)}


@st.composite
def several_rows(draw, batch, scores):
    """A flat batch whose rollouts lie in one or more rows, some rows invalid, in any order; and where each came from.

    Returns the batch, its scores, `rollout_index` and, for each row, the position of its rollout in the batch given. A
    row that is invalid holds anything, and a valid one may not know the scores.
    """
    rng = np.random.default_rng(draw(seeds))
    count = len(batch.rewards)
    source = np.concatenate([np.arange(count), rng.integers(0, max(1, count), 2 * count if count else 0)])
    source = torch.tensor(rng.permutation(source), dtype=torch.int64)
    valid = torch.tensor(rng.random(len(source)) < draw(st.sampled_from((0.6, 1.0))))
    order = rng.permutation(len(source))  # one row of each rollout, any of them, is valid and knows the scores
    first = torch.tensor(order[np.unique(source.numpy()[order], return_index=True)[1]], dtype=torch.int64)
    valid[first] = True
    allowed = valid if batch.valid is None else valid & batch.valid[source]
    usable = valid & batch.usable()[source]
    spread = {}
    for name, score in scores.items():
        spread[name] = score
        if score is not None:
            unknown = torch.tensor(rng.random(len(source)) < 0.3)
            unknown[first] = False
            told = torch.where(unknown, torch.nan, score[source])
            spread[name] = torch.where(usable, told, torch.tensor(rng.choice(POISON, len(source))).to(score.dtype))
    rows = RewardBatch(poison(rng, batch.rewards[source], allowed), allowed, batch.prompt_index[source])
    return rows, spread, torch.tensor(make_ids(rng, count))[source], source


@st.composite
def durian_options(draw, weights=3):
    """Everything else `durian_advantage` takes."""
    three = draw(st.sampled_from(((0.1, 0.2, 0.7), (0.6, 0.2, 0.2), (1, 1, 1), (1.0, 0.0, 0.5), (0.3, 2, 0))))
    return {
        "weights": (*three, *(draw(st.sampled_from((0.0, 0.4, 3))) for _ in range(weights - 3))),
        "no_signal": draw(st.sampled_from(("keep", "drop"))),
        "entropy_quantiles": draw(st.sampled_from(((0.25, 0.75), (0.5,), (0.1, 0.9), (0.3, 0.5, 0.7)))),
        "num_confidence_buckets": draw(st.sampled_from((12, 1, 2, 3, 5))),
        "eps": draw(st.sampled_from((1e-6, 0.0, 1e-4, 1e-2))),
        "correction": draw(st.sampled_from((0, 1))),
    }


@st.composite
def images(draw, dtype=torch.float64, min_images=1):
    """Patch features (n, P, D) with a mask of real patches; rows of the mask differ in length and place."""
    rng = np.random.default_rng(draw(seeds))
    shape = (draw(st.integers(min_images, 5)), draw(st.integers(1, 24)), draw(st.integers(1, 24)))
    rank = draw(st.integers(1, 24))
    features = rng.normal(size=(*shape[:2], rank)) @ rng.normal(size=(shape[0], rank, shape[2]))
    features += draw(st.sampled_from((0.0, 1.0, 100.0)))
    features *= draw(st.sampled_from((1.0, 1e-3, 1e3)))
    mask = rng.random(shape[:2]) < draw(st.sampled_from((0.3, 0.8, 1.0)))
    return torch.tensor(features).to(dtype), torch.tensor(mask)
