"""Resampling on grids with half-pixel centers, against arithmetic and scipy (2D U-Net, preprocessing)."""

import numpy as np
import pytest
from scipy.ndimage import zoom

from kitsseg.data.geometry.resample import (
    area_resize,
    linear_taps,
    nearest_index,
    resample_slices,
    resampled_shape,
)

# (shape, grid shape): down, up, mixed, one slice, by an integer, unchanged
GRIDS = [
    ((9, 30, 31), (4, 25, 20)),
    ((5, 20, 21), (11, 33, 27)),
    ((7, 24, 26), (13, 19, 40)),
    ((1, 16, 17), (3, 20, 11)),
    ((12, 20, 20), (4, 10, 40)),
    ((6, 12, 14), (6, 12, 14)),
    ((40, 10, 9), (5, 3, 2)),
]


def resampled(volume, grid_shape, linear, start=(0, 0, 0), stop=None):
    stop = grid_shape if stop is None else stop
    return np.stack(list(resample_slices(volume, grid_shape, start, stop, linear)))


def scipy_zoom(volume, grid_shape, order):
    factors = [m / n for n, m in zip(volume.shape, grid_shape, strict=True)]
    out = zoom(volume, factors, order=order, mode="nearest", grid_mode=True)
    assert out.shape == grid_shape
    return out


def hu(shape, seed=0):
    return np.random.default_rng(seed).integers(-1024, 3072, shape).astype(np.int16)


@pytest.mark.parametrize(
    ("shape", "spacing", "target", "expected"),
    [
        # 109 * 5 / 3 = 181.7, 512 * 0.8 / 0.78125 = 524.3
        ((109, 512, 512), (5, 0.8, 0.8), (3, 0.78125, 0.78125), (182, 524, 524)),
        ((270, 512, 512), (1, 0.855, 0.855), (3, 0.7816, 0.7816), (90, 560, 560)),
        ((109, 512, 512), (5, 0.8, 0.8), (None, None, None), (109, 512, 512)),
        ((109, 512, 512), (5, 0.8, 0.8), (2.5, None, 1.6), (218, 512, 256)),
        ((1, 4, 4), (1, 1, 1), (9, 2, 2), (1, 2, 2)),  # never less than one slice
    ],
)
def test_shapes(shape, spacing, target, expected):
    assert resampled_shape(shape, spacing, target) == expected
    if max(expected) > 300 and None not in target:
        volume = np.broadcast_to(np.int16(7), shape)
        slices = list(resample_slices(volume, expected, (0, 0, 0), (2, *expected[1:]), linear=True))
        assert [plane.shape for plane in slices] == [expected[1:]] * 2
        assert all((plane == 7).all() for plane in slices)


def test_linear_by_hand():
    """2 to 4: positions -0.25, 0.25, 0.75, 1.25, clamped to 0..1. 4 to 2: 0.5 and 2.5. 3 to 1: position 1."""
    volume = np.array([0, 10], np.int16).reshape(1, 1, 2)
    np.testing.assert_allclose(resampled(volume, (1, 1, 4), True).ravel(), [0, 2.5, 7.5, 10])
    np.testing.assert_allclose(resampled(volume.reshape(1, 2, 1), (1, 4, 1), True).ravel(), [0, 2.5, 7.5, 10])
    np.testing.assert_allclose(resampled(volume.reshape(2, 1, 1), (4, 1, 1), True).ravel(), [0, 2.5, 7.5, 10])
    volume = np.array([1, 2, 4, 8], np.int16).reshape(1, 1, 4)
    np.testing.assert_allclose(resampled(volume, (1, 1, 2), True).ravel(), [1.5, 6])
    np.testing.assert_allclose(resampled(volume[..., :3], (1, 1, 1), True).ravel(), [2])
    low, high, weight = linear_taps(2, 4)
    assert (low.tolist(), high.tolist()) == ([0, 0, 0, 1], [0, 1, 1, 1])  # a weight of 0 reads one value
    np.testing.assert_allclose(weight, [0, 0.25, 0.75, 0])


def test_nearest_by_hand():
    """Voxel of the centers (i + 0.5) * 3 / 5 = 0.3, 0.9, 1.5, 2.1, 2.7; (i + 0.5) * 5 / 2 = 1.25, 3.75."""
    assert nearest_index(3, 5).tolist() == [0, 0, 1, 2, 2]
    assert nearest_index(5, 2).tolist() == [1, 3]
    assert nearest_index(3, 5, 2, 4).tolist() == [1, 2]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("shape", "grid_shape"), GRIDS)
def test_linear_equals_scipy_on_the_same_grid(shape, grid_shape, seed):
    volume = hu(shape, seed)
    ours = resampled(volume, grid_shape, linear=True)
    assert ours.dtype == np.float32
    assert ours.shape == grid_shape
    assert np.abs(ours - scipy_zoom(volume.astype(np.float64), grid_shape, 1)).max() < 1e-3


