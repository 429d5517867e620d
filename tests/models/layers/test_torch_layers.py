"""Pixel shuffle, nearest resizing and ICNR against torch's rules, written out by hand."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from kitsseg.models.layers.torch_compat import (
    ICNR,
    NearestResize,
    PixelShuffle,
    kaiming_normal,
    nearest_indices,
)


def numpy_of(tensor):
    return ops.convert_to_numpy(tensor)


def test_pixel_shuffle_order():
    # one pixel, 8 channels numbered by their index: channel 4 k + 2 i + j goes to row i, column j, channel k
    result = numpy_of(PixelShuffle(name="shuffle")(np.arange(8, dtype="float32").reshape(1, 1, 1, 8)))[0]
    np.testing.assert_array_equal(result[:, :, 0], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(result[:, :, 1], [[4, 5], [6, 7]])


def test_pixel_shuffle_follows_its_formula_on_non_square_batches():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 12)).astype("float32")
    result = numpy_of(PixelShuffle(name="shuffle")(x))
    assert result.shape == (2, 6, 10, 3)
    for row, column, k in np.ndindex(6, 10, 3):
        source = x[:, row // 2, column // 2, 4 * k + 2 * (row % 2) + column % 2]
        np.testing.assert_array_equal(result[:, row, column, k], source)


def test_pixel_shuffle_refuses_channels_that_do_not_divide():
    with pytest.raises(ValueError, match="multiple of 4"):
        PixelShuffle(name="shuffle")(np.zeros((1, 2, 2, 6), "float32"))


def test_nearest_indices():
    # 30 -> 31: 0, 0, 1, 2, ..., 29, as floor(i * 30 / 31) = i - 1 for i = 1..30
    np.testing.assert_array_equal(nearest_indices(30, 31), [0, *range(30)])
    # 254 -> 256: s = 127/128; floor(i s) falls one behind at i = 1, two behind at i = 129: 0 and 127 twice
    doubled = sorted([*range(254), 0, 127])
    np.testing.assert_array_equal(nearest_indices(254, 256), doubled)


def test_nearest_indices_round_the_scale_to_float32():
    # 41 * 8 / 82 is exactly 4, but 8/82 in float32 is a little below: torch picks 3
    assert 41 * 8 // 82 == 4
    assert nearest_indices(8, 82)[41] == 3
    assert np.delete(nearest_indices(8, 82), 41).tolist() == [i * 8 // 82 for i in range(82) if i != 41]


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize(("size", "target"), [((8, 30), (82, 31)), ((5, 6), (5, 4)), ((6, 3), (123, 3))])
def test_nearest_resize_picks_those_pixels_with_known_and_unknown_sizes(static, size, target):
    x = np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")
    reference = np.zeros((2, *target, 1), "float32")
    inputs = [
        keras.Input((*a.shape[1:3], a.shape[3]) if static else (None, None, a.shape[3]))
        for a in (x, reference)
    ]
    model = keras.Model(inputs, NearestResize(name="resize")(*inputs))
    assert model.output_shape == (None, *(target if static else (None, None)), 3)
    expected = x[:, nearest_indices(size[0], target[0])][:, :, nearest_indices(size[1], target[1])]
    np.testing.assert_array_equal(model.predict([x, reference], verbose=0), expected)


def test_icnr_repeats_each_kernel_four_times():
    kernel = numpy_of(ICNR()((1, 1, 512, 256), "float32"))
    groups = kernel.reshape(512, 64, 4)
    assert np.all(groups == groups[:, :, :1])
    assert len(np.unique(groups[:, :, 0])) > 0.99 * 512 * 64
    # Kaiming normal: variance 2 / 512; 32,768 draws give its root to within 2 % (5 standard errors)
    assert np.std(groups[:, :, 0]) == pytest.approx(np.sqrt(2 / 512), rel=0.02)


def test_pixel_shuffle_starts_without_a_checkerboard():
    x = np.random.default_rng(2).normal(size=(1, 4, 4, 8)).astype("float32")
    conv = layers.Conv2D(16, 1, kernel_initializer=ICNR(), name="expand")
    blocks = numpy_of(PixelShuffle(name="shuffle")(conv(x)))[0].reshape(4, 2, 4, 2, 4)
    np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:, :1, :, :1], blocks.shape))


def test_icnr_refuses_outputs_that_do_not_divide():
    with pytest.raises(ValueError, match="multiple of 4"):
        ICNR()((1, 1, 8, 6), "float32")


def test_kaiming_normal_is_not_cut_off():
    draws = numpy_of(kaiming_normal()((1, 1, 8, 20_000), "float32")) / np.sqrt(2 / 8)
    assert np.std(draws) == pytest.approx(1, rel=0.01)
    # a normal leaves 2.3 standard deviations in 2.1 % of draws; Keras' truncated one never leaves 2.28
    assert np.mean(np.abs(draws) > 2.3) == pytest.approx(0.0214, rel=0.1)
