"""Preprocessed cases on disk: memory-mapped arrays, and a record for sampling and for undoing the preprocessing.

    CACHE/preprocess-<digest>/spec.json                the specification, whose digest names the folder
    CACHE/preprocess-<digest>/case_00000/image.npy     int16 HU, (slices, rows, columns), C order; or, for
                                                       recipes of several channels, uint8 with a last axis
                                         labels.npy    uint8, only the box that holds kidney or tumor
                                         case.json     geometry, label box, foreground area of each slice, sources,
                                                       how many foreground voxels have each HU, checksums

A compressed cache has image.blosc2 and labels.blosc2 instead of the two ``.npy``. HU stay as they are: clipping and
scaling cost microseconds a crop. A case folder appears whole or not at all. A case that is damaged, or that another
specification or another version of this module made, is refused; it is never made anew without a word. Checksums
cover ``case.json``, the labels and all compressed arrays. ``image.npy`` is read in place and has no checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kitsseg.data.cache.case_sources import CaseSources
from kitsseg.data.cache.compressed import Chunks, CompressedArray
from kitsseg.data.cache.hu_statistics import HuCounts
from kitsseg.data.cache.mapped import NO_DAMAGE, MappedFile, check_open_files
from kitsseg.data.geometry.geometry import Geometry
from kitsseg.data.splits import PARTS, CaseSplit
from kitsseg.errors import InputError
from kitsseg.files.arrays import mapped_array
from kitsseg.files.checksums import crc32_of_planes
from kitsseg.files.json_records import as_builtins, converted, read_object, read_record, write_record
from kitsseg.recipe import PreprocessSpec

__all__ = [
    "CACHE_VERSION",
    "CachedCase",
    "CaseFile",
    "StoredCounts",
    "cache_folder",
    "cases_of_part",
    "check_specification",
    "open_cache",
    "open_case",
    "patients_digest",
    "read_case",
    "training_counts",
    "write_case",
    "write_specification",
]

CACHE_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class CacheSpecification:
    """Content of ``spec.json``: what all cases of a cache were made with."""

    spec: PreprocessSpec
    version: int = CACHE_VERSION


@dataclass(frozen=True, kw_only=True)
class StoredCounts:
    """``HuCounts`` as a file holds them."""

    first: int
    counts: list[int]


@dataclass(frozen=True, kw_only=True)
class CaseFile:
    """Content of ``case.json``, beside a checksum of it; fields as in CachedCase.

    Attributes:
        label_values: the classes that the labels 0, 1, 2, ... of its file became (``read_labels``).
        doubts: a sentence about each thing that is doubtful about the scan.
        label_doubts: a sentence about each thing that is doubtful about its label map.
    """

    sources: CaseSources
    label_values: tuple[int | None, ...]
    geometry: Geometry
    label_start: tuple[int, ...]
    label_shape: tuple[int, ...]
    labels_crc32: list[int]
    chunks: tuple[Chunks, Chunks] | None
    kidney_area: list[int]
    tumor_area: list[int]
    hu_counts: StoredCounts
    phantom: bool
    channels: int
    doubts: tuple[str, ...] = ()
    label_doubts: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()
    version: int = CACHE_VERSION


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


def write_specification(folder: Path, spec: PreprocessSpec) -> None:
    """Write ``spec.json``, unless it is there."""
    if not (folder / "spec.json").exists():
        write_record(folder / "spec.json", CacheSpecification(spec=spec))


def check_specification(folder: Path, spec: PreprocessSpec) -> None:
    """Refuse a cache folder that another specification made, or another version of this package.

    Raises: InputError.
    """
    path, advice = folder / "spec.json", "Remove the folder and run kitsseg preprocess again."
    try:
        version = read_object(path).get("version")
    except (OSError, ValueError) as error:
        check_open_files(error)
        raise InputError(f"{path}: damaged ({error}). {advice}") from error
    if version != CACHE_VERSION and isinstance(version, int):
        raise InputError(
            f"{folder}: expected a cache of version {CACHE_VERSION}, found version {version}, which another kitsseg "
            f"made. {advice}"
        )
    made_by = read_record(path, CacheSpecification, "the specification of a cache", advice).spec
    if made_by != spec:
        raise InputError(
            f"{folder}: expected a cache of version {CACHE_VERSION} made by {spec}, found {made_by}. "
            "Use the recipe that made it, or run kitsseg preprocess with yours."
        )


def write_case(folder: Path, case: CaseFile) -> None:
    """Write ``case.json``, with the digest of its own contents."""
    record = as_builtins(case)
    (folder / "case.json").write_text(json.dumps(record | {"sha256": _digest(record)}), encoding="utf-8")


def read_case(folder: Path) -> CaseFile:
    """What ``write_case`` wrote.

    Raises: InputError if a character of it has changed.
    """
    path = folder / "case.json"
    try:
        record = read_object(path)
        if record.pop("sha256") != _digest(record):
            raise ValueError("its checksum is wrong")
        return converted(record, CaseFile)
    except (OSError, KeyError, TypeError, ValueError) as error:
        check_open_files(error)
        raise InputError(
            f"{path}: damaged ({error!r}). Remove the folder and run kitsseg preprocess again."
        ) from error


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


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


def cases_of_part(cases: Mapping[str, CachedCase], split: CaseSplit, part: str) -> list[CachedCase]:
    """The CachedCase of each case in a part of a split, after the checks that every sampler needs.

    Args:
        cases: dict from name to CachedCase (``open_cache``).
        split: CaseSplit.
        part: "train", "validation" or "test".

    Raises: TypeError if ``split`` is not a CaseSplit; ValueError for an unknown part; InputError if the part is empty,
        if one of its cases is not in ``cases``, or if a patient is in two parts, even under another name.
    """
    if not isinstance(split, CaseSplit):
        raise TypeError(
            f"a slice dataset is built from a CaseSplit, found {type(split).__name__}. See make_split."
        )
    if part not in PARTS:
        raise ValueError(f"the part of a split is one of {', '.join(PARTS)}; found {part!r}.")
    # checked again: a list given to CaseSplit can have grown since, and a subclass need not check at all
    CaseSplit(split.name, tuple(split.train), tuple(split.validation), tuple(split.test))
    _check_patients(cases, split)
    names = getattr(split, part)
    missing = [name for name in names if name not in cases]
    if missing:
        raise InputError(
            f"split {split.name}: {len(missing)} of its {len(names)} {part} cases are not in the cache, for example "
            f"{missing[0]}. Preprocess them, or use split.among(cases)."
        )
    if not names:
        raise InputError(f"split {split.name}: its {part} part is empty.")
    return [cases[name] for name in names]


def patients_digest(cases: Mapping[str, CachedCase], names: Iterable[str]) -> str:
    """Twelve hexadecimal digits that identify the patients behind these names, whatever the preprocessing.

    Two data sets may use the same names for their cases, as phantoms and KiTS19 do. No two patients have the same
    number of voxels of each HU in kidney and tumor, so these numbers tell patients apart.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        case = cases[name]
        hu = case.hu_counts or HuCounts(0, np.zeros(0, np.int64))
        first = hu.first if len(hu.counts) else 0
        digest.update(f"{name} {case.geometry.scan_shape} {first} {hu.counts.tolist()}".encode())
    return digest.hexdigest()[:12]


