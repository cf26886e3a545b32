"""The paper's tables at this scale: its numbers beside ours."""

import numpy as np

from studies.evidence import comparison, mechanism, prose, records, tables
from studies.evidence.conditions import CONDITIONS, MAIN_CONDITION
from studies.evidence.markdown import table

# Appendix A: share of extreme groups among the effective ones by step, and effective groups of 512.
EXTREMES = {1: 0.368, 10: 0.391, 20: 0.377, 30: 0.363, 40: 0.444, 50: 0.3631, 60: 0.435}
EFFECTIVE = {1: 323, 10: 327, 20: 324, 30: 322, 40: 297, 50: 314, 60: 306}
# Main table: what GRPO gains over the base model, and Durian over GRPO, in points.
GAIN, EXTRA = 56.9 - 53.3, 59.2 - 56.9
# Tables 5 and 6: shares of the errors of a kind by bucket, and the accuracy (main table) of that benchmark.
ACCURACY = {"We-Math": 0.718, "HallusionBench": 0.712}
PERCEPTION = {"We-Math": (23.6, 31.3, 45.1), "HallusionBench": (21.2, 29.6, 49.2)}  # by entropy
REASONING = {  # by confidence
    "We-Math": (13.4, 12.6, 13.2, 12.7, 11.6, 9.1, 9.7, 7.2, 6.7, 4.2),
    "HallusionBench": (12.7, 11.9, 11.2, 11.7, 10.0, 9.8, 9.0, 8.2, 8.3, 7.1),
}
ENTROPY_BUCKETS = (0.25, 0.5, 0.25)  # of the prompts: eq. 10
# What is varied: condition and arm of ours, and the paper's accuracy in percent.
WEIGHTS = {
    ".1, .2, .7 (the default)": ("main", "durian", 58.78),
    ".15, .25, .6": ("weights", "weights-0.15-0.25-0.6", 58.56),
    ".2, .1, .7": ("weights", "weights-0.2-0.1-0.7", 58.50),
    ".3, .1, .6": ("weights", "weights-0.3-0.1-0.6", 58.32),
    ".4, .3, .3": ("weights", "weights-0.4-0.3-0.3", 58.56),
    ".6, .2, .2": ("main", "durian-622", 58.76),
    ".7, .1, .2": ("weights", "weights-0.7-0.1-0.2", 58.12),
}
BUCKETS = {
    "4": ("buckets", "buckets-4", 55.92),
    "6": ("buckets", "buckets-6", 57.52),
    "12 (the default)": ("wide", "durian", 58.54),
    "20": ("buckets", "buckets-20", 57.88),
    "32": ("buckets", "buckets-32", 57.68),
}
RESPONSES = {
    "2": ("group-2", "durian", 48.7),
    "4": ("group-4", "durian", 50.1),
    "8": ("main", "durian", 51.9),
    "16": ("group-16", "durian", 52.1),
}
GRPO_RESPONSES = {f"{size}, GRPO": (name, "grpo", None) for size, (name, _, _) in RESPONSES.items()}


def part() -> list[str]:
    """Return the tables; of runs that are still to come, nothing."""
    main = records.of_condition(MAIN_CONDITION.name)
    parts = [prose.PAPER]
    if main:
        picture = "![Share of extreme groups over the steps, with the paper's](evidence/extremes.png)"
        parts += ["### Appendix A: extreme groups", picture, extremes_table(main)]
    parts.append("### Appendix B: do the scores point at the errors?")
    if (tables.FOLDER / "correlations.csv").exists():
        parts += [prose.CORRELATIONS, correlations_table(), *error_tables()]
    else:
        parts.append("Not measured yet.")
    for title, head, settings in (
        ("Number of confidence buckets, 256 prompts per step: at least 8 prompts in each", "buckets", BUCKETS),
        ("Weights of the three components", "weights", WEIGHTS),
        ("Responses per prompt", "G", RESPONSES | GRPO_RESPONSES),
    ):
        rows = accuracy_rows(settings)
        parts.append(f"### {title}: {len(rows)} of {len(settings)} settings")
        columns = [head, "seeds", "held-out accuracy", "standard error", "paper"]
        parts.append(table(columns, rows) if rows else "Not run yet.")
    return parts


