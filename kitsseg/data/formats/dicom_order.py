"""The slices of a DICOM series in order, and the NIfTI header of the volume they make."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from kitsseg.errors import InputError

__all__ = ["Slice", "in_order", "series_header"]

POSITION_MM = 0.1  # scanners write positions with a tenth of a millimeter at worst
TILT_DEGREES = 0.5  # less is the rounding of direction cosines written with three digits
SAME = {
    "shape": "Rows and Columns",
    "spacing_mm": "PixelSpacing",
    "orientation": "ImageOrientationPatient",
}


@dataclass(frozen=True)
class Slice:
    """What the header of one file says.

    Attributes:
        series, description: which series it belongs to.
        shape: (rows, columns).
        spacing_mm: between rows, between columns.
        orientation: unit vectors along a row and down a column, in LPS.
        position: of the center of the first pixel, in mm and LPS.
        slope, intercept: from stored numbers to HU.
    """

    path: Path
    series: str
    description: str
    shape: tuple[int, int]
    spacing_mm: tuple[float, float]
    orientation: tuple[float, ...]
    position: tuple[float, float, float]
    slope: float
    intercept: float


def in_order(folder, slices):
    """Sort the slices of one series by their position along their normal.

    Args:
        folder: for the messages.

    Raises: InputError if they do not make one volume of parallel, evenly spaced slices.
    """
    series = Counter(item.series for item in slices)
    if len(series) > 1:
        named = {item.series: item.description for item in slices}
        found = "; ".join(f"{named[uid]} ({n} files, {uid})" for uid, n in series.items())
        raise InputError(
            f"{folder}: expected one DICOM series, found {len(series)}: {found}. Put each in a folder of its own."
        )
    for name, term in SAME.items():
        first = getattr(slices[0], name)
        for item in slices[1:]:
            value = getattr(item, name)
            if not np.allclose(value, first, rtol=0, atol=1e-4):
                raise InputError(
                    f"{item.path}: expected {term} {list(first)} as {slices[0].path.name} has, found {list(value)}. "
                    "Keep only the files of one axial series."
                )
    if len(slices) < 2:
        raise InputError(
            f"{folder}: expected a series of slices, found one DICOM file. Give the whole series."
        )
    _, _, normal = _directions(slices[0])
    slices = sorted(slices, key=lambda item: float(np.dot(item.position, normal)))
    _check_spacing(folder, slices, normal)
    return slices


def _directions(item):
    """Unit vectors in LPS: along a row, down a column, and their normal."""
    along, down = np.reshape(item.orientation, (2, 3))
    if not np.allclose([along @ along, down @ down, along @ down], [1, 1, 0], atol=1e-2):
        raise InputError(
            f"{item.path}: expected two perpendicular directions of length 1, found "
            f"ImageOrientationPatient {list(item.orientation)}. Export the series again."
        )
    return along, down, np.cross(along, down)


def _check_spacing(folder, slices, normal):
    positions = np.array([item.position for item in slices])
    depth = positions @ normal
    gaps = np.diff(depth)
    same = np.flatnonzero(gaps < POSITION_MM / 10)
    if len(same):
        names = f"{slices[same[0]].path.name} and {slices[same[0] + 1].path.name}"
        raise InputError(
            f"{folder}: expected one slice at a position, found {len(same)} more, such as {names} at "
            f"{depth[same[0]]:.2f} mm. Keep the files of one phase and one reconstruction, each once."
        )
    gap = float(np.median(gaps))
    odd = np.flatnonzero(np.abs(gaps - gap) > POSITION_MM)
    if len(odd):
        missing = sum(max(0, round(gaps[i] / gap) - 1) for i in odd)
        what = f"about {missing} missing" if missing else "unevenly spaced"
        i = odd[0]
        raise InputError(
            f"{folder}: expected a slice every {gap:.3f} mm, found {gaps[i]:.3f} mm between {slices[i].path.name} and "
            f"{slices[i + 1].path.name}: slices are {what}. Export the whole series."
        )
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    tilt = np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1)))
    if tilt > TILT_DEGREES:
        raise InputError(
            f"{folder}: expected slices one straight above the other, found them shifted by a gantry tilt of "
            f"{tilt:.1f} degrees. Convert the series to an untilted NIfTI first, for example with dcm2niix."
        )
    off = np.linalg.norm(positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1)
    if off.max() > 3 * POSITION_MM:
        path = slices[int(off.argmax())].path
        raise InputError(
            f"{path}: expected slices along a straight line, found this one {off.max():.2f} mm beside it. "
            "Keep the files of one axial series."
        )


def series_header(slices):
    """Header of a NIfTI file of axes (columns, rows, slices) for the slices of a series in order."""
    first, last = slices[0], slices[-1]
    along, down, _ = _directions(first)
    between_rows, between_columns = first.spacing_mm
    step = (np.array(last.position) - first.position) / (len(slices) - 1)
    affine = np.eye(4)
    affine[:3] = np.stack([along * between_columns, down * between_rows, step, first.position], axis=1)
    affine[:2] *= -1  # LPS to RAS
    header = nib.Nifti1Header()
    header.set_data_shape((first.shape[1], first.shape[0], len(slices)))
    header.set_data_dtype(np.int16)
    header.set_qform(affine, code="scanner")
    header.set_sform(affine, code="scanner")
    header.set_xyzt_units("mm")
    return header
