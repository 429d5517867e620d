"""What holds for every builder: the contract that all networks share."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from kitsseg import models

# name, options of a tiny network, an input size it refuses, sizes of its outputs in parts of the input's
NETWORKS = [
    ("unet2d", {"input_shape": (16, 16, 1), "start_filters": 4, "n_pools": 2}, (16, 18, 1), [1]),
    ("wp_unet", {"input_shape": (32, 32, 1), "filters": (4, 8, 8, 8, 8)}, (32, 40, 1), [1]),
    ("enhanced_unet", {"input_shape": (32, 32, 1), "base": 8}, (32, 40, 1), [8, 4, 2, 1]),
    ("squeeze_unet", {"input_shape": (32, 32, 3), "decoder": "lite", "normalize": True}, (16, 32, 3), [1]),
    ("deeplab3d", {"input_shape": (8, 16, 16, 1), "width_divisor": 4}, (8, 16, 18, 1), [1]),
    ("unet3d", {"input_shape": (8, 16, 16, 1), "filters": (4, 8)}, (8, 16, 18, 1), [1]),
]
each_network = pytest.mark.parametrize(
    ("stem", "options", "wrong_shape", "steps"), NETWORKS, ids=[network[0] for network in NETWORKS]
)


@pytest.fixture
def mixed_float16():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(policy)


def build(stem, options):
    keras.utils.set_random_seed(0)
    return getattr(models, f"build_{stem}")(**options)


def make_batch(input_shape):
    """Two images of 0..1, bright, middling and dark bands of noise, and their labels 2, 1, 0."""
    rng = np.random.default_rng(0)
    labels = np.zeros((2, *input_shape[:-1]), "int32")
    labels[..., 8:, :] = 1
    labels[..., 8:, 10:] = 2
    noise = rng.uniform(0, 0.3, size=(*labels.shape, input_shape[-1]))
    return (noise + 0.35 * labels[..., None]).astype("float32"), labels


def call(model, images):
    """The outputs as a list of arrays, the quickest way for one call: only JAX gains from compiling."""
    eager = keras.backend.backend() != "jax"
    outputs = model(images, training=False) if eager else model.predict_on_batch(images)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return [keras.ops.convert_to_numpy(output) for output in outputs]


@each_network
def test_logits(stem, options, wrong_shape, steps):
    model = build(stem, options)
    images, labels = make_batch(options["input_shape"])
    outputs = call(model, images)
    assert [output.shape for output in outputs] == [
        (2, *(size // step for size in labels.shape[1:]), 3) for step in steps
    ]
    assert all(output.dtype == "float32" for output in outputs)
    assert any((output < 0).any() for output in outputs)  # logits, not probabilities
    assert model.count_params() < 10_000_000


@each_network
def test_float32_head_under_mixed_float16(stem, options, wrong_shape, steps, mixed_float16):
    model = build(stem, options)
    assert {layer.compute_dtype for layer in model.layers} >= {"float16", "float32"}
    for output in call(model, make_batch(options["input_shape"])[0]):
        assert output.dtype == "float32"
        assert np.isfinite(output).all()


@each_network
def test_training_lowers_the_loss(stem, options, wrong_shape, steps):
    model = build(stem, options)
    images, labels = make_batch(options["input_shape"])
    targets = [labels[(slice(None), *(slice(None, None, step),) * (labels.ndim - 1))] for step in steps]
    losses = [keras.losses.SparseCategoricalCrossentropy(from_logits=True) for _ in targets]
    if len(steps) == 1:
        targets, losses = targets[0], losses[0]
    # a few steps do not repay compiling by TensorFlow; JAX has nothing faster
    model.compile(keras.optimizers.Adam(0.003), losses, run_eagerly=keras.backend.backend() != "jax")
    history = model.fit(images, targets, epochs=4, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    assert history[-1] < 0.95 * history[0]


@each_network
def test_save_and_load(stem, options, wrong_shape, steps, tmp_path):
    model = build(stem, options)
    images, _ = make_batch(options["input_shape"])
    expected = call(model, images)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    keras.utils.set_random_seed(1)
    rebuilt = getattr(models, f"build_{stem}")(**options)
    assert any((found != value).any() for found, value in zip(call(rebuilt, images), expected))
    rebuilt.load_weights(tmp_path / "model.weights.h5")
    for found in (loaded, rebuilt):
        assert found.output_names == model.output_names
        for value, other in zip(expected, call(found, images), strict=True):
            np.testing.assert_array_equal(other, value)


@each_network
def test_every_layer_is_named(stem, options, wrong_shape, steps):
    # Keras numbers the layers it names itself, so a second network would get other names
    first, second = build(stem, options), build(stem, options)
    assert [op.name for op in first.operations] == [op.name for op in second.operations]
    assert all(isinstance(op, keras.Layer) for op in first.operations)
    assert first.input.name == "image"
    assert first.name == stem


@each_network
def test_wrong_size_is_refused(stem, options, wrong_shape, steps):
    with pytest.raises(ValueError, match=r"(must be multiples of|needs at least) .*got") as error:
        build(stem, {**options, "input_shape": wrong_shape})
    assert str(wrong_shape) in str(error.value)


def test_importing_the_package_does_not_import_keras():
    code = (
        "import sys, kitsseg.models; assert 'keras' not in sys.modules;"
        "assert set(kitsseg.models.__all__) <= set(dir(kitsseg.models));"
        "assert 'keras' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_export_is_a_builder_and_nothing_else_resolves():
    assert {f"build_{stem}" for stem, *_ in NETWORKS} == {
        name for name in models.__all__ if name.startswith("build_")
    }
    with pytest.raises(AttributeError, match="no attribute 'build_vnet'"):
        _ = models.build_vnet
    with pytest.raises(ImportError):
        from kitsseg.models import build_vnet  # noqa: F401
