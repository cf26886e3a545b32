"""The examples of docs/other-trainers.md, as they stand there."""

import re
import sys
import typing
from pathlib import Path

import pytest
import typing_extensions

if sys.version_info < (3, 12):
    typing.TypedDict = typing_extensions.TypedDict  # SkyRL 0.3.0 gives its own to pydantic, which refuses it on 3.11

PAGE = Path(__file__).resolve().parents[2] / "docs" / "other-trainers.md"


@pytest.fixture(scope="session")
def example():
    """Run an example of the page; return its names."""

    def run(name):
        code = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL).group(1)
        names = {"__name__": "example"}
        exec(compile(code, f"{PAGE.name}, {name}", "exec"), names)
        return names

    return run
