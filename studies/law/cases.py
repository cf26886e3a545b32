"""The structures of rewards that the pages speak of, and the estimators compared on them."""

from dataclasses import dataclass, replace

from studies.law.factors import Factor, by_kind, constant, difficulty, durian, grpo, kind
from studies.law.outcomes import Outcomes, outcomes
from studies.law.structure import PAPER_FIRST, Kind, Structure

QUALITY = 0.8  # of the scores, where nothing else is said
PLAIN = Kind(PAPER_FIRST)
REWARDED = replace(PLAIN, format_weight=0.1, format_rate=0.95)  # the rewards of the experiment


@dataclass(frozen=True)
class Case:
    """A structure of rewards with a name."""

    about: str
    structure: Structure


def estimators(given: Outcomes, quality: float = QUALITY) -> dict[str, Factor]:
    """Return the estimators; Durian's scores stand for the kind where there are kinds, else for the difficulty."""
    hidden = kind(given) if given.kind.max() else difficulty(given)
    return {
        "GRPO": grpo(given),
        "batch std": constant(given),
        "Durian, kept": durian(given, hidden, quality=quality),
        "Durian, dropped": durian(given, hidden, quality=quality, drop=True),
        "random buckets": durian(given, hidden, quality=0.0),
        "std by kind": by_kind(given),
    }


def noise_for(ratio: float, plain: Kind = PLAIN, *, rollouts: int = 8, filtered: bool = False) -> float:
    """Return the std of the noise that makes a kind's within-prompt variance ``ratio`` times as large.

    >>> round(noise_for(4.0, Kind((0.5,))), 3)
    0.866
    """
    given = outcomes(Structure((plain,), rollouts, filtered))
    own = plain.noise**2
    return float(((ratio - 1) * (given.mass @ given.energy) / (rollouts - 1) + own) ** 0.5)


def noisy_kinds(ratio: float, plain: Kind = PLAIN, *, rollouts: int = 8, filtered: bool = False) -> Structure:
    """Return two equal kinds at equal signal, one of which has noise so that variances have this ratio."""
    noisy = replace(plain, noise=noise_for(ratio, plain, rollouts=rollouts, filtered=filtered))
    return Structure((plain, noisy), rollouts, filtered)


def cases() -> dict[str, Case]:
    """Return the structures, in the order of the pages."""
    tied, formatted = replace(PLAIN, noise=0.02), replace(PLAIN, format_weight=0.1, format_rate=0.9)
    small = replace(PLAIN, noise=0.01)
    return {
        "binary": Case("right or wrong, one kind of prompts", Structure((PLAIN,))),
        "binary, G = 16": Case("the same with 16 rollouts per prompt", Structure((PLAIN,), 16)),
        "graded": Case("graded rewards, Gaussian, one spread", Structure((Kind((0.5,), spread=1.0),))),
        "format": Case("0.9 accuracy + 0.1 format, 10% format slips", Structure((formatted,))),
        "tie-break": Case("right or wrong + a tie-break or length term of std 0.02", Structure((tied,))),
        "filtered": Case("the same, groups all right or all wrong replaced", Structure((tied,), filtered=True)),
        "judge": Case("right or wrong + a judge's noise of std 1, one kind", Structure((replace(PLAIN, noise=1.0),))),
        "units": Case("two kinds, units 1 and 0.1", Structure((PLAIN, replace(PLAIN, unit=0.1)))),
        "units, tie-break": Case("the same + a tie-break of std 0.01", Structure((small, replace(small, unit=0.1)))),
        "noise 4": Case("two kinds, variances 1 and 4 (judge noise)", noisy_kinds(4.0)),
        "noise 9": Case("two kinds, variances 1 and 9", noisy_kinds(9.0)),
        "noise 9, tie-break": Case("the same + a tie-break of std 0.02", noisy_kinds(9.0, tied)),
        "noise 9, G = 4": Case("two kinds, variances 1 and 9, 4 rollouts", noisy_kinds(9.0, rollouts=4)),
    } | trained()


def trained() -> dict[str, Case]:
    """Return the structures that the experiment trains on, by outcome and dose: all ratios, and the largest others."""
    about, replaced = "0.9 accuracy + 0.1 format", "groups all right or all wrong replaced"
    units = Structure((REWARDED, replace(REWARDED, unit=0.1)), filtered=True)
    tied = Structure((replace(REWARDED, noise=0.1),))
    return {
        f"variance {ratio:g}": Case(
            f"{about}, two kinds, variances 1 and {ratio:g}; {replaced}", noisy_kinds(ratio, REWARDED, filtered=True)
        )
        for ratio in (1.0, 2.0, 4.0, 9.0)
    } | {
        "unit 0.1": Case(f"{about}, two kinds, units 1 and 0.1; {replaced}", units),
        "tie_break 0.1": Case(f"{about} + a tie-break of std 0.1, one kind", tied),
    }
