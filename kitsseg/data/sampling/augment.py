"""Random crop, scale and flips of one slice, as Chen and Jin do with batchgenerators, in two implementations.

``draw_crop`` and ``cut`` are the fast one: an unscaled crop is a view, a flip is a negative stride, and only scaled
crops are interpolated (linearly; labels by the nearest pixel). ``batchgenerators_transform`` expresses the same
augmentation in the library of the authors (cubic interpolation); ``cut_batchgenerators`` applies it to a slice. Both
draw from the same distributions, except that batchgenerators never takes the last possible start of an unscaled crop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from kitsseg.data.geometry.resample import blend

if TYPE_CHECKING:
    from kitsseg.recipe import Augmentation

__all__ = [
    "Crop",
    "LabelWindow",
    "apply_batchgenerators",
    "batchgenerators_transform",
    "center_crop",
    "change_appearance",
    "cut",
    "cut_batchgenerators",
    "draw_crop",
    "pad_to",
]

LINES = 32
# labels of the window (rows, columns) of a slice
LabelWindow = Callable[[slice, slice], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Crop:
    """One drawn crop.

    Attributes:
        size: (rows, columns) that come out.
        center: of the crop in the slice, in pixels; pixel i covers i - 0.5 to i + 0.5.
        scale: of the sampling grid; 0.6 shows 0.6 of the size, enlarged.
        flips: whether rows and columns are mirrored.
    """

    size: tuple[int, ...]
    center: tuple[float, ...]
    scale: float
    flips: tuple[bool, bool]


def draw_crop(
    rng: np.random.Generator, shape: Sequence[int], size: Sequence[int], augmentation: Augmentation
) -> Crop:
    """Draw a crop of a slice that is at least as large as the crop.

    A scaled crop keeps its center at least half an unscaled crop from the border, as batchgenerators does; beyond the
    border the edge is repeated.

    Args:
        rng: ``numpy.random.Generator``.
        shape: (rows, columns) of the slice.
        size: (rows, columns) of the crop.
        augmentation: Augmentation.
    """
    # the same seven numbers whatever becomes of them: one call, where each of its own would cost more than a crop
    whether, side, amount, *place, flip_rows, flip_columns = rng.random(7).tolist()
    scale = 1.0
    if whether < augmentation.scale_probability:
        low, high = augmentation.scale_range
        low, high = (low, 1) if low < 1 and side < 0.5 else (max(low, 1), high)
        scale = low + amount * (high - low)
    if scale == 1.0:
        center = tuple(int(u * (n - m + 1)) + (m - 1) / 2 for u, n, m in zip(place, shape, size, strict=True))
    else:
        center = tuple(
            m / 2 + u * (n - m) if n > m else n / 2 for u, n, m in zip(place, shape, size, strict=True)
        )
    p = augmentation.flip_probability
    return Crop(tuple(size), center, scale, (flip_rows < p, flip_columns < p))


def center_crop(shape: Sequence[int], size: Sequence[int]) -> Crop:
    """The unscaled crop in the middle of a slice."""
    center = tuple((n - m) // 2 + (m - 1) / 2 for n, m in zip(shape, size, strict=True))
    return Crop(tuple(size), center, 1.0, (False, False))


def cut(
    image: npt.NDArray[Any], labels: npt.NDArray[np.uint8] | LabelWindow, crop: Crop
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """Take a crop out of a slice.

    Args:
        image: (rows, columns) int16 HU, or (rows, columns, channels) uint8.
        labels: (rows, columns) uint8, or a function of two slices (rows, columns) that returns such a window.
        crop: Crop.

    Returns: (image, labels), both of ``crop.size``. An unscaled image is a view of the slice, of its type; a scaled
        one is float32. Labels are uint8.
    """
    if crop.scale == 1.0:
        rows, columns = (
            slice(round(c - (m - 1) / 2), round(c - (m - 1) / 2) + m) for c, m in zip(crop.center, crop.size)
        )
        window = image[rows, columns]
        truth = labels(rows, columns) if callable(labels) else labels[rows, columns]
    else:
        window, truth = _scaled(image, labels, crop)
    step = tuple(slice(None, None, -1 if flip else 1) for flip in crop.flips)
    return window[step], truth[step]


def _scaled(
    image: npt.NDArray[Any], labels: npt.NDArray[np.uint8] | LabelWindow, crop: Crop
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    positions = [
        (np.arange(m) - (m - 1) / 2) * crop.scale + c for m, c in zip(crop.size, crop.center, strict=True)
    ]
    taps, windows = [], []
    for position, n in zip(positions, image.shape):
        inside = np.clip(position, 0, n - 1)
        low = inside.astype(np.intp)
        high = np.minimum(low + 1, n - 1)
        windows.append(slice(int(low[0]), int(high[-1]) + 1))
        taps.append((low - low[0], high - low[0], (inside - low).astype(np.float32)))
    rows, columns = windows
    plane = np.ascontiguousarray(image[rows, columns])
    for tap in taps:
        plane = _blend_lines(plane, *tap)
    truth = labels(rows, columns) if callable(labels) else labels[rows, columns]
    outside = []
    for axis, (position, n, window) in enumerate(zip(positions, image.shape, windows)):
        nearest = np.rint(position).astype(np.intp)
        truth = truth.take(np.clip(nearest, window.start, window.stop - 1) - window.start, axis)
        outside.append((nearest < 0) | (nearest >= n))
    # beyond the border there is no kidney: background, although the image repeats its edge
    truth[outside[0]] = 0
    truth[:, outside[1]] = 0
    return plane, truth


def _blend_lines(
    plane: npt.NDArray[Any],
    low: npt.NDArray[np.intp],
    high: npt.NDArray[np.intp],
    weight: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Interpolate along the first axis and transpose, so that whole lines are combined instead of single pixels.

    It works in blocks that stay in the processor's cache. For arrays of a whole slice, memory would be taken from the
    system and given back in each call.
    """
    out = np.empty((plane.shape[1], len(low), *plane.shape[2:]), np.float32)
    weight = weight.reshape(-1, *(1,) * (plane.ndim - 1))
    for i in range(0, len(low), LINES):
        block = slice(i, i + LINES)
        below, above = (plane.take(lines[block], 0).astype(np.float32, copy=False) for lines in (low, high))
        out[:, block] = blend(below, above, weight[block]).swapaxes(0, 1)
    return out


