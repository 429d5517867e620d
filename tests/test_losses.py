"""Losses against the arithmetic of the papers, an independent NumPy version, and their bad cases.

The same tests run on TensorFlow and on JAX (``KERAS_BACKEND``).
"""

import keras
import numpy as np
import pytest
from keras import ops

from kitsseg import losses
from kitsseg.losses import (
    HEAD_STRIDES,
    HEAD_WEIGHTS,
    CrossEntropySoftDice,
    FocalTversky,
    Tversky,
    TverskyFocal,
    deep_supervision_targets,
)

# one image of four pixels; softmax rows 0.786986/0.106507/0.106507; 0.422319/0.422319/0.155362;
# 0.090031/0.665241/0.244728; 0.155362/0.422319/0.422319
LABELS = np.array([[0, 0, 1, 2]])
LOGITS = np.array([[[2, 0, 0], [1, 1, 0], [0, 2, 1], [0, 1, 1]]], "float32")
LABELS2 = np.concatenate([LABELS, np.zeros((1, 4), int)])
LOGITS2 = np.concatenate([LOGITS, np.array([[[3, 0, 0], [2, 0, 0], [1, 0, 0], [0, 0, 0]]], "float32")])


def wp_unet_loss(smooth=1.0, **kwargs):
    """The loss of WP-UNet, eq. 1: CE plus the Dice losses of kidney and tumor."""
    return CrossEntropySoftDice(smooth, include_background=False, class_reduction="sum", **kwargs)


EVERY_LOSS = [
    CrossEntropySoftDice,
    wp_unet_loss,
    FocalTversky,
    Tversky,
    TverskyFocal,
    lambda **kwargs: CrossEntropySoftDice(activation="sigmoid", **kwargs),
]
IDS = ["ce_dice", "wp_unet", "focal_tversky", "tversky", "tversky_focal", "sigmoid"]
every_loss = pytest.mark.parametrize("make", EVERY_LOSS, ids=IDS)


def close(value, expected, atol=1e-6):
    np.testing.assert_allclose(ops.convert_to_numpy(value), expected, rtol=0, atol=atol)


def gradient(loss, labels, logits):
    """d loss / d logits on the backend in use."""
    if keras.backend.backend() == "jax":
        import jax

        return np.asarray(jax.grad(lambda z: loss(labels, z))(np.asarray(logits)))
    import tensorflow as tf

    z = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(labels, z)
    return tape.gradient(value, z).numpy()


def head_for(loss, logits):
    """A sigmoid head has no background channel."""
    return logits if loss.activation == "softmax" else logits[..., 1:]


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numpy_counts(labels, p):
    """TP, FN, FP per class in float64, with loops: shares nothing with the package."""
    counts = np.zeros((3, p.shape[-1]))
    for c in range(p.shape[-1]):
        for label, probability in zip(labels.ravel(), p[..., c].ravel()):
            if label == c:
                counts[0, c] += probability
                counts[1, c] += 1 - probability
            else:
                counts[2, c] += probability
    return counts


# --- 2D U-Net, lines 2 to 4 -------------------------------------------------------------------------


def test_unet2d_one_sample():
    # CE 0.592785; D = 0.700094, 0.508521, 0.437885, mean 0.548833
    close(CrossEntropySoftDice()(LABELS, LOGITS), 0.592785 + 1 - 0.548833, 2e-6)
    close(CrossEntropySoftDice()(LABELS, LOGITS), 1.043952)
    close(CrossEntropySoftDice(include_background=False)(LABELS, LOGITS), 0.592785 + 1 - 0.473203, 2e-6)
    close(CrossEntropySoftDice(smooth=1.0)(LABELS, LOGITS), 0.592785 + 1 - 0.680547, 2e-6)


def test_unet2d_dice_by_hand():
    # class 0: sum p g = 0.786986 + 0.422319, sum p = 1.454698, sum g = 2
    #   D = (2 * 1.209305 + 1) / (1.454698 + 2 + 1) = 0.767417; class 1: 2.330482/3.616386; class 2: ...
    p = softmax(LOGITS.astype("float64"))[0]
    d0 = (2 * (p[0, 0] + p[1, 0]) + 1) / (p[:, 0].sum() + 2 + 1)
    d1 = (2 * p[2, 1] + 1) / (p[:, 1].sum() + 1 + 1)
    d2 = (2 * p[3, 2] + 1) / (p[:, 2].sum() + 1 + 1)
    np.testing.assert_allclose([d0, d1, d2], [0.767417, 0.644423, 0.629802], atol=1e-6)
    ce = -np.log([p[0, 0], p[1, 0], p[2, 1], p[3, 2]]).mean()
    close(CrossEntropySoftDice(smooth=1.0)(LABELS, LOGITS), ce + 1 - (d0 + d1 + d2) / 3)


