"""Errors for arguments: what was wrong, as fields, so that a caller can name the option it came from."""

from __future__ import annotations

from typing import Self


class ArgumentError(ValueError):
    """An argument that cannot be used: ``name: expected ..., got ...``.

    ``expected`` may be a whole sentence, and ``got`` None where nothing came that could be shown.
    """

    __module__ = "durian_adv"  # as users import it, and as tracebacks show it

    def __init__(self, name: str, expected: str, got: object = None) -> None:
        """Keep the three parts; their text is the message."""
        super().__init__(name, expected, got)
        self.name, self.expected, self.got = name, expected, got

    def __str__(self) -> str:
        """Return the message."""
        return f"{self.name}: {self.reason}"

    @property
    def reason(self) -> str:
        """The message without the name."""
        return f"expected {self.expected}" if self.got is None else f"expected {self.expected}, got {self.got}"

    def renamed(self, name: str) -> Self:
        """Return the same error of an argument that goes by another name, such as ``algorithm.durian.eps``."""
        return type(self)(name, self.expected, self.got)


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument of a type that cannot be meant: ``name: expected ..., got ...``."""

    __module__ = "durian_adv"
