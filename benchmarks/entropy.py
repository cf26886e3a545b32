"""Cost of an image's entropy and of its bucket, against Gram products and released code: ``make bench``.

``Gram product`` is ``x @ x.T`` of the same float32 features, on one thread. The Vendi score of a kernel K of n items is
the exponential of the entropy of the eigenvalues of K / n; its kernel here is the Gram matrix of the centered patches,
scaled to trace n, so vendi-score computes the same number, which is checked in float64. ``--images 512`` measures the
buckets of that many images of natural spectrum alone, a whole training batch, into a record of its own: 3 GiB of
memory, 12 minutes.
"""

import argparse
import math
import warnings
from functools import partial
from unittest import mock

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from vendi_score import vendi

from benchmarks import timing
from benchmarks.images import natural_images, photographs
from benchmarks.records import Measurement
from benchmarks.timing import Case, Function
from durian_adv import certified_entropy_buckets, certified_entropy_intervals, eigen_entropy, quantile_buckets
from durian_adv._src import certified

GRAM, EXACT, COVARIANCE = "Gram product", "eigen_entropy", "D x D covariance"
BUCKETS = "certified_entropy_buckets"
ON_GRAM = {(256, 1280): "<= 3", (576, 1280): "<= 3", (1024, 1280): "<= 3.5", (300, 3584): "<= 3"}
ON_COVARIANCE = {(256, 1280): ">= 15", (300, 3584): ">= 80"}
SIZES = ((64, 1280), (128, 1280), (256, 1280), (576, 1280), (1024, 1280), (300, 3584))
DRAWN = 1280  # features of the sizes that make a curve


def grams(images: Tensor) -> None:
    """Multiply all pairs of patches of each image: the unit of cost."""
    for x in images:
        x @ x.T


def by_covariance(images: Tensor) -> Tensor:
    """Entropies from the D x D covariance of the features, the form that the equations are written in."""
    entropies = []
    for x in images:
        p = torch.linalg.eigvalsh(torch.cov(x.T)).clamp(min=0)
        entropies.append(torch.special.entr(p / p.sum()).sum())
    return torch.stack(entropies)


def vendi_score(features: np.ndarray) -> float:
    """Return the Vendi score of the patches, whose logarithm is their eigen-entropy."""
    x = features - features.mean(0)
    x = x * np.sqrt(len(x) / (x * x).sum(dtype=np.float64)).astype(x.dtype)
    return float(vendi.score_X(x, normalize=False))


def image(patches: int, dim: int) -> dict[str, Function]:
    """One image of natural spectrum."""
    images = natural_images(1, patches, dim)
    wide = images.double()
    np.testing.assert_allclose(math.log(vendi_score(wide[0].numpy())), float(eigen_entropy(wide)), rtol=0, atol=1e-9)
    torch.testing.assert_close(by_covariance(wide), eigen_entropy(wide), rtol=0, atol=1e-9)
    return {
        GRAM: partial(grams, images),
        EXACT: partial(eigen_entropy, images),
        "vendi-score": partial(vendi_score, images[0].numpy()),
        COVARIANCE: partial(by_covariance, images),
    }


def batch(images: Tensor) -> dict[str, Function]:
    """Entropies, intervals and buckets of a batch."""
    return {
        f"{GRAM}s": partial(grams, images),
        EXACT: partial(eigen_entropy, images),
        "certified_entropy_intervals": partial(certified_entropy_intervals, images),
        BUCKETS: partial(certified_entropy_buckets, images),
    }


def buckets_of(images: Tensor) -> dict[str, Function]:
    """Buckets of a batch that is too large for all of them in turns."""
    return {name: function for name, function in batch(images).items() if name in (f"{GRAM}s", BUCKETS)}


def solved(case: str, images: Tensor) -> Measurement:
    """Check that the buckets are the exact ones, and count the images whose eigenvalues they needed."""
    with mock.patch.object(certified, "image_entropy", wraps=certified.image_entropy) as solve:
        buckets = certified_entropy_buckets(images)
    expected = quantile_buckets(eigen_entropy(images), (0.25, 0.75), boundary="outer")
    torch.testing.assert_close(buckets, expected, rtol=0, atol=0)
    count = [float(solve.call_count)], [float(len(images))]
    return timing.compare(case, (f"{BUCKETS}, eigenvalues needed", count[0]), ("all images", count[1]), "images")


def cases() -> list[Case]:
    """List what is measured of single images."""
    return [
        Case(
            f"one image, {patches:,} x {dim:,}",
            partial(image, patches, dim),
            targets={
                **({(EXACT, GRAM): ON_GRAM[patches, dim]} if (patches, dim) in ON_GRAM else {}),
                **({(COVARIANCE, EXACT): ON_COVARIANCE[patches, dim]} if (patches, dim) in ON_COVARIANCE else {}),
            },
            rounds=9 if dim == DRAWN else 4,
            figure="entropy of one image, 1,280 features, float32" if dim == DRAWN else "",
            size=patches,
            size_unit="patches",
        )
        for patches, dim in SIZES
    ]


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.entropy", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, help="measure this many images of natural spectrum, and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # vendi-score spells a class of scipy in a way that scipy 1 deprecates
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="vendi_score")
    count = options.images or 24
    batches = [(f"{count} images of natural spectrum, 1,024 x 1,280", natural_images(count, 1024, 1280), 1.8)]
    if not options.images:
        batches.append(("10 photographs, 1,024 x 1,280", photographs(10), 2.0))
    build = buckets_of if options.images else batch
    wholes = [
        Case(
            name,
            partial(build, images),
            targets={(BUCKETS, f"{GRAM}s"): f"<= {target}"},
            rounds=2 if options.images else 3,
        )
        for name, images, target in batches
    ]
    with threadpool_limits(1):
        counts = [solved(name, images) for name, images, _ in batches]
        if options.images:
            timing.run(f"entropy_of_{options.images}_images", wholes, extra=counts)
        else:
            timing.run("entropy", [*cases(), *wholes], packages=("vendi-score", "scipy"), extra=counts)


if __name__ == "__main__":
    main()
