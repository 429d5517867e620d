"""Tumors found and missed: scores by lesion instead of by voxel.

A case with one large and two small tumors can have a high TU Dice although both small ones were missed. A lesion is a
26-connected component of tumor (label 2).

Chosen (ours): a lesion of the truth is found if at least a tenth of its volume is predicted as tumor; a predicted
lesion is false if less than a tenth of its volume is tumor in truth. The volumes and shares of all lesions are returned
as well, so that other rules can be applied: the LiTS challenge asks for 50 % of the union, autoPET for any overlap.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from kitsseg.labels.components import components

__all__ = ["CASE_RULE", "LESION_RULE", "MIN_SHARE", "find_lesions", "is_found", "lesion_counts"]

MIN_SHARE = 0.1
CASE_RULE = (
    "all tumor of a case together; found: at least 10 % of its volume is predicted as tumor, a tumor recall of "
    "0.1"
)
LESION_RULE = (
    "26-connected components of tumor; found: at least 10 % of the lesion is predicted as tumor; "
    "false: less than 10 % of the predicted lesion is tumor in truth"
)


def find_lesions(
    prediction: npt.NDArray[np.uint8],
    truth: npt.NDArray[np.uint8],
    spacing_mm: Sequence[float],
    tumor: int = 2,
) -> dict[str, list[dict[str, float]]]:
    """The lesions of truth and prediction, and the share of each that is tumor in the other label map.

    Args:
        prediction, truth: uint8 labels (slices, rows, columns) of one shape.
        spacing_mm: (slices, rows, columns).
        tumor: the label.

    Returns: dict of ``truth`` and ``prediction``, each a list of ``{"ml": volume, "share": of it that is tumor in the
        other}``, largest first.
    Raises: ValueError for other shapes.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise ValueError(f"expected two label maps of one shape; got {prediction.shape} and {truth.shape}.")
    voxel_ml = math.prod(spacing_mm) / 1000
    found = {}
    for name, labels, other in (("truth", truth, prediction), ("prediction", prediction, truth)):
        parts = components(labels == tumor)
        inside = other.reshape(-1)[parts.runs.voxels()] == tumor
        hits = np.bincount(
            np.repeat(parts.ids, parts.runs.length), weights=inside, minlength=len(parts.voxels)
        )
        found[name] = [
            {"ml": float(parts.voxels[i] * voxel_ml), "share": float(hits[i] / parts.voxels[i])}
            for i in np.argsort(-parts.voxels, kind="stable")
        ]
    return found


def is_found(share: float, min_share: float = MIN_SHARE) -> bool:
    """Whether a tumor counts as found if this share (0 to 1) of its volume is predicted as tumor."""
    return share >= min_share


def lesion_counts(
    lesions: Mapping[str, Sequence[Mapping[str, float]]], min_share: float = MIN_SHARE
) -> dict[str, int]:
    """Counts of one case from ``find_lesions``: lesions, lesions_found, predicted_lesions, false_lesions."""
    return {
        "lesions": len(lesions["truth"]),
        "lesions_found": sum(is_found(lesion["share"], min_share) for lesion in lesions["truth"]),
        "predicted_lesions": len(lesions["prediction"]),
        "false_lesions": sum(not is_found(lesion["share"], min_share) for lesion in lesions["prediction"]),
    }
