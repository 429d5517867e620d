"""Streaming metrics against the arithmetic of the papers and exact integer counts, on TensorFlow and JAX."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from kitsseg.metrics import METRICS, ClassDice, ConfusionMatrix, DiceMulti, MeanIoU, PixelAccuracy
from kitsseg.recipe import METRIC_NAMES

EVERY_METRIC = [
    ConfusionMatrix,
    PixelAccuracy,
    MeanIoU,
    DiceMulti,
    lambda **kwargs: DiceMulti(include_background=False, **kwargs),
    lambda **kwargs: ClassDice("kidney_label", **kwargs),
    lambda **kwargs: ClassDice("tumor_label", **kwargs),
    lambda **kwargs: ClassDice("tk", **kwargs),
]
IDS = ["confusion", "accuracy", "iou", "dice_multi", "dice_foreground", "kidney", "tumor", "tk"]
every_metric = pytest.mark.parametrize("make", EVERY_METRIC, ids=IDS)

# WP-UNet: confusion rows (labels) 0: 3 1 0, 1: 1 2 0, 2: 1 0 0
WP_LABELS, WP_PREDICTION = np.array([[0, 0, 0, 0, 1, 1, 1, 2]]), [[0, 0, 0, 1, 1, 1, 0, 0]]


def logits_of(prediction):
    """Logits whose arg-max is the prediction, with unequal margins."""
    return 2.0 * np.eye(3, dtype="float32")[np.asarray(prediction)] + np.array([0.5, 0.2, 0.7], "float32")


def score(metric, labels, prediction):
    metric.update_state(np.asarray(labels), logits_of(prediction))
    return ops.convert_to_numpy(metric.result())


def test_wp_unet_metrics():
    close = {"rtol": 0, "atol": 1e-6}
    np.testing.assert_allclose(score(PixelAccuracy(), WP_LABELS, WP_PREDICTION), 5 / 8, **close)
    # IoU 3 / (3 + 2 + 1) = 0.5, 2 / (2 + 1 + 1) = 0.5, 0 / 1
    np.testing.assert_allclose(score(MeanIoU(), WP_LABELS, WP_PREDICTION), 1 / 3, **close)
    # Dice 6 / 9, 4 / 6, 0 / 1
    np.testing.assert_allclose(score(ClassDice("kidney_label"), WP_LABELS, WP_PREDICTION), 2 / 3, **close)
    np.testing.assert_allclose(score(ClassDice("tumor_label"), WP_LABELS, WP_PREDICTION), 0, **close)
    np.testing.assert_allclose(score(DiceMulti(), WP_LABELS, WP_PREDICTION), 4 / 9, **close)
    foreground = DiceMulti(include_background=False)
    np.testing.assert_allclose(score(foreground, WP_LABELS, WP_PREDICTION), 1 / 3, **close)
    # union of kidney and tumor: TP 2, FN 2, FP 1 -> 4 / 7
    np.testing.assert_allclose(score(ClassDice("tk"), WP_LABELS, WP_PREDICTION), 4 / 7, **close)


def test_union_forgives_a_tumor_called_kidney():
    # labels 1 2 2 0, predictions 2 1 2 1: TK TP 3, FP 1 -> 6 / 7; tumor TP 1, FN 1, FP 1 -> 2 / 4
    labels, prediction = [[1, 2, 2, 0]], [[2, 1, 2, 1]]
    np.testing.assert_allclose(score(ClassDice("tk"), labels, prediction), 6 / 7, rtol=1e-6)
    np.testing.assert_allclose(score(ClassDice("tumor_label"), labels, prediction), 0.5, rtol=1e-6)
    np.testing.assert_allclose(score(ClassDice("kidney_label"), labels, prediction), 0, atol=0)


def test_squeeze_unet_dice_multi():
    metric = DiceMulti()
    # A: TP 1, 1, 1 of sums 2, 3, 3 -> (1 + 2/3 + 2/3) / 3
    np.testing.assert_allclose(score(metric, [[0, 1, 2, 2]], [[0, 1, 1, 2]]), 0.777778, atol=1e-6)
    # B added: TP 4, 1, 1 of sums 9, 4, 3 -> (8/9 + 2/4 + 2/3) / 3
    np.testing.assert_allclose(score(metric, [[0, 0, 0, 0]], [[0, 0, 0, 1]]), 0.685185, atol=1e-6)
    metric.reset_state()
    assert metric.counts().sum() == 0
    # only background: the other classes are skipped
    assert score(metric, np.zeros((2, 4), int), np.zeros((2, 4), int)) == 1.0
    # all background predicted where all classes are: about a third
    metric.reset_state()
    labels = np.repeat([0, 1, 2], [990, 7, 3])[None]
    np.testing.assert_allclose(score(metric, labels, 0 * labels), (2 * 990 / 1990) / 3, rtol=1e-6)


@every_metric
def test_squeeze_unet_streaming_equals_one_shot(make):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (7, 6, 5))
    logits = rng.normal(0, 1, (7, 6, 5, 3)).astype("float32")
    whole, parts = make(), make()
    whole.update_state(labels, logits)
    for start, stop in ((0, 1), (1, 4), (4, 7)):
        parts.update_state(labels[start:stop], logits[start:stop])
    np.testing.assert_array_equal(parts.counts(), whole.counts())
    expected = np.zeros((3, 3), "int64")
    np.add.at(expected, (labels.ravel(), logits.argmax(-1).ravel()), 1)
    np.testing.assert_array_equal(whole.counts(), expected)
    np.testing.assert_array_equal(ops.convert_to_numpy(parts.result()), ops.convert_to_numpy(whole.result()))


def test_squeeze_unet_counts_stay_exact_beyond_float32_and_int32():
    metric = PixelAccuracy()
    # 2**33 + 5 correct background pixels already counted: high word 512, low word 5
    metric.low.assign(np.diag([5, 0, 0]))
    metric.high.assign(np.diag([512, 0, 0]))
    metric.update_state(np.array([[0, 1]]), logits_of([[0, 2]]))
    assert metric.counts()[0, 0] == 2**33 + 6 and metric.counts()[1, 2] == 1
    # the low word carries over
    metric.low.assign(np.diag([2**24 - 1, 0, 0]))
    metric.update_state(np.array([[0, 0, 0]]), logits_of([[0, 0, 0]]))
    assert metric.counts()[0, 0] == 2**33 + 2**24 + 2
    assert ops.convert_to_numpy(metric.low)[0, 0] == 2 and ops.convert_to_numpy(metric.high)[0, 0] == 513


def test_a_batch_above_the_float32_limit_is_counted_exactly():
    # 2**24 + 3 pixels in one call: a float32 sum of ones would stop at 2**24
    n = 2**24 + 3
    labels = np.zeros((1, n), "int8")
    logits = np.broadcast_to(np.array([1, 0], "float16"), (1, n, 2))
    metric = PixelAccuracy(n_classes=2)
    metric.update_state(labels, logits)
    assert metric.counts().tolist() == [[n, 0], [0, 0]]


def test_empty_masks_score_one_and_a_false_positive_zero():
    background = np.zeros((1, 8), int)
    for make in EVERY_METRIC[1:]:
        assert float(make().result()) == 1.0
        assert score(make(), background, background) == 1.0
    for metric in (DiceMulti(include_background=False), ClassDice("tumor_label"), ClassDice("tk")):
        assert score(metric, background, background + 2) == 0.0


def test_volumes_label_axis_and_float16_logits():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, (2, 3, 4, 5))
    logits = rng.normal(0, 1, (2, 3, 4, 5, 3)).astype("float16")
    metric, again = ConfusionMatrix(), ConfusionMatrix()
    metric.update_state(labels, logits)
    again.update_state(labels[..., None].astype("float32"), logits)
    np.testing.assert_array_equal(metric.counts(), again.counts())
    assert metric.counts().sum() == labels.size


def test_labels_outside_the_classes_are_not_counted():
    metric = ConfusionMatrix()
    metric.update_state(np.array([[-1, 3, 255, 1]]), logits_of([[2, 0, 1, 1]]))
    assert metric.counts().tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


@every_metric
def test_config_round_trip(make):
    metric = make(name="custom")
    config = json.loads(json.dumps(keras.metrics.serialize(metric)))
    again = keras.metrics.deserialize(config)
    assert again.get_config() == metric.get_config() and again.name == "custom"
    metric.update_state(WP_LABELS, logits_of(WP_PREDICTION))
    again.update_state(WP_LABELS, logits_of(WP_PREDICTION))
    np.testing.assert_array_equal(ops.convert_to_numpy(again.result()), ops.convert_to_numpy(metric.result()))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_compile_fit_and_evaluate(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        image = keras.Input((4, 4, 1), name="image")
        logits = keras.layers.Conv2D(3, 1, dtype="float32", name="logits")(image)
        model = keras.Model(image, logits)
        metrics = [DiceMulti(), MeanIoU(), PixelAccuracy(), ClassDice("tk")]
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.0), loss=loss, metrics=metrics)
        rng = np.random.default_rng(2)
        images = rng.normal(0, 1, (5, 4, 4, 1)).astype("float32")
        labels = rng.integers(0, 3, (5, 4, 4))
        # batches of 2, 2 and 1: a mean of batch scores would differ; the counts show a missing reset
        history = model.fit(images, labels, batch_size=2, epochs=2, shuffle=False, verbose=0).history
        counts = {metric.name: metric.counts().sum() for metric in metrics}
        scores = model.evaluate(images, labels, batch_size=2, verbose=0, return_dict=True)
        for metric in metrics:
            one_shot = type(metric).from_config(metric.get_config())
            one_shot.update_state(labels, model.predict(images, verbose=0))
            expected = float(one_shot.result())
            np.testing.assert_allclose(history[metric.name], [expected] * 2, rtol=1e-6)
            assert counts[metric.name] == labels.size
            np.testing.assert_allclose(scores[metric.name], expected, rtol=1e-6)
    finally:
        keras.config.set_dtype_policy(before)


def test_bad_arguments_are_refused():
    labels, logits = WP_LABELS, logits_of(WP_PREDICTION)
    cases = {
        "got 'liver'": lambda: ClassDice("liver"),
        "among the 2 classes; got 'tumor_label'": lambda: ClassDice("tumor_label", n_classes=2),
        r"logits of 3 classes; got shape \(1, 8, 2\)": lambda: MeanIoU().update_state(
            labels, logits[..., :2]
        ),
        r"expected integer labels \(1, 8\); got \(1, 8, 3\)": lambda: MeanIoU().update_state(logits, logits),
        "takes no sample weights": lambda: MeanIoU().update_state(labels, logits, np.ones(1)),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_recipes_may_name_all_metrics_and_no_others():
    assert sorted(METRIC_NAMES) == sorted(METRICS)
