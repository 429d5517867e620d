"""Score one case: from its two files to its row of scores.csv and its entry in scores.json.

Voxels are counted while the files are decompressed (``count_files``). Surfaces and tumors need the label maps in
memory; ``read_boxes`` keeps the smallest box that holds the foreground of both.

Tumors are also counted one by one: a case with one large and two small tumors can have a high TU Dice although both
small ones were missed. A lesion is a 26-connected component of tumor (label 2).

Chosen (ours): a lesion of the truth is found if at least a tenth of its volume is predicted as tumor; a predicted
lesion is false if less than a tenth of its volume is tumor in truth. The volumes and shares of all lesions are returned
as well, so that other rules can be applied: the LiTS challenge asks for 50 % of the union, autoPET for any overlap.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from kitsseg.data.formats.grid import grid_of, kits_affine, mm_apart, on_the_same_voxels
from kitsseg.data.formats.nifti import KITS_LABELS, LabelValues, read_labels
from kitsseg.data.formats.nifti_stream import DAMAGE, open_stream, read_exactly, read_header, read_to_end
from kitsseg.data.geometry.label_box import foreground_box
from kitsseg.data.kits19.manifest import read_manifest
from kitsseg.errors import InputError
from kitsseg.files.checksums import sha256_of
from kitsseg.labels.components import components
from kitsseg.records.scan_part import ScanPart
from kitsseg.scoring.dice import (
    HEC_LABELS,
    SCORES,
    VOLUMES,
    count_slices,
    cysts_as_kidney,
    hec_dice,
    score_counts,
)
from kitsseg.scoring.surface import surface_scores

if TYPE_CHECKING:
    from kitsseg.data.formats.grid import Grid

__all__ = [
    "CASE_RULE",
    "CLASSES",
    "LESIONS",
    "LESION_RULE",
    "CaseFiles",
    "Lesion",
    "Pair",
    "ScoredCase",
    "columns_of",
    "count_files",
    "find_lesions",
    "is_found",
    "lesion_counts",
    "read_boxes",
    "score_pair",
]

CLASSES = {"kits19": ("kidney_and_mass", "tumor"), "kits23": tuple(HEC_LABELS)}
LESIONS = ("lesions", "lesions_found", "predicted_lesions", "false_lesions")
PIECE_BYTES = 1 << 20
_UNREADABLE: tuple[type[Exception], ...] = (*DAMAGE, IsADirectoryError)
MIN_SHARE = 0.1
CASE_RULE = (
    "all tumor of a case together; found: at least 10 % of its volume is predicted as tumor, a tumor recall of "
    "0.1"
)
LESION_RULE = (
    "26-connected components of tumor; found: at least 10 % of the lesion is predicted as tumor; "
    "false: less than 10 % of the predicted lesion is tumor in truth"
)


@dataclass(frozen=True)
class Pair:
    """A prediction with its truth.

    Attributes:
        label_values: the classes of the truth's labels (see ``read_labels``).
        image: the CT, if it exists. part: what is needed to read the CT beside its path.
        phantom: whether predict recorded the scan as synthetic; None: it recorded nothing.
    """

    case: str
    prediction: Path
    truth: Path
    label_values: tuple[int | None, ...] = KITS_LABELS
    image: Path | None = None
    part: ScanPart | None = None
    phantom: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A tumor of the truth: its volume, and the share of it, 0 to 1, that is predicted as tumor."""

    ml: float
    share: float


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """The files of a scored case, as ``scores.json`` holds them.

    Attributes:
        image: the CT beside the truth, else the scan that was segmented; None if neither is known.
        label_values: the classes of the truth's labels, if they differ from KiTS19.
        lesions: of the truth, see ``find_lesions``; only if surfaces and lesions were asked for.
        truth_sha256: of the truth's file.
        part: what is needed to read the CT beside its path.
        phantom: True for a scan that is synthetic; in ``scores.json`` None for all others.
    """

    prediction: str
    truth: str
    image: str | None
    label_values: tuple[int | None, ...] | None = None
    lesions: list[Lesion] | None = None
    truth_sha256: str | None = None
    part: ScanPart | None = None
    phantom: bool | None = None


@dataclass(frozen=True)
class ScoredCase:
    """Scores of one case.

    Attributes:
        row: of scores.csv, without the hash of the split.
        tables: counts of KiTS19 labels, int64 (slices, truth, predicted).
        files: the entry of scores.json.
    """

    row: dict[str, Any]
    tables: npt.NDArray[np.int64]
    files: CaseFiles


def columns_of(classes: str, surface: bool) -> tuple[str, ...]:
    """Columns of scores.csv, in order, for these ``classes`` ("kits19" or "kits23"), with surfaces or without."""
    more = [f"{name}_dice" for name in HEC_LABELS] if classes == "kits23" else []
    if surface:
        more += [f"{name}_surface_dice" for name in CLASSES[classes]]
        more += [f"{name}_hd95_mm" for name in CLASSES[classes]]
        more += LESIONS
    return ("case", *SCORES, *VOLUMES, *more, "empty", "label_release", "split_hash")


