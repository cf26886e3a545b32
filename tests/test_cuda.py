"""The contract on a GPU: what the CPU gives, where the inputs are, without waiting for the host."""

from functools import partial

import pytest
import torch
from contract_table import OF_REWARDS, TABLE, Inputs, call, tensors
from helpers import assert_matches, assert_same_bits, ulps

import durian_adv
from benchmarks.device import kernels, replayed, synchronizes
from durian_adv import compiled, durian_advantage, eigen_entropy, grpo_advantage

DEVICE = "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]

SIZES = ({"b": 5, "g": 3}, {"b": 512, "g": 8, "p": 70, "d": 96, "t": 300})
WITHOUT_EIGENVALUES = [name for name in TABLE if "entropy" not in name]
COMPILED = [name for name in WITHOUT_EIGENVALUES if name != "durian_components"]  # of which durian_advantage is a field


def assert_alike(there, here, name):
    """Results that lie on the GPU and are those of the CPU; eigenvalues come from another library there."""
    tolerance = 1e-5 if "entropy" in name and there[0].dtype == torch.float32 else None
    for a, b in zip(there, here, strict=True):
        assert a.device.type == DEVICE
        assert a.dtype == b.dtype
        if a.is_floating_point():
            assert_matches(a.cpu(), b, tolerance, where=name)
        else:
            assert_same_bits(a.cpu(), b, where=name)


@pytest.mark.parametrize("sizes", SIZES, ids=["small", "512 x 8"])
@pytest.mark.parametrize("own", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TABLE)
def test_the_results_are_those_of_the_cpu_and_stay_on_the_device(name, own, sizes):
    there, here = (tensors(call(name, Inputs(own, device, **sizes))) for device in (DEVICE, "cpu"))
    assert_alike(there, here, name)


@pytest.mark.parametrize("name", TABLE)
def test_the_inputs_are_not_written_to(name):
    inputs, before = Inputs(device=DEVICE), Inputs(device=DEVICE)
    call(name, inputs)
    for field, value in vars(inputs).items():
        for a, b in zip(tensors(value), tensors(vars(before)[field]), strict=True):
            assert_same_bits(a, b, where=field)


def test_the_guard_sees_a_call_that_waits():
    x = torch.ones(3, device=DEVICE)
    assert synchronizes(lambda: x.sum().item(), DEVICE)
    assert not synchronizes(lambda: x.sum(), DEVICE)


@pytest.mark.parametrize("name", WITHOUT_EIGENVALUES)
def test_nothing_but_eigenvalues_waits_for_the_gpu(name):
    inputs = Inputs(device=DEVICE, b=512, g=8, t=300)
    assert not synchronizes(partial(call, name, inputs), DEVICE)


