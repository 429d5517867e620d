"""Channels followed by hand through small networks, and through the encoders whose ties are known."""

import keras
import numpy as np
import pytest
from keras import layers

from kitsseg.models import build_squeeze_unet
from kitsseg.models.layers.torch_compat import NearestResize, PixelShuffle
from kitsseg.pruning.channels import map_channels


def image(channels=1, size=8):
    return keras.Input((size, size, channels), name="image")


def conv(x, filters, name, **options):
    return layers.Conv2D(filters, 3, padding="same", name=name, **options)(x)


def mapped(x, y):
    return map_channels(keras.Model(x, y))


def groups_of(channels):
    return {name: (group.producers, group.numbers.tolist()) for name, group in channels.groups.items()}


def axes_of(channels, layer):
    return {
        weight: {axis: numbers.tolist() for axis, numbers in places.items()}
        for weight, places in channels.axes[layer].items()
    }


def test_a_chain_ends_where_the_next_convolution_reads_it():
    x = image(2)
    y = conv(x, 3, "first")
    y = layers.BatchNormalization(name="bn")(y)
    y = layers.PReLU(shared_axes=[1, 2], name="prelu")(y)
    y = layers.ZeroPadding2D(name="pad")(layers.MaxPooling2D(name="pool")(y))
    channels = mapped(x, layers.Conv2DTranspose(4, 2, name="head")(y))
    assert groups_of(channels) == {"first": (("first",), [0, 1, 2])}
    assert axes_of(channels, "first") == {"kernel": {-2: [-1, -1], -1: [0, 1, 2]}, "bias": {-1: [0, 1, 2]}}
    assert axes_of(channels, "bn") == {
        name: {-1: [0, 1, 2]} for name in ("gamma", "beta", "moving_mean", "moving_variance")
    }
    assert axes_of(channels, "prelu") == {"alpha": {-1: [0, 1, 2]}}
    # a transposed kernel is (rows, columns, out, in); the outputs of the network stay
    assert axes_of(channels, "head")["kernel"] == {-1: [0, 1, 2], -2: [-1] * 4}
    assert channels.kernels == {"first": ("kernel", -1), "head": ("kernel", -2)}


def test_one_slope_for_all_channels_is_not_cut():
    x = image()
    y = layers.PReLU(shared_axes=[1, 2, 3], name="prelu")(conv(x, 3, "first"))
    assert axes_of(mapped(x, conv(y, 1, "head")), "prelu") == {}


def test_a_concatenation_lays_channels_side_by_side():
    x = image()
    a = conv(x, 2, "a")
    b = conv(a, 3, "b")
    channels = mapped(x, conv(layers.Concatenate(name="both")([b, x, a]), 1, "head"))
    assert groups_of(channels) == {"a": (("a",), [0, 1]), "b": (("b",), [2, 3, 4])}
    assert axes_of(channels, "head")["kernel"][-2] == [2, 3, 4, -1, 0, 1]


@pytest.mark.parametrize("merge", [layers.Add, layers.Multiply, layers.Average, layers.Maximum])
def test_a_sum_ties_its_channels(merge):
    x = image()
    a = conv(x, 2, "a")
    b = conv(layers.ReLU(name="relu")(a), 2, "b")
    channels = mapped(x, conv(merge(name="both")([b, a]), 1, "head"))
    assert groups_of(channels) == {"a": (("a", "b"), [0, 1])}
    assert axes_of(channels, "b")["kernel"] == {-2: [0, 1], -1: [0, 1]}


def test_a_sum_with_part_of_a_concatenation_ties_only_that_part():
    x = image()
    a, b = conv(x, 2, "a"), conv(x, 1, "b")
    c = conv(x, 4, "c")
    both = layers.Add(name="sum")([layers.Concatenate(name="join")([a, b, x]), c])
    channels = mapped(x, conv(both, 1, "head"))
    # Keras orders layers side by side as it likes
    assert {frozenset(g.producers): g.size for g in channels.groups.values()} == {
        frozenset("ac"): 2,
        frozenset("bc"): 1,
    }
    assert axes_of(channels, "c")["bias"][-1][:2] == axes_of(channels, "a")["bias"][-1]
    assert axes_of(channels, "c")["bias"][-1][3] == -1  # added to the image


def test_groups_with_the_same_first_producer_have_different_names():
    x = image()
    a = conv(x, 3, "a")
    b = conv(a, 1, "b")
    beside = layers.Concatenate(name="beside")([b, conv(b, 2, "c")])
    channels = mapped(x, conv(layers.Add(name="sum")([a, beside]), 1, "head"))
    assert groups_of(channels) == {"a": (("a", "b"), [0]), "a+c": (("a", "c"), [1, 2])}


def test_a_map_that_weights_all_channels_stays_and_ties_nothing():
    x = image()
    skip = conv(x, 3, "skip")
    psi = conv(skip, 1, "psi", activation="sigmoid")
    channels = mapped(x, conv(layers.Multiply(name="gate")([psi, skip]), 1, "head"))
    assert groups_of(channels) == {"skip": (("skip",), [0, 1, 2])}
    assert axes_of(channels, "psi")["kernel"] == {-2: [0, 1, 2], -1: [-1]}
    assert axes_of(channels, "head")["kernel"][-2] == [0, 1, 2]


