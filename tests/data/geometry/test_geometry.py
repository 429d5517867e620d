"""Grid and box of a case, and the way back to the scan's voxels, against brute force (2D U-Net)."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from kitsseg.data.geometry.geometry import Geometry, averaged_labels, labels_on_scan, plan_geometry
from kitsseg.data.geometry.resample import resample_slices
from kitsseg.files.json_records import as_builtins, converted
from kitsseg.recipe import PreprocessSpec

# (scan shape, scan spacing, target spacing)
RESAMPLED = [
    ((7, 20, 22), (5.0, 0.8, 0.7), (3.0, 0.78125, 0.78125)),  # more slices on the grid
    ((19, 18, 20), (1.0, 0.9, 0.9), (3.0, 0.78125, 0.78125)),  # fewer slices, finer in plane
    ((9, 24, 21), (3.0, 0.5, 0.6), (2.0, 0.8, 1.1)),  # coarser in plane
    ((6, 20, 20), (2.0, 0.8, 0.8), (None, 0.6, None)),
    ((8, 9, 10), (4.0, 2.0, 2.0), (1.0, 0.7, 0.6)),  # the scan's pixels step over some of the grid's
    ((5, 16, 16), (2.0, 1.0, 1.0), (1.0, 0.5, 0.5)),  # doubled
]


def spec_of(spacing_mm=(None, None, None), crop=True, low=-79.0):
    return PreprocessSpec(
        spacing_mm=spacing_mm, crop_to_body=crop, hu_window=(low, 304.0), hu_mean=101.0, hu_std=76.9
    )


def random_box(grid_shape, rng):
    start = tuple(int(rng.integers(0, m // 3 + 1)) for m in grid_shape)
    stop = tuple(int(rng.integers(m - m // 3, m + 1)) for m in grid_shape)
    return start, stop


def random_probabilities(shape, rng, smooth, background=1.0):
    """Softmax of noise: blobs where smooth, single voxels where not; mostly background."""
    logits = rng.normal(size=(*shape, 3))
    if smooth:
        logits = gaussian_filter(logits, [smooth] * 3 + [0])
        logits /= logits.std()
    logits = 3 * logits + [3 * background, 0, 0]
    p = np.exp(logits)
    return (p / p.sum(-1, keepdims=True)).astype(np.float32)


def brute_force(probabilities, geometry):
    """Background 1 around the box, each class zoomed as a volume by scipy: probabilities on the scan."""
    grid = np.zeros((*geometry.grid_shape, 3))
    grid[..., 0] = 1
    grid[tuple(slice(a, b) for a, b in zip(geometry.start, geometry.stop, strict=True))] = probabilities
    factors = [n / m for n, m in zip(geometry.scan_shape, geometry.grid_shape, strict=True)]
    return np.stack(
        [zoom(grid[..., c], factors, order=1, mode="nearest", grid_mode=True) for c in range(3)], axis=-1
    )


def geometry_of(scan_shape, spacing, target, rng):
    whole = plan_geometry(np.zeros(scan_shape, np.int16), spacing, spec_of(target, crop=False))
    start, stop = random_box(whole.grid_shape, rng)
    return Geometry(whole.scan_shape, whole.scan_spacing_mm, whole.grid_shape, start, stop)


@pytest.mark.parametrize("seed", range(6))
def test_crop_and_paste_returns_a_label_volume_unchanged(seed):
    """A body in air; its box is cut out, the labels in it come back as probabilities, in the scan's shape."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(6, 24, 3))
    start, stop = random_box(shape, rng)
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    image = np.full(shape, -1000, np.int16)
    image[box] = 0
    labels = np.zeros(shape, np.uint8)
    labels[box] = rng.integers(0, 3, labels[box].shape)
    geometry = plan_geometry(image, (3.0, 0.8, 0.8), spec_of())
    assert (geometry.start, geometry.stop) == (start, stop)
    assert geometry.shape == labels[box].shape
    planes = resample_slices(labels, geometry.grid_shape, geometry.start, geometry.stop, linear=False)
    back = labels_on_scan((np.eye(3, dtype=np.float32)[plane] for plane in planes), geometry)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, labels)


