"""Sampling: G responses to each of B prompts, with the log-probability of every token."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from benchmarks.rlvr.encoder import Gallery
from benchmarks.rlvr.language import END, PAD, RESPONSE_LENGTH, TOKENS, boxed_answer, decode, reward
from benchmarks.rlvr.policy import Policy
from benchmarks.rlvr.prompts import Prompts


@dataclass(frozen=True)
class Rollouts:
    """G responses to each of B prompts; T is the length of the longest."""

    tokens: Tensor  # (B, G, T), padded behind the end token
    logprobs: Tensor  # (B, G, T), 0 on the padding
    mask: Tensor  # (B, G, T), true on the response, its end token included


@torch.no_grad()
def sample_responses(
    policy: Policy,
    gallery: Gallery,
    prompts: Prompts,
    group_size: int,
    generator: torch.Generator | None = None,
) -> Rollouts:
    """Sample at temperature 1 with a generator; without one take the likeliest token (greedy)."""
    prompt = policy.read(gallery.patches[prompts.scenes], prompts.question_tokens)
    memory, past = policy.prompt_memory(prompt), None
    token = torch.full((len(prompt) * group_size, 1), TOKENS[END])
    done = torch.zeros_like(token, dtype=torch.bool)
    tokens, logprobs, mask = [], [], []
    while len(tokens) < RESPONSE_LENGTH and not done.all():
        logits, past = policy.write(token, memory, past)
        log_p = logits[:, -1].log_softmax(dim=-1)
        if generator is None:
            token = log_p.argmax(dim=-1, keepdim=True)
        else:
            token = torch.multinomial(log_p.exp(), 1, generator=generator)
        token = token.masked_fill(done, TOKENS[PAD])
        tokens.append(token)
        logprobs.append(log_p.gather(-1, token).masked_fill(done, 0.0))
        mask.append(~done)
        done = done | (token == TOKENS[END])
    pieces = (torch.cat(piece, dim=1) for piece in (tokens, logprobs, mask))
    return Rollouts(*(rearrange(piece, "(b g) t -> b g t", g=group_size) for piece in pieces))


def response_logprobs(policy: Policy, gallery: Gallery, prompts: Prompts, rollouts: Rollouts, rows: Tensor) -> Tensor:
    """Return each token's log-probability under the policy as it is now, (rows, G, T), with gradients."""
    tokens, mask = rollouts.tokens[rows], rollouts.mask[rows]
    prompt = policy.read(gallery.patches[prompts.scenes[rows]], prompts.question_tokens[rows])
    logits = policy.response_logits(prompt, rearrange(tokens, "b g t -> (b g) t"))
    log_p = rearrange(logits.log_softmax(dim=-1), "(b g) t v -> b g t v", b=len(rows))
    return log_p.gather(-1, rearrange(tokens, "b g t -> b g t 1")).squeeze(-1) * mask


def verify(prompts: Prompts, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """Return the rewards and whether each answer is right, both (B, G)."""
    rewards = torch.zeros(rollouts.tokens.shape[:2])
    correct = torch.zeros_like(rewards, dtype=torch.bool)
    for row, (question, group) in enumerate(zip(prompts.questions, rollouts.tokens, strict=True)):
        for column, response in enumerate(map(decode, group)):
            rewards[row, column] = reward(response, question.answer)
            correct[row, column] = boxed_answer(response) == question.answer
    return rewards, correct
