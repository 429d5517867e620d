"""WP-UNet and its siblings: the counts of the paper's table 2, sizes, layouts."""

import math

import keras
import numpy as np
import pytest

from kitsseg.models.wp_unet import build_wp_unet

VARIANTS = ("unet", "dw_unet", "wp_unet")
TINY = (2, 2, 4, 4, 4)


def count_trainable(model):
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


@pytest.mark.parametrize(
    ("variant", "trainable", "total"),
    [
        ("unet", 5_680_353, 5_680_417),
        ("dw_unet", 2_601_921, 2_603_777),
        ("wp_unet", 1_297_441, 1_299_361),
    ],
)
def test_parameter_counts(variant, trainable, total):
    model = build_wp_unet((256, 256, 1), n_classes=1, variant=variant)
    assert (count_trainable(model), model.count_params()) == (trainable, total)
    # three classes instead of one: two more 1x1 filters of 32 weights and a bias, 2 * 33
    model = build_wp_unet((16, 16, 1), variant=variant)
    assert (count_trainable(model), model.count_params()) == (trainable + 66, total + 66)


@pytest.mark.parametrize(
    ("variant", "counts"),
    [
        ("unet", {"enc0": 9_696, "enc3": 885_248, "enc4": 1_180_160, "dec3": 1_769_984, "dec0": 27_712}),
        ("dw_unet", {"enc0": 9_696, "enc3": 102_784, "enc4": 1_180_160, "dec3": 204_544, "dec0": 27_712}),
        ("wp_unet", {"enc0": 448, "enc3": 102_784, "enc4": 0, "dec3": 136_704, "dec0": 2_752}),
    ],
)
def test_counts_of_the_blocks(variant, counts):
    # unet enc0: 3*3*1*32+32 = 320, 3*3*32*32+32 = 9,248, normalization 4*32 = 128
    # separable enc3: 9*128 + 128*256 = 33,920, 9*256 + 256*256 = 67,840, normalization 1,024
    # wp_unet dec0: 9*64 + 64*32 = 2,624, normalization 128
    model = build_wp_unet((16, 16, 1), variant=variant)
    for prefix, count in {**counts, "up3": 590_080, "up2": 295_040, "up1": 73_792, "up0": 18_464}.items():
        assert sum(layer.count_params() for layer in model.layers if layer.name.startswith(prefix)) == count


@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes_and_softmax(variant):
    model = build_wp_unet((None, None, 1), variant=variant, filters=TINY)
    rng = np.random.default_rng(0)
    for size in (256, 64, 48):
        logits = model(rng.random((2, size, size, 1), "float32"))
        assert logits.shape == (2, size, size, 3)
        probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-6)


def test_logits_have_no_activation():
    assert build_wp_unet((16, 16, 1)).get_layer("logits").activation is keras.activations.linear


@pytest.mark.parametrize("variant", VARIANTS)
def test_layout(variant):
    model = build_wp_unet((32, 32, 1), variant=variant, filters=TINY)
    # the skip of block 4 is what its pooling sees: after the dropout
    skip, up = model.get_layer("skip3").input
    assert skip is model.get_layer("enc3_dropout").output
    assert skip is model.get_layer("pool3").input
    assert up is model.get_layer("up3").output
    assert model.get_layer("pool0").input is model.get_layer("enc0_bn").output
    assert model.get_layer("skip0").input[0] is model.get_layer("enc0_bn").output
    bottom = "pool3" if variant == "wp_unet" else "enc4_dropout"
    assert model.get_layer("up3").input is model.get_layer(bottom).output
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            assert layer.rate == 0.5
        if "_conv" in layer.name:
            assert layer.activation is keras.activations.relu
            assert layer.use_bias is not isinstance(layer, keras.layers.SeparableConv2D)


def test_signal_neither_vanishes_nor_explodes():
    # an untrained network on noise: the spread of a block's last convolution stays of the order of 1
    keras.utils.set_random_seed(0)
    model = build_wp_unet((64, 64, 1))
    names = ["enc1_conv2", "enc2_conv2", "enc3_conv2", "dec3_conv1", "dec1_conv1", "dec0_conv1"]
    probe = keras.Model(model.input, [model.get_layer(name).output for name in names])
    image = np.random.default_rng(0).normal(size=(2, 64, 64, 1)).astype("float32")
    for name, value in zip(names, probe(image, training=True)):
        assert 0.1 < keras.ops.convert_to_numpy(value).std() < 3, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_wrong_size_is_refused(variant):
    with pytest.raises(
        ValueError, match=rf"{variant}: rows and columns .*multiples of 16; got \(250, 256, 1\)"
    ):
        build_wp_unet((250, 256, 1), variant=variant)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="variant .*unet, dw_unet, wp_unet; got 'wpunet'"):
        build_wp_unet(variant="wpunet")
    with pytest.raises(ValueError, match="filters .*five blocks"):
        build_wp_unet(filters=(8, 16, 32, 64))
