"""The way of a hospital's engineer: one folder of everything, from a table of what is there to DICOM SEG and a report.

All whole scans of the folder hold one synthetic patient, whose voxels are the same in every format and axis order, so
that all label maps must be the same. What is damaged must be refused with its name, and must stop nothing else.
"""

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
from support.dicom_files import ORIENTATIONS, write_series

from kitsseg.cli import main
from kitsseg.data.formats.dicom import slice_files

highdicom = pytest.importorskip("highdicom")
pytestmark = pytest.mark.slow

SEGMENTS = {1: ("64033007", "SCT"), 2: ("108369006", "SCT")}
FLIP = np.diag(
    [-1, -1, 1, 1]
)  # between the axes of NIfTI (right, anterior, superior) and of DICOM (left, posterior)


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """A synthetic CT and its truth as NIfTI images, axes to the left, to the back and to the head."""
    folder = tmp_path_factory.mktemp("patient")
    assert main(["synthesize", str(folder), "--cases", "1", "--size", "20,96,96", "--quiet"]) == 0
    return [lps(nib.load(folder / "case_00000" / name)) for name in ("imaging.nii.gz", "segmentation.nii.gz")]


def lps(image):
    return turned(image, "LPS")


def turned(image, axes):
    """The same voxels, the axes of the file in another order or direction."""
    here = nib.orientations.io_orientation(image.affine)
    there = nib.orientations.axcodes2ornt(axes)
    return image.as_reoriented(nib.orientations.ornt_transform(here, there))


def series(folder, image, name, patient_id="anna", number=2, kind="CT", **options):
    """Write the CT as a DICOM series whose slices lie as ``ORIENTATIONS`` says: axial, prone or coronal."""
    voxels, sizes = np.asanyarray(image.dataobj), image.header.get_zooms()
    affine = FLIP @ image.affine
    along, down = (np.array(one, float) for one in ORIENTATIONS[name])
    directions = [down, along]  # of the rows and of the columns; then of the slices
    directions.insert(0, np.cross(along, down))
    axes = [int(np.abs(one).argmax()) for one in directions]
    stored, corner = voxels.transpose(axes), [0, 0, 0]
    for k, (axis, one) in enumerate(zip(axes, directions, strict=True)):
        if one[axis] < 0:
            stored, corner[axis] = np.flip(stored, k), voxels.shape[axis] - 1

    def header(k, dataset):
        dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = (
            patient_id,
            "A^B",
            "",
            "",
        )
        dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.4"
        dataset.StudyID = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
        dataset.StudyDate, dataset.StudyTime = "20200101", "120000"
        dataset.SeriesNumber, dataset.SeriesDescription, dataset.Modality = number, name, kind
        options.get("change", lambda k, dataset: None)(k, dataset)

    step, *spacing = (float(sizes[axis]) for axis in axes)
    return write_series(
        folder,
        np.ascontiguousarray(stored + 1024).astype(np.int16),
        ORIENTATIONS[name],
        spacing,
        step,
        (affine @ (*corner, 1))[:3],
        change=header,
    )


