"""Write verifiers.jsonl with the writer of verifiers 0.4.0: ``python tests/logs/write_verifiers.py`` beside it.

Episodes as prime-rl and verifiers write them: 2 steps of 3 groups of 4, two weighted rewards, two sampled turns; one
episode failed before any trace, one was not scored, and each has a judge's trace, which trains nothing.
"""

import json
import random
import tempfile
from pathlib import Path

from verifiers.v1.agent import AgentConfig
from verifiers.v1.episode import Episode, GroupInfo, TrainRunInfo, TrainWorkInfo
from verifiers.v1.graph import MessageNode
from verifiers.v1.task import TaskData
from verifiers.v1.trace import AgentInfo, Reward, Trace, TraceTask
from verifiers.v1.types import AssistantMessage, UserMessage
from verifiers.v1.utils.trace_store import write_episode

FILE = Path(__file__).with_name("verifiers.jsonl")


def nodes(text, logprobs):
    asked = MessageNode(message=UserMessage(content=text), token_ids=[1, 2], mask=[False, False])
    turns = [
        MessageNode(
            parent=turn,
            message=AssistantMessage(content="4"),
            sampled=True,
            token_ids=[3, *[4] * len(values)],
            mask=[False, *[True] * len(values)],
            logprobs=values,
        )
        for turn, values in enumerate(logprobs)
    ]
    return [asked, *turns]


def trace(task, name, rewards, logprobs, trainable=True):
    return Trace(
        task=task,
        agent=AgentInfo(config=AgentConfig(), name=name, trainable=trainable),
        nodes=nodes(task.data.prompt, logprobs),
        rewards=rewards,
    )


def main():
    draw = random.Random(0)
    written = []
    with tempfile.TemporaryDirectory() as folder:
        for step in (0, 1):
            for group in range(3):
                data = TaskData(idx=group, prompt=f"What is {group} + {group}?")
                task = TraceTask[TaskData](type="Sum", data=data, key=f"sum-{group}", hash="0")
                for rollout in range(4):
                    right, form = float(draw.random() < 0.5), float(draw.random() < 0.8)
                    logprobs = [[-draw.randrange(8) / 8 for _ in range(3)] for _ in range(2)]
                    rewards = {"right": Reward(score=right, weight=0.9), "form": Reward(score=form, weight=0.1)}
                    lost = step == 1 and group == 2
                    if lost and rollout == 0:
                        rewards = {"right": None, "form": None}
                    traces = [
                        trace(task, "judge", {}, [[-1.0]], trainable=False),
                        trace(task, "solver", rewards, logprobs),
                    ]
                    if lost and rollout == 3:
                        traces = []
                    work = TrainWorkInfo(step=step)
                    written.append(
                        Episode(
                            task=task,
                            group=GroupInfo(id=f"{step}-{group}"),
                            run=TrainRunInfo(id="run", work=work),
                            traces=traces,
                            ok=bool(traces),
                        )
                    )
                    write_episode(Path(folder), written[-1])
        FILE.write_bytes((Path(folder) / "traces.jsonl").read_bytes())
    sums = [[sum(t.reward for t in e.traces if t.agent.trainable) for e in written]]
    print(json.dumps(sums))


if __name__ == "__main__":
    main()
