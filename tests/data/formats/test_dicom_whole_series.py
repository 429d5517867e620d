"""No slice of a series is left out, doubled or taken from another moment without a word."""

import gzip
import re
import zlib

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    JPEGLSLossless,
)
from support.dicom_files import plane
from support.dicom_files import write_slices as write

from kitsseg.data.formats import dicom_file
from kitsseg.data.formats.dicom import read_series
from kitsseg.data.formats.dicom_folder import is_series
from kitsseg.data.formats.doubts import doubts_about
from kitsseg.data.formats.nifti import read_image
from kitsseg.errors import InputError

SYNTAXES = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]


def error_of(folder):
    with pytest.raises(InputError) as caught:
        read_image(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def check_whole(folder, count):
    """The series must hold slices 0, 1, ... from the feet to the head; the array holds them from the head downwards."""
    array = read_image(folder).array
    assert len(array) == count
    for k in range(count):
        np.testing.assert_array_equal(array[count - 1 - k], plane(k).astype(np.int16) - 1024)


EVEN = [5.0 * k for k in range(8)]


# every way a file may begin, and be written


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("chosen", [(), (5, 6, 7), (1, 3, 5, 7), range(8)])
def test_files_without_preamble_are_read(tmp_path, syntax, chosen):
    files = write(tmp_path, EVEN, syntax)
    for k in chosen:
        files[k].write_bytes(files[k].read_bytes()[132:])
    assert is_series(tmp_path)
    check_whole(tmp_path, 8)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_files_that_begin_with_their_data_set_are_read(tmp_path, syntax):
    for path in write(tmp_path, EVEN, syntax):
        content = path.read_bytes()
        length = int.from_bytes(content[140:144], "little")  # of the group of meta elements
        path.write_bytes(content[144 + length :])
    check_whole(tmp_path, 8)


def test_pixels_that_are_compressed_in_an_unknown_way_are_refused(tmp_path):
    for path in write(tmp_path, EVEN):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        dataset.PixelData = encapsulate([b"\xff\xd8" + bytes(40)])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
        content = path.read_bytes()
        length = int.from_bytes(content[140:144], "little")
        path.write_bytes(content[144 + length :])
    assert "of an unknown kind" in error_of(tmp_path)


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless])
@pytest.mark.parametrize("chosen", [(4,), range(8)])
def test_a_compression_that_cannot_be_undone_is_refused_by_name(tmp_path, syntax, chosen):
    files = write(tmp_path, EVEN)
    for k in chosen:
        dataset = pydicom.dcmread(files[k])
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = encapsulate([b"\xff\xd8\xff" + bytes(41)])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(files[k])
    message = error_of(tmp_path)
    assert files[chosen[0]].name in message
    assert "export the series uncompressed" in message


# what is no DICOM file


@pytest.mark.parametrize("chosen", [(7,), (1, 3, 5, 7)])
@pytest.mark.parametrize("end", ["", ".dcm", ".txt", ".1"])
@pytest.mark.parametrize("damage", ["empty", "zeros", "text", "mark", "gzip", "link"])
def test_what_may_be_a_slice_and_is_no_dicom_is_named(tmp_path, chosen, end, damage):
    files = write(tmp_path, EVEN, end=end)
    for k in chosen:
        content = files[k].read_bytes()
        new = {
            "empty": b"",
            "zeros": bytes(len(content)),
            "text": b"404 not found",
            "mark": content[:128] + b"DICN" + content[132:],
            "gzip": gzip.compress(content),
            "link": None,
        }[damage]
        files[k].unlink()
        if new is None:
            files[k].symlink_to(tmp_path / "gone" / files[k].name)
        else:
            files[k].write_bytes(new)
    message = error_of(tmp_path)
    assert re.search(f"found {len(chosen)} of 8 files .*not DICOM", message)
    assert all(files[k].name in message for k in chosen[:3])
    reason = {"empty": "empty", "gzip": "packed with gzip", "link": "a link to nothing"}.get(
        damage, "damaged"
    )
    assert reason in message


@pytest.mark.parametrize("keep", [133, 200, 300, 0.5, 0.9, -1, -60])
@pytest.mark.parametrize("k", [0, 4, 7])
def test_a_cut_file_is_named(tmp_path, keep, k):
    files = write(tmp_path, EVEN)
    content = files[k].read_bytes()
    files[k].write_bytes(content[: round(keep * len(content)) if isinstance(keep, float) else keep])
    assert files[k].name in error_of(tmp_path)


