"""The example for rLLM in docs/other-trainers.md.

With ``RLLM``, the path of a checkout, and what it needs installed: its own groups, registry and advantage stage.
Without one: the fields and calls of revision 9beb6e0.
"""

import enum
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from elsewhere import checkout, example, stand_in

from durian_adv import durian_components, sequence_confidence
from durian_adv.estimator import AdvantageEstimator

PROMPTS, ROLLOUTS = 16, 4


class Names(enum.StrEnum):
    """rLLM's estimators; an unknown name is OTHER."""

    GRPO = "grpo"
    OTHER = "other"


@pytest.fixture(scope="module")
def rllm():
    """Its module of advantage estimators; None without a checkout."""
    if checkout("RLLM") is None:
        return None
    return pytest.importorskip("rllm.trainer.algorithms.advantage")


@pytest.fixture
def names(rllm, monkeypatch):
    registry = {}
    if rllm is None:
        stand_in(
            monkeypatch,
            "rllm.trainer.algorithms.advantage",
            register_rllm_adv_estimator=lambda name: lambda function: registry.setdefault(name, function),
        )
        stand_in(monkeypatch, "rllm.trainer.algorithms.config", rLLMAdvantageEstimator=Names)
        made = example("rllm")
        assert registry == {Names.OTHER: made["durian"]}
        return made
    return example("rllm")


@pytest.fixture(scope="module")
def types(rllm):
    """Its groups, trajectories and steps, or objects with the fields of these that the example reads."""
    if rllm is None:
        made = SimpleNamespace(**dict.fromkeys(("TrajectoryGroup", "Trajectory", "Step"), SimpleNamespace))
        made.TrajectoryGroup = lambda **given: SimpleNamespace(
            group_role=given["group_id"].partition(":")[2] or "all_groups", **given
        )
        return made
    return pytest.importorskip("rllm.types")


def groups(types, role="solver", ids=True):
    draw = torch.Generator().manual_seed(0)
    made = []
    for prompt in range(PROMPTS):
        trajectories = []
        for rollout in range(ROLLOUTS):
            steps = []
            for _ in range(1 + (prompt + rollout) % 3):
                length = int(torch.randint(1, 6, (), generator=draw))
                logprobs = (-torch.rand(length, generator=draw, dtype=torch.float64)).tolist()
                steps.append(types.Step(response_ids=[7] * length, logprobs=logprobs, advantage=None))
            reward = float(torch.randint(0, 2, (), generator=draw))
            trajectories.append(types.Trajectory(name=role, steps=steps, reward=reward))
        made.append(types.TrajectoryGroup(group_id=f"task{prompt}:{role}" if ids else "", trajectories=trajectories))
    return made


def expected(given, **options):
    trajectories = [trajectory for group in given for trajectory in group.trajectories]
    tokens = [[x for step in one.steps for x in step.logprobs] for one in trajectories]
    confidence = sequence_confidence(
        torch.tensor(list(itertools.chain(*tokens)), dtype=torch.float64), lengths=[len(row) for row in tokens]
    )
    rewards = torch.tensor([one.reward for one in trajectories], dtype=torch.float64)
    index = torch.arange(PROMPTS).repeat_interleave(ROLLOUTS)
    return durian_components(rewards, confidence=confidence, prompt_index=index, **options).advantages


def called(names, given, **options):
    names["estimators"].default_factory = lambda: AdvantageEstimator(**options)
    rewards = [np.array([one.reward for one in group.trajectories]) for group in given]
    advantages, returns = names["durian"](rewards=rewards, algorithm_config=None, traj_groups=given)
    assert returns is advantages
    assert [len(part) for part in advantages] == [len(part) for part in rewards]
    return torch.from_numpy(np.concatenate(advantages))


@pytest.mark.parametrize("ids", [True, False])
def test_the_example_gives_the_librarys_advantages(names, types, ids):
    given = groups(types, ids=ids)  # rLLM's default id of a group is empty
    got = called(names, given)
    torch.testing.assert_close(got, expected(given), rtol=1e-12, atol=1e-12)
    assert bool(got.any())


def test_roles_do_not_share_a_window(names, types):
    given = groups(types, "solver"), groups(types, "judge")
    first = [called(names, part, window=PROMPTS) for part in given]
    assert torch.equal(*first)
    assert set(names["estimators"]) == {"solver", "judge"}


def test_one_group_alone_is_refused_without_a_window(names, types):
    """As asynchronous training calls it."""
    with pytest.raises(ValueError, match="window > 0"):
        called(names, groups(types)[:1])
    names["estimators"].clear()
    assert called(names, groups(types)[:1], window=64).isfinite().all()


# --- in a checkout ------------------------------------------------------------------------------------


@pytest.fixture
def stage(rllm):
    """Its own stage, from groups to the steps' advantages."""
    if rllm is None:
        pytest.skip("RLLM, the path of a checkout, is not given")
    from rllm.trainer.algorithms.config import AlgorithmConfig, rLLMAdvantageEstimator

    def run(given, name):
        config = AlgorithmConfig(estimator=rLLMAdvantageEstimator(name))
        metrics = rllm.collect_reward_and_advantage_from_trajectory_groups(given, config)
        return metrics, [[step.advantage for step in one.steps] for group in given for one in group.trajectories]

    return run


def test_its_own_stage_gives_every_step_the_advantage_of_its_trajectory(stage, names, types):
    given = groups(types, "solver") + groups(types, "judge")
    metrics, got = stage(given, "durian")
    half = expected(given[:PROMPTS]).tolist()
    for steps, value in zip(got, half + half, strict=True):
        assert steps == pytest.approx([value] * len(steps), rel=1e-12, abs=1e-12)
    assert metrics["advantage/solver/max"] == metrics["advantage/judge/max"] == pytest.approx(max(half))


def test_the_grpo_component_is_rllms(stage, names, types):
    names["estimators"].default_factory = lambda: AdvantageEstimator(weights=(1, 0, 0), correction=0)
    _, own = stage(groups(types), "grpo")
    _, ours = stage(groups(types), "durian")
    for one, other in zip(own, ours, strict=True):
        assert other == pytest.approx(one, rel=1e-12, abs=1e-9)
    assert any(itertools.chain(*own))
