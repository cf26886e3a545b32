"""The whole of Durian (equations 2, 10-13, 15-20) against the reference, and its own rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import strategies as own
import torch
from helpers import COMPONENTS, TOLERANCE, assert_matches, assert_same_bits, dense_cases, result_dtype
from hypothesis import given
from hypothesis import strategies as st

from durian_adv import (
    combine_advantages,
    durian_advantage,
    durian_components,
    grpo_advantage,
    quantile_buckets,
    shared_std_advantage,
)
from durian_adv._src import scales

STDS = ("prompt_std", "perceptual_std", "reasoning_std", "category_std")
BUCKETS = ("entropy_bucket", "confidence_bucket")


def assert_components_match(parts, expected, dtype):
    """Every field of the named tuple against the oracle's."""
    for name in COMPONENTS:
        if expected[name] is None:
            assert getattr(parts, name) is None, name
        else:
            assert getattr(parts, name).dtype == result_dtype(dtype), name
            assert_matches(getattr(parts, name), expected[name], where=name)
    assert parts.has_signal.dtype == torch.bool
    assert parts.has_signal.tolist() == expected["has_signal"].tolist()
    for name in BUCKETS:
        if expected[name] is None:
            assert getattr(parts, name) is None, name
        else:
            assert getattr(parts, name).dtype == torch.int64, name
            assert getattr(parts, name).tolist() == expected[name].tolist(), name
    for name in STDS:
        if expected[name] is None:
            assert getattr(parts, name) is None, name
            continue
        std = getattr(parts, name)
        assert std.dtype == result_dtype(dtype), name
        assert std.shape == parts.has_signal.shape, name
        limit = torch.finfo(std.dtype)
        wanted = np.minimum(expected[name], limit.max)[expected["has_signal"]]
        off = np.abs(own.as_numpy(std)[expected["has_signal"]] - wanted)
        assert (off <= TOLERANCE[std.dtype] * wanted + 4 * limit.smallest_normal * limit.eps).all(), name


def assert_agrees_with_the_reference(data, batch):
    """`durian_components` with everything it takes against the oracle."""
    scores, category = data.draw(own.difficulty(batch)), data.draw(own.categories(batch))
    options = data.draw(own.durian_options(weights=4 if category or data.draw(st.booleans()) else 3))
    if not sum(options["weights"][: 3 + len(category)]):
        return
    parts = durian_components(batch.rewards, **batch.kwargs, **scores, **category, **options)
    arrays = {name: own.as_numpy(score) for name, score in scores.items()}
    arrays |= {name: labels.numpy() for name, labels in category.items()}
    expected = reference.durian(**batch.for_reference, **arrays, **options)
    assert_components_match(parts, expected, batch.rewards.dtype)


@given(st.data(), own.dense_batches(dtypes=own.DTYPES))
def test_durian_agrees_with_the_reference_on_dense_batches(data, batch):
    assert_agrees_with_the_reference(data, batch)


@given(st.data(), own.flat_batches(dtypes=own.DTYPES))
def test_durian_agrees_with_the_reference_on_ragged_batches(data, batch):
    assert_agrees_with_the_reference(data, batch)


@given(dense_cases())
def test_the_advantage_is_the_first_field_of_the_components(case):
    kwargs = {"visual_entropy": case.entropy, "confidence": case.confidence, "valid": case.batch.valid}
    parts = durian_components(case.batch.rewards, **kwargs)
    assert parts[0] is parts.advantages
    assert_same_bits(durian_advantage(case.batch.rewards, **kwargs), parts.advantages)


@given(dense_cases(masked=False))
def test_durian_is_made_of_the_public_functions(case):
    rewards = case.batch.rewards
    score = case.confidence if case.confidence.ndim == 1 else case.entropy.flip(0)
    parts = durian_components(rewards, visual_entropy=case.entropy, confidence=score)
    entropy_bucket = quantile_buckets(case.entropy, (0.25, 0.75), boundary="outer")
    confidence_bucket = quantile_buckets(score, 12)
    assert_same_bits(parts.entropy_bucket, entropy_bucket)
    assert_same_bits(parts.confidence_bucket, confidence_bucket)
    assert_same_bits(parts.grpo, grpo_advantage(rewards))
    assert_same_bits(parts.perceptual, shared_std_advantage(rewards, entropy_bucket))
    assert_same_bits(parts.reasoning, shared_std_advantage(rewards, confidence_bucket))
    both = combine_advantages((parts.grpo, parts.perceptual, parts.reasoning), (0.1, 0.2, 0.7))
    assert_matches(parts.advantages, own.as_numpy(both))


