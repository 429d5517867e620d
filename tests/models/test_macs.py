"""Multiply-accumulates: by arithmetic, against a network of ones, and the figures of the papers' networks."""

import keras
import numpy as np
import pytest
from keras import layers

from kitsseg.models.enhanced_unet import build_enhanced_unet
from kitsseg.models.macs import count_macs, macs_of_weights
from kitsseg.models.unet2d import build_unet2d
from kitsseg.models.wp_unet import build_wp_unet


def build_chain(input_shape, *chain):
    return keras.Sequential([keras.Input(input_shape), *chain])


@pytest.mark.parametrize(
    ("input_shape", "layer"),
    [
        ((9, 3), layers.Conv1D(4, 3)),
        ((9, 7, 3), layers.Conv2D(4, (3, 2), strides=2)),
        ((9, 7, 4), layers.Conv2D(6, 3, groups=2)),
        ((9, 7, 3), layers.Conv2D(4, 3, dilation_rate=2)),
        ((5, 6, 7, 2), layers.Conv3D(3, (1, 2, 3))),
        ((4, 3), layers.Conv1DTranspose(2, 3, strides=2)),
        ((4, 5, 3), layers.Conv2DTranspose(2, 3, strides=2)),
        ((2, 3, 4, 2), layers.Conv3DTranspose(3, 2, strides=2)),
        ((9, 3), layers.DepthwiseConv1D(3, depth_multiplier=2)),
        ((9, 7, 3), layers.DepthwiseConv2D(3, depth_multiplier=2)),
        ((5, 3), layers.Dense(4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.Layer) else str(value),
)
def test_a_network_of_ones_counts_itself(input_shape, layer):
    # Without padding, with input and kernel all 1 and bias 0, every multiplication adds 1 to the output:
    # the sum of the output is the number of multiplications.
    model = build_chain(input_shape, layer)
    layer.set_weights([np.full(w.shape, float(len(w.shape) > 1)) for w in layer.get_weights()])
    products = model.predict(np.ones((1, *input_shape), "float32"), verbose=0).sum()
    assert count_macs(model) == products


def test_separable_convolution():
    # 2-D: 4x3 outputs of (3*3*5 depth-wise + 5*2*7 pointwise, depth multiplier 2 on both)
    chain = layers.SeparableConv2D(7, 3, strides=2, padding="same", depth_multiplier=2)
    assert count_macs(build_chain((8, 6, 5), chain)) == 4 * 3 * (9 * 5 * 2 + 5 * 2 * 7)
    assert count_macs(build_chain((8, 5), layers.SeparableConv1D(7, 3))) == 6 * (3 * 5 + 5 * 7)


def test_same_padding_counts_the_padded_positions():
    assert count_macs(build_chain((8, 6, 2), layers.Conv2D(3, 3, padding="same"))) == 8 * 6 * 9 * 2 * 3
    # transposed: one kernel per input position, whatever the stride
    chain = layers.Conv2DTranspose(3, 3, strides=2, padding="same")
    assert count_macs(build_chain((8, 6, 2), chain)) == 8 * 6 * 9 * 2 * 3


def test_what_is_not_counted():
    chain = (layers.BatchNormalization(), layers.PReLU(), layers.MaxPooling2D(), layers.UpSampling2D())
    assert count_macs(build_chain((8, 8, 2), *chain)) == 0


def test_nested_models_and_shared_layers():
    conv = layers.Conv2D(2, 3, padding="same", name="shared")
    inner = build_chain((8, 8, 2), layers.Conv2D(2, 1), layers.MaxPooling2D())
    image = keras.Input((8, 8, 2))
    x = conv(conv(image)) + image
    x = conv(inner(x))
    model = keras.Model(image, x)
    # shared: twice at 8x8 and once at 4x4; inside: 1x1 at 8x8
    assert count_macs(model) == (64 + 64 + 16) * 9 * 2 * 2 + 64 * 2 * 2


def test_input_shape_replaces_the_models_own():
    model = build_chain((None, None, 1), layers.Conv2D(2, 3, padding="same"))
    assert count_macs(model, (10, 20, 1)) == 10 * 20 * 9 * 2
    assert count_macs(build_chain((8, 8, 1), layers.Conv2D(2, 1)), (4, 4, 1)) == 4 * 4 * 2
    with pytest.raises(ValueError, match=r"got \(None, None, 1\). Give input_shape"):
        count_macs(model)


def test_the_model_is_left_alone():
    model = build_chain((8, 8, 1), layers.Conv2D(2, 3, name="conv"))
    before, output = model.get_weights(), model.get_layer("conv").output
    count_macs(model)
    assert model.get_layer("conv").output is output  # a second call would make the output ambiguous
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)


class Mixing(keras.Layer):
    """A layer with a weight matrix of its own."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], input_shape[-1]))

    def call(self, x):
        return keras.ops.matmul(x, self.kernel)


class CountedMixing(Mixing):
    """The same, giving its count."""

    def count_macs(self, input_shape, output_shape):
        return input_shape[0] * input_shape[1] * output_shape[1]


def test_a_layer_may_give_its_own_count():
    assert count_macs(build_chain((5, 3), CountedMixing())) == 5 * 3 * 3


def test_a_layer_that_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match=r"no count .*Mixing.*method count_macs"):
        count_macs(build_chain((5, 3), Mixing()))


def test_nonzero_only():
    conv = layers.Conv2D(4, 1, use_bias=False)
    model = build_chain((3, 3, 2), conv, layers.Conv2D(1, 1))
    kernel = np.ones((1, 1, 2, 4))
    kernel[..., :3] = 0  # 2 of 8 weights stay
    conv.set_weights([kernel])
    assert count_macs(model) == 9 * (8 + 4)
    assert count_macs(model, nonzero_only=True) == 9 * (2 + 4)


def test_by_weight_matrix():
    shared = layers.Conv2D(2, 3, padding="same", name="shared")
    separable = layers.SeparableConv2D(4, 3, padding="same", strides=2)
    image = keras.Input((8, 8, 2))
    model = keras.Model(image, layers.Dense(3)(Mixing()(separable(shared(shared(image))))))
    found = [macs for _, macs in macs_of_weights(model)]
    # shared: twice 64 positions of 3*3*2*2; depth-wise 16 of 3*3*2, pointwise 16 of 2*4; the last 16 of 4*3
    assert found == [2 * 64 * 36, 16 * 18, 16 * 8, None, 16 * 12]


@pytest.mark.parametrize(
    ("variant", "macs"), [("unet", 11_949_572_096), ("dw_unet", 4_776_132_608), ("wp_unet", 2_012_348_416)]
)
def test_macs_of_the_wp_unet_rows(variant, macs):
    assert count_macs(build_wp_unet((256, 256, 1), n_classes=1, variant=variant)) == macs


def test_macs_of_unet2d_by_hand():
    model = build_unet2d((None, None, 1))
    assert round(count_macs(model, (224, 224, 1)) / 1e9, 2) == 5.16
    assert round(count_macs(model, (512, 512, 1)) / 1e9, 2) == 26.96


def test_macs_of_enhanced_unet_by_hand():
    assert round(count_macs(build_enhanced_unet()) / 1e9, 2) == 11.97
    assert round(count_macs(build_enhanced_unet(widths="regular")) / 1e9, 1) == 17.0
