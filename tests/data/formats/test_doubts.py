"""Numbers that are no HU are found however they got lost; scans in HU raise no alarm."""

import json
import re
import shutil
import tracemalloc
import warnings

import nibabel as nib
import numpy as np
import pytest
from support.nifti_files import turned_grid, write_nifti

from kitsseg.cli import main
from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.formats.doubts import doubts_about
from kitsseg.data.formats.grid import Volume
from kitsseg.data.formats.nifti import read_image
from kitsseg.data.phantoms.synthesize import render_cases, synthesize_cases
from kitsseg.recipe import PreprocessSpec

GRID = turned_grid((0, 1, 2), (-1, -1, 1), (6.0, 6.0, 8.0))


def window(hu, low, high):
    return (np.clip(hu, low, high) - low) / (high - low)


LOST = {
    "1024 added": lambda hu: hu + 1024,
    "1024 added, unsigned": lambda hu: (hu + 1024).clip(0, 4095).astype(np.uint16),
    "1000 added": lambda hu: (hu + 1000).clip(0),
    "1024 subtracted": lambda hu: hu - 1024,
    "clipped at 0": lambda hu: hu.clip(0),
    "0 to 1": lambda hu: window(hu, -160, 240).astype(np.float32),
    "0 to 1 of all": lambda hu: window(hu, hu.min(), hu.max()).astype(np.float32),
    "-1 to 1": lambda hu: (2 * window(hu, -1000, 1000) - 1).astype(np.float32),
    "0 to 255": lambda hu: (255 * window(hu, -160, 240)).round().astype(np.uint8),
    "0 to 255 of all": lambda hu: (255 * window(hu, -1024, 3000)).round().astype(np.uint8),
    "clipped to 0 and 255": lambda hu: hu.clip(0, 255),
    "-128 to 127": lambda hu: (255 * window(hu, -160, 240) - 128).round().astype(np.int8),
    "0 to 100": lambda hu: (100 * window(hu, -160, 240)).astype(np.float32),
    "0 to 4095": lambda hu: (4095 * window(hu, hu.min(), hu.max())).astype(np.int16),
    "0 to 65535": lambda hu: (65535 * window(hu, -1024, 1000)).astype(np.uint16),
    "z-scores": lambda hu: ((hu - hu.mean()) / hu.std()).astype(np.float32),
    "z-scores of the kidney": lambda hu: ((hu.clip(-79, 304) - 101) / 76.9).astype(np.float32),
    "divided by 1000": lambda hu: (hu / 1000).astype(np.float32),
    "divided by 100": lambda hu: (hu / 100).astype(np.float32),
    "divided by 10": lambda hu: (hu / 10).astype(np.float32),
    "halved": lambda hu: hu // 2,
    "doubled": lambda hu: hu * 2,
    "times 1.5": lambda hu: (hu * 1.5).astype(np.int16),
    "negated": lambda hu: -hu,
    "wrapped": lambda hu: hu.astype(np.int16).view(np.uint16),
    "-160 to 240 onto -1024 to 1023": lambda hu: (2047 * window(hu, -160, 240) - 1024).astype(np.int16),
    "-200 to 300 onto -1000 to 1000": lambda hu: (2000 * window(hu, -200, 300) - 1000).astype(np.int16),
    "-150 to 250 onto -1000 to 1000": lambda hu: (2000 * window(hu, -150, 250) - 1000).astype(np.int16),
    "-160 to 240 onto -1000 to 600": lambda hu: (1600 * window(hu, -160, 240) - 1000).astype(np.int16),
    "-500 to 500 onto -1000 to 1000": lambda hu: (2000 * window(hu, -500, 500) - 1000).astype(np.int16),
    "-1000 to 400 onto -1000 to 1000": lambda hu: (2000 * window(hu, -1000, 400) - 1000).astype(np.int16),
    "100 added": lambda hu: hu + 100,
    "200 added": lambda hu: hu + 200,
    "300 added": lambda hu: hu + 300,
    "noise alone": lambda hu: np.random.default_rng(0).normal(0, 400, hu.shape).astype(np.int16),
    "little noise alone": lambda hu: np.random.default_rng(0).normal(0, 150, hu.shape).astype(np.int16),
    "voxels in any order": lambda hu: np.random.default_rng(0).permutation(hu.ravel()).reshape(hu.shape),
}
RIGHT = {
    "as it is": lambda hu: hu,
    "as float": lambda hu: hu + np.random.default_rng(0).uniform(-0.5, 0.5, hu.shape).astype(np.float32),
    "padded": lambda hu: np.where(np.indices(hu.shape)[0] < 3, -3024, hu),
    "clipped at -200 and 300": lambda hu: hu.clip(-200, 300),
    "clipped at -1000": lambda hu: hu.clip(-1000),
    "clipped at -1000 and 400": lambda hu: hu.clip(-1000, 400),
    "clipped at -500": lambda hu: hu.clip(-500),
    "air padded with the lowest number": lambda hu: np.where(hu < -900, -32768, hu),
    "with metal": lambda hu: np.where(np.random.default_rng(0).random(hu.shape) < 0.01, 3071, hu),
    "wide air": lambda hu: np.pad(hu, ((20, 20), (20, 20), (0, 0)), constant_values=-1024),
    "upside down": lambda hu: hu[:, ::-1, ::-1],
    "clipped at -1000 and 1000": lambda hu: hu.clip(-1000, 1000),
    "with more noise": lambda hu: hu + np.random.default_rng(0).normal(0, 50, hu.shape).astype(np.int16),
    "with contrast": lambda hu: np.where((hu > 20) & (hu < 110), hu + 40, hu),
    "a lean patient": lambda hu: np.where((hu > -150) & (hu < -40), hu + 90, hu),
    "a fat patient": lambda hu: np.where((hu > -20) & (hu < 40), hu - 115, hu),
    "the middle alone": lambda hu: hu[
        hu.shape[0] // 4 : -hu.shape[0] // 4, hu.shape[1] // 4 : -hu.shape[1] // 4
    ],
    "one side": lambda hu: hu[: hu.shape[0] // 2],
    "the upper slices": lambda hu: hu[:, :, -max(4, hu.shape[2] // 4) :],
    "the lower slices": lambda hu: hu[:, :, : max(4, hu.shape[2] // 4)],
    "outside of a circle padded": lambda hu: np.where(circle(hu.shape), hu, -2048),
    "with arms": lambda hu: np.where(~circle(hu.shape) & (hu < -500), hu + 1040, hu),
    "a slice of air at each end": lambda hu: at_ends(hu, -1024),
    "a slice of zeros at each end": lambda hu: at_ends(hu, 0),
}


def circle(shape):
    rows, columns = (np.linspace(-1, 1, count) for count in shape[:2])
    return ((rows[:, None] ** 2 + columns**2) < 1.2)[..., None]


def at_ends(hu, value):
    ends = np.full((*hu.shape[:2], 1), value)
    return np.concatenate([ends, hu, ends], axis=2)


# (a change of one or more of the scan's 30 slices, counted from the head; words that the doubt must hold)
PLANES = {
    "zeros": ({10: lambda hu, k: 0 * hu[k]}, "slice 11 with one value"),
    "air": ({10: lambda hu, k: 0 * hu[k] - 1024}, "slice 11 with one value"),
    "three times zeros": (
        dict.fromkeys((10, 11, 12), lambda hu, k: 0 * hu[k]),
        "slices 11, 12, 13 with one value",
    ),
    "the second slice is water": ({1: lambda hu, k: 0 * hu[k] + 40}, "slice 2 with one value"),
    "air with noise": ({10: lambda hu, k: np.minimum(hu[k], -900)}, "slice 11 with nothing but air"),
    "1024 added": ({10: lambda hu, k: hu[k] + 1024}, "slice 11 with all values 250 HU or more away"),
    "1024 added to the first": ({0: lambda hu, k: hu[k] + 1024}, "slice 1 with all values"),
    "1024 added to the last": ({29: lambda hu, k: hu[k] + 1024}, "slice 30 with all values"),
    "1024 subtracted": ({10: lambda hu, k: hu[k] - 1000}, "slice 11 with nothing but air"),
    "500 added to two": (dict.fromkeys((4, 5), lambda hu, k: hu[k] + 500), "slices 5, 6 with all values"),
    "repeated": ({10: lambda hu, k: hu[k - 1]}, "slice 11 with exactly the voxels"),
    "repeated far away": (
        {20: lambda hu, k: hu[k - 12]},
        "slice 21 with exactly the voxels",
    ),
    "repeated to the end": (
        dict.fromkeys(range(15, 30), lambda hu, k: hu[14]),
        "slices 16, 17, 18, 19 and 11 more with exactly",
    ),
    "each slice twice": (
        dict.fromkeys(range(1, 30, 2), lambda hu, k: hu[k - 1]),
        "slices 2, 4, 6, 8 and 11 more with exactly",
    ),
    "zeros and a repeated one": (
        {10: lambda hu, k: 0 * hu[k], 20: lambda hu, k: hu[k - 1]},
        "slice 11 with one value.*, and slice 21 with exactly",
    ),
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """HU in file axes of two phantoms of two sizes."""
    folder = tmp_path_factory.mktemp("phantoms")
    found = []
    for size in ((8, 32, 32), (30, 72, 72)):
        for case in synthesize_cases(folder / f"{size[0]}", 1, size, seed=3):
            found.append(np.asarray(nib.load(case / "imaging.nii.gz").dataobj).astype(np.int32))
    return found


@pytest.fixture(scope="module")
def upright(scans):
    """The larger phantom with 30 slices along the last axis, from the feet to the head, as GRID has them."""
    return scans[1].transpose(2, 1, 0)[..., ::-1]


def doubts(tmp_path, stored, affine=GRID, **options):
    stored = stored.astype(np.int16) if stored.dtype == np.int64 or stored.dtype == np.int32 else stored
    return doubts_about(read_image(write_nifti(tmp_path / "scan.nii", stored, affine)), **options)


@pytest.mark.parametrize("name", LOST)
def test_hu_that_got_lost_are_found(tmp_path, scans, name):
    for hu in scans:
        [doubt] = doubts(tmp_path, LOST[name](hu))
        assert doubt.check == "HU of the image"
        assert "a CT in HU" in str(doubt)
        assert "\n" not in str(doubt)


@pytest.mark.parametrize("name", RIGHT)
def test_scans_in_hu_raise_no_alarm(tmp_path, scans, name):
    for hu in scans:
        assert doubts(tmp_path, RIGHT[name](hu)) == []


@pytest.mark.parametrize("name", LOST)
def test_a_real_ct_is_told_from_what_is_left_of_it(real_data, tmp_path, name):
    hu = np.asarray(nib.load(real_data / "real_ct" / "abdomen_ct.nii.gz").dataobj).astype(np.int32)
    assert doubts(tmp_path, hu) == []
    assert doubts(tmp_path, hu[20:90, 20:80, 5:25]) == []
    [doubt] = doubts(tmp_path, LOST[name](hu))
    assert doubt.check == "HU of the image"


@pytest.mark.parametrize("name", [name for name in RIGHT if "slice" not in name])
def test_a_real_ct_in_hu_raises_no_alarm(real_data, tmp_path, name):
    hu = np.asarray(nib.load(real_data / "real_ct" / "abdomen_ct.nii.gz").dataobj).astype(np.int32)
    assert doubts(tmp_path, RIGHT[name](hu)) == []


def with_planes(hu, changes):
    """``hu`` in file axes, where the last axis runs to the head, with some slices changed."""
    before = hu.transpose(2, 0, 1)[::-1]
    after = before.copy()
    for number, change in changes.items():
        after[number] = change(before, number)
    return after[::-1].transpose(1, 2, 0)


@pytest.mark.parametrize("name", PLANES)
def test_slices_that_are_no_ct_are_found(tmp_path, upright, name):
    changes, words = PLANES[name]
    [doubt] = doubts(tmp_path, with_planes(upright, changes))
    assert doubt.check == "slices of the image"
    assert re.search(words, doubt.found)
    assert "of 30, counted from the head" in doubt.found


@pytest.mark.parametrize("name", PLANES)
def test_slices_that_are_no_ct_are_found_in_a_real_ct(real_data, tmp_path, name):
    hu = np.asarray(nib.load(real_data / "real_ct" / "abdomen_ct.nii.gz").dataobj).astype(np.int32)
    changes, words = PLANES[name]
    [doubt] = doubts(tmp_path, with_planes(hu, changes))
    assert re.search(words, doubt.found)


def test_padding_at_the_ends_is_no_doubt_but_slices_repeated_there_are(tmp_path, upright):
    for value in (-1024, -3024, 0):
        padding = dict.fromkeys((0, 1, 28, 29), np.full(upright.shape[:2], value))
        padded = with_planes(
            upright, {number: lambda hu, k, plane=plane: plane for number, plane in padding.items()}
        )
        assert doubts(tmp_path, padded) == []
    [doubt] = doubts(tmp_path, np.pad(upright, ((0, 0), (0, 0), (2, 0)), "edge"))
    assert "slices 31, 32 with exactly the voxels" in doubt.found


def test_looking_at_slices_copies_no_scan(scans):
    hu = np.tile(scans[1].astype(np.int16).transpose(2, 1, 0), (4, 2, 2))
    hu += np.random.default_rng(0).integers(-5, 5, hu.shape, np.int16)
    grid = type("Grid", (), {"shape": hu.shape, "spacing_mm": (1.0, 1.0, 1.0)})()
    tracemalloc.start()
    assert doubts_about(Volume(None, hu, grid)) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (4 << 20) + 8 * hu[0].nbytes  # the histogram, and some copies of a slice


def test_ct_rendered_on_real_label_maps_raises_no_alarm(real_data, tmp_path):
    shutil.copytree(real_data / "kits19" / "case_00061", tmp_path / "labels" / "case_00061")
    [case] = render_cases(tmp_path / "labels", tmp_path / "out")
    assert doubts_about(read_image(case / "imaging.nii.gz")) == []


def test_what_was_done_to_the_numbers_is_said(tmp_path, scans):
    hu = scans[1]
    for name, words, advice in (
        ("1024 added, unsigned", "none is negative, .*1024 was added", "Subtract 1024"),
        ("1024 subtracted", "as where 1024 was subtracted twice", "Add 1024"),
        ("clipped at 0", "negative HU clipped at 0", "without scaling or clipping"),
        ("0 to 255", "8-bit gray values", "without scaling or clipping"),
        ("0 to 1", "values from 0 to 1 that hardly differ", "without scaling or clipping"),
    ):
        [doubt] = doubts(tmp_path, LOST[name](hu))
        assert re.search(words, doubt.found)
        assert advice in doubt.advice


def test_clipping_that_the_user_names_is_no_doubt(tmp_path, scans):
    clipped = scans[1].clip(0, 255)
    assert doubts(tmp_path, clipped)
    assert doubts(tmp_path, clipped, clip_hu=(0.0, 255.0)) == []
    assert doubts(tmp_path, scans[1] + 1024, clip_hu=(0.0, 255.0))


def test_a_scan_smaller_than_a_kidney_is_doubtful(tmp_path, scans):
    """With sizes in centimeters, a header describes a patient ten times too small: here 3 cm."""
    hu = scans[1].astype(np.int16)  # 30 x 72 x 72
    for size, words in ((0.4, "28.8 x 28.8 x 12 mm"), (4.0, None)):
        found = doubts(tmp_path, hu, turned_grid((2, 1, 0), (-1, -1, -1), size))
        assert len(found) == (words is not None)
        if words:
            assert found[0].check == "extent of the image"
            assert " ".join(sorted(words.split())) == " ".join(sorted(found[0].found.split()[3:]))


def test_a_large_scan_is_looked_at_in_slices_all_along_it(scans):
    """A fifth of 40 million voxels is looked at. This shows that half of the scan has lost its intercept."""
    hu = np.tile(scans[1].astype(np.int16).transpose(2, 1, 0), (8, 6, 6))
    hu[len(hu) // 2 :] += 1024
    grid = type("Grid", (), {"shape": hu.shape, "spacing_mm": (1.0, 1.0, 1.0)})()
    [doubt] = doubts_about(Volume(None, hu, grid))
    assert "above 800" in doubt.found


# the commands


def case(folder, hu):
    labels = np.zeros(hu.shape, np.uint8)
    labels[hu.shape[0] // 2, hu.shape[1] // 2] = 1
    write_nifti(folder / "imaging.nii.gz", hu, GRID)
    write_nifti(folder / "segmentation.nii.gz", labels, GRID)
    return folder


NAMES = ("1024 added, unsigned", "0 to 1", "0 to 255", "z-scores", "clipped at 0")


def test_verify_names_every_case(tmp_path, capsys, scans):
    for number, name in enumerate(NAMES):
        case(tmp_path / "data" / f"case_9000{number}", LOST[name](scans[0]))
    case(tmp_path / "data" / "case_90009", scans[0].astype(np.int16))
    assert main(["verify", str(tmp_path / "data"), "--not-kits19"]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "warning" in line and "HU" in line]
    for number in range(len(NAMES)):
        assert sum(f"case_9000{number}" in line for line in lines) == 1
    assert f"no errors, {len(NAMES)} warnings" in out


@pytest.mark.parametrize("workers", [1, 2])
def test_preprocess_warns_in_a_line_that_names_the_file_also_of_cases_that_were_there(
    tmp_path, capsys, scans, workers
):
    case(tmp_path / "data" / "case_90000", LOST["1024 added, unsigned"](scans[0]))
    case(tmp_path / "data" / "case_90001", scans[0].astype(np.int16))
    for _ in range(2):
        command = ["preprocess", "unet2d:tiny", str(tmp_path / "data"), str(tmp_path / "cache")]
        assert main([*command, "--workers", str(workers)]) == 0
        said = capsys.readouterr().out.splitlines()
        lines = [line for line in said if line.startswith("warning") and "KiTS19" not in line]
        assert len(lines) == 1
        assert str(tmp_path / "data" / "case_90000" / "imaging.nii.gz") in lines[0]
        assert "HU" in lines[0]


def test_without_a_command_warnings_are_given(tmp_path, spec, scans):
    case(tmp_path / "data" / "case_90000", LOST["z-scores"](scans[0]))
    with pytest.warns(UserWarning, match=r"imaging\.nii\.gz: .*CT in HU"):
        preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)


def test_preprocess_takes_hu_clipped_on_purpose(tmp_path, spec, scans):
    clipping = PreprocessSpec(**{**spec.__dict__, "clip_hu": (0.0, 255.0)})
    case(tmp_path / "data" / "case_90000", scans[0].clip(0, 255).astype(np.int16))
    for each, warned in ((spec, 1), (clipping, 0)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            preprocess_cases(tmp_path / "data", tmp_path / "cache", each)
        assert len(said) == warned


def test_predict_warns_in_a_line_that_names_the_scan_also_of_label_maps_that_were_there(
    tmp_path, capsys, trained, scans
):
    bad = write_nifti(tmp_path / "bad.nii.gz", LOST["0 to 255"](scans[0]), GRID)
    good = write_nifti(tmp_path / "good.nii.gz", scans[0].astype(np.int16), GRID)
    for _ in range(2):
        assert main(["predict", str(trained.run), str(bad), str(good), "--out", str(tmp_path / "out")]) == 0
        said = capsys.readouterr().out.splitlines()
        lines = [line for line in said if line.startswith("warning") and "KiTS19" not in line]
        assert len(lines) == 1
        assert lines[0].startswith("warning: bad: ")
        assert "8-bit gray values" in lines[0]
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())["cases"]
    assert [len(entries[name]["doubts"]) for name in ("bad", "good")] == [1, 0]
