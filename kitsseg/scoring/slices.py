"""Slice scores: Dice of single slices, and their means over patients. They are never mixed with case scores.

A case score counts all voxels of a scan, most slices of which hold no kidney. A slice score counts the pixels of one
image that somebody chose. So columns and entries have other names here, volumes are pixels, and the interval is one
over patients: slices of one patient are alike.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kitsseg.data.formats.slices import IMAGE_ENDINGS, SliceImage, read_mask
from kitsseg.data.layouts.kits import Layout
from kitsseg.data.layouts.slices import find_slices
from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path
from kitsseg.files.json_records import converted, read_object
from kitsseg.files.paths import absolute_paths, relative_path, relative_paths
from kitsseg.files.tables import write_rows
from kitsseg.scoring.dice import SCORES, VOLUMES, count_labels, score_counts, summarize_scores
from kitsseg.scoring.summary import Provenance
from kitsseg.version import __version__

__all__ = ["UNIT", "evaluate_slices", "holds_slice_scores", "read_slice_scores"]

UNIT = "single slices"
PIXELS = tuple(name.replace("_ml", "_pixels") for name in VOLUMES)
COLUMNS = ("slice", "patient", *(f"slice_{name}" for name in SCORES), *PIXELS, "empty", "split_hash")
RULE = "Dice of each slice (both masks empty: 1; exactly one empty: 0), its mean by patient, the mean over patients"


def evaluate_slices(
    prediction: Path,
    truth: Path,
    out: Path,
    layout: Layout,
    record: dict[str, Any],
    progress: Callable[[str, int, int], object] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Score label maps of single slices and write ``out`` and the JSON file of the same stem beside it.

    Args:
        prediction: a folder of PNG label maps named as their images, or one of them.
        truth: a folder of slices with masks and patients.
        record: what ``predictions.json`` says of the folder, if it is there.
        progress: called as progress(description, done, total).

    Returns: (rows as in the table, summary as in the JSON file but with absolute paths).
    Raises: InputError for a label map without truth or of another size, and as ``find_slices``.
    """
    items = {item.name: item for item in find_slices(truth, layout, need_labels=True)}
    files = _predicted(prediction)
    if unknown := sorted(set(files) - set(items)):
        raise InputError(
            f"{files[unknown[0]]}: no image of this name in {truth}. Remove it, or give the right folder."
        )
    rows, empty = [], []
    for done, (name, file) in enumerate(files.items()):
        if progress:
            progress("score", done, len(files))
        item, values = items[name], tuple(record.get("mask_values", {}).get(name) or items[name].mask_values)
        labels = read_mask(replace(item, labels=file, mask_values=values))
        counts = count_labels(labels, read_mask(item))
        rows.append(_row(item, counts) | {"split_hash": (record.get("split") or {}).get("hash")})
        nothing = np.zeros_like(counts)
        nothing[:, 0] = counts.sum(axis=1)
        empty.append(_row(item, nothing))
    if progress:
        progress("score", len(files), len(files))
    summary = {key: value for key, value in record.items() if key != "mask_values"}
    summary |= {"kitsseg": __version__, "unit": UNIT, "rule": RULE} | _summarized(rows)
    summary["beside_all_background"] = _summarized(empty)["patient_means"]
    summary["truth_without_prediction"] = [name for name in items if name not in files]
    summary["slices"] = {
        name: {
            "prediction": relative_path(file, out.parent),
            "truth": relative_path(items[name].truth, out.parent),
        }
        for name, file in files.items()
    }
    _write(out, rows, summary)
    return rows, summary


def holds_slice_scores(path: Path) -> bool:
    """Whether a table holds slice scores, by its columns."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return tuple(next(csv.reader(file), ()))[:2] == COLUMNS[:2]
    except (OSError, UnicodeDecodeError, csv.Error):
        return False


def read_slice_scores(path: Path) -> tuple[list[dict[str, Any]], Provenance]:
    """A row for each patient, with the scores of ``read_scores`` as means over the patient's slices, and what made the
    label maps.

    Raises: InputError for what ``evaluate_slices`` has not written.
    """
    beside = path.with_suffix(".json")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        summary = read_object(beside)
        for row in rows:
            row |= {name: float(row[name]) for name in COLUMNS[2:-2]}
        patients = _of_patients(rows)
        if summary["unit"] != UNIT or summary["n_slices"] != len(rows) or not rows:
            raise ValueError(f"{beside.name} beside it is of other scores")
        made_by = converted(absolute_paths(summary, beside.parent), Provenance)
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path}: expected the slice scores of kitsseg evaluate, found others ({error!r}). "
            "Run kitsseg evaluate again."
        ) from error
    return patients, made_by


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


def _summarized(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    patients = _of_patients(rows)
    summary = summarize_scores(patients)
    return {
        "n_slices": len(rows),
        "n_patients": len(patients),
        "patient_means": {
            f"slice_{name}": {key: summary["scores"][name][key] for key in ("mean", "sd", "interval_95")}
            for name in SCORES
        },
        "slice_means": {
            f"slice_{name}": float(np.mean([row[f"slice_{name}"] for row in rows])) for name in SCORES
        },
        "slices_with_an_empty_mask": sum(bool(row["empty"]) for row in rows),
        **{key: summary[key] for key in ("resamples", "bootstrap_seed")},
    }


def _write(out: Path, rows: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
    text = json.dumps(relative_paths(summary, out.parent), indent=1, allow_nan=False)
    with atomic_path(out.with_suffix(".json")) as beside:  # both files or neither
        beside.write_text(text + "\n", encoding="utf-8")
        write_rows(out, [row | {"empty": " ".join(row["empty"])} for row in rows], COLUMNS)
