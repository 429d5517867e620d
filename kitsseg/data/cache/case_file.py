"""The records of a cache and of its cases, ``spec.json`` and ``case.json``: written, read, and refused if changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitsseg.data.cache.case_sources import CaseSources
from kitsseg.data.cache.compressed import Chunks
from kitsseg.data.cache.mapped import check_open_files
from kitsseg.data.geometry.geometry import Geometry
from kitsseg.errors import InputError
from kitsseg.files.json_records import as_builtins, converted, read_object, read_record, write_record
from kitsseg.recipe import PreprocessSpec

__all__ = [
    "CACHE_VERSION",
    "CacheSpecification",
    "CaseFile",
    "StoredCounts",
    "check_specification",
    "read_case",
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
