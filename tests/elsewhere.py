"""The examples of docs/other-trainers.md as they stand, and checkouts of trainers that are on no package index."""

from __future__ import annotations

import importlib
import os
import re
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "other-trainers.md"
EXAMPLES = dict(re.findall(r"<!-- (\S+) -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL))


def example(name: str) -> dict[str, Any]:
    """Run an example of the page; return its names."""
    module = sys.modules["example"] = ModuleType("example")  # dataclasses look for the module of a class
    exec(compile(EXAMPLES[name], f"{PAGE.name}: {name}", "exec"), vars(module))
    return vars(module)


def checkout(variable: str, *folders: str) -> Path | None:
    """Return the checkout that an environment variable names, importable from its ``folders``; None without one."""
    path = os.environ.get(variable)
    if not path:
        return None
    if sys.version_info < (3, 12):  # NeMo-RL and SkyRL give pydantic typing's own, which it refuses on 3.11
        import typing_extensions

        typing.TypedDict = typing_extensions.TypedDict
    for folder in folders or ("",):
        sys.path.insert(0, str(Path(path, folder).resolve()))
    return Path(path)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    """Make a module, and the packages around it, that have these names and no others."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        package = ".".join(parts[:end])
        if package not in sys.modules:
            monkeypatch.setitem(sys.modules, package, ModuleType(package))
    vars(importlib.import_module(name)).update(contents)
