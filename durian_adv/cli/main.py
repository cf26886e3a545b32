"""The command ``durian-adv``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import durian_adv
from durian_adv._src.interrupts import INTERRUPTED, raised
from durian_adv.cli import curate, entropy, metrics, preflight, report
from durian_adv.cli.terminal import leave_closed_pipes, tell

COMMANDS = (curate, entropy, metrics, preflight, report)
UNUSABLE, READER_LEFT = 2, 141  # the latter as the shell has it: 128 and the signal's number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    The status is 0; 2 for input that cannot be used; 130 after Ctrl-C; 141 if the reader of its output has left.
    """
    parser = argparse.ArgumentParser(prog="durian-adv", description=durian_adv.__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {durian_adv.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add(commands)
    options = argparse.Namespace(command=None)
    try:
        with raised():
            return _run(parser.parse_args(arguments, options))
    except BrokenPipeError:
        return READER_LEFT
    except KeyboardInterrupt:
        tell(options.command, "interrupted")
        return INTERRUPTED
    finally:
        leave_closed_pipes()


def _run(options: argparse.Namespace) -> int:
    try:
        options.run(options)
        print(end="", flush=True)  # what is wrong with the standard output shows here, and not while Python ends
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ModuleNotFoundError) as error:
        tell(options.command, f"{error}")
        return UNUSABLE
    return 0
