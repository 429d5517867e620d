"""``kitsseg report``: make one self-contained HTML page of a run, of scores or of label maps, with pictures of cases.

The files of a run folder may have been edited, so the report checks all values that it takes from them.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kitsseg.errors import InputError, command_line, some_of
from kitsseg.files.atomic import atomic_path
from kitsseg.files.json_records import read_record
from kitsseg.interfaces import Progress
from kitsseg.records.exported import format_of, read_metadata
from kitsseg.records.predictions import PredictedScan, PredictionsRecord, read_predictions
from kitsseg.records.run import RunFacts, read_history, read_run, read_sparsity
from kitsseg.records.starter import NO_PAPER, STARTER_NOTE, is_starter
from kitsseg.report.page import Contents, build_page
from kitsseg.report.pictures import case_picture, case_preview
from kitsseg.report.views import ShownCase
from kitsseg.scoring.cases import CaseFiles
from kitsseg.scoring.scores_file import read_scores
from kitsseg.scoring.summary import Summary

__all__ = ["WrittenReport", "draw_report", "make_report", "run_of_report", "write_preview", "write_report"]


def run_of_report(folder: Path) -> RunFacts:
    """The entries of ``run.json`` that the page shows.

    Raises: InputError if ``folder`` is not a run folder, and for a damaged or edited ``run.json``.
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        read_run(folder)  # says what is missing
    return read_record(path, RunFacts, "the record of a run", "Restore the file as kitsseg train wrote it.")


WORST, BEST = 6, 3  # cases with pictures
PICTURES_BYTES = 4_300_000  # of all of them together: the page stays below 5 MB
LARGEST_PICTURE = 1_000_000  # of one case
PHANTOM_NETWORK = "The network was trained on synthetic patients only."
CASES_NAMED = 5
COLORS_OF_TRUTH = "truth: blue, tumor white; prediction: red, tumor yellow"
COLORS_WITHOUT_TRUTH = "prediction: red, tumor yellow"


@dataclass(frozen=True)
class WrittenReport:
    """A page that was written.

    Attributes:
        path: of the page.
        pictures: number of cases that the page shows or should show.
        missing: name -> reason, of those of them that have no picture.
    """

    path: Path
    pictures: int
    missing: dict[str, str]


def write_report(
    source: str | os.PathLike[str], out: str | os.PathLike[str], progress: Progress | None = None
) -> Path:
    """Write the page.

    Args:
        source: a run folder (its scores are RUN/scores.csv, if they exist); a scores.csv with its
            scores.json, which names the run; or a folder of label maps with its predictions.json, which have no truth.
        out: the .html file to write.
        progress: called as ``progress(description, done, total)``.

    Returns: path of the page.
    Raises: InputError if ``source`` is none of these, or is damaged. If a file is missing that only a picture needs,
        the page says so in place of the picture.
    """
    return make_report(source, out, progress).path


def make_report(
    source: str | os.PathLike[str], out: str | os.PathLike[str], progress: Progress | None = None
) -> WrittenReport:
    """Write the page, and say which pictures it lacks. Args, Raises: as ``write_report``."""
    source, out = Path(source), Path(out)
    if out.suffix not in (".html", ".htm") or out.is_dir():
        raise InputError(f"{out}: expected the name of an .html file to write.")
    if not source.exists():
        raise InputError(
            f"{source}: expected a run folder, a scores.csv or a folder of predictions, found nothing. Check "
            "the path."
        )
    return draw_report(_read(source), out, progress)


