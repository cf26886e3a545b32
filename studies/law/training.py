"""One run: a warm policy, 200 steps of RL with one arm, and its held-out accuracy, computed and not sampled."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import rankdata
from torch import Tensor

from durian_adv import durian_advantage, grpo_advantage, shared_std_advantage
from durian_adv.baselines import batch_std_advantage
from durian_adv.worth import predicted_worth
from studies.law import policy as net
from studies.law import rollouts as sampling
from studies.law import task
from studies.law.policy import INPUTS, SYMBOLS
from studies.law.rollouts import TOKENS, Rollouts
from studies.law.task import Prompts

PROMPTS, GROUP, STEPS = 512, 8, 200
POOL, EXAM, DRAWN = 1 << 17, 2048, 1 << 14  # prompts of a seed: to draw training prompts from, held out, of how many
FORMAT_RATE, FORMAT_WEIGHT = 0.95, 0.1
EXAM_EVERY = 20
TRIED = 8 * PROMPTS  # prompts at most for the filter to find those of a step
MEASURED = 20  # steps whose worth is estimated
WARM_STEPS, WARM_RATE, WARM_PROMPTS = 300, 3e-3, 256
WARM_NOISE = (0.5, 1.0)  # demonstrations have clean pictures, so the policy is too sure of noisy ones
SLIPS, HABITS, FIRMNESS = 0.02, 0.3, 0.9  # wrong tokens; operations taught wrong, and how often
QUALITY = 0.8  # correlation of both scores with the kind
SEEING, SURENESS = 1.0, 0.9  # of the rest of the scores with noise, and with the policy's own confidence


@dataclass(frozen=True)
class Dose:
    """What makes the rewards of a step."""

    noise: tuple[float, float] = (0.0, 0.0)  # std, by kind
    unit: tuple[float, float] = (1.0, 1.0)
    filtered: bool = True


@dataclass(frozen=True)
class Batch:
    """What an arm may look at: B prompts with G responses each."""

    rewards: Tensor  # (B, G)
    correct: Tensor  # (B, G)
    kind: Tensor  # (B,)
    visual_entropy: Tensor  # (B,)
    confidence: Tensor  # (B,)
    others: tuple[Tensor, Tensor]  # two orders of the prompts, by chance


@dataclass(frozen=True)
class Seed:
    """What all arms of a seed share."""

    number: int
    warm: Tensor  # the parameters
    pool: Prompts
    shares: np.ndarray  # (POOL,) summed: where a uniform number finds its prompt
    exam: Prompts


def scored(batch: Batch, no_signal: str, entropy: Tensor | None = None, confidence: Tensor | None = None) -> Tensor:
    """Return Durian's advantages with defaults; the scores may be others than the prompts' own."""
    return durian_advantage(
        batch.rewards,
        visual_entropy=batch.visual_entropy if entropy is None else entropy,
        confidence=batch.confidence if confidence is None else confidence,
        no_signal=no_signal,
    )


def random_buckets(batch: Batch) -> Tensor:
    """Return Durian's advantages with scores of other prompts."""
    first, second = batch.others
    return scored(batch, "keep", batch.visual_entropy[first], batch.confidence[second])


ARMS: dict[str, Callable[[Batch], Tensor]] = {
    "GRPO": lambda batch: grpo_advantage(batch.rewards),
    "batch std": lambda batch: batch_std_advantage(batch.rewards),
    "Durian, kept": lambda batch: scored(batch, "keep"),
    "Durian, dropped": lambda batch: scored(batch, "drop"),
    "random buckets": random_buckets,
    "std by kind": lambda batch: shared_std_advantage(batch.rewards, batch.kind),
}


