"""The baselines that other projects released, called where they offer a function and taken from their source where not.

They live in an environment of their own, which ``make bench`` sets up from ``requirements/bench*.txt``.
"""

import ast
from collections.abc import Callable, Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from verl.trainer.ppo import core_algos

T = TypeVar("T")
VERL = f"verl {version('verl')}"
TRL = f"TRL {version('trl')}"


def verl_grpo(rewards: Tensor, ids: np.ndarray) -> Tensor:
    """Return the GRPO advantages of verl's default estimator, a loop over rollouts: ``(N,)`` rewards and ids.

    Responses are one token long, so that the arithmetic of the groups alone is timed and not its spread over tokens.
    """
    tokens = rewards[:, None]
    return core_algos.compute_grpo_outcome_advantage(tokens, torch.ones_like(tokens), ids)[0][:, 0]


def verl_grpo_vectorized(rewards: Tensor, ids: np.ndarray) -> Tensor:
    """Return the same by verl's other estimator, which sums by index."""
    tokens = rewards[:, None]
    return core_algos.compute_grpo_vectorized_outcome_advantage(tokens, torch.ones_like(tokens), ids)[0][:, 0]


def trl_grpo() -> Callable[[Tensor, int], Tensor]:
    """Return the GRPO advantages of TRL as a function of ``(N,)`` rewards and the group size.

    TRL computes them in the middle of a method of its trainer. Those very statements are taken out of the installed
    source, from the group means to the advantages, so they are TRL's whatever its version; without them it is an error.
    """
    summed = "self.multi_objective_aggregation == 'sum_then_normalize'"
    trainer, utils = (ast.parse(_source("trl", f"trainer/{file}.py")) for file in ("grpo_trainer", "utils"))
    block = _only(n.body for n in ast.walk(trainer) if isinstance(n, ast.If) and ast.unparse(n.test) == summed)
    lines = [ast.unparse(statement) for statement in block]
    first = _only(i for i, line in enumerate(lines) if line.startswith("mean_grouped_rewards = torch.nanmean"))
    last = _only(i for i, line in enumerate(lines) if line.startswith("if self.scale_rewards != 'none'"))
    nanstd = _only(n for n in utils.body if isinstance(n, ast.FunctionDef) and n.name == "nanstd")
    body = [f"    {line}" for statement in lines[first : last + 1] for line in statement.splitlines()]
    head = "def advantages(rewards, num_generations):"
    space = {"torch": torch, "self": SimpleNamespace(scale_rewards="group")}
    exec("\n".join([ast.unparse(nanstd), head, *body, "    return advantages"]), space)
    return space["advantages"]


def _only(found: Iterable[T]) -> T:
    """Return the one thing that was looked for."""
    items = list(found)
    if len(items) != 1:
        raise LookupError(f"{TRL}: its advantages are no longer where they were; expected one place, got {len(items)}")
    return items[0]


def _source(package: str, file: str) -> str:
    spec = find_spec(package)  # which imports nothing: the source is all that is needed
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package}: expected to be installed, see `make bench`")
    return (Path(spec.origin).parent / file).read_text(encoding="utf-8")