def test_files_of_other_types_are_left_alone(tmp_path):
    write(tmp_path, EVEN, end=".dcm")
    for name in (
        "DICOMDIR",
        "Thumbs.db",
        "desktop.ini",
        "notes.txt",
        "report.pdf",
        "dose.JSON",
        "README",
        "ct.nii.gz",
    ):
        (tmp_path / name).write_bytes(
            b"" if name == "notes.txt" else bytes(128) + b"DICM" * (name == "DICOMDIR")
        )
    (tmp_path / "._IM0001.dcm").write_bytes(b"resource fork")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"x")
    check_whole(tmp_path, 8)


def test_an_archive_of_the_series_beside_it_is_named(tmp_path):
    write(tmp_path, EVEN)
    (tmp_path / "series.zip").write_bytes(b"PK\x03\x04" + bytes(40))
    assert "series.zip (still packed with zip)" in error_of(tmp_path)


@pytest.mark.parametrize("below", ["part2", "part2/more"])
def test_slices_in_a_folder_below_are_named(tmp_path, below):
    write(tmp_path, EVEN[:5])
    write(tmp_path / below, EVEN[5:], first=5)
    message = error_of(tmp_path)
    assert f"{below}/IM0005" in message
    assert "folder of their own" in message


def test_links_to_slices_elsewhere_are_read(tmp_path):
    (tmp_path / "links").mkdir()
    for path in write(tmp_path / "store", EVEN):
        (tmp_path / "links" / path.name).symlink_to(path)
    check_whole(tmp_path / "links", 8)


# one moment, one patient


def mixed(tmp_path, second, count=8, shift=2.5, **differing):
    """Two series under one UID, the second between the slices of the first."""
    one, two = ({name: values[k] for name, values in differing.items()} for k in (0, 1))
    write(tmp_path, [5.0 * k for k in range(count)], **one)
    write(tmp_path, [5.0 * k + shift for k in range(second)], first=100, **two)
    return tmp_path


@pytest.mark.parametrize(
    "differing",
    [
        {"AcquisitionNumber": (1, 2)},
        {"AcquisitionNumber": (1, None)},
        {"AcquisitionNumber": (3, lambda k: 4 + k % 2)},
        {"TemporalPositionIdentifier": (1, 2)},
        {"ContrastBolusAgent": ("", "Iohexol")},
        {"KVP": (80, 140)},
        {"ConvolutionKernel": ("B30f", "B70f")},
        {"SeriesDescription": ("arterial", "venous")},
        {"AcquisitionTime": ("101500", "101545.5")},
        {"AcquisitionTime": (lambda k: f"{101500 + 0.4 * k:.2f}", lambda k: f"{101530 + 0.4 * k:.2f}")},
        {"AcquisitionTime": ("10:15:00", "10:15:45.5")},
        {"AcquisitionDateTime": ("20200101235958.1", "20200102000030.2")},
        {"ContentTime": ("101500", "101545.5")},
        {"ContentTime": (lambda k: f"{101530 + 0.4 * k:.2f}", lambda k: f"{101510 - 0.4 * k:.2f}")},
        {"InstanceNumber": (lambda k: k + 1, lambda k: k + 101)},
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR TM")
@pytest.mark.parametrize("second", [8, 7])
def test_two_acquisitions_between_each_other_are_refused(tmp_path, differing, second):
    if "ContentTime" in differing:  # renumbered: only ContentTime differs
        numbers = {"InstanceNumber": (lambda k: 2 * k + 1, lambda k: 2 * k + 2)}
        assert "ContentTime" in error_of(mixed(tmp_path / "numbered", second, **differing, **numbers))
    message = error_of(mixed(tmp_path / "plain", second, **differing))
    assert "phases that alternate" in message
    assert next(iter(differing)) in message or "InstanceNumber" in message


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5, 4.0])
def test_two_acquisitions_at_any_shift_are_refused(tmp_path, shift):
    assert "acquisitions or phases" in error_of(mixed(tmp_path, 8, shift=shift, AcquisitionNumber=(1, 2)))


def test_three_phases_are_refused(tmp_path):
    for phase in range(3):
        write(
            tmp_path, [6.0 * k + 2 * phase for k in range(5)], first=100 * phase, AcquisitionNumber=phase + 1
        )
    assert "3 acquisitions or phases" in error_of(tmp_path)


