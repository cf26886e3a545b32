"""One check of Ray's workers: a question, asked in a worker on each node that a run would use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from durian_adv.adapters._preflight import Check, verdict

_SECONDS = 300


class _Worker:
    """Runs in a worker. An actor: of a task whose worker dies, Ray does not say why."""

    def __init__(self, question: Callable[..., tuple[bool, str]]) -> None:
        self._question = question

    def answer(self, *arguments: Any) -> tuple[bool, str]:
        return self._question(*arguments)


def asked_on_every_node(question: Callable[..., tuple[bool, str]], *arguments: Any, **init: Any) -> Iterator[Check]:
    """Ask a question, which answers whether all is well and in which words, on every node; yield a check each.

    Ray is started with ``init`` if it is not running. The question's module need not be installed on the nodes.
    """
    if not ray.is_initialized():
        ray.init(**{"log_to_driver": False, **init})
    for module in (__name__, question.__module__):  # a worker may not have them
        ray.cloudpickle.register_pickle_by_value(sys.modules[module])
    worker = ray.remote(num_cpus=0)(_Worker)
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        where = f"node {node['NodeManagerAddress']}"
        try:
            actor = worker.options(scheduling_strategy=here).remote(question)
            good, answer = ray.get(actor.answer.remote(*arguments), timeout=_SECONDS)
        except ray.exceptions.RayError as error:
            yield Check("problem", "workers", f"{where}: {_reason(error)}")
        else:
            yield verdict(good, "workers", f"{where}: {answer}")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return ([line for line in lines if "Error" in line] or lines)[-1].strip()
