"""What ``kitsseg evaluate`` prints: a line per case, the means, and the ladder beside an empty prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kitsseg.scoring.ladder import RUNGS

if TYPE_CHECKING:
    from kitsseg.scoring.summary import Ladders, Summary

__all__ = ["format_slices", "format_table"]

COLUMNS = {
    "tk_dice": "TK",
    "tu_dice": "TU",
    "composite": "composite",
    "kidney_label_dice": "kidney label",
    "tumor_precision": "tumor precision",
    "tumor_recall": "tumor recall",
}


def format_table(rows: Sequence[Mapping[str, Any]], summary: Summary) -> str:
    """Plain text.

    Args:
        rows, summary: of ``Evaluation``.
    """
    widths = {name: max(len(head), 6) + 2 for name, head in COLUMNS.items()}
    first = max(len("empty prediction"), *(len(row["case"]) for row in rows))

    def line(title: str, values: Mapping[str, Any]) -> str:
        return title.ljust(first) + "".join(
            f"{values[name]:{widths[name]}.4f}" for name in COLUMNS if name in values
        )

    means = {name: getattr(summary.scores, name).mean for name in COLUMNS}
    lines = _ladder(summary.beside_all_background)  # long: what matters most is to stand last
    lines += [" " * first + "".join(head.rjust(widths[name]) for name, head in COLUMNS.items())]
    lines += [line(row["case"], row) for row in rows] + [line("mean", means)]
    lines += [line("empty prediction", summary.beside_all_background.all_background)]
    low, high = summary.composite_interval_95
    n = summary.n_cases
    lines += [f"{n} case{'s' * (n != 1)}; 95 % interval of the mean composite {low:.4f} to {high:.4f}."]
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
    if summary.phantom:
        lines += ["Synthetic patients: phantom results, no statement about CT scans."]
    return "\n".join(lines)


def format_slices(rows: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    """What is printed of slice scores: a line for each patient, their means, and those of an empty prediction.

    Args:
        rows, summary: of ``evaluate_slices``.
    """
    names = [f"slice_{name}" for name in ("tk_dice", "tu_dice", "composite")]
    patients: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        patients.setdefault(row["patient"], []).append(row)
    first = max(len("empty prediction"), *map(len, patients)) + 2
    lines = [
        " " * first + "".join(head.rjust(12) for head in ("slices", "slice TK", "slice TU", "composite"))
    ]
    for patient, some in sorted(patients.items()):
        means = [sum(row[name] for row in some) / len(some) for name in names]
        lines.append(f"{patient:{first}}{len(some):12}" + "".join(f"{mean:12.4f}" for mean in means))
    for title, key in (("mean of patients", "patient_means"), ("empty prediction", "beside_all_background")):
        values = "".join(f"{summary[key][name]['mean']:12.4f}" for name in names)
        lines.append(f"{title:{first}}{summary['n_slices']:12}{values}")
    low, high = summary["patient_means"]["slice_composite"]["interval_95"]
    lines.append(
        f"Slice scores of {summary['n_slices']} slices of {summary['n_patients']} patients, no case scores; 95 % "
        f"interval of the mean composite over patients {low:.4f} to {high:.4f}."
    )
    if summary["truth_without_prediction"]:
        missing = summary["truth_without_prediction"]
        lines.append(
            f"{len(missing)} slices with a mask are not scored (not predicted), such as {missing[0]}."
        )
    return "\n".join(lines)


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


def _ladder(beside: Ladders) -> list[str]:
    """The same label maps under every definition."""
    width = max(len(rung.name) for rung in RUNGS.values()) + 2
    lines = ["the same label maps under other definitions".ljust(width) + "  these  empty prediction"]
    for key, rung in RUNGS.items():
        ours, nothing = beside.prediction[key], beside.all_background[key]
        lines.append(f"{rung.name:{width}}{_number(ours)}{_number(nothing):>18}")
    return [*lines, ""]


def _number(value: float | None) -> str:
    return "      -" if value is None else f"{value:7.4f}"
