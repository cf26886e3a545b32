"""The examples for prime-rl and torchtitan in docs/other-trainers.md, which score one group at a time.

With ``PRIME_RL`` or ``TORCHTITAN``, the path of a checkout, and what it needs installed, or with torchtitan installed:
their own classes. Without them: the fields and calls of revisions 559b447 and b5bcd76.
"""

import asyncio
import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from elsewhere import checkout, example, stand_in

from durian_adv import grpo_advantage, sequence_confidence
from durian_adv.estimator import AdvantageEstimator
from durian_adv.window import windowed_components

GROUPS, ROLLOUTS = 60, 4


def data(groups=GROUPS):
    """Groups of (reward, turns of log-probabilities)."""
    draw = torch.Generator().manual_seed(0)

    def turn():
        return (-torch.rand(int(torch.randint(1, 6, (), generator=draw)), generator=draw)).tolist()

    return [
        [
            (float(torch.randint(0, 2, (), generator=draw)), [turn() for _ in range(1 + (group + rollout) % 2)])
            for rollout in range(ROLLOUTS)
        ]
        for group in range(groups)
    ]


def expected(groups, size=512):
    """The same groups, one call of the library's window after another."""
    window, out = None, []
    for group in groups:
        tokens = [torch.tensor(list(itertools.chain(*turns)), dtype=torch.float64) for _, turns in group]
        parts, window = windowed_components(
            torch.tensor([[reward for reward, _ in group]], dtype=torch.float64),
            confidence=torch.stack([sequence_confidence(row) for row in tokens])[None],
            window=window,
            size=size,
        )
        out.append(parts.advantages[0])
    return torch.stack(out)


# --- prime-rl -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prime_rl():
    if checkout("PRIME_RL", "src", "packages/prime-rl-configs/src") is None:
        return None
    return pytest.importorskip("prime_rl.orchestrator.algo")


def assign(trace, value):
    for node in trace.nodes:
        if any(node.mask):
            node.advantages = [value] * sum(node.mask)


class Algorithm:
    """What the example uses of prime-rl's base class."""

    def __init__(self, config, policy_pool):
        self.policy_pool = policy_pool


def trainable(episodes):
    for episode in episodes:
        for trace in episode.traces:
            if not trace.has_error and trace.agent.trainable and any(any(node.mask) for node in trace.nodes):
                yield episode, trace


@pytest.fixture
def prime(prime_rl, monkeypatch):
    if prime_rl is None:
        stand_in(monkeypatch, "prime_rl.orchestrator.algo.base", Algorithm=Algorithm, iter_trainable_traces=trainable)
        stand_in(monkeypatch, "prime_rl.orchestrator.algo.routing", assign_advantages=assign)
    return example("prime-rl")


def config(prime_rl, **given):
    if prime_rl is None:
        return SimpleNamespace(**{"length_penalty": None, **given})
    from prime_rl.configs.algorithm import GRPOAlgoConfig

    return GRPOAlgoConfig(**given)


def episode(prime_rl, reward, turns, ok=True, trainable=True):
    """One rollout: a prompt, then turns of the model, of which the first token is the template's."""
    nodes = [{"token_ids": [1, 2], "mask": [False, False], "logprobs": []}]
    nodes += [
        {"token_ids": [3] * (len(turn) + 1), "mask": [False] + [True] * len(turn), "logprobs": turn} for turn in turns
    ]
    if prime_rl is None:
        trace = SimpleNamespace(
            nodes=[SimpleNamespace(**node, advantages=None) for node in nodes],
            reward=reward,
            has_error=not ok,
            agent=SimpleNamespace(trainable=trainable),
        )
        return SimpleNamespace(traces=[trace])
    import verifiers.v1 as vf

    messages = [vf.UserMessage(content="q")] + [vf.AssistantMessage(content="a") for _ in turns]
    trace = vf.Trace[vf.TaskData](
        task=vf.TraceTask(type="Task", data=vf.TaskData(idx=0, prompt=None)),
        agent=vf.AgentInfo(config=vf.AgentConfig(), trainable=trainable),
        nodes=[
            vf.MessageNode(message=message, **node, sampled=any(node["mask"]), parent=i - 1 if i else None)
            for i, (message, node) in enumerate(zip(messages, nodes, strict=True))
        ],
        rewards={"reward": vf.Reward(score=reward)},
        ok=ok,
    )
    return vf.Episode(env=vf.EnvInfo(id="e", name="e"), task=trace.task, group=vf.GroupInfo(id="g"), traces=[trace])


