"""Sigmoid heads: what their channels mean, from a network that knows the answer to its scores and its exported file."""

import math
from dataclasses import replace

import keras
import numpy as np
import pytest

from kitsseg import recipes
from kitsseg.commands.given import with_given
from kitsseg.errors import InputError
from kitsseg.export.export import export_run
from kitsseg.export.writers import ExportOptions
from kitsseg.inference.cohort import predict_cases
from kitsseg.inference.options import PredictOptions
from kitsseg.inference.outputs import class_probabilities
from kitsseg.losses import CrossEntropySoftDice
from kitsseg.recipe import OUTPUTS, changed
from kitsseg.records.run import create_run, read_run, update_run
from kitsseg.scoring.evaluate import evaluate_folders
from kitsseg.training.train import train_recipe

CHANNELS = {
    "sigmoid": {"model.n_classes": 2},
    "regions": {"model.n_classes": 2, "loss.regions": True},
    "tumor": {"model.n_classes": 1, "loss.tumor_only": True},
}


def with_output(recipe, output):
    changes = {"loss.activation": "sigmoid", "inference.output": output, **CHANNELS[output]}
    return changed(recipe, changes, dict.fromkeys(changes, "ours"))


def logit(p):
    return math.log(p / (1 - p))


@pytest.mark.parametrize(
    ("output", "channels", "expected"),
    [
        ("sigmoid", (0.2, 0.1), (0.8, 0.2, 0.1)),
        ("sigmoid", (0.6, 0.1), (0.4, 0.6, 0.1)),
        ("sigmoid", (0.6, 0.9), (0.1, 0.6, 0.9)),
        ("regions", (0.4, 0.1), (0.6, 0.4, 0.1)),
        ("regions", (0.6, 0.35), (0.4, 0.6, 0.35)),
        ("regions", (0.9, 0.7), (0.1, 0.3, 0.7)),
        ("regions", (0.3, 0.9), (0.7, 0.1, 0.3)),  # no tumor outside the kidney
        ("tumor", (0.7,), (0.3, 0.0, 0.7)),
    ],
)
def test_channels_become_three_classes_that_add_up_to_one(output, channels, expected):
    found = class_probabilities(np.array([[logit(p) for p in channels]], np.float32), output)
    np.testing.assert_allclose(found[0], np.array(expected) / sum(expected), rtol=1e-5)


def test_the_arg_max_is_what_the_channels_say_at_one_half():
    logits = np.random.default_rng(0).normal(0, 3, (2000, 2)).astype(np.float32)
    first, second = (logits > 0).T
    by_label = class_probabilities(logits, "sigmoid").argmax(axis=-1)
    np.testing.assert_array_equal(by_label > 0, first | second)
    np.testing.assert_array_equal(by_label[first & ~second], 1)
    by_region = class_probabilities(logits, "regions").argmax(axis=-1)
    np.testing.assert_array_equal(by_region, np.where(first, np.where(second, 2, 1), 0))
    alone = class_probabilities(logits[:, :1], "tumor").argmax(axis=-1)
    np.testing.assert_array_equal(alone, np.where(first, 2, 0))


