"""One batch over several ranks: to the bit what one process gives, two messages, and never a rank left waiting."""

from __future__ import annotations

import enum
import math

import numpy as np
import pytest
import strategies as own
import torch
import torch.distributed as dist
from helpers import assert_same_bits, dense_cases, packed
from hypothesis import given
from hypothesis import strategies as st
from ranks import SIZES, Pool, RankDiedError

from durian_adv import durian_advantage, durian_components
from durian_adv._src import distributed


class Correction(enum.IntEnum):
    SAMPLE = 1


OF_ROLLOUTS = ("advantages", "grpo", "perceptual", "reasoning", "category")
SCORES = ("visual_entropy", "confidence", "category", "rollout_index")


@pytest.fixture(scope="module")
def pool():
    ranks = Pool(max(SIZES))
    yield ranks
    ranks.close()


def arguments(case):
    """What a case is, as keyword arguments."""
    return {
        "rewards": case.batch.rewards,
        "valid": case.batch.valid,
        "prompt_index": case.batch.prompt_index,
        "visual_entropy": case.entropy,
        "confidence": case.confidence,
        "category": case.buckets,
        "rollout_index": None,
        "weights": (0.1, 0.2, 0.7, 0.4),
        "no_signal": ("keep", "drop")[case.correction],
        "num_confidence_buckets": 3,
        "eps": case.eps,
        "correction": case.correction,
    }


def parted(case, part):
    """The rows of a case that `part` selects."""
    return {k: v[part] if isinstance(v, torch.Tensor) else v for k, v in arguments(case).items()}


def ask(pool, shards, name="durian_components", die_at=None):
    """Each rank calls the function on its shard."""
    die_at = die_at or [0] * len(shards)
    return pool.run([(name, shard, at) for shard, at in zip(shards, die_at, strict=True)])


@given(
    dense_cases(),
    own.seeds,
    st.sampled_from(SIZES),
    st.booleans(),
    st.sampled_from(("", "visual_entropy", "confidence", "category")),
)
def test_ranks_together_give_the_bits_of_one_process(pool, case, seed, size, flat, left_out):
    rng = np.random.default_rng(seed)
    if flat:  # a prompt's rollouts lie anywhere
        case, _ = packed(case, rng)
    whole = arguments(case)
    owner = torch.tensor(rng.integers(0, rng.integers(1, size + 1), len(case.batch.rewards)))
    shards = [parted(case, owner == rank) for rank in range(size)]
    for call in (whole, *shards):
        if left_out:
            call[left_out] = None
    if seed % 3 == 0 and not flat:  # padding of one rank is its own affair
        shard = shards[0]
        shard["rewards"] = torch.nn.functional.pad(shard["rewards"].double(), (0, 2), value=float("nan")).to(
            shard["rewards"].dtype
        )
        shard["valid"] = None if shard["valid"] is None else torch.nn.functional.pad(shard["valid"], (0, 2))
        if shard["confidence"] is not None and shard["confidence"].ndim == 2:
            shard["confidence"] = torch.nn.functional.pad(shard["confidence"], (0, 2))
    expected = durian_components(**whole)
    for rank, (components, sent) in enumerate(ask(pool, shards)):
        assert_two_messages(sent, shards, size)
        for name, value in expected._asdict().items():
            actual = getattr(components, name)
            if value is None:
                assert actual is None
                continue
            mine = value[owner == rank]
            if name in OF_ROLLOUTS and not flat:
                assert actual.shape == shards[rank]["rewards"].shape
                assert not actual[:, mine.shape[1] :].any()
                actual = actual[:, : mine.shape[1]]
            assert_same_bits(finite_or_told(actual), finite_or_told(mine), name)


@given(dense_cases(), own.seeds, st.sampled_from(SIZES))
def test_the_rows_of_a_rollout_may_lie_on_several_ranks(pool, case, seed, size):
    rng = np.random.default_rng(seed)
    case, _ = packed(case, rng)
    one = arguments(case)
    count = len(case.batch.rewards)
    source = torch.tensor(rng.permutation(np.repeat(np.arange(count), rng.integers(1, 4, count))), dtype=torch.int64)
    several = {k: v[source] if isinstance(v, torch.Tensor) else v for k, v in one.items()} | {"rollout_index": source}
    expected = durian_components(**one)
    owner = torch.tensor(rng.integers(0, size, len(source)))
    shards = [{k: v[owner == r] if isinstance(v, torch.Tensor) else v for k, v in several.items()} for r in range(size)]
    for rank, (components, sent) in enumerate(ask(pool, shards)):
        assert_two_messages(sent, shards, size)
        for name, value in expected._asdict().items():
            if value is not None:
                actual, wanted = getattr(components, name), value[source[owner == rank]]
                assert_same_bits(finite_or_told(actual), finite_or_told(wanted), name)


