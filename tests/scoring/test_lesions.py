"""Tumors found, missed and invented, on boxes that can be counted."""

import numpy as np
import pytest

from kitsseg.scoring.cases import find_lesions, lesion_counts

MM = (2.0, 1.0, 1.0)  # 0.002 ml a voxel


def volume(*boxes):
    labels = np.zeros((6, 12, 12), np.uint8)
    labels[:, 1:11, 1:11] = 1
    for box in boxes:
        labels[box] = 2
    return labels


LARGE, SMALL, FAR = np.s_[0:2, 2:7, 2:4], np.s_[4, 8, 8:10], np.s_[4, 2, 2]  # 20, 2 and 1 voxels


def test_found_missed_and_false():
    truth = volume(LARGE, SMALL)
    prediction = volume(np.s_[0:1, 2:4, 2:4], FAR)  # 4 of the 20 voxels, and a speck of its own
    found = find_lesions(prediction, truth, MM)
    assert found["truth"] == [
        {"ml": pytest.approx(0.04), "share": 0.2},
        {"ml": pytest.approx(0.004), "share": 0.0},
    ]
    assert found["prediction"] == [
        {"ml": pytest.approx(0.008), "share": 1.0},
        {"ml": pytest.approx(0.002), "share": 0.0},
    ]
    counts = {"lesions": 2, "lesions_found": 1, "predicted_lesions": 2, "false_lesions": 1}
    assert lesion_counts(found) == counts
    assert lesion_counts(found, min_share=0.21) == counts | {"lesions_found": 0}


def test_a_tenth_is_enough():
    truth = volume(LARGE)
    for voxels, is_found in ((2, True), (1, False)):  # of 20
        found = find_lesions(volume(np.s_[0, 2, 2 : 2 + voxels]), truth, MM)
        assert lesion_counts(found)["lesions_found"] == is_found
        assert lesion_counts(found)["false_lesions"] == 0


def test_a_predicted_lesion_is_false_below_a_tenth():
    truth = volume(np.s_[0, 2, 2])
    for columns, is_false in ((10, False), (11, True)):  # one of so many voxels is tumor
        found = find_lesions(volume(np.s_[0, 2, :columns]), truth, MM)
        assert lesion_counts(found)["false_lesions"] == is_false


def test_a_prediction_over_everything_is_false():
    truth = volume(LARGE, SMALL)
    found = find_lesions(np.full_like(truth, 2), truth, MM)
    # 22 of 6 * 12 * 12 = 864 voxels
    assert found["prediction"] == [{"ml": pytest.approx(864 * 0.002), "share": pytest.approx(22 / 864)}]
    assert lesion_counts(found) == {
        "lesions": 2,
        "lesions_found": 2,
        "predicted_lesions": 1,
        "false_lesions": 1,
    }


def test_corners_connect():
    truth = volume(np.s_[2, 3, 3], np.s_[3, 4, 4])
    assert len(find_lesions(truth, truth, MM)["truth"]) == 1


def test_no_lesion_and_other_shapes():
    healthy = volume()
    assert find_lesions(healthy, healthy, MM) == {"truth": [], "prediction": []}
    assert set(lesion_counts(find_lesions(healthy, healthy, MM)).values()) == {0}
    empty = np.zeros((0, 0, 0), np.uint8)
    assert find_lesions(empty, empty, MM) == {"truth": [], "prediction": []}
    with pytest.raises(ValueError, match="one shape"):
        find_lesions(healthy, healthy[:2], MM)
