"""What the samplers of slices and of patches share: who may be drawn, in which order, from which random numbers."""

import math

import numpy as np

from kitsseg.data.splits import CaseSplit
from kitsseg.errors import InputError

__all__ = ["batch_rng", "cases_of_part", "in_circles"]


def cases_of_part(cases, split, part):
    """The CachedCase of each case in a part of a split, with the checks that every sampler needs.

    Raises: TypeError if ``split`` is no CaseSplit; InputError if the part is empty or not all in ``cases``.
    """
    if not isinstance(split, CaseSplit):
        raise TypeError(
            f"a slice dataset is built from a CaseSplit, found {type(split).__name__}. See make_split."
        )
    names = getattr(split, part)
    missing = [name for name in names if name not in cases]
    if missing:
        raise InputError(
            f"split {split.name}: {len(missing)} of its {len(names)} {part} cases are not in the cache, for example "
            f"{missing[0]}. Preprocess them, or use split.among(cases)."
        )
    if not names:
        raise InputError(f"split {split.name}: its {part} part is empty.")
    return [cases[name] for name in names]


def batch_rng(seed, index, stream):
    """The random numbers of batch ``index``; each ``stream`` of them is independent of the others."""
    return np.random.Generator(np.random.Philox(key=[seed, (int(index) << 32) | stream]))


def in_circles(order_of, n, size, index):
    """The ``size`` items of batch ``index``: each of ``n`` once before any again, all different if ``size <= n``.

    A shuffled order is gone through in a circle until a batch ends where the circle does: a new order in the middle
    of a batch could repeat an item in it.

    Args:
        order_of: from the number of a circle to a permutation of ``n``.
    """
    batches = n // math.gcd(n, size)
    return order_of(index // batches)[(index % batches * size + np.arange(size)) % n]
