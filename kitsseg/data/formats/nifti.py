"""Read and write NIfTI: volumes in KiTS axes (slices, rows, columns), with the file's own grid for the way back.

A file is decompressed as a stream straight into the array that is returned, and read to its end, so that the
checksum of a ``.nii.gz`` is always verified: nibabel's lazy reader stops before it, and one flipped bit then goes
unnoticed in most files. Peak memory is the returned array, a sixteenth of it for a CT of 512 columns, and a few
blocks of 4 MiB or of eight planes, in every axis order and direction and for every data type.

Label maps are written on the grid of their scan, synthetic scans in KiTS19 layout.
"""

import math
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import numpy.typing as npt

from kitsseg.data.formats.grid import KITS_AXES, Grid, Volume
from kitsseg.data.formats.grid import grid_of as _grid
from kitsseg.data.formats.nifti_stream import (
    damage_named,
    open_stream,
    read_exactly,
    read_header,
    read_to_end,
)
from kitsseg.data.formats.plane_order import fill_planes
from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path

__all__ = [
    "KITS_AXES",
    "KITS_LABELS",
    "PHANTOM",
    "Grid",
    "LabelValues",
    "Volume",
    "is_phantom",
    "read_grid",
    "read_image",
    "read_labels",
    "says_phantom",
    "write_image",
    "write_labels",
]

# the description of every synthetic scan begins so, whichever version of the generator made it
PHANTOM_MARK = "kitsseg phantom"
# the number tells phantoms of different generators apart: a seed gives other patients when it changes. The first
# generator wrote none
PHANTOM = f"{PHANTOM_MARK} 2, no patient"
# what the labels 0, 1, 2, ... of a file become; None for one that is not allowed
LabelValues = tuple[int | None, ...]
# from stored numbers to HU or labels: called with them, the header and the path, for messages
Convert = Callable[[npt.NDArray[Any], nib.Nifti1Header, Path], npt.NDArray[Any]]
KITS_LABELS: LabelValues = (0, 1, 2)
_WORDS = ("background", "kidney", "tumor", "cyst")
FLOAT_LABEL_TOLERANCE = 1e-4
SCALED_LABEL_TOLERANCE = 0.01
_BLOCK_BYTES = 4 << 20  # stays in the cache of the processor between the steps


def read_image(path: str | os.PathLike[str], series: str | None = None) -> Volume:
    """Read a CT in HU.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file, NIfTI-1 or -2, any integer or float data type, any axis order; or the
            folder of one DICOM series (see ``kitsseg.data.formats.dicom``).
        series: the SeriesInstanceUID of the series to read, if the folder holds several.

    Returns: Volume with int16 ``array``; fractions of HU are rounded, values outside int16 saturate.
    Raises: InputError for anything that is not a whole, finite 3-D volume of at least two slices;
        FileNotFoundError.
    """
    path = Path(path)
    if path.is_dir():
        from kitsseg.data.formats.dicom import read_series

        volume = read_series(path, series)
    else:
        volume = _read(path, np.int16, _hu_from_stored)
    if all((plane == volume.array[0, 0, 0]).all() for plane in volume.array):
        raise InputError(
            f"{path}: expected a CT in HU, found the same value in every voxel, rounded to whole HU. Export the scan "
            "again as HU, without scaling."
        )
    return volume


def read_labels(path: str | os.PathLike[str], values: LabelValues = KITS_LABELS) -> Volume:
    """Read a label map: uint8 ``array``, 0 background, 1 kidney, 2 tumor.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file.
        values: the classes that the file's labels 0, 1, 2, ... become; None for a label that is not allowed. With
            (0, 1, 2, 1) label 3, the cyst of KiTS21 and KiTS23, becomes kidney.

    Raises: InputError as ``read_image``, and for labels that are not among ``values``.
    """
    path = Path(path)
    allowed = np.array([value is not None for value in values])
    table = np.array([value or 0 for value in values], np.uint8)

    def convert(stored: npt.NDArray[Any], header: nib.Nifti1Header, path: Path) -> npt.NDArray[np.uint8]:
        numbers = _scaled(stored, header)
        if numbers.dtype.kind == "f":
            numbers = _whole_numbers(numbers, header, path)
        inside = numbers <= len(values) - 1
        if numbers.dtype.kind != "u":
            inside &= numbers >= 0
        if inside.all():
            labels = numbers.astype(np.uint8)
            if allowed.all():
                return labels if values == tuple(range(len(values))) else table[labels]
            inside = allowed[labels]
            if inside.all():
                return table[labels]
        else:
            inside[inside] = allowed[numbers[inside].astype(np.uint8)]
        raise InputError(_unknown_label(path, values, numbers[~inside]))

    return _read(path, np.uint8, convert)


