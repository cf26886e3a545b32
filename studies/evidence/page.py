"""Write ``docs/evidence.md`` and its pictures from the records: ``python -m studies.evidence page``.

Nothing is measured here, and no number is written by hand; `make records` holds the page against the records.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records import ROOT
from studies.evidence import closed_forms, comparison, declaration, mechanism, paper, prose, records, tables
from studies.evidence.arms import MAIN, OTHERS
from studies.evidence.comparison import Difference
from studies.evidence.conditions import (
    COMPARED,
    CONDITIONS,
    LONG_PILOTS,
    MAIN_CONDITION,
    PILOTS,
    SGD,
    SIDE,
    Condition,
)
from studies.evidence.markdown import table
from studies.evidence.suite import Settings

SGD_ABOUT = f"plain SGD, each arm at its best of {len(SGD)} learning rates"
PAGE, PICTURES = ROOT / "docs" / "evidence.md", ROOT / "docs" / "evidence"


def page() -> str:
    """Return the text of the page."""
    plan = declaration.read()
    parts = [
        prose.HEAD,
        progress(),
        prose.answer(
            plan,
            main_differences(plan),
            gradient_cosines(),
            by_condition(plan),
            whole=all(done == planned for done, planned in map(count, CONDITIONS.values())),
        ),
        scale_part(plan),
        structure_part(plan),
        *mechanism_part(),
        *suite_part(),
        *declared_part(plan),
        *main_part(plan),
        *side_part(plan),
        *paper.part(),
        prose.RELATED,
        tail(),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def count(condition: Condition) -> tuple[int, int]:
    """Return how many of a condition's runs have a record, and how many there are to be."""
    return len(records.of_condition(condition.name)), len(condition.arms) * condition.seeds


def whole_seeds(condition: Condition) -> dict[tuple[str, int], records.Record]:
    """Return the records of the seeds that every arm of a condition has: all arms are compared on the same ones."""
    found = records.of_condition(condition.name)
    return {
        (arm, seed): r for (arm, seed), r in found.items() if all((other, seed) in found for other in condition.arms)
    }


def progress() -> str:
    """Say how much of the plan has been run, and what a run costs."""
    groups = {"pilots": (*PILOTS, *LONG_PILOTS), "main comparison": (MAIN_CONDITION,), "side tables": SIDE}
    counts = {name: np.sum([count(condition) for condition in some], axis=0) for name, some in groups.items()}
    done, planned = sum(counts.values())
    state = "All runs of the plan are done" if done == planned else f"**So far {done} of {planned} runs are done**"
    detail = ", ".join(f"{name} {n} of {total}" for name, (n, total) in counts.items())
    heads = {name: [record.head for record in records.of_condition(name).values()] for name in CONDITIONS}
    spent = {name: [head["cpu_seconds"] for head in some if "cpu_seconds" in head] for name, some in heads.items()}
    uncounted = sum(map(len, heads.values())) - sum(map(len, spent.values()))
    return (
        f"{state}: {detail}. They took {sum(map(sum, spent.values())) / 3600:.1f} hours of one core, without the"
        f" first {uncounted}, which kept no count; a run of the main comparison takes"
        f" {np.median(spent[MAIN_CONDITION.name]):.0f} s."
    )


def main_differences(plan: dict[str, Any]) -> list[Difference]:
    """Return the declared comparisons of the main runs, as one family."""
    pairs = [(arm, baseline) for arm, baseline in plan["comparisons"]]
    return comparison.differences(whole_seeds(MAIN_CONDITION), pairs, plan["margin_of_equivalence"])


def side_pairs(condition: Condition) -> list[tuple[str, str]]:
    """Return what a side table compares: every arm with GRPO, and Durian with what it must beat besides."""
    pairs = [(arm, declaration.BASELINE) for arm in condition.arms if arm != declaration.BASELINE]
    others = [pair for pair in declaration.PAIRS if declaration.BASELINE not in pair]
    return pairs + [pair for pair in others if {*pair} <= {*condition.arms}]


def side_records(condition: Condition) -> comparison.Records:
    """Return the records that a side table is made of."""
    found = whole_seeds(condition)
    if condition.name == "others":
        main = records.of_condition(MAIN_CONDITION.name)
        found |= {key: record for key, record in main.items() if key[0] in ("grpo", "batch-std")}
    return found


def side_differences(plan: dict[str, Any], condition: Condition) -> list[Difference]:
    """Return a side table's comparisons, as one family."""
    return comparison.differences(side_records(condition), side_pairs(condition), plan["margin_of_equivalence"])


