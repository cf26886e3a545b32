"""Which estimator the numbers of a log recommend, and why; or that none can be recommended, and why."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from durian_adv.report.arms import BY_CATEGORY, DROPPED, KEPT
from durian_adv.report.numbers import SCORES, Summary
from durian_adv.report.words import CALLED, percent
from durian_adv.worth import Worth

CHANCE = 1.5  # stds of real buckets should differ this many times as much as those of shuffled ones
# of log std: where half of the prompts have twice the variance of the others, at which one std is worth 0.89
SPREAD = math.log(2) / 4
GAIN = 0.05  # of worth: what is less, and what is within two standard errors, is no reason to change
SIMPLEST_FIRST = ("GRPO", "batch std", BY_CATEGORY, DROPPED, KEPT)
_KEEP = "No reason found to change the normalization."
_NONE = "No recommendation can be given."


class Advice(NamedTuple):
    """What to do, and why."""

    kind: Literal["keep", "change", "none"]
    headline: str
    because: str
    method: str | None = None  # to be changed to


def advise(summary: Summary) -> Advice:
    """Recommend an estimator by the structure of the rewards and by what each is predicted to be worth."""
    if impossible := _impossible(summary):
        return Advice("none", _NONE, impossible)
    worths = {name: summary.worth(name) for name in SIMPLEST_FIRST}
    if math.isnan(worths["GRPO"].worth) or math.isnan(worths["batch std"].worth):
        return _binary(summary, worths) if summary.binary else _by_structure(summary)
    possible = {name: worths[name] for name in candidates(summary) if not math.isnan(worths[name].worth)}
    chosen = choose(possible)
    if chosen == "GRPO":
        return _binary(summary, worths) if summary.binary else _nothing_better(possible)
    return Advice("change", f"Try {chosen}.", _why(summary, chosen, worths), chosen)


def candidates(summary: Summary) -> list[str]:
    """Return what may be recommended: a shared std only where stds differ by more than chance, and more than accuracy.

    With binary rewards a prompt's signal is in proportion to its noise, so that one factor for all is best.
    """
    if summary.binary:
        return ["GRPO", "batch std"]
    shared = [BY_CATEGORY] if differ(summary, "category") else []
    shared += [DROPPED, KEPT] if any(differ(summary, score) for score in SCORES) else []
    return [name for name in SIMPLEST_FIRST if name in {"GRPO", "batch std", *shared}]


def choose(worths: dict[str, Worth]) -> str:
    """Return the first that no other one exceeds by more than ``GAIN`` and two standard errors of the difference."""

    def beaten(by: Worth, which: Worth) -> bool:
        return by.worth - which.worth > max(GAIN, 2 * math.hypot(by.standard_error, which.standard_error))

    return next(name for name, each in worths.items() if not any(beaten(other, each) for other in worths.values()))


def differ(summary: Summary, score: str) -> bool:
    """Whether the stds of the buckets of a score, or of the categories, differ by more than chance."""
    real, chance = spreads(summary, score)
    return real >= CHANCE * chance and real >= 0.01


def spreads(summary: Summary, score: str) -> tuple[float, float]:
    """Return how much stds differ, and how much they do by chance; NaN where there is no such score."""
    return summary.mean(f"spread, {score}"), summary.mean(f"spread by chance, {score}")


def _impossible(summary: Summary) -> str:
    """Return why nothing can be recommended at all."""
    if any(each.broken for each in summary.grouping):
        return "The log is not read as it was sampled, so its numbers are not those of the training."
    if summary.largest < summary.smallest:
        return "No rollout has a reward."
    if summary.compared == 0:
        return "No prompt has signal: every estimator gives advantages of 0."
    return ""


def _binary(summary: Summary, worths: dict[str, Worth]) -> Advice:
    low, high = sorted(summary.values)
    text = (
        f"Rewards take two values, {low:g} and {high:g}. Then a prompt's signal is in proportion to its noise, one "
        "factor for all prompts is best, and a std that follows accuracy cannot beat it, whoever shares it. "
    )
    grpo, kept, dropped = (worths[name] for name in ("GRPO", KEPT, DROPPED))
    if not math.isnan(grpo.worth):
        text += f"GRPO is near it, with a predicted worth of {_number(grpo)}. "
    if not math.isnan(kept.worth) and choose({KEPT: kept, DROPPED: dropped}) == DROPPED:
        text += (
            "If you use Durian, drop groups without signal (--no-signal drop), "
            f"{percent(summary.mean('no_signal_share'))} of all: its worth is then {_number(dropped)}, and "
            f"{_number(kept)} with them kept. "
        )
    return Advice("keep", _KEEP, text.strip())


def _nothing_better(worths: dict[str, Worth]) -> Advice:
    """Say that none of the candidates is clearly better than GRPO."""
    best = max(worths, key=lambda name: worths[name].worth)
    text = f"GRPO's predicted worth is {_number(worths['GRPO'])}, "
    if best == "GRPO":
        return Advice("keep", _KEEP, f"{text}the largest of those that these rewards give a reason for.")
    return Advice(
        "keep",
        _KEEP,
        f"{text}the largest is that of {best}, {_number(worths[best])}. The difference is no reason: it is not over "
        f"both {GAIN:g} and two standard errors.",
    )


def _why(summary: Summary, chosen: str, worths: dict[str, Worth]) -> str:
    """Say what is gained, and why these rewards give a reason for it."""
    grpo, better = worths["GRPO"], worths[chosen]
    text = f"The predicted worth of {chosen} is {_number(better)}, that of GRPO {_number(grpo)}"
    if grpo.worth > 0:
        text += f": GRPO would need up to {better.worth / grpo.worth:.2g} times as many steps"
    if chosen == "batch std":
        why = (
            "Rewards take two values, for which one factor for all prompts is best"
            if summary.binary
            else "GRPO divides each prompt by its own std, and so blows up prompts whose rewards differ by little"
        )
        return f"{text}. {why}. Dr. GRPO is the same up to one factor per step."
    shared = ["category"] if chosen == BY_CATEGORY else [score for score in SCORES if differ(summary, score)]
    told = ", and ".join(
        f"the stds of {'categories' if score == 'category' else f'buckets of {CALLED[score]}'} differ by "
        f"{percent(spreads(summary, score)[0])} ({percent(spreads(summary, score)[1])} by chance)"
        for score in shared
    )
    return f"{text}. Rewards are not binary, and {told}: kinds of prompts differ in the unit or noise of their rewards."


def _by_structure(summary: Summary) -> Advice:
    """Recommend where worth is not defined: where no threshold parts right from wrong, or too few prompts do."""
    unknown = "What counts as correct is not known here, or too few prompts differ in it, so nothing is predicted. "
    if differ(summary, "category") and spreads(summary, "category")[0] >= SPREAD:
        real, chance = spreads(summary, "category")
        return Advice(
            "change",
            f"Try {BY_CATEGORY}, if its categories differ in the unit or noise of their rewards.",
            f"{unknown}Rewards are not binary, and the stds of categories differ by {percent(real)} ({percent(chance)} "
            "by chance). One std for all would let the kinds of large rewards rule the update. If they differ in "
            "accuracy only, there is no reason to change.",
            BY_CATEGORY,
        )
    measured = [score for score in SCORES if summary.has(score)]
    if any(differ(summary, score) and spreads(summary, score)[0] >= SPREAD for score in measured):
        return Advice(
            "none",
            _NONE,
            f"{unknown}Stds differ between buckets by more than chance: a reason for Durian if rewards differ in unit "
            "or noise, none if only accuracy does. Set --success-threshold between wrong and right to tell.",
        )
    if measured or summary.categories:
        return Advice("keep", _KEEP, f"{unknown}But stds hardly differ between {_compared(summary, measured)}.")
    return Advice(
        "none",
        _NONE,
        f"{unknown}There is neither a category nor a difficulty score either. Set --success-threshold between wrong "
        "and right, or log one of them.",
    )


def _compared(summary: Summary, measured: list[str]) -> str:
    named = [f"buckets of {CALLED[score]}" for score in measured] + ["categories"] * bool(summary.categories)
    return f"{' or '.join(named)}: by less than one variance being twice another, or by no more than chance"


def _number(worth: Worth) -> str:
    return f"{worth.worth:.3f} ± {worth.standard_error:.3f}"
