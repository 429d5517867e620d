"""Equality with tensorflow-model-optimization itself, which runs in a process of its own (tfmot_oracle.py)."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from support import TESTS

from kitsseg.pruning.callback import PruneLowMagnitude
from kitsseg.pruning.masks import block_mask, m_by_n_mask, magnitude_mask
from kitsseg.pruning.schedules import constant_sparsity, polynomial_decay

pytest.importorskip("tensorflow_model_optimization")
N_TENSORS = 400
M_BY_N_SHAPES = [(3, 3, c, 5) for c in (1, 4, 6, 8, 12, 32)] + [(10, 7), (12, 4), (1, 1, 8, 8), (1, 1, 6, 3)]
BLOCK_SHAPES = [((6, 8), 2), ((5, 12), 4), ((9, 32), 4), ((7, 9), 2)]


def tensors():
    """Random weights of all ranks with ties, zeros and tiny sizes, each with a sparsity in 0..0.999."""
    rng = np.random.default_rng(9)
    for i in range(N_TENSORS):
        shape = tuple(rng.integers(1, 7, i % 5 + 1))
        weights = rng.normal(size=shape).astype(np.float32)
        if i % 3 == 1:
            weights = np.round(weights)  # ties and zeros
        if i % 7 == 3:
            weights *= rng.random(shape) < 0.3  # mostly zeros, of either sign
        yield weights, float(rng.choice([0, 0.1, 0.25, 0.5, 0.7, 0.75, 0.9, 0.999, rng.random() * 0.999]))


def twin():
    """The network of tfmot_oracle.py in Keras 3."""
    return keras.Sequential(
        [
            keras.layers.InputLayer((8, 8, 3)),
            keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.SeparableConv2D(12, 3, padding="same", activation="relu", name="separable"),
            keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
            keras.layers.Conv2D(6, 1, name="pointwise"),
            keras.layers.Conv2DTranspose(2, 3, strides=2, padding="same", name="up"),
        ]
    )


@pytest.fixture(scope="module")
def given():
    """Everything both sides start from."""
    rng = np.random.default_rng(3)
    values = {"n_tensors": N_TENSORS, "n_m_by_n": len(M_BY_N_SHAPES), "n_blocks": len(BLOCK_SHAPES)}
    for i, (weights, sparsity) in enumerate(tensors()):
        values |= {f"tensor_{i}": weights, f"sparsity_{i}": sparsity}
    for i, shape in enumerate(M_BY_N_SHAPES):
        weights = rng.normal(size=shape).astype(np.float32)
        values[f"m_by_n_tensor_{i}"] = np.round(2 * weights) if i % 2 else weights  # half of them with ties
    for i, (shape, block) in enumerate(BLOCK_SHAPES):
        values |= {f"block_tensor_{i}": rng.normal(size=shape).astype(np.float32), f"block_size_{i}": block}
    keras.utils.set_random_seed(4)
    for layer in twin().layers:
        values |= {f"{layer.name}.{i}": weight for i, weight in enumerate(layer.get_weights())}
    values["x"] = rng.normal(size=(18, 8, 8, 3)).astype(np.float32)
    values["y"] = rng.normal(size=(18, 16, 16, 2)).astype(np.float32)
    return values


@pytest.fixture(scope="module")
def theirs(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfmot")
    np.savez(folder / "given.npz", **given)
    script = TESTS / "support" / "tfmot_oracle.py"
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"} | {
        "TF_CPP_MIN_LOG_LEVEL": "3"
    }
    done = subprocess.run(
        [sys.executable, str(script), "given.npz", "out.npz"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "out.npz"))


def test_wp_unet_masks_and_thresholds_of_400_random_tensors(given, theirs):
    different = []
    for i, (weights, sparsity) in enumerate(tensors()):
        mask, threshold = magnitude_mask(weights, sparsity)
        if not np.array_equal(mask, theirs[f"mask_{i}"]) or threshold != theirs[f"threshold_{i}"]:
            different.append(i)
    assert different == []


def test_wp_unet_two_of_four(given, theirs):
    for i in range(len(M_BY_N_SHAPES)):
        mask = m_by_n_mask(given[f"m_by_n_tensor_{i}"], (2, 4))
        np.testing.assert_array_equal(mask, theirs[f"m_by_n_{i}"], str(M_BY_N_SHAPES[i]))


def test_blocks_of_a_matrix(given, theirs):
    for i, (_, block) in enumerate(BLOCK_SHAPES):
        mask, threshold = block_mask(given[f"block_tensor_{i}"], 0.7, block)
        np.testing.assert_array_equal(mask, theirs[f"block_{i}"])
        assert threshold == pytest.approx(theirs[f"block_threshold_{i}"], rel=1e-6)


def schedules():
    return {
        "rising": (polynomial_decay(0.5, 10, 2), None),
        "later": (later(), None),
        "one-shot": (constant_sparsity(0.75), None),
        "2:4": (constant_sparsity(0.5, step=5), (2, 4)),  # the schedule does not matter: drawn at step 1
    }


def later():
    from tensorflow_model_optimization.sparsity.keras import PolynomialDecay

    return PolynomialDecay(0.2, 0.8, 2, 14, frequency=4)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["rising", "later", "one-shot", "2:4"])
def test_eighteen_steps_end_with_the_same_masks_and_weights_as_tfmot(name, optimizer, given, theirs):
    model = twin()
    for layer in model.layers:
        layer.set_weights([given[f"{layer.name}.{i}"] for i in range(len(layer.get_weights()))])
    schedule, m_by_n = schedules()[name]
    kinds = {"sgd": keras.optimizers.SGD(0.05, momentum=0.9), "adam": keras.optimizers.Adam(0.01)}
    model.compile(kinds[optimizer], "mse", jit_compile=False)
    pruning = PruneLowMagnitude(schedule, m_by_n)
    model.fit(
        given["x"],
        given["y"],
        batch_size=2,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[pruning],
    )
    names = ["conv", "separable", "pointwise", "up"]
    assert [layer.name for layer, _ in pruning._weights] == names
    assert pruning.step == 18
    for layer, mask, threshold in zip(names, pruning.masks, pruning.thresholds):
        here = f"{name}.{optimizer}.{layer}"
        assert theirs[f"{here}.step"] == 18
        np.testing.assert_array_equal(mask, theirs[f"{here}.mask"] == 1)
        np.testing.assert_allclose(threshold, theirs[f"{here}.threshold"], rtol=1e-3)
    for layer in model.layers:  # Keras 2 counts the moving variance with n - 1
        for i, weight in enumerate(layer.get_weights()[: 3 if layer.name == "norm" else None]):
            other = theirs[f"{name}.{optimizer}.{layer.name}.weight.{i}"]
            np.testing.assert_allclose(weight, other, rtol=0, atol=1e-4)
