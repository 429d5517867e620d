"""Surface Dice and HD95 as DeepMind's ``surface-distance`` package defines them, which KiTS21 and KiTS23 score with.

A surface element lies between eight voxels of which some, not all, belong to the mask; its area is that of the
marching-cubes mesh of this one cell, at the spacing of the scan. Distances run between surface elements, both ways::

    surface Dice at t = (area of truth within t of the prediction + area of prediction within t of the truth)
                        / (area of both)
    HD95              = the larger of two distances: the one within which 95 % of the area of the truth's surface
                        lies, and the same of the prediction's

MONAI and MedPy take percentiles over border voxels instead of areas, and so get another HD95. A paper should say which
HD95 it uses.

Distances are the exact Euclidean distances of a distance transform, computed only for surface elements. The nearest
element of the other surface is first searched within a few voxels, and then in a k-d tree. Beside the masks at most
128 MiB are in memory, and arrays as long as the number of surface elements.

Source: Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck anatomy"; the
evaluation of KiTS23.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from kitsseg.scoring.dice import HEC_LABELS

__all__ = [
    "TOLERANCES_MM",
    "SurfaceDistances",
    "element_areas",
    "hausdorff_mm",
    "surface_dice",
    "surface_distances",
    "surface_scores",
]

# of KiTS23: of each class the mean over cases of the 95th percentile of the surface distances between annotators
TOLERANCES_MM = {
    "kidney_and_mass": 1.0330772532390826,
    "mass": 1.1328796488598762,
    "tumor": 1.1498198361434828,
}

REACH = 3  # voxels along each axis in which partners are looked up before a tree is built
LOOKED_UP = 1 << 27  # voxels; only the tree is used for larger boxes


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Elements of two surfaces: distance to the other surface in mm (inf if that surface is empty), and area in mm2."""

    truth_mm: npt.NDArray[np.float64]
    truth_mm2: npt.NDArray[np.float64]
    predicted_mm: npt.NDArray[np.float64]
    predicted_mm2: npt.NDArray[np.float64]


def surface_distances(
    prediction: npt.ArrayLike,
    truth: npt.ArrayLike,
    spacing_mm: Iterable[float],
    labels: Sequence[int] | None = None,
) -> SurfaceDistances:
    """Distances between the surfaces of two masks.

    Args:
        prediction, truth: bool or uint8 (slices, rows, columns) of one shape. A box around both is enough.
        spacing_mm: (slices, rows, columns).
        labels: the values that count as inside; None: all but 0.

    Returns: SurfaceDistances.
    Raises: ValueError for other shapes or a spacing that is not three positive sizes.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    spacing = tuple(float(size) for size in spacing_mm)
    if prediction.shape != truth.shape or truth.ndim != 3:
        raise ValueError(
            f"expected two masks (slices, rows, columns) of one shape; got {prediction.shape} and {truth.shape}."
        )
    if not {prediction.dtype, truth.dtype} <= {np.dtype(bool), np.dtype(np.uint8)}:
        raise ValueError(f"expected masks of bool or uint8; got {prediction.dtype} and {truth.dtype}.")
    if len(spacing) != 3 or not all(0 < size < np.inf for size in spacing):
        raise ValueError(
            f"spacing_mm must be three positive sizes (slices, rows, columns); got {spacing_mm}."
        )
    areas = element_areas(spacing)
    inside = np.arange(256) > 0 if labels is None else np.isin(np.arange(256), labels)
    (true, true_codes), (predicted, predicted_codes) = _elements(truth, inside), _elements(prediction, inside)
    grid = tuple(n + 1 for n in truth.shape)
    return SurfaceDistances(
        _distances(true, predicted, grid, spacing),
        areas[true_codes],
        _distances(predicted, true, grid, spacing),
        areas[predicted_codes],
    )


def surface_dice(found: SurfaceDistances, tolerance_mm: float) -> float:
    """Share of both surfaces within ``tolerance_mm`` of the other; 1 if both are empty, 0 if exactly one is."""
    total = found.truth_mm2.sum() + found.predicted_mm2.sum()
    if not total:
        return 1.0
    near = found.truth_mm2[found.truth_mm <= tolerance_mm].sum()
    return float((near + found.predicted_mm2[found.predicted_mm <= tolerance_mm].sum()) / total)


def hausdorff_mm(found: SurfaceDistances, percent: float = 95.0) -> float:
    """The robust Hausdorff distance in mm; NaN if a surface is empty, because no distance is defined then."""
    if not (len(found.truth_mm) and len(found.predicted_mm)):
        return float("nan")
    return max(
        _percentile(found.truth_mm, found.truth_mm2, percent),
        _percentile(found.predicted_mm, found.predicted_mm2, percent),
    )


@lru_cache(maxsize=32)
def element_areas(spacing_mm: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """Area in mm2 of a surface element for each of the 256 neighborhoods, float64 (256,).

    The bits of a neighborhood, from the highest, are its voxels in C order. A neighborhood and its complement count as
    the same surface. Their meshes differ if voxels inside meet only at an edge or a corner; the smaller area counts.

    Args:
        spacing_mm: tuple (slices, rows, columns).
    """
    from skimage.measure import marching_cubes, mesh_surface_area

    areas = np.zeros(256)
    for code in range(1, 255):
        cell = (code >> np.arange(7, -1, -1) & 1).astype(np.float64).reshape(2, 2, 2)
        vertices, faces, _, _ = marching_cubes(cell, 0.5, method="lorensen")  # halves, in float32
        areas[code] = mesh_surface_area(vertices.astype(np.float64) * spacing_mm, faces)
    areas = np.minimum(areas, areas[::-1])
    areas.flags.writeable = False
    return areas


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


def _elements(
    mask: npt.NDArray[np.uint8] | npt.NDArray[np.bool_], inside: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Flat positions, ascending, and neighborhoods of the surface elements.

    Positions are those of a grid one larger than the mask along each axis: position p lies between the voxels
    p - 1 and p; outside the mask there is none. ``inside`` tells of each of the 256 values whether it is inside.
    """
    slices, rows, columns = mask.shape
    padded = np.zeros((rows + 2, columns + 2), np.uint8)
    empty = np.zeros((rows + 1, columns + 1), np.uint8)
    before, positions, codes = empty, [], []
    for k in range(slices + 1):
        here = empty
        if k < slices and mask[k].any():
            padded[1:-1, 1:-1] = inside[mask[k].view(np.uint8)]
            pairs = 2 * padded[:, :-1] + padded[:, 1:]
            here = 4 * pairs[:-1] + pairs[1:]
        if here is not empty or before is not empty:
            code = (16 * before + here).ravel()
            flat = np.flatnonzero(code + np.uint8(1) > 1)  # neither 0 nor, since 256 is 0, 255
            positions.append(flat + k * empty.size)
            codes.append(code[flat])
        before = here
    if not positions:
        return np.empty(0, np.int64), np.empty(0, np.uint8)
    return np.concatenate(positions), np.concatenate(codes)


