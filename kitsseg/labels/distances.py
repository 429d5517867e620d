"""Exact Euclidean distances between runs, in millimeters, without a distance map.

A distance transform of 219 million voxels takes half a minute and ten gigabytes, but only the distances of the few
voxels of small objects are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from kitsseg.labels.components import Components, Runs

__all__ = ["distance_mm", "nearest"]

QUERIES = 1 << 16  # queries kept in memory at once
NEAR_LINES = 400  # lines that are searched; queries without a result are then compared with all targets
FAR_PAIRS = 1 << 26  # unless that would be more pairs than this: about a second
PAIRS = 1 << 19  # pairs in memory at once
TIE = 1 + 1e-9  # squared distances this close are one: steps of (3, 4) and (5, 0) voxels tie at any spacing


def distance_mm(
    parts: Components,
    targets: npt.NDArray[np.integer[Any]],
    spacing_mm: Sequence[float],
    limit_mm: float = np.inf,
) -> npt.NDArray[np.float64]:
    """Shortest distance of each component to the target components, between voxel centers.

    Args:
        parts: ``Components``.
        targets: ids of the target components, at least one.
        spacing_mm: voxel size (slices, rows, columns).
        limit_mm: farther components are given as ``inf`` without a search to the end.

    Returns: float64 (n components,), 0 for the targets themselves.
    """
    is_target = np.zeros(len(parts.voxels), bool)
    is_target[targets] = True
    target_run = is_target[parts.ids]
    main = parts.runs.take(target_run)
    near = ~target_run & _near_box(parts.runs, main, spacing_mm, limit_mm)
    squared, _ = nearest(parts.runs.take(near), main, spacing_mm, limit_mm)
    distances = np.where(is_target, 0.0, np.inf)
    np.minimum.at(distances, parts.ids[near], np.sqrt(squared))
    distances[distances > limit_mm] = np.inf
    return distances


def _near_box(
    runs: Runs, targets: Runs, spacing_mm: Sequence[float], limit_mm: float
) -> npt.NDArray[np.bool_]:
    """Which runs lie within the limit of the targets' box. The other runs need no search, which would find nothing."""
    rows = runs.shape[1]
    squared = (_box_gap(runs.start, runs.stop, targets.start, targets.stop) * spacing_mm[2]) ** 2
    for axis, (at, box) in enumerate(zip(np.divmod(runs.line, rows), np.divmod(targets.line, rows))):
        squared += (_box_gap(at, at + 1, box, box + 1) * spacing_mm[axis]) ** 2  # slices, then rows
    return np.sqrt(squared) <= limit_mm


def _box_gap(
    start: npt.NDArray[np.integer[Any]],
    stop: npt.NDArray[np.integer[Any]],
    target_start: npt.NDArray[np.integer[Any]],
    target_stop: npt.NDArray[np.integer[Any]],
) -> npt.NDArray[np.float64]:
    """Distance in voxels of intervals to the hull of the target intervals."""
    low, high = target_start.min(), target_stop.max() - 1
    gap: npt.NDArray[np.float64] = np.maximum(0, np.maximum(low - (stop - 1), start - high)).astype(float)
    return gap


