"""Enhanced attention U-Net: parameter counts of every variant, output sizes, attention gate, ablations."""

import math

import keras
import numpy as np
import pytest

from kitsseg.models.enhanced_unet import (
    AttentionGates,
    _attention_gate,
    build_enhanced_unet,
    build_plain_unet,
    keep_final_head,
)

BASE_NETWORK = {"gates": AttentionGates(top=False, third_from="up1")}


def count_trainable(model):
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


@pytest.mark.parametrize(
    ("channels", "options", "total", "trainable"),
    [
        (1, {}, 5_687_504, 5_680_016),
        (3, {**BASE_NETWORK, "n_classes": 1}, 5_647_143, 5_640_103),
        # the sigmoid of the base network has no parameters
        (1, {**BASE_NETWORK, "n_classes": 1}, 5_638_503, 5_631_463),
        (1, BASE_NETWORK, 5_639_471, 5_632_431),
        (1, {"gates": AttentionGates(third_from="up1")}, 5_656_304, 5_649_008),
        (1, {"widths": "regular"}, 10_990_928, 10_981_264),
        (1, {"widths": "regular", "gates": AttentionGates(top=False)}, 10_966_255, 10_956_911),
        (1, {**BASE_NETWORK, "n_classes": 1, "multiscale": False}, 5_302_247, 5_295_207),
    ],
    ids=str,
)
def test_parameter_counts(channels, options, total, trainable):
    model = build_enhanced_unet((32, 32, channels), **options)
    assert (model.count_params(), count_trainable(model)) == (total, trainable)


def test_plain_unet_baseline():
    model = build_plain_unet((32, 32, 1))
    assert (model.count_params(), count_trainable(model)) == (7_726_433, 7_724_513)
    assert model.output_shape == (None, 32, 32, 1)


def test_halved_widths():
    assert build_enhanced_unet((32, 32, 1), base=2).count_params() == 1_428_400


def test_counts_of_the_parts():
    # gate: theta 4 Cx I + I, phi Cg I + I, phi_up 9 I I + I, psi I + 1, conv Cx Cx + Cx, normalization 4 Cx
    model = build_enhanced_unet((16, 16, 1))
    gates = {"attn1": (64, 512, 128), "attn2": (128, 96, 64), "attn3": (64, 192, 32), "attn4": (32, 96, 16)}
    for name, (cx, cg, i) in gates.items():
        expected = 4 * cx * i + i + cg * i + i + 9 * i * i + i + i + 1 + cx * cx + cx + 4 * cx
        found = sum(layer.count_params() for layer in model.layers if layer.name.startswith(f"{name}_"))
        assert found == expected
    # head 1, on up1 of 96 channels: 9*96*256+256 + 9*256*256+256 + 2*4*256
    assert sum(layer.count_params() for layer in model.layers if layer.name.startswith("head1_")) == 813_568
    assert model.get_layer("pred1").count_params() == 771  # 3 * (256 + 1)


@pytest.mark.parametrize("source", ["up1", "up2"])
def test_output_sizes(source):
    model = build_enhanced_unet((None, None, 1), base=16, gates=AttentionGates(third_from=source))
    assert model.output_names == ["pred1", "pred2", "pred3", "final"]
    for rows, columns in [(256, 256), (512, 512), (16, 48)]:
        outputs = model(np.zeros((1, rows, columns, 1), "float32"))
        expected = [(1, rows // step, columns // step, 3) for step in (8, 4, 2, 1)]
        assert [tuple(output.shape) for output in outputs] == expected


def test_gating_signals():
    for third_from, strides in [("up2", (1, 1)), ("up1", (2, 2))]:
        model = build_enhanced_unet((32, 32, 1), base=16, gates=AttentionGates(third_from=third_from))
        for gate, source in [("g1", "center_2_act"), ("g2", "up1"), ("g3", third_from), ("g4", "up3")]:
            assert model.get_layer(f"{gate}_conv").input is model.get_layer(source).output
        assert model.get_layer("attn3_phi_up").strides == strides


def test_attention_gate_matches_arithmetic():
    skip, signal = keras.Input((2, 2, 1)), keras.Input((1, 1, 1))
    model = keras.Model([skip, signal], _attention_gate(skip, signal, inner=1, stride=1, name="gate"))
    tap = np.full((3, 3, 1, 1), 7.0)  # only its middle meets the one position of the signal
    tap[1, 1] = 2.0
    weights = {
        "theta": [np.full((2, 2, 1, 1), 0.1), [0.0]],
        "phi": [[[[[0.5]]]], [0.25]],
        "phi_up": [tap, [0.0]],
        "psi": [[[[[1.0]]]], [-2.5]],
        "conv": [[[[[3.0]]]], [1.0]],
    }
    for name, values in weights.items():
        model.get_layer(f"gate_{name}").set_weights([np.array(value) for value in values])
    found = model([np.array([[[[1.0], [2.0]], [[3.0], [4.0]]]]), np.array([[[[1.0]]]])])
    # theta = 0.1 (1 + 2 + 3 + 4) = 1; phi = 0.5 + 0.25 = 0.75, times 2 = 1.5
    # psi = sigmoid(1 + 1.5 - 2.5) = 0.5; conv = 3 * 0.5 * skip + 1
    # normalization before training: divided by sqrt(1 + 0.001)
    expected = (1.5 * np.array([[1, 2], [3, 4]]) + 1) / math.sqrt(1.001)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found)[0, ..., 0], expected, rtol=1e-5)


