"""Which weights are kept: the masks of magnitude pruning, as tensorflow-model-optimization (tfmot) 0.8.1 draws them.

Checked: equal to tfmot's masks and thresholds, bit for bit, weight by weight, 2:4 and for blocks of a matrix. What
tfmot does not have is marked "ours". The k-th largest value is found by partial selection, not by a sort.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["block_mask", "global_masks", "is_pointwise", "m_by_n_mask", "magnitude_mask", "n_kept"]


def n_kept(size: int, sparsity: float | np.float32) -> int:
    """How many of ``size`` entries are kept: at least one, a half rounded to even, in float32 as tfmot computes."""
    kept = np.round(np.float32(size) * (np.float32(1) - np.float32(sparsity)))
    return min(max(int(kept), 1), size)


def magnitude_mask(
    weights: npt.NDArray[np.floating[Any]], sparsity: float | np.float32
) -> tuple[npt.NDArray[np.bool_], np.float32]:
    """Keep the entries of largest magnitude. Entries as large as the smallest one kept are all kept.

    Args:
        weights: array of any shape.
        sparsity: share of zeros in 0..1.

    Returns: (bool mask of the shape of ``weights``, float32 threshold: the smallest magnitude that is kept).
    """
    magnitudes = np.abs(weights).astype(np.float32, copy=False)
    kth = magnitudes.size - n_kept(magnitudes.size, sparsity)
    threshold = np.partition(magnitudes, kth, axis=None)[kth]
    return magnitudes >= threshold, threshold


def block_mask(
    weights: npt.NDArray[np.floating[Any]], sparsity: float | np.float32, block: int
) -> tuple[npt.NDArray[np.bool_], np.float32]:
    """Keep or drop ``block`` neighboring entries of the last axis together, by their mean magnitude.

    tfmot's ``block_size=(1, block)`` with average pooling, which it allows for matrices only; for 1x1 kernels it is
    ours. If the last axis is no multiple of ``block``, the last block is smaller (tfmot shifts blocks of more than
    two there).

    Args:
        weights: array (..., columns).
        sparsity: share of zeros in 0..1.
        block: number of neighboring entries.

    Returns: (bool mask, float32 threshold of the mean magnitudes).
    """
    columns = weights.shape[-1]
    magnitudes = np.abs(weights).astype(np.float32, copy=False).reshape(-1, columns)
    starts = np.arange(0, columns, block)
    sizes = np.diff(np.append(starts, columns)).astype(np.float32)
    means = np.add.reduceat(magnitudes, starts, axis=1) / sizes
    mask, threshold = magnitude_mask(means, sparsity)
    return np.repeat(mask, block, axis=1)[:, :columns].reshape(weights.shape), threshold


def m_by_n_mask(weights: npt.NDArray[np.floating[Any]], m_by_n: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Drop the ``m`` smallest of every ``n`` consecutive entries along the second but last axis; the first of equals
    is kept.

    Groups lie as in a TFLite file: along the input channels of a convolution, each position and output channel by
    itself. A row that is no multiple of ``n`` is filled up with zeros, which take their share of the drops.

    Args:
        weights: matrix (inputs, outputs) or kernel (rows, columns, inputs, outputs).
        m_by_n: (m, n), m < n.

    Returns: bool mask.
    Raises: ValueError for other ranks or numbers.
    """
    m, n = m_by_n
    if not 0 < m < n:
        raise ValueError(f"m-by-n sparsity: expected 0 < m < n, found {m}:{n}.")
    if weights.ndim not in (2, 4):
        raise ValueError(
            f"m-by-n sparsity: expected a matrix or a 2D kernel, found shape {weights.shape}. tfmot has none for "
            "1D and 3D convolutions: prune element by element."
        )
    rows = np.abs(np.moveaxis(weights, -1, 0)).astype(np.float32, copy=False)
    shape, inputs = rows.shape, rows.shape[-1]
    rows = rows.reshape(-1, inputs)
    groups = np.pad(rows, ((0, 0), (0, -inputs % n))).reshape(-1, n)
    order = np.argsort(-groups, axis=1, kind="stable")
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, order[:, : n - m], True, axis=1)
    return np.moveaxis(mask.reshape(len(rows), -1)[:, :inputs].reshape(shape), 0, -1)


def global_masks(
    tensors: Sequence[npt.NDArray[np.floating[Any]]], sparsity: float | np.float32
) -> tuple[list[npt.NDArray[np.bool_]], np.float32]:
    """Ours: one ranking of the entries of all tensors, so that a layer of small weights loses more.

    Returns: (list of bool masks, float32 threshold of all). A tensor may lose all its entries.
    """
    mask, threshold = magnitude_mask(np.concatenate([np.ravel(weights) for weights in tensors]), sparsity)
    parts = np.split(mask, np.cumsum([weights.size for weights in tensors])[:-1])
    return [part.reshape(weights.shape) for part, weights in zip(parts, tensors)], threshold


def is_pointwise(shape: tuple[int, ...]) -> bool:
    """Whether a kernel of this shape is a matrix in disguise: a 1x1 convolution or a dense layer."""
    return len(shape) >= 2 and all(size == 1 for size in shape[:-2])
