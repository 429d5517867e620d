"""The content of scores.json, which summarizes all cases."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kitsseg.data.formats.nifti import is_phantom, read_grid
from kitsseg.errors import InputError
from kitsseg.files.json_records import as_builtins, converted, read_with_absolute_paths
from kitsseg.files.paths import as_given
from kitsseg.records.predictions import PREDICTIONS, has_journals, read_predictions
from kitsseg.scoring.cases import CLASSES, LESION_RULE, LESIONS, CaseFiles, ScoredCase
from kitsseg.scoring.dice import HEC_LABELS, summarize_scores
from kitsseg.scoring.ladder import RUNGS, all_background, ladder
from kitsseg.scoring.surface import TOLERANCES_MM
from kitsseg.version import __version__

__all__ = [
    "Failure",
    "Ladders",
    "LeftOut",
    "Provenance",
    "ScoredSplit",
    "Summary",
    "provenance_of",
    "recorded_by_predict",
    "summarize",
]

EMPTY_RULE = "both masks empty: 1; exactly one empty: 0"
SURFACE_RULE = (
    "surface elements weighted by area (DeepMind's surface-distance); both surfaces empty: 1, exactly one: 0"
)
HD95_RULE = "the same surface elements, 95 % of their area; not defined where a mask is empty"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A scan without a label map, and the reason."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class ScoredSplit:
    """The split of the run that predicted, and the part that was predicted."""

    name: str | None = None
    hash: str | None = None
    part: str | None = None
    cases: dict[str, list[str]] | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The origin of the scored label maps, from ``predictions.json``; all None for label maps of other tools.

    Attributes: as of ``kitsseg.records.made_by.MadeBy``.
    """

    run: str | None = None
    also: list[str] | None = None
    networks: list[dict[str, Any]] | None = None
    engine: str | None = None
    inference: dict[str, Any] | None = None
    postprocess: dict[str, Any] | None = None
    recipe: str | None = None
    paper: str | None = None
    reported: dict[str, Any] | None = None
    split: ScoredSplit | None = None
    failed: dict[str, Failure] | None = None
    phantom: bool | None = None
    version: int = 1


@dataclass(frozen=True)
class LeftOut:
    """Cases that are named beside the scores.

    Attributes:
        truth_without_prediction, prediction_without_truth: names of cases that could not be scored.
        of_other_scans: names of scored cases that were predicted from another scan than the one beside the truth.
        changed: names of scored cases whose label map has changed since ``kitsseg predict`` recorded it.
    """

    truth_without_prediction: list[str]
    prediction_without_truth: list[str]
    of_other_scans: list[str]
    changed: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean over the cases, standard deviation (None for one case), median, and bootstrap interval of the mean."""

    mean: float
    sd: float | None
    median: float
    interval_95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A Spread of each of ``kitsseg.scoring.dice.SCORES``."""

    tk_dice: Spread
    tu_dice: Spread
    composite: Spread
    kidney_label_dice: Spread
    kidney_precision: Spread
    kidney_recall: Spread
    tumor_precision: Spread
    tumor_recall: Spread


@dataclass(frozen=True, kw_only=True)
class Defined:
    """A figure that is not defined for every case: its statistics over the cases with a value, and their number."""

    mean: float | None
    sd: float | None = None
    median: float | None = None
    defined: int


@dataclass(frozen=True, kw_only=True)
class HecDice:
    """Dice of the hierarchical classes of KiTS23."""

    kidney_and_mass: Defined
    mass: Defined
    tumor: Defined


@dataclass(frozen=True, kw_only=True)
class Hec:
    """Dice of the hierarchical classes of KiTS23, and their mean."""

    dice: HecDice
    mean_dice: float


@dataclass(frozen=True, kw_only=True)
class OneSurface:
    """Surface Dice and HD95 of one class."""

    tolerance_mm: float
    surface_dice: Defined
    hd95_mm: Defined


@dataclass(frozen=True, kw_only=True)
class Surfaces:
    """Surface Dice and HD95 of each class."""

    classes: dict[str, OneSurface]
    mean_surface_dice: float
    surface_dice_rule: str
    hd95_rule: str


@dataclass(frozen=True, kw_only=True)
class Lesions:
    """Tumors of all cases: how many there are, how many were found, and how many predicted ones are false."""

    lesions: int
    lesions_found: int
    predicted_lesions: int
    false_lesions: int
    rule: str


@dataclass(frozen=True, kw_only=True)
class Ladders:
    """Every definition of ``RUNGS`` for the predictions, and for empty label maps of the same cases."""

    prediction: dict[str, float | None]
    all_background: dict[str, float | None]
    definitions: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Summary(Provenance):
    """Content of scores.json.

    Attributes:
        composite_interval_95: bootstrap interval of the mean composite.
        composite_identity: the mean of the composites and half of mean TK + mean TU: they must agree.
        empty_cases: number of cases with an empty mask, whose scores depend on ``empty_rule``.
        classes: "kits19" or "kits23".
        hec: only with the classes of KiTS23.
        surface, lesions: only if they were asked for.
        beside_all_background: the ladder of definitions.
        label_release: number of cases that were scored against today's labels of KiTS19, and against others.
        phantom: whether all scored cases are synthetic, as far as anything is known about them.
        cases: name -> the files of the case.
    """

    kitsseg: str | None = None
    n_cases: int
    scores: Scores
    composite_interval_95: tuple[float, float]
    resamples: int
    bootstrap_seed: int
    composite_identity: dict[str, float] | None = None
    empty_cases: int
    classes: str | None = None
    hec: Hec | None = None
    surface: Surfaces | None = None
    lesions: Lesions | None = None
    empty_rule: str
    truth_without_prediction: list[str]
    prediction_without_truth: list[str] | None = None
    of_other_scans: list[str] | None = None
    changed: list[str] | None = None
    beside_all_background: Ladders
    label_release: dict[str, int] | None = None
    cases: dict[str, CaseFiles]

    @property
    def synthetic(self) -> list[str]:
        """Names of the scored cases whose scans are synthetic."""
        # older versions wrote nothing about single cases
        return [name for name, files in self.cases.items() if files.phantom or self.phantom]


