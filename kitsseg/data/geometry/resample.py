"""Linear and nearest resampling of volumes, slice by slice, on grids with half-pixel centers.

Output index i lies at input position (i + 0.5) * n_in / n_out - 0.5; edges are clamped. This is the geometry of
``scipy.ndimage.zoom(grid_mode=True, mode="nearest")`` and of ``tf.image.resize``. Two input slices are in memory
at a time beside the volume itself.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["area_resize", "blend", "linear_taps", "nearest_index", "resample_slices", "resampled_shape"]


def resampled_shape(
    shape: tuple[int, ...], spacing_mm: Sequence[float], target_mm: Sequence[float | None]
) -> tuple[int, ...]:
    """Shape of a volume after resampling.

    Args:
        shape: (slices, rows, columns).
        spacing_mm: voxel size along these axes.
        target_mm: voxel size after resampling; None keeps an axis as it is.
    """
    return tuple(
        n if new is None else max(1, round(n * old / new))
        for n, old, new in zip(shape, spacing_mm, target_mm, strict=True)
    )


def linear_taps(
    n_in: int, n_out: int, start: int = 0, stop: int | None = None
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """The two input indices and the weight from which each output is interpolated along an axis.

    Args:
        n_in, n_out: length of the axis before and after resampling.
        start, stop: range of the outputs.

    Returns: (low, high, weight): value = (1 - weight) * x[low] + weight * x[high]; weight is float32. If a weight is 0,
        ``high`` equals ``low``, so that no other slice is read.
    """
    position = (np.arange(start, n_out if stop is None else stop) + 0.5) * (n_in / n_out) - 0.5
    position = np.clip(position, 0, n_in - 1)
    low = position.astype(np.intp)
    weight = (position - low).astype(np.float32)
    return low, low + (weight > 0), weight


def nearest_index(n_in: int, n_out: int, start: int = 0, stop: int | None = None) -> npt.NDArray[np.intp]:
    """Input index of the voxel that holds the center of each output. Args: as ``linear_taps``."""
    index = np.floor((np.arange(start, n_out if stop is None else stop) + 0.5) * (n_in / n_out)).astype(
        np.intp
    )
    inside: npt.NDArray[np.intp] = np.clip(index, 0, n_in - 1)
    return inside


def blend(
    low: npt.NDArray[np.float32],
    high: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32] | float | np.float32,
) -> npt.NDArray[np.float32]:
    """(1 - weight) * low + weight * high; with weight 0 it is ``low`` itself, not a copy.

    Args:
        low, high: arrays of one shape.
        weight: 0 to 1.
    """
    if np.ndim(weight) == 0 and weight == 0:
        return low
    out = high - low
    out *= weight
    out += low
    return out


def resample_slices(
    volume: npt.NDArray[Any],
    grid_shape: Sequence[int],
    start: Sequence[int],
    stop: Sequence[int],
    linear: bool,
    clip: tuple[float, float] | None = None,
) -> Iterator[npt.NDArray[Any]]:
    """Yield the slices of the box ``start..stop`` of a volume resampled to ``grid_shape``.

    Args:
        volume: (slices, rows, columns), any numeric type, memory-mapped or not.
        grid_shape: shape of the whole resampled volume.
        start, stop: (slice, row, column) bounds of the box.
        linear: True interpolates trilinearly to float32; False takes the nearest voxel, in the volume's own type.
        clip: (low, high) to which values are clipped before linear interpolation.
    """
    shape = volume.shape

    def window(k: int) -> npt.NDArray[np.float32]:
        plane = volume[k, rows, columns].astype(np.float32)
        return plane if clip is None else np.clip(plane, *map(np.float32, clip), out=plane)

    if not linear:
        z, y, x = (
            nearest_index(n, m, a, b) for n, m, a, b in zip(shape, grid_shape, start, stop, strict=True)
        )
        for k in z:
            yield volume[k][y[:, None], x]
        return
    (z0, z1, wz), (y0, y1, wy), (x0, x1, wx) = (
        linear_taps(n, m, a, b) for n, m, a, b in zip(shape, grid_shape, start, stop, strict=True)
    )
    rows, columns = slice(y0[0], y1[-1] + 1), slice(x0[0], x1[-1] + 1)
    y0, y1, x0, x1 = y0 - rows.start, y1 - rows.start, x0 - columns.start, x1 - columns.start
    wy = wy[:, None]
    identity = not wy.any() and not wx.any() and len(y0) == y0[-1] + 1 and len(x0) == x0[-1] + 1
    for low, high, weight in zip(z0, z1, wz, strict=True):
        plane = window(low)
        if weight:
            plane = blend(plane, window(high), weight)
        if not identity:
            plane = blend(plane.take(y0, 0), plane.take(y1, 0), wy)
            plane = blend(plane.take(x0, 1), plane.take(x1, 1), wx)
        yield plane


def area_resize(plane: npt.NDArray[Any], size: Sequence[int]) -> npt.NDArray[np.float32]:
    """Resize a slice by averaging the area of each output pixel; from 512 to 256 the mean of 2 x 2.

    Args:
        plane: (rows, columns) or (rows, columns, channels).
        size: (rows, columns); an axis that grows is interpolated by the same rule, in steps.

    Returns: float32.
    """
    result = plane.astype(np.float64)
    for axis, n_out in enumerate(size):
        n_in = result.shape[axis]
        if n_out == n_in:
            continue
        if n_in % n_out == 0:  # whole pixels: ten times as fast, and the same to the bit for integers
            step = n_in // n_out
            before = (slice(None),) * axis
            parts = [result[(*before, slice(k, None, step))] for k in range(step)]
            result = functools.reduce(np.add, parts) * (n_out / n_in)
            continue
        # the integral of the axis, read at the borders of the output pixels
        integral = np.insert(result.cumsum(axis=axis), 0, 0, axis=axis)
        border = np.arange(n_out + 1) * (n_in / n_out)
        low = np.minimum(border.astype(np.intp), n_in - 1)
        weight = (border - low).reshape([-1 if a == axis else 1 for a in range(plane.ndim)])
        at_border = integral.take(low, axis) * (1 - weight) + integral.take(low + 1, axis) * weight
        result = np.diff(at_border, axis=axis) * (n_out / n_in)
    return result.astype(np.float32)
