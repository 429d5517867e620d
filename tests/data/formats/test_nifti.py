"""Reading and writing NIfTI: every grid comes back, every damage is named."""

import gzip
import itertools
import re

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import aff2axcodes

from kitsseg.data.formats.nifti import PHANTOM, is_phantom, read_image, read_labels, write_image, write_labels
from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path

SHAPE = (5, 6, 7)


def save(path, array, affine=None, kind=nib.Nifti1Image, **header):
    image = kind(array, np.diag([2.0, 1.5, 1.0, 1.0]) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def numbers(dtype=np.int16):
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


def test_kits_layout_is_written_and_read_back(tmp_path):
    array = numbers() - 50
    write_image(tmp_path / "imaging.nii.gz", array, (3.0, 0.8, 0.7), PHANTOM)
    image = nib.load(tmp_path / "imaging.nii.gz")
    assert aff2axcodes(image.affine) == ("I", "P", "L")
    # KiTS19's affine: permuted, negative, without an origin
    expected = [[0, 0, -0.7, 0], [0, -0.8, 0, 0], [-3, 0, 0, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.affine, expected, atol=1e-6)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), array)
    volume = read_image(tmp_path / "imaging.nii.gz")
    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.flags.c_contiguous
    np.testing.assert_allclose(volume.grid.spacing_mm, (3.0, 0.8, 0.7), rtol=1e-6)
    assert is_phantom(volume.grid.header)


