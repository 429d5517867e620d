"""Connected components on runs: no temporary of the volume's size.

A run is a stretch of equal labels along the last axis. A KiTS label map of 219 million voxels has some tens
of thousands of foreground runs, so labelling and volumes cost little once the runs are found, and
the results are exact. Memory grows with the number of runs: a volume of pure noise has no advantage here.

Needs numpy and scipy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

__all__ = [
    "Components",
    "Runs",
    "check_labels",
    "components",
    "connect",
    "copy_labels",
    "find_runs",
    "paint",
    "single_voxels",
]

SLAB_BYTES = 1 << 20  # voxels read at once; four 512 x 512 slices
PAINTED = 1 << 12  # runs written at once


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of equal value in C order.

    ``line`` is ``slice * rows + row``; the run covers columns ``start`` to ``stop - 1``; all arrays have
    shape (n,).
    """

    shape: tuple[int, int, int]
    line: npt.NDArray[np.int32]
    start: npt.NDArray[np.int32]
    stop: npt.NDArray[np.int32]
    value: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.line)

    @property
    def length(self) -> npt.NDArray[np.int32]:
        return self.stop - self.start

    def take(self, index: npt.NDArray[np.integer[Any]] | npt.NDArray[np.bool_] | slice) -> Runs:
        """The runs at ``index`` (integers or a boolean mask)."""
        return Runs(self.shape, self.line[index], self.start[index], self.stop[index], self.value[index])

    def key(self, column: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        """Line and column as one number that grows in C order; a line's stop is below the next line's start."""
        return self.line.astype(np.int64) * (self.shape[2] + 1) + column

    def voxels(self) -> npt.NDArray[np.int64]:
        """Flat indices of all voxels of the runs, shape (sum of lengths,)."""
        length = self.length.astype(np.int64)
        first = self.line.astype(np.int64) * self.shape[2] + self.start
        before = np.cumsum(length) - length
        return np.repeat(first - before, length) + np.arange(length.sum())


@dataclass(frozen=True, eq=False)
class Components:
    """Components: ``ids`` (n runs,) from 0 in the order of the first voxel, ``voxels`` (n ids,)."""

    runs: Runs
    ids: npt.NDArray[np.int32]
    voxels: npt.NDArray[np.int64]


def components(mask: npt.NDArray[np.uint8] | npt.NDArray[np.bool_], connectivity: int = 26) -> Components:
    """Label the connected components of the nonzero voxels.

    Args:
        mask: bool or uint8 array (slices, rows, columns); labels are merged to one foreground.
        connectivity: 6 (faces) or 26 (faces, edges, corners).

    Returns: ``Components``, numbered from 0 where ``scipy.ndimage.label`` numbers from 1, in the same order.
    Raises: ValueError for another shape, dtype or connectivity.
    """
    runs = find_runs(mask, merge=True)
    return Components(runs, *connect(runs, connectivity))


def find_runs(
    labels: npt.NDArray[np.uint8] | npt.NDArray[np.bool_], *, background: bool = False, merge: bool = False
) -> Runs:
    """Find the runs of a label volume.

    Args:
        labels: bool or uint8 array (slices, rows, columns).
        background: also return the runs of zeros.
        merge: treat all nonzero labels as one value, 1.
    """
    check_labels(labels, dtypes=(np.uint8, np.bool_))
    slices, rows, columns = labels.shape
    found = [np.empty((4, 0), np.int32)]
    step = max(1, SLAB_BYTES // max(1, rows * columns))
    for first in range(0, slices, step):
        slab = labels[first : first + step]
        if not labels.size or not (background or slab.any()):
            continue
        slab = slab != 0 if merge else slab
        begins = np.ones(slab.shape, bool)  # every line begins a run, so a run ends where the next one begins
        np.not_equal(slab[..., 1:], slab[..., :-1], out=begins[..., 1:])
        start = np.flatnonzero(begins)
        stop = np.append(start[1:], slab.size)
        value = np.ascontiguousarray(slab).reshape(-1)[start]
        if not background:
            kept = np.flatnonzero(value)
            start, stop, value = start[kept], stop[kept], value[kept]
        line = start // columns
        found.append(np.stack([line + first * rows, start - line * columns, stop - line * columns, value]))
        found[-1] = found[-1].astype(np.int32)
    line, start, stop, value = np.concatenate(found, axis=1)
    return Runs(labels.shape, line, start, stop, value.astype(np.uint8))


def connect(runs: Runs, connectivity: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Components of runs that are all taken as foreground: ``(ids (n runs,), voxels (n components,))``."""
    if connectivity not in (6, 26):
        raise ValueError(f"connectivity must be 6 or 26; got {connectivity!r}.")
    corner = connectivity == 26
    # the other half of the neighbor lines is covered from their side
    neighbors = [(0, 1), (1, -1), (1, 0), (1, 1)] if corner else [(0, 1), (1, 0)]
    _, rows, columns = runs.shape
    start_key, stop_key = runs.key(runs.start), runs.key(runs.stop)
    row = runs.line % max(rows, 1)
    pairs = [np.empty((2, 0), np.int32)]
    for slice_step, row_step in neighbors:
        inside = np.flatnonzero((row + row_step >= 0) & (row + row_step < rows))
        shift = (slice_step * rows + row_step) * (columns + 1)
        # touching columns: other stop > start and other start < stop; with corners also equal
        first = np.searchsorted(stop_key, start_key[inside] + shift, side="left" if corner else "right")
        last = np.searchsorted(start_key, stop_key[inside] + shift, side="right" if corner else "left")
        count = last - first
        before = np.cumsum(count) - count
        other = np.repeat(first - before, count) + np.arange(count.sum())
        pairs.append(np.stack([np.repeat(inside, count), other]).astype(np.int32))
    a, b = np.concatenate(pairs, axis=1)
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(len(runs), len(runs)))
    n, ids = connected_components(graph, directed=False) if len(runs) else (0, np.empty(0, np.int32))
    return ids, np.bincount(ids, weights=runs.length, minlength=n).astype(np.int64)


def copy_labels(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A C-order copy in which empty slices are never written: the system gives them no memory."""
    copy = np.zeros(labels.shape, labels.dtype)
    for source, target in zip(labels, copy):
        if source.any():
            target[...] = source
    return copy


def paint(labels: npt.NDArray[np.uint8], runs: Runs, value: int | npt.NDArray[np.uint8]) -> None:
    """Set the voxels of some runs.

    Args:
        labels: uint8 array in C order; changed.
        runs: Runs of the array.
        value: one number, or one for each run.
    """
    value = np.broadcast_to(value, len(runs))
    for first in range(0, len(runs), PAINTED):
        block = runs.take(slice(first, first + PAINTED))
        labels.reshape(-1)[block.voxels()] = np.repeat(value[first : first + PAINTED], block.length)


def single_voxels(runs: Runs) -> Runs:
    """The same voxels as runs of length 1."""
    line, start = np.divmod(runs.voxels(), runs.shape[2])
    line, start = line.astype(np.int32), start.astype(np.int32)
    return Runs(runs.shape, line, start, start + np.int32(1), np.repeat(runs.value, runs.length))


def check_labels(labels: object, dtypes: tuple[type[np.generic], ...] = (np.uint8,)) -> None:
    """Raise ValueError unless ``labels`` is an array (slices, rows, columns) of one of the dtypes."""
    if not isinstance(labels, np.ndarray) or labels.ndim != 3 or labels.dtype not in dtypes:
        found = f"{labels.dtype} {labels.shape}" if isinstance(labels, np.ndarray) else type(labels).__name__
        expected = " or ".join(np.dtype(dtype).name for dtype in dtypes)
        raise ValueError(f"expected a {expected} array (slices, rows, columns); got {found}.")
