"""Cost of ``eigen_entropy``, against vendi-score, the released package for entropies of eigenvalues: ``make bench``.

The Vendi score of a kernel K of n items is the exponential of the entropy of the eigenvalues of K / n. Here its kernel
is the Gram matrix of the centred patches, scaled to trace n, so both compute one number; that is checked in float64.
"""

import math
import warnings
from functools import partial

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from vendi_score import vendi

from benchmarks import entropy_accuracy, timing
from benchmarks.timing import Case, Function
from durian_adv import eigen_entropy

SIZES = ((64, 1280), (128, 1280), (256, 1280), (576, 1280), (1024, 1280))
MERGED = (300, 3584)  # patches after the merger of a vision tower
DUAL_AT = 256  # patches: the dual form's matrix is D x D at all sizes, so one says it


def score_gram(features: np.ndarray) -> float:
    """Compute the Vendi score of the patches by the n x n kernel."""
    return float(vendi.score_X(centred(features), normalize=False))


def score_dual(features: np.ndarray) -> float:
    """Compute the Vendi score of the patches by the D x D matrix, which has the same nonzero eigenvalues."""
    return float(vendi.score_dual(centred(features), normalize=False))


def centred(features: np.ndarray) -> np.ndarray:
    """Centre the patches and scale them so that the diagonal of their kernel is 1 on average."""
    x = features - features.mean(0)
    return x * np.sqrt(len(x) / (x * x).sum(dtype=np.float64)).astype(x.dtype)


def image(patches: int, dim: int) -> dict[str, Function]:
    """One image of natural spectrum, float32."""
    exact = entropy_accuracy.features("power 1", patches, dim, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(math.log(score_gram(exact.numpy())), float(eigen_entropy(exact)), rtol=0, atol=1e-9)
    features = exact.float()
    functions: dict[str, Function] = {
        "vendi-score, Gram form": partial(score_gram, features.numpy()),
        "eigen_entropy": partial(eigen_entropy, features),
    }
    if patches == DUAL_AT:
        functions["vendi-score, dual form"] = partial(score_dual, features.numpy())
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