@pytest.mark.parametrize("smooth", [0, 1.5])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("scan_shape", "spacing", "target"), RESAMPLED)
def test_resampled_back_equals_brute_force(scan_shape, spacing, target, seed, smooth):
    """Voxel for voxel, except where two classes tie to within float32 rounding."""
    rng = np.random.default_rng(seed)
    geometry = geometry_of(scan_shape, spacing, target, rng)
    probabilities = random_probabilities(geometry.shape, rng, smooth)
    ours = labels_on_scan(iter(probabilities), geometry)
    expected = brute_force(probabilities, geometry)
    assert ours.shape == scan_shape == expected.shape[:3]
    top = np.sort(expected, axis=-1)
    clear = top[..., 2] - top[..., 1] > 1e-5
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(ours[clear], expected.argmax(-1)[clear])
    assert (ours > 0).any()
    assert (ours == 0).any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("scan_shape", "spacing", "target"), RESAMPLED)
def test_a_few_certain_voxels_come_back_where_they_were(scan_shape, spacing, target, seed):
    """With one to five one-hot voxels most slices and pixels are skipped; none is skipped that has foreground."""
    rng = np.random.default_rng(100 + seed)
    geometry = geometry_of(scan_shape, spacing, target, rng)
    labels = np.zeros(geometry.shape, np.uint8)
    for _ in range(int(rng.integers(1, 6))):
        labels[tuple(int(rng.integers(n)) for n in labels.shape)] = rng.integers(1, 3)
    probabilities = np.eye(3, dtype=np.float32)[labels]
    ours = labels_on_scan(iter(probabilities), geometry)
    expected = brute_force(probabilities, geometry)
    top = np.sort(expected, axis=-1)
    clear = top[..., 2] - top[..., 1] > 1e-5
    np.testing.assert_array_equal(ours[clear], expected.argmax(-1)[clear])


def test_a_region_between_the_pixels_of_a_coarse_scan():
    """2 scan pixels read 12 grid pixels at 2.5 and 8.5 only. A label at 5 alone is lost, which is no error."""
    geometry = Geometry((1, 2, 2), (1.0, 6.0, 6.0), (1, 12, 12), (0, 0, 0), (1, 12, 12))
    labels = np.zeros((1, 12, 12), np.uint8)
    labels[0, 5, 5] = 1
    assert not labels_on_scan(iter(np.eye(3, dtype=np.float32)[labels]), geometry).any()
    labels[0, 2:4, 8:10] = 2
    back = labels_on_scan(iter(np.eye(3, dtype=np.float32)[labels]), geometry)
    np.testing.assert_array_equal(back, [[[0, 2], [0, 0]]])


def test_probabilities_are_interpolated_and_not_labels():
    """Kidney 0.9 and 0.2 on two grid voxels become 0.9, 0.725, 0.375, 0.2 on four scan voxels: two are kidney.

    0.9 and 0.3 become 0.9, 0.75, 0.45, 0.3, also two; 0.9 and 0.4 become 0.9, 0.775, 0.525, 0.4, which makes three.
    """
    geometry = Geometry((1, 1, 4), (1.0, 1.0, 1.0), (1, 1, 2), (0, 0, 0), (1, 1, 2))
    for right, expected in ((0.2, [1, 1, 0, 0]), (0.3, [1, 1, 0, 0]), (0.4, [1, 1, 1, 0])):
        kidney = np.array([0.9, right], np.float32)
        plane = np.stack([1 - kidney, kidney, 0 * kidney], axis=-1)[None]
        assert labels_on_scan(iter([plane]), geometry)[0, 0].tolist() == expected


def test_slices_are_asked_for_one_by_one_and_progress_is_told():
    """A grid of 6 slices, a scan of 3: scan slice k lies at 2 k + 0.5 and reads grid slices 2 k, 2 k + 1."""
    geometry = Geometry((3, 4, 4), (2.0, 1.0, 1.0), (6, 4, 4), (0, 0, 0), (6, 4, 4))
    told = []

    def planes():
        for k in range(6):
            told.append(f"slice {k}")
            yield np.full((4, 4, 3), 1 / 3, np.float32)

    labels_on_scan(planes(), geometry, progress=lambda done, total: told.append(f"{done} of {total}"))
    assert told == [
        *("slice 0", "slice 1", "1 of 3"),
        *("slice 2", "slice 3", "2 of 3"),
        *("slice 4", "slice 5", "3 of 3"),
    ]


