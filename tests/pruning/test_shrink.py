"""The shrunk network against the masked one, against zeroed kernels, and against the same network built narrow."""

import keras
import numpy as np
import pytest
from keras import layers

from kitsseg.models import (
    AttentionGates,
    SubBlock,
    build_deeplab3d,
    build_enhanced_unet,
    build_squeeze_unet,
    build_unet2d,
    build_wp_unet,
)
from kitsseg.models.enhanced_unet import build_plain_unet
from kitsseg.models.loading import read_network
from kitsseg.models.macs import count_macs
from kitsseg.pruning.channels import map_channels
from kitsseg.pruning.shrink import channel_scores, choose_channels, masked_model, shrink_model

WIDTHS = (4, 6, 8, 10, 10)
BUILDERS = {
    "unet2d": lambda: build_unet2d((16, 16, 2), start_filters=3, n_pools=2, upsampling="nearest"),
    "unet2d-bilinear": lambda: build_unet2d((8, 8, 1), start_filters=3, n_pools=1),
    "unet2d-transposed": lambda: build_unet2d(
        (16, 16, 1),
        start_filters=3,
        n_pools=2,
        upsampling="transposed",
        block=SubBlock(norm_first=True, use_bias=False),
    ),
    "wp_unet": lambda: build_wp_unet((32, 32, 1), filters=WIDTHS),
    "dw_unet": lambda: build_wp_unet((32, 32, 1), variant="dw_unet", filters=WIDTHS),
    "unet": lambda: build_wp_unet((32, 32, 1), variant="unet", filters=WIDTHS),
    "squeezenet": lambda: build_squeeze_unet((34, 40, 3), normalize=True),
    "squeezenet-no-skips": lambda: build_squeeze_unet((32, 32, 1), skips=False),
    "squeezenet-lite": lambda: build_squeeze_unet((34, 40, 3), decoder="lite"),
    "resnet34": lambda: build_squeeze_unet((32, 32, 3), encoder="resnet34"),
    "enhanced_unet": lambda: build_enhanced_unet((32, 32, 1), base=16),
    "enhanced_unet-up1": lambda: build_enhanced_unet(
        (32, 32, 1),
        base=16,
        gates=AttentionGates(third_from="up1"),
        widths="regular",
        deep_supervision=False,
        multiscale=False,
    ),
    "plain_unet": lambda: build_plain_unet((16, 16, 1)),
    "deeplab3d": lambda: build_deeplab3d((8, 8, 8, 1), width_divisor=4, decoder_convs=1),
}
# these take long, or differ little from others in what is tested
LARGE = (
    *("resnet34", "squeezenet", "squeezenet-no-skips", "plain_unet"),
    *("unet", "enhanced_unet-up1", "deeplab3d"),
)
ALL = [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in BUILDERS]
SMALL = ("unet2d", "unet2d-transposed", "wp_unet", "squeezenet-lite", "enhanced_unet-up1", "deeplab3d")


def built(name, seed=0, offsets=True):
    """A network with random weights. Without offsets, a channel with zero kernels stays zero in all later layers."""
    model, rng = BUILDERS[name](), np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif len(weight.shape) == 1:
            weight.assign(rng.normal(0, 0.3, weight.shape) if offsets else np.zeros(weight.shape))
        else:
            weight.assign(rng.normal(0, 1 / np.sqrt(np.prod(weight.shape[:-1])), weight.shape))
    return model


def outputs(model, seed=1):
    shape = (2, *(24 if size is None else size for size in model.input_shape[1:]))
    x = np.random.default_rng(seed).normal(size=shape).astype("float32")
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(x, training=False))]


