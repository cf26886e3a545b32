"""The command ``durian-adv``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import durian_adv
from durian_adv.cli import curate, entropy, metrics, preflight, report

COMMANDS = (curate, entropy, metrics, preflight, report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="durian-adv", description=durian_adv.__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {durian_adv.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"durian-adv {options.command}: {error}", file=sys.stderr)
        return 2
    return 0
