"""What the arms do to one update, measured on shared rollouts from several checkpoints, without training an arm.

Every advantage here is a prompt's centered rewards times a factor, so a batch's gradient under any arm is a weighted
sum of its prompts' gradients, which are taken once.
"""

import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from benchmarks.rlvr.policy import Policy
from benchmarks.rlvr.rollout import response_logprobs
from durian_adv.baselines import rloo_advantage
from studies.evidence import closed_forms, records
from studies.evidence.arms import ARMS, MAIN, OTHERS, Batch
from studies.evidence.conditions import MAIN_CONDITION, Condition
from studies.evidence.loop import Sampled, collect, make_optimizer, stream, train_step
from studies.evidence.suite import Suite

NAMES = (*MAIN, *OTHERS)
FOLDER = records.RECORDS / "mechanism"
GUIDE, SEED = "batch-std", 200  # the arm and the seed whose training gives the later checkpoints
GROUP_SIZES = (2, 4, 8, 16, 32)
FORMAT = replace(MAIN_CONDITION, name="format", format_weight=0.1)


def main(
    suite: Suite, folder: Path = FOLDER, *, steps: Iterable[int] = (0, 30, 100), batches: int = 8, held_out: int = 12
) -> None:
    """Measure and write the three tables."""
    arms, pairs, sizes = [], [], []
    for step, policy in checkpoints(suite, sorted(steps)):
        for condition in (MAIN_CONDITION, FORMAT):
            where = {"checkpoint": step, "rewards": "binary" if condition is MAIN_CONDITION else "0.9 + 0.1 format"}
            found = measure(policy, suite, condition, batches=batches, held_out=held_out, title=f"step {step}")
            arms += [where | row for row in found[0]]
            pairs += [where | row for row in found[1]]
            sizes += [where | row for row in by_group_size(policy, suite, condition)]
    for name, rows in (("arms", arms), ("pairs", pairs), ("group_sizes", sizes)):
        write(folder / f"{name}.csv", rows, suite)


def checkpoints(suite: Suite, steps: list[int]) -> Iterator[tuple[int, Policy]]:
    """Yield the warm policy and what it becomes in training, at these steps."""
    policy = suite.policy()
    optimizer = make_optimizer(policy, MAIN_CONDITION)
    for step in tqdm(range(steps[-1] + 1), desc="checkpoints", unit="step"):
        if step in steps:
            yield step, policy
        if step < steps[-1]:
            train_step(policy, optimizer, suite, MAIN_CONDITION, ARMS[GUIDE], SEED, step)