def test_no_order_of_prompts_changes_a_bit():
    x = Inputs(device=DEVICE, b=512, g=8)
    order = torch.randperm(512, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    straight = durian_advantage(x.rewards, visual_entropy=x.entropy, confidence=x.prompt_confidence, valid=x.valid)
    shuffled = durian_advantage(
        x.rewards[order],
        visual_entropy=x.entropy[order],
        confidence=x.prompt_confidence[order],
        valid=x.valid[order],
    )
    assert_same_bits(shuffled, straight[order])


@pytest.mark.parametrize("name", OF_REWARDS)
def test_the_flat_form_is_that_of_the_cpu(name):
    function, arguments = TABLE[name]

    def flat(device):
        x = Inputs(device=device, b=64, g=8)
        order = torch.randperm(64 * 8, generator=torch.Generator().manual_seed(0)).to(device)
        row = torch.arange(64, device=device).repeat_interleave(8)[order]

        def spread(value):
            return value.flatten()[order] if value.ndim == 2 else value[row]

        args, kwargs = arguments(x)
        return function(*map(spread, args), **{k: spread(v) for k, v in kwargs.items()}, prompt_index=row)

    assert_alike(tensors(flat(DEVICE)), tensors(flat("cpu")), name)


def test_no_signal_is_exactly_zero():
    rewards = torch.full((4096, 8), 0.9, device=DEVICE)
    assert grpo_advantage(rewards, eps=1e-9).count_nonzero() == 0


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_equals_eager_and_does_not_wait(name, fresh_dynamo):
    one_graph = torch.compile(partial(call, name), fullgraph=True, dynamic=True)
    for sizes in SIZES:
        inputs = Inputs(device=DEVICE, **sizes)
        (actual,), (expected,) = tensors(one_graph(inputs)), tensors(call(name, inputs))
        assert actual.device.type == DEVICE
        assert ulps(actual.cpu(), expected.cpu()) <= 2
        assert not synchronizes(partial(one_graph, inputs), DEVICE)


@pytest.mark.parametrize("compile_it", [False, True], ids=["eager", "compiled"])
def test_a_captured_graph_follows_its_inputs(compile_it, fresh_dynamo):
    x = Inputs(device=DEVICE, b=512, g=8)
    function = compiled.durian_advantage if compile_it else durian_advantage
    rewards, out = x.rewards.clone(), torch.empty_like(x.rewards)
    step = partial(function, rewards, visual_entropy=x.entropy, confidence=x.prompt_confidence)
    replay = replayed(lambda: out.copy_(step()), DEVICE)
    for change in (x.rewards, x.rewards.flip(0), (x.rewards > 0).float()):
        rewards.copy_(change)
        replay()
        assert_same_bits(out, step())


def test_compiled_launches_fewer_kernels(fresh_dynamo):
    x = Inputs(device=DEVICE, b=512, g=8)
    kwargs = {"visual_entropy": x.entropy, "confidence": x.prompt_confidence}
    functions = compiled.durian_advantage, durian_advantage
    fused, single = (kernels(partial(f, x.rewards, **kwargs), DEVICE) for f in functions)
    assert 0 < fused < single
    assert fused <= 7
    assert 0 < kernels(partial(compiled.durian_components, x.rewards, **kwargs), DEVICE) <= 7


@pytest.mark.parametrize("prompts", [512, 5000], ids=["in pairs", "sorted and scattered"])
@pytest.mark.parametrize("deterministic", [False, True], ids=["", "deterministic"])
def test_compiled_has_eagers_bits_in_both_forms(prompts, deterministic, fresh_dynamo):
    x = Inputs(device=DEVICE, b=prompts, g=8)
    kwargs = {"visual_entropy": x.entropy, "confidence": x.prompt_confidence, "valid": x.valid}
    torch.use_deterministic_algorithms(deterministic)
    try:
        actual = tensors(compiled.durian_components(x.rewards, **kwargs))
        expected = tensors(durian_adv.durian_components(x.rewards, **kwargs))
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(actual, expected, strict=True):
        assert_same_bits(a.nan_to_num(7), b.nan_to_num(7))


@pytest.mark.parametrize("shape", [(256, 1280), (1024, 1280), (300, 64)], ids=str)
def test_entropies_of_images_are_those_of_the_cpu(shape):
    features = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    features[1] = 1.5  # constant: exactly 0
    features[2, 0, 0] = torch.nan
    there = eigen_entropy(features.to(DEVICE)).cpu()
    assert there[0] == pytest.approx(float(eigen_entropy(features[:1])), abs=2e-6)
    assert there[1] == 0
    assert there[2].isnan()


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_images_that_go_together_are_those_of_the_cpu(masked):
    features = torch.randn(8, 400, 420, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(400) < torch.tensor([400, 390] * 4)[:, None] if masked else None
    on_device = features.to(DEVICE), None if mask is None else mask.to(DEVICE)
    there = eigen_entropy(on_device[0], mask=on_device[1]).cpu()
    torch.testing.assert_close(there, eigen_entropy(features, mask=mask), rtol=0, atol=1e-5)  # 5e-6 on either side
    low, high = durian_adv.certified_entropy_intervals(on_device[0], mask=on_device[1])
    assert ((low.cpu() <= there) & (there <= high.cpu())).all()
