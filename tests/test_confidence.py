"""Sequence confidence (equation 14): sums and means over the tokens that are there."""

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

from durian_adv import sequence_confidence
from durian_adv._src import confidence

reductions = st.sampled_from(("sum", "mean"))
NAN, INF = float("nan"), float("inf")


@st.composite
def sequences(draw, dtypes=own.FLOATS):
    """Log-probabilities (n, T) and a mask, or None."""
    rng = np.random.default_rng(draw(own.seeds))
    shape = (draw(st.integers(0, 5)), draw(st.integers(0, 40)))
    logprobs = torch.tensor(-rng.exponential(size=shape)).to(draw(st.sampled_from(dtypes)))
    keep = draw(st.sampled_from((None, 0.1, 0.7)))
    return logprobs, None if keep is None else torch.tensor(rng.random(shape) < keep)


def oracle(logprobs, mask, reduction):
    """The reference, row by row."""
    masks = [None] * len(logprobs) if mask is None else mask.tolist()
    rows = logprobs.to(torch.float64).tolist()
    return torch.tensor(
        [reference.sequence_confidence(r, m, reduction) for r, m in zip(rows, masks, strict=True)],
        dtype=torch.float64,
    )


@given(sequences(), reductions)
def test_confidence_agrees_with_the_reference(sequence, reduction):
    logprobs, mask = sequence
    actual = sequence_confidence(logprobs, mask, reduction=reduction)
    assert actual.dtype == logprobs.dtype
    tolerance = 1e-12 if actual.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(
        actual.to(torch.float64), oracle(logprobs, mask, reduction), rtol=tolerance, atol=tolerance, equal_nan=True
    )


@given(sequences(dtypes=own.NARROW), reductions)
def test_narrow_log_probabilities_are_summed_in_float32(sequence, reduction):
    logprobs, mask = sequence
    actual = sequence_confidence(logprobs, mask, reduction=reduction)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(
        actual.to(torch.float64), oracle(logprobs, mask, reduction), rtol=1e-6, atol=1e-6, equal_nan=True
    )


@given(sequences(), own.seeds, reductions)
def test_masked_tokens_change_no_bit_whatever_is_in_them(sequence, seed, reduction):
    logprobs, _ = sequence
    rng = np.random.default_rng(seed)
    mask = torch.tensor(rng.random(logprobs.shape) < 0.5)
    noise = torch.tensor(rng.choice((NAN, INF, -INF, 1e30, 0.0), logprobs.shape)).to(logprobs.dtype)
    plain = sequence_confidence(logprobs, mask, reduction=reduction).nan_to_num(-1)
    poisoned = sequence_confidence(torch.where(mask, logprobs, noise), mask, reduction=reduction)
    assert_same_bits(poisoned.nan_to_num(-1), plain)


@pytest.mark.parametrize("dtype", own.FLOATS + own.NARROW)
@given(data=st.data(), seed=own.seeds, reduction=reductions, width=st.integers(0, 70))
def test_padding_with_masked_tokens_changes_no_bit(dtype, data, seed, reduction, width):
    logprobs, mask = data.draw(sequences(dtypes=(dtype,)))
    mask = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask
    rng = np.random.default_rng(seed)
    noise = torch.tensor(rng.choice((NAN, INF, 0.0), (len(logprobs), width))).to(logprobs.dtype)
    plain = sequence_confidence(logprobs, mask, reduction=reduction).nan_to_num(-1)
    for side in (1, -1):
        wide = torch.cat([logprobs, noise][::side], 1)
        wide_mask = torch.cat([mask, torch.zeros_like(noise, dtype=torch.bool)][::side], 1)
        assert_same_bits(sequence_confidence(wide, wide_mask, reduction=reduction).nan_to_num(-1), plain)


