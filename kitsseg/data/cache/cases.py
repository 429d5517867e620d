"""Preprocessed cases on disk: memory-mapped arrays, and a record for sampling and for undoing the preprocessing.

    CACHE/preprocess-<digest>/spec.json                the specification, whose digest names the folder
    CACHE/preprocess-<digest>/case_00000/image.npy     int16 HU, (slices, rows, columns), C order; or, for
                                                       recipes of several channels, uint8 with a last axis
                                         labels.npy    uint8, only the box that holds kidney or tumor
                                         case.json     geometry, label box, foreground area of each slice, sources,
                                                       how many foreground voxels have each HU, checksums

A compressed cache has image.blosc2 and labels.blosc2 instead of the two ``.npy``. HU stay as they are: clipping and
scaling cost microseconds a crop. A case folder appears whole or not at all. A case that is damaged, or that another
specification or another version of ``case_file`` made, is refused; it is never made anew without a word. Checksums
cover ``case.json``, the labels and all compressed arrays. ``image.npy`` is read in place and has no checksum.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kitsseg.data.cache.case_file import check_specification, read_case
from kitsseg.data.cache.compressed import Chunks, CompressedArray
from kitsseg.data.cache.hu_statistics import HuCounts
from kitsseg.data.cache.mapped import NO_DAMAGE, MappedFile
from kitsseg.data.geometry.geometry import Geometry
from kitsseg.errors import InputError
from kitsseg.files.arrays import mapped_array
from kitsseg.files.checksums import crc32_of_planes
from kitsseg.recipe import PreprocessSpec

__all__ = ["CachedCase", "cache_folder", "open_cache", "open_case"]


@dataclass(frozen=True)
class CachedCase:
    """One preprocessed case.

    Attributes:
        kidney_area, tumor_area: pixels of each label in each slice.
        phantom: whether the scan was synthesized.
        hu_counts: HuCounts of the scan's foreground voxels, before any resampling.
        labels_crc32: CRC-32 of each slice of the label box.
        chunks: (Chunks of the image, Chunks of the labels) of a compressed case.
        slices: names of the single images in the stack of this patient, which need not be neighbors; empty for a scan.
    """

    name: str
    folder: Path
    geometry: Geometry
    label_start: tuple[int, ...]
    kidney_area: npt.NDArray[np.int64]
    tumor_area: npt.NDArray[np.int64]
    phantom: bool
    channels: int
    label_shape: tuple[int, ...] | None = None
    hu_counts: HuCounts | None = None
    labels_crc32: list[int] | None = None
    chunks: tuple[Chunks, Chunks] | None = None
    slices: tuple[str, ...] = ()

    @property
    def image(self) -> npt.NDArray[Any] | CompressedArray:
        """int16 HU (slices, rows, columns), or uint8 with a last axis of channels.

        A memory-mapped ``numpy.ndarray``, or a CompressedArray. Index it (``image[k, 10:40]``); ``numpy.asarray`` reads
        all of a compressed array. Use ``case.image`` each time instead of keeping the array: a file can only be
        unmapped, when many others are needed, while nothing refers to its array.
        """
        return self._image if isinstance(self._image, CompressedArray) else self._image()

    @property
    def boxed_labels(self) -> npt.NDArray[np.uint8] | CompressedArray:
        """uint8 labels of the box that starts at ``label_start``; all other voxels are background. See ``image``."""
        return self._labels if isinstance(self._labels, CompressedArray) else self._labels()

    @cached_property
    def _image(self) -> MappedFile | CompressedArray:
        shape = self.geometry.shape
        dtype, shape = (np.int16, shape) if self.channels == 1 else (np.uint8, (*shape, self.channels))
        if self.chunks:
            return CompressedArray(self.folder / "image.blosc2", dtype, shape, self.chunks[0])
        return MappedFile(partial(_load, self.folder / "image.npy", dtype, shape))

    @cached_property
    def _labels(self) -> MappedFile | CompressedArray:
        if self.chunks and self.label_shape is not None:
            return CompressedArray(self.folder / "labels.blosc2", np.uint8, self.label_shape, self.chunks[1])
        path = self.folder / "labels.npy"
        return MappedFile(partial(_load, path, np.uint8, self.label_shape, self.labels_crc32))

    def labels(
        self, k: int, rows: slice = slice(None), columns: slice = slice(None)
    ) -> npt.NDArray[np.uint8]:
        """Labels of a slice, or of a window of it: uint8 (rows, columns).

        Args:
            k: number of the slice, from 0.
            rows, columns: the window, as Python slices with non-negative bounds.
        """
        _, height, width = self.geometry.shape
        y0, y1, _ = rows.indices(height)
        x0, x1, _ = columns.indices(width)
        window = np.zeros((max(y1 - y0, 0), max(x1 - x0, 0)), np.uint8)
        z, top, left = self.label_start
        box = self.boxed_labels
        if z <= k < z + box.shape[0]:
            a, b = max(y0, top), min(y1, top + box.shape[1])
            c, d = max(x0, left), min(x1, left + box.shape[2])
            if a < b and c < d:
                window[a - y0 : b - y0, c - x0 : d - x0] = box[k - z, a - top : b - top, c - left : d - left]
        return window


def cache_folder(cache: str | os.PathLike[str], spec: PreprocessSpec) -> Path:
    """The folder inside ``cache`` that belongs to a specification."""
    return Path(cache) / f"preprocess-{spec.digest()}"


def open_cache(cache: str | os.PathLike[str], spec: PreprocessSpec) -> dict[str, CachedCase]:
    """Open the preprocessed cases of a specification.

    Args:
        cache: the folder given to ``kitsseg preprocess``, or the ``preprocess-...`` folder inside it.
        spec: PreprocessSpec of the recipe that will use them.

    Returns: dict from case name to CachedCase, sorted by name.
    Raises: InputError if there is no such cache, if it was made by another specification, or is incomplete.
    """
    cache = Path(cache)
    folder = cache if (cache / "spec.json").is_file() else cache_folder(cache, spec)
    if not (folder / "spec.json").is_file():
        others = (
            sorted(path.parent.name for path in cache.glob("preprocess-*/spec.json"))
            if cache.is_dir()
            else []
        )
        found = f"caches of other recipes: {', '.join(others)}" if others else "none"
        raise InputError(
            f"{cache}: expected the cache {folder.name}, found {found}. Run kitsseg preprocess "
            "first, with the recipe that you train or use now; caches of several recipes lie side by side."
        )
    check_specification(folder, spec)
    cases = {path.parent.name: open_case(path.parent) for path in sorted(folder.glob("[!.]*/case.json"))}
    if not cases:
        raise InputError(f"{folder}: expected preprocessed cases, found none. Run kitsseg preprocess again.")
    return cases


def open_case(folder: Path) -> CachedCase:
    """One case of a cache. Raises: InputError if its record is damaged."""
    case = read_case(folder)
    return CachedCase(
        folder.name,
        folder,
        case.geometry,
        case.label_start,
        np.array(case.kidney_area, np.int64),
        np.array(case.tumor_area, np.int64),
        case.phantom,
        case.channels,
        case.label_shape,
        HuCounts(case.hu_counts.first, np.array(case.hu_counts.counts, np.int64)),
        case.labels_crc32,
        case.chunks,
        case.slices,
    )


def _load(
    path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...] | None, crc32: list[int] | None = None
) -> np.memmap[Any, Any]:
    try:
        array = mapped_array(path)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in NO_DAMAGE:
            raise
        raise _damaged(path, error) from error
    if array.dtype != dtype or (shape is not None and array.shape != shape) or not array.flags.c_contiguous:
        raise InputError(
            f"{path}: expected {np.dtype(dtype)} of shape {shape}, found {array.dtype} {array.shape}. "
            "Remove its folder and run kitsseg preprocess again."
        )
    if crc32 is not None and crc32_of_planes(array.view(np.ndarray)) != crc32:
        raise _damaged(path, "a checksum is wrong")
    mapped: np.memmap[Any, Any] = array
    return mapped


def _damaged(path: Path, reason: object) -> InputError:
    return InputError(f"{path}: missing or damaged ({reason}). Remove its folder and preprocess again.")
