"""Ctrl-C while the command starts or ends: one line, as while it runs, though torch is still being imported.

Imported before anything else of the package. Where another program imports the package, nothing is changed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

COMMAND, INTERRUPTED = "durian-adv", 130  # as the shell has it: 128 and the signal's number


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{COMMAND}: interrupted\n".encode())
    os._exit(INTERRUPTED)  # an exception could be swallowed by an import that it interrupts


def _is_command(words: list[str], original: list[str]) -> bool:
    """Return whether this process is the command, by ``sys.argv`` and ``sys.orig_argv``."""
    if words[:1] == ["-m"]:  # as it is until the module is found
        return original[original.index("-m") + 1 :][:1] == ["durian_adv"]
    name = os.path.basename(words[0]) if words else ""
    return name in (COMMAND, f"{COMMAND}.exe", f"{COMMAND}-script.py")


@contextmanager
def raised() -> Iterator[None]:
    """Let Ctrl-C raise ``KeyboardInterrupt`` in here, where ``watch`` has replaced that."""
    watched = signal.getsignal(signal.SIGINT) is _leave
    if watched:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if watched:
            signal.signal(signal.SIGINT, _leave)


def watch() -> None:
    """From now on let Ctrl-C end the process with one line, if it is the command and nobody else handles the signal."""
    if (
        _is_command(sys.argv, sys.orig_argv)
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, _leave)


watch()
