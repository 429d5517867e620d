"""Arrays compressed slice by slice: any slice can be read alone, and nothing is lost.

A file holds one Blosc2 chunk for each slice, one after the other; ``case.json`` holds the offset and the CRC-32 of each
chunk. Bytes are sorted by significance, replaced by their differences along the rows, and packed by Zstandard at level
1. LZ4 with sorted bytes alone reads twice as fast but takes a quarter more space: more than 13 GB for all of KiTS19.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from kitsseg.data.cache.mapped import NO_DAMAGE, MappedFile
from kitsseg.errors import InputError
from kitsseg.files.checksums import crc32

__all__ = ["Chunks", "CompressedArray", "require_blosc2", "write_compressed"]


@dataclass(frozen=True)
class Chunks:
    """Where the chunks of a file lie.

    Attributes:
        offsets: offset in bytes of each chunk, and of the end of the last one.
        crc32: CRC-32 of each chunk's bytes.
    """

    offsets: list[int]
    crc32: list[int]


class CompressedArray:
    """A compressed array that is indexed like a NumPy array: first the slice, then rows and columns within it.

    A chunk is checked when it is first read. Several threads may read at once.

    Args:
        path: file that ``write_compressed`` wrote; ``chunks``: what it returned.
        dtype, shape: of the array.

    Raises: InputError if the file is missing or not as long as it should be, if a chunk that is read is damaged, and
        if blosc2 is not installed.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...], chunks: Chunks) -> None:
        self._blosc2 = require_blosc2()
        self.path, self.dtype, self.shape, self.ndim = path, np.dtype(dtype), tuple(shape), len(shape)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _damaged(path, error) from error
        if size != chunks.offsets[-1] or len(chunks.offsets) != self.shape[0] + 1:
            raise _damaged(
                path, f"expected {chunks.offsets[-1]} bytes of {self.shape[0]} slices, found {size}"
            )
        self._chunks, self._checked = chunks, np.zeros(self.shape[0], bool)
        self._bytes = MappedFile(partial(_mapped, path))

    def __reduce__(self) -> tuple[type[CompressedArray], tuple[object, ...]]:
        return CompressedArray, (self.path, self.dtype, self.shape, self._chunks)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return (self._plane(k) for k in range(len(self)))

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        key = key if isinstance(key, tuple) else (key,)
        if not isinstance(key[0], slice):
            part: npt.NDArray[Any] = self._plane(range(len(self))[operator.index(key[0])])[key[1:]]
            return part
        numbers = range(len(self))[key[0]]
        if not numbers:
            return np.empty((1, *self.shape[1:]), self.dtype)[(slice(0), *key[1:])]
        first = self._plane(numbers[0])[key[1:]]
        out = np.empty((len(numbers), *first.shape), self.dtype)
        out[0] = first
        for i, k in enumerate(numbers[1:], 1):
            out[i] = self._plane(k)[key[1:]]
        return out

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self[:] if dtype is None else self[:].astype(dtype)

    def _plane(self, k: int) -> npt.NDArray[Any]:
        chunk = self._bytes()[self._chunks.offsets[k] : self._chunks.offsets[k + 1]]
        if not self._checked[k]:
            if crc32(chunk.data) != self._chunks.crc32[k]:
                raise _damaged(self.path, f"the checksum of slice {k} is wrong")
            self._checked[k] = True
        plane = np.empty(self.shape[1:], self.dtype)
        self._blosc2.decompress2(chunk, dst=plane, nthreads=1)
        return plane


def _mapped(path: Path) -> np.memmap[Any, Any]:
    try:
        return np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:  # ValueError: emptied since
        if isinstance(error, OSError) and error.errno in NO_DAMAGE:
            raise
        raise _damaged(path, error) from error


def write_compressed(path: Path, dtype: npt.DTypeLike, planes: Iterable[npt.NDArray[Any]]) -> Chunks:
    """Write planes of one shape to a file that CompressedArray reads.

    Args:
        path: of the file.
        dtype: of the planes.
        planes: arrays (rows, columns, ...) of one shape.

    Returns: Chunks, without which the file cannot be read.
    """
    blosc2, dtype = require_blosc2(), np.dtype(dtype)
    filters = [blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA]
    offsets, sums = [0], []
    with path.open("wb") as file:
        for plane in planes:
            plane = np.ascontiguousarray(plane, dtype)
            # one block a chunk: a slice is read whole, and by one thread
            chunk = blosc2.compress2(
                plane,
                codec=blosc2.Codec.ZSTD,
                clevel=1,
                filters=filters,
                filters_meta=[0, dtype.itemsize],
                typesize=dtype.itemsize,
                blocksize=plane.nbytes,
                nthreads=1,
            )
            file.write(chunk)
            offsets.append(offsets[-1] + len(chunk))
            sums.append(crc32(chunk))
    return Chunks(offsets, sums)


def require_blosc2() -> ModuleType:
    """The module blosc2.

    Raises: InputError if it is not installed.
    """
    try:
        import blosc2
    except ImportError as error:
        raise InputError(
            f"a compressed cache needs the package blosc2, which cannot be imported ({error}). "
            "Install it with: pip install blosc2"
        ) from error
    module: ModuleType = blosc2
    return module


def _damaged(path: Path, reason: object) -> InputError:
    return InputError(f"{path}: missing or damaged ({reason}). Remove its folder and preprocess again.")
