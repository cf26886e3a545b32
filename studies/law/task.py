"""The task: glyphs to be read under noise, then a chain of operations on what was read; two dials, one for each."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from studies.law import policy as net
from studies.law.policy import DEPTH, OPERATIONS, PIXELS, SYMBOLS

NOISE = (0.5, 2.0)  # std of a pixel's noise, log-uniform over prompts; prototypes have pixels of std 1
STYLES = 12  # ways to draw a symbol
FIRST, SPREAD = -0.98, 2.36  # of the logits of accuracies in Appendix A of arXiv 2602.21743, step 1


@dataclass(frozen=True)
class Prompts:
    """n prompts; glyphs and operations beyond a prompt's depth are there and play no part."""

    pictures: Tensor  # (n, DEPTH + 1, PIXELS)
    symbols: Tensor  # (n, DEPTH + 1): what is drawn
    operations: Tensor  # (n, DEPTH)
    depth: Tensor  # (n,): operations that count
    noise: Tensor  # (n,) std of a pixel's noise
    answer: Tensor  # (n,)
    kind: Tensor  # (n,): 0 or 1; nothing else depends on it
    luck: Tensor  # (n, 2) normal: what in the two scores stands for nothing

    def __len__(self) -> int:
        return len(self.depth)

    def __getitem__(self, rows: Tensor) -> "Prompts":
        return Prompts(*(value.index_select(0, rows) for value in vars(self).values()))

    @property
    def counts(self) -> Tensor:
        """Return which glyphs count ``(n, DEPTH + 1)``; but for the first, each has its operation."""
        return torch.arange(DEPTH + 1) <= self.depth[:, None]


@cache
def results() -> Tensor:
    """Return what each operation makes of the last result and the symbol read, in the order of `policy.compute`."""
    a, b = torch.meshgrid(torch.arange(SYMBOLS), torch.arange(SYMBOLS), indexing="ij")
    return torch.stack([(a + b) % SYMBOLS, (a - b) % SYMBOLS, torch.maximum(a, b), a ^ b]).flatten()


@cache
def prototypes() -> Tensor:
    """Return how symbols look without noise ``(SYMBOLS, STYLES, PIXELS)``."""
    drawn = np.random.default_rng(1).normal(size=(SYMBOLS, STYLES, PIXELS))
    return torch.from_numpy(drawn).float()


def draw(number: int, rng: np.random.Generator, noise: tuple[float, float] = NOISE) -> Prompts:
    """Draw prompts."""
    symbols, styles = (torch.from_numpy(rng.integers(n, size=(number, DEPTH + 1))) for n in (SYMBOLS, STYLES))
    operations = torch.from_numpy(rng.integers(OPERATIONS, size=(number, DEPTH)))
    depth = torch.from_numpy(rng.integers(1, DEPTH + 1, size=number))
    level = torch.from_numpy(np.exp(rng.uniform(*np.log(noise), size=number)).astype(np.float32))
    dirt = torch.from_numpy(rng.standard_normal((number, DEPTH + 1, PIXELS), dtype=np.float32))
    pictures = prototypes()[symbols, styles] + level[:, None, None] * dirt
    last = symbols[:, 0]
    for k in range(DEPTH):
        last = torch.where(k < depth, results()[place(operations[:, k], last, symbols[:, k + 1])], last)
    kind, luck = torch.from_numpy(rng.integers(2, size=number)), torch.from_numpy(rng.normal(size=(number, 2)))
    return Prompts(pictures, symbols, operations, depth, level, last, kind, luck)


def place(operation: Tensor, last: Tensor, symbol: Tensor) -> Tensor:
    """Return which of the computer's inputs this is."""
    return (operation * SYMBOLS + last) * SYMBOLS + symbol


def accuracies(flat: Tensor, prompts: Prompts) -> Tensor:
    """Return each prompt's chance of a right answer: summed over all responses, not sampled."""
    made = net.parts(flat)
    read = net.read(made, prompts.pictures.flatten(0, 1))[-1].exp().unflatten(0, (len(prompts), DEPTH + 1))
    result = net.compute(made)[-1].exp().view(OPERATIONS, SYMBOLS**2, SYMBOLS)
    chance = read[:, 0].clone()
    for k in range(DEPTH):
        pairs = (chance[:, :, None] * read[:, k + 1, None, :]).flatten(1)
        for operation in range(OPERATIONS):
            rows = ((prompts.operations[:, k] == operation) & (k < prompts.depth)).nonzero()[:, 0]
            chance[rows] = pairs[rows] @ result[operation]
    return chance.gather(1, prompts.answer[:, None])[:, 0]


def shares(accuracy: Tensor, bins: int = 40) -> np.ndarray:
    """Return how often to draw each prompt, so that logits of accuracies are normal with Appendix A's moments.

    Each of ``bins`` equally likely intervals of that distribution is drawn equally often. One without a prompt is left
    out, and its share with it.
    """
    logits = torch.logit(accuracy.double(), eps=1e-9).numpy()
    edges = FIRST + SPREAD * ndtri(np.arange(1, bins) / bins)
    interval = np.searchsorted(edges, logits)
    found = 1.0 / np.bincount(interval, minlength=bins)[interval]
    return np.asarray(found / found.sum())
