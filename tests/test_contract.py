"""What holds for every public function: dtypes, devices, purity, compilation, errors, imports."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest
import reference
import strategies as own
import torch
import torch._dynamo.testing
from contract_table import OF_REWARDS, OF_STD, TABLE, Inputs, call, tensors
from helpers import TOLERANCE, assert_matches, needs_compiler, result_dtype, ulps

import durian_adv
from durian_adv import (
    certified_entropy_buckets,
    combine_advantages,
    durian_advantage,
    durian_components,
    eigen_entropy,
    quantile_buckets,
    sequence_confidence,
    shared_std_advantage,
)

everywhere = pytest.mark.parametrize("name", TABLE)
CONTRACT_NAMES = {
    "durian_advantage",
    "durian_components",
    "eigen_entropy",
    "certified_entropy_buckets",
    "sequence_confidence",
    "quantile_buckets",
    "grpo_advantage",
    "shared_std_advantage",
    "combine_advantages",
}


# --- names ------------------------------------------------------------------------------------------


def test_the_table_covers_every_public_function():
    functions = {n for n in durian_adv.__all__ if inspect.isfunction(getattr(durian_adv, n))}
    assert functions >= CONTRACT_NAMES
    assert functions <= set(TABLE)


def test_the_table_covers_every_function_of_the_baselines():
    public = {
        n
        for n, f in vars(durian_adv.baselines).items()
        if inspect.isfunction(f) and f.__module__ == "durian_adv.baselines" and not n.startswith("_")
    }
    assert public <= set(TABLE)


def test_the_table_covers_every_function_of_the_prior():
    public = {
        n
        for n, f in vars(durian_adv.weighting).items()
        if inspect.isfunction(f) and f.__module__ == "durian_adv.weighting" and not n.startswith("_")
    }
    assert public == set(durian_adv.weighting.__all__)
    of_rewards = {n for n in public if "rewards" in inspect.signature(getattr(durian_adv.weighting, n)).parameters}
    assert of_rewards <= set(TABLE)


@everywhere
def test_hyper_parameters_are_keyword_only_and_nothing_swallows_a_typo(name):
    function = TABLE[name][0]
    kinds = {p.name: p.kind for p in inspect.signature(function).parameters.values()}
    positional = [n for n, k in kinds.items() if k is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert inspect.Parameter.VAR_KEYWORD not in kinds.values()
    assert inspect.Parameter.VAR_POSITIONAL not in kinds.values()
    expected = {
        "eigen_entropy": ["features"],
        "certified_entropy_intervals": ["features"],
        "certified_entropy_buckets": ["features"],
        "sequence_confidence": ["logprobs", "mask"],
        "quantile_buckets": ["scores", "quantiles"],
        "shared_std_advantage": ["rewards", "buckets"],
        "combine_advantages": ["advantages", "weights"],
    }
    assert positional == expected.get(name, ["rewards"])
    args, kwargs = TABLE[name][1](Inputs())
    with pytest.raises(TypeError, match="weihgts"):
        function(*args, **kwargs, weihgts=1)


def test_the_defaults_of_the_signatures_are_those_of_the_contract():
    wanted = {
        "visual_entropy": None,
        "confidence": None,
        "prompt_index": None,
        "valid": None,
        "category": None,
        "rollout_index": None,
        "weights": (0.1, 0.2, 0.7),
        "no_signal": "keep",
        "entropy_quantiles": (0.25, 0.75),
        "num_confidence_buckets": 12,
        "eps": 1e-6,
        "correction": 1,
        "process_group": None,
    }
    for function in (durian_advantage, durian_components):
        parameters = list(inspect.signature(function).parameters.values())[1:]
        assert {p.name: p.default for p in parameters} == wanted
    for name in OF_STD:
        parameters = inspect.signature(TABLE[name][0]).parameters
        assert (parameters["eps"].default, parameters["correction"].default) == (1e-6, 1)


# --- dtype, device, purity --------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("dtype", own.DTYPES)
def test_the_dtype_of_the_result_follows_the_rule(name, dtype):
    for x in tensors(call(name, Inputs(dtype))):
        if name == "quantile_buckets":
            assert x.dtype == torch.int64
        else:
            assert x.dtype in (result_dtype(dtype), torch.int64, torch.bool)
    assert tensors(call(name, Inputs(dtype)))[0].dtype in (result_dtype(dtype), torch.int64)


@everywhere
def test_the_device_is_kept_and_no_value_is_read(name):
    # meta tensors have no values: any .item(), any copy to the host fails
    on_cpu, on_meta = (tensors(call(name, Inputs(device=d))) for d in ("cpu", "meta"))
    assert len(on_cpu) == len(on_meta)
    for a, b in zip(on_cpu, on_meta, strict=True):
        assert b.device.type == "meta"
        assert a.shape == b.shape
        assert a.dtype == b.dtype


@everywhere
def test_a_default_device_of_the_caller_has_no_say(name):
    inputs = Inputs()
    expected = tensors(call(name, inputs))
    with torch.device("meta"):
        for a, b in zip(tensors(call(name, inputs)), expected, strict=True):
            assert a.device == b.device
            assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))


def test_a_default_device_of_the_caller_has_no_say_in_flat_and_packed_forms():
    x = Inputs()
    ids = torch.arange(x.rewards.numel()) % 4
    rollouts = torch.arange(x.rewards.numel())

    def results():
        scores = {"visual_entropy": x.rollout_confidence.flatten(), "confidence": x.rollout_confidence.flatten()}
        options = {"num_confidence_buckets": 2, "weights": (0.1, 0.2, 0.7, 0.4), "category": ids % 3}
        flat = durian_components(x.rewards.flatten(), prompt_index=ids, **scores, **options)
        rows = durian_components(x.rewards.flatten(), prompt_index=ids, rollout_index=rollouts, **scores, **options)
        assert all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(rows, flat, strict=True))
        confidences = [
            sequence_confidence(x.logprobs.flatten(0, 1), rollout_index=ids),
            sequence_confidence(x.logprobs[0, 0], lengths=[1, x.logprobs.shape[2] - 1]),
        ]
        shared = shared_std_advantage(x.rewards.flatten(), ids, prompt_index=ids)
        packed = [f(x.features.flatten(0, 1), lengths=[14, 14, 7]) for f in (eigen_entropy, certified_entropy_buckets)]
        levels = [
            quantile_buckets(x.scores, q, boundary=b) for q in (3, (0.2, 0.6)) for b in ("lower", "outer", "upper")
        ]
        return [*flat, *confidences, shared, *packed, *levels]

    expected = results()
    with torch.device("meta"):
        for a, b in zip(results(), expected, strict=True):
            assert a.device == b.device
            assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))


@everywhere
@pytest.mark.parametrize("dtype", own.FLOATS)
def test_no_input_is_written_to(name, dtype):
    inputs = Inputs(dtype)
    before = {
        k: ([y.clone() for y in v], [y._version for y in v])
        for k, v in ((k, v if isinstance(v, list) else [v]) for k, v in vars(inputs).items())
    }
    results = tensors(call(name, inputs))
    for key, (clones, versions) in before.items():
        now = getattr(inputs, key)
        for x, clone, version in zip(now if isinstance(now, list) else [now], clones, versions, strict=True):
            assert x._version == version, key
            assert torch.equal(x, clone), key
            assert all(r.data_ptr() != x.data_ptr() for r in results if r.numel()), f"{key} is returned itself"


@everywhere
def test_no_result_requires_grad(name):
    inputs = Inputs()
    for value in vars(inputs).values():
        for x in value if isinstance(value, list) else [value]:
            x.requires_grad_(x.is_floating_point())
    for x in tensors(call(name, inputs)):
        assert not x.requires_grad
        assert x.grad_fn is None


@everywhere
def test_tensors_that_are_not_contiguous_give_the_same_bits(name):
    inputs = Inputs()
    plain = tensors(call(name, inputs))
    for key, value in vars(inputs).items():
        if isinstance(value, torch.Tensor):
            strided = torch.stack([value, value], -1)[..., 0]
            setattr(inputs, key, strided.transpose(0, -1).contiguous().transpose(0, -1))
    for a, b in zip(plain, tensors(call(name, inputs)), strict=True):
        assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))


@everywhere
def test_results_are_ordinary_tensors_that_a_loss_can_keep(name):
    for x in tensors(call(name, Inputs())):
        assert not x.is_inference()
        if x.is_floating_point():
            parameter = torch.ones_like(x, requires_grad=True)
            (parameter * x).sum().backward()


@everywhere
def test_functions_work_in_inference_mode(name):
    with torch.inference_mode():
        inside = tensors(call(name, Inputs()))
    for a, b in zip(inside, tensors(call(name, Inputs())), strict=True):
        assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))


# --- compilation ------------------------------------------------------------------------------------

SHAPES = [
    {"b": 5, "g": 3, "p": 7, "d": 8, "t": 6},
    {"b": 6, "g": 3, "p": 9, "d": 8, "t": 6},
    {"b": 6, "g": 4, "p": 9, "d": 8, "t": 11},
    {"b": 17, "g": 2, "p": 3, "d": 8, "t": 4},
    {"b": 4, "g": 16, "p": 24, "d": 8, "t": 40},
    {"b": 64, "g": 8, "p": 5, "d": 8, "t": 3},
    {"b": 2, "g": 2, "p": 8, "d": 8, "t": 2},
    {"b": 30, "g": 9, "p": 33, "d": 8, "t": 100},
    {"b": 3, "g": 31, "p": 2, "d": 8, "t": 9},
]


@everywhere
def test_one_graph_serves_every_shape(name, fresh_dynamo):
    counter = torch._dynamo.testing.CompileCounter()
    function, arguments = TABLE[name]
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for shape in SHAPES:
        args, kwargs = arguments(Inputs(**shape))
        for a, b in zip(tensors(compiled(*args, **kwargs)), tensors(function(*args, **kwargs)), strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)), shape
    assert counter.frame_count == 1


class ReadsNothing(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails on operators that bring a value to the host, where a GPU would have to be waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        assert name not in ("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero"), name
        assert "unique" not in name
        assert name != "index" or not any(i is not None and i.dtype == torch.bool for i in args[1]), "index by a mask"
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("name", [n for n in TABLE if "entropy" not in n])
def test_nothing_but_eigenvalues_reads_a_value_on_the_host(name):
    inputs = Inputs(b=9)
    with ReadsNothing():
        call(name, inputs)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), ReadsNothing():
        inputs.rewards.sum().item()


def test_levels_weights_and_numbers_of_buckets_compile_nothing_new(fresh_dynamo):
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(durian_advantage, fullgraph=True, dynamic=True, backend=counter)
    x = Inputs(b=40)
    scores = {"visual_entropy": x.entropy, "confidence": x.prompt_confidence}
    for number in (12, 4, 3, 48, 7):
        options = {
            "num_confidence_buckets": number,
            "weights": (0.1 * number, 0.2, 0.3),
            "entropy_quantiles": (0.3 / number, 0.6),
            "eps": 1e-6 * number,
        }
        assert torch.equal(
            compiled(x.rewards, **scores, **options), durian_advantage(x.rewards, **scores, **options)
        ), options
    assert counter.frame_count <= 2  # torch 2.6 takes the first number for a constant


def durian_group(x):
    """Everything that Durian is made of, in one graph."""
    parts = durian_components(
        x["rewards"],
        visual_entropy=x["entropy"],
        confidence=x["rollout_confidence"],
        valid=x["valid"],
        category=x["buckets"],
        weights=(0.1, 0.2, 0.7, 0.4),
    )
    dropped = durian_components(
        x["rewards"], visual_entropy=x["entropy"], confidence=x["prompt_confidence"], valid=x["valid"], no_signal="drop"
    )
    lower = quantile_buckets(x["prompt_confidence"], (0.2, 0.5), boundary="lower")
    both = [value for value in (*parts, *dropped) if value is not None]
    return [*both, shared_std_advantage(x["rewards"], x["buckets"], eps=0.0), lower]


def baseline_group(x):
    """The whole family in one graph."""
    names = [n for n in OF_REWARDS if n not in CONTRACT_NAMES]
    return [TABLE[n][0](x["rewards"], valid=x["valid"]) for n in names]


MASKS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.bfloat16, torch.float32)


def score_group(x):
    """The difficulty scores."""
    return [
        eigen_entropy(x["features"], mask=x["patches"]),
        eigen_entropy(x["features"], normalize=True),
        sequence_confidence(x["logprobs"], x["tokens"]),
        sequence_confidence(x["logprobs"], reduction="mean"),
        *(sequence_confidence(x["logprobs"], x["tokens"].to(dtype)) for dtype in MASKS),
    ]


@pytest.mark.inductor
@needs_compiler
@pytest.mark.parametrize("group", [durian_group, baseline_group, score_group])
@pytest.mark.parametrize("dtype", own.FLOATS)
def test_compiled_equals_eager_to_a_few_units_in_the_last_place(group, dtype, fresh_dynamo):
    compiled = torch.compile(group, fullgraph=True, dynamic=True)
    limit = 2 if dtype == torch.float32 else 4
    worst = 0.0
    for shape in SHAPES[:5]:
        x = vars(Inputs(dtype, **shape))
        variants = [x]
        if group is not score_group:
            variants += [
                {**x, "rewards": torch.full_like(x["rewards"], 0.9)},
                {**x, "rewards": x["rewards"] + 1e4},
                {**x, "rewards": x["rewards"].sign() * torch.finfo(dtype).max},
                {**x, "rewards": (x["rewards"] > 0).to(dtype) * torch.finfo(dtype).smallest_normal / 4},
                {**x, "rewards": torch.where(x["valid"], x["rewards"], float("nan"))},
            ]
        for variant in variants:
            wide = {
                k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
                for k, v in variant.items()
            }
            for a, b, c in zip(compiled(variant), group(variant), group(wide), strict=True):
                assert a.dtype == b.dtype
                if not a.is_floating_point():
                    assert torch.equal(a, b)
                    continue
                assert torch.equal(a.isnan(), b.isnan())
                a, b, c = (v.nan_to_num(-1) for v in (a, b, c))
                worst = max(worst, ulps(a, b))
                if group is not score_group and bool((c.abs() < 1e6).all()):
                    assert_matches(a, c.numpy(), 2 * TOLERANCE[dtype])
    assert worst <= limit, f"{worst} ulp"


@pytest.mark.inductor
@needs_compiler
def test_compiled_float32_agrees_with_the_reference(fresh_dynamo):
    compiled = torch.compile(durian_advantage, fullgraph=True, dynamic=True)
    for shape in SHAPES[:4]:
        x = Inputs(torch.float32, **shape)
        actual = compiled(x.rewards, visual_entropy=x.entropy, confidence=x.prompt_confidence, valid=x.valid)
        expected = reference.durian(
            own.as_numpy(x.rewards), own.as_numpy(x.entropy), own.as_numpy(x.prompt_confidence), x.valid.numpy()
        )
        assert_matches(actual, expected["advantages"])


# --- errors -----------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


def of_rewards(name, rewards, **kwargs):
    """A function of rewards with whatever else it needs."""
    if name == "shared_std_advantage":
        kwargs.setdefault("buckets", torch.zeros(3, dtype=torch.int64))
    return TABLE[name][0](rewards, **kwargs)


REWARD_ERRORS = {
    "no dimension": ("rewards", lambda f, r: f(r[0, 0])),
    "one dimension without ids": ("rewards", lambda f, r: f(r[0])),
    "three dimensions": ("rewards", lambda f, r: f(r[None])),
    "complex": ("rewards", lambda f, r: f(r.to(torch.complex64))),
    "not a tensor": ("rewards", lambda f, r: f([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])),
    "None": ("rewards", lambda f, r: f(None)),
    "valid of another shape": ("valid", lambda f, r: f(r, valid=(r[:, :2] > 0))),
    "valid that would broadcast": ("valid", lambda f, r: f(r, valid=(r[:, :1] > 0))),
    "valid of one row": ("valid", lambda f, r: f(r, valid=(r[0] > 0))),
    "valid of numbers": ("valid", lambda f, r: f(r, valid=torch.ones_like(r))),
    "valid of integers": ("valid", lambda f, r: f(r, valid=torch.ones_like(r, dtype=torch.int64))),
    "valid not a tensor": ("valid", lambda f, r: f(r, valid=[[True] * 4] * 3)),
    "ids with two-dimensional rewards": (
        "rewards|prompt_index",
        lambda f, r: f(r, prompt_index=torch.zeros_like(r[:, 0], dtype=torch.int64)),
    ),
    "ids of another length": (
        "prompt_index",
        lambda f, r: f(r[0], prompt_index=torch.zeros_like(r[:, 0], dtype=torch.int64)),
    ),
    "ids of floats": ("prompt_index", lambda f, r: f(r[0], prompt_index=r[0])),
    "ids of two dimensions": (
        "prompt_index|rewards",
        lambda f, r: f(r[0], prompt_index=torch.zeros_like(r, dtype=torch.int64)),
    ),
    "ids not a tensor": ("prompt_index", lambda f, r: f(r[0], prompt_index=[0, 1, 0, 1])),
}

STD_ERRORS = {
    **{f"eps {bad!r}": ("eps", {"eps": bad}) for bad in (-1e-6, NAN, INF, "1e-6", None)},
    **{f"correction {bad!r}": ("correction", {"correction": bad}) for bad in (2, -1, 0.5, "1", None, NAN)},
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("bad", REWARD_ERRORS)
@pytest.mark.parametrize("name", OF_REWARDS)
def test_bad_rewards_masks_and_ids_are_refused_by_name(name, bad, device):
    argument, act = REWARD_ERRORS[bad]

    def function(rewards, **kwargs):
        if name == "shared_std_advantage":
            flat = "prompt_index" in kwargs and rewards.ndim == 1
            kwargs["buckets"] = torch.zeros(4 if flat else 3, dtype=torch.int64, device=device)
        return TABLE[name][0](rewards, **kwargs)

    with pytest.raises((ValueError, TypeError), match=rf"\b({argument})\b"):
        act(function, torch.ones(3, 4, device=device))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("bad", STD_ERRORS)
@pytest.mark.parametrize("name", OF_STD)
def test_bad_eps_and_correction_are_refused_by_name(name, bad, device):
    argument, kwargs = STD_ERRORS[bad]
    if name == "shared_std_advantage":
        kwargs = {**kwargs, "buckets": torch.zeros(3, dtype=torch.int64, device=device)}
    with pytest.raises((ValueError, TypeError), match=rf"\b{argument}\b"):
        TABLE[name][0](torch.ones(3, 4, device=device), **kwargs)


def _durian(**kwargs):
    def act(device):
        placed = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        placed.setdefault("visual_entropy", torch.ones(3, device=device))
        placed.setdefault("confidence", torch.ones(3, device=device))
        return durian_advantage(torch.ones(3, 4, device=device), **placed)

    return act


def _flat(**kwargs):
    def act(device):
        placed = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        return durian_advantage(
            torch.ones(4, device=device), prompt_index=torch.zeros(4, dtype=torch.int64, device=device), **placed
        )

    return act


def _buckets(scores=None, quantiles=3, **kwargs):
    scores = torch.ones(5) if scores is None else scores
    return lambda device: quantile_buckets(
        scores.to(device) if isinstance(scores, torch.Tensor) else scores, quantiles, **kwargs
    )


def _shared(buckets):
    return lambda device: shared_std_advantage(
        torch.ones(3, 4, device=device), buckets.to(device) if isinstance(buckets, torch.Tensor) else buckets
    )


def _entropy(features, **kwargs):
    return lambda device: eigen_entropy(
        features.to(device) if isinstance(features, torch.Tensor) else features,
        **{k: v.to(device) if k == "mask" and isinstance(v, torch.Tensor) else v for k, v in kwargs.items()},
    )


def _confidence(logprobs, mask=None, **kwargs):
    return lambda device: sequence_confidence(
        logprobs.to(device) if isinstance(logprobs, torch.Tensor) else logprobs,
        mask.to(device) if isinstance(mask, torch.Tensor) else mask,
        **kwargs,
    )


def _combine(advantages, weights):
    def act(device):
        placed = [x.to(device) if isinstance(x, torch.Tensor) else x for x in advantages]
        return combine_advantages(placed, weights)

    return act


ONES, FLAGS = torch.ones, torch.ones(2, 5, dtype=torch.bool)
ERRORS = {
    # durian
    **{
        f"entropy of shape {s}": ("visual_entropy", _durian(visual_entropy=ONES(s)))
        for s in ((4,), (3, 4), (3, 1), (1,), ())
    },
    **{
        f"confidence of shape {s}": ("confidence", _durian(confidence=ONES(s)))
        for s in ((4,), (4, 3), (3, 1), (1,), ())
    },
    "complex entropy": ("visual_entropy", _durian(visual_entropy=ONES(3, dtype=torch.complex64))),
    "complex confidence": ("confidence", _durian(confidence=ONES(3, dtype=torch.complex64))),
    "entropy as a list": ("visual_entropy", _durian(visual_entropy=[1.0, 2.0, 3.0])),
    "confidence as a number": ("confidence", _durian(confidence=1.0)),
    "flat entropy of another length": ("visual_entropy", _flat(visual_entropy=ONES(3))),
    "flat confidence of another length": ("confidence", _flat(confidence=ONES(1))),
    "flat confidence of two dimensions": ("confidence", _flat(confidence=ONES(4, 1))),
    "category with three weights": ("weights", _durian(category=ONES(3, dtype=torch.int64))),
    "category of floats": ("category", _durian(category=ONES(3), weights=(1, 1, 1, 1))),
    "category per rollout": ("category", _durian(category=ONES(3, 4, dtype=torch.int64), weights=(1, 1, 1, 1))),
    "category as a list": ("category", _durian(category=[1, 2, 3], weights=(1, 1, 1, 1))),
    "flat category of another length": ("category", _flat(category=ONES(3, dtype=torch.int64), weights=(1, 1, 1, 1))),
    "rollouts of dense rewards": ("rollout_index", _durian(rollout_index=ONES(3, dtype=torch.int64))),
    "rollouts of floats": ("rollout_index", _flat(rollout_index=ONES(4))),
    "rollouts of another length": ("rollout_index", _flat(rollout_index=ONES(3, dtype=torch.int64))),
    **{f"no signal {bad!r}": ("no_signal", _durian(no_signal=bad)) for bad in ("Keep", "", None, True, 1)},
    **{
        f"weights {w!r}": ("weights", _durian(weights=w))
        for w in (
            (1, 1),
            (1, 1, 1, 1, 1),
            (0, 0, 0, 1),
            (-0.1, 0.5, 0.5),
            (NAN, 1, 1),
            (INF, 1, 1),
            (0, 0, 0),
            "abc",
            None,
            1.0,
            ("1", 1, 1),
        )
    },
    **{
        f"entropy_quantiles {q!r}": ("entropy_quantiles", _durian(entropy_quantiles=q))
        for q in ((0.75, 0.25), (0.0, 0.5), (0.5, 1.0), (0.5, 0.5), (NAN,), ("a", "b"), "ab", None, 1.5, (-0.1, 0.5))
    },
    **{
        f"num_confidence_buckets {b!r}": ("num_confidence_buckets", _durian(num_confidence_buckets=b))
        for b in (0, -3, 2.5, "12", None, True, torch.tensor(3))
    },
    # quantile_buckets
    "scores of two dimensions": ("scores", _buckets(ONES(2, 2))),
    "a single score": ("scores", _buckets(torch.tensor(1.0))),
    "complex scores": ("scores", _buckets(ONES(3, dtype=torch.complex64))),
    "scores as a list": ("scores", _buckets([1.0, 2.0])),
    **{
        f"quantiles {q!r}": ("quantiles", _buckets(quantiles=q))
        for q in (0, -1, 1.5, "3", None, (0.0, 0.5), (0.5, 1.0), (0.6, 0.4), (0.5, 0.5), (NAN,), (0.2, "x"), (2.0,))
    },
    **{f"boundary {b!r}": ("boundary", _buckets(boundary=b)) for b in ("middle", "", None, 3, "Upper")},
    # shared_std_advantage
    **{
        f"buckets of shape {s}": ("buckets", _shared(torch.zeros(s, dtype=torch.int64)))
        for s in ((4,), (3, 4), (3, 1), (1,), ())
    },
    "buckets of floats": ("buckets", _shared(ONES(3))),
    "buckets as a list": ("buckets", _shared([0, 1, 0])),
    # eigen_entropy
    "features of one dimension": ("features", _entropy(ONES(5))),
    "complex features": ("features", _entropy(ONES(5, 2, dtype=torch.complex64))),
    "features as a list": ("features", _entropy([[1.0, 2.0]])),
    **{
        f"patch mask of shape {tuple(m.shape)}": ("mask", _entropy(ONES(2, 5, 3), mask=m))
        for m in (FLAGS[:, :4], FLAGS[0], FLAGS[:1], FLAGS[..., None], FLAGS[:, :1])
    },
    "patch mask as a list": ("mask", _entropy(ONES(2, 5, 3), mask=[[True] * 5] * 2)),
    "mask and lengths": ("mask|lengths", _entropy(ONES(5, 3), mask=FLAGS[0], lengths=[2, 3])),
    "lengths with padded features": ("features|lengths", _entropy(ONES(2, 5, 3), lengths=[2, 3])),
    "lengths that miss a patch": ("lengths", _entropy(ONES(6, 3), lengths=[2, 3])),
    "lengths that are negative": ("lengths", _entropy(ONES(6, 3), lengths=[-1, 7])),
    "lengths of floats": ("lengths", _entropy(ONES(5, 3), lengths=torch.tensor([2.0, 3.0]))),
    "lengths of two dimensions": ("lengths", _entropy(ONES(5, 3), lengths=torch.tensor([[2, 3]]))),
    "lengths as a string": ("lengths", _entropy(ONES(5, 3), lengths="23")),
    "lengths as a number": ("lengths", _entropy(ONES(5, 3), lengths=5)),
    "lengths as a list of floats": ("lengths", _entropy(ONES(5, 3), lengths=[2.5, 2.5])),
    **{f"normalize {n!r}": ("normalize", _entropy(ONES(5, 3), normalize=n)) for n in ("yes", 1, None)},
    # sequence_confidence
    "logprobs of no dimension": ("logprobs", _confidence(torch.tensor(1.0))),
    "complex logprobs": ("logprobs", _confidence(ONES(5, dtype=torch.complex64))),
    "logprobs as a list": ("logprobs", _confidence([-1.0, -2.0])),
    **{
        f"token mask of shape {tuple(m.shape)}": ("mask", _confidence(ONES(2, 5), m))
        for m in (FLAGS[:, :4], FLAGS[0], FLAGS[:1], FLAGS[:, :1], FLAGS[..., None])
    },
    "token mask as a list": ("mask", _confidence(ONES(2, 5), [[1] * 5] * 2)),
    **{f"reduction {r!r}": ("reduction", _confidence(ONES(5), reduction=r)) for r in ("max", "", None, 1, "Sum")},
    # combine_advantages
    "advantages in one tensor": (
        "advantages",
        lambda device: combine_advantages(ONES(2, 3, device=device), [1.0, 1.0]),
    ),
    "weights whose sum is infinite": ("weights", _combine([ONES(2), ONES(2)], (1e308, 1e308))),
    "no advantages": ("advantages", _combine([], [])),
    "only absent advantages": ("advantages|weights", _combine([None, None], [1.0, 1.0])),
    "advantages of different shapes": ("advantages", _combine([ONES(2, 3), ONES(2, 1)], [1.0, 1.0])),
    "advantages that are no tensors": ("advantages", _combine([[1.0], [2.0]], [1.0, 1.0])),
    "complex advantages": ("advantages", _combine([ONES(3, dtype=torch.complex64)], [1.0])),
    **{
        f"combination weights {w!r}": ("weights", _combine([ONES(2), ONES(2)], w))
        for w in ((1.0,), (1, 2, 3), (-1, 2), (NAN, 1), (INF, 1), (0, 0), "ab", None, 2.0)
    },
    "weights that vanish on what is there": ("weights", _combine([ONES(2), None], (0.0, 1.0))),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("bad", ERRORS)
def test_bad_arguments_are_refused_by_name_without_reading_a_value(bad, device):
    argument, act = ERRORS[bad]
    with pytest.raises((ValueError, TypeError), match=rf"\b({argument})\b"):
        act(device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("argument", "act"),
    [
        (
            "valid",
            lambda d: of_rewards("grpo_advantage", ONES(3, 4, device=d), valid=ONES(3, 5, dtype=torch.bool, device=d)),
        ),
        ("mask", lambda d: sequence_confidence(ONES(3, 4, device=d), ONES(3, 5, device=d))),
        ("mask", lambda d: eigen_entropy(ONES(3, 4, 2, device=d), mask=ONES(3, 5, device=d))),
    ],
)
def test_a_message_about_shapes_shows_what_was_expected_and_what_came(argument, act, device):
    with pytest.raises(ValueError, match=argument) as error:
        act(device)
    text = str(error.value)
    assert re.search(r"3, 4\b", text), text
    assert re.search(r"3, 5\b", text), text


def _flat_elsewhere(**kwargs):
    index = kwargs.pop("prompt_index", torch.zeros(4, dtype=torch.int64))
    return durian_advantage(ONES(4), prompt_index=index, **kwargs)


@pytest.mark.parametrize(
    ("argument", "act"),
    [
        ("valid", lambda x: of_rewards("grpo_advantage", ONES(3, 4), valid=x(ONES(3, 4, dtype=torch.bool)))),
        ("buckets", lambda x: shared_std_advantage(ONES(3, 4), x(torch.zeros(3, dtype=torch.int64)))),
        ("visual_entropy", lambda x: durian_advantage(ONES(3, 4), visual_entropy=x(ONES(3)))),
        ("confidence", lambda x: durian_advantage(ONES(3, 4), confidence=x(ONES(3, 4)))),
        ("prompt_index", lambda x: _flat_elsewhere(prompt_index=x(torch.zeros(4, dtype=torch.int64)))),
        ("visual_entropy", lambda x: _flat_elsewhere(visual_entropy=x(ONES(4)))),
        ("mask", lambda x: eigen_entropy(ONES(3, 4, 2), mask=x(ONES(3, 4)))),
        ("mask", lambda x: sequence_confidence(ONES(3, 4), x(ONES(3, 4)))),
        ("advantages", lambda x: combine_advantages([ONES(3), x(ONES(3))], (1.0, 1.0))),
    ],
)
def test_an_input_on_another_device_is_refused_by_name(argument, act):
    act(lambda tensor: tensor)
    with pytest.raises(ValueError, match=rf"\b{argument}\b.*meta"):
        act(lambda tensor: tensor.to("meta"))


@pytest.mark.parametrize("dtype", own.DTYPES)
def test_packed_features_keep_their_device_and_have_one_entropy_an_image(dtype):
    entropy = eigen_entropy(ONES(5, 3, device="meta").to(dtype), lengths=[2, 0, 3])
    assert entropy.device.type == "meta"
    assert entropy.shape == (3,)
    assert entropy.dtype == result_dtype(dtype)


# --- imports ----------------------------------------------------------------------------------------


def test_the_import_brings_no_trainer_plotting_or_data_package():
    heavy = (
        "matplotlib", "skimage", "transformers", "trl", "verl", "tqdm", "scipy", "pandas", "hypothesis",
        "openrlhf", "datasets", "ray", "pytest", "PIL", "torchvision", "sklearn", "deepspeed", "accelerate",
    )  # fmt: skip
    code = (
        "import sys, torch, einops; before = set(sys.modules); import durian_adv, durian_adv.baselines;"
        "import durian_adv.data.hints, durian_adv.weighting;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        f"print(sorted(new & set({heavy!r})));"
        f"print(sorted(new - set(sys.stdlib_module_names) - {{'durian_adv', 'einops', 'torch'}}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["[]", "[]"]
