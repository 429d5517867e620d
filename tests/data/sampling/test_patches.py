"""Batches of 3D patches: their centers, classes and borders (3D DeepLab, line 5)."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from kitsseg.data.cache.cases import CachedCase
from kitsseg.data.geometry.geometry import Geometry
from kitsseg.data.sampling.batches import Draws
from kitsseg.data.sampling.patches import PatchBatches, ValidationPatches, class_runs
from kitsseg.data.sampling.slices import batch_dataset
from kitsseg.data.splits import CaseSplit
from kitsseg.errors import InputError
from kitsseg.recipe import Augmentation, PatchSampler, RandomAppearance

SAMPLER = PatchSampler(cases_per_batch=13, patch_size=(6, 8, 10))
PLAIN = Augmentation()
FLIPS = Augmentation(flip_probability=0.5)


def write_case(folder, labels):
    """A cached case of these labels, boxed; its HU count through -79..220 in C order, so neighbors differ."""
    folder.mkdir(parents=True)
    image = np.arange(labels.size).reshape(labels.shape) % 300 - 79
    found = np.argwhere(labels)
    start, stop = (found.min(axis=0), found.max(axis=0) + 1) if len(found) else (np.zeros(3, int),) * 2
    np.save(folder / "image.npy", image.astype(np.int16))
    np.save(folder / "labels.npy", labels[tuple(slice(a, b) for a, b in zip(start, stop))].astype(np.uint8))
    areas = [(labels == label).sum(axis=(1, 2)) for label in (1, 2)]
    geometry = Geometry(labels.shape, (1.0, 1.0, 1.0), labels.shape, (0, 0, 0), labels.shape)
    start = tuple(int(a) for a in start)
    return CachedCase(folder.name, folder, geometry, start, *areas, phantom=False, channels=1)


def labels_of(case):
    return np.stack([case.labels(k) for k in range(case.geometry.shape[0])])


def random_labels(seed, shape=(9, 20, 24), tumor=True):
    """Blots of kidney and tumor that reach the borders, so that patches are moved inward."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    for label in (1, 1, 1, 2, 2) if tumor else (1, 1):
        start = [rng.integers(0, n) for n in shape]
        labels[tuple(slice(a, a + rng.integers(1, 6)) for a in start)] = label
    labels[0, 0, 0] = 1
    if tumor:
        labels[-1, -1, -1] = 2
    return labels


def write_cases(folder, n, **options):
    return {
        f"case_{i:05d}": write_case(folder / f"case_{i:05d}", random_labels(i, **options)) for i in range(n)
    }


@pytest.fixture
def patients(tmp_path):
    return write_cases(tmp_path, 13)


def split_of(names):
    return CaseSplit("all", tuple(names), (), ())


def batches_of(cases, spec, sampler=SAMPLER, augmentation=PLAIN, **options):
    return PatchBatches(cases, split_of(cases), "train", sampler, augmentation, spec, Draws(**options))


def test_39_patches_of_13_patients_have_13_centers_of_each_class(patients, spec):
    batches = batches_of(patients, spec)
    truth = [labels_of(case) for case in batches.cases]
    assert batches.form.batch_size == 39
    for index in range(20):
        drawn = batches.draw(index)
        assert np.bincount([truth[case][center] for case, _, center in drawn]).tolist() == [13, 13, 13]
        assert sorted((case, label) for case, label, _ in drawn) == [
            (case, label) for case in range(13) for label in range(3)
        ]


def test_random_mode_draws_each_class_1000_times_in_3000(patients, spec):
    """77 batches of 39 are 3,003 draws; the first 3,000: within 1,000 +- 3 sqrt(3000 * 1/3 * 2/3) = 78."""
    batches = batches_of(patients, spec, replace(SAMPLER, mode="random"))
    truth = [labels_of(case) for case in batches.cases]
    drawn = [item for index in range(77) for item in batches.draw(index)][:3000]
    assert len(drawn) == 3000
    counts = np.bincount([label for _, label, _ in drawn], minlength=3)
    assert np.abs(counts - 1000).max() <= 78
    assert [truth[case][center] for case, _, center in drawn] == [label for _, label, _ in drawn]
    # a case does not give one patch of each class, as in stratified mode: that happens in 3! / 27 of the triples
    triples = np.array([label for _, label, _ in drawn]).reshape(1000, 3)
    complete = (np.sort(triples, axis=1) == [0, 1, 2]).all(axis=1).mean()
    assert abs(complete - 6 / 27) < 4 * np.sqrt(6 / 27 * 21 / 27 / 1000)


