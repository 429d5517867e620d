"""Scores of single slices, by hand."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support.slices import WINDOW, write_table

from kitsseg.data.formats.nifti import write_image
from kitsseg.data.layouts.find import Layout
from kitsseg.errors import InputError
from kitsseg.scoring.compare import compare_scores
from kitsseg.scoring.evaluate import evaluate_folders
from kitsseg.scoring.slices import evaluate_slices, holds_slice_scores, read_slice_scores

SHAPE = (4, 10)


def labels_of(kidney, tumor):
    """The first voxels are tumor, the next are kidney."""
    labels = np.zeros(SHAPE, np.uint8)
    labels.flat[: tumor + kidney] = 1
    labels.flat[:tumor] = 2
    return labels


# slice -> patient, and (kidney, tumor) pixels of truth and of prediction
SLICES = {
    "a0": ("anna", (6, 2), (6, 2)),
    "a1": ("anna", (8, 0), (4, 0)),
    "b0": ("bert", (0, 4), (0, 0)),
    "b1": ("bert", (0, 0), (0, 0)),
    "b2": ("bert", (0, 0), (0, 1)),
}


@pytest.fixture
def folders(tmp_path):
    truth, predicted = tmp_path / "truth", tmp_path / "predicted"
    for folder in (truth / "images", truth / "labels", predicted):
        folder.mkdir(parents=True)
    rows = []
    for name, (patient, true, found) in SLICES.items():
        Image.fromarray(np.zeros(SHAPE, np.uint8)).save(truth / "images" / f"{name}.png")
        Image.fromarray(labels_of(*true)).save(truth / "labels" / f"{name}.png")
        Image.fromarray(labels_of(*found)).save(predicted / f"{name}.png")
        rows.append(
            {"file": f"{name}.png", "patient": patient, "spacing_mm_rows": 1, "spacing_mm_columns": 1}
            | {"hu_low": WINDOW[0], "hu_high": WINDOW[1]}
        )
    write_table(truth, rows)
    return predicted, truth, tmp_path / "scores.csv"


def test_each_slice_has_its_dice_and_its_pixels(folders):
    rows = {row["slice"]: row for row in evaluate_slices(*folders).rows}
    # a1: truth 8, found 4 of them: 2 * 4 / 12. b0: truth, none found: 0. b1: both empty: 1. b2: found, no truth: 0
    assert {name: row["slice_tk_dice"] for name, row in rows.items()} == pytest.approx(
        {"a0": 1, "a1": 8 / 12, "b0": 0, "b1": 1, "b2": 0}
    )
    assert {name: row["slice_tu_dice"] for name, row in rows.items()} == {
        "a0": 1,
        "a1": 1,
        "b0": 0,
        "b1": 1,
        "b2": 0,
    }
    pixels = [
        [
            rows[name][f"{side}_{mask}_pixels"]
            for side in ("truth", "predicted")
            for mask in ("kidney", "tumor")
        ]
        for name in ("a0", "a1", "b2")
    ]
    # pixels are counted by label: tumor is no kidney here
    assert pixels == [[6, 2, 6, 2], [8, 0, 4, 0], [0, 0, 0, 1]]
    assert all(type(value) is int for line in pixels for value in line)
    assert [row["patient"] for row in rows.values()] == ["anna", "anna", "bert", "bert", "bert"]
    assert {row["split_hash"] for row in rows.values()} == {None}
    assert rows["a0"]["empty"] == [] and rows["b1"]["empty"]


def test_means_are_taken_over_the_slices_of_a_patient_and_then_over_the_patients(folders):
    summary = evaluate_slices(*folders).summary
    # tumor: anna 1, bert (0 + 1 + 0) / 3; kidney: anna (1 + 2/3) / 2, bert 1/3
    means = {name: spread.mean for name, spread in summary.patient_means.items()}
    assert means["slice_tu_dice"] == pytest.approx((1 + 1 / 3) / 2)
    assert means["slice_tk_dice"] == pytest.approx((5 / 6 + 1 / 3) / 2)
    assert summary.slice_means["slice_tu_dice"] == pytest.approx(3 / 5)
    # nothing found: anna's kidneys are missed; b1 and b2 have none
    empty = summary.beside_all_background
    assert empty["slice_tk_dice"].mean == pytest.approx((0 + 2 / 3) / 2)
    assert empty["slice_tu_dice"].mean == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert (summary.n_slices, summary.n_patients, summary.slices_with_an_empty_mask) == (5, 2, 4)


def test_the_table_is_read_back_as_rows_of_patients(folders):
    evaluate_slices(*folders)
    (anna, bert), made_by = read_slice_scores(folders[2])
    assert (anna["case"], anna["slices"], bert["case"], bert["slices"]) == ("anna", 2, "bert", 3)
    assert (anna["tk_dice"], bert["tu_dice"]) == pytest.approx((5 / 6, 1 / 3))
    # sums over the slices stand in the place of volumes
    assert (anna["truth_kidney_ml"], anna["predicted_kidney_ml"]) == (14, 10)
    assert (bert["truth_tumor_ml"], bert["predicted_tumor_ml"]) == (4, 1)
    assert made_by.split is None


@pytest.mark.parametrize(
    "change", [{"unit": "cases"}, {"n_slices": 4}, {"n_slices": 6}], ids=["unit", "fewer", "more"]
)
def test_a_summary_of_other_slices_is_refused(change, folders):
    evaluate_slices(*folders)
    beside = folders[2].with_suffix(".json")
    beside.write_text(json.dumps(json.loads(beside.read_text()) | change))
    with pytest.raises(InputError, match=r"scores\.csv: .*scores\.json"):
        read_slice_scores(folders[2])


def test_a_table_without_rows_or_without_its_summary_is_refused(folders):
    evaluate_slices(*folders)
    out, beside = folders[2], folders[2].with_suffix(".json")
    text, summary = out.read_text(), beside.read_text()
    out.write_text(text.splitlines(keepends=True)[0])
    beside.write_text(json.dumps(json.loads(summary) | {"n_slices": 0}))
    with pytest.raises(InputError, match=r"scores\.csv"):
        read_slice_scores(out)
    out.write_text(text)
    beside.unlink()
    with pytest.raises(InputError, match=r"scores\.json: missing"):
        read_slice_scores(out)


@pytest.mark.parametrize(
    ("head", "expected"),
    [("slice,patient,slice_tk_dice", True), ("slice,case,tk_dice", False), ("case,patient,tk_dice", False)],
)
def test_slice_scores_are_told_by_their_first_two_columns(head, expected, tmp_path):
    (tmp_path / "t.csv").write_text(f"{head}\n1,2,0.5\n")
    assert holds_slice_scores(tmp_path / "t.csv") is expected


def test_only_png_files_that_are_not_hidden_are_label_maps(folders):
    predicted = folders[0]
    (predicted / "a0.PNG").write_bytes((predicted / "a0.png").read_bytes())
    (predicted / "a0.png").unlink()
    (predicted / ".a1.png").write_text("left by a copy")
    (predicted / "notes.txt").write_text("none of these is a label map")
    assert sorted(row["slice"] for row in evaluate_slices(*folders).rows) == sorted(SLICES)


def test_one_file_is_scored_alone_and_the_others_are_named(folders):
    predicted, truth, out = folders
    found = evaluate_slices(predicted / "b0.png", truth, out)
    assert [row["slice"] for row in found.rows] == ["b0"]
    assert found.summary.truth_without_prediction == ["a0", "a1", "b1", "b2"]
    assert found.summary.patient_means["slice_tk_dice"].sd is None


@pytest.mark.parametrize("name", ["notes.txt", "scan.nii.gz"])
def test_a_file_that_is_no_image_is_refused(name, folders):
    predicted, truth, out = folders
    (predicted / name).write_text("1")
    with pytest.raises(InputError, match=rf"{name}: .*label maps"):
        evaluate_slices(predicted / name, truth, out)


def test_a_truth_without_masks_is_refused(folders):
    shutil.rmtree(folders[1] / "labels")
    with pytest.raises(InputError, match="truth.*labels"):
        evaluate_slices(*folders)


def test_a_label_map_without_image_is_named(folders):
    predicted = folders[0]
    (predicted / "a0.png").rename(predicted / "other.png")
    with pytest.raises(InputError, match=r"other\.png: no image"):
        evaluate_slices(*folders)
    assert not folders[2].exists()


@pytest.mark.parametrize("first", ["slices", "cases"])
def test_slice_scores_are_compared_with_slice_scores_only(first, folders, tmp_path):
    evaluate_slices(*folders)
    labels = np.stack([labels_of(6, 2)] * 3)
    write_image(tmp_path / "case_00001" / "segmentation.nii.gz", labels, (3.0, 1.0, 1.0))
    scan = tmp_path / "case_00001" / "segmentation.nii.gz"
    evaluate_folders(scan, scan, tmp_path / "of_cases.csv")
    files = {"slices": folders[2], "cases": tmp_path / "of_cases.csv"}
    with pytest.raises(InputError, match=r"slice scores \(.*/scores\.csv.*case scores \(.*of_cases\.csv"):
        compare_scores({first: files.pop(first)} | files)
    found = compare_scores({"one": folders[2], "again": folders[2]})
    assert (found.of_slices, found.cases, found.phantom) == (True, ("anna", "bert"), False)


def test_progress_counts_the_slices(folders):
    told = []
    evaluate_slices(*folders, progress=lambda *step: told.append(step))
    assert told == [("score", done, 5) for done in range(6)]


@pytest.mark.parametrize("recorded", [True, False])
def test_label_maps_are_read_with_the_values_that_predict_recorded(recorded, folders):
    """The truth has 0, 1, 2; the label maps have 0, 128, 255. The layout says the values of the truth."""
    predicted, truth, out = folders
    for name, (_, _, found) in SLICES.items():
        values = np.array([0, 128, 255], np.uint8)[labels_of(*found)]
        Image.fromarray(values).save(predicted / f"{name}.png")
    if recorded:
        entry = {
            "image": "",
            "source": {"bytes": 1, "modified_ns": 1, "ends_sha256": ""},
            "crc32": "00000000",
            "phantom": False,
        }
        cases = {
            f"{name}.png": entry | {"file": f"{name}.png", "mask_values": [0, 128, 255]} for name in SLICES
        }
        record = {"kitsseg": "0.1.0", "run": "run", "networks": [], "engine": None, "inference": {}}
        record |= {"split": {"name": None, "hash": None, "part": None}, "postprocess": None}
        record |= {"phantom": False, "cases": cases, "failed": {}}
        (predicted / "predictions.json").write_text(json.dumps(record))
        assert {
            row["slice"]: row["slice_tk_dice"] for row in evaluate_slices(predicted, truth, out).rows
        } == (pytest.approx({"a0": 1, "a1": 2 / 3, "b0": 0, "b1": 1, "b2": 0}))
        return
    with pytest.raises(InputError, match=r"a0\.png: .*255"):
        evaluate_slices(predicted, truth, out, layout=Layout())