def test_the_surest_outputs_are_finite_and_the_wrong_number_of_channels_is_refused():
    sure = class_probabilities(np.array([[1e4, -1e4], [-1e4, -1e4], [1e4, 1e4]], np.float32), "regions")
    np.testing.assert_array_equal(sure, [[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    with pytest.raises(ValueError, match="regions has 2 channels; the network gives 3"):
        class_probabilities(np.zeros((1, 3), np.float32), "regions")


def perfect_network(spec, output):
    """Kidney from 80 HU, tumor from 230 HU, as sigmoids: two layers of 1x1 convolutions."""
    low, high = ((hu - spec.hu_mean) / spec.hu_std for hu in (80, 230))
    image = keras.Input((None, None, 1))
    # two features: x + 9, and twice the excess of x over the middle of the kidney's range
    hidden = keras.layers.Conv2D(2, 1, activation="relu", name="hidden")
    logits = keras.layers.Conv2D(OUTPUTS[output], 1, name="logits")
    model = keras.Model(image, logits(hidden(image)))
    hidden.set_weights([np.array([[[[1.0, 2.0]]]]), np.array([9.0, -low - high])])
    both, alone, tumor = ((1, 0), -9 - low), ((1, -1), -9 - low), ((1, 0), -9 - high)
    rows = {"sigmoid": (alone, tumor), "regions": (both, tumor), "tumor": (tumor,)}[output]
    kernel = np.array([weights for weights, _ in rows], float).T[None, None]
    logits.set_weights([50 * kernel, 50 * np.array([bias for _, bias in rows])])
    return model


@pytest.fixture(params=list(CHANNELS))
def perfect_run(request, trained, tmp_path):
    """A finished run whose sigmoid network knows the answer."""
    recipe = with_output(trained.recipe, request.param)
    where = {"cache": str(trained.cache), "phantom": False, "seconds": 0}
    run = create_run(tmp_path / "run", recipe, trained.split, 0, where)
    perfect_network(recipe.preprocess, request.param).save(run / "model.keras")
    update_run(run, replace(read_run(run), status="finished"))
    return run, request.param


def scores_of(trained, folder, tmp_path):
    result = evaluate_folders(folder, trained.data, tmp_path / f"{folder.name}.csv")
    return [(row["tk_dice"], row["tu_dice"]) for row in result.rows]


def test_a_perfect_sigmoid_network_scores_one(perfect_run, trained, tmp_path):
    run, output = perfect_run
    predict_cases(run, [trained.data], tmp_path / "out")
    predict_cases(run, [trained.data], tmp_path / "mirrored", options=PredictOptions(mirror=True))
    for folder in ("out", "mirrored"):
        scores = scores_of(trained, tmp_path / folder, tmp_path)
        assert len(scores) == 9
        assert all(tumor == 1.0 for _, tumor in scores)
        assert all(kidney == 1.0 for kidney, _ in scores) == (output != "tumor")


@pytest.mark.parametrize("name", ["network.tflite", "network.onnx"])
def test_a_perfect_sigmoid_network_exported_scores_one(perfect_run, trained, tmp_path, name):
    pytest.importorskip("ai_edge_litert" if name.endswith("tflite") else "tf2onnx")
    run, _ = perfect_run
    with pytest.raises(InputError, match=r"--softmax: .*sigmoid outputs"):
        export_run(run, tmp_path / name, ExportOptions(softmax=True, size=(40, 48)))
    result = export_run(run, tmp_path / name, ExportOptions(size=(40, 48)))
    assert result.check.agreement == 1.0
    predict_cases(tmp_path / name, [trained.data], tmp_path / "out")
    assert all(tumor == 1.0 for _, tumor in scores_of(trained, tmp_path / "out", tmp_path))


@pytest.mark.parametrize("output", list(CHANNELS))
def test_a_sigmoid_recipe_trains_and_predicts(output, trained, tmp_path, eager):
    recipe = with_given(with_output(trained.recipe, output), ["phases.train.epochs=1"], steps=2)
    run = train_recipe(recipe, trained.cache, trained.split, tmp_path / "run")
    assert read_run(run).settings["inference"]["output"] == output
    [written] = predict_cases(run, [trained.data / "case_00000"], tmp_path / "out")
    assert written.is_file()


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["loss.activation=sigmoid"], ["loss.activation 'softmax'", "'sigmoid'"]),
        (["inference.output=sigmoid"], ["model.n_classes 2", "found 3"]),
        (["inference.output=sigmoid", "model.n_classes=2"], ["loss.activation 'sigmoid'", "found 'softmax'"]),
        (["model.n_classes=2"], ["model.n_classes 3", "found 2"]),
        (
            ["inference.output=sigmoid", "model.n_classes=2", "loss.activation=sigmoid", "loss.regions=on"],
            ["'sigmoid'", "loss.regions False", "found True"],
        ),
        (
            ["inference.output=regions", "model.n_classes=2", "loss.activation=sigmoid"],
            ["loss.regions True", "found False"],
        ),
        (
            ["inference.output=tumor", "model.n_classes=1", "loss.activation=sigmoid"],
            ["loss.tumor_only True", "found False"],
        ),
    ],
)
def test_a_loss_and_an_output_that_do_not_belong_together_are_refused(texts, names):
    with pytest.raises(InputError) as error:
        with_given(recipes.get("unet2d"), texts)
    for name in names:
        assert name in str(error.value)


def test_heads_and_losses_are_as_many():
    with pytest.raises(InputError, match=r"deep_supervision False goes with loss.heads 1; found 4"):
        with_given(recipes.get("enhanced_unet"), ["model.deep_supervision=off"])


def test_the_loss_of_the_tumor_alone():
    """Labels 0, 1, 2, 2 against logits -1, 2, 0, 3: the kidney is background."""
    logits = np.array([-1.0, 2.0, 0.0, 3.0], np.float32)
    p, g = 1 / (1 + np.exp(-logits)), np.array([0.0, 0.0, 1.0, 1.0])
    entropy = -(g * np.log(p) + (1 - g) * np.log(1 - p)).mean()
    dice = 2 * (p * g).sum() / (p.sum() + g.sum())
    loss = CrossEntropySoftDice(activation="sigmoid", tumor_only=True)
    found = loss(np.array([[0, 1, 2, 2]]), logits[None, :, None])
    assert float(found) == pytest.approx(entropy + 1 - dice, rel=1e-4)
    with pytest.raises(ValueError, match="tumor_only .*False.*several channels"):
        loss(np.array([[0, 1]]), np.zeros((1, 2, 2), np.float32))
    with pytest.raises(ValueError, match="tumor_only .*False.*softmax"):
        CrossEntropySoftDice(tumor_only=True)
