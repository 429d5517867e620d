"""What a network sees: HU windows, histogram scaling, normalization (SqueezeNet U-Net §2, §7 line 7; WP-UNet)."""

from dataclasses import replace

import numpy as np
import pytest
from support.cases import spec_of_tests

from kitsseg import recipes
from kitsseg.data.geometry.geometry import Geometry, plan_geometry
from kitsseg.data.geometry.planes import (
    _eight_bit_channels,
    histogram_scaled,
    network_planes,
    normalize,
    windowed,
)
from kitsseg.recipe import PreprocessSpec

LIVER, CUSTOM = (150.0, 30.0), (200.0, 60.0)


def hu(values):
    return np.array(values, np.int16)


def channels_spec(size=None):
    return PreprocessSpec(
        slice_size=size,
        windows=(LIVER, CUSTOM),
        channel_mean=(0.485, 0.456, 0.406),
        channel_std=(0.229, 0.224, 0.225),
    )


@pytest.mark.parametrize(("window", "values"), [(LIVER, [-45, 30, 105]), (CUSTOM, [-40, 60, 160])])
def test_squeeze_unet_windows(window, values):
    """(150, 30) is -45 to 105, (200, 60) is -40 to 160: the ends give 0 and 1, the level one half."""
    np.testing.assert_allclose(windowed(hu([values]), *window), [[0, 0.5, 1]], atol=1e-7)
    outside = windowed(hu([[-2000, values[0] - 1, values[2] + 1, 3000]]), *window)
    np.testing.assert_array_equal(outside, [[0, 0, 1, 1]])


def test_the_recipe_has_those_two_windows():
    for variant in ("", ":practical", ":tiny"):
        assert recipes.get(f"squeeze_unet{variant}").preprocess.windows == (LIVER, CUSTOM)


def test_an_odd_width_is_halved_downwards():
    """151 // 2 is 75: the window of (151, 30) is that of (150, 30), as in the notebook's formula."""
    values = hu([np.arange(-60, 120)])
    np.testing.assert_array_equal(windowed(values, 151, 30), windowed(values, 150, 30))


@pytest.mark.parametrize("value", [-1024, 0, 3000])
def test_squeeze_unet_a_constant_slice_does_not_crash(value):
    slice_ = np.full((5, 7), value, np.int16)
    np.testing.assert_array_equal(histogram_scaled(slice_), np.zeros((5, 7)))
    assert not _eight_bit_channels(slice_, (LIVER, CUSTOM))[..., 2].any()


def test_histogram_by_hand():
    """Every value is a break point; four of them lie at 0, 1/3, 2/3 and 1, however unequal their distances."""
    scaled = histogram_scaled(hu([[-1000, 0], [40, 1000]]))
    np.testing.assert_allclose(scaled, [[0, 1 / 3], [2 / 3, 1]], atol=1e-7)
    # a value that is no break point lies between its neighbors: of 10,000 pixels one is 30, between 0 and 40;
    # positions 10, 50, 150, ... 9990 of the sorted pixels hold -1000 (first 5000), 0 and 40 (2499, 2500)
    values = hu([-1000] * 5000 + [0] * 2499 + [30] + [40] * 2500)
    scaled = histogram_scaled(values)
    np.testing.assert_allclose(scaled[[0, 5000, 7499, 9999]], [0, 0.5, 0.5 + 0.5 * 30 / 40, 1])


def test_histogram_ignores_the_outermost_thousandth():
    """2000 pixels: break points start at position 0.001 * 2000 = 2 and end at 1998; what lies beyond is clipped."""
    values = hu([-3000, -2000, *range(1996), 9000, 9999])
    np.random.default_rng(0).shuffle(values)
    scaled = histogram_scaled(values)
    assert set(scaled[values < 0]) == {0}
    assert scaled[values == 0] == 0  # position 2
    assert scaled[values == 9000] == scaled[values == 9999] == 1  # position 1998 holds 9000
    assert 0 < scaled[values == 10] < scaled[values == 1990] < 1


