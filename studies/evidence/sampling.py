"""Sampling from given random numbers, so that runs that differ in nothing but the advantage share their noise."""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from benchmarks.rlvr.encoder import Gallery
from benchmarks.rlvr.language import END, PAD, RESPONSE_LENGTH, TOKENS
from benchmarks.rlvr.policy import Policy
from benchmarks.rlvr.prompts import Prompts
from benchmarks.rlvr.rollout import Rollouts, verify


def uniforms(prompts: int, group_size: int, rng: np.random.Generator) -> Tensor:
    """Return the random numbers that decide every token of a batch, (B, G, T)."""
    return torch.from_numpy(rng.random((prompts, group_size, RESPONSE_LENGTH), dtype=np.float32))


@torch.no_grad()
def sample(policy: Policy, gallery: Gallery, prompts: Prompts, noise: Tensor) -> Rollouts:
    """Sample at temperature 1: token t of a response is where its noise falls in the cumulated probabilities.

    Policies that are close write mostly the same words from the same noise. Prompts whose responses have all ended are
    taken out of the batch now and then: a response has 24 tokens at most and 12 on average.
    """
    group = noise.shape[1]
    prompt = policy.read(gallery.patches[prompts.scenes], prompts.question_tokens)
    memory, past = policy.prompt_memory(prompt), None
    tokens = torch.full(noise.shape, TOKENS[PAD])
    logprobs, mask = torch.zeros(noise.shape), torch.zeros(noise.shape, dtype=torch.bool)
    rows = torch.arange(len(noise))
    token = torch.full((len(noise) * group, 1), TOKENS[END])
    done = torch.zeros_like(token, dtype=torch.bool)
    for place in range(noise.shape[2]):
        logits, past = policy.write(token, memory, past)
        log_p = logits[:, -1].log_softmax(dim=-1)
        falls = rearrange(noise[rows, :, place], "b g -> (b g) 1")
        # The last probability reaches 1 only up to rounding, so what falls behind it takes the last token.
        token = (log_p.exp().cumsum(dim=-1) <= falls).sum(dim=-1, keepdim=True).clamp(max=log_p.shape[-1] - 1)
        token = token.masked_fill(done, TOKENS[PAD])
        tokens[rows, :, place] = rearrange(token, "(b g) 1 -> b g", g=group)
        logprobs[rows, :, place] = rearrange(log_p.gather(-1, token).masked_fill(done, 0.0), "(b g) 1 -> b g", g=group)
        mask[rows, :, place] = rearrange(~done, "(b g) 1 -> b g", g=group)
        done = done | (token == TOKENS[END])
        alive = ~rearrange(done, "(b g) 1 -> b g", g=group).all(dim=1)
        if not alive.any():
            break
        if alive.float().mean() < 0.8:
            rows = rows[alive]
            responses = alive.repeat_interleave(group)
            token, done = token[responses], done[responses]
            memory = [each[:, alive] for each in memory]
            past = [each[:, responses] for each in past]
    longest = int(mask.any(dim=0).any(dim=0).sum())
    return Rollouts(tokens[..., :longest], logprobs[..., :longest], mask[..., :longest])


def examine(policy: Policy, gallery: Gallery, exam: Prompts, samples: int, rng: np.random.Generator) -> Tensor:
    """Return each held-out prompt's share of right answers over its samples, (B,), in slices that fit the cache."""
    shares = []
    for rows in torch.arange(len(exam.questions)).split(100):
        part = Prompts(exam.scenes[rows], [exam.questions[row] for row in rows], exam.question_tokens[rows])
        _, correct = verify(part, sample(policy, gallery, part, uniforms(len(rows), samples, rng)))
        shares.append(correct.float().mean(dim=1))
    return torch.cat(shares)
