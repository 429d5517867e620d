"""The tables of ``kitsseg evaluate``: a line for each case, the means, and the ladder beside an empty prediction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from kitsseg.errors import some_of
from kitsseg.records.predictions import synthetic_among
from kitsseg.scoring.ladder import RUNGS

if TYPE_CHECKING:
    from kitsseg.scoring.slices import SliceSummary
    from kitsseg.scoring.summary import Ladders, Summary

__all__ = ["print_scores", "print_slices"]

WIDEST = 100_000  # characters of a line where there is no terminal
COLUMNS = {
    "tk_dice": "TK",
    "tu_dice": "TU",
    "composite": "composite",
    "kidney_label_dice": "kidney label",
    "tumor_precision": "tumor precision",
    "tumor_recall": "tumor recall",
}


def print_scores(rows: Sequence[Mapping[str, Any]], summary: Summary, console: Console) -> None:
    """Print the ladder, the scores of each case, their means, and sentences about missing or doubtful cases.

    Args:
        rows, summary: from ``Evaluation``.
        console: if it is not a terminal, the tables have no lines and no line is folded.
    """
    beside = summary.beside_all_background
    _print(_ladder(beside, console), console)  # long: what matters most is to stand last
    console.print()
    table = _table(console, "case", COLUMNS.values())
    for row in rows:
        _add(table, row["case"], [row[name] for name in COLUMNS])
    table.add_section()
    _add(table, "mean", [getattr(summary.scores, name).mean for name in COLUMNS], style="bold")
    _add(table, "empty prediction", [beside.all_background.get(name) for name in COLUMNS])
    _print(table, console)
    for line in _sentences(summary):
        console.print(escape(line))


def print_slices(rows: list[dict[str, Any]], summary: SliceSummary, console: Console) -> None:
    """Print slice scores: a line for each patient, their means, and the scores of an empty prediction.

    Args:
        rows, summary: of ``evaluate_slices``. console: as in ``print_scores``.
    """
    names = [f"slice_{name}" for name in ("tk_dice", "tu_dice", "composite")]
    patients: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        patients.setdefault(row["patient"], []).append(row)
    table = _table(console, "patient", ("slices", "slice TK", "slice TU", "composite"))
    for patient, some in sorted(patients.items()):
        means = [sum(row[name] for row in some) / len(some) for name in names]
        table.add_row(escape(patient), str(len(some)), *map(_number, means))
    table.add_section()
    means_of = {"mean of patients": summary.patient_means, "empty prediction": summary.beside_all_background}
    for title, spreads in means_of.items():
        table.add_row(title, str(summary.n_slices), *(_number(spreads[name].mean) for name in names))
    _print(table, console)
    n = summary.n_patients
    console.print(
        f"Slice scores of {summary.n_slices} slices of {n} patient{'s' * (n != 1)}, no case scores"
        f"{_interval(n, summary.patient_means['slice_composite'].interval_95, ' over patients')}."
    )
    for line in _changed(summary.changed):
        console.print(escape(line))
    if missing := summary.truth_without_prediction:
        console.print(
            escape(f"{len(missing)} slices with a mask are not scored (not predicted), such as {missing[0]}.")
        )


def _table(console: Console, first: str, heads: Iterable[str]) -> Table:
    """A table of numbers; lines around it only on a terminal."""
    columns = [Column(head, justify="right", no_wrap=True) for head in heads]
    if console.is_terminal:
        return Table(Column(first, overflow="fold"), *columns)
    return Table(Column(first, no_wrap=True), *columns, box=None, pad_edge=False)


def _add(
    table: Table,
    title: str,
    values: Iterable[float | None],
    style: str | None = None,
) -> None:
    table.add_row(escape(title), *map(_number, values), style=style)


def _print(table: Table, console: Console) -> None:
    """Print a table within the width of the terminal, or in its full width if there is no terminal."""
    if console.is_terminal:
        console.print(table)
    else:
        Console(file=console.file, width=WIDEST, color_system=None, highlight=False).print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _ladder(beside: Ladders, console: Console) -> Table:
    """The same label maps under every definition."""
    table = _table(console, "the same label maps under other definitions", ("these", "empty prediction"))
    for key, rung in RUNGS.items():
        _add(table, rung.name, [beside.prediction[key], beside.all_background[key]])
    return table


def _interval(n: int, interval_95: tuple[float, float], over: str = "") -> str:
    """The end of a sentence; one case or patient has no interval."""
    low, high = interval_95
    return f"; 95 % interval of the mean composite{over} {low:.4f} to {high:.4f}" if n > 1 else ""


def _sentences(summary: Summary) -> list[str]:
    """Sentences about missing or doubtful cases, to stand below the table."""
    n = summary.n_cases
    lines = [f"{n} case{'s' * (n != 1)}{_interval(n, summary.composite_interval_95)}."]
    lines += _details(summary)
    if summary.empty_cases:
        count = summary.empty_cases
        lines += [f"{count} case{'s' * (count > 1)} with an empty mask ({summary.empty_rule})."]
    if summary.failed:
        n = len(summary.failed)
        lines += [f"{n} scan{'s' * (n != 1)} failed in kitsseg predict: {', '.join(summary.failed)}."]
    if summary.truth_without_prediction:
        missing = summary.truth_without_prediction
        part = summary.split.part if summary.split else None
        why = f"not in the {part} part, which was predicted" if part else "not predicted"
        lines += [f"{len(missing)} cases with a truth are not scored ({why}): {', '.join(missing)}."]
    if alone := summary.prediction_without_truth:
        lines += [
            f"warning: {len(alone)} prediction{'s' * (len(alone) != 1)} without a truth, not scored: "
            f"{', '.join(alone)}."
        ]
    if others := summary.of_other_scans:
        lines += [
            f"warning: {len(others)} label map{'s' * (len(others) != 1)} predicted from another scan than the one "
            f"beside the truth: {', '.join(others)}. Is it the same patient?"
        ]
    lines += _changed(summary.changed)
    if summary.phantom:
        lines += ["Synthetic patients: phantom results, no statement about CT scans."]
    elif mixed := synthetic_among(summary.synthetic, len(summary.cases)):
        lines += [f"{mixed} The means are over all."]
    return lines


NAMED = 10  # cases in a line


def _changed(names: Sequence[str] | None) -> list[str]:
    """A warning, if label maps are not those that ``kitsseg predict`` recorded."""
    if not names:
        return []
    maps = f"{len(names)} label maps have" if len(names) > 1 else "1 label map has"
    return [
        f"warning: {maps} changed since kitsseg predict: {some_of(names, NAMED)}. The scores are no longer the "
        "network's alone."
    ]


def _details(summary: Summary) -> list[str]:
    lines = []
    if summary.hec:
        dice = ", ".join(f"{name} {values.mean:.4f}" for name, values in vars(summary.hec.dice).items())
        lines.append(f"KiTS23 classes, Dice: {dice}.")
    for name, values in (summary.surface.classes if summary.surface else {}).items():
        hd95 = values.hd95_mm
        mean = "not defined" if hd95.mean is None else f"{hd95.mean:.2f} mm"
        lines.append(
            f"{name}: surface Dice {values.surface_dice.mean:.4f} at {values.tolerance_mm:.3f} mm, HD95 "
            f"{mean} (defined in {hd95.defined} of {summary.n_cases} cases)."
        )
    if summary.lesions:
        found = summary.lesions
        lines.append(
            f"Tumors: {found.lesions_found} of {found.lesions} found; {found.false_lesions} of "
            f"{found.predicted_lesions} predicted ones false ({found.rule})."
        )
    return lines
