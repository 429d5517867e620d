"""The bytes of a NIfTI file: decompress it as a stream, check its header before memory is used, name any damage.

``kitsseg.data.formats.nifti`` makes HU and labels from the bytes.
"""

import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from kitsseg.errors import InputError
from kitsseg.files.paths import check_regular

__all__ = ["DAMAGE", "damage_named", "open_stream", "read_exactly", "read_header", "read_to_end"]

try:
    from isal import igzip, isal_zlib  # 2-3 times faster inflation; optional

    _gzip_open: Callable[..., Any] = igzip.open
    _gzip_errors: tuple[type[Exception], ...] = (
        igzip.BadGzipFile,
        isal_zlib.IsalError,  # type: ignore[assignment]  # a class, whatever its stubs say
    )
except ImportError:
    _gzip_open, _gzip_errors = gzip.open, ()

DAMAGE: tuple[type[Exception], ...] = (
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    ImageFileError,
    HeaderDataError,
    *_gzip_errors,
)
MAGIC = {348: b"n+1\0", 540: b"n+2\0"}  # of a file that holds header and data, by size of its header
_FORM_CODES = 6  # 0 for a form that says nothing, 1 scanner ... 5 template
_LINE_ENDS = (b"\r\n\x1a\n", bytes(4))  # of NIfTI-2: changed by a transfer as text; some leave them empty
MOST_EXTENSION_BYTES = 64 << 20  # between header and data; extensions take some kB, or some MB of XML
MOST_LEFT = 1 << 20  # bytes behind the numbers beside as many as these take
MOST_INFLATED = 1032  # bytes that one byte of a deflated stream can stand for
_OTHER_FORMATS = (".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".img", ".img.gz", ".npy", ".npz")
_PACKED = {
    b"PK\x03\x04": "zip",
    b"\x1f\x8b": "gzip in gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
    b"(\xb5/\xfd": "zstd",
}  # how archives, and files that are packed by another program than gzip, begin


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """In this block the errors of gzip, nibabel and the file system become an InputError that names the file."""
    if path.is_dir():
        raise InputError(f"{path}: expected a NIfTI file (.nii or .nii.gz), found a folder.")
    if path.name.lower().endswith(_OTHER_FORMATS) and path.exists():
        raise InputError(
            f"{path}: expected a NIfTI file (.nii or .nii.gz), found another format. Convert it to .nii.gz first."
        )
    check_regular(path)
    try:
        yield
    except DAMAGE as error:
        raise InputError(f"{path}: damaged or not NIfTI ({error}). Download or copy it again.") from error
    except MemoryError as error:
        raise InputError(
            f"{path}: too large for the memory ({error}). Check its header, or use a larger machine."
        ) from error
    except OSError as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError) or error.errno:
            raise
        raise InputError(f"{path}: damaged or not NIfTI ({error}). Download or copy it again.") from error