def change_appearance(
    hu: npt.NDArray[Any], labels: npt.NDArray[np.integer], strength: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Draw contrast, texture, noise and objects at random: a slice that no scanner would make, with the same labels.

    In this order, each with its own chance: up to five ellipses of 2 to 14 pixels and any HU on the background (0.5);
    a monotone curve over all HU (0.7: slope varied by 30 %, shifted by 14 HU, bent by 12 HU at five points); kidneys
    and tumors brighter or darker than the rest (0.5: by 20 and 28 HU); a coarse texture (0.5: up to 18 HU); a blur of
    0.2 to 0.8 pixels (0.3); noise (0.6: up to 24 HU). The figures are deviations or maxima at ``strength`` 1.

    Args:
        hu: (rows, columns).
        labels: (rows, columns), 0 background.
        strength: factor on these deviations and maxima.
        rng: ``numpy.random.Generator``.

    Returns: float32 HU, a new array.
    """
    hu = hu.astype(np.float32)
    objects, curve, tissues, texture, blur, noise = rng.random(6) < (0.5, 0.7, 0.5, 0.5, 0.3, 0.6)
    if objects:
        for _ in range(rng.integers(1, 6)):
            _paint_ellipse(hu, labels, rng)
    if curve:
        points = np.array((-1100, 0, 60, 120, 180, 260, 3100), np.float32)
        values = points * np.exp(0.3 * strength * rng.normal()) + 14 * strength * rng.normal()
        values[1:6] += 12 * strength * rng.normal(size=5)
        values[[0, -1]] = points[[0, -1]]  # air stays air, and metal metal
        hu = np.interp(hu, points, np.maximum.accumulate(values)).astype(np.float32)
    if tissues:
        for value, deviation in ((1, 20), (2, 28)):
            share = ndimage.gaussian_filter(np.float32(labels == value), 0.5)
            hu += share * np.float32(deviation * strength * rng.normal())
    if texture:
        waves = ndimage.gaussian_filter(rng.standard_normal(hu.shape, np.float32), rng.uniform(1, 6))
        hu += waves * np.float32(strength * rng.uniform(0, 18) / max(float(waves.std()), 1e-6))
    if blur:
        hu = ndimage.gaussian_filter(hu, rng.uniform(0.2, 0.8))
    if noise:
        hu += rng.standard_normal(hu.shape, np.float32) * np.float32(strength * rng.uniform(0, 24))
    return hu


def _paint_ellipse(
    hu: npt.NDArray[np.float32], labels: npt.NDArray[np.integer], rng: np.random.Generator
) -> None:
    height, width = hu.shape
    center, radii = rng.uniform(0.05, 0.95, 2) * (height, width), rng.uniform(2, 14, 2)
    angle, value = rng.uniform(0, np.pi), np.float32(rng.uniform(-60, 260))
    y, x = np.ogrid[:height, :width]
    y, x = (y - center[0]).astype(np.float32), (x - center[1]).astype(np.float32)
    along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
    radius = np.sqrt((along / radii[0]) ** 2 + (across / radii[1]) ** 2)
    share = np.clip((1 - radius) * radii.min() + 0.5, 0, 1).astype(np.float32)
    share *= labels == 0
    hu += share * (value - hu)


def pad_to(
    image: npt.NDArray[Any], labels: npt.NDArray[np.uint8], size: Sequence[int], value: float
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """Pad a slice that is smaller than ``size`` evenly on both sides.

    Args:
        image: (rows, columns), perhaps with channels as the last axis.
        labels: (rows, columns); they are padded with background.
        size: least (rows, columns) of the result.
        value: with which the image is padded.
    """
    missing = [max(m - n, 0) for n, m in zip(image.shape, size)]
    if not any(missing):
        return image, labels
    widths = [(m // 2, m - m // 2) for m in missing]
    channels = [(0, 0)] * (image.ndim - 2)
    return np.pad(image, widths + channels, constant_values=value), np.pad(labels, widths)


def batchgenerators_transform(
    size: Sequence[int], augmentation: Augmentation
) -> Callable[..., dict[str, Any]]:
    """An augmentation as a transform of batchgenerators, as the authors call it (cubic interpolation).

    Args:
        size: (rows, columns) for slices, which are cropped, scaled and flipped along both axes; or (slices, rows,
            columns) for patches, which are flipped along rows and columns and must have that size already.
        augmentation: Augmentation.

    Returns: ``Compose`` of a dict of data (batch, channels, *space) float32 and seg (batch, channels, *space); it
        draws from NumPy's global state, as all of that library does.
    Raises: ValueError for scaled patches, and for another flip probability than 0 or the library's 0.5.
    """
    from batchgenerators.transforms.abstract_transforms import Compose
    from batchgenerators.transforms.spatial_transforms import MirrorTransform, SpatialTransform

    transforms = []
    if len(size) == 2:
        crop = SpatialTransform(
            size,
            patch_center_dist_from_border=[m // 2 for m in size],
            do_elastic_deform=False,
            do_rotation=False,
            do_scale=True,
            scale=augmentation.scale_range,
            random_crop=True,
            order_data=3,
            border_mode_data="nearest",
            order_seg=0,
            p_scale_per_sample=augmentation.scale_probability,
        )
        transforms.append(crop)
    elif augmentation.scale_probability:
        raise ValueError(
            f"batchgenerators_transform: 3D patches are not scaled; scale_probability must be 0, found "
            f"{augmentation.scale_probability}."
        )
    if augmentation.flip_probability not in (0, 0.5):
        raise ValueError(
            f"batchgenerators_transform: batchgenerators flips with probability 0.5, found "
            f"{augmentation.flip_probability}. Use the fast path."
        )
    if augmentation.flip_probability:
        transforms.append(MirrorTransform(axes=(0, 1) if len(size) == 2 else (1, 2), p_per_sample=1))
    compose: Callable[..., dict[str, Any]] = Compose(transforms)
    return compose


def cut_batchgenerators(
    image: npt.NDArray[Any],
    labels: npt.NDArray[np.uint8],
    size: Sequence[int],
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """A random crop of a slice through ``batchgenerators_transform``.

    Args:
        image, labels: a slice (rows, columns), at least ``size``; the image may have channels as its last axis.
        size: (rows, columns) of the crop.
        augmentation: Augmentation.
        rng: numpy Generator; NumPy's global state is seeded from it and put back.

    Returns: (image float32, labels uint8), both of ``size``.
    """
    transform = batchgenerators_transform(size, augmentation)
    channels = np.moveaxis(image, -1, 0) if image.ndim == 3 else image[None]
    window, truth = apply_batchgenerators(transform, channels, labels, rng)
    return window[0] if image.ndim == 2 else np.moveaxis(window, 0, -1), truth


def apply_batchgenerators(
    transform: Callable[..., dict[str, Any]],
    channels: npt.NDArray[Any],
    labels: npt.NDArray[np.uint8],
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Apply a transform of batchgenerators to one image and its labels.

    Args:
        transform: from ``batchgenerators_transform``.
        channels: the image, (channels, *space).
        labels: (*space).
        rng: numpy Generator, from which NumPy's global state is seeded.
    """
    before = np.random.get_state()
    try:
        np.random.seed(rng.integers(2**32))
        batch = transform(data=channels[None].astype(np.float32), seg=labels[None, None])
    finally:
        np.random.set_state(before)
    return batch["data"][0], batch["seg"][0, 0].astype(np.uint8)
