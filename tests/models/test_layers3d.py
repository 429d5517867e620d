"""The layers of 3D networks against the same arithmetic on indexed tensors, strided slices on TensorFlow.

The results are equal to the bit, because both do the same sums in the same order. The one exception is a graph of
TensorFlow: its arithmetic rewriting (on by default) reorders the terms of a sum, so that last bits of gradients differ.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops
from support.strided_layers3d import StridedDepthwise, StridedUpsample

from kitsseg.models import deeplab3d
from kitsseg.models.layers.layers3d import DepthwiseConv3D, UpsampleTrilinear

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="graphs of unknown sizes are TensorFlow's"
)
SIZES = [(6, 8, 10), (5, 7, 9), (4, 5, 6), (7, 4, 3), (1, 2, 3), (2, 1, 1)]
POLICIES = ["float32", "mixed_float16", "mixed_bfloat16"]


PAIRS = {
    "depthwise": (DepthwiseConv3D, StridedDepthwise, {}),
    "depthwise-strides-2": (DepthwiseConv3D, StridedDepthwise, {"strides": 2}),
    "depthwise-dilation-2": (DepthwiseConv3D, StridedDepthwise, {"dilation": 2}),
    "depthwise-dilation-3": (DepthwiseConv3D, StridedDepthwise, {"dilation": 3}),
    "upsample": (UpsampleTrilinear, StridedUpsample, {}),
}
each_layer = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
each_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))


def layer_and_oracle(pair, dtype="float32", channels=3):
    """Both layers, built, with one kernel."""
    new, strided, options = pair
    found = [kind(**options, dtype=dtype) for kind in (new, strided)]
    for layer in found:
        layer.build((None, None, None, None, channels))
    found[1].set_weights(found[0].get_weights())
    return found


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def value_and_gradients(call, x, weights):
    """What ``call(x)`` gives, and the gradients of a weighted sum of it by x and by the weights, as arrays."""
    if keras.backend.backend() == "jax":
        import jax

        def stateless(x, values):
            with keras.StatelessScope(list(zip(weights, values, strict=True))):
                return ops.cast(call(x), "float32")

        value, back = jax.vjp(stateless, ops.convert_to_tensor(x), [w.value for w in weights])
        by_x, by_weights = back(ops.convert_to_tensor(noise(*value.shape, seed=1)))
        found = [value, by_x, *by_weights]
    else:
        found = tensorflow_gradients(call, ops.convert_to_tensor(x), weights)
    return [ops.convert_to_numpy(value) for value in found]


def tensorflow_gradients(call, x, weights):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        value = ops.cast(call(x), "float32")
    # any numbers would do, as long as no two are equal; of a size that may be unknown
    at = tf.reshape(tf.sin(tf.range(tf.size(value), dtype="float32")), tf.shape(value))
    return [value, *tape.gradient(value, [x, *(w.value for w in weights)], output_gradients=at)]


def assert_equal_bits(found, expected):
    assert len(found) == len(expected)
    for value, other in zip(found, expected, strict=True):
        assert (value.dtype, value.shape) == (other.dtype, other.shape)
        assert np.isfinite(value).all() and value.any()
        np.testing.assert_array_equal(value.view("int32"), other.view("int32"))


# ---- one layer -----------------------------------------------------------------------------------


@each_layer
@each_size
def test_bits_of_values_and_gradients(pair, size):
    x = noise(2, *size, 3)
    found, expected = (value_and_gradients(a, x, a.weights) for a in layer_and_oracle(pair))
    assert_equal_bits(found, expected)


@each_layer
@pytest.mark.parametrize("dtype", POLICIES[1:])
def test_bits_under_mixed_precision(pair, dtype):
    layer, oracle = layer_and_oracle(pair, dtype)
    x = noise(2, 5, 6, 7, 3)
    assert keras.backend.standardize_dtype(layer(x).dtype) == dtype.removeprefix("mixed_")
    found, expected = (value_and_gradients(a, x, a.weights) for a in (layer, oracle))
    assert_equal_bits(found, expected)


@pytest.fixture
def sums_as_written():
    """Without TensorFlow's reordering of sums."""
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    yield
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": True})


@on_tensorflow
@each_layer
@pytest.mark.parametrize("known", [(2, 5, 6, 7, 3), (None, 5, 6, 7, 3), (None, None, None, None, 3)], ids=str)
def test_bits_of_a_graph(pair, known, sums_as_written):
    import tensorflow as tf

    pieces = layer_and_oracle(pair)
    graphs = [
        tf.function(
            lambda x, a=a: tensorflow_gradients(a, x, a.weights), input_signature=[tf.TensorSpec(known)]
        )
        for a in pieces
    ]
    sizes = [(5, 6, 7)] if known[1] else SIZES
    for size in sizes:
        found, expected = ([value.numpy() for value in graph(noise(2, *size, 3))] for graph in graphs)
        assert_equal_bits(found, expected)
        eager = value_and_gradients(pieces[0], noise(2, *size, 3), pieces[0].weights)
        assert_equal_bits(found, eager)


