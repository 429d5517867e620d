"""What the samplers of slices and of patches share: who may be drawn, in which order, from which random numbers."""

import math
import operator

import numpy as np

__all__ = ["batch_rng", "checked_index", "empty_batch", "in_circles", "own_places"]


def batch_rng(seed, index, stream):
    """The random numbers of batch ``index``; each ``stream`` of them is independent of the others."""
    return np.random.Generator(np.random.Philox(key=[seed, (int(index) << 32) | stream]))


def checked_index(index, n=None):
    """The number of a batch as an int.

    Raises: IndexError below 0 and from ``n`` on: that ends a loop over a list of batches.
    """
    index = operator.index(index)
    if index < 0 or (n is not None and index >= n):
        raise IndexError(f"batches are numbered from 0{f' to {n - 1}' if n else ''}; found {index}.")
    return index


def in_circles(order_of, n, size, index):
    """The ``size`` items of batch ``index``: each of ``n`` once before any again, all different if ``size <= n``.

    A shuffled order is gone through in a circle until a batch ends where the circle does: a new order in the middle
    of a batch could repeat an item in it.

    Args:
        order_of: from the number of a circle to a permutation of ``n``.
    """
    batches = n // math.gcd(n, size)
    return order_of(index // batches)[(index % batches * size + np.arange(size)) % n]


def own_places(size, shard):
    """Which places of a batch one of several processes draws.

    Args:
        size: of the batch of all processes together.
        shard: (index, count) of the process; None for one that draws the whole batch.

    Returns: range of places; those of all processes, one after the other, are the batch of one process.
    Raises: ValueError for a shard that is none, and for a batch that cannot be divided evenly: unequal parts would
        weigh their images differently.
    """
    index, count = (0, 1) if shard is None else shard
    if not 0 <= index < count:
        raise ValueError(f"shard is (index, count) with 0 <= index < count, found ({index}, {count}).")
    if size % count:
        raise ValueError(
            f"a batch of {size} cannot be divided evenly among {count} processes; choose a batch size that is a "
            f"multiple of {count}, or as many processes as divide {size}."
        )
    own = size // count
    return range(index * own, (index + 1) * own)


def empty_batch(batches):
    """Arrays for the images and the labels of a batch, uninitialized."""
    form = batches.form
    return (
        batches.buffers.empty((form.batch_size, *form.image_shape), np.float32),
        batches.buffers.empty((form.batch_size, *form.label_shape), np.int32),
    )
