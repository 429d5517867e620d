"""Pictures of label maps on a CT: gray values, the polygons around kidney and tumor, and their colors."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from skimage.measure import find_contours

__all__ = ["COLORS", "MASKS", "contours", "eight_bit"]

HU_WINDOW = (-160, 240)  # of soft tissue, in every picture

MASKS: tuple[tuple[str, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.bool_]]], ...] = (
    ("kidney", lambda labels: labels > 0),
    ("tumor", lambda labels: labels == 2),
)
# Of the colors of Okabe and Ito, with white where they have black, because a CT is dark: truth is cold, prediction
# warm. For readers with protanopia, deuteranopia and tritanopia any two differ by 21 and more in CIE L*a*b*.
COLORS = {"truth kidney": "#56B4E9", "truth tumor": "#FFFFFF"}
COLORS |= {"prediction kidney": "#D55E00", "prediction tumor": "#F0E442"}


def contours(mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.int64]]:
    """Closed polygons around a mask, each integers (corners, 2) as (x, y) in half pixels from the upper left corner.

    The lines run halfway between the centers of pixels inside and outside.
    """
    polygons = []
    for contour in find_contours(np.pad(mask, 1).astype(np.uint8), 0.5):
        # padding moves a center from i + 0.5 to i + 1.5; find_contours calls it i + 1; halves become integers
        points = np.rint(2 * contour - 1).astype(int)[:-1, ::-1]
        steps = np.roll(points, -1, axis=0) - points
        polygons.append(points[(steps != np.roll(steps, 1, axis=0)).any(axis=1)])
    return polygons


def eight_bit(hu: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    """HU to gray values 0 to 255 of the window -160 to 240 HU."""
    low, high = HU_WINDOW
    gray: npt.NDArray[np.float32] = np.clip((hu.astype(np.float32) - low) * (255 / (high - low)), 0, 255)
    return np.rint(gray).astype(np.uint8)
