"""Scores of one case and of a run: the official KiTS19 Dice values, and other values with which papers confuse them.

Three values are called "kidney Dice" in the literature. Here they have three names:

* ``tk_dice``: kidney with tumor, labels >= 1. The official KiTS19 value.
* ``kidney_label_dice``: label 1 alone.
* ``macro_dice_with_background``: mean over the three classes, background included, pooled over all cases. This and
  other definitions that give higher values are in ``kitsseg.scoring.ladder``.

``HEC_LABELS`` are the hierarchical classes of KiTS21 and KiTS23, whose labels are 1 kidney, 2 tumor, 3 cyst; a class
takes several of them as one mask. In KiTS19, where cysts are labeled as kidney, ``kidney_and_mass`` is the mask of TK
and ``tumor`` that of TU; ``mass`` has no counterpart.

Everything is computed from tables of voxel counts, one per slice: no temporary array exceeds a slice.

The rule for empty masks (that of the KiTS21 and KiTS23 code): truth and prediction both empty give 1, exactly
one empty gives 0. ``empty="nan"`` gives NaN where both are empty, as the KiTS19 starter code does.

Source: the KiTS19 starter code (evaluation rules); the evaluation code of KiTS23 (hierarchical classes).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "HEC_LABELS",
    "SCORES",
    "VOLUMES",
    "bootstrap_intervals",
    "count_labels",
    "count_slices",
    "cysts_as_kidney",
    "dice_of_overlap",
    "hec_dice",
    "overlap",
    "score_case",
    "score_counts",
    "summarize_scores",
]

SCORES = (
    "tk_dice",
    "tu_dice",
    "composite",
    "kidney_label_dice",
    "kidney_precision",
    "kidney_recall",
    "tumor_precision",
    "tumor_recall",
)
VOLUMES = ("truth_kidney_ml", "predicted_kidney_ml", "truth_tumor_ml", "predicted_tumor_ml")
HEC_LABELS = {"kidney_and_mass": (1, 2, 3), "mass": (2, 3), "tumor": (2,)}
RESAMPLES, BOOTSTRAP_SEED = 10_000, 0
DRAWN_AT_ONCE = 2**20  # cases, of several resamples: all resamples of 10,000 cases would take 1.6 GB


def score_case(
    prediction: npt.ArrayLike, truth: npt.ArrayLike, spacing_mm: Sequence[float], empty: str = "one"
) -> dict[str, Any]:
    """Scores of one case.

    Args:
        prediction: labels (slices, rows, columns) 0 background, 1 kidney, 2 tumor; floats are rounded half to
            even. Or probabilities or logits (slices, rows, columns, classes), of which the largest counts.
        truth: labels of the same shape.
        spacing_mm: (slices, rows, columns), for the volumes only.
        empty: "one" or "nan", what a score is when truth and prediction are both empty; see the module.

    Returns: dict of ``SCORES``, the four volumes in ml (label 1 is kidney without tumor) and ``empty``, the
        names of the masks without a voxel.
    Raises: ValueError for other labels or shapes.
    """
    return score_counts(count_labels(prediction, truth), float(np.prod(spacing_mm)) / 1000, empty)


def count_labels(prediction: npt.ArrayLike, truth: npt.ArrayLike, n_labels: int = 3) -> npt.NDArray[np.int64]:
    """Count voxels for each pair of labels: int64 (truth label, predicted label).

    Args: as ``score_case``; also 1-D and 2-D arrays.
    Raises: ValueError if the shapes differ or a label is not in 0..n_labels - 1.
    """
    counts: npt.NDArray[np.int64] = count_slices(prediction, truth, n_labels).sum(axis=0)
    return counts


def count_slices(prediction: npt.ArrayLike, truth: npt.ArrayLike, n_labels: int = 3) -> npt.NDArray[np.int64]:
    """Count voxels for each slice and pair of labels: int64 (slices, truth label, predicted label).

    Args: as ``count_labels``; a 1-D or 2-D array is one slice.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    shape = prediction.shape[:-1] if prediction.ndim == 4 else prediction.shape
    if shape != truth.shape:
        raise ValueError(
            f"prediction has shape {shape}, truth {truth.shape}; both must lie on the grid of the scan. "
            "Undo cropping and resampling before scoring."
        )
    if truth.ndim < 3:
        prediction, truth = prediction[None], truth[None]
    counts = np.zeros((len(truth), n_labels**2), np.int64)
    for row, predicted, true in zip(counts, prediction, truth):
        true = _labels(true, n_labels, "truth")
        predicted = _labels(
            predicted.argmax(-1) if predicted.ndim > true.ndim else predicted, n_labels, "prediction"
        )
        row[0] = true.size
        if true.any() or predicted.any():
            code = true * np.uint8(n_labels) + predicted
            row[1:] = [np.count_nonzero(code == value) for value in range(1, n_labels**2)]
            row[0] -= row[1:].sum()
    return counts.reshape(-1, n_labels, n_labels)


