"""The warm policy under the paper's Appendix B: do visual entropy and confidence say where errors are?"""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from einops import rearrange
from torch import Tensor

from benchmarks.rlvr.language import BOX, THINK, decode
from benchmarks.rlvr.prompts import Prompts
from benchmarks.rlvr.questions import Question
from benchmarks.rlvr.rollout import verify
from durian_adv import eigen_entropy, quantile_buckets, sequence_confidence
from durian_adv.data.scoring.efficientnet import LAYERS, encode_images, load_network
from studies.evidence import mechanism, records
from studies.evidence.loop import stream
from studies.evidence.sampling import sample, uniforms
from studies.evidence.suite import Suite, draw

FOLDER = records.RECORDS / "tables"
SAMPLES, SEED = 16, 300
ERRORS = ("perception", "reasoning", "guess", "other")


def main(suite: Suite, folder: Path = FOLDER, *, images: int = 1000) -> None:
    """Measure and write the tables."""
    answers = answer_all(suite)
    for name, rows in (
        ("suite", by_form(suite, answers)),
        ("correlations", [*entropy_correlations(suite, answers, images), *confidence_correlations(suite, answers)]),
        ("errors", errors(suite, answers)),
    ):
        mechanism.write(folder / f"{name}.csv", rows, suite)


def checks(suite: Suite) -> dict[str, Any]:
    """Return what the suite promises: accuracy, and how strongly the clutter dial moves it within a form."""
    rows = by_form(suite, answer_all(suite))
    return {row["form"]: {name: round(value, 3) for name, value in row.items() if name != "form"} for row in rows}


def answer_all(suite: Suite) -> dict[str, Any]:
    """Let the warm policy answer every held-out prompt 16 times and keep what the tables need of it."""
    policy, exam, rng = suite.policy(), suite.exam, stream(SEED, 0, 0)
    kinds = torch.zeros(len(exam.questions), SAMPLES, dtype=torch.long)
    correct, total, mean, formatted = (torch.zeros(len(exam.questions), SAMPLES) for _ in range(4))
    for rows in torch.arange(len(exam.questions)).split(100):
        part = Prompts(exam.scenes[rows], [exam.questions[row] for row in rows], exam.question_tokens[rows])
        rollouts = sample(policy, suite.held_out, part, uniforms(len(rows), SAMPLES, rng))
        rewards, right = verify(part, rollouts)
        correct[rows], formatted[rows] = right.float(), ((rewards - 0.9 * right.float()) > 0.05).float()
        total[rows] = sequence_confidence(rollouts.logprobs, rollouts.mask)
        mean[rows] = sequence_confidence(rollouts.logprobs, rollouts.mask, reduction="mean")
        for row, question, group in zip(rows.tolist(), part.questions, rollouts.tokens, strict=True):
            kinds[row] = torch.tensor([ERRORS.index(kind_of_error(decode(tokens), question)) for tokens in group])
    return {"correct": correct, "sum": total, "mean": mean, "kinds": kinds, "formatted": formatted}


def kind_of_error(response: str, question: Question) -> str:
    """Tell what a wrong response got wrong first: what it saw, what it made of it, or that it only guessed.

    The numbers that stand in a chain before any conclusion are what was seen; the rest must follow from them.
    """
    thoughts = response.split(BOX)[0].replace(THINK, "").replace("</think>", "").split()
    if "guess" in thoughts:
        return "guess"
    if _frame(thoughts) != _frame(question.chain):
        return "other"  # another chain than the question asks for
    return "reasoning" if _seen(thoughts) == _seen(question.chain) else "perception"


def by_form(suite: Suite, answers: dict[str, Any]) -> list[dict[str, Any]]:
    """Return accuracy and its rank correlations within each form of question, and over all of them."""
    accuracy, forms = answers["correct"].mean(1).numpy(), _forms(suite)
    clutter, entropy = _clutter(suite), suite.held_out.visual_entropy[suite.exam.scenes].numpy()
    effective = ((answers["correct"][:, :8].sum(1) % 8) > 0).float().numpy()
    rows = []
    for form in [*sorted(set(forms)), "all forms"]:
        some = (forms == form) | (form == "all forms")
        depths = [question.depth for question, chosen in zip(suite.exam.questions, some, strict=True) if chosen]
        rows.append(
            {
                "form": form,
                "prompts": int(some.sum()),
                "depth": float(np.mean(depths)),
                "accuracy": float(accuracy[some].mean()),
                "formatted": float(answers["formatted"].numpy()[some].mean()),
                "effective": float(effective[some].mean()),
                "clutter_accuracy": _rank(clutter[some], accuracy[some]),
                "entropy_accuracy": _rank(entropy[some], accuracy[some]),
            }
        )
    weights = [row["prompts"] for row in rows[:-1]]
    within = {
        name: float(np.average([row[name] for row in rows[:-1]], weights=weights))
        for name in ("clutter_accuracy", "entropy_accuracy")
    }
    return [*rows, rows[-1] | {"form": "mean within forms", **within}]


