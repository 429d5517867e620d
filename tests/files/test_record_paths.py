"""Records name files relative to their own folder: what lies together can be moved together."""

import json
import os
import re
import shutil
import socket

import pytest

from kitsseg.errors import InputError
from kitsseg.files.paths import absolute_paths, check_regular, relative_path, relative_paths
from kitsseg.inference.cohort import predict_cases
from kitsseg.report.report import write_report
from kitsseg.scoring.compare import compare_scores
from kitsseg.scoring.evaluate import evaluate_folders
from kitsseg.scoring.scores_file import read_scores

RECORD = {
    "run": "a/run",
    "also": ["a/second", "other/third"],
    "recipe": "unet2d",
    "cases": {
        "case_00001": {"prediction": "a/p.nii.gz", "truth": "b/t.nii.gz", "image": None, "file": "p.nii.gz"}
    },
    "failed": {"case_00002": {"image": "b/i.nii.gz", "reason": "damaged"}},
}


def test_there_and_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = relative_paths(RECORD, "a/results")
    assert written["run"] == "../run"
    assert written["also"] == ["../second", "../../other/third"]
    assert written["recipe"] == "unet2d"
    case = written["cases"]["case_00001"]
    assert case == {
        "prediction": "../p.nii.gz",
        "truth": "../../b/t.nii.gz",
        "image": None,
        "file": "p.nii.gz",
    }
    assert written["failed"]["case_00002"] == {"image": "../../b/i.nii.gz", "reason": "damaged"}
    read = absolute_paths(written, "a/results")
    assert read["run"] == str(tmp_path / "a" / "run")
    assert read["also"][1] == str(tmp_path / "other" / "third")
    assert read["cases"]["case_00001"]["truth"] == str(tmp_path / "b" / "t.nii.gz")
    assert relative_paths(read, "a/results") == written
    assert RECORD["run"] == "a/run"  # the argument stays as it was


def test_absolute_paths_of_older_records_stay(tmp_path):
    record = {"run": str(tmp_path / "elsewhere")}
    assert absolute_paths(record, tmp_path / "here") == record


def test_another_drive_has_no_relative_path(tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", refuse)
    assert relative_path(tmp_path / "run", tmp_path / "out") == str(tmp_path / "run")


@pytest.fixture
def project(trained, tmp_path):
    """Data, run, predictions and scores of one project in one folder."""
    folder = tmp_path / "project"
    shutil.copytree(trained.data, folder / "data")
    shutil.copytree(trained.run, folder / "run")
    predict_cases(folder / "run", [folder / "data"], folder / "predictions", part="test")
    evaluate_folders(folder / "predictions", folder / "data", folder / "scores.csv")
    return folder


def test_a_moved_project_still_has_pictures_curves_and_its_training_patients(project, tmp_path):
    for name in ("predictions/predictions.json", "scores.json"):
        assert str(tmp_path) not in (project / name).read_text()
    page = write_report(project / "scores.csv", tmp_path / "before.html").read_text()
    moved = project.rename(tmp_path / "moved")
    after = write_report(moved / "scores.csv", tmp_path / "after.html").read_text()
    assert "no longer there" not in after
    assert after.count("data:image") == page.count("data:image") > 0
    # a patient that the run was trained on is found though the run lies elsewhere now
    _, summary = read_scores(moved / "scores.csv")
    assert summary.run == str(moved / "run")
    run = json.loads((moved / "run" / "run.json").read_text())
    [case] = run["split"]["cases"]["test"]
    run["split"]["cases"]["train"].append(case)
    (moved / "run" / "run.json").write_text(json.dumps(run))
    shutil.copy(moved / "scores.csv", moved / "again.csv")
    shutil.copy(moved / "scores.json", moved / "again.json")
    with pytest.raises(ValueError, match=f"{case}.*trained on"):
        compare_scores({"first": moved / "scores.csv", "second": moved / "again.csv"})


def test_predicting_in_a_moved_project_goes_on(project, tmp_path):
    moved = project.rename(tmp_path / "moved")
    before = (moved / "predictions" / "predictions.json").read_text()
    predict_cases(moved / "run", [moved / "data"], moved / "predictions", part="test")
    assert (moved / "predictions" / "predictions.json").read_text() == before


def test_pipes_sockets_and_devices_are_refused_before_they_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "pipe.nii.gz")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
    for path, kind in (
        (tmp_path / "pipe.nii.gz", "named pipe"),
        (tmp_path / "link.nii.gz", "named pipe"),
        (tmp_path / "s", "socket"),
        (os.devnull, "device"),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(str(path))}: .*found a {kind}"):
            check_regular(path)
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file", tmp_path / "none", tmp_path / "file" / "x", "a\0b"):
        check_regular(path)
