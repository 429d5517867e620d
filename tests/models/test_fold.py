"""Folding of batch normalizations: by hand, against the network itself, and where it must not happen."""

import keras
import numpy as np
import pytest
from keras import layers

from kitsseg.models import (
    build_enhanced_unet,
    build_unet2d,
    build_wp_unet,
)
from kitsseg.models.fold import fold_batch_norm


def norms(model):
    return [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]


def settle(model, seed=0):
    """Statistics and kernels as after a training: nothing is 0 or 1, some scales are negative."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        values = layer.get_weights()
        if isinstance(layer, layers.BatchNormalization):
            n = len(values[0])
            gamma = rng.uniform(0.5, 1.5, n) * np.where(np.arange(n) % 3 == 1, -1, 1)
            layer.set_weights([gamma, rng.normal(size=n), rng.normal(size=n), rng.uniform(0.5, 2, n)])
        elif values:
            layer.set_weights([v + rng.normal(scale=0.05, size=v.shape) for v in values])
    return model


def assert_same(model, folded, shape, seed=1):
    image = np.random.default_rng(seed).normal(size=(2, *shape)).astype("float32")
    expected, found = (np.asarray(each(image, training=False)) for each in (model, folded))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * max(1, np.abs(expected).max()))


def chain(*stack, shape=(8, 10, 2)):
    inputs = x = keras.Input(shape, name="image")
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


def test_before_by_hand():
    """1.5 (2 x + 1 - 5) + 4 = 3 x - 2, with 1.5 = 3 / sqrt(3 + 1)."""
    conv, norm = layers.Conv2D(1, 1, name="conv"), layers.BatchNormalization(epsilon=1.0, name="norm")
    model = chain(conv, norm, shape=(4, 4, 1))
    conv.set_weights([np.full((1, 1, 1, 1), 2.0), np.array([1.0])])
    norm.set_weights([np.array([value]) for value in (3.0, 4.0, 5.0, 3.0)])  # gamma, beta, mean, variance
    folded = fold_batch_norm(model)
    assert not norms(folded)
    kernel, bias = folded.get_layer("conv").get_weights()
    np.testing.assert_allclose([kernel.item(), bias.item()], [3.0, -2.0], rtol=1e-6)
    assert conv.get_weights()[0].item() == 2.0


def test_after_by_hand():
    """2 (1.5 (x - 5) + 4) + 1 = 3 x - 6."""
    norm, conv = layers.BatchNormalization(epsilon=1.0, name="norm"), layers.Conv2D(1, 1, name="conv")
    model = chain(norm, layers.Dropout(0.5), conv, shape=(4, 4, 1))
    conv.set_weights([np.full((1, 1, 1, 1), 2.0), np.array([1.0])])
    norm.set_weights([np.array([value]) for value in (3.0, 4.0, 5.0, 3.0)])
    folded = fold_batch_norm(model)
    assert [layer.name for layer in folded.layers] == ["image", "conv"]
    kernel, bias = folded.get_layer("conv").get_weights()
    np.testing.assert_allclose([kernel.item(), bias.item()], [3.0, -6.0], rtol=1e-6)


def test_through_a_relu_by_hand():
    """-1.5 (relu(2 x + 1) - 5) + 4 = -relu(3 x + 1.5) + 11.5: the sign and the addition stay."""
    conv = layers.Conv2D(1, 1, activation="relu", name="conv")
    norm = layers.BatchNormalization(epsilon=1.0, name="norm")
    model = chain(conv, norm, shape=(4, 4, 1))
    conv.set_weights([np.full((1, 1, 1, 1), 2.0), np.array([1.0])])
    norm.set_weights([np.array([value]) for value in (-3.0, 4.0, 5.0, 3.0)])
    folded = fold_batch_norm(model)
    kernel, bias = folded.get_layer("conv").get_weights()
    np.testing.assert_allclose([kernel.item(), bias.item()], [3.0, 1.5], rtol=1e-6)
    sign, addition, mean, variance = (value.item() for value in folded.get_layer("norm").get_weights())
    assert (sign, addition, mean, variance) == (-1.0, 11.5, 0.0, 1.0)
    assert_same(model, folded, (4, 4, 1))


@pytest.mark.parametrize(
    "conv",
    [
        lambda: layers.Conv2D(6, 3, padding="same", strides=2, use_bias=False),
        lambda: layers.Conv2D(6, 3, groups=2, dilation_rate=2),
        lambda: layers.SeparableConv2D(6, 3, padding="same", depth_multiplier=2),
        lambda: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=3, use_bias=False),
        lambda: layers.Conv2DTranspose(6, 3, strides=2, padding="same"),
    ],
    ids=["plain", "grouped", "separable", "depthwise", "transposed"],
)
@pytest.mark.parametrize("activation", [None, "leaky_relu"])
def test_each_kind_of_convolution(conv, activation):
    between = [layers.Activation(activation)] if activation else []
    model = settle(chain(conv(), *between, layers.BatchNormalization()))
    folded = fold_batch_norm(model)
    assert [norm.epsilon for norm in norms(folded)] == [0.0] * bool(activation)
    assert_same(model, folded, (8, 10, 2))


def test_three_dimensions():
    model = chain(layers.Conv3D(4, 3, padding="same"), layers.BatchNormalization(), shape=(4, 6, 5, 2))
    folded = fold_batch_norm(settle(model))
    assert not norms(folded)
    assert_same(model, folded, (4, 6, 5, 2))


def test_zero_padding_lets_no_shift_through():
    """Zero padding has zeros where folding needs the shift: the normalization stays. Without padding it is folded."""
    for padding, left in (("same", 1), ("valid", 0)):
        model = chain(layers.BatchNormalization(), layers.Conv2D(4, 3, padding=padding))
        folded = fold_batch_norm(settle(model))
        assert len(norms(folded)) == left
        assert_same(model, folded, (8, 10, 2))


def test_what_others_read_stays():
    image = keras.Input((8, 10, 2), name="image")
    conv = layers.Conv2D(3, 3, padding="same")(image)
    norm = layers.BatchNormalization()(conv)
    branched = keras.Model(image, layers.Concatenate()([conv, norm]))
    shared = layers.Conv2D(2, 3, padding="same")
    twice = keras.Model(image, layers.BatchNormalization()(shared(shared(image))))
    # the normalization is an output too, so that the second convolution may not take it in
    output = keras.Model(image, [norm, layers.Conv2D(2, 1)(norm)])
    sigmoid = chain(layers.Conv2D(3, 1, activation="sigmoid"), layers.BatchNormalization())
    for model in (branched, twice, sigmoid):
        folded = fold_batch_norm(settle(model))
        assert [layer.epsilon for layer in norms(folded)] == [1e-3]
        assert_same(model, folded, (8, 10, 2))
    folded = fold_batch_norm(output)  # folded into the first convolution: no value changes
    image = np.random.default_rng(0).normal(size=(1, 8, 10, 2)).astype("float32")
    for expected, found in zip(output(image, training=False), folded(image, training=False), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "build, shape, left, additions",
    [
        (lambda: build_unet2d((None, None, 1), start_filters=4, n_pools=2), (24, 32, 1), 9, 9),
        (lambda: build_wp_unet((None, None, 1), filters=(4, 8, 8, 8, 8)), (16, 32, 1), 7, 7),
        (lambda: build_enhanced_unet((None, None, 1), base=16, deep_supervision=False), (16, 32, 1), 0, 0),
    ],
    ids=["unet2d", "wp_unet", "enhanced_unet"],
)
def test_every_network(build, shape, left, additions):
    """Convolution, activation, normalization leaves additions; convolution, normalization, activation nothing."""
    model = settle(build())
    folded = fold_batch_norm(model, shape)
    assert folded.input_shape == (None, *shape)
    assert len(norms(folded)) == left
    assert sum(layer.epsilon == 0 for layer in norms(folded)) == additions
    assert not any(isinstance(layer, layers.Dropout) for layer in folded.layers)
    assert_same(model, folded, shape)


def test_mixed_precision_becomes_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = chain(layers.Conv2D(2, 1, name="conv"), layers.BatchNormalization())
    finally:
        keras.config.set_dtype_policy("float32")
    folded = fold_batch_norm(model)
    assert folded.get_layer("conv").compute_dtype == "float32"


def test_what_cannot_be_folded():
    class Subclassed(keras.Model):
        pass

    with pytest.raises(ValueError, match=r"functional model, .*Subclassed"):
        fold_batch_norm(Subclassed())
    images = [keras.Input((4, 4, 1), name=name) for name in ("a", "b")]
    with pytest.raises(ValueError, match=r"expected one input, found 2"):
        fold_batch_norm(keras.Model(images, layers.Add()(images)))
