"""What a GPU would run for each call: ``python tests/kernels/record.py`` writes ``tests/records/kernels.csv``."""

from __future__ import annotations

import csv
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

RECORD = Path(__file__).resolve().parents[1] / "records" / "kernels.csv"
CAPABILITIES = (80, 90)
COLUMNS = ("target", "function", "call", "kernels", "others", "waits", "registers", "spilled bytes")


@functools.cache
def calls_of_device() -> list:
    """The calls, with tensors of the device that is not there."""
    import calls
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return calls.calls(functools.partial(torch.empty, device="cuda"))


@functools.cache
def code_of(number: int):
    """The code of a call, by its place in the list; generated once."""
    import generated

    call = calls_of_device()[number]
    return generated.code_of(call.function, *call.args, **call.kwargs)


def row_of(capability: int, name: str, form: str, code) -> dict[str, str]:
    """What there is to say of one call."""
    import generated

    with tempfile.TemporaryDirectory() as folder:
        found = [
            generated.usage(choice.ptx, Path(folder))
            for kernel, source in code.kernels.items()
            for choice in generated.assembled(kernel, source)
        ]
    values = (
        f"sm_{capability}",
        name,
        form,
        len(code.launches),
        ", ".join(f"{count} {name}" for name, count in sorted(code.extern.items())),
        code.waits,
        max((usage.registers for usage in found), default=0),
        max((usage.spilled for usage in found), default=0),
    )
    return dict(zip(COLUMNS, map(str, values), strict=True))


def rows(capability: int, first: bool) -> list[dict[str, str]]:
    """Everything for the target that this process has been made to believe in; or the first call of every function.

    These are made before all others, as registers may depend on what Inductor compiled before.
    """
    calls = calls_of_device()
    names = [call.name for call in calls]
    firsts = [names.index(name) for name in dict.fromkeys(names)]
    others = [] if first else [number for number in range(len(calls)) if number not in firsts]
    found = {i: row_of(capability, calls[i].name, calls[i].form, code_of(i)) for i in (*firsts, *others)}
    return [found[i] for i in sorted(found)]


def read(capability: int, first: bool) -> list[dict[str, str]]:
    """The recorded rows of a target; or the first of every function."""
    with RECORD.open() as file:
        found = [row for row in csv.DictReader(file) if row["target"] == f"sm_{capability}"]
    return list({row["function"]: row for row in reversed(found)}.values())[::-1] if first else found


def write(found: Iterable[dict[str, str]], file) -> None:
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)


def main() -> None:
    if len(sys.argv) > 1:  # a process for one target, whose rows go to its output
        import target

        target.install(int(sys.argv[1]))
        write(rows(int(sys.argv[1]), "--first" in sys.argv), sys.stdout)
        return
    command = [sys.executable, __file__]
    started = [subprocess.Popen([*command, str(c)], stdout=subprocess.PIPE, text=True) for c in CAPABILITIES]
    found = [row for process in started for row in csv.DictReader(process.communicate()[0].splitlines())]
    if any(process.returncode for process in started):
        sys.exit("nothing is written: a target failed")
    with RECORD.open("w") as file:
        write(found, file)
    print(f"written: {os.path.relpath(RECORD)}")


if __name__ == "__main__":
    main()
