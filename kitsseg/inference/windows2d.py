"""Predict whole slices with a 2D network in windows: their places, their weights, mirrored copies. NumPy only."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from kitsseg.interfaces import Predict
    from kitsseg.recipe import InferenceSpec

__all__ = [
    "gaussian_weights",
    "mirrored_mean",
    "mirrorings",
    "pad_to_multiple",
    "slice_probabilities",
    "tile_starts",
]


def tile_starts(n: int, tile: int, overlap: float = 0.5) -> list[int]:
    """First pixels of tiles along an axis, evenly spread.

    Args:
        n: pixels of the axis.
        tile: pixels of a tile.
        overlap: least share of a tile that its neighbor covers too.

    With overlap 0.5 and n > tile: count = ceil((n - tile) / (tile / 2)) + 1 and start i =
    round(i * (n - tile) / (count - 1)).
    """
    if n <= tile:
        return [0]
    count = int(np.ceil((n - tile) / (tile * (1 - overlap)))) + 1
    return [round(i * (n - tile) / (count - 1)) for i in range(count)]


def gaussian_weights(tile: Iterable[int]) -> npt.NDArray[np.float32]:
    """nnU-Net's weight map of a tile: a unit impulse in the center, Gaussian-filtered with sigma = tile / 8,
    divided by its maximum, zeros replaced by the smallest positive value.

    Args:
        tile: (rows, columns), or any number of axes; the map is the product of a map along each axis.
    """
    weights = np.ones((), np.float64)
    for n in tile:
        distance, sigma = np.abs(np.arange(n) - n // 2), n / 8
        # the filter ends at four sigma
        along = np.where(distance <= int(4 * sigma + 0.5), np.exp(-((distance / sigma) ** 2) / 2), 0)
        weights = weights[..., None] * along
    weights[weights == 0] = weights[weights > 0].min()
    return weights.astype(np.float32)


def mirrorings(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All combinations of mirrored axes, the unmirrored one first."""
    return [axes_of for n in range(len(axes) + 1) for axes_of in itertools.combinations(axes, n)]


def pad_to_multiple(plane: npt.NDArray[np.float32], multiple: int) -> npt.NDArray[np.float32]:
    """Pad rows and columns at their ends, repeating the edge, up to a multiple."""
    missing = [-n % multiple for n in plane.shape[:2]]
    if not any(missing):
        return plane
    return np.pad(plane, [(0, missing[0]), (0, missing[1])] + [(0, 0)] * (plane.ndim - 2), mode="edge")


def slice_probabilities(
    plane: npt.NDArray[np.float32], predict: Predict, spec: InferenceSpec
) -> npt.NDArray[np.float32]:
    """Class probabilities of one slice.

    Args:
        plane: (rows, columns, channels) float32, the input of the network.
        predict: function from (batch, rows, columns, channels) to probabilities (batch, rows, columns, classes).
        spec: InferenceSpec.

    Returns: (rows, columns, classes) float32; sums to 1 where ``predict`` does.
    """
    height, width = plane.shape[:2]
    if spec.tile is None:
        padded = pad_to_multiple(plane, spec.multiple)
        return mirrored_mean(padded, predict, spec.mirror_axes)[:height, :width]
    smallest = [(0, max(0, t - n)) for n, t in zip((height, width), spec.tile, strict=True)]
    padded = np.pad(plane, [*smallest, (0, 0)], mode="edge") if any(after for _, after in smallest) else plane
    total: npt.NDArray[np.float32] | None = None
    for top, left in itertools.product(
        *(tile_starts(n, t, spec.overlap) for n, t in zip(padded.shape[:2], spec.tile, strict=True))
    ):
        window = slice(top, top + spec.tile[0]), slice(left, left + spec.tile[1])
        probabilities = mirrored_mean(padded[window], predict, spec.mirror_axes)
        if total is None:
            n_classes = probabilities.shape[-1]
            weights, summed = _weights(padded.shape[:2], spec.tile, spec.overlap, spec.gaussian, n_classes)
            total = np.zeros((padded.shape[0], padded.shape[1] * n_classes), np.float32)
            weighted = np.empty_like(weights)
        # NumPy is slow along a short last axis: classes and columns as one
        columns = slice(left * n_classes, (left + spec.tile[1]) * n_classes)
        np.multiply(weights, probabilities.reshape(weights.shape), out=weighted)
        total[window[0], columns] += weighted
    if total is None:
        raise ValueError(f"slice_probabilities: no tile covers a slice of {height} x {width} pixels.")
    total /= summed
    return total.reshape(*padded.shape[:2], n_classes)[:height, :width]


@functools.lru_cache(maxsize=4)
def _weights(
    shape: tuple[int, ...], tile: tuple[int, ...], overlap: float, gaussian: bool, n_classes: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weights of a tile, and their sums over a slice: (rows, columns * classes), the same for every class."""
    weights = gaussian_weights(tile) if gaussian else np.ones(tile, np.float32)
    summed = np.zeros(shape, np.float32)
    starts = (tile_starts(n, t, overlap) for n, t in zip(shape, tile, strict=True))
    for top, left in itertools.product(*starts):
        summed[top : top + tile[0], left : left + tile[1]] += weights
    return weights.repeat(n_classes, axis=1), summed.repeat(n_classes, axis=1)


def mirrored_mean(
    tile: npt.NDArray[np.float32], predict: Predict, axes: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Mean prediction of mirrored copies, each mirrored back.

    One copy is predicted at a time: a batch of copies would not be faster on a CPU, and would take more memory.

    Args:
        tile: (rows, columns, channels), or with slices in front.
        predict: function from a batch of tiles to probabilities of the same size.
        axes: axes of ``tile`` that are mirrored, in all combinations.

    Returns: float32 (rows, columns, classes), or with slices in front.
    """
    if not axes:
        alone: npt.NDArray[np.float32] = np.asarray(predict(tile[None]))[0].astype(np.float32, copy=False)
        return alone
    total = np.zeros((), np.float32)
    for flip in mirrorings(axes):
        # np.flip of no axis is the identity
        probabilities = np.flip(np.asarray(predict(np.flip(tile, flip)[None]))[0], flip)
        if flip:
            total += probabilities
        else:  # the first
            total = probabilities.astype(np.float32)
    total /= len(mirrorings(axes))
    return total
