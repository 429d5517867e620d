"""kitsseg predict replaces no scan and no file that it does not know, and gives no scan a second label map."""

import os
import shutil

import numpy as np
import pytest
from support.cases import read_json
from support.dicom_files import noise, write_series

from kitsseg.cli import main
from kitsseg.data.formats.nifti import write_image
from kitsseg.errors import InputError
from kitsseg.files.paths import file_id
from kitsseg.inference.products import write_dicom_seg

STARTER = ["predict", "starter"]


def scan(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noisy = np.random.default_rng(seed).integers(-900, 900, (2, 8, 9)).astype(np.int16)
    write_image(path, noisy, (3, 1, 1))
    return path


@pytest.mark.parametrize("options", [[], ["--overwrite"], ["--overwrite", "--dry-run"]])
@pytest.mark.parametrize("how", ["itself", "a hard link", "a link", "through a linked folder", "given twice"])
def test_a_label_map_never_replaces_its_scan(how, options, tmp_path, capsys):
    given = scan(tmp_path / "in" / "ct.nii.gz")
    out, inputs = tmp_path / "in", [given]
    if how == "a hard link":
        out = tmp_path / "out"
        out.mkdir()
        os.link(given, out / "ct.nii.gz")
    elif how == "a link":
        out = tmp_path / "out"
        out.mkdir()
        (out / "ct.nii.gz").symlink_to(given)
    elif how == "through a linked folder":
        out = tmp_path / "out"
        out.symlink_to(tmp_path / "in")
    elif how == "given twice":
        inputs = [given, tmp_path / "in"]
    before = given.read_bytes()
    assert main([*STARTER, *map(str, inputs), "--out", str(out), *options]) == 1
    assert given.read_bytes() == before
    assert (out / "ct.nii.gz").read_bytes() == before
    said = capsys.readouterr()
    assert "ct.nii.gz: its label map would replace the scan itself." in said.out + said.err


def test_a_label_map_never_replaces_another_scan(tmp_path, capsys):
    """The case scan1 is segmented into scan1.nii.gz, and in the folder for the label maps lies a CT of this name."""
    scan(tmp_path / "scan1" / "imaging.nii.gz")
    others = [scan(tmp_path / name / "scan1.nii.gz", seed) for seed, name in enumerate(("a", "b"), 1)]
    before = [path.read_bytes() for path in others]
    assert main([*STARTER, str(tmp_path), "--out", str(tmp_path / "a"), "--overwrite"]) == 1
    assert [path.read_bytes() for path in others] == before
    assert f"would replace another scan, {others[0]}." in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "a").glob("*.nii.gz")) == [
        "a_scan1.nii.gz",
        "b_scan1.nii.gz",
        "scan1.nii.gz",
    ]


def test_a_file_that_nobody_knows_is_kept_without_overwrite(tmp_path, capsys):
    given, other = scan(tmp_path / "in" / "ct.nii.gz"), scan(tmp_path / "out" / "ct.nii.gz", 1)
    before = other.read_bytes()
    assert main([*STARTER, str(given), "--out", str(tmp_path / "out")]) == 1
    assert other.read_bytes() == before
    assert "move that file" in capsys.readouterr().err
    assert main([*STARTER, str(given), "--out", str(tmp_path / "out"), "--overwrite"]) == 0
    assert other.read_bytes() != before


def test_a_dicom_file_that_is_no_segmentation_is_kept(tmp_path, capsys):
    """The series ct is segmented into ct.nii.gz and ct.dcm, and one of its slices is called ct.dcm."""
    pytest.importorskip("highdicom")

    def study(_, dataset):
        dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = (
            "p",
            "A",
            "",
            "",
        )
        dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.4"
        dataset.StudyID = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
        dataset.StudyDate, dataset.StudyTime, dataset.SeriesNumber = "20200101", "120000", 4

    series, out = write_series(tmp_path / "ct", noise((3, 8, 6)), change=study), tmp_path / "out"
    out.mkdir()
    kept = shutil.copy(min(series.iterdir()), out / "ct.dcm")
    before = kept.read_bytes()
    os.utime(kept, (0, 0))  # older than the label map
    command = [*STARTER, str(series), "--dicom-seg", "--out", str(out)]
    for content in (before, b"no DICOM"):
        kept.write_bytes(content)
        os.utime(kept, (0, 0))
        assert main(command) == 1
        assert kept.read_bytes() == content
        assert "ct.dcm: is there, and is no DICOM SEG of kitsseg" in capsys.readouterr().err
    # its own is made anew if the label map is younger
    kept.unlink()
    assert main(command) == 0
    os.utime(kept, (0, 0))
    first = kept.read_bytes()
    assert main(command) == 0
    assert kept.read_bytes() != first


