"""A policy of about 30,000 parameters that reads glyphs and then computes with what it read, token by token.

Two perceptrons write the tokens: one sees a picture and writes the symbol it reads; the other sees the operation, the
last result and the symbol read, and writes the next result. A third part, one logit for each depth, ends the response
in the asked format or not. The computer has only ``OPERATIONS * SYMBOLS**2`` different inputs, so all its outputs are
computed once per step and looked up. Gradients are written out: those of sampled tokens are sums of one-hot vectors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SYMBOLS, OPERATIONS, PIXELS, DEPTH = 16, 4, 32, 3
INPUTS = OPERATIONS * SYMBOLS**2
READING, COMPUTING = 64, 96  # widths
READER = ((PIXELS, READING), (READING, READING), (READING, SYMBOLS))
COMPUTER = ((COMPUTING, COMPUTING), (COMPUTING, SYMBOLS))
EMBEDDED = (2, OPERATIONS, SYMBOLS, COMPUTING)  # of the last result, and of the symbol read, under each operation
Layers = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Parts:
    """Views of one flat vector: of the parameters, or of their gradient."""

    reader: Layers
    computer: Layers
    embedding: Tensor  # EMBEDDED
    ending: Tensor  # (DEPTH,) logits of keeping the format


def size() -> int:
    """Return the number of parameters."""
    dense = sum((rows + 1) * columns for rows, columns in (*READER, *COMPUTER))
    return dense + int(torch.Size(EMBEDDED).numel()) + DEPTH


def parts(flat: Tensor) -> Parts:
    """Cut a flat vector into layers."""
    place, layers = 0, []
    for rows, columns in (*READER, *COMPUTER):
        weight = flat[place : place + rows * columns].view(rows, columns)
        place += rows * columns
        layers.append((weight, flat[place : place + columns]))
        place += columns
    return Parts(layers[: len(READER)], layers[len(READER) :], flat[place:-DEPTH].view(EMBEDDED), flat[-DEPTH:])


def initial(generator: torch.Generator, format_rate: float) -> Tensor:
    """Draw parameters: normal weights of variance 2 / inputs, last layers smaller, and the format kept at a rate."""
    flat = torch.zeros(size())
    made = parts(flat)
    for weight, _ in (*made.reader, *made.computer):
        weight.normal_(0.0, (2 / len(weight)) ** 0.5, generator=generator)
    for last, _ in (made.reader[-1], made.computer[-1]):
        last *= 0.3
    made.embedding.normal_(0.0, 1.0, generator=generator)
    made.ending.fill_(torch.logit(torch.tensor(format_rate)))
    return flat


def read(made: Parts, pictures: Tensor) -> list[Tensor]:
    """Return the inputs of each layer of the reader, and the log-probabilities of the symbols."""
    return _forward(made.reader, [pictures])


def compute(made: Parts) -> list[Tensor]:
    """Return the same of the computer, for each of its inputs: operation, last result, symbol read, in this order."""
    last, symbol = made.embedding
    return _forward(made.computer, [(last[:, :, None] + symbol[:, None]).relu_().flatten(0, 2)])


def read_backward(made: Parts, seen: list[Tensor], grad: Tensor, out: Parts) -> None:
    """Write the gradient of the reader, given that of its logits."""
    _backward(made.reader, seen, grad, out.reader)


def compute_backward(made: Parts, seen: list[Tensor], grad: Tensor, out: Parts) -> None:
    """Write the gradient of the computer, given that of its logits."""
    grad = _backward(made.computer, seen, grad, out.computer)
    grad = (grad @ made.computer[0][0].T).mul_(seen[0] > 0).view(OPERATIONS, SYMBOLS, SYMBOLS, COMPUTING)
    torch.sum(grad, 2, out=out.embedding[0])
    torch.sum(grad, 1, out=out.embedding[1])


def _forward(layers: Layers, seen: list[Tensor]) -> list[Tensor]:
    for place, (weight, offset) in enumerate(layers):
        x = torch.addmm(offset, seen[-1], weight)
        seen.append(x.log_softmax(-1) if place + 1 == len(layers) else x.relu_())
    return seen


def _backward(layers: Layers, seen: list[Tensor], grad: Tensor, out: Layers) -> Tensor:
    """Write the gradient of the layers and return that of the first one's outputs."""
    for place in range(len(layers) - 1, -1, -1):
        torch.mm(seen[place].T, grad, out=out[place][0])
        torch.sum(grad, 0, out=out[place][1])
        if place:
            grad = (grad @ layers[place][0].T).mul_(seen[place] > 0)
    return grad
