"""Sections of the report: the ladder, the paper's claims, surfaces and lesions, what failed, pruning."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kitsseg.scoring.ladder import RUNGS
from kitsseg.scoring.summary import Ladders, Summary

__all__ = ["CLAIMS", "claims", "details", "failure_rows", "ladder_table", "pruning", "without_counterpart"]

# The papers' figures (``Recipe.reported``) whose definition is one of ours; what is not named here has none.
CLAIMS = {
    "leaderboard TK Dice": "tk_dice",
    "leaderboard TU Dice": "tu_dice",
    "own test (21 cases) TK Dice": "tk_dice",
    "own test (21 cases) TU Dice": "tu_dice",
    "40 test cases, kidney Dice": "tk_dice",
    "40 test cases, tumor Dice": "tu_dice",
    "40 test cases, average": "composite",
    "own validation (63 cases), kidney label Dice": "kidney_label_dice",
    "own validation (63 cases), tumor label Dice": "tu_dice",
    "own validation after post-processing, kidney label Dice": "kidney_label_dice",
    "own validation after post-processing, tumor label Dice": "tu_dice",
    "validation dice_multi, SqueezeNet": "macro_dice_with_background",
    "validation dice_multi, ResNet": "macro_dice_with_background",
    "validation dice_multi, ResNet, best epoch": "macro_dice_with_background",
    "training accuracy": "pixel_accuracy",
    "training mean IoU": "mean_iou",
}
MISSED_SHOWN = 30


def without_counterpart(name: str) -> str:
    """Why a paper's figure that is not among ``CLAIMS`` has none of ours beside it."""
    if name.startswith(("42 named cases", "same weights", "training stops")):  # MLPerf's reference
        return "scored on a resampled grid, not on the scan's own"
    if name.endswith(("precision", "recall")):
        return "of cases or of pooled voxels is not said; each case's are in its row below"
    if "Dice" in name:
        return "not defined in the paper"
    return "no score of label maps"


def ladder_table(beside: Ladders) -> list[str]:
    """The same label maps under every definition, beside an empty label map."""
    lines = []
    for key, rung in RUNGS.items():
        ours, nothing = beside.prediction[key], beside.all_background[key]
        official = " class='official'" if rung.name.endswith("official") else ""
        lines.append(
            f"<tr{official}><th scope='row'>{escape(rung.name)}<small>{escape(rung.definition)}</small></th>"
            f"<td class='words'>{escape(rung.met_in)}</td>{_bar(ours)}{_bar(nothing)}</tr>"
        )
    accuracy = beside.all_background["pixel_accuracy"]
    slices = beside.all_background["slice_tu_dice_empty_is_1"]
    accurate = "-" if accuracy is None else f"{100 * accuracy:.2f} %"
    perfect = "-" if slices is None else f"{slices:.3f}"
    return [
        "<section><h2>One prediction, many scores</h2><p class='aside'>The same label maps under every definition "
        "that papers and common code call accuracy or Dice, and beside them an empty label map on the same cases. "
        f"Predicting nothing at all is {accurate} accurate here, and has a tumor Dice of {perfect} if "
        "slices without tumor count 1. Only the last rows are KiTS19 scores.</p>"
        "<div class='scroll'><table class='ladder'><thead><tr><th scope='col'>definition</th>"
        "<th scope='col' class='words'>met in</th><th scope='col'>these predictions</th>"
        f"<th scope='col'>predicting nothing at all</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        "</section>"
    ]


def _bar(value: float | None) -> str:
    if value is None:
        return "<td>-</td>"
    return f"<td class='bar' style='--v:{value:.4f}'>{value:.4f}</td>"


def claims(reported: dict[str, Any] | None, beside: Ladders | None, phantom: bool = False) -> list[str]:
    """What the paper reports, beside ours where the definition is the same; ``beside`` is None without scores."""
    if not reported:
        return []
    lines = []
    for name, value in reported.items():
        key = CLAIMS.get(name)
        cells = f"<th scope='row'>{escape(str(name))}</th><td>{escape(str(value))}</td>"
        if beside is not None and key:
            ours, nothing = beside.prediction[key], beside.all_background[key]
            cells += f"{_cell(ours)}{_cell(nothing)}<td class='words'>{escape(RUNGS[key].definition)}</td>"
        elif beside is not None:
            cells += f"<td>-</td><td>-</td><td class='words'>{without_counterpart(str(name))}</td>"
        lines.append(f"<tr>{cells}</tr>")
    heads = ["the paper's figure", "value"]
    if beside is not None:
        here = "here, on phantoms: not comparable" if phantom else "here, same definition"
        heads += [here, "predicting nothing", "definition"]
    head = "".join(
        f"<th scope='col'{' class=words' if name == 'definition' else ''}>{name}</th>" for name in heads
    )
    compare = " Here are other cases: compare only where cases and definition agree." if beside else ""
    return [
        "<section><h2>What the paper reports</h2><div class='scroll'><table class='narrow'>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f"<p class='aside'>Printed as given, in the paper's own terms and on its own cases.{compare}</p></section>"
    ]


def _cell(value: float | None, digits: int = 3) -> str:
    return "<td>-</td>" if value is None else f"<td>{value:.{digits}f}</td>"