def test_unet2d_batch_sums_are_not_means_of_samples():
    # CE 0.544458; batch D = 0.758443, 0.401542, 0.321650, mean 0.493878; per sample mean 0.405914
    close(CrossEntropySoftDice()(LABELS2, LOGITS2), 1.050580)
    per_sample = CrossEntropySoftDice(per_sample=True)
    close(per_sample(LABELS2, LOGITS2), 0.544458 + 1 - 0.405914, 2e-6)
    singles = [float(CrossEntropySoftDice()(LABELS2[i : i + 1], LOGITS2[i : i + 1])) for i in (0, 1)]
    close(per_sample.call(ops.convert_to_tensor(LABELS2), ops.convert_to_tensor(LOGITS2)), singles)
    # sample weights 3 and 1: (3 a + b) / 2, as Keras divides by the batch size
    close(per_sample(LABELS2, LOGITS2, np.array([3.0, 1.0])), (3 * singles[0] + singles[1]) / 2)


@every_loss
def test_unet2d_label_shapes(make):
    loss = make()
    logits = head_for(loss, LOGITS2.reshape(2, 2, 2, 3))
    labels = LABELS2.reshape(2, 2, 2)
    expected = float(loss(labels, logits))
    close(loss(labels[..., None], logits), expected, 0)
    close(loss(np.eye(3)[labels], logits), expected, 0)
    close(loss(labels.astype("uint8"), logits), expected, 0)


@every_loss
def test_unet2d_float16_logits(make):
    loss = make()
    logits = head_for(loss, np.random.default_rng(0).normal(0, 3, (2, 8, 8, 3)).astype("float32"))
    labels = np.random.default_rng(1).integers(0, 3, (2, 8, 8))
    close(loss(labels, logits.astype("float16")), float(loss(labels, logits)), 1e-3)


@every_loss
@pytest.mark.parametrize("sign", [1, -1], ids=["right", "wrong"])
def test_unet2d_extreme_logits(make, sign):
    loss = make()
    logits = head_for(loss, sign * np.where(np.eye(3)[LABELS2] == 1, 1e4, -1e4).astype("float32"))
    value, slope = float(loss(LABELS2, logits)), gradient(loss, LABELS2, logits)
    assert np.isfinite(value) and np.isfinite(slope).all()
    if sign == 1:  # all right: no cost but the floor of the focal Tversky
        assert 0 <= value <= 3.2e-5


# --- WP-UNet -----------------------------------------------------------------------------------------

WP_LABELS = np.array([[[1, 2], [0, 0]]])
WP_P = np.array([[[[0.2, 0.7, 0.1], [0.1, 0.3, 0.6]], [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1]]]])
WP_LOGITS = np.log(WP_P).astype("float32")  # softmax(log p) is p


def test_wp_unet_loss_by_hand():
    # CE = -(log 0.7 + log 0.6 + log 0.8 + log 0.6) / 4 = 0.4003674
    # kidney: sum y p 0.7, sum y 1, sum p 1.4 -> 1 - 2.4 / 3.4 = 0.2941176
    # tumor:  sum y p 0.6, sum y 1, sum p 0.9 -> 1 - 2.2 / 2.9 = 0.2413793
    close(wp_unet_loss()(WP_LABELS, WP_LOGITS), 0.4003674 + 0.2941176 + 0.2413793)
    close(wp_unet_loss()(WP_LABELS, WP_LOGITS), 0.9358644)
    # without smoothing: 1 - 1.4 / 2.4 and 1 - 1.2 / 1.9
    close(wp_unet_loss(1e-9)(WP_LABELS, WP_LOGITS), 0.4003674 + 0.4166667 + 0.3684211)
    close(wp_unet_loss(1e-5)(WP_LABELS, WP_LOGITS), 1.1854515)