def measure(
    policy: Policy, suite: Suite, condition: Condition, *, batches: int, held_out: int, title: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a row for each arm, and one for each pair of arms, as means over batches."""
    numbers = iter(tqdm(range(1000, 1000 + 2 * held_out + batches), desc=f"gradients, {title}", unit="batch"))
    truths = [_true_gradient(policy, suite, condition, numbers, held_out) for _ in range(2)]
    truth, size = truths[0] + truths[1], (truths[0] @ truths[1]).clamp(min=1e-30).sqrt()

    gradients, rows, pairs = [], [], []
    for _ in range(batches):
        sampled = collect(policy, suite, condition, SEED, next(numbers))
        advantages = {name: ARMS[name].advantage(sampled.batch) for name in NAMES}
        by_prompt = prompt_gradients(policy, suite, sampled)
        factors = torch.stack([factor(advantages[name], sampled.batch.rewards) for name in NAMES])
        of_arms = factors @ by_prompt
        gradients.append(of_arms)
        kinds = group_kinds(sampled.batch)
        members = torch.stack(list(kinds.values())).float()
        # (arms, kinds): what the groups of a kind add to the gradient, along the gradient
        parts = (factors * (of_arms @ by_prompt.T)) @ members.T
        cosines = {
            "advantages": cosines_of(torch.stack([advantages[name].flatten() for name in NAMES])),
            "gradients": cosines_of(of_arms),
            "first_adam_steps": cosines_of(of_arms.sign()),
        }
        for number, name in enumerate(NAMES):
            row = of_one_arm(advantages[name], of_arms[number], truth, kinds, parts[number])
            rows.append({"arm": name} | row)
        for i, one in enumerate(NAMES):
            for j, other in enumerate(NAMES[:i]):
                pairs.append({"arm": one, "with": other} | {key: float(c[i, j]) for key, c in cosines.items()})

    means = average(rows, ["arm"])
    everything = torch.stack(gradients)  # (batches, arms, weights)
    for number, row in enumerate(means):
        row |= spread(everything[:, number])
        # The held-out estimate is noisy too, so the plain cosine is too low for all arms alike; this one is not.
        row["alignment_corrected"] = float((everything[:, number] @ truth / 2).mean() / row["gradient_norm"] / size)
    return means, average(pairs, ["arm", "with"])


def of_one_arm(
    advantages: Tensor, gradient: Tensor, truth: Tensor, kinds: dict[str, Tensor], parts: Tensor
) -> dict[str, float]:
    """Return what one batch says of an arm: sizes, alignment with the true gradient, shares by kind of group."""
    row = {"largest": advantages.abs().max(), "rms": advantages.square().mean().sqrt()}
    row["largest_over_rms"] = row["largest"] / row["rms"]
    row["gradient_norm"] = gradient.norm()
    row["alignment"] = cosine(gradient, truth)
    for (kind, some), part in zip(kinds.items(), parts, strict=True):
        row[f"square_share_{kind}"] = advantages[some].square().sum() / advantages.square().sum()
        row[f"gradient_share_{kind}"] = part / gradient.square().sum()
        row[f"groups_{kind}"] = some.sum()
    return {key: float(value) for key, value in row.items()}


def prompt_gradients(policy: Policy, suite: Suite, sampled: Sampled) -> Tensor:
    """Return each prompt's gradient of the sum over its tokens of (r - mean) log pi, (B, weights); rows sum to E[r]'s.

    It is the policy gradient, up to the G / (G - 1) that makes it unbiased.
    """
    weights = [weight for name, weight in policy.named_parameters() if not name.startswith("name_")]
    centered = sampled.batch.rewards - sampled.batch.rewards.mean(dim=1, keepdim=True)
    rows = torch.zeros(len(centered), sum(weight.numel() for weight in weights))
    for prompt in (centered.abs().amax(dim=1) > 1e-6).nonzero().squeeze(1):
        logprobs = response_logprobs(policy, suite.train, sampled.prompts, sampled.rollouts, prompt[None])
        gain = (logprobs * rearrange(centered[prompt], "g -> 1 g 1")).sum()
        rows[prompt] = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(gain, weights)])
    return rows / sampled.rollouts.mask.sum()


def factor(advantages: Tensor, rewards: Tensor) -> Tensor:
    """Return what each prompt's centered rewards were multiplied by, (B,)."""
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    return (advantages * centered).sum(dim=1) / centered.square().sum(dim=1).clamp(min=1e-12)


def group_kinds(batch: Batch) -> dict[str, Tensor]:
    """Return which prompts are of each kind; one with other signal than accuracy is "format_only"."""
    right, size = batch.correct.sum(dim=1), batch.correct.shape[1]
    signal = batch.rewards.amax(dim=1) > batch.rewards.amin(dim=1)
    mixed = (right > 0) & (right < size)
    extreme = mixed & ((right == 1) | (right == size - 1))
    balanced = mixed & ((right - size / 2).abs() <= size / 8)
    return {
        "no_signal": ~signal,
        "format_only": signal & ~mixed,
        "extreme": extreme,
        "balanced": balanced,
        "between": mixed & ~extreme & ~balanced,
    }


def by_group_size(policy: Policy, suite: Suite, condition: Condition) -> list[dict[str, Any]]:
    """Return the cosines of advantages with Dr. GRPO's over group sizes: the first G of the same 32 responses."""
    rows = []
    for number in range(4):
        batch = collect(policy, suite, replace(condition, group_size=32), SEED, 2000 + number).batch
        for size in GROUP_SIZES:
            part = replace(
                batch,
                rewards=batch.rewards[:, :size],
                correct=batch.correct[:, :size],
                confidence=batch.confidence[:, :size],
                rng=stream(SEED, number, 9),
            )
            plain = ARMS["dr-grpo"].advantage(part).flatten()
            for name in ("grpo", "batch-std", "durian", "reasoning") if plain.any() else ():
                value = cosine(ARMS[name].advantage(part).flatten(), plain)
                rows.append({"group_size": size, "arm": name, "cosine": float(value)})
    means = average(rows, ["group_size", "arm"])
    for row in means:
        bound = closed_forms.format_bound if condition.format_weight else closed_forms.binary_bound
        row["bound"] = bound(row["group_size"]) if row["arm"] == "grpo" else ""
    return means


def spread(gradients: Tensor) -> dict[str, float]:
    """Return the noise of one batch's gradient over its signal: total variance over the squared norm of the mean.

    The norm is taken without bias, from products of different batches' gradients.
    """
    count = len(gradients)
    variance = gradients.var(dim=0).sum()
    total = gradients.sum(dim=0)
    signal = (total @ total - gradients.square().sum()) / (count * (count - 1))
    return {"noise_over_signal": float(variance / signal.clamp(min=1e-30))}


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Return the cosine of two vectors, 0 where one is zero."""
    return one @ other / (one.norm() * other.norm()).clamp(min=1e-30)


def cosines_of(rows: Tensor) -> Tensor:
    """Return the cosine of every row with every other."""
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return rows @ rows.T


def average(rows: list[dict[str, Any]], keys: list[str]) -> list[dict[str, Any]]:
    """Return the means of rows that share their keys."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    names = [name for name in rows[0] if name not in keys]
    return [
        dict(zip(keys, key, strict=True)) | {name: sum(row[name] for row in some) / len(some) for name in names}
        for key, some in groups.items()
    ]


def write(path: Path, rows: list[dict[str, Any]], suite: Suite) -> None:
    """Write rows whole or not at all, each with what it was made from."""
    made = {"warm": suite.weights_digest} | records.origin()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    with scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *made], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in (row | made).items()})
    scratch.replace(path)


def read(path: Path) -> list[dict[str, Any]]:
    """Read what `write` wrote, numbers as numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _true_gradient(policy: Policy, suite: Suite, condition: Condition, numbers: Iterator[int], count: int) -> Tensor:
    """Estimate the policy gradient from batches of their own, without bias (RLOO's factor)."""
    total: Tensor | float = 0.0
    for _ in range(count):
        sampled = collect(policy, suite, condition, SEED, next(numbers))
        advantages = rloo_advantage(sampled.batch.rewards)
        total = total + factor(advantages, sampled.batch.rewards) @ prompt_gradients(policy, suite, sampled)
    return total / count
