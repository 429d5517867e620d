"""Whole slices from a network that sees windows: tiles, their weights, mirrored copies. NumPy only."""

import itertools

import numpy as np

__all__ = ["gaussian_weights", "mirrorings", "pad_to_multiple", "slice_probabilities", "tile_starts"]


def tile_starts(n, tile, overlap=0.5):
    """First pixels of tiles that cover ``n`` pixels, evenly spread, neighbors sharing at least ``overlap``.

    With overlap 0.5 and n > tile: count = ceil((n - tile) / (tile / 2)) + 1 and start i =
    round(i * (n - tile) / (count - 1)).
    """
    if n <= tile:
        return [0]
    count = int(np.ceil((n - tile) / (tile * (1 - overlap)))) + 1
    return [round(i * (n - tile) / (count - 1)) for i in range(count)]


def gaussian_weights(tile):
    """nnU-Net's weight map of a tile: a unit impulse in the center, Gaussian-filtered with sigma = tile / 8,
    divided by its maximum, zeros replaced by the smallest positive value.

    Args:
        tile: (rows, columns).
    """
    from scipy.ndimage import gaussian_filter

    impulse = np.zeros(tile)
    impulse[tuple(n // 2 for n in tile)] = 1
    weights = gaussian_filter(impulse, [n / 8 for n in tile], mode="constant")
    weights /= weights.max()
    weights[weights == 0] = weights[weights > 0].min()
    return weights.astype(np.float32)


def mirrorings(axes):
    """All combinations of mirrored axes, the unmirrored one first."""
    return [axes_of for n in range(len(axes) + 1) for axes_of in itertools.combinations(axes, n)]


def pad_to_multiple(plane, multiple):
    """Pad rows and columns at their ends, repeating the edge, up to a multiple."""
    missing = [-n % multiple for n in plane.shape[:2]]
    if not any(missing):
        return plane
    return np.pad(plane, [(0, missing[0]), (0, missing[1])] + [(0, 0)] * (plane.ndim - 2), mode="edge")


def slice_probabilities(plane, predict, spec):
    """Class probabilities of one slice.

    Args:
        plane: (rows, columns, channels) float32, what the network sees.
        predict: from (batch, rows, columns, channels) to probabilities (batch, rows, columns, classes).
        spec: InferenceSpec.

    Returns: (rows, columns, classes) float32; sums to 1 where ``predict`` does.
    """
    height, width = plane.shape[:2]
    if spec.tile is None:
        padded = pad_to_multiple(plane, spec.multiple)
        return _mirrored(padded, predict, spec.mirror_axes)[:height, :width]
    smallest = [(0, max(0, t - n)) for n, t in zip((height, width), spec.tile, strict=True)]
    padded = np.pad(plane, [*smallest, (0, 0)], mode="edge") if any(after for _, after in smallest) else plane
    weights = gaussian_weights(spec.tile) if spec.gaussian else np.ones(spec.tile, np.float32)
    weights = weights[..., None]
    total = summed = None
    for top, left in itertools.product(
        *(tile_starts(n, t, spec.overlap) for n, t in zip(padded.shape[:2], spec.tile, strict=True))
    ):
        window = slice(top, top + spec.tile[0]), slice(left, left + spec.tile[1])
        probabilities = _mirrored(padded[window], predict, spec.mirror_axes)
        if total is None:
            total = np.zeros((*padded.shape[:2], probabilities.shape[-1]), np.float32)
            summed = np.zeros((*padded.shape[:2], 1), np.float32)
        total[window] += weights * probabilities
        summed[window] += weights
    total /= summed
    return total[:height, :width]


def _mirrored(plane, predict, axes):
    """Mean over mirrored copies, each mirrored back. One copy at a time: a batch is no faster on a CPU, and larger."""
    total = None
    for flip in mirrorings(axes):
        # np.flip of no axis is the identity
        probabilities = np.flip(np.asarray(predict(np.flip(plane, flip)[None]))[0], flip)
        total = probabilities.astype(np.float32) if total is None else total + probabilities
    return total / len(mirrorings(axes))