@pytest.mark.parametrize("name", ["PatientID", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_two_patients_studies_or_frames_are_refused(tmp_path, name):
    write(tmp_path, EVEN[:4], **{name: "1.2.1"})
    write(tmp_path, EVEN[4:], first=4, **{name: "1.2.2"})
    assert f"2 values of {name}, such as 1.2.1 and 1.2.2" in error_of(tmp_path)


@pytest.mark.filterwarnings("ignore:Invalid value for VR TM")
@pytest.mark.parametrize(
    "elements",
    [
        {"AcquisitionNumber": lambda k: k + 1},  # a turn for every slice
        {"AcquisitionNumber": lambda k: k // 4 + 1},  # a turn for every four
        {"AcquisitionTime": lambda k: f"{101500 + 2.5 * k:.2f}"},
        {"AcquisitionTime": lambda k: f"{101530 - 2.5 * k:.2f}"},
        {"AcquisitionTime": "10"},
        {"AcquisitionTime": lambda k: None if k == 2 else "101500"},
        {"AcquisitionDateTime": lambda k: f"20200101{101500 + 3 * (k // 4)}.5+0100"},
        {"AcquisitionTime": "noon", "ContentTime": "a"},
        # computed in any order, with pauses, as by several machines or after a repair of the archive
        {"ContentTime": lambda k: f"10{(k * 7) % 8:02d}00"},
        {"ContentTime": lambda k: f"10{15 + 20 * (k in (1, 3, 6)):02d}{k:02d}"},
        {"ContentTime": lambda k: f"10{15 + 20 * (k > 4):02d}00"},
        {"InstanceNumber": lambda k: 100 - k},
        {"InstanceNumber": None},
        {"PatientID": lambda k: None if k == 1 else "7"},
    ],
)
def test_one_acquisition_is_read(tmp_path, elements):
    write(tmp_path, EVEN, **elements)
    check_whole(tmp_path, 8)


def test_a_slice_that_is_there_twice_is_named(tmp_path):
    files = write(tmp_path, EVEN)
    (tmp_path / "copy").write_bytes(files[3].read_bytes())
    message = error_of(tmp_path)
    assert "at a position, found 1 more" in message
    assert "IM0003" in message
    assert "copy" in message


@pytest.mark.parametrize("other", [[0, 1, 0, -1, 0, 0], [1, 0, 0, 0, 0, -1], [-1, 0, 0, 0, 1, 0]])
def test_slices_of_two_orientations_are_refused(tmp_path, other):
    write(tmp_path, EVEN, ImageOrientationPatient=lambda k: other if k == 5 else [1, 0, 0, 0, 1, 0])
    assert "ImageOrientationPatient" in error_of(tmp_path)


# rounded positions


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize(
    ("step", "first"),
    [(0.625, 0), (0.7, 100.05), (0.75, -317.33), (0.8333, 0.5), (1.25, 0), (2.5, -1.25), (3.27, 9)],
)
def test_positions_rounded_to_some_digits_are_read(tmp_path, digits, step, first):
    positions = [round(first + step * k, digits) for k in range(30)]
    write(tmp_path, positions)
    volume = read_image(tmp_path)
    assert volume.array.shape[0] == 30
    assert volume.grid.spacing_mm[0] == pytest.approx(step, abs=10.0**-digits / 29 + 1e-6)


@pytest.mark.parametrize("step", [2.4, 2.5, 3.3, 5.04])
def test_positions_in_whole_millimeters_are_read(tmp_path, step):
    write(tmp_path, [round(step * k) for k in range(20)])
    assert read_image(tmp_path).grid.spacing_mm[0] == pytest.approx(step, abs=1 / 19)


@pytest.mark.parametrize("digits", [0, 1, 6])
@pytest.mark.parametrize("step", [0.625, 0.7, 5])
@pytest.mark.parametrize("lacks", [(17,), (1,), (28,), (3, 20)])
def test_a_missing_slice_is_refused_however_positions_are_rounded(tmp_path, digits, step, lacks):
    positions = [round(step * k, digits) if digits else round(step * k) for k in range(30) if k not in lacks]
    write(tmp_path, positions)
    message = error_of(tmp_path)
    if len(set(positions)) == len(positions):
        assert "missing" in message or "unevenly spaced" in message


@pytest.mark.parametrize("digits", [1, 2])
def test_rounded_oblique_positions_are_read_and_are_not_taken_for_a_tilt(tmp_path, digits):
    angle = np.radians(20)
    along, down = np.array([1, 0, 0]), np.array([0, np.cos(angle), np.sin(angle)])
    normal = np.cross(along, down)
    for count in (2, 3, 25):
        folder = tmp_path / f"{count}"
        write(
            folder,
            [np.round(np.array([-40.123, 17.77, 3.31]) + 0.7 * k * normal, digits) for k in range(count)],
            ImageOrientationPatient=[*along, *np.round(down, 6)],
        )
        assert read_image(folder).grid.spacing_mm[0] == pytest.approx(
            0.7, abs=2 * 10.0**-digits / (count - 1)
        )


def test_a_tilt_beyond_rounding_is_refused(tmp_path):
    for degrees, count in ((1, 30), (12, 30), (25, 8)):
        folder = tmp_path / f"{degrees}"
        t = np.tan(np.radians(degrees))
        write(folder, [(-5, round(2.5 * k * t, 1), 2.5 * k) for k in range(count)])
        assert "tilt" in error_of(folder)


def test_a_jitter_that_changes_no_volume_is_read_and_a_larger_one_is_not(tmp_path):
    rng = np.random.default_rng(0)
    for jitter, reads in ((0.04, True), (0.4, False)):
        folder = tmp_path / f"{jitter}"
        write(folder, [f"{2.5 * k + rng.uniform(-jitter, jitter):.5f}" for k in range(20)])
        if reads:
            assert len(read_series(folder).array) == 20
        else:
            assert "unevenly spaced" in error_of(folder)


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"PixelSpacing": [0.0008, 0.0008]}, "expected voxels of 0.1 to 30 mm"),
        ({"PixelSpacing": [800, 800]}, "expected voxels of 0.1 to 30 mm"),
    ],
)
def test_the_grid_of_a_series_is_judged_as_any_other(tmp_path, elements, words):
    assert words in error_of(write(tmp_path, EVEN, **elements)[0].parent)
    assert words in error_of(write(tmp_path / "far", [5000.0 * k for k in range(4)])[0].parent)


