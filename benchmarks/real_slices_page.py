"""The tables and the figure of real_slices.py."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from comparison_page import in_words
from phantom_statistics import ASIDE
from real_slices_rows import BESIDE, ROWS, SETTINGS, WHAT

from kitsseg.files.atomic import atomic_path
from kitsseg.scoring.dice import bootstrap_intervals, score_counts

PIXELS = "classifier of single pixels"
NOT_RUN = "not run"
Summary = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """What the tables are made of.

    Attributes:
        found: the summaries by row and setting of all that was trained.
        refused: what the tables say, by row and setting, of a network whose file was refused.
        beside: the summaries, by its label, of what has no training.
        steps: of a training.
        seeds: that each row should have.
    """

    found: dict[tuple[str, str], Summary]
    refused: dict[tuple[str, str], str]
    beside: dict[str, Summary]
    steps: int
    seeds: int


def patient_dice(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Patient -> mean TK and TU Dice of the slices; a slice without tumor counts 1 where none is found."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        scores = score_counts(np.array(row["counts"]), 1.0)
        found.setdefault(row["patient"], []).append((scores["tk_dice"], scores["tu_dice"]))
    return {patient: tuple(np.mean(values, axis=0)) for patient, values in sorted(found.items())}


def pooled_dice(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """TK and TU Dice of all pixels of all slices together."""
    scores = score_counts(np.sum([row["counts"] for row in rows], axis=0), 1.0)
    return scores["tk_dice"], scores["tu_dice"]


def interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of the mean, by resampling patients; ``values`` holds one value for each patient."""
    return bootstrap_intervals([values])[0]


def summary(seeds: list[list[dict[str, Any]]], numbers: Sequence[int] = ()) -> Summary:
    """What a table says of one network in one setting.

    Args:
        seeds: the rows of each seed.
        numbers: of the seeds; none: it has no seeds of its own.
    """
    dice = [patient_dice(rows) for rows in seeds]
    values = np.array([[each[patient] for patient in dice[0]] for each in dice])  # seeds, patients, (TK, TU)
    means = values.mean(axis=1)
    return {
        "numbers": tuple(numbers),
        "values": values,
        "patients": list(dice[0]),
        "of_patients": values.mean(axis=0),
        "mean": means.mean(axis=0),
        "interval": [interval(values.mean(axis=0)[:, i]) for i in (0, 1)],
        "of_seeds": means,
        "pooled": np.mean([pooled_dice(rows) for rows in seeds], axis=0),
    }


def written(index: int, value: Summary | None) -> str:
    """A figure of a network with its intervals; ``index`` is 0 for TK and 1 for TU."""
    if value is None:
        return NOT_RUN
    seeds = value["of_seeds"][:, index] if value["numbers"] else None
    return in_words(value["mean"][index], value["interval"][index], seeds)


def changes(one: Summary, two: Summary) -> str | None:
    """The mean differences ``two`` minus ``one`` of the patients, with intervals: the TK and the TU cell of a table.

    They are those of the seeds that both have; None if there are none. What has no seeds of its own stands beside all
    seeds of the other side.
    """
    sides = [one["of_patients"], two["of_patients"]]
    if one["numbers"] and two["numbers"]:
        both = set(one["numbers"]) & set(two["numbers"])
        if not both:
            return None
        sides = [
            side["values"][[number in both for number in side["numbers"]]].mean(axis=0) for side in (one, two)
        ]
    change = sides[1] - sides[0]
    cells = []
    for index in (0, 1):
        low, high = interval(change[:, index])
        cells.append(f"{change[:, index].mean():+.3f} ({low:+.3f} to {high:+.3f})")
    return " | ".join(cells)


def columns(first: str) -> list[str]:
    """The two lines above the rows of a table that has a column for each setting."""
    named = " | ".join(f"({key}) {text}" for key, text in SETTINGS.items())
    return [f"| {first} | {named} |", "|---" * (1 + len(SETTINGS)) + "|"]


def rows_of(facts: Facts, cell: Callable[[Summary | None], str]) -> tuple[list[str], list[str]]:
    """The rows of a table of all networks with a figure, and the labels of the networks without one.

    Args:
        facts: Facts.
        cell: what stands for a network in a setting; its argument is None if it was not run.
    """
    rows, missing = [], []
    for name, row in ROWS.items():
        cells = [
            facts.refused.get((name, setting)) or cell(facts.found.get((name, setting)))
            if setting in row.settings
            else ""
            for setting in SETTINGS
        ]
        if any(text not in ("", NOT_RUN) for text in cells):
            rows.append(f"| {row.label} | " + " | ".join(cells) + " |")
        else:
            missing.append(row.label)
    for label, beside in facts.beside.items():
        text = cell(beside)
        cells = ["", text, "", ""] if label == PIXELS else [text] * len(SETTINGS)  # trained in four folds
        rows.append(f"| {label} | " + " | ".join(cells) + " |")
    return rows, missing


