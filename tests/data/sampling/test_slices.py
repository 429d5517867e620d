"""Batches of slices: what they hold, how often, and that they repeat (2D U-Net, sampling)."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from kitsseg.data.cache.cases import CachedCase
from kitsseg.data.geometry.geometry import Geometry
from kitsseg.data.geometry.planes import normalize
from kitsseg.data.sampling.augment import change_appearance
from kitsseg.data.sampling.batches import Draws
from kitsseg.data.sampling.draws import batch_rng
from kitsseg.data.sampling.slices import SliceBatches, ValidationSlices, batch_dataset
from kitsseg.data.splits import CaseSplit
from kitsseg.errors import InputError
from kitsseg.recipe import Augmentation, PreprocessSpec, RandomAppearance, SliceSampler

SAMPLER = SliceSampler(batch_size=7, positive=5, positive_weights="uniform", patch_size=(32, 24))
PLAIN = Augmentation()
FLIPS = Augmentation(flip_probability=0.5)
PAPER = Augmentation(scale_range=(0.6, 1.25), scale_probability=0.1, flip_probability=0.5)


def split_of(names):
    return CaseSplit("all", tuple(names), (), ())


def batches_of(cases, spec, sampler=SAMPLER, augmentation=PLAIN, **options):
    return SliceBatches(cases, split_of(cases), "train", sampler, augmentation, spec, Draws(**options))


def case_of_areas(folder, areas, size=(40, 48)):
    """A cached case whose slice k holds areas[k] pixels of kidney; HU are k + 1000 in kidney, else k."""
    labels = np.zeros((len(areas), size[0] * size[1]), np.uint8)
    for k, area in enumerate(areas):
        labels[k, :area] = 1
    labels = labels.reshape(len(areas), *size)
    image = (np.arange(len(areas))[:, None, None] + 1000 * labels.astype(np.int16)).astype(np.int16)
    folder.mkdir(parents=True)
    np.save(folder / "image.npy", image)
    np.save(folder / "labels.npy", labels)
    geometry = Geometry(image.shape, (1.0, 1.0, 1.0), image.shape, (0, 0, 0), image.shape)
    areas = np.array(areas, np.int64)
    return CachedCase(
        folder.name, folder, geometry, (0, 0, 0), areas, np.zeros_like(areas), phantom=False, channels=1
    )


def cases_of_areas(folder, *areas):
    return {f"case_{i}": case_of_areas(folder / f"case_{i}", a) for i, a in enumerate(areas)}


def test_every_batch_holds_5_positive_slices_of_7_different_cases(cached, spec):
    batches = batches_of(cached, spec, augmentation=FLIPS)
    for index in range(1000):
        drawn = batches.draw(index)
        assert len({case for case, _ in drawn}) == 7
        positive = [
            batches.cases[case].kidney_area[k] + batches.cases[case].tumor_area[k] > 0 for case, k in drawn
        ]
        assert sum(positive) >= 5
    # a batch holds the slices that were drawn: crops of whole slices have the labeled areas of these slices
    whole = batches_of(cached, spec, replace(SAMPLER, patch_size=(40, 48)), FLIPS)
    for index in range(20):
        _, labels = whole.batch(index)
        expected = [
            int(whole.cases[case].kidney_area[k] + whole.cases[case].tumor_area[k])
            for case, k in whole.draw(index)
        ]
        assert (labels > 0).sum(axis=(1, 2)).tolist() == expected


def test_positive_share_of_1000_batches(tmp_path, spec):
    """(5 + 2 f) / 7, f the mean share of positive slices of a case, here (0.1 + 0.2 ... + 0.9) / 9 = 0.5."""
    positives = [1, 2, 3, 4, 5, 6, 7, 8, 9]  # of 10 slices
    cases = cases_of_areas(tmp_path, *([20] * p + [0] * (10 - p) for p in positives))
    batches = batches_of(cases, spec)
    share = np.mean(
        [batches.cases[case].kidney_area[k] > 0 for i in range(1000) for case, k in batches.draw(i)]
    )
    f = np.array(positives) / 10
    # the 5,000 positive draws are certain; the 2,000 others are spread evenly over the cases
    sigma = np.sqrt(2000 * np.mean(f * (1 - f))) / 7000
    assert abs(share - (5 + 2 * f.mean()) / 7) < 3 * sigma
    assert 3 * sigma < 0.01  # (4 + 3 f) / 7 and (6 + f) / 7 are 0.07 away


@pytest.mark.parametrize("weights", ["area", "uniform"])
def test_positive_slices_are_drawn_by_their_weights(tmp_path, spec, weights):
    """5,000 positive draws of 6 slices: chi-square below its 99.9 % quantile for its own weights only."""
    areas = np.array([0, 40, 10, 30, 0, 20, 60, 80])
    sampler = replace(SAMPLER, positive=7, positive_weights=weights)
    cases = cases_of_areas(tmp_path, *[areas] * 7)
    batches = batches_of(cases, spec, sampler)
    drawn = [k for i in range(1000) for _, k in batches.draw(i)]
    counts = np.bincount(drawn, minlength=len(areas))
    positive = areas > 0
    assert not counts[~positive].any()
    statistic = {}
    for name, share in (
        ("area", areas[positive] / areas.sum()),
        ("uniform", np.full(positive.sum(), 1 / positive.sum())),
    ):
        expected = share * len(drawn)
        statistic[name] = ((counts[positive] - expected) ** 2 / expected).sum()
    limit = chi2.ppf(0.999, positive.sum() - 1)
    assert statistic.pop(weights) < limit
    assert statistic.popitem()[1] > limit


@pytest.mark.parametrize("areas", [[0, 5, 9, 0, 0], [9, 0, 0, 5]])
def test_first_and_last_slice_and_all_positives_are_reached(tmp_path, spec, areas):
    batches = batches_of(cases_of_areas(tmp_path, *[areas] * 7), spec)
    drawn = {(case, k) for i in range(300) for case, k in batches.draw(i)}
    assert drawn == {(case, k) for case in range(7) for k in range(len(areas))}
    only = batches_of(batches_by_name(batches), spec, replace(SAMPLER, positive=7))
    assert {k for i in range(300) for _, k in only.draw(i)} == set(np.flatnonzero(areas))


def batches_by_name(batches):
    return {case.name: case for case in batches.cases}


@pytest.mark.parametrize("n", [1, 3, 7, 9, 10, 14])
def test_every_case_is_used_once_before_any_is_used_again(tmp_path, spec, n):
    """Also where the number of cases is no multiple of the batch, or smaller than it."""
    batches = batches_of(cases_of_areas(tmp_path, *[[5, 0]] * n), spec)
    used = np.zeros(n, int)
    orders = set()
    for index in range(60):
        cases = [case for case, _ in batches.draw(index)]
        assert len(cases) == 7
        assert len(set(cases)) == min(n, 7)
        used += np.bincount(cases, minlength=n)
        assert used.max() - used.min() <= 1
        orders.add(tuple(cases))
    assert n == 1 or len(orders) > 20  # the order is not the same each time


def test_the_positive_places_are_shuffled(tmp_path, spec):
    """Place p of a batch is positive as often as any other: slice 0 alone is positive, one of 1,000."""
    batches = batches_of(cases_of_areas(tmp_path, *[[5] + [0] * 999] * 7), spec)
    places = np.array([[k == 0 for _, k in batches.draw(i)] for i in range(1000)])
    # binomial with 1,000 draws of 5/7: sigma = sqrt(1000 * 5/7 * 2/7) = 14.3
    assert np.abs(places.sum(axis=0) - 5000 / 7).max() < 4 * 14.3


def test_the_unit_slice_goes_through_all_slices_before_any_comes_again(tmp_path, spec):
    """Cases of 3, 5 and 2 slices: 10 slices, 7 a batch, so that batches span the rounds."""
    sampler = SliceSampler(batch_size=7, unit="slice", patch_size=(32, 24))
    batches = batches_of(cases_of_areas(tmp_path, [0] * 3, [0] * 5, [0] * 2), spec, sampler, seed=1)
    drawn = [slice_of_case for index in range(20) for slice_of_case in batches.draw(index)]
    everything = sorted([(0, k) for k in range(3)] + [(1, k) for k in range(5)] + [(2, k) for k in range(2)])
    rounds = [drawn[i : i + 10] for i in range(0, 140, 10)]
    assert all(sorted(one) == everything for one in rounds)
    assert len({tuple(one) for one in rounds}) == 14
    assert batches.draw(3) == drawn[21:28]  # also after later ones
    assert batches.batch(0)[0].shape == (7, 32, 24, 1)


# a batch is a pure function of (seed, index)


@pytest.mark.parametrize("path", ["fast", "batchgenerators"])
def test_a_batch_depends_on_seed_and_index_alone(cached, spec, path):
    one, two = (batches_of(cached, spec, augmentation=PAPER, seed=3, path=path) for _ in range(2))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    forward = [one.batch(i) for i in range(4)]
    backward = [two.batch(i) for i in reversed(range(4))][::-1]
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    for (images, labels), (images_2, labels_2) in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(images, images_2)
        np.testing.assert_array_equal(labels, labels_2)
        assert (images.shape, images.dtype) == ((7, 32, 24, 1), np.float32)
        assert (labels.shape, labels.dtype) == ((7, 32, 24), np.int32)
    assert not np.array_equal(forward[0][0], forward[1][0])
    other = batches_of(cached, spec, augmentation=PAPER, seed=4, path=path)
    assert not np.array_equal(forward[0][0], other.batch(0)[0])


def test_through_tf_data_and_resumed(cached, spec):
    batches = batches_of(cached, spec, augmentation=PAPER, seed=5)
    through = list(batch_dataset(batches, 0, 5).as_numpy_iterator())
    assert len(through) == 5
    for index, (images, labels) in enumerate(through):
        expected = batches_of(cached, spec, augmentation=PAPER, seed=5).batch(index)
        np.testing.assert_array_equal(images, expected[0])
        np.testing.assert_array_equal(labels, expected[1])
    resumed = list(batch_dataset(batches, 3, 5).as_numpy_iterator())
    for (images, labels), expected in zip(resumed, through[3:], strict=True):
        np.testing.assert_array_equal(images, expected[0])
        np.testing.assert_array_equal(labels, expected[1])
    images, labels = batch_dataset(batches, 0, 1).element_spec
    assert (images.shape, images.dtype.name) == ((7, 32, 24, 1), "float32")
    assert (labels.shape, labels.dtype.name) == ((7, 32, 24), "int32")


# what a batch holds


def test_images_and_labels_belong_together(cached, spec):
    """conftest's cases show their labels in HU: below 60 background, 100 and up kidney, 200 and up tumor.

    Kidney reaches 219 and tumor starts at 240; the network sees (HU - 101) / 76.9.
    """
    batches = batches_of(cached, spec, augmentation=FLIPS)
    found = set()
    for index in range(15):
        images, labels = batches.batch(index)
        hu = images[..., 0] * 76.9 + 101
        np.testing.assert_array_equal((hu > 80).astype(int) + (hu > 230), labels)
        found |= set(np.unique(labels))
    assert found == {0, 1, 2}


def test_values_are_normalized_by_hand(tmp_path, spec):
    """Background of slice 0 is 0 HU and kidney 1000, clipped to 304: -101 / 76.9 and 203 / 76.9."""
    sampler = replace(SAMPLER, positive=7, patch_size=(40, 48))
    images, labels = batches_of(cases_of_areas(tmp_path, *[[100]] * 7), spec, sampler).batch(0)
    np.testing.assert_allclose(images[..., 0], np.where(labels, 203 / 76.9, -101 / 76.9), rtol=1e-6)
    assert (labels > 0).sum() == 7 * 100


@pytest.mark.parametrize("path", ["fast", "batchgenerators"])
def test_slices_smaller_than_the_patch_are_padded_with_the_lower_bound(cached, spec, path):
    """40 x 48 in 64 x 64: 12 rows and 8 columns on each side are (-79 - 101) / 76.9, label 0."""
    sampler = replace(SAMPLER, patch_size=(64, 64))
    batches = batches_of(cached, spec, sampler, path=path)
    drawn = batches.draw(0)
    images, labels = batches.batch(0)
    for (case, k), image, truth in zip(drawn, images, labels, strict=True):
        inner = slice(12, 52), slice(8, 56)
        np.testing.assert_allclose(
            image[inner], normalize(batches.cases[case].image[k], spec), rtol=1e-6, atol=1e-6
        )
        np.testing.assert_array_equal(truth[inner], batches.cases[case].labels(k))
        rim = np.ones((64, 64), bool)
        rim[inner] = False
        np.testing.assert_allclose(image[rim, 0], -180 / 76.9, rtol=1e-6)
        assert not truth[rim].any()


def test_only_the_smaller_axis_is_padded(cached, spec):
    sampler = replace(SAMPLER, patch_size=(64, 24))
    images, labels = batches_of(cached, spec, sampler).batch(0)
    np.testing.assert_allclose(images[:, :12], -180 / 76.9, rtol=1e-6)
    np.testing.assert_allclose(images[:, 52:], -180 / 76.9, rtol=1e-6)
    assert np.ptp(images[:, 12:52]) > 1
    assert labels.shape == (7, 64, 24)


@pytest.mark.parametrize(
    ("options", "rim"),
    [
        # no int16 is -80.5: padding is the whole number below it, which is clipped to -80.5
        ({"hu_window": (-80.5, 304.0), "hu_mean": 0.0, "hu_std": 1.0}, -80.5),
        # gray values of windows begin at 0
        ({"windows": ((400, 200),), "channel_mean": (0.0, 0.0), "channel_std": (1.0, 1.0)}, 0.0),
    ],
)
def test_padding_is_the_lowest_value_of_the_specification(options, rim, tmp_path):
    """Also where it is no whole number, and where the specification has windows instead of one range of HU."""
    spec, cases = PreprocessSpec(**options), cases_of_areas(tmp_path, [5] * 8)
    if spec.windows:
        np.save(tmp_path / "case_0" / "image.npy", np.full((8, 40, 48, 2), 9, np.uint8))
        cases = {name: replace(case, channels=2) for name, case in cases.items()}
    split, sampler = CaseSplit("s", (), ("case_0",), ()), replace(SAMPLER, patch_size=(44, 48))
    images, _ = ValidationSlices(cases, split, "validation", sampler, spec).batch(0)
    np.testing.assert_allclose(images[:, [0, 1, -2, -1]], rim, atol=1e-6)
    assert (images[:, 2:-2] > rim).all()


@pytest.mark.parametrize("weights", ["area", "uniform"])
def test_a_slice_with_as_much_tumor_as_kidney_is_positive(weights, tmp_path, spec):
    """And its area is that of both: 40 of 45 draws by area."""
    sampler = replace(SAMPLER, positive=7, positive_weights=weights)
    cases = {
        name: replace(case, tumor_area=np.array([0, 20, 0, 0]))
        for name, case in cases_of_areas(tmp_path, *[[0, 20, 5, 0]] * 7).items()
    }
    drawn = [k for i in range(200) for _, k in batches_of(cases, spec, sampler).draw(i)]
    assert set(drawn) == {1, 2}
    assert abs(np.mean(np.array(drawn) == 1) - {"area": 40 / 45, "uniform": 1 / 2}[weights]) < 0.04
    split = CaseSplit("s", (), ("case_0",), ())
    assert ValidationSlices(cases, split, "validation", sampler, spec).draw(0) == [1, 1, 1, 2, 2, 2, 2]


# validation


def test_validation_slices_are_fixed_and_in_the_same_mixture(cached, spec):
    split = CaseSplit("s", ("case_00000",), tuple(list(cached)[1:]), ())
    one, two = (ValidationSlices(cached, split, "validation", SAMPLER, spec) for _ in range(2))
    assert len(one) == 8
    for index in range(len(one)):
        case, slices = one.cases[index], one.draw(index)
        assert slices == two.draw(index) == one.draw(index)
        positive = np.flatnonzero(case.kidney_area + case.tumor_area)
        assert set(slices[:5]) <= set(positive)
        assert slices[:5] == sorted(slices[:5])
        # two of eight slices, evenly spread: the middles of the halves 0..3 and 4..7
        assert slices[5:] == [2, 6]
        images, labels = one.batch(index)
        for k, image, truth in zip(slices, images, labels, strict=True):
            # the center 32 x 24 of 40 x 48
            np.testing.assert_array_equal(image, normalize(case.image[k, 4:36, 12:36], spec))
            np.testing.assert_array_equal(truth, case.labels(k)[4:36, 12:36])


def test_validation_slices_by_hand(tmp_path, spec):
    """Positive slices 2..11 in fifths: places int((i + 0.5) * 2) = 1, 3, 5, 7, 9; all 20 in halves: 5, 15."""
    cases = cases_of_areas(tmp_path, [0, 0] + [9] * 10 + [0] * 8)
    split = CaseSplit("s", (), ("case_0",), ())
    assert ValidationSlices(cases, split, "validation", SAMPLER, spec).draw(0) == [3, 5, 7, 9, 11, 5, 15]


def test_validation_through_tf_data(cached, spec):
    split = CaseSplit("s", (), tuple(cached), ())
    fixed = ValidationSlices(cached, split, "validation", SAMPLER, spec)
    through = list(batch_dataset(fixed, 0, len(fixed)).as_numpy_iterator())
    assert len(through) == 9
    for index in (0, 8):
        for array, expected in zip(through[index], fixed.batch(index), strict=True):
            np.testing.assert_array_equal(array, expected)


def test_targets_are_made_of_the_labels(cached, spec):
    batches = batches_of(cached, spec)
    ((images, targets),) = batch_dataset(
        batches, 3, 4, lambda labels: (labels > 0, labels)
    ).as_numpy_iterator()
    expected, labels = batches.batch(3)
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(targets[0], labels > 0)
    np.testing.assert_array_equal(targets[1], labels)


@pytest.mark.parametrize(("shard", "policy"), [(None, "DATA"), ((1, 2), "OFF")])
def test_a_shard_of_its_own_is_not_divided_again(shard, policy, cached, spec):
    sampler = replace(SAMPLER, batch_size=6, positive=4)
    options = batch_dataset(batches_of(cached, spec, sampler, shard=shard), 0, 2).options()
    assert options.experimental_distribute.auto_shard_policy.name == policy


# errors


@pytest.mark.parametrize("wrong", [["case_00000"], {"train": ["case_00000"]}, "80-10-10"])
def test_a_split_object_is_demanded(cached, spec, wrong):
    with pytest.raises(TypeError, match=f"CaseSplit, found {type(wrong).__name__}"):
        SliceBatches(cached, wrong, "train", SAMPLER, PLAIN, spec)
    with pytest.raises(TypeError, match="built from a CaseSplit"):
        ValidationSlices(cached, wrong, "validation", SAMPLER, spec)


def test_missing_cases_and_empty_parts(cached, spec):
    split = CaseSplit("s", ("case_00000", "case_00400", "case_00401"), (), ())
    with pytest.raises(InputError, match=r"2 of its 3 train cases.*not in the cache.* case_00400\. "):
        SliceBatches(cached, split, "train", SAMPLER, PLAIN, spec)
    with pytest.raises(InputError, match="split s: .*validation.* empty"):
        ValidationSlices(cached, split, "validation", SAMPLER, spec)


def test_a_case_without_a_positive_slice_cannot_train(tmp_path, spec):
    cases = cases_of_areas(tmp_path, [0, 3], [0, 0, 0])
    with pytest.raises(InputError, match="no slice of case_1 holds kidney or tumor"):
        batches_of(cases, spec)
    # but it can where no positive slice is asked for
    drawn = batches_of(cases, spec, replace(SAMPLER, positive=0)).draw(0)
    assert {case for case, _ in drawn} == {0, 1}


def test_unknown_path_and_flips_that_batchgenerators_cannot_draw(cached, spec):
    with pytest.raises(ValueError, match='path is "fast" or "batchgenerators", found "cubic"'):
        batches_of(cached, spec, path="cubic")
    with pytest.raises(ValueError, match=r"batchgenerators flips with probability 0\.5"):
        batches_of(cached, spec, augmentation=Augmentation(flip_probability=0.3), path="batchgenerators")


def appearing(probability, strength=1.0):
    return replace(FLIPS, appearance=RandomAppearance(probability=probability, strength=strength))


def test_a_random_appearance_changes_images_and_no_label(cached, spec):
    """The same slices, crops and labels with it and without; of 14 places at probability 0.5 some are changed."""
    plain, never, always, half = (
        batches_of(cached, spec, augmentation=augmentation)
        for augmentation in (FLIPS, appearing(0.0), appearing(1.0), appearing(0.5))
    )
    changed = 0
    for index in range(2):
        images, labels = (a.copy() for a in plain.batch(index))
        same, same_labels = (a.copy() for a in never.batch(index))
        np.testing.assert_array_equal(same, images)
        np.testing.assert_array_equal(same_labels, labels)
        other, other_labels = (a.copy() for a in always.batch(index))
        np.testing.assert_array_equal(other_labels, labels)
        assert np.isfinite(other).all()
        assert (other != images).any()
        changed += sum((a != b).any() for a, b in zip(half.batch(index)[0], images))
    assert 1 <= changed < 14


def test_a_random_appearance_depends_on_seed_index_and_place_alone(cached, spec):
    """Any order, any process: the shards of a batch are the batch, and another index is another appearance."""
    sampler = replace(SAMPLER, batch_size=6, positive=4)
    whole = batches_of(cached, spec, sampler, appearing(1.0), seed=5)
    later, first = whole.batch(7)[0].copy(), whole.batch(0)[0].copy()
    again = batches_of(cached, spec, sampler, appearing(1.0), seed=5)
    np.testing.assert_array_equal(again.batch(0)[0], first)
    parts = [
        batches_of(cached, spec, sampler, appearing(1.0), seed=5, shard=(i, 2)).batch(7)[0].copy()
        for i in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), later)
    other = batches_of(cached, spec, sampler, appearing(1.0), seed=6).batch(0)[0]
    assert (other != first).any()


def test_each_place_of_a_batch_has_a_random_appearance_of_its_own(cached, spec):
    """Streams 0 and 1 of a batch draw slices and crops; place p has stream 2 + p, which no version may change."""
    sampler = replace(SAMPLER, patch_size=(40, 48))
    augmentation = Augmentation(appearance=RandomAppearance(probability=1.0, strength=0.7))
    batches = batches_of(cached, spec, sampler, augmentation, seed=3)
    images, labels = batches.batch(4)
    for place, (case, k) in enumerate(batches.draw(4)):
        rng = batch_rng(3, 4, 2 + place)
        rng.random()  # whether the image is changed at all
        hu = change_appearance(batches.cases[case].image[k], labels[place], 0.7, rng)
        np.testing.assert_array_equal(images[place], normalize(hu, spec))


def test_a_random_appearance_needs_hu(cached):
    windows = PreprocessSpec(windows=((400, 40),), channel_mean=(0.5, 0.5), channel_std=(0.2, 0.2))
    with pytest.raises(ValueError, match=r"needs HU.*8-bit windows.*appearance to None"):
        batches_of(cached, windows, augmentation=appearing(1.0))
