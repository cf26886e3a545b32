"""The experiment on the page: tables and sentences made from the committed records, of the doses that are complete."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import fill

import numpy as np

from studies.evidence import records
from studies.evidence.comparison import interval
from studies.evidence.markdown import table
from studies.law import analysis, declaration, expectation, later, plan, prose, runner
from studies.law.analysis import PRIMARY, REFERENCE, Difference, Dose
from studies.law.plan import Found, Run

OUTCOME = "variance"
LARGE = 0.005  # a predicted difference that is worth a slope of its own; half a point


def committed(path: Path = runner.TABLE) -> Found:
    """Return the runs of the table."""
    return records.read_table(path)


def section(found: Found) -> str:
    """Return the section on the experiment."""
    doses = analysis.complete(OUTCOME, found)
    parts = [prose.TEST.format(**_numbers(found)), progress(found)]
    if doses:
        parts += [
            verdicts(doses), "![Predicted and measured differences with their intervals](law/test.png)", primary(doses),
            prose.ARMS_TABLE, arms_table(doses, "R"), *(explained(doses["9"], found) if "9" in doses else []),
        ]  # fmt: skip
    for outcome, about in prose.SECONDARY.items():
        if others := analysis.complete(outcome, found):
            parts += [about, slope(outcome, others), arms_table(others, prose.DIALS[outcome])]
            parts += [prose.KEPT.format(points=kept(others["0"]))] if "0" in others else []
    return "\n\n".join(part.strip() for part in parts)


def progress(found: Found) -> str:
    """Say which doses are complete, and how the rest is run."""
    parts = []
    for outcome in declaration.DOSES:
        for dose, number in analysis.counted(outcome, found).items():
            whole = len(plan.arms_of(outcome)) * len(plan.SEEDS)
            if number:
                parts.append(f"{outcome} {dose}: {number} of {whole}")
    missing = {
        outcome: [dose for dose in doses if dose not in analysis.complete(outcome, found)]
        for outcome, doses in declaration.DOSES.items()
    }
    of_sgd = sum(name.startswith(f"pilot-{plan.SGD}-") for name in found)
    pilots = sum(name.startswith("pilot") for name in found) - of_sgd
    seconds = np.mean([record.head["cpu_seconds"] for record in found.values()]) if found else np.nan
    text = f"**What has been run.** {pilots} pilots, {of_sgd} runs with plain SGD that were not declared"
    text += f", and of the runs that count: {'; '.join(parts)}." if parts else ", and none of the runs that count."
    text += f" A run takes {seconds:.1f} seconds of one core."
    if any(missing.values()):
        names = "; ".join(f"{outcome} {', '.join(doses)}" for outcome, doses in missing.items() if doses)
        text += (
            f" Not complete, and so not compared with anything: {names}."
            " `python -m studies.law run` goes on where it stopped, `collect` adds finished runs to the table, `page`"
            " writes this page."
        )
    return fill(text, 120)


def verdicts(doses: Mapping[str, Dose]) -> str:
    """Say what the declaration says of these results."""
    beyond = [dose for name, dose in doses.items() if name != "1"]
    found = analysis.compare(list(doses.values()), [PRIMARY])
    lines = [f"- **{PRIMARY[0]} minus {PRIMARY[1]}**: {'; '.join(f'R = {d.dose}: {_measured(d)}' for d in found)}."]
    if beyond:
        each = analysis.slopes(beyond)
        low, high = interval(each)
        said = analysis.verdict(low, high)
        lines.insert(0, (
            f"- **The law {said}** by the declared criterion: the slope of observed on predicted differences, all arms"
            f" minus {REFERENCE} at R = {', '.join(dose.name for dose in beyond)}, is {each.mean():.2f}"
            f" [{low:.2f}, {high:.2f}] over {len(each)} seeds; {by_arm(beyond)} (below 0: the wrong sign)."
        ))  # fmt: skip
    if len(found) > 1:
        grows = all(one.mean < other.mean for one, other in pairwise(found))
        lines.append(f"- That difference {'grows' if grows else 'does **not** grow'} with R over the complete doses.")
    return "\n".join(lines)


def slope(outcome: str, doses: Mapping[str, Dose]) -> str:
    """Say how observed differences go with predicted ones, at the doses of an outcome at which arms should differ."""
    beyond = apart(outcome, doses)
    if not beyond:
        return ""
    names, every = ", ".join(dose.name for dose in beyond), _slope(analysis.slopes(beyond))
    said = f"The slope of observed on predicted differences, all arms minus {REFERENCE} at {names}, is {every} over"
    return fill(f"{said} {len(plan.SEEDS)} seeds; {by_arm(beyond)}.", 120)


def apart(outcome: str, doses: Mapping[str, Dose]) -> list[Dose]:
    """Return the doses at which arms should differ: not those where two kinds are alike."""
    return [dose for name, dose in doses.items() if outcome == "tie_break" or name != "1"]


def by_arm(doses: Sequence[Dose]) -> str:
    """Return the slope of each arm that the law puts well below a std by kind."""
    arms = [arm for arm in doses[0].arms if arm != REFERENCE and min(dose.predicted(arm) for dose in doses) < -LARGE]
    return "arm by arm " + "; ".join(f"{arm} {_slope(analysis.slopes(doses, [arm]))}" for arm in arms)


def expected_slopes(found: Found) -> str:
    """Return the slopes on the points that were written down before the runs, by outcome."""
    kept = json.loads(expectation.PATH.read_text(encoding="utf-8"))
    said = []
    for outcome, dial in prose.DIALS.items():
        if doses := apart(outcome, analysis.complete(outcome, found)):
            points = kept[outcome]["points_minus_std_by_kind"]
            each = analysis.slopes(doses, predicted=lambda dose, arm, points=points: points[dose.name][arm] / 100)
            said.append(f"{_slope(each)} ({dial})")
    return ", ".join(said) or "not known yet"


def kept(dose: Dose) -> str:
    """Return Durian with groups without signal dropped minus kept, in points."""
    return _measured(analysis.compare([dose], [("Durian, dropped", "Durian, kept")])[0])


def format_slips(found: Found) -> dict[str, str]:
    """Return GRPO minus a shared std without a tie-break, measured and predicted, for the page of the decision."""
    d = analysis.compare([analysis.complete("tie_break", found)["0"]], [("GRPO", REFERENCE)])[0]
    return {"format_test": _measured(d), "format_predicted": f"{100 * d.predicted:+.2f}"}


def default(found: Found) -> str:
    """Say what follows for the default of ``no_signal``, if that was trained."""
    points = kept(analysis.complete("tie_break", found)["0"])
    return fill(prose.DEFAULT.format(points=points).strip(), 120)


def primary(doses: Mapping[str, Dose]) -> str:
    """Return the table of the primary outcome."""
    found = analysis.compare(list(doses.values()), [PRIMARY])
    corrected = analysis.corrected(found, len(declaration.DOSES[OUTCOME]))
    rows = [
        [d.dose, f"{d.seeds}", f"{100 * d.predicted:+.2f}", _measured(d), _p(d.p), _p(p)]
        for d, p in zip(found, corrected, strict=True)
    ]
    head = ["R", "seeds", "predicted", "measured", "p", "p, Holm over four doses"]
    return f"{PRIMARY[0]} minus {PRIMARY[1]}, in points of held-out accuracy:\n\n{table(head, rows)}"


def arms_table(doses: Mapping[str, Dose], dial: str) -> str:
    """Return every arm at every dose of a dial: worths, and differences from a std by kind and from GRPO."""
    rows = []
    for dose in doses.values():
        for arm in dose.arms:
            by_kind, of_grpo = (analysis.compare([dose], [(arm, other)])[0] for other in (REFERENCE, "GRPO"))
            reached = analysis.reached(dose, arm)
            rows.append([
                dose.name, arm, f"{dose.worth[arm]:.2f}", f"{dose.measured_worth[dose.arms.index(arm)].mean():.2f}",
                f"{100 * dose.last(arm).mean():.2f}%", *(["", ""] if arm == REFERENCE else
                [f"{100 * by_kind.predicted:+.2f}", _measured(by_kind)]), "" if arm == "GRPO" else _measured(of_grpo),
                "never" if np.isnan(reached) else f"{reached:.0f}",
            ])  # fmt: skip
    head = [dial, "arm", "worth, predicted", "worth, first 20 steps", "last accuracy", "minus std by kind, predicted",
            "measured", "minus GRPO, measured", "steps to GRPO's last accuracy"]  # fmt: skip
    return table(head, rows)


def explained(dose: Dose, found: Found) -> list[str]:
    """Return why differences are smaller than predicted, as far as it was found out after the first dose."""
    rates = json.loads(expectation.PATH.read_text(encoding="utf-8"))[OUTCOME]["learning_rates"][dose.name]
    worths = json.loads(later.PATH.read_text(encoding="utf-8"))
    rows = []
    for arm in dose.arms:
        ratio, (mean, low, high) = dose.worth[arm] / dose.worth[REFERENCE], analysis.speed(dose, arm)
        rows.append([
            arm, *(f"{worths[step][arm]:.2f}" for step in worths), f"{rates[arm]:.4f}", f"{ratio:.2f}",
            f"{ratio**0.5:.2f}", f"{mean:.2f}" + (f" [{low:.2f}, {high:.2f}]" if arm != REFERENCE else ""),
        ])  # fmt: skip
    head = ["R = 9", *(f"worth at step {step}" for step in worths), "learning rate", "ratio of worths", "its root",
            "speed, measured"]  # fmt: skip
    return [prose.WHY, table(head, rows), prose.AFTER_WHY, *sgd(found)]


def sgd(found: Found) -> list[str]:
    """Return what plain SGD shows, if it was run."""
    names = {
        (arm, rate): [Run(plan.SGD, plan.SGD_DOSE, arm, seed, rate, pilot=True).name for seed in plan.SGD_SEEDS]
        for arm in plan.SGD_ARMS
        for rate in plan.SGD_RATES
    }
    if not all(name in found for some in names.values() for name in some):
        return []
    last = {key: np.array([found[name].steps[-1]["held_out"] for name in some]) for key, some in names.items()}
    rows = [[arm, *(f"{last[arm, rate].mean():.1%}" for rate in plan.SGD_RATES)] for arm in plan.SGD_ARMS]
    best = {arm: max(plan.SGD_RATES, key=lambda rate: last[arm, rate].mean()) for arm in PRIMARY}

    def difference(rates: Mapping[str, float]) -> str:
        return points_of(*(last[arm, rates[arm]] for arm in PRIMARY))

    numbers = {"best": difference(best), "small": difference(dict.fromkeys(PRIMARY, plan.SGD_RATES[0]))}
    head = ["SGD, R = 9", *(f"{rate:g}" for rate in plan.SGD_RATES)]
    after = fill(prose.AFTER_SGD.format(**numbers).strip(), 120)
    return [prose.SGD.format(seeds=len(plan.SGD_SEEDS)), table(head, rows), after]


def points_of(arm: np.ndarray, baseline: np.ndarray) -> str:
    """Return the mean paired difference in points, with its interval."""
    low, high = interval(arm - baseline)
    return f"{100 * (arm - baseline).mean():+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def of_case(name: str, found: Found) -> str:
    """Return what was measured at "outcome dose", for the page of the decision; nothing if it is not complete."""
    outcome, _, dose = name.rpartition(" ")
    doses = analysis.complete(outcome, found) if outcome in declaration.DOSES else {}
    if dose not in doses:
        return ""
    pairs = [
        ("Durian, dropped", "batch std"),
        ("Durian, dropped", "GRPO"),
        ("std by kind", "GRPO"),
        ("batch std", "GRPO"),
    ]
    return "; ".join(f"{d.arm} minus {d.baseline} {_measured(d)}" for d in analysis.compare([doses[dose]], pairs)) + (
        f", {len(plan.SEEDS)} seeds"
    )


def tested(found: Found) -> str:
    """Return what the test says to somebody who must decide."""
    doses = analysis.complete(OUTCOME, found)
    return (verdicts(doses) if doses else prose.UNTESTED).strip()


def drawn(found: Found) -> dict[str, tuple[list[Difference], list[Difference]]]:
    """Return what the picture shows, by dial: every arm minus std by kind, and the primary difference, by dose."""
    shown = {}
    for outcome, dial in prose.DIALS.items():
        if doses := list(analysis.complete(outcome, found).values()):
            pairs = [(arm, REFERENCE) for arm in plan.arms_of(outcome) if arm != REFERENCE]
            shown[dial] = analysis.compare(doses, pairs), analysis.compare(doses, [PRIMARY])
    return shown


def _numbers(found: Found) -> dict[str, object]:
    task = declaration.measured()
    return {
        "signal": 100 * task["signal"], "extreme": 100 * task["extreme"], "quality": declaration.quality(),
        "perception": _listed(task["perception"]), "reasoning": _listed(task["reasoning"]),
        "noise_1": task["noise_over_signal"]["1"], "noise_9": task["noise_over_signal"]["9"],
        "seeds": len(plan.SEEDS), "pilot_seeds": len(plan.PILOT_SEEDS), "expected": expected_slopes(found),
    }  # fmt: skip


def _listed(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in values)


def _measured(d: Difference) -> str:
    return f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"


def _slope(each: np.ndarray) -> str:
    low, high = interval(each)
    return f"{each.mean():.2f} [{low:.2f}, {high:.2f}]"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
