"""Where the voxels of a volume lie: the file's own grid, the volume in KiTS axes, and the way between them."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

from kitsseg.errors import InputError

__all__ = ["KITS_AXES", "Grid", "Volume", "grid_of"]

KITS_AXES = ("I", "P", "L")  # slices run to inferior, rows to posterior, columns to left
_UNITS = {1: "meters", 3: "micrometers"}  # of NIfTI's xyzt_units; 0 is unknown, 2 millimeters


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie, and how to get back to it.

    Attributes:
        shape: (slices, rows, columns) of the volume in KiTS axes.
        spacing_mm: distance of voxel centers along these axes, from the affine's columns.
        axes: for each axis of the file, the KiTS axis it becomes.
        flipped: for each KiTS axis, whether it runs against the file's axis.
        header: the file's own header; what is written back keeps it.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    header: nib.Nifti1Header

    def file_view(self, array):
        """View of ``array`` (slices, rows, columns) in the axis order and direction of the file."""
        array = array[tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flipped)]
        return array.transpose(self.axes)


@dataclass(frozen=True)
class Volume:
    """One volume: ``array`` (slices, rows, columns), int16 HU or uint8 labels, and its grid."""

    path: Path
    array: np.ndarray
    grid: Grid


@np.errstate(all="ignore")  # of NaN and infinity in the header, which are refused
def grid_of(header, path):
    """The grid that a NIfTI header describes.

    The affine is the sform where the header has one, else the qform. A file with neither says nothing about which
    way the patient lies, and a network trained on patients the right way up would find nothing or the wrong side:
    it is refused, and so are two forms that name different axes.

    Args:
        header: ``nibabel.Nifti1Header`` or ``Nifti2Header``.
        path: of the file, for the messages.

    Raises: InputError for what is no 3-D volume in mm of at least two axial slices, or lies nobody knows how.
    """
    shape = header.get_data_shape()
    if len(shape) > 3 and all(n == 1 for n in shape[3:]):
        shape = shape[:3]
    if len(shape) != 3:
        raise InputError(
            f"{path}: expected one 3-D volume, found {len(shape)}-D data of shape {shape}. Split it first."
            if len(shape) > 3
            else f"{path}: expected a 3-D volume, found {len(shape)}-D data of shape {shape}. Export the whole scan."
        )
    if min(shape) < 1:
        raise InputError(f"{path}: expected a 3-D volume, found no voxels (shape {shape}).")
    units = int(header["xyzt_units"]) & 7
    if units in _UNITS:
        raise InputError(
            f"{path}: expected a voxel grid in mm, found one in {_UNITS[units]} (xyzt_units). Correct the header."
        )
    affine = _affine(header, path)
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if (
        not (np.isfinite(affine).all() and np.isfinite(lengths).all() and (lengths > 0).all())
        or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3
    ):
        raise InputError(
            f"{path}: expected a voxel grid in mm, found the affine {affine.tolist()}. Repair the header."
        )
    # rows of an orientation: (axis it becomes, +1 or -1), one row for each axis of the file
    change = ornt_transform(io_orientation(affine), axcodes2ornt(KITS_AXES))
    axes = tuple(int(axis) for axis in change[:, 0])
    flipped = [False] * 3
    kits_shape, spacing = [0] * 3, [0.0] * 3
    for file_axis, (axis, direction) in enumerate(change.astype(int)):
        kits_shape[axis] = int(shape[file_axis])
        spacing[axis] = float(lengths[file_axis])
        flipped[axis] = bool(direction < 0)
    if kits_shape[0] < 2:
        raise InputError(
            f"{path}: expected a volume of at least two axial slices, found {kits_shape[0]} "
            f"(shape {tuple(shape)}). Export the whole scan."
        )
    return Grid(tuple(kits_shape), tuple(spacing), axes, tuple(flipped), header)


def _affine(header, path):
    affines = [header.get_sform()] if header["sform_code"] > 0 else []
    if header["qform_code"] > 0:
        try:
            affines.append(header.get_qform())
        except (HeaderDataError, ValueError) as error:  # a quaternion longer than 1, or negative pixdim
            if not affines:
                raise HeaderDataError(f"there is no sform, and the qform is broken: {error}") from error
    if not affines:
        raise InputError(
            f"{path}: expected an sform or a qform that says how the patient lies, found neither "
            "(both codes are 0). Export the scan again, or set the form that is right."
        )
    if len(affines) == 2 and all(map(_nearest_axes_are_clear, affines)):
        # forms of two spaces may differ by a registration, not by which way is up or which side is left
        axes = ["".join(nib.aff2axcodes(affine)) for affine in affines]
        if axes[0] != axes[1]:
            raise InputError(
                f"{path}: expected sform and qform to agree, found axes {axes[0]} in the sform and {axes[1]} in "
                "the qform. Remove the wrong one (code 0)."
            )
    return affines[0]


def _nearest_axes_are_clear(affine):
    """Whether every axis lies within 35 degrees of one of the patient's: only then can two forms contradict."""
    if not np.isfinite(affine).all():
        return False
    cosines = np.abs(affine[:3, :3]) / np.linalg.norm(affine[:3, :3], axis=0)
    return sorted(cosines.argmax(axis=0)) == [0, 1, 2] and bool((cosines.max(axis=0) > 0.82).all())