def test_four_outputs_before_a_pixel_shuffle_are_one_channel():
    x = image()
    y = PixelShuffle(name="shuffle")(conv(x, 8, "expand"))
    channels = mapped(x, conv(y, 1, "head"))
    assert groups_of(channels) == {"expand": (("expand",), [0, 1])}
    assert axes_of(channels, "expand")["bias"][-1] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert axes_of(channels, "head")["kernel"][-2] == [0, 1]


def test_depthwise_outputs_belong_to_their_input():
    x = image()
    y = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(conv(x, 2, "first"))
    channels = mapped(x, layers.SeparableConv2D(1, 3, depth_multiplier=3, name="head")(y))
    # channel c of the input makes the outputs 2 c and 2 c + 1
    assert axes_of(channels, "depthwise") == {"kernel": {-2: [0, 1]}, "bias": {-1: [0, 0, 1, 1]}}
    assert axes_of(channels, "head") == {
        "depthwise_kernel": {-2: [0, 0, 1, 1]},
        "pointwise_kernel": {-2: [0] * 6 + [1] * 6, -1: [-1]},
        "bias": {-1: [-1]},
    }


def test_the_size_of_a_reference_ties_nothing():
    x = image()
    a = conv(x, 2, "a")
    y = NearestResize(name="fit")(a, conv(a, 3, "b"))
    assert groups_of(mapped(x, conv(y, 1, "head"))) == {"a": (("a",), [0, 1]), "b": (("b",), [2, 3, 4])}


def test_a_layer_called_twice_ties_what_it_reads():
    x = image()
    norm, shared = layers.BatchNormalization(name="bn"), layers.Conv2D(2, 1, name="shared")
    a = norm(conv(x, 2, "a"))
    b = norm(conv(a, 2, "b"))
    y = layers.Concatenate(name="both")([shared(a), shared(b)])
    channels = mapped(x, conv(y, 1, "head"))
    assert groups_of(channels) == {"a": (("a", "b"), [0, 1]), "shared": (("shared",), [2, 3])}
    assert axes_of(channels, "head")["kernel"][-2] == [2, 3, 2, 3]


@pytest.mark.parametrize("how", ["activation", "layer", "argument", "output"])
def test_channels_that_are_compared_or_returned_stay(how):
    x = image()
    y = conv(x, 3, "first", activation="softmax" if how == "argument" else None)
    if how == "activation":
        y = layers.Activation("softmax", name="softmax")(y)
    elif how == "layer":
        y = layers.Softmax(name="softmax")(y)
    z = conv(y, 2, "head")
    assert mapped(x, [y, z] if how == "output" else z).groups == {}


def test_following_leaves_the_model_as_it_is():
    x = image()
    model = keras.Model(x, conv(conv(x, 2, "first"), 1, "head"))
    config, weights = model.get_config(), model.get_weights()
    map_channels(model)
    assert model.get_config() == config
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), weights, strict=True))


@keras.saving.register_keras_serializable(package="kitsseg_test")
class Unheard(layers.ReLU):
    """A layer that might do anything."""


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (layers.GroupNormalization(2, name="odd"), "no rule for"),
        (Unheard(name="odd"), "this Unheard"),
        (layers.Reshape((8, 4, 8), name="odd"), "this Reshape"),
        (layers.Conv2D(4, 1, groups=2, name="odd"), "in 2 groups"),
        (layers.MaxPooling2D(1, data_format="channels_first", name="odd"), "channels last"),
        (layers.BatchNormalization(axis=1, name="odd"), "along axis 1"),
        (keras.Sequential([keras.Input((8, 8, 4)), layers.ReLU()], name="odd"), "network within"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, layers.Layer) else "",
)
def test_what_cannot_be_followed_is_named(layer, words):
    x = image()
    model = keras.Model(x, conv(layer(conv(x, 4, "first")), 1, "head"))
    with pytest.raises(ValueError, match=f"odd: .*{words}"):
        map_channels(model)


def test_an_operation_without_a_layer_is_named():
    x = image()
    model = keras.Model(x, conv(keras.ops.square(conv(x, 2, "first")), 1, "head"))
    with pytest.raises(ValueError, match="followed through this Square"):
        map_channels(model)


def test_another_kind_of_model_is_refused():
    class Own(keras.Model):
        pass

    for model in (
        keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 1)], name="odd"),
        Own(name="odd"),
    ):
        with pytest.raises(ValueError, match="odd: only .*functional model"):
            map_channels(model)


@pytest.mark.slow
def test_residual_stages_of_resnet34_are_one_group_each():
    channels = map_channels(build_squeeze_unet((64, 64, 3), encoder="resnet34"))
    residual = [g for g in channels.groups.values() if g.name.startswith("encoder") and len(g.producers) > 1]
    # one producer per block, and the stem or the downsampling convolution that the first block's sum starts from
    assert [len(g.producers) for g in residual] == [3 + 1, 4 + 1, 6 + 1, 3 + 1]
    assert [g.size for g in residual] == [64, 128, 256, 512]
    # the last block adds its three last channels to the image
    assert (channels.groups["full_expand"].producers, channels.groups["full_expand"].size) == (
        ("full_expand", "full_conv2"),
        96,
    )
