"""Surface Dice and HD95 by hand, and against the ``surface-distance`` package."""

import math
import warnings

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from kitsseg.scoring import surface
from kitsseg.scoring.surface import element_areas, hausdorff_mm, surface_dice, surface_distances

TOLERANCE = 1.0330772532390826  # of kidney and mass


def shifted_box(axis, step, spacing_mm):
    """Distances of a box of 4 x 8 x 8 voxels to itself, moved."""
    truth = np.zeros((8, 16, 16), bool)
    truth[2:6, 4:12, 4:12] = True
    return surface_distances(np.roll(truth, step, axis), truth, spacing_mm)


@pytest.mark.parametrize(
    ("axis", "step", "tolerance", "expected"),
    [
        (1, 1, TOLERANCE, 1.0),
        (1, 2, TOLERANCE, 0.690316),
        (1, 2, 2.0, 1.0),
        (0, 1, TOLERANCE, 0.742822),
        (0, 1, 3.0, 1.0),
    ],
)
def test_shifted_box(axis, step, tolerance, expected):
    found = shifted_box(axis, step, (3, 1, 1))
    assert found.truth_mm2.sum() == pytest.approx(468.358518, abs=5e-7)
    assert surface_dice(found, tolerance) == pytest.approx(expected, abs=5e-7)


def test_isotropic_spacing_gives_other_values():
    isotropic = shifted_box(0, 1, (1, 1, 1))
    assert isotropic.truth_mm2.sum() != pytest.approx(468.358518, abs=1)
    assert surface_dice(isotropic, TOLERANCE) == 1.0  # a slice is 1 mm now


def test_areas_of_neighborhoods():
    areas = element_areas((1.0, 1.0, 1.0))
    # one corner: an equilateral triangle with sides of sqrt(1/2): sqrt(3)/4 * 1/2; two adjacent: 1 x sqrt(1/2);
    # four of one face: 1 x 1
    for bit in range(8):
        assert areas[1 << bit] == pytest.approx(math.sqrt(3) / 8)
    for neighbors in ((0, 1), (0, 2), (0, 4), (3, 7)):
        assert areas[sum(1 << bit for bit in neighbors)] == pytest.approx(math.sqrt(0.5))
    assert areas[0b00001111] == areas[0b11110000] == areas[0b01010101] == pytest.approx(1.0)
    np.testing.assert_array_equal(areas, areas[::-1])
    assert areas[0] == areas[255] == 0.0
    # at 3 mm between slices: a face between slices is 1 mm2, one within them 3 mm2
    thick = element_areas((3.0, 1.0, 1.0))
    assert (thick[0b11110000], thick[0b11001100], thick[0b10101010]) == pytest.approx((1.0, 3.0, 3.0))


def test_hd95_of_moved_planes_by_hand():
    """A plate of one voxel, moved by 2 slices of 3 mm: both faces lie 6 mm from those of the other."""
    truth = np.zeros((9, 40, 40), bool)
    truth[2, 5:35, 5:35] = True
    found = surface_distances(np.roll(truth, 2, axis=0), truth, (3.0, 1.0, 1.0))
    assert hausdorff_mm(found) == pytest.approx(6.0)
    assert hausdorff_mm(surface_distances(truth, truth, (3.0, 1.0, 1.0))) == 0.0


def test_hd95_takes_95_percent_of_the_area():
    """A far speck of less than 5 % of the surface does not count; at 100 % it does."""
    truth = np.zeros((20, 40, 40), bool)
    truth[5:15, 5:25, 5:25] = True
    prediction = truth.copy()
    prediction[10, 38, 38] = True
    found = surface_distances(prediction, truth, (1.0, 1.0, 1.0))
    assert hausdorff_mm(found) == 0.0
    # the speck's farthest elements lie at 39, the box's nearest at 25: 14 voxels along rows and along columns
    assert hausdorff_mm(found, 100) == pytest.approx(math.hypot(14, 14))


def test_empty_masks():
    nothing = np.zeros((3, 4, 5), bool)
    some = nothing.copy()
    some[1, 1:3, 1:3] = True
    both, one, other = (
        surface_distances(*masks, (1, 1, 1))
        for masks in ((nothing, nothing), (nothing, some), (some, nothing))
    )
    assert [surface_dice(found, 1.0) for found in (both, one, other)] == [1.0, 0.0, 0.0]
    assert all(math.isnan(hausdorff_mm(found)) for found in (both, one, other))
    outside = np.zeros((0, 0, 0), bool)
    assert surface_dice(surface_distances(outside, outside, (1, 1, 1)), 1.0) == 1.0


def test_masks_may_touch_the_border_and_boxes_change_nothing():
    rng = np.random.default_rng(1)
    small = gaussian_filter(rng.normal(size=(2, 6, 9, 8)), (0, 1, 1, 1)) > 0
    padded = np.pad(small, ((0, 0), (2, 3), (1, 4), (5, 2)))
    found, expected = (surface_distances(*pair, (2.5, 0.7, 0.9)) for pair in (small, padded))
    for name in ("truth_mm", "truth_mm2", "predicted_mm", "predicted_mm2"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-12)


