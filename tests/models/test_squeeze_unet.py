"""The SqueezeNet / ResNet U-Net: counts, shapes, and torchvision's and fastai's outputs for seeded weights.

``fixtures/torchvision_features.npz`` and ``fixtures/fastai_logits.npz`` were written with torch 2.13,
torchvision 0.28 and fastai 2.8.12 by ``scripts/export_torchvision_features.py --fixture``. Weights and images
are made again here by its ``seeded_tensor``, which needs no torch.
"""

import importlib.util
import math
from pathlib import Path

import keras
import numpy as np
import pytest
from support import ROOT

from kitsseg.errors import InputError
from kitsseg.models.pretrained import encoders
from kitsseg.models.pretrained.encoders import encoder_layers
from kitsseg.models.pretrained.torchvision import assign_state_dict, load_torchvision_weights
from kitsseg.models.squeeze_unet import build_squeeze_unet

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location(
    "export_torchvision_features", ROOT / "scripts" / "export_torchvision_features.py"
)
export = importlib.util.module_from_spec(spec)
spec.loader.exec_module(export)

# torchvision's tables: index, input channels, squeeze filters, filters of each expand convolution
FIRE = [(3, 64, 16, 64), (4, 128, 16, 64), (6, 128, 32, 128), (7, 256, 32, 128),
        (9, 256, 48, 192), (10, 384, 48, 192), (11, 384, 64, 256), (12, 512, 64, 256)]  # fmt: skip
TORCH_NAMES = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias",
               "moving_mean": "running_mean", "moving_variance": "running_var"}  # fmt: skip


def squeezenet_shapes():
    shapes = {"features.0.weight": (64, 3, 3, 3), "features.0.bias": (64,)}
    for index, n_in, squeeze, expand in FIRE:
        for part, kernel in (("squeeze", (squeeze, n_in, 1, 1)), ("expand1x1", (expand, squeeze, 1, 1)),
                             ("expand3x3", (expand, squeeze, 3, 3))):  # fmt: skip
            shapes[f"features.{index}.{part}.weight"] = kernel
            shapes[f"features.{index}.{part}.bias"] = kernel[:1]
    return {**shapes, "classifier.1.weight": (1000, 512, 1, 1), "classifier.1.bias": (1000,)}


def resnet34_shapes():
    def norm(name, size):
        return {f"{name}.{part}": (size,) for part in ("weight", "bias", "running_mean", "running_var")}

    shapes, n_in = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}, 64
    for stage, (n_blocks, size) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(n_blocks):
            name = f"layer{stage}.{block}"
            shapes |= {f"{name}.conv1.weight": (size, n_in, 3, 3), **norm(f"{name}.bn1", size)}
            shapes |= {f"{name}.conv2.weight": (size, size, 3, 3), **norm(f"{name}.bn2", size)}
            if n_in != size:
                shapes |= {
                    f"{name}.downsample.0.weight": (size, n_in, 1, 1),
                    **norm(f"{name}.downsample.1", size),
                }
            n_in = size
    return shapes


def seeded_state(shapes):
    return {name: export.seeded_tensor(name, shape) for name, shape in shapes.items()}


def seed_decoder(model):
    for layer in model.layers:
        for variable in [] if layer.name.startswith("encoder_") else layer.weights:
            name = f"{layer.name}.{TORCH_NAMES[variable.name]}"
            if len(variable.shape) == 4:
                rows, columns, n_in, n_out = variable.shape
                kernel = export.seeded_tensor(name, (n_out, n_in, rows, columns))
                variable.assign(kernel.transpose(2, 3, 1, 0))
            else:
                variable.assign(export.seeded_tensor(name, tuple(variable.shape)))


def encoder_of(model):
    return keras.Model(model.input, encoder_layers(model)[-1].output)


def count(variables):
    return sum(math.prod(variable.shape) for variable in variables)


def encoder_count(model):
    return sum(count(layer.trainable_variables) for layer in encoder_layers(model))


