"""Tiles of a volume, side by side without their borders (3D DeepLab, line 8)."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from kitsseg.inference.tiles3d import overlapping_probabilities, volume_probabilities
from kitsseg.recipe import InferenceSpec

TILE, MARGIN = (48, 48, 48), 8


def as_float(hu):
    return hu[..., None].astype(np.float32)


def identity(batch):
    """Three values from each voxel alone."""
    return np.concatenate([batch, 2 * batch, -batch], axis=-1)


def box_mean(batch, radius=2):
    """A network with a receptive field: sums over 5 x 5 x 5 voxels, zero padding as in a convolution.

    Sums of whole HU are exact in float32, so results can be compared exactly.
    """
    for axis in (1, 2, 3):
        widths = [(radius, radius) if a == axis else (0, 0) for a in range(5)]
        padded = np.pad(batch, widths)
        n = batch.shape[axis]
        batch = sum(padded.take(range(i, i + n), axis) for i in range(2 * radius + 1))
    return identity(batch)


class Counted:
    """A network that says which call it answers."""

    def __init__(self):
        self.calls = 0

    def __call__(self, batch):
        assert batch.shape == (1, *TILE, 1)
        assert batch.dtype == np.float32
        self.calls += 1
        return np.broadcast_to(np.float32(self.calls - 1), (*batch.shape[:-1], 3))


def random_volume(*shape, seed=0):
    return np.random.default_rng(seed).integers(-1000, 1000, shape, np.int16)


def whole(volume, predict, tile=TILE, margin=MARGIN, **options):
    return np.stack(list(volume_probabilities(volume, as_float, predict, tile, margin, **options)))


def oracle(volume, predict, tile, margin):
    """As the paper's words have it: pad everything, cut all patches, paste all cores."""
    core = [t - 2 * margin for t in tile]
    counts = [math.ceil(n / q) for n, q in zip(volume.shape, core)]
    widths = [(margin, margin + c * q - n) for n, q, c in zip(volume.shape, core, counts)]
    padded = np.pad(volume, widths, mode="edge")
    result = np.full([c * q for c, q in zip(counts, core)] + [3], np.nan, np.float32)
    for step in itertools.product(*map(range, counts)):
        start = [k * q for k, q in zip(step, core)]
        patch = padded[tuple(slice(a, a + t) for a, t in zip(start, tile))]
        inner = predict(as_float(patch)[None])[(0, *(slice(margin, margin + q) for q in core))]
        result[tuple(slice(a, a + q) for a, q in zip(start, core))] = inner
    return result[tuple(slice(n) for n in volume.shape)]


@pytest.mark.parametrize("shape", [(48,) * 3, (50,) * 3, (97,) * 3, (31, 100, 33)], ids=str)
def test_identity_gives_the_volume_back(shape):
    volume = random_volume(*shape)
    np.testing.assert_array_equal(whole(volume, identity), identity(as_float(volume)))


def test_a_scan_of_130_200_200_takes_245_patches():
    """ceil(130 / 32) * ceil(200 / 32) * ceil(200 / 32) = 5 * 7 * 7, and every voxel belongs to its own core."""
    predict = Counted()
    result = whole(np.zeros((130, 200, 200), np.int16), predict)
    assert predict.calls == 245
    z, y, x = (np.arange(n) // 32 for n in (130, 200, 200))
    np.testing.assert_array_equal(result[..., 1], z[:, None, None] * 49 + y[:, None] * 7 + x)


# the same as the paper's words, and as no tiles at all


@pytest.mark.parametrize(
    ("shape", "tile", "margin"),
    [
        ((20, 33, 17), (12, 16, 20), 4),
        ((5, 6, 7), (12, 16, 20), 4),  # smaller than a core, and than the margins
        ((1, 1, 1), (9, 9, 9), 4),
        ((13, 8, 9), (8, 4, 5), 0),
        ((20, 33, 17), (10, 10, 10), 1),  # too small a margin: borders of tiles show, as in the oracle
    ],
)
def test_equals_the_brute_force(shape, tile, margin):
    volume = random_volume(*shape)
    result = whole(volume, box_mean, tile, margin)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, oracle(volume, box_mean, tile, margin))


@pytest.mark.parametrize("margin", [2, 3, 5])
def test_a_network_that_sees_no_farther_than_the_margin_sees_no_tiles(margin):
    """Its result is that for the volume in one piece, edges repeated."""
    volume = random_volume(21, 30, 26)
    padded = np.pad(volume, 2, mode="edge")
    inside = (0, *(slice(2, -2),) * 3)
    expected = box_mean(as_float(padded)[None])[inside]
    tile = (8 + 2 * margin, 16 + 2 * margin, 7 + 2 * margin)
    np.testing.assert_array_equal(whole(volume, box_mean, tile, margin), expected)
    # with a margin of 1 the borders of tiles do show, so that the assertion above can fail
    assert not np.array_equal(whole(volume, box_mean, tuple(t - 2 * margin + 2 for t in tile), 1), expected)


