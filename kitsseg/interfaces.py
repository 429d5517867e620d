"""Types of what is handed from one part of the package to another. They describe; nothing here computes.

A source of batches is ``kitsseg.data.sampling.batches.Batches``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Predict", "Progress", "SliceProgress", "Tensor"]

# progress(description, done, total): called again and again while a long command runs
Progress = Callable[[str, float, int], object]
# progress(done, total): called while one scan is computed; both numbers count slices
SliceProgress = Callable[[int, int], object]

# What keras.ops computes with: a KerasTensor while a network is built, a tensor of the backend (or a NumPy array) while
# the network runs. Keras ships no types, so a type checker cannot know more.
Tensor = Any


class Predict(Protocol):
    """A network that predicts: from a batch of images to logits or probabilities of each voxel, both float32.

    The batch is (batch, rows, columns, channels) or (batch, slices, rows, columns, channels). The last axis of the
    result holds the classes instead of the channels; the other axes are the same.
    """

    def __call__(self, batch: npt.NDArray[np.float32], /) -> npt.NDArray[np.float32]: ...
