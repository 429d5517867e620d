"""Tiles, their weights and mirrored copies (2D U-Net, inference)."""

import itertools

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from kitsseg.inference.windows2d import (
    gaussian_weights,
    mirrorings,
    pad_to_multiple,
    slice_probabilities,
    tile_starts,
)
from kitsseg.recipe import InferenceSpec

CLASSES = np.array([0.5, 0.3, 0.2], np.float32)


def constant(batch):
    """The same probabilities everywhere."""
    return np.broadcast_to(CLASSES, (*batch.shape[:3], 3))


def identity(batch):
    """Probabilities made from each pixel alone: (1 - x, x / 4, 3 x / 4)."""
    return np.concatenate([1 - batch, batch / 4, batch * 3 / 4], axis=-1)


def blurred(batch):
    """Flip-equivariant: probabilities from the mean of 3 x 3 pixels."""
    padded = np.pad(batch, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
    height, width = batch.shape[1:3]
    return identity(sum(padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9)


def gradient(batch):
    """Not flip-equivariant: each pixel minus its left neighbor, as a probability."""
    return identity(0.5 + (batch - np.roll(batch, 1, axis=2)) / 4)


def random_slice(*shape, seed=0):
    return np.random.default_rng(seed).random((*shape, 1), dtype=np.float32)


@pytest.mark.parametrize(
    ("n", "starts"),
    # n = 512: ceil(288 / 112) + 1 = 4 tiles, 96 apart. n = 256: ceil(32 / 112) + 1 = 2. n = 225: 0 and 1.
    # n = 337: ceil(113 / 112) + 1 = 3, 56.5 apart: 0, 56, 113 (Python rounds half to even, as NumPy does)
    [(512, [0, 96, 192, 288]), (256, [0, 32]), (225, [0, 1]), (337, [0, 56, 113]), (224, [0]), (1, [0])],
)
def test_tile_starts(n, starts):
    assert tile_starts(n, 224) == starts


def test_tiles_cover_everything_and_overlap_by_half():
    for n in range(224, 1000):
        starts = tile_starts(n, 224)
        assert (starts[0], starts[-1] + 224) == (0, n)
        assert all(0 < b - a <= 112 for a, b in itertools.pairwise(starts))
    # overlap 0.25: steps of at most 168. ceil(288 / 168) + 1 = 3
    assert tile_starts(512, 224, 0.25) == [0, 144, 288]


def test_coverage_of_512_is_1_to_9_with_mean_3_0625():
    """(4 * 224 / 512)^2 = 1.75^2 = 3.0625, found by counting the tiles that see each pixel."""
    marks = np.arange(512 * 512, dtype=np.float32).reshape(512, 512, 1)
    coverage = np.zeros(512 * 512, int)

    def count(batch):
        coverage[batch.astype(int).ravel()] += 1
        return constant(batch)

    slice_probabilities(marks, count, InferenceSpec(tile=(224, 224)))
    assert (coverage.min(), coverage.max(), coverage.mean()) == (1, 9, 3.0625)


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 90), (7, 5), (31, 32), (32, 32), (33, 40), (64, 65), (100, 37), (129, 200)]
)
def test_a_constant_model_gives_a_constant_map(shape, gaussian):
    spec = InferenceSpec(tile=(32, 32), gaussian=gaussian, mirror_axes=(0, 1))
    result = slice_probabilities(random_slice(*shape), constant, spec)
    assert result.shape == (*shape, 3)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, np.broadcast_to(CLASSES, result.shape), rtol=1e-6)


@pytest.mark.parametrize("tile", [(32, 32), None])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_mirroring_changes_nothing_for_a_flip_equivariant_model(tile, axes):
    plane = random_slice(60, 44)
    plain = InferenceSpec(tile=tile, multiple=4)
    mirrored = InferenceSpec(tile=tile, multiple=4, mirror_axes=axes)
    expected = slice_probabilities(plane, blurred, plain)
    np.testing.assert_allclose(slice_probabilities(plane, blurred, mirrored), expected, atol=1e-6)


def test_mirroring_is_the_mean_of_the_copies_by_hand():
    """Probability 0.5 + (pixel - left) / 4; mirrored 0.5 + (pixel - right) / 4; the mean of both.

    Pixel 1 of (0, 1, 0, 0): (0.75 + 0.75) / 2; pixel 2: (0.25 + 0.5) / 2; pixel 0: (0.5 + 0.25) / 2.
    """
    plane = np.array([0, 1, 0, 0], np.float32).reshape(1, 4, 1)
    spec = InferenceSpec(tile=None, mirror_axes=(1,))
    foreground = 1 - slice_probabilities(plane, gradient, spec)[0, :, 0]
    np.testing.assert_allclose(foreground, [0.375, 0.75, 0.375, 0.5], atol=1e-7)
    # and mirroring rows leaves a model that looks along columns as it is
    spec = InferenceSpec(tile=None, mirror_axes=(0,))
    np.testing.assert_allclose(
        slice_probabilities(plane, gradient, spec), gradient(plane[None])[0], atol=1e-7
    )


