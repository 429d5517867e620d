"""What the headers of a series say twice: where they contradict, the series is refused or told, and else neither."""

import re

import pytest
from support.dicom_files import write_slices as write

from kitsseg.data.formats.dicom import read_series
from kitsseg.data.layouts.search import find_scans
from kitsseg.errors import InputError


def error_of(folder):
    with pytest.raises(InputError) as caught:
        read_series(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def told(folder, check):
    """The one doubt about this, as a sentence; None without."""
    found = [str(doubt) for doubt in read_series(folder).doubts if doubt.check == check]
    assert len(found) <= 1
    return found[0] if found else None


def untold(folder):
    assert read_series(folder).doubts == ()


# SpacingBetweenSlices


@pytest.mark.parametrize("stated", [2.5, -2.5, "2.50", "2.4999999"])
@pytest.mark.parametrize("every", [2, 3, 4])
@pytest.mark.parametrize(
    "elements",
    [
        {"SliceThickness": 2.5, "InstanceNumber": None},
        {"SliceThickness": 2.5, "InstanceNumber": lambda k: k + 1},  # numbered anew
        {"SliceThickness": 15, "InstanceNumber": lambda k: 2 * k + 1},  # slices that overlap
        {"InstanceNumber": lambda k: 2 * k + 1},
        {},
    ],
)
def test_slices_a_multiple_of_the_stated_distance_apart_are_refused(tmp_path, stated, every, elements):
    write(tmp_path, [2.5 * every * k for k in range(6)], SpacingBetweenSlices=stated, **elements)
    message = error_of(tmp_path)
    assert "expected a slice every 2.5 mm, as SpacingBetweenSlices says" in message
    assert f"{every - 1} of {every} are missing" in message


@pytest.mark.parametrize(
    ("step", "elements"),
    [
        (5, {"SpacingBetweenSlices": 5}),
        (5, {"SpacingBetweenSlices": -5}),
        (5, {"SpacingBetweenSlices": 5.03}),
        (5, {"SpacingBetweenSlices": 0}),  # no gap between the edges of slices
        (5, {"SpacingBetweenSlices": ""}),
        (5, {"SpacingBetweenSlices": lambda k: 2.5 if k else None}),
        (5, {"SpacingBetweenSlices": lambda k: 2.5 + k}),
        (5, {"SpacingBetweenSlices": 2, "SliceThickness": 3}),  # of the edges
        (2.5, {"SpacingBetweenSlices": -2.5, "SliceThickness": 5}),
        (1.25, {"SpacingBetweenSlices": 2.5, "SliceThickness": 3.75}),
        (0.6667, {"SpacingBetweenSlices": 0.7}),
        (5, {"SpacingBetweenSlices": 5, "InstanceNumber": lambda k: 3 * k + 1, "SliceThickness": 5}),
    ],
)
def test_a_stated_distance_that_fits_or_says_nothing_raises_no_doubt(tmp_path, step, elements):
    write(tmp_path, [round(step * k, 3) for k in range(8)], **elements)
    untold(tmp_path)


def test_positions_in_whole_millimeters_fit_a_distance_with_a_fraction(tmp_path):
    write(tmp_path, [round(2.4 * k) for k in range(20)], SpacingBetweenSlices=2.4)
    untold(tmp_path)


@pytest.mark.parametrize("stated", [5.2, 11, 3.3, 8, 4.8])
def test_another_stated_distance_is_told(tmp_path, stated):
    write(tmp_path, [5 * k + 0.125 for k in range(8)], SpacingBetweenSlices=stated)
    assert re.match(
        rf".* {stated} mm, as SpacingBetweenSlices says, found .* 5 mm .*positions\. ",
        told(tmp_path, "distance of slices"),
    )


# InstanceNumber


@pytest.mark.parametrize("every", [2, 3, -2])
@pytest.mark.parametrize("thickness", [None, 5, 10])
def test_numbers_that_leave_some_out_are_told(tmp_path, every, thickness):
    numbers = [50 + every * k for k in range(3)]
    elements = {"SliceThickness": thickness} if thickness else {}
    write(tmp_path, [5 * k for k in range(8)], InstanceNumber=lambda k: 50 + every * k, **elements)
    assert (
        f"found one of {abs(every)} (InstanceNumber {numbers[0]}, {numbers[1]}, {numbers[2]}, ...)"
        in told(tmp_path, "slices of the series")
    )


@pytest.mark.parametrize(
    "elements",
    [
        {"SpacingBetweenSlices": 5},
        {"ImagesInAcquisition": 8},
        {"TemporalPositionIdentifier": 1},
        {"InstanceNumber": lambda k: 2 * k + k % 3},
        {"InstanceNumber": lambda k: 5 + k},  # of a series that was split
        {"InstanceNumber": lambda k: 90 - k},
        {"InstanceNumber": lambda k: 7},
        {"InstanceNumber": None},
        {"InstanceNumber": lambda k: (1, 5, 2, 6, 3, 7, 4, 8)[k]},  # every second slice first
    ],
)
def test_numbers_that_something_explains_raise_no_doubt(tmp_path, elements):
    write(tmp_path, [5 * k for k in range(8)], **{"InstanceNumber": lambda k: 2 * k + 1} | elements)
    untold(tmp_path)


def test_gaps_between_slices_without_numbers_are_told(tmp_path):
    write(tmp_path / "gaps", [5 * k for k in range(8)], InstanceNumber=None, SliceThickness=2.5)
    assert "found slices 5 mm apart and 2.5 mm thick, without InstanceNumber" in told(
        tmp_path / "gaps", "slices of the series"
    )
    write(tmp_path / "numbered", [5 * k for k in range(8)], SliceThickness=2.5)
    untold(tmp_path / "numbered")


# SliceLocation


@pytest.mark.parametrize(
    "location",
    [
        lambda k: 5 * k,
        lambda k: -5 * k,
        lambda k: 1234.5 - 5 * k,
        lambda k: f"{5 * k + 0.04 * (k % 2):.2f}",
        lambda k: 0,
        lambda k: None if k == 3 else k,
        lambda k: "",
    ],
)
def test_locations_that_run_as_the_positions_raise_no_doubt(tmp_path, location):
    write(tmp_path, [5 * k for k in range(8)], SliceLocation=location)
    untold(tmp_path)


def test_locations_along_the_table_of_an_oblique_series_raise_no_doubt(tmp_path):
    down = [0, 0.96, 0.28]
    places = [(0, -0.28 * 5 * k, 0.96 * 5 * k) for k in range(8)]
    write(
        tmp_path, places, ImageOrientationPatient=[1, 0, 0, *down], SliceLocation=lambda k: round(4.8 * k, 2)
    )
    untold(tmp_path)


@pytest.mark.parametrize(
    "location",
    [
        lambda k: 10 * k,
        lambda k: k,
        lambda k: 5.4 * k,
        lambda k: f"{5.08 * k:.2f}",
        lambda k: 5 * k + 2.5 * (k == 4),
        lambda k: 5 * (k ^ 1),
    ],
)
def test_locations_that_run_otherwise_are_told(tmp_path, location):
    write(tmp_path, [5 * k + 0.125 for k in range(8)], SliceLocation=location)
    sentence = told(tmp_path, "places of slices")
    assert "as SliceLocation says" in sentence
    assert "by their positions" in sentence


# rescaling


@pytest.mark.parametrize(
    ("elements", "found", "common"),
    [
        (
            {"RescaleIntercept": lambda k: 0 if k == 5 else -1024},
            "RescaleSlope 1 and RescaleIntercept 0 in IM0005",
            7,
        ),
        (
            {"RescaleSlope": lambda k: 0.5 if k == 0 else 1},
            "RescaleSlope 0.5 and RescaleIntercept -1024 in IM0000",
            7,
        ),
        ({"RescaleIntercept": lambda k: 0 if k < 3 else -1024}, "in IM0000, IM0001, IM0002", 5),
        ({"RescaleIntercept": lambda k: 0 if k % 2 else -1024}, "in IM0001, IM0003, IM0005 and 1 more", 4),
        ({"RescaleIntercept": lambda k: -k}, "in IM0003; and 4 more", 1),
    ],
)
def test_slices_of_several_rescalings_are_told_by_name(tmp_path, elements, found, common):
    write(tmp_path, [5 * k for k in range(8)], **elements)
    sentence = told(tmp_path, "rescaling to HU")
    assert found in sentence
    assert f"in {common} of 8" in sentence


def test_one_rescaling_in_several_ways_of_writing_raises_no_doubt(tmp_path):
    write(
        tmp_path,
        [5 * k for k in range(8)],
        RescaleIntercept=lambda k: ("-1024", "-1024.0", "-1.024E3")[k % 3],
    )
    untold(tmp_path)


# ImageType


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (["DERIVED", "SECONDARY", "MIP"], "a projection image (ImageType DERIVED/SECONDARY/MIP)"),
        (["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 MIP"], "a projection image"),
        (["DERIVED", "SECONDARY", "MINIP"], "a projection image"),
        (["DERIVED", "PRIMARY", "AXIAL", "MAX_IP"], "a projection image"),
        (["DERIVED", "SECONDARY", "PROJECTION IMAGE"], "a projection image"),
        (["DERIVED", "SECONDARY", "SCREEN SAVE"], "a screen picture"),
        (["DERIVED", "PRIMARY", "AXIAL", "IODINE"], "a material map"),
        (["DERIVED", "PRIMARY", "AXIAL", "MAT_SPECIFIC"], "a material map"),
        (["DERIVED", "PRIMARY", "AXIAL", "EFF_ATOMIC_NUM"], "a material map"),
        (["DERIVED", "PRIMARY", "AXIAL", "DE IODINE_2"], "a material map"),
        (["DERIVED", "SECONDARY", "CBF"], "a perfusion map"),
        ("LOCALIZER", "a localizer image (ImageType LOCALIZER)"),
    ],
)
def test_images_that_are_no_slices_in_hu_are_refused_and_left_out_of_a_search(tmp_path, kind, words):
    write(tmp_path / "odd", [5 * k for k in range(4)], ImageType=kind)
    assert f"slice in HU, found {words}" in error_of(tmp_path / "odd")
    write(tmp_path / "ct", [5 * k for k in range(4)], series="1.2.3.5")
    found = find_scans([tmp_path])
    assert len(found.scans) == 1
    [(what, why)] = found.left_out
    assert "odd" in what
    kinds = f"{words.split(' (')[0].removeprefix('a ')}s"
    assert why == (f"{kinds}, no CT" if kind == "LOCALIZER" else f"no CT but {kinds}")


