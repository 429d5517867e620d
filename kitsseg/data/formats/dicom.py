"""Read a DICOM CT series with one file for each slice. Volume and grid are those that its NIfTI file would give.

``dicom_folder`` finds the files, ``dicom_order`` puts their slices in order and refuses those that do not make one
volume; this module reads headers and HU. The grid is that of a NIfTI file with the axes (columns, rows, slices), as the
common converters write it: an affine in mm and RAS+, code "scanner". Like every grid it is checked by
``kitsseg.data.formats.grid``. Peak memory is the int16 volume plus a few slices.

Needs pydicom (the extra ``dicom``).
"""

from __future__ import annotations

import os
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kitsseg.data.formats.dicom_doubts import series_doubts
from kitsseg.data.formats.dicom_file import data_set, naming, no_slice_kind, quiet_pydicom
from kitsseg.data.formats.dicom_folder import files_of_folder, files_of_series
from kitsseg.data.formats.dicom_order import (
    MADE,
    MARKS,
    NAMES,
    ONE,
    TIMES,
    Slice,
    Stated,
    in_order,
    series_header,
)
from kitsseg.data.formats.grid import Grid, Volume, grid_of
from kitsseg.errors import InputError, one_line

__all__ = ["read_series", "read_series_grid", "slice_files"]

COUNTS = ("ImagesInAcquisition", "NumberOfSeriesRelatedInstances")  # of images in the whole
NEEDED: tuple[str, ...] = (
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
)
NEEDED += ("SeriesInstanceUID", "RescaleSlope", "RescaleIntercept")


def read_series(folder: str | os.PathLike[str], series: str | None = None) -> Volume:
    """Read the CT series of a folder in HU.

    Args:
        folder: holds the files of one series, whatever their names, with or without the 128 bytes in front of
            "DICM". Beside them DICOMDIR, and files of other well-known types, are left alone.
        series: SeriesInstanceUID of one of several; its files may then lie in folders below as well.

    Returns: Volume with int16 ``array`` (slices, rows, columns) in KiTS axes; its grid's header has the series' affine,
        and its ``doubts`` are those of ``series_doubts``.
    Raises: InputError for what is not one whole CT series of parallel, evenly spaced slices, for a file that may be a
        slice and cannot be read, and if pydicom is missing.
    """
    folder = Path(folder)
    with quiet_pydicom():
        slices = _ordered(folder, series)
        grid = grid_of(series_header(slices), folder)
        array = np.empty(grid.shape, np.int16)
        target = grid.file_view(array)
        for k, item in enumerate(slices):
            target[:, :, k] = _hu(item).T
    return Volume(folder, array, grid, series_doubts(slices))


def read_series_grid(folder: str | os.PathLike[str], series: str | None = None) -> Grid:
    """The grid of a series, from the headers of its files alone.

    Raises: InputError as ``read_series``, except for damage in the pixels.
    """
    with quiet_pydicom():
        return grid_of(series_header(_ordered(Path(folder), series)), folder)


def slice_files(folder: Path, series: str | None = None) -> list[Path]:
    """The files of a series in the order of its slices along their normal, from its headers alone.

    Args:
        folder: as in ``read_series``. series: the SeriesInstanceUID of one series of several.

    Raises: InputError as ``read_series``.
    """
    with quiet_pydicom():
        return [item.path for item in _ordered(Path(folder), series)]


def _ordered(folder: Path, series: str | None) -> list[Slice]:
    files = files_of_folder(folder) if series is None else files_of_series(folder, series)
    return in_order(folder, [_slice(path) for path in files])


def _slice(path: Path) -> Slice:
    """The Slice of one file, without its pixels."""
    with naming(path):
        dataset = data_set(path, stop_before_pixels=True)
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
            rounding_mm=tuple(map(_half_a_digit, dataset.ImagePositionPatient)),
            number=None if dataset.get("InstanceNumber") is None else int(dataset.InstanceNumber),
            marks={
                name: str(dataset[name].value) for name in (*ONE, *NAMES, *MARKS) if _stated(dataset, name)
            },
            times_s=_times_s(dataset),
            stated=Stated(
                images=_images_stated(dataset),
                distance_mm=_number_stated(dataset, "SpacingBetweenSlices"),
                location_mm=_number_stated(dataset, "SliceLocation"),
            ),
        )


def _stated(dataset: Any, name: str) -> bool:
    return name in dataset and not dataset[name].is_empty


def _half_a_digit(value: Any) -> float:
    """Half a unit of a decimal string's last digit that is not 0, because some software writes 2.0 for 2."""
    exponent = Decimal(str(value)).normalize().as_tuple().exponent
    return 0.5 * 10.0 ** min(int(exponent), 0)


