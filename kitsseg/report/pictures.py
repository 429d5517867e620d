"""Pictures of a case: slices with the outlines of truth and prediction, for the page and as a PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from kitsseg.errors import InputError
from kitsseg.files.templates import render_html
from kitsseg.labels.outlines import COLORS, MASKS, contours, eight_bit
from kitsseg.report.views import case_views

if TYPE_CHECKING:
    from markupsafe import Markup

    from kitsseg.report.views import ShownCase, View

__all__ = ["CasePicture", "case_picture", "case_preview", "show_plane"]

QUALITIES = (80, 60, 40)  # of WebP
LONGEST = 512  # pixels of the longer side
PIXELS_PER_MM, GAP, HEAD = 2, 12, 36  # of the PNG
LINE = {"kidney": 2, "tumor": 3}  # pixels


@dataclass(frozen=True)
class CasePicture:
    """The picture of a case: HTML, and its volumes in ml where the case could be read, else the reason why not."""

    html: Markup
    kidney_ml: float | None = None
    tumor_ml: float | None = None
    why_not: str | None = None


def case_picture(case: ShownCase, name: str, limit: int) -> CasePicture:
    """Read a case and draw it for the page.

    Args:
        case: its files.
        name: what the page calls it.
        limit: of the HTML in bytes. Pictures are coded more coarsely, and slices left out, until they fit.

    Returns: CasePicture; where a file cannot be read, its HTML is a sentence that names the file.
    """
    wanted = max(limit // 20_000, 1)  # what a slice of a CT with two kidneys takes
    try:
        found = case_views(case, min(wanted, 40))
    except InputError as error:
        html = render_html("kitsseg.report", "no_picture.html", reason=str(error))
        return CasePicture(html, why_not=str(error))
    for_one = limit // (len(found.axial) + 4)
    planes = [show_plane(view, name, for_one) for view in (found.coronal, found.sagittal)]
    slices = [show_plane(view, name, for_one) for view in found.axial]
    keep = _fitting([len(svg) for svg in slices], found.start, limit - sum(map(len, planes)))
    height = found.coronal.hu.shape[0] * found.coronal.spacing_mm[0]
    widths = [view.hu.shape[1] * view.spacing_mm[1] for view in (found.coronal, found.sagittal)]
    html = render_html(
        "kitsseg.report",
        "case.html",
        name=name,
        slices=[(found.axial[i], slices[i], 100 * found.depths_mm[i] / height) for i in keep],
        start=keep.index(found.start),
        planes=[
            (view, svg, width / max(widths))  # at one scale
            for view, svg, width in zip((found.coronal, found.sagittal), planes, widths, strict=True)
        ],
        marks=[_labels_of(found.axial[i]) for i in keep],
        why=found.why,
        outside_ml=found.outside_ml,
    )
    return CasePicture(html, found.kidney_ml, found.tumor_ml)


def _fitting(sizes: list[int], start: int, limit: int) -> list[int]:
    """Indices of slices that fit into ``limit`` bytes: all, or every second, fourth and so on, with ``start``."""
    step = 1
    while True:
        keep = [i for i in range(len(sizes)) if (i - start) % step == 0]
        if sum(sizes[i] for i in keep) <= limit or len(keep) == 1:
            return keep
        step *= 2


def show_plane(view: View, name: str = "", limit: int = 1 << 20) -> Markup:
    """Draw one plane.

    Args:
        view: View.
        name: of the case, for those who cannot see the picture.
        limit: of the coded CT in bytes.

    Returns: an ``<svg>`` in mm. The CT is one embedded WebP; outlines have the classes ``truth`` or ``prediction`` and
        ``kidney`` (any label from 1) or ``tumor``.
    """
    height, width = view.hu.shape
    down, right = view.spacing_mm
    outlines = [(kind, "".join(map(_path, polygons))) for kind, polygons in _outlines(view) if polygons]
    return render_html(
        "kitsseg.report",
        "plane.svg",
        view=view,
        name=name,
        width=width,
        height=height,
        width_mm=f"{width * right:.2f}",
        height_mm=f"{height * down:.2f}",
        scale=f"scale({right:.6g} {down:.6g})",
        half_scale=f"scale({right / 2:.6g} {down / 2:.6g})",  # outlines count in half pixels
        image=base64.b64encode(_coded(view, limit * 3 // 4)).decode(),
        outlines=outlines,
        shown=", ".join(kind for kind, _ in outlines) or "no label",
    )


def _coded(view: View, limit: int) -> bytes:
    """The CT as WebP of at most ``limit`` bytes."""
    gray = Image.fromarray(eight_bit(view.hu))
    side = min(LONGEST, max(gray.size))
    while True:
        small = gray
        if side < max(gray.size):
            scale = side / max(gray.size)
            width, height = (max(1, round(n * scale)) for n in gray.size)
            small = gray.resize((width, height), Image.Resampling.LANCZOS)
        for quality in QUALITIES:
            coded = io.BytesIO()
            small.save(coded, "WEBP", quality=quality, method=4)
            if coded.tell() <= limit or side < 32:
                return coded.getvalue()
        side //= 2


def _path(corners: npt.NDArray[np.int64]) -> str:
    """A closed polygon as SVG: the first corner, then the way to each next one."""
    steps = "".join(f"{x} {y} ".replace(" -", "-") for x, y in np.diff(corners, axis=0).tolist())
    x, y = corners[0].tolist()
    return f"M{x} {y}l{steps.strip()}z"


def _labels_of(view: View) -> str:
    """The CSS classes of the mark beside the slider for an axial slice: whether it holds true or predicted tumor."""
    held = [("t", view.truth), ("p", view.prediction)]
    return " ".join(mark for mark, labels in held if labels is not None and (labels == 2).any())


def case_preview(case: ShownCase, title: str) -> Image.Image:
    """The three planes through the largest tumor side by side as one picture.

    Args:
        case: its files. title: a line above them.

    Returns: ``PIL.Image``, two pixels to the mm.
    Raises: InputError as ``case_views``.
    """
    planes = case_views(case).planes
    sizes = [
        [round(n * mm * PIXELS_PER_MM) for n, mm in zip(view.hu.shape, view.spacing_mm, strict=True)]
        for view in planes
    ]
    width = sum(size[1] for size in sizes) + GAP * (len(sizes) + 1)
    page = Image.new("RGB", (width, max(size[0] for size in sizes) + 2 * HEAD), "#16191d")
    draw, left = ImageDraw.Draw(page), GAP
    draw.text((GAP, GAP), title, fill="#e6eaf0")
    for view, (rows, columns) in zip(planes, sizes, strict=True):
        gray = Image.fromarray(eight_bit(view.hu)).resize((columns, rows), Image.Resampling.BICUBIC)
        page.paste(gray.convert("RGB"), (left, HEAD))
        scale = np.array([columns / view.hu.shape[1], rows / view.hu.shape[0]]) / 2  # of half pixels
        for name, polygons in _outlines(view):
            for corners in polygons:
                points = [tuple(point) for point in corners * scale + (left, HEAD)]
                draw.line([*points, points[0]], fill=COLORS[name], width=LINE[name.split()[1]])
        near, far = view.sides
        draw.text((left + 6, HEAD + 6), near, fill="#fff")
        draw.text((left + columns - 12, HEAD + 6), far, fill="#fff")
        draw.text((left, HEAD + rows + 4), f"{view.plane}, {view.where}", fill="#9aa6b5")
        left += columns + GAP
    return page


def _outlines(view: View) -> Iterator[tuple[str, list[npt.NDArray[np.int64]]]]:
    """(class, polygons) of truth and prediction, kidney and tumor."""
    for whose, labels in (("truth", view.truth), ("prediction", view.prediction)):
        if labels is None:
            continue
        for name, mask in MASKS:
            yield f"{whose} {name}", contours(mask(labels))
