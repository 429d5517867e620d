"""DICOM in: one CT series, a file a slice, as the volume and the grid that its NIfTI file would give.

Slices are put in order by their position along their normal, never by name or instance number. What would give a
wrong volume without a word is refused: several series or phases in one folder, a missing slice, a tilted gantry,
slices that are not parallel. The grid is that of a NIfTI file with axes (columns, rows, slices), as the common
converters write it: affine in mm and RAS+, code "scanner". Peak memory is the int16 volume plus a few slices.

Needs pydicom (the extra ``dicom``).
"""

import logging
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kitsseg.data.formats.dicom_order import Slice, in_order, series_header
from kitsseg.data.formats.grid import Volume, grid_of
from kitsseg.errors import InputError

__all__ = ["is_series", "read_series"]

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
