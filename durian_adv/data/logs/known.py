"""The formats that are known, told apart by what the first row of a file holds."""

from __future__ import annotations

from typing import Any

from durian_adv.data.logs.formats import (
    areal,
    durian,
    easyr1,
    nemo_rl,
    plain,
    prime_rl,
    roll,
    skyrl,
    slime,
    swift,
    trl,
    verifiers,
    verl,
)
from durian_adv.data.logs.formats.base import Format

# the first that recognizes a row reads the file; plain rows are whatever no other one knows
FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        durian.FORMAT,
        nemo_rl.FORMAT,
        prime_rl.FORMAT,
        roll.FORMAT,
        swift.FORMAT,
        slime.FORMAT,
        verl.FORMAT,
        areal.FORMAT,
        skyrl.FORMAT,
        verifiers.FORMAT,
        easyr1.FORMAT,
        trl.FORMAT,
        plain.FORMAT,
    )
}


def recognize(first: dict[str, Any]) -> Format:
    """Return the format of a file by its first row."""
    return next(format for format in FORMATS.values() if format.recognizes(first))
