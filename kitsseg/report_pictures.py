"""One picture a case: the slice with the largest tumor, with the outlines of truth and prediction."""

import base64
import io
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.measure import find_contours

from kitsseg.data.nifti import read_image, read_labels
from kitsseg.errors import InputError

__all__ = ["case_picture", "choose_slice", "outline", "show_slice"]

HU_WINDOW = (-160, 240)
MARGIN_MM = 25  # around kidneys and tumors: the fat and organs beside them
SMALLEST_MM = 200  # of the picture's width; the height is at least 3/5 of that


def case_picture(files):
    """Read a case and draw it.

    Args:
        files: dict of the paths ``prediction``, ``truth`` and ``image`` (None if there is no CT).

    Returns: HTML of an ``<svg>`` and its caption; or of a sentence that names the file that cannot be read.
    """
    if files["image"] is None:
        return f'<p class="missing">No picture: no CT lies beside {escape(files["truth"])}.</p>'
    try:
        truth, prediction = read_labels(files["truth"]), read_labels(files["prediction"])
        if not Path(files["image"]).is_file():  # before two volumes are read in vain
            raise FileNotFoundError(files["image"])
        image = read_image(files["image"])
    except FileNotFoundError as error:
        return (
            f'<p class="missing">No picture: {escape(str(error.filename or error))} is no longer there.</p>'
        )
    except InputError as error:
        return f'<p class="missing">No picture: {escape(str(error))}</p>'
    if not truth.array.shape == prediction.array.shape == image.array.shape:
        shapes = " and ".join(f"{v.path.name} {v.array.shape}" for v in (image, truth, prediction))
        return f'<p class="missing">No picture: shapes differ: {escape(shapes)}.</p>'
    index, why = choose_slice(truth.array, prediction.array)
    box = _crop(truth.array if truth.array.any() else prediction.array, image.grid.spacing_mm)
    predicted = prediction.array[index]
    drawing = show_slice(
        image.array[index][box], truth.array[index][box], predicted[box], image.grid.spacing_mm[1:]
    )
    outside = np.count_nonzero(predicted) - np.count_nonzero(predicted[box])
    more = f"; {outside} predicted pixels lie outside the picture" if outside else ""
    return f'{drawing}<p class="where">slice {index + 1} of {len(truth.array)}, {why}{more}</p>'


def choose_slice(truth, prediction):
    """(index, reason) of the slice with the largest tumor; without tumor the largest kidney."""
    for labels, smallest, why in (
        (truth, 2, "largest tumor"),
        (truth, 1, "no tumor in the truth: largest kidney"),
        (prediction, 1, "empty truth: largest prediction"),
    ):
        areas = [np.count_nonzero(plane >= smallest) for plane in labels]
        if max(areas):
            return int(np.argmax(areas)), why
    return len(truth) // 2, "empty truth and prediction: the middle"


def show_slice(image, truth, prediction, spacing_mm):
    """Draw one slice.

    Args:
        image: HU (rows, columns).
        truth, prediction: labels (rows, columns).
        spacing_mm: (rows, columns).

    Returns: an ``<svg>`` in mm. The CT is one embedded PNG; outlines have the classes ``truth`` or
        ``prediction`` and ``kidney`` (labels >= 1) or ``tumor``.
    """
    low, high = HU_WINDOW
    gray = np.clip((image.astype(np.float32) - low) * (255 / (high - low)), 0, 255)
    png = io.BytesIO()
    Image.fromarray(np.rint(gray).astype(np.uint8)).save(png, "PNG", optimize=True)
    height, width = gray.shape
    size = f"{width * spacing_mm[1]:.2f} {height * spacing_mm[0]:.2f}"
    parts = [
        f'<svg class="slice" viewBox="0 0 {size}" role="img" aria-label="CT slice with outlines">',
        f'<image width="{width}" height="{height}" preserveAspectRatio="none" '
        f'transform="scale({spacing_mm[1]:.6g} {spacing_mm[0]:.6g})" '
        f'href="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"/>',
        # outlines count in half pixels
        f'<g transform="scale({spacing_mm[1] / 2:.6g} {spacing_mm[0] / 2:.6g})">',
    ]
    for labels, whose in ((truth, "truth"), (prediction, "prediction")):
        for smallest, name in ((1, "kidney"), (2, "tumor")):
            path = outline(labels >= smallest)
            if path:
                parts.append(f'<path class="{whose} {name}" d="{path}"/>')
    return "".join(parts) + "</g></svg>"


def _crop(labels, spacing_mm):
    """The part of a slice around the labels of all slices: the place of both kidneys is in the picture."""
    mask, box = labels.any(axis=0), []
    for axis, smallest in ((0, SMALLEST_MM * 3 / 5), (1, SMALLEST_MM)):
        size, spacing = mask.shape[axis], spacing_mm[1 + axis]
        found = np.flatnonzero(mask.any(axis=1 - axis))
        first, last = (found[0], found[-1] + 1) if found.size else (0, size)
        length = min(size, round(max(last - first + 2 * MARGIN_MM / spacing, smallest / spacing)))
        start = min(max(round((first + last - length) / 2), 0), size - length)
        box.append(slice(start, start + length))
    return tuple(box)


def outline(mask):
    """SVG path around a mask, in half pixels from the upper left corner of the picture; "" if it is empty.

    The line runs halfway between the centers of pixels inside and outside.
    """
    paths = []
    for contour in find_contours(np.pad(mask, 1).astype(np.uint8), 0.5):
        # padding moves a center from i + 0.5 to i + 1.5; find_contours calls it i + 1; halves become integers
        points = np.rint(2 * contour - 1).astype(int)[:-1, ::-1]
        steps = np.roll(points, -1, axis=0) - points
        corners = points[(steps != np.roll(steps, 1, axis=0)).any(axis=1)]
        paths.append("M" + "L".join(f"{x} {y}" for x, y in corners) + "Z")
    return "".join(paths)