@given(dense_cases(min_prompts=1), own.seeds, own.durian_options(weights=4))
def test_only_the_ranks_of_the_scores_matter_bitwise(case, seed, options):
    rng = np.random.default_rng(seed)

    def relabel(scores):
        """Another strictly increasing sequence in place of the distinct values."""
        flat = scores.to(torch.float64).numpy()
        known = ~np.isnan(flat)
        values, ranks = np.unique(flat[known], return_inverse=True)
        steps = np.cumsum(rng.choice((5e-300, 1e-12, 1.0, 1e12), len(values)))
        fresh = np.unique(np.concatenate([steps, 1e13 + 2 * np.arange(len(values))]))
        out = flat.copy()
        out[known] = np.sort(rng.choice(fresh, len(values), replace=False))[ranks]
        return torch.tensor(out)

    score = case.confidence if case.confidence.ndim == 1 else case.entropy.flip(0)
    kwargs = {"valid": case.batch.valid, "category": case.buckets, **options}
    plain = durian_components(case.batch.rewards, visual_entropy=case.entropy, confidence=score, **kwargs)
    mapped = durian_components(
        case.batch.rewards, visual_entropy=relabel(case.entropy), confidence=relabel(score), **kwargs
    )
    for name in (*COMPONENTS, *BUCKETS, *STDS):
        assert_same_bits(getattr(mapped, name), getattr(plain, name), name)


@given(dense_cases(min_prompts=1))
def test_monotone_functions_of_the_scores_change_no_bit(case):
    grid = torch.round(case.entropy.nan_to_num(0.5, 3.0, -3.0) * 8) / 8
    plain = durian_advantage(case.batch.rewards, visual_entropy=grid, confidence=grid, valid=case.batch.valid)
    for function in (math.exp, lambda x: 3 * x - 1e3, lambda x: x**3 + x, math.sinh):
        # value by value: torch.sinh rounds a value in a vector's body and in its tail differently on some CPUs
        scores = torch.tensor([function(value) for value in grid.tolist()], dtype=torch.float64)
        mapped = durian_advantage(case.batch.rewards, visual_entropy=scores, confidence=scores, valid=case.batch.valid)
        assert_same_bits(mapped, plain)


@given(dense_cases(), st.sampled_from((None, "entropy", "confidence")))
def test_an_absent_score_leaves_its_component_out_and_the_other_weights_keep_their_sum(case, there):
    scores = {
        "visual_entropy": case.entropy if there == "entropy" else None,
        "confidence": case.confidence if there == "confidence" else None,
    }
    parts = durian_components(case.batch.rewards, valid=case.batch.valid, **scores)
    if there is None:
        assert_matches(parts.advantages, own.as_numpy(parts.grpo))
        assert parts.perceptual is None
        assert parts.reasoning is None
    else:
        left, weight = (parts.perceptual, 0.2) if there == "entropy" else (parts.reasoning, 0.7)
        out = own.as_numpy(parts.grpo) * 0.1 + own.as_numpy(left) * weight
        assert_matches(parts.advantages, out / (0.1 + weight))
    absent = {None: (0, 1), "entropy": (1,), "confidence": (0,)}[there]
    for index in absent:
        assert getattr(parts, BUCKETS[index]) is None
        assert getattr(parts, STDS[index + 1]) is None
        assert getattr(parts, ("perceptual", "reasoning")[index]) is None


@given(dense_cases(min_prompts=1), own.seeds)
def test_rollouts_that_agree_on_a_score_give_exactly_that_score(case, seed):
    rng = np.random.default_rng(seed)
    rewards, usable = case.batch.rewards, case.batch.usable()
    score = torch.tensor(rng.normal(size=case.batch.prompts) / 3)
    repeated = score[:, None].repeat(1, rewards.shape[1])
    repeated = torch.where(usable & torch.tensor(rng.random(rewards.shape) < 0.8), repeated, float("nan"))
    lone = torch.where(torch.isnan(repeated).all(1), float("nan"), score)
    options = {"valid": case.batch.valid, "num_confidence_buckets": 5}
    assert_same_bits(
        durian_advantage(rewards, confidence=repeated, **options),
        durian_advantage(rewards, confidence=lone, **options),
    )