@pytest.fixture(scope="module")
def folder(patient, tmp_path_factory):
    """Names of the whole scans, and what each refused or ignored item must be called in the output."""
    ct, _ = patient
    top = tmp_path_factory.mktemp("mixed")
    # DICOM: two patients, three series in one folder, one over two folders, one in an archive
    study = top / "PACS export" / "anna" / "study"
    for number, name in ((2, "axial"), (3, "prone, feet first"), (4, "coronal")):
        for path in series(top / "new", ct, name, number=number).iterdir():
            study.mkdir(parents=True, exist_ok=True)
            path.rename(study / f"{number}{path.name}")
    series(top / "PACS export" / "bert" / "IM0", ct, "axial", "bert", 5)
    (top / "PACS export" / "bert" / "IM1").mkdir()
    for path in sorted((top / "PACS export" / "bert" / "IM0").iterdir())[::2]:
        path.rename(top / "PACS export" / "bert" / "IM1" / path.name)
    series(top / "new", ct, "axial", "carl", 6)
    shutil.make_archive(str(top / "carl"), "zip", top / "new")
    shutil.rmtree(top / "new")
    # NIfTI: several orders of axes, blanks in a name, a folder of nnU-Net, a KiTS case
    (top / "nifti").mkdir()
    for axes, name in (("RAS", "ras.nii.gz"), ("PIR", "p i r.nii"), ("SAL", "sal.nii.gz")):
        nib.save(turned(ct, axes), top / "nifti" / name)
    images = top / "nnunet" / "Dataset007_Kidney" / "imagesTs"
    images.mkdir(parents=True)
    nib.save(ct, images / "dora_0000.nii.gz")
    names = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "kidney": 1, "tumor": 2}}
    (images.parent / "dataset.json").write_text(
        json.dumps(names | {"numTraining": 0, "file_ending": ".nii.gz"})
    )
    (top / "case_00042").mkdir()
    nib.save(ct, top / "case_00042" / "imaging.nii.gz")
    # damaged, each in its own way
    bad = top / "damaged"
    bad.mkdir()
    whole = (top / "nifti" / "ras.nii.gz").read_bytes()
    (bad / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (bad / "text.nii.gz").write_text("see the other folder")
    (bad / "empty.nii.gz").write_bytes(b"")
    (bad / "half.zip").write_bytes((top / "carl.zip").read_bytes()[:5000])
    nib.save(nib.Nifti1Image(np.zeros((9, 8, 4, 2), np.int16), np.eye(4)), bad / "film.nii.gz")
    unfinished = np.asanyarray(ct.dataobj).astype(np.float32)
    unfinished[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(unfinished, ct.affine), bad / "nan.nii.gz")
    gap = series(bad / "gap", ct, "axial", "gap", 7)
    slice_files(gap)[9].unlink()
    cut = series(bad / "cut series", ct, "axial", "cut", 8)
    last = sorted(cut.iterdir())[-1]
    last.write_bytes(last.read_bytes()[:-300])
    # not CT, and no scans at all
    series(top / "other" / "mr", ct, "axial", "mr", 9, kind="MR")
    series(top / "other" / "scout", ct, "coronal", "scout", 1, change=localizer)
    (top / "other" / "read me.txt").write_text("hello")
    return top


def localizer(_, dataset):
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


DICOM = {
    "anna_2_axial": "PACS export/anna/study",
    "anna_3_prone_feet_first": "PACS export/anna/study",
    "anna_4_coronal": "PACS export/anna/study",
    "bert_5_axial": "PACS export/bert",
    "carl_6_axial": None,
}
WHOLE = [*DICOM, "ras", "p i r", "sal", "dora", "case_00042"]
REFUSED = [
    "cut.nii.gz",
    "text.nii.gz",
    "empty.nii.gz",
    "half.zip",
    "film.nii.gz",
    "nan.nii.gz",
    "gap",
    "cut series",
]
IGNORED = ["other/mr", "other/scout", "read me.txt"]


def run(capsys, *arguments):
    code = main([str(one) for one in arguments])
    out, err = capsys.readouterr()
    print(out, err)
    return code, out, err


def test_a_mixed_folder_from_the_table_to_segmentations_and_a_report(folder, patient, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["predict", "starter", folder, "--out", out, "--dicom-seg", "--statistics"]
    code, table, errors = run(capsys, *command, "--dry-run")
    assert code == 1
    assert not out.exists()
    for name in WHOLE:
        assert len(re.findall(rf"^│ {re.escape(name)} +│ .* predict +│$", table, re.M)) == 1, name
    for name in REFUSED:
        assert name in table + errors, name
    for name in IGNORED:
        assert name in table, name

    code, said, errors = run(capsys, *command)
    assert code == 1
    record = json.loads((out / "predictions.json").read_text())["cases"]
    assert sorted(record) == sorted(WHOLE)
    failures = [line for line in said.splitlines() if not line.startswith("cannot be looked at: ")]
    for name in REFUSED:
        [_] = [line for line in failures if re.search(rf"damaged/{re.escape(name)}(/IM\d+)?: ", line)]
    assert "8 of 18 scans failed" in errors
    assert not [name for name in IGNORED if name in errors]

    # one patient, one label map, whatever the format
    expected = found_in(out / record["ras"]["file"])
    truth = np.asanyarray(patient[1].dataobj)
    assert 2 * np.sum((expected > 0) & (truth > 0)) / (np.sum(expected > 0) + np.sum(truth > 0)) > 0.6
    for name in WHOLE:
        np.testing.assert_array_equal(found_in(out / record[name]["file"]), expected, err_msg=name)

    # each SEG, read by two libraries, is the label map of its series
    assert sorted(path.stem for path in out.glob("*.dcm")) == sorted(DICOM)
    shutil.unpack_archive(folder / "carl.zip", tmp_path / "carl")
    for name, place in DICOM.items():
        place = folder / place if place else tmp_path / "carl"
        check_segmentation(out / f"{name}.dcm", place, expected, FLIP @ patient[0].affine)

    # volumes: the same in each row, and those of the label map
    ml = np.prod(patient[0].header.get_zooms()) / 1000
    rows = json.loads((out / "statistics.json").read_text())["cases"]
    for name in WHOLE:
        volumes = rows[name]["volumes"]
        kidneys = volumes["left_kidney_ml"] + volumes["right_kidney_ml"]
        assert kidneys == pytest.approx(np.sum(expected == 1) * ml, abs=0.002), name

    page = tmp_path / "report.html"
    assert run(capsys, "report", out, "--out", page)[0] == 0
    html = page.read_text()
    assert len(html) < 5_000_000
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", html)
    for name in WHOLE:
        assert name in html, name

    # the same command again computes nothing; what is mended since is computed
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii*")}
    nib.save(patient[0], folder / "damaged" / "cut.nii.gz")
    assert run(capsys, *command)[0] == 1
    now = {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii*")}
    assert {name: time for name, time in now.items() if name in before} == before
    [new] = set(now) - set(before)
    np.testing.assert_array_equal(found_in(out / new), expected)


def found_in(path):
    return np.asanyarray(lps(nib.load(path)).dataobj)


def check_segmentation(path, place, expected, affine):
    """Both readings of a SEG against ``expected``, whose voxels ``affine`` puts into DICOM's patient coordinates."""
    dataset = pydicom.dcmread(path)
    assert dataset.SOPClassUID == pydicom.uid.SegmentationStorage
    for segment in dataset.SegmentSequence:
        code = segment.SegmentedPropertyTypeCodeSequence[0]
        assert (code.CodeValue, code.CodingSchemeDesignator) == SEGMENTS[segment.SegmentNumber]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    for frame, pixels in zip(dataset.PerFrameFunctionalGroupsSequence, dataset.pixel_array, strict=True):
        here = labels_at(
            expected, affine, frame.PlanePositionSequence[0].ImagePositionPatient, orientation, spacing
        )
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(pixels > 0, here == number)
    assert dataset.pixel_array.sum() == np.sum(expected > 0)

    source = str(dataset.ReferencedSeriesSequence[0].SeriesInstanceUID)
    headers = [pydicom.dcmread(one, stop_before_pixels=True) for one in place.rglob("*") if one.is_file()]
    slices = [one for one in headers if str(one.SeriesInstanceUID) == source]
    read = highdicom.seg.segread(path).get_pixels_by_source_instance(
        [str(one.SOPInstanceUID) for one in slices],
        combine_segments=True,
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    for one, labels in zip(slices, read, strict=True):
        here = labels_at(
            expected, affine, one.ImagePositionPatient, one.ImageOrientationPatient, one.PixelSpacing
        )
        np.testing.assert_array_equal(labels, here)


def labels_at(expected, affine, position, orientation, spacing):
    """``expected`` on the pixels of one slice of DICOM: row r and column c lie at
    position + c * spacing[1] * orientation[:3] + r * spacing[0] * orientation[3:]."""
    along, down = np.array(orientation, float).reshape(2, 3)
    inverse = np.linalg.inv(affine)
    steps = [inverse[:3, :3] @ (down * float(spacing[0])), inverse[:3, :3] @ (along * float(spacing[1]))]
    axes = [int(np.abs(step).argmax()) for step in steps]
    rows, columns = np.indices([expected.shape[axis] for axis in axes])
    start = inverse @ (*map(float, position), 1)
    places = start[:3] + rows[..., None] * steps[0] + columns[..., None] * steps[1]
    near = np.round(places).astype(int)
    np.testing.assert_allclose(places, near, rtol=0, atol=0.01)
    return expected[tuple(near.transpose(2, 0, 1))]