def scored(algorithm, episodes):
    """Run a group through the algorithm's own hook; return one advantage per episode, None where none was assigned."""
    asyncio.run(getattr(algorithm, "finalize_group", algorithm.score_group)(episodes))
    out = []
    for one in episodes:
        values = {x for node in one.traces[0].nodes for x in node.advantages or []}
        assert len(values) <= 1
        out.append(values.pop() if values else None)
    return out


def test_prime_rl_scores_groups_by_the_window(prime, prime_rl):
    groups = data()
    algorithm = prime["DurianAlgorithm"](config(prime_rl), None)
    got = [scored(algorithm, [episode(prime_rl, *one) for one in group]) for group in groups]
    torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), expected(groups), rtol=1e-12, atol=1e-12)
    alone = grpo_advantage(torch.tensor([[reward for reward, _ in group] for group in groups], dtype=torch.float64))
    assert (torch.tensor(got, dtype=torch.float64) - alone).abs().max() > 0.1  # which is not GRPO


def test_prime_rls_failed_and_untrainable_traces_influence_nothing(prime, prime_rl):
    (group,) = data(1)
    clean = scored(prime["DurianAlgorithm"](config(prime_rl), None), [episode(prime_rl, *one) for one in group])
    more = [
        *[episode(prime_rl, *one) for one in group],
        episode(prime_rl, 1e30, [[-9.0]], ok=False),
        episode(prime_rl, 1e30, [[-9.0]], trainable=False),
        episode(prime_rl, 1e30, []),
    ]
    assert scored(prime["DurianAlgorithm"](config(prime_rl), None), more) == [*clean, None, None, None]


def test_prime_rls_length_penalty_is_refused(prime, prime_rl):
    penalty = {"type": "linear"} if prime_rl is not None else object()
    with pytest.raises(ValueError, match="length_penalty"):
        prime["DurianAlgorithm"](config(prime_rl, length_penalty=penalty), None)


def test_prime_rls_groups_are_refused_without_a_window(prime, prime_rl):
    prime["AdvantageEstimator"] = lambda window: AdvantageEstimator()
    with pytest.raises(ValueError, match="window > 0"):
        scored(prime["DurianAlgorithm"](config(prime_rl), None), [episode(prime_rl, *one) for one in data(1)[0]])


def test_without_std_the_example_is_prime_rls_grpo(prime, prime_rl):
    if prime_rl is None:
        pytest.skip("PRIME_RL, the path of a checkout, is not given")
    prime["AdvantageEstimator"] = lambda window: AdvantageEstimator(estimator="dr_grpo")
    assert prime_rl.ALGORITHM_CLASSES["grpo"] is prime_rl.GRPOAlgorithm
    for group in data():
        own = scored(prime_rl.GRPOAlgorithm(config(prime_rl), None), [episode(prime_rl, *one) for one in group])
        ours = scored(prime["DurianAlgorithm"](config(prime_rl), None), [episode(prime_rl, *one) for one in group])
        assert ours == pytest.approx(own, abs=1e-6)


# --- torchtitan ---------------------------------------------------------------------------------------


class Configurable:
    """What the example uses of torchtitan's: the configuration of a class builds it."""

    class Config:
        def build(self):
            return self.owner(self)

    def __init_subclass__(cls):
        cls.Config.owner = cls


