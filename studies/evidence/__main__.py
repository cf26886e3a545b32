"""The evidence, from images to page: `python -m studies.evidence` and one of its commands."""

import argparse
import json
from pathlib import Path

import torch

from studies.evidence import records, runner
from studies.evidence.conditions import CONDITIONS, LONG_PILOTS, MAIN_CONDITION, PILOTS, SIDE, Run, runs_of
from studies.evidence.suite import Suite, load_suite


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return what to do."""
    parser = argparse.ArgumentParser(prog="python -m studies.evidence", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("suite", help="make images and warm policy, and check the suite (minutes, once)")
    commands.add_parser("pilot", help="train the pilots: one learning-rate sweep for all arms")
    commands.add_parser("declare", help="write down what the main comparison will be able to see, before it is run")
    run = commands.add_parser("run", help="train every run that has no record yet: hours; kill and repeat at will")
    run.add_argument("conditions", nargs="*", help=f"default: all, in order: {', '.join(CONDITIONS)}")
    run.add_argument("--part", default="1/1", help="k/n: only the k-th of n parts of the seeds, for n processes")
    repeat = commands.add_parser("repeat", help="train one run again and compare it with its record")
    repeat.add_argument("run", help="a record's name, such as main/grpo-000")
    commands.add_parser("mechanism", help="measure the arms on shared rollouts, without training")
    commands.add_parser("tables", help="measure what the paper's Appendix B asks of the warm policy")
    commands.add_parser("collect", help="fold finished runs into the table of records")
    commands.add_parser("page", help="write docs/evidence.md and its pictures from the records")
    quick = commands.add_parser("quick", help="mechanism, and 4 arms x 6 seeds x 25 steps, in under 10 minutes")
    quick.add_argument("--out", type=Path, default=Path("out/evidence/quick"), help="where records and results go")
    options = parser.parse_args(arguments)
    if options.command == "run":
        unknown = [name for name in options.conditions if name not in CONDITIONS]
        if unknown:
            run.error(f"conditions: expected some of {', '.join(CONDITIONS)}, got {', '.join(unknown)}")
        part, _, parts = options.part.partition("/")
        if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
            run.error(f"--part: expected k/n with 1 <= k <= n, got {options.part}")
        options.part = (int(part), int(parts))
    return options


def chosen_runs(options: argparse.Namespace) -> list[Run]:
    """Return the runs that the command `run` was asked for."""
    conditions = [CONDITIONS[name] for name in options.conditions] or [MAIN_CONDITION, *SIDE]
    part, parts = options.part
    return [run for run in runs_of(conditions) if run.seed % parts == part - 1]


def main(arguments: list[str] | None = None) -> None:
    """Do what one command says."""
    options = parse_arguments(arguments)
    torch.set_num_threads(1)  # two runs side by side are faster than one on two threads, and results stay the same
    if options.command == "page":
        from studies.evidence import page

        page.main()
    elif options.command == "collect":
        print(f"{records.TABLE}: {records.collect()} new runs, {len(records.read_table())} in all")
    else:
        on_the_suite(options, load_suite())


def on_the_suite(options: argparse.Namespace, suite: Suite) -> None:
    """Do what one of the commands says that need the images and the warm policy."""
    if options.command == "suite":
        from studies.evidence import tables

        print(json.dumps(tables.checks(suite), indent=1))
    elif options.command == "pilot":
        runner.run_all(runs_of([*PILOTS, *LONG_PILOTS]), suite, collected=records.read_table())
    elif options.command == "declare":
        from studies.evidence import declaration

        declaration.write(suite)
    elif options.command == "run":
        runner.run_all(chosen_runs(options), suite, collected=records.read_table())
    elif options.command == "repeat":
        if difference := runner.repeat(options.run, suite, {**records.read_table(), **records.read_folder()}):
            raise SystemExit(difference)
        print(f"{options.run}: the same curve and the same exams")
    elif options.command == "mechanism":
        from studies.evidence import mechanism

        mechanism.main(suite)
    elif options.command == "tables":
        from studies.evidence import tables

        tables.main(suite)
    elif options.command == "quick":
        from studies.evidence import quick

        quick.main(suite, options.out)


if __name__ == "__main__":
    main()
