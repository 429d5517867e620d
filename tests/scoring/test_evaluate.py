"""Folders of label maps -> scores.csv and scores.json."""

import csv
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from kitsseg.cli import main
from kitsseg.commands.score_table import print_scores
from kitsseg.data.formats.nifti import PHANTOM, write_image
from kitsseg.data.layouts.find import Layout
from kitsseg.errors import InputError
from kitsseg.files.checksums import crc32_of
from kitsseg.files.json_records import as_builtins
from kitsseg.records.predictions import PredictedScan
from kitsseg.records.scan_part import ScanPart
from kitsseg.scoring import cases, evaluate
from kitsseg.scoring.cases import Pair, count_files, read_boxes
from kitsseg.scoring.dice import SCORES, count_slices, score_case
from kitsseg.scoring.evaluate import COLUMNS, evaluate_folders, find_pairs
from kitsseg.scoring.ladder import RUNGS
from kitsseg.scoring.scores_file import read_scores
from kitsseg.scoring.summary import Failure

MM = (3.0, 0.8, 0.8)
SHAPE = (6, 9, 8)


def make_truth(folder, n=3):
    """Cases in KiTS layout; returns the arrays."""
    arrays = {}
    for i in range(n):
        labels = np.zeros(SHAPE, np.uint8)
        labels[1:5, 2:7, 1:6] = 1
        labels[2:4, 3 : 5 + i, 2:4] = 2
        name = f"case_{i:05d}"
        (folder / name).mkdir(parents=True)
        write_image(folder / name / "segmentation.nii.gz", labels, MM)
        arrays[name] = labels
    image = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    write_image(folder / "case_00000" / "imaging.nii.gz", image, MM)
    return arrays


def make_predictions(folder, arrays):
    """Every case shifted by one row, in KiTS19 names."""
    folder.mkdir()
    shifted = {name: np.roll(labels, 1, axis=1) for name, labels in arrays.items()}
    for name, labels in shifted.items():
        write_image(folder / f"prediction_{name[-5:]}.nii.gz", labels, MM)
    return shifted


def segmented(tmp_path, names, phantoms=()):
    """The folder of scans of noise, some of them said to be phantoms, and the folder of their predictions."""
    scans, out = tmp_path / "scans", tmp_path / "predictions"
    scans.mkdir()
    for number, name in enumerate(names):
        noise = np.random.default_rng(number).integers(-1000, 1000, SHAPE, np.int16)
        write_image(scans / f"{name}.nii.gz", noise, MM, PHANTOM if name in phantoms else "")
    assert main(["predict", "starter", str(scans), "--out", str(out), "--quiet"]) == 0
    return scans, out


def printed(found, **terminal):
    """What kitsseg evaluate prints of an Evaluation."""
    console = Console(file=io.StringIO(), highlight=False, soft_wrap=True, color_system=None, **terminal)
    print_scores(found.rows, found.summary, console)
    return console.file.getvalue()


@pytest.fixture
def folders(tmp_path):
    truth = make_truth(tmp_path / "truth")
    predicted = make_predictions(tmp_path / "predictions", truth)
    return tmp_path, truth, predicted


def test_scores_of_a_folder(folders):
    tmp, truth, predicted = folders
    seen = []
    found = evaluate_folders(
        tmp / "predictions", tmp / "truth", tmp / "out" / "scores.csv", lambda *step: seen.append(step)
    )
    assert seen == [("score", i, 3) for i in range(4)]
    with (tmp / "out" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["case"] for row in rows] == sorted(truth)
    for row, returned in zip(rows, found.rows):
        expected = score_case(predicted[row["case"]], truth[row["case"]], MM)
        assert {name: float(row[name]) for name in SCORES} == {name: expected[name] for name in SCORES}
        # float32 in the header: 0.8 mm is not exact
        volumes = {name: value for name, value in expected.items() if name.endswith("_ml")}
        assert {name: float(row[name]) for name in volumes} == pytest.approx(volumes, rel=1e-6)
        assert {name: returned[name] for name in SCORES} == {name: expected[name] for name in SCORES}
    summary = json.loads((tmp / "out" / "scores.json").read_text())
    assert read_scores(tmp / "out" / "scores.csv")[1] == found.summary
    assert summary["scores"]["tk_dice"]["mean"] == pytest.approx(
        sum(float(row["tk_dice"]) for row in rows) / 3
    )
    assert summary["truth_without_prediction"] == []
    truth_file = tmp / "truth" / "case_00000" / "segmentation.nii.gz"
    assert summary["cases"]["case_00000"] == {
        "truth_sha256": hashlib.sha256(truth_file.read_bytes()).hexdigest(),
        "prediction": "../predictions/prediction_00000.nii.gz",
        "truth": "../truth/case_00000/segmentation.nii.gz",
        "image": "../truth/case_00000/imaging.nii.gz",
    }
    assert summary["cases"]["case_00001"]["image"] is None
    assert sorted(path.name for path in (tmp / "out").iterdir()) == ["scores.csv", "scores.json"]


