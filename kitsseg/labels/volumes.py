"""Volumes of kidneys and tumors in a label map, for each side of the patient, and the removal of pieces on request.

Left and right are the patient's. In KiTS axes columns run to the left, so the piece in the higher columns is the left
kidney. The two largest pieces (kidney and tumor together) are the two kidneys if both are large and lie apart. If
there is only one large piece, its side follows from the middle of the scan; if it lies on both sides, as a horseshoe
kidney does, it is cut at the middle. ``Volumes.sides_by`` says which of these rules was used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from kitsseg.labels.components import Runs

__all__ = ["Cleanup", "TumorVolume", "Volumes", "cleaned", "volumes_of"]

SECOND_SHARE = 0.1  # of the largest piece, for a second one to be the other kidney
APART_MM = 40.0  # between the middles of two kidneys; a spine is wider
BOTH_SIDES_SHARE = 0.25  # of a single piece beyond the middle of the scan, for it to be cut there


@dataclass(frozen=True, kw_only=True)
class TumorVolume:
    """One connected tumor: its side ("left" or "right"), its size, and whether it touches a kidney."""

    side: str
    ml: float
    touches_kidney: bool


@dataclass(frozen=True, kw_only=True)
class Volumes:
    """Sizes in ml.

    Attributes:
        left_kidney_ml, right_kidney_ml: of the label kidney, without tumor.
        left_tumor_ml, right_tumor_ml: of all tumors of a side.
        tumors: the largest first.
        sides_by: "two kidneys", "the middle of the scan", "a cut at the middle of the scan", or "nothing found".
    """

    left_kidney_ml: float
    right_kidney_ml: float
    left_tumor_ml: float
    right_tumor_ml: float
    tumors: tuple[TumorVolume, ...]
    sides_by: str

    def rounded(self) -> Volumes:
        """The same sizes with three digits, which is a cubic millimeter: for people."""
        return replace(
            self,
            left_kidney_ml=round(self.left_kidney_ml, 3),
            right_kidney_ml=round(self.right_kidney_ml, 3),
            left_tumor_ml=round(self.left_tumor_ml, 3),
            right_tumor_ml=round(self.right_tumor_ml, 3),
            tumors=tuple(replace(tumor, ml=round(tumor.ml, 3)) for tumor in self.tumors),
        )


@dataclass(frozen=True, kw_only=True)
class Cleanup:
    """What the user asks to be removed from label maps, after a recipe's own post-processing.

    Attributes:
        remove_small_mm3: pieces, of kidney and tumor together, that are smaller than this.
        tumors_on_kidneys: tumors that touch no kidney.
    """

    remove_small_mm3: float = 0.0
    tumors_on_kidneys: bool = False


def cleaned(
    labels: npt.NDArray[np.uint8], spacing_mm: Sequence[float], cleanup: Cleanup | None
) -> npt.NDArray[np.uint8]:
    """Labels without the pieces that ``cleanup`` removes. The input is not changed.

    Args:
        labels: uint8 (slices, rows, columns); pieces are 26-connected.
        spacing_mm: of the voxels.
        cleanup: Cleanup.
    """
    if cleanup is None:
        return labels
    # SciPy's graphs take a third of a second to import: only where they are needed
    from kitsseg.labels.components import connect, copy_labels, find_runs, paint

    runs = find_runs(labels)
    pieces, voxels = connect(runs, 26)
    gone = voxels * math.prod(spacing_mm) < cleanup.remove_small_mm3
    if cleanup.tumors_on_kidneys:
        gone |= ~_with_kidney(runs, pieces, len(voxels))
    kept = copy_labels(labels)
    paint(kept, runs.take(gone[pieces]), 0)
    return kept


def volumes_of(labels: npt.NDArray[np.uint8], spacing_mm: Sequence[float]) -> Volumes:
    """Sizes of kidneys and tumors.

    Args:
        labels: uint8 (slices, rows, columns) in KiTS axes. spacing_mm: of its voxels.
    """
    from kitsseg.labels.components import connect, find_runs

    runs, ml = find_runs(labels), math.prod(spacing_mm) / 1000
    if not len(runs):
        return Volumes(
            left_kidney_ml=0.0,
            right_kidney_ml=0.0,
            left_tumor_ml=0.0,
            right_tumor_ml=0.0,
            tumors=(),
            sides_by="nothing found",
        )
    pieces, voxels = connect(runs, 26)
    touching = _with_kidney(runs, pieces, len(voxels))
    middle, sides_by = _middle(runs, pieces, voxels, spacing_mm[2])
    cut = sides_by.startswith("a cut")
    # of each run: its voxels on the left side
    on_left = (
        _beyond(runs, middle) if cut else runs.length * (_centers(runs, pieces, voxels) > middle)[pieces]
    )
    sizes = {}
    for value in (1, 2):
        here = runs.value == value
        left = float(on_left[here].sum())
        sizes[value] = left * ml, (float(runs.length[here].sum()) - left) * ml
    tumor = np.flatnonzero(runs.value == 2)
    tumors, tumor_voxels = connect(runs.take(tumor), 26)
    tumor_left = np.bincount(tumors, weights=on_left[tumor], minlength=len(tumor_voxels))
    first = [int(tumor[np.argmax(tumors == number)]) for number in range(len(tumor_voxels))]
    found = [
        TumorVolume(
            side="left" if 2 * tumor_left[number] > tumor_voxels[number] else "right",
            ml=float(tumor_voxels[number] * ml),
            touches_kidney=bool(touching[pieces[first[number]]]),
        )
        for number in range(len(tumor_voxels))
    ]
    return Volumes(
        left_kidney_ml=sizes[1][0],
        right_kidney_ml=sizes[1][1],
        left_tumor_ml=sizes[2][0],
        right_tumor_ml=sizes[2][1],
        tumors=tuple(sorted(found, key=lambda one: -one.ml)),
        sides_by=sides_by,
    )


def _with_kidney(runs: Runs, pieces: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.bool_]:
    """Whether each piece holds kidney. A tumor in such a piece touches the kidney, because pieces are connected."""
    found = np.zeros(count, bool)
    found[pieces[runs.value == 1]] = True
    return found


def _centers(
    runs: Runs, pieces: npt.NDArray[np.int32], voxels: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The mean column of each piece."""
    total = runs.length * (runs.start + runs.stop - 1) / 2
    centers: npt.NDArray[np.float64] = np.bincount(pieces, weights=total, minlength=len(voxels)) / voxels
    return centers


def _beyond(runs: Runs, middle: float) -> npt.NDArray[np.int64]:
    """How many voxels of each run lie in columns above ``middle``."""
    return np.maximum(0, runs.stop - np.maximum(runs.start, math.floor(middle) + 1)).astype(np.int64)


def _middle(
    runs: Runs, pieces: npt.NDArray[np.int32], voxels: npt.NDArray[np.int64], column_mm: float
) -> tuple[float, str]:
    """The column between the sides, and the rule by which it was found."""
    centers = _centers(runs, pieces, voxels)
    largest, *others = np.argsort(-voxels, kind="stable")[:2]
    if (
        others
        and voxels[others[0]] >= SECOND_SHARE * voxels[largest]
        and abs(centers[others[0]] - centers[largest]) * column_mm >= APART_MM
    ):
        return float(centers[largest] + centers[others[0]]) / 2, "two kidneys"
    middle = (runs.shape[2] - 1) / 2
    share = _beyond(runs.take(pieces == largest), middle).sum() / voxels[largest]
    if BOTH_SIDES_SHARE <= share <= 1 - BOTH_SIDES_SHARE:
        return middle, "a cut at the middle of the scan"
    return middle, "the middle of the scan"