# grid and box


def test_the_box_of_the_body_by_hand():
    """Body at slices 2..4, rows 3..7, columns 4..9 of 10 x 12 x 14; a voxel at -79 HU exactly is not body."""
    image = np.full((10, 12, 14), -1000, np.int16)
    image[2, 3, 5] = image[4, 7, 4] = image[3, 5, 9] = -78
    image[9, 11, 13] = -79
    geometry = plan_geometry(image, (3.0, 0.8, 0.8), spec_of())
    assert geometry.start == (2, 3, 4)
    assert geometry.stop == (5, 8, 10)
    assert geometry.shape == (3, 5, 6)
    # at 1.5 and 0.4 mm the grid has twice as many voxels: 4..10, 6..16, 8..20
    geometry = plan_geometry(image, (3.0, 0.8, 0.8), spec_of((1.5, 0.4, 0.4)))
    assert geometry.grid_shape == (20, 24, 28)
    assert (geometry.start, geometry.stop) == ((4, 6, 8), (10, 16, 20))
    assert geometry.spacing_mm == pytest.approx((1.5, 0.4, 0.4))
    # at 6 and 1.6 mm: slices 2..5 of 10 become floor(1.0)..ceil(2.5), rows 1.5..4 1..4, columns 2..5
    geometry = plan_geometry(image, (3.0, 0.8, 0.8), spec_of((6.0, 1.6, 1.6)))
    assert (geometry.start, geometry.stop) == ((1, 1, 2), (3, 4, 5))


def test_a_scan_of_air_or_without_cropping_is_kept_whole():
    image = np.full((3, 4, 5), -1000, np.int16)
    for crop in (True, False):
        geometry = plan_geometry(image, (1.0, 1.0, 1.0), spec_of(crop=crop))
        assert (geometry.start, geometry.stop) == ((0, 0, 0), (3, 4, 5))
    image[1, 1, 1] = 100
    assert plan_geometry(image, (1.0, 1.0, 1.0), spec_of(crop=False)).shape == (3, 4, 5)


def test_the_spacing_is_that_of_the_whole_number_of_voxels():
    """109 slices of 5 mm on 182: 545 / 182 mm, not 3; 512 rows of 0.8 mm on 524: 409.6 / 524."""
    geometry = plan_geometry(
        np.broadcast_to(np.int16(0), (109, 512, 512)),
        (5.0, 0.8, 0.8),
        spec_of((3.0, 0.78125, 0.78125), False),
    )
    assert geometry.shape == (182, 524, 524)
    assert geometry.spacing_mm == pytest.approx((545 / 182, 409.6 / 524, 409.6 / 524))


def test_a_geometry_survives_json():
    geometry = geometry_of(*RESAMPLED[0], np.random.default_rng(0))
    assert converted(as_builtins(geometry), Geometry) == geometry


def test_a_real_label_map_survives_the_way_to_3_mm_and_back(real_data):
    """Certain probabilities of a resampled label map, interpolated linearly: Dice above 0.9."""
    import nibabel as nib

    volume = np.asanyarray(nib.load(real_data / "kits19" / "case_00160" / "segmentation.nii.gz").dataobj)
    slices = np.flatnonzero(volume.any(axis=(1, 2)))
    labels = np.ascontiguousarray(volume[slices[0] : slices[0] + 12])
    geometry = plan_geometry(labels, (5.0, 0.8, 0.8), spec_of((3.0, 0.78125, 0.78125), crop=False))
    planes = resample_slices(labels, geometry.grid_shape, geometry.start, geometry.stop, linear=False)
    back = labels_on_scan((np.eye(3, dtype=np.float32)[plane] for plane in planes), geometry)
    assert back.shape == labels.shape
    overlap = 2 * np.sum((back > 0) & (labels > 0)) / (np.sum(back > 0) + np.sum(labels > 0))
    assert overlap > 0.9


