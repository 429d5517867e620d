"""Layers and checks that the 2-D U-Nets of several papers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
from keras import layers, ops

from kitsseg.models.layers.layers3d import double

if TYPE_CHECKING:
    from kitsseg.interfaces import Tensor

__all__ = ["UpsampleBilinear", "check_image_shape", "set_norm_momentum"]


@keras.saving.register_keras_serializable(package="kitsseg")
class UpsampleBilinear(layers.Layer):  # type: ignore[misc]  # Keras ships no types
    """Double rows and columns: bilinear, half-pixel centers, edges clamped.

    The result equals ``UpSampling2D(interpolation="bilinear")``, which TensorFlow refuses inside ``fit`` and
    ``predict`` if the graph does not know a size. If the sizes are known, as in training, the backend's own resizing
    is used; on a CPU without XLA it is about ten times as fast as arithmetic on slices.

    Shapes: (batch, rows, columns, channels), sizes may be unknown, to (batch, 2 rows, 2 columns, channels).
    """

    def call(self, inputs: Tensor) -> Tensor:
        rows, columns = inputs.shape[1:3]
        if rows is None or columns is None:
            return double(double(inputs, axis=1), axis=2)
        return ops.image.resize(
            inputs, (2 * rows, 2 * columns), interpolation="bilinear", data_format="channels_last"
        )

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, *sizes, channels = input_shape
        return (batch, *(None if size is None else 2 * size for size in sizes), channels)


def check_image_shape(input_shape: tuple[int | None, ...], step: int, name: str) -> None:
    """Raise ValueError unless ``input_shape`` is ``(rows, columns, channels)``, with multiples of ``step`` or None.

    Without this check a wrong size fails later, in a ``Concatenate`` whose error names neither model nor remedy.

    Args:
        input_shape: ``(rows, columns, channels)`` without the batch axis.
        step: the total stride of the network.
        name: of the network, for the message.
    """
    if len(input_shape) != 3:
        raise ValueError(f"{name}: input_shape must be (rows, columns, channels); got {tuple(input_shape)}.")
    if any(size is not None and (size < step or size % step) for size in input_shape[:2]):
        raise ValueError(
            f"{name}: rows and columns must be multiples of {step}; got {tuple(input_shape)}. "
            f"Pad or crop the slices to a multiple of {step}, or give None for a size known later."
        )


def set_norm_momentum(model: keras.Model, momentum: float) -> None:
    """Set the momentum of all batch normalizations. With Keras' 0.99 their statistics need hundreds of steps to settle.

    Args:
        model: a network; changed in place, before it is compiled.
        momentum: 0..1; a lower one forgets old batches faster.

    Raises: ValueError for another momentum.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"{model.name}: norm_momentum must be from 0 and below 1; got {momentum}.")
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = momentum
