"""Cost of an image's entropy and of its bucket, in Gram products: ``python -m benchmarks.entropy_speed``.

The unit is ``x @ x.T`` of the float32 features of the same images, in the same rounds, on one thread. Exact entropies
are also compared with the eigenvalues of the D x D covariance of the features. Buckets are measured on natural spectra
(eigenvalues k^-a, a between 0.8 and 1.6, in random directions) and on what EfficientNet-Lite0's last convolution makes
of 1,024-pixel crops of scikit-image's photographs, both of 1,024 patches with 1,280 features.

``--images 512`` is the full claim: 3 GiB of memory, ten minutes or more.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from skimage import data
from torch import Tensor
from tqdm import tqdm

from benchmarks.rlvr.encoder import encode_images, load_encoder
from durian_adv import (
    certified,
    certified_entropy_buckets,
    certified_entropy_intervals,
    eigen_entropy,
    quantile_buckets,
)

Row = dict[str, str | float]

GRAM, COVARIANCE = "Gram products", "D x D covariances"
EXACT_SIZES = ((256, 1280), (576, 1280), (300, 3584), (1024, 1280))
COVARIANCE_SIZES = ((256, 1280), (300, 3584))
BUCKET_SIZE = (1024, 1280)
PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "colorwheel", "grass", "gravel"),
    *("hubble_deep_field", "immunohistochemistry", "moon", "page", "retina", "rocket"),
)


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


def natural_images(count: int, patches: int, dim: int, seed: int = 0) -> Tensor:
    """Draw float32 features whose covariance has eigenvalues k^-a, a between 0.8 and 1.6."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(patches - 1, dim)
    left = torch.randn(patches, rank, generator=generator)
    left = torch.linalg.qr(left - left.mean(0)).Q
    right = torch.linalg.qr(torch.randn(dim, rank, generator=generator)).Q
    exponents = 0.8 + 0.8 * torch.rand(count, 1, generator=generator)
    roots = torch.arange(1, rank + 1.0) ** (-exponents / 2)
    images = torch.empty(count, patches, dim)
    for x, root in zip(images, tqdm(roots, desc="natural spectra", leave=False), strict=True):
        # one pair of rotations serves all images, shuffled for each
        rows, columns = (torch.randperm(n, generator=generator) for n in (patches, rank))
        torch.mm(left[rows] * root, right[:, columns].T, out=x)
    return images


def photographs(count: int, pixels: int = 1024, seed: int = 0) -> Tensor:
    """Encode square crops of photographs, enlarged to so many pixels: ``(count, (pixels / 32)^2, 1280)``."""
    rng, encoder, features = np.random.default_rng(seed), load_encoder("head"), []
    for i in tqdm(range(count), desc="photographs", leave=False):
        photo = np.atleast_3d(getattr(data, PHOTOGRAPHS[i % len(PHOTOGRAPHS)])())[..., :3]
        side = int(min(photo.shape[:2]) * rng.uniform(0.4, 1.0))
        top, left = (rng.integers(0, size - side + 1) for size in photo.shape[:2])
        crop = torch.tensor(np.broadcast_to(photo, (*photo.shape[:2], 3))[top : top + side, left : left + side])
        crop = rearrange(crop, "h w c -> 1 c h w").float()
        crop = F.interpolate(crop, (pixels, pixels), mode="bilinear", antialias=True)
        image = rearrange(crop, "1 c h w -> h w c").numpy()
        features.append(rearrange(encode_images(encoder, [image]), "1 d h w -> (h w) d").clone())
    return torch.stack(features)


def timed(functions: Mapping[str, Callable[[], object]], rounds: int, title: str) -> dict[str, list[float]]:
    """Time functions in turn, so that what else the machine does hits them alike; the first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for i in tqdm(range(rounds + 1), desc=title, leave=False):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if i > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def rows(
    case: str, functions: Mapping[str, Callable[[], object]], rounds: int, shape: tuple[int, ...], baseline: str = GRAM
) -> list[Row]:
    """Measure functions against the one that is named as their baseline: seconds an image, and the median ratio."""
    seconds = timed(functions, rounds, case)
    result = []
    for name in functions:
        if name == baseline:
            continue
        p20, p50, p80 = np.quantile(np.array(seconds[name]) / shape[0], (0.2, 0.5, 0.8))
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds[baseline], strict=True))
        size = " x ".join(map(str, shape))
        result.append(
            {"name": f"{case}: {name}", "baseline": baseline, "sizes": size, "p20": p20, "p50": p50, "p80": p80}
            | {"ratio": ratio}
        )
    return result


def exact_rows(rounds: int) -> list[Row]:
    """Exact entropies of one image, against its Gram product and against its covariance."""
    result = []
    for patches, dim in EXACT_SIZES:
        images = natural_images(1, patches, dim)
        functions = {GRAM: partial(grams, images), "eigen_entropy": partial(eigen_entropy, images)}
        result += rows("exact", functions, 4 * rounds, images.shape)
    for patches, dim in COVARIANCE_SIZES:
        images = natural_images(1, patches, dim)
        functions = {"eigen_entropy": partial(eigen_entropy, images), COVARIANCE: partial(by_covariance, images)}
        result += rows("exact", functions, max(1, rounds // 2), images.shape, COVARIANCE)
    return result


def bucket_rows(case: str, images: Tensor, rounds: int) -> list[Row]:
    """Entropies, intervals and buckets of a batch; the buckets must be the exact ones."""
    expected = quantile_buckets(eigen_entropy(images), (0.25, 0.75), boundary="outer")
    with mock.patch.object(certified, "image_entropy", wraps=certified.image_entropy) as solves:
        torch.testing.assert_close(certified_entropy_buckets(images), expected, rtol=0, atol=0)
    functions = {
        GRAM: partial(grams, images),
        "eigen_entropy": partial(eigen_entropy, images),
        "certified_entropy_intervals": partial(certified_entropy_intervals, images),
        "certified_entropy_buckets": partial(certified_entropy_buckets, images),
    }
    result = rows(case, functions, rounds, tuple(images.shape))
    for row in result:
        row["eigensolves"] = {"eigen_entropy": len(images), "certified_entropy_buckets": solves.call_count}.get(
            str(row["name"]).split(": ")[1], 0
        )
    return result


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64, help="images of natural spectrum; 0 for none")
    parser.add_argument("--photographs", type=int, default=32, help="crops of photographs; 0 for none")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = exact_rows(options.rounds)
    if options.images:
        result += bucket_rows("natural", natural_images(options.images, *BUCKET_SIZE), options.rounds)
    if options.photographs:
        result += bucket_rows("photographs", photographs(options.photographs), options.rounds)
    print(
        "| | sizes | ms an image: p20, p50, p80 | baseline | ratio | eigensolves |",
        "|---|---|---|---|---|---|",
        sep="\n",
    )
    for row in result:
        times = ", ".join(f"{1e3 * float(row[p]):.3g}" for p in ("p20", "p50", "p80"))
        print(
            f"| {row['name']} | {row['sizes']} | {times} | {row['baseline']} | {row['ratio']:.3g} |"
            f" {row.get('eigensolves', '')} |"
        )


if __name__ == "__main__":
    main()