def test_a_grid_has_at_least_one_pixel():
    """One pixel halved: max(1, round(0.5)) = 1."""
    spec = replace(spec_of(crop=False), in_plane_factor=0.5)
    assert plan_geometry(np.zeros((2, 1, 4), np.int16), (1.0, 1.0, 1.0), spec).grid_shape == (2, 1, 2)


def test_background_wins_a_tie():
    """0.5 and 0.5 on the grid, and between two voxels, 0.75 and 0.25 of kidney: background."""
    geometry = Geometry((1, 1, 1), (1.0, 1.0, 1.0), (1, 1, 2), (0, 0, 0), (1, 1, 2))
    for left, right in ((0.5, 0.5), (0.75, 0.25)):
        kidney = np.array([[[left, right]]], np.float32)
        planes = np.stack([1 - kidney, kidney, 0 * kidney], axis=-1)
        assert not labels_on_scan(iter(planes), geometry).any()


def test_a_region_between_the_pixels_of_one_coarse_axis():
    """As in both axes, along one of them: 2 rows read 12 of the grid at 2.5 and 8.5, the columns are the grid's own."""
    for axis, shape in ((1, (1, 2, 12)), (2, (1, 12, 2))):
        geometry = Geometry(shape, (1.0, 1.0, 1.0), (1, 12, 12), (0, 0, 0), (1, 12, 12))
        labels = np.zeros((1, 12, 12), np.uint8)
        labels[0, 5, 5] = 1
        assert not labels_on_scan(iter(np.eye(3, dtype=np.float32)[labels]), geometry).any()
        labels[0, 8, 8] = 2
        back = labels_on_scan(iter(np.eye(3, dtype=np.float32)[labels]), geometry)
        assert not back.any()  # half of it at 8.5: a tie
        labels[0, 8:10, 8:10] = 2
        back = labels_on_scan(iter(np.eye(3, dtype=np.float32)[labels]), geometry)
        assert np.argwhere(back)[:, axis].tolist() == [1, 1]


def test_two_slices_of_probabilities_are_kept_at_a_time():
    """200 slices of 64 x 64 pixels and three classes are 9.8 MB: not a tenth of it is in memory at once."""
    geometry = Geometry((200, 64, 64), (1.0, 1.0, 1.0), (200, 64, 64), (0, 0, 0), (200, 64, 64))
    plane = np.tile(np.array([0.2, 0.7, 0.1], np.float32), (64, 64, 1))
    tracemalloc.start()
    try:
        labels = labels_on_scan((plane for _ in range(200)), geometry)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (labels == 1).all()
    assert peak - labels.nbytes < 20 * plane.nbytes


@pytest.mark.parametrize("seed", range(8))
def test_networks_that_look_at_different_corners(seed):
    """Small boxes apart from each other, in every direction; the third network sees background alone."""
    rng = np.random.default_rng(seed)
    whole = plan_geometry(
        np.zeros((9, 24, 21), np.int16), (3.0, 0.8, 0.6), spec_of((2.0, 0.8, 1.1), crop=False)
    )
    members, expected = [], 0
    for weight, background in ((4, -3), (1, -3), (1, 9)):
        start = tuple(int(rng.integers(n - 3)) for n in whole.grid_shape)
        geometry = replace(whole, start=start, stop=tuple(a + int(rng.integers(2, 4)) for a in start))
        probabilities = random_probabilities(geometry.shape, rng, 0, background)
        members.append((iter(probabilities), geometry, weight))
        expected = expected + brute_force(probabilities, geometry) * weight / 6
    ours = averaged_labels(members)
    top = np.sort(expected, axis=-1)
    clear = top[..., 2] - top[..., 1] > 1e-5
    np.testing.assert_array_equal(ours[clear], expected.argmax(-1)[clear])
    assert ours.any()  # what the network of weight 4 says wins against the others' background