@on_tensorflow
@each_layer
@pytest.mark.parametrize("known", [(None, 4, 5, 6, 3), (None, None, None, None, 3)], ids=["known", "unknown"])
@pytest.mark.parametrize("xla", [False, True], ids=["plain", "xla"])
def test_values_and_gradients_of_a_graph_as_it_is_trained(pair, known, xla):
    import tensorflow as tf

    pieces = layer_and_oracle(pair)
    x = noise(2, 4, 5, 6, 3)
    found, expected = (
        tf.function(
            lambda x, a=a: tensorflow_gradients(a, x, a.weights),
            input_signature=[tf.TensorSpec(known)],
            jit_compile=xla,
        )(x)
        for a in pieces
    )
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-5)
    if not xla:
        np.testing.assert_array_equal(found[0], expected[0])


@on_tensorflow
@each_layer
@pytest.mark.parametrize("known", [(None, 4, 5, 6, 3), (None, None, None, None, 3)], ids=["known", "unknown"])
def test_the_gradient_holds_no_strided_slice(pair, known):
    import tensorflow as tf

    layer, oracle = layer_and_oracle(pair)

    def operations(a):
        graph = tf.function(lambda x: tensorflow_gradients(a, x, []), input_signature=[tf.TensorSpec(known)])
        return {operation.type for operation in graph.get_concrete_function().graph.get_operations()}

    assert "StridedSliceGrad" in operations(oracle)  # or this test could not fail
    assert "StridedSliceGrad" not in operations(layer)


@each_layer
def test_bits_of_a_model_of_unknown_sizes(pair):
    def model_of(layer):
        image = keras.Input((None, None, None, 3))
        return keras.Model(image, layer(image))

    models = [model_of(layer) for layer in layer_and_oracle(pair)]
    for size in SIZES[:3]:
        x = noise(3, *size, 3)
        found, expected = (model.predict(x, batch_size=2, verbose=0) for model in models)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
        if keras.backend.backend() == "tensorflow":  # XLA, which JAX has instead, rounds as it fuses
            np.testing.assert_array_equal(found, expected)


# ---- the network ---------------------------------------------------------------------------------


def some_weights(seed, shape):
    """He-normal kernels; scales, shifts and statistics around 1. Equal on both backends: no branch may be dead."""
    rng = np.random.default_rng(seed)
    if len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape)
    return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)


def network(monkeypatch, strided, shape, **options):
    if strided:
        monkeypatch.setattr(deeplab3d, "DepthwiseConv3D", StridedDepthwise)
        monkeypatch.setattr(deeplab3d, "UpsampleTrilinear", StridedUpsample)
    model = deeplab3d.build_deeplab3d(shape, width_divisor=8, **options)
    monkeypatch.undo()
    model.set_weights([some_weights(i, weight.shape) for i, weight in enumerate(model.weights)])
    kinds = {type(layer) for layer in model.layers if not type(layer).__module__.startswith("keras")}
    assert kinds == ({StridedDepthwise, StridedUpsample} if strided else {DepthwiseConv3D, UpsampleTrilinear})
    return model


@pytest.mark.slow  # on JAX
@pytest.mark.parametrize("shape", [(8, 12, 8, 1), (None, None, None, 1)], ids=["known", "unknown"])
def test_bits_of_the_logits_and_gradients_of_deeplab3d(monkeypatch, shape):
    options = {"decoder": "every_stage", "decoder_convs": 1}
    x, found = noise(2, 8, 12, 8, 1), []
    for strided in (False, True):
        model = network(monkeypatch, strided, shape, **options)
        call = lambda x, model=model: model(x, training=False)  # noqa: E731
        found.append(value_and_gradients(call, x, model.trainable_variables))
    assert_equal_bits(*found)


def test_a_saved_network_gives_the_bits_of_the_strided_one(monkeypatch, tmp_path):
    x, shape = noise(2, 8, 8, 8, 1), (8, 8, 8, 1)
    strided, model = (network(monkeypatch, strided, shape) for strided in (True, False))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    expected = ops.convert_to_numpy(strided(x, training=False))
    assert expected.any() and np.isfinite(expected).all()
    np.testing.assert_array_equal(ops.convert_to_numpy(again(x, training=False)), expected)


def test_a_network_of_these_layers_is_called_with_any_number_of_images():
    image = keras.Input((4, 4, 4, 1))
    x = DepthwiseConv3D(strides=2)(image)
    model = keras.Model(image, layers.Conv3D(2, 1)(UpsampleTrilinear()(x)))
    x = noise(3, 4, 4, 4, 1)
    together = ops.convert_to_numpy(model(x))
    for i in range(3):
        np.testing.assert_allclose(ops.convert_to_numpy(model(x[i : i + 1]))[0], together[i], atol=1e-6)