def stream(seed: int, *place: int) -> np.random.Generator:
    """Return random numbers that belong to a seed and a place, whatever was drawn elsewhere."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *place])))


def warm_policy(seed: int) -> Tensor:
    """Teach a policy by demonstrations until it can do a part of the task."""
    rng = stream(seed, 0)
    flat = net.initial(torch.Generator().manual_seed(seed), FORMAT_RATE)
    parameter, grad = torch.nn.Parameter(flat), torch.zeros_like(flat)
    parameter.grad, made, out = grad, net.parts(flat), net.parts(grad)
    optimizer = torch.optim.Adam([parameter], lr=WARM_RATE)
    taught = torch.where(
        torch.from_numpy(rng.random(INPUTS) < HABITS), torch.from_numpy(rng.integers(SYMBOLS, size=INPUTS)), -1
    )
    for _ in range(WARM_STEPS):
        prompts = task.draw(WARM_PROMPTS, rng, WARM_NOISE)
        symbols, pictures = prompts.symbols.flatten(), prompts.pictures.flatten(0, 1)
        seen = net.read(made, pictures)
        net.read_backward(made, seen, _pull(seen, torch.arange(len(symbols)), _slipped(symbols, rng)), out)
        asked = torch.from_numpy(rng.integers(INPUTS, size=2 * WARM_PROMPTS))
        firm = torch.from_numpy(rng.random(len(asked)) < FIRMNESS) & (taught[asked] >= 0)
        shown = torch.where(firm, taught[asked], task.results()[asked])
        seen = net.compute(made)
        net.compute_backward(made, seen, _pull(seen, asked, _slipped(shown, rng)), out)
        out.ending.zero_()
        optimizer.step()
    return flat


def _slipped(symbols: Tensor, rng: np.random.Generator) -> Tensor:
    slips = torch.from_numpy(rng.random(len(symbols)) < SLIPS)
    return torch.where(slips, torch.from_numpy(rng.integers(SYMBOLS, size=len(symbols))), symbols)


def _pull(seen: list[Tensor], rows: Tensor, symbols: Tensor) -> Tensor:
    """Return the gradient of the mean cross-entropy of symbols, in these rows of the logits."""
    number = len(seen[-1])
    shown = torch.bincount(rows * SYMBOLS + symbols, minlength=number * SYMBOLS).view(number, SYMBOLS)
    return (shown.sum(1, keepdim=True) * seen[-1].exp() - shown) / len(rows)


@torch.no_grad()
def load_seed(number: int, cache: Path) -> Seed:
    """Return what the arms of a seed share; the warm policy is kept in a file, the rest is drawn again."""
    path = cache / f"{number:04}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".new")
        torch.save(warm_policy(number), scratch)
        scratch.replace(path)
    warm = torch.load(path)
    pool, held_out = task.draw(POOL, stream(number, 1)), task.draw(DRAWN, stream(number, 2))
    share, exam_share = (task.shares(task.accuracies(warm, prompts)) for prompts in (pool, held_out))
    rows = torch.from_numpy(stream(number, 3).choice(DRAWN, EXAM, p=exam_share))
    return Seed(number, warm, pool, np.cumsum(share), held_out[rows])


@torch.no_grad()
def train(
    seed: Seed, arm: str, dose: Dose, rate: float, steps: int = STEPS, *, sgd: bool = False
) -> tuple[list[dict[str, float]], float]:
    """Train one arm; return a row per exam, with means since the last one, and the worth that its first steps have.

    The worth is what `predicted_worth` makes of the rollouts of those steps.
    """
    flat = seed.warm.clone()
    parameter, grad = torch.nn.Parameter(flat), torch.zeros_like(flat)
    parameter.grad, made, out = grad, net.parts(flat), net.parts(grad)
    optimizer: torch.optim.Optimizer = (torch.optim.SGD if sgd else torch.optim.Adam)([parameter], lr=rate)
    rows, recent = [{"step": 0, "held_out": examine(flat, seed)}], []
    first: list[tuple[Batch, Tensor]] = []
    passing = 0.6
    for step in range(steps):
        computed = net.compute(made)
        prompts, rollouts, tried = collect(made, seed, step, dose, passing, computed)
        passing = len(prompts) / tried
        if not passing:  # a policy that nothing can teach any more stays as it is
            rows.append({"step": steps, "held_out": examine(flat, seed), **(_mean(recent) if recent else {})})
            break
        seen = sampling.look(made, prompts, computed)
        batch = make_batch(prompts, rollouts, dose, sampling.logprobs(made, prompts, seen, rollouts), seed, step)
        advantages = ARMS[arm](batch)
        sampling.gradient(made, prompts, seen, rollouts, advantages, out)
        optimizer.step()
        if step < MEASURED:
            first.append((batch, advantages))
        recent.append(_row(batch, advantages, rollouts, tried))
        if (step + 1) % EXAM_EVERY == 0 or step + 1 == steps:
            rows.append({"step": step + 1, "held_out": examine(flat, seed), **_mean(recent)})
            recent = []
    return rows, _worth(first)


def examine(flat: Tensor, seed: Seed) -> float:
    """Return held-out accuracy, the expectation of what sampling would give."""
    return task.accuracies(flat, seed.exam).double().mean().item()


def collect(
    made: net.Parts, seed: Seed, step: int, dose: Dose, passing: float, computed: list[Tensor]
) -> tuple[Prompts, Rollouts, int]:
    """Sample until there are 512 prompts that pass the filter; return them, and how many were tried.

    Each prompt tried takes its own random numbers, the same for every arm. With a filter at most ``TRIED`` are tried.
    """
    rng = stream(seed.number, 4, step)
    prompts, rollouts, tried, missing = [], [], 0, PROMPTS
    while missing and tried < TRIED:
        ask = PROMPTS if not dose.filtered else min(TRIED - tried, int(missing / max(passing, 0.05) * 1.05) + 8)
        drawn = torch.from_numpy(rng.random((ask, 1 + GROUP * TOKENS), dtype=np.float32))
        some = seed.pool[torch.from_numpy(np.searchsorted(seed.shares[:-1], drawn[:, 0].numpy()))]
        found = sampling.sample(
            made, some, sampling.look(made, some, computed), drawn[:, 1:].reshape(ask, GROUP, TOKENS)
        )
        right = found.correct.sum(1)
        passed = ((right > 0) & (right < GROUP)).nonzero()[:, 0] if dose.filtered else torch.arange(ask)
        tried += ask if len(passed) <= missing else int(passed[missing - 1]) + 1
        prompts.append(some[passed[:missing]])
        rollouts.append(found[passed[:missing]])
        missing -= len(prompts[-1])
    return _joined(prompts), _joined(rollouts), tried


def _joined(pieces: list[Any]) -> Any:
    return type(pieces[0])(*(torch.cat(values) for values in zip(*(vars(p).values() for p in pieces), strict=True)))


def make_batch(prompts: Prompts, rollouts: Rollouts, dose: Dose, logprob: Tensor, seed: Seed, step: int) -> Batch:
    """Give rewards and scores."""
    rng = stream(seed.number, 5, step)
    noise, unit = (torch.tensor(values)[prompts.kind, None] for values in (dose.noise, dose.unit))
    rewards = unit * ((1 - FORMAT_WEIGHT) * rollouts.correct + FORMAT_WEIGHT * rollouts.kept)
    rewards = rewards.double() + noise * torch.from_numpy(rng.normal(size=rewards.shape))
    entropy, confidence = scores(prompts, logprob.mean(1))
    first, second = (torch.from_numpy(rng.permutation(len(prompts))) for _ in range(2))
    return Batch(rewards, rollouts.correct, prompts.kind, entropy, confidence, (first, second))


def scores(prompts: Prompts, confidence: Tensor) -> tuple[Tensor, Tensor]:
    """Return visual entropy and confidence: what they know of the kind, of the difficulty, and of nothing."""
    low, high = np.log(task.NOISE)
    seen = ndtri(np.clip((np.log(prompts.noise.double().numpy()) - low) / (high - low), 1e-4, 1 - 1e-4))
    sure = ndtri((rankdata(confidence.numpy()) - 0.5) / len(prompts))
    kind, luck = 2.0 * prompts.kind.numpy() - 1, prompts.luck.numpy()
    rest = [known * hidden + (1 - known**2) ** 0.5 * luck[:, place]
            for place, (known, hidden) in enumerate(((SEEING, seen), (SURENESS, sure)))]  # fmt: skip
    error = (1 - QUALITY**2) ** 0.5
    return torch.from_numpy(QUALITY * kind + error * rest[0]), torch.from_numpy(-QUALITY * kind + error * rest[1])


def _row(batch: Batch, advantages: Tensor, rollouts: Rollouts, tried: int) -> dict[str, float]:
    right = batch.correct.sum(1)
    return {
        "tried": tried,
        "prompts": len(right),
        "extreme": ((right == 1) | (right == GROUP - 1)).double().mean().item(),
        "format": rollouts.kept.double().mean().item(),
        "largest": advantages.abs().max().item(),
    }


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _worth(first: list[tuple[Batch, Tensor]]) -> float:
    names = ("rewards", "correct", "kind")
    rewards, correct, kind = (torch.cat([getattr(batch, name) for batch, _ in first]) for name in names)
    of_arm = {"arm": torch.cat([a for _, a in first])}
    return predicted_worth(rewards, of_arm, correctness=correct, category=kind)["arm"].worth
