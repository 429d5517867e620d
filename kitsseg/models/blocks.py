"""What the 2-D U-Nets of several papers share."""

import keras
from keras import layers

from kitsseg.models.layers3d import double

__all__ = ["UpsampleBilinear", "check_image_shape"]


@keras.saving.register_keras_serializable(package="kitsseg")
class UpsampleBilinear(layers.Layer):
    """Double rows and columns: bilinear, half-pixel centers, edges clamped.

    The values of ``UpSampling2D(interpolation="bilinear")``, which TensorFlow refuses inside ``fit`` and
    ``predict`` when a size is unknown. Compiled by XLA, Keras' default, this one is also about five times as
    fast on a CPU, forward and backward; not compiled it is about ten times slower.

    Shapes: (batch, rows, columns, channels), sizes may be unknown, to (batch, 2 rows, 2 columns, channels).
    """

    def call(self, inputs):
        return double(double(inputs, axis=1), axis=2)

    def compute_output_shape(self, input_shape):
        batch, *sizes, channels = input_shape
        return (batch, *(None if size is None else 2 * size for size in sizes), channels)


def check_image_shape(input_shape, step, name):
    """Raise ValueError unless it is ``(rows, columns, channels)``, sizes multiples of ``step`` or None.

    Without this check a wrong size fails later, in a ``Concatenate`` that names neither model nor remedy.
    """
    if len(input_shape) != 3:
        raise ValueError(f"{name}: input_shape must be (rows, columns, channels); got {tuple(input_shape)}.")
    if any(size is not None and (size < step or size % step) for size in input_shape[:2]):
        raise ValueError(
            f"{name}: rows and columns must be multiples of {step}; got {tuple(input_shape)}. "
            f"Pad or crop the slices to a multiple of {step}, or give None for a size known later."
        )
