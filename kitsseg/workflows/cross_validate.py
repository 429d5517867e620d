"""Cross-validation: every case is scored by the run that used it neither for training nor for choosing an epoch.

    OUT/run.json      the folds and the settings that they share
    OUT/fold-0/       the run without the cases of fold 0, an ordinary run; its predictions/ hold the cases of the fold
    OUT/predictions/  the label maps of all cases
    OUT/scores.csv    a row per case, and scores.json beside it
    OUT/folds.csv     the means of each fold, and last those of all cases
    OUT/report.html   one page; its curves are those of OUT/history.csv, all folds one after another

The fold is the *test* part of its run; the best epoch is chosen by validation cases, which are drawn from the other
folds. If the fold itself is used for this choice, as in much published code, its scores are too high.
"""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kitsseg.data.cache.cases import open_cache
from kitsseg.data.layouts.find import Layout
from kitsseg.data.layouts.names import prediction_name
from kitsseg.data.layouts.slices import has_slices
from kitsseg.data.splits import CaseSplit
from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path
from kitsseg.files.json_records import as_builtins, converted
from kitsseg.files.locks import folder_lock
from kitsseg.files.tables import write_rows
from kitsseg.inference.cohort import predict_cohort
from kitsseg.inference.outcome import check_all_done
from kitsseg.recipe import Recipe
from kitsseg.records.made_by import PartOfSplit
from kitsseg.records.predictions import PredictionsRecord, write_predictions
from kitsseg.records.run import RunFacts, RunRecord, read_history, update_run, write_history
from kitsseg.report.page import Contents
from kitsseg.report.report import draw_report
from kitsseg.scoring.evaluate import evaluate_pairs, pairs_of
from kitsseg.scoring.summary import Summary, provenance_of
from kitsseg.training.options import Progress, TrainOptions
from kitsseg.training.state import clear_up
from kitsseg.training.train import train_recipe
from kitsseg.workflows.folds import FoldRun, Folds, check_unseen, fold_splits, is_trained, start_folds

__all__ = ["COLUMNS", "CrossValidation", "Scans", "score_folds", "train_folds"]

MEANS = ("tk_dice", "tu_dice", "composite", "kidney_label_dice", "tumor_precision", "tumor_recall")
COLUMNS = ("fold", "cases", "train", "validation", "epochs", *MEANS)


@dataclass(frozen=True)
class Scans:
    """Where the scans of the cases lie, and their label maps.

    Attributes:
        data: a folder in any layout of ``find_cases``.
        layout: which files are meant, if the folder alone does not tell it.
    """

    data: str | os.PathLike[str]
    layout: Layout | None = None


@dataclass(frozen=True)
class CrossValidation:
    """The result: ``rows`` as in scores.csv, ``folds`` as in folds.csv, ``summary`` as in scores.json."""

    rows: list[dict[str, Any]]
    folds: list[dict[str, Any]]
    summary: Summary


def train_folds(
    recipe: Recipe,
    cache: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: TrainOptions | None = None,
    *,
    folds: int = 5,
    only: Iterable[int] | None = None,
    scans: Scans | None = None,
) -> list[int]:
    """Train the folds, or some of them. Finished folds are left alone, unfinished ones go on.

    Several processes may use the same ``out`` if each trains other folds.

    Args:
        recipe, cache: as in ``train_recipe``.
        out: folder for everything.
        options: of the training of each fold; its seed does not change the folds.
        folds: number of folds of the cases in the cache.
        only: numbers of the folds to train, from 0; all by default.
        scans: where the scans lie, to predict the cases of a fold right after its training; None: train only.

    Returns: numbers of the folds that are not trained yet.
    Raises: InputError if ``out`` holds anything else, and as ``train_recipe`` and ``predict_cases``.
    """
    out, options = Path(out), options or TrainOptions()
    _only_scans(None if scans is None else scans.data)
    if options.devices.processes > 1:
        raise InputError(
            "cross-validate: several processes train one network together; expected one for each fold or shard. "
            "Leave --coordinator out, and give every job a --shard."
        )
    cases = open_cache(cache, recipe.preprocess)
    splits = fold_splits(cases, folds)
    only = range(folds) if only is None else only
    if outside := [number for number in only if not 0 <= number < folds]:
        raise InputError(f"--fold: expected 0 to {folds - 1}, found {outside[0]}.")
    shared = {"seed": options.seed or 0, "epochs": options.epochs} | options.computing
    start_folds(out, recipe, splits, shared)
    for number in only:
        run, report = out / f"fold-{number}", _of_fold(number, folds, options.progress)
        if not is_trained(run, splits[number]):
            resume = (run / "run.json").is_file()
            train_recipe(recipe, cache, splits[number], run, replace(options, resume=resume, progress=report))
        else:
            _clear_up(run)
        if scans is not None:
            _predict(run, splits[number].test, scans, report)
    return [number for number in range(folds) if not is_trained(out / f"fold-{number}", splits[number])]


def _clear_up(run: Path) -> None:
    """Remove the remains of killed processes from a trained fold, unless another process is still writing there."""
    with suppress(InputError), folder_lock(run, "train", wait=False):
        clear_up(run)


def _only_scans(data: str | os.PathLike[str] | None) -> None:
    """Refuse single slices, because a cross-validation scores whole cases.

    Raises: InputError.
    """
    if data is not None and has_slices(Path(data)):
        raise InputError(
            f"{data}: expected scans, found single slices. Train each fold of patients by itself, kitsseg train "
            "--split FILE, and put the slice scores together."
        )


