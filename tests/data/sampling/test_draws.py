"""Who may be drawn, and that batches repeat: leakage, replay and shards of both samplers (data, lines 4 and 5)."""

import copy
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import TESTS

from kitsseg import recipes
from kitsseg.data.cache.cases import cache_folder, open_cache
from kitsseg.data.sampling.augment import batchgenerators_transform
from kitsseg.data.sampling.batches import Draws
from kitsseg.data.sampling.draws import batch_rng, checked_index, in_circles, own_places
from kitsseg.data.sampling.patches import PatchBatches, ValidationPatches
from kitsseg.data.sampling.slices import SliceBatches, ValidationSlices, batch_dataset
from kitsseg.data.splits import CaseSplit, load_split, make_split
from kitsseg.errors import InputError
from kitsseg.recipe import Augmentation, PatchSampler, SliceSampler

SLICES = SliceSampler(batch_size=6, positive=4, positive_weights="area", patch_size=(32, 24))
EVERY_SLICE = SliceSampler(batch_size=6, unit="slice", patch_size=(32, 24))
PATCHES = PatchSampler(cases_per_batch=4, patch_size=(4, 16, 12))
RANDOM_PATCHES = replace(PATCHES, mode="random")
PAPER = Augmentation(scale_range=(0.6, 1.25), scale_probability=0.4, flip_probability=0.5)
FLIPS = Augmentation(flip_probability=0.5)
KINDS = ["slices", "every slice", "batchgenerators", "patches", "random patches", "mirrored patches"]


def training_batches(kind, cases, split, spec, part="train", **options):
    if kind in ("slices", "every slice", "batchgenerators"):
        sampler = EVERY_SLICE if kind == "every slice" else SLICES
        path = "batchgenerators" if kind == "batchgenerators" else "fast"
        return SliceBatches(cases, split, part, sampler, PAPER, spec, Draws(path=path, **options))
    sampler = RANDOM_PATCHES if kind == "random patches" else PATCHES
    path = "batchgenerators" if kind == "mirrored patches" else "fast"
    return PatchBatches(cases, split, part, sampler, FLIPS, spec, Draws(path=path, **options))


def all_of(names):
    return CaseSplit("all", tuple(names), (), ())


def digest(batch):
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in batch)).hexdigest()


def assert_same(batch, expected):
    for array, other in zip(batch, expected, strict=True):
        np.testing.assert_array_equal(array, other)
        assert array.dtype == other.dtype


def in_another_process(script, cache, **environment):
    """Run a script that imports this module and opens a cache; returns the last line that it prints."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", script.format(cache=str(cache))],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{TESTS}"} | environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


# a batch is a pure function of (seed, index)

OTHER_PROCESS = """
from test_draws import *
from support.cases import spec_of_tests
spec = spec_of_tests()
cases = open_cache({cache!r}, spec)
found = {{}}
for kind in KINDS:
    found[kind] = [digest(training_batches(kind, cases, all_of(cases), spec, seed=3)[i]) for i in (5, 2)]
