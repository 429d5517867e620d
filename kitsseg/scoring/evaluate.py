"""``kitsseg evaluate``: predictions and truth -> scores.csv, a row per case, and scores.json, the summary."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from kitsseg.data.formats.nifti import KITS_LABELS, is_phantom
from kitsseg.data.layouts.kits import Layout
from kitsseg.data.layouts.slices import has_slices
from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path
from kitsseg.files.paths import as_given, relative_paths
from kitsseg.records.predictions import PREDICTIONS, read_predictions
from kitsseg.scoring.details import (
    CLASSES,
    cysts_as_kidney,
    detail_columns,
    hec_scores,
    label_release,
    summarize_details,
    surface_and_lesions,
    values_with_cysts,
)
from kitsseg.scoring.dice import SCORES, VOLUMES, score_counts, summarize_scores
from kitsseg.scoring.label_files import count_files, read_boxes
from kitsseg.scoring.ladder import RUNGS, all_background, ladder
from kitsseg.scoring.pairs import find_pairs
from kitsseg.scoring.slices import evaluate_slices
from kitsseg.version import __version__

__all__ = ["COLUMNS", "Evaluation", "evaluate_folders"]

COLUMNS = ("case", *SCORES, *VOLUMES, "empty", "label_release", "split_hash")
EMPTY_RULE = "both masks empty: 1; exactly one empty: 0"


@dataclass(frozen=True)
class Evaluation:
    """What was written: ``rows`` as in scores.csv, ``summary`` as in scores.json but with absolute paths."""

    rows: list[dict]
    summary: dict


def evaluate_folders(prediction, truth, out, progress=None, layout=None, classes="kits19", surface=False):
    """Score predictions on the original grid and write ``out`` and the JSON file of the same stem beside it.

    Args:
        prediction: a folder of ``prediction_00000.nii.gz`` (also ``case_00000.nii.gz`` or
            ``case_00000/segmentation.nii.gz``), or one such file.
        truth: a folder of cases in any layout of ``find_cases``; or, for one prediction file, its label map.
        out: the .csv file to write.
        progress: called as ``progress(description, done, total)``.
        layout: Layout of the truth, where the folder alone does not say which files are meant.
        classes: "kits19", or "kits23" for label maps with cysts as label 3: adds the Dice of its hierarchical classes;
            in all other scores cysts are kidney then, as in KiTS19.
        surface: also surface Dice and HD95, and which tumors were found; needs the label maps in memory.

    Where the truth is a folder of single slices the predictions are PNG files, and the scores slice scores (see
    ``kitsseg.scoring.slices``): no case scores, under other names.

    Returns: Evaluation. Truth cases without a prediction are not scored; ``truth_without_prediction`` in the
        summary names them.
    Raises: InputError for a prediction without truth, files on different grids, files that are no label maps,
        or two predictions of one case.
    """
    prediction, truth, out = Path(prediction), Path(truth), Path(out)
    if out.suffix != ".csv" or out.is_dir():
        raise InputError(f"{out}: expected the name of a .csv file to write the scores to.")
    if classes not in CLASSES:
        raise InputError(f"classes: expected {' or '.join(CLASSES)}, found {classes}.")
    if truth.is_dir() and has_slices(truth):
        if classes != "kits19" or surface:
            raise InputError(
                f"{truth}: expected scans for --classes kits23 and --surface, found single slices."
            )
        folder = prediction if prediction.is_dir() else prediction.parent
        record = _recorded_by_predict(folder) | {"mask_values": _mask_values(folder)}
        return Evaluation(*evaluate_slices(prediction, truth, out, layout or Layout(), record, progress))
    pairs, missing = find_pairs(prediction, truth, layout)
    record = _recorded_by_predict(prediction if prediction.is_dir() else prediction.parent)
    rows, tables, files = [], [], {}
    for done, pair in enumerate(pairs):
        if progress:
            progress("score", done, len(pairs))
        row, table, files[pair.case] = _score_pair(pair, classes, surface)
        rows.append(row | {"split_hash": (record.get("split") or {}).get("hash")})
        tables.append(table)
    if progress:
        progress("score", len(pairs), len(pairs))
    summary = {"kitsseg": __version__} | summarize_scores(rows) | summarize_details(rows, classes, surface)
    summary |= {"empty_rule": EMPTY_RULE, "truth_without_prediction": missing}
    summary["beside_all_background"] = {
        "prediction": ladder(tables),
        "all_background": ladder(all_background(tables)),
        "definitions": {key: rung.definition for key, rung in RUNGS.items()},
    }
    summary = {key: value for key, value in record.items() if key not in summary} | summary
    summary["label_release"] = {
        name: sum(row["label_release"] == name for row in rows) for name in ("kits19", "other")
    }
    summary["cases"] = files
    images = [of_case["image"] for of_case in files.values() if of_case["image"]]
    summary["phantom"] = bool(summary.get("phantom")) or any(map(_synthetic, images))
    _write(out, rows, summary, (*COLUMNS[:-3], *detail_columns(classes, surface), *COLUMNS[-3:]))
    return Evaluation(rows, summary)


def _score_pair(pair, classes, surface):
    """The row of one case, its tables of KiTS19 labels, and what scores.json keeps about its files."""
    values, predicted_values = pair.label_values, KITS_LABELS
    if classes == "kits23":
        values = predicted_values = values_with_cysts(pair)
    tables, spacing_mm = count_files(pair.prediction, pair.truth, values, predicted_values)
    details, files = {}, _files(pair, values)
    if classes == "kits23":
        details = hec_scores(tables)
        tables = cysts_as_kidney(tables)
    if surface:
        boxes = read_boxes(pair.prediction, pair.truth, values, predicted_values)
        more, files["lesions"] = surface_and_lesions(*boxes, spacing_mm, classes)
        details |= more
    row = {"case": pair.case} | score_counts(tables.sum(axis=0), math.prod(spacing_mm) / 1000) | details
    row["label_release"], files["truth_sha256"] = label_release(pair.case, pair.truth)
    return row, tables, files


def _recorded_by_predict(folder):
    file = folder / PREDICTIONS
    try:
        record = read_predictions(folder)
        if record is None:
            return {}
        _ = (record.get("split") or {}).get("hash")
        failed = {case: {"reason": entry["reason"]} for case, entry in record.get("failed", {}).items()}
        record = {key: value for key, value in record.items() if key not in ("cases", "begun", "kitsseg")}
        return record | {"failed": failed}
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise InputError(
            f"{file}: expected the record of kitsseg predict ({error}). Predict again or remove it."
        ) from error


def _mask_values(folder: Path) -> dict[str, list[int]]:
    """The values of the masks that ``kitsseg predict`` wrote, by slice; the record is known to be one."""
    cases = (read_predictions(folder) or {}).get("cases", {})
    return {Path(name).stem: entry["mask_values"] for name, entry in cases.items() if "mask_values" in entry}


def _synthetic(image):
    try:
        return is_phantom(nib.load(image).header)
    except (OSError, EOFError, ImageFileError, HeaderDataError):
        return False  # scoring needs no image; the report names a damaged one


def _files(pair, values):
    files = {"prediction": pair.prediction, "truth": pair.truth, "image": pair.image}
    paths = {name: str(as_given(file)) if file else None for name, file in files.items()}
    return paths if values == KITS_LABELS else paths | {"label_values": values}


def _write(out, rows, summary, columns):
    text = json.dumps(relative_paths(summary, out.parent), indent=1, allow_nan=False)
    with atomic_path(out.with_suffix(".json")) as beside:  # both files or neither
        beside.write_text(text + "\n")
        with atomic_path(out) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(row | {"empty": " ".join(row["empty"])} for row in rows)
