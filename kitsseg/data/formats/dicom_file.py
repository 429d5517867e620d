"""Open one DICOM file: whether it is one, its data set within a bound of memory, and its damage in one line.

Needs pydicom (the extra ``dicom``), except for ``is_dicom``.
"""

from __future__ import annotations

import logging
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from kitsseg.errors import InputError, one_line

__all__ = [
    "MOST_INFLATED",
    "check_pydicom",
    "data_set",
    "is_dicom",
    "naming",
    "no_slice_kind",
    "quiet_pydicom",
]

MOST_INFLATED = 1 << 28  # bytes of a slice with its header: 11,000 x 11,000 pixels
# Words of ImageType that say that an image of a CT scanner is no slice in HU, and what it is instead. A word is what
# stands between signs: CT_SOM5 MIP, MAX_IP and PROJECTION IMAGE are two or three words. Slices that were computed anew
# from slices (MPR, AVERAGE) and monoenergetic or virtual non-contrast images (VMI, MAT_REMOVED) are in HU.
_KINDS = {
    "localizer image": ({"LOCALIZER"},),
    "projection image": ({"MIP"}, {"MINIP"}, {"MAX", "IP"}, {"MIN", "IP"}, {"PROJECTION"}),
    "screen picture": (
        {"SCREEN"},
        {"SCREENSAVE"},
        {"VRT"},
        {"SSD"},
        {"VOLUME", "RENDER"},
    ),
    "material map": (
        {"IODINE"},
        {"MATERIAL"},
        {"MAT", "SPECIFIC"},
        {"MAT", "FRACTIONAL"},
        {"MAT", "VALUE"},
        {"ELECTRON", "DENSITY"},
        {"EFF", "ATOMIC"},
        {"ZEFF"},
    ),
    "perfusion map": ({"CBF"}, {"CBV"}, {"MTT"}, {"TTP"}),
}
_DEFLATED = b"1.2.840.10008.1.2.1.99"


def is_dicom(path: Path) -> bool:
    """Whether a file begins like a DICOM file of a scan; DICOMDIR does not count."""
    if path.name.upper() == "DICOMDIR":
        return False
    with path.open("rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" or _starts_with_an_element(start)


def _starts_with_an_element(start: bytes) -> bool:
    """Whether a file begins with the first element of a DICOM header: one without the 128 bytes and "DICM"."""
    if len(start) < 132:
        return False
    for order in ("little", "big"):
        group, element = int.from_bytes(start[:2], order), int.from_bytes(start[2:4], order)
        length = int.from_bytes(start[4:8], order)  # where the type of value is not written
        if (
            group in (2, 8)
            and element <= 0x20
            and (start[4:6] in (b"UL", b"OB", b"CS", b"UI") or length <= 0x400)
        ):
            return True
    return False


def no_slice_kind(dataset: Any) -> str | None:
    """What an image is, by its ImageType, if it is no slice in HU, such as "localizer image"; None if it may be one."""
    value = dataset.get("ImageType") or ()
    for text in (value,) if isinstance(value, str) else value:
        words = set(re.split(r"[^A-Z0-9]+", str(text).upper()))
        if "REMOVED" in words:  # a material that was taken out leaves HU
            continue
        for kind, marks in _KINDS.items():
            if any(mark <= words for mark in marks):
                return kind
    return None


def data_set(path: Path, **options: Any) -> Any:
    """The data set of a file, with or without the head "DICM"; ``options`` are those of ``pydicom.dcmread``."""
    _check_inflated(path)
    return check_pydicom(path).dcmread(path, force=True, **options)


def _check_inflated(path: Path) -> None:
    """Refuse a deflated data set that becomes far larger than a slice.

    pydicom inflates all of it at once, even where only the header is wanted.

    Raises: InputError if it becomes more than ``MOST_INFLATED`` bytes.
    """
    with path.open("rb") as file:
        start = file.read(1 << 16)
        if start[128:132] != b"DICM" or _DEFLATED not in start:
            return
        file.seek(_end_of_head(start))
        inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while size <= MOST_INFLATED and not inflater.eof and (packed := file.read(1 << 16)):
            while packed and size <= MOST_INFLATED:
                size += len(inflater.decompress(packed, 1 << 20))
                packed = inflater.unconsumed_tail
    if size > MOST_INFLATED:
        raise InputError(
            f"{path}: expected a slice, found a compressed data set of more than {MOST_INFLATED:,} bytes. Export the "
            "series again, uncompressed."
        )


def _end_of_head(start: bytes) -> int:
    """Where the elements of group 2 end, one by one as pydicom reads them; the length that they state may be wrong."""
    at = 132
    while start[at : at + 2] == b"\x02\0":
        if start[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
            at += 12 + int.from_bytes(start[at + 8 : at + 12], "little")
        else:
            at += 8 + int.from_bytes(start[at + 6 : at + 8], "little")
    return at


def check_pydicom(path: Path) -> ModuleType:
    """The module pydicom, which opens ``path``.

    Raises: InputError that names ``path`` if pydicom is missing.
    """
    try:
        import pydicom
    except ImportError as error:
        raise InputError(
            f"{path}: reading DICOM needs pydicom, found none. Run: pip install pydicom"
        ) from error
    return pydicom


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence pydicom, which warns of every value that is written a little wrong and logs the errors that it raises."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """In this block each of the many errors of pydicom becomes an InputError that names the file."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except OSError as error:
        if error.errno:  # of the disk, not of the contents
            raise
        raise InputError(f"{path}: damaged DICOM ({one_line(error)}). Copy or export it again.") from error
    except Exception as error:
        raise InputError(f"{path}: damaged DICOM ({one_line(error)}). Copy or export it again.") from error
