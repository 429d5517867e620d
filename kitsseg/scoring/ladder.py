"""The Dice ladder: the same label maps under every definition the papers and common code call "Dice" or "accuracy".

Most voxels of a CT are background and most slices hold no tumor, so a definition that counts background or slices
without tumor gives a high figure to an empty label map. The ladder shows all definitions side by side, together with
the figures of an empty label map, so that a reader sees how much a figure means.

All figures are computed from one 3 x 3 table of voxel counts for each slice (``kitsseg.scoring.dice.count_slices``). A
mean over nothing, such as over the slices with tumor if no case has any, is None.

Sources: WP-UNet (eq. 4 and 5), SqueezeNet U-Net (fastai's ``DiceMulti``), 3D DeepLab (per label), the KiTS19 starter
code; the other rungs state what they count. The name of a library says where a definition is used; the library may
have other definitions as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kitsseg.scoring.dice import score_counts

__all__ = ["RUNGS", "Rung", "all_background", "ladder"]

REGIONS = {"tk": (1, 2), "tu": (2,)}


@dataclass(frozen=True)
class Rung:
    """One definition: its name in a table, a sentence that defines it, and where it is used."""

    name: str
    definition: str
    met_in: str


_SLICES = {
    "empty_is_1": (
        "empty slices 1",
        "a slice without any in truth and prediction counts 1",
        "Dice with an epsilon or a smooth term",
    ),
    "truth_skipped": (
        "slices without truth left out",
        "slices without any in the truth are left out, whatever is predicted there",
        "training on positive slices; MONAI's ignore_empty",
    ),
    "empty_skipped": (
        "empty slices left out",
        "slices without any in truth and prediction are left out",
        "code that takes nanmean",
    ),
    "empty_is_0": (
        "empty slices 0",
        "a slice without any in truth and prediction counts 0",
        "code that gives 0 for 0/0",
    ),
}


def _rungs() -> dict[str, Rung]:
    rungs = {
        "pixel_accuracy": Rung(
            "pixel accuracy", "Share of all voxels with the right label.", "WP-UNet (eq. 4); Keras"
        ),
        "pooled_dice_with_background": Rung(
            "pooled Dice, with background",
            "Dice of the voxels of all three classes taken together; equals the pixel accuracy.",
            "Dice of flattened one-hot labels",
        ),
        "case_dice_with_background": Rung(
            "Dice per case, with background",
            "Mean over cases of the mean Dice of the three classes, background included.",
            "MONAI's include_background",
        ),
        "macro_dice_with_background": Rung(
            "fastai's DiceMulti",
            "All voxels pooled, mean of the Dice of the three classes, background included; a class that is nowhere "
            "is left out.",
            "SqueezeNet U-Net",
        ),
        "mean_iou": Rung(
            "mean IoU, with background",
            "All voxels pooled, mean over the three classes of intersection over union; a class that is nowhere is "
            "left out.",
            "WP-UNet (eq. 5); Keras",
        ),
    }
    for region, words in (("tk", "kidney with tumor"), ("tu", "tumor")):
        for key, (name, rule, met_in) in _SLICES.items():
            rungs[f"slice_{region}_dice_{key}"] = Rung(
                f"{words} per slice, {name}", f"Mean over slices of the Dice of {words}; {rule}.", met_in
            )
    for region, words in (("tk", "kidney with tumor"), ("tu", "tumor")):
        rungs[f"pooled_{region}_dice"] = Rung(
            f"{words}, pooled",
            f"Dice of {words} over the voxels of all cases together.",
            "nnU-Net's pseudo Dice",
        )
    rungs["kidney_label_dice"] = Rung(
        "kidney label per case",
        "Mean over cases of the Dice of label 1 alone, kidney without tumor.",
        "3D DeepLab",
    )
    rungs["tk_dice"] = Rung(
        "TK, official",
        "Mean over cases of the Dice of kidney with tumor.",
        "KiTS19; 2D U-Net, enhanced U-Net",
    )
    rungs["tu_dice"] = Rung(
        "TU, official", "Mean over cases of the Dice of tumor.", "KiTS19; 2D U-Net, enhanced U-Net"
    )
    rungs["composite"] = Rung("composite, official", "Mean of TK and TU.", "KiTS19 ranking")
    return rungs


RUNGS = _rungs()


def ladder(tables: Sequence[npt.NDArray[np.int64]]) -> dict[str, float | None]:
    """Every definition of ``RUNGS`` for the same label maps.

    Args:
        tables: for each case int64 (slices, truth label, predicted label), of ``count_slices``; at least one.

    Returns: dict of the keys of ``RUNGS`` -> float, or None for a mean over nothing. The official scores of a case
        whose masks are both empty are 1.
    """
    cases = np.array([table.sum(axis=0) for table in tables])
    pooled = cases.sum(axis=0)
    slices = np.concatenate(tables)
    official = [score_counts(table, 1.0) for table in cases]
    values = {
        name: _mean([scores[name] for scores in official]) for name in ("kidney_label_dice", "composite")
    }
    values |= {name: _mean([scores[name] for scores in official]) for name in ("tk_dice", "tu_dice")}
    values["pixel_accuracy"] = values["pooled_dice_with_background"] = float(np.trace(pooled) / pooled.sum())
    both, predicted, true = _classes(pooled)
    values["macro_dice_with_background"] = _mean(_ratio(2 * both, predicted + true))
    values["mean_iou"] = _mean(_ratio(both, predicted + true - both))
    both, predicted, true = _classes(cases)
    values["case_dice_with_background"] = _mean(np.nan_to_num(_ratio(2 * both, predicted + true), nan=1.0))
    for region, labels in REGIONS.items():
        both, predicted, true = _region(slices, labels)
        dice = _ratio(2 * both, predicted + true)  # NaN where both are empty
        values |= {
            f"slice_{region}_dice_empty_is_1": _mean(np.nan_to_num(dice, nan=1.0)),
            f"slice_{region}_dice_truth_skipped": _mean(dice[true > 0]),
            f"slice_{region}_dice_empty_skipped": _mean(dice),
            f"slice_{region}_dice_empty_is_0": _mean(np.nan_to_num(dice, nan=0.0)),
        }
        both, predicted, true = _region(pooled, labels)
        values[f"pooled_{region}_dice"] = _mean(_ratio(2 * both, predicted + true)[None])
    return {key: values[key] for key in RUNGS}


def all_background(tables: Sequence[npt.NDArray[np.int64]]) -> list[npt.NDArray[np.int64]]:
    """The tables that an empty label map would get on the same cases."""
    empty = [np.zeros_like(table) for table in tables]
    for table, nothing in zip(tables, empty, strict=True):
        nothing[:, :, 0] = table.sum(axis=2)
    return empty


def _classes(
    counts: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Voxels in both masks, in the predicted, in the true one, each (..., labels)."""
    return np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-2), counts.sum(axis=-1)


def _region(
    counts: npt.NDArray[np.int64], labels: Iterable[int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The numbers of ``_classes`` for a set of labels taken as one mask, each (...)."""
    labels = list(labels)
    rows = counts[..., labels, :]
    return (
        rows[..., labels].sum(axis=(-2, -1)),
        counts[..., labels].sum(axis=(-2, -1)),
        rows.sum(axis=(-2, -1)),
    )


def _ratio(
    part: npt.NDArray[np.integer[Any]], whole: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.float64]:
    """part / whole, NaN where whole is 0."""
    ratio: npt.NDArray[np.float64] = np.divide(
        part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) > 0
    )
    return ratio


def _mean(values: npt.ArrayLike) -> float | None:
    """Mean of the values that are not NaN; None if there is none."""
    numbers = np.asarray(values, float)
    numbers = numbers[~np.isnan(numbers)]
    return float(numbers.mean()) if numbers.size else None
