"""Surroundings do not count: autocast, defaults, precision switches, threads and modes move no result.

Every public function gives the same bits under all of them. Only products of float32 matrices, which wide images need,
may round differently where the caller has changed the number of threads or the precision of such products; they stay as
accurate as they are promised to be.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from functools import partial

import pytest
import reference
import torch
from contract_table import TABLE, Inputs, call
from helpers import assert_same_bits, needs_compiler
from torch.utils._python_dispatch import TorchDispatchMode

import durian_adv
from durian_adv import (
    certified_entropy_buckets,
    certified_entropy_intervals,
    diagnostics,
    durian_advantage,
    durian_components,
    eigen_entropy,
    quantile_buckets,
    sequence_confidence,
    weighting,
)
from durian_adv._src import certified, entropy
from durian_adv.estimator import AdvantageEstimator
from durian_adv.window import windowed_components
from durian_adv.worth import predicted_worth

# --- surroundings -------------------------------------------------------------------------------------


@contextmanager
def setting(get, put, value):
    """A global setting of torch for the length of a test."""
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def attribute(owner, name, value):
    """The same of an attribute."""
    return setting(lambda: getattr(owner, name), lambda x: setattr(owner, name, x), value)


def autocast(dtype):
    """What trainers compute their forward passes in."""
    return torch.autocast("cpu", dtype=dtype)


def default_dtype(dtype):
    """What scripts set once for all their tensors."""
    return setting(torch.get_default_dtype, torch.set_default_dtype, dtype)


@contextmanager
def deterministic():
    """Deterministic algorithms, where unknown memory holds NaN."""
    with setting(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True):
        yield


def matmul_precision(name):
    """The precision of float32 products: bfloat16 where a processor has instructions for it."""
    return setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, name)


# no bit may move
SAME_BITS = {
    "autocast to bfloat16": partial(autocast, torch.bfloat16),
    "autocast to float16": partial(autocast, torch.float16),
    "autocast of a GPU's tensors": lambda: torch.autocast("cuda", dtype=torch.bfloat16),
    "default dtype float64": partial(default_dtype, torch.float64),
    "default dtype float16": partial(default_dtype, torch.float16),
    "default dtype bfloat16": partial(default_dtype, torch.bfloat16),
    "default device meta": partial(torch.device, "meta"),
    "TF32 in cuBLAS": lambda: attribute(torch.backends.cuda.matmul, "allow_tf32", True),
    "no TF32 in cuDNN": lambda: attribute(torch.backends.cudnn, "allow_tf32", False),
    "cuDNN's benchmarks": lambda: attribute(torch.backends.cudnn, "benchmark", True),
    "deterministic algorithms": deterministic,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
}
# float32 products may round differently
SAME_ACCURACY = {
    "2 threads": lambda: setting(torch.get_num_threads, torch.set_num_threads, 2),
    "float32 products as high": partial(matmul_precision, "high"),
    "float32 products as medium": partial(matmul_precision, "medium"),
}
SURROUNDINGS = {**SAME_BITS, **SAME_ACCURACY}


@contextmanager
def surrounded(name):
    """One of them; a machine without a GPU says that its autocast has nothing to do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
        with SURROUNDINGS[name]():
            yield


# --- functions ----------------------------------------------------------------------------------------

BIG = {"b": 40, "g": 8, "p": 60, "d": 24, "t": 50}


def flat(x):
    """The same rollouts in the flat form: arguments of the functions of rewards."""
    ids = torch.arange(x.rewards.numel(), device="cpu") % len(x.rewards)
    return x.rewards.flatten(), {"prompt_index": ids, "valid": x.valid.flatten()}


def flat_components(x):
    """Durian in the flat form."""
    rewards, kwargs = flat(x)
    score = x.rollout_confidence.flatten()
    return durian_components(rewards, visual_entropy=score, confidence=score, num_confidence_buckets=3, **kwargs)


def in_several_rows(x):
    """Rollouts of two rows each, categories, and prompts without signal that are dropped."""
    ids = torch.arange(x.rewards.numel(), device="cpu").repeat(2)
    score = x.rollout_confidence[:, :1].expand_as(x.rollout_confidence).flatten().repeat(2)
    return durian_components(
        x.rewards.flatten().repeat(2),
        prompt_index=ids // x.rewards.shape[1],
        rollout_index=ids,
        category=ids // x.rewards.shape[1] % 2,
        visual_entropy=score,
        confidence=score,
        valid=x.valid.flatten().repeat(2),
        weights=(0.1, 0.2, 0.4, 0.3),
        no_signal="drop",
    )