def _distances(
    elements: npt.NDArray[np.int64],
    others: npt.NDArray[np.int64],
    grid: tuple[int, ...],
    spacing_mm: tuple[float, ...],
) -> npt.NDArray[np.float64]:
    """Distance of each element to the nearest of ``others``, both flat positions in ``grid``; inf if there is none."""
    distances = np.full(len(elements), np.inf)
    if not (len(elements) and len(others)):
        return distances
    left = np.arange(len(elements))
    padded = tuple(n + 2 * REACH for n in grid)
    if math.prod(padded) <= LOOKED_UP:
        occupied = np.zeros(math.prod(padded), bool)
        occupied[_padded(others, grid, padded)] = True
        place = _padded(elements, grid, padded)
        for mm, step in _near_steps(padded, spacing_mm):
            hit = occupied[place + step]
            distances[left[hit]] = mm
            left, place = left[~hit], place[~hit]
            if not len(left):
                return distances
    points, targets = (
        np.stack(np.unravel_index(flat, grid), axis=-1) * spacing_mm for flat in (elements[left], others)
    )
    distances[left] = cKDTree(targets, balanced_tree=False, compact_nodes=False).query(points)[0]
    return distances


def _padded(
    flat: npt.NDArray[np.int64], grid: tuple[int, ...], padded: tuple[int, ...]
) -> npt.NDArray[np.int64]:
    """Flat positions in ``grid`` as such in a grid with a border of ``REACH``."""
    return np.ravel_multi_index(tuple(at + REACH for at in np.unravel_index(flat, grid)), padded)


def _near_steps(padded: tuple[int, ...], spacing_mm: tuple[float, ...]) -> list[tuple[float, int]]:
    """(mm, change of the flat position), nearest first, for every partner nearer than the first one beyond reach."""
    steps = np.array(list(np.ndindex(*[2 * REACH + 1] * 3))) - REACH
    mm = np.sqrt(((steps * spacing_mm) ** 2).sum(axis=1))
    strides = np.array([padded[1] * padded[2], padded[2], 1])
    order = [i for i in np.argsort(mm, kind="stable") if mm[i] < (REACH + 1) * min(spacing_mm)]
    return [(mm[i], int(steps[i] @ strides)) for i in order]


def _percentile(distances: npt.NDArray[np.float64], areas: npt.NDArray[np.float64], percent: float) -> float:
    order = np.lexsort((areas, distances))
    share = np.cumsum(areas[order]) / areas.sum()
    index = int(np.searchsorted(share, percent / 100))
    return float(distances[order[min(index, len(order) - 1)]])
