"""Simulated rollouts against exact formulas: shares of the kinds of groups, and variances of the advantages.

A statement about n independent prompts is tested at 5 standard errors, both sides: with a seed of one's own it fails
once in 1.7 million times (normal approximation); the seeds here are fixed.
"""

from __future__ import annotations

import math

import pytest
import torch

from durian_adv import durian_components
from durian_adv.diagnostics import durian_metrics

PROMPTS = 40_000
ERRORS = 5.0  # standard errors


def binomial(n, p):
    """P(k successes in n rollouts)."""
    return [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


def beta_binomial(n, a, b):
    """The same where a prompt's p is drawn from Beta(a, b)."""

    def log_beta(x, y):
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    return [math.comb(n, k) * math.exp(log_beta(k + a, n - k + b) - log_beta(a, b)) for k in range(n + 1)]


def rollouts(p, n, seed):
    """Bernoulli rewards (prompts, n), a success rate for each prompt."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(len(p), n, generator=generator, dtype=torch.float64) < p[:, None]).double()


def beta(a, b, seed):
    """Success rates from Beta(a, b), a and b whole: the a-th smallest of a + b - 1 uniform numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(PROMPTS, a + b - 1, generator=generator, dtype=torch.float64).sort(1).values[:, a - 1]


def assert_share(count, share, of):
    """A count of independent events against its binomial distribution."""
    error = math.sqrt(max(0.0, share * (1 - share)) / of) + 1e-12
    assert abs(count / of - share) <= ERRORS * error, f"{count / of} against {share} +- {error}"


POPULATIONS = {
    "p = 1/2": (lambda n: binomial(n, 0.5), lambda: torch.full((PROMPTS,), 0.5, dtype=torch.float64)),
    "p = 0.85": (lambda n: binomial(n, 0.85), lambda: torch.full((PROMPTS,), 0.85, dtype=torch.float64)),
    "p = 0.03": (lambda n: binomial(n, 0.03), lambda: torch.full((PROMPTS,), 0.03, dtype=torch.float64)),
    "uniform p": (lambda n: beta_binomial(n, 1, 1), lambda: beta(1, 1, 0)),
    "Beta(2, 5)": (lambda n: beta_binomial(n, 2, 5), lambda: beta(2, 5, 1)),
}


@pytest.mark.parametrize("n", [3, 8, 16])
@pytest.mark.parametrize("population", POPULATIONS)
def test_the_kinds_of_groups_have_the_shares_of_their_formula(population, n):
    formula, draw = POPULATIONS[population]
    law, rewards = formula(n), rollouts(draw(), n, seed=2)
    assert sum(law) == pytest.approx(1)
    metrics = durian_metrics(durian_components(rewards), rewards)
    effective, success, failure = 1 - law[0] - law[n], law[n - 1], law[1]
    assert_share(metrics["durian/effective"], effective, PROMPTS)
    assert_share(metrics["durian/extreme_success"], success, PROMPTS)
    assert_share(metrics["durian/extreme_failure"], failure, PROMPTS)
    # of the effective ones, which are independent draws from what is left of the law
    extremes = metrics["durian/extreme_ratio"] * metrics["durian/effective"]
    assert_share(extremes, (success + failure) / effective, metrics["durian/effective"])
    assert metrics["durian/no_signal_share"] == pytest.approx(1 - metrics["durian/effective"] / PROMPTS)


def test_a_kind_that_is_counted_wrongly_is_found():
    law, rewards = binomial(8, 0.5), rollouts(torch.full((PROMPTS,), 0.5, dtype=torch.float64), 8, seed=2)
    metrics = durian_metrics(durian_components(rewards), rewards)
    with pytest.raises(AssertionError):
        assert_share(metrics["durian/extreme_success"], law[6], PROMPTS)


def group_std(k, n):
    """The sample std of k ones among n."""
    return math.sqrt(k * (n - k) / (n * (n - 1)))


def assert_mean_square(actual, law, n, factor, of, std_error):
    """The mean of squared advantages over prompts with k ~ law successes, of size (n - 1) / n (s_k factor(s_k))^2."""
    squares = [
        (n - 1) / n * (group_std(k, n) * factor(group_std(k, n))) ** 2 if 0 < k < n else 0.0 for k in range(n + 1)
    ]
    mean = sum(p * q for p, q in zip(law, squares, strict=True))
    variance = sum(p * (q - mean) ** 2 for p, q in zip(law, squares, strict=True))
    error = math.sqrt(variance / of) + mean * std_error
    assert abs(actual - mean) <= ERRORS * error, f"{actual} against {mean} +- {error}"


def relative_error_of_variance(law, n, of):
    """The standard error of a bucket's variance of rewards, relative to it: its prompts are independent."""
    mean = sum(p * k / n for k, p in enumerate(law))
    variance = mean * (1 - mean)
    # m (1 - m) moves with the mean m of the prompts' shares of successes
    of_mean = math.sqrt(sum(p * (k / n - mean) ** 2 for k, p in enumerate(law)) / of)
    return (abs(1 - 2 * mean) * of_mean + of_mean**2) / variance


@pytest.mark.parametrize("weights", [(0.1, 0.2, 0.7), (1.0, 0.0, 0.0), (0.3, 0.3, 0.4)])
@pytest.mark.parametrize("n", [4, 8])
def test_each_component_has_the_variance_of_its_closed_form(n, weights):
    # three kinds of prompts, told apart by their entropy; the confidence knows nothing
    laws = [beta_binomial(n, 5, 2), beta_binomial(n, 3, 3), beta_binomial(n, 2, 5)]
    rates = [beta(5, 2, 3), beta(3, 3, 4), beta(2, 5, 5)]
    rewards = rollouts(torch.cat(rates), n, seed=6)
    entropy = torch.arange(3.0).repeat_interleave(PROMPTS)
    parts = durian_components(
        rewards,
        visual_entropy=entropy,
        confidence=torch.zeros(3 * PROMPTS),
        entropy_quantiles=(0.3, 0.7),
        num_confidence_buckets=4,
        weights=weights,
        eps=0.0,
    )
    assert parts.entropy_bucket.bincount().tolist() == [PROMPTS] * 3
    whole = [sum(law[k] for law in laws) / 3 for k in range(n + 1)]
    mean = sum(p * k / n for k, p in enumerate(whole))
    sigma = math.sqrt(mean * (1 - mean))  # of the one bucket that all equal confidences share
    error = relative_error_of_variance(whole, n, 3 * PROMPTS)
    for kind, law in enumerate(laws):
        rows = slice(kind * PROMPTS, (kind + 1) * PROMPTS)

        def mean_square(values, rows=rows):
            # every prompt's advantages have mean zero, so their variance is their mean square
            assert values[rows].mean(1).abs().max() < 1e-12
            return float(values[rows].square().mean())

        own = sum(p * k / n for k, p in enumerate(law))
        bucket = math.sqrt(own * (1 - own))
        own_error = relative_error_of_variance(law, n, PROMPTS)
        assert_mean_square(mean_square(parts.grpo), law, n, lambda s: 1 / s, PROMPTS, 0.0)
        assert_mean_square(mean_square(parts.perceptual), law, n, lambda s, b=bucket: 1 / b, PROMPTS, own_error)
        assert_mean_square(mean_square(parts.reasoning), law, n, lambda s: 1 / sigma, PROMPTS, error)
        assert_mean_square(
            mean_square(parts.advantages),
            law,
            n,
            lambda s, b=bucket: weights[0] / s + weights[1] / b + weights[2] / sigma,
            PROMPTS,
            own_error + error,
        )


def test_equally_difficult_prompts_have_the_variance_of_an_unbiased_estimate():
    # one p for all: sigma^2 = p (1 - p), and the mean square is (n - 1) / n whatever p is
    for p in (0.1, 0.5, 0.8):
        rewards = rollouts(torch.full((PROMPTS,), p, dtype=torch.float64), 8, seed=7)
        parts = durian_components(rewards, confidence=torch.zeros(PROMPTS), eps=0.0)
        law = binomial(8, p)
        error = relative_error_of_variance(law, 8, PROMPTS)
        actual = float(parts.reasoning.square().mean())
        assert_mean_square(actual, law, 8, lambda s, p=p: 1 / math.sqrt(p * (1 - p)), PROMPTS, error)
        assert sum(q * (group_std(k, 8) ** 2) for k, q in enumerate(law)) == pytest.approx(p * (1 - p))
