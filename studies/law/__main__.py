"""The law and its pages: `python -m studies.law` and one of its commands."""

import argparse


def main(arguments: list[str] | None = None) -> None:
    """Do what one command says."""
    parser = argparse.ArgumentParser(prog="python -m studies.law", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("page", help="write docs/law.md, docs/which-normalization.md and their picture: 20 s")
    commands.add_parser("declare", help="write the declaration of the experiment, with what the law predicts: 5 s")
    options = parser.parse_args(arguments)
    if options.command == "page":
        from studies.law import page

        page.main()
    else:
        from studies.law import declaration

        declaration.write()


if __name__ == "__main__":
    main()