def test_the_composite_is_the_mean_of_tk_and_tu_in_the_files(folders):
    tmp, _, _ = folders
    evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv")
    with (tmp / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    mean = {name: sum(float(row[name]) for row in rows) / len(rows) for name in SCORES}
    summary = json.loads((tmp / "scores.json").read_text())
    assert abs(mean["composite"] - (mean["tk_dice"] + mean["tu_dice"]) / 2) < 1e-12
    assert abs(mean["composite"] - summary["composite_identity"]["mean_of_composites"]) < 1e-12
    assert abs(summary["composite_identity"]["difference"]) < 1e-12


def test_truth_against_itself_is_one_everywhere(folders):
    tmp, _, _ = folders
    found = evaluate_folders(tmp / "truth", tmp / "truth", tmp / "scores.csv")
    assert all(row[name] == 1.0 for row in found.rows for name in SCORES)
    assert found.summary.composite_interval_95 == (1.0, 1.0)
    assert found.summary.beside_all_background.prediction["pixel_accuracy"] == 1.0


def test_all_background_baseline(folders):
    tmp, truth, _ = folders
    found = evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv")
    nothing = found.summary.beside_all_background.all_background
    background = sum(int((labels == 0).sum()) for labels in truth.values())
    assert (nothing["tk_dice"], nothing["tu_dice"], nothing["composite"]) == (0.0, 0.0, 0.0)
    assert nothing["pixel_accuracy"] == pytest.approx(background / (3 * np.prod(SHAPE)), abs=1e-12)
    assert nothing["pooled_dice_with_background"] == pytest.approx(nothing["pixel_accuracy"], abs=1e-12)
    # writing real empty predictions and scoring them gives the same
    (tmp / "empty").mkdir()
    for name, labels in truth.items():
        write_image(tmp / "empty" / f"{name}.nii.gz", np.zeros_like(labels), MM)
    beside = evaluate_folders(tmp / "empty", tmp / "truth", tmp / "empty.csv").summary.beside_all_background
    assert beside.prediction == beside.all_background == nothing


def test_empty_masks_are_named_and_counted(folders):
    tmp, _, predicted = folders
    without = np.where(predicted["case_00001"] == 2, 1, predicted["case_00001"]).astype(np.uint8)
    write_image(tmp / "predictions" / "prediction_00001.nii.gz", without, MM)
    found = evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv")
    assert found.rows[1]["empty"] == "predicted_tumor"
    assert found.summary.empty_cases == 1
    with (tmp / "scores.csv").open() as file:
        assert [row["empty"] for row in csv.DictReader(file)] == ["", "predicted_tumor", ""]
    assert re.search("1 case .*empty mask", printed(found))


def test_three_ways_to_name_predictions(folders):
    tmp, _, _ = folders
    files = tmp / "predictions"
    (files / "prediction_00001.nii.gz").rename(files / "case_00001.nii.gz")
    (files / "case_00002").mkdir()
    (files / "prediction_00002.nii.gz").rename(files / "case_00002" / "segmentation.nii.gz")
    (files / "notes.txt").write_text("not a prediction")
    found = find_pairs(files, tmp / "truth")
    assert [(pair.case, pair.prediction.name, pair.truth.parent.name) for pair in found.pairs] == [
        ("case_00000", "prediction_00000.nii.gz", "case_00000"),
        ("case_00001", "case_00001.nii.gz", "case_00001"),
        ("case_00002", "segmentation.nii.gz", "case_00002"),
    ]
    assert (found.truth_without_prediction, found.prediction_without_truth) == ([], [])


def test_one_prediction_file(folders):
    tmp, truth, predicted = folders
    file = tmp / "predictions" / "prediction_00001.nii.gz"
    found = evaluate_folders(file, tmp / "truth", tmp / "scores.csv")
    assert [row["case"] for row in found.rows] == ["case_00001"]
    assert found.summary.truth_without_prediction == ["case_00000", "case_00002"]
    assert re.search(r"2 cases .*not scored \(not predicted\): case_00000, case_00002\.", printed(found))
    directly = evaluate_folders(file, tmp / "truth" / "case_00001" / "segmentation.nii.gz", tmp / "one.csv")
    assert directly.rows == found.rows
    assert (
        directly.rows[0]["tk_dice"] == score_case(predicted["case_00001"], truth["case_00001"], MM)["tk_dice"]
    )


def test_one_pair_of_files_outside_of_case_folders_is_named_after_the_prediction(folders):
    tmp, _, _ = folders
    for name, source in (
        ("anna.nii.gz", tmp / "predictions" / "prediction_00001.nii.gz"),
        ("reference.nii.gz", tmp / "truth" / "case_00001" / "segmentation.nii.gz"),
    ):
        shutil.copy(source, tmp / name)
    found = evaluate_folders(tmp / "anna.nii.gz", tmp / "reference.nii.gz", tmp / "scores.csv")
    assert [row["case"] for row in found.rows] == ["anna"]
    assert found.summary.cases["anna"].image is None
    # a CT beside the truth is the case's; in a folder without one there is none
    shutil.copy(tmp / "truth" / "case_00000" / "imaging.nii.gz", tmp / "imaging.nii.gz")
    found = evaluate_folders(tmp / "anna.nii.gz", tmp / "reference.nii.gz", tmp / "scores.csv")
    assert found.summary.cases["anna"].image == str(tmp / "imaging.nii.gz")


def test_label_maps_of_another_scan_than_the_one_beside_the_truth_are_named(tmp_path):
    """Of case_00000, whose CT lies beside the truth: another CT first, then the one that was segmented, copied."""
    arrays = make_truth(tmp_path / "truth")
    scans, out = segmented(tmp_path, arrays)
    beside = tmp_path / "truth" / "case_00000" / "imaging.nii.gz"

    def others():
        return evaluate_folders(out, tmp_path / "truth", tmp_path / "scores.csv").summary.of_other_scans

    assert others() == ["case_00000"]
    shutil.copy(scans / "case_00000.nii.gz", beside)
    os.utime(beside, (0, 0))
    assert others() == []
    # a label map of another name than the record's is not the one that predict made
    shutil.copy(scans / "case_00001.nii.gz", beside)
    (out / "prediction_00000.nii.gz").rename(out / "case_00000.nii.gz")
    assert others() == []


def test_a_scan_is_read_as_predict_read_it_where_it_is_the_one_beside_the_truth(tmp_path):
    """The part says which series of a folder was segmented; it says nothing about another file."""
    truth, scan = tmp_path / "case_1" / "segmentation.nii.gz", tmp_path / "ct"
    scan.mkdir()
    part = ScanPart(series="1.2.3")
    made = PredictedScan(
        file="prediction_1.nii.gz", image=str(scan), source=None, crc32=0, phantom=False, part=part
    )
    record = SimpleNamespace(cases={"case_1": made})
    for beside, image, of in ((None, scan, part), (scan, scan, part), (truth, truth, None)):
        [pair] = evaluate._with_scans(
            [Pair("case_1", tmp_path / made.file, truth, (0, 1, 2), beside)], record
        )
        assert (pair.image, pair.part) == (image, of)


def test_predictions_json_is_carried_over(folders):
    tmp, _, _ = folders
    record = {
        "kitsseg": "0.0.1",
        "run": "runs/one",
        "recipe": "unet2d:tiny",
        "paper": "A paper",
        "phantom": True,
    }
    record |= {"reported": {"kidney": 0.91}, "split": {"name": "80-10-10", "hash": "abc", "part": "test"}}
    (tmp / "predictions" / "predictions.json").write_text(json.dumps(record | {"cases": {"case_00000": {}}}))
    found = evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv")
    for key in ("recipe", "paper", "reported", "split", "phantom"):
        assert as_builtins(getattr(found.summary, key)) == record[key]
    assert found.summary.run == str(tmp / "predictions" / "runs" / "one")
    assert set(found.summary.cases) == {"case_00000", "case_00001", "case_00002"}
    assert "phantom" in printed(found)
    (tmp / "predictions" / "predictions.json").write_text("[")
    with pytest.raises(InputError, match=r"predictions\.json: .*record of kitsseg predict"):
        evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv")


def test_the_scan_that_was_segmented_stands_in_for_a_ct_beside_the_truth(tmp_path):
    """Only where none lies there, only of a label map that predict recorded, and only while the scan is there."""
    arrays = make_truth(tmp_path / "truth")
    scans, out = segmented(tmp_path, arrays)
    (scans / "case_00002.nii.gz").unlink()

    def images():
        summary = evaluate_folders(out, tmp_path / "truth", tmp_path / "scores.csv").summary
        return [summary.cases[name].image for name in sorted(arrays)]

    beside = str(tmp_path / "truth" / "case_00000" / "imaging.nii.gz")
    assert images() == [beside, str(scans / "case_00001.nii.gz"), None]
    (out / "prediction_00001.nii.gz").rename(out / "case_00001.nii.gz")
    assert images() == [beside, None, None]
    (out / "predictions.json").unlink()
    assert images() == [beside, None, None]


def exchanged(folder, pattern):
    first, second, *_ = sorted(folder.glob(pattern))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    return 2


def emptied(folder, pattern):
    write_image(sorted(folder.glob(pattern))[0], np.zeros(SHAPE, np.uint8), MM)
    return 1


def untouched(folder, pattern):
    return 0


@pytest.mark.parametrize("change", [exchanged, emptied, untouched])
def test_label_maps_that_changed_since_they_were_predicted_are_named(change, tmp_path):
    arrays = make_truth(tmp_path / "truth")
    _, out = segmented(tmp_path, arrays)
    for number, file in enumerate(
        sorted(out.glob("*.nii.gz"))
    ):  # noise has no kidney: three label maps that differ
        record = json.loads((out / "predictions.json").read_text())
        labels = np.zeros(SHAPE, np.uint8)
        labels[number] = 1
        write_image(file, labels, MM)
        record["cases"][sorted(arrays)[number]]["crc32"] = crc32_of(file)
        (out / "predictions.json").write_text(json.dumps(record))
    count = change(out, "*.nii.gz")
    evaluation = evaluate_folders(out, tmp_path / "truth", tmp_path / "scores.csv")
    assert evaluation.summary.changed == sorted(arrays)[:count]
    assert (f"{count} label map" in printed(evaluation)) == bool(count)
    assert ("changed since kitsseg predict" in printed(evaluation)) == bool(count)


def test_one_case_has_no_interval(folders):
    tmp, _, _ = folders
    for name in ("case_00001", "case_00002"):
        shutil.rmtree(tmp / "truth" / name)
    evaluation = evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv")
    text = printed(evaluation)
    assert "1 case." in text
    assert "interval" not in text


def test_phantoms_are_known_by_their_images(folders):
    tmp, _, _ = folders
    assert evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv").summary.phantom is False
    file = tmp / "truth" / "case_00000" / "imaging.nii.gz"
    write_image(file, np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), MM, PHANTOM)
    assert evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv").summary.phantom is True
    file.write_bytes(b"damaged")
    assert evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv").summary.phantom is False


