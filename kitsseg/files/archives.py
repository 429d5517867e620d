"""Whether a .keras, .npz or .pth file, each a zip archive, is whole, and no larger inside than it may be.

Their writers store arrays as they are, so that the contents of a file hardly exceed the file. An archive that promises
a multiple of its own size was not written by them, and is refused before anything of it is unpacked.
"""

import errno
import os
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

__all__ = ["check_archive", "is_whole"]

MOST_TIMES, SPARE_BYTES = 16, 64 << 20  # a zipped-up network of which most weights are zero stays below

# what changed bits in a zip file make of it
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)


def check_archive(path: str | os.PathLike[str]) -> None:
    """Compare everything in a zip file with the CRC-32 it holds; takes about as long as reading the file.

    Raises: ValueError, saying what is wrong, if it is no zip file, was cut off, if a bit that matters has changed, or
        if its contents are far larger than the file. OSError if it cannot be read.
    """
    with Path(path).open("rb") as file:
        try:
            _check(file)
        except OSError as error:  # of a place in the file that a changed number names
            if error.errno != errno.EINVAL:
                raise
            raise ValueError("its directory is damaged") from error
        except _DAMAGE as error:
            raise ValueError(str(error) or type(error).__name__) from error


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether ``check_archive`` finds nothing wrong with a file that is there."""
    try:
        check_archive(path)
    except (OSError, ValueError):
        return False
    return True


def _check(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    if size < 22:
        raise ValueError("empty" if not size else f"cut off after {size} bytes")
    file.seek(-22, os.SEEK_END)
    end = file.read()
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        # a changed length in the directory can make a reader miss entries; here they are counted
        if not (end.startswith(b"PK\5\6") and int.from_bytes(end[10:12], "little") == len(entries) > 0):
            raise ValueError("its directory is damaged")
        inside = sum(entry.file_size for entry in entries)
        if inside > MOST_TIMES * size + SPARE_BYTES:
            raise ValueError(f"it has {size:,} bytes and would unpack to {inside:,}")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} in it is wrong")
