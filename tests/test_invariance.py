"""Order, padding, packing and the rest of the batch do not exist: not one bit of a result moves.

Every property runs all estimators of the library on one case (`helpers.estimates`).
"""

from __future__ import annotations

import numpy as np
import pytest
import strategies as own
import torch
from helpers import Case, assert_same_bits, dense_cases, estimates, packed, padded, rearranged
from hypothesis import given

from durian_adv import durian_components, grpo_advantage


def orders(rng, shape):
    """A random order of the prompts and, for each prompt, of its rollouts."""
    rows = torch.tensor(rng.permutation(shape[0]), dtype=torch.int64)
    columns = torch.tensor(rng.permuted(np.tile(np.arange(shape[1]), (shape[0], 1)), axis=1), dtype=torch.int64)
    return rows, columns


@given(dense_cases(), own.seeds)
def test_no_order_of_prompts_or_rollouts_changes_a_bit(case, seed):
    rows, columns = orders(np.random.default_rng(seed), case.batch.rewards.shape)
    plain, moved = estimates(case), estimates(rearranged(case, rows, columns))
    for name, value in plain.items():
        assert_same_bits(moved[name], torch.gather(value, 1, columns)[rows], name)


@given(dense_cases(), own.seeds)
def test_no_padding_changes_a_bit_whatever_stands_in_it(case, seed):
    rng = np.random.default_rng(seed)
    more_rows, more_columns = rng.integers(0, 4, 2)
    plain, around = estimates(case), estimates(padded(case, rng, more_rows, more_columns))
    prompts, width = case.batch.rewards.shape
    for name, value in plain.items():
        assert_same_bits(around[name][:prompts, :width], value, name)
        assert not around[name][prompts:].any(), name
        assert not around[name][:, width:].any(), name


@given(dense_cases(min_prompts=1), own.seeds)
def test_the_flat_form_under_any_ids_and_order_equals_the_dense_form_bitwise(case, seed):
    flat, position = packed(case, np.random.default_rng(seed))
    plain, ragged = estimates(case), estimates(flat)
    for name, value in plain.items():
        assert_same_bits(ragged[name], value.flatten()[position], name)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_prompt_ids_may_have_any_integer_dtype(dtype):
    rewards, index = torch.tensor([1.0, 0.0, 4.0, 0.0, 2.0]), torch.tensor([7, 1, 7, 1, 1])
    advantages = grpo_advantage(rewards, prompt_index=index)
    assert_same_bits(grpo_advantage(rewards, prompt_index=index.to(dtype)), advantages)


@given(dense_cases(min_prompts=1))
def test_the_grpo_of_a_prompt_alone_equals_its_grpo_in_the_batch_bitwise(case):
    batch = case.batch
    together = estimates(case)
    for s in range(batch.prompts):
        valid = None if batch.valid is None else batch.valid[s : s + 1]
        alone = grpo_advantage(batch.rewards[s : s + 1], valid=valid, eps=case.eps, correction=case.correction)
        assert_same_bits(together["grpo"][s : s + 1], alone)
        assert_same_bits(together["grpo_advantage"][s : s + 1], alone)


@given(dense_cases(min_prompts=1), own.seeds)
def test_what_stands_in_invalid_slots_changes_no_bit(case, seed):
    rng = np.random.default_rng(seed)
    batch, usable = case.batch, case.batch.usable()
    rewards = own.poison(rng, batch.rewards, usable)
    confidence, entropy, buckets = case.confidence, case.entropy, case.buckets
    empty = ~usable.any(1)
    noise = torch.tensor(rng.choice(own.POISON, batch.rewards.shape))
    if confidence.ndim == 2:
        confidence = torch.where(usable, confidence, noise.to(confidence.dtype))
    else:
        confidence = torch.where(empty, noise[:, 0].to(confidence.dtype), confidence)
    entropy = torch.where(empty, noise[:, 0], entropy)
    buckets = torch.where(empty, torch.tensor(rng.integers(-1, 3, batch.prompts)), buckets)
    other = Case(own.RewardBatch(rewards, usable), entropy, confidence, buckets, case.eps, case.correction)
    plain, poisoned = estimates(case), estimates(other)
    for name, value in plain.items():
        assert_same_bits(poisoned[name], value, name)
        assert not poisoned[name][~usable].any(), name


@given(dense_cases(min_prompts=1, dtypes=(torch.float32,)), own.seeds)
def test_float64_scores_are_not_rounded_to_the_dtype_of_the_rewards(case, seed):
    # scores one float64 ulp apart are different scores
    rng = np.random.default_rng(seed)
    ranks = rng.permutation(case.batch.prompts)
    near = torch.tensor(1.0 + ranks * 2.0**-52)
    far = torch.tensor(ranks.astype(np.float64))
    parts = [
        durian_components(
            case.batch.rewards, valid=case.batch.valid, visual_entropy=s, confidence=s, num_confidence_buckets=4
        )
        for s in (near, far)
    ]
    assert_same_bits(parts[0].entropy_bucket, parts[1].entropy_bucket)
    assert_same_bits(parts[0].confidence_bucket, parts[1].confidence_bucket)
    assert_same_bits(parts[0].advantages, parts[1].advantages)


def big_case(shape, kind, dtype, seed=0):
    """A large batch of scores and rewards."""
    rng = np.random.default_rng(seed)
    if kind == "normal":
        values = rng.normal(size=shape)
    elif kind == "mixed":
        values = rng.normal(size=shape) * 10.0 ** rng.uniform(-8, 8, shape)
    else:
        values = rng.normal(size=shape) * 10.0 ** rng.uniform(-30, 30, (shape[0], 1)) + 1e-3
    return Case(
        own.RewardBatch(torch.tensor(values).to(dtype), torch.tensor(rng.random(shape) < 0.95)),
        entropy=torch.tensor(rng.normal(size=shape[0])),
        confidence=torch.tensor(rng.normal(size=shape) * 10.0 ** rng.uniform(-3, 3, shape)),
        buckets=torch.tensor(rng.integers(0, 5, shape[0])),
        eps=0.0 if kind == "rows" else 1e-6,
    )


@pytest.mark.parametrize("dtype", own.FLOATS)
@pytest.mark.parametrize("kind", ["normal", "mixed", "rows"])
def test_4096_prompts_by_16_rollouts_keep_every_bit_under_reordering_and_packing(kind, dtype):
    case = big_case((4096, 16), kind, dtype)
    plain = estimates(case)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        rows, columns = orders(rng, (4096, 16))
        moved = estimates(rearranged(case, rows, columns))
        flat, position = packed(case, rng)
        ragged = estimates(flat)
        for name, value in plain.items():
            assert_same_bits(moved[name], torch.gather(value, 1, columns)[rows], name)
            assert_same_bits(ragged[name], value.flatten()[position], name)


def test_a_million_rollouts_keep_every_bit_under_reordering():
    shape = (2**16, 2**4)
    case = big_case(shape, "mixed", torch.float64)
    rows, columns = orders(np.random.default_rng(1), shape)
    plain, moved = estimates(case), estimates(rearranged(case, rows, columns))
    for name, value in plain.items():
        assert_same_bits(moved[name], torch.gather(value, 1, columns)[rows], name)


def test_one_prompt_of_a_million_rollouts_keeps_every_bit_under_reordering():
    rng = np.random.default_rng(3)
    rewards = torch.tensor(rng.normal(size=(1, 2**20)) + 5.0)
    order = torch.tensor(rng.permutation(2**20))
    assert_same_bits(grpo_advantage(rewards[:, order]), grpo_advantage(rewards)[:, order])
