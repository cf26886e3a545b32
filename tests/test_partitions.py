"""Prompts compared in pairs, as kernels of a GPU do, against buckets that are scattered to: the same bits.

What decides is set aside here, so the form for GPUs runs on the CPU.
"""

from __future__ import annotations

from unittest import mock

import pytest
import strategies as own
import torch
from helpers import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st

from durian_adv import durian_components, quantile_buckets, shared_std_advantage
from durian_adv._src import partitions


def in_pairs(function, *args, **kwargs):
    """What a function returns where all prompts are compared with one another."""
    with mock.patch.object(partitions, "in_pairs", side_effect=lambda of_prompts: of_prompts.shape[-1] > 0):
        return function(*args, **kwargs)


@given(st.data(), own.dense_batches())
def test_pairs_give_every_component_the_same_bits(data, batch):
    kwargs = data.draw(own.difficulty(batch)) | data.draw(own.categories(batch))
    kwargs |= data.draw(own.durian_options(weights=4 if "category" in kwargs else 3)) | {"valid": batch.valid}
    expected = durian_components(batch.rewards, **kwargs)
    actual = in_pairs(durian_components, batch.rewards, **kwargs)
    for name, value in expected._asdict().items():
        if value is None:
            assert getattr(actual, name) is None
        else:
            assert_same_bits(getattr(actual, name).nan_to_num(7), value.nan_to_num(7), name)


@given(own.scores(), own.quantiles(), st.sampled_from(("upper", "lower", "outer")))
def test_counting_ranks_gives_the_buckets_of_sorting(scores, quantiles, boundary):
    expected = quantile_buckets(scores, quantiles, boundary=boundary)
    assert_same_bits(in_pairs(quantile_buckets, scores, quantiles, boundary=boundary), expected)


@given(st.data(), own.dense_batches())
def test_pairs_give_shared_stds_of_any_labels_the_same_bits(data, batch):
    labels = data.draw(own.categories(batch)).get("category", torch.zeros(len(batch.rewards), dtype=torch.int64))
    expected = shared_std_advantage(batch.rewards, labels, valid=batch.valid)
    assert_same_bits(in_pairs(shared_std_advantage, batch.rewards, labels, valid=batch.valid), expected)


def test_a_cpu_and_eager_calls_never_compare_pairs():
    for device in ("cpu", "meta"):
        assert not partitions.in_pairs(torch.empty(8, device=device))


@pytest.mark.parametrize(("prompts", "expected"), [(0, False), (1, True), (2, True), (4096, True), (4097, False)])
def test_a_compiler_for_another_device_compares_pairs_up_to_the_turn(prompts, expected):
    with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
        for shape in ((prompts,), (3, prompts), (2, 0, prompts)):
            assert partitions.in_pairs(torch.empty(shape, device="meta")) == expected
        assert not partitions.in_pairs(torch.empty(3, prompts))
