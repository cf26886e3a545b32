"""What a report says of its numbers."""

import math

import pytest
import reference
import torch
from steps import a_step, components, summed

from durian_adv.report import verdict
from durian_adv.rollout_log import Step


def said(*steps, buckets=3):
    return verdict.verdict(summed(*steps, buckets=buckets))


def titles(found):
    return " | ".join(f"{finding.tone}: {finding.title}" for finding in found.findings)


def test_the_verdict_grows_with_the_angle():
    index = torch.arange(80).repeat_interleave(4)
    for small, word in ((1.0, "hardly"), (0.6, "a little"), (0.01, "clearly")):
        # half of the prompts have rewards that are smaller: for GRPO alike, for a shared std not
        rewards = torch.cat([torch.tensor([[1.0, 0, 0, 0]] * 40), torch.tensor([[small, 0, 0, 0]] * 40)]).double()
        step = Step(0, list(range(80)), index, rewards.flatten(), None, torch.zeros(320).double())
        parts = components(step.rewards, None, step.confidence, index)
        cosine = reference.moved(parts.grpo, parts.advantages)[1]
        found = said(step, buckets=1)
        assert word in found.headline
        assert f"{math.degrees(math.acos(min(1.0, cosine))):.0f}° apart" in found.because
        changed = "Much of this change needs no difficulty scores" in titles(found)
        assert changed == (small < 1)


def test_what_is_missing_is_said():
    assert "without difficulty scores" in said(a_step(0, entropy=False, confidence=False)).headline
    found = titles(said(a_step(0, entropy=False, prompts=60)))
    assert "careful: No visual entropy in this log" in found
    assert "No confidence" not in found
    nothing = a_step(0)._replace(rewards=torch.ones(240, dtype=torch.float64))
    assert "no prompt of this log has any signal" in said(nothing).headline


def test_too_few_and_few_and_enough_prompts():
    assert "Too few prompts a step to tell: 3 on average" in said(a_step(3, prompts=3), buckets=12).headline
    one_score = said(a_step(0, prompts=30), buckets=20)  # enough prompts for the buckets of the other
    assert "Too few" not in one_score.headline
    assert "far too few" in titles(one_score)
    assert "plain: Durian is 7° from batch std, and 7° from GRPO" in titles(said(a_step(0, prompts=60)))
    assert "12 buckets of confidence: about 5 prompts in each, few" in titles(said(a_step(0, prompts=60), buckets=12))
    assert "good: 3 buckets of confidence: about 20 prompts in each" in titles(said(a_step(0, prompts=60)))


def test_difficulty_that_tells_nothing_and_that_points_the_other_way():
    steps = [a_step(k, k, prompts=200) for k in range(2)]
    found = titles(said(*steps))
    assert "good: Confidence tells hard prompts from easy ones" in found
    assert "careful: Visual entropy does not tell hard prompts from easy ones" in found
    turned = [step._replace(confidence=-step.confidence) for step in steps]
    assert "careful: Confidence points the other way" in titles(said(*turned))
    hard = [step._replace(visual_entropy=-step.confidence) for step in steps]
    assert "good: Visual entropy tells hard prompts from easy ones" in titles(said(*hard))
    one = [step._replace(confidence=torch.zeros_like(step.confidence)) for step in steps]
    assert "plain: One value of confidence for all" in titles(said(*one))
    assert "Buckets of confidence" not in titles(said(*one))  # one bucket does not differ from itself


def test_an_advantage_larger_than_grpo_s_is_said():
    # a bucket of sure prompts where one rollout of many is wrong
    rewards = torch.ones(24, 8, dtype=torch.float64)
    rewards[0, 0] = 0
    rewards[12:, ::2] = 0
    index = torch.arange(24).repeat_interleave(8)
    sure = torch.arange(24.0, 0.0, -1.0).double()[index]
    step = Step(None, list(range(24)), index, rewards.flatten(), None, sure)
    assert "exceeds GRPO's" in titles(said(step, buckets=2))
    assert "good: Durian's largest advantage" in titles(said(a_step(0, prompts=90), buckets=1))


def test_prompts_without_a_score_are_not_a_bucket():
    step = a_step(0, prompts=60)
    unknown = step._replace(confidence=torch.full_like(step.confidence, math.nan))
    assert "careful: No confidence in this log" in titles(said(unknown))


@pytest.mark.parametrize(
    ("scale", "title", "edge"),
    [
        (lambda r: 0.2 + 0.3 * (r > 0.5), "No reward exceeds 0.5: set --success-threshold", "The largest is 0.5"),
        (lambda r: -10 + 5.0 * (r > 0.5), "No reward exceeds 0.5: set --success-threshold", "The largest is -5"),
        (lambda r: 1.0 + (r > 0.5), "Every reward exceeds 0.5: set --success-threshold", "The smallest is 1,"),
    ],
)
def test_a_threshold_that_parts_no_rewards_is_said_and_nothing_by_correctness(scale, title, edge):
    step = a_step(0)
    found = said(step._replace(rewards=scale(step.rewards).double()))
    assert [finding for finding in found.findings if finding.title == title and edge in finding.text]
    assert not [words for words in ("Extreme", "tell", "points") if words in titles(found)]
    assert title not in titles(said(step))


def test_a_log_without_rewards_is_told_so():
    step = a_step(0)
    found = said(step._replace(rewards=torch.full_like(step.rewards, math.nan)))
    assert found.headline == "Nothing to compare: no rollout of this log has a reward."


def test_prompts_without_a_score_are_not_counted_as_having_one():
    step = a_step(0, prompts=40, confidence=False)
    entropy = torch.where(step.prompt_index == 0, step.visual_entropy, math.nan)
    found = said(step._replace(visual_entropy=entropy))
    assert found.headline == "Too few prompts a step to tell: 1 of 40 have a score, on average."
