"""2-D U-Net of Chen and Jin: parameter counts, sizes, order of the layers."""

import math
import re

import keras
import numpy as np
import pytest

from kitsseg.models.layers.blocks2d import UpsampleBilinear
from kitsseg.models.unet2d import SubBlock, build_unet2d


def count_trainable(model):
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def test_parameter_counts():
    model = build_unet2d()
    assert model.count_params() == 12_298_643
    assert count_trainable(model) == 12_291_123
    assert model.output_shape == (None, 224, 224, 3)
    assert model.get_layer("logits").activation is keras.activations.linear


@pytest.mark.parametrize(
    ("options", "total"),
    [
        ({"upsampling": "nearest"}, 12_298_643),
        ({"block": SubBlock(norm_first=True)}, 12_298_643),
        ({"upsampling": "transposed"}, 12_162_863),
        ({"block": SubBlock(use_bias=False)}, 12_294_883),
        ({"sub_blocks": 1}, 6_147_643),
        ({"sub_blocks": 3}, 18_449_643),
        ({"n_pools": 6}, 49_181_843),
        ({"start_filters": 30}, 27_657_663),
    ],
    ids=str,
)
def test_other_readings(options, total):
    assert build_unet2d((64, 64, 1), **options).count_params() == total


def test_counts_of_the_levels():
    # two convolutions with bias and two normalizations of 4 weights a filter, channels c -> f:
    # (9 c f + f) + (9 f f + f) + 8 f
    model = build_unet2d((32, 32, 1))
    for prefix, channels, filters in [("down0", 1, 20), ("bottom", 320, 640), ("merge4", 960, 320)]:
        expected = 9 * channels * filters + 9 * filters**2 + 10 * filters
        found = sum(layer.count_params() for layer in model.layers if layer.name.startswith(f"{prefix}_"))
        assert found == expected


def test_any_multiple_of_32_runs():
    model = build_unet2d((None, None, 1), start_filters=2)
    for size in [(512, 512), (32, 96)]:
        logits = model.predict(np.zeros((1, *size, 1), "float32"), verbose=0)
        assert logits.shape == (1, *size, 3)


def test_unknown_and_known_size_give_the_same_logits():
    image = np.random.default_rng(0).normal(size=(1, 64, 32, 1)).astype("float32")
    known = build_unet2d((64, 32, 1), start_filters=2)
    unknown = build_unet2d((None, None, 1), start_filters=2)
    unknown.set_weights(known.get_weights())
    found, expected = (keras.ops.convert_to_numpy(model(image)) for model in (unknown, known))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm_first", [False, True])
def test_order_of_a_sub_block(norm_first):
    model = build_unet2d((32, 32, 1), start_filters=2, block=SubBlock(norm_first=norm_first))
    first, second = ("bn", "act") if norm_first else ("act", "bn")
    assert model.get_layer(f"down0_1_{first}").input is model.get_layer("down0_1_conv").output
    assert model.get_layer(f"down0_1_{second}").input is model.get_layer(f"down0_1_{first}").output
    assert model.get_layer("down0_2_conv").input is model.get_layer(f"down0_1_{second}").output
    assert model.get_layer("down0_1_act").negative_slope == pytest.approx(0.3)


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest", "transposed"])
def test_concatenation_has_the_upsampled_tensor_first(upsampling):
    model = build_unet2d((32, 32, 1), start_filters=2, upsampling=upsampling)
    for level in range(5):
        upsampled, skip = model.get_layer(f"skip{level}").input
        assert upsampled is model.get_layer(f"up{level}").output
        assert skip is model.get_layer(f"down{level}_2_bn").output
        assert upsampled.shape[1:3] == skip.shape[1:3]


def test_bilinear_upsampling_is_the_default():
    layer = build_unet2d((32, 32, 1), start_filters=2).get_layer("up0")
    found = keras.ops.convert_to_numpy(layer(np.array([[[[0.0], [4.0]], [[8.0], [12.0]]]])))[0, ..., 0]
    # half-pixel centers: each new pixel is 3/4 of the nearer and 1/4 of the farther, on both axes
    columns = np.array([0, 1, 3, 4])
    np.testing.assert_allclose(found, columns + 2 * columns[:, None])


def test_bilinear_upsampling_matches_keras():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype("float32")
    expected = keras.layers.UpSampling2D(interpolation="bilinear")(x)
    found = UpsampleBilinear()(x)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(found), keras.ops.convert_to_numpy(expected), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(220, 224, 1), (224, 16, 1), (0, 32, 1), (None, 40, 1)])
def test_wrong_size_is_refused(shape):
    with pytest.raises(
        ValueError, match=f"unet2d: rows and columns .*multiples of 32; got {re.escape(str(shape))}"
    ):
        build_unet2d(shape)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"must be \(rows, columns, channels\); got \(224, 224\)"):
        build_unet2d((224, 224))
    with pytest.raises(ValueError, match=r"upsampling .*bilinear, nearest, transposed; got 'cubic'"):
        build_unet2d(upsampling="cubic")