def _labels(block: npt.NDArray[Any], n_labels: int, name: str) -> npt.NDArray[np.uint8]:
    if block.dtype.kind == "f":
        block = np.rint(block)  # half to even, as in the starter code
    # written so that NaN fails too
    if block.size and not (block.min() >= 0 and block.max() < n_labels):
        raise ValueError(
            f"{name}: labels must be 0..{n_labels - 1}; found {block.min()} to {block.max()}. "
            "Is this an image, or a label map of another dataset?"
        )
    return block.astype(np.uint8, copy=False)


def score_counts(counts: npt.NDArray[np.int64], voxel_ml: float, empty: str = "one") -> dict[str, Any]:
    """The scores of ``score_case``, from a table of voxel counts.

    Args:
        counts: from ``count_labels``.
        voxel_ml: volume of a voxel in ml.
        empty: as in ``score_case``.
    """
    if empty not in ("one", "nan"):
        raise ValueError(f'empty must be "one" or "nan", not {empty!r}.')
    counts = np.asarray(counts)
    tk, tumor, kidney = (overlap(counts, labels) for labels in ((1, 2), (2,), (1,)))
    scores: dict[str, Any] = {
        "tk_dice": dice_of_overlap(*tk, empty),
        "tu_dice": dice_of_overlap(*tumor, empty),
    }
    scores["composite"] = (scores["tk_dice"] + scores["tu_dice"]) / 2
    scores["kidney_label_dice"] = dice_of_overlap(*kidney, empty)
    for name, (both, predicted, true) in (("kidney", kidney), ("tumor", tumor)):
        scores[f"{name}_precision"] = _ratio(both, predicted, true, empty)
        scores[f"{name}_recall"] = _ratio(both, true, predicted, empty)
    voxels: dict[str, int] = {}
    for name, (_, predicted, true) in (("kidney", kidney), ("tumor", tumor)):
        voxels |= {f"truth_{name}": true, f"predicted_{name}": predicted}
    scores |= {f"{name}_ml": count * voxel_ml for name, count in voxels.items()}
    scores["empty"] = [name for name, count in voxels.items() if not count]
    return scores


def overlap(counts: npt.NDArray[np.int64], labels: Iterable[int]) -> tuple[int, int, int]:
    """Number of voxels in both masks, in the predicted mask, and in the true mask.

    Args:
        counts: the table of ``count_labels``.
        labels: the labels that form the mask.
    """
    labels = list(labels)
    return int(counts[np.ix_(labels, labels)].sum()), int(counts[:, labels].sum()), int(counts[labels].sum())


def dice_of_overlap(both: int, predicted: int, true: int, empty: str = "one") -> float:
    """Dice from the three numbers of ``overlap``.

    Args:
        both, predicted, true: from ``overlap``.
        empty: as in ``score_case``.
    """
    if predicted + true:
        return 2 * both / (predicted + true)
    return 1.0 if empty == "one" else float("nan")