def entropy_correlations(suite: Suite, answers: dict[str, Any], images: int) -> list[dict[str, Any]]:
    """Return the rank correlations of visual entropy, by layer, with what is known of an image."""
    scenes = [scene for scene, _ in zip(draw(suite.settings, "held_out"), range(images), strict=False)]
    clutter = np.array([scene.clutter for scene in scenes])
    objects = np.array([sum(map(bool, scene.kinds)) for scene in scenes])
    photographs = np.array([scene.photograph for scene in scenes])
    accuracy = answers["correct"].mean(1).numpy()[: len(scenes)]  # question k is about scene k
    rows = []
    for layer in LAYERS:
        encoder = load_network(layer)
        entropy = torch.cat([_entropy(encoder, [scene.image]) for scene in scenes]).numpy()
        rows += [
            {"score": f"entropy, {layer}", "with": "clutter", "value": _rank(entropy, clutter)},
            {"score": f"entropy, {layer}", "with": "objects", "value": _rank(entropy, objects)},
            {"score": f"entropy, {layer}", "with": "accuracy", "value": _rank(entropy, accuracy)},
            {"score": f"entropy, {layer}", "with": "photograph (eta)", "value": _eta(entropy, photographs)},
        ]
    return rows


def confidence_correlations(suite: Suite, answers: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rank correlations of a prompt's confidence, both reductions, with accuracy and depth."""
    depth = np.array([question.depth for question in suite.exam.questions])
    accuracy = answers["correct"].mean(1).numpy()
    rows = []
    for reduction in ("sum", "mean"):
        confidence = answers[reduction].mean(1).numpy()
        for name, other in (("accuracy", accuracy), ("depth", depth)):
            rows.append({"score": f"confidence, {reduction}", "with": name, "value": _rank(confidence, other)})
        within = [
            _rank(confidence[_forms(suite) == form], accuracy[_forms(suite) == form]) for form in set(_forms(suite))
        ]
        rows.append(
            {"score": f"confidence, {reduction}", "with": "accuracy within a form", "value": float(np.mean(within))}
        )
    return rows


def errors(suite: Suite, answers: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the share of the errors of each kind by bucket of entropy (quartiles as in eq. 10) and of confidence."""
    wrong = answers["correct"] == 0
    entropy = suite.held_out.visual_entropy[suite.exam.scenes]
    buckets = {
        "entropy": quantile_buckets(entropy, (0.25, 0.75), boundary="outer"),
        "entropy thirds": quantile_buckets(entropy, 3),
        "confidence, sum": quantile_buckets(answers["sum"].mean(1), 10),
        "confidence, mean": quantile_buckets(answers["mean"].mean(1), 10),
    }
    rows = []
    for score, bucket in buckets.items():
        for kind in ("any", *ERRORS):
            those = wrong if kind == "any" else wrong & (answers["kinds"] == ERRORS.index(kind))
            for number in range(int(bucket.max()) + 1):
                some = those[bucket == number]
                share, rate = some.sum() / those.sum().clamp(min=1), some.float().mean()
                row = {"score": score, "errors": kind, "bucket": number, "prompts": len(some)}
                rows.append(row | {"share": float(share), "rate": float(rate)})
    return rows


def _frame(words: Any) -> list[str]:
    return [word if not word.isdigit() else "n" for word in words]


def _seen(words: Any) -> list[str]:
    """Return the numbers of a chain that are not a total."""
    return [word for before, word in pairwise(["", *words]) if word.isdigit() and before != "="]


@torch.inference_mode()
def _entropy(encoder: torch.nn.Module, images: list[np.ndarray]) -> Tensor:
    return eigen_entropy(rearrange(encode_images(encoder, images), "b d h w -> b (h w) d"))


def _forms(suite: Suite) -> np.ndarray:
    return np.array([question.form for question in suite.exam.questions])


def _clutter(suite: Suite) -> np.ndarray:
    return np.array([scene.clutter for scene in suite.held_out.scenes])[suite.exam.scenes.numpy()]


def _rank(one: np.ndarray, other: np.ndarray) -> float:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan  # as a few prompts may all have one accuracy
    return float(scipy.stats.spearmanr(one, other).statistic)


def _eta(values: np.ndarray, groups: np.ndarray) -> float:
    """Return the correlation ratio of ranks: the root of the share of their variance that lies between groups."""
    ranks = scipy.stats.rankdata(values)
    means = {group: ranks[groups == group].mean() for group in set(groups)}
    between = np.mean([(means[group] - ranks.mean()) ** 2 for group in groups])
    return float(np.sqrt(between / ranks.var()))
