"""How far eigen-entropies are from a float64 singular value decomposition: ``python -m benchmarks.entropy_accuracy``.

Prints a Markdown table: the largest error in nats over twelve spectra, for the library in float32 and float64, and for
the plain way to compute it in float32 (the same Gram matrix, negative eigenvalues clamped to zero).
"""

import torch
from torch import Tensor
from tqdm import tqdm

from durian_adv import eigen_entropy

SIZES = ((64, 112), (256, 1280), (1024, 1280))
SPECTRA = ("gaussian", "offset", "rank 1", "rank 3", "power 1", "power 2", "power 3", "power 6")
SPECTRA += ("axes 2", "axes 4", "hot 3", "diagonal")


def features(spectrum: str, patches: int, dim: int, generator: torch.Generator) -> Tensor:
    """Draw ``(patches, dim)`` float64 features; ``power a`` has eigenvalues k^-a in random directions.

    The features of ``axes a`` have variances k^-a. Of ``hot n``, n features have 1e4 times the others' variance.
    Of ``diagonal``, every patch has a feature of its own, of size 1 / k.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    kind, _, number = spectrum.partition(" ")
    if kind == "rank":
        return normal(patches, int(number)) @ normal(int(number), dim)
    if kind == "power":
        n = min(patches, dim)
        scale = torch.arange(1, n + 1, dtype=torch.float64) ** (-float(number) / 2)
        return torch.linalg.qr(normal(patches, n)).Q * scale @ torch.linalg.qr(normal(dim, n)).Q.T
    k = torch.arange(1, dim + 1, dtype=torch.float64)
    if kind == "axes":
        return normal(patches, dim) * k ** (-float(number) / 2)
    if kind == "hot":
        return normal(patches, dim) * torch.where(k <= int(number), 100.0, 1.0)
    if kind == "diagonal":
        return torch.eye(patches, dim, dtype=torch.float64) / k
    return normal(patches, dim) + (100 if kind == "offset" else 0)


def by_svd(x: Tensor) -> float:
    """Entropy in float64 from singular values, whose squares keep what a Gram matrix rounds away."""
    x = x.double()
    p = torch.linalg.svdvals(x - x.mean(0)) ** 2
    return float(torch.special.entr(p / p.sum()).sum())


def clamped(x: Tensor) -> float:
    """Entropy from the eigenvalues of the Gram matrix, negative ones taken as zero."""
    x = x - x[0]
    x = x - x.mean(0)
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    p = torch.linalg.eigvalsh(gram / gram.trace()).clamp(min=0)
    return float(torch.special.entr(p / p.sum()).sum())


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    rows = []
    with tqdm(total=len(SIZES) * len(SPECTRA)) as bar:
        for patches, dim in SIZES:
            worst = [0.0, 0.0, 0.0]
            for spectrum in SPECTRA:
                exact = features(spectrum, patches, dim, generator)
                single = exact.float()
                errors = (
                    float(eigen_entropy(single)) - by_svd(single),
                    clamped(single) - by_svd(single),
                    float(eigen_entropy(exact)) - by_svd(exact),
                )
                worst = [max(w, abs(e)) for w, e in zip(worst, errors, strict=True)]
                bar.update()
            rows.append(f"| {patches} x {dim} | " + " | ".join(f"{w:.0e}" for w in worst) + " |")
    print("| patches x features | float32, as computed here | float32, negative eigenvalues clamped | float64 |")
    print("|---|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
    main()