def sgd_means() -> dict[str, dict[float, float]]:
    """Return each arm's mean accuracy by learning rate of plain SGD; nothing until all rates have been run."""
    found = {condition.lr: whole_seeds(condition) for condition in SGD}
    if not all(found.values()):
        return {}
    finals = {
        arm: {lr: [comparison.final(r) for (name, _), r in some.items() if name == arm] for lr, some in found.items()}
        for arm in SGD[0].arms
    }
    return {arm: {lr: float(np.mean(values)) for lr, values in of_arm.items()} for arm, of_arm in finals.items()}


def best_rate(means: dict[float, float]) -> float:
    """Return the learning rate with the highest accuracy."""
    return max(means, key=lambda lr: means[lr])


def sgd_differences(plan: dict[str, Any]) -> list[Difference]:
    """Return the comparisons of arms, each at its best learning rate of plain SGD, as one family."""
    best = {arm: best_rate(means) for arm, means in sgd_means().items()}
    found = {
        (arm, seed): record
        for condition in SGD
        for (arm, seed), record in whole_seeds(condition).items()
        if best.get(arm) == condition.lr
    }
    return comparison.differences(found, side_pairs(SGD[0]), plan["margin_of_equivalence"])


def by_condition(plan: dict[str, Any]) -> dict[str, list[Difference]]:
    """Return Durian against GRPO and against batch std under every condition that has both, the main one first.

    Plain SGD is one condition, each arm at its best learning rate: at one rate for all, some arms diverge.
    """
    found = {MAIN_CONDITION.about: main_differences(plan)}
    found |= {condition.about: side_differences(plan, condition) for condition in COMPARED if condition not in SGD}
    found[SGD_ABOUT] = sgd_differences(plan)
    pairs = [("durian", "grpo"), ("durian", "batch-std"), ("batch-std", "grpo")]
    chosen = {
        about: [d for pair in pairs for d in some if (d.arm, d.baseline) == pair] for about, some in found.items()
    }
    return {about: some for about, some in chosen.items() if len(some) == len(pairs)}


def warm_accuracy() -> float:
    """Return the accuracy of the policy that all runs start from."""
    rows = mechanism.read(tables.FOLDER / "suite.csv")
    return next(row["accuracy"] for row in rows if row["form"] == "all forms")


def scale_part(plan: dict[str, Any]) -> str:
    """Put the margin in proportion: to what GRPO gains here, and to what the paper's arms gain."""
    found = whole_seeds(MAIN_CONDITION)
    if not found or not (tables.FOLDER / "suite.csv").exists():
        return ""
    warm, grpo = warm_accuracy(), comparison.means(found, ["grpo"])["grpo"][0]
    gain, margin = 100 * (grpo - warm), 100 * plan["margin_of_equivalence"]
    share = paper.EXTRA / paper.GAIN
    return prose.SCALE.format(
        margin=margin, gain=gain, warm=warm, grpo=grpo, share=margin / gain, paper_gain=paper.GAIN,
        paper_extra=paper.EXTRA, paper_share=share, scaled=share * gain,
    )  # fmt: skip


def structure_part(plan: dict[str, Any]) -> str:
    """Say what to choose by the structure of one's rewards, with what was measured of it."""
    (condition,) = [condition for condition in COMPARED if condition.format_weight]
    found = [d for d in side_differences(plan, condition) if (d.arm, d.baseline) == ("durian", "grpo")]
    measured = [f"{prose.said(d, plan['margin_of_equivalence'])} ({d.seeds} seeds)" for d in found] or ["not run yet"]
    return prose.STRUCTURE.format(bound=closed_forms.binary_bound(8), measured=measured[0])


def tail() -> str:
    """Return what the comparison leaves open."""
    errors = [row for row in mechanism.read(tables.FOLDER / "errors.csv") if row["score"] == "entropy"]
    number = {
        kind: sum(row["rate"] * row["prompts"] for row in errors if row["errors"] == kind) * tables.SAMPLES
        for kind in ("any", "reasoning")
    }
    rows = mechanism.read(tables.FOLDER / "correlations.csv")
    depth = {row["score"]: row["value"] for row in rows if row["with"] == "depth"}
    ratio = paper.std_ratio()
    return prose.TAIL.format(
        ratio=ratio, cosine=closed_forms.cosine_bound(1.0, ratio), reasoning=number["reasoning"], errors=number["any"],
        sum_depth=depth["confidence, sum"], mean_depth=depth["confidence, mean"],
    )  # fmt: skip


