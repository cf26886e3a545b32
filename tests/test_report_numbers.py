"""The numbers of a report: what is added up is what the library computes."""

import collections
import math
import statistics

import hypothesis.strategies as st
import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from steps import a_step, components, of_step, summed

from durian_adv import baselines, durian_components, quantile_buckets
from durian_adv.diagnostics import durian_metrics
from durian_adv.report.numbers import METHODS, RATIO_BINS, TENTHS, Summary


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 20), st.integers(2, 6))
def test_what_is_added_up_is_what_the_reference_says_of_each_step(seed, prompts, width):
    steps = [a_step(seed + k, name=k, prompts=prompts, width=width) for k in range(3)]
    summary = summed(*steps)
    for k, step in enumerate(steps):
        flat = {"rewards": step.rewards.numpy(), "prompt_index": step.prompt_index.numpy()}
        scores = {"visual_entropy": step.visual_entropy.numpy(), "confidence": step.confidence.numpy()}
        durian = reference.durian(**flat, **scores, num_confidence_buckets=3)["advantages"]
        of = dict(
            zip(
                METHODS,
                (reference.grpo(**flat), reference.dr_grpo(**flat), reference.batch_std(**flat), durian),
                strict=True,
            )
        )
        kinds = [kind for *_, kind in reference.outcomes(**flat)]
        for method, advantages in of.items():
            near = {"abs": 1e-9}
            assert summary.columns[f"largest, {method}"][k] == pytest.approx(np.abs(advantages).max(), **near)
            for start in ("GRPO", "Durian"):
                cosine = reference.moved(of[start], advantages)[1]
                assert summary.columns[f"{start} to {method}"][k] == pytest.approx(cosine, **near, nan_ok=True)
            for kind, share in reference.update_shares(advantages, kinds, flat["prompt_index"]).items():
                assert summary.columns[f"{kind}, {method}"][k] == pytest.approx(share, **near, nan_ok=True)
    outcomes = [reference.outcomes(step.rewards.numpy(), prompt_index=step.prompt_index.numpy()) for step in steps]
    every = [outcome for step in outcomes for outcome in step]
    for kind in ("extreme_failure", "other", "extreme_success"):
        assert summary.kinds[kind] == sum(outcome[2] == kind for outcome in every)
    assert summary.kinds["no_signal"] == sum(outcome[2] == "none" for outcome in every)
    assert summary.compared == sum(outcome[2] != "none" for outcome in every) == int(summary.ratios.sum())
    tenths = summary.tenths("confidence")
    assert sum(tenth.prompts for tenth in tenths) == 3 * prompts
    wrong = sum(n - hits for n, hits, _ in every)
    assert sum(tenth.errors for tenth in tenths) == pytest.approx(1 if wrong else math.nan, nan_ok=True)


def test_pulls_are_relative_to_the_mean_of_their_step():
    summary = summed(a_step(0, 0), a_step(1, 1))
    counts = [sums[0] for sums in summary.pull.values()]
    for row in range(1, 1 + 2 * len(METHODS)):
        assert sum(sums[row] for sums in summary.pull.values()) == pytest.approx(sum(counts))
    for sums in summary.pull.values():  # proportional, so alike
        assert sums[1 + METHODS.index("Dr. GRPO")] == pytest.approx(sums[1 + METHODS.index("batch std")], rel=1e-4)


def test_the_prompts_that_change_most_are_those_of_all_steps():
    steps = [a_step(k, name=k) for k in range(3)]
    summary = summed(*steps)
    ratios = []
    for step in steps:
        parts = components(step.rewards, step.visual_entropy, step.confidence, step.prompt_index)
        grpo, durian = (
            torch.zeros(30, dtype=torch.float64).index_add(0, step.prompt_index, a.abs())
            for a in (parts.grpo, parts.advantages)
        )
        ratios += ((durian / durian.sum()) / (grpo / grpo.sum()))[grpo > 0].tolist()
    assert [change.ratio for change in summary.raised] == pytest.approx(sorted(ratios)[:-6:-1])
    assert [change.ratio for change in summary.lowered] == pytest.approx(sorted(ratios)[:5])
    assert summary.notable == sum(ratio > 1.25 or ratio < 1 / 1.25 for ratio in ratios)
    for change in summary.raised:
        assert change.durian / change.grpo == pytest.approx(change.ratio)
        members = steps[change.step].rewards.view(30, 8)[int(change.prompt[1:])]
        assert (members > 0.5).sum() == change.correct


