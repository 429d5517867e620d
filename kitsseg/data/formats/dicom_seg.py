"""A label map of a DICOM series as a DICOM Segmentation object, for archives and viewers of a hospital.

Two segments, coded in SNOMED CT: the kidneys (64033007, without tumor) and the tumors (neoplasm, 108369006, of the
kidney). The object names the slices it was made of and lies on their voxels.

Needs highdicom and pydicom (the extra ``dicom``).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kitsseg.errors import InputError, one_line
from kitsseg.files.atomic import atomic_path
from kitsseg.version import __version__

__all__ = ["check_highdicom", "is_segmentation", "write_segmentation"]

MADE_BY = "kitsseg"
_SERIES_ABOVE = 1000  # the number of the new series: that of the scan, and this


def check_highdicom() -> None:
    """Raise InputError unless highdicom is installed."""
    _highdicom()


def write_segmentation(
    path: str | os.PathLike[str], labels: npt.NDArray[np.uint8], files: Sequence[Path], made_by: str
) -> None:
    """Write a DICOM Segmentation object; it appears whole or not at all.

    Args:
        path: of the new file.
        labels: (slices, rows, columns) in the order of ``files``: 0 background, 1 kidney, 2 tumor.
        files: the files of the series, one for each slice, in order.
        made_by: name of the software or network that made the labels, for the header.

    Raises: InputError if the headers of the series lack values that the object must repeat, or if highdicom is missing.
    """
    hd = _highdicom()
    import pydicom
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence(
        name=f"kitsseg {made_by}"[:64], version=__version__, family=codes.DCM.ArtificialIntelligence
    )

    def segment(number: int, label: str, category: Any, kind: Any) -> Any:
        return hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=category,
            segmented_property_type=kind,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            anatomic_regions=[codes.SCT.Kidney] if number == 2 else None,
        )

    kinds = [
        segment(1, "kidney", codes.SCT.AnatomicalStructure, codes.SCT.Kidney),
        segment(2, "tumor", codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm),
    ]
    with warnings.catch_warnings():  # of values that are written a little wrong
        warnings.simplefilter("ignore")
        try:
            source = [pydicom.dcmread(file, stop_before_pixels=True, force=True) for file in files]
            _fill_thickness(source)
            made = hd.seg.Segmentation(
                source_images=source,
                pixel_array=np.ascontiguousarray(labels),
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=kinds,
                series_instance_uid=hd.UID(),
                series_number=int(source[0].get("SeriesNumber") or 0) + _SERIES_ABOVE,
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer=MADE_BY,
                manufacturer_model_name=made_by[:64],
                software_versions=__version__,
                device_serial_number="none",
                series_description="kidneys and tumors, kitsseg (research)",
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{files[0].parent}: expected headers from which a DICOM SEG can be made, found others "
                f"({one_line(error)}). Leave --dicom-seg out, or export the series again."
            ) from error
        with atomic_path(Path(path)) as temporary:
            made.save_as(temporary)


def is_segmentation(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a DICOM Segmentation object that ``write_segmentation`` wrote."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        found = pydicom.dcmread(path, stop_before_pixels=True)
    except InvalidDicomError:
        return False
    return bool(
        found.get("SOPClassUID") == pydicom.uid.SegmentationStorage and found.get("Manufacturer") == MADE_BY
    )


def _fill_thickness(source: Sequence[Any]) -> None:
    """Fill in the slice thickness where a series does not state it: the distance of the slices."""
    if len(source) < 2:
        return
    first, second = (np.array(each.ImagePositionPatient, float) for each in source[:2])
    for each in source:
        if each.get("SliceThickness") is None:
            each.SliceThickness = round(float(np.linalg.norm(second - first)), 6)


def _highdicom() -> Any:
    try:
        import highdicom
    except ImportError as error:
        raise InputError(
            f"--dicom-seg: the package highdicom is missing ({error}). Install it with: pip install highdicom"
        ) from error
    return highdicom
