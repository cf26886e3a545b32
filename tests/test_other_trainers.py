"""The example for slime in docs/other-trainers.md, on the fields and calls that slime had when it was written.

With ``SLIME``, the path of a checkout, and what slime needs installed, its own ``Sample`` and ``RolloutManager`` are
used; it is not on PyPI. SkyRL is, so its example is tested in an environment of its own: tests/others.
"""

import ast
import math
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from durian_adv import durian_advantage, sequence_confidence

PAGE = Path(__file__).resolve().parent.parent / "docs" / "other-trainers.md"
SLIME = os.environ.get("SLIME") or None
ARGS = SimpleNamespace(reward_key=None)


@dataclass
class Pinned:
    """Fields of ``slime.utils.types.Sample`` that the example reads, as in slime 0.3.1, revision 624b824."""

    group_index: int | None = None
    index: int | None = None
    response_length: int = 0
    reward: float | dict | None = None
    loss_mask: list[int] | None = None
    rollout_log_probs: list[float] | None = None
    remove_sample: bool = False
    metadata: dict = field(default_factory=dict)

    def get_reward_value(self, args):
        return self.reward if not args.reward_key else self.reward[args.reward_key]


@pytest.fixture(scope="module")
def sample():
    if SLIME is None:
        return Pinned
    sys.path.insert(0, SLIME)
    from slime.utils.types import Sample

    assert {name: type(value) for name, value in vars(Pinned()).items()}.items() <= {
        name: type(value) for name, value in vars(Sample()).items()
    }.items()
    return Sample


@pytest.fixture(scope="module")
def rewards():
    names = {}
    exec(re.search(r"<!-- slime -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL).group(1), names)
    return names["rewards"]


def samples(made, prompts=16, rollouts=4):
    draw = torch.Generator().manual_seed(0)
    out = []
    for at in torch.randperm(prompts * rollouts, generator=draw).tolist():
        prompt, length = at // rollouts, 1 + at % 5
        out.append(
            made(
                group_index=7 * prompt,  # ids go on from step to step
                index=at,
                response_length=length,
                reward=float(at % (prompt + 1) == 0),
                loss_mask=None if at % 3 else [1] * length,
                rollout_log_probs=(-torch.rand(length, generator=draw)).tolist(),
                metadata=[{}, {"visual_entropy": None}, {"visual_entropy": prompt / 3}][min(prompt % 4, 2)],
            )
        )
    return out


def test_the_example_gives_the_librarys_advantages(rewards, sample):
    given = samples(sample)
    raw, got = rewards(ARGS, given)
    assert raw == [one.reward for one in given]
    entropy = [one.metadata.get("visual_entropy") or math.nan for one in given]
    expected = durian_advantage(
        torch.tensor(raw),
        prompt_index=torch.tensor([one.group_index for one in given]),
        visual_entropy=torch.tensor(entropy),
        confidence=torch.stack([sequence_confidence(torch.tensor(one.rollout_log_probs)) for one in given]),
    )
    torch.testing.assert_close(torch.tensor(got), expected)
    assert any(got)


def test_removed_and_unscored_samples_influence_nothing(rewards, sample):
    given = samples(sample)
    _, clean = rewards(ARGS, [one for at, one in enumerate(given) if at not in (3, 8)])
    given[3].remove_sample, given[3].reward = True, 1e30
    given[8].reward = None
    raw, got = rewards(ARGS, given)
    assert raw[8] is None
    assert got[3] == got[8] == 0
    assert [value for at, value in enumerate(got) if at not in (3, 8)] == clean


def test_masked_tokens_do_not_count(rewards, sample):
    given = samples(sample)
    _, before = rewards(ARGS, given)
    for one in given:
        one.loss_mask = [1] * one.response_length + [0, 0]
        one.rollout_log_probs = [*one.rollout_log_probs, -1e6, -1e6]
        one.response_length += 2
    assert rewards(ARGS, given)[1] == before


@pytest.mark.skipif(SLIME is None, reason="SLIME, the path of a checkout, is not given")
def test_slimes_own_conversion_takes_what_the_example_returns(rewards, sample):
    source = (Path(SLIME) / "slime/ray/rollout.py").read_text()
    assert "self.custom_reward_post_process_func(self.args, samples)" in source
    methods = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and node.name in ("_post_process_rewards", "_convert_samples_to_train_data")
    ]
    from slime.utils.data import get_source

    space = {"torch": torch, "Sample": sample, "get_source": get_source}
    exec("\n".join(map(ast.unparse, methods)), space)
    manager = SimpleNamespace(
        args=SimpleNamespace(reward_key=None, rollout_top_p=1.0),
        custom_reward_post_process_func=rewards,
        custom_convert_samples_to_train_data_func=None,
    )
    manager._post_process_rewards = lambda given: space["_post_process_rewards"](manager, given)
    given = samples(sample)
    data = space["_convert_samples_to_train_data"](manager, given)
    raw, advantages = rewards(ARGS, samples(sample))
    assert data["rewards"] == advantages
    assert data["raw_reward"] == raw
    utilities = ast.parse((Path(SLIME) / "slime/utils/ppo_utils.py").read_text())
    (spread,) = (n for n in utilities.body if isinstance(n, ast.FunctionDef) and n.name == "get_grpo_returns")
    exec(ast.unparse(spread), space)
    returns = space["get_grpo_returns"](
        torch.tensor(data["rewards"]), [torch.zeros(n) for n in data["response_lengths"]]
    )
    for one, value in zip(returns, advantages, strict=True):
        assert bool((one == torch.tensor(value)).all())