def forward(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


@pytest.fixture(scope="module")
def skips_unet():
    return build_squeeze_unet()


@pytest.fixture(scope="module")
def lite_unet():
    return build_squeeze_unet((None, None, 3), decoder="lite")


def test_parameters_with_skips(skips_unet):
    assert skips_unet.count_params() == 19_704_180
    assert count(skips_unet.trainable_variables) == 19_702_260
    assert encoder_count(skips_unet) == 722_496


def test_parameters_and_shapes_without_skips():
    model = build_squeeze_unet(skips=False)
    assert model.count_params() == 15_990_516
    assert count(model.trainable_variables) == 15_989_492
    assert model.get_layer("full_shuffle").output.shape == (None, 30, 30, 512)
    assert model.get_layer("full_concat").output.shape == (None, 256, 256, 515)
    assert model.output_shape == (None, 256, 256, 3)


def test_parameters_and_shapes_of_resnet34():
    model = build_squeeze_unet(encoder="resnet34")
    assert model.count_params() == 41_240_340
    assert count(model.trainable_variables) == 41_221_268
    assert encoder_count(model) == 21_284_672
    shapes = {"encoder_relu": (128, 128, 64), "encoder_maxpool": (64, 64, 64),
              "encoder_layer4_2_relu2": (8, 8, 512), "up1_conv2": (16, 16, 512),
              "up2_conv2": (32, 32, 384), "up3_conv2": (64, 64, 256),
              "up4_conv2": (128, 128, 96), "full_shuffle": (256, 256, 96), "full_relu": (256, 256, 99),
              "logits": (256, 256, 3)}  # fmt: skip
    for name, shape in shapes.items():
        assert model.get_layer(name).output.shape == (None, *shape), name


def test_parameters_of_resnet18():
    assert count(build_squeeze_unet(encoder="resnet18").trainable_variables) == 31_113_108


def test_shapes_with_skips_at_256(skips_unet):
    shapes = {"encoder_features_0": (127, 127, 64), "encoder_features_2": (63, 63, 64),
              "encoder_features_4_concat": (63, 63, 128), "encoder_features_5": (31, 31, 128),
              "encoder_features_7_concat": (31, 31, 256), "encoder_features_8": (15, 15, 256),
              "encoder_features_12_concat": (15, 15, 512), "middle_conv1": (15, 15, 1024),
              "up1_shuffle": (30, 30, 256), "up1_conv2": (31, 31, 512), "up2_shuffle": (62, 62, 256),
              "up2_conv2": (63, 63, 384), "up3_shuffle": (126, 126, 192), "up3_conv2": (127, 127, 128),
              "full_shuffle": (254, 254, 128), "full_relu": (256, 256, 131),
              "logits": (256, 256, 3)}  # fmt: skip
    for name, shape in shapes.items():
        assert skips_unet.get_layer(name).output.shape == (None, *shape), name
    assert skips_unet.output.dtype == "float32"


@pytest.mark.parametrize(("size", "expected"), [((224, 224), (13, 13)), ((300, 300), (18, 18)),
                                                ((140, 172), (8, 10)), ((256, 256), (15, 15))])  # fmt: skip
def test_feature_shapes(size, expected):
    features, _ = encoders.squeezenet1_1(keras.Input((*size, 3)))
    assert features.shape == (None, *expected, 512)


@pytest.mark.parametrize("encoder", ["squeezenet1_1", "resnet18"])
@pytest.mark.parametrize("size", [(64, 48), (96, 96), (100, 132), (127, 127), (17, 33)])
def test_output_has_the_size_of_the_input(size, encoder):
    model = build_squeeze_unet((*size, 3), encoder=encoder, decoder="lite")
    assert model.output_shape == (None, *size, 3)
    assert forward(model, np.zeros((1, *size, 3), "float32")).shape == (1, *size, 3)


def test_output_size_with_unknown_input_size(lite_unet):
    for size in ((64, 48), (100, 132), (127, 127)):
        assert forward(lite_unet, np.zeros((1, *size, 3), "float32")).shape == (1, *size, 3)


@pytest.mark.parametrize("n", range(17, 41))
def test_ceil_mode_pooling_against_brute_force(n):
    shape = (n, 57 - n)  # odd with even and even with odd
    x = np.random.default_rng(n).uniform(size=(1, *shape, 2)).astype("float32")
    rows, columns = (math.ceil((size - 3) / 2) + 1 for size in shape)
    expected = np.empty((rows, columns, 2), "float32")
    for row, column in np.ndindex(rows, columns):
        expected[row, column] = x[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].max(axis=(0, 1))
    inputs = keras.Input((*shape, 2))
    pooled = keras.Model(inputs, encoders._max_pool_ceil(inputs, "pool"))
    assert pooled.output_shape == (None, rows, columns, 2)
    np.testing.assert_array_equal(forward(pooled, x)[0], expected)


def test_names_and_shapes_of_squeezenets_state_dict():
    shapes = squeezenet_shapes()
    assert (len(shapes), sum(math.prod(shape) for shape in shapes.values())) == (52, 1_235_496)


@pytest.mark.parametrize(("encoder", "shapes"), [("squeezenet1_1", squeezenet_shapes()),
                                                 ("resnet34", resnet34_shapes())])  # fmt: skip
def test_features_agree_with_torchvision(encoder, shapes):
    model = build_squeeze_unet((None, None, 3), encoder=encoder, decoder="lite")
    assign_state_dict(model, seeded_state(shapes))
    with np.load(HERE / "fixtures" / "torchvision_features.npz") as fixture:
        expected = {size: fixture[f"{encoder}_{size[0]}x{size[1]}"] for size in export.FIXTURE_SIZES}
    for size, features in expected.items():
        image = export.seeded_tensor("image", (*size, 3))
        result = forward(encoder_of(model), image[None])[0]
        assert features.max() > 0.5  # so that the bounds mean something
        assert np.abs(result - features).max() < min(1e-4, 2e-5 * features.max())


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize(("size", "skips"), export.FASTAI_SIZES.items())
def test_logits_agree_with_fastai(size, skips, static):
    model = build_squeeze_unet((*(size if static else (None, None)), 3), skips=skips)
    assign_state_dict(model, seeded_state(squeezenet_shapes()))
    seed_decoder(model)
    with np.load(HERE / "fixtures" / "fastai_logits.npz") as fixture:
        expected = fixture[f"squeezenet1_1_{size[0]}x{size[1]}_{'skips' if skips else 'no_skips'}"]
    result = forward(model, export.seeded_tensor("image", (*size, 3))[None])[0]
    assert np.abs(result - expected).max() < 2e-5 * np.abs(expected).max()


def test_one_input_channel_sums_the_first_kernel():
    three = build_squeeze_unet((40, 33, 3), decoder="lite")
    one = build_squeeze_unet((40, 33, 1), decoder="lite")
    for model in (three, one):
        assign_state_dict(model, seeded_state(squeezenet_shapes()))
    image = export.seeded_tensor("image", (1, 40, 33, 1))
    expected = forward(encoder_of(three), np.repeat(image, 3, axis=-1))
    np.testing.assert_allclose(forward(encoder_of(one), image), expected, atol=1e-5)


def test_normalize_applies_imagenet_statistics():
    plain = build_squeeze_unet((20, 24, 3), decoder="lite")
    normalizing = build_squeeze_unet((20, 24, 3), decoder="lite", normalize=True)
    normalizing.set_weights(plain.get_weights())
    image = np.random.default_rng(3).uniform(size=(1, 20, 24, 3)).astype("float32")
    normalized = (image - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    np.testing.assert_allclose(forward(normalizing, image), forward(plain, normalized), atol=1e-5)


def test_lite_is_light(lite_unet):
    # convolutions of 3x3 with biases, (channels in * 9 + 1) * filters:
    up1 = ((512 + 256) * 9 + 1) * 128 + (128 * 9 + 1) * 128
    up2 = ((128 + 128) * 9 + 1) * 64 + (64 * 9 + 1) * 64
    up3 = ((64 + 64) * 9 + 1) * 32 + (32 * 9 + 1) * 32
    assert lite_unet.count_params() == 722_496 + up1 + up2 + up3 + 32 * 3 + 3
    assert lite_unet.count_params() < 19_704_180 / 9


def test_lite_without_skips_keeps_its_levels_and_sees_the_last_map_alone():
    model = build_squeeze_unet((None, None, 3), decoder="lite", skips=False)
    ups = ((512, 128), (128, 64), (64, 32))
    levels = sum((a * 9 + 1) * b + (b * 9 + 1) * b for a, b in ups)
    assert model.count_params() == 722_496 + levels + 32 * 3 + 3
    assert not [
        layer for layer in model.layers if layer.name.endswith("_concat") and layer.name.startswith("up")
    ]
    for size in ((33, 20), (64, 48)):
        assert forward(model, np.zeros((1, *size, 3), "float32")).shape == (1, *size, 3)


def test_initial_values_of_the_fastai_decoder(skips_unet):
    middle = skips_unet.get_layer("middle_bn")
    assert (middle.epsilon, middle.momentum) == (1e-5, 0.9)
    np.testing.assert_allclose(middle.get_weights()[:2], [np.ones(512), np.full(512, 1e-3)], rtol=1e-6)
    kernel, bias = skips_unet.get_layer("up2_conv2").get_weights()
    assert np.std(kernel) == pytest.approx(math.sqrt(2 / (9 * 384)), rel=0.01)
    assert not bias.any()
    expand = skips_unet.get_layer("up1_expand").get_weights()[0]
    np.testing.assert_array_equal(expand[..., 0::4], expand[..., 3::4])
    first, second = (skips_unet.get_layer(f"up1_conv{i}").get_weights()[0] for i in (1, 2))
    assert not np.array_equal(first, second)  # one initializer object for both would have made them equal


@pytest.mark.parametrize("kwargs", [{"decoder": "lite", "normalize": True}, {"skips": False}])
def test_configuration_round_trip(kwargs):
    model = build_squeeze_unet((33, 20, 3), **kwargs)
    again = keras.models.model_from_json(model.to_json())
    again.set_weights(model.get_weights())
    image = export.seeded_tensor("image", (1, 33, 20, 3))
    np.testing.assert_array_equal(forward(again, image), forward(model, image))


@pytest.mark.slow
def test_trains_with_unknown_sizes():
    model = build_squeeze_unet((None, None, 3), decoder="lite")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=False)
    images = export.seeded_tensor("image", (2, 33, 40, 3))
    labels = (images[..., 0] > 0).astype("int32")
    history = model.fit(images, labels, epochs=5, batch_size=2, verbose=0).history["loss"]
    assert np.all(np.isfinite(history))
    assert history[-1] < history[0]


@pytest.mark.slow
def test_resnet50_computes_what_keras_applications_does_on_blue_green_red():
    original = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(32, 45, 3))
    three = build_squeeze_unet((32, 45, 3), encoder="resnet50", decoder="lite")
    one = build_squeeze_unet((32, 45, 1), encoder="resnet50", decoder="lite")
    for model in (three, one):
        encoders.load_resnet50_imagenet(model, original)
    image = export.seeded_tensor("image", (1, 32, 45, 3))
    expected = forward(original, image[..., ::-1])
    np.testing.assert_allclose(
        forward(encoder_of(three), image), expected, rtol=1e-4, atol=1e-4 * expected.max()
    )
    gray = np.repeat(image[..., :1], 3, axis=-1)
    expected = forward(original, gray)
    np.testing.assert_allclose(
        forward(encoder_of(one), gray[..., :1]), expected, rtol=1e-4, atol=1e-4 * expected.max()
    )
    assert three.output_shape == (None, 32, 45, 3)