def train_one_step(model):
    """One step of gradient descent on every output; returns the largest change of a weight."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 32, 32, 1)).astype("float32")
    labels = rng.integers(0, 3, (2, 32, 32))
    targets = [labels[:, :: 32 // output.shape[1], :: 32 // output.shape[2]] for output in model.outputs]
    losses = [keras.losses.SparseCategoricalCrossentropy(from_logits=True) for _ in targets]
    model.compile(
        keras.optimizers.SGD(0.1),
        losses if len(losses) > 1 else losses[0],
        run_eagerly=keras.backend.backend() != "jax",  # one step does not repay tracing
    )
    before = model.get_weights()
    model.train_on_batch(image, targets if len(targets) > 1 else targets[0])
    return max(np.abs(new - old).max() for new, old in zip(model.get_weights(), before))


@pytest.mark.parametrize(
    ("option", "left_out"),
    [
        ({"deep_supervision": False}, "pred"),
        ({"multiscale": False}, "scale"),
        ({"gates": None}, "attn"),
        ({"gates": AttentionGates(top=False)}, "attn4"),
    ],
    ids=str,
)
def test_ablations_train_one_step(option, left_out):
    model = build_enhanced_unet((32, 32, 1), base=16, **option)
    names = [layer.name for layer in model.layers]
    assert not [name for name in names if name.startswith(left_out)]
    assert train_one_step(model) > 0


def test_keep_final_head():
    model = build_enhanced_unet((32, 32, 1), base=16)
    final = keep_final_head(model)
    image = np.random.default_rng(0).normal(size=(1, 32, 32, 1)).astype("float32")
    found, expected = (keras.ops.convert_to_numpy(y) for y in (final(image), model(image)[-1]))
    np.testing.assert_array_equal(found, expected)
    alone = build_enhanced_unet((32, 32, 1), base=16, deep_supervision=False)
    assert [layer.name for layer in final.layers] == [layer.name for layer in alone.layers]
    assert final.count_params() == alone.count_params()
    assert keep_final_head(alone).output_shape == (None, 32, 32, 3)


@pytest.mark.parametrize("build", [build_enhanced_unet, build_plain_unet])
def test_wrong_size_is_refused(build):
    with pytest.raises(ValueError, match=r"rows and columns .*multiples of 16; got \(256, 250, 1\)"):
        build((256, 250, 1))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="widths .*reference, regular; got 'wide'"):
        build_enhanced_unet(widths="wide")
    with pytest.raises(ValueError, match="third_from must be 'up1' or 'up2'; got 'up3'"):
        AttentionGates(third_from="up3")
    with pytest.raises(ValueError, match=r"base divides all widths .* got 3"):
        build_enhanced_unet(base=3)


@pytest.mark.slow
def test_the_loss_of_one_batch_falls():
    """All widths divided by 4, 64 x 64, SGD 0.01 with momentum 0.9, one synthetic batch of seven, 40 steps."""
    from kitsseg.losses import HEAD_WEIGHTS, FocalTversky, deep_supervision_targets

    rng = np.random.default_rng(0)
    labels = np.zeros((7, 64, 64), np.int32)
    labels[:, 16:40, 10:30] = 1
    labels[:, 20:30, 14:24] = 2
    images = (labels + rng.normal(0, 0.3, labels.shape)).astype(np.float32)[..., None]
    keras.utils.set_random_seed(0)
    model = build_enhanced_unet((64, 64, 1), base=4)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=1.0),
        [FocalTversky() for _ in HEAD_WEIGHTS],
        loss_weights=list(HEAD_WEIGHTS),
        jit_compile=False,
    )
    targets = deep_supervision_targets(labels)
    losses = [float(model.train_on_batch(images, targets, return_dict=True)["loss"]) for _ in range(40)]
    assert losses[0] > 0.7
    assert min(losses[-5:]) < losses[0] - 0.1
