import keras
import numpy as np
import pytest
from keras import layers, ops
from scipy import ndimage

from kitsseg.losses import TverskyFocal
from kitsseg.models.deeplab3d import build_deeplab3d
from kitsseg.models.layers.layers3d import DepthwiseConv3D, UpsampleTrilinear
from kitsseg.models.macs import count_macs

RNG = np.random.default_rng(0)


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def noise(*shape):
    return RNG.normal(size=shape).astype("float32")


def as_dense(depthwise, channels):
    """The same kernel as one of Conv3D: zero between different channels."""
    kernel = np.zeros((3, 3, 3, channels, channels), "float32")
    kernel[..., range(channels), range(channels)] = ops.convert_to_numpy(depthwise.kernel)
    return kernel


# ---- architecture --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("switches", "trainable_count", "total"),
    [
        ({}, 559_667, 562_307),
        ({"encoder_extra": True}, 579_763, 582_659),
        ({"aspp_channels": 48}, 753_619, 756_419),
        ({"aspp_channels": 64}, 949_619, 952_579),
        ({"aspp_channels": 128}, 1_754_099, 1_757_699),
        ({"decoder": "every_stage", "decoder_convs": 1}, 725_651, 728_387),
        ({"decoder": "every_stage", "decoder_convs": 2}, 912_563, 915_587),
    ],
    ids=lambda value: "-".join(map(str, value.values())) or "proposed" if isinstance(value, dict) else None,
)
def test_deeplab3d_parameters_of_every_row(switches, trainable_count, total):
    model = build_deeplab3d(**switches)
    assert (trainable(model), model.count_params()) == (trainable_count, total)
    assert model.output_shape == (None, 48, 48, 48, 3)


def test_deeplab3d_other_patch_size():
    assert build_deeplab3d((44, 44, 44, 1)).output_shape == (None, 44, 44, 44, 3)


# the paper's table of layers: parameters (total) by the prefix of the layers' names
@pytest.mark.parametrize(
    ("prefix", "total"),
    [
        ("stem", 40),
        ("s1b1", 1_352),
        ("s1b2", 2_256),
        ("s2b1", 3_728),
        ("s2b2", 8_064),
        ("s3b1", 6_048),
        ("s3b2", 11_552),
        ("s4b1", 14_784),
        ("s4b2", 28_192),
        ("aspp1", 4_224),
        ("aspp2", 110_720),
        ("aspp3", 110_720),
        ("aspp4", 110_720),
        ("aspp_proj", 4_224),
        ("dec_s2_1", 83_136),
        ("dec_s2_2", 62_400),
        ("logits", 147),
    ],
)
def test_parameters_of_each_step(proposed, prefix, total):
    assert sum(layer.count_params() for layer in proposed.layers if layer.name.startswith(prefix)) == total


@pytest.fixture(scope="module")
def proposed():
    return build_deeplab3d()


def test_sizes_and_dilations_of_the_steps(proposed):
    def shape(name):
        return tuple(proposed.get_layer(name).output.shape[1:])

    assert shape("s1b1_add") == (48, 48, 48, 16)
    assert shape("s2b1_add") == (24, 24, 24, 32)
    assert shape("s3b2_add") == (12, 12, 12, 64)
    assert shape("s4b2_add") == (12, 12, 12, 128)
    assert [proposed.get_layer(f"s4b{i}_sep1_depthwise").dilation for i in (1, 2)] == [2, 2]
    assert [proposed.get_layer(f"aspp{i}_conv").dilation_rate[0] for i in (1, 2, 3, 4)] == [1, 1, 2, 3]
    assert [proposed.get_layer(f"{name}_dropout").rate for name in ("aspp", "dec_s2_1", "dec_s2_2")] == [
        0.5,
        0.5,
        0.1,
    ]


def test_decoder_on_every_stage_joins_stages_3_2_and_1():
    model = build_deeplab3d(decoder="every_stage", decoder_convs=1)
    shapes = [tuple(model.get_layer(f"dec_s{i}_concat").output.shape[1:]) for i in (3, 2, 1)]
    assert shapes == [(12, 12, 12, 32 + 64), (24, 24, 24, 48 + 32), (48, 48, 48, 48 + 16)]


