"""Every recipe of docs/recipes.md against the formula beside it, written in NumPy from the page's text."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import beta as beta_distribution
from strategies import seeds

from durian_adv import durian_advantage, grpo_advantage

PAGE = (Path(__file__).resolve().parent.parent / "docs/recipes.md").read_text()
CODE = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if not block.startswith(">>>")]
RECIPES: dict = {}
exec("\n".join(CODE), RECIPES)
EPS = 1e-6


def binary(seed, prompts=7, rollouts=6):
    return np.random.default_rng(seed).integers(0, 2, (prompts, rollouts)).astype(np.float64)


def centered(r):
    return r - r.mean(1, keepdims=True)


def grpo(r, ddof=1):
    """Equation 2; a prompt without signal has none."""
    return np.where(np.ptp(r, axis=1, keepdims=True) > 0, centered(r) / (r.std(1, ddof=ddof, keepdims=True) + EPS), 0.0)


def weighted(r, f):
    p = r.mean(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((p > 0) & (p < 1), f(p) * (r - p), 0.0)


def dgpo(r, temperature):
    p = r.mean(1)
    signal = (p > 0) & (p < 1)
    share = np.zeros_like(p)
    if signal.any():
        share[signal] = softmax(-p[signal] / temperature) * signal.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        out = share[:, None] * centered(r) / np.abs(centered(r)).mean(1, keepdims=True)
    return np.where(signal[:, None], out, 0.0)


FORMULAS = {
    "population_std": (lambda r: grpo(r, ddof=0), {}),
    "leave_one_out": (lambda r: r - (r.sum(1, keepdims=True) - r) / (r.shape[1] - 1), {}),
    "max_rl": (lambda r: weighted(r, lambda p: 1 / p), {}),
    "f_grpo": (lambda r: (1 - r.mean(1, keepdims=True)) ** 1.5 * grpo(r), {"gamma": 1.5}),
    "dgpo": (lambda r: dgpo(r, 0.5), {"temperature": 0.5}),
    "bnpo": (lambda r: weighted(r, lambda p: 1 / beta_distribution.pdf(p, 2.0, 3.0)), {"alpha": 2.0, "beta": 3.0}),
    "ngrpo": (lambda r: grpo(np.concatenate([r, np.ones((len(r), 1))], 1))[:, :-1], {}),
}


@pytest.mark.parametrize("name", FORMULAS)
@given(seeds, st.integers(2, 9))
def test_a_recipe_of_rewards_is_its_formula(name, seed, rollouts):
    formula, options = FORMULAS[name]
    rewards = binary(seed, rollouts=rollouts)
    found = RECIPES[name](torch.tensor(rewards), **options).numpy()
    np.testing.assert_allclose(found, formula(rewards), atol=1e-12, rtol=1e-12)


@given(seeds)
def test_gdpo_is_its_formula(seed):
    rng = np.random.default_rng(seed)
    rewards = [rng.integers(0, 2, (5, 6)).astype(np.float64), 10.0 * rng.random((5, 6)), np.zeros((5, 6))]
    total = 0.7 * grpo(rewards[0]) + 0.2 * grpo(rewards[1]) + 0.1 * grpo(rewards[2])
    right = (total - total.mean()) / (total.std(ddof=1) + EPS)
    found = RECIPES["gdpo"]([torch.tensor(r) for r in rewards], (0.7, 0.2, 0.1))
    np.testing.assert_allclose(found.numpy(), right, atol=1e-12)


@given(seeds)
def test_gigpo_is_its_formula(seed):
    rng = np.random.default_rng(seed)
    steps = rng.integers(1, 5, 8)  # of 8 episodes, 4 per task
    episode = np.repeat(np.arange(8), steps)
    returns = rng.integers(0, 2, 8).astype(np.float64)
    state, step_returns = rng.integers(0, 4, len(episode)), rng.random(len(episode))
    of_episode = grpo(returns.reshape(2, 4)).reshape(-1)[episode]
    of_step = np.zeros(len(episode))
    for one in np.unique(state):
        members = state == one
        if members.sum() > 1:
            of_step[members] = grpo(step_returns[members][None])[0]
    found = RECIPES["gigpo"](
        *(torch.tensor(x) for x in (returns[episode], episode // 4, episode, step_returns, state)), omega=0.5
    )
    np.testing.assert_allclose(found.numpy(), of_episode + 0.5 * of_step, atol=1e-12)


@given(seeds)
def test_the_filter_is_valid_for_prompts_with_signal_bit_for_bit(seed):
    rewards = torch.tensor(binary(seed, rollouts=3))
    confidence = torch.tensor(np.random.default_rng(seed).random(7))
    signal = (rewards.amax(1) > rewards.amin(1))[:, None].expand_as(rewards)
    right = durian_advantage(rewards, confidence=confidence, valid=signal)
    assert_same_bits(RECIPES["dapo_filter"](rewards, confidence), right)


@given(seeds)
def test_whitening_by_prompt_makes_every_estimator_grpo(seed):
    rewards = torch.tensor(binary(seed))
    factor = torch.tensor(np.random.default_rng(seed).uniform(0.1, 10, (7, 1)))
    whitened = RECIPES["whitened_by_prompt"](RECIPES["leave_one_out"](rewards) * factor)
    torch.testing.assert_close(whitened, grpo_advantage(rewards, eps=0.0), atol=1e-12, rtol=0)


def test_every_function_of_the_page_is_tested():
    defined = re.findall(r"^def (\w+)\(", "\n".join(CODE), re.MULTILINE)
    assert set(defined) == {*FORMULAS, "gdpo", "gigpo", "dapo_filter", "whitened_by_prompt"}