@pytest.mark.parametrize("prompts", [40, 25, 10, 3])
def test_tenths_are_means_and_their_standard_errors(prompts):
    step = a_step(0, prompts=prompts)
    right = step.rewards.view(prompts, 8) > 0.5
    place = quantile_buckets(step.confidence.view(prompts, 8)[:, 0], TENTHS)
    tenths = summed(step).tenths("confidence")
    assert len(tenths) == TENTHS
    for k, tenth in enumerate(tenths):
        members = right[place == k].double().mean(1)
        accuracy = members.mean().item() if len(members) else 0.0
        error = members.std().item() / len(members) ** 0.5 if len(members) > 1 else 0.0
        errors = (~right[place == k]).sum().item() / (~right).sum().item()
        assert tenth == pytest.approx((len(members), accuracy, error, errors))


def test_one_wrong_rollout_is_all_that_is_wrong():
    step = a_step(0)
    rewards = torch.ones(240).double()
    rewards[0] = 0
    tenths = summed(step._replace(rewards=rewards)).tenths("confidence")
    assert sorted(tenth.errors for tenth in tenths) == [0] * 9 + [1]


def test_a_prompt_of_one_rollout_has_a_score_and_no_signal():
    summary = summed(a_step(0, width=1))
    assert summary.columns["scored, confidence"][0] == summary.kinds["no_signal"] == 30


def test_shuffled_scores_show_what_chance_does():
    by_difficulty = summed(*(a_step(k, k, prompts=200, slope=4.0) for k in range(3)))
    by_nothing = summed(*(a_step(k, k, prompts=200, slope=0.0) for k in range(3)))
    real, chance = (by_difficulty.mean(f"{name}, confidence") for name in ("spread", "spread by chance"))
    assert real > 3 * chance > 0
    real, chance = (by_nothing.mean(f"{name}, confidence") for name in ("spread", "spread by chance"))
    assert chance / 2 < real < 2 * chance


def test_buckets_are_measured_by_the_std_of_all_rewards():
    step = a_step(0)
    summary = summed(step, buckets=1)
    assert summary.columns["std of all rewards"][0] == pytest.approx(step.rewards.std().item())
    (bucket,) = summary.buckets("confidence").values()
    assert bucket.std == bucket.low == bucket.high == pytest.approx(1)
    assert (bucket.prompts, bucket.fewest) == (30, 30)


def test_prompts_that_a_method_pulls_at_nothing_are_not_compared():
    step = a_step(0)
    size = torch.tensor([1e-300] * 80 + [1e300] * 160, dtype=torch.float64)
    far = torch.where(step.rewards > 0.5, size, 0.0)
    effective = [len(set(row)) > 1 for row in far.view(30, 8).tolist()]
    assert any(effective[:10])
    summary = summed(step._replace(rewards=far))
    assert summary.compared == sum(effective[10:])
    assert all(math.isfinite(value) for sums in summary.pull.values() for value in sums)
    assert min(change.ratio for change in summary.lowered) > 0


def test_steps_without_signal_have_no_part_in_means_and_angles():
    alone = summed(a_step(0))
    nothing = a_step(1, 1, prompts=10)._replace(rewards=torch.ones(80, dtype=torch.float64))
    both = summed(a_step(0), nothing, nothing)
    for column in (*(f"other, {method}" for method in METHODS), "extreme_ratio", "spread, confidence"):
        assert both.mean(column) == alone.mean(column) > 0
    for method in METHODS[1:]:
        assert both.angle("GRPO", method) == alone.angle("GRPO", method) > 0
    assert both.mean("prompts", of_effective=False) == pytest.approx((30 + 10 + 10) / 3)
    without = summed(nothing)
    undefined = (without.mean("extreme_ratio"), without.angle("GRPO", "Durian"), without.mean("other, GRPO"))
    assert all(map(math.isnan, undefined))


