"""Compute the rows of the manifest from the files of KiTS19, and list the publicly known faults of some labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kitsseg.data.formats.nifti import read_labels, says_phantom
from kitsseg.data.kits19.manifest import ManifestCase
from kitsseg.data.layouts.find import find_cases
from kitsseg.data.splits import PARTS, load_split, split_names
from kitsseg.errors import InputError
from kitsseg.files.checksums import sha256_of

if TYPE_CHECKING:
    from kitsseg.interfaces import Progress

__all__ = ["KNOWN_PROBLEMS", "label_figures", "make_manifest"]

CASES = tuple(f"case_{i:05d}" for i in range(300))

# (flag, reason, numbers of the cases). Sources: the changelog of the official repository, neheller/kits19, for what it
# corrected, with its issues 6, 8-12 and 21; the authors of nnU-Net on what they left out, in arXiv:1908.02182
# ("Cases 15 and 37 were confirmed to be faulty by the challenge organizers ... We furthermore excluded cases 23, 68,
# 125 and 133"); the organizers on case 205 in neheller/kits21 issue 58. The files of today hold all the corrections.
KNOWN_PROBLEMS = (
    ("cropped-2019-04-15", "a second contrast phase was cut from the end of the scan on 2019-04-15", (22, 61, 117)),
    ("corrected-2019-04-15", "a cyst had been taken for hydronephrosis; corrected on 2019-04-15", (155,)),
    ("corrected-2019-04-15", "hydronephrosis had been taken for a cyst; corrected on 2019-04-15", (166,)),
    ("corrected-2019-04-15", "the pelvic kidney was not labeled until 2019-04-15", (40,)),
    ("corrected-2019-04-15", "the hilum of both upper poles was corrected on 2019-04-15", (42,)),
    ("replaced-2019-04-15", "the number stood for another patient until 2019-04-15", (15, 60, 102, 174)),
    ("relabeled-2019-12-20", "a fluid collection in the spleen was taken out of the kidney on 2019-12-20", (15,)),
    ("relabeled-2019-12-20", "a large cystic lesion was made tumor on 2019-12-20", (37,)),
    ("relabeled-2019-12-20", "location and extent of the tumor were corrected on 2019-12-20", (23, 125)),
    ("replaced-by-nnunet", "the winners of 2019 trained on their own prediction instead of this label", (15, 37)),
    ("excluded-by-nnunet", "the winners of 2019 left it out, suspecting a labeling error", (23, 68, 125, 133)),
    ("lesion-in-doubt", "one lesion is cyst (kidney) here and was made tumor later, in KiTS21", (205,)),
)  # fmt: skip


def make_manifest(
    data: str | os.PathLike[str] | None = None,
    known: Mapping[str, ManifestCase] | None = None,
    images_2019: bool = False,
    progress: Progress | None = None,
) -> tuple[dict[str, ManifestCase], list[str]]:
    """Compute the 300 rows. Values of cases that the data folder does not hold are taken from ``known``.

    Args:
        data: folder in KiTS19 layout with label maps of some or all of the 210 training cases; None: none.
        known: manifest (name -> ManifestCase) to keep other figures from; None: all fields start empty.
        images_2019: the images of the folder are those released in 2019: size and hash are taken from them. Without
            it they are not looked at.
        progress: called as ``progress(description, done, total)``.

    Returns: (manifest: dict of name -> ManifestCase, names of the cases that were computed).
    Raises: InputError for a folder without label maps, a case that is none of KiTS19, a phantom, a damaged file.
    """
    rows = {case: (known or {}).get(case, ManifestCase(case=case)) for case in CASES}
    found = [] if data is None else find_cases(data, need_image=images_2019, options=())
    for case in found:
        if case.name not in rows:
            raise InputError(
                f"{case.scan.parent}: expected cases of KiTS19, case_00000 to case_00299; found another name. "
                "The manifest lists KiTS19 only."
            )
        if case.image is not None and case.image.is_file() and says_phantom(case.image):
            raise InputError(f"{case.image}: expected a case of KiTS19, found a phantom. Use the real data.")
    for done, case in enumerate(found):
        if progress:
            progress(case.name, done, len(found))
        figures = label_figures(case.truth)
        if images_2019:
            figures["image_bytes_2019"] = case.scan.stat().st_size
            figures["image_sha256_2019"] = sha256_of(case.scan)
        rows[case.name] = replace(rows[case.name], **figures)
    if progress:
        progress("done", len(found), len(found))
    parts = _parts_of_splits()
    manifest = {
        case: replace(row, splits=parts.get(case, {}), **_known_problems(int(case.removeprefix("case_"))))
        for case, row in rows.items()
    }
    return manifest, [case.name for case in found]


def label_figures(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of a ManifestCase that can be computed from a label file, as a dict.

    Raises: InputError for a damaged file or labels other than 0, 1, 2.
    """
    path = Path(path)
    volume = read_labels(path)
    voxels, class_slices = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for plane in volume.array:
        counts = np.bincount(plane.ravel(), minlength=3)
        voxels += counts
        class_slices += (counts[1] > 0, counts[2] > 0, counts[1] + counts[2] > 0)
    return {
        "shape": volume.grid.shape,
        "spacing_mm": tuple(float(f"{s:.7g}") for s in volume.grid.spacing_mm),
        "voxels": tuple(voxels.tolist()),
        "class_slices": tuple(class_slices.tolist()),
        "label_bytes": path.stat().st_size,
        "label_sha256": sha256_of(path),
    }


def _parts_of_splits() -> dict[str, dict[str, str]]:
    """Case -> {name of a split -> part}, from the splits of the package."""
    parts: dict[str, dict[str, str]] = {}
    for name in split_names():
        split = load_split(name)
        for part in PARTS:
            for case in getattr(split, part):
                parts.setdefault(case, {})[name] = part
    return parts


def _known_problems(number: int) -> dict[str, Any]:
    found = [(flag, reason) for flag, reason, cases in KNOWN_PROBLEMS if number in cases]
    return {
        "flags": tuple(flag for flag, _ in found),
        "remark": "; ".join(reason for _, reason in found),
    }