def gradient_cosines() -> dict[str, dict[str, list[float]]]:
    """Return the cosines of gradients with batch std at all checkpoints, by rewards and arm."""
    found: dict[str, dict[str, list[float]]] = {}
    if (mechanism.FOLDER / "pairs.csv").exists():
        for row in mechanism.read(mechanism.FOLDER / "pairs.csv"):
            pair = {row["arm"], row["with"]}
            if "batch-std" in pair:
                (arm,) = pair - {"batch-std"}
                found.setdefault(row["rewards"], {}).setdefault(arm, []).append(row["gradients"])
    return found


def mechanism_part() -> list[str]:
    """Return what one update says."""
    if not (mechanism.FOLDER / "arms.csv").exists():
        return ["## One update, without training\n\nNot measured yet."]
    arms = mechanism.read(mechanism.FOLDER / "arms.csv")
    pairs = mechanism.read(mechanism.FOLDER / "pairs.csv")
    bounds = {f"bound_{size}": closed_forms.binary_bound(size) for size in (2, 8, 16, 32)}
    parts = [prose.DERIVATION, prose.MECHANISM.format(**bounds, format_bound=closed_forms.format_bound(8))]
    parts.append(
        "![Cosine of GRPO's and Dr. GRPO's advantages over the group size, with its bound](evidence/bound.png)"
    )
    for rewards in ("binary", "0.9 + 0.1 format"):
        chosen = [row for row in arms if row["rewards"] == rewards]
        last = max(row["checkpoint"] for row in chosen)
        rows = []
        for row in (row for row in chosen if row["checkpoint"] == last):
            near = {name: _cosine(pairs, row["arm"], "batch-std", rewards, last, name)
                    for name in ("advantages", "gradients", "first_adam_steps")}  # fmt: skip
            rows.append([row["arm"], *(f"{value:.3f}" for value in near.values()), f"{row['alignment_corrected']:.3f}",
                         f"{row['noise_over_signal']:.1f}", f"{row['largest']:.2f}", f"{row['largest_over_rms']:.1f}",
                         f"{row['gradient_norm']:.3f}"])  # fmt: skip
        head = ["arm", "advantages", "gradients", "first Adam steps", "alignment", "noise / signal", "largest abs(A)",
                "over rms", "gradient norm"]  # fmt: skip
        parts.append(f"Rewards {rewards}, after {last:.0f} steps; the first three columns are cosines with batch std.")
        parts.append(table(head, rows))
    parts.append(prose.MECHANISM_COLUMNS)
    parts.append("![Which groups carry the update, by arm](evidence/shares.png)")
    checkpoints = sorted({row["checkpoint"] for row in arms})
    rows = []
    for arm in ("grpo", "durian", "reasoning", "random-buckets"):
        cells = [_cosine(pairs, arm, "batch-std", rewards, checkpoint, "gradients")
                 for rewards in ("binary", "0.9 + 0.1 format") for checkpoint in checkpoints]  # fmt: skip
        rows.append([arm, *(f"{cell:.3f}" for cell in cells)])
    head = ["cosine of gradients with batch std", *(f"{rewards}, step {checkpoint:.0f}"
            for rewards in ("binary", "format") for checkpoint in checkpoints)]  # fmt: skip
    parts.append(table(head, rows))
    return parts


def suite_part() -> list[str]:
    """Return what the tasks are and what their dials do."""
    if not (tables.FOLDER / "suite.csv").exists():
        return ["## The tasks\n\nNot measured yet."]
    measured = mechanism.read(tables.FOLDER / "suite.csv")
    rows = [
        [row["form"], f"{row['prompts']:.0f}", f"{row['depth']:.1f}", f"{row['accuracy']:.1%}",
         f"{row['effective']:.0%}", f"{row['clutter_accuracy']:+.2f}", f"{row['entropy_accuracy']:+.2f}"]
        for row in measured
    ]  # fmt: skip
    head = ["question", "prompts", "depth", "accuracy", "groups with signal", "clutter, accuracy", "entropy, accuracy"]
    *forms, _, mean = [row["clutter_accuracy"] for row in measured]
    made, strong = Settings(), sum(abs(value) >= 0.3 for value in forms)
    said = prose.SUITE.format(guess=made.guess_share, careless=made.careless_share, malformed=made.malformed_share,
                              strong=strong, forms=len(forms), mean=mean)  # fmt: skip
    return [said, table(head, rows)]


