"""``kitsseg report``: a run, its scores and pictures of its cases -> one HTML page, complete in itself."""

import csv
import json
from pathlib import Path

from kitsseg.atomic import atomic_path
from kitsseg.errors import InputError
from kitsseg.report_page import COLUMNS, build_page
from kitsseg.report_pictures import case_picture
from kitsseg.run import read_history, read_run
from kitsseg.scores import SCORES

__all__ = ["read_scores", "write_report"]


def write_report(source, out, progress=None):
    """Write the page.

    Args:
        source: a run folder (its scores are RUN/scores.csv, if they exist) or a scores.csv with its
            scores.json, which names the run.
        out: the .html file to write.
        progress: called as ``progress(description, done, total)``.

    Returns: path of the page.
    Raises: InputError if ``source`` is neither, or damaged. A file that only a picture needs may be missing:
        the page then says so in its place.
    """
    source, out = Path(source), Path(out)
    if out.suffix not in (".html", ".htm") or out.is_dir():
        raise InputError(f"{out}: expected the name of an .html file to write.")
    if not source.exists():
        raise InputError(f"{source}: expected a run folder or a scores.csv, found nothing.")
    rows, summary, run, history, notes = [], {}, {}, [], []
    if source.is_dir():
        folder, scores = source, source / "scores.csv"
        if scores.exists():
            rows, summary = read_scores(scores)
        else:
            notes.append(
                f"No scores yet: there is no {scores}. To get them: "
                f"kitsseg predict {source} CASES --out PREDICTIONS, then "
                f"kitsseg evaluate PREDICTIONS CASES --out {scores}."
            )
    else:
        rows, summary = read_scores(source)
        folder = Path(summary["run"]) if summary.get("run") else None
    if folder is None:
        notes.append(
            "No training curves: the predictions were not made by kitsseg predict, so no run is known."
        )
    elif not source.is_dir() and not (folder / "run.json").is_file():
        notes.append(f"No training curves: the run folder {folder} is no longer there.")
    else:
        run, history = read_run(folder), read_history(folder)
    rows = sorted(rows, key=lambda row: (row["composite"], row["case"]))
    pictures = {}
    for done, row in enumerate(rows):
        if progress:
            progress("draw", done, len(rows))
        pictures[row["case"]] = case_picture(summary["cases"][row["case"]])
    if progress and rows:
        progress("draw", len(rows), len(rows))
    page = build_page(rows, summary, run, history, pictures, notes)
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def read_scores(path):
    """The rows of a scores.csv with numbers as numbers, and its scores.json.

    Raises: InputError if either is missing, or not written by ``kitsseg evaluate``.
    """
    path = Path(path)
    beside = path.with_suffix(".json")
    again = "Run kitsseg evaluate again."
    if not beside.is_file():
        raise InputError(f"{beside}: expected the summary of {path.name} beside it, found nothing. {again}")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [_numbers(row) for row in csv.DictReader(file)]
        summary = json.loads(beside.read_text(encoding="utf-8"))
        expected, found = sorted(summary["cases"]), sorted(row["case"] for row in rows)
        means = {name: summary["scores"][name]["mean"] for name in SCORES}
        for row in rows:
            _ = [row[name] for name in ("empty", *COLUMNS)]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path}: expected the scores of kitsseg evaluate, found others ({error!r}). {again}"
        ) from error
    if not rows or expected != found:
        raise InputError(
            f"{path}: has {len(found)} cases, {beside.name} beside it {len(expected)} others. {again}"
        )
    for name, mean in means.items():
        if abs(mean - sum(row[name] for row in rows) / len(rows)) > 1e-9:
            raise InputError(f"{path}: the mean of {name} is not the {mean:.6g} of {beside.name}. {again}")
    return rows, summary


def _numbers(row):
    return {key: value if key in ("case", "empty") else float(value) for key, value in row.items()}
