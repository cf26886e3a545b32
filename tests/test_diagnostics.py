"""Metrics against counts made by hand and by loops."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import reference
import strategies as own
import torch
from hypothesis import given

from durian_adv import diagnostics, durian_components
from durian_adv.diagnostics import (
    cosine,
    durian_metrics,
    few_prompts_warning,
    group_kinds,
    prompt_outcomes,
    too_few_prompts,
    update_by_prompt,
)

SUCCESS = [1, 1, 1, 1, 1, 1, 1, 0]
FAILURE = [0, 0, 0, 1, 0, 0, 0, 0]
BALANCED = [1, 0, 1, 0, 1, 0, 1, 0]
RIGHT, WRONG = [1] * 8, [0] * 8
BATCH = torch.tensor([SUCCESS, FAILURE, FAILURE, BALANCED, RIGHT, WRONG], dtype=torch.float64)
ENTROPY = torch.tensor([1.0, 2.0, 3.0, 4.0, math.nan, 5.0])


def of(rewards, *, threshold=0.5, **scores):
    shape = {key: scores[key] for key in ("prompt_index", "valid", "category", "rollout_index") if key in scores}
    return durian_metrics(durian_components(rewards, **scores), rewards, **shape, success_threshold=threshold)


def same(found, expected):
    """The same numbers to the bit, NaN where the other has NaN."""
    assert set(found) == set(expected)
    differ = {name: (found[name], expected[name]) for name in found if found[name] != expected[name]}
    assert all(math.isnan(a) and math.isnan(b) for a, b in differ.values()), differ


def assert_undefined_is_nan_and_all_else_finite(found):
    """Every number is finite but for what is said to be undefined, which is NaN."""
    value = {name.removeprefix("durian/"): x for name, x in found.items()}
    nan = {name for name, x in value.items() if math.isnan(x)}
    assert all(type(x) is float and not math.isinf(x) for x in found.values()), found
    expected = set()
    if not value["prompts"]:
        expected |= {"reward_mean", "no_signal_share"} | {name for name in value if name.endswith("_missing_share")}
        expected |= {name for name in value if name.endswith("_abs_max")}
    if not value["effective"]:
        expected |= {"extreme_ratio"} | {name for name in value if name.startswith(("prompt_std_", "category_std_"))}
    for name in value:
        if name.endswith(("moved_from_grpo", "cosine_with_grpo")):
            component = name.removesuffix("moved_from_grpo").removesuffix("cosine_with_grpo").rstrip("_")
            zero = not value["grpo_abs_max"] > 0
            zero |= name.endswith("cosine_with_grpo") and not value[f"{component or 'advantage'}_abs_max"] > 0
            expected |= {name} if zero else set()
        if "update_share_" in name:
            prefix = "grpo" if name.startswith("grpo") else "advantage"
            expected |= {name} if not value[f"{prefix}_abs_max"] > 0 else set()
        if name.endswith("_prompts_min"):
            bucket = name.removesuffix("_prompts_min")
            members = [x for other, x in value.items() if other.startswith(f"{bucket}_") and other.endswith("_prompts")]
            expected |= {name} if not (members or (bucket == "category" and value["prompts"])) else set()
        if name.endswith("_error_share"):
            shares = [x for other, x in value.items() if other.startswith(name[:7]) and other.endswith("_error_share")]
            assert all(map(math.isnan, shares)) or sum(shares) == pytest.approx(1)
            expected |= {name} & nan  # no errors in any bucket
    for score in ("visual_entropy", "confidence"):
        if f"{score}_mean" in nan:  # no prompt with a finite score
            expected |= {f"{score}_mean", f"{score}_std"}
    assert nan == expected, nan ^ expected


def test_extreme_groups_are_those_of_appendix_a():
    found = of(BATCH)
    assert found["durian/prompts"] == 6
    assert found["durian/rollouts"] == 48
    assert found["durian/effective"] == 4
    assert found["durian/extreme_success"] == 1
    assert found["durian/extreme_failure"] == 2
    assert found["durian/extreme_ratio"] == 3 / 4
    assert found["durian/no_signal_share"] == 2 / 6
    assert found["durian/reward_mean"] == pytest.approx(BATCH.mean().item(), abs=1e-15)


def test_correct_is_above_the_threshold_while_effective_means_unequal():
    mixed = 0.9 * BATCH + 0.1
    counts = ("prompts", "effective", "extreme_success", "extreme_failure", "extreme_ratio", "no_signal_share")
    for name in counts:
        assert of(mixed)[f"durian/{name}"] == of(BATCH)[f"durian/{name}"]
    format_only = torch.tensor([[0.1, 0.0, 0.0, 0.0]])
    assert of(format_only)["durian/effective"] == 1
    assert of(format_only)["durian/extreme_ratio"] == 0
    assert of(format_only, threshold=0.05)["durian/extreme_failure"] == 1


def test_two_rollouts_are_never_extreme():
    assert of(torch.tensor([[1.0, 0.0]]))["durian/extreme_ratio"] == 0


def test_buckets_scores_and_stds_are_those_of_the_components():
    parts = durian_components(BATCH, visual_entropy=ENTROPY, confidence=torch.arange(6.0), num_confidence_buckets=2)
    found = durian_metrics(parts, BATCH)
    assert found["durian/visual_entropy_mean"] == 3
    assert found["durian/visual_entropy_std"] == pytest.approx(2**0.5)
    assert found["durian/visual_entropy_missing_share"] == 1 / 6
    assert [found[f"durian/entropy_bucket_{k}_prompts"] for k in range(3)] == [2, 1, 2]
    assert [found[f"durian/confidence_bucket_{k}_prompts"] for k in range(2)] == [3, 3]
    assert "durian/entropy_bucket_3_prompts" not in found
    assert found["durian/perceptual_std_1"] == pytest.approx(BATCH[2].std().item())
    assert found["durian/reasoning_std_0"] == pytest.approx(BATCH[:3].std().item())
    assert found["durian/prompt_std_min"] == pytest.approx(BATCH[0].std().item())
    assert found["durian/prompt_std_mean"] == pytest.approx(BATCH[:4].std(1).mean().item())


def test_a_bucket_between_others_may_be_empty_and_then_has_no_std():
    scores = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    found = of(BATCH, confidence=scores, num_confidence_buckets=4)
    empty = [k for k in range(4) if found[f"durian/confidence_bucket_{k}_prompts"] == 0]
    assert empty
    assert not any(f"durian/reasoning_std_{k}" in found for k in empty)


def test_the_move_away_from_grpo_is_a_norm_and_an_angle():
    parts = durian_components(BATCH, visual_entropy=ENTROPY, weights=(1, 3, 0))
    found = durian_metrics(parts, BATCH)
    a, g = parts.advantages.flatten().numpy(), parts.grpo.flatten().numpy()
    assert found["durian/moved_from_grpo"] == pytest.approx(np.linalg.norm(a - g) / np.linalg.norm(g))
    assert found["durian/cosine_with_grpo"] == pytest.approx(a @ g / np.linalg.norm(a) / np.linalg.norm(g))
    assert found["durian/advantage_abs_max"] == abs(a).max()
    assert found["durian/perceptual_abs_max"] == parts.perceptual.abs().max().item()
    assert "durian/reasoning_abs_max" not in found


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 9))
def test_the_flat_form_in_any_order_has_the_same_metrics(seed, prompts, width):
    rng = np.random.default_rng(seed)
    rewards = torch.tensor(rng.integers(0, 2, (prompts, width)), dtype=torch.float64)
    valid = torch.tensor(rng.random((prompts, width)) < 0.8)
    entropy, confidence = torch.tensor(rng.random(prompts)), torch.tensor(rng.random((prompts, width)))
    dense = of(rewards, valid=valid, visual_entropy=entropy, confidence=confidence)
    order = torch.tensor(rng.permutation(prompts * width))
    flat = of(
        rewards.flatten()[order],
        valid=valid.flatten()[order],
        visual_entropy=entropy.repeat_interleave(width)[order],
        confidence=confidence.flatten()[order],
        prompt_index=torch.arange(prompts).repeat_interleave(width)[order],
    )
    same(flat, dense)
    assert_undefined_is_nan_and_all_else_finite(dense)


def test_what_exceeds_one_half_is_correct_if_nothing_else_is_said():
    rewards = torch.tensor([[1.0, 0.5, 0.0, 0.75]])
    assert prompt_outcomes(rewards).correct.tolist() == [2]
    assert prompt_outcomes(rewards, success_threshold=0.75).correct.tolist() == [1]
    assert durian_metrics(durian_components(rewards[:, :3]), rewards[:, :3])["durian/extreme_failure"] == 1


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (1, 1)])
def test_what_is_not_defined_is_nan_and_never_zero(shape):
    found = of(torch.zeros(shape), visual_entropy=torch.zeros(shape[0]))
    assert_undefined_is_nan_and_all_else_finite(found)
    for name in ("extreme_ratio", "cosine_with_grpo", "moved_from_grpo", "prompt_std_min", "update_share_other"):
        assert math.isnan(found[f"durian/{name}"]), name
    assert math.isnan(found["durian/visual_entropy_mean"]) == (shape[0] * shape[1] == 0)


@pytest.mark.parametrize("scale", [5e-324, 1e300, 1.7e308])
def test_rewards_at_the_ends_of_the_range_give_finite_numbers(scale):
    found = of(BATCH.repeat(5, 1) * scale, visual_entropy=ENTROPY.repeat(5), confidence=torch.arange(30.0) % 3)
    assert_undefined_is_nan_and_all_else_finite(found)
    assert found["durian/reward_mean"] == pytest.approx(BATCH.mean().item() * scale, rel=1e-12, abs=5e-324)


@given(own.seeds, st.integers(0, 6), st.integers(0, 6), st.sampled_from((0.0, 1e-6, 1e300)))
def test_metrics_are_finite_at_both_ends_of_float64(seed, prompts, width, eps):
    rng = np.random.default_rng(seed)
    ends = (1.7976931348623157e308, -1.7976931348623157e308, 5e-324, -5e-324, 1e-160, 0.0, 1.0)
    rewards = torch.tensor(rng.choice(rng.choice(ends, 3), (prompts, width)))
    names, ends = ("visual_entropy", "confidence"), (*ends, math.inf, math.nan)
    scores = {name: torch.tensor(rng.choice(ends, prompts)) for name in names}
    found = of(rewards, **scores, category=torch.arange(prompts) % 2, weights=(1, 1, 1, 1), eps=eps)
    assert_undefined_is_nan_and_all_else_finite(found)
    for score, values in scores.items():
        kept = values[torch.isfinite(values)] if width else values[:0]
        if len(kept):
            assert kept.min() <= found[f"durian/{score}_mean"] <= kept.max()
    if prompts * width:
        assert rewards.min() <= found["durian/reward_mean"] <= rewards.max()


def test_the_mean_of_the_largest_numbers_is_that_number():
    largest = torch.finfo(torch.float64).max
    rewards = torch.full((3, 3), largest, dtype=torch.float64)
    found = of(rewards, confidence=rewards[0])
    assert found["durian/reward_mean"] == found["durian/confidence_mean"] == largest
    assert found["durian/confidence_std"] == 0


def test_a_distance_beyond_the_range_is_the_largest_number():
    parts = durian_components(BATCH)
    far = parts._replace(grpo=parts.grpo * 1e-300, advantages=parts.grpo * 1e300)
    assert durian_metrics(far, BATCH)["durian/moved_from_grpo"] == torch.finfo(torch.float64).max
    assert durian_metrics(far, BATCH)["durian/cosine_with_grpo"] == pytest.approx(1)


def test_categories_are_counted_and_their_component_is_compared_with_grpo():
    category = torch.tensor([9, 9, -2, -2, -2, 9])
    found = of(BATCH, category=category, weights=(1, 0, 0, 1))
    parts = durian_components(BATCH, category=category, weights=(1, 0, 0, 1))
    far, angle = reference.moved(parts.grpo.numpy(), parts.category.numpy())
    assert found["durian/category_moved_from_grpo"] == pytest.approx(far)
    assert found["durian/category_cosine_with_grpo"] == pytest.approx(angle)
    assert found["durian/category_abs_max"] == parts.category.abs().max()
    stds = [BATCH[category == kind].std().item() for kind in (9, 9, -2, -2)]  # of the four effective prompts
    assert found["durian/category_std_min"] == pytest.approx(min(stds))
    assert found["durian/category_std_max"] == pytest.approx(max(stds))
    assert found["durian/category_std_mean"] == pytest.approx(sum(stds) / 4)
    assert found["durian/categories"] == 2
    assert found["durian/category_prompts_min"] == 3
    without = durian_metrics(parts, BATCH)
    assert "durian/categories" not in without
    assert without["durian/category_std_max"] == found["durian/category_std_max"]
    assert not any("categor" in name for name in of(BATCH))


@given(own.seeds, st.integers(1, 5), st.integers(1, 5))
def test_a_rollout_in_several_rows_counts_once(seed, prompts, width):
    rng = np.random.default_rng(seed)
    count = prompts * width
    index = torch.arange(prompts).repeat_interleave(width)
    one = {
        "rewards": torch.tensor(rng.integers(0, 2, count), dtype=torch.float64),
        "prompt_index": index,
        "confidence": torch.tensor(rng.random(count)),
        "category": index % 2,
    }
    source = torch.tensor(rng.permutation(np.concatenate([np.arange(count), rng.integers(0, count, count)])))
    several = {name: value[source] for name, value in one.items()}
    valid = torch.ones(2 * count, dtype=torch.bool)
    valid[0] = (source == source[0]).sum() == 1
    expected = of(weights=(1, 1, 1, 1), **one)
    same(of(weights=(1, 1, 1, 1), rollout_index=source + 7, valid=valid, **several), expected)


# --- against the reference --------------------------------------------------------------------------


@st.composite
def batches(draw):
    """Rewards near 1, dense or flat, with masks and holes, two scores and a threshold."""
    kinds = ("binary", "weighted", "ties", "normal")
    batch = draw(
        st.one_of(
            own.dense_batches(kinds=kinds, scales=(1.0,), offsets=(0.0,), by_row=False),
            own.flat_batches(kinds=kinds, scales=(1.0,), offsets=(0.0,)),
        )
    )
    threshold = draw(st.sampled_from((0.5, 0.0, 0.95, -1)))
    return batch, draw(own.difficulty(batch)), threshold


def one_a_prompt(batch, value):
    """What the flat form repeats, once for each prompt."""
    if batch.prompt_index is None:
        return value.tolist()
    return [value.tolist()[members[0]] for members in reference.flat_prompts(batch.prompt_index.numpy())]


@given(batches())
def test_prompts_are_counted_and_sorted_into_kinds_as_the_reference_does(case):
    batch, _, threshold = case
    found = prompt_outcomes(batch.rewards, **batch.kwargs, success_threshold=threshold)
    expected = reference.outcomes(**batch.for_reference, threshold=threshold)
    assert list(zip(found.rollouts.tolist(), found.correct.tolist(), strict=True)) == [e[:2] for e in expected]
    for kind, members in group_kinds(found).items():
        assert members.tolist() == [e[2] == kind for e in expected]
    assert found.effective.tolist() == [e[2] != "none" for e in expected]


@given(batches())
def test_shares_of_the_update_and_of_the_errors_and_the_moves_are_the_reference_s(case):
    batch, scores, threshold = case
    parts = durian_components(batch.rewards, **batch.kwargs, **scores, num_confidence_buckets=3)
    found = durian_metrics(parts, batch.rewards, **batch.kwargs, success_threshold=threshold)
    index = batch.for_reference["prompt_index"]
    kinds = [kind for _, _, kind in reference.outcomes(**batch.for_reference, threshold=threshold)]
    for prefix, advantages in (("", parts.advantages), ("grpo_", parts.grpo)):
        shares = reference.update_shares(own.as_numpy(advantages), kinds, index)
        for kind, share in shares.items():
            assert found[f"durian/{prefix}update_share_{kind}"] == pytest.approx(share, abs=1e-12, nan_ok=True)
    for prefix, advantages in (
        ("", parts.advantages),
        ("perceptual_", parts.perceptual),
        ("reasoning_", parts.reasoning),
    ):
        if advantages is None:
            assert f"durian/{prefix}cosine_with_grpo" not in found
            continue
        far, angle = reference.moved(own.as_numpy(parts.grpo), own.as_numpy(advantages))
        assert found[f"durian/{prefix}moved_from_grpo"] == pytest.approx(far, rel=1e-9, abs=1e-12, nan_ok=True)
        assert found[f"durian/{prefix}cosine_with_grpo"] == pytest.approx(angle, abs=1e-9, nan_ok=True)
    for bucket_name, score in (("entropy_bucket", "visual_entropy"), ("confidence_bucket", "confidence")):
        prefix = f"durian/{bucket_name}_"
        if scores[score] is None:
            assert not any(name.startswith(prefix) for name in found)
            continue
        buckets = one_a_prompt(batch, getattr(parts, bucket_name))
        values = one_a_prompt(batch, getattr(parts, score))
        expected = reference.error_shares(**batch.for_reference, buckets=buckets, scores=values, threshold=threshold)
        for number in range(4):
            share = found.get(f"{prefix}{number}_error_share", 0.0)
            none = math.nan if math.isnan(share) else 0.0
            assert share == pytest.approx(expected.get(number, none), abs=1e-12, nan_ok=True)
        filled = [found[name] for name in found if name.startswith(prefix) and name.endswith("_prompts")]
        smallest = min((count for count in filled if count), default=math.nan)
        assert found[f"{prefix}prompts_min"] == pytest.approx(smallest, nan_ok=True)
    assert_undefined_is_nan_and_all_else_finite(found)


@given(batches())
def test_each_prompt_s_update_is_the_sum_of_its_advantages_sizes(case):
    batch, scores, _ = case
    advantages = durian_components(batch.rewards, **batch.kwargs, **scores).advantages
    found = update_by_prompt(advantages, prompt_index=batch.prompt_index)
    expected = reference.update_of_prompts(own.as_numpy(advantages), batch.for_reference["prompt_index"])
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1.0, 1e30, 1e200])
def test_angles_do_not_know_the_size_of_advantages(scale):
    a, b = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64), torch.tensor([4.0, 3.0, 0.0], dtype=torch.float64)
    assert cosine(a * scale, b) == pytest.approx(24 / 25, abs=1e-15)
    assert math.isnan(cosine(a, torch.zeros(3)))
    parts = durian_components(BATCH * scale, eps=1.0)  # advantages as small as the rewards
    assert durian_metrics(parts, BATCH * scale)["durian/cosine_with_grpo"] == pytest.approx(1, abs=1e-12)
    shifted = parts._replace(advantages=2 * parts.grpo)
    assert durian_metrics(shifted, BATCH * scale)["durian/moved_from_grpo"] == pytest.approx(1, abs=1e-12)


def test_the_update_of_the_hand_worked_batch():
    found = of(BATCH)
    of_grpo = [2 * 7 / 8 / BATCH[0].std(), 2 * 7 / 8 / BATCH[1].std(), 4 / BATCH[3].std()]
    total = of_grpo[0] + 2 * of_grpo[1] + of_grpo[2]
    assert found["durian/update_share_extreme_success"] == pytest.approx((of_grpo[0] / total).item(), rel=1e-5)
    assert found["durian/update_share_extreme_failure"] == pytest.approx((2 * of_grpo[1] / total).item(), rel=1e-5)
    assert found["durian/update_share_other"] == pytest.approx((of_grpo[2] / total).item(), rel=1e-5)


# --- few prompts ------------------------------------------------------------------------------------


def test_few_prompts_a_bucket_are_warned_of_by_component():
    parts = durian_components(BATCH, visual_entropy=ENTROPY, confidence=torch.arange(6.0))
    assert "5 prompts with visual entropy" not in few_prompts_warning(parts, fewest=1)  # 5 for 3 buckets
    text = few_prompts_warning(parts)
    assert "5 prompts with visual entropy for 3 buckets and 6 prompts with confidence for 12 buckets" in text
    assert "advantages may exceed GRPO's" in text
    assert few_prompts_warning(parts, entropy_quantiles=2, num_confidence_buckets=3) is None
    assert few_prompts_warning(parts, window=18) is None
    assert "beside a window of 17" in few_prompts_warning(parts, window=17)
    assert few_prompts_warning(durian_components(BATCH)) is None
    unknown = durian_components(BATCH, confidence=torch.full((6,), math.nan))
    assert few_prompts_warning(unknown) is None  # no prompt shares a std


@pytest.mark.parametrize(("prompts", "buckets", "window", "fewest", "few"), [
    (23, 12, 0, 2, True), (24, 12, 0, 2, False), (0, 12, 0, 2, False), (1, 12, 23, 2, False), (1, 12, 22, 2, True),
    (2.5, 1, 0, 3, True), (3, 1, 0, 3, False),
])  # fmt: skip
def test_one_rule_says_what_too_few_prompts_are(prompts, buckets, window, fewest, few):
    text = too_few_prompts({"scores": (prompts, buckets)}, window=window, fewest=fewest)
    assert (text is not None) == few
    if few:
        assert text.startswith(f"{prompts} prompts with scores for {buckets} buckets")


def test_few_prompts_of_the_flat_form_are_counted_once_each():
    index = torch.arange(6).repeat_interleave(8)
    dense = durian_components(BATCH, visual_entropy=ENTROPY)
    flat = durian_components(BATCH.flatten(), visual_entropy=ENTROPY.repeat_interleave(8), prompt_index=index)
    assert few_prompts_warning(flat, prompt_index=index) == few_prompts_warning(dense)


def test_a_component_that_is_left_out_hides_no_other():
    text = few_prompts_warning(durian_components(BATCH, confidence=torch.arange(6.0)))
    assert text == (
        "6 prompts with confidence for 12 buckets: with fewer than 2 prompts per bucket, the std they share is that of "
        "one or a few prompts, or smaller than any prompt's, so advantages may exceed GRPO's. Use more prompts per "
        "batch, fewer buckets, or a window of recent prompts."
    )


def test_what_is_not_valid_and_what_has_no_score_is_counted_nowhere():
    nan = math.nan
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]])
    valid = torch.tensor([[True, True, True, False], [True, True, False, False], [False] * 4])
    found = of(rewards, valid=valid, confidence=torch.tensor([1.0, nan, 2.0]), num_confidence_buckets=2)
    assert (found["durian/prompts"], found["durian/rollouts"]) == (2, 5)
    assert found["durian/no_signal_share"] == 0
    assert found["durian/reward_mean"] == pytest.approx(2 / 5)
    assert found["durian/confidence_missing_share"] == 1 / 2
    assert found["durian/confidence_bucket_1_error_share"] == 1  # the error of the prompt without a score is none
    unknown = of(rewards, valid=valid, confidence=torch.full((3,), nan))
    assert "durian/confidence_bucket_0_prompts" not in unknown
    for name in ("bucket_prompts_min", "mean", "std"):
        assert math.isnan(unknown[f"durian/confidence_{name}"]), name


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.uint16, torch.bool])
def test_rewards_of_every_dtype_are_compared_with_the_threshold(dtype):
    assert prompt_outcomes(torch.tensor([[1.0, 0.0, 1.0]]).to(dtype)).correct.tolist() == [2]


# --- sums -------------------------------------------------------------------------------------------


def test_means_count_what_they_are_over_and_nothing_has_none():
    nan, tiny = math.nan, 1e-200
    members = torch.tensor([True, False, True])
    assert diagnostics._mean(torch.tensor([tiny, nan, 3 * tiny], dtype=torch.float64), members).item() == 2 * tiny
    assert diagnostics._smallest(torch.tensor([3.0, 1.0, 2.0]), members).item() == 2
    nobody = torch.zeros(3, dtype=torch.bool)
    for of in (diagnostics._mean, diagnostics._smallest):
        assert of(torch.tensor([3.0, 1.0, 2.0]), nobody).isnan()


def test_a_cosine_never_leaves_its_range():
    generator = torch.Generator().manual_seed(0)
    for size in range(2, 300):
        values = torch.rand(size, generator=generator, dtype=torch.float64)
        assert 1 - 1e-15 < cosine(values, 3 * values) <= 1
        assert -1 <= cosine(values, -values) < -1 + 1e-15
