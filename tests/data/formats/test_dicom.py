"""A DICOM series written here, shuffled and turned, against the NIfTI file of the same volume."""

import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless
from support.dicom_files import AXIAL, ORIENTATIONS, nifti_of, noise, write_series

from kitsseg.cli import main
from kitsseg.data.formats.dicom import read_series
from kitsseg.data.formats.dicom_folder import is_series
from kitsseg.data.formats.nifti import read_image, write_labels
from kitsseg.data.layouts.find import find_cases
from kitsseg.errors import InputError


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_series_equals_the_nifti_file_of_the_same_volume(tmp_path, name):
    place = {
        "orientation": ORIENTATIONS[name],
        "spacing": (0.8, 0.7),
        "step": 2.5,
        "origin": (-120.5, -98.25, 33.0),
    }
    series = read_image(write_series(tmp_path / "series", noise(), **place))
    nifti = read_image(nifti_of(tmp_path / "volume.nii", noise(), **place))
    np.testing.assert_array_equal(series.array, nifti.array)
    assert series.array.dtype == np.int16
    assert (series.grid.axes, series.grid.flipped) == (nifti.grid.axes, nifti.grid.flipped)
    assert series.grid.shape == nifti.grid.shape
    # DICOM holds decimal strings of 16 characters, NIfTI float32
    affines = [volume.grid.header.get_best_affine() for volume in (series, nifti)]
    np.testing.assert_allclose(*affines, rtol=0, atol=2e-5)
    np.testing.assert_allclose(series.grid.spacing_mm, nifti.grid.spacing_mm, rtol=1e-6)


