"""Checksums of files and arrays: SHA-256 identifies a file, CRC-32 tells whether it has changed since it was written.

CRC-32 runs at the speed of memory where isal is installed.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from isal.isal_zlib import crc32
except ImportError:  # optional; the same numbers, ten times slower
    from zlib import crc32

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["crc32", "crc32_of", "crc32_of_planes", "sha256_of", "sha256_of_all"]

BLOCK = 1 << 20


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises: OSError if it cannot be read.
    """
    with Path(path).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sha256_of_all(path: str | os.PathLike[str]) -> str:
    """SHA-256 over the SHA-256 of each file of a folder, in the order of their paths, or of a single file."""
    path = Path(path)
    files = sorted(inner for inner in path.rglob("*") if inner.is_file()) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(bytes.fromhex(sha256_of(file)) for file in files)).hexdigest()


def crc32_of(path: str | os.PathLike[str]) -> str:
    """CRC-32 of a file, as eight hexadecimal digits.

    Raises: OSError if it cannot be read.
    """
    value = 0
    with Path(path).open("rb") as file:
        while block := file.read(BLOCK):
            value = crc32(block, value)
    return f"{value:08x}"


def crc32_of_planes(array: npt.NDArray[Any]) -> list[int]:
    """CRC-32 of each plane ``array[k]`` of a C-ordered array, as a list."""
    return [crc32(plane.data) for plane in array]
