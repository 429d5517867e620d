"""Choose the planes for a case's pictures: axial slices through the largest tumor and both kidneys, and two more."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from kitsseg.data.formats.grid import KITS_AXES
from kitsseg.data.formats.nifti import KITS_LABELS, Volume, read_labels
from kitsseg.data.geometry.label_box import foreground_box
from kitsseg.errors import InputError
from kitsseg.labels.components import components
from kitsseg.records.scan_part import ScanPart, read_scan

__all__ = ["CaseViews", "ShownCase", "View", "case_views", "choose_point", "choose_slices"]

MARGIN_MM = 25.0  # around kidneys and tumors: the fat and organs beside them
SMALLEST_MM = (120.0, 120.0, 200.0)  # extent of the pictures (slices, rows, columns)
BODY_HU = -300  # fat is at -100, air at -1000
BODY_MARGIN_MM = 8.0
FEWEST_SLICES = 9
PLANES = (("axial", "slice"), ("coronal", "row"), ("sagittal", "column"))
OPPOSITE = {"I": "S", "P": "A", "L": "R"}
TUMOR = 2

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class ShownCase:
    """The files of a case with pictures.

    Attributes:
        image: the CT; None: none is known.
        prediction: label map.
        truth: label map; None: there is none.
        label_values: the classes of the truth's labels, if they differ from KiTS19.
        part: what is needed to read the CT beside its path.
    """

    image: str | None
    prediction: str
    truth: str | None = None
    label_values: tuple[int | None, ...] | None = None
    part: ScanPart | None = None


@dataclass(frozen=True, eq=False)
class View:
    """One plane, cut to the surroundings of the kidneys or to the body.

    Rows run to inferior or, in the axial plane, to posterior; columns to the patient's left or, in the sagittal plane,
    to posterior.

    Attributes:
        plane: such as "axial".
        where: such as "slice 5 of 8".
        hu, truth, prediction: (rows, columns); ``truth`` is None if there is none.
        spacing_mm: of rows and columns.
    """

    plane: str
    where: str
    hu: npt.NDArray[np.int16]
    truth: npt.NDArray[np.uint8] | None
    prediction: npt.NDArray[np.uint8]
    spacing_mm: tuple[float, float]

    @property
    def sides(self) -> tuple[str, str]:
        """The patient's side at the left and at the right edge of the picture: R and L, or A and P."""
        axis = [plane for plane, _ in PLANES].index(self.plane)
        across = [letter for other, letter in enumerate(KITS_AXES) if other != axis][1]
        return OPPOSITE[across], across


@dataclass(frozen=True, eq=False)
class CaseViews:
    """The planes of a case that are shown.

    Attributes:
        axial: slices from superior to inferior.
        start: index of the axial slice with most tumor.
        depths_mm: distance of each axial slice below the upper edge of the other two planes.
        coronal, sagittal: planes through the same tumor.
        why: the reason for choosing the slice ``start``, in words.
        outside_ml: volume of the prediction above and below all pictures.
        kidney_ml, tumor_ml: volume of the prediction's kidney with tumor, and of its tumor.
    """

    axial: tuple[View, ...]
    start: int
    depths_mm: tuple[float, ...]
    coronal: View
    sagittal: View
    why: str
    outside_ml: float
    kidney_ml: float
    tumor_ml: float

    @property
    def planes(self) -> tuple[View, View, View]:
        """The axial slice with most tumor, and the other two planes."""
        return self.axial[self.start], self.coronal, self.sagittal


