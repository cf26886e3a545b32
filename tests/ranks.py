"""A pool of processes, each a rank of a gloo world, that call functions of the library when asked."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import traceback
from pathlib import Path

SIZES = (1, 2, 3, 4, 8)


class RankDiedError(Exception):
    """A rank's process ended instead of answering."""


class Pool:
    """``world`` processes, and a process group of the first k of them for each k of SIZES."""

    def __init__(self, world: int):
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        store = Path(self._folder.name) / "store"
        pipes = [context.Pipe() for _ in range(world)]
        self._pipes = [ours for ours, _ in pipes]
        self.processes = [
            context.Process(target=_serve, args=(rank, world, str(store), theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()
        for _, theirs in pipes:
            theirs.close()

    def run(self, requests):
        """Rank i of the group of ``len(requests)`` handles request i; its answers: results, or exceptions."""
        pipes = self._pipes[: len(requests)]
        for pipe, request in zip(pipes, requests, strict=True):
            pipe.send_bytes(pickle.dumps((len(requests), request)))
        answers = []
        for pipe in pipes:
            try:
                assert pipe.poll(120), "a rank does not answer"
                answers.append(pickle.loads(pipe.recv_bytes()))
            except EOFError:
                answers.append(RankDiedError())
        return answers

    def close(self):
        """End all processes."""
        for process in self.processes:
            process.kill()
            process.join()
        self._folder.cleanup()


def _serve(rank, world, store, pipe):
    import torch
    import torch.distributed as dist

    import durian_adv
    from durian_adv._src import distributed

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    groups = {size: dist.new_group(range(size)) for size in SIZES if size <= world}
    gather, sent = dist.all_gather, []

    def recorded(received, mine, group):
        sent.append((mine.numel() * mine.element_size(), dist.get_world_size(group)))
        if die_at == len(sent):
            os._exit(1)
        return gather(received, mine, group=group)

    distributed.dist.all_gather = recorded
    while True:
        size, (name, kwargs, die_at) = pickle.loads(pipe.recv_bytes())
        sent.clear()
        try:
            kwargs.setdefault("process_group", groups[size])
            answer = (getattr(durian_adv, name)(**kwargs), list(sent))
        except Exception as error:
            answer = error
            answer.add_note(traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))
