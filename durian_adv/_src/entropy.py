"""Eigen-entropy of an image's patch features: how much there is to see."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from einops import rearrange
from torch import Tensor

from durian_adv._src import checks, exact
from durian_adv._src.errors import ArgumentError, ArgumentTypeError
from durian_adv._src.operators import operator

_SMALL_SIDE = 64  # up to here everything runs in float64
_SMALL_SOLVE = 384  # up to here eigenvalues do, for at most 0.6 Gram products more
_GROUP_ELEMENTS = 2**27  # of features and Gram matrices that a GPU works on at a time: four copies are 2 GiB in float32
_GRAM_ROWS = 64  # of a Gram matrix at a time: 0.6 of the time of all rows at once, 64 to 128 being the best


def eigen_entropy(
    features: Tensor,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    normalize: bool = False,
) -> Tensor:
    r"""Entropy of the normalized eigenvalues of the covariance of an image's patch features, in nats.

    With :math:`F_c` the ``P x D`` features minus their mean patch and :math:`\lambda_k` the eigenvalues of
    :math:`F_c F_c^T / (P - 1)`,

    .. math:: H = -\sum_k p_k \log p_k, \qquad p_k = \lambda_k / \sum_j \lambda_j, \qquad 0 \le H \le \log\min(P-1, D)

    ``D x D`` and ``P x P`` covariances have the same nonzero eigenvalues, so the smaller is used. On a CPU images are
    worked through one by one: beyond the input, memory is needed for a few copies of one image's features and Gram
    matrix, and an image's entropy depends on its own real patches only, never on its batch or on padding. On a GPU
    images of one size share products and eigensolver, in groups that take about 2 GiB (4 for float64, or a few copies
    of one image if that is more); how many they are may show in the last bits, within the accuracy stated below.

    Args:
        features: ``(..., P, D)``, or ``(sum(lengths), D)`` with ``lengths``.
        mask: ``(..., P)`` bool or numeric, nonzero where a patch is real. Masked patches influence nothing.
        lengths: patches of each image, for features packed one image after the other: 1-D integers.
        normalize: divide by ``log(min(P - 1, D))``, P the real patches: entropies between 0 and 1 that can be compared
            across image sizes. An image that can have only one nonzero eigenvalue has 0.

    Returns:
        ``(...)``, or ``(len(lengths),)``; float64 for float64 features, else float32. Exactly 0 for constant features
        and for a single patch; NaN for an image without a patch or with a non-finite feature in a real patch. Within
        1e-12 nats for float64 features. For others, of the values as given: within 2e-6 at full rank (5e-6 where both
        ``P`` and ``D`` are over 384), and within 1e-4 at any rank. Autocast and the caller's precision of float32
        products (TF32, bfloat16) do not lower this.

    Raises:
        TypeError: complex features, or lengths that are not integers.
        ValueError: wrong shapes; both ``mask`` and ``lengths``; lengths that are negative or do not sum to the rows.

    Source: Durian (arXiv 2602.21743), eqs. 5-9.

    >>> import torch
    >>> corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    >>> eigen_entropy(corners)  # two equal eigenvalues: log 2
    tensor(0.6931)
    >>> eigen_entropy(torch.cat([corners, torch.ones(3, 2)]), lengths=[4, 3])  # the second image is constant
    tensor([0.6931, 0.0000])
    """
    if not isinstance(normalize, bool):
        raise ArgumentTypeError("normalize", "a bool", type(normalize).__name__)
    features, mask, sizes = check_features(features, mask, lengths)
    entropies: Tensor
    entropies = _padded(features, mask, normalize) if sizes is None else _packed(features, sizes, normalize)
    return entropies


def check_features(
    features: Tensor, mask: Tensor | None, lengths: Tensor | Sequence[int] | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Check images, padded or packed; return floating-point features, the mask and the lengths as tensors."""
    features = checks.tensor("features", features)
    if mask is not None and lengths is not None:
        raise ArgumentError("mask", "None together with lengths (packed features have no padding)", "a mask")
    if not features.is_floating_point():
        features = features.float()
    if lengths is not None:
        checks.ndim("features", features, 2, "(sum(lengths), D) with lengths")
        return features, None, _lengths(lengths, len(features))
    if features.ndim < 2:
        raise ArgumentError("features", "shape (..., P, D)", tuple(features.shape))
    if mask is not None:
        mask = checks.tensor("mask", mask)
        checks.shape("mask", mask, features.shape[:-1], "(..., P)")
        checks.same_device("mask", mask, "features", features)
    return features, mask, None