def test_bad_arguments():
    mask = np.ones((2, 2, 2), bool)
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) and \(2, 2, 1\)"):
        surface_distances(mask, mask[..., :1], (1, 1, 1))
    for spacing in ((1, 1), (1, 0, 1), (1, 1, float("nan")), (1, float("inf"), 1)):
        with pytest.raises(ValueError, match="spacing_mm .*three positive sizes"):
            surface_distances(mask, mask, spacing)


@pytest.mark.parametrize("spacing_mm", [(3.0, 0.8, 0.8), (0.5, 2.0, 1.0)])
def test_the_tree_alone_gives_the_same(spacing_mm, monkeypatch):
    rng = np.random.default_rng(3)
    truth, prediction = (gaussian_filter(rng.normal(size=(2, 10, 24, 20)), (0, 1, 2, 2)) > 0.06).astype(
        np.uint8
    )
    looked_up = surface_distances(prediction, truth, spacing_mm)
    monkeypatch.setattr(surface, "LOOKED_UP", 0)
    by_tree = surface_distances(prediction, truth, spacing_mm)
    np.testing.assert_allclose(looked_up.truth_mm, by_tree.truth_mm, rtol=1e-12)
    np.testing.assert_allclose(looked_up.predicted_mm, by_tree.predicted_mm, rtol=1e-12)
    assert looked_up.truth_mm.max() > 4 * min(spacing_mm)  # some are beyond reach


def test_labels_that_count_as_inside():
    rng = np.random.default_rng(4)
    prediction, truth = rng.integers(4, size=(2, 6, 9, 8), dtype=np.uint8)
    found = surface_distances(prediction, truth, (2, 1, 1), labels=(2, 3))
    expected = surface_distances(prediction >= 2, truth >= 2, (2, 1, 1))
    np.testing.assert_array_equal(found.truth_mm, expected.truth_mm)
    np.testing.assert_array_equal(found.predicted_mm2, expected.predicted_mm2)
    with pytest.raises(ValueError, match="bool or uint8; got float64 and uint8"):
        surface_distances(prediction.astype(float), truth, (2, 1, 1))


def test_a_mask_of_bool_and_one_of_uint8_go_together():
    mask = np.zeros((3, 4, 4), bool)
    mask[1, 1:3, 1:3] = True
    found = surface_distances(mask, mask.astype(np.uint8), (1, 1, 1))
    assert len(found.truth_mm) and hausdorff_mm(found) == 0


def test_every_value_but_zero_is_inside():
    mask = np.zeros((3, 4, 4), np.uint8)
    mask[1, 1:3, 1:3] = 255
    found = surface_distances(mask, (mask > 0), (1, 1, 1))
    assert len(found.truth_mm) == len(found.predicted_mm) > 0 and hausdorff_mm(found) == 0


def test_the_whole_area_is_reached_although_its_shares_add_up_to_less_than_one():
    short = 0
    for n in range(3, 60):
        areas, mm = np.full(n, 0.1), np.arange(float(n))
        short += bool((np.cumsum(areas) / areas.sum())[-1] < 1)  # the order of both sums differs
        assert hausdorff_mm(surface.SurfaceDistances(mm, areas, mm, areas), 100) == n - 1
    assert short


def test_areas_are_kept_for_all_and_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        element_areas((1.0, 1.0, 1.0))[3] = 0


def test_tolerances_are_those_of_kits23():
    """As its website states them, to the hundredth of a millimetre, and each class has its own."""
    rounded = {name: round(mm, 2) for name, mm in surface.TOLERANCES_MM.items()}
    assert rounded == {"kidney_and_mass": 1.03, "mass": 1.13, "tumor": 1.15}


@pytest.fixture(scope="module")
def peer():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses names that SciPy has deprecated
        return pytest.importorskip("surface_distance")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fifty_random_pairs_agree_with_surface_distance(peer):
    rng = np.random.default_rng(7)
    for i in range(50):
        spacing = tuple(rng.uniform(0.4, 5, 3))
        shape = rng.integers(6, 24, 3)
        truth, other = (gaussian_filter(rng.normal(size=shape), rng.uniform(0.6, 2)) > 0.02 for _ in range(2))
        prediction = other if i % 2 else truth ^ (gaussian_filter(rng.normal(size=shape), 0.8) > 0.5)
        assert truth.any() and prediction.any()
        expected = peer.compute_surface_distances(truth, prediction, spacing)
        found = surface_distances(prediction, truth, spacing)
        assert hausdorff_mm(found) == pytest.approx(peer.compute_robust_hausdorff(expected, 95), abs=1e-9)
        for tolerance in (*rng.uniform(0.3, 6, 3), TOLERANCE):
            assert surface_dice(found, tolerance) == pytest.approx(
                peer.compute_surface_dice_at_tolerance(expected, tolerance), abs=1e-12
            )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_areas_agree_with_surface_distance(peer):
    for spacing in ((1.0, 1.0, 1.0), (3.0, 0.78, 0.78), (2.0, 3.0, 5.0)):
        expected = peer.lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
        np.testing.assert_allclose(element_areas(spacing), expected, rtol=1e-12)
