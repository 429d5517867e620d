"""Predict a whole volume with a 3D network in tiles; one slab of probabilities is in memory at a time. NumPy only.

Either the border of every tile is discarded and the cores lie side by side, or the tiles overlap and are averaged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kitsseg.inference.windows2d import gaussian_weights, tile_starts
from kitsseg.recipe import InferenceSpec

if TYPE_CHECKING:
    from kitsseg.interfaces import Predict

__all__ = ["overlapping_probabilities", "volume_probabilities"]


def volume_probabilities(
    volume: npt.NDArray[Any],
    prepare: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]],
    predict: Predict,
    tile: tuple[int, ...],
    margin: int,
    air_hu: float | None = None,
    n_classes: int = 3,
) -> Iterator[npt.NDArray[np.float32]]:
    """Class probabilities of a volume, slice by slice.

    The network's zero padding spoils the border of a tile. With margin m only the core, q = tile - 2 m
    voxels of each axis, is used. The cores lie side by side from the first voxel on, so every voxel is
    predicted exactly once. Tiles reach m voxels beyond the volume in front and up to m + q - 1 voxels behind it, where
    the edge of the volume is repeated. Probabilities of q slices are in memory at a time.

    Args:
        volume: (slices, rows, columns) int16 HU, memory-mapped or not.
        prepare: function from a tile of HU to the network's input, float32 (slices, rows, columns, channels).
        predict: function from (1, slices, rows, columns, channels) to class probabilities of the same size.
        tile: (slices, rows, columns).
        margin: voxels discarded at each border of a tile.
        air_hu: tiles without a voxel above this are not predicted: they are background. None predicts all.
        n_classes: background included.

    Yields: for each slice in order (rows, columns, classes) float32.
    Raises: ValueError for a tile without a core, or a prediction of another shape.
    Source: Daza et al. state that the outer voxels of patches are discarded; how many is ours.
    """
    core = tuple(t - 2 * margin for t in tile)
    if len(tile) != volume.ndim or margin < 0 or min(core) < 1:
        raise ValueError(
            f"volume_probabilities: each axis of a {volume.ndim}D tile must be longer than two margins of "
            f"{margin} >= 0 voxels, found {tuple(tile)}. Enlarge the tile or lower the margin."
        )

    def tile_probabilities(start: Sequence[int]) -> npt.NDArray[np.float32] | None:
        inside = tuple(slice(max(a - margin, 0), a - margin + t) for a, t in zip(start, tile))
        hu = np.asarray(volume[inside])
        if air_hu is not None and not (hu > air_hu).any():
            return None
        # the part of the tile before the volume, and the part behind it
        front = [max(margin - a, 0) for a in start]
        widths = [(f, t - f - n) for f, t, n in zip(front, tile, hu.shape)]
        inputs = prepare(np.pad(hu, widths, mode="edge") if np.any(widths) else hu)[None]
        probabilities = _checked(predict(inputs), tile, n_classes)
        return probabilities[tuple(slice(margin, margin + q) for q in core)]

    def slab(first: int) -> npt.NDArray[np.float32]:
        shape = min(core[0], volume.shape[0] - first), *volume.shape[1:]
        result = np.zeros((*shape, n_classes), np.float32)
        for row, column in itertools.product(*(range(0, n, q) for n, q in zip(shape[1:], core[1:]))):
            window = result[:, row : row + core[1], column : column + core[2]]
            probabilities = tile_probabilities((first, row, column))
            if probabilities is None:
                window[..., 0] = 1
            else:
                window[...] = probabilities[tuple(slice(n) for n in window.shape[:3])]
        return result

    for first in range(0, volume.shape[0], core[0]):
        # no variable refers to a slab, so that its memory is free before the next one is made
        yield from slab(first)


def overlapping_probabilities(
    volume: npt.NDArray[np.int16],
    prepare: Callable[[npt.NDArray[np.int16]], npt.NDArray[np.float32]],
    predict: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]],
    inference: InferenceSpec,
    air_hu: float | None = None,
    n_classes: int = 3,
) -> Iterator[npt.NDArray[np.float32]]:
    """As ``volume_probabilities``, but with the weighted mean of overlapping tiles.

    Tiles are spread along all three axes as ``windows2d.slice_probabilities`` spreads its windows. If a volume is
    smaller than a tile, its edge is repeated at the end. Sums of as many slices as a tile has are in memory: a slice is
    yielded, and its memory used again, as soon as no further tile reaches it.

    Args:
        volume, prepare, predict, air_hu, n_classes: as in ``volume_probabilities``; a tile of air counts as background.
        inference: InferenceSpec with the tile (slices, rows, columns), the overlap and the weights.

    Yields: for each slice in order (rows, columns, classes) float32.
    Raises: ValueError for a tile of another number of axes, or a prediction of another shape.
    """
    tile, overlap, gaussian = inference.tile, inference.overlap, inference.gaussian
    if tile is None or len(tile) != volume.ndim:
        raise ValueError(
            f"overlapping_probabilities: expected a tile of {volume.ndim} axes, found {tile}. "
            "Give (slices, rows, columns)."
        )
    size = tuple(max(n, t) for n, t in zip(volume.shape, tile))
    slabs, *in_plane = (_shares(n, t, overlap, gaussian) for n, t in zip(size, tile))

    def tile_probabilities(start: Sequence[int]) -> npt.NDArray[np.float32] | None:
        hu = np.asarray(volume[tuple(slice(a, a + t) for a, t in zip(start, tile))])
        if air_hu is not None and not (hu > air_hu).any():
            return None
        widths = [(0, t - n) for t, n in zip(tile, hu.shape)]
        inputs = prepare(np.pad(hu, widths, mode="edge") if np.any(widths) else hu)[None]
        return _checked(predict(inputs), tile, n_classes)

    # NumPy is slow along a short last axis, so columns and classes share one axis here. Memory for as many slices as a
    # tile has is taken once; slice s of the volume uses slice s % tile[0] of it
    total = np.zeros((tile[0], size[1], size[2] * n_classes), np.float32)
    weighted = np.empty((tile[1], tile[2] * n_classes), np.float32)

    def add(
        start: Sequence[int],
        share_of_slices: npt.NDArray[np.float32],
        share_of_pixels: npt.NDArray[np.float32],
    ) -> None:
        probabilities = tile_probabilities(start)
        rows = slice(start[1], start[1] + tile[1])
        columns = slice(start[2] * n_classes, (start[2] + tile[2]) * n_classes)
        # one slice at a time, so that ``weighted`` stays in the cache
        for k, share in enumerate(share_of_slices):
            window = total[(start[0] + k) % tile[0], rows, columns]
            np.multiply(share_of_pixels, share, out=weighted)
            if probabilities is None:
                window[:, ::n_classes] += weighted[:, ::n_classes]
            else:
                np.multiply(weighted, probabilities[k].reshape(weighted.shape), out=weighted)
                window += weighted

    for (first, of_slices), following in zip(slabs, [*(start for start, _ in slabs[1:]), math.inf]):
        for (row, of_rows), (column, of_columns) in itertools.product(*in_plane):
            add((first, row, column), of_slices, of_rows[:, None] * of_columns.repeat(n_classes))
        for k in range(first, min(following, volume.shape[0])):
            plane = total[k % tile[0]]
            finished = plane.reshape(*size[1:], n_classes)[: volume.shape[1], : volume.shape[2]].copy()
            plane[...] = 0
            yield finished


def _shares(n: int, tile: int, overlap: float, gaussian: bool) -> list[tuple[int, npt.NDArray[np.float32]]]:
    """(first voxel of a tile, its shares (tile,) of the weighted mean) along one axis; they add up to 1 at each voxel.

    The weight of a tile is the product of weights along its axes, and so is the sum of the weights of all tiles. The
    product of the shares along the axes is therefore the share of the tile, and no division remains.
    """
    starts = tile_starts(n, tile, overlap)
    weights = gaussian_weights((tile,)) if gaussian else np.ones(tile, np.float32)
    sums = np.zeros(n)
    for first in starts:
        sums[first : first + tile] += weights
    return [(first, (weights / sums[first : first + tile]).astype(np.float32)) for first in starts]


def _checked(
    prediction: npt.NDArray[np.float32], tile: tuple[int, ...], n_classes: int
) -> npt.NDArray[np.float32]:
    """The prediction of one tile, without the batch axis."""
    probabilities: npt.NDArray[np.float32] = np.asarray(prediction)
    if probabilities.shape != (1, *tile, n_classes):
        raise ValueError(
            f"volume_probabilities: expected a prediction of shape {(1, *tile, n_classes)}, found "
            f"{probabilities.shape}. Does the network keep the size of this tile?"
        )
    of_tile: npt.NDArray[np.float32] = probabilities[0]
    return of_tile