def _lengths(lengths: object, rows: int) -> Tensor:
    if isinstance(lengths, Tensor):
        checked = checks.tensor("lengths", lengths, integer=True)
        checks.ndim("lengths", checked, 1, "(images,)")
        return checked
    if not isinstance(lengths, Sequence) or isinstance(lengths, (str, bytes)):
        raise ArgumentTypeError("lengths", "a 1-D tensor or a sequence of integers", type(lengths).__name__)
    sizes = [checks.integer(f"lengths[{i}]", size, "an integer") for i, size in enumerate(lengths)]
    _check_sizes(sizes, rows)
    return torch.tensor(sizes, dtype=torch.int64, device="cpu")  # not the default device that a caller may have set


def packed_sizes(lengths: Tensor, rows: int) -> list[int]:
    """Read the lengths of packed images, and check that they sum to the rows of the features."""
    sizes: list[int] = lengths.tolist()
    _check_sizes(sizes, rows)
    return sizes


def _check_sizes(sizes: Sequence[int], rows: int) -> None:
    if any(size < 0 for size in sizes):
        raise ArgumentError("lengths", "no negative length", min(sizes))
    if sum(sizes) != rows:
        raise ArgumentError("lengths", f"a sum of {rows}, the rows of features", sum(sizes))


def _padded_entropy(features: Tensor, mask: Tensor | None, normalize: bool) -> Tensor:
    return _entropies(features, mask, None, normalize).reshape(features.shape[:-2])


def _packed_entropy(features: Tensor, lengths: Tensor, normalize: bool) -> Tensor:
    return _entropies(features, None, lengths, normalize)


def _entropies(features: Tensor, mask: Tensor | None, lengths: Tensor | None, normalize: bool) -> Tensor:
    sizes, images = images_of(features, mask, lengths)
    with full_precision(features.device):
        entropies = by_size(sizes, images, features, lambda patches: image_entropy(patches, normalize))
    return entropies.to(exact.result_dtype(features.dtype))


def images_of(
    features: Tensor, mask: Tensor | None, lengths: Tensor | None
) -> tuple[list[int], Callable[[list[int]], Tensor]]:
    """Return the number of real patches of each image, and a function that returns some images.

    It takes the numbers of images of one size P, and returns ``(n, P, D)``, or ``(P, D)`` for one image.
    """
    if lengths is not None:
        sizes = packed_sizes(lengths, len(features))
        packed = torch.split(features, sizes)
        return sizes, lambda some: packed[some[0]] if len(some) == 1 else torch.stack([packed[i] for i in some])
    images = rearrange(features, "... p d -> (...) p d")
    if mask is None:

        def whole(some: list[int]) -> Tensor:
            if len(some) == 1:
                return images[some[0]]
            if some == list(range(some[0], some[-1] + 1)):  # without a copy
                return images[some[0] : some[-1] + 1]
            return images[torch.tensor(some, device=images.device)]

        return [images.shape[1]] * len(images), whole
    real = rearrange(mask != 0, "... p -> (...) p")
    # one transfer to the host for all images
    sizes = real.sum(1).tolist()
    places = torch.split(real.nonzero()[:, 1], sizes)

    def masked(some: list[int]) -> Tensor:
        if len(some) == 1:
            return images[some[0]][places[some[0]]]
        return images[torch.tensor(some, device=images.device)[:, None], torch.stack([places[i] for i in some])]

    return sizes, masked


def one_at_a_time(device: torch.device) -> bool:
    """Say whether images are worked through one by one, for the caches of a CPU; a GPU waits for every launch."""
    return device.type == "cpu"


def by_size(
    sizes: list[int], images: Callable[[list[int]], Tensor], like: Tensor, function: Callable[[Tensor], Tensor]
) -> Tensor:
    """Apply a function to images, those of one size together, and return its results in the order of the images."""
    groups = _groups(sizes, like)
    if not groups:
        return like.new_empty(0, dtype=exact.working_dtype(like.device))
    results = [function(images(group)) for group in groups]
    places = [place for group in groups for place in group]
    together = torch.cat([result if len(g) > 1 else result[None] for g, result in zip(groups, results, strict=True)])
    if places == sorted(places):
        return together
    return together[torch.tensor(places, device=like.device).argsort()]


