"""Three planes through a case: what the pictures of the report show, and where."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kitsseg.data.formats.nifti import read_image, read_labels
from kitsseg.data.geometry.label_box import foreground_box
from kitsseg.errors import InputError
from kitsseg.scoring.cases import CaseFiles

__all__ = ["CaseViews", "View", "case_views", "choose_point"]

MARGIN_MM = 25  # around kidneys and tumors: the fat and organs beside them
SMALLEST_MM = (120, 120, 200)  # extent of the pictures (slices, rows, columns)
PLANES = (("axial", "slice"), ("coronal", "row"), ("sagittal", "column"))


@dataclass(frozen=True, eq=False)
class View:
    """One plane, cut to the surroundings of the kidneys.

    Rows run to inferior or, in the axial plane, to posterior; columns to the patient's left or, in the sagittal plane,
    to posterior.

    Attributes:
        plane: such as "axial". where: such as "slice 5 of 8".
        hu, truth, prediction: (rows, columns). spacing_mm: of these.
    """

    plane: str
    where: str
    hu: npt.NDArray[np.int16]
    truth: npt.NDArray[np.uint8]
    prediction: npt.NDArray[np.uint8]
    spacing_mm: tuple[float, float]


@dataclass(frozen=True, eq=False)
class CaseViews:
    """Axial, coronal and sagittal ``views``, why there, and how much of the prediction lies outside in ml."""

    views: tuple[View, ...]
    why: str
    outside_ml: float


def case_views(files: CaseFiles) -> CaseViews:
    """Read a case and cut its three planes.

    Args:
        files: as in scores.json.

    Returns: CaseViews.
    Raises: InputError that names the file for one that is missing or damaged, or files of different shapes.
    """
    if files.image is None:
        raise InputError(f"no CT lies beside {files.truth}.")
    try:
        values = files.label_values or (0, 1, 2)
        truth = read_labels(files.truth, values)
        # a prediction has labels of its own: cysts only where they were scored as a class
        prediction = read_labels(files.prediction, values if 3 in values else (0, 1, 2))
        if not Path(files.image).exists():  # before two volumes are read in vain
            raise FileNotFoundError(2, "", files.image)
        image = read_image(files.image)
    except FileNotFoundError as error:
        raise InputError(f"{error.filename or error} is no longer there.") from error
    volumes = (image, truth, prediction)
    if len({volume.array.shape for volume in volumes}) > 1:
        shapes = " and ".join(f"{volume.path.name} {volume.array.shape}" for volume in volumes)
        raise InputError(f"shapes differ: {shapes}.")
    spacing = image.grid.spacing_mm
    point, why = choose_point(truth.array, prediction.array)
    box = _box(truth.array if truth.array.any() else prediction.array, point, spacing)
    views = []
    for axis, (plane, word) in enumerate(PLANES):
        at = tuple(point[axis] if axis == other else part for other, part in enumerate(box))
        hu, true, predicted = (np.ascontiguousarray(volume.array[at]) for volume in volumes)
        down, right = (size for other, size in enumerate(spacing) if other != axis)
        where = f"{word} {point[axis] + 1} of {image.array.shape[axis]}"
        views.append(View(plane, where, hu, true, predicted, (down, right)))
    outside = np.count_nonzero(prediction.array) - np.count_nonzero(prediction.array[box])
    return CaseViews(tuple(views), why, float(outside * np.prod(spacing) / 1000))


def choose_point(
    truth: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8]
) -> tuple[tuple[int, ...], str]:
    """((slice, row, column), reason): in each plane where the tumor is largest; without tumor the kidney."""
    for labels, smallest, why in (
        (truth, 2, "where the true tumor is largest"),
        (truth, 1, "no tumor in the truth: where the kidney is largest"),
        (prediction, 1, "empty truth: where the prediction is largest"),
    ):
        start, box = foreground_box(labels)
        mask = (box == 2) if smallest == 2 else (box > 0)
        if mask.any():
            areas = [mask.sum(axis=others) for others in ((1, 2), (0, 2), (0, 1))]
            return tuple(int(a + area.argmax()) for a, area in zip(start, areas, strict=True)), why
    return tuple(n // 2 for n in truth.shape), "empty truth and prediction: in the middle"


def _box(
    labels: npt.NDArray[np.uint8], point: tuple[int, ...], spacing_mm: Sequence[float]
) -> tuple[slice, ...]:
    """The part of the volume around all labels, and the point: the place of both kidneys is in the picture."""
    start, found = foreground_box(labels)
    box = []
    for axis, size in enumerate(labels.shape):
        spacing = spacing_mm[axis]
        first, last = (start[axis], start[axis] + found.shape[axis]) if found.size else (0, size)
        first, last = min(first, point[axis]), max(last, point[axis] + 1)
        wanted = max(last - first + 2 * MARGIN_MM / spacing, SMALLEST_MM[axis] / spacing)
        length = min(size, round(wanted))
        begin = min(max(round((first + last - length) / 2), 0), size - length)
        box.append(slice(begin, begin + length))
    return tuple(box)