def nearest(
    queries: Runs, targets: Runs, spacing_mm: Sequence[float], limit_mm: float = np.inf
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
    """Squared distance to the nearest target voxel, and the value there, for each query run.

    Lines are searched in the order of their distance, so that a query is done as soon as the next line lies farther
    away than the nearest target that it has found; within a line one bisection finds the neighbors on both sides. This
    is quick if the target is near. A query that has found no target within some millimeters is compared with every
    target run instead, because a speck at the other end of the volume would pass thousands of empty lines.

    Args:
        queries, targets: ``Runs`` of one volume that do not overlap.
        spacing_mm: voxel size (slices, rows, columns).
        limit_mm: how far to search.

    Returns: ``(squared_mm2 float64 (n,), value uint8 (n,))``; ``inf`` and 0 where nothing lies within the
        limit. Of equally near targets the highest value is given, so that a mirrored volume has the mirrored
        result; the value is meant for queries of one voxel.
    """
    squared, value = np.full(len(queries), np.inf), np.zeros(len(queries), np.uint8)
    if len(targets):
        target_stops = targets.key(targets.stop)
        for first in range(0, len(queries), QUERIES):
            block = slice(first, first + QUERIES)
            _nearest_of_block(
                queries.take(block), targets, target_stops, spacing_mm, limit_mm, squared[block], value[block]
            )
        beyond = squared > limit_mm**2 * TIE  # in a line that comes nearer than its nearest target
        squared[beyond], value[beyond] = np.inf, 0
    return squared, value


def _nearest_of_block(
    queries: Runs,
    targets: Runs,
    target_stops: npt.NDArray[np.int64],
    spacing_mm: Sequence[float],
    limit_mm: float,
    squared: npt.NDArray[np.float64],
    value: npt.NDArray[np.uint8],
) -> None:
    """``nearest`` for some of the queries; fills ``squared`` and ``value``."""
    slices, rows, columns = queries.shape
    slice_, row = np.divmod(queries.line, rows)
    active = np.arange(len(queries))
    for step, (slice_step, row_step, line_squared) in enumerate(
        _line_steps(queries.shape, spacing_mm, limit_mm)
    ):
        active = active[squared[active] * TIE >= line_squared]
        if not len(active):
            return
        if step >= NEAR_LINES and len(active) * len(targets) <= FAR_PAIRS:
            for first in range(0, len(active), max(1, PAIRS // len(targets))):
                index = active[first : first + max(1, PAIRS // len(targets))]
                _compare_with_all(queries.take(index), targets, spacing_mm, index, squared, value)
            return
        z, y = slice_[active] + slice_step, row[active] + row_step
        inside = (z >= 0) & (z < slices) & (y >= 0) & (y < rows)
        index = active[inside]
        line = (z * rows + y)[inside]
        start, stop = queries.start[index], queries.stop[index]
        # first target of this line or a later one that ends behind the query's start, and the one before it
        right = np.searchsorted(target_stops, line.astype(np.int64) * (columns + 1) + start, side="right")
        for target, is_left in ((right, False), (right - 1, True)):
            known = (target >= 0) & (target < len(targets))
            known[known] = targets.line[target[known]] == line[known]
            at, target = index[known], target[known]
            if is_left:
                gap = start[known] - (targets.stop[target] - 1)
            else:
                gap = np.maximum(0, targets.start[target] - (stop[known] - 1))
            found = line_squared + (gap * spacing_mm[2]) ** 2
            better, tie = found * TIE < squared[at], found <= squared[at] * TIE
            value[at] = np.where(
                better,
                targets.value[target],
                np.where(tie, np.maximum(value[at], targets.value[target]), value[at]),
            )
            squared[at] = np.minimum(squared[at], found)


def _compare_with_all(
    queries: Runs,
    targets: Runs,
    spacing_mm: Sequence[float],
    index: npt.NDArray[np.integer[Any]],
    squared: npt.NDArray[np.float64],
    value: npt.NDArray[np.uint8],
) -> None:
    """Squared distance of each query run to the nearest of all target runs, written at ``index``."""
    rows = queries.shape[1]
    gap = np.maximum(targets.start - (queries.stop[:, None] - 1), queries.start[:, None] - (targets.stop - 1))
    found = (np.maximum(gap, 0) * float(spacing_mm[2])) ** 2
    for axis, (at, other) in enumerate(zip(np.divmod(queries.line, rows), np.divmod(targets.line, rows))):
        found += ((at[:, None] - other) * float(spacing_mm[axis])) ** 2
    shortest = found.min(axis=1)
    ties = found <= (shortest * TIE)[:, None]
    squared[index], value[index] = shortest, np.where(ties, targets.value, 0).max(axis=1)


def _line_steps(
    shape: tuple[int, int, int], spacing_mm: Sequence[float], limit_mm: float
) -> Iterator[tuple[int, int, float]]:
    """Steps to other lines as ``(slices, rows, squared mm)``, nearest first, up to ``limit_mm``."""
    dz, dy, _ = spacing_mm
    slices, rows, _ = shape
    reach = min(limit_mm, 1.01 * np.hypot(dz * slices, dy * rows))
    inner, outer = -1.0, min(reach, 4 * max(dz, dy))
    while True:  # in shells, since most searches end within a few millimeters
        z = np.arange(-min(int(outer // dz) + 1, slices - 1), min(int(outer // dz) + 1, slices - 1) + 1)
        y = np.arange(-min(int(outer // dy) + 1, rows - 1), min(int(outer // dy) + 1, rows - 1) + 1)
        squared = ((z * dz) ** 2)[:, None] + ((y * dy) ** 2)[None]
        distance = np.sqrt(squared)
        z_index, y_index = np.nonzero((distance > inner) & (distance <= outer))
        squared = squared[z_index, y_index]
        order = np.argsort(squared, kind="stable")
        yield from zip(z[z_index[order]].tolist(), y[y_index[order]].tolist(), squared[order].tolist())
        if outer >= reach:
            return
        inner, outer = outer, min(reach, 2 * outer)
