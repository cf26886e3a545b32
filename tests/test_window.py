"""The window: ``durian_components`` of the recent prompts and the batch together, restricted to the batch."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import reference
import strategies as own
import torch
from helpers import COMPONENTS, assert_matches, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st

from durian_adv import durian_components, grpo_advantage
from durian_adv.window import Window, load_window, windowed_components

SIZES = st.sampled_from((0, 1, 3, 7, 50))


@st.composite
def streams(draw, batches=4):
    """Dense batches of one dtype, each with its scores (or without), and options for all."""
    dtype = draw(st.sampled_from((torch.float32, torch.float64, torch.bfloat16, torch.int64)))
    absent = draw(st.sampled_from(((), ("visual_entropy",), ("confidence",))))
    categories, out = draw(st.booleans()), []
    for _ in range(draw(st.integers(1, batches))):
        batch = draw(own.dense_batches(dtypes=(dtype,), max_prompts=5))
        scores = draw(own.difficulty(batch))
        scores = {k: None if k in absent else v for k, v in scores.items()}
        if categories:
            labels = np.random.default_rng(draw(own.seeds)).choice((0, 2**62, -(2**63), 7), batch.prompts)
            scores["category"] = torch.tensor(labels, dtype=torch.int64)
        out.append((batch, scores))
    return out, draw(own.durian_options(weights=4 if categories else 3))


def flattened(batch, scores):
    """Rewards, validity and scores of a dense batch, one value per rollout."""
    width = batch.rewards.shape[1]

    def spread(score):
        if score is None:
            return torch.full((batch.rewards.numel(),), math.nan, dtype=torch.float64)
        return (score[:, None].repeat(1, width) if score.ndim == 1 else score).flatten().double()

    prompt = torch.arange(batch.prompts).repeat_interleave(width)
    category = {"category": scores["category"][prompt]} if "category" in scores else {}
    return {
        "rewards": batch.rewards.flatten(),
        "valid": batch.usable().flatten(),
        "visual_entropy": spread(scores["visual_entropy"]),
        "confidence": spread(scores["confidence"]),
        "prompt": prompt,
    } | category


def enters(batch, options):
    """Which prompts of a dense batch enter a window: those with a valid rollout, and signal if others are dropped."""
    usable = batch.usable()
    rewards = batch.rewards.double()
    low = rewards.where(usable, math.inf).amin(1)
    high = rewards.where(usable, -math.inf).amax(1)
    return low < high if options["no_signal"] == "drop" else low <= high


def concatenated(stream, size, options):
    """The last ``size`` prompts before the last batch, and that batch, in the flat form with ids of their own."""
    parts = [flattened(*item) for item in stream]
    starts = np.cumsum([0, *(item[0].prompts for item in stream)])
    for part, start in zip(parts, starts, strict=False):
        part["prompt"] = part["prompt"] + int(start)
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    before = torch.cat([torch.zeros(0), *(enters(batch, options) for batch, _ in stream[:-1])]).nonzero()[:, 0]
    mine = whole["prompt"] >= int(starts[-2])
    kept = mine | torch.isin(whole["prompt"], before[max(0, len(before) - size) :])
    return {name: value[kept] for name, value in whole.items()}, mine[kept]


def run(stream, size, options):
    """The components of the last batch, through a window of the ones before."""
    window = None
    for batch, scores in stream:
        parts, window = windowed_components(
            batch.rewards, window=window, size=size, valid=batch.valid, **scores, **options
        )
    return parts, window


def assert_same(parts, expected, *, mine=None, width=None):
    """Every field bit for bit; ``expected`` in the flat form where ``mine`` says which rollouts are meant."""
    for name, value in parts._asdict().items():
        other = getattr(expected, name)
        if value is None:
            assert other is None, name
            continue
        if mine is not None:
            other = other[mine].reshape(-1, width)
            other = other if value.ndim == 2 else other[:, 0]
        assert value.dtype == other.dtype, name
        assert same(value, other), name


def same(value, other):
    """Equal bit for bit, NaN where the other has NaN."""
    return torch.equal(value.isnan(), other.isnan()) and torch.equal(*(x.where(~x.isnan(), 0) for x in (value, other)))


@given(streams(batches=1), SIZES)
def test_without_a_window_it_is_durian_components_bit_for_bit(case, size):
    ((batch, scores),), options = case
    expected = durian_components(batch.rewards, valid=batch.valid, **scores, **options)
    for window in (None, Window(*[torch.zeros(0, dtype=torch.float64)] * 5)):
        parts, _ = windowed_components(batch.rewards, window=window, size=size, valid=batch.valid, **scores, **options)
        assert_same(parts, expected)


@given(streams())
def test_a_window_of_size_zero_never_does_anything(case):
    stream, options = case
    batch, scores = stream[-1]
    parts, window = run(stream, 0, options)
    assert_same(parts, durian_components(batch.rewards, valid=batch.valid, **scores, **options))
    assert len(window.rollouts) == 0


@given(streams(), SIZES)
def test_it_is_durian_components_of_window_and_batch_together_bit_for_bit(case, size):
    stream, options = case
    batch, scores = stream[-1]
    whole, mine = concatenated(stream, size, options)
    there = {name: whole[name] if scores[name] is not None else None for name in scores}
    together = durian_components(
        whole["rewards"], valid=whole["valid"], prompt_index=whole["prompt"], **there, **options
    )
    parts, _ = run(stream, size, options)
    assert_same(parts, together, mine=mine, width=batch.rewards.shape[1])


@given(streams(), SIZES)
def test_it_agrees_with_the_reference(case, size):
    stream, options = case
    batch, scores = stream[-1]
    whole, mine = concatenated(stream, size, options)
    there = {
        name: None if score is None else whole[name].numpy() if name == "category" else own.as_numpy(whole[name])
        for name, score in scores.items()
    }
    expected = reference.durian(
        own.as_numpy(whole["rewards"]),
        valid=whole["valid"].numpy(),
        prompt_index=whole["prompt"].numpy(),
        **there,
        **options,
    )
    parts, _ = run(stream, size, options)
    for name in COMPONENTS:
        if expected[name] is None:
            assert getattr(parts, name) is None
        else:
            assert_matches(getattr(parts, name), expected[name][mine.numpy()].reshape(batch.rewards.shape), where=name)
    for name in ("entropy_bucket", "confidence_bucket"):
        if expected[name] is not None and batch.rewards.shape[1]:
            wanted = expected[name][mine.numpy()].reshape(batch.rewards.shape)[:, 0]
            assert getattr(parts, name).tolist() == wanted.tolist(), name


@given(streams(), SIZES)
def test_the_grpo_component_does_not_know_the_window(case, size):
    stream, options = case
    batch, _ = stream[-1]
    parts, _ = run(stream, size, options)
    std = {"eps": options["eps"], "correction": options["correction"]}
    assert_same_bits(parts.grpo, grpo_advantage(batch.rewards, valid=batch.valid, **std))


@given(streams(), own.seeds)
def test_the_flat_form_equals_the_dense_form_and_ids_of_the_window_are_forgotten(case, seed):
    stream, options = case
    rng = np.random.default_rng(seed)
    window = None
    for batch, scores in stream:
        order = torch.tensor(rng.permutation(batch.rewards.numel()), dtype=torch.int64)
        flat = flattened(batch, scores)
        parts, window = windowed_components(
            flat["rewards"][order],
            window=window,
            size=6,
            valid=flat["valid"][order],
            prompt_index=flat["prompt"][order] - 2,  # the same ids in each batch
            **{name: None if scores[name] is None else flat[name][order] for name in scores},
            **options,
        )
    dense, dense_window = run(stream, 6, options)
    back = torch.argsort(order)
    for name, value in parts._asdict().items():
        if value is not None:
            other = getattr(dense, name)
            other = other.flatten() if other.ndim == 2 else other.repeat_interleave(batch.rewards.shape[1])
            assert same(value[back], other), name
    for name, value in window._asdict().items():
        other = getattr(dense_window, name)
        assert (value is None) == (other is None)
        assert value is None or same(value, other), name


@given(streams(), own.seeds)
def test_the_order_of_the_prompts_in_the_window_does_not_matter(case, seed):
    stream, options = case
    batch, scores = stream[-1]
    _, window = run(stream[:-1], 50, options) if len(stream) > 1 else (None, None)
    moved = window
    if window is not None:
        order = torch.tensor(np.random.default_rng(seed).permutation(len(window.rollouts)), dtype=torch.int64)
        moved = Window._make(None if value is None else value[order] for value in window)
    kwargs = {"size": 50, "valid": batch.valid, **scores, **options}
    plain, _ = windowed_components(batch.rewards, window=window, **kwargs)
    other, _ = windowed_components(batch.rewards, window=moved, **kwargs)
    assert_same(other, plain)


@given(streams(), SIZES)
def test_a_saved_window_goes_on_as_if_nothing_had_happened(case, size):
    stream, options = case
    batch, scores = stream[-1]
    _, window = run(stream, size, options)
    file = io.BytesIO()
    torch.save(window._asdict(), file)
    file.seek(0)
    restored = load_window(torch.load(file, weights_only=True))
    kwargs = {"size": size, "valid": batch.valid, **scores, **options}
    plain, after = windowed_components(batch.rewards, window=window, **kwargs)
    resumed, after_resumed = windowed_components(batch.rewards, window=restored, **kwargs)
    assert_same(resumed, plain)
    for value, other in zip(after_resumed, after, strict=True):
        assert value is other is None or same(value, other)


@given(streams(), SIZES)
def test_the_window_holds_the_last_prompts_in_memory_of_its_own(case, size):
    stream, options = case
    _, window = run(stream, size, options)
    whole = [(prompt, batch) for batch, _ in stream for prompt in enters(batch, options).nonzero()[:, 0].tolist()]
    assert len(window.rollouts) == min(size, len(whole))
    for value in window:
        if value is not None:
            assert value.shape == window.rollouts.shape
            assert not value.requires_grad
            assert not value.is_inference()
            assert value.untyped_storage().nbytes() == value.numel() * value.element_size()
    for row, (prompt, batch) in enumerate(whole[len(whole) - len(window.rollouts) :]):
        rewards = batch.rewards[prompt][batch.usable()[prompt]].double()
        assert window.rollouts[row] == len(rewards)
        assert (window.low[row], window.high[row]) == (rewards.amin(), rewards.amax())


@given(streams(), SIZES)
def test_a_window_filled_with_all_prompts_can_be_used_by_a_call_that_drops_those_without_signal(case, size):
    stream, options = case
    batch, scores = stream[-1]
    keep, drop = options | {"no_signal": "keep"}, options | {"no_signal": "drop"}
    _, window = run(stream[:-1], 1000, keep) if len(stream) > 1 else (None, None)
    kwargs = {"valid": batch.valid, "size": size, **scores, **drop}
    parts, after = windowed_components(batch.rewards, window=window, **kwargs)
    _, dropped = run(stream[:-1], 1000, drop) if len(stream) > 1 else (None, None)
    expected, expected_after = windowed_components(batch.rewards, window=dropped, **kwargs)
    assert_same(parts, expected)
    for value, other in zip(after, expected_after, strict=True):
        value, other = (torch.full((len(after.rollouts),), math.nan) if x is None else x for x in (value, other))
        assert same(value, other)  # of an empty window it is not known which scores it had


@given(streams(), own.seeds)
def test_rollouts_in_several_rows_count_once_in_a_window_too(case, seed):
    stream, options = case
    rng, window, plain = np.random.default_rng(seed), None, None
    for batch, scores in stream:
        flat = flattened(batch, scores)
        count = batch.rewards.numel()
        source = torch.tensor(
            rng.permutation(np.repeat(np.arange(count), rng.integers(1, 3, count))), dtype=torch.int64
        )
        names = ("valid", *(name for name, score in scores.items() if score is not None))
        one = {name: flat[name] for name in names} | {"prompt_index": flat["prompt"]}
        several = {name: value[source] for name, value in one.items()} | {"rollout_index": source}
        kwargs = {"size": 5, **options}
        expected, plain = windowed_components(flat["rewards"], window=plain, **one, **kwargs)
        parts, window = windowed_components(flat["rewards"][source], window=window, **several, **kwargs)
        for name, value in parts._asdict().items():
            assert value is None or same(value, getattr(expected, name)[source]), name
        for value, other in zip(window, plain, strict=True):
            assert value is other is None or same(value, other)


def test_a_worked_example():
    first = torch.tensor([[1.0, 1, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    second = torch.tensor([[1.0, 1, 0, 0]], dtype=torch.float64)
    options = {"num_confidence_buckets": 2, "weights": (0, 0, 1), "size": 2, "eps": 0.0}
    _, window = windowed_components(first, window=None, confidence=torch.tensor([-3.0, -1.0]), **options)
    parts, window = windowed_components(second, window=window, confidence=torch.tensor([-2.0]), **options)
    # scores -3, -1, -2: the median is -2, which belongs to the upper bucket, with -1
    assert parts.confidence_bucket.tolist() == [1]
    std = np.std([0, 0, 0, 1, 1, 1, 0, 0], ddof=1)
    assert_matches(parts.advantages, [[0.5 / std, 0.5 / std, -0.5 / std, -0.5 / std]])
    assert window.rollouts.tolist() == [4, 4]
    assert (window.mean / 2 + 0.5).tolist() == [0.25, 0.5]  # in units of half the range, from its middle
    assert window.confidence.tolist() == [-1.0, -2.0]
    assert window.visual_entropy is None


def test_scores_that_only_float64_can_tell_apart_stay_apart_in_the_window():
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # float32
    near = torch.tensor([1.0 + 2.0**-52, 1.0 + 2.0**-51], dtype=torch.float64)
    around = torch.tensor([1.0, 1.0 + 2.0**-50], dtype=torch.float64)
    options = {"size": 2, "num_confidence_buckets": 4, "entropy_quantiles": 4}
    _, window = windowed_components(rewards, window=None, confidence=near, visual_entropy=near, **options)
    parts, _ = windowed_components(rewards, window=window, confidence=around, visual_entropy=around, **options)
    assert parts.confidence_bucket.tolist() == [0, 3]
    assert parts.entropy_bucket.tolist() == [0, 3]


def test_a_batch_without_a_score_enters_the_window_with_an_unknown_one():
    rewards, score = torch.tensor([[1.0, 0.0]]), torch.tensor([2.0])
    _, window = windowed_components(rewards, window=None, size=4, visual_entropy=score)
    parts, window = windowed_components(rewards, window=window, size=4)
    assert parts.perceptual is None
    assert window.visual_entropy[0] == 2
    assert window.visual_entropy[1].isnan()
    parts, _ = windowed_components(rewards, window=window, size=4, visual_entropy=score)
    assert parts.entropy_bucket.tolist() == [0]  # of two known scores that tie, not of the unknown one


def test_wrong_arguments_are_named():
    rewards = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="size: expected an integer >= 0, got -1"):
        windowed_components(rewards, window=None, size=-1)
    with pytest.raises(TypeError, match="size: expected an integer >= 0, got float"):
        windowed_components(rewards, window=None, size=1.0)
    three = torch.zeros(3, dtype=torch.float64)
    window = Window(*[three] * 5)
    with pytest.raises(TypeError, match=r"^window: expected a Window or None, got tuple$"):
        windowed_components(rewards, window=tuple(window), size=1)
    with pytest.raises(TypeError, match=r"^rewards: expected a torch\.Tensor"):
        windowed_components([[1.0]], window=None, size=1)
    for wrong, text in (
        ({"rollouts": three[None]}, r"window\.rollouts: expected shape \(W,\), got \(1, 3\)"),
        ({"confidence": three[:2]}, r"window\.confidence: expected shape \(W,\) = \(3,\), got \(2,\)"),
        ({"low": three.to("meta")}, r"window\.low: expected device cpu, as window\.rollouts, got meta"),
        ({"squares": None}, r"window\.squares: expected a torch\.Tensor, got NoneType"),
        ({"category": three}, r"window\.category: expected an integer dtype, got torch\.float64"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{text}$"):
            windowed_components(rewards, window=window._replace(**wrong), size=1)
        if "low" not in wrong:
            with pytest.raises((TypeError, ValueError), match=f"^{text}$"):
                load_window(window._replace(**wrong)._asdict())
    elsewhere = Window._make(None if value is None else value.to("meta") for value in window)
    with pytest.raises(ValueError, match=r"^window\.rollouts: expected device cpu, as rewards, got meta$"):
        windowed_components(rewards, window=elsewhere, size=1)
    with pytest.raises(ValueError, match="num_confidence_buckets"):
        windowed_components(rewards, window=None, size=1, num_confidence_buckets=0)


def test_a_window_of_another_version_is_refused_by_its_fields():
    of_0_1 = {"rewards": torch.zeros(2, 3), "visual_entropy": None, "confidence": None}
    text = r"^window: expected the fields rollouts, low, .*, category, got rewards, visual_entropy, confidence$"
    with pytest.raises(ValueError, match=text):
        load_window(of_0_1)
    with pytest.raises(ValueError, match=r"got none$"):
        load_window({})
    with pytest.raises(TypeError, match=r"^window: expected a dict of rollouts, .*, got list$"):
        load_window([1.0])


def test_categories_come_with_every_batch_of_a_window_or_with_none():
    rewards, kind = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([4, 5])
    options = {"size": 4, "weights": (1, 1, 1, 1)}
    _, window = windowed_components(rewards, window=None, category=kind, **options)
    assert window.category.tolist() == [4, 5]
    with pytest.raises(ValueError, match=r"^category: expected one in every batch .*, got one in the window alone$"):
        windowed_components(rewards, window=window, **options)
    _, without = windowed_components(rewards, window=None, **options)
    with pytest.raises(ValueError, match=r"^category: expected .*, got one in the batch alone$"):
        windowed_components(rewards, window=without, category=kind, **options)
    empty = Window._make(value if value is None else value[:0] for value in without)
    parts, _ = windowed_components(rewards, window=empty, category=kind, **options)
    assert_same(parts, durian_components(rewards, category=kind, weights=(1, 1, 1, 1)))


def test_the_memory_of_a_window_does_not_depend_on_the_sizes_of_the_groups():
    rewards = torch.rand(100_000, dtype=torch.float64)
    index = torch.arange(100_000).clamp(max=63)  # 63 prompts of one rollout, and one of the others
    _, window = windowed_components(rewards, window=None, size=64, prompt_index=index)
    assert sum(value.nbytes for value in window if value is not None) == 5 * 8 * 64


def test_without_a_window_the_defaults_are_those_of_durian_components():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(26, 4, generator=generator)
    scores = {"visual_entropy": torch.rand(26, generator=generator), "confidence": torch.rand(26, generator=generator)}
    parts, _ = windowed_components(rewards, window=None, size=4, **scores)
    assert_same(parts, durian_components(rewards, **scores))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_and_the_components_are_those_of_the_batch_not_of_the_window(dtype):
    largest = torch.finfo(dtype).max
    rewards = torch.tensor([[largest, -largest], [1.0, 0.0]], dtype=dtype)
    _, kept = windowed_components(rewards, window=None, size=4, confidence=torch.rand(2), visual_entropy=torch.rand(2))
    for window in (None, kept):
        parts, _ = windowed_components(rewards, window=window, size=4, visual_entropy=torch.rand(2))
        assert parts.reasoning is None
        assert parts.advantages.dtype == parts.prompt_std.dtype == parts.visual_entropy.dtype == dtype
        assert torch.isfinite(parts.prompt_std).all()