def _number_stated(dataset: Any, name: str) -> tuple[float, float] | None:
    """A number and half a unit of its last digit; what is no number says nothing."""
    with suppress(TypeError, ValueError, ArithmeticError):
        if _stated(dataset, name) and np.isfinite(value := float(dataset[name].value)):
            return value, _half_a_digit(dataset[name].value)
    return None


def _times_s(dataset: Any) -> dict[str, float]:
    """When a slice was taken and made, by name; what is no time says nothing."""
    found = {name: _seconds(dataset[name].value) for name in (*TIMES, MADE) if _stated(dataset, name)}
    return {name: seconds for name, seconds in found.items() if seconds is not None}


def _seconds(moment: Any) -> float | None:
    """Of a TM (HHMMSS.ffffff) or DT (YYYYMMDDHHMMSS.ffffff&ZZXX) value, within its day or month; None of another."""
    text = str(moment).replace(":", "")  # of the standard before DICOM
    digits, _, fraction = text.partition("+")[0].partition("-")[0].partition(".")
    if not f"{digits}{fraction}".isdecimal():
        return None
    days, clock = (int(digits[6:8] or 0), digits[8:]) if len(digits) > 6 else (0, digits)
    hours, minutes, seconds = (int(clock[i : i + 2] or 0) for i in (0, 2, 4))
    return float(86400 * days + 3600 * hours + 60 * minutes + seconds) + float(f"0.{fraction or 0}")


def _images_stated(dataset: Any) -> int | None:
    """How many images the acquisition or the series has; what is no number says nothing."""
    for name in COUNTS:
        with suppress(TypeError, ValueError):
            if _stated(dataset, name):
                return int(dataset[name].value)
    return None


def _check_ct(path: Path, dataset: Any) -> None:
    modality = dataset.get("Modality")
    if not modality:
        raise InputError(
            f"{path}: expected a CT slice, found a header without Modality: the file is cut off, or no image. "
            "Copy or export it again, or remove it from the folder."
        )
    if modality != "CT":
        raise InputError(
            f"{path}: expected a CT slice, found modality {modality}. Give the folder of a CT series."
        )
    if kind := no_slice_kind(dataset):
        raise InputError(
            f"{path}: expected a CT slice in HU, found a {kind} (ImageType "
            f"{_joined(dataset.ImageType)}). Remove it from the folder, or give the series it was made from."
        )
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


def _joined(value: Any) -> str:
    return value if isinstance(value, str) else "/".join(map(str, value))


def _numbers(dataset: Any, name: str, count: int) -> tuple[float, ...]:
    values = np.atleast_1d(np.array(dataset[name].value, float))
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ValueError(f"{name} is {values.tolist()}")
    return tuple(values.tolist())


def _positive(spacing_mm: tuple[float, ...]) -> tuple[float, ...]:
    if min(spacing_mm) <= 0:
        raise ValueError(f"PixelSpacing is {list(spacing_mm)}")
    return spacing_mm


def _hu(item: Slice) -> npt.NDArray[np.int16]:
    """(rows, columns) int16."""
    with naming(item.path):
        dataset = data_set(item.path)
        syntax = _syntax(item.path, dataset)
        try:
            stored = dataset.pixel_array
        except (RuntimeError, NotImplementedError, ValueError, AttributeError) as error:
            if not syntax.is_compressed:
                raise
            raise InputError(
                f"{item.path}: its compression ({syntax.name}) cannot be read ({one_line(error)}). "
                "Run: pip install python-gdcm, or export the series uncompressed."
            ) from error
    if stored.shape != item.shape:
        raise InputError(f"{item.path}: expected {item.shape} gray values, found {stored.shape}.")
    if not item.slope:
        raise InputError(f"{item.path}: expected a rescaling to HU, found slope 0. Export the series again.")
    hu: npt.NDArray[np.int16] = np.clip(np.rint(stored * item.slope + item.intercept), -32768, 32767).astype(
        np.int16
    )
    return hu


def _syntax(path: Path, dataset: Any) -> Any:
    """How the pixels are encoded. A file without the head "DICM" does not name its encoding; pydicom has guessed it."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    meta = dataset.file_meta
    if "TransferSyntaxUID" not in meta:
        implicit, little = dataset.original_encoding
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise InputError(
                f"{path}: expected pixels with a named compression, found compressed pixels of an unknown "
                "kind, because the head of the file is missing. Export the series again."
            )
        plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else plain
    return meta.TransferSyntaxUID
