"""The part of a scan that a network sees, once the region of the kidneys is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kitsseg.data.geometry.geometry import Geometry
from kitsseg.inference.windows2d import tile_starts
from kitsseg.recipe import InferenceSpec, PreprocessSpec
from kitsseg.records.predictions import Box, CoarsePass

__all__ = ["Face", "Part", "inside_region", "labels_at_border", "parts_inside", "wider_region"]

# tissue that networks of whole slices see beside the region: near the edge of what it sees a network errs
CONTEXT_MM = 48.0
STEP = 32  # sizes of whole slices are multiples of it: a network is compiled anew for each size
LESS = 0.9  # parts are computed one by one if that is at most this share of the work of their common box
TOUCHING_MM2 = 100.0  # of labels in a face of the region; a kidney cut in two has more than ten times as much
WIDER_MM = 40.0  # more of the scan behind a face that labels reach
MOST_TWICE = 0.5  # of the scan is worth a second look; for more the whole scan is taken


@dataclass(frozen=True)
class Part:
    """A box that a network computes by itself, and the box in it that the network was wanted for.

    Attributes:
        computed, wanted: (first, behind the last) along each axis, in voxels of what the network sees.
    """

    computed: tuple[slice, ...]
    wanted: tuple[slice, ...]

    def has(self, k: int) -> bool:
        """Whether slice ``k`` is computed."""
        return bool(self.computed[0].start <= k < self.computed[0].stop)

    @property
    def kept(self) -> tuple[slice, ...]:
        """Rows and columns of ``wanted``, counted from the first of ``computed``."""
        pairs = zip(self.wanted[1:], self.computed[1:], strict=True)
        return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in pairs)


def inside_region(
    geometry: Geometry, region: CoarsePass, spec: PreprocessSpec, inference: InferenceSpec
) -> Geometry:
    """What a network sees of a scan: the part of its own box that lies in the region.

    The part grows, where the box has more, to the sizes that the network computes anyway: the tile, whole cores of
    tiles, a multiple of the stride. Without tiles it also gets ``CONTEXT_MM`` of tissue beside it, in rows and columns.
    A recipe that brings all slices to one size has a network of this size: it sees whole slices, and fewer of them.

    Args:
        geometry: of the network, for the whole scan.
        region: of ``find_region``; without one nothing changes.
        spec, inference: of the network's recipe.
    """
    if region.start is None or region.stop is None:
        return geometry
    wanted = _on_grid(Box(start=region.start, stop=region.stop), geometry, spec)
    if wanted is None:
        return geometry
    return _cut(geometry, _grown(wanted, _sizes(wanted, geometry, inference), geometry))


def parts_inside(
    geometry: Geometry, region: CoarsePass, spec: PreprocessSpec, inference: InferenceSpec
) -> tuple[Geometry, tuple[Part, ...]]:
    """What a network sees of a scan whose region has a left and a right part.

    Args: as ``inside_region``.

    Returns: (geometry, parts). Without parts, because the region has none or because one box is less work, the geometry
        is that of ``inside_region``; with parts, their common box.
    """
    one = inside_region(geometry, region, spec, inference)
    found = [_on_grid(box, geometry, spec) for box in region.parts]
    wanted = [box for box in found if box is not None]
    if len(wanted) < 2 or len(wanted) < len(found) or spec.slice_size is not None:
        return one, ()
    sizes = [_sizes(box, geometry, inference) for box in wanted]
    if inference.tile is None:  # one size in the plane: for another the network would be compiled anew
        common = tuple(map(max, zip(*(size[1:] for size in sizes), strict=True)))
        sizes = [(size[0], *common) for size in sizes]
    computed = [_grown(box, size, geometry) for box, size in zip(wanted, sizes, strict=True)]
    if sum(_work([b - a for a, b in box], inference) for box in computed) > LESS * _work(
        one.shape, inference
    ):
        return one, ()
    together = _cut(
        geometry, [(min(a for a, _ in each), max(b for _, b in each)) for each in zip(*computed, strict=True)]
    )

    def inside(box: Sequence[tuple[int, int]]) -> tuple[slice, ...]:
        return tuple(slice(a - first, b - first) for (a, b), first in zip(box, together.start, strict=True))

    return together, tuple(Part(inside(a), inside(b)) for a, b in zip(computed, wanted, strict=True))


def _on_grid(box: Box, geometry: Geometry, spec: PreprocessSpec) -> list[tuple[int, int]] | None:
    """(first, behind the last) of a box of the scan on the grid of a network; None if they do not meet."""
    found = []
    for axis, (first, last) in enumerate(zip(box.start, box.stop, strict=True)):
        ratio = geometry.grid_shape[axis] / geometry.scan_shape[axis]
        lowest, highest = geometry.start[axis], geometry.stop[axis]
        # linear interpolation back to the scan reads one voxel of the grid further
        low, high = int(np.floor(first * ratio)) - 1, int(np.ceil(last * ratio)) + 1
        low, high = max(low, lowest), min(high, highest)
        if low >= high:
            return None
        found.append((lowest, highest) if axis and spec.slice_size is not None else (low, high))
    return found


def _grown(box: Sequence[tuple[int, int]], size: Sequence[int], geometry: Geometry) -> list[tuple[int, int]]:
    """A box made larger, up to ``size`` where the network's own box has as much."""
    grown = []
    for (low, high), wanted, lowest, highest in zip(box, size, geometry.start, geometry.stop, strict=True):
        wanted = min(wanted, highest - lowest)
        low = min(max(low - (wanted - (high - low)) // 2, lowest), highest - wanted)
        grown.append((low, low + wanted))
    return grown


def _cut(geometry: Geometry, box: Sequence[tuple[int, int]]) -> Geometry:
    return replace(geometry, start=tuple(a for a, _ in box), stop=tuple(b for _, b in box))


def _work(shape: Sequence[int], inference: InferenceSpec) -> int:
    """How many voxels a network computes for a box, with those that tiles compute several times."""
    tile = inference.tile
    if tile is None:
        return math.prod(shape)
    work = 1
    for n, t in zip(shape[-len(tile) :], tile, strict=True):
        if inference.margin is not None:
            work *= -(-n // (t - 2 * inference.margin)) * t
        else:
            work *= len(tile_starts(n, t, inference.overlap)) * t
    return work if len(tile) == 3 else work * shape[0]


def _sizes(box: Sequence[tuple[int, int]], geometry: Geometry, inference: InferenceSpec) -> tuple[int, ...]:
    return tuple(_computed(b - a, axis, inference, geometry) for axis, (a, b) in enumerate(box))


def _computed(size: int, axis: int, inference: InferenceSpec, geometry: Geometry) -> int:
    """How many voxels of an axis are computed where ``size`` are wanted."""
    tile, in_plane = inference.tile, axis - 1
    if tile is None:
        if not axis:
            return size
        step = int(np.lcm(inference.multiple, STEP))
        return -(-(size + 2 * math.ceil(CONTEXT_MM / geometry.spacing_mm[axis])) // step) * step
    if len(tile) == 2:
        return max(size, tile[in_plane]) if axis else size
    if inference.margin is not None:
        core = tile[axis] - 2 * inference.margin
        return -(-size // core) * core
    return max(size, tile[axis])


@dataclass(frozen=True)
class Face:
    """A side of the region, or of one of its parts.

    Attributes:
        axis: 0 to 2, for a slice, a row or a column.
        last: whether it is the last of them, or the first.
        of_part: whether it is a side of a part.
        within: whether it faces the other part, so that the region goes on behind it.
    """

    axis: int
    last: bool
    of_part: bool = False
    within: bool = False

    def __str__(self) -> str:
        name = ("slice", "row", "column")[self.axis]
        return f"{'last' if self.last else 'first'} {name} of {'a part of ' * self.of_part}the region"


def labels_at_border(
    labels: npt.NDArray[np.uint8],
    spacing_mm: Sequence[float],
    region: CoarsePass,
    *,
    in_parts: bool = False,
    in_plane: bool = True,
) -> tuple[Face, ...]:
    """Where labels reach the border of a region, so that some of what they belong to may lie beyond.

    Args:
        labels: of the whole scan. spacing_mm: of its voxels.
        region: of the coarse pass.
        in_parts: look at the border of each part instead.
        in_plane: look at rows and columns; not needed where the networks saw whole slices.

    Returns: the faces that labels reach; none where the scan itself ends.
    """
    if region.start is None or region.stop is None:
        return ()
    found: dict[Face, None] = {}
    for box in region.parts if in_parts else (Box(start=region.start, stop=region.stop),):
        inside = labels[tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))]
        for axis in range(3 if in_plane else 1):
            face_mm2 = float(np.prod([mm for other, mm in enumerate(spacing_mm) if other != axis]))
            for last, here, its, end in (
                (False, box.start[axis], region.start[axis], 0),
                (True, box.stop[axis], region.stop[axis], labels.shape[axis]),
            ):
                area = np.count_nonzero(inside.take(-1 if last else 0, axis)) * face_mm2
                if here != end and area >= TOUCHING_MM2:
                    found[Face(axis, last, in_parts, within=here != its)] = None
    return tuple(found)


def wider_region(
    region: CoarsePass, faces: Sequence[Face], spacing_mm: Sequence[float], shape: Sequence[int]
) -> CoarsePass:
    """What the networks see next, because labels reach some faces of the region: more of the scan, or all of it.

    The region is made wider once, by ``WIDER_MM`` behind each of these faces, and loses its parts. Where labels reach
    the border again, or most of the scan would be seen for a second time, it is the whole scan.

    Args:
        region: with a start and a stop.
        faces: of ``labels_at_border``. spacing_mm, shape: of the scan.
    """
    whole = CoarsePass(whole=f"labels reach the {faces[0]}", seconds=region.seconds)
    if region.start is None or region.stop is None or region.widened:
        return whole
    start, stop = list(region.start), list(region.stop)
    for face in faces:
        voxels = math.ceil(WIDER_MM / spacing_mm[face.axis])
        if face.within:
            continue  # the region without its parts goes on there
        if face.last:
            stop[face.axis] = min(stop[face.axis] + voxels, shape[face.axis])
        else:
            start[face.axis] = max(start[face.axis] - voxels, 0)
    share = math.prod(b - a for a, b in zip(start, stop, strict=True)) / math.prod(shape)
    if share > MOST_TWICE:
        return whole
    return replace(
        region, start=tuple(start), stop=tuple(stop), parts=(), widened=f"labels reached the {faces[0]}"
    )