def test_wp_unet_absent_class():
    # four background pixels, p_kidney = p_tumor = 0.01: each Dice loss 1 - 1 / (0.04 + 1) = 0.0384615
    p = np.broadcast_to([0.98, 0.01, 0.01], (1, 2, 2, 3))
    labels = np.zeros((1, 2, 2), int)
    close(wp_unet_loss()(labels, np.log(p).astype("float32")), -np.log(0.98) + 2 * 0.0384615)
    # 1 - 1e-6 / (0.04 + 1e-6) = 0.999975 without the smoothing
    close(wp_unet_loss(1e-6)(labels, np.log(p).astype("float32")), -np.log(0.98) + 2 * 0.999975)


def test_wp_unet_sigmoid_head_takes_mean_binary_cross_entropy():
    # two pixels, channels (kidney, tumor), labels kidney and background; p = (.8, .1), (.3, .2)
    # BCE = -(log .8 + log .9 + log .7 + log .8) / 4
    # kidney 1 - (2 * .8 + 1) / (1 + 1.1 + 1), tumor 1 - 1 / (.3 + 1)
    p = np.array([[[0.8, 0.1], [0.3, 0.2]]])
    expected = -np.log([0.8, 0.9, 0.7, 0.8]).mean() + (1 - 2.6 / 3.1) + (1 - 1 / 1.3)
    logits = np.log(p / (1 - p)).astype("float32")
    close(wp_unet_loss(activation="sigmoid")(np.array([[1, 0]]), logits), expected)


def test_sigmoid_regions_count_tumor_as_kidney_too():
    # one tumor pixel, p = (.8, .6): as regions both channels are targets
    logits = np.log(np.array([[[0.8, 0.6]]]) / np.array([[[0.2, 0.4]]])).astype("float32")
    labels = np.array([[2]])
    regions = CrossEntropySoftDice(smooth=1.0, activation="sigmoid", regions=True)
    exclusive = CrossEntropySoftDice(smooth=1.0, activation="sigmoid")
    tumor = 1 - 2.2 / 2.6
    close(regions(labels, logits), -np.log([0.8, 0.6]).mean() + ((1 - 2.6 / 2.8) + tumor) / 2)
    close(exclusive(labels, logits), -np.log([0.2, 0.6]).mean() + ((1 - 1 / 1.8) + tumor) / 2)


def test_a_single_channel_for_the_tumor_takes_label_2_alone():
    # three pixels, p = .2, .7, .6, labels background, kidney, tumor: targets 0, 0, 1
    # BCE = -(log .8 + log .3 + log .6) / 3; D = (2 * .6 + 1) / (1.5 + 1 + 1)
    p = np.array([[[0.2], [0.7], [0.6]]])
    loss = CrossEntropySoftDice(smooth=1.0, activation="sigmoid", tumor_only=True)
    expected = -np.log([0.8, 0.3, 0.6]).mean() + 1 - 2.2 / 3.5
    close(loss(np.array([[0, 1, 2]]), np.log(p / (1 - p)).astype("float32")), expected)


# --- SqueezeNet U-Net: the loss that Keras has ---------------------------------------------------


def test_squeeze_unet_loss_is_keras_cross_entropy():
    # (1,0,0) with label 0: log(e + 2) - 1 = 0.551445; (0,2,0) with label 2: log(e^2 + 2) = 2.239545
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    logits = np.array([[[[1, 0, 0], [0, 2, 0]]]], "float32")
    labels = np.array([[[0, 2]]])
    expected = (np.log(np.e + 2) - 1 + np.log(np.e**2 + 2)) / 2
    close(expected, 1.3955, 5e-5)
    close(loss(labels, logits), expected)
    close(loss(labels[..., None], logits), expected)
    close(loss(labels, logits.astype("float16")), 1.3955, 1e-3)
    # the mean over all pixels, also with two images of different difficulty: the cross entropy of the 2D U-Net
    close(loss(LABELS2, LOGITS2), 0.544458)


# --- Enhanced attention U-Net, lines 3 to 6 ---------------------------------------------------------

BINARY_P = np.array([[0.8, 0.4, 0.3, 0.1]])
BINARY_LOGITS = np.log(BINARY_P / (1 - BINARY_P)).astype("float32")[..., None]
BINARY_LABELS = np.array([[1, 1, 0, 0]])


