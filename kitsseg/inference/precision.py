"""Whether a network labels in bfloat16 what it labels in float32: found out once for a run, and refused where not.

bfloat16 has three digits. Hardware that multiplies in it (x86 with AMX or AVX512-BF16, GPUs from Ampere on) takes half
the time; other CPUs emulate it and take longer. How far the labels of a network move depends on the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kitsseg.data.geometry.geometry import Geometry, plan_geometry
from kitsseg.data.geometry.planes import network_planes
from kitsseg.errors import InputError
from kitsseg.inference.ensemble import Ensemble, open_ensemble
from kitsseg.inference.region import inside_region
from kitsseg.inference.scan import Member, probabilities_of
from kitsseg.records.precision import PrecisionCheck, keep_check, kept_check
from kitsseg.records.predictions import CoarsePass

__all__ = [
    "agreement",
    "check_precision",
    "compared",
    "geometry_of",
    "labels_of",
    "parts_of",
    "single_networks",
]

LEAST = 0.995  # Dice between both
SLICES = 8


def single_networks(ensemble: Ensemble) -> list[Ensemble]:
    """Each network of an ensemble by itself."""
    return [
        replace(ensemble, runs=(run,), networks=(network,), sha256=(sha256,))
        for run, network, sha256 in zip(ensemble.runs, ensemble.networks, ensemble.sha256, strict=True)
    ]


def agreement(
    alone: Ensemble,
    engine: str,
    image: npt.NDArray[np.int16],
    spacing_mm: Sequence[float],
    region: CoarsePass | None = None,
) -> tuple[PrecisionCheck | None, bool]:
    """How far the labels of a run in a lower precision agree with those in float32.

    Args:
        alone: one network, of ``single_networks``. engine: what computes it in that precision.
        image, spacing_mm: of a scan, looked at where the run folder holds no check. region: as in ``prepare_scan``.

    Returns: (PrecisionCheck, whether it was made now, of this scan); (None, True) where neither finds anything there.
    Raises: InputError if a Dice is below ``LEAST``.
    """
    [run], [sha256] = alone.runs, alone.sha256
    if kept := kept_check(run, alone.precision, sha256, engine):
        return kept, False
    found = check_precision(alone, engine, image, spacing_mm, region)
    if found is not None:
        keep_check(run, found)
    return found, True


def check_precision(
    alone: Ensemble,
    engine: str,
    image: npt.NDArray[np.int16],
    spacing_mm: Sequence[float],
    region: CoarsePass | None = None,
) -> PrecisionCheck | None:
    """Compare the labels of a few slices, or of one tile of a 3D network, with those of float32.

    Args: as ``agreement``.

    Returns: PrecisionCheck; None where neither finds anything there.
    Raises: InputError if a Dice is below ``LEAST``.
    """
    ([here], *_), ([there], *_) = open_ensemble(alone), open_ensemble(replace(alone, precision="float32"))
    geometry = geometry_of(image, spacing_mm, here, region)
    slices, tk, tu = compared(image, geometry, here, there)
    if tk is None:
        return None
    found = PrecisionCheck(
        precision=alone.precision,
        weights_sha256=alone.sha256[0],
        engine=engine,
        slices=slices,
        tk_dice=tk,
        tu_dice=tu,
    )
    if found.lowest < LEAST:
        raise InputError(
            f"--precision {alone.precision}: {alone.runs[0]} gives other labels than in float32: {found}; at least "
            f"{LEAST} expected. Predict in float32."
        )
    return found


def geometry_of(
    image: npt.NDArray[np.int16],
    spacing_mm: Sequence[float],
    member: Member,
    region: CoarsePass | None = None,
) -> Geometry:
    """What a network sees of a scan.

    Args:
        image, spacing_mm: of the scan. region: as in ``prepare_scan``.
        member: the network and its specifications.
    """
    geometry = plan_geometry(image, spacing_mm, member.spec)
    if region is not None and member.inference.coarse:
        geometry = inside_region(geometry, region, member.spec, member.inference)
    return geometry


def compared(
    image: npt.NDArray[np.int16], geometry: Geometry, here: Member, there: Member
) -> tuple[int, float | None, float | None]:
    """Compare the labels of two ways to compute one network, on a few slices or one tile.

    Args:
        image: of a scan.
        geometry: of ``geometry_of``.
        here, there: the same network, computed in two ways.

    Returns: (slices, Dice between both of kidney with tumor, of tumor); None for a Dice where neither finds any.
    """
    counts = np.zeros((2, 3), np.int64)  # of kidney with tumor, of tumor: in one, in the other, in both
    slices = 0
    for part in parts_of(geometry, here):
        slices += part.shape[0]
        ours, theirs = (labels_of(image, part, member) for member in (here, there))
        for row, (a, b) in enumerate(((ours > 0, theirs > 0), (ours == 2, theirs == 2))):
            counts[row] += a.sum(), b.sum(), (a & b).sum()
    tk, tu = (2 * both / (a + b) if a + b else None for a, b, both in counts.tolist())
    return slices, tk, tu


def parts_of(geometry: Geometry, member: Member) -> Iterator[Geometry]:
    """Single slices, evenly spread; or the tile in the middle."""
    tile = member.inference.tile
    if tile is not None and len(tile) == 3:
        size = [min(n, t) for n, t in zip(geometry.shape, tile, strict=True)]
        start = tuple(a + (n - t) // 2 for a, n, t in zip(geometry.start, geometry.shape, size, strict=True))
        yield replace(geometry, start=start, stop=tuple(a + t for a, t in zip(start, size, strict=True)))
        return
    count = min(SLICES, geometry.shape[0])
    for number in range(count):
        k = geometry.start[0] + int((number + 0.5) * geometry.shape[0] / count)
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
