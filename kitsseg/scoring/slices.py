"""Slice scores: Dice of single slices, and their means over patients. They are never mixed with case scores.

A case score counts all voxels of a scan, and most slices of a scan hold no kidney. A slice score counts the pixels of
one image that somebody chose. Therefore columns and entries have other names here, and numbers of pixels replace
volumes. The interval is computed over patients, because slices of one patient are alike.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kitsseg.data.formats.slices import IMAGE_ENDINGS, SliceImage, read_mask
from kitsseg.data.layouts.kits import Layout
from kitsseg.data.layouts.slices import find_slices
from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path
from kitsseg.files.json_records import as_builtins, as_json, converted, read_with_absolute_paths
from kitsseg.files.paths import relative_path, relative_paths
from kitsseg.files.tables import csv_path, read_columns, read_rows, write_rows
from kitsseg.interfaces import Progress
from kitsseg.records.predictions import PredictionsRecord, changed_since, read_predictions
from kitsseg.scoring.dice import SCORES, VOLUMES, count_labels, score_counts, summarize_scores
from kitsseg.scoring.summary import Provenance, recorded_by_predict
from kitsseg.version import __version__

__all__ = [
    "UNIT",
    "SliceEvaluation",
    "SliceSummary",
    "evaluate_slices",
    "holds_slice_scores",
    "read_slice_scores",
]

UNIT = "single slices"
AGAIN = "Run kitsseg evaluate again."
PIXELS = tuple(name.replace("_ml", "_pixels") for name in VOLUMES)
COLUMNS = ("slice", "patient", *(f"slice_{name}" for name in SCORES), *PIXELS, "empty", "split_hash")
RULE = "Dice of each slice (both masks empty: 1; exactly one empty: 0), its mean by patient, the mean over patients"


@dataclass(frozen=True, kw_only=True)
class SliceSpread:
    """Mean of a score over the patients, standard deviation (None for one patient), bootstrap interval of the mean."""

    mean: float
    sd: float | None
    interval_95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class SliceFiles:
    """The label map of a slice and its truth."""

    prediction: str
    truth: str


@dataclass(frozen=True, kw_only=True)
class SliceSummary(Provenance):
    """Content of the JSON file beside slice scores; the fields of Provenance come first.

    Attributes:
        unit: always ``UNIT``.
        rule: how slices and patients are averaged, in words.
        patient_means: score -> SliceSpread over the means of the patients.
        slice_means: score -> mean over all slices.
        beside_all_background: ``patient_means`` of predicting nothing.
        truth_without_prediction: names of slices that could not be scored.
        changed: names of slices whose label map has changed since ``kitsseg predict`` recorded it.
        slices: name -> its files.
    """

    kitsseg: str
    unit: str
    rule: str
    n_slices: int
    n_patients: int
    patient_means: dict[str, SliceSpread]
    slice_means: dict[str, float]
    slices_with_an_empty_mask: int
    resamples: int
    bootstrap_seed: int
    beside_all_background: dict[str, SliceSpread]
    truth_without_prediction: list[str]
    slices: dict[str, SliceFiles]
    changed: list[str] | None = None


@dataclass(frozen=True)
class SliceEvaluation:
    """Scores of a set of single slices: ``rows`` as in the table, ``summary`` as in the JSON file beside it.

    They are not scores of cases.
    """

    rows: list[dict[str, Any]]
    summary: SliceSummary


def evaluate_slices(
    prediction: str | os.PathLike[str],
    truth: str | os.PathLike[str],
    out: str | os.PathLike[str],
    progress: Progress | None = None,
    layout: Layout | None = None,
) -> SliceEvaluation:
    """Score label maps of single slices and write ``out`` and the JSON file of the same stem beside it.

    Args:
        prediction: a folder of PNG label maps named as their images, or one of them.
        truth: a folder of slices with masks and patients.
        out: the .csv file to write.
        progress: called as ``progress(description, done, total)``.
        layout: Layout of the truth.

    Returns: SliceEvaluation, in which every score and count has the word slice or pixels in its name.
    Raises: InputError for a label map without truth or of another size, and as ``find_slices``.
    """
    prediction, truth, out = Path(prediction), Path(truth), csv_path(out, "scores")
    folder = prediction if prediction.is_dir() else prediction.parent
    record = read_predictions(folder)
    made_by, mask_values = recorded_by_predict(folder), _mask_values(record)
    items = {item.name: item for item in find_slices(truth, layout or Layout(), need_labels=True)}
    files = _predicted(prediction)
    if unknown := sorted(set(files) - set(items)):
        raise InputError(
            f"{files[unknown[0]]}: no image of this name in {truth}. Remove it, or give the right folder."
        )
    rows, empty = [], []
    for done, (name, file) in enumerate(files.items()):
        if progress:
            progress("score", done, len(files))
        item, values = items[name], mask_values.get(name) or items[name].mask_values
        labels = read_mask(replace(item, labels=file, mask_values=values))
        counts = count_labels(labels, read_mask(item))
        rows.append(_row(item, counts) | {"split_hash": made_by.split.hash if made_by.split else None})
        nothing = np.zeros_like(counts)
        nothing[:, 0] = counts.sum(axis=1)
        empty.append(_row(item, nothing))
    if progress:
        progress("score", len(files), len(files))
    patients = _of_patients(rows)
    scores = summarize_scores(patients)
    summary = SliceSummary(
        **vars(made_by),
        kitsseg=__version__,
        unit=UNIT,
        rule=RULE,
        n_slices=len(rows),
        n_patients=len(patients),
        patient_means=_spreads(scores),
        slice_means={
            f"slice_{name}": float(np.mean([row[f"slice_{name}"] for row in rows])) for name in SCORES
        },
        slices_with_an_empty_mask=sum(bool(row["empty"]) for row in rows),
        resamples=scores["resamples"],
        bootstrap_seed=scores["bootstrap_seed"],
        beside_all_background=_spreads(summarize_scores(_of_patients(empty))),
        truth_without_prediction=[name for name in items if name not in files],
        slices={
            name: SliceFiles(
                prediction=relative_path(file, out.parent), truth=relative_path(items[name].truth, out.parent)
            )
            for name, file in files.items()
        },
        changed=changed_since(record, {file.name: file for file in files.values()}),
    )
    _write(out, rows, summary)
    return SliceEvaluation(rows, summary)


def holds_slice_scores(path: Path) -> bool:
    """Whether a table holds slice scores, by its columns."""
    return tuple(read_columns(path)[:2]) == COLUMNS[:2]


def read_slice_scores(path: Path) -> tuple[list[dict[str, Any]], Provenance]:
    """(a row for each patient with the means of the scores over its slices, Provenance of the label maps).

    Raises: InputError for a file that ``evaluate_slices`` has not written.
    """
    beside, expected, advice = path.with_suffix(".json"), "the slice scores of kitsseg evaluate", AGAIN
    kinds: dict[str, Callable[[str], Any]] = {"slice": str, "patient": str}
    rows = read_rows(path, kinds | dict.fromkeys(COLUMNS[2:-2], float), str, expected, advice)
    if not beside.is_file():
        raise InputError(f"{beside}: missing; expected it beside {path.name}. {advice}")
    summary = read_with_absolute_paths(beside, SliceSummary, expected, advice)
    if summary.unit != UNIT or summary.n_slices != len(rows) or not rows:
        raise InputError(
            f"{path}: expected {expected}, found a summary of other slices in {beside.name}. {advice}"
        )
    return _of_patients(rows), converted(as_builtins(summary), Provenance)


def _mask_values(record: PredictionsRecord | None) -> dict[str, tuple[int, ...]]:
    """The values of the masks that ``kitsseg predict`` wrote, by slice."""
    cases = record.cases if record else {}
    return {Path(name).stem: entry.mask_values for name, entry in cases.items() if entry.mask_values}


def _predicted(prediction: Path) -> dict[str, Path]:
    """The label maps by name."""
    if prediction.is_file():
        found = [prediction]
    else:
        found = [
            path
            for path in sorted(prediction.iterdir())
            if path.suffix.lower() == ".png" and path.name[0] != "."
        ]
    if not found or found[0].suffix.lower() not in IMAGE_ENDINGS:
        raise InputError(
            f"{prediction}: expected label maps of single slices, PNG files named as their images, found none. "
            "Try: kitsseg predict"
        )
    return {path.stem: path for path in found}


def _row(item: SliceImage, counts: Any) -> dict[str, Any]:
    scores = score_counts(counts, 1.0)
    row = {"slice": item.name, "patient": item.patient} | {f"slice_{name}": scores[name] for name in SCORES}
    row |= {pixels: int(scores[volume]) for pixels, volume in zip(PIXELS, VOLUMES, strict=True)}
    return row | {"empty": scores["empty"]}


def _of_patients(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means of the scores over the slices of each patient, and the sums of pixels in the place of volumes."""
    patients: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        patients.setdefault(row["patient"], []).append(row)
    return [
        {"case": patient, "slices": len(some), "empty": ""}
        | {name: float(np.mean([row[f"slice_{name}"] for row in some])) for name in SCORES}
        | {volume: sum(row[pixels] for row in some) for pixels, volume in zip(PIXELS, VOLUMES, strict=True)}
        for patient, some in sorted(patients.items())
    ]


def _spreads(scores: Mapping[str, Any]) -> dict[str, SliceSpread]:
    """SliceSpread of each score, from the result of ``summarize_scores`` over the patients."""
    found = {name: scores["scores"][name] for name in SCORES}
    return {
        f"slice_{name}": SliceSpread(mean=of["mean"], sd=of["sd"], interval_95=of["interval_95"])
        for name, of in found.items()
    }


def _write(out: Path, rows: Sequence[dict[str, Any]], summary: SliceSummary) -> None:
    text = as_json(summary, lambda values: relative_paths(values, out.parent))
    with atomic_path(out.with_suffix(".json")) as beside:  # both files or neither
        beside.write_text(text, encoding="utf-8")
        write_rows(out, [row | {"empty": " ".join(row["empty"])} for row in rows], COLUMNS)
