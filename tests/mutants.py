"""Count what ``mutmut`` found, and hold every survivor against ``tests/records/survivors.csv``, which explains it.

Run by ``make mutants`` after mutmut, or by itself at any time: what was not run yet is counted as that.
"""

from __future__ import annotations

import collections
import csv
import datetime
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/trust.md"
RECORD = ROOT / "tests/records/mutants.csv"
SURVIVORS = ROOT / "tests/records/survivors.csv"
DEAD = ("killed", "timeout", "segfault", "caught by type check")
GOAL = 0.9
START, END = "<!-- mutants: written by make mutants -->", "<!-- end of mutants -->"


def change(mutant):
    """What a mutant changes: the lines before and after."""
    shown = subprocess.run(
        [Path(sys.executable).parent / "mutmut", "show", mutant], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    body = [line for line in shown if not line.startswith(("---", "+++", "#", "@@"))]
    return tuple(" ".join(line[1:].strip() for line in body if line.startswith(sign)) for sign in "-+")


def main():
    from mutmut.stats import status_by_exit_code  # in the environment of make mutants alone

    with SURVIVORS.open(newline="") as file:
        explained = {(row["function"], row["before"], row["after"]): row["why"] for row in csv.DictReader(file)}
    rows, open_survivors, survivors = [], [], []
    for path in sorted((ROOT / "mutants/durian_adv").glob("*.meta")):
        module = path.name.removesuffix(".py.meta")
        counts = collections.Counter()
        for mutant, code in json.loads(path.read_text())["exit_code_by_key"].items():
            status = "not run" if code is None else status_by_exit_code[code]
            counts["killed" if status in DEAD else status] += 1
            if status in ("survived", "no tests", "suspicious"):
                function = mutant.split("__mutmut_")[0].removeprefix("durian_adv.").replace(".x_", ".")
                key = (function, *change(mutant))
                survivors.append((*key, explained.get(key, "")))
                if not explained.get(key):
                    open_survivors.append(mutant)
        run = sum(counts.values()) - counts["not run"]
        rows.append((module, sum(counts.values()), run, counts["killed"], run - counts["killed"]))
    with RECORD.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("date", "module", "mutants", "run", "killed", "survived"))
        out.writerows((datetime.datetime.now(datetime.UTC).date(), *row) for row in rows)
    with SURVIVORS.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("function", "before", "after", "why"))
        out.writerows(sorted(survivors))
    sums = ("all", *(sum(row[i] for row in rows) for i in range(1, 5)))
    table = ["| module | mutants | run | killed | survived | killed of run |", "|---|---|---|---|---|---|"]
    for row in (*rows, sums):
        table.append(f"| {' | '.join(map(str, row))} | {f'{row[3] / row[2]:.1%}' if row[2] else ''} |")
    before, _, rest = PAGE.read_text().partition(START)
    PAGE.write_text("\n".join([before + START, "", *table, "", END]) + rest.partition(END)[2])
    share = sums[3] / max(1, sums[2])
    print(*table, f"{len(open_survivors)} survivors without an explanation", sep="\n")
    if share < GOAL or open_survivors:
        sys.exit("\n".join([f"the goal is {GOAL:.0%}, and no survivor unexplained", *open_survivors]))


if __name__ == "__main__":
    main()