assert not set(sys.modules) & {{"tensorflow", "keras", "jax", "torch"}}, "NumPy is all that is needed"
print(json.dumps(found))
"""


def test_another_process_draws_the_same_without_tensorflow(cached, spec, tmp_path):
    """Two other processes, each with its own order of hashes; first batch 5, then batch 2."""
    here = {
        kind: [digest(training_batches(kind, cached, all_of(cached), spec, seed=3)[i]) for i in (5, 2)]
        for kind in KINDS
    }
    assert len({text for pair in here.values() for text in pair}) == 2 * len(KINDS)
    for hash_seed in ("1", "4242"):
        printed = in_another_process(OTHER_PROCESS, tmp_path / "cache", PYTHONHASHSEED=hash_seed)
        assert json.loads(printed) == here


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_at_step_k_through_tf_data_and_numpy(cached, spec, kind):
    whole = training_batches(kind, cached, all_of(cached), spec, seed=5)
    expected = [whole[i] for i in range(6)]
    for start in (0, 2, 5):
        fresh = training_batches(kind, cached, all_of(cached), spec, seed=5)
        stream = batch_dataset(fresh, start, 6).as_numpy_iterator()
        for batch, other in zip(stream, expected[start:], strict=True):
            assert_same(batch, other)
        fresh = training_batches(kind, cached, all_of(cached), spec, seed=5)
        for index in range(start, 6):
            assert_same(fresh[index], expected[index])


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_given_out_is_not_written_to_again(cached, spec, kind):
    batches = training_batches(kind, cached, all_of(cached), spec)
    first = batches[0]
    before = digest(first)
    for index in range(1, 4):
        batches[index][0][...] = 7  # nor does a user's own writing reach anything
    assert digest(first) == before == digest(batches[0])


# shards


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2, 3])
def test_shards_in_order_are_the_batch_of_one_process(cached, spec, kind, count):
    one = training_batches(kind, cached, all_of(cached), spec, seed=7)
    parts = [
        training_batches(kind, cached, all_of(cached), spec, seed=7, shard=(i, count)) for i in range(count)
    ]
    assert [part.form.batch_size for part in parts] == [one.form.batch_size // count] * count
    for index in (0, 1, 4, 9):
        whole, shares = one[index], [part[index] for part in parts]
        assert_same([np.concatenate(arrays) for arrays in zip(*shares, strict=True)], whole)
        assert [item for part in parts for item in part.draw(index)] == one.draw(index)
    images, labels = batch_dataset(parts[1], 0, 1).element_spec
    assert images.shape[0] == labels.shape[0] == one.form.batch_size // count
    assert_same(next(batch_dataset(parts[1], 4, 5).as_numpy_iterator()), parts[1][4])


@pytest.mark.parametrize("kind", ["slices", "patches"])
def test_a_shard_reads_nothing_but_what_it_draws(cached, spec, kind):
    """Only the cases that the shard draws for batch 0 have files, so that reading another case would raise an error."""
    names = list(cached)
    own = training_batches(kind, cached, all_of(names), spec, shard=(1, 2))
    needed = {own.cases[item[0]].name for item in own.draw(0)}
    assert len(needed) < len(
        {item[0] for item in training_batches(kind, cached, all_of(names), spec).draw(0)}
    )
    hollow = {
        name: case if name in needed else replace(case, folder=case.folder.parent / f"gone_{name}")
        for name, case in cached.items()
    }
    assert_same(training_batches(kind, hollow, all_of(names), spec, shard=(1, 2))[0], own[0])
    with pytest.raises(InputError, match="missing or damaged"):
        training_batches(kind, hollow, all_of(names), spec, shard=(0, 2))[0]


def test_validation_in_shards(cached, spec):
    split = CaseSplit("s", (), tuple(cached), ())
    for cls, sampler, count in ((ValidationSlices, SLICES, 2), (ValidationPatches, PATCHES, 3)):
        one = cls(cached, split, "validation", sampler, spec)
        parts = [cls(cached, split, "validation", sampler, spec, shard=(i, count)) for i in range(count)]
        assert all(len(part) == len(one) == 9 for part in parts)
        for index in range(9):
            shares = [part[index] for part in parts]
            assert_same([np.concatenate(arrays) for arrays in zip(*shares, strict=True)], one[index])


def test_the_random_numbers_of_a_batch_are_those_of_one_philox_key():
    expected = np.random.Generator(np.random.Philox(key=[3, 5 * 2**32 + 7])).random(4)
    np.testing.assert_array_equal(batch_rng(3, 5, 7).random(4), expected)
    last = np.random.Generator(np.random.Philox(key=[3, 5 * 2**32 + 2**32 - 1])).random(4)
    np.testing.assert_array_equal(batch_rng(3, np.int64(5), 2**32 - 1).random(4), last)


def test_items_in_circles_by_hand():
    orders = {0: np.array([0, 1, 2, 3, 4, 5]), 1: np.array([5, 4, 3, 2, 1, 0])}

    def drawn(size, batches):
        return [in_circles(orders.__getitem__, 6, size, index).tolist() for index in range(batches)]

    # batches of 4 from 6 items: three batches go through one order twice, then the next order begins
    assert drawn(4, 5) == [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5], [5, 4, 3, 2], [1, 0, 5, 4]]
    assert drawn(3, 3) == [[0, 1, 2], [3, 4, 5], [5, 4, 3]]
    # more than there are: each once before any again
    assert drawn(8, 2) == [[0, 1, 2, 3, 4, 5, 0, 1], [2, 3, 4, 5, 0, 1, 2, 3]]


def test_numbers_of_batches_by_hand():
    assert checked_index(np.int64(4)) == 4 and checked_index(0, 1) == 0 and checked_index(2, 3) == 2
    for index, n in ((-1, None), (-1, 3), (3, 3), (0, 0)):
        with pytest.raises(IndexError, match=f"found {index}"):
            checked_index(index, n)


def test_own_places_by_hand():
    assert [list(own_places(6, (i, 3))) for i in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert list(own_places(4, None)) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="batch of 7 .*divided.* 2 processes"):
        own_places(7, (0, 2))
    for wrong in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="0 <= index < count"):
            own_places(6, wrong)


DISTRIBUTED = """
from test_draws import *
from support.cases import spec_of_tests
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
tf.config.threading.set_inter_op_parallelism_threads(2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
spec = spec_of_tests()
cases = open_cache({cache!r}, spec)
for kind in KINDS:
    batches = training_batches(kind, cases, all_of(cases), spec, seed=9)
    distributed = strategy.experimental_distribute_dataset(batch_dataset(batches, 2, 5))
    indices = []
    for index, both in zip(range(2, 6), distributed):
        parts = [strategy.experimental_local_results(arrays) for arrays in both]
        sizes = [[len(part) for part in arrays] for arrays in parts]
        assert sizes == [[batches.form.batch_size // 2] * 2] * 2, sizes
        assert_same([np.concatenate([part.numpy() for part in arrays]) for arrays in parts], batches[index])
        indices.append(index)
    assert indices == [2, 3, 4], indices
print("equal")
"""


@pytest.mark.slow
def test_two_replicas_of_tf_distribute_get_the_batches_of_one(cached, tmp_path):
    """Two logical devices on one CPU; each batch is divided, in order, and none is lost or doubled."""
    assert in_another_process(DISTRIBUTED, tmp_path / "cache", CUDA_VISIBLE_DEVICES="") == "equal"


# NumPy arrays


def test_batches_are_indexed_and_lists_of_them_end(cached, spec):
    split = CaseSplit("s", (), tuple(cached), ())
    for cls, sampler in ((ValidationSlices, SLICES), (ValidationPatches, PATCHES)):
        fixed = cls(cached, split, "validation", sampler, spec)
        assert len(list(fixed)) == len(fixed) == 9
        with pytest.raises(IndexError, match="numbered from 0 to 8; found 9"):
            fixed[9]
    for kind in ("slices", "patches"):
        batches = training_batches(kind, cached, all_of(cached), spec)
        assert_same(batches[np.int64(3)], batches.batch(3))
        with pytest.raises(IndexError, match="numbered from 0; found -1"):
            batches[-1]
    with pytest.raises(TypeError):
        checked_index(1.5)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_draws_by_batchgenerators_too(name):
    """The library flips with probability 0.5 only. Another probability is an error and is not rounded to 0.5."""
    for phase in recipes.get(name).phases:
        if phase.augmentation.flip_probability in (0, 0.5):
            batchgenerators_transform(phase.sampler.patch_size, phase.augmentation)
        else:
            with pytest.raises(ValueError, match="Use the fast path"):
                batchgenerators_transform(phase.sampler.patch_size, phase.augmentation)


# no patient is in two parts


def unchecked(train, validation, test=()):
    """A CaseSplit that was never checked, as a careless or a hostile program might make one."""
    split = CaseSplit("tricked", ("x",), ("y",), ())
    for part, names in zip(("train", "validation", "test"), (train, validation, test), strict=True):
        object.__setattr__(split, part, tuple(names))
    return split


class Unchecked(CaseSplit):
    def __post_init__(self):
        pass


def routes(parts, folder):
    """Ways to come by a split, each a function; ``parts`` are lists of names."""
    train, validation, test = parts
    path = folder / "split.json"

    def from_file():
        path.write_text(json.dumps({"train": train, "validation": validation, "test": test}))
        return load_split(path)

    def grown():
        split = CaseSplit("grown", [], list(validation), list(test))
        split.train.extend(train)
        return split

    def replaced():
        clean = CaseSplit("clean", tuple(name for name in train if name not in validation + test), (), ())
        return replace(clean, train=tuple(train), validation=tuple(validation), test=tuple(test))

    return {
        "made": lambda: CaseSplit("made", tuple(train), tuple(validation), tuple(test)),
        "from a file": from_file,
        "grown after the check": grown,
        "set past the check": lambda: unchecked(train, validation, test),
        "a subclass that checks nothing": lambda: Unchecked(
            "u", tuple(train), tuple(validation), tuple(test)
        ),
        "replaced": replaced,
        "unpickled": lambda: pickle.loads(pickle.dumps(unchecked(train, validation, test))),
        "copied": lambda: copy.copy(unchecked(train, validation, test)),
        "among those at hand": lambda: unchecked(train, validation, test).among(train + validation + test)[0],
        "no split": lambda: SimpleNamespace(name="n", train=train, validation=validation, test=test),
    }


def datasets(cases, split, spec):
    """Every way from a split to a data set: name of the part, and a function."""
    for part in ("train", "validation", "test"):
        for kind in ("slices", "patches"):
            yield part, lambda part=part, kind=kind: training_batches(kind, cases, split, spec, part=part)
        yield part, lambda part=part: ValidationSlices(cases, split, part, SLICES, spec)
        yield part, lambda part=part: ValidationPatches(cases, split, part, PATCHES, spec)


def test_no_route_leads_an_overlapping_patient_into_a_dataset(cached, spec, tmp_path):
    """200 random splits, each by a random route: an overlapping split never becomes a data set, the others do."""
    rng, names, refused, accepted = np.random.default_rng(11), list(cached), 0, 0
    for _ in range(200):
        shuffled = rng.permutation(names).tolist()
        a, b = sorted(rng.choice(np.arange(1, 9), 2, replace=False))
        parts = [shuffled[:a], shuffled[a:b], shuffled[b:]]
        if overlap := rng.random() < 0.7:
            source, target = rng.choice(3, 2, replace=False)
            parts[target].insert(int(rng.integers(len(parts[target]) + 1)), str(rng.choice(parts[source])))
        way = str(rng.choice(list(routes(parts, tmp_path))))
        if overlap or way == "no split":
            chosen = int(rng.integers(12))  # of 12 data sets each
            with pytest.raises((InputError, TypeError), match=r"One patient.* one part|CaseSplit"):
                list(datasets(cached, routes(parts, tmp_path)[way](), spec))[chosen][1]()
            refused += 1
        else:
            split, seen = routes(parts, tmp_path)[way](), {}
            for part, make in datasets(cached, split, spec):
                seen.setdefault(part, set()).update(case.folder for case in make().cases)
            assert sum(len(folders) for folders in seen.values()) == len(set.union(*seen.values())) == 9
            accepted += 1
    assert refused > 100
    assert accepted > 20


@pytest.mark.parametrize("how", ["alias", "link", "copy"])
def test_one_patient_under_two_names_is_refused(cached, spec, tmp_path, how):
    folder = cache_folder(tmp_path / "cache", spec)
    if how == "alias":
        cases = cached | {"case_00099": cached["case_00000"]}
    else:
        if how == "link":
            (folder / "case_00099").symlink_to(folder / "case_00000")
        else:
            shutil.copytree(folder / "case_00000", folder / "case_00099")
        cases = open_cache(tmp_path / "cache", spec)
    assert "case_00099" in cases
    split = CaseSplit("s", ("case_00000", "case_00001"), ("case_00099", "case_00002"), ("case_00003",))
    for _, make in datasets(cases, split, spec):
        with pytest.raises(InputError, match="case_00000 and case_00099 are the same patient"):
            make()
    # one of them alone may be used
    for _, make in datasets(cases, replace(split, train=("case_00001",)), spec):
        make()


def test_made_splits_and_their_subsets_never_overlap():
    rng = np.random.default_rng(12)
    names = [f"case_{i:05d}" for i in range(60)]
    for seed in range(100):
        chosen = rng.choice(names, int(rng.integers(3, 60)), replace=False).tolist()
        split = make_split(chosen, seed=seed)
        here = set(rng.choice(chosen, int(rng.integers(1, len(chosen) + 1)), replace=False).tolist())
        try:
            some, missing = split.among(here)
        except InputError:
            continue
        parts = [set(some.train), set(some.validation), set(some.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == len(here)
        assert missing == sorted(set(chosen) - here)
    with pytest.raises(InputError, match="One patient.* one part"):
        make_split([*names, *names])


def test_parts_have_names(cached, spec):
    with pytest.raises(ValueError, match="train, validation, test; found 'training'"):
        training_batches("slices", cached, all_of(cached), spec, part="training")
