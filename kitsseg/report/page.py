"""The HTML of the report: tables, text and style. Nothing is loaded from elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from html import escape
from pathlib import Path
from typing import Any

from kitsseg.records.run import RunFacts, SplitFacts
from kitsseg.report.assets import SORT_SCRIPT, STYLE
from kitsseg.report.charts import dice_plot, training_chart
from kitsseg.report.sections import claims, details, failure_rows, ladder_table, pruning
from kitsseg.scoring.summary import ScoredSplit, Summary
from kitsseg.version import __version__

__all__ = ["Contents", "build_page"]

PHANTOM = (
    "Phantom results: the patients are synthetic. The numbers show that the software runs from end to end; "
    "they say nothing about how well it finds kidneys and tumors in CT scans."
)
PHANTOM_TRAINING = "The network was trained on synthetic patients only; the scans scored here are others."
NOT_MEDICAL = (
    "Research software, not a medical device: not for diagnosis, treatment or any other clinical use."
)
GROUPS = (
    (
        "Dice",
        {"composite": "composite", "tk_dice": "TK", "tu_dice": "TU", "kidney_label_dice": "kidney label"},
    ),
    ("kidney label", {"kidney_precision": "precision", "kidney_recall": "recall"}),
    ("kidney ml", {"truth_kidney_ml": "truth", "predicted_kidney_ml": "predicted"}),
    ("tumor label", {"tumor_precision": "precision", "tumor_recall": "recall"}),
    ("tumor ml", {"truth_tumor_ml": "truth", "predicted_tumor_ml": "predicted"}),
)
COLUMNS = {key: name for _, columns in GROUPS for key, name in columns.items()}


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the page shows.

    Attributes:
        rows: of scores.csv, in the order in which cases are shown; empty if there are no scores.
        summary: of scores.json, or None.
        run: of run.json, or None.
        history: rows of history.csv.
        sparsity: rows of sparsity.csv, for a pruned run.
        notes: sentences about what is missing.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: Summary | None = None
    run: RunFacts | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    sparsity: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def build_page(contents: Contents, pictures: dict[str, str]) -> str:
    """The whole page.

    Args:
        contents: what it shows.
        pictures: case -> HTML of its picture, for the cases to be shown, in order.

    Returns: HTML.
    """
    rows, summary, run = contents.rows, contents.summary, contents.run
    known = [source for source in (summary, run) if source]

    def of(name: str) -> Any:
        return next((value for source in known if (value := getattr(source, name)) is not None), None)

    recipe, paper = of("recipe") or "predictions", of("paper")
    body = [f"<header><p class='kicker'>kitsseg report</p><h1>{_text(recipe)}</h1>"]
    if paper:
        body.append(f"<p class='paper'>After the paper: {_text(paper)}</p>")
    trained_on_phantoms = bool(run and run.phantom)
    if summary.phantom if summary else trained_on_phantoms:
        body.append(f"<p class='banner phantom'>{PHANTOM}</p>")
    elif trained_on_phantoms:
        body.append(f"<p class='banner phantom'>{PHANTOM_TRAINING}</p>")
    body.append(f"<p class='banner'>{NOT_MEDICAL}</p>")
    body += [f"<p class='banner'>{_text(note)}</p>" for note in contents.notes]
    body.append("</header><main>")
    beside = summary.beside_all_background if summary else None
    if summary:
        body += _scores(rows, summary)
    body += claims(of("reported"), beside, bool(summary and summary.phantom))
    if summary:
        body += ladder_table(summary.beside_all_background) + details(summary) + failure_rows(rows, summary)
    if run:
        body += ["<section><h2>Training</h2>", training_chart(contents.history), "</section>"]
    body += pruning(contents.sparsity)
    if rows:
        body += _case_table(rows) + _pictures(rows, pictures)
    body += _facts(run or RunFacts(), summary)
    body.append(f"</main><footer>Written by kitsseg {__version__} on {date.today().isoformat()}.</footer>")
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'><link rel='icon' href='data:,'>"
        f"<title>kitsseg report: {_text(recipe)}</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(body)
        + f"<script>{SORT_SCRIPT}</script></body></html>\n"
    )


def _text(value: object) -> str:
    return escape(str(value))


def _scores(rows: list[dict[str, Any]], summary: Summary) -> list[str]:
    scores = summary.scores
    tiles = [
        ("TK Dice", "kidney with tumor", scores.tk_dice),
        ("TU Dice", "tumor", scores.tu_dice),
        ("Composite", "mean of both", scores.composite),
    ]
    parts = ["<section><h2>Scores</h2><div class='tiles'>"]
    for name, what, values in tiles:
        low, high = values.interval_95
        spread = "" if values.sd is None else f", sd {values.sd:.3f}"
        parts.append(
            f"<div class='tile'><p>{name} <small>{what}</small></p><b>{values.mean:.3f}</b>"
            f"<p>95 % interval {low:.3f} to {high:.3f}<br>median {values.median:.3f}{spread}</p></div>"
        )
    n, empty = summary.n_cases, summary.empty_cases
    sentence = f"Mean over {n} case{'s' * (n != 1)} on the grid of the original scans."
    if empty:
        sentence += f" {empty} with an empty mask ({summary.empty_rule})."
    parts.append(f"</div><p>{_text(sentence)}</p>{dice_plot(rows)}")
    parts.append(
        "<p class='aside'>A dot is a case, the box holds the middle half, the line is the median.</p>"
    )
    return [*parts, "</section>"]


def _case_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    groups = "".join(f"<th scope='colgroup' colspan='{len(columns)}'>{name}</th>" for name, columns in GROUPS)
    heads = "".join(
        f"<th scope='col'><button type='button'>{name}</button></th>" for name in ("case", *COLUMNS.values())
    )
    lines = []
    for row in rows:
        cells = []
        for key in COLUMNS:
            digits = 1 if key.endswith("_ml") else 3
            bar = f" class='bar' style='--v:{row[key]:.3f}'" if key == "composite" else ""
            cells.append(f"<td data-v='{row[key]:.9g}'{bar}>{row[key]:.{digits}f}</td>")
        name = _text(row["case"])
        empty = f"<small>empty: {_text(row['empty'])}</small>" if row["empty"] else ""
        lines.append(f"<tr><th scope='row' data-v='{name}'>{name}{empty}</th>{''.join(cells)}</tr>")
    return [
        "<section><h2>Cases</h2><p class='aside'>Worst composite first; a click on a heading sorts. "
        "TK is kidney with tumor, the kidney label is kidney without.</p>"
        "<div class='scroll'><table class='sortable'>"
        f"<thead><tr class='groups'><th></th>{groups}</tr><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    ]


def _pictures(rows: Sequence[Mapping[str, Any]], pictures: Mapping[str, str]) -> list[str]:
    legend = "".join(
        f"<span><svg viewBox='0 0 34 8' class='key'><path class='{whose} {name}' d='M1 4H33'/></svg>"
        f"{whose}, {'kidney with tumor' if name == 'kidney' else name}</span>"
        for whose in ("truth", "prediction")
        for name in ("kidney", "tumor")
    )
    shown = [row for row in rows if row["case"] in pictures]
    which = "worst first"
    if len(shown) < len(rows):
        which = f"the worst and the best of {len(rows)} by composite"
    figures = [
        f"<figure><figcaption><b>{_text(row['case'])}</b> <span>composite {row['composite']:.3f}</span> "
        f"<span>TK {row['tk_dice']:.3f}</span> <span>TU {row['tu_dice']:.3f}</span></figcaption>"
        f"{pictures[row['case']]}</figure>"
        for row in shown
    ]
    return [
        f"<section class='pictures'><h2>Pictures</h2><p class='aside'>{len(shown)} cases, {which}, each in three "
        "planes where the true tumor is largest, at the scan's true proportions. Window -160 to 240 HU; left in the "
        "axial and coronal pictures is the patient's right, left in the sagittal ones is front.</p>"
        f"<p class='legend'>{legend}</p><div class='figures'>{''.join(figures)}</div></section>"
    ]


def _facts(run: RunFacts, summary: Summary | None) -> list[str]:
    of_run, of_scores = run.split or SplitFacts(), (summary and summary.split) or ScoredSplit()
    cases = of_scores.cases or of_run.cases or {}
    facts = {
        "recipe": (summary and summary.recipe) or run.recipe,
        "run folder": Path(summary.run).name if summary and summary.run else None,
        "averaged with": ", ".join((summary and summary.also) or ()) or None,
        "status": run.status,
        "given by the user": ", ".join(f"{name} = {value}" for name, value in (run.given or {}).items())
        or None,
        "training time": f"{run.seconds / 60:.1f} min" if run.seconds else None,
        "seed": run.seed,
        "split": of_scores.name or of_run.name,
        "hash of the split": of_scores.hash or of_run.hash,
        "labels": _labels(summary.label_release if summary else None),
        "part that was predicted": of_scores.part,
        "inference": _inference(summary.inference if summary else None),
        "cases of the split": ", ".join(f"{len(names)} {part}" for part, names in cases.items()) or None,
        "trained with": ", ".join(f"{name} {version}" for name, version in (run.versions or {}).items())
        or None,
        "kitsseg that trained": run.kitsseg,
        "kitsseg that evaluated": summary and summary.kitsseg,
        "interval": summary
        and f"{summary.resamples:,} resamples of the cases, seed {summary.bootstrap_seed}",
    }
    lines = "".join(
        f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in facts.items() if value is not None
    )
    return [f"<section><h2>How this was made</h2><dl>{lines}</dl></section>"]


def _inference(how: Mapping[str, Any] | None) -> str | None:
    """In words; what a later version may have added stays as it stands."""
    if not how:
        return None
    how = dict(how)
    tile, axes = how.pop("tile", None), how.pop("mirror_axes", None)
    words = ["tiles of " + " x ".join(map(str, tile)) if tile else "whole slices"]
    words.append(f"mean over copies mirrored along {len(axes)} axes" if axes else "no mirrored copies")
    return ", ".join([*words, *(f"{key} {value}" for key, value in how.items())])


def _labels(release: Mapping[str, Any] | None) -> str | None:
    if not release:
        return None
    words = {"kits19": "as the KiTS19 repository holds them today", "other": "not from the KiTS19 repository"}
    return ", ".join(f"{n} {words.get(name, name)}" for name, n in release.items() if n)