def of_methods(step):
    """Each method's advantages, a row per prompt, straight from the library."""
    parts = components(step.rewards, step.visual_entropy, step.confidence, step.prompt_index)
    rewards, width = step.rewards, len(step.rewards) // len(step.prompts)
    found = (
        parts.grpo,
        baselines.dr_grpo_advantage(rewards, prompt_index=step.prompt_index),
        baselines.batch_std_advantage(rewards, prompt_index=step.prompt_index),
        parts.advantages,
    )
    return dict(zip(METHODS, (values.view(-1, width) for values in found), strict=True)), parts


def test_pulls_and_largest_advantages_are_added_up_by_correct_rollouts_of_all():
    steps = [a_step(0, 0), a_step(1, 1, width=5)]
    expected = collections.defaultdict(lambda: np.zeros(1 + 2 * len(METHODS)))
    for step in steps:
        advantages, _ = of_methods(step)
        sizes = [values.abs() for values in advantages.values()]
        numbers = np.array([*(size.sum(1).tolist() for size in sizes), *(size.amax(1).tolist() for size in sizes)])
        numbers /= numbers[:, effective := numbers[0] > 0].mean(1, keepdims=True)
        right = step.rewards.view(30, -1) > 0.5
        for correct, column, there in zip(right.sum(1).tolist(), numbers.T, effective, strict=True):
            if there:
                expected[correct, right.shape[1]] += [1, *column]
    found = summed(*steps).pull
    assert found.keys() == expected.keys()
    for level, sums in found.items():
        assert sums == pytest.approx(expected[level])


def test_ratios_are_counted_in_eighths_of_a_power_of_two():
    step = a_step(0, prompts=200, slope=4.0)
    advantages, _ = of_methods(step)
    grpo, durian = (advantages[name].abs().sum(1).numpy() for name in ("GRPO", "Durian"))
    there = grpo > 0
    power = np.log2(durian[there] / durian.sum() / (grpo[there] / grpo.sum()))
    found = summed(step).ratios
    assert found.tolist() == np.histogram(power, RATIO_BINS)[0].tolist()
    assert found.dtype == torch.int64


@pytest.mark.parametrize(("factor", "place"), [(1e6, -1), (1e-6, 0)])
def test_a_ratio_beyond_the_bins_is_counted_in_the_last(factor, place):
    def times_grpo(step, **_):
        parts = durian_components(step.rewards, prompt_index=step.prompt_index)
        size = torch.where(step.prompt_index == 0, factor, 1.0)
        return parts._replace(advantages=parts.grpo * size)

    summary = Summary(times_grpo)
    summary.add(a_step(1, prompts=20, width=40))
    assert summary.compared == 20
    assert summary.ratios[place] == 1


def test_prompts_that_change_alike_are_listed_in_the_order_of_the_log():
    alike = a_step(0, prompts=3)._replace(rewards=torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0]).double().repeat(3))
    summary = summed(*(alike._replace(name=name) for name in ("a", "b", "c")))
    assert summary.notable == 0
    for kept in (summary.raised, summary.lowered):
        assert [change.step for change in kept] == ["a", "a", "a", "b", "b"]
        assert [change.prompt for change in kept] == ["p0", "p1", "p2", "p0", "p1"]
        for change in kept:
            assert (change.correct, change.rollouts) == (1, 8)
            assert change.ratio == pytest.approx(1)
            assert (change.grpo, change.durian) == pytest.approx((1 / 3, 1 / 3))