def test_a_constant_network_gives_a_constant():
    classes = np.array([0.5, 0.3, 0.2], np.float32)
    result = whole(random_volume(40, 33, 50), lambda batch: np.broadcast_to(classes, (*batch.shape[:-1], 3)))
    np.testing.assert_array_equal(result, np.broadcast_to(classes, (40, 33, 50, 3)))


def test_other_numbers_of_classes():
    result = whole(random_volume(5, 6, 7), lambda batch: batch.repeat(2, axis=-1), n_classes=2)
    assert result.shape == (5, 6, 7, 2)


def test_a_memory_mapped_volume_and_multiple_channels(tmp_path):
    volume = random_volume(20, 21, 22)
    np.save(tmp_path / "volume.npy", volume)
    mapped = np.load(tmp_path / "volume.npy", mmap_mode="r")
    planes = volume_probabilities(
        mapped,
        lambda hu: np.stack([hu, hu + 1], axis=-1).astype(np.float32),
        lambda batch: np.concatenate([batch, batch[..., :1]], axis=-1),
        (12, 12, 12),
        2,
    )
    np.testing.assert_array_equal(np.stack(list(planes)), np.stack([volume, volume + 1, volume], axis=-1))


# air


def test_tiles_of_air_are_background_and_not_predicted():
    """A voxel of 1 HU at (5, 40, 70): tiles with a core from k * 32, seen from k * 32 - 8 up to k * 32 + 40.

    Slice 5 is seen by tile 0; row 40 by tile 1 (24..72) and not by tile 0 (up to 39); column 70 by tile 2 (56..104)
    and by tile 1 (24..72): two of 2 * 3 * 4 tiles.
    """
    volume = np.zeros((50, 90, 110), np.int16)
    volume[5, 40, 70] = 1
    predict = Counted()
    result = whole(volume, lambda batch: predict(batch) + 7, air_hu=0)
    assert predict.calls == 2
    expected = np.zeros((50, 90, 110, 3), np.float32)
    expected[..., 0] = 1
    expected[:32, 32:64, 32:64] = 7
    expected[:32, 32:64, 64:96] = 8
    np.testing.assert_array_equal(result, expected)


def test_where_there_is_no_air_nothing_is_skipped():
    volume = random_volume(40, 40, 40)
    np.testing.assert_array_equal(whole(volume, identity, air_hu=-1001), identity(as_float(volume)))


# memory


def test_one_slab_of_probabilities_is_in_memory_at_a_time():
    """A slab of 8 slices is 8 * 128 * 128 * 3 * 4 bytes = 1.5 MiB, all 20 slabs are 30 MiB."""
    volume = np.zeros((160, 128, 128), np.int16)

    def predict(batch):
        return np.broadcast_to(np.float32(1), (*batch.shape[:-1], 3))

    tracemalloc.start()
    try:
        total = 0.0
        for plane in volume_probabilities(volume, as_float, predict, (12, 36, 36), 2):
            total += plane[0, 0, 0]
            del plane
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 160
    assert peak < 1.5 * 8 * 128 * 128 * 3 * 4


def test_a_slice_that_is_kept_stays_as_it_is():
    volume = random_volume(70, 10, 10)
    planes = volume_probabilities(volume, as_float, identity, TILE, MARGIN)
    first = next(planes)
    kept = first.copy()
    list(planes)
    np.testing.assert_array_equal(first, kept)


# bad arguments


@pytest.mark.parametrize(("tile", "margin"), [((16, 48, 48), 8), ((48, 48), 8), ((48, 48, 48), -1)])
def test_a_tile_without_a_core_is_an_error(tile, margin):
    with pytest.raises(ValueError, match="longer than two margins"):
        whole(random_volume(5, 5, 5), identity, tile, margin)


def test_a_prediction_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"prediction of shape \(1, 48, 48, 48, 3\), found"):
        whole(random_volume(5, 5, 5), lambda batch: identity(batch)[:, ::2])
    with pytest.raises(ValueError, match=r"prediction of shape \(1, 48, 48, 48, 3\), found"):
        whole(random_volume(5, 5, 5), lambda batch: batch)


# tiles that overlap


def overlapped(volume, predict, tile, **options):
    air_hu = options.pop("air_hu", None)
    inference = InferenceSpec(tile=tile, **options)
    return np.stack(list(overlapping_probabilities(volume, as_float, predict, inference, air_hu)))


