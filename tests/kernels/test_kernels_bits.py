"""The bits of what a GPU would run: PTX, executed by ``ptx.py``, against the functions themselves on the CPU."""

import functools

import emulated
import generated
import numpy as np
import ptx
import pytest
import record
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import durian_adv
from durian_adv._src import exact

KINDS = ("binary", "tenths", "normal", "scales", "near")
SIZES = ((65, 5), (37, 16))
CALLS = record.calls_of_device()
PLACE = {(call.name, call.form): i for i, call in enumerate(CALLS)}
ADVANTAGES = ("both scores", "valid, confidence (B, G)", "the same with category, no signal dropped", "entropy alone")
MANY = next(call.form for call in CALLS if "8192" in call.form)


@functools.cache
def device(name, form, contract=None):
    """What runs the code of a call; assembled once."""
    return emulated.Device(record.code_of(PLACE[name, form]), contract=contract)


def batch(seed, b, g, kind, dtype=torch.float32):
    """Rewards, flags and scores: ties, missing scores, prompts without signal, and none with a valid rollout."""
    generator = torch.Generator().manual_seed(seed)
    uniform = functools.partial(torch.rand, generator=generator, dtype=torch.float64)
    normal = torch.randn(b, g, generator=generator, dtype=torch.float64)
    decades = 60 if dtype == torch.float32 else 500
    rewards = {
        "binary": (uniform(b, g) < 0.5).double(),
        "tenths": (uniform(b, g) * 11).floor() / 10,
        "normal": normal,
        "scales": normal * 10.0 ** (decades * (uniform(b, 1) - 0.5)),
        "near": 0.9 + uniform(b, g) * 1e-6,
    }[kind]
    rewards[::7] = rewards[::7, :1]
    valid = uniform(b, g) < 0.85
    valid[3::11] = False
    entropy, confidence = uniform(b), -50 * uniform(b, g)
    entropy[::3] = (entropy[::3] * 10).floor() / 10
    entropy[5::17] = torch.nan
    confidence[4::13, 0] = torch.nan
    return {
        "rewards": rewards.to(dtype),
        "valid": valid,
        "visual_entropy": entropy.to(dtype),
        "confidence": confidence.to(dtype),
        "category": torch.randint(-3, 4, (b,), generator=generator) * 10**12,
    }


def arguments(form, x):
    """The part of a batch that a form of a call takes."""
    chosen = {"visual_entropy": x["visual_entropy"]}
    if "entropy" not in form:
        chosen["confidence"] = x["confidence"] if "(B, G)" in form or "category" in form else x["confidence"].amax(1)
    if "valid" in form or "category" in form:
        chosen["valid"] = x["valid"]
    if "category" in form:
        chosen |= {"category": x["category"], "weights": (0.1, 0.2, 0.7, 0.4), "no_signal": "drop"}
    return chosen


def rearranged(x, seed):
    """A batch in another order of its prompts, and of the rollouts of all; with the order of the prompts."""
    generator = torch.Generator().manual_seed(seed)
    b, g = x["rewards"].shape
    rows, columns = torch.randperm(b, generator=generator), torch.randperm(g, generator=generator)
    return {k: v[rows][:, columns] if v.ndim == 2 else v[rows] for k, v in x.items()}, rows, columns


def tensors(result):
    """The tensors of a result."""
    return [result] if isinstance(result, torch.Tensor) else [value for value in result if value is not None]


