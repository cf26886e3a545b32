"""Eigen-entropy of patch features (equations 5-9): closed forms, accuracy, masks, packing."""

from __future__ import annotations

import math
import subprocess
import sys
import time

import numpy as np
import pytest
import reference
import strategies as own
import torch
from helpers import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st

from durian_adv import eigen_entropy
from durian_adv._src import entropy

NAN = float("nan")
GARBAGE = (NAN, float("inf"), float("-inf"), 1e30, -1e30, 0.0)
shapes = st.tuples(st.integers(2, 24), st.integers(1, 24))


def oracle(features, mask=None, normalize=False):
    """The reference on a batch of images (n, P, D)."""
    f = features.to(torch.float64).numpy()
    masks = [None] * len(f) if mask is None else mask.numpy()
    return torch.tensor(
        [reference.eigen_entropy(x, m, normalize) for x, m in zip(f, masks, strict=True)], dtype=torch.float64
    )


def assert_near(actual, expected, tolerance):
    """Both NaN, or within an absolute tolerance in nats."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual.to(torch.float64), expected, rtol=0, atol=tolerance, equal_nan=True)


def random(seed, *shape):
    """Standard normal float64."""
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


def orthonormal(seed, rows, columns):
    """A matrix with orthonormal columns."""
    return torch.linalg.qr(random(seed, rows, columns))[0]


def with_spectrum(seed, eigenvalues, patches, dimension):
    """Centered features whose covariance has exactly these eigenvalues (up to a factor)."""
    k = len(eigenvalues)
    left = random(seed, patches, k)
    left = torch.linalg.qr(left - left.mean(0))[0]
    right = orthonormal(seed + 1, dimension, k)
    return left * torch.sqrt(torch.as_tensor(eigenvalues, dtype=torch.float64)) @ right.T


def entropy_of(eigenvalues):
    """The formula on known eigenvalues."""
    p = np.asarray(eigenvalues, dtype=np.float64) / np.sum(eigenvalues)
    return float(-(p * np.log(p)).sum())


# --- agreement with the reference -------------------------------------------------------------------


@given(own.images(), st.booleans())
def test_float64_entropy_agrees_with_the_singular_values(images, normalize):
    features, mask = images
    assert_near(eigen_entropy(features, normalize=normalize), oracle(features, None, normalize), 1e-12)
    assert_near(eigen_entropy(features, mask=mask, normalize=normalize), oracle(features, mask, normalize), 1e-12)


@given(own.images(dtype=torch.float32))
def test_float32_entropy_agrees_within_1e_4_whatever_the_rank(images):
    features, mask = images
    actual = eigen_entropy(features, mask=mask)
    assert actual.dtype == torch.float32
    assert_near(actual, oracle(features, mask), 1e-4)


@given(own.seeds, shapes, st.sampled_from((0.0, 1.0, -30.0)))
def test_float32_entropy_of_full_rank_features_agrees_within_2e_6(seed, shape, offset):
    features = (random(seed, 2, *shape) + offset).to(torch.float32)
    assert_near(eigen_entropy(features), oracle(features), 2e-6)


@given(own.seeds, shapes, st.sampled_from(own.NARROW))
def test_half_and_bfloat16_features_agree_within_1e_3(seed, shape, dtype):
    features = random(seed, 2, *shape).to(dtype)
    actual = eigen_entropy(features)
    assert actual.dtype == torch.float32
    assert_near(actual, oracle(features), 1e-3)


@pytest.mark.parametrize("patches", [256, 576, 1024])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_a_rank_one_matrix_stays_within_1e_4_in_float32_at_any_size(patches, offset):
    outer = torch.outer(random(1, patches), random(2, 320))
    features = (outer + offset * random(3, 320)).to(torch.float32)
    assert_near(eigen_entropy(features), reference.eigen_entropy(features.to(torch.float64).numpy()), 1e-4)
    assert_near(eigen_entropy(outer), 0.0, 1e-12)


@pytest.mark.parametrize("spectrum", [1, 3, None])
def test_rounding_noise_of_zero_eigenvalues_cancels_in_float32(spectrum):
    # with negative eigenvalues clamped to zero the errors are 3e-5 and more
    if spectrum is None:
        features = with_spectrum(4, np.arange(1, 513.0) ** -6, 512, 640)
    else:
        features = random(1, 512, spectrum) @ random(2, spectrum, 640)
    narrow = features.to(torch.float32)
    assert_near(eigen_entropy(narrow), reference.eigen_entropy(narrow.double().numpy()), 4e-6)


@pytest.mark.parametrize("exponent", [0.5, 0.8, 1.2, 1.6, 3.0])
@pytest.mark.parametrize(("patches", "dimension"), [(256, 320), (320, 256), (64, 1280)])
def test_power_law_spectra_keep_the_tolerances(exponent, patches, dimension):
    rank = min(patches - 1, dimension)
    spectrum = np.arange(1, rank + 1) ** -exponent
    features = with_spectrum(5, spectrum, patches, dimension)
    assert_near(eigen_entropy(features), entropy_of(spectrum), 1e-12)
    narrow = features.to(torch.float32)
    assert_near(eigen_entropy(narrow), oracle(narrow[None])[0], 2e-6)
    for dtype in own.NARROW:
        half = features.to(dtype)
        assert_near(eigen_entropy(half), oracle(half[None])[0], 1e-3)


def along_the_axes(kind, seed, patches, dimension):
    """Full-rank features whose variances, feature by feature or patch by patch, are the spectrum."""
    features = random(seed, patches, dimension)
    k, p = torch.arange(1, dimension + 1.0).double(), torch.arange(1, patches + 1.0).double()
    if isinstance(kind, float):
        return features * k ** (-kind / 2)
    if kind == "shuffled power 3":
        return features * k[np.random.default_rng(seed).permutation(dimension)] ** -1.5
    if kind == "patches of power 4":
        return features * p[:, None] ** -2
    if kind == "one hot patch":
        return features * torch.where(p == 1, 100.0, 1.0)[:, None]
    if kind == "hot channels":
        return features * torch.where(k <= 3, 100.0, 1.0)
    return torch.eye(patches, dimension, dtype=torch.float64) / p[:, None]


AXES = (0.5, 1.0, 2.0, 3.0, 4.0, "shuffled power 3", "patches of power 4", "one hot patch", "hot channels", "diagonal")
LIMITS = [((96, 128), 2e-6), ((256, 1280), 2e-6), ((384, 70), 2e-6), ((384, 400), 2e-6), ((520, 430), 5e-6)]


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize(("shape", "limit"), LIMITS)
def test_spectra_along_the_axes_keep_the_tolerances(kind, shape, limit):
    # sums of float32 products that began with their large terms were off by up to 1.3e-5
    for seed in range(3):
        features = along_the_axes(kind, seed, *shape)
        assert_near(eigen_entropy(features), reference.eigen_entropy(features.numpy()), 1e-12)
        narrow = features.to(torch.float32)
        assert_near(eigen_entropy(narrow), reference.eigen_entropy(narrow.double().numpy()), limit)


def test_a_nearly_diagonal_matrix_keeps_its_small_eigenvalues():
    # found in any other order they are off by up to 1.2e-5
    shuffled = np.random.default_rng(0).permutation(1000)
    narrow = along_the_axes("diagonal", 0, 1000, 1000)[shuffled].to(torch.float32)
    assert_near(eigen_entropy(narrow), eigen_entropy(narrow.double()), 3e-6)


@pytest.mark.parametrize("shape", [(256, 1280), (576, 320), (400, 400)])
def test_large_full_rank_images_keep_the_tolerances(shape):
    features = random(7, *shape)
    assert_near(eigen_entropy(features), reference.eigen_entropy(features.numpy()), 1e-12)
    narrow = (features + 3.0).to(torch.float32)
    assert_near(eigen_entropy(narrow), oracle(narrow[None])[0], 2e-6)


@given(own.seeds, shapes, st.sampled_from((1e4, 1e8)))
def test_an_offset_far_larger_than_the_spread_costs_no_digits_in_float64(seed, shape, offset):
    features = random(seed, 1, *shape) + offset
    assert_near(eigen_entropy(features), oracle(features), 1e-12)


@given(own.seeds, shapes, st.sampled_from(own.FLOATS), st.sampled_from((1e-30, 1e-18, 1e15, 1e30)))
def test_features_far_from_one_in_size_neither_overflow_nor_vanish(seed, shape, dtype, scale):
    features = (random(seed, 1, *shape) * scale).to(dtype)
    assert_near(eigen_entropy(features), oracle(features), 1e-12 if dtype == torch.float64 else 2e-6)


# --- closed forms -----------------------------------------------------------------------------------


@given(own.seeds, shapes, st.sampled_from(own.FLOATS))
def test_rank_one_features_have_entropy_zero(seed, shape, dtype):
    features = torch.outer(random(seed, shape[0]), random(seed + 1, shape[1])).to(dtype)
    assert_near(eigen_entropy(features), 0.0, 1e-12 if dtype == torch.float64 else 1e-4)


@given(own.seeds, st.integers(1, 10), st.integers(0, 14), st.integers(0, 14), st.sampled_from(own.FLOATS))
def test_k_equal_eigenvalues_have_entropy_log_k(seed, k, more_patches, more_dimensions, dtype):
    features = with_spectrum(seed, np.full(k, 3.0), k + 1 + more_patches, k + more_dimensions)
    assert_near(eigen_entropy(features.to(dtype)), math.log(k), 1e-12 if dtype == torch.float64 else 1e-4)


@given(own.seeds, st.lists(st.floats(0.01, 100.0), min_size=1, max_size=12), st.integers(1, 10), st.integers(0, 10))
def test_a_known_spectrum_has_its_entropy_whichever_side_is_smaller(seed, spectrum, more, wide):
    k = len(spectrum)
    for shape in ((k + more, k + wide), (k + 1, k + 12 + wide), (k + 14 + more, k)):
        assert_near(eigen_entropy(with_spectrum(seed, spectrum, *shape)), entropy_of(spectrum), 1e-12)


@given(own.seeds, st.integers(2, 20), st.integers(1, 20))
def test_the_patch_side_and_the_feature_side_agree(seed, patches, dimension):
    # zero features make the image wide, zero-sum pairs of patches would change it: rotate instead
    features = random(seed, patches, dimension)
    wide = torch.cat([features, torch.zeros(patches, 50, dtype=torch.float64)], 1)
    assert_near(eigen_entropy(wide), eigen_entropy(features), 1e-12)
    tall = features.repeat(40, 1)
    assert_near(eigen_entropy(tall), eigen_entropy(features), 1e-12)


@given(own.seeds, shapes, st.sampled_from((1.0, -2.0, 1e-3, 7e5)))
def test_rotation_scale_and_offset_do_not_matter(seed, shape, scale):
    features = random(seed, *shape)
    plain = eigen_entropy(features)
    rotated = features @ orthonormal(seed + 1, shape[1], shape[1])
    assert_near(eigen_entropy(rotated * scale + random(seed + 2, shape[1]) * scale), plain, 1e-12)


@given(own.seeds, shapes, st.sampled_from((torch.float64,)))
def test_the_order_of_patches_and_features_does_not_matter(seed, shape, dtype):
    features = random(seed, *shape).to(dtype)
    rng = np.random.default_rng(seed)
    moved = features[torch.tensor(rng.permutation(shape[0]))][:, torch.tensor(rng.permutation(shape[1]))]
    assert_near(eigen_entropy(moved), eigen_entropy(features), 1e-12)


@given(own.seeds, shapes, st.integers(2, 4))
def test_duplicating_every_patch_changes_nothing(seed, shape, times):
    features = random(seed, *shape)
    assert_near(eigen_entropy(features.repeat(times, 1)), eigen_entropy(features), 1e-12)


@given(own.images())
def test_entropy_lies_between_zero_and_the_log_of_the_rank_and_normalized_between_zero_and_one(images):
    features, mask = images
    entropy = eigen_entropy(features, mask=mask)
    count = mask.sum(1)
    rank = torch.clamp(torch.minimum(count - 1, torch.tensor(features.shape[2])), min=1)
    known = count > 0
    assert torch.isnan(entropy[~known]).all()
    assert (entropy[known] >= 0).all()
    assert (entropy <= torch.log(rank.to(torch.float64)) + 1e-12)[known].all()
    normalized = eigen_entropy(features, mask=mask, normalize=True)
    assert ((normalized >= 0) & (normalized <= 1 + 1e-12))[known].all()
    log = torch.log(rank.to(torch.float64))
    proper = known & (rank > 1)
    assert_near(normalized[proper], (entropy / log)[proper], 1e-12)


# --- degenerate images ------------------------------------------------------------------------------


@given(
    st.integers(1, 40),
    st.integers(1, 24),
    st.sampled_from(own.FLOATS + own.NARROW),
    st.sampled_from((0.0, 0.1, 1 / 3, 1e4 / 3, -7e-5, 6e4)),
    own.seeds,
    st.booleans(),
)
def test_constant_images_have_entropy_exactly_zero(patches, dimension, dtype, size, seed, normalize):
    row = (random(seed, dimension).clamp(-1, 1) * size).to(dtype)
    entropy = eigen_entropy(row.expand(patches, dimension), normalize=normalize)
    assert entropy.item() == 0.0


@given(own.seeds, st.integers(1, 24), st.sampled_from(own.FLOATS + own.NARROW), st.booleans())
def test_one_patch_has_entropy_exactly_zero_masked_packed_or_plain(seed, dimension, dtype, normalize):
    features = random(seed, 3, dimension).to(dtype)
    mask = torch.tensor([False, True, False])
    assert eigen_entropy(features[:1], normalize=normalize).item() == 0.0
    assert eigen_entropy(features, mask=mask, normalize=normalize).item() == 0.0
    packed = eigen_entropy(features, lengths=[1, 1, 1], normalize=normalize)
    assert packed.tolist() == [0.0] * 3


def test_no_patch_is_no_image():
    features = torch.ones(2, 4, 3)
    mask = torch.tensor([[False] * 4, [True] * 4])
    assert math.isnan(eigen_entropy(features, mask=mask)[0])
    assert eigen_entropy(features, mask=mask)[1].item() == 0.0
    assert torch.isnan(eigen_entropy(torch.zeros(3, 0, 5))).all()
    packed = eigen_entropy(torch.ones(4, 3), lengths=[0, 4, 0])
    assert torch.isnan(packed).tolist() == [True, False, True]
    assert eigen_entropy(torch.zeros(0, 5, 3)).shape == (0,)
    assert eigen_entropy(torch.zeros(0, 3), lengths=[]).shape == (0,)


def test_patches_without_features_have_entropy_zero():
    assert eigen_entropy(torch.zeros(2, 5, 0)).tolist() == [0.0, 0.0]
    assert torch.isnan(eigen_entropy(torch.zeros(2, 0, 0))).all()


@given(own.images(min_images=2), own.seeds, st.sampled_from(GARBAGE[:3]))
def test_an_image_with_a_non_finite_feature_is_nan_and_its_neighbors_keep_every_bit(images, seed, bad):
    features, mask = images
    rng = np.random.default_rng(seed)
    broken = features.clone()
    where = rng.integers(features.shape[0]), rng.integers(features.shape[1]), rng.integers(features.shape[2])
    broken[where] = bad
    others = torch.arange(features.shape[0]) != where[0]
    assert math.isnan(eigen_entropy(broken)[where[0]])
    assert_same_bits(eigen_entropy(broken)[others], eigen_entropy(features)[others])
    plain, masked = eigen_entropy(features, mask=mask), eigen_entropy(broken, mask=mask)
    assert_same_bits(masked[others].nan_to_num(-1), plain[others].nan_to_num(-1))
    assert bool(torch.isnan(masked[where[0]])) == bool(mask[where[:2]] or not mask[where[0]].any())


# --- masks, padding, packing ------------------------------------------------------------------------


@given(own.images(), own.seeds)
def test_masked_patches_change_no_bit_whatever_is_in_them(images, seed):
    features, mask = images
    noise = torch.tensor(np.random.default_rng(seed).choice(GARBAGE, features.shape))
    poisoned = torch.where(mask[..., None], features, noise)
    plain = eigen_entropy(features, mask=mask).nan_to_num(-1)
    assert_same_bits(eigen_entropy(poisoned, mask=mask).nan_to_num(-1), plain)


@given(own.images(), st.sampled_from((torch.float32, torch.float64)))
def test_packed_padded_and_one_by_one_agree(images, dtype):
    features, mask = images
    features = features.to(dtype)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    if dtype == torch.float32:  # full rank, where 2e-6 is promised against the exact value too
        features = random(features.numel(), *features.shape).to(dtype)
    real = [x[m] for x, m in zip(features, mask, strict=True)]
    lengths = [len(x) for x in real]
    alone = torch.stack([eigen_entropy(x) for x in real])
    assert_near(eigen_entropy(features, mask=mask), alone, tolerance)
    assert_near(eigen_entropy(torch.cat(real), lengths=lengths), alone, tolerance)
    assert_near(eigen_entropy(torch.cat(real), lengths=torch.tensor(lengths)), alone, tolerance)


@given(own.seeds, st.integers(1, 6), st.integers(1, 30), st.integers(1, 30), st.sampled_from(own.FLOATS + own.NARROW))
def test_the_entropy_of_an_image_does_not_depend_on_its_batch_bitwise(seed, n, patches, dimension, dtype):
    features = random(seed, n, patches, dimension).to(dtype)
    together = eigen_entropy(features)
    alone = torch.cat([eigen_entropy(x[None]) for x in features])
    assert_same_bits(together, alone)
    assert_same_bits(eigen_entropy(features.flip(0)), together.flip(0))
    assert_same_bits(torch.stack([eigen_entropy(x) for x in features]), together)
    packed = eigen_entropy(features.flatten(0, 1), lengths=[patches] * n)
    if patches:
        assert_same_bits(packed, torch.cat([eigen_entropy(x, lengths=[patches]) for x in features]))


@pytest.mark.parametrize("dtype", own.FLOATS)
@pytest.mark.parametrize("shape", [(9, 100, 64), (5, 64, 200), (3, 256, 320)])
def test_batch_independence_holds_at_real_sizes_bitwise(shape, dtype):
    features = random(11, *shape).to(dtype)
    together = eigen_entropy(features)
    assert_same_bits(torch.cat([eigen_entropy(x[None]) for x in features]), together)
    assert_same_bits(eigen_entropy(features[1:]), together[1:])


@given(own.seeds, st.sampled_from(((2, 3), (1,), (2, 1, 2), (0, 2))))
def test_leading_dimensions_are_kept(seed, leading):
    features = random(seed, *leading, 5, 4)
    mask = torch.tensor(np.random.default_rng(seed).random((*leading, 5)) < 0.7)
    actual = eigen_entropy(features, mask=mask)
    assert actual.shape == leading
    flat = eigen_entropy(features.reshape(-1, 5, 4), mask=mask.reshape(-1, 5))
    assert_same_bits(actual.reshape(-1).nan_to_num(-1), flat.nan_to_num(-1))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_numeric_masks_mean_the_same_as_bool_ones(dtype):
    features = random(1, 3, 6, 4)
    mask = torch.tensor([[1, 1, 0, 1, 0, 0], [1] * 6, [0, 1, 1, 1, 1, 0]])
    assert_same_bits(eigen_entropy(features, mask=mask.to(dtype)), eigen_entropy(features, mask=mask.bool()))


def test_integer_images_are_read_as_float32():
    pixels = torch.tensor(np.random.default_rng(0).integers(0, 255, (2, 9, 5)))
    actual = eigen_entropy(pixels)
    assert actual.dtype == torch.float32
    assert_near(actual, oracle(pixels), 2e-6)


@pytest.mark.parametrize("shape", [(4000, 3), (3, 4000)])
def test_the_work_is_done_on_the_smaller_side(shape):
    features = random(13, *shape).to(torch.float32)
    started = time.process_time()
    eigen_entropy(features)
    assert time.process_time() - started < 0.5  # milliseconds; the larger side takes seconds


def test_memory_beyond_the_input_does_not_grow_with_the_number_of_images():
    # 512 images take 32 MiB, and so would their Gram matrices taken together
    code = """
