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


CHANGES = {
    "sizes": lambda x: (x.rewards[:4, :2], {"visual_entropy": x.entropy[:4], "confidence": x.prompt_confidence[:4]}),
    "a dtype": lambda x: (x.rewards.double(), {}),
    "a mask": lambda x: (x.rewards, {"valid": x.valid}),
    "no entropies": lambda x: (x.rewards, {"visual_entropy": None, "weights": (0.0, 0.0, 1.0)}),
    "confidences of rollouts": lambda x: (x.rewards, {"confidence": x.rollout_confidence}),
    "weights": lambda x: (x.rewards, {"weights": (0.3, 0.4, 0.5)}),
    "levels": lambda x: (x.rewards, {"entropy_quantiles": (0.2, 0.6)}),
    "a number of levels": lambda x: (x.rewards, {"entropy_quantiles": (0.2, 0.4, 0.6)}),
    "buckets": lambda x: (x.rewards, {"num_confidence_buckets": 3}),
    "eps": lambda x: (x.rewards, {"eps": 0.5}),
    "correction": lambda x: (x.rewards, {"correction": 0}),
    "no_signal": lambda x: (x.rewards, {"no_signal": "drop"}),
    "gradients": lambda x: (x.rewards.clone().requires_grad_(), {}),
}


def test_what_is_passed_counts_however_it_was_compiled(fresh_dynamo, monkeypatch):
    """One graph serves many arguments, and its guards, fewer than torch's own, tell where it does not."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    call, x = compiled._compiled(durian_adv.durian_advantage), Inputs(b=12, g=6)
    x.rewards[3] = 1.0  # no signal
    given = {"visual_entropy": x.entropy, "confidence": x.prompt_confidence, "num_confidence_buckets": 2}
    seen = []
    for change in (None, *CHANGES, None, *reversed(CHANGES)):
        rewards, kwargs = CHANGES[change](x) if change else (x.rewards, {})
        with torch._dynamo.config.patch(recompile_limit=64):
            actual = call(rewards, **{**given, **kwargs})
        expected = durian_adv.durian_advantage(rewards, **{**given, **kwargs})
        assert actual.dtype == expected.dtype, change
        assert torch.equal(actual, expected), change
        seen.append(expected)
    unlike = [change for change, result in zip(CHANGES, seen[1:], strict=False) if not torch.equal(result, seen[0])]
    assert unlike == [change for change in CHANGES if change != "gradients"]


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
