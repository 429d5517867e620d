"""The coarse pass: the network in the package finds the region of the kidneys, and the recipe's network sees only that.

A KiTS19 scan holds the abdomen, often the chest, and air; its kidneys fill a twentieth of it. The starter network
(``kitsseg.records.starter``) looks at a copy of 4 x 3 x 3 mm in about a second of one core. It need not outline
anything well: the box around what it finds, and 20 mm more on every side, has to hold both kidneys and their tumors.
So has this box without the columns between the kidneys, where that is less work.
Where that is doubtful the whole scan is taken: here, before the recipe's network sees anything. Where its own labels
reach the border of the box, it sees a wider one, and then the whole scan (``kitsseg.inference.region.wider_region``).
``benchmarks/coarse_region.py`` measures what the box misses.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kitsseg.data.geometry.geometry import Geometry, plan_geometry
from kitsseg.data.geometry.planes import network_planes
from kitsseg.inference.engines import open_network
from kitsseg.inference.scan import Member, probabilities_of
from kitsseg.records.networks import read_exported
from kitsseg.records.predictions import Box, CoarsePass
from kitsseg.records.starter import STARTER, network_path

if TYPE_CHECKING:
    from kitsseg.labels.components import Runs

__all__ = ["CoarseCopy", "coarse_network", "find_region", "look_at", "region_of"]

MARGIN_MM = 20.0
SLICES_MM = 4.0  # scans of thinner slices are looked at in slices of this
FOREGROUND = 0.5  # probability of kidney or tumor
SMALLEST_ML = 1.0  # smaller bodies are taken for bowel or vessels
SIDE_ML = 40.0  # of kidney and tumor on either side of the body; a kidney has 80 and more
BODY_HU = -200


@functools.lru_cache(maxsize=1)
def coarse_network() -> Member:
    """The starter network, ready to predict."""
    starter = read_exported(network_path(STARTER))
    return Member(open_network(starter.source).probabilities, starter.preprocess, starter.inference)


@dataclass(frozen=True)
class CoarseCopy:
    """What the coarse network says about a scan.

    Attributes:
        background: its probability, float16 (slices, rows, columns) on the grid of ``geometry``.
        geometry: of the coarse copy.
        middle: the column in the middle of the body.
    """

    background: npt.NDArray[np.float16]
    geometry: Geometry
    middle: int


def look_at(
    image: npt.NDArray[np.int16], spacing_mm: Sequence[float], network: Member | None = None
) -> CoarseCopy:
    """Run the coarse network over a scan.

    Args:
        image: (slices, rows, columns) int16 HU in KiTS axes.
        spacing_mm: of its voxels.
        network: what looks for kidneys; None: ``coarse_network``.
    """
    member = network or coarse_network()
    thick = max(spacing_mm[0], SLICES_MM)
    spec = replace(member.spec, spacing_mm=(thick, *member.spec.spacing_mm[1:]))
    geometry = plan_geometry(image, spacing_mm, spec)
    body = np.zeros(geometry.shape[2], np.int64)  # voxels of the body in each column

    def counted(planes: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
        for plane in planes:
            np.add(body, (plane > BODY_HU).sum(axis=0), out=body)
            yield plane

    planes = counted(network_planes(image, geometry, spec))
    background = np.empty(geometry.shape, np.float16)
    for k, plane in enumerate(
        probabilities_of(planes, geometry.shape, member.predict, spec, member.inference)
    ):
        background[k] = plane[..., 0]
    return CoarseCopy(background, geometry, int(np.searchsorted(body.cumsum(), body.sum() / 2)))


def find_region(
    image: npt.NDArray[np.int16], spacing_mm: Sequence[float], network: Member | None = None
) -> CoarsePass:
    """Where the kidneys of a scan lie.

    Args: as ``look_at``.

    Returns: CoarsePass; a region in voxels of the scan, or why there is none.
    """
    started = time.process_time()
    region = region_of(look_at(image, spacing_mm, network))
    return replace(region, seconds=round(time.process_time() - started, 2))


def region_of(copy: CoarseCopy) -> CoarsePass:
    """The region around what was found, unless it looks as if something were missing.

    Two kidneys, or one that reaches across as a horseshoe does, lie on both sides of the body. Where the network finds
    less on one side, the patient may have one kidney, or a kidney in the pelvis, or a tumor that it does not know:
    the whole scan is taken.

    Args:
        copy: of ``look_at``.
    """
    # SciPy's graphs take a third of a second to import
    from kitsseg.labels.components import components, paint

    geometry, middle, found = copy.geometry, copy.middle, copy.background < 1 - FOREGROUND
    voxel_ml = float(np.prod(geometry.spacing_mm)) / 1000
    pieces = components(found)
    large = np.flatnonzero(pieces.voxels * voxel_ml >= SMALLEST_ML)
    bodies = np.zeros(found.shape, np.uint8)
    paint(bodies, pieces.runs.take(np.isin(pieces.ids, large)), 1)
    if not len(large):
        return CoarsePass(whole="no kidney was found")
    for side, half in (("left", bodies[..., :middle]), ("right", bodies[..., middle:])):
        volume = int(half.sum()) * voxel_ml
        if volume < SIDE_ML:
            return CoarsePass(
                whole=f"{volume:.0f} ml of kidney were found in the {side} half of the slices, {SIDE_ML:.0f} expected"
            )
    boxes = [_box(pieces.runs.take(pieces.ids == number), geometry) for number in large]
    region = _around(boxes)
    # a scan may end within a kidney; beside it, in front and behind there is more of the body
    for axis, name in ((1, "row"), (2, "column")):
        for which, at_edge in (
            ("first", region.start[axis] == 0),
            ("last", region.stop[axis] == geometry.grid_shape[axis]),
        ):
            if at_edge:
                return CoarsePass(whole=f"what was found reaches the {which} {name} of the scan")
    # On each side of the body; of a kidney perhaps one end alone was found, so both sides have all slices and rows.
    sides: tuple[list[Box], list[Box]] = [], []
    for box in boxes:
        sides[box.start[2] + box.stop[2] > 2 * (geometry.start[2] + middle)].append(box)
    columns = [_with_margin(_around(side), geometry) for side in sides if side]
    region = _with_margin(region, geometry)
    parts = tuple(
        Box(start=(*region.start[:2], side.start[2]), stop=(*region.stop[:2], side.stop[2]))
        for side in columns
    )
    apart = len(parts) == 2 and parts[0].stop[2] <= parts[1].start[2]
    return CoarsePass(start=region.start, stop=region.stop, parts=parts if apart else ())


def _box(runs: Runs, geometry: Geometry) -> Box:
    """The box around some runs of the coarse copy, on the grid of the whole scan."""
    slices, rows = runs.line // runs.shape[1], runs.line % runs.shape[1]
    low = [int(at.min()) for at in (slices, rows, runs.start)]
    high = [int(at.max()) for at in (slices + 1, rows + 1, runs.stop)]
    return Box(
        start=tuple(n + a for n, a in zip(low, geometry.start, strict=True)),
        stop=tuple(n + a for n, a in zip(high, geometry.start, strict=True)),
    )


def _around(boxes: Sequence[Box]) -> Box:
    return Box(
        start=tuple(map(min, zip(*(box.start for box in boxes), strict=True))),
        stop=tuple(map(max, zip(*(box.stop for box in boxes), strict=True))),
    )


def _with_margin(box: Box, geometry: Geometry) -> Box:
    """The box in voxels of the scan, and ``MARGIN_MM`` more on every side, as far as the scan goes."""
    start, stop = [], []
    for axis, (low, high) in enumerate(zip(box.start, box.stop, strict=True)):
        n, grid = geometry.scan_shape[axis], geometry.grid_shape[axis]
        margin = MARGIN_MM / geometry.scan_spacing_mm[axis]
        start.append(max(int(np.floor(low * n / grid - margin)), 0))
        stop.append(min(int(np.ceil(high * n / grid + margin)), n))
    return Box(start=tuple(start), stop=tuple(stop))
