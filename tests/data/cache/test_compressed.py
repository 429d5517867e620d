"""Arrays compressed slice by slice: the same numbers as NumPy's, however they are indexed, or a clear error."""

import sys

import numpy as np
import pytest

from kitsseg.data.cache.compressed import CompressedArray, require_blosc2, write_compressed
from kitsseg.errors import InputError

blosc2 = pytest.importorskip("blosc2")


def stored(path, array):
    return CompressedArray(path, array.dtype, array.shape, write_compressed(path, array.dtype, array))


def hu(shape=(7, 33, 41), seed=0):
    return np.random.default_rng(seed).normal(40, 300, shape).astype(np.int16)


ARRAYS = {
    "hu": hu(),
    "all of int16": np.random.default_rng(1).integers(-32768, 32768, (3, 64, 64)).astype(np.int16),
    "zeros": np.zeros((4, 40, 48), np.int16),
    "channels": np.random.default_rng(2).integers(0, 256, (3, 20, 24, 3)).astype(np.uint8),
    "labels": np.random.default_rng(3).integers(0, 3, (5, 9, 11)).astype(np.uint8),
    "one voxel": np.full((2, 1, 1), 2, np.uint8),
    "nothing": np.zeros((0, 0, 0), np.uint8),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_nothing_is_lost(name, tmp_path):
    array = ARRAYS[name]
    packed = stored(tmp_path / "a", array)
    assert (packed.shape, packed.dtype, packed.ndim, len(packed)) == (
        array.shape,
        array.dtype,
        array.ndim,
        len(array),
    )
    np.testing.assert_array_equal(np.asarray(packed), array)
    assert [plane.tobytes() for plane in packed] == [plane.tobytes() for plane in array]
    assert np.asarray(packed, np.float32).dtype == np.float32


KEYS = [
    0,
    -1,
    np.int64(3),
    (2, slice(5, 20)),
    (2, slice(None), slice(None, None, -2)),
    (1, 4, 5),
    slice(None),
    slice(2, 5),
    slice(None, None, -3),
    slice(4, 4),
    slice(5, 100),
    (slice(1, 4), slice(3, 9), slice(40, 2, -5)),
    (slice(1, 4), 3),
    (slice(6, 2), slice(3, 9), 2),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_any_index_gives_what_numpy_gives(key, tmp_path):
    array = hu()
    found = stored(tmp_path / "a", array)[key]
    np.testing.assert_array_equal(found, array[key])
    assert np.shape(found) == np.shape(array[key])
    assert found.dtype == np.int16


@pytest.mark.parametrize("key", [7, -8, (9, slice(3))])
def test_beyond_the_end(key, tmp_path):
    with pytest.raises(IndexError):
        stored(tmp_path / "a", hu())[key]


def test_what_cannot_be_an_index(tmp_path):
    with pytest.raises(TypeError):
        stored(tmp_path / "a", hu())[1.5]


def test_every_flipped_bit_is_noticed(tmp_path):
    """Blosc2 itself would give wrong voxels for most of them."""
    array = hu((4, 30, 40))
    path = tmp_path / "a"
    chunks = write_compressed(path, np.int16, array)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        spoiled = bytearray(whole)
        spoiled[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoiled)
        with pytest.raises(InputError, match=r"a: missing or damaged \(the checksum of slice \d is wrong\)"):
            np.asarray(CompressedArray(path, np.int16, array.shape, chunks))


def test_a_file_of_another_length_or_none(tmp_path):
    path = tmp_path / "a"
    chunks = write_compressed(path, np.int16, hu())
    whole = path.read_bytes()
    for contents in (whole[:-1], whole + b"\0", b""):
        path.write_bytes(contents)
        with pytest.raises(
            InputError, match=rf"expected {len(whole)} bytes of 7 slices, found {len(contents)}"
        ):
            CompressedArray(path, np.int16, hu().shape, chunks)
    path.unlink()
    with pytest.raises(InputError, match=r"a: missing or damaged .*No such file"):
        CompressedArray(path, np.int16, hu().shape, chunks)


def test_without_blosc2(tmp_path, monkeypatch):
    chunks = write_compressed(tmp_path / "a", np.int16, hu())
    monkeypatch.setitem(sys.modules, "blosc2", None)
    for call in (require_blosc2, lambda: CompressedArray(tmp_path / "a", np.int16, hu().shape, chunks)):
        with pytest.raises(InputError, match=r"needs the package blosc2.*pip install blosc2"):
            call()


def test_threads_may_read_at_once(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    array = hu((16, 60, 60))
    packed = stored(tmp_path / "a", array)
    with ThreadPoolExecutor(8) as pool:
        for k, plane in zip(list(range(16)) * 10, pool.map(lambda k: packed[k], list(range(16)) * 10)):
            np.testing.assert_array_equal(plane, array[k])