def test_histogram_spreads_any_distribution_evenly():
    rng = np.random.default_rng(1)
    values = np.rint(np.exp(rng.normal(5, 1, (150, 150)))).astype(np.int16)
    scaled = histogram_scaled(values)
    np.testing.assert_allclose(np.quantile(scaled, np.arange(0.1, 1, 0.1)), np.arange(0.1, 1, 0.1), atol=0.02)
    order = np.argsort(values, axis=None)
    assert (np.diff(scaled.ravel()[order]) >= 0).all()
    np.testing.assert_allclose(
        histogram_scaled(2 * values.clip(0, 9000) + 7), histogram_scaled(values.clip(0, 9000))
    )


@pytest.mark.parametrize("span", [(-32768, 32768), (-1024, 3000), (5, 7)])
def test_channels_are_those_of_every_pixel_by_itself(span):
    """By the definitions: pixels sorted, interpolated one by one; also where HU take up all 16 bits."""
    slice_ = np.random.default_rng(span[1]).integers(*span, (40, 50)).astype(np.int16)
    ordered = np.sort(slice_.ravel())
    shares = [0.001, *((k + 0.5) / 100 for k in range(100)), 0.999]
    breaks = sorted({int(ordered[int(share * 2000)]) for share in shares})
    expected = np.interp(slice_, breaks, np.linspace(0, 1, len(breaks))).astype(np.float32)
    np.testing.assert_array_equal(histogram_scaled(slice_), expected)
    channels = _eight_bit_channels(slice_, (LIVER, CUSTOM))
    np.testing.assert_array_equal(channels[..., 2], (expected * 255).astype(np.uint8))
    for k, window in enumerate((LIVER, CUSTOM)):
        np.testing.assert_array_equal(channels[..., k], (windowed(slice_, *window) * 255).astype(np.uint8))


def test_eight_bits_are_truncated():
    """HU 30: 0.5 * 255 = 127.5 -> 127 in the liver window; (30 + 40) / 200 * 255 = 89.25 -> 89 in the other."""
    channels = _eight_bit_channels(hu([[-1000, 30], [160, 3000]]), (LIVER, CUSTOM))
    assert channels.dtype == np.uint8
    assert channels.shape == (2, 2, 3)
    np.testing.assert_array_equal(channels[..., 0], [[0, 127], [255, 255]])
    np.testing.assert_array_equal(channels[..., 1], [[0, 89], [255, 255]])
    np.testing.assert_array_equal(channels[..., 2], [[0, 85], [170, 255]])  # thirds: 85 and 170


def test_channels_are_made_before_the_slice_is_resized():
    """A block of two black and two white pixels is gray: (0 + 0 + 255 + 255) / 4 = 127.5 -> 128 (to even).

    Resized first it would be HU 0, that is 45 / 150 * 255 = 76.
    """
    image = np.tile(hu([[-1000, 1000], [1000, -1000]]), (1, 2, 2))
    spec = channels_spec((2, 2))
    geometry = plan_geometry(image, (3.0, 1.0, 1.0), spec)
    (plane,) = network_planes(image, geometry, spec)
    assert plane.dtype == np.uint8
    assert plane.shape == (2, 2, 3)
    np.testing.assert_array_equal(plane, np.full((2, 2, 3), 128))


