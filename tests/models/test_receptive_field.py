"""The measured receptive field equals the known one of small networks."""

import keras
import numpy as np
import pytest
from keras import layers

from kitsseg.models.receptive_field import influence_by_distance


def chain(shape, *convolutions):
    image = x = keras.Input(shape)
    for size, dilation in convolutions:
        x = (layers.Conv2D if len(shape) == 3 else layers.Conv3D)(
            2, size, dilation_rate=dilation, padding="same", kernel_initializer="ones"
        )(x)
    return keras.Model(image, x)


@pytest.mark.parametrize(
    "convolutions, reach",
    [
        ([(1, 1)], 0),
        ([(3, 1)], 1),
        ([(3, 1), (3, 1)], 2),
        ([(3, 2), (3, 1)], 3),
        ([(5, 3)], 6),
    ],
)
def test_nothing_beyond_the_receptive_field_matters(convolutions, reach):
    for distances, influence in influence_by_distance(chain((24, 24, 1), *convolutions), (24, 24, 1)):
        np.testing.assert_array_equal(distances, np.arange(12))
        assert influence.max() == 1
        assert not influence[distances > reach].any()
        assert influence[distances == reach] > 0


def test_a_dilated_kernel_leaves_gaps():
    (distances, influence), _ = influence_by_distance(chain((16, 16, 1), (3, 3)), (16, 16, 1))
    assert set(distances[influence > 0]) == {0, 3}


def test_each_axis_by_itself():
    image = keras.Input((12, 12, 12, 1))
    x = layers.Conv3D(1, (1, 3, 7), padding="same", kernel_initializer="ones")(image)
    found = influence_by_distance(keras.Model(image, x), (12, 12, 12, 1), n_distances=6)
    assert [int(distances[influence > 0].max()) for distances, influence in found] == [0, 1, 3]


def test_batch_statistics_do_not_leak():
    """Batch normalization is measured as in prediction, so that far pixels have no influence through its statistics."""
    image = keras.Input((16, 16, 1))
    x = layers.BatchNormalization()(layers.Conv2D(2, 3, padding="same")(image))
    (distances, influence), _ = influence_by_distance(keras.Model(image, x), (16, 16, 1))
    assert not influence[distances > 1].any()


def test_of_several_outputs_the_last():
    image = keras.Input((16, 16, 1))
    wide = layers.Conv2D(1, 9, padding="same", kernel_initializer="ones")(image)
    narrow = layers.Conv2D(1, 3, padding="same", kernel_initializer="ones")(image)
    (distances, influence), _ = influence_by_distance(keras.Model(image, [wide, narrow]), (16, 16, 1))
    assert int(distances[influence > 0].max()) == 1
