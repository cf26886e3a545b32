"""Sums that no order changes, and what is left of that on a device without float64."""

import math
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
import reference
import torch
from hypothesis import given

from durian_adv import durian_advantage
from durian_adv._src import entropy, exact

WORKING = (torch.float64, torch.float32)


@given(st.floats(min_value=5e-324, allow_infinity=False, allow_nan=False))
def test_the_power_of_two_of_a_number_divides_it_exactly(value):
    power = exact.power_of_two(torch.tensor([value], dtype=torch.float64)).item()
    assert power <= value < 2 * power or power == value
    assert value < 2.3e-308 or math.frexp(power)[0] == 0.5
    assert Fraction(value) / Fraction(power) == Fraction(value / power)


@pytest.mark.parametrize("dtype", WORKING)
def test_zero_has_no_power_of_two_but_zero(dtype):
    assert exact.power_of_two(torch.zeros(2, dtype=dtype)).tolist() == [0, 0]


@pytest.mark.parametrize(("dtype", "coarse", "fine"), [(torch.float64, -31, -64), (torch.float32, -12, -25)])
def test_a_term_is_split_over_the_two_grids_that_are_told(dtype, coarse, fine):
    generator = torch.Generator().manual_seed(0)
    terms = 2 * torch.rand(4096, dtype=dtype, generator=generator) - 1
    terms = torch.cat([terms, terms * 2.0**-8, terms * 2.0**-30])
    high, low = exact.split(terms)
    for part, grid in ((high, coarse), (low, fine)):
        steps = part.double() * 2.0**-grid
        assert torch.equal(steps, steps.round())
    # each is the nearest point of its grid
    rest = terms.double() - high.double()
    assert (rest.abs() <= 2.0 ** (coarse - 1)).all()
    assert ((rest - low.double()).abs() <= 2.0 ** (fine - 1)).all()


@given(st.integers(0, 10**6), st.integers(1, 300))
def test_a_row_sum_is_that_of_the_terms_on_the_grid_in_any_order(seed, width):
    rng = np.random.default_rng(seed)
    terms = torch.tensor(rng.uniform(-2, 2, (1, width)) * 10.0 ** rng.integers(-12, 1, (1, width)))
    total = exact.exact_sum(terms, 1)
    assert torch.equal(total, exact.exact_sum(terms[:, torch.tensor(rng.permutation(width))], 1))
    error = abs(Fraction(total.item()) - sum(map(Fraction, terms[0].tolist())))
    assert error <= width * 2.0**-65 + abs(total.item()) * 2.0**-53


@given(st.integers(0, 10**6), st.integers(1, 200), st.sampled_from((1e-300, 1e-30, 1.0, 1e30, 1e300)))
def test_a_row_sum_of_any_size_is_near_the_true_one_and_has_no_order(seed, width, scale):
    rng = np.random.default_rng(seed)
    terms = torch.tensor(-rng.random((1, width)) * 10.0 ** rng.integers(-12, 1, (1, width)) * scale)
    total = exact.row_sum_of_any_size(terms)
    assert total.item() == pytest.approx(math.fsum(terms[0].tolist()), rel=1e-15)
    padded = torch.nn.functional.pad(terms[:, torch.tensor(rng.permutation(width))], (3, 40))
    assert torch.equal(exact.row_sum_of_any_size(padded), total)


def test_a_row_sum_of_any_size_is_that_of_each_row_whatever_the_dimensions():
    terms = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e3
    terms[0, 1, 2] = torch.inf
    total = exact.row_sum_of_any_size(terms)
    for i, j in np.ndindex(2, 3):
        assert torch.equal(total[i, j], exact.row_sum_of_any_size(terms[i, j]))


def test_a_row_sum_of_any_size_keeps_what_is_not_finite():
    inf, nan = math.inf, math.nan
    terms = torch.tensor([[-inf, 1.0], [inf, 1.0], [nan, 1.0], [inf, -inf], [0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([-inf, inf, nan, nan, 0.0], dtype=torch.float64)
    assert torch.equal(exact.row_sum_of_any_size(terms).nan_to_num(7), expected.nan_to_num(7))


def test_the_grids_hold_sums_of_two_to_the_twentieth_terms_exactly():
    generator = torch.Generator().manual_seed(0)
    terms = 4 - 3 * torch.rand(1, 2**20, generator=generator, dtype=torch.float64)  # squares of units are up to 4
    forward, backward = exact.exact_sum(terms, 1), exact.exact_sum(terms.flip(1), 1)
    shuffled = exact.exact_sum(terms[:, torch.randperm(2**20, generator=generator)], 1)
    segments = exact.segment_sum(terms, torch.zeros(1, 2**20, dtype=torch.int64), 2)
    assert torch.equal(forward, backward)
    assert torch.equal(forward, shuffled)
    assert torch.equal(segments[0, :1], forward)
    assert forward.item() == math.fsum(terms[0].tolist())


def test_a_device_without_float64_works_in_float32():
    assert exact.working_dtype(torch.device("mps")) == torch.float32
    assert exact.working_dtype(torch.device("cpu")) == torch.float64


@pytest.fixture
def single_precision(monkeypatch):
    monkeypatch.setattr(exact, "working_dtype", lambda device: torch.float32)


@given(st.integers(0, 10**6), st.sampled_from((1e-3, 1.0, 1e4)), st.sampled_from((0.0, 100.0)))
def test_float32_work_stays_within_2e_6_of_the_reference(single_precision_for_properties, seed, scale, offset):
    rng = np.random.default_rng(seed)
    rewards = (rng.random((24, 6)) * scale + offset).astype(np.float32)
    entropy, confidence = rng.permutation(24).astype(np.float32), rng.permutation(24).astype(np.float32)
    expected = reference.durian(
        rewards.astype(np.float64), visual_entropy=entropy, confidence=confidence, num_confidence_buckets=4
    )["advantages"]
    actual = durian_advantage(
        torch.tensor(rewards),
        visual_entropy=torch.tensor(entropy),
        confidence=torch.tensor(confidence),
        num_confidence_buckets=4,
    )
    error = np.abs(actual.double().numpy() - expected) / np.maximum(1, np.abs(expected))
    assert error.max() < 2e-6


@pytest.fixture(scope="module")
def single_precision_for_properties():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "working_dtype", lambda device: torch.float32)
        yield


def test_entropy_asks_for_no_float64_where_there_is_none(single_precision, monkeypatch):
    class Refuse(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            assert not isinstance(result, torch.Tensor) or result.dtype != torch.float64, function
            return result

    for shape in ((0, 3), (1, 3), (9, 5), (70, 80)):
        with Refuse():  # around the inside of the operator, which hides it otherwise
            assert entropy.image_entropy(torch.randn(shape)).dtype == torch.float32


def test_float32_work_is_order_free_too_up_to_1024_rollouts(single_precision):
    generator = torch.Generator().manual_seed(0)
    rewards, score = torch.rand(128, 8, generator=generator), torch.rand(128, generator=generator)
    order = torch.randperm(128, generator=generator)
    plain = durian_advantage(rewards, confidence=score, num_confidence_buckets=1)
    permuted = durian_advantage(rewards[order].flip(1), confidence=score[order], num_confidence_buckets=1)
    assert torch.equal(permuted.flip(1), plain[order])
    assert not durian_advantage(torch.full((4, 8), 0.9), eps=0.0).any()