def test_synthetic_cases_among_others_are_named_and_the_whole_is_not_called_synthetic(folders):
    """By the images beside the truth; a case without an image is neither."""
    tmp, _, _ = folders

    def scored(**descriptions):
        for name, description in descriptions.items():
            image = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
            write_image(tmp / "truth" / name / "imaging.nii.gz", image, MM, description)
        found = evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv")
        assert read_scores(tmp / "scores.csv")[1] == found.summary
        return found.summary.phantom, found.summary.synthetic, "of 3 scans are synthetic" in printed(found)

    assert scored() == (False, [], False)
    assert scored(case_00001=PHANTOM) == (False, ["case_00001"], True)
    assert scored(case_00002=PHANTOM) == (False, ["case_00001", "case_00002"], True)
    assert scored(case_00000=PHANTOM)[0] is True
    assert scored(case_00000=PHANTOM)[2] is False


def test_what_predict_recorded_of_a_scan_counts_more_than_what_it_recorded_of_the_folder(tmp_path):
    """Older versions called a folder synthetic as soon as one scan was; a scan that is not scored does not count."""
    arrays = make_truth(tmp_path / "truth")
    _, out = segmented(tmp_path, arrays, phantoms=("case_00002",))
    record = json.loads((out / "predictions.json").read_text())
    for of_folder in (False, True):
        (out / "predictions.json").write_text(json.dumps(record | {"phantom": of_folder}))
        summary = evaluate_folders(out, tmp_path / "truth", tmp_path / "scores.csv").summary
        assert (summary.phantom, summary.synthetic) == (False, ["case_00002"])
    shutil.rmtree(tmp_path / "truth" / "case_00002")
    summary = evaluate_folders(out, tmp_path / "truth", tmp_path / "scores.csv").summary
    assert (summary.phantom, summary.synthetic) == (False, [])


