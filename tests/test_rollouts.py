"""Rollouts are not rows: where one lies in several rows, it counts once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import strategies as own
import torch
from helpers import COMPONENTS, assert_matches, assert_same_bits, result_dtype
from hypothesis import given
from hypothesis import strategies as st

from durian_adv import durian_advantage, durian_components, grpo_advantage, sequence_confidence
from durian_adv._src.layout import Rollouts, expand_rollouts, one_row_per_rollout

ROWS = {"prompt_index": torch.zeros(4, dtype=torch.int64), "rollout_index": torch.tensor([5, 5, 5, 2])}
WEIGHTS = (0.1, 0.2, 0.7, 0.4)


@st.composite
def cases(draw, dtypes=own.FLOATS):
    """A batch with one row per rollout and the same in several rows, each with its arguments; and the rows' sources."""
    batch = draw(own.flat_batches(dtypes=dtypes))
    scores, category = draw(own.difficulty(batch)), draw(own.categories(batch))
    rows, spread, rollout_index, source = draw(own.several_rows(batch, scores))
    options = draw(own.durian_options()) | {"weights": WEIGHTS}
    repeated = {name: value[source] for name, value in category.items()}
    one = {"rewards": batch.rewards} | batch.kwargs | scores | category | options
    several = {"rewards": rows.rewards} | rows.kwargs | spread | repeated | options
    return one, several | {"rollout_index": rollout_index}, source, rows.usable()


def same(value, other):
    """Equal bit for bit, NaN where the other has NaN."""
    return torch.equal(value.isnan(), other.isnan()) and torch.equal(*(x.where(~x.isnan(), 0) for x in (value, other)))


@given(cases(dtypes=own.DTYPES))
def test_every_valid_row_has_its_rollout_s_advantage_bit_for_bit_and_no_row_counts_twice(case):
    one, several, source, usable = case
    expected, found = durian_components(**one), durian_components(**several)
    assert_same_bits(durian_advantage(**several), found.advantages)
    for name, value in found._asdict().items():
        other = getattr(expected, name)
        assert (value is None) == (other is None), name
        if value is not None:
            wanted = other[source]
            if name in COMPONENTS:
                wanted = torch.where(usable, wanted, 0)
            assert value.dtype == wanted.dtype, name
            assert same(value, wanted), name


@given(cases())
def test_rows_agree_with_the_reference(case):
    _, several, _, _ = case
    given_numpy = {k: v.to(torch.float64).numpy() if isinstance(v, torch.Tensor) else v for k, v in several.items()}
    for name in ("prompt_index", "rollout_index", "valid", "category"):
        value = several.get(name)
        given_numpy[name] = None if value is None else value.numpy()
    expected, found = reference.durian(**given_numpy), durian_components(**several)
    for name in COMPONENTS:
        if expected[name] is not None:
            assert getattr(found, name).dtype == result_dtype(several["rewards"].dtype)
            assert_matches(getattr(found, name), expected[name], where=name)


@given(cases(), own.seeds)
def test_no_estimator_counts_a_row_twice_once_rows_are_reduced(case, seed):
    one, several, source, usable = case
    names = Rollouts._fields
    reduced, rows = one_row_per_rollout(Rollouts(**{name: several.get(name) for name in names}))
    shape = {"prompt_index": reduced.prompt_index, "valid": reduced.valid}
    found = expand_rollouts(grpo_advantage(reduced.rewards, **shape), rows)
    expected = grpo_advantage(one["rewards"], prompt_index=one["prompt_index"], valid=one["valid"])
    assert_same_bits(found, torch.where(usable, expected[source], 0))
    assert reduced.rollout_index is None
    assert same(reduced.rewards[rows.rollout][usable], several["rewards"][usable])


def test_a_rollout_of_three_rows_counts_once():
    advantages = durian_advantage(torch.tensor([1.0, 1.0, 1.0, 0.0]), eps=0.0, **ROWS)
    assert_matches(advantages, [0.5**0.5] * 3 + [-(0.5**0.5)])


def test_one_row_per_rollout_is_the_flat_form_itself():
    rewards, index = torch.rand(6), torch.tensor([0, 0, 1, 1, 1, 4])
    confidence = torch.rand(6)
    plain = durian_components(rewards, prompt_index=index, confidence=confidence)
    rows = durian_components(rewards, prompt_index=index, confidence=confidence, rollout_index=torch.arange(6).flip(0))
    for value, other in zip(rows, plain, strict=True):
        assert value is other is None or torch.equal(value, other)


def test_no_rows_at_all():
    nothing = torch.zeros(0, dtype=torch.int64)
    parts = durian_components(torch.zeros(0), prompt_index=nothing, rollout_index=nothing, confidence=torch.zeros(0))
    assert all(value is None or value.shape == (0,) for value in parts)


