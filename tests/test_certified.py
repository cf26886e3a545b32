"""Certified intervals contain the entropy whatever the subspace, and certified buckets are those of exact entropies."""

from __future__ import annotations

import math
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import reference
import strategies as own
import torch
from helpers import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from skimage import data, transform
from torch.utils._python_dispatch import TorchDispatchMode

from durian_adv import (
    certified_entropy_buckets,
    certified_entropy_intervals,
    durian_components,
    eigen_entropy,
    quantile_buckets,
)
from durian_adv._src import certified, entropy
from durian_adv.data.scoring.efficientnet import encode_images, load_network

NAN = float("nan")
SPECTRA = ("flat", "rank one", "rank three", "two levels", "geometric", "cluster", 0.3, 0.8, 1.2, 1.6, 3.0, 6.0)


def spectrum(kind, rank, rng):
    """Eigenvalues of sum one, falling."""
    k = np.arange(1, rank + 1.0)
    values = {
        "flat": np.ones(rank),
        "rank one": k == 1,
        "rank three": k <= 3,
        "two levels": np.where(k <= rank // 3 + 1, 1.0, 1e-3),
        "geometric": 0.7**k,
        "cluster": np.where(k <= 2, 1.0, 1e-2 * (1 + 1e-5 * rng.random(rank))),
    }
    chosen = k**-kind if isinstance(kind, float) else values[kind].astype(np.float64)
    return np.sort(chosen / chosen.sum())[::-1]


def entropy_of(values):
    """The formula on known eigenvalues of sum one."""
    values = values[values > 0]
    return float(-(values * np.log(values)).sum())


def image(kind, patches, dimension, rng, dtype=torch.float64):
    """Centered features with the eigenvalues of a kind, in random directions, anywhere in space."""
    rank = min(patches - 1, dimension)
    left = rng.normal(size=(patches, rank))
    left = np.linalg.qr(left - left.mean(0))[0]
    right = np.linalg.qr(rng.normal(size=(dimension, rank)))[0]
    features = left * np.sqrt(spectrum(kind, rank, rng)) @ right.T + rng.normal(size=dimension) / 10
    return torch.tensor(features * rng.choice((1.0, 1e-3, 1e4))).to(dtype)


def exact_buckets(features, quantiles=(0.25, 0.75), **kwargs):
    """What certified buckets stand for."""
    return quantile_buckets(eigen_entropy(features, **kwargs), quantiles, boundary="outer")


@contextmanager
def intervals_from(side):
    """Give intervals to images whose smaller side is larger than this, and count the eigensolves of the others."""
    with (
        mock.patch.object(certified, "_SMALL_SIDE", side),
        mock.patch.object(certified, "image_entropy", wraps=certified.image_entropy) as solves,
    ):
        yield solves


# --- the bounds -------------------------------------------------------------------------------------


@given(own.seeds, st.integers(1, 40), st.integers(0, 40), st.sampled_from(SPECTRA), st.sampled_from((0.0, 0.1, 1.0)))
def test_the_bounds_hold_for_the_ritz_values_of_any_subspace(seed, rank, size, kind, noise):
    # from the eigenvectors themselves to a random subspace
    rng = np.random.default_rng(seed)
    values = spectrum(kind, rank, rng)
    basis = np.linalg.qr(np.eye(rank)[:, :size] + noise * rng.normal(size=(rank, min(size, rank))))[0]
    ritz = np.linalg.eigvalsh(basis.T * values @ basis)
    purity = (values**2).sum() * (1 + 1e-14)  # rounded up
    low, high = certified.entropy_bounds(torch.tensor(ritz), torch.tensor(purity), rank)
    assert low - 1e-12 <= entropy_of(values) <= high + 1e-12


@given(own.seeds, st.integers(1, 40), st.integers(0, 40), st.sampled_from(SPECTRA), st.integers(0, 5))
def test_the_bounds_hold_for_any_lower_bounds_of_the_largest_eigenvalues(seed, rank, size, kind, more):
    rng = np.random.default_rng(seed)
    values = spectrum(kind, rank, rng)
    # some exact, some a little under, some far off, some without any information
    factors = rng.choice((1.0, 1 - 1e-6, 0.9, 0.3, 1e-9, 0.0, -0.1), min(size, rank), p=rng.dirichlet(np.ones(7)))
    lower = torch.tensor(values[:size] * factors)
    purity = torch.tensor((values**2).sum() * rng.choice((1 + 1e-14, 1 + 1e-6, 1.5)))
    low, high = certified.entropy_bounds(lower, purity, rank + more)
    assert low - 1e-12 <= entropy_of(values) <= high + 1e-12
    assert high <= math.log(rank + more) + 1e-12


@pytest.mark.parametrize("rank", [1, 2, 7, 500])
def test_the_bounds_meet_where_purity_and_rank_say_all(rank):
    values = torch.full((rank,), 1.0 / rank, dtype=torch.float64)
    low, high = certified.entropy_bounds(values[:0], (values**2).sum(), rank)
    torch.testing.assert_close(torch.stack([low, high]), torch.full((2,), math.log(rank), dtype=torch.float64))
    one = torch.zeros(rank, dtype=torch.float64)
    one[0] = 1.0
    low, high = certified.entropy_bounds(one, one.sum(), rank)
    torch.testing.assert_close(torch.stack([low, high]), torch.zeros(2, dtype=torch.float64))


def test_the_bounds_are_those_of_the_formula():
    # two eigenvalues known, both above the mean and the purity's estimate of the rest
    values = np.array([0.4, 0.2, 0.1, 0.1, 0.08, 0.07, 0.05])
    t, q, m = 0.4, (values[2:] ** 2).sum(), 5
    top = entropy_of(values[:2])
    low, high = certified.entropy_bounds(torch.tensor(values[:2]), torch.tensor((values**2).sum()), 7)
    np.testing.assert_allclose(low, top - t * math.log(q / t))
    np.testing.assert_allclose(high, top + t * math.log(m / t))


@given(own.seeds, st.integers(1, 6), st.integers(2, 80), st.sampled_from(SPECTRA), st.sampled_from(own.FLOATS))
def test_ritz_values_never_exceed_the_eigenvalues(seed, batch, side, kind, dtype):
    rng = np.random.default_rng(seed)
    values = torch.tensor(spectrum(kind, side, rng).copy())
    rotation = torch.linalg.qr(torch.tensor(rng.normal(size=(batch, side, side))))[0]
    matrices = ((rotation * values) @ rotation.mT).to(dtype)
    matrices = (matrices + matrices.mT) / 2
    eigenvalues = torch.linalg.eigvalsh(matrices.double()).flip(-1)
    with mock.patch.object(certified, "_BLOCKS", 4):
        ritz = certified.ritz_values(matrices).flip(-1)[:, :side]
    assert (ritz <= eigenvalues[:, : ritz.shape[1]] + 4 * torch.finfo(dtype).eps).all()


def test_ritz_values_of_matrices_without_a_krylov_space_are_still_lower_bounds():
    for matrix in (
        torch.zeros(9, 9),
        torch.eye(9) / 9,
        torch.ones(9, 9) / 9,
        torch.diag(torch.arange(9.0) == 3).float(),
    ):
        with mock.patch.object(certified, "_BLOCKS", 2):
            ritz = certified.ritz_values(matrix).flip(0)[:9]
        assert (ritz <= torch.linalg.eigvalsh(matrix).flip(0)[: len(ritz)] + 1e-6).all()


def test_ritz_values_converge_to_the_largest_eigenvalues():
    rng = np.random.default_rng(0)
    for kind in ("geometric", 1.2, 3.0):
        values = spectrum(kind, 400, rng)
        rotation = np.linalg.qr(rng.normal(size=(400, 400)))[0]
        matrix = torch.tensor(rotation * values @ rotation.T)
        ritz = certified.ritz_values(matrix).flip(0).numpy()
        assert len(ritz) == 48
        np.testing.assert_allclose(ritz[:8], values[:8], rtol=2e-2)


# --- intervals --------------------------------------------------------------------------------------


@given(
    own.seeds,
    st.integers(2, 90),
    st.integers(1, 90),
    st.sampled_from(SPECTRA),
    st.sampled_from((*own.FLOATS, torch.bfloat16)),
)
def test_an_interval_contains_the_exact_entropy_and_what_eigen_entropy_returns(seed, patches, dimension, kind, dtype):
    features = image(kind, patches, dimension, np.random.default_rng(seed), dtype)
    exact = reference.eigen_entropy(features.double().numpy())
    with intervals_from(2):
        low, high = certified_entropy_intervals(features)
    assert low.dtype == high.dtype == eigen_entropy(features).dtype
    assert 0 <= low <= exact <= high
    assert low <= eigen_entropy(features) <= high


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("shape", [(400, 330), (330, 400)])
@pytest.mark.parametrize("dtype", [*own.FLOATS, torch.bfloat16])
def test_intervals_of_large_images_contain_the_exact_entropy(kind, shape, dtype):
    features = image(kind, *shape, np.random.default_rng(3), dtype)
    exact = reference.eigen_entropy(features.double().numpy())
    low, high = certified_entropy_intervals(features)
    assert low <= exact <= high
    assert low <= eigen_entropy(features) <= high
    assert high - low < (1.1 if kind == "two levels" else 0.6)


def test_intervals_of_small_images_are_their_entropy_and_its_error():
    features = torch.randn(3, 30, 40, generator=torch.Generator().manual_seed(0))
    low, high = certified_entropy_intervals(features)
    assert (high - low < 5e-4).all()
    assert ((low < eigen_entropy(features)) & (eigen_entropy(features) < high)).all()


def test_degenerate_images_have_their_known_entropy():
    features = torch.ones(4, 6, 5)
    features[1, 2, 3] = float("inf")
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[2] = False
    mask[3, 1:] = False
    with intervals_from(2):
        low, high = certified_entropy_intervals(features, mask=mask)
    assert low.isnan().tolist() == high.isnan().tolist() == [False, True, True, False]
    assert ((low[[0, 3]] == 0) & (high[[0, 3]] < 1e-3)).all()


@given(own.images(), st.sampled_from(own.FLOATS))
def test_intervals_have_the_shape_and_the_masks_of_entropies(images, dtype):
    features, mask = images[0].to(dtype), images[1]
    with intervals_from(3):
        masked = certified_entropy_intervals(features, mask=mask)
        packed = certified_entropy_intervals(features[mask], lengths=mask.sum(1))
        stacked = certified_entropy_intervals(torch.stack([features] * 2), mask=torch.stack([mask] * 2))
    for one, other, two in zip(masked, packed, stacked, strict=True):
        assert one.shape == (len(features),)
        assert_same_bits(one.nan_to_num(-1), other.nan_to_num(-1))
        assert_same_bits(torch.stack([one] * 2).nan_to_num(-1), two.nan_to_num(-1))


@given(own.seeds, st.integers(1, 4), st.integers(5, 40), st.integers(5, 40), st.sampled_from(own.FLOATS))
def test_intervals_of_many_images_at_a_time_hold_too(seed, count, patches, dimension, dtype):
    # what a GPU does, on the CPU
    rng = np.random.default_rng(seed)
    kinds = [SPECTRA[i] for i in rng.integers(0, len(SPECTRA), count)]
    features = torch.stack([image(kind, patches, dimension, rng, dtype) for kind in kinds])
    features[0, 1, 2] = NAN
    low, high = certified.interval(entropy.prepared(features))
    assert low.isnan().tolist() == high.isnan().tolist() == [True] + [False] * (count - 1)
    error = 1e-4 if dtype == torch.float32 else 1e-9
    entropies = eigen_entropy(features)[1:]
    assert ((low[1:] - error <= entropies) & (entropies <= high[1:] + error)).all()


def test_many_images_at_a_time_have_the_intervals_of_one_at_a_time():
    rng = np.random.default_rng(1)
    features = torch.stack([image(kind, 120, 130, rng, torch.float32) for kind in (0.3, 0.8, 1.2, 3.0)])
    together = certified.interval(features)
    for i, one in enumerate(features):
        for a, b in zip(together, certified.interval(one), strict=True):
            torch.testing.assert_close(a[i], b, rtol=0, atol=1e-3)


@contextmanager
def as_on_a_gpu(room=entropy._GROUP_ELEMENTS):
    """Images of one size go together, as many as fit."""
    with (
        mock.patch.object(entropy, "one_at_a_time", return_value=False),
        mock.patch.object(certified, "one_at_a_time", return_value=False),
        mock.patch.object(entropy, "_GROUP_ELEMENTS", room),
    ):
        yield


def test_images_of_one_size_are_taken_together_as_far_as_they_fit():
    sizes, like = [5, 5, 5, 3, 5, 5], torch.empty(0, 7)
    assert entropy._groups(sizes, like) == [[i] for i in range(6)]
    with as_on_a_gpu():
        assert entropy._groups(sizes, like) == [[0, 1, 2, 4, 5], [3]]
    with as_on_a_gpu(125):  # 60 per image of 5 patches
        assert entropy._groups(sizes, like) == [[0, 1], [2, 4], [5], [3]]


@given(own.seeds, st.sampled_from(own.FLOATS), st.sampled_from((60, 10**9)), st.sampled_from(("", "mask", "lengths")))
def test_images_that_go_together_have_the_entropies_of_one_at_a_time(seed, dtype, room, form):
    rng = np.random.default_rng(seed)
    count, patches, dimension = rng.integers(0, 7), rng.integers(1, 30), rng.integers(1, 30)
    kinds = [SPECTRA[i] for i in rng.integers(0, len(SPECTRA), count)]
    features = torch.stack([image(k, patches, dimension, rng, dtype) for k in kinds]) if count else torch.empty(0, 3, 4)
    features[1:2] = 1.5
    features[2:3, 0, 0] = NAN
    given_as = {}
    if form == "mask":
        given_as["mask"] = torch.tensor(rng.random(features.shape[:2]) < rng.choice((0.2, 0.9)))
    if form == "lengths":
        features = features.flatten(0, 1)
        cuts = np.sort(rng.choice([0, patches, len(features)], 5))
        given_as["lengths"] = np.diff([0, *cuts.clip(0, len(features)), len(features)]).tolist()
    alone = eigen_entropy(features, normalize=True, **given_as)
    with as_on_a_gpu(room):
        together = eigen_entropy(features, normalize=True, **given_as)
        low, high = certified_entropy_intervals(features, **given_as)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(together, alone, rtol=0, atol=tolerance, equal_nan=True)
    exactly = eigen_entropy(features, **given_as)
    assert ((low <= exactly) & (exactly <= high) | exactly.isnan() & low.isnan() & high.isnan()).all()


@given(own.seeds, st.integers(1, 30), st.sampled_from(("", "mask", "lengths")))
def test_buckets_of_images_that_go_together_are_those_of_the_entropies(seed, count, form):
    rng = np.random.default_rng(seed)
    features = torch.stack([image(float(x), 24, 30, rng) for x in rng.uniform(1.0, 1.2, count)])
    given_as = {}
    if form == "mask":
        given_as["mask"] = torch.arange(24) < torch.tensor(rng.integers(20, 25, count))[:, None]
    if form == "lengths":
        features = features.flatten(0, 1)
        given_as["lengths"] = [24] * count
    with as_on_a_gpu(), mock.patch.object(certified, "_SMALL_SIDE", 8), mock.patch.object(certified, "_BLOCKS", 4):
        actual = certified_entropy_buckets(features, **given_as)
    entropies = eigen_entropy(features, **given_as)
    assert torch.equal(actual, quantile_buckets(entropies, (0.25, 0.75), boundary="outer"))


class Operators(TorchDispatchMode):
    """Counts what runs on the device, and what waits for it."""

    VIEWS = ("view", "expand", "select", "slice", "split", "squeeze", "t.", "transpose", "permute", "alias", "diagonal")
    WAITS = ("_local_scalar_dense", "_linalg_eigh", "nonzero")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if not any(view in name for view in self.VIEWS):
            self.names.append(name)
        return func(*args, **(kwargs or {}))

    @property
    def waits(self):
        return sum(name in self.WAITS for name in self.names)


@pytest.mark.parametrize(
    "function",
    [lambda x: entropy._padded_entropy(x, None, False), lambda x: certified._entropy_intervals(x, None, None)],
    ids=["entropies", "intervals"],
)
@pytest.mark.parametrize("side", [100, 400])
def test_operators_and_waits_do_not_grow_with_images_of_one_size(function, side):
    features = torch.randn(6, side, side + 20, generator=torch.Generator().manual_seed(0))
    found = []
    for count in (2, 6):
        with as_on_a_gpu(), Operators() as operators:
            function(features[:count])
        found.append((len(operators.names), operators.waits))
    assert found[0] == found[1]
    assert found[0][1] <= 2
    with Operators() as alone:
        function(features)
    assert len(alone.names) > 3 * found[1][0]


# --- what intervals prove ---------------------------------------------------------------------------


@st.composite
def score_intervals(draw):
    """Scores with ties and NaN, and intervals around them: wide, narrow, touching, points."""
    rng = np.random.default_rng(draw(own.seeds))
    count = draw(st.integers(0, 40))
    scores = rng.normal(size=count) if draw(st.booleans()) else rng.integers(0, draw(st.integers(1, 12)), count) / 4
    scores = np.where(rng.random(count) < draw(st.sampled_from((0.0, 0.2, 1.0))), NAN, scores)
    widths = np.array((0.0, 1e-7, 0.05, 0.25, 3.0))
    low = scores - rng.choice(widths, count, p=rng.dirichlet(np.ones(5)))
    high = scores + rng.choice(widths, count, p=rng.dirichlet(np.ones(5)))
    return torch.tensor(scores), torch.tensor(low), torch.tensor(high)


@given(score_intervals(), st.one_of(own.quantiles(), st.just((0.25, 0.75))), st.sampled_from((1, 8)))
def test_proved_buckets_are_those_of_the_scores(case, quantiles, at_once):
    scores, low, high = case
    asked = []

    def score(some):
        asked.extend(some)
        return scores[some]

    before = low.clone(), high.clone()
    actual = certified.proved_buckets(low, high, quantiles, score, at_once)
    assert torch.equal(actual, quantile_buckets(scores, quantiles, boundary="outer"))
    assert len(set(asked)) == len(asked)
    assert all(low[i] < high[i] for i in asked)
    assert torch.equal(low.nan_to_num(9), before[0].nan_to_num(9))
    assert torch.equal(high.nan_to_num(9), before[1].nan_to_num(9))


def test_only_scores_whose_bucket_is_open_are_asked_for():
    scores = torch.arange(101.0, dtype=torch.float64)
    asked = []

    def score(some):
        asked.extend(some)
        return scores[some]

    certified.proved_buckets(scores - 1.2, scores + 1.2, (0.25, 0.75), score)
    assert set(asked) <= {*range(21, 31), *range(71, 81)}
    assert len(asked) <= 8
    asked.clear()
    certified.proved_buckets(scores - 0.4, scores + 0.4, (0.251, 0.751), score)  # between two scores: known by rank
    assert not asked


# --- buckets ----------------------------------------------------------------------------------------


@st.composite
def galleries(draw):
    """Images of many spectra in one batch: duplicates, near-duplicates, constant ones, NaN, single patches."""
    rng = np.random.default_rng(draw(own.seeds))
    count, patches, dimension = draw(st.integers(1, 12)), draw(st.integers(3, 40)), draw(st.integers(3, 40))
    kinds = [SPECTRA[i] for i in rng.integers(0, len(SPECTRA), count)]
    if draw(st.booleans()):  # a narrow population, where thresholds lie close to many images
        kinds = [float(x) for x in rng.uniform(1.0, 1.05, count)]
    features = torch.stack([image(kind, patches, dimension, rng) for kind in kinds])
    for i in range(count):
        what = rng.choice(("own", "own", "copy", "near", "constant", "scaled", "nan"))
        j = rng.integers(count)
        if what == "copy":
            features[i] = features[j]
        if what == "near":
            features[i] = features[j] * (1 + 1e-7 * torch.tensor(rng.normal(size=(patches, dimension))))
        if what == "constant":
            features[i] = 1 / 3
        if what == "scaled":
            features[i] = 2 * features[j]
        if what == "nan":
            features[i, 1, 1] = NAN
    mask = torch.tensor(rng.random((count, patches)) < draw(st.sampled_from((0.3, 0.9, 1.0))))
    return features, mask


@given(galleries(), st.sampled_from((*own.FLOATS, torch.bfloat16)), own.quantiles(), st.sampled_from((2, 10)))
def test_certified_buckets_are_the_exact_ones(gallery, dtype, quantiles, small):
    features, mask = gallery[0].to(dtype), gallery[1]
    packed = {"lengths": mask.sum(1).tolist()}
    with intervals_from(small):
        for levels in ((0.25, 0.75), quantiles):
            plain = certified_entropy_buckets(features, quantiles=levels)
            assert plain.dtype == torch.int64
            assert torch.equal(plain, exact_buckets(features, levels))
            masked = certified_entropy_buckets(features, quantiles=levels, mask=mask)
            assert torch.equal(masked, exact_buckets(features, levels, mask=mask))
            unpadded = certified_entropy_buckets(features[mask], quantiles=levels, **packed)
            assert torch.equal(unpadded, exact_buckets(features[mask], levels, **packed))


@given(
    galleries(), st.sampled_from((*own.FLOATS, torch.bfloat16)), own.quantiles(), st.sampled_from((2, 10)), own.seeds
)
def test_certified_buckets_serve_as_the_visual_entropy(gallery, dtype, quantiles, small, seed):
    # bucketing is idempotent: a threshold lies between the same two ranks, and buckets keep the order of the ranks
    features, mask = gallery[0].to(dtype), gallery[1]
    generator = torch.Generator().manual_seed(seed)
    rewards = (torch.rand(len(features), 6, generator=generator) < 0.5).float()
    confidence = torch.randn(len(features), generator=generator)
    for levels in ((0.25, 0.75), quantiles):
        with intervals_from(small):
            buckets = certified_entropy_buckets(features, quantiles=levels, mask=mask)
        without_image = levels if isinstance(levels, int) else len(levels) + 1
        scores = buckets.float().masked_fill(buckets == without_image, NAN)
        entropies = eigen_entropy(features, mask=mask)
        assert torch.equal(scores.isnan(), entropies.isnan())
        options = {"confidence": confidence, "entropy_quantiles": levels, "num_confidence_buckets": 3}
        by_entropy, by_bucket = (
            durian_components(rewards, visual_entropy=x, **options)._asdict() for x in (entropies, scores)
        )
        for name in by_entropy.keys() - {"visual_entropy"}:
            if by_entropy[name] is not None:
                assert_same_bits(by_bucket[name].nan_to_num(-1), by_entropy[name].nan_to_num(-1), name)


def two_columns(first, noise, generator):
    """Features with two nonzero columns, so nearly rank one, whose Gram matrix has rows of like numbers."""
    features = torch.zeros(len(first), 1280)
    features[:, 0] = first
    features[:, 1] = noise * torch.randn(len(first), generator=generator) * first.norm() / len(first) ** 0.5
    return features


@pytest.mark.parametrize("seed", range(4))
def test_the_rounding_of_rows_of_like_numbers_moves_no_interval(seed):
    # summed in float32, the purity of such a matrix is off by more than chance, and 1 / c multiplied the error
    generator = torch.Generator().manual_seed(9 + seed)
    signs = (torch.rand(1280, generator=generator) < 0.5) * 2.0 - 1
    signs[0], signs[1] = 112, -112
    large = two_columns(signs, 2e-3, generator)
    low, high = certified_entropy_intervals(large)
    assert low <= eigen_entropy(large) <= high
    small = two_columns(torch.tensor([1.0, -1.0]).repeat(20), 8e-3, generator)
    features, lengths = torch.cat([large, small]), [1280, 40]
    buckets = certified_entropy_buckets(features, lengths=lengths, quantiles=(0.5,))
    assert torch.equal(buckets, exact_buckets(features, (0.5,), lengths=lengths))


def test_rounding_makes_no_constant_image_of_one_with_a_spectrum():
    # the entropy of an image of rank one is a few units of rounding, above the 0 of constant images
    ritz = torch.tensor([1 + 2.0**-52, 0.0], dtype=torch.float64)
    _, high = certified.entropy_bounds(ritz, torch.ones((), dtype=torch.float64), 2)
    assert high > 0
    _, high = certified.entropy_bounds(torch.zeros_like(ritz), torch.zeros((), dtype=torch.float64), 2)
    assert high == 0


@pytest.mark.parametrize("dtype", [*own.FLOATS, torch.bfloat16])
@pytest.mark.parametrize("tie", [False, True])
def test_buckets_of_large_images_are_the_exact_ones(dtype, tie):
    rng = np.random.default_rng(5)
    kinds = [*SPECTRA, 1.0, 1.01, 1.02]
    features = torch.stack([image(kind, 330, 350, rng, dtype) for kind in kinds])
    if tie:  # at both thresholds
        order = eigen_entropy(features).argsort()
        features[order[3]] = features[order[4]]
        features[order[11]] = features[order[10]]
        features[order[0]] = 1 / 3
    assert torch.equal(certified_entropy_buckets(features), exact_buckets(features))


def test_a_natural_spectrum_needs_eigenvalues_of_a_few_images_only():
    rng = np.random.default_rng(7)
    features = torch.stack([image(float(a), 352, 384, rng, torch.float32) for a in rng.uniform(0.8, 1.6, 48)])
    with intervals_from(320) as solves:
        actual = certified_entropy_buckets(features)
    assert 0 < solves.call_count <= 12
    assert torch.equal(actual, exact_buckets(features))
    with intervals_from(320) as solves:
        certified_entropy_intervals(features)
    assert solves.call_count == 0


def test_a_pair_apart_needs_no_eigenvalues_at_all():
    rng = np.random.default_rng(8)
    features = torch.stack([image(kind, 330, 340, rng, torch.float32) for kind in (0.3, 3.0)])
    with intervals_from(320) as solves:
        assert certified_entropy_buckets(features, quantiles=(0.5,)).tolist() == [1, 0]
    assert solves.call_count == 0


def test_buckets_of_real_encoder_features_are_the_exact_ones():
    names = ("astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "grass", "gravel", "moon")
    photos = [np.atleast_3d(getattr(data, name)()) for name in names]
    photos = [np.repeat(x, 3, 2) if x.shape[2] == 1 else x[..., :3] for x in photos]
    photos = [
        transform.resize(x, (608, 608), anti_aliasing=True, preserve_range=True).astype(np.float32) for x in photos
    ]
    encoder = load_network("head")
    features = torch.stack([encode_images(encoder, [x])[0].flatten(1).T for x in photos])
    assert features.shape == (10, 361, 1280)
    with intervals_from(320) as solves:
        actual = certified_entropy_buckets(features)
    assert torch.equal(actual, exact_buckets(features))
    assert solves.call_count < len(photos)
    low, high = certified_entropy_intervals(features)
    for x, a, b in zip(features, low, high, strict=True):
        assert a <= reference.eigen_entropy(x.double().numpy()) <= b
        assert b - a < 0.5


def test_neither_batch_nor_order_moves_an_interval_or_a_bucket():
    rng = np.random.default_rng(9)
    features = torch.stack([image(kind, 330, 340, rng, torch.float32) for kind in (0.8, 1.2, 1.2, 0.3, 3.0)])
    low, high = certified_entropy_intervals(features)
    assert_same_bits(torch.stack([certified_entropy_intervals(x)[0] for x in features]), low)
    assert_same_bits(certified_entropy_intervals(features.flip(0))[1].flip(0), high)
    assert torch.equal(certified_entropy_buckets(features.flip(0)).flip(0), certified_entropy_buckets(features))


def test_no_images_have_no_buckets():
    assert certified_entropy_buckets(torch.zeros(0, 5, 3)).shape == (0,)
    assert certified_entropy_buckets(torch.zeros(0, 3), lengths=[]).shape == (0,)
    assert certified_entropy_buckets(torch.zeros(3, 0, 5)).tolist() == [3, 3, 3]
    assert certified_entropy_intervals(torch.zeros(2, 0, 5, 3))[0].shape == (2, 0)


# --- dtypes, devices, numbers of buckets --------------------------------------------------------------


@pytest.mark.parametrize("side", [6, entropy._SMALL_SIDE + 1])
def test_float64_images_that_float32_cannot_tell_apart_have_their_buckets(side):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(side, side, generator=generator, dtype=torch.float64)
    other = torch.randn(side, side, generator=generator, dtype=torch.float64)
    images = torch.stack([image + step * 1e-9 * other for step in (2, 0, 3, 1)])
    entropies = eigen_entropy(images)
    assert len(set(entropies.float().tolist())) < len(set(entropies.tolist())) == 4
    for quantiles in (2, 3, 4, (0.4,), 1):
        expected = quantile_buckets(entropies, quantiles, boundary="outer")
        with torch.device("meta"):  # a default device of the caller has no say
            found = certified_entropy_buckets(images, quantiles=quantiles)
            low, high = certified_entropy_intervals(images)
        assert torch.equal(found, expected)
        assert ((low <= entropies) & (entropies <= high)).all()
        assert (high - low).max() < (1e-8 if side == 6 else 0.5)
    assert (low.dtype, low.device.type) == (torch.float64, "cpu")