def test_table_on_a_terminal_has_lines_and_folds_long_names(folders):
    tmp, _, _ = folders
    found = evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv")
    rows = [row | {"case": "n" * 60} for row in found.rows[:1]]
    lines = printed(replace(found, rows=rows), force_terminal=True, width=100).splitlines()
    assert any("┃" in line for line in lines)
    # the name is folded, and no figure of its row is lost
    assert "n" * 60 in "".join(line.split("│")[1].strip() for line in lines if line.startswith("│"))
    (row,) = [line for line in lines if f"{rows[0]['tk_dice']:.4f}" in line and "nnn" in line]
    assert f"{rows[0]['tumor_recall']:.4f}" in row
    assert "n" * 60 in printed(replace(found, rows=rows), width=40)


def test_table_shows_the_numbers(folders):
    tmp, _, _ = folders
    found = evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv")
    lines = printed(found).splitlines()
    assert not set("│┃━┏┡") & set("".join(lines))  # no terminal, no lines around the cells
    ladder, lines = lines[: lines.index("")], lines[lines.index("") + 1 :]
    assert lines[0].split()[:4] == ["case", "TK", "TU", "composite"]
    assert lines[2].split()[:2] == ["case_00001", f"{found.rows[1]['tk_dice']:.4f}"]
    assert lines[4].split()[:2] == ["mean", f"{found.summary.scores.tk_dice.mean:.4f}"]
    assert lines[5].split() == ["empty", "prediction", *["0.0000"] * 4, "-", "-"]
    assert len({len(line) for line in lines[:5]}) == 1  # columns are aligned
    beside = found.summary.beside_all_background
    for line, (key, rung) in zip(ladder[1:], RUNGS.items()):
        figures = [beside.prediction[key], beside.all_background[key]]
        assert line.startswith(rung.name) and line.split()[-2:] == [f"{figure:.4f}" for figure in figures]
    assert len({len(line) for line in ladder}) == 1


def test_prediction_without_truth(folders):
    """Predictions with a truth are scored, the others are named. If no prediction has a truth, this is an error."""
    tmp, _, _ = folders
    (tmp / "truth" / "case_00001" / "segmentation.nii.gz").unlink()
    result = evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv")
    assert [row["case"] for row in result.rows] == ["case_00000", "case_00002"]
    assert result.summary.prediction_without_truth == ["case_00001"]
    for case in ("case_00000", "case_00002"):
        (tmp / "truth" / case / "segmentation.nii.gz").unlink()
        (tmp / "truth" / case / "imaging.nii.gz").touch()
    with pytest.raises(InputError, match=r"prediction_00000.*expected .*case_00000.segmentation\.nii\.gz"):
        find_pairs(tmp / "predictions", tmp / "truth")


def test_where_patterns_name_the_truth_the_advice_is_about_the_names_they_give(folders):
    tmp, _, _ = folders
    shutil.move(tmp / "truth" / "case_00000" / "segmentation.nii.gz", tmp / "mine.nii.gz")
    (tmp / "dd" / "p1").mkdir(parents=True)
    shutil.move(tmp / "mine.nii.gz", tmp / "dd" / "p1" / "labels.nii.gz")
    (tmp / "dd" / "p1" / "ct.nii.gz").touch()
    for images, said in (("*/ct.nii.gz", "with the same --images"), (None, "with --images")):
        layout = Layout(images=images, labels="*/labels.nii.gz")
        with pytest.raises(InputError) as caught:
            find_pairs(tmp / "predictions", tmp / "dd", layout)
        text = str(caught.value)
        assert "prediction_00000.nii.gz: no truth for this prediction or any other; " in text
        assert "found label maps of p1. " in text
        assert f"Predict again {said}, " in text and text.endswith(" rename the prediction to p1.nii.gz.")
        assert "segmentation.nii.gz" not in text  # where no label map of these patterns lies


def test_a_single_prediction_without_truth_stands_for_no_other(folders):
    tmp, _, _ = folders
    alone = tmp / "predictions" / "prediction_00000.nii.gz"
    shutil.rmtree(tmp / "truth" / "case_00000")
    with pytest.raises(
        InputError, match=r"no truth for this prediction; expected .*found truth of case_00001"
    ):
        find_pairs(alone, tmp / "truth")


def test_two_predictions_of_one_case(folders):
    tmp, _, _ = folders
    shutil.copy(tmp / "predictions" / "prediction_00001.nii.gz", tmp / "predictions" / "case_00001.nii.gz")
    with pytest.raises(InputError, match="second prediction of case_00001"):
        find_pairs(tmp / "predictions", tmp / "truth")


def test_bad_arguments(folders):
    tmp, _, _ = folders
    (tmp / "nothing").mkdir()
    with pytest.raises(InputError, match=r"prediction_00000\.nii\.gz, found none"):
        find_pairs(tmp / "nothing", tmp / "truth")
    with pytest.raises(InputError, match=r"absent.*found nothing"):
        find_pairs(tmp / "absent", tmp / "truth")
    truth_file = tmp / "truth" / "case_00001" / "segmentation.nii.gz"
    with pytest.raises(
        InputError, match=r"folder of cases.*found a file.*predictions.prediction_00001\.nii\.gz"
    ):
        find_pairs(tmp / "predictions", truth_file)
    other = shutil.copy(truth_file, tmp / "truth.nii.gz")  # of no case in the folder: any file of it may do
    with pytest.raises(InputError, match=r"found a file.*prediction_00000\.nii\.gz.*the folder of the cases"):
        find_pairs(tmp / "predictions", other)
    with pytest.raises(InputError, match=r"\.csv"):
        evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.txt")