def test_enhanced_unet_binary():
    # TP 1.2, FN 0.8, FP 0.4: TI = 2.2 / (1.2 + 0.56 + 0.12 + 1) = 0.763889
    binary = {"activation": "sigmoid"}
    close(Tversky(**binary)(BINARY_LABELS, BINARY_LOGITS), 1 - 2.2 / 2.88)
    close(FocalTversky(**binary)(BINARY_LABELS, BINARY_LOGITS), 0.338717)
    close(Tversky(smooth=1e-6, **binary)(BINARY_LABELS, BINARY_LOGITS), 1 - 0.638298)
    close(FocalTversky(smooth=1e-6, **binary)(BINARY_LABELS, BINARY_LOGITS), 0.466405)
    swapped = FocalTversky(fn_weight=0.3, fp_weight=0.7, **binary)
    close(swapped(BINARY_LABELS, BINARY_LOGITS), 0.289118)
    # one channel is foreground: kidney or tumor
    close(FocalTversky(**binary)(2 * BINARY_LABELS, BINARY_LOGITS), 0.338717)


def test_enhanced_unet_three_classes():
    ti, ftl = [0.778909, 0.762153, 0.718824], [0.322425, 0.340583, 0.386130]
    close(Tversky()(LABELS, LOGITS), 1 - np.mean(ti[1:]))
    close(Tversky(include_background=True, class_reduction="sum")(LABELS, LOGITS), 3 - sum(ti), 3e-6)
    close(FocalTversky(include_background=True)(LABELS, LOGITS), np.mean(ftl))
    close(FocalTversky()(LABELS, LOGITS), 0.363357)
    close(FocalTversky(class_reduction="sum")(LABELS, LOGITS), 0.726713)
    close(FocalTversky(smooth=1e-6)(LABELS, LOGITS), 0.596810)


def test_enhanced_unet_head_weights_in_keras():
    # 0.2 * 0.9 + 0.2 * 0.8 + 0.2 * 0.7 + 0.4 * 0.6 = 0.72: heads return their mean, targets are ignored
    image = keras.Input((1,), name="image")
    heads = [keras.layers.Rescaling(value, name=f"head{value}")(image) for value in (0.9, 0.8, 0.7, 0.6)]
    model = keras.Model(image, heads)
    model.compile(loss=[lambda y, z: ops.mean(z)] * 4, loss_weights=list(HEAD_WEIGHTS))
    ones = np.ones((2, 1), "float32")
    total = model.evaluate(ones, (ones,) * 4, verbose=0, return_dict=True)["loss"]
    close(total, 0.72)


def test_enhanced_unet_perfect_and_empty():
    perfect = np.where(np.eye(3)[LABELS] == 1, 50, -50).astype("float32")
    assert float(FocalTversky()(LABELS, perfect)) <= 3.2e-5
    assert np.isfinite(gradient(FocalTversky(), LABELS, perfect)).all()
    empty = np.zeros_like(LABELS)
    slope = gradient(FocalTversky(), empty, LOGITS)
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0  # its false positives are punished
    # absent class with FP = 10: 1 - TI = 3 / (3 + 1) = 0.75; 20 pixels of p = 0.5 in one channel
    zeros = np.zeros((1, 20, 1), "float32")
    close(Tversky(activation="sigmoid")(np.zeros((1, 20)), zeros), 0.75)


