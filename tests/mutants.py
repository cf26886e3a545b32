"""Mutation testing, module by module; every survivor needs a reason in ``tests/records/survivors.csv``.

``python tests/mutants.py`` runs all that has not been run; ``--survivors`` runs those again that lived, after a test
was written; ``--count`` runs nothing. Named modules are run alone. Each module has a working copy in ``out/mutants``.
"""

from __future__ import annotations

import argparse
import ast
import collections
import csv
import datetime
import difflib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIES = ROOT / "out/mutants"
PAGE = ROOT / "docs/trust.md"
RECORD = ROOT / "tests/records/mutants.csv"
SURVIVORS = ROOT / "tests/records/survivors.csv"
GOAL = 0.9
START, END = "<!-- mutants: written by make mutants -->", "<!-- end of mutants -->"
COLUMNS = ("date", "commit", "module", "mutants", "run", "killed", "timed out", "survived")
STATUS = {"killed": "killed", "segfault": "killed", "timeout": "timed out"}

# module -> the test files that are about it, a few seconds together; mutmut runs those of their tests that reach a
# function, the fastest first. Not what compiles: a graph cannot hold the switch between mutants.
TESTS = {
    "weighting": "weighting messages",
    "data.hints": "hints",
    "_src.exact": "exact advantages extremes regressions",
    "_src.buckets": "buckets messages regressions",
    "_src.confidence": "confidence messages regressions",
    "diagnostics": "diagnostics messages",
    "_src.layout": "advantages durian rollouts window regressions worth diagnostics",
    "_src.partitions": "partitions buckets durian",
    "_src.scales": "durian extremes baselines",
    "_src.advantages": "advantages messages regressions",
    "baselines": "baselines messages",
    "data.json_lines": "tables rollout_log",
    "data.tables": "tables curation",
    "data.logs.steps": "rollout_log",
    "data.curation": "curation",
    "_src.checks": "messages buckets confidence distributed",
    "_src.durian": "durian messages distributed",
    "window": "window messages",
    "worth": "worth",
    "_src.entropy": "entropy messages",
    "_src.certified": "certified messages",
    "_src.distributed": "distributed",
    "cli.main": "cli",
    "estimator": "estimator",
    "_src.rows": "rows estimator",
    "_src.options": "options",
    "_src.errors": "errors",
    "adapters._preflight": "adapters",
    "adapters._entropy": "adapters",
    "adapters._fit": "fit",
    "data.scoring.images": "visual_images",
    "data.scoring.cache": "visual_scoring",
    "data.scoring.rows": "visual_scoring visual_images",
    "data.scoring.data": "visual_data visual_command",
    "data.scoring.encoders": "visual_scorer",
    "data.scoring.efficientnet": "visual_scorer",
    "data.scoring.scorer": "visual_scorer",
    "report.verdict": "report_verdict",
    "report.advice": "report_advice",
    "report.arms": "report_advice report_numbers",
    "report.numbers": "report_numbers report_verdict report_advice",
    "report.words": "report_advice report_verdict",
    "report.page": "report_page",
    "cli.metrics": "cli",
    "cli.rollouts": "cli report_page",
    "cli.curate": "cli curation",
    "cli.report": "cli report_page report_figures",
    "cli.entropy": "cli visual_data visual_command",
    "cli.preflight": "cli preflight",
}
# slow, or about the modules as they stand in the tree
LEFT_OUT = (
    "tests/test_certified.py::test_a_natural_spectrum_needs_eigenvalues_of_a_few_images_only",
    "tests/test_certified.py::test_buckets_of_large_images_are_the_exact_ones",
    "tests/test_certified.py::test_buckets_of_real_encoder_features_are_the_exact_ones",
    "tests/test_certified.py::test_intervals_of_large_images_contain_the_exact_entropy",
    "tests/test_certified.py::test_the_rounding_of_rows_of_like_numbers_moves_no_interval",
    "tests/test_entropy.py::test_memory_beyond_the_input_does_not_grow_with_the_number_of_images",
    "tests/test_rollout_log.py::test_memory_does_not_grow_with_the_log",
    "tests/test_visual_command.py::test_a_killed_run_goes_on_where_it_was",
    "tests/test_report_page.py::test_a_long_log_is_not_held_in_memory",
    *(
        f"tests/test_report_figures.py::test_{name}"
        for name in (
            "the_same_log_gives_the_same_page",
            "a_log_at_the_edges_has_a_page_without_a_warning",
            "more_buckets_than_bars_are_a_line",
            "what_goes_by_correctness_is_left_out_where_it_is_not_known",
            "durian_without_scores_is_drawn_as_grpo",
        )
    ),
    # of several processes, in which mutmut sees no call: see docs/trust.md
    *(
        f"tests/test_distributed.py::test_{name}"
        for name in (
            "ranks_together_give_the_bits_of_one_process",
            "durian_advantage_takes_a_group_too",
            "each_rank_keeps_its_own_dtype",
            "ranks_that_differ_raise_on_every_rank",
            "an_argument_that_is_at_fault_on_one_rank_raises_on_every_rank",
            "a_tensor_that_cannot_be_read_on_one_rank_raises_on_every_rank",
            "options_that_mean_the_same_are_the_same",
            "a_group_without_this_rank_is_refused",
            "a_rank_that_dies_in_a_call_leaves_no_result_anywhere",
        )
    ),
)


def source(module):
    """The file of a module: durian_adv/_src/exact.py for _src.exact."""
    return f"durian_adv/{module.replace('.', '/')}.py"


