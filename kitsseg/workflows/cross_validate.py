"""Cross-validation: every case is scored by the one run that was neither trained on it nor chosen by it.

    OUT/run.json      the folds and the settings that they share
    OUT/fold-0/       the run that leaves fold 0 out, an ordinary one; its own predictions/ hold the cases of the fold
    OUT/predictions/  the label maps of all cases
    OUT/scores.csv    a row per case, and scores.json beside it
    OUT/folds.csv     the means of each fold, and last those of all cases
    OUT/report.html   one page; its curves are those of OUT/history.csv, all folds one after another

The fold is the *test* part of its run; the best epoch is chosen by validation cases drawn from the others. Folds that
serve for that choice too, as in much published code, flatter their own scores.
"""

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kitsseg.data.cache.cases import open_cache
from kitsseg.data.layouts.names import prediction_name
from kitsseg.data.layouts.slices import has_slices
from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path
from kitsseg.inference.cohort import predict_cases
from kitsseg.records.predictions import read_predictions, write_predictions
from kitsseg.records.run import read_history, read_run, update_run, write_history
from kitsseg.report.report import write_report
from kitsseg.scoring.evaluate import evaluate_folders
from kitsseg.training.train import train_recipe
from kitsseg.workflows.folds import check_unseen, fold_splits, is_trained, read_folds, start_folds

__all__ = ["COLUMNS", "CrossValidation", "score_folds", "train_folds"]

MEANS = ("tk_dice", "tu_dice", "composite", "kidney_label_dice", "tumor_precision", "tumor_recall")
COLUMNS = ("fold", "cases", "train", "validation", "epochs", *MEANS)


@dataclass(frozen=True)
class CrossValidation:
    """What was written: ``rows`` as in scores.csv, ``folds`` as in folds.csv, ``summary`` as in scores.json."""

    rows: list[dict]
    folds: list[dict]
    summary: dict


def train_folds(
    recipe,
    cache,
    out,
    folds=5,
    only=None,
    seed=0,
    epochs=None,
    data=None,
    layout=None,
    progress=None,
    **options,
):
    """Train the folds, or some of them; those that are done are left out, unfinished ones go on.

    Several processes may share ``out`` if each trains other folds.

    Args:
        recipe, cache, seed, epochs, progress: as in ``train_recipe``; the seed does not change the folds.
        out: folder for everything.
        folds: number of folds of the cases in the cache.
        only: numbers of the folds to train, from 0; all by default.
        data: folder of the scans, to predict the cases of each fold at once.
        layout: Layout of ``data``.
        options: further arguments of ``train_recipe``, such as ``precision``.

    Returns: numbers of the folds that are not trained yet.
    Raises: InputError if ``out`` holds something else, and whatever ``train_recipe`` and ``predict_cases`` refuse.
    """
    out = Path(out)
    _only_scans(data)
    if options.get("devices") is not None and options["devices"].processes > 1:
        raise InputError(
            "cross-validate: several processes train one network together; expected one for each fold or shard. "
            "Leave --coordinator out, and give every job a --shard."
        )
    cases = open_cache(cache, recipe.preprocess)
    splits = fold_splits(cases, folds)
    only = range(folds) if only is None else only
    if outside := [number for number in only if not 0 <= number < folds]:
        raise InputError(f"--fold: expected 0 to {folds - 1}, found {outside[0]}.")
    shared = {"seed": seed, "epochs": epochs}
    shared |= {key: options.get(key) for key in ("precision", "accumulate", "ema")}
    start_folds(out, recipe, splits, shared)
    for number in only:
        run = out / f"fold-{number}"
        if not is_trained(run, splits[number]):
            resume = (run / "run.json").is_file()
            report = _of_fold(number, folds, progress)
            train_recipe(recipe, cache, splits[number], run, seed, epochs, resume, report, **options)
        if data is not None:
            _predict(run, splits[number], data, layout, _of_fold(number, folds, progress))
    return [number for number in range(folds) if not is_trained(out / f"fold-{number}", splits[number])]


def _only_scans(data: Path | str | None) -> None:
    """Refuse single slices: what is scored here are whole cases.

    Raises: InputError.
    """
    if data is not None and has_slices(Path(data)):
        raise InputError(
            f"{data}: expected scans, found single slices. Train each fold of patients by itself, kitsseg train "
            "--split FILE, and put the slice scores together."
        )


