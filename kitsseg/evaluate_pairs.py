"""Predictions beside their truth: which files belong together, and how their labels overlap."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.orientations import inv_ornt_aff

from kitsseg.data import nifti
from kitsseg.data.cases import IMAGE_NAMES, LABEL_NAMES, find_cases, prediction_name
from kitsseg.errors import InputError
from kitsseg.scores import count_labels

__all__ = ["Pair", "count_files", "find_pairs"]

PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Pair:
    """A prediction with its truth."""

    case: str
    prediction: Path
    truth: Path


def find_pairs(prediction, truth):
    """Match predictions and truth by name.

    Returns: (pairs sorted by case, names of the truth cases without a prediction).
    Raises: InputError as ``evaluate_folders``.
    """
    prediction, truth = Path(prediction), Path(truth)
    for path in (prediction, truth):
        if not path.exists():
            raise InputError(f"{path}: expected a label map or a folder of them, found nothing.")
    if truth.is_file():
        if prediction.is_dir():
            raise InputError(
                f"{truth}: expected a folder in KiTS layout, as {prediction} is a folder; found a file."
            )
        case = truth.resolve().parent.name if truth.name in LABEL_NAMES else _case_named(prediction)
        return [Pair(case, prediction, truth)], []
    labels = {case.name: case.labels for case in find_cases(truth, need_labels=False, need_image=False)}
    found = {}
    for file in _prediction_files(prediction):
        case = _case_named(file)
        if labels.get(case) is None:
            raise InputError(
                f"{file}: no truth for this prediction; expected {truth / case / LABEL_NAMES[0]}. "
                "Remove the prediction, or name the folder that holds its truth."
            )
        if case in found:
            raise InputError(
                f"{file}: a second prediction of {case}, beside {found[case].prediction}. Remove one."
            )
        found[case] = Pair(case, file, labels[case])
    with_truth = [case for case, file in labels.items() if file is not None]
    return [found[case] for case in sorted(found)], [case for case in with_truth if case not in found]


def _prediction_files(prediction):
    if prediction.is_file():
        return [prediction]
    files = [
        file for file in prediction.iterdir() if file.name.endswith((".nii", ".nii.gz")) and file.is_file()
    ]
    files = [file for file in files if not file.name.startswith(".") and file.name not in IMAGE_NAMES]
    for folder in prediction.iterdir():
        if folder.is_dir() and not folder.name.startswith("."):
            files += [folder / name for name in LABEL_NAMES if (folder / name).exists()]
    if not files:
        raise InputError(
            f"{prediction}: expected predictions such as {prediction_name('case_00000')}, found none. "
            "Try: kitsseg predict"
        )
    return sorted(files)


def _case_named(file):
    """The case a file's name tells: the inverse of ``prediction_name``, and two other common ways."""
    if file.name in LABEL_NAMES:
        return file.resolve().parent.name
    stem = file.name.removesuffix(".gz").removesuffix(".nii")
    return f"case_{stem.removeprefix('prediction_')}" if stem.startswith("prediction_") else stem


def count_files(prediction, truth):
    """Count the labels of two files: (the 3 x 3 table of ``count_labels``, ml of a voxel).

    Files stored alike are compared piece by piece while they are decompressed, since the order of the voxels
    does not matter: the volumes are never in memory. Others, such as a prediction whose axes another tool has
    reordered, are read whole.

    Raises: InputError if the grids differ, naming both; and as ``read_labels``.
    """
    prediction, truth = Path(prediction), Path(truth)
    counts = None
    try:
        with nifti._open(prediction) as first, nifti._open(truth) as second:
            grids = [
                nifti._grid(nifti._read_header(stream, path), path)
                for stream, path in ((first, prediction), (second, truth))
            ]
            _check_grids(*grids, prediction, truth)
            if _stored_alike(*grids):
                counts = _count_streams(first, second, int(np.prod(grids[0].shape)))
    except (*nifti._DAMAGE, IsADirectoryError):
        pass  # the reader below says which file is damaged, and how
    if counts is None:
        predicted, true = nifti.read_labels(prediction), nifti.read_labels(truth)
        grids = predicted.grid, true.grid
        counts = count_labels(predicted.array, true.array)
    return counts, float(np.prod(grids[1].spacing_mm)) / 1000


def _check_grids(predicted, true, prediction, truth):
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


def _kits_affine(grid):
    """The affine of the volume in KiTS axes."""
    ornt = np.array([(axis, -1 if grid.flipped[axis] else 1) for axis in grid.axes])
    return grid.header.get_best_affine() @ inv_ornt_aff(ornt, [grid.shape[axis] for axis in grid.axes])


def _stored_alike(one, other):
    scalings = [grid.header.get_slope_inter() for grid in (one, other)]
    return (
        (one.axes, one.flipped) == (other.axes, other.flipped)
        and all(grid.header.get_data_dtype() == np.uint8 for grid in (one, other))
        and all(slope in (None, 1) and intercept in (None, 0) for slope, intercept in scalings)
    )


def _count_streams(first, second, left):
    """The table of two streams of ``left`` bytes; None if a label is out of range."""
    counts = np.zeros((3, 3), np.int64)
    while left:
        size = min(left, PIECE_BYTES)
        pieces = [np.frombuffer(nifti._read_exactly(stream, size), np.uint8) for stream in (first, second)]
        try:
            counts += count_labels(*pieces)
        except ValueError:
            return None
        left -= size
    for stream in (first, second):
        while stream.read(PIECE_BYTES):  # to the end: the checksum is checked there
            pass
    return counts