@pytest.fixture(scope="module")
def torchtitan():
    checkout("TORCHTITAN")
    found = importlib.util.find_spec("torchtitan")
    if found is None:
        return None
    (root,) = found.submodule_search_locations
    for name in ("experiments.rl", "experiments.rl.rollout"):
        package = sys.modules.setdefault(f"torchtitan.{name}", ModuleType(f"torchtitan.{name}"))
        package.__path__ = [str(Path(root, *name.split(".")))]  # their own imports need vLLM, and this file does not
    return importlib.import_module("torchtitan.experiments.rl.rollout.types")


@pytest.fixture
def titan(torchtitan, monkeypatch):
    if torchtitan is None:
        stand_in(monkeypatch, "torchtitan.config", Configurable=Configurable)
    return example("torchtitan")


def rollout_group(torchtitan, number, rollouts):
    made = torchtitan or SimpleNamespace(
        RolloutGroup=SimpleNamespace, Rollout=SimpleNamespace, RolloutTurn=SimpleNamespace
    )
    more = {} if torchtitan is None else {"status": torchtitan.RolloutStatus.COMPLETED}

    def turn(place, logprobs):
        ids = {} if torchtitan is None else {"rollout_id": None}
        return made.RolloutTurn(
            **ids, prompt_token_ids=[1], completion_token_ids=[2] * len(logprobs), completion_logprobs=logprobs
        )

    return made.RolloutGroup(
        group_id=number,
        rollouts=[
            made.Rollout(
                group_id=number,
                rollout_id=i,
                reward=reward,
                turns=[turn(place, logprobs) for place, logprobs in enumerate(turns)],
                **more,
            )
            for i, (reward, turns) in enumerate(rollouts)
        ],
    )


def test_torchtitan_scores_groups_by_the_window(titan, torchtitan):
    groups = data()
    estimator = titan["DurianAdvantage"].Config(window=48).build()
    got = [estimator(rollout_group(torchtitan, number, group)) for number, group in enumerate(groups)]
    torch.testing.assert_close(
        torch.tensor(got, dtype=torch.float64), expected(groups, size=48), rtol=1e-12, atol=1e-12
    )


def test_torchtitans_validation_groups_leave_the_window_as_it_was(titan, torchtitan):
    """Its controller scores them with the same object: one rollout each, and negative ids."""
    if torchtitan is not None:
        controller = Path(torchtitan.__file__).parents[1] / "controller.py"
        assert "group_id=-(i + 1)" in controller.read_text()
    groups = data()
    estimator = titan["DurianAdvantage"].Config(window=48).build()
    got = []
    for number, group in enumerate(groups):
        assert estimator(rollout_group(torchtitan, -1 - number, [(1.0, [[-40.0 - number]])])) == [0.0]
        got.append(estimator(rollout_group(torchtitan, number, group)))
    torch.testing.assert_close(
        torch.tensor(got, dtype=torch.float64), expected(groups, size=48), rtol=1e-12, atol=1e-12
    )


def test_torchtitans_own_estimator_is_ours_without_std(titan, torchtitan):
    """Both are built by their configurations and called with a group."""
    if torchtitan is None:
        pytest.skip("torchtitan is not installed, and TORCHTITAN, the path of a checkout, is not given")
    own = importlib.import_module("torchtitan.experiments.rl.rollout.advantage").AdvantageEstimator.Config().build()
    titan["AdvantageEstimator"] = lambda window: AdvantageEstimator(estimator="dr_grpo")
    ours = titan["DurianAdvantage"].Config().build()
    for number, group in enumerate(data()):
        given = rollout_group(torchtitan, number, group)
        assert ours(given) == pytest.approx(own(given), abs=1e-12)


def test_torchtitans_groups_are_refused_without_a_window(titan, torchtitan):
    estimator = titan["DurianAdvantage"].Config(window=0).build()
    with pytest.raises(ValueError, match="window > 0"):
        estimator(rollout_group(torchtitan, 0, data(1)[0]))