def test_written_labels_have_the_affine_of_the_series_to_the_bit(tmp_path):
    """Positions that float32 holds exactly: both affines, qform and sform, are the same bits."""
    place = {"orientation": AXIAL, "spacing": (0.75, 0.5), "step": 2.5, "origin": (-120.5, -98.25, 33.0)}
    volume = read_series(write_series(tmp_path / "series", noise(), **place))
    nifti = nib.load(nifti_of(tmp_path / "volume.nii", noise(), **place))
    write_labels(tmp_path / "labels.nii.gz", (volume.array > 500).astype(np.uint8), volume.grid)
    labels = nib.load(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(labels.affine, nifti.affine)
    np.testing.assert_array_equal(labels.header.get_qform(), nifti.affine)
    np.testing.assert_array_equal(np.asanyarray(labels.dataobj), np.asanyarray(nifti.dataobj) > 500)
    assert labels.header.get_xyzt_units()[0] == "mm"
    assert (int(labels.header["sform_code"]), int(labels.header["qform_code"])) == (1, 1)


def test_unsigned_pixels_slopes_of_each_slice_and_rle(tmp_path):
    stored = noise(dtype=np.uint16)

    def change(k, dataset):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 + k, -1000 - k

    volume = read_series(write_series(tmp_path / "plain", stored, change=change))
    for k in range(len(stored)):  # axial, head first: the last slice is the highest, KiTS runs downwards
        expected = np.rint(stored[k] * (0.5 + k) - 1000 - k)
        np.testing.assert_array_equal(volume.array[len(stored) - 1 - k], expected)
    packed = read_series(write_series(tmp_path / "rle", stored, change=change, syntax=RLELossless))
    np.testing.assert_array_equal(packed.array, volume.array)


def test_values_outside_int16_saturate(tmp_path):
    stored = noise()
    stored[0, 0, 0] = 30000

    def change(k, dataset):
        dataset.RescaleSlope = 4

    assert read_series(write_series(tmp_path / "series", stored, change=change)).array.max() == 32767


def test_other_files_beside_a_series_are_left_alone(tmp_path):
    write_series(tmp_path / "ct", noise())
    (tmp_path / "ct" / "notes.txt").write_text("x" * 200)
    (tmp_path / "ct" / ".hidden").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "ct" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert is_series(tmp_path / "ct")
    assert not is_series(tmp_path)
    assert read_series(tmp_path / "ct").array.shape == (7, 12, 10)


def test_folders_of_series_are_cases(tmp_path):
    for name in ("anna", "bert"):
        write_series(tmp_path / "data" / name, noise())
    (tmp_path / "data" / "empty").mkdir()
    assert [(case.name, case.image) for case in find_cases(tmp_path / "data", need_labels=False)] == [
        (name, tmp_path / "data" / name) for name in ("anna", "bert")
    ]
    [case] = find_cases(tmp_path / "data" / "anna", need_labels=False)
    assert case.name == "anna"
    assert read_image(case.image).array.shape == (7, 12, 10)


def error_of(folder):
    with pytest.raises(InputError) as caught:
        read_image(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def remove(folder, k, count=7):
    """Remove slice ``k`` of a series that write_series wrote."""
    names = np.random.default_rng(count).permutation(count)
    (folder / f"IM{names[k]:04d}").unlink()


def test_missing_slices_are_named(tmp_path):
    write_series(tmp_path, noise())
    remove(tmp_path, 3)
    message = error_of(tmp_path)
    assert "expected a slice every 2.500 mm, found 5.000 mm between" in message
    assert "about 1 slice is missing" in message
    remove(tmp_path, 4)
    message = error_of(tmp_path)
    assert "found 7.500 mm between" in message
    assert "about 2 slices are missing" in message


def test_positions_rounded_to_a_tenth_are_accepted_and_jumps_are_not(tmp_path):
    def rounded(k, dataset):
        dataset.ImagePositionPatient = [0, 0, round(k * 0.625, 1)]

    assert read_series(write_series(tmp_path / "a", noise(), step=0.625, change=rounded)).array.shape[0] == 7

    def uneven(k, dataset):
        dataset.ImagePositionPatient = [0, 0, k * 2.5 + 0.4 * (k > 3)]

    assert "slices are unevenly spaced" in error_of(write_series(tmp_path / "b", noise(), change=uneven))

    def sideways(k, dataset):
        dataset.ImagePositionPatient = [3.0 * (k == 3), 0, k * 2.5]

    message = error_of(write_series(tmp_path / "c", noise(), change=sideways))
    assert re.search(r"straight line, found .* 3\.00 mm beside it", message)


def test_a_tilted_gantry_is_refused(tmp_path):
    """Axial slices whose origins climb by 2.5 mm and move by 2.5 tan(10 degrees): a shear."""

    def tilted(k, dataset):
        dataset.ImagePositionPatient = [0, k * 2.5 * np.tan(np.radians(10)), k * 2.5]

    assert "gantry tilt, of 10.0 degrees" in error_of(write_series(tmp_path, noise(), change=tilted))


def test_several_phases_and_several_series_are_refused(tmp_path):
    def twice(k, dataset):
        dataset.ImagePositionPatient = [0, 0, (k // 2) * 2.5]

    message = error_of(write_series(tmp_path / "phases", noise((8, 6, 6)), change=twice))
    assert "at a position, found 4 more" in message
    for seed, name in enumerate(("arterial", "late")):

        def described(k, dataset, name=name):
            dataset.SeriesDescription = name

        write_series(tmp_path / name, noise(), change=described)
        for path in (tmp_path / name).iterdir():
            target = tmp_path / "mixed" / f"{seed}{path.name}"
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
    message = error_of(tmp_path / "mixed")
    assert "DICOM series, found 2: arterial (7 files" in message
    assert "late (7 files" in message


def set_to(name, value, only=None):
    def change(k, dataset):
        if only is None or k == only:
            setattr(dataset, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_to("Modality", "MR"), "found modality MR"),
        (set_to("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"], 2), "found a localizer image"),
        (set_to("NumberOfFrames", 40), "enhanced CT of 40 frames"),
        (set_to("RescaleSlope", None), "found none of: RescaleSlope"),
        (set_to("RescaleSlope", 0), "to HU, found slope 0"),
        (set_to("RescaleType", "Z_EFF"), "found MONOCHROME2 in Z_EFF"),
        (set_to("PhotometricInterpretation", "MONOCHROME1"), "found MONOCHROME1"),
        (set_to("ImagePositionPatient", None), "found none of: ImagePositionPatient"),
        (set_to("ImagePositionPatient", [1, 2], 3), "damaged DICOM (ImagePositionPatient is [1.0, 2.0])"),
        (set_to("ImageOrientationPatient", [1, 0, 0, 0, 0, 1], 4), "expected ImageOrientationPatient"),
        (set_to("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "expected two perpendicular directions"),
        (set_to("PixelSpacing", [0.9, 0.7], 1), "expected PixelSpacing"),
        (set_to("PixelSpacing", [0.9, 0]), "damaged DICOM (PixelSpacing is [0.9, 0.0])"),
        (set_to("PixelData", b"\0" * 20, 1), "damaged DICOM"),
    ],
)
def test_slices_that_make_no_ct_volume(tmp_path, change, words):
    assert words in error_of(write_series(tmp_path, noise(), change=change))


def test_one_file_an_empty_folder_and_damage(tmp_path):
    write_series(tmp_path / "one", noise((1, 6, 6)))
    assert "found one DICOM file" in error_of(tmp_path / "one")
    (tmp_path / "none").mkdir()
    assert "a folder without DICOM" in error_of(tmp_path / "none")
    write_series(tmp_path / "cut", noise())
    first = sorted((tmp_path / "cut").iterdir())[0]
    content = first.read_bytes()
    for keep in (132, 200, 400, len(content) // 2, len(content) - 50):
        first.write_bytes(content[:keep])
        error_of(tmp_path / "cut")
    (tmp_path / "slice.dcm").write_bytes(content)
    with pytest.raises(InputError, match=r"slice\.dcm: .*NIfTI.*found one DICOM file\. Give the folder"):
        read_image(tmp_path / "slice.dcm")


def test_a_file_that_ends_before_its_modality_is_called_cut_off(tmp_path):
    write_series(tmp_path, noise())
    first = sorted(tmp_path.iterdir())[0]
    content = first.read_bytes()
    first.write_bytes(content[: content.index(b"\x08\0\x60\0CS")])  # where (0008,0060), Modality, begins
    message = error_of(tmp_path)
    assert (
        f"{first.name}: expected a CT slice, found a header without Modality: the file is cut off" in message
    )
    assert "Copy or export it again" in message


def test_random_bytes_in_a_header_give_a_volume_or_one_line(tmp_path):
    write_series(tmp_path, noise((3, 4, 5)))
    damaged = sorted(tmp_path.iterdir())[1]
    content, rng = damaged.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        changed = bytearray(content)
        for k in rng.integers(132, len(content) - 40, 2):
            changed[k] = rng.integers(256)
        damaged.write_bytes(changed)
        try:
            assert read_image(tmp_path).array.ndim == 3
        except InputError as error:
            refused += 1
            assert str(tmp_path) in str(error)
    assert refused > 50


def test_a_compression_that_nothing_here_reads_says_what_to_install(tmp_path):
    from pydicom.encaps import encapsulate

    def change(k, dataset):
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        dataset.PixelData = encapsulate([b"\xff\x4f\xff\x51" + b"\0" * 60])
        dataset["PixelData"].VR = "OB"

    assert "pip install python-gdcm" in error_of(write_series(tmp_path, noise(), change=change))


def test_without_pydicom_the_error_names_the_extra(tmp_path):
    write_series(tmp_path, noise())
    script = (
        "import sys; sys.modules['pydicom'] = None\n"
        "from kitsseg.data.formats.nifti import read_image\n"
        f"read_image({str(tmp_path)!r})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert re.search("needs pydicom, found none.*pip install pydicom", done.stderr)


def test_predict_takes_the_folder_of_a_series(trained, tmp_path):
    """The command line, end to end: the label map lies on the grid of the series."""
    place = {"orientation": AXIAL, "spacing": (0.75, 0.5), "step": 2.5, "origin": (-120.5, -98.25, 33.0)}
    stored = noise((6, 32, 40))
    write_series(tmp_path / "patient7", stored, **place)
    assert (
        main(["predict", str(trained.run), str(tmp_path / "patient7"), "--out", str(tmp_path / "out")]) == 0
    )
    labels = nib.load(tmp_path / "out" / "patient7.nii.gz")
    nifti = nib.load(nifti_of(tmp_path / "volume.nii", stored, **place))
    assert labels.shape == nifti.shape
    np.testing.assert_array_equal(labels.affine, nifti.affine)
    # and the same labels as for the NIfTI file
    assert (
        main(["predict", str(trained.run), str(tmp_path / "volume.nii"), "--out", str(tmp_path / "out")]) == 0
    )
    same = nib.load(tmp_path / "out" / "volume.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(labels.dataobj), np.asanyarray(same.dataobj))
