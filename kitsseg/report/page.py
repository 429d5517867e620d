"""The contents of the page in their order; the HTML itself lies in ``templates``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from kitsseg.files.templates import read_asset, render_html
from kitsseg.labels.outlines import COLORS
from kitsseg.records.predictions import FailedScan, PredictionsRecord, synthetic_among
from kitsseg.records.run import RunFacts, SplitFacts
from kitsseg.report.charts import dice_plot, training_chart
from kitsseg.report.pictures import CasePicture
from kitsseg.report.sections import claims, class_rows, failures, ladder_rows, listed, tumors
from kitsseg.scoring.summary import ScoredSplit, Summary
from kitsseg.version import __version__

__all__ = ["Contents", "build_page"]

GROUPS = {
    "Dice": {"composite": "composite", "tk_dice": "TK", "tu_dice": "TU", "kidney_label_dice": "kidney label"},
    "kidney label": {"kidney_precision": "precision", "kidney_recall": "recall"},
    "kidney ml": {"truth_kidney_ml": "truth", "predicted_kidney_ml": "predicted"},
    "tumor label": {"tumor_precision": "precision", "tumor_recall": "recall"},
    "tumor ml": {"truth_tumor_ml": "truth", "predicted_tumor_ml": "predicted"},
}
TUMORS_SHOWN = 12  # the rest stands below a heading that opens
Record = Summary | RunFacts | PredictionsRecord


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The values that the page shows.

    Attributes:
        rows: of scores.csv, in the order in which cases are shown; empty if there are no scores.
        summary: content of scores.json, or None.
        run: entries of run.json, or None.
        history: rows of history.csv.
        sparsity: rows of sparsity.csv, for a pruned run.
        predictions: content of predictions.json if the page shows label maps without scores; else None.
        folder: of these label maps.
        notes: sentences about missing files.
        cautions: sentences about the limits of the network.
        no_paper: what is said in place of the paper, where the network is no result of the paper that a record names.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: Summary | None = None
    run: RunFacts | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    sparsity: list[dict[str, Any]] = field(default_factory=list)
    predictions: PredictionsRecord | None = None
    folder: Path = Path()
    notes: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    no_paper: str = ""


def build_page(contents: Contents, pictures: Mapping[str, CasePicture]) -> str:
    """The whole page.

    Args:
        contents: what it shows.
        pictures: case -> its picture, for the cases to be shown, in order.

    Returns: HTML.
    """
    rows, summary, run, predictions = contents.rows, contents.summary, contents.run, contents.predictions
    known: list[Record] = [record for record in (summary, predictions, run) if record is not None]

    def of(name: str) -> Any:
        return next((value for record in known if (value := getattr(record, name)) is not None), None)

    found = tumors(rows, summary) if summary else None
    scored = summary or predictions
    return render_html(
        "kitsseg.report",
        "page.html",
        style=read_asset("kitsseg.report", "style.css"),
        script=read_asset("kitsseg.report", "page.js"),
        colors={name.replace(" ", "-"): color for name, color in COLORS.items()},
        title=of("recipe") or "predictions",
        paper=None if contents.no_paper else of("paper"),
        phantom=bool(scored.phantom if scored else run and run.phantom),
        mixed=synthetic_among(scored.synthetic, len(scored.cases)) if scored else "",
        trained_on_phantoms=bool(run and run.phantom),
        contents=contents,
        summary=summary,
        predictions=predictions,
        run=run,
        figures=_figures(
            contents, pictures, {tumor.case for tumor in found.rows if not tumor.found} if found else set()
        ),
        pictures=pictures,
        tiles=_tiles(summary) if summary else [],
        dice_plot=dice_plot(rows) if rows else "",
        tumors=found,
        tumors_shown=TUMORS_SHOWN,
        claims=claims(
            None if predictions or contents.no_paper else of("reported"),
            summary.beside_all_background if summary else None,
            of("recipe"),
            _recipes(summary),
        ),
        ladder=ladder_rows(summary.beside_all_background) if summary else [],
        classes=class_rows(summary) if summary else [],
        failures=failures(rows, summary, found) if summary and found else None,
        scans=_scans(predictions) if predictions else [],
        listed=listed,
        training_chart=training_chart(contents.history) if run else "",
        groups=GROUPS,
        facts=_facts(contents),
        version=__version__,
        today=date.today().isoformat(),
    )


def _recipes(summary: Summary | None) -> list[str]:
    """The recipes of the networks that made the scored label maps."""
    names = [network.get("recipe") for network in (summary and summary.networks) or []]
    return [name for name in names if isinstance(name, str)]


@dataclass(frozen=True)
class Tile:
    """A score over all cases."""

    name: str
    what: str
    mean: float
    low: float
    high: float
    median: float
    sd: float | None


def _tiles(summary: Summary) -> list[Tile]:
    scores = summary.scores
    named = (
        ("TK Dice", "kidney with tumor", scores.tk_dice),
        ("TU Dice", "tumor", scores.tu_dice),
        ("Composite", "mean of both", scores.composite),
    )
    return [
        Tile(name, what, each.mean, *each.interval_95, each.median, each.sd) for name, what, each in named
    ]


@dataclass(frozen=True)
class Figure:
    """The text above the picture of a case."""

    name: str
    chips: list[str]
    missed: bool = False
    doubts: Sequence[str] = ()


def _figures(contents: Contents, pictures: Mapping[str, CasePicture], missed: set[str]) -> list[Figure]:
    if contents.predictions:
        return [
            Figure(name, _volumes(picture), doubts=contents.predictions.cases[name].remarks)
            for name, picture in pictures.items()
        ]
    figures = []
    for row in contents.rows:
        if (name := row["case"]) in pictures:
            chips = [
                f"composite {row['composite']:.3f}",
                f"TK {row['tk_dice']:.3f}",
                f"TU {row['tu_dice']:.3f}",
            ]
            labeled = row["truth_tumor_ml"] * row["tumor_recall"]
            if row["truth_tumor_ml"] > 0:
                chips.append(f"tumor {row['truth_tumor_ml']:.1f} ml, {labeled:.1f} ml of it labeled")
            figures.append(Figure(name, chips, name in missed))
    return figures


def _volumes(picture: CasePicture) -> list[str]:
    if picture.kidney_ml is None or picture.tumor_ml is None:
        return []
    return [f"kidney with tumor {picture.kidney_ml:.1f} ml", f"tumor {picture.tumor_ml:.1f} ml"]


@dataclass(frozen=True)
class Scan:
    """A scan of a prediction, with its result, in a table of the page."""

    name: str
    seconds: float | None
    says: str
    failed: bool


def _scans(predictions: PredictionsRecord) -> list[Scan]:
    """All scans of a folder of predictions, those that failed first."""
    scans = []
    for name, entry in predictions.entries.items():
        if isinstance(entry, FailedScan):
            scans.append(Scan(name, None, entry.reason, True))
        else:
            scans.append(Scan(name, entry.seconds, " ".join(entry.remarks), False))
    return sorted(scans, key=lambda scan: (not scan.failed, scan.name))


def _facts(contents: Contents) -> dict[str, Any]:
    """Name -> value of each fact about how the scores, label maps and network were made."""
    run, summary, predictions = contents.run or RunFacts(), contents.summary, contents.predictions
    made_by = summary or predictions
    of_run = run.split or SplitFacts()
    of_scores = (summary and summary.split) or ScoredSplit()
    part = of_scores.part or (predictions and predictions.split.part)
    cases = of_scores.cases or of_run.cases or {}
    facts = {
        "recipe": (made_by and made_by.recipe) or run.recipe,
        "run folder": Path(made_by.run).name if made_by and made_by.run else None,
        "averaged with": ", ".join((made_by and made_by.also) or ()) or None,
        "engine": made_by and made_by.engine,
        "status": run.status,
        "given by the user": ", ".join(f"{name} = {value}" for name, value in (run.given or {}).items())
        or None,
        "training time": f"{run.seconds / 60:.1f} min" if run.seconds else None,
        "seed": run.seed,
        "split": of_scores.name or of_run.name,
        "hash of the split": of_scores.hash or of_run.hash,
        "labels": _labels(summary.label_release if summary else None),
        "part that was predicted": part,
        "inference": _inference(made_by.inference if made_by else None),
        "cases of the split": ", ".join(f"{len(names)} {part}" for part, names in cases.items()) or None,
        "trained with": ", ".join(f"{name} {version}" for name, version in (run.versions or {}).items())
        or None,
        "kitsseg that trained": run.kitsseg,
        "kitsseg that predicted": predictions and predictions.kitsseg,
        "kitsseg that evaluated": summary and summary.kitsseg,
        "interval": summary
        and f"{summary.resamples:,} resamples of the cases, seed {summary.bootstrap_seed}",
    }
    return {name: value for name, value in facts.items() if value is not None}


def _inference(how: Mapping[str, Any] | None) -> str | None:
    """The settings of inference in words. An entry that this version does not know is shown as it is."""
    if not how:
        return None
    how = dict(how)
    tile, axes = how.pop("tile", None), how.pop("mirror_axes", None)
    words = ["tiles of " + " x ".join(map(str, tile)) if tile else "whole slices"]
    words.append(f"mean over copies mirrored along {len(axes)} axes" if axes else "no mirrored copies")
    words += ["in the region that a coarse pass found"] if how.pop("coarse", False) else []
    return ", ".join([*words, *(f"{key} {value}" for key, value in how.items())])


def _labels(release: Mapping[str, Any] | None) -> str | None:
    if not release:
        return None
    words = {"kits19": "as the KiTS19 repository holds them today", "other": "not from the KiTS19 repository"}
    return ", ".join(f"{n} {words.get(name, name)}" for name, n in release.items() if n)
