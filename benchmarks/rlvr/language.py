r"""The policy's language: one token per word, such as `<think> 1 0 2 0 = 3 </think> \boxed{ 3 }`."""

import re

import torch
from torch import Tensor

from benchmarks.rlvr.scenes import COLORS, GRID, KINDS

PAD, END = "<pad>", "<end>"
THINK, UNTHINK, BOX, UNBOX = "<think>", "</think>", r"\boxed{", "}"
QUESTION_WORDS = ("how", "many", "which", "kind", "shapes", "most", "plus", "?")
CHAIN_WORDS = ("=", "so", "guess")
NUMBERS = tuple(str(n) for n in range(GRID * GRID + 1))

VOCABULARY = (
    PAD, END, THINK, UNTHINK, BOX, UNBOX, *QUESTION_WORDS, *CHAIN_WORDS, *NUMBERS, *KINDS, *COLORS,
)  # fmt: skip
TOKENS = {word: token for token, word in enumerate(VOCABULARY)}

QUESTION_LENGTH = 6
RESPONSE_LENGTH = 24

_FORMAT = re.compile(r"<think>.*</think>.*\\boxed\{.*\}.*")
_ANSWER = re.compile(r"\\boxed\{ (\S+) \}")


def encode(sentences: list[tuple[str, ...]], length: int) -> Tensor:
    """Return sentences as tokens, (len(sentences), length), padded on the right."""
    rows = [[TOKENS[word] for word in (*words, *[PAD] * (length - len(words)))] for words in sentences]
    return torch.tensor(rows).reshape(len(rows), length)


def decode(tokens: Tensor) -> str:
    """Return one response's words up to its end, joined by spaces."""
    words = [VOCABULARY[token] for token in tokens.tolist()]
    return " ".join(words[: words.index(END)] if END in words else words)


def well_formed(response: str) -> bool:
    r"""Whether the whole response reads `<think>...</think> ... \boxed{...}`."""
    return _FORMAT.fullmatch(response) is not None


def boxed_answer(response: str) -> str | None:
    r"""Return what the last `\boxed{ ... }` holds, None where there is none or not exactly one word in it."""
    answers = _ANSWER.findall(response)
    return answers[-1] if answers else None


def reward(response: str, answer: str) -> float:
    """Return 0.1 format + 0.9 accuracy, both binary: the paper's eq. 22-24."""
    return 0.1 * well_formed(response) + 0.9 * (boxed_answer(response) == answer)
