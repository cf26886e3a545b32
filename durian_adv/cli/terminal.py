"""What the command tells the terminal: one line at a time, and nothing that a file's name could make it do."""

from __future__ import annotations

import os
import sys
from typing import Any


def visible(text: str) -> str:
    r"""Return a text with what is not printable as an escape: a name in a table may hold a terminal's own codes.

    >>> visible("step \x1b[2J\u202e é")
    'step \\x1b[2J\\u202e é'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def tell(command: str | None, text: str) -> None:
    """Print a message of a command, None before it is known, to the standard error."""
    print(f"durian-adv{f' {command}' if command else ''}: {visible(text)}", file=sys.stderr)


def bar(**options: Any) -> Any:
    """Return a progress bar of tqdm, which shows itself on a terminal alone."""
    from tqdm import tqdm

    return tqdm(disable=None, **options)


def leave_closed_pipes() -> None:
    """Let what is still to be written go nowhere where nobody can read it: ``head`` has left, or the disk is full."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
