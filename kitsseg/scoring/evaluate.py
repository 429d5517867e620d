"""``kitsseg evaluate``: score predictions against their truth, in scores.csv (a row per case) and scores.json."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kitsseg.data.layouts.find import Layout
from kitsseg.data.layouts.slices import has_slices
from kitsseg.errors import InputError
from kitsseg.files.json_records import as_builtins, converted, read_record
from kitsseg.files.paths import absolute_paths
from kitsseg.interfaces import Progress
from kitsseg.records.predictions import PREDICTIONS, PredictionsRecord, has_journals, read_predictions
from kitsseg.scoring.cases import CLASSES, columns_of, score_pair
from kitsseg.scoring.pairs import Pairs, find_pairs, of_other_scans
from kitsseg.scoring.scores_file import Evaluation, SliceEvaluation, write_scores
from kitsseg.scoring.slices import evaluate_slices
from kitsseg.scoring.summary import LeftOut, Provenance, provenance_of, summarize

__all__ = ["COLUMNS", "Evaluation", "evaluate_folders", "evaluate_pairs"]

COLUMNS = columns_of("kits19", surface=False)


def evaluate_folders(
    prediction: str | os.PathLike[str],
    truth: str | os.PathLike[str],
    out: str | os.PathLike[str],
    progress: Progress | None = None,
    layout: Layout | None = None,
    classes: str = "kits19",
    surface: bool = False,
) -> Evaluation | SliceEvaluation:
    """Score predictions on the original grid and write ``out`` and the JSON file of the same stem beside it.

    Args:
        prediction: a folder of ``prediction_00000.nii.gz`` (also ``case_00000.nii.gz`` or
            ``case_00000/segmentation.nii.gz``), or one such file.
        truth: a folder of cases in any layout of ``find_cases``; or, for one prediction file, its label map.
        out: the .csv file to write.
        progress: called as ``progress(description, done, total)``.
        layout: Layout of the truth, if the folder alone does not tell which files are meant.
        classes: "kits19", or "kits23" for label maps with cysts as label 3. "kits23" adds the Dice of the hierarchical
            classes; in all other scores cysts then count as kidney, as in KiTS19.
        surface: also compute surface Dice, HD95, and the tumors that were found; needs the label maps in memory.

    If the truth is a folder of single slices, the predictions are PNG files, and the scores are slice scores with other
    names (see ``kitsseg.scoring.slices``), not case scores.

    Returns: Evaluation. Truth cases without a prediction and predictions without a truth are not scored:
        ``truth_without_prediction`` and ``prediction_without_truth`` in the summary name them. ``of_other_scans``
        names cases whose label map was predicted from another scan than the one that lies beside the truth.
    Raises: InputError for predictions of which none has a truth, files on different grids, files that are no label
        maps, or two predictions of one case.
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
        made_by, values = _recorded_by_predict(folder), _mask_values(folder)
        rows, of_slices = evaluate_slices(
            prediction, truth, out, layout or Layout(), made_by, values, progress
        )
        return SliceEvaluation(rows, of_slices)
    folder = prediction if prediction.is_dir() else prediction.parent
    found = find_pairs(prediction, truth, layout)
    other_scans = of_other_scans(found.pairs, _record_of_scans(folder))
    return evaluate_pairs(
        found,
        _recorded_by_predict(folder),
        out,
        of_other_scans=other_scans,
        classes=classes,
        surface=surface,
        progress=progress,
    )


def evaluate_pairs(
    found: Pairs,
    provenance: Provenance,
    out: Path,
    *,
    of_other_scans: Sequence[str] = (),
    classes: str = "kits19",
    surface: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Score pairs of label maps and truth, and write ``out`` and the JSON file beside it.

    Args:
        found: the label maps and their truth.
        provenance: Provenance of the label maps.
        out: the .csv file to write.
        of_other_scans: names of cases whose label map was predicted from another scan than the truth is of.
        classes, surface, progress: as in ``evaluate_folders``.
    """
    scored, total = [], len(found.pairs)
    for done, pair in enumerate(found.pairs):
        if progress:
            progress("score", done, total)
        scored.append(score_pair(pair, classes, surface))
    if progress:
        progress("score", total, total)
    split_hash = provenance.split.hash if provenance.split else None
    left_out = LeftOut(found.truth_without_prediction, found.prediction_without_truth, [*of_other_scans])
    summary = summarize(scored, provenance, left_out, classes, surface)
    evaluation = Evaluation([case.row | {"split_hash": split_hash} for case in scored], summary)
    write_scores(evaluation, out)
    return evaluation


def _recorded_by_predict(folder: Path) -> Provenance:
    """The Provenance from ``predictions.json`` and the journals of processes that still run or were killed."""
    file = folder / PREDICTIONS
    if has_journals(folder) and (record := read_predictions(folder)):
        return provenance_of(record)
    if not file.is_file():
        return Provenance()
    found = read_record(file, Provenance, "the record of kitsseg predict", "Predict again or remove it.")
    return converted(absolute_paths(as_builtins(found), folder), Provenance)


def _record_of_scans(folder: Path) -> PredictionsRecord | None:
    """The record of ``kitsseg predict`` about the folder; None for label maps of another tool with its own record."""
    if (folder / PREDICTIONS).is_file() or has_journals(folder):
        with suppress(InputError):
            return read_predictions(folder)
    return None


def _mask_values(folder: Path) -> dict[str, tuple[int, ...]]:
    """The values of the masks that ``kitsseg predict`` wrote, by slice."""
    record = read_predictions(folder) if (folder / PREDICTIONS).is_file() or has_journals(folder) else None
    cases = record.cases if record else {}
    return {Path(name).stem: entry.mask_values for name, entry in cases.items() if entry.mask_values}
