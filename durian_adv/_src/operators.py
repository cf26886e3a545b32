"""Functions that are one node to ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def operator(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Register a function as an operator of torch, which compilers cannot look into, and return the operator.

    ``schema`` is its name and types in torch's notation; ``fake`` returns tensors of the shapes and dtypes of its
    results. It changes none of its arguments and returns none of them. ``torch.library.custom_op`` would do the same,
    but its first call imports the whole compiler: seconds, where nothing is compiled.
    """
    name, bracket, types = schema.partition("(")
    torch.library.define(f"durian_adv::{name}", bracket + types)
    torch.library.impl(f"durian_adv::{name}", "default", function)
    torch.library.register_fake(f"durian_adv::{name}", fake)
    registered: Callable[..., Any] = getattr(torch.ops.durian_adv, name)
    return registered
