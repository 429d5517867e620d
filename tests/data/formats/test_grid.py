"""Any scan comes back in its own grid, over random affines, sizes, spacings and number types.

The network is a known function of HU, so that every voxel of the written file has one right label; nibabel, which
reads the files its own way, says which.
"""

import gzip
import itertools
import re
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from kitsseg.data.formats import nifti, plane_order
from kitsseg.data.formats.grid import KITS_AXES
from kitsseg.data.formats.nifti import read_image, read_labels, write_labels
from kitsseg.errors import InputError
from kitsseg.inference.scan import Member, predict_labels
from kitsseg.recipe import InferenceSpec, PreprocessSpec

WHOLE = InferenceSpec(tile=None, multiple=4)
TILED = InferenceSpec(tile=(24, 24), gaussian=True, mirror_axes=(0, 1))
PLACE = ("dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d")
PLACE += (
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
    "descrip",
    "dim_info",
    "toffset",
)
DTYPES = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")


def by_hu(spec, low=80, high=230):
    """Everything above ``low`` HU is kidney and above ``high`` HU tumor, pixel by pixel."""

    def predict(batch):
        hu = batch[..., 0] * spec.hu_std + spec.hu_mean
        return np.eye(3, dtype=np.float32)[(hu > low).astype(int) + (hu > high)]

    return predict


def random_affine(rng, oblique):
    """A random axis order and direction, turned by up to 40 degrees, with spacings of 0.3 to 6 mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    if oblique:
        a, b, c = np.radians(rng.uniform(-40, 40, 3))
        for i, j, angle in ((0, 1, a), (0, 2, b), (1, 2, c)):
            turn = np.eye(4)
            turn[[i, j], [i, j]] = np.cos(angle)
            turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
            affine = turn @ affine
    affine[:3, :3] *= rng.uniform(0.3, 6, 3)
    affine[:3, 3] = rng.uniform(-500, 500, 3)
    return affine


def write_scan(
    path, stored, affine, forms="s", kind=nib.Nifti1Header, order="<", scaling=(1, 0), units=2, extra=0
):
    """A NIfTI file written from its definition: header, padding, then the numbers, first axis fastest."""
    header = kind(endianness=order)
    header.set_data_shape(stored.shape + (1,) * extra)
    header.set_data_dtype(stored.dtype.newbyteorder(order))
    if "q" in forms:
        header.set_qform(affine, code=1, strip_shears=True)
    else:
        header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    if "s" in forms:
        header.set_sform(affine, code=2)
    header["xyzt_units"], header["descrip"], header["toffset"] = units, b"a scanner", 7
    header["scl_slope"], header["scl_inter"] = scaling
    start = -(-(header.sizeof_hdr + 4) // 16) * 16
    header["vox_offset"] = start
    content = header.binaryblock.ljust(start, b"\0")
    content += stored.astype(stored.dtype.newbyteorder(order)).tobytes(order="F")
    path.write_bytes(gzip.compress(content, 1) if path.name.endswith(".gz") else content)
    return path


def random_scan(path, rng, thin=None):
    """Write a random file; returns what it is, for the message of a failing test.

    Args:
        thin: the KiTS axis that is one voxel long.
    """
    affine = random_affine(rng, oblique=rng.random() < 0.5)
    shape = tuple(int(n) for n in rng.integers(2, 30, 3))
    if thin is not None:  # RAS axes 0, 1, 2 are KiTS columns, rows, slices
        along = nib.io_orientation(affine)[:, 0]
        shape = tuple(1 if axis == 2 - thin else n for axis, n in zip(along, shape, strict=True))
    dtype = np.dtype(rng.choice(DTYPES))
    scaling = (1, 0)
    if dtype.kind == "f":
        stored = rng.normal(100, 200, shape).astype(dtype)
    else:
        low, high = max(np.iinfo(dtype).min, -500), min(np.iinfo(dtype).max, 500)
        stored = rng.integers(low, high + 1, shape).astype(dtype)
    if rng.random() < 0.4 or dtype.itemsize == 1:  # fractions of HU, so that rounding is looked at too
        scaling = (float(np.float32(rng.uniform(1.5, 3))), float(np.float32(rng.uniform(-50, 50))))
    how = {
        "forms": str(rng.choice(["s", "q", "sq"])),
        "kind": (nib.Nifti1Header, nib.Nifti2Header)[rng.integers(2)],
        "order": str(rng.choice(["<", ">"])),
        "scaling": scaling,
        "units": int(rng.choice([0, 2, 10])),
        "extra": int(rng.integers(2)),
    }
    write_scan(path, stored, affine, **how)
    return how | {"dtype": dtype.str, "shape": shape, "affine": affine}


def check_written(scan, labels, expected, how=""):
    """``expected`` in file axes; orientation and place as in the scan's header, byte for byte."""
    found, source = nib.load(labels), nib.load(scan)
    assert found.shape == source.shape, how
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), expected, err_msg=str(how))
    assert found.get_data_dtype() == np.uint8
    for key in PLACE:
        assert found.header[key].tobytes() == source.header[key].tobytes(), (key, how)
    np.testing.assert_array_equal(found.affine, source.affine)
    assert type(found.header) is type(source.header)
    assert found.header.endianness == source.header.endianness


