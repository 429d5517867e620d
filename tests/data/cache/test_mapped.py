"""Only a few files of a cache are mapped at a time: the data are the same, and few descriptors are open.

If the process may open no more files, the error names this limit as the cause.
"""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from support.cases import make_case, spec_of_tests

from kitsseg.data.cache import cases as cases_module
from kitsseg.data.cache import mapped
from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.case_file import read_case, write_case
from kitsseg.data.cache.cases import open_cache

resource = pytest.importorskip("resource")

CASES = 60
PRELUDE = """
import json, os, resource, sys, zlib
from kitsseg.data.cache.cases import open_cache
from kitsseg.data.sampling.batches import Draws
from kitsseg.data.sampling.slices import SliceBatches
from kitsseg.data.splits import CaseSplit
from kitsseg.recipe import Augmentation, PreprocessSpec, SliceSampler

limit, folder, what = int(sys.argv[1]), sys.argv[2], sys.argv[3]
spec = PreprocessSpec(hu_window=(-79.0, 304.0), hu_mean=101.0, hu_std=76.9)
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
cases = open_cache(folder, spec)
"""
SUMS = """
names = sorted(cases)
split = CaseSplit("all", tuple(names[:-2]), tuple(names[-2:-1]), tuple(names[-1:]))
sampler = SliceSampler(batch_size=5, positive=3, patch_size=(32, 32))
batches = SliceBatches(cases, split, "train", sampler, Augmentation(flip_probability=0.5), spec, Draws(seed=3))
sums, most = [], 0
for index in range(50):
    images, labels = batches[index]
    sums.append(zlib.crc32(images.tobytes() + labels.tobytes()))
    most = max(most, len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0)
print(json.dumps([sums, most]))
"""
FULL = """
held = []
try:
    while True:
        held.append(open(os.devnull))
except OSError:
    pass
try:
    cases["case_00000"].image if what == "array" else open_cache(folder, spec)
except Exception as error:
    message = f"{type(error).__name__}: {error}"
del held
print(message)
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A cache of sixty patients whose arrays are hard links to those of three; their records differ."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(3):
        make_case(folder / "data" / f"case_{i:05d}", seed=i)
    cache, *_ = preprocess_cases(folder / "data", folder / "cache", spec_of_tests())
    for i in range(3, CASES):
        source, target = cache / f"case_{i % 3:05d}", cache / f"case_{i:05d}"
        target.mkdir()
        for name in ("image.npy", "labels.npy"):
            os.link(source / name, target / name)
        record = read_case(source)
        record.hu_counts.counts[0] += i  # else it would be the same patient
        write_case(target, record)
    return cache


def of_child(code, limit, cache, what=""):
    arguments = [sys.executable, "-c", PRELUDE + code, str(limit), str(cache), what]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


def test_more_cases_than_descriptors_give_the_same_batches(many):
    sums, most = json.loads(of_child(SUMS, 48, many))
    unbounded, _ = json.loads(of_child(SUMS, 1024, many))
    assert sums == unbounded
    assert len(set(sums)) == 50
    assert most < 48  # of 120 files, with those of the process itself


@pytest.mark.parametrize("what", ["array", "record"])
def test_a_limit_is_told_as_the_cause_and_no_file_as_damaged(many, what):
    message = of_child(FULL, 48, many, what)
    assert message.startswith("InputError")
    assert "48 that this process" in message
    assert "ulimit -n" in message
    assert "Remove" not in message


def test_other_files_are_unmapped_where_a_descriptor_is_needed(many):
    """If other files take all descriptors, a mapped file is closed, so that the file needed now can be opened."""
    code = """
for case in list(cases.values())[20:30]:
    case.image  # mapped, and in nobody's use
held = []
try:
    while True:
        held.append(open(os.devnull))
except OSError:
    pass
print(int(cases["case_00000"].image[3, 12, 10]))
"""
    expected = open_cache(many.parent, spec_of_tests())["case_00000"].image[3, 12, 10]
    assert int(of_child(code, 48, many)) == expected


def test_an_array_in_use_outlives_its_turn(many, monkeypatch):
    monkeypatch.setattr(mapped, "_most", lambda: 2)
    cases = list(open_cache(many.parent, spec_of_tests()).values())
    kept = [case.image for case in cases]
    copies = [np.load(case.folder / "image.npy") for case in cases]
    for array, copy, case in zip(kept, copies, cases, strict=True):
        np.testing.assert_array_equal(array, copy)
        np.testing.assert_array_equal(case.image, copy)
    assert len(mapped._mapped) <= 2


def test_a_file_that_is_mapped_is_not_mapped_again(many):
    case = next(iter(open_cache(many.parent, spec_of_tests()).values()))
    assert case.image is case.image
    assert case.boxed_labels is case.boxed_labels


@pytest.mark.parametrize("lacks", [1, 2])
def test_a_lack_of_memory_is_no_damage(lacks, many, monkeypatch):
    """With less mapped there may be room: the file is tried once more. Then the lack of memory is told."""
    case = open_cache(many.parent, spec_of_tests())["case_00001"]
    tried = []

    def no_room(path):
        tried.append(path)
        if len(tried) <= lacks:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return known(path)

    known = cases_module.mapped_array
    monkeypatch.setattr(cases_module, "mapped_array", no_room)
    if lacks == 1:
        assert case.image is case.image
    else:
        with pytest.raises(MemoryError, match="it is not damaged"):
            case.image  # noqa: B018  # maps the file
    assert len(tried) == 2
