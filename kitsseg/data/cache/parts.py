"""The cases of a part of a split, checked: no patient is in two parts, and each is identified by its voxels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping

import numpy as np

from kitsseg.data.cache.cases import CachedCase
from kitsseg.data.cache.hu_statistics import HuCounts
from kitsseg.data.splits import PARTS, CaseSplit
from kitsseg.errors import InputError

__all__ = ["cases_of_part", "patients_digest", "training_counts"]


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