def open_stream(path: Path) -> BinaryIO:
    """Open the content of a file; it is decompressed if it is gzip, whatever its name says."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return _gzip_open(path, "rb") if zipped else path.open("rb")


def read_header(stream: BinaryIO, path: Path) -> nib.Nifti1Header:
    """Read the header at the beginning of a stream. The stream then stands at the first number of the data.

    Args:
        stream: of ``open_stream``.
        path: of the file, whose length is compared with the length that the header states.

    Raises: InputError or one of ``DAMAGE`` if this is not a whole NIfTI header of a single file.
    """
    start = stream.read(4)
    if not start:
        raise EOFError("the file is empty")
    if len(start) < 4:
        raise EOFError("the file ends inside the header")
    sizes = {int.from_bytes(start, order) for order in ("little", "big")}
    if 348 in sizes:
        kind, size = nib.Nifti1Header, 348
    elif 540 in sizes:
        kind, size = nib.Nifti2Header, 540
    else:
        raise _other_format(start + stream.read(258), path)
    block = start + stream.read(size - 4)
    if len(block) < size:
        raise EOFError("the file ends inside the header")
    header: nib.Nifti1Header = kind.from_fileobj(io.BytesIO(block), check=False)
    magic = header["magic"].tobytes()
    if magic != MAGIC[size]:
        raise HeaderDataError(
            f"its type is {magic!r} instead of {MAGIC[size]!r}: no single-file NIfTI header"
        )
    if size == 540 and header["eol_check"].tobytes() not in _LINE_ENDS:
        raise HeaderDataError("its line ends were changed, as by a transfer as text")
    try:
        header.get_data_dtype()
    except KeyError as error:
        raise HeaderDataError(f"there is no data type {error}") from error
    offset = float(header["vox_offset"])
    if not abs(offset) < size + MOST_EXTENSION_BYTES:  # written so that NaN fails too
        raise HeaderDataError(f"data start {offset:g} lies outside the file")
    offset = int(offset)
    if offset < size + 4:
        raise HeaderDataError(f"data start {offset} lies inside the header")
    for name in ("sform_code", "qform_code"):
        if int(header[name]) not in range(_FORM_CODES):  # says nothing, as 0: nibabel takes it so too
            header[name] = 0
    _check_length(path, header, offset)
    _skip(stream, offset - size)
    return header


def _other_format(start: bytes, path: Path) -> InputError | HeaderDataError:
    """What is raised for a file that begins in another way than NIfTI files do."""
    if start[128:132] == b"DICM":
        return InputError(
            f"{path}: expected a NIfTI file, found one DICOM file. Give the folder of the whole series."
        )
    packed = "tar" if start[257:262] == b"ustar" else None
    packed = packed or next((name for mark, name in _PACKED.items() if start.startswith(mark)), None)
    if packed:
        return InputError(f"{path}: expected a NIfTI file, found an archive ({packed}). Unpack it first.")
    return HeaderDataError("no NIfTI header")


def _check_length(path: Path, header: nib.Nifti1Header, offset: int) -> None:
    """Refuse a file that is too short for the numbers that its header states, before memory is used."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    there = path.stat().st_size * (MOST_INFLATED if zipped else 1)
    sizes: list[int] = [int(n) for n in header.get_data_shape()]
    needed = offset + math.prod(max(0, n) for n in sizes) * int(header.get_data_dtype().itemsize)
    if needed > there:
        raise EOFError(
            f"its header tells of {needed:,} bytes, it holds {'at most ' if zipped else ''}{there:,}: "
            f"the file ends {needed - there} bytes or more too early"
        )


def _skip(stream: BinaryIO, size: int) -> None:
    while size > 0:
        piece = stream.read(min(size, 1 << 20))
        if not piece:
            raise EOFError(f"the file ends {size} bytes or more before its data")
        size -= len(piece)


def read_exactly(stream: BinaryIO, size: int) -> bytes:
    """The next ``size`` bytes. Raises: EOFError if there are fewer."""
    data = stream.read(size)  # readinto of a gzip file reads like this and then copies
    if len(data) < size:
        raise EOFError(f"the file ends {size - len(data)} bytes or more too early")
    return data


def read_to_end(stream: BinaryIO, header: nib.Nifti1Header) -> None:
    """Read what is left: the checksum of a gzip file is compared at its end.

    Raises: HeaderDataError if more is left than zeros, and it would make another plane: the header leaves some out; or
        if more zeros are left than the numbers take, which a small file can hold without end.
    """
    shape, bytes_each = header.get_data_shape(), int(header.get_data_dtype().itemsize)
    plane_bytes, most = math.prod(shape[:2]) * bytes_each, math.prod(shape) * bytes_each + MOST_LEFT
    left, empty = 0, True
    while piece := stream.read(1 << 20):
        left += len(piece)
        empty = empty and not any(piece)
        if left > most:
            raise HeaderDataError(f"more than {most:,} bytes follow the last slice that its header tells of")
    if left >= max(plane_bytes, 1) and not empty:
        raise HeaderDataError(f"{left:,} bytes follow the last slice that its header tells of")
