"""Prompts: a question about a scene each, batched."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.rlvr.encoder import Gallery
from benchmarks.rlvr.language import QUESTION_LENGTH, encode
from benchmarks.rlvr.questions import Question, ask


@dataclass(frozen=True)
class Prompts:
    """B prompts on scenes of one gallery."""

    scenes: Tensor  # (B,) which scene of the gallery
    questions: list[Question]
    question_tokens: Tensor  # (B, QUESTION_LENGTH)


def sample_prompts(gallery: Gallery, count: int, rng: np.random.Generator) -> Prompts:
    """Ask one question about each of `count` different scenes."""
    return ask_about(gallery, rng.choice(len(gallery.scenes), size=count, replace=False), rng)


def ask_about(gallery: Gallery, scenes: np.ndarray, rng: np.random.Generator) -> Prompts:
    """Ask one question about each of the given scenes."""
    questions = [ask(gallery.scenes[scene], rng) for scene in scenes]
    tokens = encode([question.words for question in questions], QUESTION_LENGTH)
    return Prompts(torch.from_numpy(scenes), questions, tokens)
