"""Write `docs/law.md`, `docs/which-normalization.md` and their picture: `python -m studies.law page`.

No number of a prediction is written by hand; measured ones come from the records of `studies.evidence`.
"""

import csv
from pathlib import Path

from benchmarks.records import ROOT
from studies.evidence import closed_forms
from studies.evidence import declaration as evidence
from studies.evidence import page as measured_page
from studies.evidence.comparison import Difference
from studies.evidence.conditions import CONDITIONS
from studies.evidence.markdown import table
from studies.law import declaration, prose, results
from studies.law.cases import QUALITY, Case, cases, estimators, noisy_kinds
from studies.law.factors import by_kind, constant, difficulty, durian, grpo, kind, pooled_by_kind
from studies.law.outcomes import outcomes
from studies.law.structure import PAPER_LAST, Kind, Structure, levels
from studies.law.worth import (
    Estimate,
    grpo_on_gaussian,
    hardest_factor,
    largest_advantage,
    one_std,
    std_by_kind,
    worth,
)

LAW, WHICH = ROOT / "docs" / "law.md", ROOT / "docs" / "which-normalization.md"
PICTURE, TEST = ROOT / "docs" / "law" / "worth.png", ROOT / "docs" / "law" / "test.png"
CURVES = Path(__file__).parent / "records" / "curves.csv"
QUALITIES = (0.0, 0.5, 0.7, 0.8, 0.9, 1.0)
CLOSE = 0.02  # of worth: estimators this near the best of a row are as good
Worths = dict[str, dict[str, Estimate]]


def worths(some: dict[str, Case]) -> Worths:
    """Return the worth of every estimator in each case."""
    found = {}
    for name, case in some.items():
        given = outcomes(case.structure)
        found[name] = {arm: worth(given, factor) for arm, factor in estimators(given).items()}
    return found


def worth_table(some: dict[str, Case], found: Worths) -> str:
    """Return the worth of every estimator in each case, the best of a row in bold."""
    arms = list(next(iter(found.values())))
    rows = [[case.about, *_row(found[name])] for name, case in some.items()]
    return table(["rewards", *arms], rows)


def binary_table() -> str:
    """Return GRPO and Durian on binary rewards, by distribution of accuracies and G."""
    rows = []
    first = cases()["binary"].structure.kinds[0].accuracy
    for about, accuracy in (("step 1", first), ("step 60", PAPER_LAST), ("uniform", tuple(levels(200)))):
        for rollouts in (4, 8, 16):
            given = outcomes(Structure((Kind(accuracy),), rollouts))
            hidden = difficulty(given)
            cells = [grpo(given)]
            cells += [durian(given, hidden, quality=q, drop=drop) for drop in (False, True) for q in (QUALITY, 1.0)]
            signal = f"{given.mass @ given.counted:.0%}"
            rows.append([about, f"{rollouts}", signal, *(f"{worth(given, factor).value:.3f}" for factor in cells)])
    head = ["accuracies", "G", "groups with signal", "GRPO", *(f"Durian, {groups}, scores {q:g}"
            for groups in ("kept", "dropped") for q in (QUALITY, 1.0))]  # fmt: skip
    return table(head, rows)


def ratio_table() -> str:
    """Return the closed forms of two kinds."""
    rows = [[f"{ratio:g}", f"{one_std(ratio):.3f}", f"{std_by_kind(ratio):.3f}",
             *(f"{std_by_kind(ratio) * grpo_on_gaussian(size):.3f}" for size in (8, 4, 2))]
            for ratio in (1.0, 2.0, 4.0, 9.0)]  # fmt: skip
    return table(["R", "one std", "a std per kind", "GRPO, G = 8", "G = 4", "G = 2"], rows)


