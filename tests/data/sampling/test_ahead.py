"""Batches that other processes make: the same to the last bit, in order, whatever happens to the processes."""

import multiprocessing
import os
import signal
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from support.cases import make_case, spec_of_tests

from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.cases import open_cache
from kitsseg.data.sampling.ahead import DEPTH, BatchesAhead, batches_ahead
from kitsseg.data.sampling.batches import BatchesInParts, Draws
from kitsseg.data.sampling.patches import PatchBatches
from kitsseg.data.sampling.slices import SliceBatches, batch_dataset
from kitsseg.data.splits import make_split
from kitsseg.errors import InputError
from kitsseg.recipe import Augmentation, PatchSampler, SliceSampler

NAMES = [f"case_{i:05d}" for i in range(5)]
AUGMENTED = Augmentation(flip_probability=0.5, scale_range=(0.8, 1.25), scale_probability=0.5)
FLIPPED = Augmentation(flip_probability=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    for i, name in enumerate(NAMES):
        make_case(data / name, seed=i, positive=(1 + i % 3, 5))
    return data


@pytest.fixture(scope="module")
def opened(folder, tmp_path_factory):
    spec = spec_of_tests()
    cache = tmp_path_factory.mktemp("cache")
    preprocess_cases(folder, cache, spec)
    return open_cache(cache, spec)


def slices(cases, shard=None, size=4):
    sampler = SliceSampler(batch_size=size, positive=size // 2, patch_size=(16, 16))
    draws = Draws(seed=3, shard=shard)
    return SliceBatches(cases, make_split(NAMES), "train", sampler, AUGMENTED, spec_of_tests(), draws)


def patches(cases):
    sampler = PatchSampler(cases_per_batch=2, patch_size=(4, 8, 8))
    return PatchBatches(cases, make_split(NAMES), "train", sampler, FLIPPED, spec_of_tests(), Draws(seed=3))


def in_parts(cases):
    return BatchesInParts([slices(cases, (part, 2)) for part in range(2)])


def check_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("make", [slices, patches, in_parts])
def test_batches_are_those_of_one_process_and_stay_as_they_are(make, opened):
    expected, first = make(opened), 2
    with batches_ahead(make(opened), first, 9, processes=2) as ahead:
        assert ahead.form == expected.form
        found = [ahead.batch(index) for index in range(first, 9)]  # all kept: none may be written over
    for index, each in enumerate(found, first):
        check_same(each, expected.batch(index))


def test_one_process_is_this_one(opened):
    batches = slices(opened)
    with batches_ahead(batches, 0, 9) as ahead:
        assert ahead is batches
    assert not multiprocessing.active_children()


def test_batches_that_are_asked_for_again_or_out_of_order_are_right(opened):
    expected = slices(opened)
    with batches_ahead(slices(opened), 0, 12, processes=2) as ahead:
        for index in (0, 1, 7, 2, 2, 11, 12, 40, 0):  # 12 and 40 lie behind what was planned
            check_same(ahead.batch(index), expected.batch(index))


def test_a_dataset_of_them_is_the_dataset_of_one_process(opened):
    pytest.importorskip("tensorflow")
    with batches_ahead(slices(opened), 1, 6, processes=2) as ahead:
        for _ in range(2):  # from its beginning again
            found = list(batch_dataset(ahead, 1, 6).as_numpy_iterator())
            for index, each in enumerate(found, 1):
                check_same(each, slices(opened).batch(index))


def test_cases_that_are_open_and_compressed_are_sent(folder, tmp_path):
    pytest.importorskip("blosc2")
    spec = spec_of_tests()
    preprocess_cases(folder, tmp_path, spec, compress=True)
    batches = slices(open_cache(tmp_path, spec))
    expected = [batches.batch(index) for index in range(3)]  # opens the cases
    with batches_ahead(batches, 0, 3, processes=2) as ahead:
        for index in range(3):
            check_same(ahead.batch(index), expected[index])


def test_processes_end_with_the_block_and_without_it(opened):
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt), batches_ahead(slices(opened), 0, 99, processes=2) as ahead:
        ahead.batch(0)
        raise KeyboardInterrupt
    assert set(multiprocessing.active_children()) == before
    ahead = BatchesAhead(slices(opened), 0, 99, 2)
    assert len(set(multiprocessing.active_children()) - before) == 2
    del ahead
    assert set(multiprocessing.active_children()) == before


def test_what_a_process_cannot_read_is_told_by_the_batch_that_needed_it(opened, tmp_path):
    """A case that vanished: all batches without it come, and the error of the others is the source's own."""
    source = slices(opened, size=1)
    kept = [case.folder for case in source.cases]
    source.cases = [
        replace(case, folder=tmp_path / "gone") if i == 1 else case for i, case in enumerate(source.cases)
    ]
    expected = {}
    for index in range(50):
        with suppress(InputError):
            expected[index] = source.batch(index)
    assert 0 < len(expected) < 50
    with batches_ahead(source, 0, 50, processes=2) as ahead:
        for index in range(50):
            for _ in range(2):  # asked for again, it is the same batch, or the same error
                if index in expected:
                    check_same(ahead.batch(index), expected[index])
                else:
                    with pytest.raises(InputError, match="gone"):
                        ahead.batch(index)
    assert all(path.is_dir() for path in kept)


@pytest.mark.skipif(os.name == "nt", reason="processes are killed by signals")
def test_a_process_that_dies_is_one_error_that_names_the_option(opened):
    with batches_ahead(slices(opened), 0, 999, processes=2) as ahead:
        ahead.batch(0)
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
            child.join()
        with pytest.raises(InputError, match=r"--loaders: .*code -9"):
            for index in range(1, 2 * DEPTH + 2):
                ahead.batch(index)
