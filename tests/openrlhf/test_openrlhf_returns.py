"""The returns in one pass are those of OpenRLHF's loop over tokens."""

import pytest
import released
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from durian_adv.adapters.openrlhf.maker import DurianExperienceMaker


def both(rewards, mask, gamma):
    """Our returns and theirs; neither looks at the maker."""
    return [kind.get_cumulative_returns(object.__new__(kind), rewards, mask, gamma) for kind in KINDS]


KINDS = (DurianExperienceMaker, released.OWN)
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(0, 40)),
    dtype=st.sampled_from(DTYPES),
    masks=st.sampled_from((None, torch.bool, torch.int64, torch.float32)),
    seed=st.integers(0, 2**32 - 1),
)
def test_with_gamma_1_they_are_equal_to_rounding(shape, dtype, masks, seed):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    mask = None if masks is None else (torch.rand(shape, generator=generator) < 0.7).to(masks)
    ours, theirs = both(rewards, mask, 1.0)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_reward_at_one_token_alone_is_carried_to_the_bit(dtype):
    rewards = torch.zeros(3, 2048, dtype=dtype)
    rewards[torch.arange(3), torch.tensor([0, 1000, 2047])] = torch.tensor([0.3, -1.7, 1 / 3]).to(dtype)
    mask = torch.zeros(3, 2048, dtype=torch.int64)
    mask[:, :2040] = mask[2] = 1
    assert torch.equal(*both(rewards, mask, 1.0))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99])
def test_with_another_gamma_they_are_left_as_they_are(gamma):
    rewards = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(50)[None] < torch.tensor([50, 20, 1])[:, None]
    ours, theirs = both(rewards, mask, gamma)
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, both(rewards, mask, 1.0)[0])


def test_openrlhf_sets_gamma_to_1_for_group_norm(options):
    options('{"weights": [1, 0, 0]}')
    args = released.arguments(algo__advantage__gamma=0.9, rollout__micro_batch_size=3)
    ours, theirs = (released.advantages(kind, released.rollouts(), args) for kind in KINDS)
    assert args.algo.advantage.gamma == 1
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.returns, b.returns, atol=1e-6, rtol=1e-6)