def case_views(case: ShownCase, n_slices: int = FEWEST_SLICES) -> CaseViews:
    """Read a case and cut its planes.

    Args:
        case: its files.
        n_slices: about how many axial slices.

    Raises: InputError that names the file for one that is missing or damaged, or files of different shapes.
    """
    image, truth, prediction = _read(case)
    spacing = image.grid.spacing_mm
    true = None if truth is None else truth.array
    point, why = choose_point(true, prediction.array)
    labels = prediction.array if true is None or not true.any() else true
    box = _box(labels, point, spacing)
    start, found = foreground_box(labels)
    first, last = (start[0], start[0] + len(found) - 1) if found.size else (point[0], point[0])
    slices = choose_slices((first, last), _tumor_range(labels, point[0]), point[0], n_slices, labels.shape[0])
    body = _body(image.array, slices, spacing)

    def cut(axis: int, at: int, box: Box) -> View:
        index = tuple(at if axis == other else part for other, part in enumerate(box))
        plane, word = PLANES[axis]
        down, right = (size for other, size in enumerate(spacing) if other != axis)
        return View(
            plane,
            f"{word} {at + 1} of {image.array.shape[axis]}",
            np.ascontiguousarray(image.array[index]),
            None if true is None else np.ascontiguousarray(true[index]),
            np.ascontiguousarray(prediction.array[index]),
            (down, right),
        )

    across = (box[0], _joined(box[1], body[1]), _joined(box[2], body[2]))
    shown = prediction.array[min(box[0].start, slices[0]) : max(box[0].stop, slices[-1] + 1)]
    outside = np.count_nonzero(prediction.array) - np.count_nonzero(shown)
    ml = float(np.prod(spacing) / 1000)
    return CaseViews(
        axial=tuple(cut(0, at, across) for at in slices),
        start=slices.index(point[0]),
        depths_mm=tuple((at + 0.5 - box[0].start) * spacing[0] for at in slices),
        coronal=cut(1, point[1], across),
        sagittal=cut(2, point[2], across),
        why=why,
        outside_ml=float(outside * ml),
        kidney_ml=np.count_nonzero(prediction.array) * ml,
        tumor_ml=np.count_nonzero(prediction.array == TUMOR) * ml,
    )