@given(own.seeds, st.integers(2, 9), st.integers(2, 6))
def test_prompts_with_the_same_rollout_scores_in_any_order_have_the_same_score(seed, width, prompts):
    # a sum that depended on its order would break these ties
    rng = np.random.default_rng(seed)
    base = rng.normal(size=width) * 10.0 ** rng.uniform(-6, 6, width)
    confidence = torch.tensor(np.stack([rng.permutation(base) for _ in range(prompts)]))
    rewards = torch.tensor(rng.integers(0, 2, (prompts, width)).astype(np.float64))
    bucket = durian_components(rewards, confidence=confidence, num_confidence_buckets=4).confidence_bucket
    assert len(set(bucket.tolist())) == 1


@given(own.seeds, st.integers(2, 12), st.integers(1, 9), st.sampled_from((2, 3, 5, 12)), st.booleans())
def test_prompts_with_equal_mean_scores_are_in_one_bucket_whatever_the_means_are_made_of(
    seed, prompts, width, count, ragged
):
    # multiples of 1/8: the sums are exact, so equal means are equal floats and no rounding may part them
    rng = np.random.default_rng(seed)
    confidence = rng.integers(-3, 4, (prompts, width)) / 8.0
    valid = rng.random((prompts, width)) < (0.7 if ragged else 1.0)
    rewards = rng.integers(0, 2, (prompts, width)).astype(np.float64)
    parts = durian_components(
        torch.tensor(rewards),
        confidence=torch.tensor(confidence),
        valid=torch.tensor(valid),
        num_confidence_buckets=count,
    )
    expected = reference.durian(rewards, None, confidence, valid, num_confidence_buckets=count)
    assert parts.confidence_bucket.tolist() == expected["confidence_bucket"].tolist()
    assert_matches(parts.reasoning, expected["reasoning"])


def test_the_worked_fixture():
    rewards = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.float64)
    eps = 1e-6
    parts = durian_components(
        rewards,
        visual_entropy=torch.tensor([1.0, 2.0, 3.0, 4.0]),
        confidence=torch.tensor([-3.0, -1.0, -4.0, -2.0]),
        weights=(0.6, 0.2, 0.2),
        num_confidence_buckets=2,
        eps=eps,
    )

    def std(successes, n):  # binary rewards
        m = successes / n
        return math.sqrt(n / (n - 1) * m * (1 - m))

    assert parts.entropy_bucket.tolist() == [0, 1, 1, 2]
    assert parts.confidence_bucket.tolist() == [0, 1, 0, 1]
    assert parts.has_signal.tolist() == [True, True, True, False]
    prompt = [std(3, 4), std(2, 4), std(1, 4), 0.0]
    perceptual = [std(3, 4), std(3, 8), std(3, 8), 0.0]
    reasoning = [std(4, 8), std(2, 8), std(4, 8), std(2, 8)]
    assert_matches(parts.prompt_std, prompt)
    assert_matches(parts.perceptual_std, perceptual)
    assert_matches(parts.reasoning_std, reasoning)
    assert perceptual[1] == pytest.approx(0.5175492, abs=5e-8)
    assert reasoning[:2] == pytest.approx([0.5345225, 0.4629100], abs=5e-8)

    centered = rewards.numpy() - np.array([[0.75], [0.5], [0.25], [0.0]])
    expected = [centered / (np.array(s)[:, None] + eps) for s in (prompt, perceptual, reasoning)]
    assert_matches(parts.grpo, expected[0])
    assert_matches(parts.perceptual, expected[1])
    assert_matches(parts.reasoning, expected[2])
    assert_matches(parts.advantages, 0.6 * expected[0] + 0.2 * expected[1] + 0.2 * expected[2])
    paper = [[0.4935] * 3 + [-1.4806], [0.9289] * 2 + [-0.9289] * 2, [-0.4901] * 3 + [1.4704], [0.0] * 4]
    assert_matches(parts.advantages, paper, 6e-5)


def test_the_defaults_are_those_of_the_contract():
    rng = np.random.default_rng(0)
    rewards, h, c = (torch.tensor(rng.normal(size=s)) for s in ((40, 8), (40,), (40,)))
    explicit = durian_advantage(
        rewards,
        visual_entropy=h,
        confidence=c,
        prompt_index=None,
        valid=None,
        category=None,
        rollout_index=None,
        weights=(0.1, 0.2, 0.7),
        no_signal="keep",
        entropy_quantiles=(0.25, 0.75),
        num_confidence_buckets=12,
        eps=1e-6,
        correction=1,
        process_group=None,
    )
    assert_same_bits(durian_advantage(rewards, visual_entropy=h, confidence=c), explicit)