def provenance_of(record: object) -> Provenance:
    """The Provenance of label maps from the record of ``kitsseg predict``.

    Args:
        record: PredictionsRecord, with absolute paths.
    """
    return converted(as_builtins(record), Provenance)


def recorded_by_predict(folder: Path) -> Provenance:
    """The Provenance of the label maps in a folder, with absolute paths; empty for those of other tools.

    It comes from ``predictions.json`` and from the journals of processes that still run or were killed.

    Raises: InputError for a record that cannot be read.
    """
    file = folder / PREDICTIONS
    if has_journals(folder) and (record := read_predictions(folder)):
        return provenance_of(record)
    if not file.is_file():
        return Provenance()
    return read_with_absolute_paths(
        file, Provenance, "the record of kitsseg predict", "Predict again or remove it."
    )


def summarize(
    cases: Sequence[ScoredCase], provenance: Provenance, left_out: LeftOut, classes: str, surface: bool
) -> Summary:
    """The content of scores.json.

    Args:
        cases: all scored cases, at least one.
        provenance: Provenance of the label maps.
        left_out: LeftOut.
        classes, surface: as in ``evaluate_folders``.
    """
    rows, tables = [case.row for case in cases], [case.tables for case in cases]
    judged = [_is_synthetic(case.files, provenance) for case in cases]
    files = [replace(case.files, phantom=is_one or None) for case, is_one in zip(cases, judged, strict=True)]
    known = [is_one for is_one in judged if is_one is not None]
    releases = [row["label_release"] for row in rows]
    values = as_builtins(provenance) | {"version": Summary.version, "kitsseg": __version__}
    values |= summarize_scores(rows)
    values |= _details(rows, classes, surface)
    values |= {
        "empty_rule": EMPTY_RULE,
        **as_builtins(left_out),
        "beside_all_background": {
            "prediction": ladder(tables),
            "all_background": ladder(all_background(tables)),
            "definitions": {key: rung.definition for key, rung in RUNGS.items()},
        },
        "label_release": {name: releases.count(name) for name in ("kits19", "other")},
        "cases": {
            row["case"]: _with_absolute_paths(of_case) for row, of_case in zip(rows, files, strict=True)
        },
        "phantom": bool(known) and all(known),
    }
    return converted(values, Summary)


def _with_absolute_paths(files: CaseFiles) -> dict[str, Any]:
    paths = {"prediction": files.prediction, "truth": files.truth, "image": files.image}
    entry: dict[str, Any] = as_builtins(files)
    return entry | {name: str(as_given(path)) if path else None for name, path in paths.items()}


def _details(rows: list[dict[str, Any]], classes: str, surface: bool) -> dict[str, Any]:
    """The entries ``hec``, ``surface`` and ``lesions`` of the summary, from the columns of scores.csv."""
    summary: dict[str, Any] = {"classes": classes}
    if classes == "kits23":
        dice = {name: _describe(rows, f"{name}_dice") for name in HEC_LABELS}
        summary["hec"] = {
            "dice": dice,
            "mean_dice": float(np.mean([values["mean"] for values in dice.values()])),
        }
    if surface:
        found: dict[str, dict[str, Any]] = {
            name: {"tolerance_mm": TOLERANCES_MM[name]}
            | {key: _describe(rows, f"{name}_{key}") for key in ("surface_dice", "hd95_mm")}
            for name in CLASSES[classes]
        }
        mean = float(np.mean([values["surface_dice"]["mean"] for values in found.values()]))
        summary["surface"] = {"classes": found, "mean_surface_dice": mean}
        summary["surface"] |= {"surface_dice_rule": SURFACE_RULE, "hd95_rule": HD95_RULE}
        summary["lesions"] = {name: int(sum(row[name] for row in rows)) for name in LESIONS}
        summary["lesions"]["rule"] = LESION_RULE
    return summary


def _describe(rows: list[dict[str, Any]], column: str) -> dict[str, Any]:
    """Mean, standard deviation and median over the cases for which the value is defined, and their number."""
    values = np.array([row[column] for row in rows if row[column] is not None], float)
    many = len(values) > 1
    return {
        "mean": float(values.mean()) if len(values) else None,
        "sd": float(values.std(ddof=1)) if many else None,
        "median": float(np.median(values)) if len(values) else None,
        "defined": len(values),
    }


def _is_synthetic(files: CaseFiles, provenance: Provenance) -> bool | None:
    """Whether the scan of a case is synthetic, by the record of predict or by the header of its image.

    The record of predict may say so of all its scans together. None: nothing is known about the scan.
    """
    if files.phantom or (files.phantom is None and provenance.phantom):
        return True
    by_header = None if files.image is None else _says_its_header(files.image)
    return files.phantom if by_header is None else by_header


def _says_its_header(image: str | os.PathLike[str]) -> bool | None:
    try:
        return is_phantom(read_grid(image).header)
    except (InputError, OSError):
        return None  # scoring needs no image; the report names a damaged one