@pytest.mark.parametrize(("shape", "grid_shape"), GRIDS)
def test_nearest_equals_scipy_and_keeps_only_existing_labels(shape, grid_shape):
    labels = (np.random.default_rng(3).integers(0, 2, shape) * 2).astype(np.uint8)  # 0 and 2: no 1 in between
    ours = resampled(labels, grid_shape, linear=False)
    assert ours.dtype == np.uint8
    assert set(np.unique(ours)) <= {0, 2}
    positions = [(np.arange(m) + 0.5) * n / m % 1 for n, m in zip(shape, grid_shape, strict=True)]
    tie_free = [
        np.minimum(p, 1 - p) > 1e-9 for p in positions
    ]  # a center on the border of two voxels: either
    kept = np.ix_(*tie_free)
    np.testing.assert_array_equal(ours[kept], scipy_zoom(labels, grid_shape, 0)[kept])


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize(("shape", "grid_shape"), GRIDS)
def test_a_box_is_that_part_of_the_whole(shape, grid_shape, linear):
    volume = hu(shape, 5)
    whole = resampled(volume, grid_shape, linear)
    rng = np.random.default_rng(6)
    for _ in range(5):
        start = [int(rng.integers(m)) for m in grid_shape]
        stop = [int(rng.integers(a + 1, m + 1)) for a, m in zip(start, grid_shape, strict=True)]
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        np.testing.assert_allclose(resampled(volume, grid_shape, linear, start, stop), whole[box], atol=1e-3)


@pytest.mark.parametrize("value", [-1024, 0, 3071])
def test_constant_stays_constant(value):
    for shape, grid_shape in GRIDS:
        volume = np.full(shape, value, np.int16)
        for linear in (True, False):
            assert (resampled(volume, grid_shape, linear) == value).all()


def test_linear_stays_within_the_range_and_does_not_overflow():
    volume = np.where(np.indices((5, 6, 7)).sum(0) % 2, 32767, -32768).astype(np.int16)
    out = resampled(volume, (8, 9, 10), linear=True)
    assert out.min() >= -32768
    assert out.max() <= 32767
    np.testing.assert_allclose(out, scipy_zoom(volume.astype(np.float64), (8, 9, 10), 1), atol=0.02)


def test_the_same_grid_gives_the_same_values():
    volume = hu((4, 5, 6))
    np.testing.assert_array_equal(resampled(volume, volume.shape, linear=True), volume)
    np.testing.assert_array_equal(resampled(volume, volume.shape, linear=False), volume)


def test_memory_mapped_input_is_read_slice_by_slice(tmp_path):
    volume = hu((6, 8, 9))
    np.save(tmp_path / "image.npy", volume)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    np.testing.assert_array_equal(resampled(mapped, (4, 9, 7), True), resampled(volume, (4, 9, 7), True))
    assert next(resample_slices(mapped, (4, 9, 7), (0, 0, 0), (4, 9, 7), linear=True)).shape == (9, 7)


def test_area_resize_by_hand():
    """4 to 2: means of pairs. 3 to 2: (1 + 2 / 2) / 1.5 and (2 / 2 + 6) / 1.5. 2 to 4: each value twice."""
    row = np.array([[1, 2, 6, 7]], np.int16)
    np.testing.assert_allclose(area_resize(row, (1, 2)), [[1.5, 6.5]])
    np.testing.assert_allclose(area_resize(row[:, :3], (1, 2)), [[2 / 1.5, 7 / 1.5]])
    np.testing.assert_allclose(area_resize(row[:, :2], (1, 4)), [[1, 1, 2, 2]])
    np.testing.assert_allclose(area_resize(row.T, (2, 1)), [[1.5], [6.5]])
    assert area_resize(row, (1, 4)).dtype == np.float32


def test_area_resize_averages_blocks_and_keeps_the_mean():
    plane = hu((64, 48, 3))
    halved = plane.reshape(32, 2, 24, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(area_resize(plane, (32, 24)), halved, atol=1e-3)
    for size in ((37, 29), (100, 48), (64, 5)):
        assert area_resize(plane, size).shape == (*size, 3)
        np.testing.assert_allclose(area_resize(plane, size).mean((0, 1)), plane.mean((0, 1)), atol=1e-3)
    np.testing.assert_allclose(area_resize(np.full((31, 17), -79, np.int16), (13, 40)), -79, atol=1e-3)


@pytest.mark.parametrize("steps", [(2, 2), (4, 1), (1, 8), (2, 4)])
def test_area_resize_of_whole_pixels_is_the_mean_of_integers_to_the_bit(steps):
    rng = np.random.default_rng(sum(steps))
    plane = rng.integers(-32768, 32767, (8 * steps[0], 6 * steps[1])).astype(np.int16)
    blocks = plane.reshape(8, steps[0], 6, steps[1]).astype(np.int64).sum(axis=(1, 3))
    np.testing.assert_array_equal(area_resize(plane, (8, 6)), blocks / (steps[0] * steps[1]))