def test_resnet50_normalizes_its_own_way():
    model = build_squeeze_unet((32, 32, 3), encoder="resnet50", decoder="lite", normalize=True)
    image = np.random.default_rng(4).uniform(size=(1, 32, 32, 3)).astype("float32")
    caffe = keras.applications.resnet50.preprocess_input(image * 255)[..., ::-1]  # back to red, green, blue
    result = forward(keras.Model(model.input, model.get_layer("normalize").output), image)
    np.testing.assert_allclose(result, caffe, atol=1e-3)
    with pytest.raises(InputError, match="torchvision weights fit"):
        load_torchvision_weights(model, "imagenet")


def test_resnet50_offline_is_one_clear_error(monkeypatch):
    def unreachable(**_):
        raise Exception("URL fetch failure on https://example.org/weights.h5: None -- no route")

    monkeypatch.setattr(keras.applications, "ResNet50", unreachable)
    with pytest.raises(InputError, match=r"ResNet-50: URL fetch failure.*internet"):
        encoders.load_resnet50_imagenet(model=None)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"encoder": "vgg16"}, "encoder .*'squeezenet1_1'.*got 'vgg16'"),
        ({"decoder": "heavy"}, "decoder must be 'fastai' or 'lite'; got 'heavy'"),
        ({"input_shape": (16, 64, 3)}, "at least 17 rows and columns; got .16, 64, 3."),
        ({"input_shape": (31, 64, 3), "encoder": "resnet50"}, "resnet50 needs at least 32"),
        ({"input_shape": (64, 64, 1), "normalize": True}, "three channels.*got 1"),
        ({"encoder": "resnet50", "weights": "resnet50.pth"}, "torchvision file .*not fit"),
    ],
)
def test_bad_arguments_give_one_clear_error(kwargs, match):
    with pytest.raises(ValueError, match=match):
        build_squeeze_unet(**kwargs)