@pytest.mark.parametrize("value", [2.0, math.nextafter(1.0, 2.0)])
def test_valid_rows_that_differ_in_the_reward_are_refused(value):
    rewards = torch.tensor([1.0, 1.0, value, 0.0], dtype=torch.float64)
    text = (
        rf"^rewards: expected one value in all valid rows of a rollout, got 1\.0 and {value} in rollout 5 of prompt 0"
    )
    with pytest.raises(ValueError, match=text + "$"):
        durian_advantage(rewards, **ROWS)
    valid = torch.tensor([True, True, False, True])
    advantages = durian_advantage(rewards, valid=valid, **ROWS)
    assert advantages[2] == 0
    assert advantages[0] == advantages[1] > 0
    assert_same_bits(durian_advantage(rewards.clone().fill_(math.nan).where(~valid, rewards), **ROWS), advantages)


@pytest.mark.parametrize("name", ["confidence", "visual_entropy"])
def test_valid_rows_that_differ_in_a_known_score_are_refused_and_unknown_ones_do_not_differ(name):
    rewards = torch.tensor([1.0, 1.0, 1.0, 0.0])
    differing = torch.tensor([-2.0, math.nan, -3.0, -1.0])
    with pytest.raises(ValueError, match=rf"^{name}: .* got -3\.0 and -2\.0 in rollout 5 of prompt 0$"):
        durian_advantage(rewards, **{name: differing}, **ROWS)
    known = torch.tensor([math.nan, -2.0, math.nan, -1.0])
    parts = durian_components(rewards, **{name: known}, **ROWS)
    assert getattr(parts, name).tolist() == [-1.5] * 4
    invalid = torch.tensor([True, True, False, True])
    parts = durian_components(rewards, **{name: differing}, valid=invalid, **ROWS)
    assert getattr(parts, name).tolist() == [-1.5] * 4


def test_a_rollout_under_two_prompts_is_refused_and_an_invalid_row_is_under_none():
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0])
    where = {"prompt_index": torch.tensor([8, 8, 9, 9]), "rollout_index": torch.tensor([1, 2, 1, 3])}
    text = "^rollout_index: expected the rows of a rollout under one prompt, got rollout 1 under 8 and 9$"
    with pytest.raises(ValueError, match=text):
        durian_advantage(rewards, **where)
    parts = durian_components(rewards, valid=torch.tensor([True, True, False, True]), **where)
    assert_matches(parts.advantages, [0.7071058, -0.7071058, 0.0, 0.0], 1e-6)
    assert parts.has_signal.tolist() == [True, True, False, False]


def test_errors_call_prompts_by_their_names_where_the_index_is_a_number_of_ours():
    given_rows = Rollouts(
        torch.tensor([1.0, 2.0]), prompt_index=torch.tensor([1, 1]), rollout_index=torch.tensor([0, 0])
    )
    with pytest.raises(ValueError, match=r"in a rollout of prompt uuid-b$"):
        one_row_per_rollout(given_rows, ["uuid-a", "uuid-b"])
    torn = given_rows._replace(rewards=torch.ones(2), prompt_index=torch.tensor([1, 0]))
    with pytest.raises(ValueError, match=r"got rollout 0 under uuid-a and uuid-b$"):
        one_row_per_rollout(torn, ["uuid-a", "uuid-b"])


def test_rollouts_go_with_the_flat_form_only():
    index = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^rollout_index: expected prompt_index with it, .*, got None$"):
        durian_advantage(torch.rand(2, 2), rollout_index=index)
    with pytest.raises(TypeError, match=r"^rollout_index: expected an integer dtype, got torch.float32$"):
        durian_advantage(torch.rand(4), prompt_index=index, rollout_index=index.float())
    with pytest.raises(ValueError, match=r"^rollout_index: expected shape \(N,\) = \(4,\), got \(3,\)$"):
        durian_advantage(torch.rand(4), prompt_index=index, rollout_index=index[:3])
    with pytest.raises(ValueError, match=r"^rollout_index: expected device cpu, as rewards, got meta$"):
        durian_advantage(torch.rand(4), prompt_index=index, rollout_index=index.to("meta"))


# --- confidences --------------------------------------------------------------------------------------


@st.composite
def tokens(draw, dtypes=own.FLOATS):
    """Padded log-probabilities (N, T), their lengths, and rollouts of one or more rows."""
    rng = np.random.default_rng(draw(own.seeds))
    shape = (draw(st.integers(0, 6)), draw(st.integers(0, 9)))
    values = -np.abs(rng.normal(size=shape)) * 10.0 ** rng.uniform(-3, draw(st.sampled_from((3, 200))), shape)
    if draw(st.booleans()):
        values = np.where(rng.random(shape) < 0.1, rng.choice((-math.inf, math.nan), shape), values)
    dtype = draw(st.sampled_from(dtypes))
    logprobs = torch.tensor(values).to(dtype)
    lengths = torch.tensor(rng.integers(0, shape[1] + 1, shape[0]), dtype=torch.int64)
    rollouts = torch.tensor(rng.choice((7, -3, 2**62), shape[0]), dtype=torch.int64)
    return logprobs, lengths, rollouts, draw(st.sampled_from(("sum", "mean")))


