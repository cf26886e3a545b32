"""``eigen_entropy`` against the released package for the entropy of a kernel's eigenvalues, vendi-score: ``make bench``.

The Vendi score of a kernel K of n items is the exponential of the entropy of the eigenvalues of K / n. Its kernel here is
the Gram matrix of the centred patches, scaled to trace n, so both compute one number; that is checked in float64.
"""

import math
import warnings
from functools import partial

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from vendi_score import vendi

from benchmarks import entropy_accuracy, timing
from benchmarks.timing import Case, Function
from durian_adv import eigen_entropy

SIZES = ((64, 1280), (128, 1280), (256, 1280), (576, 1280), (1024, 1280))
MERGED = (300, 3584)  # patches after the merger of a vision tower
DUAL_LIMIT = 256  # patches: the dual form's matrix is always D x D, so one size says it


def prepared(features: Tensor) -> np.ndarray:
    """Return centred patches whose Gram matrix has trace n, ready for vendi-score; not part of what is timed."""
    centred = features - features.mean(0)
    return (centred * math.sqrt(len(features)) / centred.norm()).numpy()


def agree(features: Tensor) -> None:
    """Check in float64 that both compute the same number."""
    exact = features.double()
    ours, theirs = math.exp(eigen_entropy(exact)), vendi.score_X(prepared(exact), normalize=False)
    torch.testing.assert_close(ours, float(theirs), rtol=1e-9, atol=0)


def image(patches: int, dim: int) -> dict[str, Function]:
    """One image of natural spectrum, float32."""
    features = entropy_accuracy.features("power 1", patches, dim, torch.Generator().manual_seed(0)).float()
    agree(features)
    rows = prepared(features)
    functions: dict[str, Function] = {
        "eigen_entropy": partial(eigen_entropy, features),
        "vendi-score, Gram form": partial(vendi.score_X, rows, normalize=False),
    }
    if patches == DUAL_LIMIT:
        functions["vendi-score, dual form"] = partial(vendi.score_dual, rows, normalize=False)
    return functions


def cases() -> list[Case]:
    """List what is measured."""
    figure = "eigen_entropy of one image, 1,280 features, float32"
    return [
        Case(
            f"{patches:,} x {dim:,}",
            partial(image, patches, dim),
            rounds=7,
            figure=figure if (patches, dim) in SIZES else "",
            size=patches,
            size_unit="patches",
        )
        for patches, dim in (*SIZES, MERGED)
    ]


if __name__ == "__main__":
    # vendi-score spells a class of scipy in a way that scipy 1 deprecates
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="vendi_score")
    with threadpool_limits(1):
        timing.run("vendi", cases(), packages=("vendi-score", "scipy"))
