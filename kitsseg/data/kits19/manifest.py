"""The manifest of the 300 cases of KiTS19: ``data_manifest.csv``, shipped with the package.

Each case has one row. A row of the 210 training cases holds the grid, the voxels and slices of each class, size and
SHA-256 of the label file as the official repository holds it today and of the imaging file as it was released in 2019
(its host has changed since, so another imaging hash is no error), the part of every named split, and the known
problems of the labels. The labels of the 90 test cases are not public: their fields are empty.

Sources: the label files of https://github.com/neheller/kits19 (CC BY-NC-SA 4.0), counted and hashed by
``scripts/make_manifest.py``; the known problems from ``make_manifest``, which lists them with the source of each.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from kitsseg.errors import InputError
from kitsseg.files.tables import read_rows, write_rows

__all__ = ["ManifestCase", "read_manifest", "write_manifest"]

# attribute of ManifestCase: (columns, how to read one)
_COLUMNS = {
    "shape": (("slices", "rows", "columns"), int),
    "spacing_mm": (("spacing_mm_slices", "spacing_mm_rows", "spacing_mm_columns"), float),
    "voxels": (("background_voxels", "kidney_voxels", "tumor_voxels"), int),
    "class_slices": (("kidney_slices", "tumor_slices", "kidney_or_tumor_slices"), int),
    "label_bytes": (("label_bytes",), int),
    "label_sha256": (("label_sha256",), str),
    "image_bytes_2019": (("image_bytes_2019",), int),
    "image_sha256_2019": (("image_sha256_2019",), str),
}
_SPLIT = "split_"


@dataclass(frozen=True, kw_only=True)
class ManifestCase:
    """One row. A value that is not known, or not public, is None.

    Attributes:
        case: such as ``case_00000``.
        shape: (slices, rows, columns).
        spacing_mm: along the same axes, to seven digits.
        voxels: (background, kidney, tumor); their sum is the number of voxels.
        class_slices: slices that hold (kidney, tumor, any of the two).
        label_bytes, label_sha256: of ``segmentation.nii.gz`` as released today.
        image_bytes_2019, image_sha256_2019: of ``imaging.nii.gz`` as released in 2019.
        splits: name of a split -> train, validation or test; a split without this case is left out.
        flags: words for known problems, such as ``relabeled-2019-12-20``; empty for most cases.
        remark: the flags' reasons in a sentence.
    """

    case: str
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    voxels: tuple[int, int, int] | None = None
    class_slices: tuple[int, int, int] | None = None
    label_bytes: int | None = None
    label_sha256: str | None = None
    image_bytes_2019: int | None = None
    image_sha256_2019: str | None = None
    splits: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    remark: str = ""


def read_manifest(path: str | os.PathLike[str] | None = None) -> dict[str, ManifestCase]:
    """The manifest, by case, in order.

    Args:
        path: of another file in the same format; the package's own without it.

    Returns: dict of case name -> ManifestCase.
    Raises: InputError if the file is no manifest.
    """
    source = resources.files("kitsseg") / "data_manifest.csv" if path is None else Path(path)
    expected = "a manifest as `kitsseg manifest` writes it"
    advice = "Write it again, or leave it out to use the one of the package."
    known = ("case", "flags", "remark", *(column for columns, _ in _COLUMNS.values() for column in columns))
    found = read_rows(source, dict.fromkeys(known, str), str, expected, advice)
    try:
        rows = [_from_row(row) for row in found]
    except ValueError as error:
        raise InputError(f"{source}: expected {expected}, found others ({error}). {advice}") from error
    cases = {row.case: row for row in rows}
    if len(cases) != len(rows) or not rows:
        raise InputError(
            f"{source}: expected one row a case, found {len(rows)} rows for {len(cases)} cases. Write it again."
        )
    return cases


def write_manifest(manifest: Mapping[str, ManifestCase], path: str | os.PathLike[str]) -> None:
    """Write cases (name -> ManifestCase) as ``read_manifest`` reads them; the file appears whole or not at all."""
    splits = sorted({name for row in manifest.values() for name in row.splits})
    columns = [column for columns, _ in _COLUMNS.values() for column in columns]
    columns = ["case", *columns, *(_SPLIT + name for name in splits), "flags", "remark"]
    write_rows(path, (_as_row(manifest[case]) for case in sorted(manifest)), columns)


def _from_row(row: Mapping[str, str]) -> ManifestCase:
    values: dict[str, Any] = {}
    for name, (columns, convert) in _COLUMNS.items():
        cells = [row[column] for column in columns]
        if not any(cells):
            values[name] = None
        else:
            read = tuple(convert(cell) for cell in cells)
            values[name] = read if len(columns) > 1 else read[0]
    splits = {
        column.removeprefix(_SPLIT): part
        for column, part in row.items()
        if column.startswith(_SPLIT) and part
    }
    return ManifestCase(
        case=row["case"], **values, splits=splits, flags=tuple(row["flags"].split()), remark=row["remark"]
    )


def _as_row(case: ManifestCase) -> dict[str, Any]:
    row = {"case": case.case, "flags": " ".join(case.flags), "remark": case.remark}
    for name, (columns, convert) in _COLUMNS.items():
        value = getattr(case, name)
        if value is not None:
            cells = value if len(columns) > 1 else (value,)
            row |= {c: f"{v:.7g}" if convert is float else v for c, v in zip(columns, cells, strict=True)}
    return row | {_SPLIT + name: part for name, part in case.splits.items()}
