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

# progress(description, done, total): how far a long command is; called again and again while it runs
Progress = Callable[[str, float, int], object]
# progress(done, total): how far one scan is, in slices
SliceProgress = Callable[[int, int], object]

# What keras.ops computes with: a KerasTensor while a network is built, a tensor of the backend (or a NumPy array) while
# it runs. Keras ships no types, so a checker knows no more than this.
Tensor = Any


class Predict(Protocol):
    """A network that predicts: from a batch to what it says about each voxel, arrays of float32.

    The batch is (batch, rows, columns, channels) or (batch, slices, rows, columns, channels); the result has the same
    axes and a last one of classes, logits or probabilities.
    """

    def __call__(self, batch: npt.NDArray[np.float32], /) -> npt.NDArray[np.float32]: ...
