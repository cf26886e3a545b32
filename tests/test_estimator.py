"""``AdvantageEstimator``: the pure functions, bit for bit, from what trainers have."""

from __future__ import annotations

import datetime
import fractions
import io
import itertools
import math
import re
import uuid

import numpy as np
import pytest
import torch
from helpers import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from durian_adv import (
    ArgumentError,
    baselines,
    durian_advantage,
    grpo_advantage,
    sequence_confidence,
    weighting,
)
from durian_adv.estimator import AdvantageEstimator
from durian_adv.window import windowed_components

FUNCTIONS = {
    "grpo": grpo_advantage,
    "dr_grpo": baselines.dr_grpo_advantage,
    "batch_std": baselines.batch_std_advantage,
    "rloo": baselines.rloo_advantage,
    "reinforce_plus_plus": baselines.reinforce_plus_plus_advantage,
    "reinforce_plus_plus_baseline": baselines.reinforce_plus_plus_baseline_advantage,
}
READY_MADE = [name for name in weighting.__all__ if not name.endswith(("_weights", "_advantage", "uniform"))]


def make_batch(seed, prompts=6, dtype=torch.float64, tokens=5):
    """Rows of several prompts, in any order, as tensors: some without reward, image, confidence or tokens."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 6, prompts)
    index = np.repeat(rng.permutation(1000)[:prompts] - 500, sizes)
    order = rng.permutation(len(index))
    of_prompt = {name: rng.permutation(1000)[:prompts] / 8.0 for name in ("entropy", "category")}
    place = np.repeat(np.arange(prompts), sizes)[order]
    entropy = torch.tensor(np.where(of_prompt["entropy"] < 20, np.nan, of_prompt["entropy"])[place])
    rewards = torch.tensor(rng.choice([0.0, 0.1, 0.9, 1.0, 2.5], len(index))).to(dtype)
    rewards[torch.tensor(rng.random(len(index)) < 0.1)] = torch.nan
    return {
        "rewards": rewards,
        "prompts": torch.tensor(index[order]),
        "visual_entropy": entropy,
        "category": torch.tensor(of_prompt["category"].astype(np.int64)[place] % 3),
        "logprobs": -torch.tensor(rng.random((len(index), tokens))),
        "mask": torch.tensor(rng.random((len(index), tokens)) < 0.8),
        "valid": torch.tensor(rng.random(len(index)) < 0.9),
    }


def expected(batch, **chosen):
    """What the pure function gives for a batch of ``make_batch``."""
    mask = batch["mask"]
    return durian_advantage(
        batch["rewards"],
        visual_entropy=batch["visual_entropy"],
        confidence=sequence_confidence(batch["logprobs"], mask),
        category=batch["category"] if len(chosen.get("weights", (1, 1, 1))) == 4 else None,
        prompt_index=batch["prompts"],
        valid=batch["valid"] & mask.any(1),
        **chosen,
    )


def without_category(batch):
    return {name: value for name, value in batch.items() if name != "category"}


@given(
    seeds,
    st.sampled_from((torch.float32, torch.float64)),
    st.sampled_from(((0.1, 0.2, 0.7), (0.0, 0.5, 0.5), (0.1, 0.2, 0.3, 0.4), (0.0, 0.0, 0.0, 1.0))),
    st.sampled_from(("keep", "drop")),
    st.integers(1, 4),
    st.sampled_from((0, 1)),
)
def test_a_whole_batch_is_the_pure_function_bit_for_bit(seed, dtype, weights, no_signal, buckets, correction):
    batch = make_batch(seed, dtype=dtype)
    chosen = {
        "weights": weights, "no_signal": no_signal, "num_confidence_buckets": buckets, "correction": correction,
        "entropy_quantiles": (0.3, 0.6), "eps": 1e-4,
    }  # fmt: skip
    given = batch if len(weights) == 4 else without_category(batch)
    assert_same_bits(AdvantageEstimator(**chosen)(**given), expected(batch, **chosen))


@pytest.mark.parametrize("name", FUNCTIONS)
@given(seeds, st.sampled_from(("keep", "drop")))
@settings(max_examples=30)
def test_another_estimator_is_its_function_bit_for_bit(name, seed, no_signal):
    batch = make_batch(seed)
    estimator = AdvantageEstimator(estimator=name, no_signal=no_signal)
    found = estimator(batch["rewards"], batch["prompts"], mask=batch["mask"], valid=batch["valid"])
    valid = batch["valid"] & batch["mask"].any(1)
    if no_signal == "drop":  # by hand: a prompt with two different valid rewards has signal
        for prompt in batch["prompts"].unique():
            rows = (batch["prompts"] == prompt) & valid & batch["rewards"].isfinite()
            if len(batch["rewards"][rows].unique()) < 2:
                valid = valid & (batch["prompts"] != prompt)
    assert_same_bits(found, FUNCTIONS[name](batch["rewards"], prompt_index=batch["prompts"], valid=valid))


@pytest.mark.parametrize("name", READY_MADE)
def test_the_difficulty_prior_takes_every_ready_made_weighting_by_name(name):
    batch = make_batch(5)
    estimator = AdvantageEstimator(estimator="difficulty_prior", weighting=name, success_threshold=0.2)
    found = estimator(batch["rewards"], batch["prompts"], valid=batch["valid"])
    weight = getattr(weighting, name)
    data = {"prompt_index": batch["prompts"], "valid": batch["valid"]}
    right = weighting.reweighted_advantage(batch["rewards"], weight=weight, success_threshold=0.2, **data)
    assert_same_bits(found, right)
    assert estimator.metrics["durian/advantage_abs_max"] == float(right.abs().max())


def test_the_random_control_goes_on_where_it_stopped_also_from_a_state():
    batch = make_batch(6)
    once, again = (AdvantageEstimator(estimator="difficulty_prior", weighting="uniform") for _ in range(2))
    first, second = (once(batch["rewards"], batch["prompts"]) for _ in range(2))
    assert not torch.equal(first, second)
    assert_same_bits(again(batch["rewards"], batch["prompts"]), first)
    resumed = AdvantageEstimator(estimator="difficulty_prior", weighting="uniform")
    resumed.load_state_dict(again.state_dict())
    assert_same_bits(resumed(batch["rewards"], batch["prompts"]), second)


# --- what trainers have -------------------------------------------------------------------------------


def as_lists(batch):
    """The same batch as lists, with None where nothing is known and ragged tokens."""

    def gaps(values):
        return [None if value != value else value for value in values.tolist()]

    # a mask of ones, which may be None for a row, on tokens of which the others are cut
    logprobs = [row[keep].tolist() for row, keep in zip(batch["logprobs"], batch["mask"], strict=True)]
    return {
        "rewards": gaps(batch["rewards"]),
        "prompts": [f"prompt {i}" for i in batch["prompts"].tolist()],
        "visual_entropy": gaps(batch["visual_entropy"]),
        "category": [f"kind {i}" for i in batch["category"].tolist()],
        "logprobs": logprobs,
        "mask": [[1] * len(row) for row in logprobs],
        "valid": batch["valid"].tolist(),
    }


@given(seeds)
def test_lists_with_none_and_ragged_tokens_are_the_tensors_bit_for_bit(seed):
    batch = make_batch(seed)
    weights = (0.1, 0.2, 0.3, 0.4)
    chosen = {"weights": weights, "num_confidence_buckets": 3}
    found = AdvantageEstimator(**chosen)(**as_lists(batch))
    assert found.dtype == torch.float64
    assert_same_bits(found, expected(batch, **chosen))


KINDS_OF_IDS = {
    "strings": lambda i: f"p{i}",
    "negative integers": lambda i: -i,
    "uuids": lambda i: uuid.UUID(int=i),
    "tuples": lambda i: ("image.png", i),
    "mixed": lambda i: f"p{i}" if i % 2 else i,
    "floats": lambda i: i / 2,
    "bytes": lambda i: bytes([i % 256, i // 256]),
}


@pytest.mark.parametrize("kind", KINDS_OF_IDS)
def test_ids_may_be_of_any_hashable_kind(kind):
    batch = without_category(make_batch(11))
    index = (batch["prompts"] + 500).tolist()
    right = AdvantageEstimator()(**batch)
    ids = [KINDS_OF_IDS[kind](i) for i in index]
    assert_same_bits(AdvantageEstimator()(**{**batch, "prompts": ids}), right)
    array = np.empty(len(ids), dtype=object)
    array[:] = ids
    assert_same_bits(AdvantageEstimator()(**{**batch, "prompts": array}), right)


def test_ids_may_be_arrays_and_rows_of_tokens():
    batch = without_category(make_batch(12))
    right = AdvantageEstimator()(**batch)
    index = batch["prompts"]
    for ids in (
        index.numpy(),
        index.numpy().astype(str),
        index.double(),
        torch.stack([index // 7, index % 7], 1),
        np.stack([index, index], 1).astype(object),
    ):
        assert_same_bits(AdvantageEstimator()(**{**batch, "prompts": ids}), right)


@given(seeds)
@settings(max_examples=30)
def test_no_order_of_the_rows_changes_a_bit_now_or_later(seed):
    rng = np.random.default_rng(seed)
    batches = [as_lists(make_batch(rng.integers(2**31))) for _ in range(3)]
    chosen = {"weights": (0.1, 0.2, 0.3, 0.4), "num_confidence_buckets": 3, "window": 8}
    straight, shuffled = AdvantageEstimator(**chosen), AdvantageEstimator(**chosen)
    for batch in batches:
        order = rng.permutation(len(batch["rewards"]))
        right = straight(**batch)
        found = shuffled(**{name: [values[i] for i in order] for name, values in batch.items()})
        assert_same_bits(found, right[torch.tensor(order)])
        assert {k: repr(v) for k, v in shuffled.metrics.items()} == {k: repr(v) for k, v in straight.metrics.items()}


@pytest.mark.parametrize("scalars", [list, lambda values: list(values.numpy())], ids=["tensors", "arrays"])
@pytest.mark.parametrize("name", ["prompts", "rollouts", "category"])
def test_ids_may_be_scalars_of_tensors_and_arrays(name, scalars):
    """A tensor equals no other as the key of a dict: every row would be a rollout, or a kind, of its own."""
    data = {
        "rewards": [1.0, 1.0, 0.0, 1.0, 0.0, 0.0],
        "prompts": torch.tensor([5, 5, 5, 7, 7, 7]),
        "rollouts": torch.tensor([0, 0, 1, 0, 1, 1]),
        "category": torch.tensor([3, 3, 3, 4, 4, 4]),
    }
    options = {"weights": (0.5, 0.0, 0.0, 0.5)}
    right = AdvantageEstimator(**options)(**data)
    assert_same_bits(AdvantageEstimator(**options)(**{**data, name: scalars(data[name])}), right)


def test_a_row_of_a_tensor_may_be_a_category():
    batch = make_batch(13)
    pairs = torch.stack([batch["category"], -batch["category"]], 1)
    options = {"weights": (0.1, 0.2, 0.3, 0.4)}
    right = AdvantageEstimator(**options)(**batch)
    for rows_of in (pairs, pairs.numpy()):
        assert_same_bits(AdvantageEstimator(**options)(**{**batch, "category": rows_of}), right)


def test_a_row_without_a_token_is_invalid():
    """Trainers let such a row, rejected or aborted, vote: they give [-0.360, -0.566, -0.566, 0]."""
    estimator = AdvantageEstimator(estimator="grpo")
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 0]])
    found = estimator(torch.tensor([1.0, 0.0, 0.0, 10.0]), ["a"] * 4, mask=mask)
    assert found.tolist() == pytest.approx([1.1547, -0.5774, -0.5774, 0.0], abs=1e-4)
    assert estimator.metrics["durian/empty_share"] == 0.25
    ragged = estimator([1.0, 0.0, 0.0, 10.0], ["a"] * 4, mask=[[1], [1, 0, 1], None, []])
    assert ragged.tolist() == pytest.approx(found.tolist(), abs=1e-6)


def test_a_rollout_in_several_rows_counts_once():
    """Counted per row, rewards [1, 1, 1, 0] of which three rows are one rollout give [0.5, 0.5, 0.5, -1.5]."""
    estimator = AdvantageEstimator(estimator="grpo")
    found = estimator([1.0, 1.0, 1.0, 0.0], ["a"] * 4, rollouts=["x", "x", "x", "y"])
    assert found.tolist() == pytest.approx([0.7071] * 3 + [-0.7071], abs=1e-4)
    assert estimator.metrics["durian/rollouts"] == 2
    # a row without an id is a rollout
    assert estimator([1.0, 1.0, 1.0, 0.0], ["a"] * 4, rollouts=[None, None, None, 1]).tolist() == pytest.approx(
        [0.5, 0.5, 0.5, -1.5], abs=1e-4
    )


def test_ids_of_rollouts_are_those_of_their_prompt_however_many_prompts():
    prompts = [0, 0, 1, 1, 2, 3, 4, 4]
    estimator = AdvantageEstimator(estimator="dr_grpo")
    found = estimator([1.0, 0.0] * 4, prompts, rollouts=[0, 1, 0, 1, 0, 0, 0, 1])
    assert estimator.metrics["durian/rollouts"] == 8
    assert found.tolist() == [0.5, -0.5, 0.5, -0.5, 0.0, 0.0, 0.5, -0.5]
    estimator([1.0, 0.0] * 4096, [0] * 4096 + [1] * 4096, rollouts=[*range(4096)] * 2)
    assert estimator.metrics["durian/rollouts"] == 8192


def test_a_reward_on_the_last_turn_alone_is_told():
    with pytest.raises(ArgumentError, match=r"^rewards: expected one value .* 0\.0 and 1\.0 in a rollout of prompt a$"):
        AdvantageEstimator(estimator="grpo")([0.0, 0.0, 1.0, 0.0], ["a"] * 4, rollouts=["x", "x", "x", "y"])


@given(seeds)
def test_rows_of_rollouts_are_one_row_per_rollout_bit_for_bit(seed):
    rng = np.random.default_rng(seed)
    batch = as_lists(make_batch(rng.integers(2**31)))
    chosen = {"weights": (0.1, 0.2, 0.3, 0.4), "num_confidence_buckets": 3}
    right = AdvantageEstimator(**chosen)(**batch)
    rows = []
    for i, tokens in enumerate(batch["logprobs"]):
        cuts = sorted(rng.integers(0, len(tokens) + 1, rng.integers(0, 3)).tolist())
        parts = [tokens[a:b] for a, b in itertools.pairwise([0, *cuts, len(tokens)])]
        # a row without a token is invalid: the rollout has as many valid rows as parts with one
        rows += [(i, part) for part in parts]
    order = rng.permutation(len(rows))
    given = {name: [batch[name][rows[k][0]] for k in order] for name in batch if name not in ("logprobs", "mask")}
    parts = [rows[k][1] for k in order]
    found = AdvantageEstimator(**chosen)(
        **given, logprobs=parts, mask=[[1] * len(part) for part in parts], rollouts=[rows[k][0] for k in order]
    )
    for k, value in zip(order, found, strict=True):
        i, part = rows[k]
        assert_same_bits(value, right[i] if part else torch.zeros((), dtype=torch.float64))


@given(seeds, st.booleans(), st.sampled_from(((0.1, 0.2, 0.3, 0.4), (1.0, 0.0, 0.0))))
def test_the_record_is_the_rollouts_with_what_they_were_given_and_what_they_got(seed, several, weights):
    """Scores are in it that have no weight, too."""
    batch = make_batch(seed)
    batch = batch if len(weights) == 4 else without_category(batch)
    rows = len(batch["rewards"])
    estimator = AdvantageEstimator(weights=weights, num_confidence_buckets=3)
    if several:  # every rollout twice, so that its first valid row is its first
        batch = {name: torch.cat([values, values]) for name, values in batch.items()}
    found = estimator(**batch, rollouts=list(range(rows)) * 2 if several else None)
    record = estimator.record
    confidence = sequence_confidence(batch["logprobs"], batch["mask"])[:rows] * (2 if several else 1)
    valid = batch["rewards"].isfinite() & batch["valid"] & batch["mask"].any(1)
    order = record.row.argsort()
    assert record.row[order].tolist() == list(range(rows))
    assert [record.names[i] for i in record.prompt[order].tolist()] == batch["prompts"][:rows].tolist()
    assert torch.equal(record.valid[order], valid[:rows])
    assert_same_bits(record.advantages[order], found[:rows])
    torch.testing.assert_close(record.rewards[order], batch["rewards"][:rows], rtol=0, atol=0, equal_nan=True)
    given = {"visual_entropy": batch["visual_entropy"][:rows], "confidence": confidence}
    for name, right in given.items():  # what an invalid rollout was given does not matter
        scores = getattr(record, name)[order][valid[:rows]]
        torch.testing.assert_close(scores, right[valid[:rows]], rtol=1e-12, atol=0, equal_nan=True)


def test_the_record_of_a_call_without_scores_has_none():
    estimator = AdvantageEstimator(estimator="grpo")
    estimator([1.0, 0.0], ["a", "a"])
    assert (estimator.record.visual_entropy, estimator.record.confidence) == (None, None)


@given(seeds)
def test_tokens_that_are_not_finite_do_not_count_and_their_share_is_told(seed):
    rng = np.random.default_rng(seed)
    batch = without_category(make_batch(seed))
    bad = torch.tensor(rng.random(batch["logprobs"].shape) < 0.2)
    poison = torch.tensor(rng.choice([math.nan, -math.inf, math.inf], bad.shape))
    estimator = AdvantageEstimator(num_confidence_buckets=3)
    found = estimator(**{**batch, "logprobs": torch.where(bad, poison, batch["logprobs"])})
    share = float((bad & batch["mask"]).sum()) / float(batch["mask"].sum())
    assert estimator.metrics["durian/nonfinite_token_share"] == pytest.approx(share)
    # such a token is as masked, but its row keeps its place
    confidence = sequence_confidence(batch["logprobs"], batch["mask"] & ~bad)
    right = durian_advantage(
        batch["rewards"],
        visual_entropy=batch["visual_entropy"],
        confidence=confidence,
        prompt_index=batch["prompts"],
        valid=batch["valid"] & batch["mask"].any(1),
        num_confidence_buckets=3,
    )
    assert_same_bits(found, right)


def test_one_token_of_minus_infinity_moves_nobody_to_another_bucket():
    """Of 24 prompts the surest went from the last bucket to the first, and three neighbors with it."""
    torch.manual_seed(0)
    logprobs = -torch.rand(24 * 8, 6, dtype=torch.float64)
    data = {"rewards": torch.randint(0, 2, (24 * 8,)).double(), "prompts": torch.arange(24).repeat_interleave(8)}
    estimator = AdvantageEstimator(num_confidence_buckets=4, weights=(0.0, 0.0, 1.0))
    right = estimator(**data, logprobs=logprobs)
    one = logprobs.clone()
    one[int(sequence_confidence(logprobs).argmax()), 2] = -math.inf
    mask = one.isfinite()
    assert_same_bits(estimator(**data, logprobs=one), estimator(**data, logprobs=logprobs, mask=mask))
    moved = (estimator(**data, logprobs=one) - right).abs().view(24, 8).amax(1) > 1e-3
    assert int(moved.sum()) <= 12  # of its bucket and a neighbor's at most


def test_a_row_that_an_aborted_sample_left_changes_nothing_else():
    """Neither reward, prompt nor log-probabilities: what slime has of one."""
    batch = as_lists(make_batch(3))
    chosen = {"weights": (0.1, 0.2, 0.3, 0.4), "num_confidence_buckets": 3}
    right = AdvantageEstimator(**chosen)(**batch)
    found = AdvantageEstimator(**chosen)(**{name: [None, *values] for name, values in batch.items()})
    assert found[0] == 0
    assert_same_bits(found[1:], right)


def test_finished_confidences_take_the_place_of_tokens():
    batch = without_category(make_batch(4))
    confidence = sequence_confidence(batch["logprobs"], batch["mask"])
    mine = {name: value for name, value in batch.items() if name != "logprobs"}
    assert_same_bits(AdvantageEstimator()(**mine, confidence=confidence), AdvantageEstimator()(**batch))
    listed = [None if c != c else c for c in confidence.tolist()]
    assert_same_bits(AdvantageEstimator()(**mine, confidence=listed), AdvantageEstimator()(**batch))


def test_a_mean_of_the_tokens_is_one_option_away():
    batch = without_category(make_batch(9))
    confidence = sequence_confidence(batch["logprobs"], batch["mask"], reduction="mean")
    mine = {name: value for name, value in batch.items() if name != "logprobs"}
    found = AdvantageEstimator(confidence_reduction="mean")(**batch)
    assert_same_bits(found, AdvantageEstimator()(**mine, confidence=confidence))


@given(seeds)
@settings(max_examples=20)
def test_tokens_may_be_padded_or_ragged_and_their_masks_too(seed):
    batch = without_category(make_batch(seed))
    right = AdvantageEstimator()(**batch)
    logprobs, mask = batch["logprobs"], batch["mask"]
    for kind in (torch.Tensor.numpy, torch.Tensor.tolist, list):
        for of_mask in (lambda x: x, torch.Tensor.numpy, torch.Tensor.tolist, list):
            given = {**batch, "logprobs": kind(logprobs), "mask": of_mask(mask)}
            assert_same_bits(AdvantageEstimator()(**given), right)
        assert_same_bits(AdvantageEstimator()(**{**batch, "mask": kind(mask.double())}), right)
    listed = [row if keep.any() else None for row, keep in zip(logprobs, mask, strict=True)]
    assert_same_bits(AdvantageEstimator()(**{**batch, "logprobs": listed}), right)


def test_a_row_of_unknown_tokens_keeps_its_place():
    batch = without_category(make_batch(7))
    batch["mask"][3] = True
    unknown = [None if i == 3 else row for i, row in enumerate(batch["logprobs"])]
    nothing = batch["logprobs"].clone()
    nothing[3] = math.nan
    found = AdvantageEstimator()(**{**batch, "logprobs": unknown})
    assert_same_bits(found, AdvantageEstimator()(**{**batch, "logprobs": nothing}))
    assert found[3] != 0 or not batch["valid"][3]


# --- the window ---------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 20), st.sampled_from(("keep", "drop")))
@settings(max_examples=30)
def test_with_a_window_it_is_windowed_components_bit_for_bit_also_from_a_state(seed, size, no_signal):
    rng = np.random.default_rng(seed)
    chosen = {"weights": (0.1, 0.2, 0.3, 0.4), "num_confidence_buckets": 3, "no_signal": no_signal}
    estimator, window = AdvantageEstimator(window=size, **chosen), None
    for _ in range(4):
        batch = make_batch(rng.integers(2**31), prompts=int(rng.integers(1, 4)))
        _, number = torch.unique(batch["prompts"], return_inverse=True)
        parts, window = windowed_components(
            batch["rewards"],
            window=window,
            size=size,
            visual_entropy=None if batch["visual_entropy"].isnan().all() else batch["visual_entropy"],
            confidence=sequence_confidence(batch["logprobs"], batch["mask"]),
            category=batch["category"],
            prompt_index=number,
            valid=batch["valid"] & batch["mask"].any(1),
            **chosen,
        )
        assert_same_bits(estimator(**batch), parts.advantages)
        # saved and loaded as a trainer would
        saved = io.BytesIO()
        torch.save(estimator.state_dict(), saved)
        saved.seek(0)
        estimator = AdvantageEstimator(window=size, **chosen)
        estimator.load_state_dict(torch.load(saved, weights_only=True))


KINDS_OF_CATEGORIES = {
    "strings of an array": lambda i: np.str_(f"kind {i}"),
    "integers of an array": np.int64,
    "uuids": lambda i: uuid.UUID(int=i),
    "dates": lambda i: datetime.date(2026, 1, 1 + i),
    "tuples": lambda i: ("kind", fractions.Fraction(i, 7), None),
    "plain": lambda i: (f"kind {i}", i, i / 2, b"kind", True)[i % 5],
}


@pytest.mark.parametrize("kind", KINDS_OF_CATEGORIES)
def test_categories_of_any_class_are_known_again_after_a_restart(kind):
    """The state is read by ``weights_only=True``, which loads no other classes than plain ones."""
    options = {"weights": (0.5, 0.0, 0.0, 0.5), "window": 20}
    straight, stopped = AdvantageEstimator(**options), AdvantageEstimator(**options)
    for seed in (23, 24, 25):
        batch = make_batch(seed)
        batch["category"] = [KINDS_OF_CATEGORIES[kind](i) for i in batch["category"].tolist()]
        assert_same_bits(stopped(**batch), straight(**batch))
        saved = io.BytesIO()
        torch.save(stopped.state_dict(), saved)
        saved.seek(0)
        stopped = AdvantageEstimator(**options)
        stopped.load_state_dict(torch.load(saved, weights_only=True))


def test_batch_std_has_a_window_too():
    first, second = make_batch(20), make_batch(21)
    estimator = AdvantageEstimator(estimator="batch_std", window=100)
    right = baselines.batch_std_advantage(first["rewards"], prompt_index=first["prompts"])
    assert_same_bits(estimator(first["rewards"], first["prompts"]), right)
    both = torch.cat([first["rewards"], second["rewards"]])
    index = torch.cat([first["prompts"], second["prompts"] + 10_000])
    right = baselines.batch_std_advantage(both, prompt_index=index)[len(first["rewards"]) :]
    assert_same_bits(estimator(second["rewards"], second["prompts"]), right)


def test_one_group_after_the_other_fills_a_window():
    batch = make_batch(30, prompts=12)
    estimator = AdvantageEstimator(window=64, num_confidence_buckets=2)
    for prompt in batch["prompts"].unique():
        rows = batch["prompts"] == prompt
        estimator(**{name: values[rows] for name, values in without_category(batch).items()})
    assert estimator.metrics["durian/window_prompts"] >= 10


# --- what is refused ----------------------------------------------------------------------------------

FINE = {"rewards": [1.0, 0.0, 1.0, 0.0], "prompts": ["a", "a", "b", "b"], "confidence": [0.0, 0.0, 1.0, 1.0]}


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({}, {"prompts": ["a"] * 4}, "prompts: expected several prompts per call, or window > 0.*got 1 prompt"),
        ({"estimator": "batch_std"}, {"prompts": ["a"] * 4}, "prompts: expected several prompts per call"),
        ({}, {"prompts": [1, 2, 3, 4]}, "prompts: expected ids that the rollouts of a prompt share, got 4 ids for 4"),
        ({"estimator": "grpo"}, {"prompts": [1, 2, 3, 4]}, "prompts: expected ids that the rollouts"),
        ({}, {"confidence": None}, "visual_entropy or confidence|confidence or visual_entropy: expected for weights"),
        ({"weights": (0, 0, 1)}, {"confidence": None}, r"confidence: expected for weights \(0.0, 0.0, 1.0\).*got None"),
        ({}, {"visual_entropy": [1.0, 2.0, 3.0, 3.0]}, "visual_entropy: expected one value .*1 and 2 for prompt 'a'"),
        (
            {"weights": (0, 0, 0.5, 0.5)},
            {"category": ["x", "y", "x", "x"]},
            "category: expected one value for all rows of a prompt",
        ),
        ({}, {"category": ["x"] * 4}, "weights: expected a fourth number, for category, got 3 numbers"),
        ({}, {"prompts": ["a", None, "b", "b"]}, r"prompts\[1\]: expected an id, for a row that is valid, got None"),
        ({}, {"prompts": ["a", math.nan, "b", "b"]}, r"prompts\[1\]: expected an id"),
        ({}, {"prompts": [[1], [1], [2], [2]]}, "prompts: expected hashable ids, got unhashable type"),
        ({}, {"prompts": list(torch.zeros(4, 2))}, "prompts: expected hashable ids, got a tensor of several numbers"),
        (
            {"weights": (0, 0, 0.5, 0.5)},
            {"category": [["x"]] * 4},
            "category: expected hashable ids, got unhashable type: 'list'",
        ),
        ({}, {"prompts": ["a"]}, "prompts: expected 4 entries, one per row, got 1"),
        ({}, {"prompts": "aabb"}, "prompts: expected a tensor, an array or a list.*got str"),
        ({}, {"prompts": torch.zeros(4, 1, 1)}, r"prompts: expected shape \(N,\)"),
        ({}, {"prompts": torch.zeros(3)}, r"prompts: expected 4 entries, one per row, got shape \(3,\)"),
        ({}, {"rewards": ["1", "x", 0, 0]}, "rewards: expected numbers or None, got could not convert"),
        ({}, {"rewards": 1.0}, "rewards: expected a tensor, an array or a list"),
        ({}, {"rewards": torch.tensor(1.0)}, r"rewards: expected one entry per row, got shape \(\)"),
        ({}, {"rewards": [[1.0], [0.0], [1.0], [0.0]]}, r"rewards: expected shape \(N,\), got \(4, 1\)"),
        ({}, {"confidence": [0.0]}, r"confidence: expected 4 entries, one per row, got shape \(1,\)"),
        ({}, {"valid": [True]}, r"valid: expected 4 entries, one per row, got shape \(1,\)"),
        ({}, {"mask": torch.ones(4)}, r"mask: expected shape \(N, T\), got \(4,\)"),
        (
            {},
            {"confidence": None, "logprobs": torch.zeros(4, 2), "mask": torch.ones(4, 3)},
            r"mask: expected shape logprobs.shape = \(4, 2\), got \(4, 3\)",
        ),
        (
            {},
            {"confidence": None, "logprobs": [[-1.0], [], [-1.0], [-1.0, -2.0]], "mask": [[1], [], [1], [1]]},
            r"mask\[3\]: expected 2 tokens, as logprobs\[3\], got 1",
        ),
        ({}, {"logprobs": [[-1.0]] * 4}, "confidence: expected None beside logprobs, of which it is made, got list"),
        ({}, {"confidence": None, "logprobs": [[-1.0]]}, "logprobs: expected 4 entries, one per row, got 1"),
        ({}, {"confidence": None, "logprobs": [["x"], [], [], []]}, r"logprobs\[0\]: expected numbers or None"),
        (
            {},
            {"confidence": None, "logprobs": [torch.zeros(1, 1), [], [], []]},
            r"logprobs\[0\]: expected one number per token, got shape \(1, 1\)",
        ),
        (
            {},
            {"confidence": None, "logprobs": [3.0, [], [], []]},
            r"logprobs\[0\]: expected a tensor, an array or a list",
        ),
        ({}, {"rollouts": [1]}, "rollouts: expected 4 entries, one per row, got 1"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(options, change, message):
    with pytest.raises(ArgumentError, match=f"^({message})"):
        AdvantageEstimator(**options)(**{**FINE, **change})


def test_one_rollout_alone_has_no_advantage():
    assert AdvantageEstimator(estimator="grpo")([1.0], ["a"]).tolist() == [0.0]


def test_one_prompt_with_weights_of_grpo_is_grpo():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.5])
    found = AdvantageEstimator(weights=(1.0, 0.0, 0.0))(rewards, ["a"] * 4)
    assert_same_bits(found, grpo_advantage(rewards[None])[0])


@pytest.mark.parametrize("name", ["durian", *FUNCTIONS, "difficulty_prior"])
def test_an_empty_batch_gives_an_empty_result(name):
    estimator = AdvantageEstimator(estimator=name)
    for rewards, prompts in (([], []), (torch.zeros(0), torch.zeros(0, dtype=torch.int64))):
        found = estimator(rewards, prompts, logprobs=[], mask=[])
        assert found.shape == (0,)
        assert math.isnan(estimator.metrics["durian/unscored_share"])


PARTS = "the state of an AdvantageEstimator, with window, categories, generator"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, f"state: expected {PARTS}, got NoneType$"),
        ({"window": None}, rf"state: expected {PARTS}, got \['window'\]$"),
        ({"window": 3, "categories": {}, "generator": None}, "window: expected "),
        ({"window": {"rewards": 1}, "categories": {}, "generator": None}, "window: expected "),
        (
            {"window": None, "categories": [1], "generator": None},
            r"state\['categories'\]: expected numbers by category, got list$",
        ),
        (
            {"window": None, "categories": {}, "generator": 7},
            r"state\['generator'\]: expected a tensor or None, got int$",
        ),
    ],
)
def test_a_state_that_is_none_of_its_own_is_refused(state, message):
    with pytest.raises(ArgumentError, match=f"^{message}"):
        AdvantageEstimator(window=4).load_state_dict(state)


# --- what it leaves and tells -------------------------------------------------------------------------


def test_inputs_are_left_as_they_are_and_results_require_no_grad():
    batch = make_batch(2, dtype=torch.float32)
    batch["rewards"].requires_grad_()
    copies = {name: value.clone() for name, value in batch.items()}
    found = AdvantageEstimator(weights=(0.1, 0.2, 0.3, 0.4), window=4)(**batch)
    assert not found.requires_grad
    assert found.dtype == torch.float32
    for name, value in copies.items():
        assert torch.equal(batch[name].detach().nan_to_num(), value.detach().nan_to_num()), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_narrow_rewards_give_float32(dtype):
    rewards = torch.tensor([1, 0, 0, 1, 1, 0]).to(dtype)
    assert AdvantageEstimator(estimator="grpo")(rewards, [1, 1, 1, 2, 2, 2]).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64, torch.bool])
def test_an_array_of_rewards_is_its_tensor(dtype):
    rewards = torch.tensor([1, 0, 0, 1, 1, 0]).to(dtype)
    estimator = AdvantageEstimator(estimator="grpo")
    assert_same_bits(estimator(rewards.numpy(), [1, 1, 1, 2, 2, 2]), estimator(rewards, [1, 1, 1, 2, 2, 2]))


def test_metrics_are_those_of_the_components_and_what_was_counted():
    batch = make_batch(8)
    estimator = AdvantageEstimator(weights=(0.1, 0.2, 0.3, 0.4), num_confidence_buckets=3)
    found = estimator(**batch)
    unscored = float(batch["rewards"].isnan().double().mean())
    assert estimator.metrics["durian/unscored_share"] == unscored
    assert estimator.metrics["durian/advantage_abs_max"] == float(found.abs().max())
    assert all(re.fullmatch(r"durian/\w+", name) for name in estimator.metrics)
    assert {type(value) for value in estimator.metrics.values()} == {float}
    assert {"durian/category_abs_max", "durian/cosine_with_grpo"} <= set(estimator.metrics)


def test_metrics_of_another_estimator_compare_it_with_grpo():
    batch = make_batch(8)
    estimator = AdvantageEstimator(estimator="dr_grpo")
    found = estimator(batch["rewards"], batch["prompts"])
    grpo = AdvantageEstimator(estimator="grpo")(batch["rewards"], batch["prompts"])
    right = float(torch.nn.functional.cosine_similarity(found, grpo, 0))
    assert estimator.metrics["durian/cosine_with_grpo"] == pytest.approx(right)


# --- what an adapter asks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "scores"),
    [
        ({}, {"visual_entropy", "confidence"}),
        ({"weights": (1, 0, 0)}, set()),
        ({"weights": (0, 0, 0.5, 0.5)}, {"confidence", "category"}),
        ({"estimator": "grpo"}, set()),
    ],
)
def test_a_score_is_needed_where_its_component_has_a_weight(options, scores):
    estimator = AdvantageEstimator(**options)
    assert {name for name in ("visual_entropy", "confidence", "category") if estimator.needs(name)} == scores


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({}, True),
        ({"window": 8}, False),
        ({"weights": (1, 0, 0)}, False),
        ({"estimator": "batch_std"}, True),
        ({"estimator": "batch_std", "window": 8}, False),
        ({"estimator": "rloo"}, False),
    ],
)
def test_one_prompt_is_refused_where_the_scale_is_shared(options, needed):
    estimator = AdvantageEstimator(**options)
    assert estimator.needs_prompts == needed
    one = {"rewards": [1.0, 0.0], "prompts": ["a", "a"], "confidence": [1.0, 2.0]}
    if needed:
        with pytest.raises(ArgumentError, match=r"^prompts: expected several prompts per call"):
            estimator(**one)
    else:
        assert estimator(**one)[0] > 0


def test_rows_that_are_no_rollouts_do_not_hide_one_prompt_or_ids_of_rows():
    valid = [True, True, False, False]
    with pytest.raises(ArgumentError, match="expected several prompts per call"):
        AdvantageEstimator()([1.0, 0.0, 0.0, 0.0], ["a", "a", "b", "c"], confidence=[1.0] * 4, valid=valid)
    with pytest.raises(ArgumentError, match="expected ids that the rollouts of a prompt share, got 2 ids"):
        AdvantageEstimator()([1.0, 0.0, 0.0, 0.0], ["a", "b", "c", "c"], confidence=[1.0] * 4, valid=valid)


@pytest.mark.parametrize("rollouts", [None, [0, 1, 0, 1]])
def test_a_cut_rollout_makes_no_prompt_a_row(rollouts):
    """Of two prompts of two rollouts one each was cut: nothing to learn, and no reason to stop a training."""
    given = {"rewards": [1.0, 0.0, 1.0, 0.0], "prompts": list("aabb"), "confidence": [1.0, 2.0, 3.0, 4.0]}
    found = AdvantageEstimator()(**given, rollouts=rollouts, valid=[True, False, False, True])
    assert found.tolist() == [0.0] * 4


def test_a_score_that_was_dropped_is_not_missing():
    batch = {"rewards": [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0], "prompts": list("aabbccdd")}
    for no_signal, mean in (("keep", 2.5), ("drop", 3.0)):
        estimator = AdvantageEstimator(weights=(0.5, 0.5, 0.0), no_signal=no_signal)
        estimator(**batch, visual_entropy=[1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0])
        assert estimator.metrics["durian/visual_entropy_missing_share"] == 0
        assert estimator.metrics["durian/visual_entropy_mean"] == mean


def test_a_row_without_log_probabilities_may_have_a_mask():
    estimator = AdvantageEstimator(num_confidence_buckets=2)
    given = {"rewards": [1.0, 0.0, 1.0, 0.0], "prompts": list("aabb"), "mask": [[1, 1], [1, 1], [1], [1, 1]]}
    tokens = [[-1.0, -2.0], [-1.0, -2.0], [-3.0], [-1.0, -1.0]]
    found = estimator(**given, logprobs=[None, *tokens[1:]])
    right = estimator(**given, confidence=[None, -3.0, -3.0, -2.0])
    assert_same_bits(found, right)


def test_the_metrics_count_the_categories():
    estimator = AdvantageEstimator(weights=(0.5, 0.0, 0.0, 0.5))
    given = {"rewards": [1.0, 0.0] * 3, "prompts": list("aabbcc")}
    estimator(**given, category=["x", "x", "y", "y", "x", "x"])
    assert estimator.metrics["durian/categories"] == 2
    assert estimator.metrics["durian/category_prompts_min"] == 1


def test_a_batch_in_which_nothing_counts_needs_no_scores():
    unknown = {"logprobs": [None] * 4, "visual_entropy": [None] * 4}
    found = AdvantageEstimator()([None] * 4, [1, 1, 2, 2], **unknown)
    assert_same_bits(found, torch.zeros(4, dtype=torch.float64))


def test_shares_of_rows_leave_out_those_that_are_no_rollouts():
    estimator = AdvantageEstimator(estimator="grpo")
    valid = [True, True, True, True, False, False]
    mask = [[1], [1], [0], [1], [0], [0]]
    estimator([1.0, 0.0, 0.0, None, None, 0.0], ["a"] * 6, mask=mask, valid=valid)
    assert estimator.metrics["durian/empty_share"] == estimator.metrics["durian/unscored_share"] == 0.25


# --- named after what no other test could tell --------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: AdvantageEstimator().load_state_dict([1]),
            "state: expected the state of an AdvantageEstimator, with window, categories, generator, got list",
        ),
        (
            lambda: AdvantageEstimator().load_state_dict({"b": 1, 3: 1}),
            "state: expected the state of an AdvantageEstimator, with window, categories, generator, got ['3', 'b']",
        ),
        (
            lambda: AdvantageEstimator()([1.0, 0.0, 1.0, 0.0], [1, 2, 3, 4]),
            "prompts: expected ids that the rollouts of a prompt share, "
            "got 4 ids for 4 rollouts; are they ids of rows?",
        ),
        (
            lambda: AdvantageEstimator()([1.0, 0.0], [1, 1]),
            "prompts: expected several prompts per call, or window > 0: of one prompt alone this is GRPO "
            "(estimator='grpo'), got 1 prompt",
        ),
        (
            lambda: AdvantageEstimator()([1.0, 0.0] * 2, [1, 1, 2, 2]),
            "confidence or visual_entropy: expected for weights (0.1, 0.2, 0.7), whose components need them (without "
            "them this is estimator='grpo'), got None",
        ),
        (
            lambda: AdvantageEstimator()(
                [1.0, 0.0] * 2, [1, 1, 2, 2], logprobs=[None, [], [math.nan], None], visual_entropy=[None] * 4
            ),
            "confidence or visual_entropy: expected for weights (0.1, 0.2, 0.7), whose components need them (without "
            "them this is estimator='grpo'), got none that is known",
        ),
        (
            lambda: AdvantageEstimator()([1.0, 0.0] * 2, [1, 1, 2, 2], category=[0] * 4),
            "weights: expected a fourth number, for category, got 3 numbers",
        ),
        (
            lambda: AdvantageEstimator()([1.0, 0.0] * 2, [None, 1, 2, 2]),
            "prompts[0]: expected an id, for a row that is valid, got None",
        ),
        (
            lambda: AdvantageEstimator()([1.0, 0.0] * 2, ["a", "a", "b", "b"], visual_entropy=[1.0, None, 2.0, 2.5]),
            "visual_entropy: expected one value for all rows of a prompt, got 2 and 2.5 for prompt 'b'",
        ),
        (
            lambda: AdvantageEstimator(weights=(1, 0, 0, 1))([1.0, 0.0] * 2, [1, 1, 2, 2], category=[0] * 3),
            "category: expected 4 entries, one per row, got 3",
        ),
    ],
)
def test_a_message_says_what_was_expected_and_what_came(call, message):
    with pytest.raises(ArgumentError) as raised:
        call()
    assert str(raised.value) == message


def test_entropies_differ_whatever_is_unknown_beside_them_and_an_invalid_row_has_no_say():
    data = {"rewards": [1.0, 0.0, 1.0, 0.0, 1.0], "prompts": ["a", "a", "a", "b", "b"]}
    with pytest.raises(ArgumentError, match="got 1 and 3 for prompt 'a'"):
        AdvantageEstimator()(**data, visual_entropy=[1.0, None, 3.0, 2.0, 2.0])
    AdvantageEstimator()(**data, visual_entropy=[1.0, None, 3.0, 2.0, 2.0], valid=[True, True, False, True, True])


def test_a_row_without_a_rollout_id_is_taken_for_no_other_rollout():
    found = AdvantageEstimator(estimator="grpo")([1.0, 0.0, 1.0, 0.0], ["p"] * 4, rollouts=["x", "y", "z", None])
    assert_same_bits(found, grpo_advantage(torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64))[0])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_reach_the_other_estimators(name):
    batch = make_batch(14)
    with_std = name not in ("dr_grpo", "rloo")
    given = {"eps": 0.25, "correction": 0} if with_std else {}
    found = AdvantageEstimator(estimator=name, eps=0.25, correction=0)(batch["rewards"], batch["prompts"])
    assert_same_bits(found, FUNCTIONS[name](batch["rewards"], prompt_index=batch["prompts"], **given))


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_a_window_changes_nothing_for_an_estimator_that_looks_at_one_prompt(name):
    batch = make_batch(15)
    estimator = AdvantageEstimator(estimator=name, window=8)
    for _ in range(2):
        found = estimator(batch["rewards"], batch["prompts"])
        assert_same_bits(found, FUNCTIONS[name](batch["rewards"], prompt_index=batch["prompts"]))
    assert estimator.state_dict()["window"] is None


@pytest.mark.parametrize("no_signal", ["keep", "drop"])
def test_batch_std_with_an_empty_window_is_its_function_with_what_is_valid(no_signal):
    batch = make_batch(16)
    options = {"estimator": "batch_std", "no_signal": no_signal, "eps": 0.1, "correction": 0}
    data = {"rewards": batch["rewards"], "prompts": batch["prompts"], "valid": batch["valid"], "mask": batch["mask"]}
    right = AdvantageEstimator(**options)(**data)
    assert_same_bits(AdvantageEstimator(**options, window=50)(**data), right)


def test_the_difficulty_prior_takes_the_threshold_and_the_random_control_its_seed():
    batch = make_batch(17)
    data = {"prompt_index": batch["prompts"]}
    prior = AdvantageEstimator(estimator="difficulty_prior", weighting="linear", success_threshold=0.95)
    right = weighting.reweighted_advantage(batch["rewards"], weight=weighting.linear, success_threshold=0.95, **data)
    assert_same_bits(prior(batch["rewards"], batch["prompts"]), right)
    generator = torch.Generator().manual_seed(0)

    def drawn(accuracy):
        return weighting.uniform(accuracy, generator=generator)

    control = AdvantageEstimator(estimator="difficulty_prior", weighting="uniform")
    right = weighting.reweighted_advantage(batch["rewards"], weight=drawn, **data)
    assert_same_bits(control(batch["rewards"], batch["prompts"]), right)


@pytest.mark.parametrize("name", ["durian", "batch_std", "difficulty_prior"])
def test_the_default_device_of_the_caller_changes_nothing(name):
    batch = as_lists(make_batch(18))
    batch["rollouts"] = [None if i % 2 else i for i in range(len(batch["rewards"]))]
    options = {"estimator": name, "weights": (0.1, 0.2, 0.3, 0.4), "window": 4, "weighting": "uniform"}
    right = AdvantageEstimator(**options)(**batch)
    tensors = make_batch(18)
    with torch.device("meta"):
        assert_same_bits(AdvantageEstimator(**options)(**batch), right)
        found = AdvantageEstimator(**options)(**tensors, rollouts=batch["rollouts"])
    assert_same_bits(found, AdvantageEstimator(**options)(**tensors, rollouts=batch["rollouts"]))


def test_a_new_estimator_has_the_defaults_of_the_table_and_no_metrics():
    from durian_adv._src import options

    assert AdvantageEstimator().options == options.checked({})
    assert AdvantageEstimator().metrics == {}
    assert AdvantageEstimator().record is None


def test_metrics_count_what_is_valid_by_the_threshold_and_the_std_of_the_options():
    rewards, prompts = [1.0, 0.4, 0.4, 0.0, 1.0, 5.0], ["a", "a", "a", "b", "b", "b"]
    valid = [True, True, True, True, True, False]
    estimator = AdvantageEstimator(estimator="dr_grpo", success_threshold=0.3, eps=0.25, correction=0)
    estimator(rewards, prompts, valid=valid)
    found = estimator.metrics
    assert (found["durian/rollouts"], found["durian/prompts"], found["durian/window_prompts"]) == (5, 2, 0)
    assert found["durian/reward_mean"] == pytest.approx(2.8 / 5)
    assert found["durian/extreme_success"] == 0  # at 0.5 the first prompt would be an extreme failure
    assert found["durian/extreme_failure"] == 0
    dense = torch.tensor([[1.0, 0.4, 0.4], [0.0, 1.0, math.nan]], dtype=torch.float64)
    assert found["durian/grpo_abs_max"] == float(grpo_advantage(dense, eps=0.25, correction=0).abs().max())


def test_prompts_with_one_rollout_each_are_refused_also_where_it_lies_in_several_rows():
    data = {"rewards": [1.0, 1.0, 0.0, 0.0], "prompts": ["a", "a", "b", "b"], "rollouts": ["x", "x", "y", "y"]}
    with pytest.raises(ArgumentError, match="got 2 ids for 2 rollouts"):
        AdvantageEstimator(estimator="grpo")(**data)
    found = AdvantageEstimator(estimator="reinforce_plus_plus")([1.0, 0.0], ["a", "b"])
    assert_same_bits(found, baselines.reinforce_plus_plus_advantage(torch.tensor([[1.0], [0.0]]).double())[:, 0])


def test_tokens_of_an_invalid_row_say_nothing_of_its_rollout():
    data = {
        "rewards": [1.0, 1.0, 0.0, 1.0, 0.0, 0.0],
        "prompts": ["a", "a", "a", "b", "b", "b"],
        "rollouts": [0, 0, 1, 2, 3, 4],
        "valid": [True, False, True, True, True, True],
    }
    logprobs = [[-0.1], [-50.0], [-0.2], [-1.0], [-1.0], [-1.0]]
    options = {"weights": (0.0, 0.0, 1.0), "num_confidence_buckets": 2}
    estimator, other = AdvantageEstimator(**options), AdvantageEstimator(**options)
    found = estimator(**data, logprobs=logprobs)
    without = {name: [value for i, value in enumerate(values) if i != 1] for name, values in data.items()}
    right = other(**without, logprobs=[row for i, row in enumerate(logprobs) if i != 1])
    assert estimator.metrics["durian/confidence_mean"] == other.metrics["durian/confidence_mean"]
    assert_same_bits(found[[0, 2, 3, 4, 5]], right)
    assert found[1] == 0


def test_a_score_that_is_not_given_leaves_the_others_where_they_are():
    batch = make_batch(19)
    found = AdvantageEstimator()(batch["rewards"], batch["prompts"], visual_entropy=batch["visual_entropy"])
    right = durian_advantage(batch["rewards"], visual_entropy=batch["visual_entropy"], prompt_index=batch["prompts"])
    assert_same_bits(found, right)


@pytest.mark.parametrize("rewards", [torch.tensor([1, 0, 1, 0]), torch.tensor([True, False, True, False])])
def test_rewards_of_whole_numbers_are_all_scored(rewards):
    estimator = AdvantageEstimator(estimator="grpo")
    assert_same_bits(estimator(rewards, [1, 1, 2, 2]), grpo_advantage(rewards.view(2, 2)).flatten())
    assert estimator.metrics["durian/unscored_share"] == 0
