import csv
import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from skimage import measure
from support import REAL as SHARED

from kitsseg.labels import distances
from kitsseg.labels.components import components
from kitsseg.labels.distances import distance_mm
from kitsseg.labels.postprocess import reassign_small_components, remove_far_components

CORNERS = np.ones((3, 3, 3))
SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.78125, 0.78125), (0.5, 0.9, 0.7)]


def counts(labels):
    return np.bincount(labels.ravel(), minlength=3).tolist()


def random_labels(seed, shape=(9, 17, 23), density=0.15):
    """Blobs of both labels with holes, and noise of single voxels."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    labels = (smooth > np.quantile(smooth, 1 - density)).astype(np.uint8)
    labels[smooth > np.quantile(smooth, 1 - density / 4)] = 2
    noise = rng.random(shape)
    labels[noise < 0.02] = 0
    labels[noise > 0.98] = 1
    labels[noise > 0.995] = 2
    return labels


def two_kidneys_and_specks():
    """A kidney with a tumor, another kidney, and three small objects at 3, 8.5 and 9 mm (spacing 3, 1, 1)."""
    labels = np.zeros((12, 24, 40), np.uint8)
    labels[2:6, 5:15, 2:12] = 1
    labels[2:6, 5:15, 26:36] = 1
    labels[2:6, 5:9, 12:15] = 2
    labels[2:4, 17:19, 4:6] = 2
    labels[8:10, 8:12, 4:8] = 1
    labels[2:4, 20:22, 18:21] = 1
    return labels


# ---- components ----------------------------------------------------------------------------------


@pytest.mark.parametrize("connectivity", [6, 26])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6, 0.97])
@pytest.mark.parametrize("shape", [(7, 9, 11), (40, 8, 5), (1, 13, 13), (13, 1, 6), (5, 6, 1), (1, 1, 1)])
def test_components_equal_scipy_and_skimage_on_noise(shape, density, connectivity):
    mask = np.random.default_rng(sum(shape)).random(shape) < density
    found = components(mask, connectivity)
    labelled = np.zeros(shape, int)
    labelled.reshape(-1)[found.runs.voxels()] = np.repeat(found.ids + 1, found.runs.length)
    expected, n = ndimage.label(mask, CORNERS if connectivity == 26 else None)
    np.testing.assert_array_equal(labelled, expected)
    np.testing.assert_array_equal(found.voxels, np.bincount(expected.ravel(), minlength=n + 1)[1:])
    other = measure.label(mask, connectivity=3 if connectivity == 26 else 1)
    assert len(found.voxels) == other.max()
    assert sorted(found.voxels) == sorted(np.bincount(other.ravel())[1:])


def test_components_are_the_same_in_slabs_of_any_size(monkeypatch):
    mask = np.random.default_rng(0).random((11, 6, 7)) < 0.2
    whole = components(mask)
    monkeypatch.setattr("kitsseg.labels.components.SLAB_BYTES", 2 * 6 * 7)
    slabs = components(mask)
    np.testing.assert_array_equal(whole.ids, slabs.ids)
    np.testing.assert_array_equal(whole.runs.line, slabs.runs.line)


def test_components_merge_labels_and_do_not_wrap_around_lines():
    labels = np.zeros((2, 3, 4), np.uint8)
    labels[0, 0, 3] = 1  # last column of a row and first column of the next are no neighbors
    labels[0, 1, 0] = 2
    labels[0, 2, 3] = 1  # nor are the last row of a slice and the first of the next
    assert components(labels).voxels.tolist() == [1, 1, 1]
    labels[1, 0, 3] = 2
    assert components(labels).voxels.tolist() == [2, 1, 1]  # one slice apart: joined, kidney and tumor alike
    row = np.array([[[1, 2, 0, 2]]], np.uint8)
    assert components(row).voxels.tolist() == [2, 1]


@pytest.mark.parametrize("shape", [(3, 4, 5), (0, 4, 5), (3, 0, 5), (3, 4, 0)])
def test_components_of_nothing_and_of_everything(shape):
    assert components(np.zeros(shape, bool)).voxels.tolist() == []
    full = components(np.ones(shape, bool)).voxels.tolist()
    assert full == ([np.prod(shape)] if np.prod(shape) else [])


@pytest.mark.parametrize("bad", [np.zeros((3, 4), bool), np.zeros((3, 4, 5)), [[[0]]]])
def test_components_reject_other_arrays(bad):
    with pytest.raises(ValueError, match=r"uint8 or bool array \(slices, rows, columns\); got"):
        components(bad)


def test_components_reject_other_connectivity():
    with pytest.raises(ValueError, match="6 or 26; got 18"):
        components(np.zeros((3, 3, 3), bool), 18)


# ---- distances -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("seed", range(4))
def test_distances_equal_the_distance_transform(seed, spacing_mm):
    labels = random_labels(seed)
    expected, n = ndimage.label(labels, CORNERS)
    parts = components(labels)
    main = np.argsort(-parts.voxels)[:2]
    field = ndimage.distance_transform_edt(~np.isin(expected, main + 1), sampling=spacing_mm)
    wanted = ndimage.minimum(field, expected, np.arange(1, n + 1))
    assert n > 5
    np.testing.assert_allclose(distance_mm(parts, main, spacing_mm), wanted, rtol=1e-12)
    limited = np.where(wanted <= 4.0, wanted, np.inf)
    np.testing.assert_allclose(distance_mm(parts, main, spacing_mm, limit_mm=4.0), limited, rtol=1e-12)


def test_distance_across_the_whole_volume():
    labels = np.zeros((30, 40, 50), bool)
    labels[0, 0, 49] = labels[29, 39, 0] = True
    # 29, 39 and 49 steps of 2, 1 and 0.5 mm
    expected = np.sqrt(58**2 + 39**2 + 24.5**2)
    assert distance_mm(components(labels), [0], (2.0, 1.0, 0.5)).tolist() == pytest.approx([0.0, expected])


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_far_specks_are_compared_with_everything_or_searched_with_one_result(spacing_mm, monkeypatch):
    """For far specks there are two ways, all pairs of voxels and a search. They agree in distances and labels.

    The distance transform gives the same distances.
    """
    rng = np.random.default_rng(5)
    labels = np.zeros((24, 40, 30), np.uint8)
    labels[:3, :6, :8] = 1
    labels[1, 2:5, 3:8] = 2
    for corner in rng.integers(12, (23, 39, 29), (12, 3)):
        labels[tuple(corner)] = 1
    parts = components(labels)
    main = [int(np.argmax(parts.voxels))]
    body = parts.runs.take(parts.ids == main[0])
    specks = parts.runs.take(parts.ids != main[0])
    is_body = ndimage.label(labels, CORNERS)[0] == main[0] + 1
    field = ndimage.distance_transform_edt(~is_body, sampling=spacing_mm)
    wanted = field.ravel()[specks.voxels()]
    assert wanted.min() > 9 * min(spacing_mm) and len(wanted) > 8
    found = {}
    for pairs in (0, 1 << 26):
        monkeypatch.setattr(distances, "FAR_PAIRS", pairs)
        squared, value = distances.nearest(specks, body, spacing_mm)
        np.testing.assert_allclose(np.sqrt(squared), wanted, rtol=1e-12)
        limit = float(np.median(wanted))
        limited, of_limited = distances.nearest(specks, body, spacing_mm, limit)
        np.testing.assert_allclose(np.sqrt(limited), np.where(wanted <= limit, wanted, np.inf), rtol=1e-12)
        assert not of_limited[np.isinf(limited)].any()
        found[pairs] = value.tolist()
    assert found[0] == found[1 << 26]


# ---- remove_far_components (enhanced U-Net) ------------------------------------------------------


def test_enhanced_unet_components_and_distances():
    spacing_mm = (3, 1, 1)
    parts = components(two_kidneys_and_specks())
    volumes = (parts.voxels * 3).tolist()
    # 3 mm3 times: 4*10*10 + 4*4*3, 4*10*10, 2*2*2, 2*2*3 and 2*4*4 voxels, in the order of their first voxel
    assert volumes == [1344, 1200, 24, 36, 96]
    distances = distance_mm(parts, [0, 1], spacing_mm)
    # row 14 to 17; row 14 to 20 and column 20 to 26: sqrt(36 + 36); slice 5 to 8: 3 slices of 3 mm
    assert distances.tolist() == pytest.approx([0, 0, 3, np.sqrt(72), 9])


@pytest.mark.parametrize(
    ("max_distance_mm", "expected"),
    [(5, [10664, 800, 56]), (10, [10620, 844, 56]), (0, [10672, 800, 48]), (9, [10620, 844, 56])],
)
def test_enhanced_unet_voxel_counts(max_distance_mm, expected):
    labels = two_kidneys_and_specks()
    before = labels.copy()
    kept = remove_far_components(labels, (3, 1, 1), max_distance_mm=max_distance_mm)
    assert counts(labels) == [10620, 844, 56]
    assert counts(kept) == expected
    np.testing.assert_array_equal(labels, before)
    assert kept is not labels and kept.dtype == np.uint8


def test_distance_is_in_millimeters_not_voxels():
    labels = two_kidneys_and_specks()
    assert remove_far_components(labels, (3, 1, 1), max_distance_mm=5)[8, 8, 4] == 0  # 3 slices are 9 mm
    assert remove_far_components(labels, (1, 1, 1), max_distance_mm=5)[8, 8, 4] == 1  # 3 slices are 3 mm


def test_enhanced_unet_no_kidney_one_kidney_horseshoe():
    empty = np.zeros((4, 20, 40), np.uint8)
    one = empty.copy()
    one[1:3, 5:15, 5:15] = 1
    horseshoe = one.copy()
    horseshoe[1:3, 5:15, 25:35] = 1
    horseshoe[1:3, 14, 15:25] = 1
    for labels in (empty, one, horseshoe, np.ones_like(empty), np.full_like(empty, 2)):
        kept = remove_far_components(labels, (3, 0.8, 0.8), max_distance_mm=0)
        np.testing.assert_array_equal(kept, labels)
        assert not np.shares_memory(kept, labels)


def test_second_component_counts_as_kidney_from_the_ratio_on():
    labels = np.zeros((1, 12, 60), np.uint8)
    labels[0, :10, :10] = 1  # 100 voxels
    labels[0, 0, 50:55] = 1  # 5 voxels, 41 mm away
    assert counts(remove_far_components(labels, (1, 1, 1)))[1] == 105  # 5 = 0.05 * 100
    assert counts(remove_far_components(labels, (1, 1, 1), min_ratio=0.051))[1] == 100
    assert counts(remove_far_components(labels, (1, 1, 1), n_main=1))[1] == 100


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("seed", range(4))
def test_remove_far_equals_distance_transform_route(seed, spacing_mm):
    labels = random_labels(seed, density=0.05)
    ids, n = ndimage.label(labels, CORNERS)
    voxels = np.bincount(ids.ravel())[1:]
    order = np.argsort(-voxels, kind="stable")[:2]
    main = order[voxels[order] >= 0.05 * voxels[order[0]]]
    field = ndimage.distance_transform_edt(~np.isin(ids, main + 1), sampling=spacing_mm)
    nearest = ndimage.minimum(field, ids, np.arange(1, n + 1))
    limit = float(np.median(nearest)) + 1e-3
    expected = np.where(np.isin(ids, np.flatnonzero(nearest > limit) + 1), 0, labels)
    assert 0 < (expected != labels).sum() < (labels > 0).sum()
    np.testing.assert_array_equal(remove_far_components(labels, spacing_mm, max_distance_mm=limit), expected)


def test_remove_far_twice_changes_nothing_more():
    labels = random_labels(7, density=0.05)
    once = remove_far_components(labels, (1, 1, 1), max_distance_mm=2)
    np.testing.assert_array_equal(remove_far_components(once, (1, 1, 1), max_distance_mm=2), once)


# ---- reassign_small_components (3D DeepLab) ------------------------------------------------------


def kidney_with_spots():
    labels = np.zeros((12, 24, 40), np.uint8)
    labels[2:9, 4:20, 4:20] = 1
    labels[4:7, 8:14, 8:14] = 2
    labels[5, 10, 10] = 1
    labels[3, 6, 6] = 0
    labels[3, 17:19, 17] = 2
    labels[10, 2, 30:33] = 1
    return labels


def test_deeplab3d_refinement():
    labels = kidney_with_spots()
    before = labels.copy()
    # kidney 7*16*16 = 1792, tumor 3*6*6 = 108; the spots move 1 to kidney, 1 to background, 2 to tumor, 3 to
    # kidney
    assert counts(labels) == [9726, 1685, 109]
    refined = reassign_small_components(labels, (3, 1, 1), {0: 50, 1: 50, 2: 20})
    assert counts(refined) == [9728, 1684, 108]
    assert (refined != labels).sum() == 7
    assert refined[5, 10, 10] == 2 and refined[3, 6, 6] == 1
    assert (refined[3, 17:19, 17] == 1).all() and (refined[10, 2, 30:33] == 0).all()
    np.testing.assert_array_equal(labels, before)


def refine_dense(labels, spacing_mm, min_mm3):
    """Marked voxels, and the labels of all nearest unmarked voxels of each (a set, since ties are free)."""
    marked = np.zeros(labels.shape, bool)
    for value, minimum in min_mm3.items():
        ids = measure.label(labels == value, connectivity=1 if value == 0 else 3)
        small = np.bincount(ids.ravel()) * np.prod(spacing_mm) < minimum
        small[0] = False
        marked |= small[ids]
    by_label = np.stack(
        [
            ndimage.distance_transform_edt((labels != value) | marked, sampling=spacing_mm)
            if ((labels == value) & ~marked).any()
            else np.full(labels.shape, np.inf)
            for value in (0, 1, 2)
        ]
    )
    allowed = by_label <= by_label.min(0) * (1 + 1e-9)
    return marked, allowed


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("min_mm3", [{0: 5, 1: 10, 2: 10}, {1: 40}, {0: 100, 1: 500, 2: 200}])
@pytest.mark.parametrize("seed", range(3))
def test_reassign_equals_dense_route(seed, min_mm3, spacing_mm):
    labels = random_labels(seed)
    marked, allowed = refine_dense(labels, spacing_mm, min_mm3)
    assert marked.any() and not marked.all()
    refined = reassign_small_components(labels, spacing_mm, min_mm3)
    np.testing.assert_array_equal(refined[~marked], labels[~marked])
    # of equally near labels the highest
    np.testing.assert_array_equal(refined[marked], (2 - allowed[::-1].argmax(0))[marked])


def test_reassign_agrees_with_scipy_indices_where_one_label_is_nearest():
    labels, spacing_mm, minimum = random_labels(11), (2.0, 0.8, 0.8), {0: 5, 1: 10, 2: 10}
    marked, allowed = refine_dense(labels, spacing_mm, minimum)
    index = ndimage.distance_transform_edt(
        marked, sampling=spacing_mm, return_distances=False, return_indices=True
    )
    unique = marked & (allowed.sum(0) == 1)
    assert unique.sum() > 20
    refined = reassign_small_components(labels, spacing_mm, minimum)
    np.testing.assert_array_equal(refined[unique], labels[tuple(index)][unique])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_reassign_of_a_mirrored_volume_is_the_mirrored_result(axis):
    labels, arguments = random_labels(5), ((3.0, 0.7, 0.7), {0: 5, 1: 10, 2: 10})
    mirrored = reassign_small_components(np.flip(labels, axis), *arguments)
    np.testing.assert_array_equal(mirrored, np.flip(reassign_small_components(labels, *arguments), axis))


def test_reassign_threshold_is_below_not_equal():
    labels = np.zeros((3, 9, 9), np.uint8)
    labels[1, 4, 3:7] = 1  # 4 voxels of 2 mm3
    assert counts(reassign_small_components(labels, (2, 1, 1), {1: 8.0}))[1] == 4
    assert counts(reassign_small_components(labels, (2, 1, 1), {1: 8.1}))[1] == 0
    assert counts(reassign_small_components(labels, (2, 1, 1), {2: 100}))[1] == 4  # kidney not named: stays


def test_background_is_six_connected_and_labels_are_26_connected():
    hole = np.ones((5, 5, 5), np.uint8)
    hole[0] = 0  # 25 voxels of background
    hole[1, 1, 1] = 0  # joined to it by a face
    hole[2, 2, 2] = 0  # joined to [1, 1, 1] by a corner only: a hole
    refined = reassign_small_components(hole, (1, 1, 1), {0: 10})
    assert refined[1, 1, 1] == 0 and refined[2, 2, 2] == 1
    refined = reassign_small_components((1 - hole).astype(np.uint8), (1, 1, 1), {1: 10})
    assert refined[2, 2, 2] == 1  # as kidney the corner counts


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros((4, 5, 6), np.uint8),
        np.full((4, 5, 6), 2, np.uint8),
        np.array([[[1]]], np.uint8),
        np.zeros((0, 5, 6), np.uint8),
    ],
)
def test_reassign_leaves_uniform_single_voxel_and_empty_volumes(labels):
    # 120 mm3 of one label are below its threshold, but no voxel is left to take a label from
    refined = reassign_small_components(labels, (1, 1, 1), {0: 500, 1: 500, 2: 500})
    np.testing.assert_array_equal(refined, labels)


def test_reassign_at_the_border_of_the_volume():
    labels = np.zeros((4, 6, 6), np.uint8)
    labels[0, 0, 0] = labels[3, 5, 5] = 2
    labels[0, 0, 5] = 1
    assert counts(reassign_small_components(labels, (1, 1, 1), {1: 2, 2: 2})) == [144, 0, 0]


# ---- both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [remove_far_components, reassign_small_components])
def test_wrong_arguments_are_named(function):
    labels = np.zeros((3, 4, 5), np.uint8)
    with pytest.raises(
        ValueError, match=r"expected a uint8 array \(slices, rows, columns\); got int64 \(3, 4, 5\)"
    ):
        function(labels.astype(np.int64), (1, 1, 1))
    with pytest.raises(ValueError, match=r"got uint8 \(4, 5\)"):
        function(labels[0], (1, 1, 1))
    for spacing_mm in [(1, 1), (1, 0, 1), (1, 1, float("nan")), (1, -1, 1)]:
        with pytest.raises(ValueError, match="spacing_mm .*three positive sizes"):
            function(labels, spacing_mm)


def test_wrong_thresholds_are_named():
    labels = np.zeros((3, 4, 5), np.uint8)
    with pytest.raises(ValueError, match="max_distance_mm .*negative; got -1"):
        remove_far_components(labels, (1, 1, 1), max_distance_mm=-1)
    with pytest.raises(ValueError, match="n_main must be at least 1; got 0"):
        remove_far_components(labels, (1, 1, 1), n_main=0)
    with pytest.raises(ValueError, match=r"min_mm3\[2\] .*negative; got -5"):
        reassign_small_components(labels, (1, 1, 1), {2: -5})


@pytest.mark.parametrize("function", [remove_far_components, reassign_small_components])
def test_any_memory_order_and_read_only_input(function):
    labels = random_labels(3)
    fortran = np.asfortranarray(labels)
    fortran.flags.writeable = False
    kept = function(fortran, (3, 1, 1))
    np.testing.assert_array_equal(kept, function(labels, (3, 1, 1)))
    assert kept.flags.c_contiguous and kept.flags.writeable


def test_no_temporary_of_the_volumes_size():
    labels = np.zeros((64, 256, 256), np.uint8)  # 4 MiB
    labels[20:40, 50:150, 50:150] = 1
    labels[50, 200, 200] = labels[30, 100, 100] = 2
    for function in (remove_far_components, reassign_small_components):
        tracemalloc.start()
        function(labels, (3, 0.8, 0.8))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # the result, and for the runs less than half a byte per voxel beside a slab of 1 MiB and its copies;
        # a label image of scipy alone would be 4 bytes per voxel
        assert peak < 2.5 * labels.nbytes


def real_labels(case):
    path = SHARED / "kits19" / case / "segmentation.nii.gz"
    if not path.is_file():
        pytest.skip(
            f"real KiTS19 label maps are not here: {path.name} of {case} is looked for beside the checkout"
        )
    labels = np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes())).dataobj)
    with (SHARED / "kits19_label_stats.csv").open() as table:
        row = next(row for row in csv.DictReader(table) if row["case_id"] == case)
    return np.ascontiguousarray(labels.astype(np.uint8)), tuple(float(row[key]) for key in ("sz", "sy", "sx"))


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("case", ["case_00015", "case_00023", "case_00061"])
def test_real_labels_agree_with_scipy_and_are_hardly_changed(case):
    labels, spacing_mm = real_labels(case)
    ids, n = ndimage.label(labels, CORNERS)
    parts = components(labels)
    np.testing.assert_array_equal(parts.voxels, np.bincount(ids.ravel(), minlength=n + 1)[1:])
    far = remove_far_components(labels, spacing_mm)
    # of all 210 true maps only 15 and 201 have a piece farther than 10 mm, of at most 0.01 mL
    assert ((far != labels).sum() > 0) == (case == "case_00015")
    assert (far != labels).sum() * np.prod(spacing_mm) <= 10
    assert dice(far > 0, labels > 0) >= 0.99998 and dice(far == 2, labels == 2) == 1
    refined = reassign_small_components(labels, spacing_mm)
    assert dice(refined > 0, labels > 0) >= 0.999 and dice(refined == 2, labels == 2) >= 0.997


def test_real_single_component_is_untouched():
    labels, spacing_mm = real_labels("case_00005")
    assert len(components(labels).voxels) == 1
    np.testing.assert_array_equal(remove_far_components(labels, spacing_mm, max_distance_mm=0), labels)


def test_real_distances_equal_the_distance_transform():
    labels, spacing_mm = real_labels("case_00015")
    labels = labels[::2, ::2, ::2]
    spacing_mm = tuple(2 * size for size in spacing_mm)
    ids, n = ndimage.label(labels, CORNERS)
    parts = components(labels)
    main = np.argsort(-parts.voxels)[:2]
    field = ndimage.distance_transform_edt(~np.isin(ids, main + 1), sampling=spacing_mm)
    expected = ndimage.minimum(field, ids, np.arange(1, n + 1))
    np.testing.assert_allclose(distance_mm(parts, main, spacing_mm), expected, atol=1e-9)
