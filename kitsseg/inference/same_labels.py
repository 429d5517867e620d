"""How far the labels of two ways to compute one network agree: two precisions, or two engines.

A few slices, or one tile of a 3D network, are computed in both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kitsseg.data.geometry.geometry import Geometry, plan_geometry
from kitsseg.data.geometry.planes import network_planes
from kitsseg.inference.region import inside_region
from kitsseg.inference.scan import Member, probabilities_of
from kitsseg.records.predictions import CoarsePass

__all__ = ["View", "compared", "few_of", "geometry_of", "labels_of", "parts_of"]

SLICES = 8


@dataclass(frozen=True)
class View:
    """What the labels of two ways are compared on.

    Attributes:
        image: int16 HU (slices, rows, columns), of a scan or of a single slice.
        spacing_mm: of its voxels.
        region: as in ``prepare_scan``.
    """

    image: npt.NDArray[np.int16]
    spacing_mm: Sequence[float]
    region: CoarsePass | None = None


def geometry_of(view: View, member: Member) -> Geometry:
    """What a network sees of a scan; ``member`` is the network and its specifications."""
    geometry = plan_geometry(view.image, view.spacing_mm, member.spec)
    if view.region is not None and member.inference.coarse:
        geometry = inside_region(geometry, view.region, member.spec, member.inference)
    return geometry


def compared(views: Sequence[View], here: Member, there: Member) -> tuple[int, float | None, float | None]:
    """Compare the labels of two ways to compute one network, on a few slices or one tile of each view.

    Args:
        views: a scan, or up to ``SLICES`` single slices. The voxels of all of them count together.
        here, there: the same network, computed in two ways.

    Returns: (slices, Dice between both of kidney with tumor, of tumor); None for a Dice where neither finds any.
    """
    counts = np.zeros((2, 3), np.int64)  # of kidney with tumor, of tumor: in one, in the other, in both
    slices = 0
    for view in views:
        for part in parts_of(geometry_of(view, here), here):
            slices += part.shape[0]
            ours, theirs = (labels_of(view.image, part, member) for member in (here, there))
            for row, (a, b) in enumerate(((ours > 0, theirs > 0), (ours == 2, theirs == 2))):
                counts[row] += a.sum(), b.sum(), (a & b).sum()
    tk, tu = (2 * both / (a + b) if a + b else None for a, b, both in counts.tolist())
    return slices, tk, tu


def few_of(n: int) -> list[int]:
    """Up to ``SLICES`` of the numbers below ``n``, evenly spread."""
    count = min(SLICES, n)
    return [int((number + 0.5) * n / count) for number in range(count)]


def parts_of(geometry: Geometry, member: Member) -> Iterator[Geometry]:
    """Single slices, evenly spread; or the tile in the middle."""
    if tile := member.inference.tile_3d:
        size = [min(n, t) for n, t in zip(geometry.shape, tile, strict=True)]
        start = tuple(a + (n - t) // 2 for a, n, t in zip(geometry.start, geometry.shape, size, strict=True))
        yield replace(geometry, start=start, stop=tuple(a + t for a, t in zip(start, size, strict=True)))
        return
    for number in few_of(geometry.shape[0]):
        k = geometry.start[0] + number
        yield replace(geometry, start=(k, *geometry.start[1:]), stop=(k + 1, *geometry.stop[1:]))


def labels_of(image: npt.NDArray[np.int16], part: Geometry, member: Member) -> npt.NDArray[Any]:
    """The labels of a part of what a network sees, on the grid of the network.

    Args:
        image: of the scan.
        part: of ``parts_of``.
        member: the network and its specifications.
    """
    planes = network_planes(image, part, member.spec)
    found = probabilities_of(planes, part.shape, member.predict, member.spec, member.inference)
    return np.stack([plane.argmax(axis=-1) for plane in found])
