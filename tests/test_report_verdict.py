"""What a report says of its numbers."""

import math
import re

import pytest
import reference
import torch
from steps import a_step, components, summed

from durian_adv.data.logs.steps import Step
from durian_adv.report import verdict
from durian_adv.report.numbers import Tenth


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
    assert "Without difficulty scores" in said(a_step(0, entropy=False, confidence=False)).headline
    found = titles(said(a_step(0, entropy=False, prompts=60)))
    assert "careful: No visual entropy in this log" in found
    assert "No confidence" not in found
    nothing = a_step(0)._replace(rewards=torch.ones(240, dtype=torch.float64))
    assert "no prompt of this log has any signal" in said(nothing).headline


def test_too_few_and_few_and_enough_prompts():
    assert "Too few prompts per step to tell: 3 on average" in said(a_step(3, prompts=3), buckets=12).headline
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


def with_a_sure_bucket():
    """A bucket of sure prompts where one rollout of many is wrong."""
    rewards = torch.ones(24, 8, dtype=torch.float64)
    rewards[0, 0] = 0
    rewards[12:, ::2] = 0
    index = torch.arange(24).repeat_interleave(8)
    sure = torch.arange(24.0, 0.0, -1.0).double()[index]
    return Step(None, list(range(24)), index, rewards.flatten(), None, sure)


def test_an_advantage_larger_than_grpo_s_is_said():
    assert "exceeds GRPO's" in titles(said(with_a_sure_bucket(), buckets=2))
    assert "good: Durian's largest advantage" in titles(said(a_step(0, prompts=90), buckets=1))


def test_prompts_without_a_score_are_not_a_bucket():
    step = a_step(0, prompts=60)
    unknown = step._replace(confidence=torch.full_like(step.confidence, math.nan))
    assert "careful: No confidence in this log" in titles(said(unknown))


