"""Runs side by side on the same patients: hand-made cases whose Dice values are simple fractions."""

import csv
import json
import shutil

import numpy as np
import pytest
from support.records import run_record

from kitsseg.cli import main
from kitsseg.data.formats.nifti import write_image
from kitsseg.errors import InputError
from kitsseg.records.run import PartsOfSplit, SplitOfRun, update_run
from kitsseg.scoring.compare import compare_scores
from kitsseg.scoring.evaluate import evaluate_folders

MM = (3.0, 0.8, 0.8)
N = 5


@pytest.fixture
def scores(tmp_path):
    """Five patients with 8 kidney and 4 tumor voxels each. ``whole`` finds all of it; ``half`` finds the kidney and
    2 of the 4 tumor voxels, the others it leaves background: TU 2*2/(2+4) = 2/3, TK 2*10/(10+12) = 10/11."""
    truth = np.zeros((2, 4, 6), np.uint8)
    truth[0, :2, :4] = 1
    truth[1, 0, :4] = 2
    half = truth.copy()
    half[1, 0, 2:] = 0
    for case in range(N):
        write_image(tmp_path / "truth" / f"case_{case:05d}" / "segmentation.nii.gz", truth, MM)
        for name, labels in (("whole", truth), ("half", half)):
            write_image(tmp_path / name / f"prediction_{case:05d}.nii.gz", labels, MM)
    files = {}
    for name in ("half", "whole"):
        files[name] = tmp_path / name / "scores.csv"
        evaluate_folders(tmp_path / name, tmp_path / "truth", files[name])
    return files


def seen_by(file, folder, **parts):
    """Let the scores say they come from a run with this split."""
    folder.mkdir()
    cases = PartsOfSplit(**{"train": [], "validation": [], "test": []} | parts)
    update_run(folder, run_record(split=SplitOfRun(name="some", hash="0", cases=cases)))
    summary = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps(summary | {"run": str(folder)}))


def test_differences_by_hand(scores, tmp_path):
    found = compare_scores(scores, tmp_path / "compare.csv")
    assert found.cases == tuple(f"case_{case:05d}" for case in range(N)) and not found.left_out
    for metric, low in (("tk_dice", 10 / 11), ("tu_dice", 2 / 3), ("composite", (10 / 11 + 2 / 3) / 2)):
        # the same in all patients: whatever is drawn, the mean is the same
        assert found.means["half"][metric] == pytest.approx((low, low, low))
        assert found.means["whole"][metric] == pytest.approx((1, 1, 1))
        row = next(row for row in found.differences if row["metric"] == metric)
        assert (row["first"], row["second"], row["patients"]) == ("half", "whole", N)
        assert (row["difference"], row["low"], row["high"]) == pytest.approx((1 - low,) * 3)
        # all five signs agree: of 2**5 equally likely patterns of signs two are as extreme
        assert row["p"] == pytest.approx(2 / 2**N)
    with (tmp_path / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["difference"]) for row in rows] == [row["difference"] for row in found.differences]


def test_a_run_against_itself(scores):
    found = compare_scores({"one": scores["half"], "again": scores["half"]})
    assert all(
        (row["difference"], row["low"], row["high"], row["p"]) == (0, 0, 0, 1) for row in found.differences
    )