def test_rows_on_two_ranks_that_differ_raise_on_both(pool):
    shard = {"prompt_index": torch.tensor([4, 4]), "rollout_index": torch.tensor([7, 8])}
    for answer in ask(pool, [{"rewards": torch.tensor([reward, 0.0]), **shard} for reward in (1.0, 2.0)]):
        assert isinstance(answer, ValueError)
        assert "got 1.0 and 2.0 in rollout 7 of prompt 4" in str(answer)
    assert_works(pool)


def finite_or_told(value):
    """NaN, which equals nothing, as a number that nothing else is."""
    return value.nan_to_num(7.5, torch.inf, -torch.inf) if value.is_floating_point() else value


def assert_two_messages(sent, shards, size):
    """A header of 72 bytes, and 8 bytes per rollout for its prompt, its reward and what else is given, padded."""
    header, payload = sent
    assert header == (72, size)
    columns = 2 + sum(shards[0][name] is not None for name in SCORES)
    most = max(len(s["rewards"]) * (max(1, s["rewards"].shape[1]) if s["prompt_index"] is None else 1) for s in shards)
    assert payload == (8 * columns * most, size)


def test_durian_advantage_takes_a_group_too(pool):
    rewards, scores = torch.rand(6, 4), torch.rand(6)
    answers = ask(pool, [{"rewards": rewards[r::3], "confidence": scores[r::3]} for r in range(3)], "durian_advantage")
    expected = durian_advantage(rewards, confidence=scores)
    for rank, (actual, _) in enumerate(answers):
        assert_same_bits(actual, expected[rank::3])


def test_each_rank_keeps_its_own_dtype(pool):
    rewards = torch.rand(4, 3)
    (single, _), (double, _) = ask(
        pool, [{"rewards": rewards[:2]}, {"rewards": rewards[2:].double()}], "durian_advantage"
    )
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    assert_same_bits(double, durian_advantage(rewards.double())[2:])


