"""Sizes of kidneys and tumors by side, and what is removed on request: hand-made label maps, hand-computed numbers."""

import numpy as np
import pytest

from kitsseg.labels.volumes import Cleanup, cleaned, volumes_of

MM = (5.0, 2.0, 1.0)  # 10 mm3 a voxel


def empty():
    return np.zeros((4, 10, 200), np.uint8)


def test_two_kidneys_tell_left_from_right_wherever_the_patient_lies():
    labels = empty()
    labels[0:2, 0:5, 10:20] = 1  # 100 voxels in low columns: right
    labels[0:2, 0:5, 80:100] = 1  # 200 voxels in higher columns: left, though all lie in one half of the scan
    labels[0, 0, 90:94] = 2
    found = volumes_of(labels, MM)
    assert (found.right_kidney_ml, found.left_kidney_ml) == pytest.approx((1.0, 1.96))
    assert (found.right_tumor_ml, found.left_tumor_ml) == pytest.approx((0.0, 0.04))
    assert found.sides_by == "two kidneys"
    mirrored = volumes_of(labels[..., ::-1].copy(), MM)
    assert (mirrored.left_kidney_ml, mirrored.right_kidney_ml) == pytest.approx((1.0, 1.96))


def test_one_kidney_is_judged_by_the_middle_of_the_scan_and_a_horseshoe_is_cut_there():
    labels = empty()
    labels[0:2, 0:5, 120:150] = 1
    found = volumes_of(labels, MM)
    assert (found.left_kidney_ml, found.right_kidney_ml) == pytest.approx((3.0, 0.0))
    assert found.sides_by == "the middle of the scan"
    labels[0:2, 0:5, 60:150] = 1  # 40 columns below the middle 99.5, 50 above
    found = volumes_of(labels, MM)
    assert (found.right_kidney_ml, found.left_kidney_ml) == pytest.approx((4.0, 5.0))
    assert found.sides_by == "a cut at the middle of the scan"


def test_tumors_are_counted_largest_first_and_say_whether_they_touch_a_kidney():
    labels = empty()
    labels[0:2, 0:5, 10:20] = 1
    labels[0:2, 0:5, 80:100] = 1
    labels[0:2, 0:5, 15:18] = 2  # 30 voxels within the right kidney
    labels[0, 0, 100:102] = 2  # 2 voxels beside the left one
    labels[3, 9, 180:185] = 2  # 5 voxels far away, on the left
    found = volumes_of(labels, MM)
    assert [(one.side, pytest.approx(one.ml), one.touches_kidney) for one in found.tumors] == [
        ("right", 0.3, True),
        ("left", 0.05, False),
        ("left", 0.02, True),
    ]
    assert found.left_tumor_ml == pytest.approx(0.07)
    assert volumes_of(empty(), MM).tumors == ()


def test_sizes_for_people_have_three_digits():
    labels = empty()
    labels[0, 0, 10:14] = 1
    labels[0, 0, 14:21] = 2
    found = volumes_of(labels, (1.0, 1.0 / 3, 0.5)).rounded()  # a sixth of a cubic millimeter a voxel
    assert (found.right_kidney_ml, found.right_tumor_ml) == (0.001, 0.001)
    assert found.tumors[0].ml == 0.001


def test_small_pieces_and_tumors_off_the_kidneys_are_removed_and_nothing_else():
    labels = empty()
    labels[0:2, 0:5, 10:20] = 1
    labels[0, 0, 20:22] = 2
    labels[3, 9, 50:60] = 1  # 10 voxels, 100 mm3
    labels[3, 9, 150:165] = 2  # 15 voxels, 150 mm3
    before = labels.copy()
    small = cleaned(labels, MM, Cleanup(remove_small_mm3=150.0))
    assert [(small == value).sum() for value in (1, 2)] == [100, 17]
    on_kidneys = cleaned(labels, MM, Cleanup(tumors_on_kidneys=True))
    assert [(on_kidneys == value).sum() for value in (1, 2)] == [110, 2]
    np.testing.assert_array_equal(labels, before)
    assert cleaned(labels, MM, None) is labels
