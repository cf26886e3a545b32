"""Demonstrations of mixed quality, so that RL has something to select: careful, careless and guessed ones."""

import numpy as np

from benchmarks.rlvr.language import UNTHINK
from benchmarks.rlvr.questions import Question
from benchmarks.rlvr.scenes import GRID, KINDS
from benchmarks.rlvr.warmup import demonstrate as plainly

SLIP = 0.15  # how often a careless count is one off


def demonstrate(
    question: Question, *, guess: bool, rng: np.random.Generator, careless_share: float, malformed_share: float
) -> tuple[str, ...]:
    """Write a response: a guess, a careful chain, or one with slips whose answer follows from them.

    A malformed response lacks the word that ends its thoughts: its answer still counts, its format does not.
    """
    careless, malformed = rng.random(2) < (careless_share, malformed_share)
    if careless and not guess:
        question = slip(question, rng)
    words = plainly(question, guess=guess, rng=rng)
    return tuple(word for word in words if word != UNTHINK) if malformed else words


def slip(question: Question, rng: np.random.Generator) -> Question:
    """Return the question with the chain and answer of somebody who miscounts now and then."""
    chain = list(question.chain)
    # A two-step chain surveys the kinds first; only the count that follows slips, or the rest would not follow.
    first = chain.index("so") if "so" in chain else 0
    for place in range(first, len(chain)):
        if chain[place].isdigit() and rng.random() < SLIP:
            chain[place] = str(max(0, int(chain[place]) + rng.choice((-1, 1))))
    if question.form == "most":
        counts = [int(chain[chain.index(kind) + 1]) for kind in KINDS]
        best = [kind for kind, count in zip(KINDS, counts, strict=True) if count == max(counts)]
        answer = str(rng.choice(best))
    else:
        totals = [place for place, word in enumerate(chain) if word == "="]
        for place in totals:
            rows = [int(word) for word in chain[place - 4 : place]]
            chain[place + 1] = str(sum(rows))
        answer = str(min(GRID * GRID, sum(int(chain[place + 1]) for place in totals)))  # numbers end there
    return Question(question.form, question.words, tuple(chain), answer, question.depth)