import resource, sys
import torch
from durian_adv import eigen_entropy
unit = 1 if sys.platform == "darwin" else 1024
torch.set_num_threads(1)
features = torch.randn(512, 128, 128)
mask = torch.ones(512, 128, dtype=torch.bool)
eigen_entropy(features[:2]), eigen_entropy(features[:2], mask=mask[:2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
eigen_entropy(features)
eigen_entropy(features, mask=mask)
eigen_entropy(features.flatten(0, 1), lengths=[128] * 512)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / 2**20)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 12


# --- steps, of many images at once --------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 7, 5), (4, 5, 7), (4, 6, 6), (2, 2, 3, 4)])
def test_each_image_of_a_batch_goes_its_own_way(shape):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(shape, generator=generator, dtype=torch.float64)
    images *= 10.0 ** torch.arange(-3, 5)[: shape[0]].double().reshape(-1, *[1] * (len(shape) - 1))
    images[0] = -images[0].abs()
    assert torch.equal(entropy._largest(images, -2, -1), images.abs().amax((-2, -1)))
    centered = entropy.centered(images)
    assert (centered.abs().amax((-2, -1)) <= 2).all()
    assert (centered.abs().amax((-2, -1)) > 0.25).all()
    assert centered.mean(-2).abs().max() < 1e-15
    gram = entropy.gram(centered)
    for where in np.ndindex(shape[:-2]):
        alone = entropy.centered(images[where])
        torch.testing.assert_close(centered[where], alone, rtol=0, atol=1e-15)
        rows = alone if len(alone) <= alone.shape[1] else alone.T
        product = rows @ rows.T
        torch.testing.assert_close(gram[where], product / product.trace(), rtol=1e-14, atol=1e-15)
        spread = centered[where].amax(0) - centered[where].amin(0)
        assert (spread.diff() >= 0).all()


def test_an_image_is_finite_or_not_by_itself_and_small_ones_are_measured_in_double():
    images = torch.zeros(4, 3, 5)
    images[1, 2, 4], images[2, 0, 0], images[3, 1, 1] = torch.nan, torch.inf, -torch.inf
    with torch.device("meta"):  # a default device of the caller has no say
        for shape in ((4, 0, 5), (4, 3, 0)):
            nothing = entropy.all_finite(torch.zeros(shape, device="cpu"))
            assert (nothing.tolist(), nothing.dtype, nothing.device.type) == ([True] * 4, torch.bool, "cpu")
    assert entropy.all_finite(images).tolist() == [True, False, False, False]
    side = entropy._SMALL_SIDE + 1
    for shape, dtype in (
        ((4, side, 5), torch.float64),
        ((4, 5, side), torch.float64),
        ((2, side, side), torch.float32),
    ):
        prepared = entropy.prepared(torch.zeros(shape).mT)
        assert (prepared.dtype, prepared.is_contiguous()) == (dtype, True)


def test_features_at_the_ends_of_the_range_have_the_entropy_of_any_others():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(6, 5, generator=generator, dtype=torch.float64) * 2 - 1
    image[0, 0], image[1, 0] = 1, -1
    expected = eigen_entropy(image)
    for scale in (torch.finfo(torch.float64).max, 2.0, 1.5, 2.0**-1000):
        assert eigen_entropy(image * scale).item() == pytest.approx(expected.item(), rel=1e-12)


def test_packed_images_are_normalized_too_and_neither_default_has_a_say():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 6, 4, generator=generator)
    padded = eigen_entropy(images, normalize=True)
    assert torch.equal(eigen_entropy(images.flatten(0, 1), lengths=[6, 6, 6], normalize=True), padded)
    assert entropy.image_entropy(images[0]).item() == pytest.approx(eigen_entropy(images)[0].item(), rel=1e-6)
    odd = torch.cat([images[0], images[0, :1], torch.full((2, 4), torch.nan)])
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            found = eigen_entropy(odd, lengths=[6, 1, 2, 0])
            alone = [entropy.image_entropy(image) for image in torch.split(odd, [6, 1, 2])]
            nothing = eigen_entropy(odd[:0].bfloat16(), lengths=[])
    finally:
        torch.set_default_dtype(torch.float32)
    assert (found.device.type, found.dtype, nothing.dtype) == ("cpu", torch.float32, torch.float32)
    assert str(found[1:].tolist()) == "[0.0, nan, nan]"
    assert [value.dtype for value in alone] == [torch.float64] * 3
    assert [value.device.type for value in alone] == ["cpu"] * 3


def test_a_solver_that_fails_in_single_precision_is_asked_in_double(monkeypatch):
    solve, asked = torch.linalg.eigvalsh, []

    def fails(gram):
        asked.append(gram.dtype)
        if gram.dtype == torch.float32:
            if len(asked) == 1:
                raise torch.linalg.LinAlgError("did not converge")
            return torch.full_like(gram[0], torch.nan)
        return solve(gram)

    side = entropy._SMALL_SOLVE + 1
    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    for _ in range(2):  # by an error, and in silence
        assert entropy._eigenvalues(torch.eye(side)).tolist() == [1] * side
    assert asked == [torch.float32, torch.float64] * 2
    asked.clear()
    assert entropy._eigenvalues(torch.eye(side - 1)).tolist() == [1] * (side - 1)
    assert entropy._eigenvalues(torch.eye(side, dtype=torch.float64)).tolist() == [1] * side
    assert asked == [torch.float64] * 2