def test_prompts_without_an_image_share_a_bucket_of_their_own_and_move_no_quantile():
    nan = float("nan")
    rewards = torch.tensor([[1.0, 0.0], [2.0, 0.0], [5.0, 0.0], [1.0, 0.0], [9.0, 0.0]], dtype=torch.float64)
    parts = durian_components(rewards, visual_entropy=torch.tensor([1.0, nan, 2.0, 3.0, nan]), eps=0.0)
    assert parts.entropy_bucket.tolist() == [0, 3, 1, 2, 3]
    shared = float(np.std([2.0, 0.0, 9.0, 0.0], ddof=1))
    assert_matches(parts.perceptual[1], [1.0 / shared, -1.0 / shared])
    assert_matches(parts.perceptual[4], [4.5 / shared, -4.5 / shared])


def test_a_prompt_without_a_valid_rollout_moves_no_quantile():
    rewards = torch.tensor([[1.0, 0.0], [2.0, 0.0], [5.0, 0.0], [float("nan")] * 2])
    scores = torch.tensor([1.0, 2.0, 3.0, 1e9])
    options = {"num_confidence_buckets": 2, "weights": (1, 1, 1, 1)}
    with_it = durian_components(rewards, visual_entropy=scores, confidence=scores, category=scores.long(), **options)
    rest = {"visual_entropy": scores[:3], "confidence": scores[:3], "category": scores[:3].long()}
    without = durian_components(rewards[:3], **rest, **options)
    for name in (*BUCKETS, *COMPONENTS):
        assert_same_bits(getattr(with_it, name)[:3], getattr(without, name), name)
    assert not with_it.advantages[3].any()


def test_a_no_signal_prompt_still_counts_in_its_bucket():
    # its raw rewards belong to R_a: equation 11 takes all raw rewards of the bucket
    rewards = torch.tensor([[1.0, 0.0], [4.0, 4.0]], dtype=torch.float64)
    parts = durian_components(rewards, visual_entropy=torch.tensor([1.0, 1.0]), eps=0.0)
    assert_matches(parts.perceptual_std, [np.std([1.0, 0.0, 4.0, 4.0], ddof=1)] * 2)


def test_the_bucket_std_is_around_the_bucket_mean_so_between_prompt_variance_counts():
    rewards = torch.tensor([[0.0, 1.0], [10.0, 11.0]], dtype=torch.float64)
    advantages = shared_std_advantage(rewards, torch.tensor([0, 0]), eps=0.0)
    spread = np.std([0.0, 1.0, 10.0, 11.0], ddof=1)
    assert_matches(advantages, np.array([[-0.5, 0.5], [-0.5, 0.5]]) / spread)


@pytest.mark.parametrize("weights", [(0, 0, 1), (0.0, 1.0, 0.0), (1, 0, 0)])
def test_a_single_weight_picks_a_single_component(weights):
    rng = np.random.default_rng(1)
    rewards, h, c = (torch.tensor(rng.normal(size=s)) for s in ((20, 8), (20,), (20,)))
    parts = durian_components(rewards, visual_entropy=h, confidence=c, weights=weights)
    chosen = (parts.grpo, parts.perceptual, parts.reasoning)[weights.index(1)]
    assert_matches(parts.advantages, chosen.numpy())


@pytest.mark.parametrize("weights", [(0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0, 0, 0)])
def test_weights_that_vanish_on_the_components_left_are_refused(weights):
    rewards = torch.tensor([[1.0, 0.0]])
    scores = {"visual_entropy": None, "confidence": None}
    if weights[1] == 1.0:
        scores["confidence"] = torch.ones(1)
    if weights[2] == 1.0:
        scores["visual_entropy"] = torch.ones(1)
    with pytest.raises(ValueError, match="weights"):
        durian_advantage(rewards, weights=weights, **scores)


# --- categories and prompts without signal ------------------------------------------------------------


