"""The Dice ladder: every definition by hand, and the figures an empty label map gets on KiTS19."""

import nibabel as nib
import numpy as np
import pytest

from kitsseg.data.kits19.manifest import read_manifest
from kitsseg.scoring.cases import count_files
from kitsseg.scoring.dice import count_slices
from kitsseg.scoring.ladder import RUNGS, all_background, ladder


def two_cases():
    """Case 0: three slices of ten voxels; case 1: one. Returns (truths, predictions)."""
    truths = [
        np.array([[[1, 1, 1, 1, 2, 2, 0, 0, 0, 0]], [[0] * 10], [[0] * 10]]),
        np.array([[[1, 1, 0, 0, 0, 0, 0, 0, 0, 0]]]),
    ]
    predictions = [
        np.array([[[1, 1, 1, 0, 2, 1, 0, 0, 0, 0]], [[0] * 9 + [2]], [[0] * 10]]),
        np.array([[[1, 1, 1, 1, 0, 0, 0, 0, 0, 0]]]),
    ]
    return truths, predictions


def test_every_rung_by_hand():
    truths, predictions = two_cases()
    found = ladder([count_slices(p, t) for p, t in zip(predictions, truths)])
    # voxels, pooled: 40. Right: slice 0: 3 + 1 + 4 = 8, slice 1: 9, slice 2: 10, case 1: 2 + 6 = 8 -> 35
    # background: common 4 + 9 + 10 + 6 = 29, truth 4 + 10 + 10 + 8 = 32, prediction 5 + 9 + 10 + 6 = 30
    # kidney: common 3 + 2 = 5, truth 4 + 2 = 6, prediction 4 + 4 = 8; tumor: common 1, truth 2, prediction 1 + 1 = 2
    background, kidney, tumor = 58 / 62, 10 / 14, 2 / 4
    iou = 29 / 33, 5 / 9, 1 / 3
    # per case: case 0 background 2 * 23 / (24 + 24), kidney 6 / 8, tumor 2 / 4; case 1: 12 / 14, 4 / 6, none: 1
    case_0, case_1 = (46 / 48 + 6 / 8 + 2 / 4) / 3, (12 / 14 + 4 / 6 + 1) / 3
    # kidney with tumor per slice: 2 * 5 / (6 + 5); only predicted 0; none; 4 / 6
    tk = [10 / 11, 0, 4 / 6]
    # tumor per slice: 2 * 1 / (2 + 1); only predicted 0; none; none
    tu = [2 / 3, 0]
    # per case: TK 10 / 12 and 4 / 6, TU 2 / 4 and both empty: 1
    expected = {
        "pixel_accuracy": 35 / 40,
        "pooled_dice_with_background": 35 / 40,
        "case_dice_with_background": (case_0 + case_1) / 2,
        "macro_dice_with_background": (background + kidney + tumor) / 3,
        "mean_iou": sum(iou) / 3,
        "slice_tk_dice_empty_is_1": (sum(tk) + 1) / 4,
        "slice_tk_dice_truth_skipped": (10 / 11 + 4 / 6) / 2,
        "slice_tk_dice_empty_skipped": sum(tk) / 3,
        "slice_tk_dice_empty_is_0": sum(tk) / 4,
        "slice_tu_dice_empty_is_1": (sum(tu) + 2) / 4,
        "slice_tu_dice_truth_skipped": 2 / 3,
        "slice_tu_dice_empty_skipped": sum(tu) / 2,
        "slice_tu_dice_empty_is_0": sum(tu) / 4,
        "pooled_tk_dice": 14 / (8 + 10),
        "pooled_tu_dice": 2 / 4,
        "kidney_label_dice": (6 / 8 + 4 / 6) / 2,
        "tk_dice": (10 / 12 + 4 / 6) / 2,
        "tu_dice": (2 / 4 + 1) / 2,
        "composite": ((10 / 12 + 4 / 6) / 2 + (2 / 4 + 1) / 2) / 2,
    }
    assert found == pytest.approx(expected, abs=1e-12)
    assert list(found) == list(RUNGS)


def test_a_perfect_prediction_is_1_but_where_empty_slices_count_0():
    truths, _ = two_cases()
    found = ladder([count_slices(truth, truth) for truth in truths])
    assert found.pop("slice_tk_dice_empty_is_0") == 2 / 4
    assert found.pop("slice_tu_dice_empty_is_0") == 1 / 4
    assert set(found.values()) == {1.0}


