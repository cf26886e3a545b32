"""What the tests of the examples for SkyRL and Trinity-RFT share."""

import sys
import typing
from pathlib import Path

import typing_extensions

if sys.version_info < (3, 12):
    typing.TypedDict = typing_extensions.TypedDict  # SkyRL 0.3.0 gives its own to pydantic, which refuses it on 3.11

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # elsewhere.py