def affines():
    """All 48 axis orders and directions, and an oblique one."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.zeros((4, 4))
            for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
                affine[world, axis] = sign * (axis + 1)
            affine[:, 3] = (10, -20, 30, 1)
            yield affine
    angle = 0.3
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    yield turn @ np.diag([0.8, 0.8, 3.0, 1.0])


def test_every_orientation_is_read_in_kits_axes_and_written_back_to_its_own(tmp_path):
    for number, affine in enumerate(affines()):
        array = np.random.default_rng(number).integers(0, 3, SHAPE).astype(np.uint8)
        path = save(tmp_path / "scan.nii.gz", array, affine)
        volume = read_labels(path)
        # independent oracle: nibabel's own reorientation
        codes = nib.orientations.axcodes2ornt(("I", "P", "L"))
        turned = nib.load(path).as_reoriented(
            nib.orientations.ornt_transform(nib.io_orientation(affine), codes)
        )
        np.testing.assert_array_equal(volume.array, np.asanyarray(turned.dataobj))
        np.testing.assert_allclose(volume.grid.spacing_mm, turned.header.get_zooms(), rtol=1e-5)
        write_labels(tmp_path / "labels.nii.gz", volume.array, volume.grid)
        back = nib.load(tmp_path / "labels.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(back.dataobj), array)
        np.testing.assert_array_equal(back.affine, nib.load(path).affine)
        for key in ("dim", "pixdim", "qform_code", "sform_code", "srow_x", "quatern_b", "xyzt_units"):
            np.testing.assert_array_equal(back.header[key], nib.load(path).header[key])


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.float32, np.float64, ">i2", ">f4"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_number_types(tmp_path, dtype, suffix):
    path = save(tmp_path / f"scan{suffix}", numbers(dtype))
    np.testing.assert_array_equal(np.sort(read_image(path).array, axis=None), np.arange(np.prod(SHAPE)))


def test_slope_and_intercept_are_applied(tmp_path):
    image = nib.Nifti1Image(numbers(), np.eye(4))
    image.header.set_slope_inter(2.0, -1024.0)
    # nibabel would rescale on saving; the stored numbers are what counts here
    path = tmp_path / "scan.nii"
    path.write_bytes(image.header.binaryblock.ljust(352, b"\0") + numbers().tobytes(order="F"))
    content = bytearray(path.read_bytes())
    content[108:112] = np.float32(352).tobytes()
    path.write_bytes(content)
    np.testing.assert_array_equal(
        np.sort(read_image(path).array.ravel()), np.arange(np.prod(SHAPE)) * 2 - 1024
    )


def test_fractions_of_hu_are_rounded_and_large_values_saturate(tmp_path):
    array = numbers(np.float32)
    array[0, 0, :4] = (-0.6, 0.4, 1e6, -1e6)
    values = set(read_image(save(tmp_path / "scan.nii.gz", array)).array.ravel().tolist())
    assert {-1, 0, 32767, -32768} <= values


def test_nifti_2_and_a_trailing_axis_of_one(tmp_path):
    path = save(tmp_path / "scan.nii.gz", numbers(), kind=nib.Nifti2Image)
    assert np.sort(read_image(path).array, axis=None)[-1] == np.prod(SHAPE) - 1
    path = save(tmp_path / "four.nii.gz", numbers()[..., None])
    assert read_image(path).grid.shape == tuple(sorted(SHAPE, reverse=True))


def test_real_ct_keeps_its_grid(real_data, tmp_path):
    path = real_data / "real_ct" / "abdomen_ct.nii.gz"
    volume = read_image(path)
    assert volume.grid.shape == (30, 101, 122)
    reference = nib.load(path)
    np.testing.assert_array_equal(volume.grid.file_view(volume.array), np.asanyarray(reference.dataobj))
    write_labels(tmp_path / "out.nii.gz", np.ones(volume.grid.shape, np.uint8), volume.grid)
    written = nib.load(tmp_path / "out.nii.gz")
    assert written.shape == reference.shape
    assert aff2axcodes(written.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(written.affine, reference.affine)


def test_real_label_maps_equal_nibabels(real_data):
    for case in ("case_00023", "case_00061"):  # uint16, and the shortest
        path = real_data / "kits19" / case / "segmentation.nii.gz"
        np.testing.assert_array_equal(read_labels(path).array, np.asanyarray(nib.load(path).dataobj))


def test_every_flipped_bit_is_noticed(tmp_path):
    """400 one-bit flips: each is an error, or leaves every voxel and the grid as they were."""
    rng = np.random.default_rng(0)
    labels = np.zeros((12, 40, 40), np.uint8)
    labels[3:8, 10:30, 10:30] = rng.integers(0, 3, (5, 20, 20))
    write_image(tmp_path / "good.nii.gz", labels, (3, 1, 1))
    content, wrong = (tmp_path / "good.nii.gz").read_bytes(), 0
    for _ in range(400):
        flipped = bytearray(content)
        bit = rng.integers(len(content) * 8)
        flipped[bit // 8] ^= 1 << (bit % 8)
        (tmp_path / "bad.nii.gz").write_bytes(flipped)
        try:
            volume = read_labels(tmp_path / "bad.nii.gz")
        except InputError:
            continue
        same_grid = (
            volume.grid.header.get_best_affine()
            == read_labels(tmp_path / "good.nii.gz").grid.header.get_best_affine()
        ).all()
        wrong += not (same_grid and np.array_equal(volume.array, labels))
    assert wrong == 0


def error_of(function, path):
    with pytest.raises(InputError) as caught:
        function(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_truncated_files(tmp_path):
    write_image(tmp_path / "whole.nii.gz", numbers(), (1, 1, 1))
    content = (tmp_path / "whole.nii.gz").read_bytes()
    for keep in (0, 1, 5, 30, len(content) // 2, len(content) - 9, len(content) - 1):
        (tmp_path / "cut.nii.gz").write_bytes(content[:keep])
        assert "damaged or not NIfTI" in error_of(read_image, tmp_path / "cut.nii.gz")
    plain = gzip.decompress(content)
    (tmp_path / "cut.nii").write_bytes(plain[:-3])
    assert re.search("ends 3 bytes .*too early", error_of(read_image, tmp_path / "cut.nii"))


def test_not_a_nifti(tmp_path):
    for name, content in (
        ("a.nii.gz", b"<html>404</html>"),
        ("b.nii.gz", gzip.compress(b"x" * 600)),
        ("c.nii", b"\0" * 600),
    ):
        (tmp_path / name).write_bytes(content)
        assert "damaged or not NIfTI" in error_of(read_image, tmp_path / name)
    assert "found a folder" in error_of(read_image, tmp_path)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "nowhere.nii.gz")


def test_shapes_that_are_no_scan(tmp_path):
    path = save(tmp_path / "four.nii.gz", np.zeros((*SHAPE, 2), np.int16))
    assert "expected one 3-D volume, found 4-D data of shape (5, 6, 7, 2)" in error_of(read_image, path)
    path = save(tmp_path / "one.nii.gz", np.zeros((6, 7, 1), np.int16))
    assert "two axial slices, found 1" in error_of(read_image, path)
    path = save(tmp_path / "constant.nii.gz", np.full(SHAPE, -1024, np.int16))
    assert "same value in every" in error_of(read_image, path)
    path = save(tmp_path / "flat.nii", numbers())
    content = bytearray(path.read_bytes())
    content[312:328] = bytes(16)  # srow_z: the third axis of the affine is zero
    path.write_bytes(content)
    assert "found the affine" in error_of(read_image, path)


def test_values_that_are_no_hu(tmp_path):
    for bad in (np.nan, np.inf):
        array = numbers(np.float32)
        array[2, 3, 4] = bad
        message = error_of(read_image, save(tmp_path / "x.nii.gz", array))
        assert re.search("HU .*finite; .*NaN or infinity", message)
    path = save(tmp_path / "complex.nii.gz", numbers(np.complex64))
    assert "data of type complex64" in error_of(read_image, path)


def test_labels_outside_the_range(tmp_path):
    array = np.zeros(SHAPE, np.uint8)
    array[0, 0, :4] = 3
    path = save(tmp_path / "labels.nii.gz", array)
    message = error_of(read_labels, path)
    assert "labels must be 0 background, 1 kidney, 2 tumor; also found 3" in message
    assert read_labels(path, values=(0, 1, 2, 3)).array.max() == 3
    assert "also found -1" in error_of(read_labels, save(tmp_path / "n.nii.gz", (array == 3) * np.int16(-1)))
    assert "found fractions" in error_of(read_labels, save(tmp_path / "f.nii.gz", array * np.float32(0.5)))


def test_labels_of_other_meanings(tmp_path):
    """File labels 0, 1, 2, 3 are background, tumor, not allowed, kidney."""
    stored = np.array([0, 1, 3], np.int16)[np.arange(np.prod(SHAPE)) % 3].reshape(SHAPE)
    path = save(tmp_path / "x.nii.gz", stored)
    found = read_labels(path, values=(0, 2, None, 1))
    expected = np.array([0, 2, 0, 1])[stored]
    np.testing.assert_array_equal(found.grid.file_view(found.array), expected)
    assert found.array.dtype == np.uint8
    stored[0, 0, :2] = 2
    with pytest.raises(
        InputError, match="0 background, 1 tumor, 3 kidney; also found 2 in at least 2 voxels"
    ):
        read_labels(save(tmp_path / "x.nii.gz", stored), values=(0, 2, None, 1))
    with pytest.raises(InputError, match="also found 2 in at least"):
        read_labels(
            save(tmp_path / "x.nii.gz", np.where(stored, stored, 4).astype(np.int16)), values=(0, 2, None, 1)
        )


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    volume = read_image(save(tmp_path / "scan.nii.gz", numbers()))
    with pytest.raises(ValueError, match="labels have shape"):
        write_labels(tmp_path / "out.nii.gz", np.zeros((1, 2, 3), np.uint8), volume.grid)
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "half.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(InputError, match=r"ends in .nii.gz or .nii"):
        write_labels(tmp_path / "out.mha", np.zeros(volume.grid.shape, np.uint8), volume.grid)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.nii.gz"]


def test_the_same_labels_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.nii.gz", numbers(), (1, 1, 1))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
