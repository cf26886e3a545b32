"""Questions about a scene, their verifiable answers, and the chain of counts that leads to each."""

from dataclasses import dataclass

import numpy as np

from benchmarks.rlvr.scenes import COLORS, GRID, KINDS, Scene

# keys of the records of the study, spelled as they are there
FORMS = ("all", "kind", "colour", "sum", "most", "two-step")


@dataclass(frozen=True)
class Question:
    """What is asked, the answer, and a careful chain; depth is the number of counts the chain makes."""

    form: str
    words: tuple[str, ...]
    chain: tuple[str, ...]
    answer: str
    depth: int


def ask(scene: Scene, rng: np.random.Generator, form: str | None = None) -> Question:
    """Ask a random question of a form (of any form by default); forms about "most" need one kind to win."""
    if form is None:
        winners = _most_frequent(scene)
        form = str(rng.choice(FORMS if len(winners) == 1 else FORMS[:4]))
    if form == "all":
        chain, total = _count_by_row(scene)
        return Question(form, ("how", "many", "shapes", "?"), chain, str(total), depth=1)
    if form in ("kind", "colour"):
        word = str(rng.choice(KINDS if form == "kind" else list(COLORS)))
        chain, total = _count_by_row(scene, word)
        return Question(form, ("how", "many", word, "?"), (word, *chain), str(total), depth=1)
    if form == "sum":
        first, second = (str(word) for word in rng.choice(KINDS, size=2, replace=False))
        (chain_1, total_1), (chain_2, total_2) = _count_by_row(scene, first), _count_by_row(scene, second)
        chain = (first, *chain_1, "plus", second, *chain_2)
        return Question(form, ("how", "many", first, "plus", second, "?"), chain, str(total_1 + total_2), depth=2)

    survey = tuple(word for kind in KINDS for word in (kind, str(scene.kinds.count(kind))))
    (winner,) = _most_frequent(scene)
    if form == "most":
        return Question(form, ("which", "kind", "most", "?"), survey, winner, depth=len(KINDS))
    # A color that the winner has, or the answer would be 0 far too often.
    colors = [color for kind, color in zip(scene.kinds, scene.colors, strict=True) if kind == winner]
    color = str(rng.choice(colors))
    chain, total = _count_by_row(scene, winner, color)
    words = ("how", "many", color, "most", "kind", "?")
    return Question(form, words, (*survey, "so", color, winner, *chain), str(total), depth=len(KINDS) + 1)


def _count_by_row(scene: Scene, *words: str) -> tuple[tuple[str, ...], int]:
    """Count the shapes that every word is true of: the count of each row, "=", and the total."""
    cells = zip(scene.kinds, scene.colors, strict=True)
    hits = [bool(kind) and set(words) <= {kind, color} for kind, color in cells]
    rows = [sum(hits[start : start + GRID]) for start in range(0, GRID * GRID, GRID)]
    return (*map(str, rows), "=", str(sum(rows))), sum(rows)


def _most_frequent(scene: Scene) -> list[str]:
    counts = {kind: scene.kinds.count(kind) for kind in KINDS}
    return [kind for kind in KINDS if counts[kind] == max(counts.values())]
