"""The hierarchical evaluation classes of KiTS21 and KiTS23: Dice, surface Dice, and the ranking from both.

Labels there are 1 kidney, 2 tumor, 3 cyst; a class takes several of them as one mask. In KiTS19, where cysts are
labeled as kidney, ``kidney_and_mass`` is the mask of TK and ``tumor`` that of TU; ``mass`` has no counterpart.

Stated in the evaluation code of KiTS23: classes, tolerances (of each class the mean over cases of the 95th percentile
    of the surface distances between annotators), both masks empty 1, exactly one empty 0, and the ranking.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from kitsseg.scoring.dice import dice_of_overlap, overlap
from kitsseg.scoring.surface import hausdorff_mm, surface_dice, surface_distances

__all__ = ["HEC_LABELS", "TOLERANCES_MM", "cysts_as_kidney", "hec_dice", "rank_runs", "surface_scores"]

HEC_LABELS = {"kidney_and_mass": (1, 2, 3), "mass": (2, 3), "tumor": (2,)}
TOLERANCES_MM = {
    "kidney_and_mass": 1.0330772532390826,
    "mass": 1.1328796488598762,
    "tumor": 1.1498198361434828,
}


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


def surface_scores(
    prediction: npt.NDArray[np.uint8],
    truth: npt.NDArray[np.uint8],
    spacing_mm: Sequence[float],
    classes: Iterable[str] = tuple(HEC_LABELS),
) -> dict[str, float | None]:
    """Surface Dice at the tolerance of the class, and HD95, of one case.

    Args:
        prediction, truth: uint8 labels (slices, rows, columns) of one shape; a box around the foreground is enough.
        spacing_mm: (slices, rows, columns).
        classes: which of ``HEC_LABELS``.

    Returns: dict of ``CLASS_surface_dice`` and ``CLASS_hd95_mm`` (None where a mask is empty: no distance is defined).
    """
    scores: dict[str, float | None] = {}
    for name in classes:
        found = surface_distances(prediction, truth, spacing_mm, HEC_LABELS[name])
        hd95 = hausdorff_mm(found)
        scores[f"{name}_surface_dice"] = surface_dice(found, TOLERANCES_MM[name])
        scores[f"{name}_hd95_mm"] = None if np.isnan(hd95) else hd95
    return scores


def rank_runs(entries: Mapping[str, Sequence[float]]) -> list[tuple[str, int, int, float]]:
    """Rank runs as KiTS21 and KiTS23 do.

    Args:
        entries: dict of run -> (mean Dice, mean surface Dice, mean tumor Dice), means over cases and classes.

    Returns: list of (run, rank by Dice, rank by surface Dice, mean of both ranks), best first. Equal values share the
        best of their ranks; equal means are ordered by the tumor Dice.
    """

    def rank(index: int, run: str) -> int:
        return 1 + sum(other[index] > entries[run][index] for other in entries.values())

    ranks = [(run, rank(0, run), rank(1, run)) for run in entries]
    table = [(run, first, second, (first + second) / 2) for run, first, second in ranks]
    return sorted(table, key=lambda row: (row[3], -entries[row[0]][2]))