def same(actual, expected):
    """Equal bits; NaN equals NaN."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    return bool(((actual == expected) | (actual.isnan() & expected.isnan())).all())


def assert_eager_bits(run, function, *args, **kwargs):
    """Every tensor of the result is that of the function itself."""
    actual, expected = run(function, *args, **kwargs), tensors(function(*args, **kwargs))
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert same(a, b), f"result {i}: {int((a != b).sum())} of {a.numel()} differ"
    return actual


@pytest.mark.parametrize("contract", [True, False], ids=["contracted", "not contracted"])
@pytest.mark.parametrize("form", [*ADVANTAGES, MANY])
def test_advantages_in_float32_have_eagers_bits_in_any_order(form, contract):
    run, function = device("durian_advantage", form, contract), durian_adv.durian_advantage
    for (b, g), kind in zip(SIZES * 3, KINDS, strict=False):
        x = batch(b, b, g, kind)
        (actual,) = assert_eager_bits(run, function, x["rewards"], **arguments(form, x))
        assert actual[::7].count_nonzero() == 0  # without signal
        y, rows, columns = rearranged(x, 1)
        run.order = np.random.default_rng(2)  # atomics in another order, where there are any
        (moved,) = run(function, y["rewards"], **arguments(form, y))
        run.order = None
        assert same(moved, actual[rows][:, columns])


def test_a_training_step_has_eagers_bits_under_every_configuration():
    x, form = batch(0, 512, 8, "tenths"), "both scores"
    run = device("durian_advantage", form)
    most = max(len(kernel.choices) for kernel in run.kernels.values())
    assert most > 1
    for run.choice in range(most):
        assert_eager_bits(run, durian_adv.durian_advantage, x["rewards"], **arguments(form, x))
    run.choice = 0


@pytest.mark.parametrize("form", ["both scores", "valid, confidence (B, G)"])
def test_components_in_float32_have_eagers_bits(form):
    for (b, g), kind in zip(SIZES, ("binary", "scales"), strict=True):
        x = batch(b, b, g, kind)
        run = device("durian_components", form)
        assert_eager_bits(run, durian_adv.durian_components, x["rewards"], **arguments(form, x))


def test_estimators_in_float32_have_eagers_bits():
    for (b, g), kind in zip(SIZES * 3, KINDS, strict=False):
        x = batch(b, b, g, kind)
        rewards, valid, labels = x["rewards"], x["valid"], x["category"]
        assert_eager_bits(device("grpo_advantage", "valid"), durian_adv.grpo_advantage, rewards, valid=valid)
        assert_eager_bits(device("shared_std_advantage", "buckets"), durian_adv.shared_std_advantage, rewards, labels)
        run, parts = device("combine_advantages", "two of three"), [rewards, None, x["confidence"]]
        assert_eager_bits(run, durian_adv.combine_advantages, parts, (0.1, 0.2, 0.7))


@pytest.mark.parametrize(("form", "levels"), [("levels, outer", (0.25, 0.75)), ("12", 12)])
def test_buckets_are_eagers(form, levels):
    boundary = {"boundary": "outer"} if "outer" in form else {}
    for b in (2, 3, 13, 65, 150):
        scores = batch(b, b, 2, "normal")["visual_entropy"]
        assert_eager_bits(device("quantile_buckets", form), durian_adv.quantile_buckets, scores, levels, **boundary)


@pytest.mark.parametrize("form", ["no mask", "bool mask", "int64 mask, mean"])
def test_confidences_in_float32_have_eagers_bits(form):
    generator = torch.Generator().manual_seed(0)
    for rows, tokens in ((6, 700), (3, 2500)):
        logprobs = torch.empty(rows, tokens).exponential_(generator=generator).neg_()
        kept = torch.rand(rows, tokens, generator=generator) < 0.8
        kept[1] = False
        masks = {"no mask": (), "bool mask": (kept,), "int64 mask, mean": (kept.long(),)}[form]
        reduction = {"reduction": "mean"} if "mean" in form else {}
        run = device("sequence_confidence", form)
        assert_eager_bits(run, durian_adv.sequence_confidence, logprobs, *masks, **reduction)


def relative_ulps(actual, expected):
    """The largest distance in ULP of max(1, |expected|)."""
    size = expected.abs().clamp(min=1)
    return float(((actual - expected).abs() / (size * torch.finfo(expected.dtype).eps)).max())


def with_rounded_roots(monkeypatch):
    """Eager with correctly rounded roots, as a GPU takes them: torch's on a CPU are not always."""
    monkeypatch.setattr(torch.Tensor, "sqrt", lambda x: torch.from_numpy(np.sqrt(x.numpy())))