def details(summary: Summary) -> list[str]:
    """Surface Dice and HD95, the Dice of the KiTS23 classes, lesions; nothing where they were not asked for."""
    hec, surface, lesions = summary.hec, summary.surface, summary.lesions
    if not (hec or surface or lesions):
        return []
    names = dict.fromkeys([*(vars(hec.dice) if hec else ()), *(surface.classes if surface else ())])
    heads = ["class"]
    lines: dict[str, list[str]] = {name: [] for name in names}
    if hec:
        heads.append("Dice")
        for name in names:
            dice = getattr(hec.dice, name, None)
            lines[name].append(_cell(dice and dice.mean))
    if surface:
        heads += ["surface Dice", "at mm", "HD95 mm", "HD95 defined in"]
        for name, values in surface.classes.items():
            distance = values.hd95_mm
            lines[name].append(_cell(values.surface_dice.mean) + _cell(values.tolerance_mm))
            lines[name].append(_cell(distance.mean, 2))
            lines[name].append(f"<td>{distance.defined} of {summary.n_cases}</td>")
    head = "".join(f"<th scope='col'>{name}</th>" for name in heads)
    body = "".join(f"<tr><th scope='row'>{escape(n)}</th>{''.join(cells)}</tr>" for n, cells in lines.items())
    parts = ["<section><h2>Surfaces and lesions</h2>"]
    parts.append(f"<div class='scroll'><table class='narrow'><thead><tr>{head}</tr></thead>")
    parts.append(f"<tbody>{body}</tbody></table></div>")
    if surface:
        rules = f"Surface Dice: {surface.surface_dice_rule}. HD95: {surface.hd95_rule}."
        parts.append(f"<p class='aside'>{escape(rules)}</p>")
    if lesions:
        parts.append(
            f"<p>{lesions.lesions_found} of {lesions.lesions} tumors were found; {lesions.false_lesions} of "
            f"{lesions.predicted_lesions} predicted ones are false.</p><p class='aside'>{escape(lesions.rule)}."
            "</p>"
        )
    return [*parts, "</section>"]


def failure_rows(rows: list[dict[str, Any]], summary: Summary) -> list[str]:
    """Cases that say nothing good: not predicted, empty, or with a tumor that was missed altogether."""
    failed = summary.failed or {}
    groups = [
        ("Prediction failed", [f"{case}: {entry.reason}" for case, entry in failed.items()]),
        (
            f"Masks without a voxel ({summary.empty_rule})",
            [f"{row['case']}: {row['empty'].replace('_', ' ')}" for row in rows if row["empty"]],
        ),
        (
            "Tumor missed altogether",
            [row["case"] for row in rows if not row["tu_dice"] and "truth_tumor" not in row["empty"]],
        ),
    ]
    parts = []
    for name, cases in groups:
        if cases:
            parts.append(f"<dt>{escape(name)}: {len(cases)}</dt><dd>{_listed(cases, '; ')}</dd>")
    if not parts:
        parts = ["<dt>None</dt><dd>No prediction failed, no mask is empty, no tumor was missed.</dd>"]
    lines = [f"<section><h2>Failures</h2><dl>{''.join(parts)}</dl>"]
    # of a run: the patients it was trained on, and those forgotten
    if left := summary.truth_without_prediction:
        lines.append(
            f"<p class='aside'>Not predicted, so not scored: {len(left)} of the cases with a truth: "
            f"{_listed(left, ', ')}.</p>"
        )
    if alone := summary.prediction_without_truth:
        lines.append(
            f"<p class='aside'>No truth, so not scored: {len(alone)} predictions: {_listed(alone, ', ')}.</p>"
        )
    if others := summary.of_other_scans:
        lines.append(
            f"<p class='aside'>Predicted from another scan than the one beside the truth: {_listed(others, ', ')}.</p>"
        )
    return [*lines, "</section>"]


def _listed(cases: Sequence[str], separator: str) -> str:
    more = f" and {len(cases) - MISSED_SHOWN} more" if len(cases) > MISSED_SHOWN else ""
    return separator.join(escape(str(case)) for case in cases[:MISSED_SHOWN]) + more


def pruning(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Zeros of each weight matrix.

    Args:
        rows: of RUN/sparsity.csv as ``read_sparsity`` gives them; empty for a run that was not pruned.
    """
    if not rows:
        return []
    pruned = [row for row in rows if row["pruned"] == "yes"]
    size, zeros = (sum(row[key] for row in pruned) for key in ("size", "zeros"))
    lines = "".join(
        f"<tr><th scope='row'>{escape(row['weights'])}</th><td>{escape(row['shape'])}</td>"
        f"<td>{row['size']:,}</td><td>{row['zeros']:,}</td>{_bar(row['sparsity'])}<td>{row['pruned']}</td></tr>"
        for row in rows
    )
    share = f"{100 * zeros / size:.1f} %" if size else "none"
    return [
        f"<section><h2>Pruning</h2><p>{len(pruned)} of {len(rows)} weight matrices are pruned: {zeros:,} of their "
        f"{size:,} weights are zero ({share}).</p><p class='aside'>Zeros do not make a network faster, nor its file "
        "smaller until it is compressed.</p><details><summary>each weight matrix</summary><div class='scroll'>"
        "<table class='narrow'><thead><tr><th scope='col'>weights</th><th scope='col'>shape</th>"
        "<th scope='col'>size</th><th scope='col'>zeros</th><th scope='col'>share of zeros</th>"
        f"<th scope='col'>pruned</th></tr></thead><tbody>{lines}</tbody></table></div></details></section>"
    ]
