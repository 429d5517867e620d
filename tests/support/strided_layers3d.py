"""The layers of kitsseg.models.layers.layers3d written with indices, which are slow on TensorFlow.

These layers compute the same sums in the same order as the package's layers. test_layers3d.py therefore takes them as
its oracle, and benchmarks/depthwise3d.py compares their speed with that of the package's layers.
"""

from keras import ops

from kitsseg.models.layers.layers3d import DepthwiseConv3D, UpsampleTrilinear

__all__ = ["StridedDepthwise", "StridedUpsample"]


class StridedDepthwise(DepthwiseConv3D):
    """As it was written first: the volume indexed."""

    def call(self, inputs):
        _, slices, rows, columns, channels = ops.shape(inputs)
        out_slices = -(-slices // self.strides)
        padded = ops.pad(inputs, ((0, 0), (self.dilation, self.dilation), (0, 0), (0, 0), (0, 0)))
        same_padding = (out_slices - 1) * self.strides + 2 * self.dilation + 1 - slices
        first = self.dilation - same_padding // 2
        total = 0.0
        for k in range(3):
            begin = first + k * self.dilation
            shifted = padded[:, begin : begin + (out_slices - 1) * self.strides + 1 : self.strides]
            images = ops.reshape(shifted, (-1, rows, columns, channels))
            part = ops.depthwise_conv(
                images,
                ops.expand_dims(self.kernel[k], -1),
                strides=self.strides,
                padding="same",
                data_format="channels_last",
                dilation_rate=self.dilation,
            )
            total = total + part
        out_rows, out_columns = -(-rows // self.strides), -(-columns // self.strides)
        return ops.reshape(total, (-1, out_slices, out_rows, out_columns, channels))


class StridedUpsample(UpsampleTrilinear):
    def call(self, inputs):
        x = inputs
        for axis in (1, 2, 3):
            at = (slice(None),) * axis
            before = ops.concatenate([x[(*at, slice(None, 1))], x[(*at, slice(None, -1))]], axis=axis)
            after = ops.concatenate([x[(*at, slice(1, None))], x[(*at, slice(-1, None))]], axis=axis)
            both = ops.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis=axis + 1)
            sizes = list(ops.shape(x))
            sizes[0], sizes[axis] = -1, 2 * sizes[axis]
            x = ops.reshape(both, sizes)
        return x
