"""NIfTI in and out: volumes in KiTS axes (slices, rows, columns), the file's own grid kept for the way back.

A file is decompressed as a stream straight into the array that is returned, and read to its end, so that the
checksum of a ``.nii.gz`` is always verified: nibabel's lazy reader stops before it, and one flipped bit then goes
unnoticed in most files. Peak memory is the returned array plus a few planes.
"""

import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

from kitsseg.errors import InputError

try:
    from isal import igzip, isal_zlib  # 2-3 times faster inflation; optional

    _gzip_open, _gzip_errors = igzip.open, (igzip.BadGzipFile, isal_zlib.IsalError)
except ImportError:
    _gzip_open, _gzip_errors = gzip.open, ()

__all__ = ["KITS_AXES", "PHANTOM", "Grid", "Volume", "is_phantom", "read_image", "read_labels"]

PHANTOM = (
    "kitsseg phantom, no patient"  # description of every synthetic scan, so that results say what they are
)
KITS_AXES = ("I", "P", "L")  # slices run to inferior, rows to posterior, columns to left
_DAMAGE = (gzip.BadGzipFile, zlib.error, EOFError, ImageFileError, HeaderDataError, *_gzip_errors)
_BLOCK_BYTES = 16 << 20


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


def read_image(path):
    """Read a CT in HU.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file, NIfTI-1 or -2, any integer or float data type, any axis order.

    Returns: Volume with int16 ``array``; fractions of HU are rounded, values outside int16 saturate.
    Raises: InputError for anything that is not a whole, finite 3-D volume of at least two slices;
        FileNotFoundError.
    """
    path = Path(path)
    volume = _read(path, np.int16, _hu_from_stored)
    if not volume.array.any() or volume.array.min() == volume.array.max():
        raise InputError(
            f"{path}: expected a CT in HU, found the same value in every voxel. Export the scan again."
        )
    return volume


def read_labels(path, largest=2):
    """Read a label map: uint8 ``array``, 0 background, 1 kidney, 2 tumor.

    Args:
        largest: the largest label allowed (3 for KiTS21 and KiTS23 maps, where it is cyst).

    Raises: InputError as ``read_image``, and for labels that are no integers in 0..largest.
    """
    path = Path(path)

    def convert(stored, header, path):
        values = _scaled(stored, header, path)
        if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
            raise InputError(
                f"{path}: labels must be integers; found fractions. Is this an image instead of a label map?"
            )
        low, high = values.min(), values.max()
        if low < 0 or high > largest:
            wrong = low if low < 0 else high
            names = "0 background, 1 kidney, 2 tumor" + (", 3 cyst" if largest == 3 else "")
            count = int(np.count_nonzero((values < 0) | (values > largest)))
            raise InputError(
                f"{path}: labels must be {names}; also found {wrong:g} in at least {count} voxels. "
                "Is this a KiTS19 label map? (KiTS21 and KiTS23 maps have label 3, cyst: make it 1 first.)"
            )
        return values.astype(np.uint8)

    return _read(path, np.uint8, convert)


def _hu_from_stored(stored, header, path):
    values = _scaled(stored, header, path)
    if values.dtype == np.int16:
        return values
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise InputError(
                f"{path}: HU must be finite; found NaN or infinity. Repair or export the scan again."
            )
        values = np.rint(values)
    return np.clip(values, -32768, 32767).astype(np.int16)


def _scaled(stored, header, path):
    """Apply the header's slope and intercept; the result is float64 only if they say so."""
    slope, intercept = header.get_slope_inter()
    if slope in (None, 1.0) and intercept in (None, 0.0):
        return stored
    return stored.astype(np.float64) * slope + (intercept or 0.0)


def _read(path, dtype, convert):
    if path.is_dir():
        raise InputError(f"{path}: expected a NIfTI file (.nii or .nii.gz), found a folder.")
    try:
        with _open(path) as stream:
            header = _read_header(stream, path)
            grid = _grid(header, path)
            array = np.empty(grid.shape, dtype)
            _fill(grid.file_view(array), stream, header, path, convert)
            while stream.read(1 << 20):  # to the end: the checksum is checked there
                pass
    except _DAMAGE as error:
        raise InputError(f"{path}: damaged or not NIfTI ({error}). Download or copy it again.") from error
    except MemoryError as error:
        raise InputError(
            f"{path}: too large for the memory ({error}). Check its header, or use a larger machine."
        ) from error
    except OSError as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError) or error.errno:
            raise
        raise InputError(f"{path}: damaged or not NIfTI ({error}). Download or copy it again.") from error
    return Volume(path, array, grid)


def _open(path):
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return _gzip_open(path, "rb") if zipped else path.open("rb")


def _read_header(stream, path):
    start = stream.read(4)
    if len(start) < 4:
        raise EOFError("the file is empty")
    sizes = {int.from_bytes(start, order) for order in ("little", "big")}
    if 348 in sizes:
        kind, size = nib.Nifti1Header, 348
    elif 540 in sizes:
        kind, size = nib.Nifti2Header, 540
    else:
        raise HeaderDataError("no NIfTI header")
    block = start + stream.read(size - 4)
    if len(block) < size:
        raise EOFError("the file ends inside the header")
    header = kind.from_fileobj(io.BytesIO(block), check=False)
    if bytes(header["magic"])[:2] != b"n+":
        raise HeaderDataError("no single-file NIfTI header")
    try:
        header.get_data_dtype()
    except KeyError as error:
        raise HeaderDataError(f"there is no data type {error}") from error
    if not abs(float(header["vox_offset"])) < 1 << 30:  # written so that NaN fails too
        raise HeaderDataError(f"data start {header['vox_offset']} lies outside the file")
    offset = int(header["vox_offset"]) or size + 4
    if offset < size:
        raise HeaderDataError(f"data start {offset} lies inside the header")
    stream.read(offset - size)
    return header


def _grid(header, path):
    shape = header.get_data_shape()
    if len(shape) > 3 and all(n == 1 for n in shape[3:]):
        shape = shape[:3]
    if len(shape) != 3:
        raise InputError(
            f"{path}: expected one 3-D volume, found {len(shape)}-D data of shape {shape}. Split it first."
        )
    if min(shape) < 1:
        raise InputError(f"{path}: expected a 3-D volume, found no voxels (shape {shape}).")
    affine = header.get_best_affine()
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if not np.isfinite(affine).all() or not (lengths > 0).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
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


def _fill(target, stream, header, path, convert):
    """Decode the stream, which runs along the file's first axis fastest, into ``target`` (file axes)."""
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise InputError(f"{path}: expected numbers, found data of type {dtype}. Export a grayscale volume.")
    n0, n1, n2 = target.shape
    plane = n0 * n1 * dtype.itemsize
    step = max(1, min(n2, _BLOCK_BYTES // max(plane, 1)))
    for start in range(0, n2, step):
        count = min(step, n2 - start)
        raw = _read_exactly(stream, count * plane)
        stored = np.frombuffer(raw, dtype).reshape(count, n1, n0)
        block = convert(stored, header, path)
        for j in range(n1):  # row by row keeps both sides in the cache: 5 times plain transposition
            target[:, j, start : start + count] = np.ascontiguousarray(block[:, j, :]).T


def _read_exactly(stream, size):
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        count = stream.readinto(view[done:])
        if not count:
            raise EOFError(f"the file ends {size - done} bytes or more too early")
        done += count
    return data


def is_phantom(header):
    """Whether a scan says in its header that kitsseg synthesized it."""
    return bytes(header["descrip"].tobytes()).rstrip(b"\0") == PHANTOM.encode()