@np.errstate(invalid="ignore")  # of infinity, which is refused
def _whole_numbers(
    numbers: npt.NDArray[np.floating], header: nib.Nifti1Header, path: Path
) -> npt.NDArray[np.floating]:
    """Round labels that differ from whole numbers only because of how they are stored.

    An array of floats that is saved with a header of an integer type gets a slope: 0, 1 and 2 are then read as 0,
    0.9999999 and 2.0000305. The error is half of the slope at most.
    """
    slope = abs(header.get_slope_inter()[0]) if _is_scaled(header) else 0.0
    tolerance = min(max(0.51 * slope, FLOAT_LABEL_TOLERANCE), SCALED_LABEL_TOLERANCE)
    if not np.isfinite(numbers).all():
        raise InputError(
            f"{path}: labels must be integers; found NaN or infinity. Is this an image instead of a label map?"
        )
    rounded: npt.NDArray[np.floating[Any]] = np.rint(numbers)
    if not (np.abs(numbers - rounded) <= tolerance).all():
        scale = f" (scl_slope is {slope:g})" if slope else ""
        raise InputError(
            f"{path}: labels must be integers; found fractions{scale}. Is this an image instead of a label map?"
        )
    return rounded


def _unknown_label(path: Path, values: LabelValues, wrong: npt.NDArray[Any]) -> str:
    names = [f"{k} {_WORDS[value]}" for k, value in enumerate(values) if value is not None]
    hint = "Is this a KiTS19 label map?"
    if values == KITS_LABELS and (wrong == 3).all():
        hint = (
            "In KiTS21 and KiTS23 it is cyst: say what that is to be with --cyst kidney, tumor or background."
        )
    return f"{path}: labels must be {', '.join(names)}; also found {wrong[0]:g} in at least {wrong.size} voxels. {hint}"


def _hu_from_stored(stored: npt.NDArray[Any], header: nib.Nifti1Header, path: Path) -> npt.NDArray[np.int16]:
    values = _scaled(stored, header)
    hu: npt.NDArray[np.int16]
    if values.dtype == np.int16:
        return values
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise InputError(
                f"{path}: HU must be finite; found NaN or infinity. Repair or export the scan again."
            )
        values = np.rint(values)
        hu = np.clip(values, -32768, 32767, out=values).astype(np.int16)
        return hu
    if values.dtype == np.uint64:  # has no common integer type with the lower bound
        hu = np.minimum(values, 32767).astype(np.int16)
        return hu
    hu = np.clip(values, -32768, 32767).astype(np.int16)
    return hu


@np.errstate(
    over="ignore", invalid="ignore"
)  # numbers beyond float64 are found where they are no HU or labels
def _scaled(stored: npt.NDArray[Any], header: nib.Nifti1Header) -> npt.NDArray[Any]:
    """Apply the header's slope and intercept; the result is float64 unless they are 1 and 0."""
    if not _is_scaled(header):
        return stored
    slope, intercept = header.get_slope_inter()
    values = stored.astype(np.float64)
    values *= slope
    values += intercept
    return values


def _is_scaled(header: nib.Nifti1Header) -> bool:
    return header.get_slope_inter() not in ((None, None), (1.0, 0.0))


def read_grid(path: str | os.PathLike[str]) -> Grid:
    """The grid of a NIfTI file, from its header alone.

    Raises: InputError for a header that ``read_image`` refuses; FileNotFoundError.
    """
    path = Path(path)
    with damage_named(path), open_stream(path) as stream:
        return _grid(read_header(stream, path), path)


def _read(path: Path, dtype: npt.DTypeLike, convert: Convert) -> Volume:
    with damage_named(path), open_stream(path) as stream:
        header = read_header(stream, path)
        grid = _grid(header, path)
        array = _empty(grid.shape, dtype)
        _fill(grid.file_view(array), stream, header, path, convert)
        read_to_end(stream, header)
    return Volume(path, array, grid)


def _empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    try:
        return np.empty(shape, dtype)
    except ValueError as error:  # of more bytes than there are addresses
        raise MemoryError(error) from error


