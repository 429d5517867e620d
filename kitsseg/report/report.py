"""``kitsseg report``: a run, its scores and pictures of its cases -> one HTML page, complete in itself.

The files of a run folder may have been edited, so the report checks what it takes from them.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path
from kitsseg.files.json_records import read_record
from kitsseg.interfaces import Progress
from kitsseg.records.run import RunFacts, read_history, read_run, read_sparsity
from kitsseg.report.page import Contents, build_page
from kitsseg.report.pictures import case_picture, case_preview
from kitsseg.scoring.scores_file import read_scores
from kitsseg.scoring.summary import Summary

__all__ = ["draw_report", "run_of_report", "write_preview", "write_report"]


def run_of_report(folder: Path) -> RunFacts:
    """What the page prints of a run.

    Raises: InputError for a folder of no run, and for a damaged or edited ``run.json``.
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        read_run(folder)  # says what is missing
    return read_record(path, RunFacts, "the record of a run", "Restore the file as kitsseg train wrote it.")


WORST, BEST = 6, 3  # cases with pictures: the page stays below 5 MB


def write_report(
    source: str | os.PathLike[str], out: str | os.PathLike[str], progress: Progress | None = None
) -> Path:
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
    return draw_report(_read(source), out, progress)


def draw_report(contents: Contents, out: Path, progress: Progress | None = None) -> Path:
    """Write the page of these contents, with pictures of the worst and the best cases. Args: as ``write_report``."""
    rows = sorted(contents.rows, key=lambda row: (row["composite"], row["case"]))
    drawn = rows if len(rows) <= WORST + BEST else rows[:WORST] + rows[-BEST:]
    pictures = {}
    files = contents.summary.cases if contents.summary else {}
    for done, row in enumerate(drawn):
        if progress:
            progress("draw", done, len(drawn))
        pictures[row["case"]] = case_picture(files[row["case"]])
    if progress and drawn:
        progress("draw", len(drawn), len(drawn))
    page = build_page(replace(contents, rows=rows), pictures)
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def _read(source: Path) -> Contents:
    """The contents of the page of a run folder or of a scores.csv."""
    scores = source / "scores.csv" if source.is_dir() else source
    rows: list[dict[str, Any]] = []
    summary: Summary | None = None
    notes: list[str] = []
    if scores.exists():
        rows, summary = read_scores(scores)
    else:
        notes.append(
            f"No scores yet: there is no {scores}. To get them: "
            f"kitsseg predict {source} CASES --out PREDICTIONS, then "
            f"kitsseg evaluate PREDICTIONS CASES --out {scores}."
        )
    folder: Path | None = source
    if not source.is_dir():
        folder = Path(summary.run) if summary and summary.run else None
    if folder is None:
        notes.append(
            "No training curves: the predictions were not made by kitsseg predict, so no run is known."
        )
    elif not source.is_dir() and not _holds_a_run(folder):
        notes.append(f"No training curves: the run folder {folder} is no longer there.")
    else:
        run, history, sparsity = run_of_report(folder), read_history(folder), read_sparsity(folder)
        return Contents(rows=rows, summary=summary, run=run, history=history, sparsity=sparsity, notes=notes)
    return Contents(rows=rows, summary=summary, notes=notes)


def write_preview(
    scores: str | os.PathLike[str], out: str | os.PathLike[str], case: str | None = None
) -> str:
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
        named = [row for row in rows if row["case"] == case]
        if not named:
            names = ", ".join(row["case"] for row in rows[:5])
            raise InputError(f"{scores}: expected {case} among its {len(rows)} cases, found {names} ...")
        row = named[0]
    title = f"{row['case']}   TK {row['tk_dice']:.3f}   TU {row['tu_dice']:.3f}   "
    title += "blue: truth, orange: prediction; dark: kidney, light: tumor"
    picture = case_preview(summary.cases[row["case"]], title)
    with atomic_path(out) as temporary:
        picture.save(temporary, "PNG", optimize=True)
    shown: str = row["case"]
    return shown


def _holds_a_run(folder: Path) -> bool:
    """Whether there is a run in a folder that a record names; the name may be one that no system takes."""
    try:
        return (folder / "run.json").is_file()
    except (OSError, ValueError):
        return False
