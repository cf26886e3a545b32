"""What the adapters of trainers with flat batches share; it needs none of them."""

import math

import pytest
import torch
from hypothesis import example
from hypothesis import given as drawn
from hypothesis import strategies as st

from durian_adv import durian_components, sequence_confidence
from durian_adv.adapters._batch import DurianOptions, batch_advantages, prompt_numbers, prompts_a_bucket, read_options
from durian_adv.diagnostics import durian_metrics

REWARDS = torch.tensor([1.0, 0, 1, 1, 0, 0, 1])
IDS = ["b", "a", "b", "a", "c", "b", "c"]
LOGPROBS = -torch.arange(1.0, 22.0).reshape(7, 3)
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]])
ENTROPY = torch.tensor([2.0, 1, 2, 1, 3, 2, 3])


def advantages(**changed):
    given = {"logprobs": LOGPROBS, "mask": MASK, "visual_entropy": ENTROPY, "options": DurianOptions()}
    return batch_advantages(REWARDS, prompt_numbers(IDS), **given | changed)


def test_prompts_are_told_apart_by_their_ids_in_any_order():
    assert prompt_numbers(IDS).tolist() == [1, 0, 1, 0, 2, 1, 2]
    assert prompt_numbers([10, 9, 10]).unique().numel() == 2


def test_options_reach_the_library_under_their_names():
    given = {
        "weights": [0.5, 0.3, 0.2],
        "entropy_quantiles": [0.5],
        "num_confidence_buckets": 2,
        "eps": 0.1,
        "confidence_reduction": "mean",
        "success_threshold": -1,
    }
    components, metrics = advantages(options=read_options(given, "durian"))
    threshold, reduction = given.pop("success_threshold"), given.pop("confidence_reduction")
    confidence = sequence_confidence(LOGPROBS, MASK, reduction=reduction)
    scores = {"visual_entropy": ENTROPY, "confidence": confidence, "prompt_index": prompt_numbers(IDS)}
    expected = durian_components(REWARDS, **scores, **given)
    for name, value in expected._asdict().items():
        assert torch.equal(getattr(components, name), value), name
    index = scores["prompt_index"]
    assert metrics == durian_metrics(expected, REWARDS, prompt_index=index, success_threshold=threshold)


def test_a_component_without_weight_or_score_is_left_out():
    no_reasoning, _ = advantages(options=DurianOptions(weights=(1, 1, 0)), logprobs=None, mask=None)
    assert no_reasoning.reasoning is None
    assert no_reasoning.perceptual is not None
    no_perceptual, _ = advantages(options=DurianOptions(weights=(1, 0, 1)))
    assert no_perceptual.perceptual is None
    assert no_perceptual.reasoning is not None
    for missing in (None, torch.full((7,), torch.nan)):
        assert advantages(visual_entropy=missing)[0].perceptual is None