def test_tables_of_an_empty_label_map():
    truths, predictions = two_cases()
    tables = [count_slices(p, t) for p, t in zip(predictions, truths)]
    before = [table.copy() for table in tables]
    for found, truth, table, kept in zip(all_background(tables), truths, tables, before):
        np.testing.assert_array_equal(found, count_slices(np.zeros_like(truth), truth))
        np.testing.assert_array_equal(table, kept)


def test_a_mean_over_nothing_is_none_and_a_class_that_is_nowhere_is_left_out():
    nothing = np.zeros((2, 3, 3), int)
    found = ladder([count_slices(nothing, nothing)])
    for key in ("slice_tu_dice_truth_skipped", "slice_tu_dice_empty_skipped", "pooled_tu_dice"):
        assert found[key] is None
    assert found["macro_dice_with_background"] == found["mean_iou"] == found["tk_dice"] == 1.0


def agree(found, **expected):
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-12)


def test_real_label_maps(real_data):
    """All-background figures of the label maps at hand, against plain NumPy on the volumes."""
    tables, total, background, kidney, tumor = [], 0, 0, [], []
    for name in ("case_00023", "case_00061", "case_00148", "case_00152"):
        file = real_data / "kits19" / name / "segmentation.nii.gz"
        tables.append(count_files(file, file)[0])
        labels = np.asarray(nib.load(file).dataobj)  # (slices, rows, columns) as KiTS19 stores it
        total, background = total + labels.size, background + np.sum(labels == 0)
        kidney += (labels > 0).any(axis=(1, 2)).tolist()
        tumor += (labels == 2).any(axis=(1, 2)).tolist()
    agree(
        ladder(all_background(tables)),
        pixel_accuracy=background / total,
        pooled_dice_with_background=background / total,
        macro_dice_with_background=2 * background / (background + total) / 3,
        mean_iou=background / total / 3,
        slice_tk_dice_empty_is_1=1 - np.mean(kidney),
        slice_tu_dice_empty_is_1=1 - np.mean(tumor),
        slice_tk_dice_empty_skipped=0.0,
        slice_tu_dice_truth_skipped=0.0,
        tk_dice=0.0,
        tu_dice=0.0,
        composite=0.0,
    )


def table_of(case):
    """Tables (slices, 3, 3) of an empty label map with the manifest's voxels and slices of each class.

    Which slices these are, and how the voxels spread over them, is not in the manifest: an empty label map scores the
    same whatever they are. Tumor is in the first slices with foreground, kidney in the last, spread evenly.
    """
    _, kidney, tumor = case.voxels
    kidney_slices, tumor_slices, either = case.class_slices
    table = np.zeros((case.shape[0], 3, 3), np.int64)
    for label, voxels, first, count in (
        (2, tumor, 0, tumor_slices),
        (1, kidney, either - kidney_slices, kidney_slices),
    ):
        share, rest = divmod(voxels, count)
        table[first : first + count, label, 0] = share
        table[first : first + rest, label, 0] += 1
    table[:, 0, 0] = case.shape[1] * case.shape[2] - table.sum(axis=(1, 2))
    assert (table >= 0).all()
    return table


def test_all_210_cases_from_the_manifest():
    cases = [case for case in read_manifest().values() if case.voxels is not None]
    assert len(cases) == 210
    found = ladder([table_of(case) for case in cases])
    slices = sum(case.shape[0] for case in cases)
    background, voxels = sum(c.voxels[0] for c in cases), sum(sum(c.voxels) for c in cases)
    agree(
        found,
        pixel_accuracy=background / voxels,
        slice_tu_dice_empty_is_1=1 - sum(case.class_slices[1] for case in cases) / slices,
        slice_tk_dice_empty_is_1=1 - sum(case.class_slices[2] for case in cases) / slices,
        composite=0.0,
    )
    assert slices == 45424
    assert f"{100 * found['pixel_accuracy']:.2f} %" == "99.15 %"
    assert f"{found['pooled_dice_with_background']:.4f}" == "0.9915"
    assert f"{found['slice_tu_dice_empty_is_1']:.3f}" == "0.874"
    assert f"{found['slice_tk_dice_empty_is_1']:.3f}" == "0.640"


def test_every_rung_says_what_it_is():
    for key, rung in RUNGS.items():
        assert rung.definition.endswith(".") and rung.name and rung.met_in, key
    assert len({rung.name for rung in RUNGS.values()}) == len(RUNGS)