def test_enhanced_unet_single_tumor_pixel():
    labels = np.zeros((1, 16, 16), "int32")
    labels[0, 3, 3] = 2
    for target, stride in zip(deep_supervision_targets(labels), (8, 4, 2)):
        assert target.shape == (1, 16 // stride, 16 // stride) and target.max() == 0
    for target, stride in zip(deep_supervision_targets(labels, how="priority"), HEAD_STRIDES):
        assert np.argwhere(target).tolist() == [[0, 3 // stride, 3 // stride]] and target.max() == 2


def test_priority_targets_equal_a_brute_force_block_maximum():
    labels = np.random.default_rng(2).choice(3, (3, 24, 16), p=[0.9, 0.08, 0.02]).astype("int8")
    for target, stride in zip(deep_supervision_targets(labels, how="priority"), HEAD_STRIDES):
        blocks = labels.reshape(3, 24 // stride, stride, 16 // stride, stride)
        np.testing.assert_array_equal(target, blocks.max(axis=(2, 4)))
        assert target.dtype == np.int8


@pytest.mark.parametrize("how", ["stride", "priority"])
def test_targets_in_tf_data_and_on_the_backend(how):
    tf = pytest.importorskip("tensorflow")
    labels = np.random.default_rng(3).integers(0, 3, (4, 16, 16)).astype("int32")
    expected = deep_supervision_targets(labels, how=how)
    dataset = tf.data.Dataset.from_tensor_slices(labels).map(lambda y: deep_supervision_targets(y, how=how))
    got = next(iter(dataset.batch(4).as_numpy_iterator()))
    on_backend = deep_supervision_targets(ops.convert_to_tensor(labels), how=how)
    for a, b, c in zip(expected, got, on_backend):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, ops.convert_to_numpy(c))


def test_bad_targets_are_refused():
    labels = np.zeros((1, 16, 16), "int32")
    with pytest.raises(ValueError, match="'stride' or 'priority'; got 'max'"):
        deep_supervision_targets(labels, how="max")
    with pytest.raises(ValueError, match=r"signed integers.*got uint8"):
        deep_supervision_targets(labels.astype("uint8"))
    with pytest.raises(ValueError, match=r"multiples.*got \(1, 12, 16\)"):
        deep_supervision_targets(labels[:, :12])
    with pytest.raises(ValueError, match="class axis"):
        deep_supervision_targets(labels[..., None])


# --- 3D DeepLab v3+ ---------------------------------------------------------------------------------


@pytest.mark.parametrize("weight, expected", [(5, 1.293359), (2, 0.819457), (0.5, 0.582506), (0.2, 0.535116)])
def test_deeplab3d_total_by_hand(weight, expected):
    close(TverskyFocal(focal_weight=weight)(LABELS, LOGITS), expected)


def test_deeplab3d_terms_by_hand():
    # focal of the four voxels 0.010869, 0.287661, 0.045678, 0.287661: (1 - p)^2 * -log p
    p = softmax(LOGITS.astype("float64"))[0][np.arange(4), LABELS[0]]
    focal = ((1 - p) ** 2 * -np.log(p)).mean()
    np.testing.assert_allclose(focal, 0.157967, atol=1e-6)
    close(TverskyFocal(focal_weight=0)(LABELS, LOGITS), 0.503522)
    close(TverskyFocal(focal_weight=1)(LABELS, LOGITS), 0.503522 + focal)
    per_class = [0.341482, 0.438572, 0.568473]
    close(TverskyFocal(focal_weight=0, include_background=True)(LABELS, LOGITS), np.mean(per_class))
    # equal weights give 1 - soft Dice: per class 0.299905, 0.491477, 0.562112
    half = TverskyFocal(focal_weight=0, fn_weight=0.5, fp_weight=0.5)
    close(half(LABELS, LOGITS), (0.491477 + 0.562112) / 2)
    # gamma 1: (1 - p) * -log p
    gamma = TverskyFocal(gamma=1, focal_weight=1)
    close(gamma(LABELS, LOGITS), 0.503522 + ((1 - p) * -np.log(p)).mean(), 2e-6)


@pytest.mark.parametrize("make", [CrossEntropySoftDice, Tversky, FocalTversky, TverskyFocal])
@pytest.mark.parametrize("class_reduction", ["mean", "sum"])
def test_per_sample_gives_one_number_an_image(make, class_reduction):
    loss = make(class_reduction=class_reduction, per_sample=True)
    whole = make(class_reduction=class_reduction)
    singles = [float(whole(LABELS2[i : i + 1], LOGITS2[i : i + 1])) for i in (0, 1)]
    close(loss.call(ops.convert_to_tensor(LABELS2), ops.convert_to_tensor(LOGITS2)), singles)
    assert abs(singles[0] - singles[1]) > 0.05


def test_on_replicas_a_batch_gives_its_share_and_sums_run_over_all(monkeypatch):
    """As on two replicas with equal parts of a batch: sums double, and each loss is half of the batch's."""
    monkeypatch.setattr(losses, "replica_count", lambda: 2)
    monkeypatch.setattr(losses, "sum_over_replicas", lambda value: 2 * value)
    # TP 1.2, FN 0.8, FP 0.4 on each: TI = (2.4 + 1) / (2.4 + 0.7 * 1.6 + 0.3 * 0.8 + 1), half of 1 - TI
    binary = {"activation": "sigmoid"}
    close(Tversky(**binary)(BINARY_LABELS, BINARY_LOGITS), (1 - 3.4 / 4.76) / 2)
    # if the loss is a mean over images, Keras itself takes this replica's share
    close(Tversky(per_sample=True, **binary)(BINARY_LABELS, BINARY_LOGITS), 1 - 2.2 / 2.88)


def test_deeplab3d_per_sample():
    loss = TverskyFocal(per_sample=True)
    singles = [float(TverskyFocal()(LABELS2[i : i + 1], LOGITS2[i : i + 1])) for i in (0, 1)]
    close(loss(LABELS2, LOGITS2), np.mean(singles))
    assert abs(float(TverskyFocal()(LABELS2, LOGITS2)) - np.mean(singles)) > 0.01


# --- Every loss -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 3, 5, 4)], ids=["2d", "3d"])
def test_losses_equal_numpy_on_slices_and_volumes(shape):
    rng = np.random.default_rng(4)
    labels, logits = rng.integers(0, 3, shape), rng.normal(0, 2, (*shape, 3)).astype("float32")
    p = softmax(logits.astype("float64"))
    tp, fn, fp = numpy_counts(labels, p)
    p_true = np.take_along_axis(p, labels[..., None], -1)
    ce = -np.log(p_true).mean()
    dice = (2 * tp + 1e-5) / (2 * tp + fn + fp + 1e-5)
    distance = (1 - (tp + 1) / (tp + 0.7 * fn + 0.3 * fp + 1))[1:]
    sharp = (1 - (tp + 1e-5) / (tp + 0.7 * fn + 0.3 * fp + 1e-5))[1:]
    focal = ((1 - p_true) ** 2 * -np.log(p_true)).mean()
    close(CrossEntropySoftDice()(labels, logits), ce + 1 - dice.mean(), 2e-6)
    close(Tversky()(labels, logits), distance.mean())
    close(FocalTversky()(labels, logits), (distance**0.75).mean())
    close(TverskyFocal()(labels, logits), sharp.mean() + 0.5 * focal, 2e-6)


@every_loss
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("case", ["perfect", "absent", "empty"])
def test_gradients_are_finite(make, per_sample, case):
    loss = make(per_sample=per_sample)
    labels = {"perfect": LABELS2, "absent": np.minimum(LABELS2, 1), "empty": 0 * LABELS2}[case]
    z = np.where(np.eye(3)[labels] == 1, 60, -60) if case == "perfect" else LOGITS2
    slope = gradient(loss, labels, head_for(loss, z.astype("float32")))
    assert np.isfinite(slope).all()
    if case != "perfect":
        assert np.abs(slope).max() > 0


@every_loss
def test_gradient_equals_finite_differences(make):
    loss = make()
    rng = np.random.default_rng(5)
    labels, logits = rng.integers(0, 3, (2, 6)), rng.normal(0, 1, (2, 6, 3)).astype("float32")
    logits = head_for(loss, logits)
    direction, step = rng.normal(0, 1, logits.shape).astype("float32"), 1e-2
    numeric = (
        float(loss(labels, logits + step * direction)) - float(loss(labels, logits - step * direction))
    ) / (2 * step)
    np.testing.assert_allclose(
        (gradient(loss, labels, logits) * direction).sum(), numeric, rtol=5e-3, atol=1e-4
    )


@every_loss
def test_config_round_trip(make):
    loss = make(per_sample=True, name="custom", reduction="sum")
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert again.get_config() == loss.get_config() and type(again) is type(loss)
    logits = head_for(loss, LOGITS2)
    close(again(LABELS2, logits), float(loss(LABELS2, logits)), 0)


def test_weights_of_zero_are_allowed():
    # TP 1.2, FP 0.4, FN 0.8
    binary = {"activation": "sigmoid", "smooth": 1.0}
    close(Tversky(fn_weight=0, fp_weight=0.5, **binary)(BINARY_LABELS, BINARY_LOGITS), 0.2 / 2.4)
    close(Tversky(fn_weight=0.5, fp_weight=0, **binary)(BINARY_LABELS, BINARY_LOGITS), 0.4 / 2.6)


def test_config_keeps_every_argument():
    for loss in (
        CrossEntropySoftDice(0.3, False, True, activation="sigmoid", class_reduction="sum"),
        FocalTversky(exponent=0.5, fn_weight=0.6, fp_weight=0.2, smooth=0.4, include_background=True),
        TverskyFocal(focal_weight=2, gamma=3, fn_weight=0.1),
    ):
        config = keras.losses.serialize(loss)["config"]
        assert type(loss).from_config(config).get_config() == config
        expected = {"smooth": 0.3, "regions": True, "include_background": False, "class_reduction": "sum"}
        if isinstance(loss, CrossEntropySoftDice):
            assert expected.items() <= config.items()
        elif isinstance(loss, FocalTversky):
            assert {
                "exponent": 0.5,
                "fn_weight": 0.6,
                "fp_weight": 0.2,
                "smooth": 0.4,
            }.items() <= config.items()
        else:
            assert {"focal_weight": 2, "gamma": 3, "fn_weight": 0.1, "smooth": 1e-5}.items() <= config.items()


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_compile_and_fit_report_the_loss_of_the_batch(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        image = keras.Input((8, 8, 1), name="image")
        x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(image)
        model = keras.Model(image, keras.layers.Conv2D(3, 1, dtype="float32", name="logits")(x))
        model.compile(keras.optimizers.SGD(0.05), loss=CrossEntropySoftDice())
        rng = np.random.default_rng(6)
        images = rng.normal(0, 1, (4, 8, 8, 1)).astype("float32")
        labels = (images[..., 0] > 0.5).astype("int32") + (images[..., 0] > 1.2)
        expected = float(CrossEntropySoftDice()(labels, model(images)))
        close(model.evaluate(images, labels, batch_size=4, verbose=0), expected, 2e-3)
        history = model.fit(images, labels, batch_size=4, epochs=5, shuffle=False, verbose=0).history["loss"]
        close(history[0], expected, 2e-3)
        assert history[-1] < history[0]
    finally:
        keras.config.set_dtype_policy(before)


def test_four_heads_train_on_the_targets():
    image = keras.Input((16, 16, 1), name="image")
    heads = []
    for stride in HEAD_STRIDES:
        x = keras.layers.AveragePooling2D(stride, name=f"pool{stride}")(image)
        heads.append(keras.layers.Conv2D(3, 1, name=f"head{stride}")(x))
    model = keras.Model(image, heads)
    head_losses = [FocalTversky(), FocalTversky(), FocalTversky(), Tversky()]
    model.compile(keras.optimizers.SGD(0.1), loss=head_losses, loss_weights=list(HEAD_WEIGHTS))
    rng = np.random.default_rng(7)
    images = rng.normal(0, 1, (2, 16, 16, 1)).astype("float32")
    targets = deep_supervision_targets(rng.integers(0, 3, (2, 16, 16)).astype("int32"))
    parts = [float(loss(t, z)) for loss, t, z in zip(head_losses, targets, model(images))]
    history = model.fit(images, targets, epochs=1, batch_size=2, verbose=0).history
    close(history["loss"][0], np.dot(HEAD_WEIGHTS, parts), 1e-5)


def test_bad_arguments_are_refused():
    cases = {
        "class_reduction must be 'mean' or 'sum'; got 'max'": lambda: Tversky(class_reduction="max"),
        "activation must be 'softmax' or 'sigmoid'; got 'relu'": lambda: Tversky(activation="relu"),
        "smooth must be positive": lambda: Tversky(smooth=0),
        "fn_weight, fp_weight must be >= 0": lambda: Tversky(fn_weight=-1),
        "exponent must be positive": lambda: FocalTversky(exponent=0),
        "activation must be 'softmax'; got 'sigmoid'": lambda: TverskyFocal(activation="sigmoid"),
        "focal_weight must be >= 0": lambda: TverskyFocal(focal_weight=-1),
        "gamma must be >= 1; got 0.5": lambda: TverskyFocal(gamma=0.5),
        "regions .*False.*softmax": lambda: CrossEntropySoftDice(regions=True),
        "activation must be 'sigmoid' for one channel": lambda: Tversky()(BINARY_LABELS, BINARY_LOGITS),
        r"expected integers \(1, 4\).*got \(1, 2\)": lambda: Tversky()(LABELS[:, :2], LOGITS),
        r"one-hot \(1, 4, 3\).*got \(1, 4, 2\)": lambda: Tversky()(np.zeros((1, 4, 2)), LOGITS),
        "Use per_sample=True": lambda: Tversky()(LABELS, LOGITS, np.ones(1)),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()
