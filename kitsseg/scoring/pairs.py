"""Find pairs of a prediction and its truth."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kitsseg.data.cache.sources import source_of
from kitsseg.data.formats.nifti import KITS_LABELS
from kitsseg.data.layouts.find import Layout, find_cases
from kitsseg.data.layouts.names import (
    IMAGE_NAMES,
    LABEL_NAMES,
    case_of_prediction,
    folder_name,
    in_case_folder,
    is_nifti,
    prediction_name,
)
from kitsseg.errors import InputError
from kitsseg.files.paths import as_given
from kitsseg.records.predictions import PredictionsRecord

__all__ = ["Pair", "Pairs", "find_pairs", "of_other_scans", "pairs_of"]

_LABELS = {name.lower() for name in LABEL_NAMES}


@dataclass(frozen=True)
class Pair:
    """A prediction with its truth, the classes of the truth's labels (see ``read_labels``), and the CT if it exists."""

    case: str
    prediction: Path
    truth: Path
    label_values: tuple[int | None, ...] = KITS_LABELS
    image: Path | None = None


@dataclass(frozen=True)
class Pairs:
    """The pairs, sorted by case, and the names of predictions without a truth and of truths without a prediction."""

    pairs: list[Pair]
    truth_without_prediction: list[str] = field(default_factory=list)
    prediction_without_truth: list[str] = field(default_factory=list)


def find_pairs(
    prediction: str | os.PathLike[str], truth: str | os.PathLike[str], layout: Layout | None = None
) -> Pairs:
    """Match predictions and truth by name.

    Args:
        prediction, truth: as in ``evaluate_folders``.
        layout: Layout of the truth.

    Raises: InputError as ``evaluate_folders``.
    """
    prediction, truth = Path(prediction), Path(truth)
    for path in (prediction, truth):
        if not path.exists():
            raise InputError(f"{path}: expected a label map or a folder of them, found nothing.")
    if truth.is_file() and prediction.is_dir():
        raise InputError(
            f"{truth}: expected a folder in KiTS layout, as {prediction} is a folder; found a file."
        )
    named = [(case_of_prediction(file), file) for file in _prediction_files(prediction)]
    if truth.is_file():
        case = folder_name(as_given(truth).parent) if in_case_folder(truth) else named[0][0]
        return Pairs([Pair(case, prediction, truth, (layout or Layout()).label_values, _beside(truth))])
    return pairs_of(named, truth, layout)


def pairs_of(predictions: Iterable[tuple[str, Path]], truth: Path, layout: Layout | None = None) -> Pairs:
    """Match label maps whose cases are known, as (case, file), with their truth.

    Args:
        predictions: (name of the case, label map) of each.
        truth: a folder of cases.
        layout: Layout of ``truth``.

    Raises: InputError as ``evaluate_folders``.
    """
    cases = find_cases(truth, need_labels=False, need_image=False, layout=layout)
    labels = {case.name: case for case in cases if case.labels is not None}
    found: dict[str, Pair] = {}
    alone: dict[str, Path] = {}
    for case, file in predictions:
        if case not in labels:
            alone[case] = file
            continue
        if case in found:
            raise InputError(
                f"{file}: a second prediction of {case}, beside {found[case].prediction}. Remove one."
            )
        image = labels[case].image
        found[case] = Pair(
            case,
            file,
            labels[case].truth,
            labels[case].label_values,
            image if image and image.exists() else None,
        )
    if not found:
        case, file = next(iter(alone.items()))
        raise InputError(
            f"{file}: no truth for this prediction{' or any other' if len(alone) > 1 else ''}; expected "
            f"{truth / case / LABEL_NAMES[0]}, found truth of {', '.join(sorted(labels)[:3]) or 'no case'}. Name the "
            "folder that holds the truth, or the label maps as their cases."
        )
    missing = [case for case in labels if case not in found]
    return Pairs([found[case] for case in sorted(found)], missing, sorted(alone))


def of_other_scans(pairs: Iterable[Pair], record: PredictionsRecord | None) -> list[str]:
    """Cases whose label map was made of another scan than the one beside the truth, as far as ``record`` knows.

    Two files count as the same scan if their sizes and their first and last bytes are equal; two DICOM series if their
    sizes are equal. Times are not compared, because a copy has another time.
    """
    if record is None:
        return []
    found = []
    for pair in pairs:
        entry = record.cases.get(pair.case)
        if entry is None or pair.image is None or entry.file != pair.prediction.name:
            continue
        now, then = source_of(pair.image), entry.source
        same = now.bytes == then.bytes and (pair.image.is_dir() or now.ends_sha256 == then.ends_sha256)
        if not same:
            found.append(pair.case)
    return found


def _beside(truth: Path) -> Path | None:
    return next((truth.parent / name for name in IMAGE_NAMES if (truth.parent / name).exists()), None)


def _prediction_files(prediction: Path) -> list[Path]:
    if prediction.is_file():
        return [prediction]
    files = []
    for entry in prediction.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files += [file for file in entry.iterdir() if file.name.lower() in _LABELS and not file.is_dir()]
        elif is_nifti(entry) and entry.name.lower() not in IMAGE_NAMES:
            files.append(entry)
    if not files:
        raise InputError(
            f"{prediction}: expected predictions such as {prediction_name('case_00000')}, found none. "
            "Try: kitsseg predict"
        )
    return sorted(files)