def test_log_probabilities_are_asked_for_where_they_count():
    with pytest.raises(ValueError, match=r"^logprobs: expected .* got None"):
        advantages(logprobs=None)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"weigths": [1, 0, 0]}, r"^algorithm.durian.weigths: expected one of weights, .* got an unknown option"),
        ({"weights": [1, 0]}, r"^algorithm.durian.weights: expected 3 numbers, got 2"),
        ({"weights": [1, 0, -1]}, r"^algorithm.durian.weights\[2\]: expected a number >= 0, got -1"),
        ({"eps": -1}, r"^algorithm.durian.eps: expected a number >= 0, got -1"),
        ({"entropy_quantiles": [2]}, r"^algorithm.durian.entropy_quantiles: expected levels"),
        ({"num_confidence_buckets": 0}, r"^algorithm.durian.num_confidence_buckets: expected at least 1"),
        ({"confidence_reduction": "max"}, r"^algorithm.durian.confidence_reduction: expected one of"),
        ({"success_threshold": "x"}, r"^algorithm.durian.success_threshold: expected a number"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_by_its_full_name(given, error):
    with pytest.raises((TypeError, ValueError), match=error):
        read_options(given, "algorithm.durian")


def test_nothing_given_is_the_papers_setting():
    assert read_options(None, "durian") == read_options({}, "durian") == DurianOptions()


def test_images_without_any_entropy_are_told_where_it_counts():
    for missing in (None, torch.full((7,), torch.nan)):
        with pytest.raises(ValueError, match=r"^visual_entropy: expected .* got none"):
            advantages(visual_entropy=missing, images=True)
        assert advantages(visual_entropy=missing, images=True, options=DurianOptions(weights=(1, 0, 1)))[0].grpo.any()
    some = torch.where(torch.arange(7) < 2, ENTROPY, torch.nan)
    assert advantages(visual_entropy=some, images=True)[0].perceptual is not None


@drawn(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1.0, 1.5, -2.0, math.nan]), st.booleans()), min_size=1))
@example([(1, 1.5, True), (0, 1.0, True), (1, 1.0, True), (0, 1.0, True)])
@example([(2, 1.0, True), (0, -2.0, True), (2, 1.5, True), (0, 1.0, True)])
@example([(0, 1.0, True), (0, math.nan, True), (1, 1.0, True), (1, 1.5, False)])
def test_entropies_that_differ_within_a_prompt_are_refused(rows):
    index, entropy, valid = (torch.tensor(column) for column in zip(*rows, strict=True))
    of_prompts = {}
    for prompt, value, counts in rows:
        if counts and value == value:
            of_prompts.setdefault(prompt, set()).add(value)
    differ = [sorted(values) for _, values in sorted(of_prompts.items()) if len(values) > 1]

    def call():
        options = DurianOptions(weights=(1, 1, 0))
        given = {"logprobs": None, "mask": None, "visual_entropy": entropy, "options": options}
        given["valid"] = None if valid.all() else valid
        return batch_advantages(torch.ones(len(rows)), index, **given)

    if differ:
        low, *_, high = differ[0]
        with pytest.raises(ValueError, match=rf"^visual_entropy: expected one number .* got {low:g} and {high:g}$"):
            call()
    else:
        call()


@pytest.mark.parametrize(
    ("prompts", "images", "text", "enough"),
    [
        (
            24,
            True,
            "24 prompts per batch, 8.0 per bucket in 3 buckets of visual entropy, 2.0 per bucket in 12 buckets",
            True,
        ),
        (
            23,
            True,
            "23 prompts per batch, 7.7 per bucket in 3 buckets of visual entropy, 1.9 per bucket in 12 buckets",
            False,
        ),
        (24, False, "24 prompts per batch, 2.0 per bucket in 12 buckets of confidence", True),
    ],
)
def test_how_many_prompts_share_a_std(prompts, images, text, enough):
    said, is_enough = prompts_a_bucket(prompts, DurianOptions(), images)
    assert said.startswith(text)
    assert is_enough == enough == ("With fewer than 2" not in said)
    only_grpo = DurianOptions(weights=(1, 0, 0))
    assert prompts_a_bucket(prompts, only_grpo, images) == (f"{prompts} prompts per batch", True)


def test_one_component_may_have_all_the_weight():
    for weights in ((0, 1, 0), (0, 0, 1), (1, 0, 0)):
        assert DurianOptions(weights=weights).weights == weights


def test_padding_counts_nowhere():
    valid = torch.tensor([True] * 6 + [False])
    components, metrics = advantages(valid=valid)
    confidence = sequence_confidence(LOGPROBS, MASK, reduction=DurianOptions().confidence_reduction)
    scores = {"visual_entropy": ENTROPY, "confidence": confidence, "prompt_index": prompt_numbers(IDS)}
    expected = durian_components(REWARDS, valid=valid, **scores, **DurianOptions().of_components())
    assert torch.equal(components.advantages, expected.advantages)
    assert components.advantages[6] == 0
    assert metrics["durian/rollouts"] == 6


def test_images_without_an_entropy_are_told_what_to_do():
    with pytest.raises(ValueError, match=r"^visual_entropy: ") as raised:
        advantages(visual_entropy=None, images=True)
    assert str(raised.value) == (
        "visual_entropy: expected a number for prompts with images, for weights[1] > 0, got none. Compute it "
        "beforehand (durian-adv entropy), or set weights[1] to 0"
    )


def test_prompts_a_bucket_of_one_bucket_and_of_a_number_of_buckets():
    text, enough = prompts_a_bucket(8, DurianOptions(entropy_quantiles=4, num_confidence_buckets=1), True)
    entropy, confidence = "2.0 per bucket in 4 buckets of visual entropy", "8.0 per bucket in 1 buckets of confidence"
    assert text == f"8 prompts per batch, {entropy}, {confidence}"
    assert enough
