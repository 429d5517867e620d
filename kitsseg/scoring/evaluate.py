"""``kitsseg evaluate``: pair predictions with their truth, score each pair, write scores.csv and scores.json."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from kitsseg.data.cache.sources import same_contents
from kitsseg.data.layouts.find import Layout, find_cases
from kitsseg.data.layouts.names import (
    IMAGE_NAMES,
    LABEL_NAMES,
    case_of_prediction,
    folder_name,
    in_case_folder,
    is_nifti,
    prediction_name,
)
from kitsseg.data.layouts.slices import has_slices
from kitsseg.errors import InputError, some_of
from kitsseg.files.paths import as_given
from kitsseg.files.tables import csv_path
from kitsseg.interfaces import Progress
from kitsseg.records.predictions import PredictionsRecord, changed_since, read_predictions
from kitsseg.records.scan_part import scan_is_there
from kitsseg.scoring.cases import CLASSES, Pair, columns_of, score_pair
from kitsseg.scoring.scores_file import Evaluation, write_scores
from kitsseg.scoring.summary import LeftOut, Provenance, recorded_by_predict, summarize

__all__ = ["COLUMNS", "Evaluation", "Pairs", "evaluate_folders", "evaluate_pairs", "find_pairs", "pairs_of"]

COLUMNS = columns_of("kits19", surface=False)
_LABELS = {name.lower() for name in LABEL_NAMES}


@dataclass(frozen=True)
class Pairs:
    """The pairs, sorted by case, and the names of predictions without a truth and of truths without a prediction."""

    pairs: list[Pair]
    truth_without_prediction: list[str] = field(default_factory=list)
    prediction_without_truth: list[str] = field(default_factory=list)


def evaluate_folders(
    prediction: str | os.PathLike[str],
    truth: str | os.PathLike[str],
    out: str | os.PathLike[str],
    progress: Progress | None = None,
    layout: Layout | None = None,
    classes: str = "kits19",
    surface: bool = False,
) -> Evaluation:
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

    Returns: Evaluation. Truth cases without a prediction and predictions without a truth are not scored:
        ``truth_without_prediction`` and ``prediction_without_truth`` in the summary name them. ``of_other_scans``
        names cases whose label map was predicted from another scan than the one that lies beside the truth, and
        ``changed`` those whose label map is not the one that ``kitsseg predict`` recorded.
    Raises: InputError for predictions of which none has a truth, files on different grids, files that are no label
        maps, two predictions of one case, or a folder of single slices, which ``evaluate_slices`` scores.
    """
    prediction, truth, out = Path(prediction), Path(truth), csv_path(out, "scores")
    if classes not in CLASSES:
        raise InputError(f"classes: expected {' or '.join(CLASSES)}, found {classes}.")
    if truth.is_dir() and has_slices(truth):
        raise InputError(
            f"{truth}: expected scans, as --classes kits23 and --surface need, found single slices. In Python, "
            "kitsseg.evaluate_slices scores them."
        )
    found = find_pairs(prediction, truth, layout)
    folder = prediction if prediction.is_dir() else prediction.parent
    record = _record_of_scans(folder)
    changed = changed_since(record, {pair.case: pair.prediction for pair in found.pairs})
    return evaluate_pairs(
        replace(found, pairs=_with_scans(found.pairs, record)),
        recorded_by_predict(folder),
        out,
        doubtful=(_of_other_scans(found.pairs, record), changed),
        classes=classes,
        surface=surface,
        progress=progress,
    )