def score_pair(pair: Pair, classes: str, surface: bool) -> ScoredCase:
    """Score one case.

    Args:
        pair: its files.
        classes, surface: as in ``evaluate_folders``.

    Raises: InputError for files on different grids, or files that are no label maps.
    """
    values, predicted_values = pair.label_values, KITS_LABELS
    if classes == "kits23":
        values = predicted_values = _values_with_cysts(pair)
    tables, spacing_mm = count_files(pair.prediction, pair.truth, values, predicted_values)
    hec: dict[str, float] = {}
    if classes == "kits23":
        counts, tables = tables.sum(axis=0), cysts_as_kidney(tables)
        hec = {f"{name}_dice": value for name, value in hec_dice(counts).items()}
    row = {"case": pair.case} | score_counts(tables.sum(axis=0), math.prod(spacing_mm) / 1000) | hec
    row["empty"] = " ".join(row["empty"])
    lesions = None
    if surface:
        boxes = read_boxes(pair.prediction, pair.truth, values, predicted_values)
        row |= surface_scores(*boxes, spacing_mm, CLASSES[classes])
        found = find_lesions(*boxes, spacing_mm)
        row |= lesion_counts(found)
        lesions = [Lesion(**lesion) for lesion in found["truth"]]
    sha256 = sha256_of(pair.truth)
    row["label_release"] = "kits19" if sha256 == _official_labels().get(pair.case) else "other"
    files = CaseFiles(
        prediction=str(pair.prediction),
        truth=str(pair.truth),
        image=str(pair.image) if pair.image else None,
        label_values=None if values == KITS_LABELS else values,
        lesions=lesions,
        truth_sha256=sha256,
        part=pair.part,
        phantom=pair.phantom,
    )
    return ScoredCase(row, tables, files)


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


def find_lesions(
    prediction: npt.NDArray[np.uint8],
    truth: npt.NDArray[np.uint8],
    spacing_mm: Sequence[float],
    tumor: int = 2,
) -> dict[str, list[dict[str, float]]]:
    """The lesions of truth and prediction, and the share of each that is tumor in the other label map.

    Args:
        prediction, truth: uint8 labels (slices, rows, columns) of one shape.
        spacing_mm: (slices, rows, columns).
        tumor: the label.

    Returns: dict of ``truth`` and ``prediction``, each a list of ``{"ml": volume, "share": of it that is tumor in the
        other}``, largest first.
    Raises: ValueError for other shapes.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise ValueError(f"expected two label maps of one shape; got {prediction.shape} and {truth.shape}.")
    voxel_ml = math.prod(spacing_mm) / 1000
    found = {}
    for name, labels, other in (("truth", truth, prediction), ("prediction", prediction, truth)):
        parts = components(labels == tumor)
        inside = other.reshape(-1)[parts.runs.voxels()] == tumor
        hits = np.bincount(
            np.repeat(parts.ids, parts.runs.length), weights=inside, minlength=len(parts.voxels)
        )
        found[name] = [
            {"ml": float(parts.voxels[i] * voxel_ml), "share": float(hits[i] / parts.voxels[i])}
            for i in np.argsort(-parts.voxels, kind="stable")
        ]
    return found


def is_found(share: float, min_share: float = MIN_SHARE) -> bool:
    """Whether a tumor counts as found if this share (0 to 1) of its volume is predicted as tumor."""
    return share >= min_share


def lesion_counts(
    lesions: Mapping[str, Sequence[Mapping[str, float]]], min_share: float = MIN_SHARE
) -> dict[str, int]:
    """Counts of one case from ``find_lesions``: lesions, lesions_found, predicted_lesions, false_lesions."""
    return {
        "lesions": len(lesions["truth"]),
        "lesions_found": sum(is_found(lesion["share"], min_share) for lesion in lesions["truth"]),
        "predicted_lesions": len(lesions["prediction"]),
        "false_lesions": sum(not is_found(lesion["share"], min_share) for lesion in lesions["prediction"]),
    }


def _values_with_cysts(pair: Pair) -> tuple[int, ...]:
    """The labels of a pair's truth with cysts kept, as KiTS21 and KiTS23 number them: (0, 1, 2, 3).

    Raises: InputError if the dataset numbers its labels in another way.
    """
    # as the layout says it: cysts not mentioned, or named by the dataset and refused without --cyst
    if pair.label_values not in ((0, 1, 2), (0, 1, 2, None)):
        raise InputError(
            f"{pair.truth}: --classes kits23 expects the labels 1 kidney, 2 tumor, 3 cyst and no --cyst, found "
            f"{pair.label_values}. Renumber the labels, or leave --classes out."
        )
    return (0, 1, 2, 3)


@lru_cache(maxsize=1)
def _official_labels() -> dict[str, str | None]:
    """SHA-256 of the label maps that the official repository of KiTS19 holds today, by case.

    Labels were corrected after most papers: scores against others are not comparable.
    """
    return {case: entry.label_sha256 for case, entry in read_manifest().items()}


def _check_grids(
    predicted: Grid, true: Grid, prediction: str | os.PathLike[str], truth: str | os.PathLike[str]
) -> None:
    if predicted.shape != true.shape:
        raise InputError(
            f"{prediction}: has (slices, rows, columns) {predicted.shape}, its truth {truth} {true.shape}. "
            "Predict on the original scan, neither cropped nor resampled."
        )
    if not on_the_same_voxels(predicted, true):
        shift = mm_apart(predicted, true)
        found, expected = (kits_affine(grid)[:3].round(4).tolist() for grid in (predicted, true))
        raise InputError(
            f"{prediction}: lies up to {shift:.4g} mm away from its truth {truth}: affine {found}, expected "
            f"{expected}. Write predictions with the affine of their scan."
        )


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
