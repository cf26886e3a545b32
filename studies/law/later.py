"""Whether worths change while a policy learns, which was looked at after the first dose: `records/later.json`."""

import json
from pathlib import Path

import torch

from durian_adv.worth import predicted_worth
from studies.law import plan, policy, runner, training
from studies.law import rollouts as sampling
from studies.law.training import Batch, Seed

PATH = Path(__file__).parent / "records" / "later.json"
DOSE, RATE, LAST = "9", 0.006, (20, 100, 200)  # steps, each the end of 20 whose rollouts are measured


@torch.no_grad()
def measure(seed: Seed) -> dict[str, dict[str, float]]:
    """Train with a std by kind, and return the worth of every arm on the same rollouts, early and late."""
    flat, dose = seed.warm.clone(), plan.dose_of("variance", DOSE)
    parameter, grad = torch.nn.Parameter(flat), torch.zeros_like(flat)
    parameter.grad, made, out = grad, policy.parts(flat), policy.parts(grad)
    optimizer = torch.optim.Adam([parameter], lr=RATE)
    batches: list[Batch] = []
    found, passing = {}, 0.6
    for step in range(1, max(LAST) + 1):
        computed = policy.compute(made)
        prompts, rollouts, tried = training.collect(made, seed, step - 1, dose, passing, computed)
        passing = len(prompts) / tried
        seen = sampling.look(made, prompts, computed)
        logprobs = sampling.logprobs(made, prompts, seen, rollouts)
        batches.append(training.make_batch(prompts, rollouts, dose, logprobs, seed, step - 1))
        sampling.gradient(made, prompts, seen, rollouts, training.ARMS["std by kind"](batches[-1]), out)
        optimizer.step()
        if step in LAST:
            found[f"{step}"] = _worths(batches[-training.MEASURED :])
    return found


def _worths(batches: list[Batch]) -> dict[str, float]:
    rewards, correct, kind = (torch.cat([getattr(b, name) for b in batches]) for name in ("rewards", "correct", "kind"))
    advantages = {arm: torch.cat([training.ARMS[arm](batch) for batch in batches]) for arm in plan.ARMS}
    found = predicted_worth(rewards, advantages, correctness=correct, category=kind)
    return {arm: each.worth for arm, each in found.items()}


def main() -> None:
    """Write the means over the pilots' seeds."""
    found = [measure(training.load_seed(seed, runner.CACHE)) for seed in plan.PILOT_SEEDS]
    means = {
        step: {arm: round(sum(one[step][arm] for one in found) / len(found), 3) for arm in plan.ARMS}
        for step in found[0]
    }
    PATH.write_text(json.dumps(means, indent=1) + "\n", encoding="utf-8")
    print(PATH.read_text(encoding="utf-8"))
