"""Write a training for TensorBoard: the columns of history.csv, TK and TU Dice of each case, pictures of cases.

TensorFlow writes the files, also if Keras runs on JAX. To look at them, ``pip install tensorboard``; training does not
need that package. (``keras.callbacks.TensorBoard`` would need it, and knows neither phases nor cases.) Epochs are
counted through all phases; each point is an epoch in ``history.csv``.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from kitsseg.errors import InputError
from kitsseg.labels.outlines import COLORS, MASKS, contours, eight_bit

if TYPE_CHECKING:
    from kitsseg.data.cache.cases import CachedCase

__all__ = ["PICTURES", "TensorBoardLog", "case_slice", "check_folder"]

PICTURES = 3  # cases that are shown
PIXELS = 512  # of the longer side of a picture
SCALAR, IMAGES = (1, "scalars"), (3, "images")  # data classes and plugins of TensorBoard


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raise InputError unless event files can be written to a folder or the folder can be made. Nothing is made yet."""
    there = folder = Path(folder).absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "a folder that may not be written to" if there.is_dir() else "a file"
        raise InputError(
            f"--tensorboard {folder}: expected a new folder or one to write to, found {what}: {there}."
        )


class TensorBoardLog:
    """Writes event files.

    Args:
        folder: is made if it does not exist. A resumed run adds event files.
        history: rows of ``history.csv`` so far. They are written at once, so that a resumed run is shown completely.

    Raises: InputError if the folder cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str], history: Iterable[Mapping[str, Any]] = ()) -> None:
        import tensorflow as tf

        check_folder(folder)
        self.tf, self.writer = tf, tf.summary.create_file_writer(str(folder))
        self.pictures: dict[str, Image.Image] = {}
        for epoch, row in enumerate(history, 1):
            self.epoch(epoch, row)

    def epoch(self, epoch: int, row: Mapping[str, Any], cases: Iterable[Mapping[str, Any]] = ()) -> None:
        """Write the values of an epoch.

        Args:
            epoch: counted from 1 through all phases.
            row: of ``history.csv``.
            cases: rows of ``validation_cases.csv`` of this epoch.
        """
        for name, value in row.items():
            if name not in ("phase", "epoch"):
                self._scalar(name, value, epoch)
        for case in cases:
            for score in ("tk_dice", "tu_dice"):
                self._scalar(f"whole_case_{score}/{case['case']}", case[score], epoch)
        for name, picture in self.pictures.items():
            png = io.BytesIO()
            picture.save(png, "PNG")
            size = [str(n).encode() for n in picture.size]
            self._write(f"whole_case/{name}", np.array([*size, png.getvalue()], object), epoch, IMAGES)
        self.pictures.clear()
        self.writer.flush()

    def look(self, case: CachedCase, labels: npt.NDArray[np.uint8]) -> None:
        """Draw a case for the next ``epoch``, if there are fewer than ``PICTURES`` yet."""
        if len(self.pictures) < PICTURES:
            self.pictures[case.name] = case_slice(case, labels)

    def close(self) -> None:
        self.writer.close()

    def _scalar(self, name: str, value: float, epoch: int) -> None:
        self._write(name, np.float32(value), epoch, SCALAR)

    def _write(self, name: str, value: Any, epoch: int, kind: tuple[int, str]) -> None:
        metadata = self.tf.compat.v1.SummaryMetadata()
        metadata.data_class, metadata.plugin_data.plugin_name = kind
        with self.writer.as_default():
            self.tf.summary.write(name, self.tf.constant(value), epoch, metadata)


def case_slice(case: CachedCase, labels: npt.NDArray[np.uint8]) -> Image.Image:
    """One slice of a cached case with the outlines of truth and prediction, at its true proportions.

    It is the slice with the largest area of true tumor; without tumor, of true kidney; without both, the middle slice.
    Truth is blue (kidney) and white (tumor), the prediction orange and yellow, as in the report.

    Args:
        case: CachedCase.
        labels: uint8 (slices, rows, columns), predicted for the case.

    Returns: ``PIL.Image`` in RGB.
    """
    areas = [area for area in (case.tumor_area, case.kidney_area) if area.any()]
    k = int(areas[0].argmax()) if areas else len(labels) // 2
    plane = np.asarray(case.image[k])
    gray = eight_bit(plane) if plane.ndim == 2 else plane[..., 0]  # of several channels the first window
    mm = np.multiply(plane.shape[:2], case.geometry.spacing_mm[1:])
    rows, columns = np.maximum(1, np.rint(mm * (PIXELS / mm.max()))).astype(int).tolist()
    picture = Image.fromarray(gray).resize((columns, rows), Image.Resampling.BILINEAR).convert("RGB")
    draw, scale = ImageDraw.Draw(picture), np.array([columns / plane.shape[1], rows / plane.shape[0]]) / 2
    for whose, of_slice in (("truth", case.labels(k)), ("prediction", labels[k])):
        for name, mask in MASKS:
            for corners in contours(mask(of_slice)):
                points = [tuple(point) for point in corners * scale]
                draw.line([*points, points[0]], fill=COLORS[f"{whose} {name}"], width=2)
    return picture