def test_other_shape_names_both_files(folders):
    tmp, _, predicted = folders
    write_image(tmp / "predictions" / "prediction_00001.nii.gz", predicted["case_00001"][:, :-1], MM)
    with pytest.raises(InputError) as error:
        evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv")
    for part in ("prediction_00001.nii.gz", "(6, 8, 8)", "segmentation.nii.gz", "(6, 9, 8)"):
        assert part in str(error.value)


def test_other_affine_names_both_files(folders):
    tmp, _, predicted = folders
    write_image(tmp / "predictions" / "prediction_00001.nii.gz", predicted["case_00001"], (3.0, 0.8, 0.9))
    with pytest.raises(InputError) as error:
        evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv")
    # seven steps of 0.1 mm between the first and the last of eight columns
    for part in ("prediction_00001.nii.gz", "0.7 mm", "-0.9", "segmentation.nii.gz", "-0.8"):
        assert part in str(error.value)


def test_reordered_axes_and_floats_score_the_same(folders):
    tmp, truth, predicted = folders
    truth_file = tmp / "truth" / "case_00001" / "segmentation.nii.gz"
    expected = count_slices(predicted["case_00001"], truth["case_00001"])
    file = tmp / "predictions" / "prediction_00001.nii.gz"
    np.testing.assert_array_equal(count_files(file, truth_file)[0], expected)
    as_closest = nib.as_closest_canonical(nib.load(file))
    nib.save(as_closest, tmp / "canonical.nii.gz")
    assert nib.load(tmp / "canonical.nii.gz").shape == SHAPE[::-1]
    as_float = nib.Nifti1Image(np.asarray(as_closest.dataobj).astype(np.float32), as_closest.affine)
    nib.save(as_float, tmp / "float.nii")
    for other in ("canonical.nii.gz", "float.nii"):
        counts, spacing_mm = count_files(tmp / other, truth_file)
        np.testing.assert_array_equal(counts, expected)
        assert spacing_mm == pytest.approx(MM)


def test_a_flip_without_its_affine_is_refused(folders):
    tmp, _, _ = folders
    file = tmp / "predictions" / "prediction_00001.nii.gz"
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([0.8, 0.8, 3.0, 1])), file)
    with pytest.raises(InputError, match=r"prediction_00001.*truth"):
        count_files(file, tmp / "truth" / "case_00001" / "segmentation.nii.gz")


def test_other_labels_name_the_file(folders):
    tmp, _, predicted = folders
    file = tmp / "predictions" / "prediction_00001.nii.gz"
    write_image(file, predicted["case_00001"] * 2, MM)
    with pytest.raises(InputError, match=r"prediction_00001\.nii\.gz: labels must be .*found 4"):
        count_files(file, tmp / "truth" / "case_00001" / "segmentation.nii.gz")


def test_damaged_files_are_named(folders):
    tmp, _, _ = folders
    truth_file = tmp / "truth" / "case_00001" / "segmentation.nii.gz"
    file = tmp / "predictions" / "prediction_00001.nii.gz"
    whole = file.read_bytes()
    bad_checksum = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    for damaged in (whole[:-20], bad_checksum, b""):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"prediction_00001\.nii\.gz: damaged"):
            count_files(file, truth_file)


def test_peak_memory_of_large_files_stays_below_the_volumes(tmp_path):
    """Counting two label maps of 96 MiB each grows the process by less than one of them."""
    labels = np.zeros((384, 512, 512), np.uint8)
    labels[100:200, 200:300, 100:200] = 1
    write_image(tmp_path / "truth.nii.gz", labels, MM)
    shutil.copy(tmp_path / "truth.nii.gz", tmp_path / "prediction.nii.gz")
    code = (
        "import resource, sys\n"
        "from kitsseg.scoring.cases import count_files\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak()\n"
        "counts, _ = count_files(*sys.argv[1:])\n"
        "print(peak() - before, counts.sum(axis=0)[1, 1])\n"
        "import kitsseg.scoring.evaluate, kitsseg.report.report\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n"
    )
    files = [str(tmp_path / name) for name in ("prediction.nii.gz", "truth.nii.gz")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, *files], capture_output=True, text=True, check=True, env=environment
    )
    growth, kidney = map(int, done.stdout.split())
    assert kidney == 100 * 100 * 100
    assert growth < 48


def test_a_name_that_ends_in_gz_may_hold_plain_bytes(folders):
    tmp, _, _ = folders
    file = tmp / "predictions" / "prediction_00001.nii.gz"
    file.write_bytes(gzip.decompress(file.read_bytes()))
    truth_file = tmp / "truth" / "case_00001" / "segmentation.nii.gz"
    assert count_files(file, truth_file)[0].sum() == np.prod(SHAPE)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("flip", [False, True])
def test_slices_of_a_stream_are_those_of_the_array(axes, flip, tmp_path):
    """Whatever axis of the file the slices run along, in 7 * 11 * 13 voxels: no multiple of the word of 8 bytes."""
    rng = np.random.default_rng(sum(axes) + flip)
    shape = (7, 11, 13)
    pair = [(rng.integers(3, size=shape) * (rng.random(shape) < 0.2)).astype(np.uint8) for _ in range(2)]
    for name, array in zip(("prediction", "truth"), pair):
        affine = np.eye(4)
        # columns of the affine in RAS: slices run to I, rows to P, columns to L
        affine[:3, :3] = np.array([[0, 0, -0.8], [0, -0.8, 0], [-3.0, 0, 0]])[:, list(axes)]
        stored = array.transpose(axes)
        if flip:
            at = axes.index(0)
            affine[:3, 3] = affine[:3, at] * (shape[0] - 1)
            affine[:3, at] *= -1
            stored = np.flip(stored, at)
        nib.save(nib.Nifti1Image(stored, affine), tmp_path / f"{name}.nii.gz")
    found, spacing_mm = count_files(tmp_path / "prediction.nii.gz", tmp_path / "truth.nii.gz")
    np.testing.assert_array_equal(found, count_slices(*pair))
    assert spacing_mm == pytest.approx((3.0, 0.8, 0.8))
    # and the boxes of the foreground hold the same voxels
    boxes = read_boxes(tmp_path / "prediction.nii.gz", tmp_path / "truth.nii.gz")
    whole = count_slices(*pair).sum(axis=0)
    boxed = count_slices(*boxes).sum(axis=0)
    np.testing.assert_array_equal(boxed.ravel()[1:], whole.ravel()[1:])