def _fill(
    target: npt.NDArray[Any], stream: BinaryIO, header: nib.Nifti1Header, path: Path, convert: Convert
) -> None:
    """Decode the stream, which runs along the file's first axis fastest, into ``target`` (file axes)."""
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise InputError(f"{path}: expected numbers, found data of type {dtype}. Export a grayscale volume.")
    n0, n1, _ = target.shape
    widest = n0 * n1 * (8 if _is_scaled(header) else dtype.itemsize)

    def read(count: int) -> npt.NDArray[Any]:
        raw = read_exactly(stream, count * n1 * n0 * dtype.itemsize)
        return convert(np.frombuffer(raw, dtype).reshape(count, n1, n0), header, path)

    fill_planes(target, read, max(1, _BLOCK_BYTES // widest))


def is_phantom(header: Any) -> bool:
    """Whether a scan says in its header that kitsseg synthesized it."""
    return bytes(header["descrip"].tobytes()).startswith(PHANTOM_MARK.encode())


def says_phantom(path: str | os.PathLike[str]) -> bool:
    """Whether an image's header says that kitsseg synthesized it. Damage behind the header does not matter."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(4096)
        header = zlib.decompressobj(31).decompress(start, 348) if start[:2] == b"\x1f\x8b" else start[:348]
    except (OSError, zlib.error):
        return False
    return PHANTOM_MARK.encode() in header


_WRITE_BYTES = 16 << 20


def write_labels(path: str | os.PathLike[str], labels: npt.NDArray[np.uint8], grid: Grid) -> None:
    """Write labels (slices, rows, columns) uint8 on the grid of the scan they belong to.

    The file has the scan's shape, affine, orientation and units; only data type and scaling differ.
    It appears whole or not at all.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        labels: uint8 (slices, rows, columns): 0 background, 1 kidney, 2 tumor.
        grid: Grid of the scan.

    Raises: ValueError if ``labels`` does not have the grid's shape.
    """
    if labels.shape != grid.shape:
        raise ValueError(f"{path}: labels have shape {labels.shape}, the scan's grid is {grid.shape}.")
    header = grid.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1.0, 0.0)
    header["cal_max"] = header["cal_min"] = 0
    _write(Path(path), header, grid.file_view(labels))


def write_image(
    path: str | os.PathLike[str],
    array: npt.NDArray[Any],
    spacing_mm: Sequence[float],
    description: str = "",
    made_from: str = "",
) -> None:
    """Write a volume (slices, rows, columns) in KiTS19 layout: its axes, affine and no origin.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        array: (slices, rows, columns), int16 HU or uint8 labels.
        spacing_mm: (slices, rows, columns) voxel size.
        description: at most 79 characters for the header's ``descrip``.
        made_from: at most 23 characters for the header's ``aux_file``.
    """
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = -np.asarray(spacing_mm, float)
    affine[3, 3] = 1
    header = nib.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header.set_zooms(spacing_mm)
    header.set_sform(affine, code="aligned")
    header.set_xyzt_units("mm")
    header["descrip"], header["aux_file"] = description.encode(), made_from.encode()
    header.set_slope_inter(1.0, 0.0)
    _write(Path(path), header, array)


def _write(path: Path, header: nib.Nifti1Header, view: npt.NDArray[Any]) -> None:
    """Stream ``view`` (file axes) to ``path`` plane by plane."""
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: expected a name that ends in .nii.gz or .nii.")
    size = header.sizeof_hdr
    header.set_data_offset(math.ceil((size + 4) / 16) * 16)
    n2 = view.shape[2]
    step = max(1, _WRITE_BYTES // max(view[:, :, 0].nbytes, 1))
    # zlib's own gzip container holds no name and no time: the same labels give the same bytes. Unlike GzipFile it has
    # nothing left to write, and to complain about, when a full disk has ended the writing
    packer = zlib.compressobj(3, zlib.DEFLATED, 31) if path.name.endswith(".gz") else None
    with atomic_path(path) as temporary, temporary.open("wb") as file:

        def put(data: bytes | memoryview) -> None:
            file.write(packer.compress(data) if packer else data)

        put(header.binaryblock.ljust(int(header["vox_offset"]), b"\0"))
        for start in range(0, n2, step):
            block = view[:, :, start : start + step]
            put(np.ascontiguousarray(block.transpose(2, 1, 0)).astype(header.get_data_dtype()).data)
        if packer:
            file.write(packer.flush())