def overlapping_oracle(volume, predict, tile, starts, sigma=None):
    """Sums over the whole volume in double precision; a weight is a Gaussian of the distance to voxel t // 2."""
    size = [max(n, t) for n, t in zip(volume.shape, tile)]
    padded = np.pad(volume, [(0, m - n) for n, m in zip(volume.shape, size)], mode="edge")
    weights = np.ones(tile)
    if sigma is not None:
        index = np.indices(tile)
        distances = sum(((index[a] - tile[a] // 2) / sigma[a]) ** 2 for a in range(3))
        weights = np.exp(-distances / 2)
    total, summed = np.zeros((*size, 3)), np.zeros((*size, 1))
    for start in itertools.product(*starts):
        window = tuple(slice(a, a + t) for a, t in zip(start, tile))
        total[window] += weights[..., None] * predict(as_float(padded[window])[None])[0]
        summed[window] += weights[..., None]
    return (total / summed)[tuple(slice(n) for n in volume.shape)]


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize(
    ("shape", "starts"),
    # tile 8 x 16 x 12, half of it shared: 20 slices: ceil(12 / 4) + 1 = 4 tiles, 4 apart. 33 rows: ceil(17 / 8) + 1
    # = 4, 17 / 3 apart: 0, 5.67, 11.33, 17. 17 columns: ceil(5 / 6) + 1 = 2
    [
        ((20, 33, 17), ([0, 4, 8, 12], [0, 6, 11, 17], [0, 5])),
        ((5, 6, 7), ([0], [0], [0])),
        ((9, 16, 40), ([0, 1], [0], [0, 6, 11, 17, 22, 28])),
    ],
)
def test_overlapping_tiles_equal_the_brute_force(shape, starts, gaussian):
    """(40 - 12) / 6 = 4.67: 6 tiles, 5.6 apart: 0, 5.6, 11.2, 16.8, 22.4, 28."""
    tile, volume = (8, 16, 12), random_volume(*shape)
    expected = overlapping_oracle(volume, box_mean, tile, starts, (1, 2, 1.5) if gaussian else None)
    found = overlapped(volume, box_mean, tile, gaussian=gaussian)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=0.5)  # of sums of 125 HU
    if len(starts[0]) > 1 or len(starts[1]) > 1:  # and the tiles are seen: the test can fail
        assert np.abs(found - box_mean(as_float(volume)[None])[0]).max() > 100


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("shape", [(48,) * 3, (50, 49, 97), (31, 100, 33), (1, 1, 1)], ids=str)
def test_overlapping_identity_gives_the_volume_back(shape, overlap):
    volume = random_volume(*shape)
    found = overlapped(volume, identity, TILE, overlap=overlap, gaussian=True)
    np.testing.assert_allclose(found, identity(as_float(volume)), rtol=1e-5, atol=1e-3)


def test_overlapping_tiles_of_air_add_background():
    """Columns of tiles of 4 at 0, 2, 4; HU only in column 0: tile 0 says kidney, the other two are air."""
    volume = np.full((4, 4, 8), -1000, np.int16)
    volume[..., 0] = 0
    kidney = np.array([0, 1, 0], np.float32)
    found = overlapped(
        volume, lambda batch: np.broadcast_to(kidney, (*batch.shape[:-1], 3)), (4, 4, 4), air_hu=-500
    )
    np.testing.assert_allclose(found[0, 0, :, 1], [1, 1, 0.5, 0.5, 0, 0, 0, 0])
    np.testing.assert_allclose(found.sum(axis=-1), 1)


def test_overlapping_sums_do_not_grow_with_the_number_of_slices():
    """The sums of one tile's 8 slices of 64 x 64 x 3 floats, a few tiles beside them, however long the volume."""

    def peak(n):
        volume = np.zeros((n, 64, 64), np.int16)
        tracemalloc.start()
        try:
            for _ in overlapping_probabilities(volume, as_float, identity, InferenceSpec(tile=(8, 32, 32))):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(160) < 1.1 * peak(24) < 4 * 8 * 64 * 64 * 3 * 4


def test_overlapping_slices_that_are_kept_stay_as_they_are():
    """The sums of later slices reuse the memory of finished slices. Slices that were given out must not change."""
    volume = random_volume(40, 20, 20)
    inference = InferenceSpec(tile=(8, 16, 16), gaussian=True)
    planes = overlapping_probabilities(volume, as_float, identity, inference)
    kept = [(plane, plane.copy()) for plane in planes]
    for plane, before in kept:
        np.testing.assert_array_equal(plane, before)
    assert not any(np.shares_memory(a, b) for (a, _), (b, _) in itertools.pairwise(kept))


def test_overlapping_where_one_tile_sees_a_voxel_it_is_the_tiles_to_the_bit():
    """Along every axis a tile at 0 and one at 8 of 24: the corners of 8 x 8 x 8 are seen once, with a share of 1."""
    volume = random_volume(24, 24, 24)
    found = overlapped(volume, identity, (16, 16, 16), gaussian=True)
    np.testing.assert_array_equal(found[:8, :8, :8], identity(as_float(volume))[:8, :8, :8])
    np.testing.assert_array_equal(found[16:, 16:, 16:], identity(as_float(volume))[16:, 16:, 16:])


def test_overlapping_bad_arguments():
    with pytest.raises(ValueError, match="expected a tile of 3 axes"):
        overlapped(random_volume(5, 5, 5), identity, (48, 48))
    with pytest.raises(ValueError, match=r"prediction of shape \(1, 48, 48, 48, 3\), found"):
        overlapped(random_volume(5, 5, 5), lambda batch: batch, TILE)
