"""Measure how far a network looks: how much its logits at one voxel change with the image at some distance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import keras

__all__ = ["influence_by_distance"]


def influence_by_distance(
    model: keras.Model, input_shape: tuple[int, ...], n_distances: int = 16, n_images: int = 2, seed: int = 0
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """Change of the logits in the middle when one plane of the image changes, along each axis.

    The image is noise of the scale of normalized HU. The voxels of a plane (of a row or a column in 2D) at some
    distance from the middle are drawn anew, and the absolute change of the logits of the middle voxel is averaged over
    classes, both sides and images. The theoretical receptive field is only an upper limit; this is the influence with
    the weights of the model. A distance outside of the theoretical field gives exactly 0.

    Args:
        model: ``keras.Model`` from one image (batch, [slices,] rows, columns, channels) to logits; of several outputs
            the last one is used.
        input_shape: of an image, without the batch axis.
        n_distances: at most so many distances on each axis, spread evenly.
        n_images: number of noise images.
        seed: of the noise.

    Returns: for each axis of space two arrays: (distances in voxels, influence divided by that of the least distance).
    """
    rng, space = np.random.default_rng(seed), input_shape[:-1]
    middle = tuple(size // 2 for size in space)
    images = rng.normal(size=(n_images, *input_shape)).astype("float32")
    others = rng.normal(size=(n_images, *input_shape)).astype("float32")

    def logits(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        outputs = model.predict_on_batch(batch)
        last = outputs[-1] if isinstance(outputs, list | tuple) else outputs
        there: npt.NDArray[np.float32] = last[(slice(None), *middle)]
        return there

    before, found = logits(images), []
    for axis, center in enumerate(middle):
        most = space[axis] - 1 - center
        distances = np.unique(np.linspace(0, most, min(n_distances, most + 1)).round().astype(int))
        influence = np.zeros(len(distances))
        for i, distance in enumerate(distances):
            for at in (center - distance, center + distance):
                changed, plane = images.copy(), (slice(None),) * (axis + 1) + (at,)
                changed[plane] = others[plane]
                influence[i] += np.abs(logits(changed) - before).mean() / 2
        found.append((distances, influence / influence.max() if influence.max() else influence))
    return found