def declared_part(plan: dict[str, Any]) -> list[str]:
    """Return what was declared before the main runs."""
    rows = [["main", f"{plan['seeds']}", f"{len(plan['comparisons'])}", *_points(plan["smallest_detectable"].values())]]
    for condition in COMPARED:
        if comparisons := len(side_pairs(condition)):
            found = [comparison.detectable(plan[name], condition.seeds, comparisons)
                     for name in ("paired_deviation", "paired_deviation_upper_80")]  # fmt: skip
            rows.append([condition.name, f"{condition.seeds}", f"{comparisons}", *_points(found)])
    sweep = [[arm, *(f"{found[arm]:.1%}" if arm in found else "" for found in plan["sweep"].values())] for arm in MAIN]
    return [
        prose.DECLARED.format(
            date=plan["date"], lr=plan["learning_rate"], deviation=100 * plan["paired_deviation"],
            freedom=plan["degrees_of_freedom"], upper=100 * plan["paired_deviation_upper_80"],
            margin=100 * plan["margin_of_equivalence"], comparisons=len(plan["comparisons"]),
        ),
        table(["table", "seeds", "comparisons", "detectable, points", "at the deviation's upper limit"], rows),
        "![Held-out accuracy over learning rates, all arms](evidence/sweep.png)",
        table(["arm", *(f"{pilot.lr:g}, {pilot.steps} steps" for pilot in (*PILOTS, *LONG_PILOTS))], sweep),
    ]  # fmt: skip


def main_part(plan: dict[str, Any]) -> list[str]:
    """Return the main comparison."""
    found, differences = whole_seeds(MAIN_CONDITION), main_differences(plan)
    done, planned = count(MAIN_CONDITION)
    head = f"## The main comparison: {done} of {planned} runs"
    if not differences:
        return [head, prose.MAIN, "Not enough seeds yet."]
    deviation = float(np.median([d.deviation for d in differences]))
    return [
        head,
        prose.MAIN,
        prose.INTERIM if done < planned else "",
        "![Each arm minus its baseline, with paired intervals](evidence/main.png)",
        difference_table(differences, plan["margin_of_equivalence"]),
        f"Seeds compared: those {differences[0].seeds} that all arms have. The paired differences' median deviation is"
        f" {100 * deviation:.2f} points; the pilots said {100 * plan['paired_deviation']:.2f}.",
        "![Held-out accuracy over the steps, and each arm minus GRPO](evidence/curves.png)",
        arm_table(MAIN_CONDITION, found),
        prose.WHERE,
        where_table(found, plan),
    ]


def side_part(plan: dict[str, Any]) -> list[str]:
    """Return the exploratory tables."""
    parts = [prose.SIDE]
    margin = plan["margin_of_equivalence"]
    if "conditions" in pictures():
        parts.append(
            "![Durian minus GRPO, Durian minus batch std, batch std minus GRPO, by condition](evidence/conditions.png)"
        )
    for condition in COMPARED:
        done, planned = count(condition)
        parts.append(f"### {condition.about[0].upper()}{condition.about[1:]}: {done} of {planned} runs")
        differences = side_differences(plan, condition)
        parts.append(difference_table(differences, margin) if differences else "Not run yet, or too few seeds.")
        if differences:
            parts.append(arm_table(condition, side_records(condition)))
    if best := sgd_differences(plan):
        parts += [f"### {SGD_ABOUT[0].upper()}{SGD_ABOUT[1:]}", prose.SGD.format(warm=warm_accuracy())]
        parts += [rate_table(), difference_table(best, margin)]
    return parts


def difference_table(found: list[Difference], margin: float) -> str:
    """Return differences as a Markdown table, in percentage points."""
    rows = [
        [f"{d.arm} - {d.baseline}", f"{d.seeds}", f"{100 * d.mean:+.2f}", f"[{100 * d.low:+.2f}, {100 * d.high:+.2f}]",
         _p(d.p_corrected), _p(d.p_equivalent), d.verdict(margin)]
        for d in found
    ]  # fmt: skip
    head = ["arms", "seeds", "difference", "95% interval", "p", "p of equivalence", "verdict"]
    return table(head, rows)