@pytest.mark.parametrize("seed", range(120))
def test_every_voxel_of_any_file_gets_its_label(tmp_path, spec, seed):
    """Random forms, byte orders, number types, scalings, sizes down to one voxel thin, oblique or not."""
    rng = np.random.default_rng(seed)
    scan = tmp_path / ("scan.nii", "scan.nii.gz")[seed % 2]
    how = random_scan(scan, rng, thin=(None, 1, None, 2, None)[seed % 5])
    volume = read_image(scan)
    hu = np.rint(nib.load(scan).get_fdata())
    member = Member(by_hu(spec), spec, TILED if seed % 3 == 0 else WHOLE)
    labels = predict_labels(volume.array, volume.grid.spacing_mm, member)
    target = tmp_path / ("labels.nii.gz", "labels.nii")[seed // 2 % 2]
    write_labels(target, labels, volume.grid)
    check_written(scan, target, (hu > 80).astype(int) + (hu > 230), how)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_all_48_orientations_give_the_labels_of_the_kits_one(tmp_path, order):
    """Through a recipe that crops, resamples and interpolates back: the same voxels whatever the file's axes."""
    spec = PreprocessSpec(
        spacing_mm=(3.0, 1.0, 0.9), crop_to_body=True, hu_window=(-79.0, 304.0), hu_mean=101.0, hu_std=76.9
    )
    rng = np.random.default_rng(0)
    array = np.full((9, 16, 18), -1000, np.int16)
    array[1:8, 2:14, 3:15] = rng.integers(-60, 400, (7, 12, 12))
    spacing = 2.5, 0.75, 0.5
    expected = predict_labels(array, spacing, Member(by_hu(spec), spec, WHOLE))
    assert set(np.unique(expected)) == {0, 1, 2}
    kits = np.zeros((4, 4))  # of KiTS19: slices to inferior, rows to posterior, columns to left
    kits[[2, 1, 0], [0, 1, 2]] = -np.array(spacing)
    kits[:, 3] = (100, -50, 25, 1)
    for signs in itertools.product((1, -1), repeat=3):
        # nibabel turns the volume and its affine into the file's axes
        ornt = np.array(list(zip(np.argsort(order), signs, strict=True)))
        turned = nib.Nifti1Image(array, kits).as_reoriented(ornt)
        scan = write_scan(tmp_path / "scan.nii", np.asanyarray(turned.dataobj), turned.affine)
        volume = read_image(scan)
        np.testing.assert_array_equal(volume.array, array)
        assert volume.grid.spacing_mm == spacing
        write_labels(
            tmp_path / "labels.nii",
            predict_labels(volume.array, spacing, Member(by_hu(spec), spec, WHOLE)),
            volume.grid,
        )
        check_written(scan, tmp_path / "labels.nii", nib.apply_orientation(expected, ornt))


def test_a_512_x_796_scan(tmp_path, spec):
    rng = np.random.default_rng(0)
    stored = rng.integers(-500, 500, (3, 512, 796)).astype(np.int16)
    kits = np.zeros((4, 4))
    kits[[2, 1, 0], [0, 1, 2]] = -3.0, -0.8, -0.5
    kits[3, 3] = 1
    scan = write_scan(tmp_path / "scan.nii.gz", stored, kits, "q")
    volume = read_image(scan)
    assert volume.grid.shape == (3, 512, 796)
    write_labels(
        tmp_path / "labels.nii.gz",
        predict_labels(volume.array, volume.grid.spacing_mm, Member(by_hu(spec), spec, WHOLE)),
        volume.grid,
    )
    check_written(scan, tmp_path / "labels.nii.gz", (stored > 80).astype(int) + (stored > 230))


@pytest.mark.parametrize("seed", range(40))
def test_a_voxel_lies_where_the_affine_says(seed, tmp_path):
    """KiTS axes run to inferior, posterior and left: along each, the affine's largest step is that way."""
    rng = np.random.default_rng(seed)
    affine = random_affine(rng, oblique=True)
    stored = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    volume = read_image(write_scan(tmp_path / "x.nii", stored, affine, ("s", "q", "sq")[seed % 3]))
    index = {value: np.argwhere(stored == value)[0] for value in range(stored.size)}
    affine = nib.load(tmp_path / "x.nii").affine
    positions = np.array([affine @ (*index[int(v)], 1) for v in volume.array.ravel()])[:, :3]
    positions = positions.reshape(*volume.array.shape, 3)
    for axis, (world, sign) in enumerate(((2, -1), (1, -1), (0, -1))):  # L is -x in RAS
        first, second = (positions.take(k, axis=axis) for k in (0, 1))
        step = (second - first).reshape(-1, 3)[0]
        np.testing.assert_allclose(np.linalg.norm(step), volume.grid.spacing_mm[axis], rtol=1e-5)
        others = [positions.take(1, axis=a) - positions.take(0, axis=a) for a in range(3)]
        directions = np.array([d.reshape(-1, 3)[0] / np.linalg.norm(d.reshape(-1, 3)[0]) for d in others])
        # the assignment of axes is the one that fits best as a whole
        fit = [abs(directions[list(p), [2, 1, 0]]).prod() for p in itertools.permutations(range(3))]
        assert fit[0] == pytest.approx(max(fit)) or fit[0] > 0.2
        assert np.sign(step[world]) == sign
    assert KITS_AXES == ("I", "P", "L")


# which fields of the header give the orientation of the patient


def scan_of(tmp_path, affine=None, forms="sq", **options):
    stored = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    return write_scan(
        tmp_path / "scan.nii", stored, np.diag([1, 2, 3, 1.0]) if affine is None else affine, forms, **options
    )


def rewritten(path, **fields):
    """The file with other values in its header."""
    content = path.read_bytes()
    header = nib.Nifti1Header(content[:348])
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + content[348:])
    return path


