"""The evidence in small: the mechanism, and 4 arms x 6 seeds x 25 steps, in minutes."""

from pathlib import Path

from studies.evidence import comparison, mechanism, records, runner
from studies.evidence.conditions import QUICK, runs_of
from studies.evidence.declaration import MARGIN
from studies.evidence.suite import Suite


def main(suite: Suite, out: Path) -> None:
    """Measure, train, and print what came of it; finished runs are kept, so a second call only prints."""
    if not (out / "mechanism" / "arms.csv").exists():
        mechanism.main(suite, out / "mechanism", steps=(0,), batches=3, held_out=3)
    runner.run_all(runs_of([QUICK]), suite, folder=out / "runs", cache=out)
    print(f"\n{text(out)}\n\n{out}")


def text(out: Path) -> str:
    """Return the result as text."""
    found = records.of_condition(QUICK.name, records.read_folder(out / "runs"))
    lines = [f"{'held-out accuracy after ' + str(QUICK.steps) + ' steps':40} mean [95% interval]"]
    for arm, (point, low, high) in comparison.means(found, list(QUICK.arms)).items():
        lines.append(f"  {arm:38} {point:.1%} [{low:.1%}, {high:.1%}]")
    lines.append(f"\n{'paired differences, 6 seeds':40} mean [95% interval], and what follows")
    for d in comparison.differences(found, [(arm, "grpo") for arm in QUICK.arms if arm != "grpo"], MARGIN):
        verdict = d.verdict(MARGIN)
        lines.append(f"  {d.arm + ' - ' + d.baseline:38} {d.mean:+.2%} [{d.low:+.2%}, {d.high:+.2%}] {verdict}")
    lines.append(f"\n{'cosine with GRPO, warm policy':40} advantages  gradients  first Adam steps")
    for row in mechanism.read(out / "mechanism" / "pairs.csv"):
        if row["with"] == "grpo" and row["arm"] in QUICK.arms and row["rewards"] == "binary":
            cells = "  ".join(f"{row[name]:10.4f}" for name in ("advantages", "gradients", "first_adam_steps"))
            lines.append(f"  {row['arm']:38}{cells}")
    return "\n".join(lines)