def choose_point(
    truth: npt.NDArray[np.uint8] | None, prediction: npt.NDArray[np.uint8]
) -> tuple[tuple[int, ...], str]:
    """((slice, row, column), reason): the planes in which the largest tumor is largest; without tumor, the kidney.

    Args:
        truth, prediction: labels (slices, rows, columns); the prediction is used if there is no truth.
        spacing_mm: (slices, rows, columns).
    """
    rules: list[tuple[npt.NDArray[np.uint8], bool, str]] = [
        (prediction, True, "where the predicted tumor is largest"),
        (prediction, False, "no tumor predicted: where the kidney is largest"),
    ]
    if truth is not None:
        rules = [
            (truth, True, "where the true tumor is largest"),
            (truth, False, "no tumor in the truth: where the kidney is largest"),
            (prediction, False, "empty truth: where the prediction is largest"),
        ]
    for labels, is_tumor, why in rules:
        start, box = foreground_box(labels)
        mask = _largest(box == TUMOR) if is_tumor else (box > 0)
        if mask.any():
            areas = [mask.sum(axis=others) for others in ((1, 2), (0, 2), (0, 1))]
            return tuple(int(a + area.argmax()) for a, area in zip(start, areas, strict=True)), why
    nothing = (
        "nothing predicted: in the middle" if truth is None else "empty truth and prediction: in the middle"
    )
    return tuple(n // 2 for n in prediction.shape), nothing


def choose_slices(
    kidneys: tuple[int, int], tumor: tuple[int, int] | None, point: int, wanted: int, n_slices: int
) -> list[int]:
    """Slices from the first to the last with kidney, a third of them within the largest tumor.

    Args:
        kidneys, tumor: first and last slice of each; None: no tumor.
        point: a slice that is always shown.
        wanted: about so many slices are chosen, but at least nine if the scan has nine.
        n_slices: number of slices of the scan.

    Returns: indices of slices, sorted.
    """
    wanted = min(max(wanted, FEWEST_SLICES), n_slices)
    first, last = kidneys
    short = max(0, wanted - (last - first + 1))  # a kidney of few slices: those above and below as well
    first = max(0, min(first - (short + 1) // 2, n_slices - wanted))
    last = min(n_slices - 1, max(last + short // 2, first + wanted - 1))
    within = wanted // 3 if tumor else 0
    chosen = {point, *_spread(first, last, wanted - within)}
    if tumor:
        chosen |= {*_spread(*tumor, within)}
    # slices that both rules chose leave room for others: the middle of the widest gap, again and again
    while len(chosen) < wanted:
        placed = sorted(chosen)
        gaps = [(b - a, a) for a, b in zip([first - 1, *placed], [*placed, last + 1], strict=True)]
        width, a = max(gaps, key=lambda gap: gap[0])
        if width < 2:
            break
        chosen.add(a + width // 2)
    return sorted(chosen)


def _spread(first: int, last: int, count: int) -> list[int]:
    return [round(at) for at in np.linspace(first, last, max(count, 1))]


def _read(case: ShownCase) -> tuple[Volume, Volume | None, Volume]:
    """Read image, truth and prediction, and check that they have one shape."""
    if case.image is None:
        raise InputError(f"no CT lies beside {case.truth or case.prediction}.")
    values = case.label_values or KITS_LABELS
    try:
        truth = None if case.truth is None else read_labels(case.truth, values)
        # a prediction has labels of its own: cysts only where they were scored as a class
        prediction = read_labels(case.prediction, values if 3 in values else KITS_LABELS)
        image = read_scan(Path(case.image), case.part)
    except FileNotFoundError as error:
        raise InputError(f"{error.filename or error} is no longer there.") from error
    except OSError as error:  # one file that cannot be read costs one picture, not the page
        raise InputError(
            f"{error.filename or case.image}: cannot be read ({error.strerror}). Check who may read it."
        ) from error
    volumes = [image, prediction] if truth is None else [image, truth, prediction]
    if len({volume.array.shape for volume in volumes}) > 1:
        shapes = " and ".join(f"{volume.path.name} {volume.array.shape}" for volume in volumes)
        raise InputError(f"shapes differ: {shapes}.")
    return image, truth, prediction


def _largest(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The largest 26-connected part of a mask."""
    if not mask.any():
        return mask
    parts = components(mask)
    largest = parts.ids == parts.voxels.argmax()
    kept = np.zeros(mask.size, bool)
    kept[parts.runs.take(largest).voxels()] = True
    return kept.reshape(mask.shape)


def _tumor_range(labels: npt.NDArray[np.uint8], point: int) -> tuple[int, int] | None:
    """First and last slice of the tumor around slice ``point``."""
    start, box = foreground_box(labels)
    mask = _largest(box == TUMOR)
    slices = start[0] + np.flatnonzero(mask.any(axis=(1, 2)))
    return (int(slices[0]), int(slices[-1])) if len(slices) and slices[0] <= point <= slices[-1] else None


def _box(labels: npt.NDArray[np.uint8], point: tuple[int, ...], spacing_mm: Sequence[float]) -> Box:
    """The part of the volume around all labels and the point, so that both kidneys are in the picture."""
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
    slices, rows, columns = box
    return slices, rows, columns


def _body(image: npt.NDArray[np.int16], slices: Sequence[int], spacing_mm: Sequence[float]) -> Box:
    """Rows and columns of the body, without table and air, in the first, the middle and the last of these slices."""
    rows: list[int] = []
    columns: list[int] = []
    for at in {slices[0], slices[len(slices) // 2], slices[-1]}:
        opened = ndimage.binary_erosion(image[at] > BODY_HU, iterations=2)  # parts the body from the table
        numbered, _ = ndimage.label(opened)
        if sizes := list(np.bincount(numbered.ravel())[1:]):
            found = ndimage.find_objects(numbered)[int(np.argmax(sizes))]
            rows += [found[0].start, found[0].stop]
            columns += [found[1].start, found[1].stop]
    part = [slice(0, image.shape[0])]
    for size, spacing, ends in zip(image.shape[1:], spacing_mm[1:], (rows, columns), strict=True):
        margin = 2 + round(BODY_MARGIN_MM / spacing)
        part.append(
            slice(max(0, min(ends) - margin), min(size, max(ends) + margin)) if ends else slice(0, size)
        )
    planes, down, across = part
    return planes, down, across


def _joined(one: slice, other: slice) -> slice:
    return slice(min(one.start, other.start), max(one.stop, other.stop))
