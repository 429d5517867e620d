import keras
import numpy as np
import pytest
from keras import ops

from kitsseg import recipes
from kitsseg.models.macs import count_macs
from kitsseg.models.unet3d import build_unet3d

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def reference():
    return build_unet3d()


# a block of a to b filters: 27 a b weights and 2 b of its normalization; a transposed convolution: 8 a b + b
@pytest.mark.parametrize(
    ("prefix", "parameters", "macs"),
    [
        ("down0", 28_640, 128**3 * 27 * (1 * 32 + 32 * 32)),
        ("down1", 166_144, 64**3 * 27 * (32 * 64 + 64 * 64)),
        ("down2", 664_064, 32**3 * 27 * (64 * 128 + 128 * 128)),
        ("down3", 2_655_232, 16**3 * 27 * (128 * 256 + 256 * 256)),
        ("down4", 4_977_920, 8**3 * 27 * (256 * 320 + 320 * 320)),
        ("bottom", 5_530_880, 4**3 * 27 * 2 * 320 * 320),
        # each voxel out of a transposed convolution of stride 2 comes from one voxel
        ("up4", 819_520, 8**3 * 320 * 320),
        ("merge4", 8_295_680, 8**3 * 27 * (640 * 320 + 320 * 320)),
        ("up3", 655_616, 16**3 * 320 * 256),
        ("merge3", 5_309_440, 16**3 * 27 * (512 * 256 + 256 * 256)),
        ("up2", 262_272, 32**3 * 256 * 128),
        ("merge2", 1_327_616, 32**3 * 27 * (256 * 128 + 128 * 128)),
        ("up1", 65_600, 64**3 * 128 * 64),
        ("merge1", 332_032, 64**3 * 27 * (128 * 64 + 64 * 64)),
        ("up0", 16_416, 128**3 * 64 * 32),
        ("merge0", 83_072, 128**3 * 27 * (64 * 32 + 32 * 32)),
        ("logits", 99, 128**3 * 32 * 3),
    ],
)
def test_parameters_and_multiply_adds_of_each_level(reference, prefix, parameters, macs):
    inside = [layer for layer in reference.layers if layer.name.split("_")[0] == prefix]
    assert sum(layer.count_params() for layer in inside) == parameters
    voxels = {layer.name: np.prod(layer.output.shape[1:-1]) for layer in inside}
    weights = {
        layer.name: sum(np.prod(w.shape) for w in layer.weights if len(w.shape) > 1) for layer in inside
    }
    # a transposed convolution has 8 weights for each pair of filters; each output voxel uses one of the 8
    share = 8 if prefix.startswith("up") else 1
    assert sum(voxels[name] * weights[name] // share for name in voxels) == macs


def test_parameters_and_multiply_adds_of_the_whole(reference):
    assert reference.count_params() == 31_190_243
    assert sum(np.prod(w.shape) for w in reference.trainable_weights) == 31_190_243
    assert count_macs(reference) == 477_298_688_000
    assert reference.output_shape == (None, 128, 128, 128, 3)
    assert reference.get_layer("bottom_2_relu").output.shape == (None, 4, 4, 4, 320)


def conv_by_hand(x, kernel, stride=1):
    """3x3x3 convolution of (slices, rows, columns, channels), one voxel of zeros on every side, as in PyTorch."""
    padded = np.pad(x, [(1, 1)] * 3 + [(0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3), axis=(0, 1, 2))
    return np.einsum("srcixyz,xyzio->srco", windows[::stride, ::stride, ::stride], kernel)


def network_by_hand(model, x, n):
    """The network in NumPy, float64, from the published definition; ``n`` levels."""

    def weights(name):
        return [value.astype(float) for value in model.get_layer(name).get_weights()]

    def level(x, name, stride=1):
        for i in (1, 2):
            x = conv_by_hand(x, *weights(f"{name}_{i}_conv"), stride if i == 1 else 1)
            scale, shift = weights(f"{name}_{i}_norm")
            mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
            x = np.maximum((x - mean) / np.sqrt(variance + 1e-5) * scale + shift, 0)
        return x

    x = level(x.astype(float), "down0")
    skips = [x]
    for i in range(1, n):
        skips.append(level(skips[-1], f"down{i}", 2))
    x = level(skips[-1], "bottom", 2)
    for i in reversed(range(n)):
        kernel, bias = weights(f"up{i}")
        # voxel (2a + x, 2b + y, 2c + z) comes from voxel (a, b, c) by the kernel's (x, y, z)
        pairs = np.einsum("abci,xyzoi->axbyczo", x, kernel)
        x = pairs.reshape(*(2 * size for size in x.shape[:3]), -1) + bias
        x = level(np.concatenate([x, skips[i]], axis=-1), f"merge{i}")
    kernel, bias = weights("logits")
    return x @ kernel[0, 0, 0] + bias


def test_equals_the_published_definition_computed_by_hand():
    model = build_unet3d((8, 12, 16, 1), filters=(2, 3))
    model.set_weights([RNG.normal(size=w.shape).astype("float32") for w in model.get_weights()])
    x = RNG.normal(size=(2, 8, 12, 16, 1)).astype("float32")
    found = ops.convert_to_numpy(model(x))
    for image, logits in zip(x, found, strict=True):
        np.testing.assert_allclose(logits, network_by_hand(model, image, 2), atol=2e-4, rtol=2e-4)


def test_initial_kernels_are_uniform_within_the_root_of_the_fan_in():
    keras.utils.set_random_seed(0)
    model = build_unet3d((8, 8, 8, 1), n_classes=200, filters=(32, 48))
    for name, fan_in in (("down1_2_conv", 27 * 48), ("up1", 8 * 48), ("logits", 32)):
        kernel = ops.convert_to_numpy(model.get_layer(name).kernel)
        bound = 1 / np.sqrt(fan_in)
        assert np.abs(kernel).max() <= bound
        # variance bound^2 / 3; the smallest of the three has 6,400 numbers, 1.1 % (one standard deviation)
        assert kernel.var() == pytest.approx(bound**2 / 3, rel=0.05)


def test_unknown_sizes_give_what_known_sizes_give():
    known = build_unet3d((8, 12, 16, 1), filters=(2, 3))
    unknown = build_unet3d((None, None, None, 1), filters=(2, 3))
    unknown.set_weights(known.get_weights())
    x = RNG.normal(size=(2, 8, 12, 16, 1)).astype("float32")
    np.testing.assert_allclose(
        unknown.predict(x, batch_size=1, verbose=0), ops.convert_to_numpy(known(x)), atol=1e-4
    )


def test_one_patch_does_not_change_another_of_the_batch():
    """Normalized by the instance, not by the batch."""
    model = build_unet3d((8, 8, 8, 1), filters=(2, 3))
    x = RNG.normal(size=(3, 8, 8, 8, 1)).astype("float32")
    together, alone = ops.convert_to_numpy(model(x)), ops.convert_to_numpy(model(x[:1]))
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((128, 96, 100, 1), r"multiples of 32; got \(128, 96, 100, 1\)"),
        ((128, 128, 1), r"must be \(slices, rows, columns, channels\); got \(128, 128, 1\)"),
        ((32, 32, 32, 1), r"at least 64; got \(32, 32, 32, 1\)\. .*one voxel"),
        ((0, 64, 64, 1), "multiples of 32"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(ValueError, match=f"unet3d: .*{message}"):
        build_unet3d(shape)


def test_the_recipe_trains_as_the_code_does_with_twice_its_loss_and_half_its_rate():
    """The code's loss is (cross-entropy + mean over patches, kidney and tumor of 1 - Dice) / 2."""
    recipe = recipes.get("unet3d")
    logits = RNG.normal(size=(2, 4, 4, 4, 3))
    labels = RNG.integers(3, size=(2, 4, 4, 4))
    labels[1][labels[1] == 2] = 0  # a patch without tumor
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    truth = np.eye(3)[labels]
    entropy = -np.log((p * truth).sum(-1)).mean()
    both, sums = (a.sum((1, 2, 3))[:, 1:] for a in (p * truth, p + truth))
    code = (entropy + np.mean(1 - (2 * both + 1e-6) / (sums + 1e-6))) / 2
    found = recipe.build_loss(**recipe.loss)(labels.astype("int32"), logits.astype("float32"))
    assert float(found) == pytest.approx(2 * code, rel=1e-5)
    assert [phase.learning_rate for phase in recipe.phases] == [0.8 / 2 / 2, 0.8 / 2]


def test_the_optimizer_is_the_codes():
    """PyTorch: v = 0.9 v + g, w = w - rate (g + 0.9 v); here for w's own gradients 1, 2 and 4."""
    optimizer = recipes.get("unet3d").build_optimizer(recipes.get("unet3d").phases[1])
    weight = keras.Variable([0.0])
    expected, v = 0.0, 0.0
    for gradient in (1.0, 2.0, 4.0):
        optimizer.apply([ops.convert_to_tensor([gradient])], [weight])
        v = 0.9 * v + gradient
        expected -= 0.4 * (gradient + 0.9 * v)
        assert float(weight.value[0]) == pytest.approx(expected, rel=1e-6)