def test_one_channel_resized_by_area_and_boxed():
    """4 x 4 to 2 x 2: means of 2 x 2 pixels; only the box of the geometry is given out, and only its slices."""
    image = np.arange(48, dtype=np.int16).reshape(3, 4, 4)
    spec = replace(spec_of_tests(), slice_size=(2, 2))
    whole = list(network_planes(image, plan_geometry(image, (1.0, 1.0, 1.0), spec), spec))
    # slice 0: (0 + 1 + 4 + 5) / 4 = 2.5 -> 2 (to even), (2 + 3 + 6 + 7) / 4 = 4.5 -> 4, 10.5 -> 10, 12.5 -> 12
    np.testing.assert_array_equal(whole[0], [[2, 4], [10, 12]])
    assert [plane.dtype for plane in whole] == [np.int16] * 3
    boxed = Geometry((3, 4, 4), (1.0, 1.0, 1.0), (3, 2, 2), (1, 1, 0), (3, 2, 2))
    planes = list(network_planes(image, boxed, spec))
    np.testing.assert_array_equal(planes, [whole[1][1:], whole[2][1:]])
    boxed = Geometry((3, 4, 4), (1.0, 1.0, 1.0), (3, 2, 2), (2, 0, 1), (3, 1, 2))
    np.testing.assert_array_equal(list(network_planes(image, boxed, spec)), [whole[2][:1, 1:]])


@pytest.mark.parametrize("slice_size", [None, (1, 4)])
def test_values_are_clipped_to_the_integers_inside_the_limits(slice_size):
    """HU are integers: between -79.5 and 303.5 lie -79 to 303, so that no rounded value lies outside."""
    image = hu([[[-1000, -79, 303, 304]]])
    spec = replace(spec_of_tests(), clip_hu=(-79.5, 303.5), slice_size=slice_size)
    (plane,) = network_planes(image, plan_geometry(image, (1.0, 1.0, 1.0), spec), spec)
    assert plane.tolist() == [[-79, -79, 303, 303]]


def test_without_resampling_the_scan_comes_through():
    image = np.random.default_rng(0).integers(-1024, 3000, (3, 5, 6)).astype(np.int16)
    for spec in (spec_of_tests(), channels_spec()):
        planes = list(network_planes(image, plan_geometry(image, (1.0, 1.0, 1.0), spec), spec))
        if spec.windows is None:
            np.testing.assert_array_equal(planes, image)
        else:
            np.testing.assert_array_equal(planes, [_eight_bit_channels(k, spec.windows) for k in image])


def test_normalize_one_channel_by_hand():
    """(clip(HU, -79, 304) - 101) / 76.9."""
    values = hu([[-1000, -79, 101], [304, 305, 24]])
    expected = np.array([[-180, -180, 0], [203, 203, -77]]) / 76.9
    normal = normalize(values, spec_of_tests())
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal[..., 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(normalize(values.astype(np.float64), spec_of_tests()), normal)


def test_wp_unet_sees_minus_512_to_512_as_0_to_1():
    spec = recipes.get("wp_unet").preprocess
    np.testing.assert_allclose(normalize(hu([[-600, -512, 0, 512, 3000]]), spec)[0, :, 0], [0, 0, 0.5, 1, 1])


def test_normalize_channels_by_hand():
    """(255 / 255 - 0.485) / 0.229 and so on; each channel has its own mean and deviation."""
    planes = np.array([[[255, 255, 255], [0, 51, 102]]], np.uint8)
    expected = [
        [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225],
        [-0.485 / 0.229, (0.2 - 0.456) / 0.224, (0.4 - 0.406) / 0.225],
    ]
    normal = normalize(planes, channels_spec())
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(normalize(planes.astype(np.float32), channels_spec()), normal)


@pytest.mark.parametrize("spec", [spec_of_tests(), channels_spec()], ids=["one", "three"])
def test_normalize_writes_where_it_is_told(spec):
    """Also through a mirrored view, as the samplers flip; the source stays as it is."""
    shape = (4, 5, 6) if spec.windows is None else (4, 5, 6, 3)
    planes = (
        np.random.default_rng(0)
        .integers(0, 255, shape)
        .astype(np.int16 if spec.windows is None else np.uint8)
    )
    before = planes.copy()
    out = np.full((4, 5, 6, spec.channels), np.nan, np.float32)
    result = normalize(planes, spec, out=out[:, ::-1])
    assert np.shares_memory(result, out)
    np.testing.assert_array_equal(out[:, ::-1], normalize(planes, spec))
    np.testing.assert_array_equal(planes, before)
