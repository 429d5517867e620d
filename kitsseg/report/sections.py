"""Sections of the report as values: the ladder, the paper's figures, tumors found and missed, failures, pruning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kitsseg.errors import some_of
from kitsseg.recipes import EDITIONS
from kitsseg.scoring.cases import CASE_RULE, is_found
from kitsseg.scoring.ladder import RUNGS
from kitsseg.scoring.summary import Ladders, Summary

__all__ = [
    "CLAIMS",
    "Claims",
    "ClassRow",
    "Failures",
    "Tumor",
    "Tumors",
    "claims",
    "class_rows",
    "failures",
    "ladder_rows",
    "listed",
    "tumors",
    "without_counterpart",
]

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
NAMED = 30  # cases in a list


def without_counterpart(name: str) -> str:
    """The reason why a paper's figure that is not in ``CLAIMS`` has no figure of ours beside it."""
    if name.startswith(("42 named cases", "same weights", "training stops")):  # MLPerf's reference
        return "scored on a resampled grid, not on the scan's own"
    if name.endswith(("precision", "recall")):
        return "of cases or of pooled voxels is not said; each case's are in its row below"
    if "Dice" in name:
        return "not defined in the paper"
    return "no score of label maps"


@dataclass(frozen=True)
class Rung:
    """A line of the ladder: the score by one definition for these predictions and for empty label maps."""

    name: str
    definition: str
    met_in: str
    ours: float | None
    nothing: float | None
    official: bool


def ladder_rows(beside: Ladders) -> list[Rung]:
    """The same label maps under every definition, beside an empty label map."""
    return [
        Rung(
            rung.name,
            rung.definition,
            rung.met_in,
            beside.prediction[key],
            beside.all_background[key],
            rung.name.endswith("official"),
        )
        for key, rung in RUNGS.items()
    ]


@dataclass(frozen=True)
class Claim:
    """A figure of the paper, beside our figure and the figure of predicting nothing; ``why`` gives their definition."""

    name: str
    value: str
    ours: float | None = None
    nothing: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Claims:
    """The paper's figures beside those of a run, or in ``why_not`` the reason why they cannot be compared."""

    rows: list[Claim]
    why_not: str = ""


def claims(
    reported: Mapping[str, Any] | None, beside: Ladders | None, recipe: str | None, networks: Sequence[str]
) -> Claims | None:
    """The paper's figures for the recipe of a run, beside our figures if the definition is the same.

    Args:
        reported: the paper's figures.
        beside: the ladders of the predictions and of empty label maps; None without scores.
        recipe: of the run. A paper's figures are shown only beside the paper's own recipe or a row of its tables.
        networks: the recipes of all networks whose mean was scored.

    Returns: Claims; None if the paper reports nothing.
    """
    if not reported:
        return None
    stem, _, edition = (recipe or "").partition(":")
    if edition and edition in EDITIONS:
        return Claims([], f"The figures of the paper belong to its own recipe, {stem}; this run is {recipe}.")
    if len(others := sorted({*networks, *([recipe] if recipe else [])})) > 1:
        return Claims(
            [],
            f"The figures of a paper belong to one recipe; here several were averaged: {', '.join(others)}.",
        )
    rows = []
    for name, value in reported.items():
        key = CLAIMS.get(name)
        if beside is None:
            rows.append(Claim(name, str(value)))
        elif key:
            ours, nothing = beside.prediction[key], beside.all_background[key]
            rows.append(Claim(name, str(value), ours, nothing, RUNGS[key].definition))
        else:
            rows.append(Claim(name, str(value), why=without_counterpart(name)))
    return Claims(rows)


@dataclass(frozen=True)
class Tumor:
    """A tumor of the truth: its volume, and the share of it, 0 to 1, that is predicted as tumor."""

    case: str
    ml: float
    share: float
    found: bool


@dataclass(frozen=True)
class Tumors:
    """The tumors of all cases, found and missed, by one rule for the whole page.

    Attributes:
        rule: what a tumor is, and when it counts as found.
        rows: missed tumors first, then found ones, large before small.
        predicted: number of predicted tumors; None if all tumor of a case counts as one tumor.
        false: number of predicted tumors that are no tumors; None as ``predicted``.
    """

    rule: str
    rows: list[Tumor]
    false: int | None = None
    predicted: int | None = None

    @property
    def found(self) -> int:
        """How many of ``rows`` were found."""
        return sum(row.found for row in self.rows)

    @property
    def missed_cases(self) -> list[str]:
        """Names of the cases with a tumor that was missed."""
        return list(dict.fromkeys(row.case for row in self.rows if not row.found))

    @property
    def ml(self) -> float:
        """Volume of all tumors."""
        return sum(row.ml for row in self.rows)

    @property
    def labeled_ml(self) -> float:
        """The part of this volume that is predicted as tumor, in ml."""
        return sum(row.ml * row.share for row in self.rows)


