"""Where the voxels of a volume lie in the patient, and whether two files lie on the same voxels."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from support.nifti_files import turned_grid, write_nifti

from kitsseg.data.formats.grid import grid_of, kits_affine, mm_apart, on_the_same_voxels
from kitsseg.data.formats.nifti import read_image

SIZES = (3.0, 0.8, 0.9)


def grid_at(affine, shape=(5, 6, 7)):
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_sform(affine, code=1)
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    return grid_of(header, "scan.nii")


def kits_grid(spacing_mm=(3.0, 0.8, 0.9), origin=(0.0, 0.0, 0.0), shape=(5, 6, 7)):
    """A file in KiTS axes: slices run to inferior, rows to posterior, columns to left (of RAS: -S, -A, -R)."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *(-mm for mm in spacing_mm), 1
    affine[:3, 3] = origin
    return grid_at(affine, shape)


@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_voxel_lies_where_its_file_says_in_all_48_orientations(tmp_path, order, signs):
    """Every voxel has its own HU; the file's affine and that of the volume in KiTS axes send it to the same place."""
    array = np.arange(-40, 20, dtype=np.int16).reshape(3, 4, 5)
    path = write_nifti(tmp_path / "scan.nii", array, turned_grid(order, signs, SIZES))
    volume, file = read_image(path), nib.load(path)
    affine = kits_affine(volume.grid)
    for hu in array.ravel()[::7]:
        [in_file], [in_volume] = (np.argwhere(values == hu) for values in (file.get_fdata(), volume.array))
        expected = (file.affine @ [*in_file, 1])[:3]
        np.testing.assert_allclose((affine @ [*in_volume, 1])[:3], expected, atol=1e-4)
    # the axes are those of KiTS: a step along them goes down, back and to the left
    assert np.sign(affine[[2, 1, 0], [0, 1, 2]]).tolist() == [-1, -1, -1]


def test_the_distance_of_grids_by_hand():
    """Moved by (3, 4, 12) mm, all voxels lie 13 mm away. Slices of 3.1 mm end 4 * 0.1 mm away from slices of 3 mm."""
    one = kits_grid()
    assert mm_apart(one, one) == 0
    assert mm_apart(one, kits_grid(origin=(3, 4, 12))) == pytest.approx(13)
    assert mm_apart(one, kits_grid(origin=(0, 0, -12))) == pytest.approx(12)
    for axis, (size, n) in enumerate(zip(SIZES, (5, 6, 7), strict=True)):
        sizes = [*SIZES[:axis], size + 0.1, *SIZES[axis + 1 :]]
        assert mm_apart(one, kits_grid(sizes)) == pytest.approx((n - 1) * 0.1, rel=1e-4)
    # the farthest corner counts: moved by 12 mm and 0.4 mm longer in the other direction
    assert mm_apart(one, kits_grid((3.1, 0.8, 0.9), origin=(0, 0, 12))) == pytest.approx(12)
    assert mm_apart(kits_grid((3.1, 0.8, 0.9), origin=(0, 0, 12)), one) == pytest.approx(12)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, -1), (1, -1, 1)])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_files_with_other_axes_lie_on_the_same_voxels(order, signs):
    """The same box of voxels, written along other axes from another corner."""
    sizes, shape = np.array(SIZES), np.array((5, 6, 7))
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (target, sign) in enumerate(zip(order, signs, strict=True)):
        # KiTS axis `target` becomes file axis `axis`
        affine[2 - target, axis] = sign * sizes[target]
        affine[2 - target, 3] = 0 if sign < 0 else -sizes[target] * (shape[target] - 1)
    other = grid_at(affine, tuple(int(n) for n in shape[list(order)]))
    assert other.shape == (5, 6, 7)
    assert mm_apart(kits_grid(), other) < 1e-4
    assert on_the_same_voxels(kits_grid(), other)


def test_grids_may_differ_by_a_tenth_of_the_smallest_voxel_size():
    """0.08 mm of voxels of 3 x 0.8 x 0.9 mm, along any axis; the voxels of the second grid count."""
    true = kits_grid()
    for axis in range(3):
        for mm, same in ((0.079, True), (0.081, False), (-0.079, True), (-0.081, False)):
            origin = np.zeros(3)
            origin[axis] = mm
            assert on_the_same_voxels(kits_grid(origin=origin), true) == same
    assert on_the_same_voxels(kits_grid((3, 0.81, 0.9), shape=(5, 9, 7)), kits_grid(shape=(5, 9, 7)))
    assert not on_the_same_voxels(kits_grid((3, 0.81, 0.9), shape=(5, 10, 7)), kits_grid(shape=(5, 10, 7)))


def test_a_volume_has_two_slices_at_least():
    assert kits_grid(shape=(2, 6, 7)).shape == (2, 6, 7)
