"""A whole volume from a 3D network that sees tiles: the border of every tile is discarded. NumPy only."""

import itertools

import numpy as np

__all__ = ["volume_probabilities"]


def volume_probabilities(volume, prepare, predict, tile, margin, air_hu=None, n_classes=3):
    """Class probabilities of a volume, slice by slice.

    The network's zero padding spoils the border of a tile. With margin m only the core, q = tile - 2 m
    voxels of each axis, is used. The cores lie side by side from the first voxel on, so every voxel is
    predicted exactly once; tiles reach m voxels beyond the volume in front and up to m + q - 1 behind,
    where it repeats its edge. Probabilities of q slices are in memory at a time.

    Args:
        volume: (slices, rows, columns) int16 HU, memory-mapped or not.
        prepare: from a tile of it to what the network sees, float32 (slices, rows, columns, channels).
        predict: from (1, slices, rows, columns, channels) to class probabilities of the same size.
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

    def tile_probabilities(start):
        inside = tuple(slice(max(a - margin, 0), a - margin + t) for a, t in zip(start, tile))
        hu = np.asarray(volume[inside])
        if air_hu is not None and not (hu > air_hu).any():
            return None
        # the part of the tile before the volume, and the part behind it
        front = [max(margin - a, 0) for a in start]
        widths = [(f, t - f - n) for f, t, n in zip(front, tile, hu.shape)]
        inputs = prepare(np.pad(hu, widths, mode="edge") if np.any(widths) else hu)[None]
        probabilities = np.asarray(predict(inputs))
        if probabilities.shape != (1, *tile, n_classes):
            raise ValueError(
                f"volume_probabilities: expected a prediction of shape {(1, *tile, n_classes)}, found "
                f"{probabilities.shape}. Does the network keep the size of this tile?"
            )
        return probabilities[(0, *(slice(margin, margin + q) for q in core))]

    def slab(first):
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
        yield from slab(first)  # holds no name of it: the last slab is gone before the next is made
