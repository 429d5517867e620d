"""What preprocessing does to a case's grid, and how predictions come back to the scan's own voxels."""

from dataclasses import asdict, dataclass

import numpy as np

from kitsseg.data.resample import blend, linear_taps, resampled_shape

__all__ = ["Geometry", "labels_on_scan", "plan_geometry"]


@dataclass(frozen=True)
class Geometry:
    """A box cut from a resampled scan; everything is (slices, rows, columns).

    Attributes:
        scan_shape, scan_spacing_mm: the scan in KiTS axes.
        grid_shape: the whole scan after resampling.
        start, stop: the box of that grid which is kept; outside it everything is background.
    """

    scan_shape: tuple[int, int, int]
    scan_spacing_mm: tuple[float, float, float]
    grid_shape: tuple[int, int, int]
    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @property
    def shape(self):
        """Shape of the box: that of the arrays in the cache."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def spacing_mm(self):
        """Voxel spacing of the box."""
        return tuple(
            s * n / m for s, n, m in zip(self.scan_spacing_mm, self.scan_shape, self.grid_shape, strict=True)
        )

    def as_dict(self):
        return asdict(self)

    @classmethod
    def from_dict(cls, values):
        return cls(**{key: tuple(value) for key, value in values.items()})


def plan_geometry(image, spacing_mm, spec):
    """Decide grid and box for a scan.

    Args:
        image: (slices, rows, columns) int16 HU.
        spacing_mm: of the scan.
        spec: PreprocessSpec.

    Returns: Geometry. A scan without a voxel above the lower end of the HU window is kept whole.
    """
    grid_shape = resampled_shape(image.shape, spacing_mm, spec.spacing_mm)
    if spec.in_plane_factor is not None:
        grid_shape = grid_shape[0], *(max(1, round(n * spec.in_plane_factor)) for n in grid_shape[1:])
    if spec.slice_size is not None:
        grid_shape = grid_shape[0], *spec.slice_size
    start, stop = (0, 0, 0), grid_shape
    if spec.crop_to_body and (box := _body_box(image, spec.hu_window[0])):
        ratio = [m / n for n, m in zip(image.shape, grid_shape, strict=True)]
        start = tuple(int(np.floor(a * r)) for (a, _), r in zip(box, ratio, strict=True))
        stop = tuple(min(m, int(np.ceil(b * r))) for (_, b), r, m in zip(box, ratio, grid_shape, strict=True))
    return Geometry(image.shape, tuple(spacing_mm), grid_shape, start, stop)


def _body_box(image, threshold):
    rows = np.zeros(image.shape[1], bool)
    columns = np.zeros(image.shape[2], bool)
    slices = np.zeros(image.shape[0], bool)
    for k, plane in enumerate(image):
        body = plane > threshold
        rows |= body.any(axis=1)
        columns |= body.any(axis=0)
        slices[k] = body.any()
    if not slices.any():
        return None
    return [(int(np.argmax(a)), int(len(a) - np.argmax(a[::-1]))) for a in (slices, rows, columns)]


def labels_on_scan(probabilities, geometry, progress=None):
    """Bring class probabilities back to the scan's grid and take the arg-max there.

    Probabilities are interpolated linearly, never labels: at half resolution a perfect network loses 0.003 of Dice
    that way, against 0.015 by copying labels. One slice at a time; only the part that can hold anything but
    background is interpolated, which changes nothing: where background wins at all sources, it wins between them.

    Args:
        probabilities: yields, for each slice of the box in order, float32 (rows, columns, classes) that sum to 1,
            background first.
        geometry: Geometry of the case.

    Returns: uint8 labels of ``geometry.scan_shape``.
    """
    scan, grid, start, stop = geometry.scan_shape, geometry.grid_shape, geometry.start, geometry.stop
    z0, z1, wz = linear_taps(grid[0], scan[0])
    taps = [linear_taps(grid[axis], scan[axis]) for axis in (1, 2)]
    labels = np.zeros(scan, np.uint8)
    source, known, done = iter(probabilities), {}, start[0]
    for k in range(scan[0]):
        for needed in (z0[k], z1[k]):
            while done <= needed < stop[0]:
                known[done] = _embedded(next(source), geometry)
                done += 1
                known.pop(done - 3, None)
        low, high = known.get(z0[k]), known.get(z1[k])
        region = _union(low, high)
        if region is not None:
            _paint(labels[k], low, high, wz[k], region, taps)
        if progress:
            progress(k + 1, scan[0])
    return labels


def _embedded(plane, geometry):
    """(foreground probabilities, their row and column offset, box of pixels where background does not win)."""
    foreground = np.array(plane[..., 1:], np.float32)
    wins = (foreground > plane[..., :1]).any(axis=-1)
    offset, box = geometry.start[1:], None
    if wins.any():
        rows, columns = np.flatnonzero(wins.any(axis=1)), np.flatnonzero(wins.any(axis=0))
        box = (rows[0] + offset[0], rows[-1] + offset[0], columns[0] + offset[1], columns[-1] + offset[1])
    return foreground, offset, box


def _union(low, high):
    boxes = [item[2] for item in (low, high) if item is not None and item[2] is not None]
    if not boxes:
        return None
    return (
        min(b[0] for b in boxes),
        max(b[1] for b in boxes),
        min(b[2] for b in boxes),
        max(b[3] for b in boxes),
    )


def _paint(labels, low, high, weight, region, taps):
    """Interpolate and arg-max the pixels that read any grid pixel of ``region``."""
    top, bottom, left, right = region
    (y0, y1, wy), (x0, x1, wx) = taps
    rows = np.flatnonzero((y1 >= top) & (y0 <= bottom))
    columns = np.flatnonzero((x1 >= left) & (x0 <= right))
    if not len(rows) or not len(columns):
        return  # the scan is less than half as fine as the grid: its pixels step over the region
    rows, columns = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    y0, y1, wy, x0, x1, wx = y0[rows], y1[rows], wy[rows], x0[columns], x1[columns], wx[columns]
    span = (y0[0], y1[-1] + 1, x0[0], x1[-1] + 1)
    plane = blend(_window(low, span), _window(high, span), weight)
    y0, y1, x0, x1 = y0 - span[0], y1 - span[0], x0 - span[2], x1 - span[2]
    plane = blend(plane.take(y0, 0), plane.take(y1, 0), wy[:, None, None])
    plane = blend(plane.take(x0, 1), plane.take(x1, 1), wx[:, None])
    best = plane.argmax(axis=-1)
    value = np.take_along_axis(plane, best[..., None], -1)[..., 0]
    labels[rows, columns] = np.where(value > 1 - plane.sum(axis=-1), best + 1, 0)


def _window(item, span):
    """Foreground probabilities in a window of the grid; 0 outside the box, and for a slice outside it (None)."""
    y0, y1, x0, x1 = span
    if item is None:
        return np.zeros((y1 - y0, x1 - x0, 1), np.float32)  # broadcasts over the classes
    foreground, (top, left), _ = item
    window = np.zeros((y1 - y0, x1 - x0, foreground.shape[-1]), np.float32)
    height, width = foreground.shape[:2]
    a, b = max(y0, top), min(y1, top + height)
    c, d = max(x0, left), min(x1, left + width)
    if a < b and c < d:
        window[a - y0 : b - y0, c - x0 : d - x0] = foreground[a - top : b - top, c - left : d - left]
    return window