def estimated(x):
    """What trainers call, with lists and a window; and its metrics."""
    estimator = AdvantageEstimator(window=6, num_confidence_buckets=3, weights=(0.1, 0.2, 0.4, 0.3))
    prompts = [f"prompt {i // x.rewards.shape[1]}" for i in range(x.rewards.numel())]
    batch = {"logprobs": x.logprobs.flatten(0, 1), "mask": x.tokens.flatten(0, 1), "category": prompts}
    rewards = x.rewards.flatten()
    entropies = x.entropy.repeat_interleave(x.rewards.shape[1])
    found = [estimator(r, prompts, visual_entropy=entropies, **batch) for r in (rewards, rewards.flip(0))]
    kinds = {"confidence": x.rollout_confidence.flatten().tolist(), "category": prompts}
    listed = estimator(rewards.tolist(), prompts, **kinds)
    tokens = [row[: 1 + i % 4].tolist() if i % 5 else None for i, row in enumerate(x.logprobs.flatten(0, 1))]
    ragged = estimator(rewards.tolist(), prompts, logprobs=tokens, category=prompts)
    return [*found, listed, ragged, torch.tensor([*estimator.metrics.values()], dtype=torch.float64, device="cpu")]


def packed_scores(x):
    """Difficulty scores of what is packed, and every kind of reduction and boundary."""
    features, lengths = x.features.flatten(0, 1), [x.features.shape[1]] * len(x.features)
    return [
        eigen_entropy(features, lengths=lengths, normalize=True),
        *certified_entropy_intervals(features, lengths=lengths),
        certified_entropy_buckets(features, lengths=lengths, quantiles=3),
        sequence_confidence(x.logprobs, x.tokens, reduction="mean"),
        sequence_confidence(
            x.logprobs.flatten(),
            x.tokens.flatten(),
            lengths=[x.logprobs.shape[-1]] * x.rewards.numel(),
            rollout_index=torch.arange(x.rewards.numel(), device="cpu") // 2,
        ),
        *(
            quantile_buckets(x.scores, levels, boundary=boundary)
            for levels in (4, (0.2, 0.7))
            for boundary in ("lower", "outer", "upper")
        ),
    ]


def windowed(x):
    """Two batches with a window between them."""
    scores = {"visual_entropy": x.entropy, "confidence": x.prompt_confidence, "valid": x.valid}
    first, window = windowed_components(x.rewards, window=None, size=7, **scores)
    second, window = windowed_components(x.rewards.flip(0), window=window, size=7, **scores)
    return [*first, *second, *window]


def measured(x):
    """Every diagnostic."""
    parts = call("durian_components", x)
    outcomes = diagnostics.prompt_outcomes(x.rewards, valid=x.valid)
    numbers = diagnostics.durian_metrics(parts, x.rewards, valid=x.valid)
    cosine = diagnostics.cosine(parts.advantages, parts.grpo)
    of_both = {"durian": parts.advantages, "grpo": parts.grpo}
    worths = predicted_worth(x.rewards, of_both, valid=x.valid, correctness=x.rewards > 0, category=x.buckets)
    return [
        *outcomes,
        *diagnostics.group_kinds(outcomes).values(),
        diagnostics.update_by_prompt(parts.advantages),
        torch.tensor(
            [*numbers.values(), cosine, *worths["durian"], *worths["grpo"]], dtype=torch.float64, device="cpu"
        ),
    ]


def weighted(x):
    """Every weighting of the difficulty prior."""
    named = ("linear", "exponential", "power", "focal", "logarithmic", "logistic")
    draw = partial(weighting.uniform, generator=torch.Generator().manual_seed(3))
    return [
        weighting.accuracy_weights(x.rewards, valid=x.valid, weight=weight, normalize=True)
        for weight in (*(getattr(weighting, name) for name in named), draw)
    ]


