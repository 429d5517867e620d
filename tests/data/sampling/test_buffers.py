"""Memory is reused only if no array refers to it any more."""

import gc

import numpy as np

from kitsseg.data.sampling.buffers import Buffers


def address(array):
    return array.__array_interface__["data"][0]


def test_arrays_are_aligned_writable_and_of_the_shape():
    buffers = Buffers()
    for shape, dtype in (((3, 5, 7), np.float32), ((4, 1), np.int32), ((9,), np.uint8)):
        array = buffers.empty(shape, dtype)
        assert (array.shape, array.dtype) == (shape, dtype)
        assert array.flags.c_contiguous
        assert address(array) % 64 == 0
        array[...] = 3
        assert array.sum() == 3 * array.size


def test_memory_comes_again_when_nothing_refers_to_it():
    buffers = Buffers()
    array = buffers.empty((100,), np.float32)
    first = address(array)
    other = buffers.empty((100,), np.float32)
    assert address(other) != first
    del array
    gc.collect()
    assert address(buffers.empty((100,), np.float32)) == first


def test_any_view_of_an_array_keeps_the_array():
    """While a slice, a reversed, retyped or transposed view or a memoryview exists, its array is not overwritten."""
    views = (
        lambda a: a[3],
        lambda a: a[::-1, 2:4],
        lambda a: a[1:].view(np.int32),
        lambda a: a.T.reshape(5, 4)[1],
        lambda a: memoryview(a[2]),
    )
    for view in views:
        buffers = Buffers()
        array = buffers.empty((4, 5), np.float32)
        array[...] = np.arange(20).reshape(4, 5)
        kept = view(array)
        before = bytes(memoryview(np.ascontiguousarray(kept)))
        del array
        gc.collect()
        others = [buffers.empty((4, 5), np.float32) for _ in range(5)]
        for other in others:
            other[...] = -1
        assert bytes(memoryview(np.ascontiguousarray(kept))) == before


def test_no_more_than_asked_for_is_kept():
    buffers = Buffers(most=2)
    arrays = [buffers.empty((10,), np.uint8) for _ in range(5)]
    del arrays
    gc.collect()
    assert len(buffers._unused) == 2
    assert buffers.empty((11,), np.uint8).shape == (11,)  # of another size
    assert len(buffers._unused) <= 2
