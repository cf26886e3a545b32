"""The law, its experiment and its pages: `python -m studies.law` and one of its commands."""

import argparse

from studies.law.declaration import DOSES


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return what to do."""
    parser = argparse.ArgumentParser(prog="python -m studies.law", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("page", help="write docs/law.md, docs/which-normalization.md and their pictures: 20 s")
    commands.add_parser("declare", help="write the declaration of the experiment, with what the law predicts: 5 s")
    commands.add_parser("later", help="measure worths while a policy learns, which was not declared")
    commands.add_parser("sgd", help="train three arms with plain SGD at R = 9, which was not declared: 72 runs")
    commands.add_parser("check", help="measure what the task was to have: accuracies, errors, scores")
    commands.add_parser("collect", help="fold finished runs into the table of records")
    for name, about in (
        ("pilot", "train the pilots that choose the learning rates"),
        (
            "expect",
            "write down the rates that the pilots chose, and the differences expected: before the runs that count",
        ),
        ("run", "train every run that has no record yet, 4 to 6 s each; stop and repeat at will"),
    ):
        command = commands.add_parser(name, help=about)
        command.add_argument("outcome", nargs="?", default="variance", choices=DOSES, help="default: %(default)s")
        command.add_argument("--part", default="1/1", help="k/n: only the k-th of n parts of the seeds (default: 1/1)")
    run = commands.choices["run"]
    run.add_argument("--doses", nargs="*", default=[], help="some doses only (default: all, in the declared order)")
    options = parser.parse_args(arguments)
    if "part" in options:
        part, _, parts = options.part.partition("/")
        if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
            parser.error(f"--part: expected k/n with 1 <= k <= n, got {options.part}")
        options.part = (int(part), int(parts))
    if unknown := [dose for dose in vars(options).get("doses", []) if dose not in DOSES[options.outcome]]:
        parser.error(f"--doses: expected some of {', '.join(DOSES[options.outcome])}, got {', '.join(unknown)}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Do what one command says."""
    options = parse_arguments(arguments)
    if options.command == "page":
        from studies.law import page

        page.main()
    elif options.command == "declare":
        from studies.law import declaration

        declaration.write()
    else:
        experiment(options)


def experiment(options: argparse.Namespace) -> None:
    """Do what one of the commands says that train, or look at what was trained."""
    import torch

    from studies.evidence import records
    from studies.law import checks, expectation, later, plan, runner

    torch.set_num_threads(1)  # runs side by side are faster than one on all cores, and results stay the same
    if options.command == "check":
        checks.main()
    elif options.command == "collect":
        print(f"{runner.TABLE}: {records.collect(runner.FOLDER, runner.TABLE)} new runs")
    elif options.command == "pilot":
        runner.run_all(lambda found: plan.pilot_runs(options.outcome, found), part=options.part)
    elif options.command == "later":
        later.main()
    elif options.command == "sgd":
        runner.run_all(lambda _: plan.sgd_runs())
    elif options.command == "expect":
        expectation.write(options.outcome, runner.found())
    else:
        doses = tuple(options.doses)
        runner.run_all(lambda found: plan.main_runs(options.outcome, found, doses), part=options.part)


if __name__ == "__main__":
    main()