@given(dense_cases(), own.durian_options(weights=4))
def test_the_category_component_is_the_shared_std_of_the_category(case, options):
    std = {"eps": options["eps"], "correction": options["correction"]}
    parts = durian_components(case.batch.rewards, valid=case.batch.valid, category=case.buckets, **options)
    valid = case.batch.usable()
    if options["no_signal"] == "drop":
        valid &= parts.has_signal[:, None]
    assert_same_bits(parts.category, shared_std_advantage(case.batch.rewards, case.buckets, valid=valid, **std))


@given(dense_cases(min_prompts=1), own.durian_options())
def test_a_fourth_weight_without_categories_changes_nothing_but_the_scale(case, options):
    scores = {"visual_entropy": case.entropy, "valid": case.batch.valid}
    four = durian_components(case.batch.rewards, **scores, **options | {"weights": (1, 1, 0, 2)})
    two = durian_components(case.batch.rewards, **scores, **options | {"weights": (2, 2, 0)})
    assert four.category is four.category_std is None
    assert_same_bits(four.advantages, two.advantages)


def test_categories_need_a_fourth_weight():
    rewards, category = torch.tensor([[1.0, 0.0]]), torch.tensor([3])
    with pytest.raises(ValueError, match=r"^weights: expected 4 numbers with category, the last one its own, got 3$"):
        durian_advantage(rewards, category=category)
    with pytest.raises(ValueError, match=r"^weights: expected a positive sum"):
        durian_advantage(rewards, weights=(0, 0, 0, 1))
    with pytest.raises(ValueError, match=r"^weights: expected 3 or 4 numbers, got 5$"):
        durian_advantage(rewards, weights=(1, 1, 1, 1, 1))
    with pytest.raises(TypeError, match=r"^category: expected an integer dtype, got torch.float32$"):
        durian_advantage(rewards, category=category.float(), weights=(1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"^category: expected shape \(B,\) = \(1,\), got \(1, 2\)$"):
        durian_advantage(rewards, category=category[:, None].expand(1, 2), weights=(1, 1, 1, 1))


def test_units_that_differ_by_kind_cost_nothing_when_the_kind_is_known():
    # the same outcomes, once in units of 1 and once of 1/8: a std per kind gives them one advantage
    outcomes = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.float64)
    rewards, kind = torch.cat([outcomes, outcomes / 8]), torch.tensor([5, 5, -7, -7])
    by_kind = durian_advantage(rewards, category=kind, weights=(0, 0, 0, 1), eps=0.0)
    assert_same_bits(by_kind[2:], by_kind[:2])
    std = np.std([1, 1, 0, 0, 1, 0, 0, 0], ddof=1)
    assert_matches(by_kind[0], np.array([0.5, 0.5, -0.5, -0.5]) / std)


@given(st.data(), st.one_of(own.dense_batches(dtypes=own.DTYPES), own.flat_batches(dtypes=own.DTYPES)))
def test_dropping_prompts_without_signal_is_calling_their_rollouts_invalid_bit_for_bit(data, batch):
    scores, category = data.draw(own.difficulty(batch)), data.draw(own.categories(batch))
    options = data.draw(own.durian_options(weights=4)) | {"weights": (0.5, 1, 2, 1)}
    dropped = durian_components(batch.rewards, **batch.kwargs, **scores, **category, **options | {"no_signal": "drop"})
    signal = dropped.has_signal if batch.rewards.ndim == 1 else dropped.has_signal[:, None]
    shape = batch.kwargs | {"valid": batch.usable() & signal}
    without = durian_components(batch.rewards, **shape, **scores, **category, **options | {"no_signal": "keep"})
    for name, value in dropped._asdict().items():
        other = getattr(without, name)
        assert (value is None) == (other is None), name
        if value is not None:
            assert value.dtype == other.dtype, name
            assert torch.equal(value.isnan(), other.isnan()), name
            assert torch.equal(value.nan_to_num(0, math.inf, -math.inf), other.nan_to_num(0, math.inf, -math.inf)), name


def test_a_prompt_without_a_valid_rollout_has_no_category_in_either_form():
    rewards = torch.tensor([[1.0, 0.0], [5.0, 0.0], [float("nan")] * 2])
    options = {"weights": (1, 1, 1, 1), "eps": 0.0}
    dense = durian_components(rewards, category=torch.tensor([4, 4, 4]), **options)
    index = torch.arange(3).repeat_interleave(2)
    flat = durian_components(rewards.flatten(), prompt_index=index, category=torch.full((6,), 4), **options)
    shared = np.std([1, 0, 5, 0], ddof=1)
    assert_matches(dense.category_std, [shared, shared, 0.0])
    assert_same_bits(flat.category_std[::2], dense.category_std)