@pytest.mark.parametrize(
    "kind",
    [
        ["DERIVED", "SECONDARY", "MPR"],
        ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"],
        ["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 SPI DUAL"],
        ["DERIVED", "PRIMARY", "AXIAL", "VMI"],
        ["DERIVED", "PRIMARY", "AXIAL", "MAT_REMOVED"],
        ["DERIVED", "PRIMARY", "AXIAL", "IODINE REMOVED"],
        ["ORIGINAL", "PRIMARY", "AXIAL", "HELIX"],
        "",
        None,
    ],
)
def test_images_in_hu_of_every_kind_are_read(tmp_path, kind):
    write(tmp_path, [5 * k for k in range(4)], ImageType=kind)
    untold(tmp_path)


# patients


@pytest.mark.parametrize("patient", ["", None])
@pytest.mark.parametrize(
    ("name", "values"), [("PatientName", ("A^A", "B^B")), ("PatientBirthDate", ("19500101", "19600101"))]
)
def test_two_patients_without_an_id_are_refused_and_their_names_kept_private(tmp_path, patient, name, values):
    write(tmp_path, [5 * k for k in range(8)], PatientID=patient, **{name: lambda k: values[k > 3]})
    message = error_of(tmp_path)
    assert re.search(rf"found 2 values of {name} and no PatientID.* IM0000 and IM0004", message)
    assert values[0] not in message.removeprefix(str(tmp_path))


