"""Pictures of a case: three planes with the outlines of truth and prediction, for the page and as a PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from kitsseg.errors import InputError
from kitsseg.labels.outlines import COLORS, MASKS, contours, eight_bit
from kitsseg.report.views import case_views

if TYPE_CHECKING:
    from kitsseg.report.views import View
    from kitsseg.scoring.cases import CaseFiles

__all__ = ["case_picture", "case_preview", "show_plane"]

JPEG_QUALITY = 90
PIXELS_PER_MM, GAP, HEAD = 2, 12, 36  # of the PNG


def case_picture(files: CaseFiles) -> str:
    """Read a case and draw it for the page.

    Args:
        files: as ``case_views``.

    Returns: HTML of three ``<svg>``, at one scale, with captions; or of a sentence that names the file that cannot be
        read.
    """
    try:
        found = case_views(files)
    except InputError as error:
        return f'<p class="missing">No picture: {escape(str(error))}</p>'
    parts = []
    for view in found.views:
        width = view.hu.shape[1] * view.spacing_mm[1]
        parts.append(
            f'<div style="flex:{width:.0f} 1 0">{show_plane(view)}'
            f'<p class="where">{view.plane}, {view.where}</p></div>'
        )
    outside = (
        f"; {found.outside_ml:.1f} ml of the prediction lie outside of these pictures"
        if found.outside_ml
        else ""
    )
    return f'<div class="planes">{"".join(parts)}</div><p class="where">{found.why}{outside}</p>'


def show_plane(view: View) -> str:
    """Draw one plane.

    Args:
        view: View.

    Returns: an ``<svg>`` in mm. The CT is one embedded JPEG; outlines have the classes ``truth`` or ``prediction`` and
        ``kidney`` (any label from 1) or ``tumor``.
    """
    picture = io.BytesIO()
    Image.fromarray(eight_bit(view.hu)).save(picture, "JPEG", quality=JPEG_QUALITY)
    height, width = view.hu.shape
    down, right = view.spacing_mm
    parts = [
        f'<svg class="slice" viewBox="0 0 {width * right:.2f} {height * down:.2f}" role="img" '
        f'aria-label="{view.plane} CT with outlines">',
        f'<image width="{width}" height="{height}" preserveAspectRatio="none" '
        f'transform="scale({right:.6g} {down:.6g})" '
        f'href="data:image/jpeg;base64,{base64.b64encode(picture.getvalue()).decode()}"/>',
        # outlines count in half pixels
        f'<g transform="scale({right / 2:.6g} {down / 2:.6g})">',
    ]
    for name, polygons in _outlines(view):
        path = "".join("M" + "L".join(f"{x} {y}" for x, y in corners) + "Z" for corners in polygons)
        if path:
            parts.append(f'<path class="{name}" d="{path}"/>')
    return "".join(parts) + "</g></svg>"


def case_preview(files: CaseFiles, title: str) -> Image.Image:
    """The three planes side by side as one picture.

    Args:
        files: as ``case_views``. title: a line above them.

    Returns: ``PIL.Image``, two pixels to the mm.
    Raises: InputError as ``case_views``.
    """
    found = case_views(files)
    sizes = [
        [round(n * mm * PIXELS_PER_MM) for n, mm in zip(view.hu.shape, view.spacing_mm, strict=True)]
        for view in found.views
    ]
    width = sum(size[1] for size in sizes) + GAP * (len(sizes) + 1)
    page = Image.new("RGB", (width, max(size[0] for size in sizes) + 2 * HEAD), "#16191d")
    draw, left = ImageDraw.Draw(page), GAP
    draw.text((GAP, GAP), title, fill="#e6eaf0")
    for view, (rows, columns) in zip(found.views, sizes, strict=True):
        gray = Image.fromarray(eight_bit(view.hu)).resize((columns, rows), Image.Resampling.BILINEAR)
        page.paste(gray.convert("RGB"), (left, HEAD))
        scale = np.array([columns / view.hu.shape[1], rows / view.hu.shape[0]]) / 2  # of half pixels
        for name, polygons in _outlines(view):
            for corners in polygons:
                points = [tuple(point) for point in corners * scale + (left, HEAD)]
                draw.line([*points, points[0]], fill=COLORS[name], width=2)
        draw.text((left, HEAD + rows + 4), f"{view.plane}, {view.where}", fill="#9aa6b5")
        left += columns + GAP
    return page


def _outlines(view: View) -> Iterator[tuple[str, list[npt.NDArray[np.int64]]]]:
    """(class, polygons) of truth and prediction, kidney and tumor."""
    for whose, labels in (("truth", view.truth), ("prediction", view.prediction)):
        for name, mask in MASKS:
            yield f"{whose} {name}", contours(mask(labels))