@pytest.fixture
def stored(tmp_path):
    """A writer of one label map in the orientation of KiTS19; place, step and scaling of the numbers as asked."""

    def write(name, numbers, *, spacing_mm=MM, moved_mm=0.0, scaled=None, dtype=np.uint8):
        affine = np.zeros((4, 4))
        affine[:3, :3] = np.fliplr(np.diag([-size for size in spacing_mm[::-1]]))
        affine[0, 3], affine[3, 3] = moved_mm, 1
        nib.save(nib.Nifti1Image(numbers.astype(dtype), affine, dtype=dtype), tmp_path / name)
        if (
            scaled
        ):  # nibabel writes no scaling beside numbers that it is given: slope and intercept of the header
            data = bytearray((tmp_path / name).read_bytes())
            data[112:120] = np.array(scaled, "<f4").tobytes()
            (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


def random_pair(seed, shape=SHAPE):
    return np.random.default_rng(seed).integers(3, size=(2, *shape), dtype=np.uint8)


def no_arrays(*_):
    raise AssertionError("a whole label map was read")


@pytest.mark.parametrize("piece", [16, 64, 432, 1 << 20])
def test_files_of_bytes_are_counted_piece_by_piece(piece, stored, monkeypatch):
    prediction, truth = random_pair(1)
    files = stored("prediction.nii.gz", prediction), stored("truth.nii", truth)
    monkeypatch.setattr(cases, "PIECE_BYTES", piece)
    monkeypatch.setattr(cases, "read_labels", no_arrays)
    found, _ = count_files(*files)
    np.testing.assert_array_equal(found, count_slices(prediction, truth))


def test_files_with_a_scaling_of_one_are_counted_as_they_are_stored(stored, monkeypatch):
    prediction, truth = random_pair(2)
    files = stored("prediction.nii", prediction, scaled=(1, 0)), stored("truth.nii", truth)
    monkeypatch.setattr(cases, "read_labels", no_arrays)
    np.testing.assert_array_equal(count_files(*files)[0], count_slices(prediction, truth))


# labels up to 1: every number that is stored would be a label itself
@pytest.mark.parametrize("highest", [1, 2])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("options", "stored_as"),
    [
        ({"scaled": (0.5, 0)}, lambda labels: 2 * labels),
        ({"scaled": (1, -1)}, lambda labels: labels + 1),
        ({"scaled": (-1, 2)}, lambda labels: 2 - labels),
        ({"dtype": np.int16}, lambda labels: labels),
        ({"dtype": np.int16, "scaled": (0.5, -1)}, lambda labels: 2 * (labels + 1)),
    ],
    ids=["slope", "intercept", "both", "int16", "int16 scaled"],
)
def test_one_file_stored_in_another_way_scores_the_same(which, highest, options, stored_as, stored):
    pair = np.minimum(random_pair(3), highest)
    files = [stored("prediction.nii", pair[0]), stored("truth.nii", pair[1])]
    stored(files[which].name, stored_as(pair[which].astype(int)), **options)
    np.testing.assert_array_equal(np.asarray(nib.load(files[which]).dataobj), pair[which])
    np.testing.assert_array_equal(count_files(*files)[0], count_slices(*pair))


@pytest.mark.parametrize("values", [((0, 2, 1), (0, 1, 2)), ((0, 1, 2), (0, 2, 1)), ((0, 2, 1), (0, 2, 1))])
def test_labels_of_another_numbering_are_counted_by_their_meaning(values, stored):
    """``values`` are those of truth and of prediction: what each stored number means."""
    prediction, truth = random_pair(4)
    files = stored("prediction.nii", prediction), stored("truth.nii", truth)
    meant = np.array(values[1])[prediction], np.array(values[0])[truth]
    found, _ = count_files(*files, label_values=values[0], predicted_values=values[1])
    np.testing.assert_array_equal(found, count_slices(*meant))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_spacing_is_that_of_the_truth(dtype, stored):
    pair = random_pair(5)
    near = (3.001, 0.801, 0.802)
    files = stored("prediction.nii", pair[0], spacing_mm=near, dtype=dtype), stored("truth.nii", pair[1])
    assert count_files(*files)[1] == pytest.approx(MM, abs=1e-6)


# 0.8 mm / 10 = 0.08 mm; 5 steps between slices, 8 between rows, 7 between columns
@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"moved_mm": 0.075}, False),
        ({"moved_mm": 0.085}, True),
        ({"spacing_mm": (3.015, 0.8, 0.8)}, False),
        ({"spacing_mm": (3.017, 0.8, 0.8)}, True),
        ({"spacing_mm": (3.0, 0.8095, 0.8)}, False),
        ({"spacing_mm": (3.0, 0.8105, 0.8)}, True),
        ({"spacing_mm": (3.0, 0.8, 0.811)}, False),
        ({"spacing_mm": (3.0, 0.8, 0.812)}, True),
    ],
)
def test_a_tenth_of_the_smallest_step_is_rounding_and_more_is_another_place(options, refused, stored):
    pair = random_pair(6)
    files = stored("prediction.nii", pair[0], **options), stored("truth.nii", pair[1])
    if refused:
        with pytest.raises(InputError, match=r"prediction\.nii: .*truth\.nii"):
            count_files(*files)
    else:
        np.testing.assert_array_equal(count_files(*files)[0], count_slices(*pair))