# what other coordinates, numbers and links say


@pytest.mark.parametrize(("degrees", "refused"), [(0.3, False), (0.45, False), (0.6, True), (-0.6, True)])
def test_a_small_tilt_is_no_rounding_because_other_coordinates_are_whole_numbers(tmp_path, degrees, refused):
    """As the same grid in a NIfTI file: up to half a degree is read."""
    t = np.tan(np.radians(degrees))
    write(tmp_path, [(-5, round(8 * k * t, 3), 8 * k) for k in range(14)])
    if refused:
        assert "right angles" in error_of(tmp_path)
    else:
        assert read_series(tmp_path).array.shape[0] == 14


@pytest.mark.parametrize("every", [2, 3, 5])
def test_a_series_of_which_every_other_file_is_missing_is_refused(tmp_path, every):
    """All gaps are equal and show nothing. InstanceNumber and SliceThickness show that slices are missing."""
    elements = {"InstanceNumber": lambda k: 1 + every * k, "SliceThickness": 2.5}
    write(tmp_path, [2.5 * every * k for k in range(8)], **elements)
    message = error_of(tmp_path)
    assert f"found one of {every} (InstanceNumber 1, {1 + every}, {1 + 2 * every}, ...)" in message
    assert f"{2.5 * every:.3g} mm apart and 2.5 mm thick" in message


