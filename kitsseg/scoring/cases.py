"""Score one case: its row of scores.csv, and the entry about its files in scores.json."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from kitsseg.data.formats.nifti import KITS_LABELS
from kitsseg.data.kits19.manifest import read_manifest
from kitsseg.errors import InputError
from kitsseg.files.checksums import sha256_of
from kitsseg.files.paths import as_given
from kitsseg.scoring.dice import SCORES, VOLUMES, score_counts
from kitsseg.scoring.kits23 import HEC_LABELS, cysts_as_kidney, hec_dice, surface_scores
from kitsseg.scoring.label_files import count_files, read_boxes
from kitsseg.scoring.lesions import find_lesions, lesion_counts
from kitsseg.scoring.pairs import Pair

__all__ = ["CLASSES", "LESIONS", "CaseFiles", "Lesion", "ScoredCase", "columns_of", "score_pair"]

CLASSES = {"kits19": ("kidney_and_mass", "tumor"), "kits23": tuple(HEC_LABELS)}
LESIONS = ("lesions", "lesions_found", "predicted_lesions", "false_lesions")


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A tumor of the truth: its volume, and the share of it, 0 to 1, that is predicted as tumor."""

    ml: float
    share: float


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """The files of a scored case, as ``scores.json`` holds them.

    Attributes:
        image: the CT, if it lies beside the truth.
        label_values: the classes of the truth's labels, if they differ from KiTS19.
        lesions: of the truth, see ``find_lesions``; only if surfaces and lesions were asked for.
        truth_sha256: of the truth's file.
    """

    prediction: str
    truth: str
    image: str | None
    label_values: tuple[int | None, ...] | None = None
    lesions: list[Lesion] | None = None
    truth_sha256: str | None = None


@dataclass(frozen=True)
class ScoredCase:
    """Scores of one case.

    Attributes:
        row: of scores.csv, without the hash of the split.
        tables: counts of KiTS19 labels, int64 (slices, truth, predicted).
        files: the entry of scores.json.
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

    Raises: InputError for files on different grids, or files that are no label maps.
    """
    values, predicted_values = pair.label_values, KITS_LABELS
    if classes == "kits23":
        values = predicted_values = _values_with_cysts(pair)
    tables, spacing_mm = count_files(pair.prediction, pair.truth, values, predicted_values)
    hec: dict[str, float] = {}
    if classes == "kits23":
        counts, tables = tables.sum(axis=0), cysts_as_kidney(tables)
        hec = {f"{name}_dice": value for name, value in hec_dice(counts).items()}
    row = {"case": pair.case} | score_counts(tables.sum(axis=0), math.prod(spacing_mm) / 1000) | hec
    row["empty"] = " ".join(row["empty"])
    lesions = None
    if surface:
        boxes = read_boxes(pair.prediction, pair.truth, values, predicted_values)
        row |= surface_scores(*boxes, spacing_mm, CLASSES[classes])
        found = find_lesions(*boxes, spacing_mm)
        row |= lesion_counts(found)
        lesions = [Lesion(**lesion) for lesion in found["truth"]]
    sha256 = sha256_of(pair.truth)
    row["label_release"] = "kits19" if sha256 == _official_labels().get(pair.case) else "other"
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

    Raises: InputError if the dataset numbers its labels in another way.
    """
    # as the layout says it: cysts not mentioned, or named by the dataset and refused without --cyst
    if pair.label_values not in ((0, 1, 2), (0, 1, 2, None)):
        raise InputError(
            f"{pair.truth}: --classes kits23 expects the labels 1 kidney, 2 tumor, 3 cyst and no --cyst, found "
            f"{pair.label_values}. Renumber the labels, or leave --classes out."
        )
    return (0, 1, 2, 3)


@lru_cache(maxsize=1)
def _official_labels() -> dict[str, str | None]:
    """SHA-256 of the label maps that the official repository of KiTS19 holds today, by case.

    Labels were corrected after most papers: scores against others are not comparable.
    """
    return {case: entry.label_sha256 for case, entry in read_manifest().items()}
