"""Certified entropies: intervals around an eigen-entropy without eigenvalues, and the buckets that they prove."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import reduce
from torch import Tensor

from durian_adv._src import checks, exact
from durian_adv._src.buckets import bucket_numbers
from durian_adv._src.entropy import (
    all_finite,
    by_size,
    centered,
    check_features,
    full_precision,
    gram,
    image_entropy,
    images_of,
    max_rank,
    one_at_a_time,
    prepared,
)
from durian_adv._src.operators import operator

_SMALL_SIDE = 320  # up to here eigenvalues cost hardly more than an interval
# A Krylov block has a 32nd of the Gram matrix's columns, four have an eighth: more prove more, and cost as much again.
_BLOCKS, _KRYLOV_STEPS = 32, 4
_SLACK = 32  # rounding of a sum of squared Ritz values, in units of eps times the purity
# Twice the largest error that eigen_entropy may have: for its result and for the rounding of the bounds. Seen: 5e-6.
_ALLOWANCE = {torch.float32: 2e-4, torch.float64: 1e-9}
_AT_ONCE = 8  # exact entropies that a GPU is asked for together: more save waits, and may be more than are needed


def certified_entropy_intervals(
    features: Tensor, *, mask: Tensor | None = None, lengths: Tensor | Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    r"""Bounds on the eigen-entropy of each image, in nats, from matrix products instead of eigenvalues.

    The Gram matrix of the centered patches has trace one, rank at most R and purity :math:`\pi`, its squared Frobenius
    norm. Let :math:`l_1 \ge \dots \ge l_k` not exceed its k largest eigenvalues one by one, as the Ritz values of any
    subspace do; :math:`t = 1 - \sum_i l_i` and :math:`q = \pi - \sum_i l_i^2`. Then, for all c and c' in
    :math:`(0, l_k]`,

    .. math:: t (1 - \log c) - \frac{q}{c} \;\le\; H + \sum_i l_i \log l_i \;\le\; (R - k) c' - t (1 + \log c')

    Of a block Krylov space's Ritz values the best k is taken for each side, with :math:`c = \min(q / t, l_k)` and
    :math:`c' = \min(t / (R - k), l_k)`. Both bounds are widened for rounding, by 2e-4 nats (1e-9 for float64). Images
    of at most 320 patches or features have their exact entropy instead, widened alike.

    Args:
        features: ``(..., P, D)``, or ``(sum(lengths), D)`` with ``lengths``.
        mask: ``(..., P)`` bool or numeric, nonzero where a patch is real.
        lengths: patches of each image, for features packed one image after the other: 1-D integers.

    Returns:
        ``(low, high)``, each of the shape and dtype of ``eigen_entropy``, whose result lies between them as the exact
        entropy does; NaN where that is NaN.

    Raises:
        TypeError, ValueError: as ``eigen_entropy``.

    Source: derived in ``docs/certified-buckets.md``.

    >>> import torch
    >>> low, high = certified_entropy_intervals(torch.eye(401))  # 400 equal eigenvalues
    >>> bool(low <= torch.tensor(400.0).log() <= high), bool(high - low < 1e-3)
    (True, True)
    """
    features, mask, sizes = check_features(features, mask, lengths)
    low, high = _intervals(features, mask, sizes)
    return low, high


def certified_entropy_buckets(
    features: Tensor,
    *,
    quantiles: int | Sequence[float] = (0.25, 0.75),
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
) -> Tensor:
    """Number the perceptual bucket of each image, with eigenvalues only where it is not proved without them.

    The result is that of ``quantile_buckets(eigen_entropy(features), quantiles, boundary="outer")``. Only the ranks of
    the entropies matter to it, so most images are placed by an interval around their entropy
    (``certified_entropy_intervals``). The others get their exact entropy, one at a time (8 on a GPU), the nearest to a
    threshold first, until the intervals that are left prove the rest.

    Args:
        features: ``(B, P, D)``, or ``(sum(lengths), D)`` with ``lengths``.
        quantiles: increasing levels in (0, 1), or a number of equally probable buckets.
        mask: ``(B, P)`` bool or numeric, nonzero where a patch is real.
        lengths: patches of each image, for features packed one image after the other: 1-D integers.

    Returns:
        int64 ``(B,)``: 0 to K for K thresholds, and K + 1 where the entropy is NaN.

    Raises:
        TypeError, ValueError: as ``eigen_entropy`` and ``quantile_buckets``; features that are not one batch of images.

    Source: Durian (arXiv 2602.21743), eqs. 5-10; proof and conditions in ``docs/certified-buckets.md``.

    >>> import torch
    >>> corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    >>> images = torch.stack([corners * torch.tensor([1.0, side]) for side in (0.0, 0.1, 0.5, 1.0)])
    >>> certified_entropy_buckets(images)
    tensor([0, 1, 1, 2])
    """
    levels = checks.levels("quantiles", quantiles)
    features, mask, sizes = check_features(features, mask, lengths)
    if sizes is None:
        checks.ndim("features", features, 3, "(B, P, D), or (sum(lengths), D) with lengths")
    count, positions = (levels, []) if isinstance(levels, int) else (0, list(levels))
    buckets: Tensor = _buckets(features, mask, sizes, count, positions)
    return buckets


def _entropy_intervals(features: Tensor, mask: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = exact.result_dtype(features.dtype)
    low, high = _bounds(*images_of(features, mask, lengths), features)
    known = _ALLOWANCE[dtype] * (low == high).to(low.dtype)  # times a bool it would be of the default dtype
    shape = features.shape[:-2] if lengths is None else lengths.shape
    low, high = (low - known).clamp(min=0.0).to(dtype), (high + known).to(dtype)
    return low.reshape(shape), high.reshape(shape)


def _entropy_buckets(
    features: Tensor, mask: Tensor | None, lengths: Tensor | None, count: int, positions: Sequence[float]
) -> Tensor:
    dtype = exact.result_dtype(features.dtype)
    sizes, images = images_of(features, mask, lengths)

    def entropies(some: list[int]) -> Tensor:
        def chosen(of: list[int]) -> Tensor:
            return images([some[i] for i in of])

        with full_precision(features.device):
            return by_size([sizes[i] for i in some], chosen, features, image_entropy).to(dtype).cpu()

    levels = count if count > 0 else tuple(positions)
    low, high = _bounds(sizes, images, features)
    at_once = 1 if one_at_a_time(features.device) else _AT_ONCE
    return proved_buckets(low.cpu(), high.cpu(), levels, entropies, at_once).to(features.device)


def _intervals_fake(features: Tensor, mask: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = features.shape[:-2] if lengths is None else lengths.shape
    low, high = (features.new_empty(shape, dtype=exact.result_dtype(features.dtype)) for _ in range(2))
    return low, high


def _buckets_fake(
    features: Tensor, mask: Tensor | None, lengths: Tensor | None, count: int, positions: Sequence[float]
) -> Tensor:
    return features.new_empty((features if lengths is None else lengths).shape[:1], dtype=torch.int64)


# torch.compile could not trace how many images need eigenvalues.
_intervals = operator(
    "entropy_intervals(Tensor features, Tensor? mask, Tensor? lengths) -> (Tensor, Tensor)",
    _entropy_intervals,
    _intervals_fake,
)
_buckets = operator(
    "entropy_buckets(Tensor features, Tensor? mask, Tensor? lengths, SymInt count, float[] positions) -> Tensor",
    _entropy_buckets,
    _buckets_fake,
)


def _bounds(sizes: list[int], images: Callable[[list[int]], Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds on what ``eigen_entropy`` returns for each image, equal where they are that."""
    with full_precision(like.device):
        bounds = by_size(sizes, images, like, _bounds_of_size)
    low, high = bounds.reshape(-1, 2).unbind(1)
    return low, high