@pytest.mark.parametrize("start", [(0, 6), (6, 0), (12, 6), (6, 12), (0, 0), (12, 12), (0, 12)])
def test_a_network_that_sees_background_beside_the_other_ones_kidney(start):
    """Kidney in 4 x 4 of 16 x 16 pixels; the box of the second network, 4 x 4 pixels, lies two pixels beside it."""
    whole = Geometry((1, 16, 16), (1.0, 1.0, 1.0), (1, 16, 16), (0, 0, 0), (1, 16, 16))
    beside = replace(whole, start=(0, *start), stop=(1, start[0] + 4, start[1] + 4))
    labels = np.zeros((1, 16, 16), np.uint8)
    labels[0, 6:10, 6:10] = 1
    sees = np.eye(3, dtype=np.float32)
    members = [(iter(sees[labels]), whole, 2), (iter(sees[np.zeros((1, 4, 4), np.uint8)]), beside, 1)]
    np.testing.assert_array_equal(averaged_labels(members), labels)


@pytest.mark.parametrize("given", [0, 1, 5])
def test_too_few_slices_of_probabilities_are_named(given):
    geometry = Geometry((9, 4, 4), (1.0, 1.0, 1.0), (9, 4, 4), (2, 0, 0), (8, 4, 4))
    planes = (np.full((4, 4, 3), 1 / 3, np.float32) for _ in range(given))
    with pytest.raises(
        ValueError, match=f"expected probabilities of 6 slices, found {given}. Yield those of every"
    ):
        labels_on_scan(planes, geometry)


def test_slices_of_another_size_are_refused():
    geometry = Geometry((6, 4, 4), (1.0, 1.0, 1.0), (6, 4, 4), (0, 1, 0), (6, 4, 3))
    planes = (np.full((4, 4, 3), 1 / 3, np.float32) for _ in range(6))
    with pytest.raises(ValueError, match=r"expected slices of \(3, 3\) pixels, found \(4, 4\)"):
        labels_on_scan(planes, geometry)


# the mean of several networks


@pytest.mark.parametrize("smooth", [0, 1.5])
@pytest.mark.parametrize("seed", range(6))
def test_a_mean_over_different_grids_equals_brute_force(seed, smooth):
    """Three grids of one scan, weights 1, 2 and 1: every class zoomed as a volume, then the mean, then the arg-max."""
    rng = np.random.default_rng(seed)
    scan, spacing = (9, 24, 21), (3.0, 0.8, 0.6)
    targets = [(2.0, 0.8, 1.1), (None, None, None), (4.5, 0.5, 0.9)]
    geometries = [geometry_of(scan, spacing, target, rng) for target in targets]
    probabilities = [random_probabilities(g.shape, rng, smooth, background=0.5) for g in geometries]
    members = [(iter(p), g, w) for p, g, w in zip(probabilities, geometries, (1, 2, 1), strict=True)]
    ours = averaged_labels(members)
    each = [brute_force(p, g) for p, g in zip(probabilities, geometries, strict=True)]
    expected = (each[0] + 2 * each[1] + each[2]) / 4
    top = np.sort(expected, axis=-1)
    clear = top[..., 2] - top[..., 1] > 1e-5
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(ours[clear], expected.argmax(-1)[clear])
    assert (ours > 0).any()
    # and no single network says the same
    for p, g in zip(probabilities, geometries, strict=True):
        assert not np.array_equal(labels_on_scan(iter(p), g), ours)


def test_a_mean_by_hand():
    """Kidney 0.9 of one and 0.2 of another: 0.55 wins. With weights 1 and 2: 1.3 / 3 does not."""
    geometry = Geometry((1, 1, 1), (1.0, 1.0, 1.0), (1, 1, 1), (0, 0, 0), (1, 1, 1))
    one, two = (np.array([[[[1 - p, p, 0]]]], np.float32) for p in (0.9, 0.2))
    assert averaged_labels([(iter(one), geometry, 1), (iter(two), geometry, 1)]).tolist() == [[[1]]]
    assert averaged_labels([(iter(one), geometry, 1), (iter(two), geometry, 2)]).tolist() == [[[0]]]


def test_the_mean_of_equal_networks_is_each_of_them():
    rng = np.random.default_rng(0)
    geometry = geometry_of((9, 24, 21), (3.0, 0.5, 0.6), (2.0, 0.8, 1.1), rng)
    probabilities = random_probabilities(geometry.shape, rng, 1.5)
    both = averaged_labels([(iter(probabilities), geometry, 1), (iter(probabilities), geometry, 1)])
    np.testing.assert_array_equal(both, labels_on_scan(iter(probabilities), geometry))
