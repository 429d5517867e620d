"""The labels of a case, cut to the smallest box that holds kidney and tumor: a twentieth of a scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kitsseg.data.geometry.resample import nearest_index

if TYPE_CHECKING:
    from kitsseg.data.geometry.geometry import Geometry

__all__ = ["foreground_box", "foreground_planes", "label_box"]


def foreground_box(labels: npt.NDArray[np.uint8]) -> tuple[tuple[int, int, int], npt.NDArray[np.uint8]]:
    """Where the foreground of (slices, rows, columns) starts, and a copy of the box that holds it."""
    slices = np.flatnonzero([plane.any() for plane in labels])
    if not len(slices):
        return (0, 0, 0), np.zeros((0, 0, 0), np.uint8)
    part = labels[slices[0] : slices[-1] + 1]
    rows, columns = np.flatnonzero(part.any(axis=(0, 2))), np.flatnonzero(part.any(axis=(0, 1)))
    box = part[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    return (int(slices[0]), int(rows[0]), int(columns[0])), box


def foreground_planes(
    boxed: npt.NDArray[np.uint8], first: Sequence[int], geometry: Geometry
) -> list[tuple[int, int, int, npt.NDArray[np.uint8]]]:
    """Slices of the case's grid with foreground: (k, row offset, column offset, boxed labels).

    Args:
        boxed, first: from ``foreground_box``.
        geometry: Geometry of the case.
    """
    z, y, x = (
        nearest_index(n, m, a, b) - offset
        for n, m, a, b, offset in zip(
            geometry.scan_shape, geometry.grid_shape, geometry.start, geometry.stop, first, strict=True
        )
    )
    rows, columns = (np.flatnonzero((i >= 0) & (i < n)) for i, n in zip((y, x), boxed.shape[1:], strict=True))
    planes = []
    for k, source in enumerate(z):
        if not (0 <= source < boxed.shape[0] and len(rows) and len(columns)):
            continue
        plane = boxed[source][y[rows][:, None], x[columns]]
        if plane.any():
            planes.append((k, int(rows[0]), int(columns[0]), plane))
    return planes


def label_box(
    planes: Sequence[tuple[int, int, int, npt.NDArray[np.uint8]]],
) -> tuple[list[int], npt.NDArray[np.uint8]]:
    """The smallest box that holds all of ``foreground_planes``: (where it starts, uint8 labels)."""
    if not planes:
        return [0, 0, 0], np.zeros((0, 0, 0), np.uint8)
    start = [planes[0][0], min(p[1] for p in planes), min(p[2] for p in planes)]
    stop = [
        planes[-1][0] + 1,
        max(p[1] + p[3].shape[0] for p in planes),
        max(p[2] + p[3].shape[1] for p in planes),
    ]
    box = np.zeros([b - a for a, b in zip(start, stop, strict=True)], np.uint8)
    for k, y, x, plane in planes:
        box[k - start[0], y - start[1] :, x - start[2] :][: plane.shape[0], : plane.shape[1]] = plane
    return [int(a) for a in start], box