def copy(module):
    """The working copy of a module: links to the tree, and a configuration with this module and its tests alone."""
    folder = COPIES / module
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("durian_adv", "tests", "benchmarks", "studies", "README.md"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(ROOT / name)
    tests = [f"tests/test_{name}.py" for name in TESTS[module].split()]
    tests += [f"--deselect={name}" for name in LEFT_OUT if name.partition("::")[0] in tests]
    mine = {"only_mutate": [source(module)], "pytest_add_cli_args_test_selection": tests}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in mine.items())
    written = (ROOT / "pyproject.toml").read_text().replace("source_paths = ", f"{lines}source_paths = ")
    (folder / "pyproject.toml").write_text(written)
    return folder


def mutmut(module, *arguments, **options):
    """Run mutmut in a module's working copy."""
    command = [Path(sys.executable).parent / "mutmut", *arguments]
    environment = os.environ | {"HYPOTHESIS_PROFILE": "mutants"}
    return subprocess.run(command, cwd=COPIES / module, env=environment, check=True, text=True, **options)


def results(module):
    """Mutant -> what became of it, None where it was not run."""
    from mutmut.stats import status_by_exit_code  # in the environment of make mutants alone

    meta = COPIES / module / f"mutants/{source(module)}.meta"
    if not meta.exists():
        return {}
    codes = json.loads(meta.read_text())["exit_code_by_key"]
    return {mutant: None if code is None else status_by_exit_code[code] for mutant, code in codes.items()}


def survivors(module):
    return [mutant for mutant, status in results(module).items() if status is not None and status not in STATUS]


def changes(module):
    """Mutant -> its function, the lines before and after; of the survivors of a module."""
    lived, path = survivors(module), COPIES / module / "mutants" / source(module)
    if not lived:
        return {}
    text, found = path.read_text(), {}
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and "__mutmut_" in node.name:
            plain = node.name.partition("__mutmut_")[0]
            found[node.name] = [line.replace(node.name, plain) for line in lines[node.lineno - 1 : node.end_lineno]]
    out = {}
    for mutant in lived:
        name = mutant.rpartition(".")[2]
        plain = name.partition("__mutmut_")[0]
        both = difflib.unified_diff(found[f"{plain}__mutmut_orig"], found[name], n=0, lineterm="")
        body = [line for line in both if not line.startswith(("---", "+++", "@@"))]
        before, after = (" ".join(line[1:].strip() for line in body if line.startswith(sign)) for sign in "-+")
        out[mutant] = (f"{module}.{plain.removeprefix('x_')}", before, after)
    return out


def head():
    """The commit that the working tree is at."""
    done = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "?"


def count():
    """Write the record, the list of survivors and the page; return the share killed, and survivors without a reason.

    A module that was not run here keeps what its last run found, at the commit of that run.
    """
    kept = {row["module"]: row for row in read(RECORD)}
    earlier = read(SURVIVORS)
    explained = {(row["function"], row["before"], row["after"]): row["why"] for row in earlier}
    today, commit = str(datetime.datetime.now(datetime.UTC).date()), head()
    rows, lived, unexplained = [], [], []
    for module in TESTS:
        found = results(module) if (COPIES / module / "mutants").exists() else {}
        by = collections.Counter(STATUS.get(status, "survived") for status in found.values() if status is not None)
        if not by:
            if module in kept:
                rows.append(kept[module])
                lived += [tuple(row.values()) for row in earlier if row["function"].startswith(f"{module}.")]
            continue
        numbers = (len(found), by.total(), by["killed"], by["timed out"], by["survived"])
        rows.append(dict(zip(COLUMNS, (today, commit, module, *map(str, numbers)), strict=True)))
        for mutant, key in changes(module).items():
            lived.append((*key, explained.get(key, "")))
            if not explained.get(key):
                unexplained.append(mutant)
    write(RECORD, COLUMNS, [tuple(row.values()) for row in rows])
    write(SURVIVORS, ("function", "before", "after", "why"), sorted(set(lived)))
    table = page(rows)
    before, _, rest = PAGE.read_text().partition(START)
    PAGE.write_text("\n".join([before + START, "", *table, "", END]) + rest.partition(END)[2])
    print(*table, sep="\n")
    run, survived = (sum(int(row[name]) for row in rows) for name in ("run", "survived"))
    return 1 - survived / max(1, run), unexplained


def page(rows):
    """The table of the page."""
    counted = COLUMNS[3:]
    whole = {name: str(sum(int(row[name]) for row in rows)) for name in counted} | {"module": "all", "commit": ""}
    names = ("module", *counted, "killed of run", "measured at")
    table = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in (*rows, whole):
        share = f"{1 - int(row['survived']) / int(row['run']):.1%}" if int(row["run"]) else ""
        commit = f"`{row['commit']}`" if row["commit"] else ""
        table.append(f"| {' | '.join((row['module'], *(row[name] for name in counted), share, commit))} |")
    return table


def read(path):
    """The rows of a table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path, columns, rows):
    """Write a table."""
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(columns)
        out.writerows(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", nargs="*", metavar="module", help=" ".join(TESTS))
    parser.add_argument("--survivors", action="store_true", help="run those again that lived")
    parser.add_argument("--count", action="store_true", help="run nothing")
    chosen = parser.parse_args()
    for module in () if chosen.count else chosen.module or TESTS:
        copy(module)
        again = survivors(module) if chosen.survivors else []
        if again:  # an old test may reach more than it did
            (COPIES / module / "mutants/mutmut-stats.json").unlink(missing_ok=True)
        if again or not chosen.survivors:
            print(f"--- {module}", flush=True)
            mutmut(module, "run", "--max-children", "1", *again)
    share, unexplained = count()
    print(f"{share:.1%} of those run are killed; {len(unexplained)} survivors without an explanation")
    if share < GOAL or unexplained:
        sys.exit("\n".join([f"the goal is {GOAL:.0%}, and no survivor unexplained", *unexplained]))


if __name__ == "__main__":
    main()
