"""Crops, scaling and flips: distributions, labels that follow, parity with batchgenerators (2D U-Net)."""

import numpy as np
import pytest
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.stats import chi2_contingency, ks_2samp, kstest

from kitsseg.data.sampling.augment import (
    Crop,
    apply_batchgenerators,
    batchgenerators_transform,
    center_crop,
    change_appearance,
    cut,
    cut_batchgenerators,
    draw_crop,
    pad_to,
)
from kitsseg.recipe import Augmentation

PAPER = Augmentation(scale_range=(0.6, 1.25), scale_probability=0.1, flip_probability=0.5)
ALWAYS = Augmentation(scale_range=(0.6, 1.25), scale_probability=1.0, flip_probability=0.5)
SHAPE, SIZE = (60, 52), (32, 24)
ROWS, COLUMNS = (grid.astype(np.int16) for grid in np.mgrid[: SHAPE[0], : SHAPE[1]])


def crops(augmentation, n, shape=SHAPE, size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    return [draw_crop(rng, shape, size, augmentation) for _ in range(n)]


def recovered(rows, columns):
    """The Crop that was taken, from crops of images whose values are their row and their column.

    Only the middle 8 x 8 pixels are read: a center is half a crop away from the border, so they lie inside.
    """
    middle = tuple(slice(m // 2 - 4, m // 2 + 4) for m in rows.shape)
    rows, columns = rows[middle].astype(float), columns[middle].astype(float)
    steps = np.diff(rows, axis=0).mean(), np.diff(columns, axis=1).mean()
    return Crop(
        SIZE, (rows.mean(), columns.mean()), float(np.mean(np.abs(steps))), tuple(bool(s < 0) for s in steps)
    )


def through_batchgenerators(augmentation, n):
    """Crops that batchgenerators draws, read back from an image whose channels are its rows and its columns."""
    image, labels = np.stack([ROWS, COLUMNS], axis=-1), np.zeros(SHAPE, np.uint8)
    cuts = (
        cut_batchgenerators(image, labels, SIZE, augmentation, np.random.default_rng(i))[0] for i in range(n)
    )
    return [recovered(window[..., 0], window[..., 1]) for window in cuts]


def test_share_and_range_of_scaling_and_flips():
    """4,000 draws: 0.10 +- 0.02 scaled, in (0.6, 1.25), half of them below 1; flips 0.5 of each axis."""
    drawn = crops(PAPER, 4000, (512, 512), (224, 224))
    scaled = np.array([c.scale for c in drawn if c.scale != 1])
    assert abs(len(scaled) / 4000 - 0.10) < 0.02
    assert scaled.min() > 0.6
    assert scaled.max() < 1.25
    assert abs(np.mean(scaled < 1) - 0.5) < 4 * 0.5 / np.sqrt(len(scaled))
    flips = np.array([c.flips for c in drawn])
    sigma = 0.5 / np.sqrt(4000)
    assert np.abs(flips.mean(axis=0) - 0.5).max() < 4 * sigma
    assert abs(np.mean(flips[:, 0] & flips[:, 1]) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)  # independent


def test_labels_are_those_of_the_image():
    """Image 150 x label: equal after every crop, except where interpolation passes between two labels."""
    labels = np.zeros((80, 70), np.uint8)
    labels[20:60, 12:50] = 1
    labels[30:44, 30:58] = 2
    image = 150 * labels.astype(np.int16)
    boundary = (maximum_filter(labels, 3) != minimum_filter(labels, 3)).astype(np.uint8)
    augmentation = Augmentation(scale_range=(0.6, 1.25), scale_probability=0.5, flip_probability=0.5)
    scaled = 0
    for crop in crops(augmentation, 400, labels.shape, (40, 32)):
        window, truth = cut(image, labels, crop)
        assert truth.dtype == np.uint8
        assert set(np.unique(truth)) <= {0, 1, 2}
        read = np.rint(np.asarray(window, float) / 150)
        if crop.scale == 1:
            np.testing.assert_array_equal(read, truth)
        else:
            # interpolation reads neighbors of the nearest pixel, so only pixels beside another label may differ
            mixed = cut(image, boundary, crop)[1].astype(bool)
            np.testing.assert_array_equal(read[~mixed], truth[~mixed])
            assert np.mean(read != truth) < 0.06
            scaled += 1
    assert scaled > 100


def test_labels_stay_0_1_2_for_random_labels():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, SHAPE).astype(np.uint8)
    for crop in crops(ALWAYS, 200):
        image, truth = cut(labels.astype(np.int16), labels, crop)
        assert set(np.unique(truth)) == {0, 1, 2}
        assert image.shape == truth.shape == SIZE


# what a crop is


@pytest.mark.parametrize("augmentation", [PAPER, ALWAYS])
def test_what_is_cut_is_what_was_drawn(augmentation):
    labels = np.zeros(SHAPE, np.uint8)
    for crop in crops(augmentation, 300):
        found = recovered(cut(ROWS, labels, crop)[0], cut(COLUMNS, labels, crop)[0])
        assert found.flips == crop.flips
        assert found.scale == pytest.approx(crop.scale, abs=1e-5)
        assert found.center == pytest.approx(crop.center, abs=1e-4)


def test_unscaled_crops_reach_every_start_and_copy_pixels():
    """60 x 52 minus 32 x 24: starts 0..28 in both axes."""
    starts = set()
    for crop in crops(Augmentation(), 2000):
        rows, columns = (
            cut(ROWS, ROWS.astype(np.uint8), crop)[0],
            cut(COLUMNS, COLUMNS.astype(np.uint8), crop)[0],
        )
        top, left = int(rows[0, 0]), int(columns[0, 0])
        np.testing.assert_array_equal(rows, ROWS[top : top + 32, left : left + 24])
        np.testing.assert_array_equal(columns, COLUMNS[top : top + 32, left : left + 24])
        starts.add(("row", top))
        starts.add(("column", left))
    assert starts == {(axis, start) for axis in ("row", "column") for start in range(29)}


@pytest.mark.parametrize("scale", [0.6, 0.8, 1.25])
def test_interpolation_by_hand_on_a_plane(scale):
    """On an image 3 row + 2 column every value is 3 y + 2 x at (i - (m - 1) / 2) scale + center."""
    image = (3 * ROWS + 2 * COLUMNS).astype(np.int16)
    crop = Crop(SIZE, (30.25, 25.5), scale, (False, True))
    y = (np.arange(32) - 15.5) * scale + 30.25
    x = ((np.arange(24) - 11.5) * scale + 25.5)[::-1]
    window, _ = cut(image, np.zeros(SHAPE, np.uint8), crop)
    np.testing.assert_allclose(window, 3 * y[:, None] + 2 * x, atol=1e-3)


def test_beyond_the_border_the_image_repeats_its_edge_and_labels_are_background():
    """Center 16 of 32 rows scaled by 1.25: rows from 16 - 19.375 = -3.375; 3 of them round to -3, -2, -1."""
    labels = np.ones(SHAPE, np.uint8)
    crop = Crop(SIZE, (16.0, 26.0), 1.25, (False, False))
    rows, truth = cut(ROWS, labels, crop)
    np.testing.assert_allclose(rows[:, 0], np.maximum((np.arange(32) - 15.5) * 1.25 + 16, 0), atol=1e-4)
    np.testing.assert_array_equal(truth[:, 12], [0] * 3 + [1] * 29)


def test_labels_may_be_a_function_of_the_window():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, SHAPE).astype(np.uint8)
    for crop in crops(ALWAYS, 100) + crops(PAPER, 100):
        asked = []

        def window(rows, columns, asked=asked):
            asked.append((rows, columns))
            return labels[rows, columns]

        for a, b in zip(cut(ROWS, labels, crop), cut(ROWS, window, crop), strict=True):
            np.testing.assert_array_equal(a, b)
        [(rows, columns)] = asked  # once, and within the slice
        assert 0 <= rows.start < rows.stop <= SHAPE[0]
        assert 0 <= columns.start < columns.stop <= SHAPE[1]


@pytest.mark.parametrize("augmentation", [PAPER, ALWAYS])
def test_channels_are_cut_alike(augmentation):
    image = np.random.default_rng(5).integers(0, 256, (*SHAPE, 4)).astype(np.uint8)
    labels = (ROWS % 3).astype(np.uint8)
    for crop in crops(augmentation, 30):
        window, truth = cut(image, labels, crop)
        assert window.shape == (*SIZE, 4)
        for channel in range(4):
            alone, same_truth = cut(image[..., channel], labels, crop)
            np.testing.assert_array_equal(window[..., channel], alone)
            np.testing.assert_array_equal(truth, same_truth)


def test_center_crop_and_padding_by_hand():
    """60 - 32 = 28 rows to share, 14 above; 52 - 24 = 28 columns, 14 left. 61 rows: 29, 14 above."""
    rows, columns = (cut(a, a.astype(np.uint8), center_crop(SHAPE, SIZE))[0] for a in (ROWS, COLUMNS))
    assert (rows[0, 0], rows[-1, 0], columns[0, 0], columns[0, -1]) == (14, 45, 14, 37)
    assert center_crop((61, 52), SIZE).center == (14 + 15.5, 14 + 11.5)
    image, labels = pad_to(np.full((3, 4), 7, np.int16), np.ones((3, 4), np.uint8), (6, 4), -79)
    # 3 rows missing: 1 above, 2 below
    np.testing.assert_array_equal(image[:, 0], [-79, 7, 7, 7, -79, -79])
    np.testing.assert_array_equal(labels[:, 0], [0, 1, 1, 1, 0, 0])
    assert image.dtype == np.int16
    same = pad_to(image, labels, (6, 4), 0)
    assert same[0] is image
    assert same[1] is labels


# parity with the library that the authors used


def test_parity_of_share_flips_and_starts():
    """4,000 draws each (data, line 7): both counts of scaled crops, of the four flips and of the starts could come
    from one distribution, at the level 0.001.

    A scaled share that is off by 0.03 would show: the difference of two shares of 0.1 has the standard error
    sqrt(2 * 0.1 * 0.9 / 4000) = 0.0067. batchgenerators' integer crop never takes the last start: its upper end is
    open.
    """
    ours, theirs = crops(PAPER, 4000), through_batchgenerators(PAPER, 4000)

    def scaled(drawn):
        return sum(abs(c.scale - 1) > 1e-4 for c in drawn)

    counts = np.array([[scaled(drawn), 4000 - scaled(drawn)] for drawn in (ours, theirs)])
    assert chi2_contingency(counts).pvalue > 0.001
    for drawn in (ours, theirs):  # and each by itself: 4,000 * 0.1 +- 4 sqrt(4000 * 0.1 * 0.9) = 400 +- 76
        assert abs(scaled(drawn) - 400) < 76
    flips = np.array(
        [np.bincount([2 * a + b for a, b in (c.flips for c in d)], minlength=4) for d in (ours, theirs)]
    )
    assert chi2_contingency(flips).pvalue > 0.001
    # 1,000 +- 4 sqrt(4000 * 1/4 * 3/4) = 1,000 +- 110 of each
    assert np.abs(flips - 1000).max() < 110
    for axis in (0, 1):
        starts = [
            np.bincount(
                [round(c.center[axis] - (SIZE[axis] - 1) / 2) for c in drawn if abs(c.scale - 1) < 1e-4],
                minlength=29,
            )
            for drawn in (ours, theirs)
        ]
        assert len(starts[0]) == len(starts[1]) == 29
        assert starts[0][28] > 0
        assert starts[1][28] == 0
        assert chi2_contingency([s[:28] for s in starts]).pvalue > 0.001


def test_parity_of_scale_and_center():
    """4,000 scaled crops each (data, line 7): Kolmogorov and Smirnov find factors and both coordinates of the center
    in one distribution at the level 0.001, that is no distance above 1.95 sqrt(2 / 4000) = 0.044.

    Each is also the stated distribution: factors half in (0.6, 1) and half in (1, 1.25), uniformly; centers from 16 to
    44 rows and 12 to 40 columns; that is no distance above 1.95 / sqrt(4000) = 0.031.
    """
    ours, theirs = crops(ALWAYS, 4000), through_batchgenerators(ALWAYS, 4000)
    stated = (
        lambda scale: np.interp(scale, [0.6, 1, 1.25], [0, 0.5, 1]),
        lambda row: (row - 16) / 28,
        lambda column: (column - 12) / 28,
    )
    for value, distribution in zip(
        (lambda c: c.scale, lambda c: c.center[0], lambda c: c.center[1]), stated, strict=True
    ):
        one, other = [value(c) for c in ours], [value(c) for c in theirs]
        assert ks_2samp(one, other).pvalue > 0.001
        for drawn in (one, other):
            assert kstest(drawn, lambda x, f=distribution: np.clip(f(x), 0, 1)).pvalue > 0.001


def test_parity_of_the_cut_itself():
    """Both cut the same crop of a smooth image. They differ by less than linear interpolation may be wrong.

    This bound is h^2 / 8 (|f_yy| + |f_xx|). The image is made of cosines that are even about the border: if the edge is
    repeated, the image stays smooth for the cubic interpolation of batchgenerators.
    """
    height, width = SHAPE
    y, x = (ROWS + 0.5) * np.pi / height, (COLUMNS + 0.5) * np.pi / width
    image = (3000 * np.cos(3 * y) * np.cos(2 * x)).round().astype(np.int16)
    # 0.7 for rounding to integers, which the cubic one may amplify
    bound = 3000 / 8 * ((3 * np.pi / height) ** 2 + (2 * np.pi / width) ** 2) + 0.7
    labels = (image > 600).astype(np.uint8) + (image > 1800)
    for i in range(200):
        augmentation = ALWAYS if i % 2 else PAPER
        theirs, their_labels = cut_batchgenerators(
            image, labels, SIZE, augmentation, np.random.default_rng(i)
        )
        crop = recovered(
            *(
                cut_batchgenerators(a, labels, SIZE, augmentation, np.random.default_rng(i))[0]
                for a in (ROWS, COLUMNS)
            )
        )
        if abs(crop.scale - 1) < 1e-4:
            crop = Crop(SIZE, crop.center, 1.0, crop.flips)
        ours, our_labels = cut(image, labels, crop)
        assert np.abs(ours - theirs).max() < bound
        boundary = maximum_filter(our_labels, 3) != minimum_filter(our_labels, 3)
        # the library takes the half pixel between the last pixel's center and the border for outside
        positions = [
            (np.arange(m) - (m - 1) / 2) * crop.scale + c for m, c in zip(crop.size, crop.center, strict=True)
        ]
        positions = [p[::-1] if flip else p for p, flip in zip(positions, crop.flips, strict=True)]
        rim = [
            ((p > -0.6) & (p < 0.001)) | ((p > n - 1.001) & (p < n - 0.4)) for p, n in zip(positions, SHAPE)
        ]
        exempt = boundary | rim[0][:, None] | rim[1]
        np.testing.assert_array_equal(our_labels[~exempt], their_labels[~exempt])
        assert np.mean(our_labels != their_labels) < 0.05


def test_batchgenerators_draws_from_the_generator_given():
    labels = (ROWS % 3).astype(np.uint8)
    one, two, other = (
        cut_batchgenerators(ROWS, labels, SIZE, ALWAYS, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one[0], two[0])
    assert not np.array_equal(one[0], other[0])
    assert one[1].dtype == np.uint8
    assert one[0].shape == one[1].shape == SIZE


@pytest.mark.parametrize("augmentation", [PAPER, ALWAYS])
def test_channels_go_through_batchgenerators_alike(augmentation):
    image = np.random.default_rng(6).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    labels = (ROWS % 3).astype(np.uint8)
    for seed in range(5):
        window, truth = cut_batchgenerators(image, labels, SIZE, augmentation, np.random.default_rng(seed))
        assert window.shape == (*SIZE, 3)
        for channel in range(3):
            alone, same_truth = cut_batchgenerators(
                image[..., channel], labels, SIZE, augmentation, np.random.default_rng(seed)
            )
            np.testing.assert_array_equal(window[..., channel], alone)
            np.testing.assert_array_equal(truth, same_truth)


def test_the_transform_in_a_pipeline_of_batchgenerators():
    """As its own users call it: a batch of slices in, crops out; patches keep their size and are flipped only."""
    flips = Augmentation(flip_probability=0.5)
    batch = batchgenerators_transform(SIZE, PAPER)(
        data=np.stack([ROWS, ROWS])[:, None].astype(np.float32), seg=np.zeros((2, 1, *SHAPE), np.int16)
    )
    assert batch["data"].shape == batch["seg"].shape == (2, 1, *SIZE)
    patch = np.arange(4 * 6 * 8, dtype=np.float32).reshape(1, 4, 6, 8)
    found = set()
    for seed in range(40):
        image, labels = apply_batchgenerators(
            batchgenerators_transform((4, 6, 8), flips), patch, patch[0] % 3, np.random.default_rng(seed)
        )
        [axes] = [
            axes for axes in ((), (1,), (2,), (1, 2)) if np.array_equal(image[0], np.flip(patch[0], axes))
        ]
        np.testing.assert_array_equal(labels, np.flip(patch[0] % 3, axes))
        found.add(axes)
    assert found == {(), (1,), (2,), (1, 2)}
    untouched = apply_batchgenerators(
        batchgenerators_transform((4, 6, 8), Augmentation()), patch, patch[0] % 3, np.random.default_rng(0)
    )[0]
    np.testing.assert_array_equal(untouched, patch)


def test_what_the_library_cannot_draw_is_an_error():
    with pytest.raises(ValueError, match=r"flips with probability 0\.5, found 0\.3"):
        batchgenerators_transform(SIZE, Augmentation(flip_probability=0.3))
    with pytest.raises(
        ValueError, match=r"3D patches are not scaled; scale_probability must be 0, found 0\.1"
    ):
        batchgenerators_transform((4, 6, 8), PAPER)


def test_without_strength_only_objects_and_blur_are_left():
    """Even background and even kidney: nothing is painted on the kidney, and blur leaves its inside even."""
    labels = np.zeros((60, 60), np.uint8)
    labels[20:40, 15:45] = 1
    hu = np.where(labels == 1, 130, -100).astype(np.int16)
    painted = 0
    for seed in range(30):
        changed = change_appearance(hu, labels, 0.0, np.random.default_rng(seed))
        assert changed.dtype == np.float32
        np.testing.assert_allclose(changed[25:35, 20:40], 130, atol=0.01)
        painted += np.abs(changed[:10] + 100).max() > 1
    assert 5 < painted < 28
    assert hu[30, 30] == 130  # the slice itself is left alone


def test_kidneys_and_background_change_as_far_as_stated():
    """With full strength: the kidneys' mean differs from crop to crop by some 20 HU of their own and 30 % of 130."""
    labels = np.zeros((60, 60), np.uint8)
    labels[20:40, 15:45] = 1
    hu = np.where(labels == 1, 130, -100).astype(np.int16)
    rngs = [np.random.default_rng(seed) for seed in range(200)]
    means = np.array([change_appearance(hu, labels, 1.0, rng)[25:35, 20:40].mean() for rng in rngs])
    assert means.mean() == pytest.approx(134, abs=12)  # exp(0.3 n) is 1.046 on average
    # variances add: 0.7 of curves with slope (0.3 * 130)**2 + 14**2 + about 12**2, 0.5 of tissues with 20**2
    expected = np.sqrt(0.7 * (39**2 + 14**2 + 12**2) + 0.5 * 20**2)
    assert means.std() == pytest.approx(expected, rel=0.2)
