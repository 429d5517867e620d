"""Compare two label maps on disk: the overlap of their labels in each slice, and the box around their foreground."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt
from nibabel.orientations import inv_ornt_aff

from kitsseg.data.formats.grid import grid_of
from kitsseg.data.formats.nifti import KITS_LABELS, LabelValues, read_labels
from kitsseg.data.formats.nifti_stream import DAMAGE, open_stream, read_exactly, read_header, read_to_end
from kitsseg.data.geometry.label_box import foreground_box
from kitsseg.errors import InputError
from kitsseg.scoring.dice import count_slices

if TYPE_CHECKING:
    from kitsseg.data.formats.grid import Grid

__all__ = ["count_files", "read_boxes"]

PIECE_BYTES = 1 << 20
_UNREADABLE: tuple[type[Exception], ...] = (*DAMAGE, IsADirectoryError)


def count_files(
    prediction: str | os.PathLike[str],
    truth: str | os.PathLike[str],
    label_values: LabelValues = KITS_LABELS,
    predicted_values: LabelValues = KITS_LABELS,
) -> tuple[npt.NDArray[np.int64], tuple[float, float, float]]:
    """Count the labels of two files: (the tables of ``count_slices``, spacing in mm).

    Files with the same axes are compared piece by piece while they are decompressed, so that the volumes are never in
    memory. Other files, such as a prediction whose axes another tool has reordered, are read whole.

    Args:
        prediction, truth: the two files.
        label_values, predicted_values: the classes of the labels of ``truth`` and of ``prediction`` (see
            ``read_labels``).

    Raises: InputError if the grids differ, naming both; and as ``read_labels``.
    """
    prediction, truth = Path(prediction), Path(truth)
    n_labels = 1 + max(value for value in (*label_values, *predicted_values) if value is not None)
    counts = None
    try:
        with open_stream(prediction) as first, open_stream(truth) as second:
            grids = [
                grid_of(read_header(stream, path), path)
                for stream, path in ((first, prediction), (second, truth))
            ]
            _check_grids(grids[0], grids[1], prediction, truth)
            if _stored_alike(grids[0], grids[1]) and label_values == predicted_values == tuple(
                range(n_labels)
            ):
                counts = _count_streams(first, second, grids[1], n_labels)
    except _UNREADABLE:
        pass  # the reader below says which file is damaged, and how
    if counts is None:
        predicted = read_labels(prediction, predicted_values)
        true = read_labels(truth, label_values)
        grids = [predicted.grid, true.grid]
        counts = count_slices(predicted.array, true.array, n_labels)
    return counts, grids[1].spacing_mm


def read_boxes(
    prediction: str | os.PathLike[str],
    truth: str | os.PathLike[str],
    label_values: LabelValues = KITS_LABELS,
    predicted_values: LabelValues = KITS_LABELS,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """The smallest box that holds the foreground of both files: two uint8 arrays of one shape, perhaps empty.

    One volume is in memory at a time.

    Args: as ``count_files``, which must be called before, because it checks that the grids agree.
    """
    found = []
    for path, values in ((prediction, predicted_values), (truth, label_values)):
        start, box = foreground_box(read_labels(path, values).array)
        found.append((np.array(start), box))
    filled = [(begin, box) for begin, box in found if box.size]
    if not filled:
        return found[0][1], found[1][1]
    low = np.min([begin for begin, _ in filled], axis=0)
    high = np.max([begin + box.shape for begin, box in filled], axis=0)
    boxes = []
    for begin, box in found:
        common = np.zeros(high - low, np.uint8)
        if box.size:
            common[tuple(slice(a, a + n) for a, n in zip(begin - low, box.shape, strict=True))] = box
        boxes.append(common)
    return boxes[0], boxes[1]


def _check_grids(
    predicted: Grid, true: Grid, prediction: str | os.PathLike[str], truth: str | os.PathLike[str]
) -> None:
    if predicted.shape != true.shape:
        raise InputError(
            f"{prediction}: has (slices, rows, columns) {predicted.shape}, its truth {truth} {true.shape}. "
            "Predict on the original scan, neither cropped nor resampled."
        )
    affines = _kits_affine(predicted), _kits_affine(true)
    ends = np.array(true.shape) - 1
    corners = np.array([(*(ends * corner), 1) for corner in np.ndindex(2, 2, 2)]).T
    shift = float(np.abs((affines[0] - affines[1]) @ corners)[:3].max())
    if shift > min(true.spacing_mm) / 10:  # less is rounding: headers hold the affine in two float32 forms
        found, expected = (affine[:3].round(4).tolist() for affine in affines)
        raise InputError(
            f"{prediction}: lies up to {shift:.4g} mm away from its truth {truth}: affine {found}, expected "
            f"{expected}. Write predictions with the affine of their scan."
        )


def _kits_affine(grid: Grid) -> npt.NDArray[np.float64]:
    """The affine of the volume in KiTS axes."""
    ornt = np.array([(axis, -1 if grid.flipped[axis] else 1) for axis in grid.axes])
    affine: npt.NDArray[np.float64] = grid.header.get_best_affine() @ inv_ornt_aff(
        ornt, [grid.shape[axis] for axis in grid.axes]
    )
    return affine


def _stored_alike(one: Grid, other: Grid) -> bool:
    scalings = [grid.header.get_slope_inter() for grid in (one, other)]
    return (
        (one.axes, one.flipped) == (other.axes, other.flipped)
        and all(grid.header.get_data_dtype() == np.uint8 for grid in (one, other))
        and all(slope in (None, 1) and intercept in (None, 0) for slope, intercept in scalings)
    )


def _count_streams(
    first: BinaryIO, second: BinaryIO, grid: Grid, n_labels: int
) -> npt.NDArray[np.int64] | None:
    """The tables of two streams of labels; None if a label is out of range.

    Slices may lie along any axis of the file (in KiTS19 along the fastest one). Therefore the few voxels that are not
    background in both files are found first, eight at a time, and then counted to their slices by their position.
    """
    slices, voxels = grid.shape[0], int(np.prod(grid.shape))
    axis = grid.axes.index(0)
    stride = int(np.prod([grid.shape[a] for a in grid.axes[:axis]], dtype=np.int64))
    counts = np.zeros(slices * n_labels**2, np.int64)
    for done in range(0, voxels, PIECE_BYTES):
        size = min(voxels - done, PIECE_BYTES)
        predicted, true = (
            np.frombuffer(read_exactly(stream, size) + bytes(-size % 8), np.uint8)
            for stream in (first, second)
        )
        words = np.flatnonzero(predicted.view(np.uint64) | true.view(np.uint64))
        if len(words):
            predicted, true = (labels.reshape(-1, 8)[words].ravel() for labels in (predicted, true))
            if max(predicted.max(), true.max()) >= n_labels:
                return None
            code = true * np.uint8(n_labels) + predicted
            found = np.flatnonzero(code)
            place = done + 8 * words[found >> 3] + (found & 7)
            counts += np.bincount(place // stride % slices * n_labels**2 + code[found], minlength=len(counts))
    for stream in (first, second):
        read_to_end(stream, grid.header)
    by_slice = counts.reshape(slices, n_labels, n_labels)
    by_slice[:, 0, 0] = voxels // slices - by_slice.sum(axis=(1, 2))
    return by_slice[::-1] if grid.flipped[0] else by_slice