def std_ratio() -> float:
    """Return the largest ratio of bucket stds that the error shares imply if all errors spread like those of a kind.

    A bucket that has a share e of the errors and a share b of the prompts has error rate q = e / b (1 - accuracy),
    hence std sqrt(q (1 - q)).
    """
    ratios = []
    for table_, sizes in ((PERCEPTION, ENTROPY_BUCKETS), (REASONING, (0.1,) * 10)):
        for benchmark, shares in table_.items():
            rates = np.array(shares) / sum(shares) / sizes * (1 - ACCURACY[benchmark])
            stds = np.sqrt(rates * (1 - rates))
            ratios.append(float(stds.max() / stds.min()))
    return max(ratios)


def accuracy_rows(settings: dict[str, tuple[str, str, float | None]]) -> list[list[str]]:
    """Return mean and standard error of each setting, over the seeds that the smallest of their conditions has."""
    seeds = min(CONDITIONS[name].seeds for name, _, _ in settings.values())
    rows = []
    for label, (name, arm, theirs) in settings.items():
        found = records.of_condition(name)
        values = [comparison.final(found[arm, seed]) for seed in range(seeds) if (arm, seed) in found]
        if len(values) > 1:
            error = np.std(values, ddof=1) / np.sqrt(len(values))
            said = "" if theirs is None else f"{theirs}%"
            rows.append([label, f"{len(values)}", f"{np.mean(values):.2%}", f"{error:.2%}", said])
    return rows


def correlations_table() -> str:
    """Return the rank correlations of the scores, one row each."""
    rows = mechanism.read(tables.FOLDER / "correlations.csv")
    columns = list(dict.fromkeys(row["with"] for row in rows))
    value = {(row["score"], row["with"]): f"{row['value']:+.2f}" for row in rows}
    scores = dict.fromkeys(row["score"] for row in rows)
    return table(["score", *columns], [[score, *(value.get((score, c), "") for c in columns)] for score in scores])


def extremes_table(found: comparison.Records) -> str:
    """Return Appendix A: ours in shares, beside the paper's."""
    rows = []
    for step in EXTREMES:
        cells = []
        for arm in ("grpo", "durian"):
            some = [record.steps[step - 1] for (name, _), record in found.items() if name == arm]
            if some:
                effective = sum(row["effective"] for row in some)
                prompts = MAIN_CONDITION.prompts * len(some)
                extreme = sum(row["extreme_success"] + row["extreme_failure"] for row in some)
                cells += [f"{effective / prompts:.0%}", f"{extreme / effective:.1%}"]
        rows.append([f"{step}", *cells, f"{EFFECTIVE[step] / 512:.0%}", f"{EXTREMES[step]:.1%}"])
    return table(["step", "GRPO: effective", "extreme of them", "Durian: effective", "extreme of them",
                  "paper: effective", "extreme of them"], rows)  # fmt: skip


def error_tables() -> list[str]:
    """Return the shares of errors by bucket, with how many there are."""
    rows = mechanism.read(tables.FOLDER / "errors.csv")
    found = []
    for scores in (("entropy", "entropy thirds"), ("confidence, sum", "confidence, mean")):
        cells = []
        for score in scores:
            for kind in ("any", *tables.ERRORS):
                some = [row for row in rows if row["score"] == score and row["errors"] == kind]  # buckets in order
                number = sum(row["rate"] * row["prompts"] for row in some) * tables.SAMPLES
                cells.append([score, kind, f"{number:,.0f}", *(f"{100 * row['share']:.1f}" for row in some)])
        buckets = max(len(row) for row in cells) - 3
        found.append(table(["score", "errors", "number", *(f"bucket {k}" for k in range(buckets))], cells))
    return [prose.ERRORS, *found]
