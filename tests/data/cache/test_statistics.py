"""Exact foreground statistics of the training cases, against NumPy on all voxels."""

import numpy as np
import pytest
from support.cases import make_case

from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.cases import open_cache
from kitsseg.data.cache.hu_statistics import HuCounts, count_hu
from kitsseg.data.cache.parts import training_counts
from kitsseg.data.formats.nifti import read_image, read_labels
from kitsseg.data.splits import CaseSplit, make_split
from kitsseg.errors import InputError


def assert_same(counts, values):
    values = np.ravel(values).astype(np.float64)
    assert counts.voxels == len(values)
    np.testing.assert_allclose(counts.mean, values.mean(), rtol=1e-12)
    np.testing.assert_allclose(counts.std, values.std(), rtol=1e-9, atol=1e-9)
    for q in (0, 0.5, 1, 33.3, 50, 99.5, 100):
        np.testing.assert_allclose(counts.percentile(q), np.percentile(values, q), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(
    "values",
    [
        [5],
        [-3, -3, 7],
        [-32768, 32767],
        np.random.default_rng(0).normal(100, 80, 99_991),
        np.random.default_rng(1).integers(-32768, 32768, 5000),
    ],
    ids=["one", "three", "ends of int16", "kidney", "anything"],
)
def test_equal_to_numpy_on_all_values(values):
    values = np.array(values, np.int16)
    assert_same(count_hu([values]), values)
    assert_same(count_hu([values[:2], values[2:3].reshape(-1, 1), values[3:]]), values)


def test_by_hand():
    """1, 1, 2, 6: mean 2.5; variance (2.25 + 2.25 + 0.25 + 12.25) / 4 = 4.25; 50 % lies between 1 and 2."""
    counts = count_hu([np.array([2, 1, 6, 1], np.int16)])
    assert (counts.first, counts.counts.tolist()) == (1, [2, 1, 0, 0, 0, 1])
    assert (counts.voxels, counts.mean, counts.std, counts.percentile(50)) == (4, 2.5, 4.25**0.5, 1.5)


def test_counts_add_up_in_any_order():
    rng = np.random.default_rng(2)
    parts = [rng.integers(a, a + 50, 30).astype(np.int16) for a in (-900, -20, 0, 3000)]
    parts.insert(1, np.zeros(0, np.int16))
    nothing = HuCounts(0, np.zeros(0, np.int64))
    for order in (parts, parts[::-1]):
        total = sum((count_hu([part]) for part in order), nothing)
        assert_same(total, np.concatenate(parts))
        assert total.first == min(map(min, filter(len, parts)))
    assert (nothing + nothing).voxels == 0


def test_only_the_training_part_counts(data, cached, spec, tmp_path):
    """Over the voxels of the files themselves; another validation or test case changes nothing."""
    split = make_split(list(cached))

    def expected():
        return np.concatenate(
            [
                read_image(data / name / "imaging.nii.gz").array[
                    read_labels(data / name / "segmentation.nii.gz").array > 0
                ]
                for name in split.train
            ]
        )

    assert_same(training_counts(cached, split), expected())
    for seed, name in enumerate((*split.validation, *split.test), 90):
        make_case(data / name, seed=seed, positive=(0, 8))
    preprocess_cases(data, tmp_path / "other", spec)
    others = open_cache(tmp_path / "other", spec)
    for name in (*split.validation, *split.test):
        assert others[name].hu_counts.voxels != cached[name].hu_counts.voxels
    assert_same(training_counts(others, split), expected())


def test_of_the_scan_whatever_the_recipe_makes_of_it(data, spec, tmp_path):
    """Resampled, cropped, in channels of 8 bit: the counts are those of the scan's own voxels."""
    from kitsseg import recipes

    found = []
    for name in ("unet2d", "squeeze_unet", "deeplab3d:tiny"):
        recipe_spec = recipes.get(name).preprocess
        preprocess_cases(data, tmp_path / "cache", recipe_spec)
        case = open_cache(tmp_path / "cache", recipe_spec)["case_00003"]
        found.append((case.hu_counts.first, case.hu_counts.counts.tolist()))
    assert found[0] == found[1] == found[2]
    image = read_image(data / "case_00003" / "imaging.nii.gz").array
    labels = read_labels(data / "case_00003" / "segmentation.nii.gz").array
    assert_same(case.hu_counts, image[labels > 0])


def test_refused(cached):
    split = make_split(list(cached))
    with pytest.raises(TypeError, match="built from a CaseSplit"):
        training_counts(cached, list(cached))
    with pytest.raises(InputError, match="1 of its 2 train cases.*not in the cache.*case_77777"):
        training_counts(cached, CaseSplit("s", (split.train[0], "case_77777"), (), ()))


@pytest.mark.filterwarnings("ignore:.*only background")
def test_no_foreground_at_all(tmp_path, spec):
    make_case(tmp_path / "data" / "a", positive=(3, 3))
    preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    cases = open_cache(tmp_path / "cache", spec)
    assert cases["a"].hu_counts.voxels == 0
    assert not cases["a"].labels(3).any()
    with pytest.raises(InputError, match="kidney or tumor.* 1 training cases, found none"):
        training_counts(cases, CaseSplit("s", ("a",), (), ()))