@given(sequences(), own.seeds, reductions, st.sampled_from((torch.int64, torch.int32, torch.uint8, torch.float32)))
def test_numeric_masks_mean_the_same_as_bool_ones(sequence, seed, reduction, dtype):
    logprobs, _ = sequence
    mask = torch.tensor(np.random.default_rng(seed).random(logprobs.shape) < 0.5)
    plain = sequence_confidence(logprobs, mask, reduction=reduction).nan_to_num(-1)
    assert_same_bits(sequence_confidence(logprobs, mask.to(dtype), reduction=reduction).nan_to_num(-1), plain)


@given(sequences(), reductions)
def test_no_mask_is_a_mask_of_ones(sequence, reduction):
    logprobs, _ = sequence
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    plain = sequence_confidence(logprobs, reduction=reduction).nan_to_num(-1)
    assert_same_bits(sequence_confidence(logprobs, mask, reduction=reduction).nan_to_num(-1), plain)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_sequence_without_a_token_has_no_confidence(reduction):
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    mask = torch.tensor([[0, 0], [0, 1]])
    actual = sequence_confidence(logprobs, mask, reduction=reduction)
    assert math.isnan(actual[0])
    assert actual[1].item() == -4.0
    assert torch.isnan(sequence_confidence(torch.zeros(2, 0), reduction=reduction)).all()


def test_sum_is_the_default_and_mean_divides_by_the_tokens_that_are_there():
    logprobs = torch.tensor([[-1.0, -2.0, -6.0]])
    mask = torch.tensor([[True, False, True]])
    assert sequence_confidence(logprobs, mask).item() == -7.0
    assert sequence_confidence(logprobs, mask, reduction="mean").item() == -3.5


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_an_impossible_token_makes_the_sequence_minus_infinity(reduction):
    logprobs = torch.tensor([[-1.0, -INF], [-1.0, -INF]])
    mask = torch.tensor([[True, True], [True, False]])
    assert sequence_confidence(logprobs, mask, reduction=reduction).tolist() == [-INF, -1.0]


def test_an_unmasked_nan_is_not_hidden():
    assert math.isnan(sequence_confidence(torch.tensor([-1.0, NAN])))


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 0)])
def test_the_last_dimension_is_reduced(leading):
    logprobs = -torch.rand(*leading, 6, generator=torch.Generator().manual_seed(0))
    assert sequence_confidence(logprobs).shape == leading
    assert sequence_confidence(logprobs, torch.ones(*leading, 6, dtype=torch.int64)).shape == leading


@pytest.mark.parametrize("dtype", own.FLOATS)
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (2, 3, 1, 5), (4, 1), (3, 0)])
def test_sums_in_one_go_as_in_a_graph_are_those_by_blocks(shape, dtype):
    logprobs = -torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    for mask in (None, logprobs < -0.5, (logprobs < -0.5).long()):
        with torch.device("meta"):  # a default device of the caller has no say
            whole, blocks = confidence._sums(logprobs, mask), confidence._sums_by_blocks(logprobs, mask)
        for one, other in zip(whole, blocks, strict=True):
            assert one.device.type == "cpu"
            assert torch.equal(one, other)
        assert whole[1].tolist() == (torch.ones_like(logprobs) if mask is None else mask).sum(-1).tolist()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int64, torch.bfloat16])
def test_a_mask_that_compiled_code_loads_fast_says_the_same(dtype):
    mask = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 127]]).to(dtype)
    for layout in (mask, mask.T):
        loaded = confidence._loadable(layout)
        assert torch.equal(loaded != 0, layout != 0)
        # what is narrow becomes int32, what inductor loads fast already stays
        assert loaded.dtype == (dtype if dtype in (torch.int64, torch.bfloat16) else torch.int32)


def test_any_number_but_zero_in_a_mask_counts():
    logprobs = torch.tensor([[-1.0, -2.0, -4.0]])
    assert sequence_confidence(logprobs, torch.tensor([[-1, 0, 1]])) == -5
    assert sequence_confidence(logprobs, torch.tensor([[0.5, -0.5, 0.0]])) == -3
