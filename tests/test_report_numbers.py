"""The numbers of a report: what is added up is what the library computes."""

import hypothesis.strategies as st
import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from steps import a_step, components, summed

from durian_adv.report.summary import METHODS, TENTHS


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
                assert summary.columns[f"{start} to {method}"][k] == pytest.approx(cosine, **near)
            for kind, share in reference.update_shares(advantages, kinds, flat["prompt_index"]).items():
                assert summary.columns[f"{kind}, {method}"][k] == pytest.approx(share, **near)
    outcomes = [reference.outcomes(step.rewards.numpy(), prompt_index=step.prompt_index.numpy()) for step in steps]
    every = [outcome for step in outcomes for outcome in step]
    for kind in ("extreme_failure", "other", "extreme_success"):
        assert summary.kinds[kind] == sum(outcome[2] == kind for outcome in every)
    assert summary.kinds["no_signal"] == sum(outcome[2] == "none" for outcome in every)
    assert summary.compared == sum(outcome[2] != "none" for outcome in every) == int(summary.ratios.sum())
    tenths = summary.tenths("confidence")
    assert sum(tenth.prompts for tenth in tenths) == 3 * prompts
    wrong = sum(n - hits for n, hits, _ in every)
    assert sum(tenth.errors for tenth in tenths) == pytest.approx(1 if wrong else 0)


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


def test_tenths_are_means_and_their_standard_errors():
    step = a_step(0, prompts=40)
    tenths = summed(step).tenths("confidence")
    accuracy = (step.rewards.view(40, 8) > 0.5).double().mean(1)[step.confidence.view(40, 8)[:, 0].argsort()]
    for k, members in enumerate(accuracy.view(TENTHS, 4)):
        assert tenths[k].prompts == 4
        assert tenths[k].accuracy == pytest.approx(members.mean().item())
        assert tenths[k].error == pytest.approx(members.std().item() / 2)


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
    assert summed(nothing).mean("extreme_ratio") == summed(nothing).angle("GRPO", "Durian") == 0