def _ratio(both: int, size: int, other: int, empty: str) -> float:
    """Share of a mask of ``size`` voxels that lies in the other mask; 0 if only this mask is empty."""
    if size:
        return both / size
    return 0.0 if other else (1.0 if empty == "one" else float("nan"))


def hec_dice(counts: npt.NDArray[np.int64], empty: str = "one") -> dict[str, float]:
    """Dice of the three classes of one case.

    Args:
        counts: (truth label, predicted label) of ``count_labels(..., n_labels=4)``.
        empty: as ``score_case``.

    Returns: dict of class -> Dice.
    """
    return {name: dice_of_overlap(*overlap(counts, labels), empty) for name, labels in HEC_LABELS.items()}


def cysts_as_kidney(tables: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Tables of four labels (slices, truth, predicted) as KiTS19 labels the same voxels: cysts are kidney."""
    folded = tables[:, :3, :3].copy()
    folded[:, 1] += tables[:, 3, :3]
    folded[:, :, 1] += tables[:, :3, 3]
    folded[:, 1, 1] += tables[:, 3, 3]
    return folded


def bootstrap_intervals(columns: Sequence[npt.NDArray[np.float64]]) -> list[tuple[float, float]]:
    """Percentile intervals, 95 %, of the means of ``columns`` over 10,000 resamples of the cases, always the same ones.

    Args:
        columns: arrays of one value per case, all of the same cases.
    """
    n = len(columns[0])
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    means = np.empty((len(columns), RESAMPLES))
    step = max(1, DRAWN_AT_ONCE // n)
    for first in range(0, RESAMPLES, step):
        drawn = generator.integers(n, size=(min(step, RESAMPLES - first), n))
        for column, of_column in zip(columns, means, strict=True):
            of_column[first : first + len(drawn)] = column[drawn].mean(axis=1)
    return [(float(low), float(high)) for low, high in np.percentile(means, [2.5, 97.5], axis=1).T]


def summarize_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, spread and bootstrap interval of the cases of a run.

    Args:
        rows: the dicts of ``score_case``, at least one.

    Returns: dict of

        * ``scores``: for each of ``SCORES`` the mean, sd (n - 1; None for a single case), median and
          interval_95: percentile interval of the mean over 10,000 resamples of the cases, drawn with a fixed
          seed. The mean is a plain one: if the score of a case is NaN, the mean is NaN;
        * ``composite_interval_95``: interval_95 of the composite;
        * ``composite_identity``: the mean of the composites, and half of mean TK + mean TU, which must be equal;
        * ``empty_cases``: how many cases have an empty mask, so that scores rest on the rule for empty masks.
    """
    if not rows:
        raise ValueError("summarize_scores: expected at least one case, found none.")
    table = {name: np.array([row[name] for row in rows], float) for name in SCORES}
    intervals = bootstrap_intervals(list(table.values()))
    scores: dict[str, dict[str, Any]] = {
        name: {
            "mean": float(values.mean()),
            "sd": float(values.std(ddof=1)) if len(rows) > 1 else None,
            "median": float(np.median(values)),
            "interval_95": list(interval),
        }
        for (name, values), interval in zip(table.items(), intervals, strict=True)
    }
    halves = (scores["tk_dice"]["mean"] + scores["tu_dice"]["mean"]) / 2
    return {
        "n_cases": len(rows),
        "scores": scores,
        "composite_interval_95": scores["composite"]["interval_95"],
        "resamples": RESAMPLES,
        "bootstrap_seed": BOOTSTRAP_SEED,
        "composite_identity": {
            "mean_of_composites": scores["composite"]["mean"],
            "mean_of_mean_tk_and_mean_tu": halves,
            "difference": scores["composite"]["mean"] - halves,
        },
        "empty_cases": sum(bool(row["empty"]) for row in rows),
    }