def test_a_change_of_a_quarter_is_notable_when_it_is_exceeded():
    def with_ratio(ratio):
        def made(step, **_):
            parts = durian_components(step.rewards, prompt_index=step.prompt_index)
            size = torch.tensor([ratio, 2 - ratio]).double()[
                step.prompt_index
            ]  # shares of two prompts that GRPO has alike
            return parts._replace(advantages=parts.grpo * size)

        summary = Summary(made)
        rewards = torch.tensor([1.0, 0, 0, 0] * 2).double()
        summary.add(a_step(0, prompts=2, width=4)._replace(rewards=rewards))
        return summary

    assert [with_ratio(ratio).notable for ratio in (1.0, 1.19, 1.21, 1.26)] == [0, 0, 1, 2]
    summary = with_ratio(1.5)
    assert [change.ratio for change in summary.raised] == pytest.approx([1.5, 0.5])
    assert [change.ratio for change in summary.lowered] == pytest.approx([0.5, 1.5])
    assert [change.grpo for change in summary.raised] == pytest.approx([0.5, 0.5])
    assert [change.durian for change in summary.raised] == pytest.approx([0.75, 0.25])


def test_buckets_have_the_mean_and_the_outer_tenths_of_their_stds_over_the_steps():
    steps = [a_step(k, k, prompts=9 + k) for k in range(11)]
    summary = summed(*steps)
    whole = [step.rewards.std().item() for step in steps]
    for score, bucket, shared in (
        ("visual_entropy", "entropy_bucket", "perceptual_std"),
        ("confidence", "confidence_bucket", "reasoning_std"),
    ):
        members = collections.defaultdict(list)
        for step, std in zip(steps, whole, strict=True):
            parts = of_methods(step)[1]
            of = getattr(parts, bucket)
            for number in of.unique().tolist():
                mine = of == number
                relative = getattr(parts, shared)[mine][0].item() / std
                members[number].append((relative, len(step.prompt_index[mine].unique())))
        found = summary.buckets(score)
        assert list(found) == sorted(members)
        for number, pairs in members.items():
            stds, prompts = zip(*pairs, strict=True)
            ordered = sorted(stds)
            assert found[number].std == pytest.approx(np.mean(stds))
            assert (found[number].low, found[number].high) == pytest.approx((ordered[1], ordered[9]))
            assert (found[number].prompts, found[number].fewest) == (pytest.approx(np.mean(prompts)), min(prompts))
        assert summary.columns[f"fewest, {score}"][3] == min(pairs[3][1] for pairs in members.values())


def test_a_step_s_numbers_are_those_of_its_metrics():
    step = a_step(0)
    rewards = step.rewards.clone()
    rewards[:8] = math.nan  # a prompt without a reward
    step = step._replace(rewards=rewards)
    summary = summed(step, a_step(1, 1))
    parts = components(rewards, step.visual_entropy, step.confidence, step.prompt_index)
    metrics = durian_metrics(parts, rewards, prompt_index=step.prompt_index)
    for name in ("prompts", "rollouts", "reward_mean", "no_signal_share", "effective", "extreme_ratio"):
        assert summary.columns[name][0] == metrics[f"durian/{name}"]
    for name in ("extreme_failure", "extreme_success"):
        assert summary.columns[name][0] == pytest.approx(metrics[f"durian/{name}"] / metrics["durian/effective"])
    assert summary.columns["prompts"][0] == summary.columns["scored, confidence"][0] == 29
    assert summary.columns["accuracy"][0] == pytest.approx((rewards > 0.5).sum().item() / (29 * 8))
    assert (summary.smallest, summary.largest) == pytest.approx((0.1, 1.0))
    assert summary.names == [0, 1]
    assert summed(step).kinds["no_signal"] == round(metrics["durian/no_signal_share"] * 29)


