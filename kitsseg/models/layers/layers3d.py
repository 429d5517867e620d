"""Two 3D layers that Keras 3 lacks: depthwise convolution and trilinear upsampling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
from keras import layers, ops

if TYPE_CHECKING:
    from kitsseg.interfaces import Tensor

__all__ = ["DepthwiseConv3D", "UpsampleTrilinear", "double"]


@keras.saving.register_keras_serializable(package="kitsseg")
class DepthwiseConv3D(layers.Layer):  # type: ignore[misc]  # Keras ships no types
    """3x3x3 convolution of each channel by itself, SAME padding, no bias.

    It is the sum of three 2D depthwise convolutions, one for each slice of the kernel, of the volume shifted along the
    slices. In TensorFlow on a CPU this is faster than a dense ``Conv3D``, and much faster than
    ``Conv3D(groups=channels)``. The padding equals that of ``Conv3D(padding="same")``, also with strides.

    Args:
        strides: one number for all axes, 1 or 2.
        dilation: one number for all axes; 1 with strides of 2.
        kernel_initializer: the kernel has shape (3, 3, 3, channels), from which Keras takes the right fan-in,
            27, but no meaningful fan-out: hence he_normal and not the usual glorot_uniform.

    Shapes: (batch, slices, rows, columns, channels), spatial sizes may be unknown, to
        (batch, ceil(slices / strides), ceil(rows / strides), ceil(columns / strides), channels).
    Raises: ValueError for other ``strides`` or ``dilation``, or an input that has not five axes.
    """

    def __init__(
        self,
        strides: int = 1,
        dilation: int = 1,
        kernel_initializer: str | Mapping[str, Any] | keras.initializers.Initializer = "he_normal",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (strides, dilation) != (2, 1) and (strides != 1 or dilation < 1):
            raise ValueError(
                f"{self.name}: strides must be 1 or 2, dilation at least 1, and 1 with strides of 2; "
                f"got strides={strides}, dilation={dilation}."
            )
        self.strides = strides
        self.dilation = dilation
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if len(input_shape) != 5 or input_shape[-1] is None:
            raise ValueError(
                f"{self.name}: input must be (batch, slices, rows, columns, channels), channels known; "
                f"got {tuple(input_shape)}."
            )
        self.kernel = self.add_weight(
            shape=(3, 3, 3, input_shape[-1]), initializer=self.kernel_initializer, name="kernel"
        )

    def call(self, inputs: Tensor) -> Tensor:
        _, slices, rows, columns, channels = ops.shape(inputs)
        s, d = self.strides, self.dilation
        out_slices = -(-slices // s)
        # The number of slices may be unknown, so the padding is fixed and the first window moves instead:
        # with strides of 2 SAME puts one slice before an odd number of slices and none before an even one.
        padded = ops.pad(inputs, ((0, 0), (d, d + s - 1), (0, 0), (0, 0), (0, 0)))
        same_padding = (out_slices - 1) * s + 2 * d + 1 - slices
        first = d - same_padding // 2
        if s == 2:
            # every second slice without a strided slice: slices 2i and 2i + 1 as one slice of twice the rows,
            # whose upper half holds the even slices and whose lower half the odd ones
            pairs = out_slices + 1
            padded = _cut(padded, {1: (first, 2 * pairs)})
            padded = ops.reshape(padded, (-1, pairs, 2 * rows, columns, channels))
        total = 0.0
        for k, kernel in enumerate(ops.unstack(ops.expand_dims(self.kernel, -1), 3)):
            where = {1: (k // 2, out_slices), 2: (k % 2 * rows, rows)} if s == 2 else {1: (k * d, slices)}
            shifted = _cut(padded, where)
            images = ops.reshape(shifted, (-1, rows, columns, channels))
            part = ops.depthwise_conv(
                images,
                kernel,
                strides=self.strides,
                padding="same",
                data_format="channels_last",
                dilation_rate=self.dilation,
            )
            total = total + part
        out_rows, out_columns = -(-rows // self.strides), -(-columns // self.strides)
        return ops.reshape(total, (-1, out_slices, out_rows, out_columns, channels))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, *sizes, channels = input_shape
        return (batch, *(None if size is None else -(-size // self.strides) for size in sizes), channels)

    def count_macs(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
        """Multiply-accumulates for one image; shapes (..., slices, rows, columns, channels)."""
        return math.prod(output_shape[-4:]) * 27

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "strides": self.strides,
            "dilation": self.dilation,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="kitsseg")
class UpsampleTrilinear(layers.Layer):  # type: ignore[misc]  # Keras ships no types
    """Double slices, rows and columns: trilinear, half-pixel centers, edges clamped.

    One axis after the other, with i the source index: ``out[2i] = 0.75 x[i] + 0.25 x[i - 1]`` and
    ``out[2i + 1] = 0.75 x[i] + 0.25 x[i + 1]``, indices clamped. A tile and the whole volume agree away from
    the tile's border, which a corner-aligned grid would not do.

    Shapes: (batch, slices, rows, columns, channels) to (batch, 2 slices, 2 rows, 2 columns, channels).
    """

    def call(self, inputs: Tensor) -> Tensor:
        x = inputs
        for axis in (1, 2, 3):
            x = double(x, axis)
        return x

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, *sizes, channels = input_shape
        return (batch, *(None if size is None else 2 * size for size in sizes), channels)


def double(x: Tensor, axis: int) -> Tensor:
    """Interpolate to twice the size along one axis."""
    sizes = list(ops.shape(x))
    size = sizes[axis]
    before = [_cut(x, {axis: (0, 1)}), _cut(x, {axis: (0, size - 1)})]
    after = [_cut(x, {axis: (1, size - 1)}), _cut(x, {axis: (size - 1, 1)})]
    before, after = ops.concatenate(before, axis=axis), ops.concatenate(after, axis=axis)
    both = ops.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis=axis + 1)
    sizes[0], sizes[axis] = -1, 2 * size
    return ops.reshape(both, sizes)


def _cut(x: keras.KerasTensor, where: Mapping[int, tuple[int, int]]) -> keras.KerasTensor:
    """Cut a part out of a tensor, as ``x[:, begin : begin + size]`` does.

    TensorFlow turns an index into a strided slice. On a CPU strided slices and their gradients took half of a training
    step of deeplab3d (benchmarks/depthwise3d.py); the gradient of ``ops.slice`` is a plain padding.

    Args:
        x: tensor of any rank.
        where: axis -> (begin, size), which are numbers, or tensors if sizes are unknown; other axes are kept whole.
    """
    begins, sizes = [0] * len(x.shape), list(ops.shape(x))
    for axis, (begin, size) in where.items():
        begins[axis], sizes[axis] = begin, size
    return ops.slice(x, begins, sizes)