def score_folds(out, data, layout=None, progress=None):
    """Predict every case with the run that never saw it, score all, and write tables and report.

    Args:
        out: folder of ``train_folds``, all of whose folds are trained.
        data: folder of scans and their label maps, in any layout of ``find_cases``.
        layout: Layout, where the folder alone does not say which files are meant.
        progress: called as progress(description, done, total).

    Returns: CrossValidation.
    Raises: InputError for a fold that is not trained, a case that its run has seen or that could not be predicted.
    """
    out = Path(out)
    _only_scans(data)
    plan = read_folds(out)
    folds = len(plan["cross_validation"]["folds"])
    runs = check_unseen(out)
    predicted = [
        _predict(run, split, data, layout, _of_fold(number, folds, progress))
        for number, (run, split) in enumerate(runs)
    ]
    _gather(out, plan, runs, predicted)
    records, histories = ([read(run) for run, _ in runs] for read in (read_run, read_history))
    named = [
        row | {"phase": f"fold-{number} {row['phase']}"}
        for number, history in enumerate(histories)
        for row in history
    ]
    write_history(out, named)
    seconds = round(sum(record.get("seconds", 0) for record in records), 1)
    phantom = any(record.get("phantom") for record in records)
    update_run(out, plan | {"status": "finished", "seconds": seconds, "phantom": phantom})
    result = evaluate_folders(out / "predictions", data, out / "scores.csv", progress, layout)
    rows = _table(result.rows, [split for _, split in runs], histories)
    with atomic_path(out / "folds.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_report(out / "scores.csv", out / "report.html", progress)
    return CrossValidation(result.rows, rows, result.summary)


def _of_fold(number, folds, progress):
    """What is reported of a fold says which it is."""
    if progress is None:
        return None
    return lambda description, done, total: progress(f"fold {number} of {folds}: {description}", done, total)


def _predict(run, split, data, layout, progress):
    """Label maps of the cases of a fold; returns the content of its predictions.json."""
    folder = run / "predictions"
    written = predict_cases(run, [data], folder, "test", layout=layout, progress=progress)
    absent = {prediction_name(case): case for case in split.test}
    for path in written:
        absent.pop(path.name)
    if absent:
        raise InputError(
            f"{data}: {len(absent)} of the {len(split.test)} cases of {run.name} are not there, such as "
            f"{min(absent.values())}. Give the folder that the cache was made from."
        )
    return read_predictions(folder)


def _gather(out, plan, runs, predicted):
    """All label maps in one folder, with one record, as if one run had made them."""
    cases = {case: entry for record in predicted for case, entry in record["cases"].items()}
    for (run, split), record in zip(runs, predicted, strict=True):
        for case in split.test:
            file = record["cases"][case]["file"]
            with atomic_path(out / "predictions" / file) as temporary:
                shutil.copyfile(run / "predictions" / file, temporary)
    engines = dict.fromkeys(record["engine"] for record in predicted)
    record = predicted[0] | {
        "run": str(out.resolve()),
        "networks": [network for record in predicted for network in record["networks"]],
        "engine": ", ".join(engines),
        "split": {"name": plan["split"]["name"], "hash": plan["split"]["hash"], "part": "test"},
        "phantom": any(record["phantom"] for record in predicted),
        "cases": {case: cases[case] for case in sorted(cases)},
        "failed": {},
    }
    write_predictions(out / "predictions", record)


def _table(rows, splits, histories):
    scores = {row["case"]: row for row in rows}
    table = []
    for number, (split, history) in enumerate(zip(splits, histories, strict=True)):
        counts = {"cases": len(split.test), "train": len(split.train), "validation": len(split.validation)}
        means = {name: float(np.mean([scores[case][name] for case in split.test])) for name in MEANS}
        table.append({"fold": str(number)} | counts | {"epochs": len(history)} | means)
    means = {name: float(np.mean([row[name] for row in rows])) for name in MEANS}
    return [*table, {"fold": "all", "cases": len(rows), "train": "", "validation": "", "epochs": ""} | means]
