"""The command in a process that tells what it opened, connected to and started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
STARTS = ("subprocess.", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork", "os.startfile", "pty.")
REACHES = ("socket.", "urllib.", "http.", "ftplib.", "smtplib.", "ssl.")
LOADS = ("pickle.", "marshal.loads", "ctypes.dlopen")

PROGRAM = """
import json, os, sys
warm, arguments, watched = json.loads(sys.argv[1])
from durian_adv.cli import main
main(warm)  # what is imported late is imported now
seen = []

def hook(event, given):
    if event == "open" and isinstance(given[0], (str, bytes)):
        seen.append(["open", os.path.abspath(os.fsdecode(given[0]))])
    elif event.startswith(tuple(watched)):
        seen.append([event, repr(given)[:200]])

sys.addaudithook(hook)  # it cannot be taken off again, hence the process
status = main(arguments)
print(json.dumps([status, seen]))
"""


def audited(arguments, warm):
    """Run the command; return its status, what it opened but for libraries, its other events, and what it said."""
    given = json.dumps([[*map(str, warm)], [*map(str, arguments)], STARTS + REACHES + LOADS])
    done = subprocess.run([sys.executable, "-c", PROGRAM, given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    status, seen = json.loads(done.stdout.splitlines()[-1])
    libraries = {*map(str, (Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), TESTS.parent)), sys.prefix}
    opened = [path for event, path in seen if event == "open" and not path.startswith(tuple(libraries))]
    return status, opened, [pair for pair in seen if pair[0] != "open"], done.stderr