def short_table(facts: Facts) -> str:
    """Means alone: TK / TU of each network and setting."""

    def cell(value: Summary | None) -> str:
        if value is None:
            return NOT_RUN
        few = f" ({len(value['numbers'])})" if 0 < len(value["numbers"]) < facts.seeds else ""
        return "{:.3f} / {:.3f}".format(*value["mean"]) + few

    rows, _ = rows_of(facts, cell)
    fewer = any(0 < len(value["numbers"]) < facts.seeds for value in facts.found.values())
    about = (
        f"Real KiTS19 images: {WHAT}. TK / TU: mean over patients of the Dice of their slices, {facts.seeds} seeds"
        f"{' or as many as parentheses say' if fewer else ''}; {facts.steps} steps a training, (c) after as many on "
        "rendered CT."
    )
    return "\n".join([about, "", *columns("TK / TU"), *rows])


def full_tables(facts: Facts) -> str:
    """Tables of TK, TU, differences and pooled Dice, a row for each network with a figure; below, what was not run."""
    lines = [
        f"Real KiTS19 images: {WHAT}. Mean over patients of the Dice of their slices (95 % interval over patients; "
        f"range over seeds); {facts.steps} steps a training, c after as many on rendered CT."
    ]
    missing: list[str] = []
    for index, words in enumerate(("TK, kidney with tumor", "TU, tumor")):
        rows, missing = rows_of(facts, functools.partial(written, index))
        lines += ["", *columns(words), *rows]
    if missing:
        lines += ["", f"Not run: {'; '.join(missing)}."]
    if differences := difference_rows(facts.found):
        lines += ["", "| difference, patient by patient | TK | TU |", "|---|---|---|", *differences]
    if pooled := pooled_rows(facts.found):
        lines += ["", *columns("pooled over all pixels, TK and TU"), *pooled]
    if found_aside := aside(facts.found):
        lines += [
            "",
            f"(a) on the {len(ASIDE)} patients set aside from the rendering, TK and TU: {found_aside}.",
        ]
    return "\n".join(lines)


def difference_rows(found: dict[tuple[str, str], Summary]) -> list[str]:
    """The settings of a network beside each other, and the networks of BESIDE."""
    pairs = [
        (f"{row.label}: ({second}) minus ({first})", (name, first), (name, second))
        for name, row in ROWS.items()
        for first, second in (("b", "c"), ("b", "d"))
    ] + [
        (f"({setting}): {ROWS[second].label}, minus {ROWS[first].label}", (first, setting), (second, setting))
        for first, second in BESIDE
        for setting in SETTINGS
    ]
    return [
        f"| {words} | {cells} |"
        for words, one, two in pairs
        if one in found and two in found and (cells := changes(found[one], found[two]))
    ]


def pooled_rows(found: dict[tuple[str, str], Summary]) -> list[str]:
    return [
        f"| {row.label} | "
        + " | ".join(
            "{:.3f}, {:.3f}".format(*found[name, setting]["pooled"]) if (name, setting) in found else ""
            for setting in SETTINGS
        )
        + " |"
        for name, row in ROWS.items()
        if any((name, setting) in found for setting in SETTINGS)
    ]


def aside(found: dict[tuple[str, str], Summary]) -> str:
    """The scores of setting a of the patients that the rendering was not tuned on."""
    words = []
    for name, row in ROWS.items():
        if one := found.get((name, "a")):
            chosen = [i for i, patient in enumerate(one["patients"]) if patient in ASIDE]
            tk, tu = one["of_patients"][chosen].mean(axis=0)
            words.append(f"{row.label} {tk:.3f} and {tu:.3f}")
    return "; ".join(words)


def plot(path: Path, found: dict[tuple[str, str], Summary]) -> None:
    """A dot for each patient, a line for the mean, networks below each other, settings in colors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in ROWS if any((name, setting) in found for setting in SETTINGS)]
    height = 1.2 + 0.28 * len(SETTINGS) * len(names)
    figure, axes = pyplot.subplots(1, 2, figsize=(9, height), sharey=True, layout="constrained")
    colors = dict(zip(SETTINGS, ("#8c8c8c", "#1769aa", "#2e7d32", "#c62828"), strict=True))
    ticks: dict[float, str] = {}
    for index, (axis, title) in enumerate(zip(axes, ("kidney with tumor (TK)", "tumor (TU)"), strict=True)):
        for i, name in enumerate(names):
            for j, setting in enumerate(SETTINGS):
                if (value := found.get((name, setting))) is None:
                    continue
                y, dots = i * 5 + j, value["of_patients"][:, index]
                axis.plot(dots, [y] * len(dots), "o", color=colors[setting], alpha=0.4, markeredgewidth=0)
                axis.plot([value["mean"][index]], [y], "|", color="black", markersize=14)
                ticks[y] = f"{name.replace('-', ', ')} ({setting})"
        axis.set(xlim=(-0.03, 1.03), title=f"Dice of {title}")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(list(ticks), list(ticks.values()))
    axes[0].invert_yaxis()
    words = "; ".join(f"{key} {text}" for key, text in SETTINGS.items())
    figure.suptitle(f"{WHAT}\n{words}. A dot is a patient, a line the mean", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)
