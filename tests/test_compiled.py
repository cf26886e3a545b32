"""The compiled functions: the same names, the same bits where a graph is not possible, the same errors."""

import functools
import inspect

import pytest
import torch
from contract_table import Inputs
from helpers import assert_matches, needs_compiler, ulps

import durian_adv
from durian_adv import compiled

NAMES = sorted(name for name in durian_adv.__all__ if inspect.isfunction(getattr(durian_adv, name)))


def test_every_function_of_the_contract_has_its_compiled_form():
    assert sorted(compiled.__all__) == NAMES
    for name in NAMES:
        function = getattr(compiled, name)
        assert function is not getattr(durian_adv, name)
        assert inspect.signature(function) == inspect.signature(getattr(durian_adv, name))
        assert function.__doc__ == getattr(durian_adv, name).__doc__


BAD = {
    "a shape": ("durian_advantage", lambda x: ((x.rewards,), {"visual_entropy": x.entropy[:2]})),
    "a value": ("durian_components", lambda x: ((x.rewards,), {"eps": -1.0})),
    "a type": ("durian_advantage", lambda x: ((x.rewards,), {"weights": "abc"})),
    "a sum": ("combine_advantages", lambda x: (([x.rewards, None], (0.0, 1.0)), {})),
    "a name": ("sequence_confidence", lambda x: ((x.logprobs,), {"reduction": "median"})),
    "a dimension": ("grpo_advantage", lambda x: ((x.rewards[0],), {})),
    "levels": ("quantile_buckets", lambda x: ((x.scores, (0.5, 0.2)), {})),
    "no tensor": ("eigen_entropy", lambda x: (([1.0],), {})),
    "a dtype": ("shared_std_advantage", lambda x: ((x.rewards, x.entropy), {})),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_are_those_of_the_function_itself(case, fresh_dynamo):
    name, arguments = BAD[case]
    args, kwargs = arguments(Inputs())
    with pytest.raises((TypeError, ValueError)) as expected:
        getattr(durian_adv, name)(*args, **kwargs)
    with pytest.raises(expected.type) as actual:
        getattr(compiled, name)(*args, **kwargs)
    assert actual.type is expected.type
    assert str(actual.value) == str(expected.value)


def test_a_failure_of_the_compiler_is_not_hidden(fresh_dynamo):
    def untraceable(x):
        torch._dynamo.graph_break()
        return x

    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled._compiled(untraceable)(torch.zeros(2))


def test_beyond_the_limit_of_variants_a_call_warns_and_is_right(fresh_dynamo, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    call = compiled._compiled(durian_adv.grpo_advantage)
    integers = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
    rewards = torch.tensor([[0, 1, 1], [1, 0, 0]])
    dtypes = (*integers, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    with pytest.warns(UserWarning, match="grpo_advantage: torch compiles so many variants"):
        results = [call(rewards.to(dtype)) for dtype in dtypes]
    for dtype, actual in zip(dtypes, results, strict=True):
        assert torch.equal(actual, durian_adv.grpo_advantage(rewards.to(dtype)))


def test_the_flat_form_gives_the_bits_of_the_function_itself(fresh_dynamo):
    x = Inputs(b=9)
    ids = torch.arange(9).repeat_interleave(x.rewards.shape[1]).flip(0) * 1000
    kwargs = {
        "visual_entropy": x.entropy.repeat_interleave(x.rewards.shape[1]),
        "confidence": x.rollout_confidence.flatten(),
        "prompt_index": ids,
        "rollout_index": torch.arange(len(ids)),
        "category": ids % 3,
        "weights": (1, 1, 1, 1),
    }
    for name in ("durian_advantage", "durian_components"):
        actual = getattr(compiled, name)(x.rewards.flatten(), **kwargs)
        expected = getattr(durian_adv, name)(x.rewards.flatten(), **kwargs)
        for a, b in zip(actual, expected, strict=True):
            assert torch.equal(a, b)
    packed = {"lengths": [2, x.logprobs.shape[2] - 2], "rollout_index": torch.tensor([4, 5])}
    confidence = compiled.sequence_confidence(x.logprobs[0, 0], **packed)
    assert torch.equal(confidence, durian_adv.sequence_confidence(x.logprobs[0, 0], **packed))


@pytest.mark.inductor
@needs_compiler
def test_compiled_advantages_and_confidences_are_those_of_the_functions_themselves(fresh_dynamo):
    for sizes in ({"b": 40, "g": 8, "t": 50}, {"b": 33, "g": 5, "t": 37}):
        x = Inputs(**sizes)
        confidence = compiled.sequence_confidence(x.logprobs, x.tokens.bool())
        assert ulps(confidence, durian_adv.sequence_confidence(x.logprobs, x.tokens.bool())) <= 2
        scores = {"visual_entropy": x.entropy, "confidence": confidence, "valid": x.valid}
        actual = compiled.durian_advantage(x.rewards, **scores)
        expected = durian_adv.durian_advantage(x.rewards, **scores)
        assert ulps(actual, expected) <= 2
        assert_matches(actual, expected.numpy())