def curves() -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return the points of the picture: by panel and line."""
    ratios: dict[str, list[tuple[float, float]]] = {}
    for ratio in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 12.0, 16.0):
        given = outcomes(noisy_kinds(ratio))
        lines = {"std per kind, within prompts": pooled_by_kind(given), "std per kind": by_kind(given),
                 "GRPO": grpo(given), f"Durian, scores {QUALITY:g}": durian(given, kind(given), quality=QUALITY),
                 "batch std": constant(given)}  # fmt: skip
        for name, factor in lines.items():
            ratios.setdefault(name, []).append((ratio, round(worth(given, factor).value, 3)))
    chosen = {
        "right or wrong, dropped": ("binary", True),
        "right or wrong, kept": ("binary", False),
        "with a tie-break of 0.02, kept": ("tie-break", False),
        "units 1 and 0.1, tie-break, kept": ("units, tie-break", False),
        "variances 1 and 4, kept": ("noise 4", False),
    }
    qualities = {}
    for name, (case, drop) in chosen.items():
        given = outcomes(cases()[case].structure)
        hidden = kind(given) if given.kind.max() else difficulty(given)
        steps = [k / 20 for k in range(21)]
        values = [worth(given, durian(given, hidden, quality=q, drop=drop)).value for q in steps]
        qualities[name] = [(q, round(value, 3)) for q, value in zip(steps, values, strict=True)]
    return {"ratio": ratios, "quality": qualities}


def write_curves(found: dict[str, dict[str, list[tuple[float, float]]]]) -> None:
    """Write the points of the picture."""
    CURVES.parent.mkdir(exist_ok=True)
    with CURVES.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["panel", "line", "x", "worth"])
        writer.writerows(
            [panel, line, x, y] for panel, lines in found.items() for line, xy in lines.items() for x, y in xy
        )


def predicted_table(name: str) -> str:
    """Return what the declaration predicts over one dose."""
    doses = declaration.read()["predicted_worth"][name]
    arms = list(next(iter(doses.values())))
    return table(
        [prose.DIALS[name], *arms], [[dose, *(f"{value:.3f}" for value in row.values())] for dose, row in doses.items()]
    )


def law() -> str:
    """Return the page of the law."""
    some, plan = cases(), declaration.read()
    found = worths(some)
    error = max(estimate.error for row in found.values() for estimate in row.values())
    numbers = {
        "bound": closed_forms.binary_bound(8), "largest": largest_advantage(8), "hardest": hardest_factor(8),
        "c8": grpo_on_gaussian(8), "c4": grpo_on_gaussian(4), "c2": grpo_on_gaussian(2),
        "binary": found["binary"]["GRPO"].value, "tie": found["tie-break"]["GRPO"].value,
        "filtered": found["filtered"]["GRPO"].value, "format": found["format"]["GRPO"].value,
        "noise": found["noise 9"]["std by kind"].value, "error": error, "quality": QUALITY,
        "steps": plan["task"]["steps"], "seeds": plan["seeds"], "signal": _signal(some["tie-break"]),
        "judge": _per_prompt(some["judge"]),
    }  # fmt: skip
    parts = [
        prose.HEAD, prose.DERIVATION, prose.BINARY.format(**numbers), binary_table(), prose.GAUSSIAN.format(**numbers),
        prose.KINDS, ratio_table(), prose.AFTER_KINDS.format(**numbers), prose.SMALL_TERMS.format(**numbers),
        prose.ALL.format(**numbers), worth_table(some, found), "![Worth over the ratio of variances, and over the"
        " quality of scores](law/worth.png)", prose.SCORES.format(**numbers), prose.LOG, prose.LIMITS,
        results.section(results.committed()), prose.PREDICTED,
        *(predicted_table(name) for name in ("variance", "unit", "tie_break")), prose.CLOSING,
    ]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts) + "\n"


def which() -> str:
    """Return the page of the decision."""
    some, seen, runs = cases(), measured(), results.committed()
    found = worths(some)
    rows = []
    for name, advice in prose.ADVICE.items():
        rows.append([some[name].about, advice, *_row(found[name]), seen.get(name) or results.of_case(name, runs)])
    arms = list(next(iter(found.values())))
    parts = [
        prose.WHICH,
        table(["your rewards", "take", *arms, "measured"], rows),
        prose.READING.format(
            close=CLOSE,
            format_loss=_lost(),
            tested=results.tested(runs),
            kept=results.default(runs),
            **results.format_slips(runs),
        ),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _lost() -> float:
    """Return how far Durian ended below GRPO with format slips, in points."""
    found = measured_page.side_differences(evidence.read(), CONDITIONS["format"])
    return next(-100 * d.mean for d in found if (d.arm, d.baseline) == ("durian", "grpo"))


def measured() -> dict[str, str]:
    """Return what training has shown, in points of held-out accuracy: the cases that `studies.evidence` has."""
    plan = evidence.read()
    found = {
        "binary": measured_page.main_differences(plan),
        "format": measured_page.side_differences(plan, CONDITIONS["format"]),
    }
    pairs = (("durian", "grpo"), ("durian", "batch-std"), ("batch-std", "grpo"))
    return {
        name: "; ".join(_said(d) for pair in pairs for d in some if (d.arm, d.baseline) == pair)
        for name, some in found.items()
    }


def main() -> None:
    """Write everything."""
    from studies.law import figures  # matplotlib is needed for the picture alone

    found = curves()
    write_curves(found)
    PICTURE.parent.mkdir(exist_ok=True)
    figures.draw(found, PICTURE, CURVES)
    if drawn := results.drawn(results.committed()):
        figures.draw_test(drawn, TEST)
    LAW.write_text(law(), encoding="utf-8")
    WHICH.write_text(which(), encoding="utf-8")
    print(f"written: {LAW.relative_to(ROOT)}, {WHICH.relative_to(ROOT)} and {PICTURE.relative_to(ROOT)}")


def _row(row: dict[str, Estimate]) -> list[str]:
    best = max(estimate.value for estimate in row.values())
    return [f"**{e.value:.2f}**" if e.value > best - CLOSE else f"{e.value:.2f}" for e in row.values()]


def _said(d: Difference) -> str:
    return f"{d.arm} minus {d.baseline} {100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}], {d.seeds} seeds"


def _signal(case: Case) -> float:
    """Return the share of groups whose answers differ."""
    given = outcomes(Structure((Kind(case.structure.kinds[0].accuracy),)))
    return float(given.mass @ given.counted)


def _per_prompt(case: Case) -> float:
    """Return the worth of one factor where the best has one per prompt."""
    given = outcomes(case.structure)
    return worth(given, constant(given), each="cell").value