def _bounds_of_size(patches: Tensor) -> Tensor:
    """Bounds ``(..., 2)`` of images of one size, ``patches (..., P, D)``."""
    dtype = exact.result_dtype(patches.dtype)
    if min(patches.shape[-2:]) <= _SMALL_SIDE:
        entropies = image_entropy(patches)
        # as eigen_entropy rounds it: ties must stay ties
        return entropies.to(dtype).to(entropies.dtype)[..., None].expand(*entropies.shape, 2)
    low, high = interval(prepared(patches))
    allowance = _ALLOWANCE[dtype] * (high > 0).to(high.dtype)  # a constant image, which has no spectrum, is known
    return torch.stack([(low - allowance).clamp(min=0.0), high + allowance], -1)


def interval(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds on the entropy of ``patches (..., P, D)``, all real, without allowance for rounding: ``(...)`` each."""
    working = exact.working_dtype(patches.device)
    matrix = gram(centered(patches))
    # summed in double precision: in float32 the rounding of rows of like numbers adds up instead of canceling
    trace = exact.safe_divisor(matrix.diagonal(dim1=-2, dim2=-1).to(working).sum(-1))
    purity = torch.linalg.vector_norm(matrix, dim=-1, dtype=working).square().sum(-1) / trace.square()
    purity = purity * (1 + _SLACK * torch.finfo(matrix.dtype).eps)  # too large a purity only lowers the lower bound
    low, high = entropy_bounds(ritz_values(matrix) / trace[..., None], purity, max_rank(*patches.shape[-2:]))
    finite = all_finite(patches)
    return low.where(finite, torch.nan), high.where(finite, torch.nan)


def entropy_bounds(ritz: Tensor, purity: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Bounds on the entropy of a spectrum of sum one, for lower bounds ``ritz (..., r)`` of its r largest values.

    ``purity (...)`` is the sum of its squares, or more; ``rank`` is how many values can differ from zero. A purity of 0
    says that there is no spectrum: both bounds are 0.
    """
    tiny = torch.finfo(ritz.dtype).tiny
    ritz = ritz.clamp(min=0.0).sort(-1, descending=True).values[..., :rank]
    none = torch.zeros_like(purity)[..., None]
    # a product, as cumsum has no deterministic form on a GPU and raises where one is asked for
    up_to = ritz.new_ones(ritz.shape[-1], ritz.shape[-1]).triu()

    def sums(terms: Tensor) -> Tensor:
        return torch.cat([none, terms @ up_to], -1)  # over the first k = 0, 1, ..., r

    top = sums(torch.special.entr(ritz))
    rest = (1 - sums(ritz)).clamp(min=tiny)
    others = rank - torch.arange(ritz.shape[-1] + 1, device=ritz.device)
    # no sum of so many squares is less, whatever rounding says; without a floor 1 / c multiplies the error of the rest
    least = rest.square() / others.clamp(min=1)
    rest_squared = torch.maximum(purity[..., None] - sums(ritz.square()), least)
    smallest = torch.cat([none + torch.inf, ritz], -1)
    # beyond the smallest of the k values neither bound would hold
    c = torch.minimum(rest_squared / rest, smallest).clamp(min=tiny)
    low = (top + rest * (1 - c.log()) - rest_squared / c).amax(-1)
    c = torch.minimum(rest / others.clamp(min=1), smallest).clamp(min=tiny)
    high = (top + others * c - rest * (1 + c.log())).amin(-1)
    # rounding must not bring an upper bound down to 0, which only an image without a spectrum has
    return torch.where(purity > 0, low, 0.0).clamp(min=0.0), torch.where(purity > 0, high.clamp(min=tiny), 0.0)


def ritz_values(matrix: Tensor) -> Tensor:
    """Lower bounds ``(..., r)`` of the r largest eigenvalues of symmetric matrices ``(..., n, n)``, one by one.

    They are the eigenvalues of ``Q'AQ`` divided by a bound on those of ``Q'Q``, which holds for any Q. Here Q is an
    orthonormal basis of a block Krylov space that starts from sums of neighboring columns. Where the matrix is not
    finite they are arbitrary numbers.
    """
    side, working = matrix.shape[-1], exact.working_dtype(matrix.device)
    width = max(1, side // _BLOCKS)
    image = reduce(matrix[..., : side // width * width], "... n (block group) -> ... n block", "sum", block=width)
    basis = images = image[..., :0]
    for _ in range(_KRYLOV_STEPS):
        block = image / exact.safe_divisor(torch.linalg.vector_norm(image, dim=-2, keepdim=True))
        for _ in range(2):  # a second time for what rounding left of the first
            block = _orthonormal(block - basis @ (basis.mT @ block))
        image = matrix @ block
        basis, images = torch.cat([basis, block], -1), torch.cat([images, image], -1)
    projected = (basis.mT @ images).to(working).nan_to_num(0.0, 0.0, 0.0)
    basis = basis.to(working)
    largest = (basis.mT @ basis).abs().sum(-1).amax(-1)
    values: Tensor = torch.linalg.eigvalsh((projected + projected.mT) / 2)
    return values / exact.safe_divisor(largest)[..., None]


def _orthonormal(block: Tensor) -> Tensor:
    """Orthonormal columns that span those of ``block (..., n, b)``; zeros for what depends on the columns before."""
    wide = block.to(exact.working_dtype(block.device))
    products = wide.mT @ wide
    # without it rounding could make a product of dependent columns indefinite; it leaves them shorter than the others
    products.diagonal(dim1=-2, dim2=-1).add_(8 * block.shape[-1] * torch.finfo(wide.dtype).eps)
    factor = torch.linalg.cholesky_ex(products).L
    columns = torch.linalg.solve_triangular(factor, wide.mT, upper=False).mT
    return torch.where(columns.square().sum(-2, keepdim=True) > 0.5, columns, 0.0).to(block.dtype)


def proved_buckets(
    low: Tensor,
    high: Tensor,
    levels: int | tuple[float, ...],
    entropies: Callable[[list[int]], Tensor],
    at_once: int = 1,
) -> Tensor:
    """Compute ``quantile_buckets`` with boundary "outer" for scores known to lie in ``low <= score <= high``, ``(B,)``.

    ``entropies(numbers)`` are scores, asked for where the intervals do not prove a bucket, at most ``at_once`` of them
    together. NaN bounds are a score of NaN.
    """
    low, high = low.clone(), high.clone()
    known = int((~low.isnan()).sum())
    # Buckets change between two neighbors in rank. A score that is certainly under the upper one of them is at most
    # the lower one, and conversely, so nothing but its side of the pair matters.
    upper = bucket_numbers(torch.arange(known, device=low.device), levels, "outer").diff().nonzero()[:, 0] + 1
    while len(upper) > 0:
        least = low.sort().values[upper]  # of the upper neighbor
        most = high.sort().values[upper - 1]  # of the lower neighbor
        undecided = (low < high)[:, None] & ~((high[:, None] < least) | (low[:, None] > most))
        distance = torch.where(undecided, ((low + high)[:, None] - (least + most)).abs(), torch.inf).amin(1)
        nearest = distance.topk(min(at_once, len(distance)), largest=False)
        some = nearest.indices[nearest.values < torch.inf]
        if len(some) == 0:
            break
        low[some] = high[some] = entropies(some.tolist()).to(low.dtype)
    return bucket_numbers(low, levels, "outer")  # any scores within the bounds have these buckets