@pytest.mark.parametrize("shape", [(9, 20, 24), (5, 20, 24), (5, 7, 9), (1, 30, 3), (6, 8, 10)])
def test_patch_shape_is_fixed_at_borders_and_in_small_volumes(tmp_path, spec, shape):
    """Against an oracle that pads the whole volume; HU tell voxels apart."""
    cases = write_cases(tmp_path, 3, shape=shape)
    batches = batches_of(cases, spec)
    size = SAMPLER.patch_size
    front = [max(m - n, 0) // 2 for n, m in zip(shape, size)]
    widths = [(f, max(m - n, 0) - f) for f, n, m in zip(front, shape, size)]
    moved = 0
    for index in range(5):
        images, labels = batches.batch(index)
        assert (images.shape, images.dtype) == ((39, 6, 8, 10, 1), np.float32)
        assert (labels.shape, labels.dtype) == ((39, 6, 8, 10), np.int32)
        for (case, label, center), image, patch in zip(batches.draw(index), images, labels, strict=True):
            hu = np.pad(batches.cases[case].image, widths, constant_values=-79)
            truth = np.pad(labels_of(batches.cases[case]), widths)
            middle = [c + f for c, f in zip(center, front)]
            start = [int(np.clip(c - m // 2, 0, n - m)) for c, m, n in zip(middle, size, hu.shape)]
            window = tuple(slice(a, a + m) for a, m in zip(start, size))
            np.testing.assert_allclose(image[..., 0], (hu[window].clip(-79, 304) - 101) / 76.9, atol=1e-5)
            np.testing.assert_array_equal(patch, truth[window])
            at = [c - a for c, a in zip(middle, start)]
            assert patch[tuple(at)] == label
            moved += at != [3, 4, 5]
    assert moved  # somewhere a patch was moved inward or padded


def test_the_center_voxel_lies_at_half_the_patch(tmp_path, spec):
    """One tumor voxel far from the border; even and odd sizes: 6 // 2 = 3, 7 // 2 = 3."""
    labels = np.zeros((20, 30, 30), np.uint8)
    labels[9, 12, 15] = 2
    cases = {"a": write_case(tmp_path / "a", labels)}
    for size, middle in (((6, 8, 10), (3, 4, 5)), ((7, 9, 11), (3, 4, 5))):
        _, patches = batches_of(cases, spec, PatchSampler(cases_per_batch=1, patch_size=size)).batch(0)
        assert np.argwhere(patches[2] == 2).tolist() == [list(middle)]


# every voxel of a class is equally likely


@pytest.mark.parametrize("label", [0, 1, 2])
def test_voxels_of_a_class_are_drawn_uniformly(tmp_path, label):
    """Chi-square over all voxels of the class below its 99.9 % quantile, 20 draws expected for each."""
    labels = np.zeros((4, 6, 7), np.uint8)
    labels[1, 1:4, 2:7] = (
        1  # runs of five, to the last column of the box: they touch across rows of one column
    )
    labels[2, 0:2, 0] = 1
    labels[1, 2, 3:5] = 2  # splits a run
    labels[3, 5, 6] = 2
    labels[2, 3] = 2
    runs = class_runs(write_case(tmp_path / "a", labels))
    assert runs.counts == tuple(np.bincount(labels.ravel()))
    voxels = np.flatnonzero(labels.ravel() == label)
    rng = np.random.default_rng(0)
    drawn = [runs.draw(rng, label) for _ in range(20 * len(voxels))]
    counts = np.bincount(np.ravel_multi_index(np.transpose(drawn), labels.shape), minlength=labels.size)
    assert counts.sum() == counts[voxels].sum()  # none of another class
    statistic = ((counts[voxels] - 20) ** 2 / 20).sum()
    assert statistic < chi2.ppf(0.999, len(voxels) - 1)


def test_runs_enumerate_exactly_the_voxels_of_each_class(tmp_path):
    """Each number below the count, in order, gives each voxel of the class once, in C order."""

    class Counter:
        def __init__(self):
            self.next = -1

        def integers(self, count):
            self.next += 1
            return self.next % count

    for seed in range(20):
        labels = (random_labels(seed) + 2 * (np.random.default_rng(seed).random((9, 20, 24)) > 0.9)) % 3
        runs = class_runs(write_case(tmp_path / str(seed), labels))
        for label in (1, 2):
            rng = Counter()
            drawn = [runs.draw(rng, label) for _ in range(runs.counts[label])]
            np.testing.assert_array_equal(drawn, np.argwhere(labels == label))


def test_the_index_is_compact(tmp_path):
    """A full box of kidney is one run; 8 bytes for each run."""
    labels = np.zeros((10, 50, 50), np.uint8)
    labels[2:8, 5:45, 10:40] = 1
    runs = class_runs(write_case(tmp_path / "a", labels))
    assert runs.counts == (25000 - 7200, 7200, 0)
    assert runs.ends[1].tolist() == [7200]
    assert runs.shifts[1].tolist() == [0]
    assert runs.ends[1].nbytes + runs.shifts[1].nbytes == 8
    assert runs.ends[2].size == 0


# missing classes


def test_a_missing_class_gives_background(tmp_path, spec):
    cases = write_cases(tmp_path, 2, tumor=False) | {
        "empty": write_case(tmp_path / "empty", np.zeros((9, 20, 24), np.uint8))
    }
    for batches in (
        batches_of(cases, spec, replace(SAMPLER, cases_per_batch=3)),
        ValidationPatches(
            cases,
            CaseSplit("s", (), tuple(cases), ()),
            "validation",
            replace(SAMPLER, cases_per_batch=3),
            spec,
        ),
    ):
        drawn = [item for index in range(3) for item in batches.draw(index)]
        for number, expected in enumerate([[0, 1, 0], [0, 1, 0], [0, 0, 0]]):
            found = [label for case, label, _ in drawn if case == number]
            assert found == expected * (len(found) // 3)
        for case, label, center in drawn:
            assert batches.cases[case].labels(center[0])[center[1:]] == label


def test_drawing_a_missing_class_and_a_case_without_background_are_errors(tmp_path):
    runs = class_runs(write_case(tmp_path / "a", random_labels(0, tumor=False)))
    with pytest.raises(ValueError, match="a holds no voxel.* 2"):
        runs.draw(np.random.default_rng(0), 2)
    with pytest.raises(InputError, match="every voxel labelled"):
        class_runs(write_case(tmp_path / "b", np.ones((2, 3, 4), np.uint8)))


# cases


@pytest.mark.parametrize("n", [1, 3, 5, 7, 10])
def test_every_case_is_used_once_before_any_is_used_again(tmp_path, spec, n):
    batches = batches_of(write_cases(tmp_path, n), spec, replace(SAMPLER, cases_per_batch=5))
    used = np.zeros(n, int)
    for index in range(30):
        cases = [case for case, _, _ in batches.draw(index)]
        assert len(cases) == 15
        assert cases[::3] == cases[1::3] == cases[2::3]  # three patches of each
        assert len(set(cases)) == min(n, 5)
        used += np.bincount(cases[::3], minlength=n)
        assert used.max() - used.min() <= 1


# a batch is a pure function of (seed, index)


@pytest.mark.parametrize("mode", ["stratified", "random"])
def test_a_batch_depends_on_seed_and_index_alone(patients, spec, mode):
    sampler = replace(SAMPLER, mode=mode)
    one, two = (batches_of(patients, spec, sampler, FLIPS, seed=3) for _ in range(2))
    forward = [one.batch(i) for i in range(3)]
    backward = [two.batch(i) for i in reversed(range(3))][::-1]
    for (images, labels), (images_2, labels_2) in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(images, images_2)
        np.testing.assert_array_equal(labels, labels_2)
    assert not np.array_equal(forward[0][0], forward[1][0])
    assert not np.array_equal(forward[0][0], batches_of(patients, spec, sampler, FLIPS, seed=4).batch(0)[0])


def test_through_tf_data(patients, spec):
    batches = batches_of(patients, spec, replace(SAMPLER, cases_per_batch=2), FLIPS)
    dataset = batch_dataset(batches, 1, 4)
    for index, (images, labels) in zip(range(1, 4), dataset.as_numpy_iterator(), strict=True):
        np.testing.assert_array_equal(images, batches.batch(index)[0])
        np.testing.assert_array_equal(labels, batches.batch(index)[1])
    images, labels = dataset.element_spec
    assert images.shape == (6, *batches.form.image_shape) == (6, 6, 8, 10, 1)
    assert labels.shape == (6, *batches.form.label_shape) == (6, 6, 8, 10)


# flips


def test_flips_mirror_rows_and_columns_of_image_and_labels_together(patients, spec):
    plain, flipped = (batches_of(patients, spec, augmentation=a) for a in (PLAIN, FLIPS))
    counts = {}
    for index in range(20):
        for image, labels, image_2, labels_2 in zip(*plain.batch(index), *flipped.batch(index), strict=True):
            same = [
                axes for axes in ((), (1,), (2,), (1, 2)) if np.array_equal(np.flip(image, axes), image_2)
            ]
            assert len(same) == 1  # the HU of a patch are all different along rows and columns
            np.testing.assert_array_equal(np.flip(labels, same[0]), labels_2)
            counts[same[0]] = counts.get(same[0], 0) + 1
    # 780 patches, 195 expected of each: sigma = sqrt(780 * 1/4 * 3/4) = 12.1
    assert max(abs(counts[axes] - 195) for axes in ((), (1,), (2,), (1, 2))) < 4 * 12.1


# validation


def test_validation_patches_are_fixed_one_of_each_class_of_each_case(patients, spec):
    split = CaseSplit("s", ("case_00000",), tuple(list(patients)[1:]), ())
    one, two = (ValidationPatches(patients, split, "validation", SAMPLER, spec) for _ in range(2))
    assert len(one) == 12
    assert one.form.batch_size == 3
    for index in range(12):
        drawn = one.draw(index)
        assert [label for _, label, _ in drawn] == [0, 1, 2]
        assert {case for case, _, _ in drawn} == {index}
        images, labels = one.batch(index)
        assert (images.shape, images.dtype) == ((3, 6, 8, 10, 1), np.float32)
        assert (labels.shape, labels.dtype) == ((3, 6, 8, 10), np.int32)
        for k, (case, label, center) in enumerate(drawn):
            assert one.cases[case].labels(center[0])[center[1:]] == label
            assert label in labels[k]
    for index in reversed(range(12)):
        assert two.draw(index) == one.draw(index)
        np.testing.assert_array_equal(two.batch(index)[0], one.batch(index)[0])
    assert len({one.draw(index)[0][2] for index in range(12)}) > 6  # not the same place in all
    assert next(iter(batch_dataset(one, 0, 12)))[0].shape == (3, 6, 8, 10, 1)


# bad arguments


def test_scaling_appearance_several_channels_and_wrong_splits_are_errors(patients, spec):
    with pytest.raises(ValueError, match=r"scale_probability must be 0, found 0\.1"):
        batches_of(patients, spec, augmentation=Augmentation(scale_range=(0.6, 1.25), scale_probability=0.1))
    with pytest.raises(ValueError, match="appearance .*None, found RandomAppearance"):
        batches_of(patients, spec, augmentation=Augmentation(appearance=RandomAppearance(probability=1.0)))
    several = replace(
        spec,
        **dict.fromkeys(("hu_window", "hu_mean", "hu_std")),
        windows=((400, 40),),
        channel_mean=(0.5, 0.5),
        channel_std=(0.2, 0.2),
    )
    with pytest.raises(ValueError, match="one channel of HU; .*has 2"):
        batches_of(patients, several)
    with pytest.raises(TypeError, match="CaseSplit"):
        PatchBatches(patients, list(patients), "train", SAMPLER, PLAIN, spec)
    with pytest.raises(InputError, match="not in the cache"):
        PatchBatches(patients, split_of(["case_99999"]), "train", SAMPLER, PLAIN, spec)
    with pytest.raises(InputError, match="validation part is empty"):
        ValidationPatches(patients, split_of(patients), "validation", SAMPLER, spec)
