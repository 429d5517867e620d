"""Single images from the cache in the input size of a network, to calibrate and to check exported networks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kitsseg.data.geometry.planes import normalize

if TYPE_CHECKING:
    from kitsseg.data.cache.cases import CachedCase
    from kitsseg.data.cache.compressed import CompressedArray
    from kitsseg.recipe import PreprocessSpec

__all__ = ["cached_images"]


def cached_images(
    cases: Sequence[CachedCase], shape: Sequence[int], spec: PreprocessSpec, count: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield float32 images (1, *shape) from the cache, by turns a slice with kidney or tumor and any slice.

    Each image is a window of size ``shape`` around the middle of the case's labels; where a slice is smaller, its edges
    are repeated. For a 3D ``shape`` there is one window of each case.

    Args:
        cases: CachedCase of each case.
        shape: (rows, columns, channels), or (slices, rows, columns, channels).
        spec: PreprocessSpec of the cache.
        count: yield at most so many images.
    """
    if len(shape) == 4:
        for case in cases[:count]:
            yield _window(case.image, _middle(case), shape[:3], spec)
        return
    every = [(case, k) for case in cases for k in range(case.geometry.shape[0])]
    positive = [(case, k) for case, k in every if case.kidney_area[k] + case.tumor_area[k]]
    spread = (_spread(positive, count // 2), _spread(every, count))
    alternating = (item for pair in itertools.zip_longest(*spread) for item in pair if item is not None)
    for case, k in itertools.islice(alternating, count):
        yield _window(case.image[k], _middle(case)[1:], shape[:2], spec)


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, count).astype(int))] if items else []


def _middle(case: CachedCase) -> list[int]:
    return [a + n // 2 for a, n in zip(case.label_start, case.boxed_labels.shape, strict=True)]


def _window(
    hu: npt.NDArray[Any] | CompressedArray, middle: Sequence[int], size: Sequence[int], spec: PreprocessSpec
) -> npt.NDArray[np.float32]:
    n = len(size)
    starts = [
        min(max(m - t // 2, 0), max(s - t, 0)) for m, t, s in zip(middle, size, hu.shape[:n], strict=True)
    ]
    piece = np.asarray(hu[tuple(slice(a, a + t) for a, t in zip(starts, size, strict=True))])
    missing = [(0, t - s) for t, s in zip(size, piece.shape)]
    return normalize(np.pad(piece, missing + [(0, 0)] * (piece.ndim - n), mode="edge"), spec)[None]