@pytest.mark.parametrize("contract", [True, False], ids=["contracted", "not contracted"])
def test_float64_has_eagers_bits_without_contraction_and_2_ulp_with_it(contract, monkeypatch):
    form = "both scores, float64"
    run, function, worst = device("durian_advantage", form, contract), durian_adv.durian_advantage, 0.0
    with_rounded_roots(monkeypatch)
    for (b, g), kind in zip(SIZES * 6, KINDS * 2, strict=False):
        x = batch(b, b, g, kind, torch.float64)
        x["visual_entropy"], x["confidence"] = x["visual_entropy"].float(), x["confidence"].float()
        (actual,) = run(function, x["rewards"], **arguments(form, x))
        expected = function(x["rewards"], **arguments(form, x))
        assert contract or same(actual, expected)
        worst = max(worst, relative_ulps(actual, expected))
        y, rows, columns = rearranged(x, 1)
        (moved,) = run(function, y["rewards"], **arguments(form, y))
        assert same(moved, actual[rows][:, columns])
    print(f"worst: {worst:.2f} ULP of max(1, |A|)")
    assert worst <= 2  # the contract says 4


# --- can these tests fail?


def generated_device(function, *shapes_and_dtypes):
    """The code of any function, static, on the device."""
    with FakeTensorMode():
        inputs = [torch.empty(shape, dtype=dtype, device="cuda") for shape, dtype in shapes_and_dtypes]
    return emulated.Device(generated.code_of(function, *inputs, dynamic=False))


def plain_sum(values, segment):
    return values.new_zeros(3).scatter_add(0, segment, values * values)


def our_sum(values, segment):
    return exact.segment_sum((values * values)[None], segment[None], 3)


def test_the_order_of_atomics_is_seen():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(1024, generator=generator, dtype=torch.float64)
    segment = torch.randint(0, 3, (1024,), generator=generator)
    found = {}
    for function in (plain_sum, our_sum):
        run = generated_device(function, (1024, torch.float64), (1024, torch.int64))
        results = set()
        for seed in range(4):
            run.order = np.random.default_rng(seed)
            (result,) = run(function, values, segment)
            results.add(tuple(result.flatten().tolist()))
        found[function] = len(results)
    assert found[plain_sum] > 1
    assert found[our_sum] == 1


def polynomial(x):
    return x * x + 1.5


def test_contraction_is_seen():
    x = torch.rand(1024, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    run = generated_device(polynomial, (1024, torch.float64))
    (contracted,) = run(polynomial, x)
    assert not same(contracted, polynomial(x))
    run = emulated.Device(run.code, contract=False)
    assert_eager_bits(run, polynomial, x)


PTX = """
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0
)
.reqntid 32
{
	.reg .b32 %r<3>;
	.reg .b64 %rd<3>;
	ld.param.b64 %rd1, [kernel_param_0];
	mov.u32 %r1, %tid.x;
	INSTRUCTION;
	ret;
}
"""


@pytest.mark.parametrize(
    ("instruction", "error"),
    [
        ("sin.approx.f32 %r2, %r1", NotImplementedError),
        ("add.ftz.f32 %r2, %r1, %r1", NotImplementedError),
        ("cvt.rn.satfinite.f16.f32 %r2, %r1", NotImplementedError),
        ("st.global.b64 [%rd1 + 4096], %rd1", MemoryError),
        ("call.uni __assertfail, (%r1)", AssertionError),
    ],
)
def test_what_the_interpreter_does_not_know_or_may_not_touch_raises(instruction, error):
    memory = ptx.Memory(2**16)
    program = ptx.parse(PTX.replace("INSTRUCTION", instruction))
    with pytest.raises(error):
        ptx.Run(program, (1, 1, 1), [memory.allocate(64)], memory, 0).execute()