def draw_report(contents: Contents, out: Path, progress: Progress | None = None) -> WrittenReport:
    """Write the page of these contents, with pictures of some cases. Args: as ``write_report``."""
    rows = sorted(contents.rows, key=lambda row: (row["composite"], row["case"]))
    shown = _shown_scans(contents) if contents.predictions else _shown_cases(rows, contents.summary)
    pictures = {}
    for done, (name, case) in enumerate(shown.items()):
        if progress:
            progress("draw", done, len(shown))
        pictures[name] = case_picture(case, name, min(PICTURES_BYTES // len(shown), LARGEST_PICTURE))
    if progress and shown:
        progress("draw", len(shown), len(shown))
    page = build_page(replace(contents, rows=rows), pictures)
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    missing = {name: one.why_not for name, one in pictures.items() if one.why_not is not None}
    return WrittenReport(out, len(pictures), missing)


def _shown_cases(rows: list[dict[str, Any]], summary: Summary | None) -> dict[str, ShownCase]:
    """The worst and the best of these rows, which are sorted."""
    drawn = rows if len(rows) <= WORST + BEST else rows[:WORST] + rows[-BEST:]
    files = summary.cases if summary else {}
    return {row["case"]: _shown(files[row["case"]]) for row in drawn}


def _shown(files: CaseFiles) -> ShownCase:
    return ShownCase(files.image, files.prediction, files.truth, files.label_values, files.part)


def _shown_scans(contents: Contents) -> dict[str, ShownCase]:
    """Names of the scans with pictures: doubtful scans first, then the others by name."""
    scans = contents.predictions.cases if contents.predictions else {}
    names = sorted(scans, key=lambda name: _doubtful_first(scans, name))[: WORST + BEST]
    return {name: _shown_scan(scans[name], contents.folder) for name in names}


def _doubtful_first(scans: Mapping[str, PredictedScan], name: str) -> tuple[bool, str]:
    return not scans[name].doubts, name


def _shown_scan(scan: PredictedScan, folder: Path) -> ShownCase:
    return ShownCase(scan.image, str(folder / scan.file), part=scan.part)


def _read(source: Path) -> Contents:
    """The contents of the page of a run folder, of a scores.csv or of a folder of predictions."""
    if source.is_dir() and not (source / "run.json").exists() and (predictions := read_predictions(source)):
        return _of_predictions(source, predictions)
    scores = source / "scores.csv" if source.is_dir() else source
    rows: list[dict[str, Any]] = []
    summary: Summary | None = None
    notes: list[str] = []
    if scores.exists():
        rows, summary = read_scores(scores)
    else:
        notes.append(
            f"No scores yet: there is no {scores}. To get them: "
            f"{command_line('predict', source, 'CASES', '--out', 'PREDICTIONS')}, then "
            f"{command_line('evaluate', 'PREDICTIONS', 'CASES', '--out', scores)}."
        )
    if source.is_dir() and not (source / "run.json").exists():
        raise _nothing_to_show(source, scores)
    folder: Path | None = source
    if not source.is_dir():
        folder = Path(summary.run) if summary and summary.run else None
    if folder is None:
        notes.append(
            "No training curves: the predictions were not made by kitsseg predict, so no run is known."
        )
    elif not source.is_dir() and not _holds_a_run(folder):
        notes += _no_curves(folder)
    else:
        run, history, sparsity = run_of_report(folder), read_history(folder), read_sparsity(folder)
        return Contents(rows=rows, summary=summary, run=run, history=history, sparsity=sparsity, notes=notes)
    return Contents(
        rows=rows,
        summary=summary,
        notes=notes,
        cautions=_cautions(folder, bool(summary and summary.phantom)),
        no_paper=_no_paper(folder),
    )


def _nothing_to_show(folder: Path, scores: Path) -> InputError:
    """The error for a folder that is neither a run's nor one of label maps."""
    if scores.exists():
        return InputError(
            f"{folder}: expected a run, a scores.csv or a folder of kitsseg predict, found scores without a run. Give "
            f"the file: {command_line('report', scores)}"
        )
    return InputError(
        f"{folder}: expected a run, a scores.csv or a folder of kitsseg predict; found neither run.json nor "
        "predictions.json. Give one of these; for scans, run kitsseg predict first."
    )


def _of_predictions(source: Path, predictions: PredictionsRecord) -> Contents:
    """The contents of the page of label maps that are not scored."""
    _check_whole_scans(source, predictions)
    folder = Path(predictions.run)
    run = run_of_report(folder) if _holds_a_run(folder) else None
    return Contents(
        predictions=predictions,
        folder=source,
        cautions=_cautions(folder, predictions.phantom, run),
        no_paper=_no_paper(folder),
    )


def _check_whole_scans(source: Path, predictions: PredictionsRecord) -> None:
    if predictions.cases and all(scan.patient is not None for scan in predictions.cases.values()):
        raise InputError(f"{source}: expected label maps of whole scans, found those of single slices.")


def _no_paper(network: Path | None) -> str:
    return NO_PAPER if network is not None and is_starter(network) else ""


def _no_curves(folder: Path) -> list[str]:
    """A note on why there are no training curves; none for an exported network, which never has curves."""
    if _is_there(folder) and format_of(folder):
        return []
    return [f"No training curves: the run folder {folder} is no longer there."]


def _cautions(network: Path | None, phantom: bool, run: RunFacts | None = None) -> list[str]:
    """Cautions about a network that was trained on synthetic patients, unless the whole page is marked as synthetic.

    What the starter finds in real scans is told on every page about it.
    """
    if network is not None and is_starter(network):
        return [STARTER_NOTE]
    if network is None or phantom:
        return []
    if run is not None:
        return [PHANTOM_NETWORK] if run.phantom else []
    if _is_there(network) and format_of(network):
        metadata, _ = read_metadata(network)
        return [PHANTOM_NETWORK] if metadata.phantom else []
    return []


def write_preview(
    source: str | os.PathLike[str], out: str | os.PathLike[str], case: str | None = None
) -> str:
    """Write the picture of one case as a PNG.

    Args:
        source: scores.csv, a run folder that holds it, or a folder of label maps with its predictions.json.
        out: the .png file to write.
        case: its name; None: the one with the worst composite; without scores, the first with a doubt, else the first.

    Returns: name of the case.
    Raises: InputError for a source without this case, or files that are missing or damaged.
    """
    source, out = Path(source), Path(out)
    scores = source / "scores.csv" if source.is_dir() else source
    if out.suffix != ".png" or out.is_dir():
        raise InputError(f"{out}: expected the name of a .png file to write.")
    if scores.exists():
        shown, files, title = _scored_case(scores, case)
    elif source.is_dir() and (predictions := read_predictions(source)):
        shown, files, title = _predicted_case(source, predictions, case)
    else:
        beside = ", and no label maps of kitsseg predict beside it" if source.is_dir() else ""
        raise InputError(
            f"{scores}: expected the scores of kitsseg evaluate, found nothing{beside}. Give a scores.csv, or a "
            "folder of predictions."
        )
    picture = case_preview(files, title)
    with atomic_path(out) as temporary:
        picture.save(temporary, "PNG", optimize=True)
    return shown


def _scored_case(scores: Path, case: str | None) -> tuple[str, ShownCase, str]:
    """(name, files, title of the picture) of one scored case."""
    rows, summary = read_scores(scores)
    row = min(rows, key=lambda row: (row["composite"], row["case"]))
    if case is not None:
        named = {row["case"]: row for row in rows}
        _check_among(case, list(named), scores)
        row = named[case]
    title = f"{row['case']}   TK {row['tk_dice']:.3f}   TU {row['tu_dice']:.3f}   {COLORS_OF_TRUTH}"
    return row["case"], _shown(summary.cases[row["case"]]), title


def _predicted_case(
    folder: Path, predictions: PredictionsRecord, case: str | None
) -> tuple[str, ShownCase, str]:
    """(name, files, title of the picture) of one scan that was segmented, and is not scored."""
    _check_whole_scans(folder, predictions)
    scans = predictions.cases
    if case in predictions.failed:
        raise InputError(f"{folder}: {case} has no label map: {predictions.failed[case].reason}")
    if case is not None or not scans:
        _check_among(case or "a scan", list(scans), folder)
    name = case or min(scans, key=lambda name: _doubtful_first(scans, name))
    return name, _shown_scan(scans[name], folder), f"{name}   {COLORS_WITHOUT_TRUTH}"


def _check_among(case: str, names: Sequence[str], source: Path) -> None:
    if case not in names:
        found = some_of(names, CASES_NAMED) or "none"
        raise InputError(
            f"{source}: expected {case} among its {len(names)} cases, found {found}. Give another case or source."
        )


def _holds_a_run(folder: Path) -> bool:
    """Whether a folder that a record names holds a run."""
    return _is_there(folder / "run.json")


def _is_there(path: Path) -> bool:
    """Whether a path that a record names exists; False for a name that the system does not allow."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
