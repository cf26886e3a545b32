"""The example for Trinity-RFT, in the released package: an operator of its own pipeline, on its own experiences."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
import torch
from elsewhere import EXAMPLES, example
from trinity.algorithm.advantage_fn import ADVANTAGE_FN
from trinity.algorithm.algorithm import GRPOAlgorithm
from trinity.buffer.pipelines.experience_pipeline import ExperiencePipeline
from trinity.common.config import Config
from trinity.common.config_validator import AlgorithmConfigValidator
from trinity.common.experience import EID, Experience

from durian_adv import durian_components, sequence_confidence

PROMPTS, ROLLOUTS = 16, 4


@pytest.fixture(scope="module")
def made():
    return example("trinity")["DurianAdvantage"]


def experiences(images=True):
    """What an explorer step hands over, in no order: tokens of tools do not count."""
    draw = torch.Generator().manual_seed(0)
    out = []
    for at in torch.randperm(PROMPTS * ROLLOUTS, generator=draw).tolist():
        prompt, length = at // ROLLOUTS, 2 + at % 5
        out.append(
            Experience(
                eid=EID(batch=3, task=prompt, run=at % ROLLOUTS),
                tokens=torch.arange(5 + length),
                prompt_length=5,
                logprobs=-torch.rand(length, generator=draw),
                reward=float(at % (prompt % 5 + 2) == 0),
                action_mask=torch.arange(length) != 1,
                info={"visual_entropy": prompt / 3} if images else {},
            )
        )
    return out


def process(operator, exps):
    return asyncio.run(operator.process(exps))


def advantages(exps):
    """One advantage per experience, all its tokens agree on it."""
    out = []
    for exp in exps:
        assert torch.equal(exp.returns, exp.advantages)
        values = exp.advantages[exp.action_mask]
        assert bool((values == values[0]).all())
        assert not exp.advantages[~exp.action_mask].any()
        assert exp.advantages.dtype == torch.float32
        out.append(values[0])
    return torch.stack(out)


@pytest.mark.parametrize("images", [True, False])
def test_the_example_gives_the_librarys_advantages(made, images):
    exps, metrics = process(made(num_confidence_buckets=4), experiences(images))
    confidence = [sequence_confidence(exp.logprobs.double(), exp.action_mask) for exp in exps]
    entropy = torch.tensor([exp.eid.task / 3 for exp in exps], dtype=torch.float64) if images else None
    parts = durian_components(
        torch.tensor([exp.reward for exp in exps], dtype=torch.float64),
        prompt_index=torch.tensor([exp.eid.task for exp in exps]),
        confidence=torch.stack(confidence),
        visual_entropy=entropy,
        num_confidence_buckets=4,
    )
    assert torch.equal(advantages(exps), parts.advantages.float())
    assert metrics["durian/prompts"] == PROMPTS


def test_the_grpo_component_is_trinitys_grpo(made):
    own_class = ADVANTAGE_FN.get("grpo")
    own, _ = own_class(**own_class.default_args()).process(experiences())
    ours, _ = process(made(weights=(1, 0, 0), eps=own_class.default_args()["epsilon"]), experiences())
    order = sorted(range(len(own)), key=lambda i: own[i].eid.rid)
    expected = advantages([own[i] for i in order])
    got = advantages(sorted(ours, key=lambda exp: exp.eid.rid))
    assert torch.equal(got, expected) or (got - expected).abs().max() <= 1.2e-7
    assert bool(expected.any())


def test_an_experience_without_a_reward_gets_0_and_changes_nothing_else(made):
    clean, _ = process(made(), experiences())
    given = experiences()
    given.insert(
        7, Experience(eid=EID(batch=3, task=2, run=9), tokens=torch.arange(8), logprobs=-torch.rand(7), prompt_length=1)
    )
    got, metrics = process(made(), given)
    assert not got.pop(7).advantages.any()
    assert torch.equal(advantages(got), advantages(clean))
    assert metrics["durian/unscored_share"] == 1 / 65


def test_no_experiences_are_no_error(made):
    assert process(made(), [])[0] == []


class Kept:
    """Where the pipeline writes to: a buffer needs Ray."""

    def __init__(self):
        self.exps = []

    async def acquire(self):
        pass

    async def write(self, exps):
        self.exps.extend(exps)


def test_trinitys_own_pipeline_runs_it_by_its_path_with_its_options(tmp_path, monkeypatch):
    """Its validator fills in the configuration, its pipeline makes the operator and runs a serialized step.

    Only ``prepare`` and the buffers are left out, which import vLLM and start Ray.
    """
    Path(tmp_path, "durian_trinity.py").write_text(EXAMPLES["trinity"])
    monkeypatch.syspath_prepend(tmp_path)
    config = Config()
    config.algorithm.algorithm_type = "grpo"
    config.algorithm.advantage_fn = "durian_trinity.DurianAdvantage"
    config.algorithm.advantage_fn_args = {"num_confidence_buckets": 4}
    config.algorithm.repeat_times = ROLLOUTS
    AlgorithmConfigValidator().validate(config)
    assert not GRPOAlgorithm.compute_advantage_in_trainer
    pipeline = ExperiencePipeline.__new__(ExperiencePipeline)
    pipeline.config, pipeline.input_store, pipeline.output, pipeline.operators = config, None, Kept(), []
    pipeline.auxiliary_models = {}
    pipeline._set_algorithm_operators(config.algorithm)
    (operator,) = pipeline.operators
    assert type(operator) is sys.modules["durian_trinity"].DurianAdvantage
    assert operator.estimator.options["num_confidence_buckets"] == 4
    metrics = asyncio.run(pipeline.process(Experience.serialize_many(experiences())))
    expected, _ = process(operator.__class__(num_confidence_buckets=4), experiences())
    assert torch.equal(advantages(pipeline.output.exps), advantages(expected))
    assert metrics["experience_pipeline/durian/prompts"] == PROMPTS
    assert os.fspath(tmp_path) in sys.path
