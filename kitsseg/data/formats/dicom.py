"""DICOM in: one CT series, a file a slice, as the volume and the grid that its NIfTI file would give.

Slices are put in order by their position along their normal, never by name or instance number. A folder that would
give a wrong volume without a word is refused: several series or phases, a missing slice, a tilted gantry, slices
that are not parallel. The grid is that of a NIfTI file with axes (columns, rows, slices), as the common converters
write it: affine in mm and RAS+, code "scanner". Peak memory is the int16 volume plus a few slices.

Needs pydicom (the extra ``dicom``).
"""

import logging
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from kitsseg.data.formats.grid import Volume, grid_of
from kitsseg.errors import InputError

__all__ = ["Slice", "in_order", "is_series", "read_series", "series_header"]

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


NEEDED = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")
NEEDED += ("SeriesInstanceUID", "RescaleSlope", "RescaleIntercept")


def is_series(folder):
    """Whether a folder holds DICOM files; only the first bytes of its files are looked at."""
    return any(map(_is_dicom, _files(folder)))


def read_series(folder):
    """Read the CT series of a folder in HU.

    Args:
        folder: holds the files of one series, whatever their names; other files are left alone.

    Returns: Volume with int16 ``array`` (slices, rows, columns) in KiTS axes; its grid's header has the series' affine.
    Raises: InputError for what is not one whole CT series of parallel, evenly spaced slices, or if pydicom is missing.
    """
    folder = Path(folder)
    files = [path for path in _files(folder) if _is_dicom(path)]
    if not files:
        raise InputError(
            f"{folder}: expected a NIfTI file, or a folder with the DICOM files of one series; found a folder "
            "without DICOM files."
        )
    with _quiet_pydicom():
        slices = in_order(folder, [_slice(path) for path in files])
        grid = grid_of(series_header(slices), folder)
        array = np.empty(grid.shape, np.int16)
        target = grid.file_view(array)
        for k, item in enumerate(slices):
            target[:, :, k] = _hu(item).T
    return Volume(folder, array, grid)


@contextmanager
def _quiet_pydicom():
    """pydicom warns of every value that is written a little wrong, and logs what it raises too."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


def _files(folder):
    return sorted(path for path in Path(folder).iterdir() if path.is_file() and not path.name.startswith("."))


def _is_dicom(path):
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM" and path.name.upper() != "DICOMDIR"


def _slice(path):
    """The Slice of one file, without its pixels."""
    with _naming(path):
        dataset = _pydicom(path).dcmread(path, stop_before_pixels=True)
        _check_ct(path, dataset)
        return Slice(
            path,
            str(dataset.SeriesInstanceUID),
            str(dataset.get("SeriesDescription") or "unnamed"),
            shape=(int(dataset.Rows), int(dataset.Columns)),
            spacing_mm=_positive(_numbers(dataset, "PixelSpacing", 2)),
            orientation=_numbers(dataset, "ImageOrientationPatient", 6),
            position=_numbers(dataset, "ImagePositionPatient", 3),
            slope=_numbers(dataset, "RescaleSlope", 1)[0],
            intercept=_numbers(dataset, "RescaleIntercept", 1)[0],
        )


def _check_ct(path, dataset):
    modality = dataset.get("Modality")
    if modality != "CT":
        raise InputError(
            f"{path}: expected a CT slice, found modality {modality}. Give the folder of a CT series."
        )
    if "LOCALIZER" in (dataset.get("ImageType") or ()):
        raise InputError(f"{path}: expected a CT slice, found a localizer image. Remove it from the folder.")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise InputError(
            f"{path}: expected one slice a file, found an enhanced CT of {dataset.NumberOfFrames} frames. "
            "Convert it to NIfTI first, for example with dcm2niix."
        )
    missing = [name for name in NEEDED if name not in dataset or dataset[name].is_empty]
    if missing:
        raise InputError(
            f"{path}: expected a CT slice in HU, found none of: {', '.join(missing)}. Export it again."
        )
    found = dataset.get("PhotometricInterpretation"), dataset.get("RescaleType") or "HU"
    if found[0] != "MONOCHROME2" or found[1] not in ("HU", "US"):  # US: unspecified
        raise InputError(
            f"{path}: expected gray values in HU, found {found[0]} in {found[1]}. Export the original CT series."
        )


def _numbers(dataset, name, count):
    values = np.atleast_1d(np.array(dataset[name].value, float))
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ValueError(f"{name} is {values.tolist()}")
    return tuple(values.tolist())


def _positive(spacing_mm):
    if min(spacing_mm) <= 0:
        raise ValueError(f"PixelSpacing is {list(spacing_mm)}")
    return spacing_mm


def _hu(item):
    """(rows, columns) int16."""
    with _naming(item.path):
        dataset = _pydicom(item.path).dcmread(item.path)
        syntax = dataset.file_meta.TransferSyntaxUID
        try:
            stored = dataset.pixel_array
        except (RuntimeError, NotImplementedError, ValueError, AttributeError) as error:
            if not syntax.is_compressed:
                raise
            raise InputError(
                f"{item.path}: its compression ({syntax.name}) cannot be read ({_line(error)}). "
                "Run: pip install python-gdcm, or export the series uncompressed."
            ) from error
    if stored.shape != item.shape:
        raise InputError(f"{item.path}: expected {item.shape} gray values, found {stored.shape}.")
    if not item.slope:
        raise InputError(f"{item.path}: expected a rescaling to HU, found slope 0. Export the series again.")
    return np.clip(np.rint(stored * item.slope + item.intercept), -32768, 32767).astype(np.int16)


def _pydicom(path):
    try:
        import pydicom
    except ImportError as error:
        raise InputError(
            f"{path}: reading DICOM needs pydicom, found none. Run: pip install pydicom"
        ) from error
    return pydicom


@contextmanager
def _naming(path):
    """Makes one error that names the file of the many kinds that pydicom raises."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except OSError as error:
        if error.errno:  # of the disk, not of the contents
            raise
        raise InputError(f"{path}: damaged DICOM ({_line(error)}). Copy or export it again.") from error
    except Exception as error:
        raise InputError(f"{path}: damaged DICOM ({_line(error)}). Copy or export it again.") from error


def _line(error):
    return " ".join(str(error).split())
