"""What pruning has left, in rows: multiply-adds by hand, by the network's count, and where there is none."""

import csv

import keras
import numpy as np
import pytest
from keras import layers

from kitsseg.models import (
    build_deeplab3d,
    build_enhanced_unet,
    build_squeeze_unet,
    build_unet2d,
    build_wp_unet,
)
from kitsseg.models.macs import count_macs
from kitsseg.pruning.sparsity import COLUMNS, mac_shape, sparsity_rows, sparsity_totals, write_sparsity
from kitsseg.pruning.weights import prunable_weights

MODELS = {
    "unet2d": lambda: build_unet2d((None, None, 1), start_filters=4, n_pools=2),
    "wp_unet": lambda: build_wp_unet((256, 256, 1), n_classes=1),
    "squeeze_unet": lambda: build_squeeze_unet((None, None, 3), decoder="lite"),
    "enhanced_unet": lambda: build_enhanced_unet((None, None, 1), base=16),
    "deeplab3d": lambda: build_deeplab3d((None, None, None, 1), width_divisor=8),
}


def rows_of(model):
    return sparsity_rows(model, [variable for _, variable in prunable_weights(model)])


def test_by_hand(tmp_path):
    """8 x 6 pixels: 48 positions of 3x3x2x4 weights of which 18 of 72 are zero, then 48 of 4 weights."""
    image = keras.Input((8, 6, 2))
    model = keras.Model(image, layers.Conv2D(1, 1)(layers.Conv2D(4, 3, padding="same")(image)))
    kernel = np.ones((3, 3, 2, 4), np.float32)
    kernel[..., 0] = 0
    model.layers[1].set_weights([kernel, np.zeros(4)])
    first, last = rows = rows_of(model)
    assert (first["mac"], first["effective_mac"]) == (48 * 72, 48 * 54)
    assert (last["mac"], last["effective_mac"]) == (48 * 4, 48 * 4)
    totals = sparsity_totals(model, rows)
    assert (totals["mac"], totals["effective_mac"]) == (48 * 76, 48 * 58)
    assert totals["mac_shape"] == [8, 6, 2]
    write_sparsity(rows, tmp_path / "sparsity.csv")
    with (tmp_path / "sparsity.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [tuple(row) for row in read] == [COLUMNS] * 2
    assert read[0]["effective_mac"] == "2592"


@pytest.mark.parametrize("name", MODELS)
def test_rows_add_up_to_the_network(name):
    model = MODELS[name]()
    shape = mac_shape(model)
    assert shape[:-1] == ((64,) * 3 if name == "deeplab3d" else (256, 256))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights([value * (rng.random(value.shape) < 0.5) for value in layer.get_weights()])
    totals = sparsity_totals(model, rows_of(model))
    assert totals["mac"] == count_macs(model, shape)
    # each layer's figure is rounded
    assert totals["effective_mac"] == pytest.approx(
        count_macs(model, shape, nonzero_only=True), abs=len(model.layers)
    )
    if name == "wp_unet":
        assert totals["mac"] == 2_012_348_416


@keras.saving.register_keras_serializable(package="kitsseg_tests")
class Mixing(keras.Layer):
    """A layer with a weight matrix and no known count."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], input_shape[-1]))

    def call(self, x):
        return keras.ops.matmul(x, self.kernel)


def test_a_layer_without_a_count_leaves_an_empty_cell():
    conv = layers.Conv2D(3, 1)
    model = keras.Sequential([keras.Input((4, 4, 1)), conv, Mixing()])
    rows = sparsity_rows(model, [conv.kernel])
    assert [row["mac"] for row in rows] == [16 * 3, None]
    totals = sparsity_totals(model, rows)
    assert totals["mac"] is None and totals["effective_mac"] is None
