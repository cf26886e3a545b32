"""The example for SkyRL in docs/other-trainers.md, as it stands there."""

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
def names():
    """Run the example for SkyRL; return its names."""
    code = re.search(r"<!-- skyrl -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL).group(1)
    made = {"__name__": "example"}
    exec(compile(code, PAGE.name, "exec"), made)
    return made