def test_patients_seen_by_the_run_that_a_run_started_from_are_left_out(scores, tmp_path):
    seen_by(scores["half"], tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["parent"] = {
        "run": "/earlier",
        "patients": {"train": ["case_00001"], "validation": ["case_00003"]},
    }
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    left_out = compare_scores(scores).left_out
    assert list(left_out) == ["case_00001", "case_00003"]
    assert all(reason.startswith("half started from") for reason in left_out.values())


def test_patients_a_run_has_seen_are_left_out(scores, tmp_path):
    seen_by(scores["half"], tmp_path / "run", train=["case_00001", "case_99999"], validation=["case_00002"])
    found = compare_scores(scores)
    assert list(found.left_out) == ["case_00001", "case_00002"]
    assert found.left_out["case_00001"].startswith("half was trained")
    assert found.left_out["case_00002"].startswith("half was chosen")
    assert found.cases == ("case_00000", "case_00003", "case_00004")
    assert found.unchecked == ("whole",)  # the scores of ``whole`` do not name their run


def test_a_run_that_is_gone_cannot_say_whom_it_has_seen(scores, tmp_path):
    for name in scores:
        seen_by(scores[name], tmp_path / f"run-{name}")
    assert compare_scores(scores).unchecked == ()
    (tmp_path / "run-half").rename(tmp_path / "elsewhere")
    assert compare_scores(scores).unchecked == ("half",)


def test_patients_only_one_run_was_scored_on_are_left_out(scores, tmp_path):
    (tmp_path / "half" / "prediction_00003.nii.gz").unlink()
    evaluate_folders(tmp_path / "half", tmp_path / "truth", scores["half"])
    assert compare_scores(scores).left_out == {"case_00003": "not scored by half"}


def test_nothing_left_to_compare(scores, tmp_path):
    seen_by(scores["whole"], tmp_path / "run", train=[f"case_{case:05d}" for case in range(N - 1)])
    with pytest.raises(InputError, match="two patients .*every run, found 1"):
        compare_scores(scores)


def test_another_truth_is_noticed(scores, tmp_path):
    labels = np.zeros((2, 4, 6), np.uint8)
    labels[0, :2, :4] = 1
    labels[1, 0, :3] = 2
    write_image(tmp_path / "truth" / "case_00004" / "segmentation.nii.gz", labels, MM)
    evaluate_folders(tmp_path / "whole", tmp_path / "truth", scores["whole"])
    with pytest.raises(InputError, match="case_00004 .*truth_tumor_ml of .*not the same"):
        compare_scores(scores)


def altered(file, change):
    """Let ``change`` alter the rows of a table of scores."""
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    change(rows)
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        (100.0, 100.09, True),
        (100.0, 99.91, True),
        (100.0, 100.12, False),
        (100.0, 99.88, False),
        (0.0002, 0.0002009, True),
        (0.0002, 0.0002012, False),
        (0.0, 0.0, True),
        (0.0, 0.0000012, False),
    ],
)
def test_volumes_of_a_truth_may_differ_by_a_thousandth(expected, found, same, scores):
    """Of the volume, or of a mm3 where the volume is less."""

    for name, ml in (("half", expected), ("whole", found)):
        altered(scores[name], lambda rows, ml=ml: rows[2].update(truth_kidney_ml=ml))
    if same:
        assert len(compare_scores(scores).cases) == N
        return
    with pytest.raises(InputError, match="whole.*case_00002.*truth_kidney_ml"):
        compare_scores(scores)


def test_one_patient_without_a_difference_leaves_the_test_to_the_others(scores, tmp_path):
    name = "prediction_00000.nii.gz"
    shutil.copy(tmp_path / "whole" / name, tmp_path / "half" / name)
    evaluate_folders(tmp_path / "half", tmp_path / "truth", scores["half"])
    for row in compare_scores(scores).differences:
        assert 0 < row["p"] < 0.2  # of the four other signs, which all agree
        assert row["low"] < row["difference"]


def test_two_patients_are_enough_and_three_reasons_are_told(scores, tmp_path):
    cases = [f"case_{case:05d}" for case in range(N)]
    seen_by(scores["whole"], tmp_path / "run", train=cases[:3])
    assert compare_scores(scores).cases == tuple(cases[3:])
    seen_by(scores["half"], tmp_path / "other", train=cases[3:])
    with pytest.raises(InputError, match="found 0") as error:
        compare_scores(scores)
    assert [case in str(error.value) for case in cases] == [True, True, True, False, False]


@pytest.mark.parametrize("which", ["half", "whole"])
def test_synthetic_patients_are_named_and_all_of_them_are_a_phantom(which, scores):
    beside = scores[which].with_suffix(".json")
    summary = json.loads(beside.read_text())
    for case in ("case_00001", "case_00003"):
        summary["cases"][case]["phantom"] = True
    beside.write_text(json.dumps(summary))
    found = compare_scores(scores)
    assert (found.synthetic, found.phantom) == (("case_00001", "case_00003"), False)
    beside.write_text(json.dumps(summary | {"phantom": True}))
    found = compare_scores(scores)
    assert (len(found.synthetic), found.phantom) == (N, True)


def test_patients_of_scans_are_not_synthetic(scores):
    found = compare_scores(scores)
    assert (found.synthetic, found.phantom, found.of_slices) == ((), False, False)


def test_one_run_is_nothing_to_compare(scores):
    with pytest.raises(InputError, match="at least two"):
        compare_scores({"half": scores["half"]})


def test_the_command(scores, tmp_path, capsys, monkeypatch):
    from kitsseg.runtime.console import console

    monkeypatch.setattr(console, "width", 200)
    out = tmp_path / "compare.csv"
    assert main(["compare", str(scores["half"]), f"best={scores['whole']}", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "best - half" in text and "+0.333" in text and "0.0625" in text and out.is_file()
    assert main(["compare", f"a={scores['half']}", f"a={scores['whole']}"]) == 1
    assert "is the name of" in capsys.readouterr().err
    assert main(["compare", str(scores["half"]), str(scores["whole"]), "--out", str(tmp_path)]) == 1
    assert "a .csv file" in capsys.readouterr().err