def test_a_prompt_without_signal_that_is_dropped_counts_nowhere():
    rewards = torch.tensor([[1.0, 0.0], [4.0, 4.0], [0.0, 3.0]], dtype=torch.float64)
    scores = {"visual_entropy": torch.tensor([1.0, 9.0, 2.0]), "entropy_quantiles": 2, "eps": 0.0}
    kept = durian_components(rewards, **scores)
    assert kept.entropy_bucket.tolist() == [0, 1, 0]
    assert_matches(kept.perceptual_std[2:], [np.std([1, 0, 0, 3], ddof=1)])
    dropped = durian_components(rewards, no_signal="drop", **scores)
    assert dropped.entropy_bucket.tolist() == [0, 2, 1]
    assert_matches(dropped.perceptual_std[2:], [np.std([0, 3], ddof=1)])
    assert dropped.visual_entropy.isnan().tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"^no_signal: expected one of 'keep', 'drop', got 'skip'$"):
        durian_advantage(rewards, no_signal="skip")


def test_the_flat_form_repeats_the_values_of_a_prompt_to_its_rollouts():
    index = torch.tensor([7, -1, 7, 7, -1])
    parts = durian_components(
        torch.tensor([1.0, 3.0, 0.0, 0.0, 3.0]),
        prompt_index=index,
        visual_entropy=torch.tensor([2.0, 1.0, 2.0, 2.0, 1.0]),
        confidence=torch.tensor([1.0, 5.0, 2.0, 6.0, 5.0]),
    )
    assert parts.has_signal.tolist() == [True, False, True, True, False]
    assert parts.entropy_bucket.tolist() == [2, 0, 2, 2, 0]
    third = math.sqrt(1 / 3)
    assert_matches(parts.prompt_std, [third, 0.0, third, third, 0.0])


def test_components_are_a_named_tuple_with_the_names_of_the_contract():
    parts = durian_components(torch.tensor([[1.0, 0.0]]))
    assert isinstance(parts, tuple)
    assert {*COMPONENTS, *STDS, *BUCKETS, "has_signal"} <= set(parts._fields)
    assert parts._fields[0] == "advantages"


@pytest.mark.parametrize("count", [3, 7, 49])
def test_scores_that_agree_are_the_score_of_their_prompt_to_the_bit(count):
    score = torch.rand(200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = score.expand(200, count)
    assert not torch.equal(scores.sum(1) / count, score[:, 0])  # an ordinary mean of equal numbers is another number
    rewards = torch.rand(200, count, dtype=torch.float64)
    assert torch.equal(durian_components(rewards, confidence=scores).confidence, score[:, 0])


# --- a prompt's score -------------------------------------------------------------------------------


@given(own.seeds, st.integers(1, 9), st.sampled_from((1.0, 1e-3, 0.25, 1e30, 1e300, 1e-300)), st.booleans())
def test_a_prompt_s_score_is_the_mean_of_its_valid_ones(seed, width, scale, infinite):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(6, width)) * scale
    values[0] = values[0, 0]
    if infinite:
        values = np.where(rng.random(values.shape) < 0.3, rng.choice((np.inf, -np.inf), values.shape), values)
    valid = rng.random(values.shape) < 0.8
    found = scales.prompt_means(torch.tensor(values.T), torch.tensor(valid.T), None).numpy()
    expected = [reference.mean_score(row[ok].tolist()) for row, ok in zip(values, valid, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=4e-16 * scale)
    if valid[0].any():
        assert found[0] == expected[0] or math.isnan(expected[0])


@pytest.mark.parametrize("dtype", own.FLOATS)
def test_scores_are_reported_in_the_dtype_of_the_result_and_compared_in_their_own(dtype):
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]], dtype=dtype)
    scores = torch.tensor([2**30, 2**30 + 1, 2**30 + 2, 2**30 + 3])  # float32 has one number for the four
    parts = durian_components(rewards, visual_entropy=scores, confidence=scores.double(), num_confidence_buckets=4)
    assert parts.visual_entropy.dtype == parts.confidence.dtype == dtype
    assert parts.entropy_bucket.tolist() == [0, 1, 1, 2]
    assert parts.confidence_bucket.tolist() == [0, 1, 2, 3]