@pytest.mark.parametrize(
    ("name", "content"),
    [("statistics.csv", "patient,age\n7,61\n"), ("statistics.csv", ""), ("statistics.json", "[1, 2]")],
)
def test_statistics_of_another_origin_are_kept(name, content, tmp_path, capsys):
    given, out = scan(tmp_path / "in" / "ct.nii.gz"), tmp_path / "out"
    out.mkdir()
    (out / name).write_text(content)
    command = [*STARTER, str(given), "--out", str(out), "--statistics"]
    assert main(command) == 1
    assert (out / name).read_text() == content
    assert not list(out.glob("*.nii.gz"))
    assert f"{out / name}: " in capsys.readouterr().err
    # its own are written anew
    (out / name).unlink()
    for _ in range(2):
        assert main(command) == 0
    assert (out / "statistics.csv").read_text().startswith("case,left_kidney_ml")


def test_label_maps_do_not_go_among_the_slices_of_a_series(tmp_path, capsys):
    """What lies there would be read as a slice, and spoil the series."""
    pytest.importorskip("pydicom")
    series = write_series(tmp_path / "ct", noise((3, 8, 6)))
    before = sorted(series.iterdir())
    assert main([*STARTER, str(series), "--out", str(series)]) == 1
    assert "ct: its label map would lie among the slices" in capsys.readouterr().err
    assert sorted(series.iterdir()) == before


def test_a_scan_keeps_the_name_of_its_label_map_when_others_come_to_the_folder(tmp_path, capsys):
    """Alone it is called ct; beside the ct of a second patient it would be p1_ct, and have two label maps."""
    folder, out = tmp_path / "in", tmp_path / "out"
    scan(folder / "p1" / "ct.nii.gz")
    command = [*STARTER, str(folder), "--out", str(out)]
    assert main(command) == 0
    made = (out / "ct.nii.gz").stat().st_mtime_ns
    scan(folder / "p2" / "ct.nii.gz", 1)
    scan(folder / "p3" / "ct.nii.gz", 2)
    for _ in range(2):
        assert main(command) == 0
        assert sorted(read_json(out / "predictions.json")["cases"]) == ["ct", "p2_ct", "p3_ct"]
        assert (out / "ct.nii.gz").stat().st_mtime_ns == made
    # the label map is gone: nothing is left of its name
    (out / "ct.nii.gz").unlink()
    assert main(command) == 0
    assert (out / "p1_ct.nii.gz").is_file()
    assert not (out / "ct.nii.gz").exists()


def test_a_name_that_another_scan_has_now_is_not_kept(tmp_path):
    """p1/ct was ct; a scan in the folder itself has this name now."""
    folder, out = tmp_path / "in", tmp_path / "out"
    scan(folder / "p1" / "ct.nii.gz")
    command = [*STARTER, str(folder), "--out", str(out)]
    assert main(command) == 0
    before = (out / "ct.nii.gz").read_bytes()
    shutil.move(folder / "p1", tmp_path / "elsewhere")
    scan(folder / "ct.nii.gz", 1)
    assert main(command) == 1
    assert (out / "ct.nii.gz").read_bytes() == before


def test_a_file_has_one_id_under_all_its_names(tmp_path):
    path, other = tmp_path / "a", tmp_path / "c"
    path.write_text("x")
    other.write_text("x")
    os.link(path, tmp_path / "b")
    (tmp_path / "d").symlink_to(path)
    assert file_id(path) == file_id(tmp_path / "b") == file_id(tmp_path / "d") != file_id(other)
    assert file_id(tmp_path / "none") is None


def test_write_dicom_seg_names_the_file(tmp_path):
    """As a function: an InputError, and nothing is read or written."""

    class Entry:
        file = "x.nii.gz"

    (tmp_path / "x.dcm").write_text("notes")
    pytest.importorskip("pydicom")
    with pytest.raises(InputError, match=r"x\.dcm"):
        write_dicom_seg(tmp_path, Entry, None, "unet2d")