@pytest.mark.parametrize(
    "elements",
    [
        {"PatientID": "7", "PatientName": lambda k: "AB"[k % 2]},  # the same patient, renamed
        {"PatientID": "", "PatientName": lambda k: ("Doe^Jane", "DOE^JANE^^", "Doe^Jane=Doe")[k % 3]},
        {"PatientID": "", "PatientName": lambda k: "A" if k else ""},
        {"PatientID": "", "PatientName": ""},
        {"PatientName": "A"},
    ],
)
def test_one_patient_is_read_however_the_name_is_written(tmp_path, elements):
    write(tmp_path, [5 * k for k in range(8)], **elements)
    untold(tmp_path)


# a SeriesInstanceUID for every slice


@pytest.mark.parametrize("count", [3, 16])
def test_slices_that_each_have_their_own_series_are_one_line_with_advice(tmp_path, count):
    write(tmp_path, [5 * k for k in range(count)], SeriesInstanceUID=lambda k: f"1.2.{k}")
    with pytest.raises(InputError) as caught:
        find_scans([tmp_path])
    message = str(caught.value)
    assert message.count("SeriesInstanceUID of their own") == 1
    assert f"{count} files" in message
    assert re.search("Export the series again.* one SeriesInstanceUID", message)
    assert re.search(rf"found {count} files .*SeriesInstanceUID of their own", error_of(tmp_path))


def test_slices_that_each_have_their_own_series_beside_a_scan_are_left_out_in_one_line(tmp_path):
    write(tmp_path / "odd", [5 * k for k in range(6)], SeriesInstanceUID=lambda k: f"1.2.{k}")
    write(tmp_path / "two", [5 * k for k in range(2)], SeriesInstanceUID=lambda k: f"1.3.{k}")
    write(tmp_path / "ct", [5 * k for k in range(4)], series="1.2.3.5")
    found = find_scans([tmp_path])
    assert len(found.scans) == 1
    several, *single = sorted(why for _, why in found.left_out)
    assert "SeriesInstanceUID of their own" in several
    assert len(single) == 2 and all("but one image" in why for why in single)


def test_many_series_in_one_folder_are_named_in_a_short_line(tmp_path):
    for k in range(6):
        write(tmp_path, [0, 5], first=2 * k, series=f"1.2.{k}")
    message = error_of(tmp_path)
    assert "one DICOM series, found 6" in message
    assert "and 3 more" in message