def packed(values, lengths):
    """The first tokens of each row, one after the other."""
    return values[torch.arange(values.shape[1]) < lengths[:, None]]


@given(tokens(), own.seeds, st.booleans())
def test_packed_confidences_are_those_of_the_padded_form_bit_for_bit(case, seed, masked):
    logprobs, lengths, _, reduction = case
    mask = torch.arange(logprobs.shape[1]) < lengths[:, None]
    inner = torch.tensor(np.random.default_rng(seed).random(logprobs.shape) < 0.7) if masked else mask
    padded = sequence_confidence(logprobs, mask & inner, reduction=reduction)
    flat_mask = packed(inner, lengths).to(torch.int64) if masked else None
    for given_lengths in (lengths, lengths.tolist(), lengths.to(torch.int32)):
        found = sequence_confidence(packed(logprobs, lengths), flat_mask, lengths=given_lengths, reduction=reduction)
        assert found.dtype == padded.dtype
        assert same(found, padded)


@given(tokens(dtypes=(torch.float32, torch.float64, torch.bfloat16)))
def test_a_rollout_s_confidence_is_that_of_all_its_tokens_in_one_row(case):
    logprobs, lengths, rollouts, reduction = case
    mask = torch.arange(logprobs.shape[1]) < lengths[:, None]
    found = sequence_confidence(logprobs, mask, reduction=reduction, rollout_index=rollouts)
    again = sequence_confidence(packed(logprobs, lengths), lengths=lengths, reduction=reduction, rollout_index=rollouts)
    assert same(found, again)
    for name in rollouts.unique():
        of_it = rollouts == name
        whole = sequence_confidence(logprobs[of_it][mask[of_it]], reduction=reduction)
        assert same(found[of_it], whole.expand(int(of_it.sum()))), name


@given(tokens())
def test_confidences_of_rollouts_agree_with_the_reference(case):
    logprobs, lengths, rollouts, reduction = case
    found = sequence_confidence(packed(logprobs, lengths), lengths=lengths, rollout_index=rollouts, reduction=reduction)
    rows = [row[:size].tolist() for row, size in zip(logprobs.double().numpy(), lengths.tolist(), strict=True)]
    for i, name in enumerate(rollouts.tolist()):
        whole = [x for row, other in zip(rows, rollouts.tolist(), strict=True) if other == name for x in row]
        expected = reference.sequence_confidence(whole, reduction=reduction)
        if logprobs.dtype == torch.float32:
            expected = float(torch.tensor(expected, dtype=torch.float64).float())
        np.testing.assert_allclose(found[i].item(), expected, rtol=1e-6 if logprobs.dtype == torch.float32 else 1e-12)


def test_confidences_do_not_depend_on_the_block_they_are_summed_in(monkeypatch):
    from durian_adv._src import confidence

    values = torch.randn(37, 11, dtype=torch.float64)
    rollouts = torch.arange(37) % 5
    expected = sequence_confidence(values, rollout_index=rollouts)
    monkeypatch.setattr(confidence, "_BLOCK", 7)
    assert_same_bits(sequence_confidence(values, rollout_index=rollouts), expected)


def test_wrong_lengths_and_rollouts_are_named():
    values = torch.zeros(5)
    for lengths, error, text in (
        ([2, 2], ValueError, r"lengths: expected a sum of 5, the number of logprobs, got 4"),
        ([6, -1], ValueError, r"lengths: expected no negative length, got -1"),
        ([5.0], TypeError, r"lengths\[0\]: expected an integer, got float"),
        ("5", TypeError, r"lengths: expected a 1-D tensor or a sequence of integers, got str"),
        (torch.tensor([5.0]), TypeError, r"lengths: expected an integer dtype, got torch.float32"),
        (torch.tensor([[5]]), ValueError, r"lengths: expected shape \(rows,\), got \(1, 1\)"),
    ):
        with pytest.raises(error, match=f"^{text}$"):
            sequence_confidence(values, lengths=lengths)
    with pytest.raises(ValueError, match=r"^logprobs: expected shape \(sum\(lengths\),\) with lengths, got \(1, 5\)$"):
        sequence_confidence(values[None], lengths=[5])
    with pytest.raises(ValueError, match=r"^logprobs: expected shape \(N, T\) with rollout_index, got \(5,\)$"):
        sequence_confidence(values, rollout_index=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^rollout_index: expected shape \(N,\), one per row, = \(2,\), got \(5,\)$"):
        sequence_confidence(values, lengths=[2, 3], rollout_index=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^rollout_index: expected device cpu, as logprobs, got meta$"):
        sequence_confidence(values[None], rollout_index=torch.zeros(1, dtype=torch.int64, device="meta"))
