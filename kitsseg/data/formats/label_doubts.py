"""Label maps that can be read but are doubtful: no patient has kidneys and tumors of this size or in this place.

Only ``doubts_about_labels`` decides; verify lists its findings, preprocess warns. A label map and its scan need not be
in memory together: ``summary_of`` takes from the labels all that the comparison with the scan needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kitsseg.data.formats.grid import Doubt, Volume

__all__ = ["LabelSummary", "doubts_about_labels", "share_in_air", "summary_of"]

# Kidneys and tumors of the 210 training cases of KiTS19 have 192 to 1962 ml together, the kidneys alone 91 to 765 ml.
# A scan may show a part of one kidney; two kidneys full of cysts may reach some liters.
LARGEST_ML = 4000.0
SMALLEST_ML = 0.2
FEWEST_VOXELS = 10
# Less kidney than this, and less than a half of the tumor, is hardly ever left. Where kidney and tumor are exchanged in
# the 210 cases, 61 % have so little of what is then called kidney.
LEAST_KIDNEY_ML = 45.0
AIR_HU = -300  # below lies gas; fat in the kidney has -100
AIR_SHARE = 0.25  # of the labeled voxels
BORDER_SHARE = 0.5  # of the outermost voxels of the scan; KiTS19 has 0.1 % of one face at most
_SAMPLED = 1 << 18  # voxels of a scan, of which those that are labeled are compared with the scan


@dataclass(frozen=True, eq=False)
class LabelSummary:
    """What a label map says, without its voxels.

    Attributes:
        shape: (slices, rows, columns).
        voxels: that are labeled.
        kidney_ml, tumor_ml: of all voxels with these labels.
        border_share: of the outermost voxels that are labeled.
        sample: flat indices of labeled voxels, evenly over all of them.
    """

    shape: tuple[int, int, int]
    voxels: int
    kidney_ml: float
    tumor_ml: float
    border_share: float
    sample: npt.NDArray[np.int64]


def summary_of(labels: Volume) -> LabelSummary:
    """Summarize a label map slice by slice.

    Args:
        labels: Volume of (slices, rows, columns) uint8, as ``read_labels`` returns it.
    """
    array = labels.array
    slices, rows, columns = array.shape
    step = max(1, array.size // _SAMPLED)
    counts = np.zeros(2, np.int64)
    sample = []
    outermost = 0
    for number, plane in enumerate(array):
        if not plane.any():
            continue
        where = np.flatnonzero(plane)
        kidney = int(np.count_nonzero(plane == 1))
        counts += (kidney, len(where) - kidney)
        sample.append(number * plane.size + where[::step])
        inner = plane[1:-1, 1:-1] if 0 < number < slices - 1 else plane[:0]
        outermost += len(where) - int(np.count_nonzero(inner))
    ml = math.prod(labels.grid.spacing_mm) / 1000
    border = array.size - math.prod(max(0, count - 2) for count in array.shape)
    return LabelSummary(
        shape=(slices, rows, columns),
        voxels=int(counts.sum()),
        kidney_ml=float(counts[0]) * ml,
        tumor_ml=float(counts[1]) * ml,
        border_share=outermost / border,
        sample=np.concatenate(sample) if sample else np.zeros(0, np.int64),
    )


def share_in_air(summary: LabelSummary, image: Volume) -> float:
    """The share of the labeled voxels where a scan shows air; 0 without labels, or if the scan has another shape."""
    if image.array.shape != summary.shape or not len(summary.sample):
        return 0.0
    hu = image.array[np.unravel_index(summary.sample, summary.shape)]
    return float(np.count_nonzero(hu < AIR_HU) / len(hu))


def doubts_about_labels(summary: LabelSummary, in_air: float = 0.0) -> list[Doubt]:
    """What is doubtful about a label map: at most one Doubt, the weightiest.

    Args:
        summary: from ``summary_of``.
        in_air: from ``share_in_air``, if the scan is at hand.
    """
    kidney, tumor = summary.kidney_ml, summary.tumor_ml
    sizes = f"{kidney:.4g} ml of kidney and {tumor:.4g} ml of tumor"
    expected = f"kidneys and tumors of {SMALLEST_ML:g} to {LARGEST_ML:g} ml"
    view = "Look at the labels upon the scan"
    if summary.voxels == 0:
        return [_doubt("only background", expected, "Label the kidneys, or leave the case out of training")]
    if summary.border_share > BORDER_SHARE:
        found = f"labels at {summary.border_share:.0%} of the outermost voxels of the scan"
        return [_doubt(found, "background there", f"{view}: background and kidney may be exchanged")]
    if kidney + tumor > LARGEST_ML:
        return [_doubt(sizes, expected, f"{view}: they may be a map of the body or of other organs")]
    if in_air > AIR_SHARE:
        found = f"{in_air:.0%} of the labeled voxels in air (below {AIR_HU} HU)"
        advice = f"{view}: one of the two may be flipped, moved or of another patient"
        return [_doubt(found, "kidneys and tumors in tissue", advice)]
    if kidney + tumor < SMALLEST_ML or summary.voxels < FEWEST_VOXELS:
        return [
            _doubt(
                f"{sizes}, in {summary.voxels} voxels",
                expected,
                f"{view}: they may be incomplete, or the voxel sizes wrong",
            )
        ]
    if kidney < min(LEAST_KIDNEY_ML, tumor / 2):
        advice = f"{view}: kidney (1) and tumor (2) may be exchanged, unless the scan shows hardly any kidney"
        return [_doubt(sizes, "more kidney beside a tumor", advice)]
    return []


def _doubt(found: str, expected: str, advice: str) -> Doubt:
    return Doubt("size and place of the labels", found, expected, advice)