FUNCTIONS = {
    **{name: partial(call, name) for name in TABLE},
    "flat durian_components": flat_components,
    **{
        f"flat {name}": lambda x, name=name: TABLE[name][0](flat(x)[0], **flat(x)[1])
        for name in TABLE
        if name.endswith("_advantage")
        and "std" not in name
        and name not in ("durian_advantage", "reweighted_advantage")
    },
    "rollouts in several rows": in_several_rows,
    "AdvantageEstimator": estimated,
    "packed scores": packed_scores,
    "windowed_components": windowed,
    "diagnostics": measured,
    "weightings": weighted,
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def tensors(result):
    """The tensors of a result, whatever holds them."""
    return [result] if isinstance(result, torch.Tensor) else [x for x in result if isinstance(x, torch.Tensor)]


def assert_same(actual, expected, where=""):
    """The same bits, dtypes and devices; NaN equals NaN."""
    assert len(actual) == len(expected), where
    for a, b in zip(actual, expected, strict=True):
        assert a.device == b.device, where
        assert_same_bits(a.nan_to_num(-1), b.nan_to_num(-1), where)


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def batches(request):
    """A small and a big batch, and what each function says of it without any surroundings."""
    found = [Inputs(request.param, **sizes) for sizes in ({}, BIG)]
    return [(x, {function: tensors(run(x)) for function, run in FUNCTIONS.items()}) for x in found]


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings_move_no_bit_of_any_function(name, batches):
    # images of at most 64 patches or features, in float64: no surroundings at all have a say
    for x, results in batches:
        for function, expected in results.items():
            assert expected, function
            with surrounded(name):
                actual = tensors(FUNCTIONS[function](x))
            assert_same(actual, expected, f"{function} under {name}")


def test_every_public_function_is_surrounded():
    assert {n for n in durian_adv.__all__ if n[0].islower()} <= set(FUNCTIONS)


# --- wide images, whose products are of float32 matrices ------------------------------------------------

# patches and features: on either side of what eigenvalues are exact for, intervals, real towers
WIDE = ((4, 100, 1280), (4, 128, 80), (3, 390, 400))


def wide(count, patches, dim, dtype):
    """Images of falling spectra, the features anywhere; and their entropies in float64."""
    generator = torch.Generator().manual_seed(patches + dim)
    falls = torch.arange(1, dim + 1.0) ** -torch.linspace(0.2, 0.9, count)[:, None]
    images = (torch.randn(count, patches, dim, generator=generator) * falls[:, None] + 3).to(dtype)
    return images, torch.tensor([reference.eigen_entropy(x.double().numpy()) for x in images], dtype=torch.float64)


def images_results(images):
    """Everything that is computed from images."""
    masks = torch.ones(images.shape[:2], dtype=torch.bool, device="cpu")
    return [
        eigen_entropy(images),
        eigen_entropy(images, mask=masks),
        eigen_entropy(images.flatten(0, 1), lengths=[images.shape[1]] * len(images)),
        *certified_entropy_intervals(images),
        certified_entropy_buckets(images),
    ]


@pytest.fixture(scope="module", params=[*DTYPES, torch.float16], ids=str)
def galleries(request):
    """Wide images, their true entropies, and what the functions say without any surroundings."""
    found = []
    for sizes in WIDE:
        images, truth = wide(*sizes, request.param)
        found.append((images, truth, images_results(images)))
    return found


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings_keep_entropies_intervals_and_buckets_of_wide_images(name, galleries):
    for images, truth, expected in galleries:
        with surrounded(name):
            actual = images_results(images)
        if name in SAME_BITS:
            assert_same(actual, expected, name)
        limit = 1e-12 if images.dtype == torch.float64 else 2e-6
        for found in actual[:3]:
            assert (found - truth).abs().max() <= limit, name
        low, high, buckets = actual[3:]
        assert ((low <= truth) & (truth <= high)).all(), name
        assert (high - low).max() < 1
        assert_same([buckets], [quantile_buckets(truth, (0.25, 0.75), boundary="outer")], name)


def test_the_surroundings_do_reach_products_of_float32_matrices():
    # else the tests above would show nothing
    images, _ = wide(1, 128, 1280, torch.float32)
    features = entropy.prepared(images[0])
    product = features @ features.T
    with surrounded("autocast to bfloat16"):
        assert (features @ features.T).dtype == torch.bfloat16
    with surrounded("default dtype float64"):
        assert torch.ones(1).dtype == torch.float64
    with surrounded("2 threads"):
        assert torch.get_num_threads() == 2
    for name in ("high", "medium"):
        with surrounded(f"float32 products as {name}"):
            assert entropy.prepared(images[0]).dtype == torch.float64
    assert entropy.prepared(images[0]).dtype == product.dtype == torch.float32


@pytest.mark.parametrize("precision", ["none", "ieee", "tf32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_products_go_by_the_precision_of_their_own_backend(device, precision, monkeypatch):
    class Backend:
        class matmul:  # noqa: N801
            fp32_precision = precision

    own, other = ("mkldnn", "cuda") if device == "cpu" else ("cuda", "mkldnn")
    with monkeypatch.context() as patch:
        patch.delattr(torch, "get_float32_matmul_precision")  # as it raises where backends differ
        patch.setattr(torch.backends, own, Backend)
        patch.setattr(torch.backends, other, None)
        exactly = entropy._float32_products_are_exact(torch.device(device))
    assert exactly == (precision in ("none", "ieee"))


@pytest.mark.parametrize(("precision", "exactly"), [("highest", True), ("high", False), ("medium", False)])
def test_before_backends_had_a_precision_the_global_one_counted(precision, exactly, monkeypatch):
    monkeypatch.setattr(torch.backends, "mkldnn", object())
    with matmul_precision(precision):
        assert entropy._float32_products_are_exact(torch.device("cpu")) == exactly


def test_a_device_without_autocast_needs_no_guard(monkeypatch):
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda device: False)
    with autocast(torch.bfloat16), entropy.full_precision(torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu")
    monkeypatch.undo()
    with autocast(torch.bfloat16), entropy.full_precision(torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")


# --- deterministic mode on a GPU --------------------------------------------------------------------------

# with deterministic algorithms these raise for tensors of a GPU; torch.use_deterministic_algorithms lists them
UNDETERMINED = ("put_", "histc", "kthvalue", "index_reduce", "resize_", "median.dim", "scatter_reduce.two")


class RaisesAsOnAGpu(TorchDispatchMode):
    """Fails on operators that deterministic mode refuses on a GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::")
        floating = isinstance(args[0] if args else None, torch.Tensor) and args[0].is_floating_point()
        assert not (name.startswith(("cumsum", "cumprod")) and floating), name
        assert not name.startswith(UNDETERMINED[:-1]), name
        if name.startswith(UNDETERMINED[-1]):
            assert "prod" not in args
        return function(*args, **kwargs or {})


def test_no_operator_is_one_that_deterministic_mode_refuses_on_a_gpu():
    images, _ = wide(2, 390, 330, torch.float32)
    with RaisesAsOnAGpu():
        # what custom operators do inside is hidden from the mode
        certified.interval(entropy.prepared(images))
        entropy.image_entropy(images[0])
        for run in FUNCTIONS.values():
            run(Inputs())
    with pytest.raises(AssertionError, match="cumsum"), RaisesAsOnAGpu():
        torch.ones(3).cumsum(0)


# --- compiled -------------------------------------------------------------------------------------------


def everything(x, images):
    """Every function of the core that traces, in one graph."""
    found = [y for name in TABLE for y in tensors(TABLE[name][0](*x[name][0], **x[name][1]))]
    return [*found, eigen_entropy(images), *certified_entropy_intervals(images), certified_entropy_buckets(images)]


def arguments():
    """The arguments of all functions, and wide images."""
    x = Inputs()
    return {name: TABLE[name][1](x) for name in TABLE}, wide(4, 128, 1280, torch.float32)[0]


def test_one_graph_is_traced_and_right_in_any_surroundings(fresh_dynamo):
    x, images = arguments()
    with surrounded("autocast to bfloat16"), surrounded("default dtype float64"), surrounded("default device meta"):
        actual = torch.compile(everything, fullgraph=True, dynamic=True, backend="eager")(x, images)
    assert_same(actual, everything(x, images))


def scores(x, images):
    """The functions whose operators autocast would touch, and Durian on what they give."""
    entropies, confidences = eigen_entropy(images), sequence_confidence(x["logprobs"], x["tokens"])
    low, high = certified_entropy_intervals(images)
    advantages = durian_advantage(x["rewards"], visual_entropy=entropies, confidence=confidences)
    return [entropies, low, high, certified_entropy_buckets(images), confidences, advantages]


@pytest.mark.inductor
@needs_compiler
def test_code_compiled_for_a_processor_is_right_inside_autocast(fresh_dynamo):
    x, images = vars(Inputs(b=4)), wide(4, 128, 1280, torch.float32)[0]
    expected = scores(x, images)
    with autocast(torch.bfloat16):
        actual = torch.compile(scores, fullgraph=True, dynamic=True)(x, images)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=3e-7, atol=3e-7, equal_nan=True)
