"""Quantile buckets (equations 10 and 16): ranks decide, never a rounded threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import strategies as own
import torch
from helpers import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st

from durian_adv import durian_advantage, quantile_buckets

boundaries = st.sampled_from(("upper", "lower", "outer"))
NAN, INF = float("nan"), float("inf")


@given(own.scores(), own.quantiles(), boundaries)
def test_buckets_agree_with_the_reference(scores, quantiles, boundary):
    actual = quantile_buckets(scores, quantiles, boundary=boundary)
    assert actual.dtype == torch.int64
    assert actual.tolist() == reference.buckets(scores.tolist(), quantiles, boundary).tolist()


@given(own.seeds, st.integers(1, 40), own.quantiles(), boundaries, st.sampled_from(own.FLOATS))
def test_scores_one_unit_in_the_last_place_apart_are_told_apart(seed, n, quantiles, boundary, dtype):
    # an interpolated threshold would be rounded onto one of its neighbors
    rng = np.random.default_rng(seed)
    bits = torch.tensor(rng.integers(0, 6, n))
    one = torch.ones(n, dtype=dtype)
    scores = one + bits * torch.finfo(dtype).eps
    actual = quantile_buckets(scores, quantiles, boundary=boundary)
    assert actual.tolist() == reference.buckets(scores.tolist(), quantiles, boundary).tolist()


@given(own.scores(), own.quantiles(), boundaries, own.seeds)
def test_a_permutation_of_the_scores_permutes_the_buckets(scores, quantiles, boundary, seed):
    order = torch.tensor(np.random.default_rng(seed).permutation(len(scores)), dtype=torch.int64)
    assert_same_bits(
        quantile_buckets(scores[order], quantiles, boundary=boundary),
        quantile_buckets(scores, quantiles, boundary=boundary)[order],
    )


@given(own.scores(dtypes=(torch.float64,)), own.quantiles(), boundaries)
def test_a_strictly_increasing_map_changes_no_bucket(scores, quantiles, boundary):
    known = ~torch.isnan(scores)
    ranks = torch.full_like(scores, NAN)
    ranks[known] = torch.unique(scores[known], return_inverse=True)[1].to(torch.float64) ** 3
    for mapped in (ranks, ranks * 1e-300, 2.0 ** ranks.clamp(max=1000)):
        if len(torch.unique(mapped[known])) == len(torch.unique(scores[known])):
            assert_same_bits(
                quantile_buckets(mapped, quantiles, boundary=boundary),
                quantile_buckets(scores, quantiles, boundary=boundary),
            )


@given(own.scores(), own.quantiles(), boundaries)
def test_scores_without_a_value_get_the_bucket_after_the_others_and_move_none(scores, quantiles, boundary):
    count = quantiles if isinstance(quantiles, int) else len(quantiles) + 1
    buckets = quantile_buckets(scores, quantiles, boundary=boundary)
    known = ~torch.isnan(scores)
    assert (buckets[~known] == count).all()
    assert (buckets[known] < count).all()
    assert_same_bits(buckets[known], quantile_buckets(scores[known], quantiles, boundary=boundary))


@given(own.scores(), own.quantiles(), boundaries)
def test_a_higher_score_is_never_in_a_lower_bucket_and_equal_scores_are_together(scores, quantiles, boundary):
    scores = scores[~torch.isnan(scores)]
    buckets = quantile_buckets(scores, quantiles, boundary=boundary)
    higher = scores[:, None] >= scores[None, :]
    assert (buckets[:, None] >= buckets[None, :])[higher].all()


@given(own.seeds, st.integers(1, 200), st.integers(1, 16))
def test_distinct_scores_fill_equal_probability_buckets_to_within_one(seed, n, count):
    scores = torch.tensor(np.random.default_rng(seed).permutation(n).astype(np.float64))
    sizes = torch.bincount(quantile_buckets(scores, count), minlength=count)
    assert sizes.max() - sizes.min() <= 1


@given(own.scores(), own.quantiles())
def test_infinities_are_ordered_as_the_largest_and_smallest_scores(scores, quantiles):
    finite = torch.where(torch.isinf(scores), torch.sign(scores) * 1e30, scores)
    assert_same_bits(quantile_buckets(scores, quantiles), quantile_buckets(finite, quantiles))


@given(own.seeds, st.integers(1, 40))
def test_buckets_agree_with_numpy_quantiles_where_no_score_is_near_a_threshold(seed, n):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=n)
    levels = (0.2, 0.5, 0.9)
    thresholds = np.quantile(values, levels)
    clear = np.abs(values[:, None] - thresholds).min(1) > 1e-9
    actual = quantile_buckets(torch.tensor(values), levels).numpy()
    assert (actual == np.searchsorted(thresholds, values, side="right"))[clear].all()


@pytest.mark.parametrize(
    ("boundary", "expected"),
    [("upper", [0, 1, 1, 2, 2]), ("lower", [0, 0, 1, 1, 2]), ("outer", [0, 0, 1, 2, 2])],
)
def test_a_score_on_a_threshold_goes_where_the_boundary_says(boundary, expected):
    scores = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])  # the quartiles are 1 and 3
    assert quantile_buckets(scores, (0.25, 0.75), boundary=boundary).tolist() == expected


def test_the_default_boundary_is_upper_and_left_closed():
    scores = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    assert quantile_buckets(scores, 2).tolist() == [0, 0, 1, 1, 1]
    assert quantile_buckets(scores, (0.5,)).tolist() == [0, 0, 1, 1, 1]
    assert quantile_buckets(scores, 4).tolist() == [0, 1, 2, 3, 3]  # and the last includes its right end


@pytest.mark.parametrize(("boundary", "expected"), [("upper", 2), ("lower", 0), ("outer", 0)])
def test_equal_scores_are_one_bucket_and_the_lower_one_wins_for_outer(boundary, expected):
    for value in (0.3, 0.0, 1e300, -INF):
        scores = torch.full((7,), value, dtype=torch.float64)
        assert quantile_buckets(scores, (0.25, 0.75), boundary=boundary).tolist() == [expected] * 7


def test_outer_puts_a_score_at_the_first_threshold_into_bucket_0_even_above_the_median():
    scores = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    assert quantile_buckets(scores, (0.75,), boundary="outer").tolist() == [0, 0, 0, 0, 1]
    assert quantile_buckets(scores, (0.5, 0.75), boundary="outer").tolist() == [0, 0, 0, 2, 2]
    assert quantile_buckets(torch.tensor([1.0, 2.0, 3.0]), 2, boundary="outer").tolist() == [0, 0, 1]


def test_many_ties_at_both_quantiles_stay_together():
    scores = torch.tensor([1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0])
    assert quantile_buckets(scores, (0.25, 0.75), boundary="outer").tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert quantile_buckets(scores, (0.25, 0.75), boundary="lower").tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert quantile_buckets(scores, (0.25, 0.75), boundary="upper").tolist() == [1, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("count", [3, 5, 7, 10, 12, 49])
def test_positions_of_equal_buckets_are_exact_integers_where_they_should_be(count):
    # k (n - 1) / b on integers: the float k / b times n - 1 may round to either side of a whole number
    for n in range(2, 121):
        scores = torch.arange(n, dtype=torch.float64)
        ranks = np.arange(n)[:, None] * count
        thresholds = np.arange(1, count) * (n - 1)
        assert quantile_buckets(scores, count).tolist() == (ranks >= thresholds).sum(1).tolist()
        lower = quantile_buckets(scores, count, boundary="lower")
        assert lower.tolist() == (ranks > thresholds).sum(1).tolist()


def test_one_bucket_is_bucket_0_and_one_score_is_in_the_last():
    assert quantile_buckets(torch.tensor([3.0, NAN, -INF]), 1).tolist() == [0, 1, 0]
    assert quantile_buckets(torch.tensor([3.0]), 4).tolist() == [3]
    assert quantile_buckets(torch.tensor([3.0]), 4, boundary="lower").tolist() == [0]


@pytest.mark.parametrize("quantiles", [3, (0.25, 0.75)])
def test_nothing_and_nothing_known(quantiles):
    assert quantile_buckets(torch.zeros(0), quantiles).tolist() == []
    assert quantile_buckets(torch.tensor([NAN, NAN]), quantiles).tolist() == [3, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.int32])
def test_scores_of_other_dtypes_are_ordered_too(dtype):
    scores = torch.tensor([3, 1, 2, 5, 4, 0])
    assert_same_bits(quantile_buckets(scores.to(dtype), 3), quantile_buckets(scores.to(torch.float64), 3))


def test_levels_may_be_a_list_and_scores_may_lie_at_the_ends_of_the_range():
    top = math.ldexp(1.9999999, 1023)
    scores = torch.tensor([-top, top, 5e-324, -5e-324], dtype=torch.float64)
    assert quantile_buckets(scores, [0.25, 0.75]).tolist() == [0, 2, 1, 1]


@pytest.mark.parametrize("count", [2**25, 2**70])
def test_more_buckets_than_anyone_can_mean_are_refused_by_name(count):
    with pytest.raises(ValueError, match=f"quantiles: expected at most {2**24} buckets, got {count}"):
        quantile_buckets(torch.zeros(3), count)
    with pytest.raises(ValueError, match="num_confidence_buckets: expected at most"):
        durian_advantage(torch.zeros(3, 2), num_confidence_buckets=count)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint64])
def test_neighbors_among_large_integers_are_told_apart(dtype):
    scores = torch.tensor([2**53 + 1, 2**53, 2**53 + 2, 2**53 + 3], dtype=torch.int64).to(dtype)
    if dtype == torch.uint64:  # compared in float64: the order is right, neighbors may be one
        scores = torch.tensor([2**63 + 2**12, 5, 2**63, 7], dtype=dtype)
        assert quantile_buckets(scores, 4).tolist() == [3, 0, 2, 1]
    else:
        assert quantile_buckets(scores, 4).tolist() == [1, 0, 2, 3]


def test_outer_thresholds_of_a_number_of_buckets():
    scores = torch.arange(1.0, 8.0)  # thresholds of three buckets: 3 and 5
    assert quantile_buckets(scores, 3, boundary="outer").tolist() == [0, 0, 0, 1, 2, 2, 2]
    scores = torch.arange(1.0, 6.0)  # of four: 2, 3, 4; the first is left to the right, the others to the left
    assert quantile_buckets(scores, 4, boundary="outer").tolist() == [0, 0, 2, 3, 3]


def test_neither_the_default_device_nor_the_default_dtype_has_a_say():
    scores = torch.tensor(np.random.default_rng(0).permutation(3000))
    for quantiles in (7, (0.1, 0.35, 0.7)):
        expected = quantile_buckets(scores, quantiles)
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device("meta"):
                found = quantile_buckets(scores, quantiles)
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(found, expected)