def evaluate_pairs(
    found: Pairs,
    provenance: Provenance,
    out: Path,
    *,
    doubtful: tuple[Sequence[str], Sequence[str]] = ((), ()),
    classes: str = "kits19",
    surface: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Score pairs of label maps and truth, and write ``out`` and the JSON file beside it.

    Args:
        found: the label maps and their truth.
        provenance: Provenance of the label maps.
        out: the .csv file to write.
        doubtful: names of cases whose label map was predicted from another scan than the truth is of, and of those
            whose label map has changed since it was predicted.
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
    left_out = LeftOut(found.truth_without_prediction, found.prediction_without_truth, *map(list, doubtful))
    summary = summarize(scored, provenance, left_out, classes, surface)
    evaluation = Evaluation([case.row | {"split_hash": split_hash} for case in scored], summary)
    write_scores(evaluation, out)
    return evaluation


def find_pairs(
    prediction: str | os.PathLike[str], truth: str | os.PathLike[str], layout: Layout | None = None
) -> Pairs:
    """Match predictions and truth by name.

    Args:
        prediction, truth: as in ``evaluate_folders``.
        layout: Layout of the truth.

    Raises: InputError as ``evaluate_folders``.
    """
    prediction, truth = Path(prediction), Path(truth)
    for path in (prediction, truth):
        if not path.exists():
            raise InputError(
                f"{path}: expected a label map or a folder of them, found nothing. Check the path."
            )
    named = [(case_of_prediction(file), file) for file in _prediction_files(prediction)]
    if truth.is_file() and prediction.is_dir():
        file = dict(named).get(case_of_prediction(truth), named[0][1])
        raise InputError(
            f"{truth}: expected a folder of cases, as {prediction} is a folder; found a file. Give the prediction's "
            f"file too ({file}), or the folder of the cases."
        )
    if truth.is_file():
        case = folder_name(as_given(truth).parent) if in_case_folder(truth) else named[0][0]
        return Pairs([Pair(case, prediction, truth, (layout or Layout()).label_values, _beside(truth))])
    return pairs_of(named, truth, layout)


def pairs_of(predictions: Iterable[tuple[str, Path]], truth: Path, layout: Layout | None = None) -> Pairs:
    """Match label maps whose cases are known, as (case, file), with their truth.

    Args:
        predictions: (name of the case, label map) of each.
        truth: a folder of cases.
        layout: Layout of ``truth``.

    Raises: InputError as ``evaluate_folders``.
    """
    cases = find_cases(truth, need_labels=False, need_image=False, layout=layout)
    labels = {case.name: case for case in cases if case.labels is not None}
    found: dict[str, Pair] = {}
    alone: dict[str, Path] = {}
    for case, file in predictions:
        if case not in labels:
            alone[case] = file
            continue
        if case in found:
            raise InputError(
                f"{file}: a second prediction of {case}, beside {found[case].prediction}. Remove one."
            )
        image = labels[case].image
        found[case] = Pair(
            case,
            file,
            labels[case].truth,
            labels[case].label_values,
            image if image and image.exists() else None,
        )
    if not found:
        raise _no_pair(alone, sorted(labels), truth, layout or Layout())
    missing = [case for case in labels if case not in found]
    return Pairs([found[case] for case in sorted(found)], missing, sorted(alone))


def _no_pair(alone: dict[str, Path], labels: Sequence[str], truth: Path, layout: Layout) -> InputError:
    """The error for predictions, by case, of which none has a label map among those of the cases ``labels``."""
    case, file = next(iter(alone.items()))
    other = " or any other" if len(alone) > 1 else ""
    cases = some_of(labels, 3) or "no case"
    if labels and (layout.images is not None or layout.labels is not None):
        same = "with --images" if layout.images is None else "with the same --images"
        return InputError(
            f"{file}: no truth for this prediction{other}; expected a label map of {case}, found label maps of "
            f"{cases}. Predict again {same}, so that scans and label maps share names, or rename the prediction to "
            f"{prediction_name(labels[0])}."
        )
    return InputError(
        f"{file}: no truth for this prediction{other}; expected {truth / case / LABEL_NAMES[0]}, found truth of "
        f"{cases}. Name the folder that holds the truth, or the label maps as their cases."
    )


def _of_other_scans(pairs: Iterable[Pair], record: PredictionsRecord | None) -> list[str]:
    """Cases whose label map was made of another scan than the one beside the truth, as far as ``record`` knows.

    Times are not compared, because a copy has another time.
    """
    if record is None:
        return []
    found = []
    for pair in pairs:
        entry, scan = record.cases.get(pair.case), pair.image
        if entry is None or scan is None or entry.file != pair.prediction.name:
            continue
        if not same_contents(entry.source, scan):
            found.append(pair.case)
    return found


def _with_scans(pairs: Sequence[Pair], record: PredictionsRecord | None) -> list[Pair]:
    """The pairs with what the record of predict says about their scans.

    Where no CT lies beside the truth, the scan that was segmented is taken for the report's pictures.
    """
    if record is None:
        return [*pairs]
    found = []
    for pair in pairs:
        entry = record.cases.get(pair.case)
        if entry is not None and entry.file == pair.prediction.name:
            scan = Path(entry.image)
            pair = replace(pair, phantom=entry.phantom)
            if pair.image is None and scan_is_there(scan, entry.part):
                pair = replace(pair, image=scan)
            if pair.image is not None and as_given(pair.image) == scan:
                pair = replace(pair, part=entry.part)
        found.append(pair)
    return found


def _record_of_scans(folder: Path) -> PredictionsRecord | None:
    """The record of ``kitsseg predict`` about the folder; None for label maps of another tool with its own record."""
    with suppress(InputError):
        return read_predictions(folder)
    return None


def _beside(truth: Path) -> Path | None:
    return next((truth.parent / name for name in IMAGE_NAMES if (truth.parent / name).exists()), None)


def _prediction_files(prediction: Path) -> list[Path]:
    if prediction.is_file():
        return [prediction]
    files = []
    for entry in prediction.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files += [file for file in entry.iterdir() if file.name.lower() in _LABELS and not file.is_dir()]
        elif is_nifti(entry) and entry.name.lower() not in IMAGE_NAMES:
            files.append(entry)
    if not files:
        raise InputError(
            f"{prediction}: expected predictions such as {prediction_name('case_00000')}, found none. "
            "Try: kitsseg predict"
        )
    return sorted(files)
