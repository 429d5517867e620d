"""Where the voxels of a volume lie: the file's own grid, the volume in KiTS axes, and the way between them.

``grid_of`` checks every grid, of NIfTI and DICOM alike: the axes must be at right angles, all parts of the header must
give the same voxel size, and this must be the voxel size of a human being's scan. This package describes a grid by its
spacing alone, so volumes in ml, distances in mm and resampled pictures would be wrong for any other grid.

``check_pixels`` holds the pixels of single slices, which a table states, to the same limits.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

from kitsseg.errors import InputError

__all__ = [
    "KITS_AXES",
    "Doubt",
    "Grid",
    "Volume",
    "check_pixels",
    "grid_of",
    "kits_affine",
    "mm_apart",
    "on_the_same_voxels",
]

Scalar = TypeVar("Scalar", bound=np.generic)
Each = TypeVar("Each")
KITS_AXES = ("I", "P", "L")  # slices run to inferior, rows to posterior, columns to left
SHEAR_DEGREES = 0.5  # less is the rounding of direction cosines written with three digits
SIZE_TOLERANCE = 0.01  # of a voxel size that the header gives twice; more is no rounding
# Of CT of the trunk: 0.2 mm between voxels at least, slices 10 mm apart at most, a patient of 2 m on the table. The
# limits leave a factor of two and the coarsest phantoms; a header in meters, centimeters or micrometers lies outside.
SPACING_MM = (0.1, 30.0)
EXTENT_MM = 3000.0
FORMS_APART_DEGREES = 45.0  # a registration turns a patient by less; more is another way to lie
# the longer side of a pixel by the shorter one: a CT scanner makes square pixels, and a picture that was resized to
# another shape comes close; pixels of coronal and sagittal slices are longer
PIXEL_RATIO = 2.0
_UNITS = {1: "meters", 3: "micrometers"}  # of NIfTI's xyzt_units; 0 is unknown, 2 millimeters
_MM = {"meters": 1000.0, "centimeters": 10.0, "micrometers": 0.001}


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie, and how an array returns to the axes of the file.

    Attributes:
        shape: (slices, rows, columns) of the volume in KiTS axes.
        spacing_mm: distance of voxel centers along these axes, from the affine's columns.
        axes: for each axis of the file, the KiTS axis it becomes.
        flipped: for each KiTS axis, whether it runs against the file's axis.
        header: the file's own header; a label map that is written on this grid keeps it.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    header: nib.Nifti1Header

    def file_view(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """View of ``array`` (slices, rows, columns) in the axis order and direction of the file."""
        array = array[tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flipped)]
        return array.transpose(self.axes)


@dataclass(frozen=True)
class Doubt:
    """One doubt about a scan, in words: ``check`` names what was checked, ``advice`` says what to do."""

    check: str
    found: str
    expected: str
    advice: str

    def __str__(self) -> str:
        return f"expected {self.expected}, found {self.found}. {self.advice}."


@dataclass(frozen=True)
class Volume:
    """One volume: ``array`` (slices, rows, columns), int16 HU or uint8 labels, and its grid.

    ``doubts`` are those that the headers of its files raise; ``doubts_about`` adds those of its voxels.
    """

    path: Path
    array: npt.NDArray[Any]
    grid: Grid
    doubts: tuple[Doubt, ...] = ()


@np.errstate(all="ignore")  # of NaN and infinity in the header, which are refused
def grid_of(header: nib.Nifti1Header, path: str | os.PathLike[str]) -> Grid:
    """The grid that a NIfTI header describes.

    The affine is the sform if the header has one, else the qform. A file with neither does not say which way the
    patient lies; a network that was trained on upright patients would find nothing or the wrong side. Such a file is
    refused, and so is a file whose two forms name different axes, lie more than 45 degrees apart or give different
    voxel sizes.

    Args:
        header: ``nibabel.Nifti1Header`` or ``Nifti2Header``; for a DICOM series it is made from its slices.
        path: of the file, for the messages.

    Raises: InputError unless the header describes a 3-D volume of at least two axial slices, with perpendicular axes,
        with the voxel sizes in mm of a human being's scan, and with a known orientation.
    """
    shape = _checked_shape(header, path)
    affine = _affine(header, path)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (
        not (np.isfinite(affine).all() and np.isfinite(lengths).all() and (lengths > 0).all())
        or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3
    ):
        raise InputError(
            f"{path}: expected a voxel grid in mm, found the affine {affine.tolist()}. Repair the header."
        )
    _check_one_size(header, lengths, path)
    _check_human(header, lengths, shape, path)
    _check_right_angles(affine[:3, :3] / lengths, path)
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
    return Grid(_three(kits_shape), _three(spacing), _three(axes), _three(flipped), header)


def check_pixels(
    spacing_mm: tuple[float, float], where: object, pixels: tuple[int, int] | None = None
) -> None:
    """Refuse pixels that no axial slice of a human being's CT has in mm.

    Args:
        spacing_mm: of rows and columns, as somebody stated it.
        where: it was stated, for the message.
        pixels: (rows, columns) of the image; None while they are unknown.

    Raises: InputError.
    """
    lengths, shape = np.asarray(spacing_mm, np.float64), pixels or (1, 1)
    low, high = SPACING_MM
    if not _is_human(lengths, shape):
        likely = [name for name, mm in _MM.items() if _is_human(lengths * mm, shape)]
        advice = (
            f"These look like {likely[0]}: multiply them by {_MM[likely[0]]:g}" if likely else "Correct them"
        )
        size = "" if pixels is None else f" in an image of {_by(lengths * shape)} mm"
        raise InputError(
            f"{where}: expected pixels of {low:g} to {high:g} mm in a slice of a human being, at most {EXTENT_MM:g} mm "
            f"long, found pixels of {_by(lengths)} mm{size}. {advice}."
        )
    if lengths.max() > PIXEL_RATIO * lengths.min():
        raise InputError(
            f"{where}: expected nearly square pixels, as every axial slice has, found pixels of {_by(lengths)} mm "
            "(rows x columns). Correct them, or make axial slices: the networks know no others."
        )


def kits_affine(grid: Grid) -> npt.NDArray[np.float64]:
    """The affine of a volume in KiTS axes: (slice, row, column) to mm in the patient."""
    ornt = np.array([(axis, -1 if grid.flipped[axis] else 1) for axis in grid.axes])
    affine: npt.NDArray[np.float64] = grid.header.get_best_affine() @ inv_ornt_aff(
        ornt, [grid.shape[axis] for axis in grid.axes]
    )
    return affine


def mm_apart(one: Grid, other: Grid) -> float:
    """The largest distance in mm between the same voxel of two grids of one shape, whatever the axes of their files."""
    ends = np.array(one.shape) - 1
    corners = np.array([(*(ends * corner), 1) for corner in np.ndindex(2, 2, 2)]).T
    apart = ((kits_affine(one) - kits_affine(other)) @ corners)[:3]
    return float(np.linalg.norm(apart, axis=0).max())


def on_the_same_voxels(one: Grid, other: Grid) -> bool:
    """Whether two grids of one shape lie in the same place, to a tenth of a voxel of the second one.

    Headers hold the affine in two float32 forms, rounded; programs round it further.
    """
    return mm_apart(one, other) <= min(other.spacing_mm) / 10


def _three(values: Sequence[Each]) -> tuple[Each, Each, Each]:
    first, second, third = values
    return first, second, third


def _checked_shape(header: nib.Nifti1Header, path: str | os.PathLike[str]) -> tuple[int, int, int]:
    shape: tuple[int, ...] = header.get_data_shape()
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
    return _three(shape)


def _affine(header: nib.Nifti1Header, path: str | os.PathLike[str]) -> npt.NDArray[np.float64]:
    affines: list[npt.NDArray[np.float64]] = [header.get_sform()] if header["sform_code"] > 0 else []
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
    if len(affines) == 2 and (apart := _degrees_apart(*affines)) > FORMS_APART_DEGREES + 0.5:
        raise InputError(
            f"{path}: expected sform and qform to agree, found axes that lie {apart:.0f} degrees apart. Remove the "
            "wrong one (code 0)."
        )
    return affines[0]


def _degrees_apart(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """The largest angle between a file axis in one form and the same axis in the other; NaN where one has no length."""
    directions = [affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) for affine in (one, other)]
    cosines = (directions[0] * directions[1]).sum(axis=0)
    return math.degrees(math.acos(float(np.clip(cosines.min(), -1, 1))))


def _nearest_axes_are_clear(affine: npt.NDArray[np.float64]) -> bool:
    """Whether each axis lies within 35 degrees of an axis of the patient. Only then can two forms contradict."""
    if not np.isfinite(affine).all():
        return False
    cosines = np.abs(affine[:3, :3]) / np.linalg.norm(affine[:3, :3], axis=0)
    return sorted(cosines.argmax(axis=0)) == [0, 1, 2] and bool((cosines.max(axis=0) > 0.82).all())


def _check_one_size(
    header: nib.Nifti1Header, lengths: npt.NDArray[np.float64], path: str | os.PathLike[str]
) -> None:
    """Refuse a header whose sform and pixdim give two voxel sizes. The qform takes its voxel size from pixdim."""
    stated = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    if not np.allclose(stated, lengths, rtol=SIZE_TOLERANCE, atol=0):  # NaN never is
        other = "pixdim and the qform" if header["qform_code"] > 0 else "pixdim"
        raise InputError(
            f"{path}: expected one voxel size, found {_by(lengths)} mm in the sform and {_by(stated)} mm in {other}. "
            "Correct the wrong one in the header, or export the scan again."
        )


def _check_human(
    header: nib.Nifti1Header,
    lengths: npt.NDArray[np.float64],
    shape: tuple[int, int, int],
    path: str | os.PathLike[str],
) -> None:
    """Refuse voxel sizes and extents that no human being's scan has in mm, whatever the header names as its unit."""
    unit = _UNITS.get(int(header["xyzt_units"]) & 7)
    if unit is None and _is_human(lengths, shape):
        return
    found = f"voxels of {_by(lengths)} {unit or 'mm'} in a scan of {_by(lengths * shape)} {unit or 'mm'}"
    if unit:
        found += f" (xyzt_units says {unit})"
        advice = (
            "Set xyzt_units to 2, which is mm"
            if _is_human(lengths, shape)
            else f"Multiply the affine and pixdim by {_MM[unit]:g} and set xyzt_units to 2, which is mm"
        )
    else:
        likely = [name for name, mm in _MM.items() if _is_human(lengths * mm, shape)]
        advice = "Export the scan again, with voxel sizes in mm"
        if likely:
            of_unit = f"These look like {likely[0]}: multiply the affine and pixdim by {_MM[likely[0]]:g}"
            advice = f"{of_unit}, or export the scan again with voxel sizes in mm"
    low, high = SPACING_MM
    raise InputError(
        f"{path}: expected voxels of {low:g} to {high:g} mm in a scan of a human being, at most {EXTENT_MM:g} mm "
        f"long, found {found}. {advice}."
    )


def _is_human(lengths: npt.NDArray[np.float64], shape: tuple[int, ...]) -> bool:
    low, high = SPACING_MM
    return bool((lengths >= low).all() and (lengths <= high).all() and (lengths * shape <= EXTENT_MM).all())


def _check_right_angles(directions: npt.NDArray[np.float64], path: str | os.PathLike[str]) -> None:
    cosine = np.abs(directions.T @ directions - np.eye(3)).max()
    shear = math.degrees(math.asin(min(float(cosine), 1.0)))
    if shear > SHEAR_DEGREES:
        raise InputError(
            f"{path}: expected axes at right angles, found a shear, as of a gantry tilt, of {shear:.1f} degrees. "
            "Resample the scan to an upright grid first; of a DICOM series dcm2niix makes one."
        )


def _by(values: npt.NDArray[np.float64]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
