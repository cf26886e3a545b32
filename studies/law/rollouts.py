"""Rollouts of the policy: sampled, verified, and turned into a gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from studies.law import policy as net
from studies.law.policy import DEPTH, INPUTS, SYMBOLS, Parts
from studies.law.task import Prompts, place

TOKENS = 2 * DEPTH + 2  # of the longest response: symbols read, results, format


@dataclass(frozen=True)
class Rollouts:
    """G responses to each of n prompts."""

    read: Tensor  # (n, G, DEPTH + 1): the symbols read
    place: Tensor  # (n, G, DEPTH): which input the computer saw
    result: Tensor  # (n, G, DEPTH): what it wrote
    kept: Tensor  # (n, G) bool: the format
    correct: Tensor  # (n, G) bool: the answer

    def __getitem__(self, rows: Tensor) -> "Rollouts":
        return Rollouts(*(value.index_select(0, rows) for value in vars(self).values()))


@dataclass(frozen=True)
class Seen:
    """What the networks computed, layer by layer; the reader's for the glyphs that count."""

    reader: list[Tensor]
    computer: list[Tensor]


def look(made: Parts, prompts: Prompts, computed: list[Tensor] | None = None) -> Seen:
    """Read the pictures that count, and compute everything that can be computed, unless that was done."""
    return Seen(net.read(made, prompts.pictures[prompts.counts]), computed or net.compute(made))


def sample(made: Parts, prompts: Prompts, seen: Seen, uniform: Tensor) -> Rollouts:
    """Sample responses; ``uniform (n, G, TOKENS)`` decides each token, the same for every policy."""
    reading = torch.ones(len(prompts), DEPTH + 1, SYMBOLS)
    reading[prompts.counts] = seen.reader[-1].exp().cumsum(-1)
    read = _pick(reading, uniform[..., : DEPTH + 1].transpose(1, 2)).transpose(1, 2)
    table = seen.computer[-1].exp().cumsum(-1)
    last, places, results = read[..., 0], [], []
    for k in range(DEPTH):
        places.append(place(prompts.operations[:, k, None], last, read[..., k + 1]))
        results.append(_pick(table[places[k]], uniform[..., DEPTH + 1 + k, None])[..., 0])
        last = torch.where(prompts.counts[:, None, k + 1], results[k], last)
    kept = uniform[..., -1] < made.ending[prompts.depth - 1, None].sigmoid()
    return Rollouts(read, torch.stack(places, 2), torch.stack(results, 2), kept, last == prompts.answer[:, None])


def logprobs(made: Parts, prompts: Prompts, seen: Seen, rollouts: Rollouts) -> Tensor:
    """Return the log-probability of each response ``(n, G)``, summed over its tokens."""
    reading = seen.reader[-1].new_zeros(len(prompts), DEPTH + 1, SYMBOLS)
    reading[prompts.counts] = seen.reader[-1]
    of_read = reading.gather(2, rollouts.read.transpose(1, 2)).sum(1)
    of_result = seen.computer[-1].flatten()[rollouts.place * SYMBOLS + rollouts.result]
    ending = made.ending[prompts.depth - 1, None]
    of_format = torch.nn.functional.logsigmoid(torch.where(rollouts.kept, ending, -ending))
    return of_read + (of_result * prompts.counts[:, None, 1:]).sum(2) + of_format


def gradient(made: Parts, prompts: Prompts, seen: Seen, rollouts: Rollouts, advantages: Tensor, out: Parts) -> None:
    """Write the gradient of minus the mean over tokens of advantage times log-probability.

    All rollouts of a prompt see the same pictures and their advantages sum to 0, so the softmax drops out of the
    gradient of the reader's logits.
    """
    tokens = (2 * prompts.depth + 2).sum() * advantages.shape[1]
    a = -advantages.float() / tokens
    reading = torch.zeros(len(prompts), DEPTH + 1, SYMBOLS)
    reading.scatter_add_(2, rollouts.read.transpose(1, 2), a[:, None].expand(-1, DEPTH + 1, -1))
    net.read_backward(made, seen.reader, reading[prompts.counts], out)
    written = (rollouts.place * SYMBOLS + rollouts.result).flatten()
    each = (a[..., None] * prompts.counts[:, None, 1:]).flatten()
    computing = torch.bincount(written, each, INPUTS * SYMBOLS).float().view(INPUTS, SYMBOLS)
    computing -= computing.sum(1, keepdim=True) * seen.computer[-1].exp()
    net.compute_backward(made, seen.computer, computing, out)
    ending = a * (rollouts.kept.float() - made.ending[prompts.depth - 1, None].sigmoid())
    out.ending.copy_(torch.bincount(prompts.depth - 1, ending.sum(1), DEPTH))


def _pick(cumulative: Tensor, uniform: Tensor) -> Tensor:
    """Return the symbol that each uniform number falls on; rounding leaves the last sum below 1 now and then."""
    return torch.searchsorted(cumulative, uniform.contiguous(), right=True).clamp_(max=SYMBOLS - 1)
