"""Random crop, scale and flips of one slice: what Chen and Jin do with batchgenerators, twice.

``draw_crop`` and ``cut`` are the fast path: an unscaled crop is copied as it is, flips cost nothing, and only the
scaled share is interpolated (linearly; labels nearest). ``cut_batchgenerators`` is the parity path through the
library that the authors used (cubic). Both draw from the same distributions.
"""

from dataclasses import dataclass

import numpy as np

from kitsseg.data.resample import blend

__all__ = ["Crop", "center_crop", "cut", "cut_batchgenerators", "draw_crop", "pad_to"]


@dataclass(frozen=True)
class Crop:
    """One drawn crop.

    Attributes:
        size: (rows, columns) that come out.
        center: of the crop in the slice, in pixels; pixel i covers i - 0.5 to i + 0.5.
        scale: of the sampling grid; 0.6 shows 0.6 of the size, enlarged.
        flips: whether rows and columns are mirrored.
    """

    size: tuple[int, int]
    center: tuple[float, float]
    scale: float
    flips: tuple[bool, bool]


def draw_crop(rng, shape, size, augmentation):
    """Draw a crop of a slice that is at least as large as the crop.

    A scaled crop keeps its center at least half an unscaled crop from the border, as batchgenerators does; what it
    shows beyond the border repeats the edge.
    """
    scale = 1.0
    if rng.random() < augmentation.scale_probability:
        low, high = augmentation.scale_range
        scale = rng.uniform(low, 1) if low < 1 and rng.random() < 0.5 else rng.uniform(max(low, 1), high)
    if scale == 1.0:
        start = [rng.integers(n - m + 1) for n, m in zip(shape, size, strict=True)]
        center = tuple(a + (m - 1) / 2 for a, m in zip(start, size, strict=True))
    else:
        center = tuple(
            rng.uniform(m / 2, n - m / 2) if n > m else n / 2 for n, m in zip(shape, size, strict=True)
        )
    flips = tuple(bool(rng.random() < augmentation.flip_probability) for _ in size)
    return Crop(tuple(size), center, scale, flips)


def center_crop(shape, size):
    """The unscaled crop in the middle of a slice."""
    center = tuple((n - m) // 2 + (m - 1) / 2 for n, m in zip(shape, size, strict=True))
    return Crop(tuple(size), center, 1.0, (False, False))


def cut(image, labels, crop):
    """Take a crop out of a slice.

    Args:
        image: (rows, columns) int16 HU.
        labels: (rows, columns) uint8, or a function of two slices (rows, columns) that returns such a window.
        crop: Crop.

    Returns: (image float32 or int16, labels uint8), both of ``crop.size``.
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


def _scaled(image, labels, crop):
    positions = [
        (np.arange(m) - (m - 1) / 2) * crop.scale + c for m, c in zip(crop.size, crop.center, strict=True)
    ]
    taps, nearest = [], []
    for position, n in zip(positions, image.shape):
        inside = np.clip(position, 0, n - 1)
        low = inside.astype(np.intp)
        taps.append((low, np.minimum(low + 1, n - 1), (inside - low).astype(np.float32)))
        nearest.append(np.rint(position).astype(np.intp))
    (y0, y1, wy), (x0, x1, wx) = taps
    rows, columns = slice(y0[0], y1[-1] + 1), slice(x0[0], x1[-1] + 1)
    plane = image[rows, columns].astype(np.float32)
    extra = (1,) * (image.ndim - 2)  # an axis of channels
    wy, wx = wy.reshape(-1, 1, *extra), wx.reshape(-1, *extra)
    plane = blend(plane.take(y0 - rows.start, 0), plane.take(y1 - rows.start, 0), wy)
    plane = blend(plane.take(x0 - columns.start, 1), plane.take(x1 - columns.start, 1), wx)
    truth = labels(rows, columns) if callable(labels) else labels[rows, columns]
    outside = []
    for axis, (i, n, window) in enumerate(zip(nearest, image.shape, (rows, columns))):
        truth = truth.take(np.clip(i - window.start, 0, window.stop - window.start - 1), axis)
        outside.append((i < 0) | (i >= n))
    # beyond the border there is no kidney: background, although the image repeats its edge
    truth[outside[0]] = 0
    truth[:, outside[1]] = 0
    return plane, truth


def pad_to(image, labels, size, value):
    """Pad a slice that is smaller than ``size`` evenly, the image with ``value``, the labels with background."""
    missing = [max(m - n, 0) for n, m in zip(image.shape, size)]
    if not any(missing):
        return image, labels
    widths = [(m // 2, m - m // 2) for m in missing]
    channels = [(0, 0)] * (image.ndim - 2)
    return np.pad(image, widths + channels, constant_values=value), np.pad(labels, widths)


def cut_batchgenerators(image, labels, size, augmentation, rng):
    """The same crop through batchgenerators' own transforms, as the authors call them (cubic interpolation).

    Args:
        image, labels: a slice (rows, columns), at least ``size``.
        rng: numpy Generator; batchgenerators draws from NumPy's global state, which is seeded from it and put back.
    """
    from batchgenerators.transforms.spatial_transforms import MirrorTransform, SpatialTransform

    spatial = SpatialTransform(
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
    before = np.random.get_state()
    try:
        np.random.seed(rng.integers(2**32))
        batch = spatial(data=image[None, None].astype(np.float32), seg=labels[None, None])
        if augmentation.flip_probability:  # the library's own default is 0.5 for each axis
            batch = MirrorTransform(axes=(0, 1), p_per_sample=1)(**batch)
    finally:
        np.random.set_state(before)
    return batch["data"][0, 0], batch["seg"][0, 0].astype(np.uint8)