def test_the_options_reach_the_numbers():
    step = a_step(0)
    whole = torch.tensor(reference.batch_std(step.rewards.numpy(), prompt_index=step.prompt_index.numpy()))
    default = summed(step)
    assert default.columns["largest, batch std"][0] == pytest.approx(whole.abs().max().item(), rel=1e-12)
    assert default.columns["std of all rewards"][0] == pytest.approx(step.rewards.std().item(), rel=1e-12)
    assert default.success_threshold == 0.5
    other = Summary(of_step, success_threshold=2.0, eps=0.5, correction=0)
    other.add(step)
    std = {"eps": 0.5, "correction": 0}
    largest = baselines.batch_std_advantage(step.rewards, prompt_index=step.prompt_index, **std).abs().amax().item()
    assert other.columns["largest, batch std"][0] == largest
    assert other.columns["std of all rewards"][0] == pytest.approx(step.rewards.std(correction=0).item(), rel=1e-12)
    assert (other.columns["accuracy"][0], default.parted, other.parted) == (0.0, True, False)
    assert default.columns["extreme_failure"][0] > other.columns["extreme_failure"][0] == 0


def test_one_rollout_may_be_all_that_is_correct_and_one_prompt_all_that_is_effective():
    one = a_step(0, prompts=1, width=1)._replace(rewards=torch.ones(1).double())
    assert summed(one).columns["accuracy"][0] == 1
    failure = a_step(0, prompts=1, width=4)._replace(rewards=torch.tensor([1.0, 0, 0, 0]).double())
    summary = summed(failure)
    assert (summary.columns["extreme_failure"][0], summary.columns["extreme_success"][0]) == (1, 0)


def test_an_angle_is_the_median_over_the_steps_with_signal_and_a_mean_leaves_out_steps_without_the_number():
    nothing = a_step(9, 9)._replace(rewards=torch.ones(240).double())
    for count in (3, 4):
        summary = summed(*(a_step(k, k, prompts=10) for k in range(count)), nothing)
        cosine = statistics.median(summary.columns["Durian to batch std"][:count])
        assert summary.angle("Durian", "batch std") == pytest.approx(math.degrees(math.acos(cosine)))
    assert summary.angle("GRPO", "GRPO") == pytest.approx(0, abs=1e-5)
    some = summed(a_step(0, 0, entropy=False), a_step(1, 1), a_step(2, 2))
    spread = some.columns["spread, visual_entropy"]
    assert math.isnan(spread[0])
    assert some.mean("spread, visual_entropy") == pytest.approx((spread[1] + spread[2]) / 2)
    assert math.isnan(some.mean("spread, nothing"))


def test_chance_is_the_same_in_every_run_and_leaves_that_of_others_alone():
    spreads = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        spreads.add(summed(a_step(0, prompts=60)).columns["spread by chance, confidence"][0])
        assert torch.equal(torch.get_rng_state(), before)
    assert len(spreads) == 1


def test_stds_that_are_rounded_to_nothing_do_not_differ():
    step = a_step(0)
    smallest = summed(step._replace(rewards=(step.rewards > 0.5) * 5e-324))
    nothing = summed(step._replace(rewards=torch.ones(240).double()))
    for summary in (smallest, nothing):
        for name in ("spread", "spread by chance"):
            assert summary.columns[f"{name}, confidence"][0] == 0


def test_shuffling_keeps_scores_among_the_prompts_that_have_one():
    step = a_step(0, prompts=60, entropy=False)
    scored = step.prompt_index < 30
    given = []

    def watched(step, **options):
        if not options:  # the estimators that are compared take the scores as they are
            given.append(step.confidence)
        return of_step(step, **options)

    summary = Summary(watched)
    summary.add(step._replace(confidence=torch.where(scored, step.confidence, math.nan)))
    original, *shuffled = given
    assert len(shuffled) == 4
    for confidence in shuffled:
        assert torch.equal(confidence.isnan(), ~scored)
        by_prompt, before = (values.view(60, 8)[:30] for values in (confidence, original))
        assert (by_prompt == by_prompt[:, :1]).all()  # still one value per prompt
        assert not torch.equal(by_prompt, before)
        assert by_prompt[:, 0].sort().values.tolist() == before[:, 0].sort().values.tolist()