@pytest.mark.parametrize(
    ("switches", "patch", "gmac"),
    [
        ({}, 48, 2.93),
        ({}, 44, 2.25),
        ({"decoder": "every_stage", "decoder_convs": 1}, 48, 11.74),
        ({"decoder": "every_stage"}, 48, 19.59),
    ],
)
def test_multiply_accumulates_of_one_patch(switches, patch, gmac):
    macs = count_macs(build_deeplab3d((patch, patch, patch, 1), **switches))
    if not switches:
        # the known figure has the output convolution (48 to 3 maps) on the full size; ours runs on the half
        macs += (patch**3 - (patch // 2) ** 3) * 48 * 3
    assert macs / 1e9 == pytest.approx(gmac, abs=0.005)


def test_every_layer_is_named_by_its_place():
    names = [layer.name for layer in build_deeplab3d(decoder="every_stage", encoder_extra=True).layers]
    again = [layer.name for layer in build_deeplab3d(decoder="every_stage", encoder_extra=True).layers]
    assert names == again  # Keras' own names count on


@pytest.mark.parametrize("switches", [{}, {"decoder": "every_stage"}])
def test_logits_are_float32_under_mixed_precision(switches):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build_deeplab3d((8, 8, 8, 1), width_divisor=8, **switches)
        depthwise = model.get_layer("s1b1_sep1_depthwise")
        assert (depthwise.compute_dtype, keras.backend.standardize_dtype(depthwise.kernel.dtype)) == (
            "float16",
            "float32",
        )
        logits = model(noise(1, 8, 8, 8, 1))
    finally:
        keras.config.set_dtype_policy(before)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert np.isfinite(ops.convert_to_numpy(logits)).all()


def test_logits_are_not_probabilities():
    logits = ops.convert_to_numpy(build_deeplab3d((8, 8, 8, 1), width_divisor=8)(noise(1, 8, 8, 8, 1)))
    assert logits.min() < 0


def test_unknown_sizes_give_what_known_sizes_give():
    known = build_deeplab3d((8, 12, 16, 1), width_divisor=8)
    unknown = build_deeplab3d((None, None, None, 1), width_divisor=8)
    unknown.set_weights(known.get_weights())
    assert unknown.output_shape == (None, None, None, None, 3)
    x = noise(2, 8, 12, 16, 1)
    expected = ops.convert_to_numpy(known(x))
    np.testing.assert_allclose(ops.convert_to_numpy(unknown(x)), expected, atol=1e-5)
    np.testing.assert_allclose(unknown.predict(x, batch_size=1, verbose=0), expected, atol=1e-5)


def test_save_and_load_give_equal_logits(tmp_path):
    model = build_deeplab3d((8, 8, 8, 1), width_divisor=8)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = noise(1, 8, 8, 8, 1)
    np.testing.assert_array_equal(ops.convert_to_numpy(loaded(x)), ops.convert_to_numpy(model(x)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (48, 46, 48, 1)}, r"multiples of 4; got \(48, 46, 48, 1\)"),
        ({"input_shape": (0, 48, 48, 1)}, "multiples of 4"),
        ({"input_shape": (48, 48, 1)}, r"must be \(slices, rows, columns, channels\); got \(48, 48, 1\)"),
        ({"decoder": "stage3"}, "one of stage2, every_stage; got 'stage3'"),
        ({"decoder_convs": 3}, "must be 1 or 2; got 3"),
        ({"width_divisor": 0}, "width_divisor must be at least 1; got 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_deeplab3d(**arguments)


# ---- layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(6, 7, 8), (7, 8, 9), (4, 4, 4), (5, 5, 5), (1, 2, 3)])
@pytest.mark.parametrize(("strides", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_deeplab3d_depthwise_equals_dense_diagonal(strides, dilation, size):
    x = noise(2, *size, 5)
    depthwise = DepthwiseConv3D(strides, dilation)
    found = ops.convert_to_numpy(depthwise(x))
    dense = layers.Conv3D(5, 3, strides=strides, dilation_rate=dilation, padding="same", use_bias=False)
    dense.build(x.shape)
    dense.set_weights([as_dense(depthwise, 5)])
    expected = ops.convert_to_numpy(dense(x))
    assert found.shape == expected.shape == depthwise.compute_output_shape(x.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert depthwise.count_params() == 27 * 5


@pytest.mark.parametrize("size", [(6, 6, 6), (7, 7, 7)])
def test_depthwise_of_an_unknown_size(size):
    inputs = keras.Input((None, None, None, 2))
    layer = DepthwiseConv3D(strides=2, name="depthwise")
    model = keras.Model(inputs, layer(inputs))
    x = noise(3, *size, 2)
    np.testing.assert_allclose(
        model.predict(x, verbose=0, batch_size=2), ops.convert_to_numpy(layer(x)), atol=1e-6
    )


def test_depthwise_kernel_starts_with_variance_2_over_27():
    layer = DepthwiseConv3D()
    layer.build((None, 4, 4, 4, 2000))
    # he_normal, fan-in 27: 54,000 numbers give the variance to about 0.6 % (one standard deviation)
    assert ops.convert_to_numpy(layer.kernel).var() == pytest.approx(2 / 27, rel=0.03)


def test_depthwise_counts_its_multiply_accumulates():
    layer = DepthwiseConv3D(strides=2)
    # 3 * 4 * 5 output voxels, 27 * 7 each
    assert layer.count_macs((6, 8, 10, 7), (3, 4, 5, 7)) == 11_340
    assert layer.count_macs((None, 6, 8, 10, 7), (None, 3, 4, 5, 7)) == 11_340


@pytest.mark.parametrize(("strides", "dilation"), [(2, 2), (3, 1), (0, 1), (1, 0)])
def test_depthwise_rejects_what_it_does_not_compute(strides, dilation):
    with pytest.raises(ValueError, match=f"got strides={strides}, dilation={dilation}"):
        DepthwiseConv3D(strides, dilation)


def test_depthwise_rejects_images():
    with pytest.raises(ValueError, match=r"\(batch, slices, rows, columns, channels\).*\(1, 8, 8, 3\)"):
        DepthwiseConv3D()(noise(1, 8, 8, 3))


@pytest.mark.parametrize(
    "layer", [DepthwiseConv3D(1, 2, "glorot_uniform", name="d"), UpsampleTrilinear(name="u")]
)
def test_layers_round_trip_through_their_config(layer):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is type(layer) and again.get_config() == layer.get_config()


def test_deeplab3d_upsampling_equals_resizing_axis_by_axis():
    x = noise(2, 3, 4, 5, 6)
    expected = x
    for axis in (1, 2, 3):
        first = np.moveaxis(expected, axis, 1)
        flat = first.reshape(2, first.shape[1], -1, 1)
        size = (2 * flat.shape[1], flat.shape[2])
        resized = ops.convert_to_numpy(ops.image.resize(flat, size, "bilinear", data_format="channels_last"))
        expected = np.moveaxis(resized.reshape(2, size[0], *first.shape[2:]), 1, axis)
    found = ops.convert_to_numpy(UpsampleTrilinear()(x))
    assert found.shape == (2, 6, 8, 10, 6)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for b, c in [(0, 0), (1, 5)]:
        zoomed = ndimage.zoom(x[b, ..., c], 2, order=1, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(found[b, ..., c], zoomed, atol=1e-5)


def test_upsampling_by_hand():
    x = np.array([0, 4, 8], "float32").reshape(1, 1, 3, 1, 1)
    # even: 0.75 * here + 0.25 * left, odd: 0.75 * here + 0.25 * right, the ends repeated
    found = ops.convert_to_numpy(UpsampleTrilinear()(x))
    np.testing.assert_allclose(found[0, 0, :, 0, 0], [0, 1, 3, 5, 7, 8])
    np.testing.assert_allclose(found[0, 1, :, 1, 0], [0, 1, 3, 5, 7, 8])


def test_deeplab3d_convolution_and_upsampling_commute():
    x = noise(2, 6, 6, 6, 48)
    convolution, upsample = layers.Conv3D(3, 1), UpsampleTrilinear()
    after = ops.convert_to_numpy(convolution(upsample(x)))
    np.testing.assert_allclose(ops.convert_to_numpy(upsample(convolution(x))), after, atol=1e-5)


# ---- training ------------------------------------------------------------------------------------


def spheres(n, size, seed=0):
    """Kidneys with a tumor: intensities of the label plus noise."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), axis=-1)
    labels = np.zeros((n, size, size, size), "int32")
    for patch in labels:
        center = rng.uniform(0.35 * size, 0.65 * size, 3)
        patch[((grid - center) ** 2).sum(-1) < (0.3 * size) ** 2] = 1
        patch[((grid - center - 2) ** 2).sum(-1) < (0.17 * size) ** 2] = 2
    return (labels + 0.5 * rng.normal(size=labels.shape)).astype("float32")[..., None], labels


def compiled(model, **options):
    # without XLA: its grouped convolutions on a CPU are slow to compile and to run
    loss = TverskyFocal(focal_weight=0.5)
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=False, **options)
    return model


def test_tiny_network_takes_a_step():
    # eagerly: building the graph takes longer than the step
    model = compiled(build_deeplab3d((8, 8, 8, 1), width_divisor=8), run_eagerly=True)
    before = model.get_layer("s1b1_sep1_depthwise").get_weights()[0]
    history = model.fit(*spheres(2, 8), batch_size=2, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    assert not np.array_equal(before, model.get_layer("s1b1_sep1_depthwise").get_weights()[0])


@pytest.mark.slow
def test_deeplab3d_overfits_one_batch():
    keras.utils.set_random_seed(0)
    x, labels = spheres(4, 16)
    assert all((labels == c).any() for c in (0, 1, 2))
    model = compiled(build_deeplab3d((16, 16, 16, 1)))
    first = float(model.train_on_batch(x, labels))
    losses = []
    while len(losses) < 59 and (not losses or losses[-1] >= first / 2):
        losses.append(float(model.train_on_batch(x, labels)))
    assert losses[-1] < first / 2