def score_folds(
    out: str | os.PathLike[str], scans: Scans, progress: Progress | None = None
) -> CrossValidation:
    """Predict every case with the run that has not seen it, score all cases, and write tables and report.

    Args:
        out: folder of ``train_folds`` in which all folds are trained.
        scans: where the scans and their label maps lie.
        progress: called as progress(description, done, total).

    Returns: CrossValidation.
    Raises: InputError for a fold that is not trained, a case that its run has seen or that could not be predicted.
    """
    out = Path(out)
    _only_scans(scans.data)
    folds = check_unseen(out)
    predicted = [
        _predict(run.folder, run.split.test, scans, _of_fold(number, len(folds.runs), progress))
        for number, run in enumerate(folds.runs)
    ]
    files = _gather(out / "predictions", folds.runs, predicted)
    record, history = _finish(out, folds)
    made_by = _made_by(out, folds.plan, predicted)
    write_predictions(out / "predictions", made_by)
    evaluation = evaluate_pairs(
        pairs_of(files, Path(scans.data), scans.layout),
        provenance_of(made_by),
        out / "scores.csv",
        progress=progress,
    )
    rows = _table(evaluation.rows, [run.split for run in folds.runs], history)
    write_rows(out / "folds.csv", rows, COLUMNS)
    contents = Contents(
        rows=evaluation.rows,
        summary=evaluation.summary,
        run=converted(as_builtins(record), RunFacts),
        history=[row for of_fold in history for row in of_fold],
    )
    draw_report(contents, out / "report.html", progress)
    return CrossValidation(evaluation.rows, rows, evaluation.summary)


def _of_fold(number: int, folds: int, progress: Progress | None) -> Progress | None:
    """``progress`` with the number of the fold in each description."""
    if progress is None:
        return None
    return lambda description, done, total: progress(f"fold {number} of {folds}: {description}", done, total)


def _predict(run: Path, cases: Sequence[str], scans: Scans, progress: Progress | None) -> PredictionsRecord:
    """Predict the cases of a fold: their label maps, and the content of its predictions.json."""
    folder = run / "predictions"
    outcome = predict_cohort(run, [scans.data], folder, "test", layout=scans.layout, progress=progress)
    check_all_done(outcome, folder)
    written = {path.name for path in outcome.written}
    if absent := sorted(case for case in cases if prediction_name(case) not in written):
        raise InputError(
            f"{scans.data}: {len(absent)} of the {len(cases)} cases of {run.name} are not there, such as "
            f"{absent[0]}. Give the folder that the cache was made from."
        )
    return outcome.record


def _gather(
    folder: Path, runs: Sequence[FoldRun], predicted: Sequence[PredictionsRecord]
) -> list[tuple[str, Path]]:
    """Copy the label map of every case from the predictions of its fold to one folder; returns (case, file) of each."""
    files = []
    for run, record in zip(runs, predicted, strict=True):
        for case in run.split.test:
            file = record.cases[case].file
            with atomic_path(folder / file) as temporary:
                shutil.copyfile(run.folder / "predictions" / file, temporary)
            files.append((case, folder / file))
    return files


def _made_by(out: Path, plan: RunRecord, predicted: list[PredictionsRecord]) -> PredictionsRecord:
    """The MadeBy of the label maps of all cases: the networks of all folds, one for each case."""
    cases = {case: entry for record in predicted for case, entry in record.cases.items()}
    phantom = bool(cases) and all(entry.phantom for entry in cases.values())
    return replace(
        predicted[0],
        run=str(out.resolve()),
        networks=[network for record in predicted for network in record.networks],
        engine=", ".join(dict.fromkeys(record.engine for record in predicted if record.engine)),
        split=PartOfSplit(name=plan.split.name, hash=plan.split.hash, part="test"),
        phantom=phantom,
        cases={case: cases[case] for case in sorted(cases)},
        failed={},
    )


def _finish(out: Path, folds: Folds) -> tuple[RunRecord, list[list[dict[str, Any]]]]:
    """Write run.json and history.csv of the whole cross-validation.

    Returns: (content of run.json, rows of the history of all folds; the name of a phase includes the fold).
    """
    records = [run.record for run in folds.runs]
    history = [
        [row | {"phase": f"fold-{number} {row['phase']}"} for row in read_history(run.folder)]
        for number, run in enumerate(folds.runs)
    ]
    write_history(out, [row for of_fold in history for row in of_fold])
    seconds = round(sum(record.seconds for record in records), 1)
    phantom = any(record.phantom for record in records)
    record = replace(folds.plan, status="finished", seconds=seconds, phantom=phantom)
    update_run(out, record)
    return record, history


def _table(
    rows: Sequence[Mapping[str, Any]],
    splits: Sequence[CaseSplit],
    histories: Sequence[Sequence[Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    scores = {row["case"]: row for row in rows}
    table = []
    for number, (split, history) in enumerate(zip(splits, histories, strict=True)):
        counts = {"cases": len(split.test), "train": len(split.train), "validation": len(split.validation)}
        means = {name: float(np.mean([scores[case][name] for case in split.test])) for name in MEANS}
        table.append({"fold": str(number)} | counts | {"epochs": len(history)} | means)
    means = {name: float(np.mean([row[name] for row in rows])) for name in MEANS}
    return [*table, {"fold": "all", "cases": len(rows), "train": "", "validation": "", "epochs": ""} | means]
