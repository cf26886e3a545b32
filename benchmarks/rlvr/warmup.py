"""Supervised warm-up on demonstrations of mixed quality."""

from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange

from benchmarks.rlvr.encoder import Gallery
from benchmarks.rlvr.language import BOX, END, PAD, RESPONSE_LENGTH, THINK, TOKENS, UNBOX, UNTHINK, encode
from benchmarks.rlvr.policy import Policy
from benchmarks.rlvr.prompts import sample_prompts
from benchmarks.rlvr.questions import Question
from benchmarks.rlvr.scenes import KINDS


def demonstrate(question: Question, *, guess: bool, rng: np.random.Generator) -> tuple[str, ...]:
    """Write a response: a careful chain with the true answer, or a guess, which is right half of the time."""
    chain, answer = (("guess",), _guess(question.answer, rng)) if guess else (question.chain, question.answer)
    return (THINK, *chain, UNTHINK, BOX, answer, UNBOX, END)


def _guess(answer: str, rng: np.random.Generator) -> str:
    if rng.random() < 0.5:
        return answer
    if answer in KINDS:
        return str(rng.choice([kind for kind in KINDS if kind != answer]))
    return str(rng.choice([n for n in (int(answer) - 1, int(answer) + 1) if n >= 0]))


def warm_up(
    policy: Policy,
    gallery: Gallery,
    *,
    steps: int,
    guess_share: float,
    rng: np.random.Generator,
    batch: int = 64,
    lr: float = 2e-3,
    auxiliary_weight: float = 1.0,
    demonstrator: Callable[..., tuple[str, ...]] = demonstrate,
) -> list[float]:
    """Train the policy in place and return the loss of each step."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rise_and_decay(steps))
    losses = []
    for _ in (progress := trange(steps, desc="warm-up", unit="step", mininterval=0.5)):
        prompts = sample_prompts(gallery, batch, rng)
        guesses = rng.random(batch) < guess_share
        pairs = zip(prompts.questions, guesses, strict=True)
        demonstrations = [demonstrator(question, guess=guess, rng=rng) for question, guess in pairs]
        responses = encode(demonstrations, RESPONSE_LENGTH)
        prompt = policy.read(gallery.patches[prompts.scenes], prompts.question_tokens)
        kinds, colors = policy.name_cells(prompt)
        loss = _cross_entropy(policy.response_logits(prompt, responses), responses, ignore_index=TOKENS[PAD])
        loss = loss + auxiliary_weight * _cross_entropy(kinds, gallery.kinds[prompts.scenes])
        loss = loss + auxiliary_weight * _cross_entropy(colors, gallery.colors[prompts.scenes])

        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    return losses


def _rise_and_decay(steps: int, rise: int = 20) -> Callable[[int], float]:
    return lambda step: min((step + 1) / rise, 1.0) * max(1.0 - step / steps, 0.02)


def _cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    return F.cross_entropy(rearrange(logits, "n t v -> (n t) v"), labels.flatten(), ignore_index=ignore_index)
