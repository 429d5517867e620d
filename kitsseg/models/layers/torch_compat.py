"""Layers and initializers of torch that Keras lacks: pixel shuffle, nearest resizing by torch's index rule, ICNR.

Code:  torch ``nn.PixelShuffle`` and ``interpolate(mode="nearest")``, fastai ``icnr_init``; written anew here.
Check: fastai's ``DynamicUnet`` with the same weights gives the same outputs to float rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops

if TYPE_CHECKING:
    from kitsseg.interfaces import Tensor

__all__ = ["ICNR", "NearestResize", "PixelShuffle", "kaiming_normal", "nearest_indices"]


def kaiming_normal(mode: str = "fan_in") -> keras.initializers.Initializer:
    """torch's ``kaiming_normal_`` for ReLU: Keras' ``HeNormal`` would cut the normal at two deviations.

    A new object for each layer: a Keras initializer that is used twice gives the same values twice.
    """
    return keras.initializers.VarianceScaling(2.0, mode, "untruncated_normal")


@keras.saving.register_keras_serializable(package="kitsseg")
class ICNR(keras.initializers.Initializer):  # type: ignore[misc]  # Keras ships no types
    """Kernels for a convolution before :class:`PixelShuffle`: its 2 x 2 outputs start equal.

    A Kaiming-normal kernel for a quarter of the outputs, each repeated four times in a row. Without it a new
    pixel shuffle shows a checkerboard.

    Raises: ValueError if the number of outputs is not a multiple of 4.
    Source: Aitken et al., arXiv 1707.02937; fastai ``icnr_init``.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Tensor:
        if shape[-1] % 4:
            raise ValueError(f"ICNR: the number of outputs must be a multiple of 4; got the shape {shape}.")
        draw = keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal", seed=self.seed)
        return ops.repeat(draw((*shape[:-1], shape[-1] // 4), dtype=dtype), 4, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed}


@keras.saving.register_keras_serializable(package="kitsseg")
class PixelShuffle(layers.Layer):  # type: ignore[misc]  # Keras ships no types
    """Quadruple the pixels, quarter the channels, in torch's order.

    ``output[2 r + i, 2 c + j, k] = input[r, c, 4 k + 2 i + j]``; TensorFlow's ``depth_to_space`` would read
    channel ``(2 i + j) * channels + k``.

    Shapes: (batch, rows, columns, 4 * channels) to (batch, 2 * rows, 2 * columns, channels).
    Raises: ValueError if the number of input channels is not a multiple of 4.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if input_shape[-1] is None or input_shape[-1] % 4:
            raise ValueError(
                f"{self.name}: the channels must be a multiple of 4; got the shape {input_shape}."
            )
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        _, rows, columns, channels = ops.shape(x)
        x = ops.reshape(x, (-1, rows, columns, channels // 4, 2, 2))
        x = ops.transpose(x, (0, 1, 4, 2, 5, 3))
        return ops.reshape(x, (-1, 2 * rows, 2 * columns, channels // 4))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, rows, columns, channels = input_shape
        return (batch, rows and 2 * rows, columns and 2 * columns, channels and channels // 4)


@keras.saving.register_keras_serializable(package="kitsseg")
class NearestResize(layers.Layer):  # type: ignore[misc]  # Keras ships no types
    """Resize ``x`` to the rows and columns of ``reference`` by picking the pixels that torch picks.

    The indices are those of :func:`nearest_indices`, not of Keras' ``ops.image.resize``, which picks by pixel
    centers. With known sizes they are constants; unknown sizes (``None``) are read when the layer runs.

    Shapes: (batch, rows, columns, channels) and (batch, new_rows, new_columns, any) to
        (batch, new_rows, new_columns, channels).
    """

    def call(self, x: Tensor, reference: Tensor) -> Tensor:
        for axis in (1, 2):
            n_in, n_out = ops.shape(x)[axis], ops.shape(reference)[axis]
            if isinstance(n_in, int) and isinstance(n_out, int):
                if n_in != n_out:
                    x = ops.take(x, nearest_indices(n_in, n_out), axis=axis)
            else:
                scale = ops.cast(n_in, "float32") / ops.cast(n_out, "float32")
                indices = ops.cast(ops.floor(ops.cast(ops.arange(n_out), "float32") * scale), "int32")
                x = ops.take(x, ops.minimum(indices, n_in - 1), axis=axis)
        return x

    def compute_output_shape(
        self, x_shape: tuple[int | None, ...], reference_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return (x_shape[0], reference_shape[1], reference_shape[2], x_shape[3])


def nearest_indices(n_in: int, n_out: int) -> npt.NDArray[np.int32]:
    """The ``n_out`` source indices (int32) of torch's nearest resizing of ``n_in`` pixels.

    ``min(floor(i * s), n_in - 1)`` with ``s = n_in / n_out`` and the product both rounded to float32, as
    torch computes them: the exact ``i * n_in // n_out`` differs for some pairs of sizes.
    """
    scale = np.float32(n_in) / np.float32(n_out)
    indices = np.floor(np.arange(n_out, dtype="float32") * scale).astype("int32")
    chosen: npt.NDArray[np.int32] = np.minimum(indices, n_in - 1)
    return chosen