def some_channels(groups, seed=2):
    """Some channels of each group: none, one, odd numbers, and all but one of every third group."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.choice(
            group.size, group.size - 1 if i % 3 == 0 else rng.integers(group.size), replace=False
        ).tolist()
        for i, (name, group) in enumerate(groups.items())
    }


def assert_same(first, second, tolerance=1e-6):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1)


# scores


def test_scores_are_norms_of_the_kernels_that_produce_a_channel():
    x = keras.Input((4, 4, 1))
    a = layers.Conv2D(2, (1, 2), padding="same", name="a")(x)
    b = layers.SeparableConv2D(2, 1, name="b")(a)
    c = layers.Conv2DTranspose(2, 1, name="c")(b)
    y = layers.Conv2D(1, 1, name="head")(layers.Add(name="sum")([a, c]))
    model = keras.Model(x, y)
    model.get_layer("a").set_weights([np.array([[[[3, 0]], [[4, 2]]]]), np.full(2, 9)])
    model.get_layer("b").set_weights([np.full((1, 1, 2, 1), 7), np.array([[[[5, 0], [12, 1]]]]), np.zeros(2)])
    model.get_layer("c").set_weights([np.array([[[[12, 0], [0, 1]]]]), np.zeros(2)])
    scores = channel_scores(model)
    # b: columns of its pointwise kernel, 5 12 and 0 1. a and c: 3 4 and the row 12 0; 0 2 and the row 0 1
    assert scores.keys() == {"a", "b"}
    np.testing.assert_allclose(scores["b"], [13, 1])
    np.testing.assert_allclose(scores["a"], [13, np.sqrt(5)])


def test_scores_by_batch_norm_add_up_absolute_scales():
    x = keras.Input((4, 4, 1))
    a = layers.Conv2D(2, 1, name="a")(x)
    y = layers.Concatenate()(
        [layers.BatchNormalization(name="n1")(a), layers.BatchNormalization(name="n2")(a)]
    )
    model = keras.Model(x, layers.Conv2D(1, 1, name="head")(y))
    model.get_layer("n1").gamma.assign([-2, 0.5])
    model.get_layer("n2").gamma.assign([1, 0.25])
    np.testing.assert_allclose(channel_scores(model, "batch_norm")["a"], [3, 0.75])


def test_random_scores_depend_on_the_seed_alone_and_remove_as_many_channels():
    model, other = built("wp_unet"), built("wp_unet", seed=1)
    first, again, second = (channel_scores(m, "random", s) for m, s in ((model, 3), (other, 3), (model, 4)))
    for name, values in channel_scores(model).items():
        assert first[name].shape == values.shape
        assert np.all((first[name] > 0) & (first[name] <= 1))
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], second[name])
    removed, ranked = (choose_channels(s, 0.5) for s in (first, channel_scores(model)))
    assert {name: len(gone) for name, gone in removed.items()} == {
        name: len(gone) for name, gone in ranked.items()
    }
    assert removed != ranked
    assert choose_channels(first) == {}  # none counts as zero


def test_scores_that_cannot_be_had_are_refused():
    with pytest.raises(ValueError, match="no batch normalization .*scale.* enc1_conv1, .*magnitude"):
        channel_scores(built("wp_unet"), "batch_norm")
    with pytest.raises(ValueError, match="magnitude, batch_norm, random; got 'taylor'"):
        channel_scores(built("wp_unet"), "taylor")


# choice


def test_the_lowest_scores_go():
    scores = {"a": np.array([5.0, 1, 4, 2, 3]), "b": np.array([1.0]), "c": np.array([2.0, 1])}
    # 0.5 * 5 = 2.5 -> 3 stay; of one channel one stays; 0.5 * 2 = 1
    assert choose_channels(scores, 0.5) == {"a": [1, 3], "c": [1]}
    # 0.1 * 5 = 0.5 -> 1; 0.1 * 2 = 0.2 -> 0, but one always stays
    assert choose_channels(scores, 0.1) == {"a": [1, 2, 3, 4], "c": [1]}
    assert choose_channels(scores, 1) == {}


def test_equal_scores_lose_the_first():
    assert choose_channels({"a": np.ones(4)}, 0.5) == {"a": [0, 1]}


@pytest.mark.parametrize(
    ("size", "keep", "stay"),
    # 0.5 * 40 = 20 = 2.5 * 8 -> 3 * 8; 0.3 * 40 = 12 = 1.5 * 8 -> 2 * 8; 0.2 * 40 = 8; 0.1 * 40 = 0.5 * 8 -> 8;
    # a group below 8 stays whole; 0.9 * 99 = 89.1 = 11.1 * 8 -> 88; 0.99 * 99 = 98.01 = 12.25 * 8 -> 96
    [(40, 0.5, 24), (40, 0.3, 16), (40, 0.2, 8), (40, 0.1, 8), (5, 0.2, 5), (99, 0.9, 88), (99, 0.99, 96)],
)
def test_multiples_are_rounded_halves_up(size, keep, stay):
    removed = choose_channels({"a": np.arange(size, dtype=float)}, keep, multiple=8)
    assert removed.get("a", []) == list(range(size - stay))


def test_without_a_share_the_empty_channels_go():
    scores = {"a": np.array([0, 1.0, 0, 2]), "b": np.zeros(3), "c": np.ones(2)}
    assert choose_channels(scores) == {"a": [0, 2], "b": [0, 1]}  # one of b has to stay
    # with multiples nothing that is not empty goes: 2 -> 4
    assert choose_channels(scores, multiple=4) == {}


@pytest.mark.parametrize("keep", [0, -0.5, 1.01, float("nan")])
def test_a_share_out_of_range_is_refused(keep):
    with pytest.raises(ValueError, match=f"above 0 and up to 1; got {keep}"):
        choose_channels({"a": np.ones(4)}, keep)


@pytest.mark.parametrize("multiple", [0, 2.5])
def test_an_odd_multiple_is_refused(multiple):
    with pytest.raises(ValueError, match=f"whole number from 1 on; got {multiple}"):
        choose_channels({"a": np.ones(4)}, 0.5, multiple)


# the smaller network


@pytest.mark.parametrize("name", ALL)
def test_outputs_equal_the_masked_models_also_after_saving(name, tmp_path):
    """Structured shrink: for every 2D model, and the 3D one."""
    model = built(name)
    before = model.get_weights()
    removed = some_channels(map_channels(model).groups)
    small, masked = shrink_model(model, removed), masked_model(model, removed)
    assert small.count_params() < masked.count_params() == model.count_params()
    assert_same(outputs(small), outputs(masked))
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    assert small.output_shape == model.output_shape
    small.save(tmp_path / "small.keras")
    assert_same(outputs(read_network(tmp_path / "small.keras")), outputs(small), 0)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))


@pytest.mark.parametrize("name", [*SMALL, pytest.param("resnet34", marks=pytest.mark.slow)])
def test_outputs_equal_those_with_zeroed_filters(name):
    """Without biases, shifts and means a filter of zeros is enough to silence a channel, wherever it goes."""
    model = built(name, offsets=False)
    groups = map_channels(model).groups
    removed = some_channels(groups, seed=3)
    small = shrink_model(model, removed)
    for group, indices in removed.items():
        for producer in groups[group].producers:
            layer = model.get_layer(producer)
            filters = indices
            if producer.endswith("_expand"):  # four filters make one channel of a pixel shuffle
                filters = [4 * i + k for i in indices for k in range(4)]
            transposed = isinstance(layer, layers.Conv2DTranspose)
            kernel = layer.pointwise_kernel if hasattr(layer, "pointwise_kernel") else layer.kernel
            values = np.array(kernel)
            (np.swapaxes(values, -1, -2) if transposed else values)[..., filters] = 0
            kernel.assign(values)
    assert_same(outputs(small), outputs(model))


def test_the_masked_weights_are_the_ones_that_are_cut():
    x = keras.Input((4, 4, 1))
    y = layers.Conv2D(3, 1, name="first", activation="sigmoid")(x)  # sigmoid(0) is 0.5: no layer may read it
    y = layers.BatchNormalization(name="bn")(y)
    model = keras.Model(x, layers.Conv2D(1, 1, name="head")(y))
    for weight in model.weights:
        weight.assign(np.arange(1, 1 + np.prod(weight.shape)).reshape(weight.shape))
    masked, small = masked_model(model, {"first": [1]}), shrink_model(model, {"first": [1]})
    for wide, narrow in ((masked, [1, 0, 3]), (small, [1, 3])):
        assert [w.ravel().tolist() for w in wide.get_layer("first").get_weights()] == [narrow] * 2
        assert [w.ravel().tolist() for w in wide.get_layer("bn").get_weights()] == [narrow] * 4
        assert [w.ravel().tolist() for w in wide.get_layer("head").get_weights()] == [narrow, [1]]
    assert_same(outputs(small), outputs(masked))


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        (
            lambda: build_unet2d((16, 16, 1), start_filters=6, n_pools=2),
            lambda: build_unet2d((16, 16, 1), start_filters=3, n_pools=2),
        ),
        *(
            (
                lambda variant=variant: build_wp_unet(
                    (32, 32, 1), variant=variant, filters=(4, 8, 12, 16, 20)
                ),
                lambda variant=variant: build_wp_unet((32, 32, 1), variant=variant, filters=(2, 4, 6, 8, 10)),
            )
            for variant in ("wp_unet", "dw_unet", "unet")
        ),
        (
            lambda: build_enhanced_unet((32, 32, 1), base=8, gates=None),
            lambda: build_enhanced_unet((32, 32, 1), base=16, gates=None),
        ),
    ],
    ids=["unet2d", "wp_unet", "dw_unet", "unet", "enhanced_unet"],
)
def test_half_of_every_group_is_the_network_built_with_half_the_filters(wide, narrow):
    model, expected = wide(), narrow()
    small = shrink_model(model, choose_channels(channel_scores(model), 0.5))
    assert {w.path: tuple(w.shape) for w in small.weights} == {
        w.path: tuple(w.shape) for w in expected.weights
    }
    assert count_macs(small) == count_macs(expected)
    small.set_weights(expected.get_weights())
    assert_same(outputs(small), outputs(expected), 0)


def test_sizes_that_are_unknown_stay_unknown():
    model = build_squeeze_unet((None, None, 3), decoder="lite")
    small = shrink_model(model, choose_channels(channel_scores(model), 0.25, multiple=8))
    assert small.input_shape == (None, None, None, 3)
    x = np.zeros((1, 33, 47, 3), "float32")
    assert small(x).shape == (1, 33, 47, 3)


def test_precision_names_and_frozen_layers_are_kept():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build_wp_unet((16, 16, 1), filters=WIDTHS)
        model = keras.Model(model.input, model.output, name="mine")
    finally:
        keras.config.set_dtype_policy("float32")
    model.get_layer("enc1_bn").trainable = False
    small = shrink_model(model, {"enc0_conv1": [0]})
    assert small.name == "mine"
    policies = [[layer.dtype_policy.name for layer in m.layers if layer.weights] for m in (small, model)]
    assert policies[0] == policies[1]
    assert set(policies[0]) == {"mixed_float16", "float32"}
    assert [layer.trainable for layer in small.layers] == [layer.trainable for layer in model.layers]
    assert [w.path for w in small.trainable_weights] == [w.path for w in model.trainable_weights]


def test_the_smaller_network_learns():
    model = build_unet2d((8, 8, 1), n_pools=1, start_filters=4)
    small = shrink_model(model, choose_channels(channel_scores(model), 0.5))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 8, 8, 1)).astype("float32")
    y = (x[..., 0] > 0).astype("int32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    small.compile(keras.optimizers.Adam(1e-2), loss, jit_compile=False)
    losses = small.fit(x, y, batch_size=4, epochs=16, verbose=0, shuffle=False).history["loss"]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        ({"enc9_conv1": [0]}, "no group of channels .*'enc9_conv1'; .* enc0_conv1, "),
        ({"logits": [0]}, "no group of channels .*'logits'"),
        ({"enc0_conv1": [4]}, "enc0_conv1 go from 0 to 3; got 4"),
        ({"enc0_conv1": [-1]}, "enc0_conv1 go from 0 to 3; got -1"),
        ({"enc0_conv1": [0.5]}, "enc0_conv1 go from 0 to 3; got 0.5"),
        ({"enc0_conv1": [0, 1, 2, 3]}, "all 4 channels of enc0_conv1 would go"),
    ],
)
@pytest.mark.parametrize("function", [shrink_model, masked_model])
def test_a_choice_that_does_not_fit_is_refused(function, removed, words):
    model = BUILDERS["wp_unet"]()
    with pytest.raises(ValueError, match=words):
        function(model, removed)


def test_an_index_given_twice_goes_once():
    model = built("wp_unet")
    assert shrink_model(model, {"enc0_conv1": [1, 1, 1, 2]}).get_layer("enc0_conv1").filters == 2


def test_nothing_removed_is_a_copy():
    model = built("dw_unet")
    assert_same(outputs(shrink_model(model, {})), outputs(model), 0)
