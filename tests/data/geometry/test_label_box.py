"""The box of labels that a cache keeps, against the labels of the whole grid."""

import numpy as np
import pytest

from kitsseg.data.geometry.geometry import Geometry
from kitsseg.data.geometry.label_box import foreground_box, foreground_planes, label_box
from kitsseg.data.geometry.resample import resample_slices


def on_grid(labels, geometry):
    """The labels of a whole case, slice by slice by the nearest voxel."""
    return np.stack(
        list(resample_slices(labels, geometry.grid_shape, geometry.start, geometry.stop, linear=False))
    )


def unboxed(start, box, shape):
    whole = np.zeros(shape, np.uint8)
    whole[tuple(slice(a, a + n) for a, n in zip(start, box.shape, strict=True))] = box
    return whole


def test_the_box_of_labels_by_hand():
    """A kidney at slice 1, rows 2 to 3, column 4, and a tumor at slice 3, row 1, column 2: the box is 3 x 3 x 3."""
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[1, 2:4, 4], labels[3, 1, 2] = 1, 2
    first, box = foreground_box(labels)
    assert first == (1, 1, 2)
    assert all(type(edge) is int for edge in first)  # they are written as JSON
    assert box.tolist() == [
        [[0, 0, 0], [0, 0, 1], [0, 0, 1]],
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[2, 0, 0], [0, 0, 0], [0, 0, 0]],
    ]
    labels[:] = 0
    assert box.any()  # a copy: the scan's label map can be given up


def test_without_labels_the_box_is_empty():
    geometry = Geometry((2, 4, 4), (1.0, 1.0, 1.0), (2, 4, 4), (0, 0, 0), (2, 4, 4))
    first, box = foreground_box(np.zeros((2, 4, 4), np.uint8))
    start, labels = label_box(foreground_planes(box, first, geometry))
    for where, empty in ((first, box), (start, labels)):
        assert list(where) == [0, 0, 0]
        assert (empty.shape, empty.dtype) == ((0, 0, 0), np.uint8)


@pytest.mark.parametrize("grid_shape", [(6, 10, 12), (11, 7, 9), (3, 20, 31), (6, 10, 5)])
@pytest.mark.parametrize("seed", range(8))
def test_the_box_holds_the_labels_of_the_grid_and_no_more(grid_shape, seed):
    """Blocks of labels, in part outside the case's own box; every other voxel of the grid is background."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((6, 10, 12), np.uint8)
    for label in (1, 1, 2):
        corner = [int(rng.integers(n)) for n in labels.shape]
        labels[tuple(slice(a, a + int(rng.integers(1, 6))) for a in corner)] = label
    start = tuple(int(rng.integers(n // 2)) for n in grid_shape)
    stop = tuple(int(rng.integers(a + 1, n + 1)) for a, n in zip(start, grid_shape, strict=True))
    geometry = Geometry(labels.shape, (1.0, 1.0, 1.0), grid_shape, start, stop)
    whole = on_grid(labels, geometry)

    first, boxed = foreground_box(labels)
    planes = foreground_planes(boxed, first, geometry)
    assert [k for k, *_ in planes] == np.flatnonzero(whole.any(axis=(1, 2))).tolist()
    where, box = label_box(planes)
    assert box.dtype == np.uint8
    assert all(type(edge) is int for edge in where)
    np.testing.assert_array_equal(unboxed(where, box, whole.shape), whole)


def test_the_box_spans_planes_of_different_places():
    """Rows 0 to 1 of slice 2, row 3 of slice 4, columns 1 to 3: the box starts at (2, 0, 1) and is 3 x 4 x 3."""
    planes = [(2, 0, 2, np.full((2, 2), 1, np.uint8)), (4, 3, 1, np.full((1, 1), 2, np.uint8))]
    start, box = label_box(planes)
    assert start == [2, 0, 1]
    expected = np.zeros((3, 4, 3), np.uint8)
    expected[0, :2, 1:], expected[2, 3, 0] = 1, 2
    np.testing.assert_array_equal(box, expected)