def error_of(path):
    with pytest.raises(InputError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_neither_form_is_refused(tmp_path):
    message = error_of(scan_of(tmp_path, forms=""))
    assert re.search("sform .*qform .*patient lies, found neither", message)


def test_the_sform_counts_where_both_are_given(tmp_path):
    """As in nibabel; the two may differ by a registration, here 5 mm and 10 degrees."""
    path = scan_of(tmp_path)
    c, s = np.cos(np.radians(10)), np.sin(np.radians(10))
    rewritten(path, srow_x=[c, -2 * s, 0, 5], srow_y=[s, 2 * c, 0, 0])
    volume = read_image(path)
    np.testing.assert_array_equal(volume.grid.header.get_best_affine(), nib.load(path).affine)
    assert volume.grid.spacing_mm == pytest.approx((3, 2, 1), rel=1e-6)


def test_forms_that_name_other_axes_are_refused(tmp_path):
    path = rewritten(scan_of(tmp_path), srow_x=[-1, 0, 0, 0])
    assert re.search(r"axes LAS.* sform.* RAS.* qform\. Remove", error_of(path))
    path = rewritten(scan_of(tmp_path), srow_y=[0, 0, 3, 0], srow_z=[0, 2, 0, 0])
    assert re.search(r"axes RSA.* sform.* RAS.* qform", error_of(path))
    assert read_image(rewritten(path, qform_code=0)).grid.spacing_mm == (2, 3, 1)


def test_a_broken_qform_beside_a_good_sform_is_left_alone(tmp_path):
    path = rewritten(scan_of(tmp_path), quatern_b=3)
    assert read_image(path).grid.spacing_mm == (3, 2, 1)
    assert "damaged or not NIfTI" in error_of(rewritten(path, sform_code=0))


@pytest.mark.parametrize(("units", "name"), [(1, "meters"), (3, "micrometers"), (9, "meters")])
def test_other_units_than_mm_are_refused(tmp_path, units, name):
    message = error_of(scan_of(tmp_path, units=units))
    assert f"found voxels of 1 x 2 x 3 {name}" in message
    assert "Set xyzt_units to 2, which is mm" in message


def test_affines_that_are_no_grid(tmp_path):
    for row in ([0, 0, 0, 0], [np.nan, 0, 0, 0], [np.inf, 0, 0, 0], [0, 2, 0, 0]):
        assert "found the affine" in error_of(rewritten(scan_of(tmp_path, forms="s"), srow_x=row))
    path = write_scan(tmp_path / "two.nii", np.ones((4, 5, 6), np.int16), np.eye(4), kind=nib.Nifti2Header)
    content = bytearray(path.read_bytes())
    content[400:408] = np.float64(1e300).tobytes()  # srow_x
    path.write_bytes(content)
    assert "found the affine" in error_of(path)


def test_one_axial_slice_2d_and_4d(tmp_path):
    array = np.arange(30, dtype=np.int16)
    path = write_scan(tmp_path / "x.nii", array.reshape(5, 6, 1), np.eye(4))
    assert "two axial slices, found 1" in error_of(path)
    # one voxel thin along another axis is a volume
    assert read_image(write_scan(path, array.reshape(1, 5, 6), np.eye(4))).grid.shape == (6, 5, 1)
    assert "expected a 3-D volume, found 2-D data of shape (5, 6)" in error_of(
        write_scan(path, array.reshape(5, 6), np.eye(4))
    )
    assert "expected one 3-D volume, found 4-D data of shape (1, 3, 5, 2). Split it first" in error_of(
        write_scan(path, array.reshape(1, 3, 5, 2), np.eye(4))
    )
    assert "found 5-D data of shape (1, 3, 5, 1, 2). Split it first" in error_of(
        write_scan(path, array.reshape(1, 3, 5, 1, 2), np.eye(4))
    )
    for extra in (1, 2, 4):  # one time point
        scan = write_scan(path, array.reshape(2, 3, 5), np.eye(4), extra=extra)
        volume = read_image(scan)
        write_labels(tmp_path / "labels.nii", (volume.array > 7).astype(np.uint8), volume.grid)
        check_written(scan, tmp_path / "labels.nii", (array > 7).reshape((2, 3, 5) + (1,) * extra))


def test_colors_other_formats_and_empty_files(tmp_path):
    rgb = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii.gz")
    assert "Export a grayscale volume" in error_of(tmp_path / "rgb.nii.gz")
    nib.save(nib.MGHImage(np.ones((4, 5, 6), np.float32), np.eye(4)), tmp_path / "brain.mgz")
    assert "found another format. Convert it to .nii.gz first" in error_of(tmp_path / "brain.mgz")
    (tmp_path / "brain.mgz").rename(tmp_path / "renamed.nii.gz")
    assert "damaged or not NIfTI (no NIfTI header)" in error_of(tmp_path / "renamed.nii.gz")
    for name, content in (("a.nii", b""), ("a.nii.gz", b""), ("b.nii.gz", gzip.compress(b""))):
        (tmp_path / name).write_bytes(content)
        assert "the file is empty" in error_of(tmp_path / name)
    (tmp_path / "folder.nii").mkdir()
    assert "found a folder" in error_of(tmp_path / "folder.nii")
    with pytest.raises(
        InputError, match=r"folder.nii: expected a NIfTI file \(.nii or .nii.gz\), found a folder"
    ):
        read_labels(tmp_path / "folder.nii")


@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
@pytest.mark.parametrize("forms", ["s", "q", "sq"])
def test_random_bytes_in_a_header_give_a_volume_or_one_line(tmp_path, kind, forms):
    """Warnings are errors here: none may come out of a header either."""
    stored = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    path = write_scan(tmp_path / "x.nii", stored, np.diag([2, 2, 3, 1.0]), forms, kind)
    content, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(150):
        changed = bytearray(content)
        for k in rng.integers(4, kind.sizeof_hdr, 4):
            changed[k] = rng.choice([0, 1, 2, 127, 128, 255, rng.integers(256)])
        path.write_bytes(changed)
        try:
            assert read_image(path).array.ndim == 3
        except InputError as error:
            refused += 1
            assert str(error).startswith(str(path))
    assert refused > 10


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_memory_is_the_volume_and_a_few_blocks_in_every_axis_order(tmp_path, monkeypatch, order):
    """The int16 volume takes 4 MiB. Reading adds a sixteenth of it and four blocks of 0.5 MiB (4 planes as float64).

    This is 6.25 MiB at most. With a whole copy it would be 8 MiB, with float64 of all voxels 20 MiB.
    """
    monkeypatch.setattr(nifti, "_BLOCK_BYTES", 1 << 18)
    monkeypatch.setattr(plane_order, "_CACHE_LINE_BYTES", 16)  # 8 of 128 planes, as it is 32 of 512 in a CT
    affine = np.zeros((4, 4))
    affine[order, [0, 1, 2]] = 1, -1, 1
    affine[3, 3] = 1
    for dtype, scaling in ((np.int16, (1, 0)), (np.float64, (1, 0)), (np.int16, (2, -1024))):
        stored = np.zeros((128, 128, 128), dtype)
        stored[::2] = 1
        path = write_scan(tmp_path / "x.nii.gz", stored, affine, scaling=scaling)
        del stored
        tracemalloc.start()
        volume = read_image(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.6 * volume.array.nbytes, dtype
