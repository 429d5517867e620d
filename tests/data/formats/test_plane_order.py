"""Planes of a file into an array of another axis order: every voxel at its place, whatever the sizes."""

import itertools

import numpy as np
import pytest

from kitsseg.data.formats.plane_order import fill_planes


def planes_of(stored):
    """A function that reads planes of an array (n2, n1, n0). Like a reader of a file, it overwrites its last result."""
    place, memory = 0, np.empty_like(stored)

    def read(count):
        nonlocal place
        assert count > 0
        block = memory[:count]
        block[...] = stored[place : place + count]
        place += count
        return block

    return read


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float64])
@pytest.mark.parametrize("columns", [1, 7, 12, 32, 40, 66, 100])
def test_every_voxel_at_its_place_in_any_order_direction_and_piece(columns, dtype):
    """12, 40 and 100 columns are multiples of 4 but not of a cache line; 66 is a multiple of 2 only; 7 is odd."""
    rng = np.random.default_rng(columns)
    for order, number in zip(itertools.permutations(range(3)), itertools.count(), strict=False):
        for flips in itertools.product((1, -1), repeat=3):
            array = np.empty((5, 6, columns), dtype)
            target = array[tuple(slice(None, None, flip) for flip in flips)].transpose(order)
            stored = rng.integers(0, 100, target.shape[::-1]).astype(dtype)
            fill_planes(target, planes_of(stored), piece=1 + number * 3)
            # by the definition: plane k, row j, place i of the file is target[i, j, k]
            np.testing.assert_array_equal(target, stored.transpose(2, 1, 0))


def test_no_more_planes_are_asked_for_than_there_are():
    asked = []

    def read(count):
        asked.append(count)
        return np.zeros((count, 3, 4), np.int16)

    fill_planes(np.empty((4, 3, 70), np.int16), read, piece=20)
    # 70 is even, so planes are moved in pairs; the 32 planes of a cache line are read as 20 and 12
    assert asked == [20, 12, 20, 12, 6]
    asked.clear()
    fill_planes(np.empty((70, 3, 4), np.int16).transpose(2, 1, 0), read, piece=20)
    assert asked == [20, 20, 20, 10]
