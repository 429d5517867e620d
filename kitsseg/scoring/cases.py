"""One case: a label map beside its truth -> its row of scores.csv, and what scores.json keeps about its files."""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kitsseg.data.formats.nifti import KITS_LABELS
from kitsseg.data.kits19.manifest import ManifestCase, read_manifest
from kitsseg.errors import InputError
from kitsseg.files.checksums import sha256_of
from kitsseg.files.paths import as_given
from kitsseg.scoring.dice import SCORES, VOLUMES, score_counts
from kitsseg.scoring.kits23 import HEC_LABELS, hec_dice, surface_scores
from kitsseg.scoring.label_files import count_files, read_boxes
from kitsseg.scoring.lesions import find_lesions, lesion_counts
from kitsseg.scoring.pairs import Pair

__all__ = ["CLASSES", "LESIONS", "CaseFiles", "ScoredCase", "columns_of", "label_release", "score_pair"]

CLASSES = {"kits19": ("kidney_and_mass", "tumor"), "kits23": tuple(HEC_LABELS)}
LESIONS = ("lesions", "lesions_found", "predicted_lesions", "false_lesions")


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """The files of a scored case: what ``scores.json`` keeps.

    Attributes:
        image: the CT, if it lies beside the truth.
        label_values: what the labels of the truth mean, where that is not as in KiTS19.
        lesions: of the truth, see ``find_lesions``; where surfaces and lesions were asked for.
        truth_sha256: of the truth's file.
    """

    prediction: str
    truth: str
    image: str | None
    label_values: tuple[int | None, ...] | None = None
    lesions: list[dict[str, Any]] | None = None
    truth_sha256: str | None = None


@dataclass(frozen=True)
class ScoredCase:
    """Scores of one case.

    Attributes:
        row: of scores.csv, but for the hash of the split.
        tables: counts of KiTS19 labels, int64 (slices, truth, predicted).
        files: what scores.json keeps.
    """

    row: dict[str, Any]
    tables: npt.NDArray[np.int64]
    files: CaseFiles


def columns_of(classes: str, surface: bool) -> tuple[str, ...]:
    """Columns of scores.csv, in order, for these ``classes`` ("kits19" or "kits23"), with surfaces or without."""
    more = [f"{name}_dice" for name in HEC_LABELS] if classes == "kits23" else []
    if surface:
        more += [f"{name}_surface_dice" for name in CLASSES[classes]]
        more += [f"{name}_hd95_mm" for name in CLASSES[classes]]
        more += LESIONS
    return ("case", *SCORES, *VOLUMES, *more, "empty", "label_release", "split_hash")


def score_pair(pair: Pair, classes: str, surface: bool) -> ScoredCase:
    """Score one case.

    Args:
        pair: its files.
        classes, surface: as in ``evaluate_folders``.

    Raises: InputError for files on different grids, or that are no label maps.
    """
    values, predicted_values = pair.label_values, KITS_LABELS
    if classes == "kits23":
        values = predicted_values = _values_with_cysts(pair)
    tables, spacing_mm = count_files(pair.prediction, pair.truth, values, predicted_values)
    details: dict[str, Any] = {}
    lesions = None
    if classes == "kits23":
        details = {f"{name}_dice": value for name, value in hec_dice(tables.sum(axis=0)).items()}
        tables = _cysts_as_kidney(tables)
    if surface:
        boxes = read_boxes(pair.prediction, pair.truth, values, predicted_values)
        found = find_lesions(*boxes, spacing_mm)
        details |= surface_scores(*boxes, spacing_mm, CLASSES[classes]) | lesion_counts(found)
        lesions = found["truth"]
    row = {"case": pair.case} | score_counts(tables.sum(axis=0), math.prod(spacing_mm) / 1000) | details
    row["empty"] = " ".join(row["empty"])
    row["label_release"], sha256 = label_release(pair.case, pair.truth)
    files = CaseFiles(
        prediction=str(as_given(pair.prediction)),
        truth=str(as_given(pair.truth)),
        image=str(as_given(pair.image)) if pair.image else None,
        label_values=None if values == KITS_LABELS else values,
        lesions=lesions,
        truth_sha256=sha256,
    )
    return ScoredCase(row, tables, files)


def _values_with_cysts(pair: Pair) -> tuple[int, ...]:
    """The labels of a pair's truth with cysts kept, as KiTS21 and KiTS23 number them: (0, 1, 2, 3).

    Raises: InputError where the dataset numbers them otherwise.
    """
    # as the layout says it: cysts not mentioned, or named by the dataset and refused without --cyst
    if pair.label_values not in ((0, 1, 2), (0, 1, 2, None)):
        raise InputError(
            f"{pair.truth}: --classes kits23 expects the labels 1 kidney, 2 tumor, 3 cyst and no --cyst, found "
            f"{pair.label_values}. Renumber the labels, or leave --classes out."
        )
    return (0, 1, 2, 3)


def _cysts_as_kidney(tables: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Tables of four labels (slices, truth, predicted) as KiTS19 labels the same voxels: cysts are kidney."""
    folded = tables[:, :3, :3].copy()
    folded[:, 1] += tables[:, 3, :3]
    folded[:, :, 1] += tables[:, :3, 3]
    folded[:, 1, 1] += tables[:, 3, 3]
    return folded


def label_release(case: str, path: Path) -> tuple[str, str]:
    """Which labels a case was scored against: ("kits19" or "other", SHA-256 of the file).

    "kits19" are those the official repository holds today, by the hash in the package's manifest. Labels were
    corrected after most papers: scores against others are not comparable.
    """
    found = sha256_of(path)
    known = _manifest().get(case)
    return "kits19" if known is not None and known.label_sha256 == found else "other", found


@lru_cache(maxsize=1)
def _manifest() -> dict[str, ManifestCase]:
    return read_manifest()