@pytest.mark.parametrize(
    ("scale", "title", "edge"),
    [
        (
            lambda r: 0.2 + 0.3 * (r > 0.5),
            "No reward exceeds 0.5: set --success-threshold",
            "The largest is 0.5, so no rollout counts",
        ),
        (
            lambda r: -10 + 5.0 * (r > 0.5),
            "No reward exceeds 0.5: set --success-threshold",
            "The largest is -5, so no rollout counts",
        ),
        (
            lambda r: 1.0 + (r > 0.5),
            "Every reward exceeds 0.5: set --success-threshold",
            "The smallest is 1, so every rollout counts",
        ),
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
    assert found.headline == "Too few prompts per step to tell: 1 of 40 have a score, on average."
    # a step without signal counts as well
    nothing = a_step(1, 1, prompts=10)._replace(rewards=torch.ones(80).double())
    found = said(step._replace(visual_entropy=entropy), nothing._replace(visual_entropy=None, confidence=None))
    assert found.headline == "Too few prompts per step to tell: 1 of 25 have a score, on average."
    two = torch.where(nothing.prompt_index < 2, nothing.visual_entropy, math.nan)
    found = said(step._replace(visual_entropy=entropy), nothing._replace(visual_entropy=two, confidence=None))
    assert found.headline == "Too few prompts per step to tell: 1.5 of 25 have a score, on average."


# --- where the lines are ----------------------------------------------------------------------------


def by_title(found):
    return {finding.title: finding for finding in found.findings}


@pytest.mark.parametrize(
    ("grpo", "batch", "words", "much"),
    [
        (5.9, 1.0, "hardly anything", False),
        (6.0, 2.9, "a little", True),
        (6.0, 3.0, "a little", False),
        (14.9, 20.0, "a little", False),
        (15.0, 7.0, "clearly", True),
    ],
)
def test_angles_part_hardly_from_a_little_from_clearly_and_half_an_angle_is_much(monkeypatch, grpo, batch, words, much):
    summary = summed(a_step(0, prompts=60))
    angles = {("Durian", "GRPO"): grpo, ("Durian", "batch std"): batch}
    monkeypatch.setattr(summary, "angle", lambda *methods: angles[methods])
    found = verdict.verdict(summary)
    assert words in found.headline
    assert f"{grpo:.0f}° apart (cosine {math.cos(math.radians(grpo)):.3f};" in found.because
    changed = verdict.percent(summary.notable / summary.compared)
    assert (
        f"{changed} of the prompts with signal at least 25% more, or correspondingly less, than GRPO" in found.because
    )
    first = found.findings[0]
    assert first.tone == ("careful" if much else "plain")
    assert first.title.startswith("Much of this change" if much else f"Durian is {batch:.0f}° from batch std")
    assert f"is {batch:.0f}° from Durian, closer than GRPO at {grpo:.0f}°" in first.text or not much


@pytest.mark.parametrize(
    ("prompts", "tone", "size"),
    [
        (4, "careful", "2 buckets of confidence: about 2 prompts in each, few"),
        (19, "careful", "2 buckets of confidence: about 10 prompts in each, few"),
        (20, "good", "2 buckets of confidence: about 10 prompts in each"),
    ],
)
def test_a_bucket_of_two_prompts_is_not_far_too_few_and_one_of_ten_is_enough(prompts, tone, size):
    found = said(a_step(0, prompts=prompts, entropy=False), buckets=2)
    assert "Too few" not in found.headline
    assert "Buckets of confidence differ" in titles(found)
    assert by_title(found)[size].tone == tone
    assert f"smallest held {prompts // 2}." in by_title(found)[size].text


def test_too_few_prompts_are_told_with_what_is_known_without_more():
    found = said(a_step(3, prompts=3), buckets=12)
    assert [finding.title.partition(":")[0] for finding in found.findings][1:] == [
        "3 buckets of visual entropy",
        "3 buckets of confidence",
    ]
    assert "careful: 3 buckets of confidence: 1 prompt in each, far too few" in titles(found)
    halves = said(a_step(3, prompts=3, entropy=False), buckets=2)
    assert "careful: 2 buckets of confidence: 1.5 prompts in each, far too few" in titles(halves)
    assert "careful: 1 bucket of confidence: 1 prompt in it, far too few" in titles(
        said(a_step(1, prompts=1, width=40))
    )
    assert "good: 1 bucket of confidence: about 30 prompts in it" in titles(said(a_step(0), buckets=1))
    assert len(said(a_step(0, entropy=False, confidence=False)).findings) == 1


def test_extreme_prompts_have_their_share_of_the_update():
    step = a_step(0)
    summary = summed(step)
    (found,) = (finding for finding in verdict.verdict(summary).findings if finding.title.startswith("Extreme"))
    grpo, durian = (
        verdict.percent(summary.mean(f"extreme_failure, {method}") + summary.mean(f"extreme_success, {method}"))
        for method in ("GRPO", "Durian")
    )
    assert found.title == f"Extreme groups are {verdict.percent(summary.mean('extreme_ratio'))} of those with signal"
    assert f"They carry {grpo} of the update under GRPO, and {durian} under Durian." in found.text
    (alone,) = said(a_step(0, entropy=False, confidence=False)).findings
    assert f"They carry {grpo} of the update under GRPO. " in alone.text
    half = torch.tensor([1.0, 0.0]).double().repeat(120)
    none = by_title(said(step._replace(rewards=half)))["Extreme groups are 0% of those with signal"]
    assert none.text.startswith("No prompt has exactly one correct or one incorrect rollout")


@pytest.mark.parametrize(("times", "tone"), [(1.0, "good"), (1.05, "good"), (1.06, "careful")])
def test_a_largest_advantage_that_exceeds_grpo_s_by_a_twentieth_is_no_worry(times, tone):
    summary = summed(a_step(0, prompts=60), a_step(1, 1, prompts=60))
    summary.columns["largest, GRPO"][1] = 10.0
    summary.columns["largest, Durian"][0] = 10.0 * times
    found = by_title(verdict.verdict(summary))
    title = {
        "good": f"Durian's largest advantage is {10 * times:.1f}, GRPO's 10.0",
        "careful": f"Durian's largest advantage, {10 * times:.1f}, exceeds GRPO's, 10.0",
    }[tone]
    assert found[title].tone == tone


@pytest.mark.parametrize(
    ("real", "chance", "told"), [(0.375, 0.25, True), (0.374, 0.25, False), (0.01, 0.0, True), (0.009, 0.0, False)]
)
def test_stds_that_differ_by_half_as_much_again_as_by_chance_are_none(real, chance, told):
    summary = summed(a_step(0, prompts=60))
    summary.columns["spread, confidence"][0] = real
    summary.columns["spread by chance, confidence"][0] = chance
    more, hardly = (f"Buckets of confidence differ {how} chance" for how in ("by more than", "hardly more than by"))
    found = by_title(verdict.verdict(summary))
    finding = found[more if told else hardly]
    assert (more in found, finding.tone) == (told, "good" if told else "careful")
    assert f"The stds of the buckets differ by {verdict.percent(real)};" in finding.text
    assert f"they still differ by {verdict.percent(chance)}." in finding.text


@pytest.mark.parametrize("score", ["visual_entropy", "confidence"])
@pytest.mark.parametrize(
    ("accuracies", "error", "what"),
    [
        ((0.25, 0.75), 0.2, "does not tell hard prompts from easy ones"),  # 0.5 is twice 0.25, of 0.15 and 0.2
        ((0.25, 0.75), 0.19, "up"),
        ((0.75, 0.25), 0.19, "down"),
    ],
)
def test_accuracies_of_the_outer_tenths_differ_by_more_than_twice_their_standard_error(
    monkeypatch, score, accuracies, error, what
):
    summary = summed(a_step(0, prompts=60))
    low, high = (Tenth(6, accuracy, spread, 0.1) for accuracy, spread in zip(accuracies, (0.15, error), strict=True))
    empty = Tenth(0, 0.0, 0.0, 0.0)
    monkeypatch.setattr(summary, "tenths", lambda of: [empty, low, empty, high, empty])
    found = by_title(verdict.verdict(summary))
    name, as_expected = verdict.CALLED[score].capitalize(), "up" if score == "confidence" else "down"
    if what in ("up", "down"):
        what, tone = (
            ("tells hard prompts from easy ones", "good")
            if what == as_expected
            else ("points the other way", "careful")
        )
    else:
        tone = "careful"
    finding = found[f"{name} {what}"]
    assert finding.tone == tone
    assert f"Accuracy is {accuracies[0]:.0%} in the lowest tenth of prompts and {accuracies[1]:.0%} in" in finding.text
    if "other" in what:
        harder = "easier" if score == "confidence" else "harder"
        assert f"expects prompts of high {verdict.CALLED[score]} to be {harder}." in finding.text


def test_a_missing_score_leaves_its_component_out():
    for score, component in (("visual_entropy", "perceptual"), ("confidence", "reasoning")):
        step = a_step(0, prompts=60)._replace(**{score: None})
        finding = by_title(said(step))[f"No {verdict.CALLED[score]} in this log"]
        assert finding.text.startswith(f"Durian's {component} component is left out")


def test_a_verdict_is_made_of_sentences():
    step = a_step(0)
    found = [
        said(step),
        said(a_step(0, prompts=200)),
        said(a_step(0, prompts=200), buckets=40),
        said(a_step(0, prompts=200, slope=-2.0)),
        said(a_step(3, prompts=3)),
        said(a_step(0, entropy=False)),
        said(a_step(0, confidence=False)),
        said(a_step(0, entropy=False, confidence=False)),
        said(with_a_sure_bucket(), buckets=2),
        said(with_a_sure_bucket(), buckets=24),
        said(step._replace(rewards=torch.tensor([1.0, 0.0]).double().repeat(120))),
        said(step._replace(rewards=step.rewards + 1)),
        said(step._replace(confidence=torch.zeros(240).double())),
        *(nothing := [said(step._replace(rewards=torch.full((240,), value).double())) for value in (1.0, math.nan)]),
    ]
    for each in found:
        for text in (each.headline, each.because, *(finding.text for finding in each.findings)):
            assert text.endswith(".")
            assert not [sentence for sentence in text.split(". ") if sentence[0].islower()]
            assert set(re.findall("[A-Z]{2,}", text)) <= {"GRPO", "PPO", "TRL"}  # names, and nothing is shouted
        assert {finding.tone for finding in each.findings} <= {"plain", "good", "careful"}
        assert not [finding.title for finding in each.findings if finding.title.endswith(".")]
    assert [each.findings for each in nothing] == [[], []]


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0%"), (0.0004, "0.0%"), (0.0994, "9.9%"), (0.0995, "10%"), (0.25, "25%"), (1.0, "100%")]
)
def test_small_shares_have_a_decimal(share, text):
    assert verdict.percent(share) == text


def test_what_is_not_defined_is_not_a_number():
    shares = {math.nan: "n/a", 0.0: "0%", 0.0994: "9.9%", 0.0995: "10%", 1.0: "100%"}
    assert [verdict.percent(share) for share in shares] == list(shares.values())
    assert [verdict.degrees(angle) for angle in (math.nan, 0.4, 12.6)] == ["n/a", "0°", "13°"]