@pytest.mark.parametrize("wrong", ["prediction", "truth"])
def test_a_single_voxel_of_another_label_names_its_file(wrong, stored):
    pair = dict(zip(("prediction", "truth"), random_pair(7), strict=True))
    pair[wrong][3, 4, 5] = 7
    files = [stored(f"{name}.nii", labels) for name, labels in pair.items()]
    with pytest.raises(InputError, match=rf"{wrong}\.nii: .*found 7"):
        count_files(*files)


def test_boxes_of_empty_label_maps(tmp_path):
    nothing = np.zeros((4, 5, 6), np.uint8)
    kidney = nothing.copy()
    kidney[1:3, 2:4, 1:5] = 1
    for name, labels in (("nothing", nothing), ("kidney", kidney)):
        write_image(tmp_path / f"{name}.nii.gz", labels, MM)
    empty, box = read_boxes(tmp_path / "nothing.nii.gz", tmp_path / "kidney.nii.gz")
    assert box.shape == empty.shape == (2, 2, 4) and box.all() and not empty.any()
    empty, box = read_boxes(tmp_path / "nothing.nii.gz", tmp_path / "nothing.nii.gz")
    assert empty.size == box.size == 0


def cyst_case(folder):
    """One case of 8 x 8 kidney voxels in each of 3 slices with cyst (3) and tumor (2); predicted: half the cyst as
    tumor. Returns (truth, prediction)."""
    truth = np.zeros((5, 12, 12), np.uint8)
    truth[1:4, 2:10, 2:10] = 1
    truth[2, 3:5, 3:7] = 3  # 8 voxels of cyst
    truth[2, 6:8, 3:7] = 2  # 8 of tumor
    predicted = truth.copy()
    predicted[2, 3, 3:7] = 2
    write_image(folder / "truth" / "case_00007" / "segmentation.nii.gz", truth, MM)
    write_image(folder / "predictions" / "case_00007.nii.gz", predicted, MM)
    return truth, predicted


def test_classes_of_kits23(tmp_path):
    cyst_case(tmp_path)
    found = evaluate_folders(
        tmp_path / "predictions", tmp_path / "truth", tmp_path / "scores.csv", classes="kits23", surface=True
    )
    (row,) = found.rows
    # tumor: truth 8, prediction 12, common 8 -> 16/20; the masses and all together agree
    assert row["tumor_dice"] == row["tu_dice"] == pytest.approx(0.8)
    assert row["mass_dice"] == row["kidney_and_mass_dice"] == row["tk_dice"] == 1.0
    # cysts are kidney in the other scores: 3 * 64 - 8 of truth, 4 less predicted
    assert row["truth_kidney_ml"] == pytest.approx(184 * 3 * 0.64 / 1000, rel=1e-6)
    assert row["predicted_kidney_ml"] == pytest.approx(180 * 3 * 0.64 / 1000, rel=1e-6)
    assert row["kidney_and_mass_surface_dice"] == row["mass_surface_dice"] == 1.0
    assert row["kidney_and_mass_hd95_mm"] == row["mass_hd95_mm"] == 0.0
    assert 0 < row["tumor_surface_dice"] < 1 and row["tumor_hd95_mm"] > 0
    assert [row[name] for name in ("lesions", "lesions_found", "predicted_lesions", "false_lesions")] == [
        1,
        1,
        2,
        1,
    ]
    assert found.summary.hec.mean_dice == pytest.approx((1 + 1 + 0.8) / 3)
    assert found.summary.cases["case_00007"].label_values == (0, 1, 2, 3)
    with (tmp_path / "scores.csv").open() as file:
        (written,) = csv.DictReader(file)
    assert {name: float(written[name]) for name in row if name.endswith("_dice")} == {
        name: row[name] for name in row if name.endswith("_dice")
    }
    assert "KiTS23 classes, Dice: kidney_and_mass 1.0000, mass 1.0000, tumor 0.8000." in printed(found)


