"""Every reader refuses a grid that is sheared, contradicts itself or fits no patient.

A valid grid is read in any orientation.
"""

import gzip
import itertools
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from support.nifti_files import oblique, turned_grid, write_nifti

from kitsseg.cli import main
from kitsseg.data.formats.nifti import read_image, read_labels
from kitsseg.errors import InputError

ORDERS = list(itertools.permutations(range(3)))
SIZES = (3.0, 2.0, 5.0)
KINDS = [nib.Nifti1Header, nib.Nifti2Header]
NAMES = ["scan.nii", "scan.nii.gz"]


def scan(shape=(20, 24, 12)):
    rng = np.random.default_rng(0)
    hu = rng.normal(40, 15, shape)
    hu[: shape[0] // 3] = rng.normal(-1000, 15, hu[: shape[0] // 3].shape)
    hu[shape[0] // 3 : shape[0] // 2] -= 140
    return hu.round().astype(np.int16)


def error_of(path, read=read_image):
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def sheared(affine, degrees, axes=(1, 2)):
    """Lean file axis ``axes[0]`` towards ``axes[1]``, its length kept."""
    a, b = axes
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    result = affine.copy()
    t = np.radians(degrees)
    length = np.linalg.norm(affine[:3, a])
    result[:3, a] = length * (np.cos(t) * directions[:, a] + np.sin(t) * directions[:, b])
    return result


# right angles


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_sheared_sform_is_refused_in_every_axis_order(tmp_path, order, kind):
    grid = turned_grid(order, (1, -1, -1), SIZES)
    for axes, degrees in (((0, 1), 2), ((1, 2), -12), ((2, 0), 25)):
        path = write_nifti(tmp_path / "scan.nii.gz", scan(), sheared(grid, degrees, axes), kind=kind)
        assert re.search(rf"found a shear.* of {abs(degrees):.1f} degrees", error_of(path))
    path = write_nifti(tmp_path / "scan.nii.gz", scan(), sheared(grid, 0.3), kind=kind)
    assert read_image(path).array.size == scan().size


@pytest.mark.parametrize("name", NAMES)
def test_an_oblique_grid_is_read_and_an_oblique_shear_is_not(tmp_path, name):
    for degrees in ((17, 0, 0), (10, -20, 30), (0.1, 44, 0)):
        grid = oblique(degrees) @ turned_grid((2, 0, 1), (-1, 1, 1), SIZES)
        for forms in ({"sform": grid}, {"qform": grid}, {"sform": grid, "qform": grid}):
            volume = read_image(write_nifti(tmp_path / name, scan(), **forms))
            np.testing.assert_allclose(sorted(volume.grid.spacing_mm), sorted(SIZES), rtol=1e-5)
        for forms in ({}, {"qform": grid}):  # a qform cannot hold a shear
            path = write_nifti(tmp_path / name, scan(), sheared(grid, 8), **forms)
            assert "of 8.0 degrees" in error_of(path)


def test_direction_cosines_of_three_digits_are_read(tmp_path):
    for degrees in ((5, 3, -2), (33, -17, 8), (1, 1, 1)):
        grid = oblique(degrees) @ np.diag([0.8, 0.8, 3, 1])
        grid[:3, :3] = (grid[:3, :3] / (0.8, 0.8, 3)).round(3) * (0.8, 0.8, 3)
        assert read_image(write_nifti(tmp_path / "scan.nii", scan(), grid)).array.size == scan().size


def test_a_sheared_label_map_is_refused_too(tmp_path):
    labels = (scan() > 0).astype(np.uint8)
    path = write_nifti(tmp_path / "labels.nii", labels, sheared(np.diag([*SIZES, 1]), 5))
    assert "of 5.0 degrees" in error_of(path, read_labels)


# one voxel size


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", range(3))
def test_forms_of_two_voxel_sizes_are_refused(tmp_path, order, kind, axis):
    right = turned_grid(order, (-1, -1, 1), SIZES)
    other = np.array(SIZES)
    other[axis] *= 1.012
    wrong = turned_grid(order, (-1, -1, 1), other)
    path = tmp_path / "scan.nii.gz"
    for forms in ({"sform": wrong, "qform": right}, {"sform": right, "qform": wrong}):
        message = error_of(write_nifti(path, scan(), kind=kind, **forms))
        assert "expected one voxel size" in message
        assert "pixdim and the qform" in message
        assert f"{other[axis]:.4g}" in message
    # without a qform pixdim stands alone
    message = error_of(write_nifti(path, scan(), right, pixdim=tuple(other), kind=kind))
    assert "in the sform and" in message
    assert "qform" not in message
    other[axis] = SIZES[axis] * 1.008
    volume = read_image(write_nifti(path, scan(), right, pixdim=tuple(other), kind=kind))
    np.testing.assert_allclose(sorted(volume.grid.spacing_mm), sorted(SIZES), rtol=1e-6)


@pytest.mark.parametrize("pixdim", [(1, 1, 1), (0, 0, 0), (3, 2, 0), (3, 2, np.nan), (3, np.inf, 5)])
def test_a_pixdim_that_is_no_size_beside_the_sform_is_refused(tmp_path, pixdim):
    path = write_nifti(tmp_path / "scan.nii", scan(), np.diag([*SIZES, 1]), pixdim=pixdim)
    assert "voxel size, found 3 x 2 x 5 mm in the sform" in error_of(path)


@pytest.mark.parametrize("offset", [np.nan, np.inf])
def test_a_place_that_is_no_number_is_refused(tmp_path, offset):
    grid = np.diag([*SIZES, 1.0])
    grid[1, 3] = offset
    assert "expected a voxel grid in mm" in error_of(write_nifti(tmp_path / "scan.nii", scan(), grid))


def test_an_sform_of_code_0_counts_nothing(tmp_path):
    path = write_nifti(tmp_path / "scan.nii", scan(), qform=np.diag([*SIZES, 1]), srow_x=[1, 0, 0, 0])
    assert sorted(read_image(path).grid.spacing_mm) == sorted(SIZES)


# of a human being, in mm


@pytest.mark.parametrize(
    ("factor", "unit"),
    [(1e-3, "meters"), (1e-1, "centimeters"), (1e3, "micrometers"), (10, None), (1e-6, None), (1e6, None)],
)
@pytest.mark.parametrize("forms", [("sform",), ("qform",), ("sform", "qform")])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_that_no_patient_has_are_refused(tmp_path, factor, unit, forms, kind):
    sizes = np.array([0.8, 0.8, 5.0])
    grid = oblique((3, 0, 4)) @ turned_grid((0, 1, 2), (-1, -1, 1), sizes * factor)
    for units in (2, 0):
        path = write_nifti(
            tmp_path / "scan.nii.gz", scan(), **dict.fromkeys(forms, grid), kind=kind, units=units
        )
        message = error_of(path)
        assert "voxels of 0.1 to 30 mm" in message
        assert " x ".join(f"{size:.4g}" for size in sizes * factor) in message
        if unit:
            assert f"look like {unit}: multiply the affine" in message
            assert f" by {1 / factor:g}" in message


def test_a_field_of_units_other_than_mm_is_refused_with_what_to_do(tmp_path):
    for units, unit, factor in ((1, "meters", 1000), (3, "micrometers", 0.001), (11, "micrometers", 0.001)):
        for sizes, advice in (
            (np.array(SIZES), "Set xyzt_units to 2, .*mm"),
            (
                np.array(SIZES) / factor,
                f"Multiply.*affine.*pixdim by {factor:g} .*set xyzt_units to 2",
            ),
        ):
            path = write_nifti(tmp_path / "scan.nii", scan(), np.diag([*sizes, 1]), units=units)
            message = error_of(path)
            assert f"xyzt_units says {unit}" in message
            assert re.search(advice, message)


@pytest.mark.parametrize("units", [0, 2, 8, 10, 16])
def test_units_of_mm_or_none_and_any_of_time_are_read(tmp_path, units):
    for sizes in ((0.45, 0.45, 0.5), (1.0, 1.0, 10.0), SIZES):
        path = write_nifti(tmp_path / "scan.nii", scan(), np.diag([*sizes, 1]), units=units)
        np.testing.assert_allclose(read_image(path).grid.spacing_mm, sizes[::-1], rtol=1e-6)


def test_a_scan_longer_than_a_patient_is_refused(tmp_path):
    long = scan((400, 4, 3))
    message = error_of(write_nifti(tmp_path / "scan.nii", long, np.diag([8.0, 8, 8, 1])))
    assert "3200 x 32 x 24 mm" in message
    for size, rows in ((5.0, 400), (8.0, 375)):  # 2 m, and 3 m, the longest that is read
        path = write_nifti(tmp_path / "scan.nii", scan((rows, 4, 3)), np.diag([size, 8, 8, 1]))
        assert read_image(path).grid.shape[2] == rows


# the header's marks and its length


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("magic", [b"n+9", b"ni1", b"n+1x", b"\xff+1", b"", b"n+1 "])
def test_a_wrong_mark_of_type_is_refused(tmp_path, name, kind, magic):
    path = write_nifti(tmp_path / name, scan(), np.diag([*SIZES, 1]), kind=kind, magic=magic)
    assert "no single-file NIfTI header" in error_of(path)


def test_line_ends_changed_by_a_transfer_as_text_are_refused(tmp_path):
    for ends, good in (((13, 10, 26, 10), True), ((0, 0, 0, 0), True), ((10, 10, 26, 10), False)):
        path = write_nifti(
            tmp_path / "scan.nii", scan(), np.diag([*SIZES, 1]), kind=nib.Nifti2Header, eol_check=ends
        )
        if good:
            assert read_image(path).array.size == scan().size
        else:
            assert "line ends" in error_of(path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("offset", [0, 1 << 30, 1 << 62, -16, 100, 351e6, np.nan, np.inf])
def test_a_start_of_the_data_outside_the_file_is_refused(tmp_path, name, offset):
    if offset in (1 << 62,) or not np.isfinite(offset):
        kind = nib.Nifti1Header  # float32
    else:
        kind = nib.Nifti2Header
    path = write_nifti(tmp_path / name, scan(), np.diag([*SIZES, 1]), kind=kind, vox_offset=offset)
    assert "data start" in error_of(path)


@pytest.mark.parametrize("code", [-1, 6, 77])
def test_a_code_that_the_format_does_not_know_says_nothing(tmp_path, code):
    grid = np.diag([*SIZES, 1])
    path = write_nifti(tmp_path / "scan.nii", scan(), oblique((5, 0, 0)) @ grid, grid, sform_code=code)
    np.testing.assert_allclose(read_image(path).grid.header.get_best_affine(), grid, atol=1e-6)
    assert "found neither" in error_of(write_nifti(path, scan(), grid, sform_code=code))


@pytest.mark.parametrize("name", NAMES)
def test_more_voxels_than_the_file_can_hold_are_refused_before_memory_is_asked_for(tmp_path, name):
    path = write_nifti(
        tmp_path / name, scan(), np.diag([0.1, 0.1, 0.1, 1]), dim=[3, 20000, 20000, 20000, 1, 1, 1, 1]
    )
    assert "too early" in error_of(path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("more", [8, 1])
def test_slices_that_the_header_leaves_out_are_refused(tmp_path, name, more):
    """The header states too few slices. If such a file were read, the other slices would be lost without an error."""
    shape = scan().shape
    dim = [3, *shape[:2], shape[2] - more, 1, 1, 1, 1]
    path = write_nifti(tmp_path / name, scan(), np.diag([*SIZES, 1]), dim=dim)
    bytes_left = more * shape[0] * shape[1] * scan().itemsize
    assert f"{bytes_left:,} bytes follow the last" in error_of(path)


@pytest.mark.parametrize("tail", [bytes(5000), b"written by a program that signs its files"])
def test_what_makes_no_slice_may_follow_the_data(tmp_path, tail):
    path = write_nifti(tmp_path / "scan.nii", scan(), np.diag([*SIZES, 1]))
    path.write_bytes(path.read_bytes() + tail)
    assert np.array_equal(read_image(path).grid.file_view(read_image(path).array), scan())


# label maps with a scale


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32])
@pytest.mark.parametrize("highest", [1, 2])
def test_labels_saved_with_a_scale_are_rounded(tmp_path, dtype, highest):
    """As nibabel writes an array of float64 under a header of an integer type."""
    labels = np.random.default_rng(0).integers(0, highest + 1, (6, 7, 8))
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    path = tmp_path / "labels.nii.gz"
    nib.save(nib.Nifti1Image(labels.astype(np.float64), np.diag([*SIZES, 1]), header), path)
    assert np.abs(nib.load(path).get_fdata() - labels).max() < 0.01
    volume = read_labels(path)
    np.testing.assert_array_equal(volume.grid.file_view(volume.array), labels)


def test_labels_with_an_intercept_or_as_float_are_rounded_and_fractions_are_not(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (6, 7, 8))
    grid = np.diag([*SIZES, 1])
    path = write_nifti(tmp_path / "a.nii", (labels - 1).astype(np.int8), grid, scaling=(1, 1))
    np.testing.assert_array_equal(read_labels(path).grid.file_view(read_labels(path).array), labels)
    path = write_nifti(tmp_path / "b.nii", (labels * 0.9999999).astype(np.float32), grid)
    np.testing.assert_array_equal(read_labels(path).grid.file_view(read_labels(path).array), labels)
    for stored, scaling in (
        ((labels * 0.8).astype(np.float32), (1, 0)),
        ((labels * 100).astype(np.uint8), (1 / 255, 0)),  # probabilities
        ((labels * 1.0 + 0.3 * (labels == 1)).astype(np.float32), (1, 0)),
        (labels.astype(np.uint8), (0.5, 0)),
    ):
        assert "found fractions" in error_of(
            write_nifti(tmp_path / "c.nii", stored, grid, scaling=scaling), read_labels
        )
    for number in (np.nan, np.inf, -np.inf):
        stored = np.where(labels == 1, np.float32(number), labels).astype(np.float32)
        path = write_nifti(tmp_path / "c.nii", stored, grid)
        assert re.search("integers; .*NaN or infinity", error_of(path, read_labels))


# the commands


def case(folder, affine, **forms):
    hu = scan()
    labels = np.zeros(hu.shape, np.uint8)
    labels[12:16, 4:16, 3:9], labels[13:15, 8:12, 5:7] = 1, 2
    write_nifti(folder / "imaging.nii.gz", hu, affine, **forms)
    write_nifti(folder / "segmentation.nii.gz", labels, affine, **forms)
    return folder


GRID = turned_grid((0, 1, 2), (-1, -1, 1), (6.0, 6.0, 8.0))
WRONG = {
    "shear": ({"affine": sheared(GRID, 15)}, "gantry tilt"),
    "sizes": ({"affine": GRID, "pixdim": (6, 6, 5)}, "in the sform and"),
    "meters": ({"affine": np.diag([1e-3, 1e-3, 1e-3, 1]) @ GRID}, "look like meters"),
    "units": ({"affine": GRID, "units": 1}, "xyzt_units"),
}


@pytest.mark.parametrize("name", WRONG)
def test_verify_preprocess_and_evaluate_name_the_file(tmp_path, capsys, name):
    forms, words = WRONG[name]
    folder = case(tmp_path / "data" / "case_90001", **forms)
    assert main(["verify", str(folder.parent), "--not-kits19"]) == 1
    out = capsys.readouterr().out
    assert "case_90001" in out
    assert main(["preprocess", "unet2d:tiny", str(folder.parent), str(tmp_path / "cache")]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"kitsseg: {folder}")
    assert captured.err.count("\n") == 1
    assert words in captured.err
    (tmp_path / "predicted").mkdir()
    shutil.copy(folder / "segmentation.nii.gz", tmp_path / "predicted" / "prediction_90001.nii.gz")
    scored = main(
        ["evaluate", str(tmp_path / "predicted"), str(folder.parent), "--out", str(tmp_path / "s.csv")]
    )
    assert scored == 1
    captured = capsys.readouterr()
    assert words in captured.err
    assert "prediction_90001" in captured.err
    assert not (tmp_path / "s.csv").exists()


def test_verify_and_preprocess_take_what_is_right(tmp_path, capsys):
    for number, affine in enumerate(
        (GRID, oblique((15, 0, 0)) @ GRID, turned_grid((2, 0, 1), (1, -1, -1), SIZES))
    ):
        case(tmp_path / "data" / f"case_9000{number}", affine)
    assert main(["verify", str(tmp_path / "data"), "--not-kits19"]) == 0
    assert "checked 3 cases, no errors, 0 warnings" in capsys.readouterr().out
    assert main(["preprocess", "unet2d:tiny", str(tmp_path / "data"), str(tmp_path / "cache")]) == 0


def test_verify_warns_of_labels_with_a_scale(tmp_path, capsys):
    folder = case(tmp_path / "data" / "case_90001", GRID)
    stored = np.asarray(nib.load(folder / "segmentation.nii.gz").dataobj)
    write_nifti(folder / "segmentation.nii.gz", stored * np.uint8(100), GRID, scaling=(0.01, 0))
    assert main(["verify", str(folder.parent), "--not-kits19"]) == 0
    out = capsys.readouterr().out
    assert "1 warnings" in out
    assert "scl_slope 0.01" in " ".join(out.split())


@pytest.mark.parametrize("name", NAMES)
def test_zeros_without_end_behind_the_data_are_refused(tmp_path, name):
    """A file of a kilobyte can hold a gigabyte of them."""
    path = write_nifti(tmp_path / name, scan(), np.diag([*SIZES, 1]))
    most = scan().nbytes + (1 << 20)
    for more, good in ((most - 10, True), (most + 10, False), (40 * most, False)):
        content = path.read_bytes()
        whole = gzip.decompress(content) if name.endswith("gz") else content
        longer = whole[: 352 + scan().nbytes] + bytes(more)
        path.write_bytes(gzip.compress(longer) if name.endswith("gz") else longer)
        if good:
            assert np.array_equal(read_image(path).grid.file_view(read_image(path).array), scan())
        else:
            assert f"more than {most:,} bytes follow" in error_of(path)


# two forms that lie apart


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "degrees", [(0, 0, 135), (0, 0, -135), (0, 50, 0), (60, 0, 0), (40, 0, 40), (40, 40, 40)]
)
def test_forms_that_lie_far_apart_are_refused_though_one_is_oblique(tmp_path, name, degrees):
    upright = turned_grid((0, 1, 2), (-1, -1, 1), SIZES)
    far = oblique(degrees) @ upright
    for forms in ({"sform": far, "qform": upright}, {"sform": upright, "qform": far}):
        message = error_of(write_nifti(tmp_path / name, scan(), **forms))
        assert re.search("sform .*qform .*agree", message)
        assert "Remove the wrong one (code 0)" in message


@pytest.mark.parametrize("degrees", [(0, 0, 45), (0, 44, 0), (10, -20, 15), (0, 0, 5)])
def test_forms_that_a_registration_turned_are_read_by_the_sform(tmp_path, degrees):
    upright = turned_grid((0, 1, 2), (-1, -1, 1), SIZES)
    turned = oblique(degrees) @ upright
    volume = read_image(write_nifti(tmp_path / "scan.nii", scan(), sform=turned, qform=upright))
    np.testing.assert_allclose(sorted(volume.grid.spacing_mm), sorted(SIZES), rtol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_the_angle_between_two_forms_is_told_in_every_axis_order(tmp_path, order):
    upright = turned_grid(order, (-1, -1, 1), SIZES)
    for degrees, angle in (((0, 50, 0), 50), ((0, 0, -48), 48)):
        path = write_nifti(tmp_path / "scan.nii", scan(), sform=oblique(degrees) @ upright, qform=upright)
        assert f"axes that lie {angle} degrees apart" in error_of(path)


@pytest.mark.parametrize("order", ORDERS)
def test_axes_halfway_between_two_directions_contradict_nothing(tmp_path, order):
    """Turned by 50 degrees the nearest axes have changed places, turned by 10 degrees they have not: 40 apart."""
    upright = turned_grid(order, (-1, -1, 1), SIZES)
    far, near = (oblique((0, 0, degrees)) @ upright for degrees in (50, 10))
    for forms in ({"sform": far, "qform": near}, {"sform": near, "qform": far}):
        volume = read_image(write_nifti(tmp_path / "scan.nii", scan(), **forms))
        np.testing.assert_allclose(sorted(volume.grid.spacing_mm), sorted(SIZES), rtol=1e-5)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_an_sform_that_is_no_number_beside_a_good_qform_is_refused(tmp_path, number):
    good = turned_grid((0, 1, 2), (-1, -1, 1), SIZES)
    wrong = good.copy()
    wrong[0, 3] = number
    path = write_nifti(tmp_path / "scan.nii", scan(), sform=wrong, qform=good)
    assert "expected a voxel grid in mm" in error_of(path)


@pytest.mark.parametrize("axes", [(0, 1), (1, 2), (2, 0)])
def test_half_a_degree_of_shear_is_rounding_and_more_is_not(tmp_path, axes):
    grid = turned_grid((0, 1, 2), (-1, -1, 1), SIZES)
    assert read_image(write_nifti(tmp_path / "scan.nii", scan(), sheared(grid, 0.45, axes))).array.any()
    assert "0.6 degrees" in error_of(write_nifti(tmp_path / "scan.nii", scan(), sheared(grid, 0.56, axes)))