@pytest.mark.parametrize(
    "elements",
    [
        {
            "InstanceNumber": lambda k: 1 + 2 * k,
            "SliceThickness": 5,
        },  # one of two phases whose slices were numbered alternately
        {"InstanceNumber": lambda k: 1 + k, "SliceThickness": 1},  # thin slices with gaps, as of the lung
        {"InstanceNumber": lambda k: 1 + 2 * k},  # the thickness of the slices is not known
        {"InstanceNumber": lambda k: 1 + 2 * k, "SliceThickness": lambda k: 2 + k % 8 // 4},
        {"InstanceNumber": lambda k: 31 - 2 * k, "SliceThickness": 4},
    ],
)
def test_series_with_gaps_or_with_numbers_left_out_are_read(tmp_path, elements):
    write(tmp_path, [5 * k for k in range(8)], **elements)
    assert read_series(tmp_path).grid.spacing_mm[0] == pytest.approx(5)


def test_slices_behind_a_link_to_a_folder_are_not_overlooked(tmp_path):
    write(tmp_path / "series", [2.5 * k for k in range(4)])
    write(tmp_path / "store", [2.5 * k for k in range(4, 8)], first=4)
    (tmp_path / "series" / "more").symlink_to(tmp_path / "store")
    assert "in more too (more/IM0004)" in error_of(tmp_path / "series")


def test_a_link_that_leads_up_again_ends(tmp_path):
    write(tmp_path / "series", [2.5 * k for k in range(4)])
    (tmp_path / "series" / "up").symlink_to(tmp_path)
    (tmp_path / "series" / "self").symlink_to(tmp_path / "series")
    assert read_series(tmp_path / "series").array.shape[0] == 4


def test_more_rows_than_a_grid_can_have_are_refused(tmp_path):
    write(tmp_path, [2.5 * k for k in range(3)], Rows=40_000)
    assert "found 40000 x 10 in 3 slices" in error_of(tmp_path)


def test_a_sop_instance_uid_that_every_slice_shares_is_read(tmp_path):
    """If a program copied a series and gave all files one SOPInstanceUID, each slice still has its own position."""
    write(tmp_path, [2.5 * k for k in range(5)], SOPInstanceUID="1.2.3")
    assert read_series(tmp_path).array.shape[0] == 5


def slices_doubted(folder):
    return [doubt for doubt in doubts_about(read_series(folder)) if doubt.check == "slices of the series"]


@pytest.mark.parametrize("end", ["first", "last", "both"])
@pytest.mark.parametrize("name", ["ImagesInAcquisition", "NumberOfSeriesRelatedInstances"])
def test_slices_that_lack_at_an_end_are_told_where_the_headers_count_them(tmp_path, name, end):
    files = write(tmp_path, EVEN, **{name: len(EVEN)})
    assert slices_doubted(tmp_path) == []
    for k in {"first": [0], "last": [-1], "both": [0, -1]}[end]:
        files[k].unlink()
    left = len(EVEN) - 1 - (end == "both")
    [doubt] = slices_doubted(tmp_path)
    assert re.match(f"expected {len(EVEN)} slices, .*headers say, found {left}\\. ", str(doubt))


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"ImagesInAcquisition": 5},  # of one of its reconstructions
        {"ImagesInAcquisition": 0},
        {"ImagesInAcquisition": ""},
        {"ImagesInAcquisition": lambda k: 20 + k},
        {"ImagesInAcquisition": lambda k: 20 if k else None},
        {"ImagesInAcquisition": 20, "AcquisitionNumber": lambda k: 1 + k // 4},  # of a turn of several
    ],
)
def test_headers_that_do_not_count_the_slices_raise_no_doubt(tmp_path, elements):
    write(tmp_path, EVEN, **elements)
    assert slices_doubted(tmp_path) == []


# a data set that unpacks to more than a slice


HEADS = {
    "as written": lambda content: content,
    "a length beyond the file": lambda content: (
        content[:140] + (2**32 - 1).to_bytes(4, "little") + content[144:]
    ),
    "a length of 0": lambda content: content[:140] + bytes(4) + content[144:],
    "without its length": lambda content: content[:132] + content[144:],
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_deflated_slice_that_unpacks_to_far_more_than_a_slice_is_refused(tmp_path, monkeypatch, head):
    files = write(tmp_path, EVEN, DeflatedExplicitVRLittleEndian)
    content = files[3].read_bytes()
    files[3].write_bytes(head(content))
    check_whole(tmp_path, 8)
    start = 144 + int.from_bytes(content[140:144], "little")
    inflated = zlib.decompress(content[start:], -zlib.MAX_WBITS)
    pack = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    private = b"\x09\0\x10\0UN\0\0" + (1 << 24).to_bytes(4, "little") + bytes(1 << 24)
    files[3].write_bytes(head(content[:start] + pack.compress(private + inflated) + pack.flush()))
    assert files[3].stat().st_size < 1 << 17
    monkeypatch.setattr(dicom_file, "MOST_INFLATED", 1 << 22)
    with pytest.raises(InputError, match=rf"{files[3].name}: .*compressed data set"):
        read_series(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content, start: content[:start] + b"\xff" * 40 + content[start + 40 :],
        lambda content, start: content[: start + 20],
        lambda content, start: content[: start + 1] + bytes(200) + content[start + 1 :],
    ],
    ids=["bytes", "cut", "shifted"],
)
def test_a_deflated_slice_that_is_damaged_is_named(tmp_path, damage):
    files = write(tmp_path, EVEN, DeflatedExplicitVRLittleEndian)
    content = files[3].read_bytes()
    files[3].write_bytes(damage(content, 144 + int.from_bytes(content[140:144], "little")))
    with pytest.raises(InputError, match=files[3].name):
        read_series(tmp_path)
