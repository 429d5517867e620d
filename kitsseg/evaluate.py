"""``kitsseg evaluate``: predictions and truth -> scores.csv, a row per case, and scores.json, the summary."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from kitsseg import __version__
from kitsseg.atomic import atomic_path
from kitsseg.data.cases import IMAGE_NAMES
from kitsseg.data.nifti import is_phantom
from kitsseg.errors import InputError
from kitsseg.evaluate_pairs import count_files, find_pairs
from kitsseg.scores import SCORES, background_inclusive_scores, score_counts, summarize_scores

__all__ = ["COLUMNS", "Evaluation", "evaluate_folders", "format_table"]

VOLUMES = ("truth_kidney_ml", "predicted_kidney_ml", "truth_tumor_ml", "predicted_tumor_ml")
COLUMNS = ("case", *SCORES, *VOLUMES, "empty")
EMPTY_RULE = "both masks empty: 1; exactly one empty: 0"


@dataclass(frozen=True)
class Evaluation:
    """What was written: ``rows`` as in scores.csv, ``summary`` as in scores.json."""

    rows: list[dict]
    summary: dict


def evaluate_folders(prediction, truth, out, progress=None):
    """Score predictions on the original grid and write ``out`` and the JSON file of the same stem beside it.

    Args:
        prediction: a folder of ``prediction_00000.nii.gz`` (also ``case_00000.nii.gz`` or
            ``case_00000/segmentation.nii.gz``), or one such file.
        truth: a folder in KiTS19 layout; or, for one prediction file, its label map.
        out: the .csv file to write.
        progress: called as ``progress(description, done, total)``.

    Returns: Evaluation. Truth cases without a prediction are not scored; ``truth_without_prediction`` in the
        summary names them.
    Raises: InputError for a prediction without truth, files on different grids, files that are no label maps,
        or two predictions of one case.
    """
    prediction, truth, out = Path(prediction), Path(truth), Path(out)
    if out.suffix != ".csv" or out.is_dir():
        raise InputError(f"{out}: expected the name of a .csv file to write the scores to.")
    pairs, missing = find_pairs(prediction, truth)
    rows, tables = [], []
    for done, pair in enumerate(pairs):
        if progress:
            progress("score", done, len(pairs))
        counts, voxel_ml = count_files(pair.prediction, pair.truth)
        tables.append(counts)
        rows.append({"case": pair.case} | score_counts(counts, voxel_ml))
    if progress:
        progress("score", len(pairs), len(pairs))
    summary = {"kitsseg": __version__} | summarize_scores(rows)
    summary |= {"empty_rule": EMPTY_RULE, "truth_without_prediction": missing}
    summary |= _beside_background(tables, summary["scores"])
    summary |= _recorded_by_predict(prediction if prediction.is_dir() else prediction.parent)
    summary["cases"] = {pair.case: _paths(pair) for pair in pairs}
    images = [files["image"] for files in summary["cases"].values() if files["image"]]
    summary["phantom"] = bool(summary.get("phantom")) or any(map(_synthetic, images))
    _write(out, rows, summary)
    return Evaluation(rows, summary)


def _beside_background(tables, means):
    """This prediction and an empty one under every definition: shows which figures mean nothing."""
    beside = {}
    for name in ("prediction", "all_background"):
        counts = np.array(tables)
        if name == "all_background":
            counts[:, :, 0] = counts.sum(axis=2)
            counts[:, :, 1:] = 0
            means = summarize_scores([score_counts(table, 1.0) for table in counts])["scores"]
        official = {score: means[score]["mean"] for score in ("tk_dice", "tu_dice", "composite")}
        beside[name] = official | background_inclusive_scores(counts.sum(axis=0))
    return {"beside_all_background": beside}


def _recorded_by_predict(folder):
    file = folder / "predictions.json"
    if not file.exists():
        return {}
    try:
        record = json.loads(file.read_text())
        return {key: value for key, value in record.items() if key not in ("cases", "kitsseg")}
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{file}: expected the record of kitsseg predict ({error}). Predict again or remove it."
        ) from error


def _synthetic(image):
    try:
        return is_phantom(nib.load(image).header)
    except (OSError, EOFError, ImageFileError, HeaderDataError):
        return False  # scoring needs no image; the report names a damaged one


def _paths(pair):
    image = next(
        (pair.truth.parent / name for name in IMAGE_NAMES if (pair.truth.parent / name).exists()), None
    )
    files = {"prediction": pair.prediction, "truth": pair.truth, "image": image}
    return {name: str(file.resolve()) if file else None for name, file in files.items()}


def _write(out, rows, summary):
    text = json.dumps(summary, indent=1, allow_nan=False)
    with atomic_path(out.with_suffix(".json")) as beside:  # both files or neither
        beside.write_text(text + "\n")
        with atomic_path(out) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(row | {"empty": " ".join(row["empty"])} for row in rows)


def format_table(rows, summary):
    """Plain text: a line per case, the means, and below them what an empty prediction would get."""
    columns = {
        "tk_dice": "TK",
        "tu_dice": "TU",
        "composite": "composite",
        "kidney_label_dice": "kidney label",
    }
    columns |= {"tumor_precision": "tumor precision", "tumor_recall": "tumor recall"}
    widths = {name: max(len(head), 6) + 2 for name, head in columns.items()}
    first = max(len("empty prediction"), *(len(row["case"]) for row in rows))

    def line(title, values):
        return title.ljust(first) + "".join(
            f"{values[name]:{widths[name]}.4f}" for name in columns if name in values
        )

    means = {name: summary["scores"][name]["mean"] for name in columns}
    lines = [" " * first + "".join(head.rjust(widths[name]) for name, head in columns.items())]
    lines += [line(row["case"], row) for row in rows] + [line("mean", means)]
    ours, nothing = (summary["beside_all_background"][name] for name in ("prediction", "all_background"))
    lines += [line("empty prediction", nothing)]
    low, high = summary["composite_interval_95"]
    lines += [
        f"{summary['n_cases']} cases; 95 % interval of the mean composite {low:.4f} to {high:.4f}.",
        f"Figures that count background: pixel accuracy {ours['pixel_accuracy']:.4f} (an empty prediction "
        f"{nothing['pixel_accuracy']:.4f}), macro Dice {ours['macro_dice_with_background']:.4f} "
        f"({nothing['macro_dice_with_background']:.4f}).",
    ]
    if summary["empty_cases"]:
        count = summary["empty_cases"]
        lines += [f"{count} case{'s' * (count > 1)} with an empty mask ({summary['empty_rule']})."]
    if summary["truth_without_prediction"]:
        missing = summary["truth_without_prediction"]
        lines += [f"{len(missing)} truth cases have no prediction and are not scored: {', '.join(missing)}."]
    if summary.get("phantom"):
        lines += ["Synthetic patients: phantom results, no statement about CT scans."]
    return "\n".join(lines)
