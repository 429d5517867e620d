"""The part of a scan that a network sees, once the region of the kidneys is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kitsseg.data.geometry.geometry import Geometry
from kitsseg.recipe import InferenceSpec, PreprocessSpec
from kitsseg.records.predictions import CoarsePass

__all__ = ["inside_region", "labels_at_border"]

STEP = 32  # sizes of whole slices are multiples of it: a network is compiled anew for each size
TOUCHING_MM2 = 100.0  # of labels in a face of the region; a kidney cut in two has more than ten times as much


def inside_region(
    geometry: Geometry, region: CoarsePass, spec: PreprocessSpec, inference: InferenceSpec
) -> Geometry:
    """What a network sees of a scan: the part of its own box that lies in the region.

    The part grows, where the box has more, to the sizes that the network computes anyway: the tile, whole cores of
    tiles, a multiple of the stride. A recipe that brings all slices to one size has a network of this size: it sees
    whole slices, and fewer of them.

    Args:
        geometry: of the network, for the whole scan.
        region: of ``find_region``; without one nothing changes.
        spec, inference: of the network's recipe.
    """
    if region.start is None or region.stop is None:
        return geometry
    start, stop = [], []
    for axis, (first, last) in enumerate(zip(region.start, region.stop, strict=True)):
        ratio = geometry.grid_shape[axis] / geometry.scan_shape[axis]
        lowest, highest = geometry.start[axis], geometry.stop[axis]
        # linear interpolation back to the scan reads one voxel of the grid further
        low, high = int(np.floor(first * ratio)) - 1, int(np.ceil(last * ratio)) + 1
        low, high = max(low, lowest), min(high, highest)
        if low >= high:
            return geometry
        if axis and spec.slice_size is not None:
            low, high = lowest, highest
        wanted = min(_computed(high - low, axis, inference), highest - lowest)
        low = min(max(low - (wanted - (high - low)) // 2, lowest), highest - wanted)
        start.append(low)
        stop.append(low + wanted)
    return replace(geometry, start=tuple(start), stop=tuple(stop))


def _computed(size: int, axis: int, inference: InferenceSpec) -> int:
    """How many voxels of an axis are computed where ``size`` are wanted."""
    tile, in_plane = inference.tile, axis - 1
    if tile is None:
        step = int(np.lcm(inference.multiple, STEP)) if axis else 1
        return -(-size // step) * step
    if len(tile) == 2:
        return max(size, tile[in_plane]) if axis else size
    if inference.margin is not None:
        core = tile[axis] - 2 * inference.margin
        return -(-size // core) * core
    return max(size, tile[axis])


def labels_at_border(
    labels: npt.NDArray[np.uint8], spacing_mm: Sequence[float], region: CoarsePass
) -> str | None:
    """Where labels reach the border of a region, so that some of what they belong to may lie beyond.

    Args:
        labels: of the whole scan. spacing_mm: of its voxels.
        region: with a start and a stop.

    Returns: such as "first slice", of the region; None where they reach no border that is not the scan's own.
    """
    if region.start is None or region.stop is None:
        return None
    inside = labels[tuple(slice(a, b) for a, b in zip(region.start, region.stop, strict=True))]
    for axis, name in enumerate(("slice", "row", "column")):
        face_mm2 = float(np.prod([mm for other, mm in enumerate(spacing_mm) if other != axis]))
        for which, at, more_beyond in (
            ("first", 0, region.start[axis] > 0),
            ("last", -1, region.stop[axis] < labels.shape[axis]),
        ):
            face = inside.take(at, axis)
            if more_beyond and np.count_nonzero(face) * face_mm2 >= TOUCHING_MM2:
                return f"{which} {name}"
    return None
