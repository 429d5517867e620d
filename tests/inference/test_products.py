"""What is written beside label maps: volumes, DICOM SEG read back by highdicom and pydicom, color tables."""

import json
import os
import re
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pydicom
import pytest
from support.cases import make_case, read_json
from support.dicom_files import ORIENTATIONS, noise, write_series

from kitsseg.cli import main
from kitsseg.data.formats.dicom import slice_files
from kitsseg.data.formats.dicom_seg import write_segmentation
from kitsseg.errors import InputError
from kitsseg.files.tables import read_rows
from kitsseg.inference.cohort import predict_cohort
from kitsseg.inference.options import PredictOptions

highdicom = pytest.importorskip("highdicom")


def study(_, dataset):
    """What the header of a real series holds as well."""
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = "p7", "A^B", "", ""
    dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.4"
    dataset.StudyID = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.StudyDate, dataset.StudyTime, dataset.SeriesNumber = "20200101", "120000", 4


def place_of(frame):
    return tuple(round(float(x), 3) for x in frame.PlanePositionSequence[0].ImagePositionPatient)


@pytest.mark.parametrize("name", ["axial", "prone, feet first", "coronal", "oblique"])
def test_a_segmentation_lies_on_the_voxels_of_its_series(tmp_path, name):
    """Read by pydicom: each frame is where its slice is, whatever the order of the files; read by highdicom: equal."""
    folder = write_series(tmp_path / "ct", noise((5, 8, 6)), ORIENTATIONS[name], change=study)
    files = slice_files(folder)
    labels = np.random.default_rng(1).integers(0, 3, (5, 8, 6)).astype(np.uint8)
    labels[2] = 0  # a slice without anything has no frame
    write_segmentation(tmp_path / "x.dcm", labels, files, "unet2d")
    dataset = pydicom.dcmread(tmp_path / "x.dcm")
    assert dataset.SOPClassUID == pydicom.uid.SegmentationStorage
    codes = [one.SegmentedPropertyTypeCodeSequence[0] for one in dataset.SegmentSequence]
    assert [(code.CodeValue, code.CodingSchemeDesignator) for code in codes] == [
        ("64033007", "SCT"),
        ("108369006", "SCT"),
    ]
    where = {}
    for k, file in enumerate(files):
        position = pydicom.dcmread(file, stop_before_pixels=True).ImagePositionPatient
        where[tuple(round(float(x), 3) for x in position)] = k
    found = np.zeros_like(labels)
    frames = dataset.PerFrameFunctionalGroupsSequence
    for frame, pixels in zip(frames, dataset.pixel_array, strict=True):
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[where[place_of(frame)]][pixels > 0] = number
    np.testing.assert_array_equal(found, labels)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    first = pydicom.dcmread(files[0], stop_before_pixels=True)
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    np.testing.assert_allclose(orientation, first.ImageOrientationPatient, rtol=0, atol=1e-6)
    assert (dataset.PatientID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID) == (
        "p7",
        "1.2.3",
        "1.2.4",
    )
    seg = highdicom.seg.segread(tmp_path / "x.dcm")
    uids = [str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID) for file in files]
    again = seg.get_pixels_by_source_instance(
        uids, combine_segments=True, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(again, labels)


def test_headers_without_a_study_are_named(tmp_path):
    folder = write_series(tmp_path / "ct", noise((3, 8, 6)))
    with pytest.raises(InputError, match=r"ct: .*headers.*DICOM SEG.*--dicom-seg"):
        write_segmentation(tmp_path / "x.dcm", np.ones((3, 8, 6), np.uint8), slice_files(folder), "x")
    assert not list(tmp_path.glob("*.dcm"))


def test_the_command_writes_segmentations_volumes_and_color_tables(trained, tmp_path, capsys):
    folder = write_series(tmp_path / "in" / "anna" / "ct", noise((6, 32, 40)), change=study)
    series = shutil.copytree(folder, tmp_path / "in" / "bert" / "ct")
    make_case(tmp_path / "in" / "case_1")
    for path in series.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID, dataset.PatientID, dataset.SeriesDescription = "1.2.9", "b", "late"
        dataset.save_as(path)
    out = tmp_path / "out"
    arguments = ["predict", str(trained.run), str(tmp_path / "in"), "--out", str(out)]
    assert main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "3 scans found (2 DICOM series, 1 KiTS case): 3 to predict" in said
    assert not out.exists()
    assert main([*arguments, "--dicom-seg", "--statistics"]) == 0
    names = ["b_4_late", "case_1", "p7_4"]
    files = ["b_4_late.nii.gz", "prediction_1.nii.gz", "p7_4.nii.gz"]
    rows = read_rows(out / "statistics.csv", {"case": str, "left_kidney_ml": float}, str, "x", "x")
    assert [row["case"] for row in rows] == names
    record = read_json(out / "statistics.json")["cases"]
    for name, file in zip(names, files, strict=True):
        labels = nib.load(out / file)
        values = np.asanyarray(labels.dataobj)
        ml = np.prod(labels.header.get_zooms()) / 1000
        found = record[name]["volumes"]
        # each is rounded to a thousandth
        kidneys = found["left_kidney_ml"] + found["right_kidney_ml"]
        assert kidneys == pytest.approx((values == 1).sum() * ml, abs=0.001)
        tumors = sum(one["ml"] for one in found["tumors"])
        assert tumors == pytest.approx((values == 2).sum() * ml, abs=0.0005 * len(found["tumors"]))
    assert sorted(path.name for path in out.glob("*.dcm")) == ["b_4_late.dcm", "p7_4.dcm"]
    colors = [line.split() for line in (out / "colors_3d_slicer.ctbl").read_text().splitlines()[1:]]
    assert [line[:2] for line in colors] == [["0", "background"], ["1", "kidney"], ["2", "tumor"]]
    snap = [line.split() for line in (out / "colors_itk_snap.txt").read_text().splitlines()[2:]]
    assert [(line[0], line[-1]) for line in snap] == [
        ("0", '"background"'),
        ("1", '"kidney"'),
        ("2", '"tumor"'),
    ]
    assert [line[1:4] for line in snap[1:]] == [line[2:5] for line in colors[1:]]
    # the same command again: what is there stays, what is gone is made
    before = (out / "p7_4.dcm").stat().st_mtime_ns
    (out / "b_4_late.dcm").unlink()
    assert main([*arguments, "--dicom-seg", "--statistics"]) == 0
    assert (out / "b_4_late.dcm").is_file()
    assert (out / "p7_4.dcm").stat().st_mtime_ns == before


def test_statistics_of_label_maps_that_were_there_before(trained, tmp_path):
    case = trained.data / "case_00000"
    predict_cohort(trained.run, [case], tmp_path)
    assert not (tmp_path / "statistics.json").exists()
    outcome = predict_cohort(trained.run, [case], tmp_path, options=PredictOptions(statistics=True))
    assert outcome.kept == 1
    assert list(read_json(tmp_path / "statistics.json")["cases"]) == ["case_00000"]


def test_other_cleanup_is_another_prediction(trained, tmp_path):
    case = trained.data / "case_00000"
    predict_cohort(trained.run, [case], tmp_path, options=PredictOptions(remove_small_mm3=1e9))
    [entry] = read_json(tmp_path / "predictions.json")["cases"].values()
    assert not np.asanyarray(nib.load(tmp_path / entry["file"]).dataobj).any()
    assert read_json(tmp_path / "predictions.json")["cleanup"] == {
        "remove_small_mm3": 1e9,
        "tumors_on_kidneys": False,
    }
    with pytest.raises(
        InputError, match=r"made with --remove-small 1000000000, now without --remove-small\."
    ):
        predict_cohort(trained.run, [case], tmp_path)


def test_dicom_seg_needs_dicom_and_highdicom(trained, tmp_path):
    case = trained.data / "case_00000"
    with pytest.raises(InputError, match=r"--dicom-seg: .*DICOM series, found none.* 1 scans"):
        predict_cohort(trained.run, [case], tmp_path / "out", options=PredictOptions(dicom_seg=True))
    assert not (tmp_path / "out").exists()
    script = (
        "import sys; sys.modules['highdicom'] = None\n"
        "from kitsseg.data.formats.dicom_seg import check_highdicom\ncheck_highdicom()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert re.search("--dicom-seg: .*highdicom is missing", done.stderr)
    assert "pip install highdicom" in done.stderr


def test_one_damaged_archive_stops_no_other_and_the_exit_code_says_so(trained, tmp_path, capsys):
    make_case(tmp_path / "in" / "case_1")
    (tmp_path / "in" / "x.zip").write_bytes(b"PK nothing")
    out = tmp_path / "out"
    assert main(["predict", str(trained.run), str(tmp_path / "in"), "--out", str(out)]) == 1
    assert "x.zip: cannot be unpacked" in capsys.readouterr().err
    assert list(json.loads((out / "predictions.json").read_text())["cases"]) == ["case_1"]


def test_overwrite_replaces_what_was_edited_and_what_nobody_knows(trained, tmp_path):
    cases = [trained.data / "case_00000", trained.data / "case_00001"]
    [first, second] = [tmp_path / f"prediction_0000{k}.nii.gz" for k in (0, 1)]
    predict_cohort(trained.run, cases[:1], tmp_path)
    whole = first.read_bytes()
    shutil.copy(trained.data / "case_00002" / "segmentation.nii.gz", first)
    shutil.copy(first, second)
    assert len(predict_cohort(trained.run, cases, tmp_path).failed) == 2
    outcome = predict_cohort(trained.run, cases, tmp_path, options=PredictOptions(overwrite=True))
    assert (outcome.failed, outcome.kept) == ({}, 0)
    assert first.read_bytes() == whole
    assert second.read_bytes() != (trained.data / "case_00002" / "segmentation.nii.gz").read_bytes()
