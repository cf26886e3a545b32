"""Which group size and which rewards explain logged advantages: a positive multiple of reward minus mean, per group."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given

from durian_adv.data.logs.formats.consecutive import explains

GROUPS = st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=5)
SCALES = st.lists(st.floats(0.05, 20), min_size=5, max_size=5)


def batch(groups, scales):
    rewards = torch.tensor(groups, dtype=torch.float64)
    centered = rewards - rewards.mean(1, keepdim=True)
    # what trainers write is float32
    return rewards, (centered * torch.tensor(scales[: len(groups)])[:, None]).float().double()


@given(GROUPS, SCALES)
def test_whatever_std_a_group_is_divided_by_its_rewards_explain_it(groups, scales):
    rewards, advantages = batch(groups, scales)
    assert explains(rewards, advantages)
    assert explains(rewards + 1000.0, advantages)


@given(GROUPS, SCALES, st.integers(0, 3), st.integers(0, 3))
def test_rewards_of_another_order_explain_nothing(groups, scales, one, other):
    rewards, advantages = batch(groups, scales)
    assume(rewards[0, one] != rewards[0, other])
    swapped = rewards.clone()
    swapped[0, [one, other]] = rewards[0, [other, one]]
    assert not explains(swapped, advantages)


@given(GROUPS, SCALES)
def test_advantages_of_the_wrong_sign_shifted_or_absent_are_not_explained(groups, scales):
    rewards, advantages = batch(groups, scales)
    assume(len(set(groups[0])) > 1)
    for wrong in (-advantages, torch.zeros_like(advantages), advantages + advantages.abs().max() / 5):
        assert not explains(rewards, wrong)


@pytest.mark.parametrize("noise", [1e-4, 0.09])
def test_groups_without_signal_may_have_round_off_and_no_more(noise):
    rewards = torch.full((2, 4), 0.3, dtype=torch.float64)
    assert explains(rewards, torch.full((2, 4), noise, dtype=torch.float64))
    assert not explains(rewards, torch.tensor([[0.0, 0, 0, 0], [0.5, -0.5, 0, 0]], dtype=torch.float64))


def test_what_is_not_known_says_nothing():
    rewards = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    advantages = torch.tensor([[-1.0, 1.0], [-1.0, torch.nan]], dtype=torch.float64)
    assert explains(rewards, advantages)
    assert not explains(rewards, torch.full((2, 2), torch.nan, dtype=torch.float64))
    assert not explains(rewards * torch.nan, advantages)