def tumors(rows: Sequence[Mapping[str, Any]], summary: Summary) -> Tumors:
    """The tumors of the truth: each lesion if lesions were scored, else all tumor of a case as one.

    Args:
        rows: of scores.csv.
        summary: content of scores.json.
    """
    files = [(row["case"], summary.cases[row["case"]].lesions) for row in rows]
    lesions = [(case, each) for case, of_case in files for each in of_case or ()]
    if summary.lesions and all(of_case is not None for _, of_case in files):
        rule, false, predicted = (
            summary.lesions.rule,
            summary.lesions.false_lesions,
            summary.lesions.predicted_lesions,
        )
        found = [Tumor(case, each.ml, each.share, is_found(each.share)) for case, each in lesions]
    else:
        rule, false, predicted = CASE_RULE, None, None
        found = [
            Tumor(row["case"], row["truth_tumor_ml"], row["tumor_recall"], is_found(row["tumor_recall"]))
            for row in rows
            if row["truth_tumor_ml"] > 0
        ]
    found.sort(key=lambda tumor: (tumor.found, -tumor.ml, tumor.case))
    return Tumors(rule, found, false, predicted)


@dataclass(frozen=True)
class ClassRow:
    """Scores of one class: Dice of KiTS23, surface Dice and HD95; a score that was not asked for is None."""

    name: str
    dice: float | None = None
    surface_dice: float | None = None
    tolerance_mm: float | None = None
    hd95_mm: float | None = None
    defined: int | None = None


def class_rows(summary: Summary) -> list[ClassRow]:
    """Surface Dice, HD95 and the Dice of the KiTS23 classes; empty if they were not asked for."""
    dice = vars(summary.hec.dice) if summary.hec else {}
    surfaces = summary.surface.classes if summary.surface else {}
    rows = []
    for name in dict.fromkeys([*dice, *surfaces]):
        values = {"dice": dice[name].mean} if name in dice else {}
        if name in surfaces:
            surface = surfaces[name]
            values |= {"surface_dice": surface.surface_dice.mean, "tolerance_mm": surface.tolerance_mm}
            values |= {"hd95_mm": surface.hd95_mm.mean, "defined": surface.hd95_mm.defined}
        rows.append(ClassRow(name, **values))
    return rows


@dataclass(frozen=True)
class Failures:
    """Cases with a bad result, and cases without scores.

    Attributes:
        groups: kind of failure -> a text for each case that failed in this way.
        asides: sentences about cases that were not scored.
    """

    groups: dict[str, list[str]]
    asides: list[str]


def failures(rows: Sequence[Mapping[str, Any]], summary: Summary, found: Tumors) -> Failures:
    """The failures: cases that were not predicted, are empty, or have a tumor that was missed.

    Args:
        rows: of scores.csv.
        summary: content of scores.json.
        found: Tumors.
    """
    failed = summary.failed or {}
    groups = {
        "Prediction failed": [f"{case}: {entry.reason}" for case, entry in failed.items()],
        f"Masks without a voxel ({summary.empty_rule})": [
            f"{row['case']}: {row['empty'].replace('_', ' ')}" for row in rows if row["empty"]
        ],
        "Tumor missed": found.missed_cases,
    }
    asides = []
    # of a run: the patients it was trained on, and those forgotten
    if left := summary.truth_without_prediction:
        asides.append(f"Not predicted, so not scored: {len(left)} of the cases with a truth: {listed(left)}.")
    if alone := summary.prediction_without_truth:
        asides.append(f"No truth, so not scored: {len(alone)} predictions: {listed(alone)}.")
    if others := summary.of_other_scans:
        asides.append(f"Predicted from another scan than the one beside the truth: {listed(others)}.")
    if changed := summary.changed:
        asides.append(f"Label map changed since it was predicted: {listed(changed)}.")
    return Failures({name: cases for name, cases in groups.items() if cases}, asides)


def listed(cases: Sequence[str], separator: str = ", ") -> str:
    """Names in a row; of many names only the first, and the number of the others."""
    return some_of(cases, NAMED, separator)