@pytest.mark.parametrize(
    ("labels", "known"),
    [
        ({"background": 0, "kidney": 1, "tumor": 2, "cyst": 3}, True),
        ({"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}, True),
        ({"background": 0, "kidney": 1, "tumor": 2}, True),
        ({"background": 0, "kidney": 1, "tumor": 3, "cyst": 2}, False),
        ({"background": 0, "kidney": 2, "tumor": 1, "cyst": 3}, False),
    ],
)
def test_classes_of_kits23_need_the_numbers_of_kits23(labels, known, tmp_path):
    """The truth of an nnU-Net dataset, whose dataset.json numbers the labels."""
    truth, _ = cyst_case(tmp_path)
    dataset = tmp_path / "Dataset001_Kidney"
    write_image(dataset / "labelsTr" / "case_00007.nii.gz", truth, MM)
    write_image(dataset / "imagesTr" / "case_00007_0000.nii.gz", truth.astype(np.int16), MM)
    record = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (dataset / "dataset.json").write_text(json.dumps(record))
    arguments = tmp_path / "predictions", dataset, tmp_path / "scores.csv"
    if known:
        (row,) = evaluate_folders(*arguments, classes="kits23").rows
        assert (row["tumor_dice"], row["mass_dice"]) == (pytest.approx(0.8), 1.0)
        return
    with pytest.raises(InputError, match="--classes kits23"):
        evaluate_folders(*arguments, classes="kits23")


def test_cysts_are_refused_where_nobody_asked_for_them(tmp_path):
    cyst_case(tmp_path)
    folders = tmp_path / "predictions", tmp_path / "truth", tmp_path / "scores.csv"
    with pytest.raises(InputError, match="cyst"):
        evaluate_folders(*folders)
    with pytest.raises(InputError, match=r"no --cyst, found \(0, 1, 2, 1\)"):
        evaluate_folders(*folders, layout=Layout(cyst="kidney"), classes="kits23")
    with pytest.raises(InputError, match="classes: expected kits19 or kits23, found kits20"):
        evaluate_folders(*folders, classes="kits20")
    assert not (tmp_path / "scores.csv").exists()


def test_hd95_is_left_empty_where_it_is_not_defined(folders):
    tmp, _, predicted = folders
    without = np.where(predicted["case_00001"] == 2, 1, predicted["case_00001"]).astype(np.uint8)
    write_image(tmp / "predictions" / "prediction_00001.nii.gz", without, MM)
    found = evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv", surface=True)
    assert (found.rows[1]["tumor_surface_dice"], found.rows[1]["tumor_hd95_mm"]) == (0.0, None)
    with (tmp / "scores.csv").open() as file:
        written = list(csv.DictReader(file))
    assert written[1]["tumor_hd95_mm"] == "" and float(written[0]["tumor_hd95_mm"]) > 0
    hd95 = found.summary.surface.classes["tumor"].hd95_mm
    assert hd95.defined == 2
    assert hd95.mean == pytest.approx((found.rows[0]["tumor_hd95_mm"] + found.rows[2]["tumor_hd95_mm"]) / 2)
    assert hd95.median == hd95.mean  # of two values
    dice = {name: of.surface_dice.mean for name, of in found.summary.surface.classes.items()}
    assert dice["tumor"] == pytest.approx(np.mean([row["tumor_surface_dice"] for row in found.rows]))
    assert found.summary.surface.mean_surface_dice == pytest.approx(sum(dice.values()) / 2)
    assert "(defined in 2 of 3 cases)" in printed(found)
    assert found.summary.lesions.lesions_found == 2
    rows, _ = read_scores(tmp / "scores.csv")
    assert rows[1]["tumor_hd95_mm"] is None


def test_split_hash_and_label_release_are_written(folders):
    tmp, _, _ = folders
    record = {"split": {"name": "80-10-10", "hash": "abc", "part": "test"}}
    (tmp / "predictions" / "predictions.json").write_text(json.dumps(record))
    found = evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv")
    assert found.summary.label_release == {"kits19": 0, "other": 3}
    with (tmp / "scores.csv").open() as file:
        assert {(row["label_release"], row["split_hash"]) for row in csv.DictReader(file)} == {
            ("other", "abc")
        }


def test_failed_scans_are_carried_over(folders):
    tmp, _, _ = folders
    file = tmp / "predictions" / "predictions.json"
    entry = {"reason": "case_00009: damaged", "traceback": "...", "finished": "2026"}
    file.write_text(json.dumps({"failed": {"case_00009": entry}}))
    found = evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv")
    assert found.summary.failed == {"case_00009": Failure(reason="case_00009: damaged")}
    assert re.search(r"1 scan failed .*predict: case_00009\.", printed(found))
    for damaged in ({"failed": ["case_00009"]}, {"failed": {"case_00009": {}}}, {"split": "x"}, [1]):
        file.write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=r"predictions\.json: .*record of kitsseg predict"):
            evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv")


def test_what_predict_recorded_replaces_no_score(folders):
    tmp, _, _ = folders
    (tmp / "predictions" / "predictions.json").write_text(
        json.dumps({"scores": {}, "n_cases": 9, "run": "r"})
    )
    summary = evaluate_folders(tmp / "predictions", tmp / "truth", tmp / "scores.csv").summary
    assert summary.n_cases == 3 and summary.scores.tk_dice.mean > 0
    assert summary.run == str(tmp / "predictions" / "r")


def check_real_label_maps(files, truth, out):
    """Perturbed copies of real label maps as predictions, against a computation with other means.

    The lines of the starter code: masks > 0 and > 1, twice the intersection over the sum, mean of both. The ladder of
    an empty label map: shares of voxels and slices, by plain NumPy.
    """
    composites, voxels, slices = [], np.zeros(3, np.int64), np.zeros(3, np.int64)
    for file in files:
        labels = np.asarray(nib.load(file).dataobj)
        prediction = np.roll(labels, 2, axis=1)
        prediction[::3][prediction[::3] == 2] = 1  # every third slice loses its tumor
        nib.save(nib.Nifti1Image(prediction, nib.load(file).affine), out / f"{file.parent.name}.nii")
        dice = []
        for label in (0, 1):
            one, other = labels > label, prediction > label
            dice.append(2 * np.sum(one & other) / (np.sum(one) + np.sum(other)))
        composites.append(sum(dice) / 2)
        voxels += [np.sum(labels == label) for label in range(3)]
        slices += [len(labels), np.sum(labels.any(axis=(1, 2))), np.sum((labels == 2).any(axis=(1, 2)))]
    found = evaluate_folders(out, truth, out / "scores.csv")
    assert [row["composite"] for row in found.rows] == pytest.approx(composites, abs=1e-12)
    assert {row["label_release"] for row in found.rows} == {"kits19"}
    nothing = found.summary.beside_all_background.all_background
    assert nothing["pixel_accuracy"] == pytest.approx(voxels[0] / voxels.sum(), abs=1e-12)
    assert nothing["slice_tk_dice_empty_is_1"] == pytest.approx(1 - slices[1] / slices[0], abs=1e-12)
    assert nothing["slice_tu_dice_empty_is_1"] == pytest.approx(1 - slices[2] / slices[0], abs=1e-12)
    assert nothing["tk_dice"] == nothing["tu_dice"] == nothing["pooled_tk_dice"] == 0.0


def test_official_scores_of_real_label_maps(real_data, tmp_path):
    names = ("case_00023", "case_00061", "case_00148")
    files = [real_data / "kits19" / name / "segmentation.nii.gz" for name in names]
    check_real_label_maps(files, real_data / "kits19", tmp_path)


@pytest.mark.slow
def test_all_real_label_maps_at_hand_have_the_official_scores(real_data, tmp_path):
    files = sorted((real_data / "kits19").glob("case_*/segmentation.nii.gz"))
    assert len(files) >= 20
    check_real_label_maps(files, real_data / "kits19", tmp_path)
