"""``kitsseg report``: a run, its scores and pictures of its cases -> one HTML page, complete in itself.

The files of a run folder may have been edited, so the report checks what it takes from them.
"""

import csv
from pathlib import Path

from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path
from kitsseg.records.run import read_history, read_run
from kitsseg.report.page import build_page
from kitsseg.report.pictures import case_picture, case_preview
from kitsseg.scoring.scores_file import ANY, COUNT, NUMBER, TEXT, check_form, read_scores

__all__ = ["read_sparsity", "run_of_report", "write_preview", "write_report"]

FORM = {
    "recipe?": TEXT,
    "paper?": TEXT,
    "reported?": {None: ANY},
    "given?": {None: ANY},
    "versions?": {None: TEXT},
    "split?": {"name?": TEXT, "hash?": TEXT, "cases?": {None: [TEXT]}},
    "seconds?": NUMBER,
    "seed?": COUNT,
    "status?": TEXT,
    "kitsseg?": TEXT,
}
COLUMNS = ("weights", "shape", "pruned", "size", "zeros", "sparsity")


def run_of_report(folder):
    """The record of a run, with what the page prints of it checked.

    Raises: InputError.
    """
    record = read_run(folder)
    check_form(record, FORM, Path(folder) / "run.json", "Restore the file as kitsseg train wrote it.")
    return record


def read_sparsity(folder):
    """Rows of RUN/sparsity.csv with numbers as numbers; empty for a run that was not pruned.

    Raises: InputError if it is damaged.
    """
    path = Path(folder) / "sparsity.csv"
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: row[name] for name in COLUMNS} for row in csv.DictReader(file)]
        for row in rows:
            row |= {"size": int(row["size"]), "zeros": int(row["zeros"]), "sparsity": float(row["sparsity"])}
            if not (0 <= row["zeros"] <= row["size"] and 0 <= row["sparsity"] <= 1):
                raise ValueError(f"{row['zeros']} zeros of {row['size']}")
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path}: expected a row for each weight matrix, found others ({error!r})."
        ) from error
    return rows


WORST, BEST = 6, 3  # cases with pictures: the page stays below 5 MB


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
    rows, summary, run, history, sparsity, notes = [], {}, {}, [], [], []
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
        run, history, sparsity = run_of_report(folder), read_history(folder), read_sparsity(folder)
    rows = sorted(rows, key=lambda row: (row["composite"], row["case"]))
    drawn = rows if len(rows) <= WORST + BEST else rows[:WORST] + rows[-BEST:]
    pictures = {}
    for done, row in enumerate(drawn):
        if progress:
            progress("draw", done, len(drawn))
        pictures[row["case"]] = case_picture(summary["cases"][row["case"]])
    if progress and drawn:
        progress("draw", len(drawn), len(drawn))
    page = build_page(rows, summary, run, history, pictures, notes, sparsity)
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def write_preview(scores, out, case=None):
    """Write the picture of one case as a PNG.

    Args:
        scores: scores.csv, or a run folder that holds it.
        out: the .png file to write.
        case: its name; None: the one with the worst composite.

    Returns: name of the case.
    Raises: InputError for scores without this case, or files that are missing or damaged.
    """
    scores, out = Path(scores), Path(out)
    scores = scores / "scores.csv" if scores.is_dir() else scores
    if out.suffix != ".png" or out.is_dir():
        raise InputError(f"{out}: expected the name of a .png file to write.")
    if not scores.exists():
        raise InputError(f"{scores}: expected the scores of kitsseg evaluate, found nothing.")
    rows, summary = read_scores(scores)
    row = min(rows, key=lambda row: (row["composite"], row["case"]))
    if case is not None:
        row = next((row for row in rows if row["case"] == case), None)
        if row is None:
            names = ", ".join(row["case"] for row in rows[:5])
            raise InputError(f"{scores}: expected {case} among its {len(rows)} cases, found {names} ...")
    title = f"{row['case']}   TK {row['tk_dice']:.3f}   TU {row['tu_dice']:.3f}   "
    title += "blue: truth, orange: prediction; dark: kidney, light: tumor"
    picture = case_preview(summary["cases"][row["case"]], title)
    with atomic_path(out) as temporary:
        picture.save(temporary, "PNG", optimize=True)
    return row["case"]
