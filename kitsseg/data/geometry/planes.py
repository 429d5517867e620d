"""Make the slices that a network sees from a scan, in the same way for training and for prediction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kitsseg.data.geometry.resample import area_resize, resample_slices

if TYPE_CHECKING:
    from kitsseg.data.geometry.geometry import Geometry
    from kitsseg.recipe import PreprocessSpec

__all__ = ["histogram_scaled", "network_planes", "normalize", "windowed"]


def network_planes(
    image: npt.NDArray[np.int16], geometry: Geometry, spec: PreprocessSpec
) -> Iterator[npt.NDArray[np.int16] | npt.NDArray[np.uint8]]:
    """Yield the slices of a case's box as the cache keeps them.

    Args:
        image: (slices, rows, columns) int16 HU of the scan.
        geometry: Geometry of the case.
        spec: PreprocessSpec.

    Yields: (rows, columns) int16 HU, rounded; or (rows, columns, channels) uint8 where ``spec.windows`` is given.
    """
    # HU are integers
    clip = None if spec.clip_hu is None else (math.ceil(spec.clip_hu[0]), math.floor(spec.clip_hu[1]))
    if spec.windows is None and spec.slice_size is None:
        planes = resample_slices(
            image, geometry.grid_shape, geometry.start, geometry.stop, linear=True, clip=clip
        )
        yield from (np.rint(plane).astype(np.int16) for plane in planes)
        return
    # channels are made at the scan's own resolution, where the papers made them, and then resized
    for k in range(geometry.start[0], geometry.stop[0]):
        plane = image[k] if clip is None else np.clip(image[k], *clip)
        plane = plane if spec.windows is None else _eight_bit_channels(plane, spec.windows)
        resized = np.rint(area_resize(plane, geometry.grid_shape[1:])).astype(plane.dtype)
        yield resized[geometry.start[1] : geometry.stop[1], geometry.start[2] : geometry.stop[2]]


def normalize(
    planes: npt.NDArray[Any], spec: PreprocessSpec, out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Clip and scale the slices of ``network_planes``, or of the cache, to the input of the network.

    Args:
        planes: (..., rows, columns) HU, or (..., rows, columns, channels) of 8 bit; integers or floats.
        spec: PreprocessSpec.
        out: float32 array for the result, or None.

    Returns: float32 (..., rows, columns, channels), clipped and scaled (see PreprocessSpec).
    """
    if out is None:
        out = np.empty(planes.shape if spec.windows else (*planes.shape, 1), np.float32)
    if spec.hu_window is None or spec.hu_mean is None or spec.hu_std is None:
        np.divide(planes, np.float32(255), out=out)
        out -= np.array(spec.channel_mean, np.float32)
        out /= np.array(spec.channel_std, np.float32)
        return out
    # a window is gathered as integers first: gathering, widening and mirroring at once takes up to twice the time.
    # Then floats: clipping integers takes three times as long
    out[...] = np.ascontiguousarray(planes)[..., None]
    low, high = spec.hu_window
    np.clip(out, np.float32(low), np.float32(high), out=out)
    out -= np.float32(spec.hu_mean)
    out /= np.float32(spec.hu_std)
    return out


def _eight_bit_channels(
    hu: npt.NDArray[np.integer[Any]], windows: Iterable[tuple[float, float]]
) -> npt.NDArray[np.uint8]:
    """One uint8 channel per (width, level) window and a histogram-scaled one: (rows, columns, channels)."""
    # once for each HU that there is, a few thousand, and not for each pixel
    place, values = _places(hu)
    channels = [windowed(values, width, level) for width, level in windows]
    channels.append(_spread(values, _break_points(place, values)))
    table = (np.stack(channels, axis=-1) * 255).astype(np.uint8)  # truncated, as the public notebook does
    return table[place]


def windowed(hu: npt.NDArray[np.integer[Any]], width: float, level: float) -> npt.NDArray[np.float32]:
    """HU to 0..1 over the window ``level - width // 2`` to ``level + width // 2``.

    Args:
        hu: HU of any shape.
        width, level: of the window, in HU.
    """
    low, high = level - width // 2, level + width // 2
    share: npt.NDArray[np.float32] = (np.clip(hu, low, high).astype(np.float32) - low) / (high - low)
    return share


def histogram_scaled(hu: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
    """Spread the histogram of a slice of integers evenly over 0..1, as fastai's medical imaging code does.

    Break points are the unique values at 102 quantiles of the pixels (0.1 %, 0.5 %, 1.5 %, ... 99.5 %, 99.9 %);
    values are interpolated linearly from them to evenly spaced numbers. A slice of one value becomes 0.
    """
    place, values = _places(hu)
    return _spread(values, _break_points(place, values))[place]


def _places(hu: npt.NDArray[np.integer[Any]]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """(index of each pixel's HU in the second array, all integers from the lowest to the highest HU)."""
    low = int(hu.min())
    return np.subtract(hu, low, dtype=np.intp), np.arange(low, int(hu.max()) + 1)


def _break_points(place: npt.NDArray[np.intp], values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    quantiles = np.concatenate([[0.001], (np.arange(100) + 0.5) / 100, [0.999]])
    positions = (quantiles * place.size).astype(np.intp)  # among the sorted pixels
    below = np.bincount(place.ravel(), minlength=len(values)).cumsum()
    return np.unique(values[below.searchsorted(positions, side="right")])


def _spread(values: npt.NDArray[np.int64], breaks: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    return np.interp(values, breaks, np.linspace(0, 1, len(breaks))).clip(0, 1).astype(np.float32)