def _groups(sizes: list[int], like: Tensor) -> list[list[int]]:
    """Group the numbers of images of one size: as many as fit, where they are worked through together."""
    if one_at_a_time(like.device):
        return [[i] for i in range(len(sizes))]
    of_size: dict[int, list[int]] = {}
    for i, size in enumerate(sizes):
        of_size.setdefault(size, []).append(i)
    groups = []
    for size, numbers in of_size.items():
        elements = size * like.shape[-1] + min(size, like.shape[-1]) ** 2
        step = max(1, _GROUP_ELEMENTS // max(1, elements))
        groups += [numbers[start : start + step] for start in range(0, len(numbers), step)]
    return groups


def _padded_fake(features: Tensor, mask: Tensor | None, normalize: bool) -> Tensor:
    return features.new_empty(features.shape[:-2], dtype=exact.result_dtype(features.dtype))


def _packed_fake(features: Tensor, lengths: Tensor, normalize: bool) -> Tensor:
    return features.new_empty(lengths.shape, dtype=exact.result_dtype(features.dtype))


# torch.compile could not trace a loop over a changing number of images, data-dependent sizes and an eigensolver that
# checks its result on the host.
_padded = operator(
    "padded_entropy(Tensor features, Tensor? mask, bool normalize) -> Tensor", _padded_entropy, _padded_fake
)
_packed = operator(
    "packed_entropy(Tensor features, Tensor lengths, bool normalize) -> Tensor", _packed_entropy, _packed_fake
)


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which autocast, wherever the caller has switched it on, rounds no product."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    context: AbstractContextManager[None] = torch.autocast(device.type, enabled=False)
    return context


def _float32_products_are_exact(device: torch.device) -> bool:
    """Say whether a product of float32 matrices keeps float32's precision, or TF32 or bfloat16 may take its place."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    # Where each backend has its precision, torch's older global one raises once they differ. The caller's setting is
    # read and never written, as it holds for all threads.
    precision = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    return (precision or torch.get_float32_matmul_precision()) in ("none", "ieee", "highest")


def image_entropy(patches: Tensor, normalize: bool = False) -> Tensor:
    """Entropy of images of one size: ``patches (P, D)`` to ``()``, or ``(n, P, D)`` to ``(n,)``, all real."""
    working, shape = exact.working_dtype(patches.device), patches.shape[:-2]
    rank = max_rank(*patches.shape[-2:])
    patches = prepared(patches)
    finite = all_finite(patches)
    if patches.shape[-2] == 0 or (len(shape) == 0 and not bool(finite)):
        return torch.full(shape, torch.nan, dtype=working, device=patches.device)
    if rank <= 1:
        # at most one nonzero eigenvalue
        return torch.zeros(shape, dtype=working, device=patches.device).where(finite, torch.nan)
    matrix = gram(centered(patches))
    if len(shape) > 0:  # among many, what is not finite is found at the end, and an eigensolver would raise at it
        matrix = torch.where(finite[..., None, None], matrix, 0.0)
    p = _eigenvalues(matrix).to(working)
    p = p / exact.safe_divisor(p.sum(-1, keepdim=True))
    # Rounding spreads eigenvalues that are zero evenly around it. Continued oddly, -p log|p| lets them cancel;
    # clamped at zero they would add up to 7e-5 nats in float32.
    entropy: Tensor = (0.0 - torch.special.xlogy(p, p.abs()).sum(-1)).clamp(0.0, math.log(rank))
    if len(shape) > 0:
        entropy = entropy.where(finite, torch.nan)
    return entropy / math.log(rank) if normalize else entropy


def max_rank(num_patches: int, num_features: int) -> int:
    """Return how many nonzero eigenvalues the covariance of so many patches can have."""
    return min(num_patches - 1, num_features)


def prepared(patches: Tensor) -> Tensor:
    """Return ``patches (..., P, D)`` in the dtype that their Gram matrix is computed in, contiguous."""
    # a few eigenvalues do not average their rounding out, and few are cheap
    wide = min(patches.shape[-2:]) <= _SMALL_SIDE or not _float32_products_are_exact(patches.device)
    dtype = exact.working_dtype(patches.device) if wide else exact.result_dtype(patches.dtype)
    # contiguous, as products of other layouts round differently
    return patches.to(dtype).contiguous()


def all_finite(patches: Tensor) -> Tensor:
    """Say for each image of ``patches (..., P, D)`` whether all its features are finite: ``(...)``."""
    if patches.shape[-2] * patches.shape[-1] == 0:
        return torch.ones(patches.shape[:-2], dtype=torch.bool, device=patches.device)
    # a minimum and a maximum show NaN and infinities, and cost a tenth of looking at each number
    return patches.amin((-2, -1)).isfinite() & patches.amax((-2, -1)).isfinite()


def centered(patches: Tensor) -> Tensor:
    """Subtract the mean patch from ``patches (..., P, D)``, finite, and scale an image's features to at most 2.

    Equal patches become exactly 0. Features change their order, which no eigenvalue depends on: see ``_ordered``.
    """
    halves = torch.where(_largest(patches, -2, -1) > 1, 0.5, 1.0)
    # in place: fresh memory costs more than the arithmetic. Halving is exact where it matters; no difference overflows
    centered = _ordered(patches, patches.amax(-2) - patches.amin(-2), -1).mul_(halves[..., None, None])
    # the first patch before the mean: equal patches become exactly 0, which a rounded mean would not make them
    centered -= centered[..., :1, :].clone()
    centered /= exact.safe_divisor(_largest(centered, -2, -1))[..., None, None]
    centered -= centered.mean(-2, keepdim=True)
    return centered


def _ordered(patches: Tensor, sizes: Tensor, dim: int) -> Tensor:
    """Copy ``patches (..., P, D)`` with the slices along a dimension in the order of their sizes, smallest first.

    Inner products that begin with their small terms keep most digits. Where few features have most of the variance, and
    come first, float32 entropies would be off by ten times as much.
    """
    order = sizes.argsort(stable=True)
    if patches.ndim == 2:  # on a CPU many times as fast as the general form
        return patches.index_select(dim, order)
    return patches.take_along_dim(order[..., None, :] if dim == -1 else order[..., None], dim)


def _largest(patches: Tensor, *dims: int) -> Tensor:
    return torch.maximum(patches.amax(dims), -patches.amin(dims))


def gram(centered: Tensor) -> Tensor:
    """Inner products of centered patches ``(..., P, D)``, or of their features where these are fewer.

    Returns ``(..., n, n)``, n the smaller of P and D: symmetric, and of trace one (zero for equal patches).
    """
    few = centered.shape[-2] <= centered.shape[-1]
    rows = centered if few else _ordered(centered, _largest(centered, -1), -2).mT
    side = rows.shape[-2]
    # half of a symmetric product is enough; a GPU is faster with all of it at once
    step = _GRAM_ROWS if one_at_a_time(rows.device) else side
    product = rows.new_empty(*rows.shape[:-1], side)
    for start in range(0, side, step):
        stop = start + step
        strip = rows[..., start:stop, :] @ rows[..., :stop, :].mT
        product[..., start:stop, :stop] = strip
        product[..., :start, start:stop] = strip[..., :start].mT
    return product.div_(exact.safe_divisor(product.diagonal(dim1=-2, dim2=-1).sum(-1))[..., None, None])


def _eigenvalues(gram: Tensor) -> Tensor:
    """Eigenvalues of finite symmetric matrices ``(..., n, n)``: in double precision if small, or single fails.

    Seen with many constant features: the solver for single raises, or silently returns NaN.
    """
    values: Tensor
    if gram.shape[-1] > _SMALL_SOLVE and gram.dtype == torch.float32:
        # a nearly diagonal matrix keeps its small eigenvalues if it grows towards its end
        sizes = gram.diagonal(dim1=-2, dim2=-1)
        try:
            values = torch.linalg.eigvalsh(_ordered(_ordered(gram, sizes, -2), sizes, -1))
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # public, but not declared so
            values = torch.full_like(gram[..., 0], torch.nan)
        if bool(values.isfinite().all()):
            return values
    values = torch.linalg.eigvalsh(gram.to(exact.working_dtype(gram.device)))
    return values
