"""Caches, compressed or not: the same batches from both; damaged, foreign or older ones are refused."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from support.cases import make_case, read_json

from kitsseg.data.cache import case_file
from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.cases import open_cache
from kitsseg.data.sampling.batches import Draws
from kitsseg.data.sampling.patches import PatchBatches, ValidationPatches
from kitsseg.data.sampling.slices import SliceBatches, ValidationSlices
from kitsseg.data.splits import make_split
from kitsseg.errors import InputError
from kitsseg.recipe import Augmentation, PatchSampler, PreprocessSpec, SliceSampler

AUGMENTATION = Augmentation(scale_range=(0.6, 1.25), scale_probability=0.5, flip_probability=0.5)
CHANNELS = PreprocessSpec(
    slice_size=(24, 28),
    windows=((150.0, 30.0), (200.0, 60.0)),
    channel_mean=(0.485, 0.456, 0.406),
    channel_std=(0.229, 0.224, 0.225),
)


@pytest.fixture
def both(data, cached, spec, tmp_path):
    """The same cases, not compressed and compressed."""
    pytest.importorskip("blosc2")
    preprocess_cases(data, tmp_path / "compressed", spec, compress=True)
    return cached, open_cache(tmp_path / "compressed", spec)


def test_a_compressed_cache_holds_the_same(both):
    plain, packed = both
    assert list(plain) == list(packed)
    for name in plain:
        a, b = plain[name], packed[name]
        np.testing.assert_array_equal(np.asarray(b.image), a.image)
        np.testing.assert_array_equal(np.asarray(b.boxed_labels), a.boxed_labels)
        assert (a.geometry, a.label_start) == (b.geometry, b.label_start)
        np.testing.assert_array_equal(a.kidney_area, b.kidney_area)
        for k in range(8):
            np.testing.assert_array_equal(
                b.labels(k, slice(3, 30), slice(10, 40)), a.labels(k, slice(3, 30), slice(10, 40))
            )
        assert sorted(path.name for path in b.folder.iterdir()) == [
            "case.json",
            "image.blosc2",
            "labels.blosc2",
        ]


def assert_same_batches(a, b, numbers):
    for index in numbers:
        for x, y in zip(a.batch(index), b.batch(index), strict=True):
            np.testing.assert_array_equal(x, y)


def test_identical_batches_of_slices_and_patches(both, spec):
    split = make_split(list(both[0]))
    slices = SliceSampler(batch_size=5, positive=3, positive_weights="area", patch_size=(32, 56))
    assert_same_batches(
        *(SliceBatches(cases, split, "train", slices, AUGMENTATION, spec, Draws(seed=3)) for cases in both),
        range(8),
    )
    assert_same_batches(*(ValidationSlices(cases, split, "validation", slices, spec) for cases in both), [0])
    patches = PatchSampler(cases_per_batch=3, patch_size=(12, 16, 20), mode="stratified")
    flips = replace(AUGMENTATION, scale_probability=0.0)
    assert_same_batches(
        *(PatchBatches(cases, split, "train", patches, flips, spec, Draws(seed=3)) for cases in both),
        range(8),
    )
    assert_same_batches(*(ValidationPatches(cases, split, "test", patches, spec) for cases in both), [0])


def test_identical_batches_of_channels(data, tmp_path):
    pytest.importorskip("blosc2")
    sampler = SliceSampler(batch_size=4, positive=2, patch_size=(24, 24))
    found = []
    for compress in (False, True):
        cache = tmp_path / str(compress)
        preprocess_cases(data, cache, CHANNELS, compress=compress)
        cases = open_cache(cache, CHANNELS)
        split = make_split(list(cases))
        found.append(SliceBatches(cases, split, "train", sampler, AUGMENTATION, CHANNELS))
    assert_same_batches(*found, range(5))


def test_identical_scores(both, spec):
    """As training computes them after a round: slices one after the other, on the grid of the cache."""
    from kitsseg.inference.scan import Member, mean_scores, score_cached_cases
    from kitsseg.recipe import InferenceSpec

    def predict(planes):  # by HU: kidney from 100, tumor from 200
        hu = planes[..., 0] * 76.9 + 101
        return np.eye(3, dtype=np.float32)[(hu > 80).astype(int) + (hu > 230)]

    scores = [
        mean_scores(score_cached_cases(list(c.values())[:3], Member(predict, spec, InferenceSpec(tile=None))))
        for c in both
    ]
    assert scores[0] == scores[1]
    assert scores[0]["composite"] > 0.8


def test_a_cache_is_one_or_the_other(data, spec, tmp_path):
    pytest.importorskip("blosc2")
    preprocess_cases(data, tmp_path / "cache", spec)
    with pytest.raises(
        InputError, match=r"case_00000: was not compressed.* Go on without --compress, or use"
    ):
        preprocess_cases(data, tmp_path / "cache", spec, compress=True)
    preprocess_cases(data, tmp_path / "other", spec, compress=True)
    with pytest.raises(
        InputError, match=r"case_00000: was compressed.* Go on with --compress, or use another"
    ):
        preprocess_cases(data, tmp_path / "other", spec)
    _, done, kept = preprocess_cases(data, tmp_path / "other", spec, compress=True)
    assert (len(done), len(kept)) == (0, 9)


def test_without_blosc2_nothing_is_begun(data, spec, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "blosc2", None)
    with pytest.raises(InputError, match="pip install blosc2"):
        preprocess_cases(data, tmp_path / "cache", spec, compress=True)
    assert not (tmp_path / "cache").exists()


# --- damage


@pytest.fixture
def one(tmp_path, spec):
    """The folder of one cached case."""
    make_case(tmp_path / "data" / "case_00000")
    folder, _, _ = preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    return folder / "case_00000"


def refused(one, spec, words):
    """Opening the cache and reading the case must fail with these words in the error."""
    with pytest.raises(InputError, match=words):
        _use(one, spec)


def _use(one, spec):
    case = open_cache(one.parent, spec)[one.name]
    return case.image, case.boxed_labels


def rewritten(path, array):
    np.save(path, array)


DAMAGE = {
    "image.npy": {
        "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "a header of an open bracket": lambda path: path.write_bytes(
            path.read_bytes().replace(b"), }", b"(, }")
        ),
        "cut in its header": lambda path: path.write_bytes(path.read_bytes()[:50]),
        "emptied": lambda path: path.write_bytes(b""),
        "gone": lambda path: path.unlink(),
        "another shape": lambda path: rewritten(path, np.zeros((8, 40, 47), np.int16)),
        "float": lambda path: rewritten(path, np.zeros((8, 40, 48), np.float32)),
        "Fortran order": lambda path: rewritten(path, np.zeros((48, 40, 8), np.int16).T),
        "objects": lambda path: np.save(path, np.array([{}], object)),
    },
    "labels.npy": {
        "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "a header of an open bracket": lambda path: path.write_bytes(
            path.read_bytes().replace(b"), }", b"(, }")
        ),
        "gone": lambda path: path.unlink(),
        "another shape": lambda path: rewritten(path, np.zeros((4, 15, 13), np.uint8)),
        "all kidney": lambda path: rewritten(path, np.ones((4, 15, 12), np.uint8)),
        "signed": lambda path: rewritten(path, np.zeros((4, 15, 12), np.int8)),
    },
}


@pytest.mark.parametrize(("name", "how"), [(name, how) for name in DAMAGE for how in DAMAGE[name]])
def test_damaged_arrays(name, how, one, spec):
    DAMAGE[name][how](one / name)
    refused(one, spec, rf"{name}: (missing or damaged|expected u?int\d+ of shape).*Remove its folder and")
    if name == "labels.npy":
        assert "case.json" in {path.name for path in one.iterdir()}


def test_every_flipped_bit_of_the_index_is_noticed(one, spec):
    """Also one digit of an area or of the geometry, which would still be a number."""
    path = one / "case.json"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    before = json.loads(whole)
    for _ in range(200):
        spoiled = bytearray(whole)
        spoiled[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoiled)
        try:
            same = json.loads(spoiled) == before  # a space became a tab, or a last digit changed
        except ValueError:
            same = False
        if same:
            _use(one, spec)
        else:
            refused(one, spec, r"case\.json: damaged .* Remove the folder.*kitsseg preprocess")
    path.write_bytes(b"[]")
    refused(one, spec, "case.json: damaged")


def test_an_index_that_was_written_wrong_names_the_field(one, spec):
    record = read_json(one / "case.json")
    record["geometry"]["start"], _ = "top", record.pop("sha256")
    (one / "case.json").write_text(json.dumps(record | {"sha256": case_file._digest(record)}))
    refused(one, spec, r"case.json: damaged .*geometry.start")


def test_every_flipped_bit_of_the_labels_is_noticed(one, spec):
    path = one / "labels.npy"
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    for _ in range(100):
        spoiled = bytearray(whole)
        spoiled[rng.integers(128, len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoiled)
        refused(one, spec, r"labels.npy: missing or damaged \(a checksum is wrong\)")


def test_a_damaged_specification(one, spec, tmp_path):
    path = one.parent / "spec.json"
    whole = path.read_text()
    for text, words in (
        (whole[:-5], "spec.json: damaged"),
        ("[]", "spec.json: damaged"),
        ("{}", r"spec\.json: .*specification of a cache.*field `spec`"),
        (whole.replace("304.0", '"a"'), r"spec.json: expected .*`\$.spec.hu_window"),
        (whole.replace("304.0", "305.0"), "cache of version 2 made by"),
        ("\0", "spec.json: damaged"),
    ):
        path.write_text(text)
        refused(one, spec, words)
        with pytest.raises(InputError, match=words):
            preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    path.unlink()
    with pytest.raises(InputError, match=r"spec.json: damaged .*No such file"):
        preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)


def test_an_older_or_newer_cache(one, spec, tmp_path):
    """A cache of another version has the same folder name, because the digest depends on the specification alone."""
    path = one.parent / "spec.json"
    for version in (1, 3):
        path.write_text(json.dumps(read_json(path) | {"version": version}))
        words = rf"cache of version 2, found version {version}, .*another kitsseg.*Remove"
        refused(one, spec, words)
        with pytest.raises(InputError, match=words):
            preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)


def test_preprocessing_again_refuses_a_damaged_index(one, spec, tmp_path):
    path = one / "case.json"
    before = path.read_text()
    path.write_text(before.replace('"phantom": false', '"phantom": true'))
    with pytest.raises(InputError, match=r"case.json: damaged .*its checksum is wrong"):
        preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    path.unlink()
    with pytest.raises(InputError, match=r"case.json: damaged .*No such file"):
        preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    shutil.rmtree(one)
    assert preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)[1] == ["case_00000"]
    assert path.read_text() == before


@pytest.mark.parametrize("spoil", ["image.blosc2", "labels.blosc2"])
def test_damaged_compressed_arrays(spoil, tmp_path, spec):
    pytest.importorskip("blosc2")
    make_case(tmp_path / "data" / "case_00000")
    folder, _, _ = preprocess_cases(tmp_path / "data", tmp_path / "cache", spec, compress=True)
    path = folder / "case_00000" / spoil
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused(path.parent, spec, rf"{spoil}: missing or damaged \(expected {len(whole)} bytes")
    path.unlink()
    refused(path.parent, spec, rf"{spoil}: missing or damaged .*Remove its folder")