def _check_patients(cases: Mapping[str, CachedCase], split: CaseSplit) -> None:
    """Raise InputError if two names of a split are one patient: an alias in ``cases``, a link or a copy of a case."""
    owners: dict[tuple[object, ...], str] = {}
    for name in (name for part in PARTS for name in getattr(split, part) if name in cases):
        case = cases[name]
        keys: list[tuple[object, ...]] = [("folder", os.path.realpath(case.folder)), ("name", case.name)]
        if case.hu_counts is not None and len(case.hu_counts.counts):
            # no two patients have as many voxels of each HU in the same slices
            counts = case.hu_counts.first, case.hu_counts.counts.tobytes()
            keys.append((counts, case.kidney_area.tobytes(), case.tumor_area.tobytes()))
        for key in keys:
            if (other := owners.setdefault(key, name)) != name:
                raise InputError(
                    f"split {split.name}: {other} and {name} are the same patient ({case.folder}). Leave one of them "
                    "out; otherwise the scores may be those of patients the network has seen."
                )


def training_counts(cases: Mapping[str, CachedCase], split: CaseSplit) -> HuCounts:
    """HuCounts of all foreground voxels of the training cases; validation and test cases are not counted.

    Args:
        cases: dict from name to CachedCase (``open_cache``).
        split: CaseSplit.

    Raises: TypeError if ``split`` is not a CaseSplit; InputError if a case is missing or no case has foreground.
    """
    total = HuCounts(0, np.zeros(0, np.int64))
    for case in cases_of_part(cases, split, "train"):
        if case.hu_counts is not None:
            total += case.hu_counts
    if not total.voxels:
        raise InputError(
            f"split {split.name}: expected kidney or tumor in its {len(split.train)} training cases, found none. "
            "Look at their segmentations."
        )
    return total