def test_the_four_mirrorings():
    assert mirrorings((0, 1)) == [(), (0,), (1,), (0, 1)]
    assert mirrorings(()) == [()]
    calls = []

    def count(batch):
        calls.append(batch.shape)
        return constant(batch)

    slice_probabilities(random_slice(512, 512), count, InferenceSpec(tile=(224, 224), mirror_axes=(0, 1)))
    assert calls == [(1, 224, 224, 1)] * 64  # 16 tiles, four passes each
    calls.clear()
    slice_probabilities(
        random_slice(500, 512), count, InferenceSpec(tile=None, multiple=32, mirror_axes=(0, 1))
    )
    assert calls == [(1, 512, 512, 1)] * 4


@pytest.mark.parametrize(
    "spec",
    [
        InferenceSpec(tile=(32, 32)),
        InferenceSpec(tile=(32, 48), gaussian=True),
        InferenceSpec(tile=(16, 32), overlap=0.25),
        InferenceSpec(tile=(32, 32), gaussian=True, mirror_axes=(0, 1)),
        InferenceSpec(tile=None, multiple=32, mirror_axes=(0, 1)),
        InferenceSpec(tile=None),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(75, 101), (20, 64), (3, 3)])
def test_a_model_that_returns_its_input_gives_the_slice_back(spec, shape):
    plane = random_slice(*shape)
    np.testing.assert_allclose(
        slice_probabilities(plane, identity, spec), identity(plane[None])[0], atol=1e-6
    )


def test_padding_repeats_the_edge_at_the_end():
    """5 x 6 to a multiple of 4: three rows and two columns more. A tile of 8 x 6: three rows."""
    plane = random_slice(5, 6)
    padded = pad_to_multiple(plane, 4)
    assert padded.shape == (8, 8, 1)
    np.testing.assert_array_equal(padded[:5, :6], plane)
    np.testing.assert_array_equal(padded[5:, :6], np.repeat(plane[-1:], 3, axis=0))
    np.testing.assert_array_equal(padded[:, 6:], np.repeat(padded[:, 5:6], 2, axis=1))
    assert pad_to_multiple(padded, 4) is padded
    seen = []

    def look(batch):
        seen.append(batch[0])
        return constant(batch)

    assert slice_probabilities(plane, look, InferenceSpec(tile=(8, 6))).shape == (5, 6, 3)
    np.testing.assert_array_equal(seen[0], padded[:, :6])


def test_tiles_are_weighted_by_the_gaussian_by_hand():
    """Ten columns, tiles of 8 at 0 and 2; tile i gives (1 - i, i, 0). Column c has weights w[c], w[c - 2]."""

    def which_tile(batch):
        tile = float(batch[0, 0, 0, 0] > 0)
        return np.broadcast_to(np.array([1 - tile, tile, 0], np.float32), (*batch.shape[:3], 3))

    plane = np.broadcast_to(np.arange(10, dtype=np.float32)[None, :, None], (8, 10, 1))
    result = slice_probabilities(plane, which_tile, InferenceSpec(tile=(8, 8), overlap=0.5, gaussian=True))
    w = np.exp(-((np.arange(8) - 4.0) ** 2) / 2)  # sigma 8 / 8 = 1
    expected = [0, 0, *(w[c - 2] / (w[c] + w[c - 2]) for c in range(2, 8)), 1, 1]
    np.testing.assert_allclose(result[3, :, 1], expected, rtol=1e-5)


def test_gaussian_weights_of_a_tile_of_224():
    """sigma 28: 1 in the center, exp(-1/2) = 0.606531 at 28 px, exp(-8) at the edge, exp(-16) in a corner."""
    weights = gaussian_weights((224, 224))
    assert weights.dtype == np.float32
    assert weights[112, 112] == weights.max() == 1
    assert abs(weights[112 + 28, 112] - 0.606531) < 1e-6
    assert abs(weights[112, 112 - 28] - 0.606531) < 1e-6
    assert abs(weights[112 + 28, 112 + 28] - np.exp(-1)) < 1e-6
    assert weights[0, 112] == pytest.approx(3.4e-4, abs=0.05e-4)
    assert weights[0, 0] == pytest.approx(1.1e-7, abs=0.05e-7)


@pytest.mark.parametrize("tile", [(224, 224), (32, 48), (33, 17), (1, 8)])
def test_weights_are_the_separable_gaussian_and_positive(tile):
    weights = gaussian_weights(tile)
    rows, columns = (np.exp(-((np.arange(n) - n // 2) ** 2) / (2 * (n / 8) ** 2)) for n in tile)
    np.testing.assert_allclose(weights, rows[:, None] * columns, atol=1e-6)
    assert weights.min() > 0


@pytest.mark.parametrize("tile", [(224, 224), (33, 17), (7, 9), (1, 8), (2, 3), (48,), (8, 16, 12)], ids=str)
def test_weights_are_nnu_nets_filtered_impulse(tile):
    """A unit impulse in the center under SciPy's Gaussian filter, divided by its maximum, zeros replaced."""
    impulse = np.zeros(tile)
    impulse[tuple(n // 2 for n in tile)] = 1
    expected = gaussian_filter(impulse, [n / 8 for n in tile], mode="constant")
    expected /= expected.max()
    expected[expected == 0] = expected[expected > 0].min()
    np.testing.assert_allclose(gaussian_weights(tile), expected, rtol=1e-5)