def arm_table(condition: Condition, found: comparison.Records) -> str:
    """Return each arm's accuracy: mean over seeds with its interval, greedy, and over the run."""
    arms = [arm for arm in dict.fromkeys(arm for arm, _ in found) if sum(name == arm for name, _ in found) >= 3]
    order = [arm for arm in (*MAIN, *OTHERS) if arm in arms]
    rows = []
    for arm, (point, low, high) in comparison.means(found, order).items():
        some = [record for (name, _), record in found.items() if name == arm]
        rows.append([arm, f"{len(some)}", f"{point:.2%}", f"[{low:.2%}, {high:.2%}]",
                     f"{np.mean([comparison.greedy(r) for r in some]):.2%}",
                     f"{np.mean([comparison.over_the_run(r) for r in some]):.2%}",
                     f"{np.mean([row['gradient_norm'] for r in some for row in r.steps]):.3f}",
                     f"{np.max([row['largest_advantage'] for r in some for row in r.steps]):.1f}"])  # fmt: skip
    return table(["arm", "seeds", "sampled, mean", "95% interval", "greedy", "mean over the run",
                  "gradient norm", "largest abs(A)"], rows)  # fmt: skip


def where_table(found: comparison.Records, plan: dict[str, Any]) -> str:
    """Return the differences to GRPO on parts of the exam: thirds of clutter, forms of questions."""
    keys = [key for key in next(iter(found.values())).head["final"] if key.startswith(("clutter", "form"))]
    rows = []
    for arm in MAIN[1:]:
        cells = []
        for key in keys:
            margin = plan["margin_of_equivalence"]
            some = comparison.differences(found, [(arm, "grpo")], margin, comparison.part(key))
            cells += [f"{100 * d.mean:+.2f} ± {100 * d.deviation / np.sqrt(d.seeds):.2f}" for d in some]
        rows.append([arm, *cells])
    return table(["minus GRPO, ± standard error", *keys], rows)


def rate_table() -> str:
    """Return each arm's accuracy at each learning rate of plain SGD."""
    rows = [
        [arm, *(f"{value:.2%}" for value in means.values()), f"{best_rate(means):g}"]
        for arm, means in sgd_means().items()
    ]
    return table(["arm", *(f"lr {condition.lr:g}" for condition in SGD), "best"], rows)


def sources(name: str) -> list[Path]:
    """Return the record files that a picture is drawn from."""
    if name in ("bound", "shares"):
        return [mechanism.FOLDER / ("group_sizes.csv" if name == "bound" else "arms.csv")]
    return [records.TABLE]


def pictures() -> list[str]:
    """Name the pictures that the records there are give."""
    names = ["sweep"]
    names += ["bound", "shares"] if (mechanism.FOLDER / "arms.csv").exists() else []
    names += ["extremes"] if records.of_condition(MAIN_CONDITION.name) else []
    plan = declaration.read()
    names += ["main", "curves"] if main_differences(plan) else []
    names += ["conditions"] if len(by_condition(plan)) > 1 else []
    return names


def draw() -> None:
    """Draw the pictures."""
    from studies.evidence import figures  # matplotlib is needed for the pictures alone

    plan, found = declaration.read(), whole_seeds(MAIN_CONDITION)
    PICTURES.mkdir(exist_ok=True)
    drawn = {
        "sweep": lambda path, source: figures.sweep(path, source),
        "bound": lambda path, source: figures.bound(path, source[0]),
        "shares": lambda path, source: figures.shares(path, source[0]),
        "extremes": lambda path, source: figures.extremes(found, paper.EXTREMES, path, source),
        "main": lambda path, source: figures.forest(
            main_differences(plan), plan["margin_of_equivalence"],
            plan["smallest_detectable"]["at_the_deviation"],
            "Differences in held-out accuracy", path, source,
        ),
        "curves": lambda path, source: figures.curves(found, MAIN, "Main comparison", path, source),
        "conditions": lambda path, source: figures.conditions(
            by_condition(plan), plan["margin_of_equivalence"], path, source
        ),
    }  # fmt: skip
    for name in pictures():
        drawn[name](PICTURES / f"{name}.png", sources(name))


def main() -> None:
    """Write everything."""
    draw()
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)} and {len(pictures())} pictures")


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _points(values: Iterable[float]) -> list[str]:
    return [f"{100 * value:.2f}" for value in values]


def _cosine(rows: list[dict[str, Any]], one: str, other: str, rewards: str, checkpoint: float, what: str) -> float:
    if one == other:
        return 1.0
    for row in rows:
        if {row["arm"], row["with"]} == {one, other} and row["rewards"] == rewards and row["checkpoint"] == checkpoint:
            return row[what]
    raise LookupError(f"pairs.csv: no row of {one} with {other}, {rewards}, step {checkpoint:.0f}")
