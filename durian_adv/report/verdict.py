"""What the numbers of a log say, in sentences; each threshold is named and shown on the page."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from durian_adv.diagnostics import FEWEST_PROMPTS
from durian_adv.report.advice import differ, spreads
from durian_adv.report.arms import BY_CATEGORY
from durian_adv.report.numbers import NOTABLE, SCORES, Summary
from durian_adv.report.words import CALLED, degrees, percent

# degrees between two methods' advantages: under the first they are nearly one update, over the second clearly two
NEAR, FAR = 6.0, 15.0
FEW, ENOUGH = FEWEST_PROMPTS, 10  # prompts per bucket


class Finding(NamedTuple):
    """One thing to know before the decision."""

    tone: Literal["plain", "good", "careful"]
    title: str
    text: str


class Verdict(NamedTuple):
    """The answer, why, and what to know besides."""

    headline: str
    because: str
    findings: list[Finding]
    tone: Literal["none", "hardly", "little", "clearly"] = "none"  # none: nothing can be concluded


def verdict(summary: Summary) -> Verdict:
    """Say whether Durian would change anything; nothing, where the log was not read as it was sampled."""
    read = [Finding("careful", each.title, each.text) for each in summary.grouping]
    read += [Finding("plain", "What was read", f"{summary.read_as}.")] if summary.read_as else []
    broken = [each for each in summary.grouping if each.broken]
    if broken:
        return Verdict(
            "No verdict: this log is not read as it was sampled.",
            f"{broken[0].title}. Which rollouts belong to one prompt and one step decides every advantage, so nothing "
            "is concluded before that is right.",
            read,
        )
    found = _of_steps(summary)
    return found._replace(findings=[*found.findings, *read])


def _of_steps(summary: Summary) -> Verdict:
    """Say whether Durian would change anything, by the numbers of the steps."""
    if summary.largest < summary.smallest:
        return Verdict(
            "Nothing to compare: no rollout of this log has a reward.",
            "All rewards are null or NaN. Look at the key that is read as the reward (--key reward=...).",
            [],
        )
    if summary.compared == 0:
        return Verdict(
            "Nothing would change: no prompt of this log has any signal.",
            "Within every prompt all rewards are equal (or differ by far less than eps), so GRPO, Dr. GRPO, batch std "
            "and Durian all give advantages of 0. Look at the reward function, or sample more rollouts per prompt.",
            [],
        )
    missing = [score for score in SCORES if not summary.has(score)]
    if len(missing) == len(SCORES):
        return _without_scores(summary)
    scored = [score for score in SCORES if score not in missing]
    if all(_usual(summary, score) < FEW for score in scored):
        return _too_few(summary, scored)
    return _compared(summary, missing)


def _without_scores(summary: Summary) -> Verdict:
    """Compare the estimators that need no score."""
    angle = summary.angle("GRPO", "batch std")
    change, tone = _extent(angle)
    kinds = f", and those of one std per category {degrees(summary.angle('GRPO', BY_CATEGORY))}"
    return Verdict(
        f"Without difficulty scores: batch std would {change}.",
        f"Batch std's advantages are {degrees(angle)} from GRPO's (Dr. GRPO's are batch std's up to one factor per "
        f"step){kinds if summary.categories else ''}. Durian is not judged: no rollout has a visual_entropy, a "
        "confidence or logprobs, and without them it is GRPO. To judge it, log the confidence (the sum of the sampled "
        "tokens' log-probabilities).",
        [*_extremes(summary), *_of_categories(summary)],
        tone,
    )


def _extent(angle: float) -> tuple[str, Literal["none", "hardly", "little", "clearly"]]:
    """Say how much an angle changes, and in which color."""
    if math.isnan(angle):
        return "give no update to compare", "none"
    if angle < NEAR:
        return "change hardly anything here", "hardly"
    return ("change the updates a little", "little") if angle < FAR else ("clearly change the updates", "clearly")


def _too_few(summary: Summary, scored: list[str]) -> Verdict:
    """Say that no bucket has a std to share."""
    prompts = summary.mean("prompts", of_effective=False)
    with_score = max(summary.mean(f"scored, {score}", of_effective=False) for score in scored)
    those = f"{prompts:.3g}" if with_score == prompts else f"{with_score:.3g} of {prompts:.3g} have a score,"
    return Verdict(
        f"Too few prompts per step to tell: {those} on average.",
        "Durian shares a std among prompts of similar difficulty. Here a bucket holds hardly more than one prompt, so "
        "Durian is GRPO again, or noisier. Log steps of more prompts, or ask for fewer buckets "
        "(--num-confidence-buckets, --entropy-quantiles). A log without steps is one step, unless it is cut by "
        "--batch-prompts.",
        [*_extremes(summary), *(_size(summary, score) for score in scored)],
    )


def _compared(summary: Summary, missing: list[str]) -> Verdict:
    """Say how far Durian's advantages are from GRPO's, and what to know besides."""
    grpo, batch = summary.angle("Durian", "GRPO"), summary.angle("Durian", "batch std")
    change, tone = _extent(grpo)
    changed = summary.notable / summary.compared
    because = (
        f"Its advantages and GRPO's are {grpo:.0f}° apart (cosine {math.cos(math.radians(grpo)):.3f}; 0° would be "
        f"the same update). Durian would weight {percent(changed)} of the prompts with signal at least "
        f"{NOTABLE - 1:.0%} more, or correspondingly less, than GRPO does."
    )
    findings = [_against_batch_std(grpo, batch), *_extremes(summary), _largest(summary)]
    for score in SCORES:
        findings.extend([_absent(score)] if score in missing else _of_score(summary, score))
    return Verdict(f"Durian would {change}.", because, [*findings, *_of_categories(summary)], tone)


def _absent(score: str) -> Finding:
    return Finding(
        "careful",
        f"No {CALLED[score]} in this log",
        f"Durian's {'perceptual' if score == 'visual_entropy' else 'reasoning'} component is left out, and the other "
        "weights are scaled up to the same sum. With this score the result may differ.",
    )


def _of_score(summary: Summary, score: str) -> list[Finding]:
    findings = [_size(summary, score)]
    if len(summary.buckets(score)) > 1:
        findings.append(_chance(summary, score, f"Buckets of {CALLED[score]}"))
    if summary.parted:
        findings.append(_difficulty(summary, score))
    return findings


def _of_categories(summary: Summary) -> list[Finding]:
    """Say whether the known kinds of prompts differ in their stds."""
    if len(summary.categories) < 2:
        return []
    return [_chance(summary, "category", f"The {len(summary.categories):,} categories")]


def _against_batch_std(grpo: float, batch: float) -> Finding:
    if grpo >= NEAR and batch < grpo / 2:
        return Finding(
            "careful",
            "Much of this change needs no difficulty scores",
            f'One std for the whole batch (LitePPO, TRL\'s scale_rewards="batch") is {batch:.0f}° from Durian, closer '
            f"than GRPO at {grpo:.0f}°. It is one option in most trainers: compare Durian with it, not only with GRPO.",
        )
    return Finding(
        "plain",
        f"Durian is {batch:.0f}° from batch std, and {grpo:.0f}° from GRPO",
        'Batch std (LitePPO, TRL\'s scale_rewards="batch") is the simple alternative without difficulty scores: a '
        "fair comparison includes it as a third arm.",
    )


def _extremes(summary: Summary) -> list[Finding]:
    if not summary.parted:
        none = summary.largest <= summary.success_threshold
        edge = f"The {'largest' if none else 'smallest'} is {summary.largest if none else summary.smallest:g}"
        return [
            Finding(
                "careful",
                f"{'No' if none else 'Every'} reward exceeds {summary.success_threshold:g}: set --success-threshold",
                f"{edge}, so {'no' if none else 'every'} rollout counts as correct. Until the threshold lies between "
                "right and wrong, this page leaves out everything that depends on correctness: extreme groups, and "
                "whether a score tells hard prompts from easy ones. Angles, buckets and stds do not depend on it.",
            )
        ]
    ratio = summary.mean("extreme_ratio")
    grpo, durian = summary.extreme("GRPO"), summary.extreme("Durian")
    title = f"Extreme groups are {percent(ratio)} of those with signal"
    if ratio == 0:
        return [Finding("plain", title, "No prompt has exactly one correct or one incorrect rollout.")]
    moved = "" if not any(map(summary.has, SCORES)) else f", and {percent(durian)} under Durian"
    return [
        Finding(
            "plain",
            title,
            "An extreme group has exactly one correct or one incorrect rollout. GRPO divides a prompt's rewards by "
            "their std, which for binary rewards is smallest in these groups. They carry "
            f"{percent(grpo)} of the update under GRPO{moved}. The Durian paper reports 36 to 44% of them with 8 "
            "rollouts per prompt; with fewer rollouts there are more.",
        )
    ]


def _largest(summary: Summary) -> Finding:
    grpo, durian = summary.most("GRPO"), summary.most("Durian")
    if durian > 1.05 * grpo:
        return Finding(
            "careful",
            f"Durian's largest advantage, {durian:.1f}, exceeds GRPO's, {grpo:.1f}",
            "The rewards of some bucket barely vary, so any exception in it gets a very large weight. Use fewer, "
            "larger buckets.",
        )
    return Finding(
        "good",
        f"Durian's largest advantage is {durian:.1f}, GRPO's {grpo:.1f}",
        "No bucket is so uniform that its small std inflates an advantage.",
    )


def _size(summary: Summary, score: str) -> Finding:
    buckets = summary.buckets(score)
    usual = _usual(summary, score)
    fewest = int(min(bucket.fewest for bucket in buckets.values()))
    plural, each = ("s", "each") if len(buckets) > 1 else ("", "it")
    named = f"{len(buckets)} bucket{plural} of {CALLED[score]}"
    if usual < FEW:
        return Finding(
            "careful",
            f"{named}: {usual:.3g} prompt{'s' * (usual != 1)} in {each}, far too few",
            "The std they share is that of a single prompt, so Durian is GRPO again, or noisier. Use more prompts per "
            "step, fewer buckets, or a window of recent prompts (durian_adv.window).",
        )
    if usual < ENOUGH:
        return Finding(
            "careful",
            f"{named}: about {usual:.0f} prompts in {each}, few",
            f"The smallest held {fewest}. The paper has about 43 in each of its 12. Below {ENOUGH}, much of a std is "
            "chance: use fewer buckets (--num-confidence-buckets, --entropy-quantiles) or more prompts per step.",
        )
    return Finding(
        "good",
        f"{named}: about {usual:.0f} prompts in {each}",
        f"Enough for a std (here: {ENOUGH} or more); the smallest held {fewest}.",
    )


def _usual(summary: Summary, score: str) -> float:
    """Return the mean number of prompts per bucket."""
    buckets = summary.buckets(score).values()
    return sum(bucket.prompts for bucket in buckets) / max(1, len(buckets))


def _chance(summary: Summary, score: str, named: str) -> Finding:
    real, chance = spreads(summary, score)
    of = "categories" if score == "category" else "buckets"
    numbers = (
        f"The stds of the {of} differ by {percent(real)}; with the same prompts shuffled over the {of}, they "
        f"still differ by {percent(chance)}."
    )
    if differ(summary, score):
        return Finding("good", f"{named} differ by more than chance", numbers)
    tells = "category" if score == "category" else "score"
    return Finding(
        "careful",
        f"{named} differ hardly more than by chance",
        f"{numbers} So this {tells} tells little about how much rewards vary, or the {of} are too small to show it.",
    )


def _difficulty(summary: Summary, score: str) -> Finding:
    filled = [tenth for tenth in summary.tenths(score) if tenth.prompts]
    if len(filled) < 2:
        return Finding("plain", f"One value of {CALLED[score]} for all", "It cannot tell hard prompts from easy ones.")
    low, high, name = filled[0], filled[-1], CALLED[score].capitalize()
    far = abs(high.accuracy - low.accuracy) > 2 * (low.error**2 + high.error**2) ** 0.5
    right_way = (high.accuracy > low.accuracy) == (score == "confidence")
    numbers = f"Accuracy is {low.accuracy:.0%} in the lowest tenth of prompts and {high.accuracy:.0%} in the highest."
    if far and right_way:
        return Finding("good", f"{name} tells hard prompts from easy ones", numbers)
    if far:
        return Finding(
            "careful",
            f"{name} points the other way",
            f"{numbers} The method expects prompts of high {CALLED[score]} to be "
            f"{'easier' if score == 'confidence' else 'harder'}.",
        )
    return Finding(
        "careful",
        f"{name} does not tell hard prompts from easy ones",
        f"{numbers} The difference is no more than twice its standard error.",
    )
