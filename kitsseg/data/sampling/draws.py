"""Functions of both samplers, of slices and of patches: random numbers, order of the cases, shares of a batch."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing import SupportsIndex

if TYPE_CHECKING:
    from kitsseg.data.sampling.batches import BatchForm
    from kitsseg.data.sampling.buffers import Buffers

__all__ = ["batch_rng", "checked_index", "empty_batch", "in_circles", "own_places"]


class _Source(Protocol):
    """The attributes of a source of batches that ``empty_batch`` uses."""

    form: BatchForm
    buffers: Buffers


def batch_rng(seed: int, index: int, stream: int) -> np.random.Generator:
    """The random generator of a batch.

    Args:
        seed: of the sampler.
        index: number of the batch, from 0.
        stream: generators of one batch with different streams are independent.
    """
    return np.random.Generator(np.random.Philox(key=[seed, (int(index) << 32) | stream]))


def checked_index(index: SupportsIndex, n: int | None = None) -> int:
    """The number of a batch as an int.

    Raises: IndexError below 0 and from ``n`` on. Python ends a loop over the batches at this error.
    """
    index = operator.index(index)
    if index < 0 or (n is not None and index >= n):
        raise IndexError(f"batches are numbered from 0{f' to {n - 1}' if n else ''}; found {index}.")
    return index


def in_circles(
    order_of: Callable[[int], npt.NDArray[np.int64]], n: int, size: int, index: int
) -> npt.NDArray[np.int64]:
    """The ``size`` items of batch ``index``: each of ``n`` once before any again, all different if ``size <= n``.

    A shuffled order of the items is repeated until its end is also the end of a batch; then a new order is drawn. A new
    order in the middle of a batch could put an item into it twice.

    Args:
        order_of: called with the number of the order, returns a permutation of ``n`` items.
        n: number of items.
        size: items in a batch.
        index: number of the batch, from 0.
    """
    batches = n // math.gcd(n, size)
    return order_of(index // batches)[(index % batches * size + np.arange(size)) % n]


def own_places(size: int, shard: tuple[int, int] | None) -> range:
    """The places of a batch that one of several processes draws.

    Args:
        size: of the batch of all processes together.
        shard: (index, count) of the process; None for one that draws the whole batch.

    Returns: range of places; those of all processes, one after the other, are the batch of one process.
    Raises: ValueError for an index that is not below the count, and for a batch that cannot be divided evenly. In
        unequal parts the images would have unequal weights.
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


def empty_batch(batches: _Source) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Arrays for the images and the labels of a batch, uninitialized."""
    form = batches.form
    return (
        batches.buffers.empty((form.batch_size, *form.image_shape), np.float32),
        batches.buffers.empty((form.batch_size, *form.label_shape), np.int32),
    )