GOOD = {"rewards": torch.rand(3, 4), "visual_entropy": torch.rand(3), "confidence": torch.rand(3)}
DIFFERENT = {
    "visual_entropy": {"visual_entropy": None},
    "confidence": {"confidence": None},
    "prompt_index": {
        "rewards": torch.rand(4),
        "prompt_index": torch.arange(4),
        "visual_entropy": torch.rand(4),
        "confidence": torch.rand(4),
    },
    "weights": {"weights": (1.0, 2.0, 3.0)},
    "no_signal": {"no_signal": "drop"},
    "category": {"category": torch.zeros(3, dtype=torch.int64), "weights": (0.1, 0.2, 0.7, 0)},
    "num_confidence_buckets": {"num_confidence_buckets": 7},
    "eps": {"eps": 0.5},
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_ranks_that_differ_raise_on_every_rank(pool, name):
    for answer in ask(pool, [dict(GOOD), {**GOOD, **DIFFERENT[name]}, dict(GOOD)]):
        assert isinstance(answer, ValueError)
        assert name in str(answer)
    assert_works(pool)


def test_an_argument_that_is_at_fault_on_one_rank_raises_on_every_rank(pool):
    here, *elsewhere = ask(pool, [{**GOOD, "confidence": torch.rand(5)}, dict(GOOD), dict(GOOD)])
    assert isinstance(here, ValueError)
    assert "confidence: expected shape" in str(here)
    for answer in elsewhere:
        assert isinstance(answer, RuntimeError)
        assert "ranks [0]" in str(answer)
    assert_works(pool)


def test_a_tensor_that_cannot_be_read_on_one_rank_raises_on_every_rank(pool):
    here, elsewhere = ask(pool, [{"rewards": torch.rand(3, 4).to_sparse()}, {"rewards": torch.rand(3, 4)}])
    assert isinstance(here, Exception)
    assert isinstance(elsewhere, RuntimeError)
    assert "ranks [0]" in str(elsewhere)
    assert_works(pool)


def test_infinite_scores_stay_infinite(alone):
    scores = torch.tensor([math.inf, 1e300, -math.inf], dtype=torch.float64)
    actual = durian_components(torch.rand(3, 4), confidence=scores, process_group=alone).confidence
    assert actual.tolist() == [math.inf, math.inf, -math.inf]


def test_options_that_mean_the_same_are_the_same(pool):
    answers = ask(
        pool,
        [
            {**GOOD, "eps": 0, "weights": [1, 2, 3], "correction": 1},
            {**GOOD, "eps": -0.0, "weights": (1.0, 2.0, 3.0), "correction": Correction.SAMPLE},
        ],
    )
    assert all(isinstance(answer, tuple) for answer in answers), answers


def assert_works(pool):
    assert all(isinstance(answer, tuple) for answer in ask(pool, [dict(GOOD)] * 3))


def test_a_group_without_this_rank_is_refused(pool):
    for value in (object(), "a name"):
        with pytest.raises(TypeError, match=r"process_group: expected a torch\.distributed\.ProcessGroup"):
            durian_advantage(torch.ones(2, 2), process_group=value)


@pytest.mark.parametrize("at", [1, 2])
def test_a_rank_that_dies_in_a_call_leaves_no_result_anywhere(at):
    ranks = Pool(3)
    try:
        assert_works(ranks)
        answers = ask(ranks, [dict(GOOD)] * 3, die_at=[0, at, 0])
        assert isinstance(answers[1], RankDiedError)
        assert all(isinstance(answer, RuntimeError) for answer in (answers[0], answers[2])), answers
    finally:
        ranks.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A world of this process."""
    store = tmp_path_factory.mktemp("world") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0), (2, 1), (5, 3)])
@pytest.mark.parametrize("by_rollout", [False, True])
def test_a_world_of_one_gives_the_bits_of_no_world(alone, shape, by_rollout):
    rewards = torch.rand(shape, dtype=torch.float64)
    scores = {"visual_entropy": torch.rand(shape[0]), "confidence": torch.rand(shape if by_rollout else shape[0])}
    scores |= {"category": torch.arange(shape[0]) % 2, "weights": (1, 1, 1, 1)}
    actual = durian_components(rewards, **scores, process_group=alone)
    for name, value in durian_components(rewards, **scores)._asdict().items():
        if value is not None:
            assert_same_bits(finite_or_told(getattr(actual, name)), finite_or_told(value), name)
    assert_same_bits(durian_advantage(rewards, **scores, process_group=alone), durian_advantage(rewards, **scores))


def test_a_world_of_one_takes_the_flat_form_and_raises_its_errors(alone):
    flat = {"rewards": torch.rand(5), "prompt_index": torch.tensor([3, 3, -1, 3, -1]), "valid": torch.rand(5) < 0.9}
    assert_same_bits(durian_advantage(**flat, process_group=alone), durian_advantage(**flat))
    parts = durian_components(**flat, process_group=alone)
    for actual, expected in zip(parts, durian_components(**flat), strict=True):
        assert (actual is None and expected is None) or torch.equal(actual, expected)
    with pytest.raises(TypeError) as raised:
        durian_advantage(torch.rand(2, 2), process_group="a name")
    assert str(raised.value) == ("process_group: expected a torch.distributed.ProcessGroup with this rank, got str")
    with pytest.raises(ValueError, match="valid: expected shape"):
        durian_advantage(torch.rand(2, 2), valid=torch.ones(2, dtype=torch.bool), process_group=alone)


def test_what_is_beyond_the_range_of_float32_is_its_largest_number_with_a_group_too(alone):
    largest = torch.finfo(torch.float32).max
    rewards = torch.tensor([[largest, -largest]])
    std = durian_components(rewards, process_group=alone).prompt_std
    assert std.tolist() == durian_components(rewards).prompt_std.tolist() == [largest]


def test_what_headers_tell():
    header = distributed._Header(0, 0, 1, 1, 1, 1, 5, 8, 2)
    distributed._compare([header, header], 0)
    with pytest.raises(RuntimeError, match=r"ranks \[1\] were refused there"):
        distributed._compare([header, header._replace(refused=1)], 0)
    with pytest.raises(ValueError, match=r"visual_entropy: expected on all 2 ranks .* got on \[0\]"):
        distributed._compare([header, header._replace(entropy=0)], 0)
    named = ("confidence", "category", "rollout_index")
    for field, name in (("flat", "prompt_index"), *zip(named, named, strict=True)):
        other = header._replace(**{field: 1 - getattr(header, field)})
        with pytest.raises(ValueError, match=rf"^{name}: expected on all 2 ranks of process_group or on none, got on "):
            distributed._compare([header, other], 0)
    with pytest.raises(
        ValueError, match=r"^weights, .*, correction: expected the same .* got others on \[1\] than on 0$"
    ):
        distributed._compare([header, header._replace(options=6)], 0)


def test_a_distributed_tensor_is_refused(alone):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    rewards = distribute_tensor(torch.rand(2, 3), init_device_mesh("cpu", (1,)), [Replicate()])
    with pytest.raises(TypeError, match=r"rewards: expected a torch\.Tensor, got DTensor"):
        durian_advantage(rewards)
    with pytest.raises(TypeError, match=r"rewards: expected a torch\.Tensor, got DTensor"):
        durian_advantage(rewards, process_group=alone)
