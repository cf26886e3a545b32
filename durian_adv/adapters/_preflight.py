"""What every preflight says: one vocabulary for the findings about a run that has not started."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Check(NamedTuple):
    """One finding. A problem is what stops a run, or makes it another one than asked for."""

    state: Literal["ok", "warning", "problem"]
    subject: str
    finding: str


def verdict(good: object, subject: str, finding: str, *, otherwise: Literal["warning", "problem"] = "problem") -> Check:
    """Return a check that is ok if ``good``, and ``otherwise`` a problem or a warning."""
    return Check("ok" if good else otherwise, subject, finding)
