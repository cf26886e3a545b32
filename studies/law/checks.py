"""What the task was to have, measured on the warm policies of the pilots' seeds: `records/task.json`."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from studies.law import plan, policy, runner, task, training
from studies.law import rollouts as sampling
from studies.law.rollouts import TOKENS, Rollouts
from studies.law.task import Prompts
from studies.law.training import GROUP, Dose, Seed

PATH = Path(__file__).parent / "records" / "task.json"
PROMPTS, UPDATES = 8192, 60


@torch.no_grad()
def check(seed: Seed) -> dict[str, object]:
    """Return shares of groups and errors, and correlations of the scores with the kind, before training."""
    rng, made = training.stream(seed.number, 9), policy.parts(seed.warm)
    prompts = seed.pool[torch.from_numpy(np.searchsorted(seed.shares[:-1], rng.random(PROMPTS)))]
    seen = sampling.look(made, prompts)
    drawn = torch.from_numpy(rng.random((PROMPTS, GROUP, TOKENS), dtype=np.float32))
    found = sampling.sample(made, prompts, seen, drawn)
    right = found.correct.sum(1)
    signal = (right > 0) & (right < GROUP)
    entropy, confidence = training.scores(prompts, sampling.logprobs(made, prompts, seen, found).mean(1))
    misread, miscomputed = errors(prompts, found)
    of_kind = [abs(float(np.corrcoef(score[signal], prompts.kind[signal])[0, 1])) for score in (entropy, confidence)]
    return {
        "signal": signal.double().mean().item(),
        "extreme": ((right == 1) | (right == GROUP - 1)).sum().item() / signal.sum().item(),
        "correlation": of_kind,
        "errors": [misread.sum().item(), miscomputed.sum().item(), (misread & miscomputed).sum().item()],
        "perception": by_bucket(entropy, misread.sum(1), 3),
        "reasoning": by_bucket(confidence, miscomputed.sum(1), 10),
        "noise_over_signal": {ratio: noise_over_signal(seed, plan.dose_of("variance", ratio)) for ratio in ("1", "9")},
    }


def errors(prompts: Prompts, found: Rollouts) -> tuple[Tensor, Tensor]:
    """Return which wrong responses misread a symbol, and which miscomputed what they had read; some did both."""
    counts = prompts.counts[:, None]
    read = ((found.read == prompts.symbols[:, None]) | ~counts).all(2)
    computed = ((found.result == task.results()[found.place]) | ~counts[..., 1:]).all(2)
    return ~found.correct & ~read, ~found.correct & ~computed


def by_bucket(score: Tensor, errors: Tensor, buckets: int) -> list[float]:
    """Return the share of the errors in each of equal buckets of a score, low to high, in percent."""
    place = (score.argsort().argsort() * buckets) // len(score)
    counted = torch.bincount(place, errors.double(), buckets)
    return (100 * counted / counted.sum()).tolist()


def noise_over_signal(seed: Seed, dose: Dose) -> float:
    """Return the variance of a step's gradient over the squared norm of its mean, with batch std, before training."""
    made, out = policy.parts(seed.warm), torch.zeros_like(seed.warm)
    gradients = []
    for step in range(UPDATES):
        computed = policy.compute(made)
        prompts, rollouts, _ = training.collect(made, seed, step, dose, 0.6, computed)
        seen = sampling.look(made, prompts, computed)
        logprobs = sampling.logprobs(made, prompts, seen, rollouts)
        batch = training.make_batch(prompts, rollouts, dose, logprobs, seed, step)
        sampling.gradient(made, prompts, seen, rollouts, training.ARMS["batch std"](batch), policy.parts(out))
        gradients.append(out.double().clone())
    stacked = torch.stack(gradients)
    variance = stacked.var(0).sum().item()
    return variance / (stacked.mean(0).square().sum().item() - variance / UPDATES)


def main() -> None:
    """Write the means over the pilots' seeds."""
    found = [check(training.load_seed(seed, runner.CACHE)) for seed in plan.PILOT_SEEDS]
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(json.dumps(_mean(found), indent=1) + "\n", encoding="utf-8")
    print(PATH.read_text(encoding="utf-8"))


def _mean(values: list[object]) -> object:
    first = values[0]
    if isinstance(first, dict):
        return {key: _mean([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [_mean(list(some)) for some in zip(*values, strict=True)]
    return float(f"{np.mean(values):.4g}")
