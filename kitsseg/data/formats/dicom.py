"""Read a DICOM CT series with one file for each slice. Volume and grid are those that its NIfTI file would give.

Slices are put in order by their position along their normal, never by name or instance number. A folder is refused if
it would silently give a wrong volume: several series or phases, a missing slice, a tilted gantry, slices that are not
parallel, or a file that should be a slice but cannot be read. The grid is that of a NIfTI file with the axes (columns,
rows, slices), as the common converters write it: an affine in mm and RAS+, code "scanner". Like every grid it is
checked by ``kitsseg.data.formats.grid``. Peak memory is the int16 volume plus a few slices.

Needs pydicom (the extra ``dicom``).
"""

from __future__ import annotations

import logging
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from kitsseg.data.formats.grid import Grid, Volume, grid_of
from kitsseg.errors import InputError

__all__ = [
    "DicomSeries",
    "Slice",
    "in_order",
    "is_dicom",
    "is_series",
    "read_series",
    "read_series_grid",
    "series_header",
    "series_of",
    "slice_files",
]

JITTER_MM = (
    0.05  # no volume changes if a slice lies so far from its place; a tenth of a mm written rounds by as much
)
SAME_PLACE_MM = 0.01
MOST_INFLATED = 1 << 28  # bytes of a slice with its header: 11,000 x 11,000 pixels
_DEFLATED = b"1.2.840.10008.1.2.1.99"
MOST_VOXELS = 32767  # along an axis, in the header of NIfTI-1
BESIDE_MM = 0.3  # from the straight line of the slices' corners
MANY_TURNS = 3
ACQUISITION_S = 1.0  # between two acquisitions; the slices of one are taken in the order of their places
SAME = {
    "shape": "Rows and Columns",
    "spacing_mm": "PixelSpacing",
    "orientation": "ImageOrientationPatient",
}
ONE = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID")  # have one value in a series
# have one value in an acquisition and a reconstruction, so that along the slices a value never comes back
MARKS: tuple[str, ...] = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "IrradiationEventUID",
)
MARKS += (
    "NominalPercentageOfCardiacPhase",
    "ContrastBolusAgent",
    "KVP",
    "ConvolutionKernel",
    "SliceThickness",
)
MARKS += ("SeriesNumber", "SeriesDescription", "ProtocolName", "ImageType")
TIMES = ("AcquisitionDateTime", "AcquisitionTime")
MADE = "ContentTime"  # when a slice was computed, in any order
COUNTS = ("ImagesInAcquisition", "NumberOfSeriesRelatedInstances")  # of images in the whole

_BESIDE_A_SERIES = {
    "dicomdir",
    "thumbs.db",
    "desktop.ini",
    "autorun.inf",
    "version",
    "readme",
    "license",
    "index",
}
_OTHER_KINDS = {
    ".txt",
    ".md",
    ".json",
    ".xml",
    ".csv",
    ".tsv",
    ".yaml",
    ".yml",
    ".log",
    ".ini",
    ".inf",
    ".db",
}
_OTHER_KINDS |= {
    ".pdf",
    ".html",
    ".htm",
    ".css",
    ".js",
    ".jpg",
    ".jpeg",
    ".png",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
}
_OTHER_KINDS |= {
    ".nii",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".npy",
    ".npz",
    ".stl",
    ".exe",
    ".dll",
    ".sh",
    ".bat",
    ".py",
}
_OTHER_KINDS |= {".md5", ".sha256", ".bval", ".bvec", ".doc", ".docx", ".xls", ".xlsx", ".url", ".lnk"}
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstd",
}
_NAMED = 3  # files in a message


@dataclass(frozen=True)
class Slice:
    """Values from the header of one file.

    Attributes:
        series, description: which series it belongs to.
        shape: (rows, columns).
        spacing_mm: between rows, between columns.
        orientation: unit vectors along a row and down a column, in LPS.
        position: center of the first pixel, in mm and LPS.
        slope, intercept: HU = slope * stored number + intercept.
        rounding_mm: half a unit of the last written digit of each coordinate of the position.
        number: InstanceNumber, or None.
        marks: what tells patients, acquisitions and reconstructions apart, by name.
        times_s: when it was taken and made, by name.
        stated: how many images its acquisition has, or its series; None where that is not said.
    """

    path: Path
    series: str
    description: str
    shape: tuple[int, int]
    spacing_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    slope: float
    intercept: float
    rounding_mm: tuple[float, ...]
    number: int | None
    marks: dict[str, str]
    times_s: dict[str, float]
    stated: int | None = None


def in_order(folder: Path, slices: Sequence[Slice]) -> list[Slice]:
    """Sort the slices of one series by their position along their normal.

    Args:
        folder: of the series, for the messages.
        slices: in any order.

    Raises: InputError if they do not make one volume of parallel, evenly spaced slices of one acquisition.
    """
    series = Counter(item.series for item in slices)
    if len(series) > 1:
        named = {item.series: item.description for item in slices}
        found = "; ".join(f"{named[uid]} ({n} files, {uid})" for uid, n in series.items())
        raise InputError(
            f"{folder}: expected one DICOM series, found {len(series)}: {found}. Put each in a folder of its own."
        )
    for name, term in SAME.items():
        first = getattr(slices[0], name)
        for item in slices[1:]:
            value = getattr(item, name)
            if not np.allclose(value, first, rtol=0, atol=1e-4):
                raise InputError(
                    f"{item.path}: expected {term} {list(first)} as {slices[0].path.name} has, found {list(value)}. "
                    "Keep only the files of one axial series."
                )
    if len(slices) < 2:
        raise InputError(
            f"{folder}: expected a series of slices, found one DICOM file. Give the whole series."
        )
    _, _, normal = _directions(slices[0])
    slices = sorted(slices, key=lambda item: float(np.dot(item.position, normal)))
    _check_one_acquisition(folder, slices)
    _check_spacing(folder, slices, normal)
    _check_none_left_out(folder, slices, normal)
    return slices


def _directions(
    item: Slice,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Unit vectors in LPS: along a row, down a column, and their normal."""
    along, down = np.reshape(item.orientation, (2, 3))
    if not np.allclose([along @ along, down @ down, along @ down], [1, 1, 0], atol=1e-2):
        raise InputError(
            f"{item.path}: expected two perpendicular directions of length 1, found "
            f"ImageOrientationPatient {list(item.orientation)}. Export the series again."
        )
    return along, down, np.cross(along, down)


def _check_one_acquisition(folder: Path, slices: Sequence[Slice]) -> None:
    """Refuse slices of two acquisitions that alternate along the volume: together they may look evenly spaced.

    Acquisitions that follow each other along the volume, such as the turns of a sequential scan, are allowed.
    """
    for name in ONE:
        values = sorted({item.marks[name] for item in slices if name in item.marks})
        if len(values) > 1:
            raise InputError(
                f"{folder}: expected one series of one patient, found {len(values)} values of {name}, such as "
                f"{values[0]} and {values[1]}. Put each in a folder of its own."
            )
    groups = {name: [item.marks.get(name, "none") for item in slices] for name in MARKS}
    for name in TIMES:
        groups[name] = _split_by_time([item.times_s.get(name) for item in slices])
    groups[MADE] = _in_turn(_split_by_time([item.times_s.get(MADE) for item in slices]))
    groups["InstanceNumber"] = _split_by_number([item.number for item in slices])
    for name, values in groups.items():
        distinct = dict.fromkeys(values)
        if sum(one != other for one, other in pairwise(values)) >= max(len(distinct), 2):
            found = ", ".join(list(distinct)[:_NAMED]) + ("" if len(distinct) <= _NAMED else ", ...")
            raise InputError(
                f"{folder}: expected slices of one acquisition, found {len(distinct)} acquisitions or phases that "
                f"alternate ({name} {found}). Put the files of each in a folder of their own."
            )


def _split_by_time(seconds: Sequence[float | None]) -> list[str]:
    """The number of each slice's acquisition, if the pause between acquisitions is longer than any pause within one."""
    known = [moment for moment in seconds if moment is not None]
    if len(seconds) < 4 or len(known) < len(seconds):
        return []
    ends = np.sort(np.array(known))
    pauses = np.diff(ends)
    if pauses.max() < ACQUISITION_S:
        return []
    starts = ends[1:][pauses > max(ACQUISITION_S, pauses.max() / 2)]
    first = [int(np.searchsorted(starts, moment, side="right")) for moment in known]
    return [f"{ends[0] if k == 0 else starts[k - 1]:.0f} s" for k in first]


def _in_turn(groups: list[str]) -> list[str]:
    """The groups, if along the slices they take turns: what was computed in any order does not do so by chance."""
    n = len(set(groups))
    turns = all(group == groups[k % n] for k, group in enumerate(groups))
    return groups if turns and len(groups) >= MANY_TURNS * n else []


def _split_by_number(numbers: Sequence[int | None]) -> list[str]:
    """The number of each slice's acquisition, if one acquisition's numbers begin after the last of the other's."""
    if len(numbers) < 10 or None in numbers:
        return []
    halves = [np.array(numbers[start::2]) for start in (0, 1)]
    monotone = all((np.diff(half) > 0).all() or (np.diff(half) < 0).all() for half in halves)
    if not monotone or max(half.min() for half in halves) < min(half.max() for half in halves):
        return []
    return [f"{halves[k % 2].min()} to {halves[k % 2].max()}" for k in range(len(numbers))]


def _rounding_mm(slices: Sequence[Slice]) -> npt.NDArray[np.float64]:
    """How far each coordinate of the positions may lie from the true place, because positions are written rounded."""
    # a number without trailing zeros looks coarser than it is: of all slices the finest counts
    finest: npt.NDArray[np.float64] = np.min([item.rounding_mm for item in slices], axis=0)
    return finest


def _check_spacing(folder: Path, slices: Sequence[Slice], normal: npt.NDArray[np.float64]) -> None:
    positions = np.array([item.position for item in slices])
    depth = positions @ normal
    gaps = np.diff(depth)
    same = np.flatnonzero(gaps < SAME_PLACE_MM)
    if len(same):
        names = f"{slices[same[0]].path.name} and {slices[same[0] + 1].path.name}"
        raise InputError(
            f"{folder}: expected one slice at a position, found {len(same)} more, such as {names} at "
            f"{depth[same[0]]:.2f} mm. Keep the files of one acquisition (phase) and one reconstruction, each once."
        )
    gap = float(np.median(gaps))
    rounding = _rounding_mm(slices)
    # a missing slice puts some of the others a quarter of a gap or more away from every even grid
    allowed = min(max(JITTER_MM, float(np.abs(normal) @ rounding)), gap / 5) + 1e-6
    if _unevenness(depth) > allowed:
        odd = np.flatnonzero(np.abs(gaps - gap) > min(2 * allowed, 0.75 * np.abs(gaps - gap).max()))
        missing = sum(max(0, round(gaps[i] / gap) - 1) for i in odd)
        what = f"about {missing} missing" if missing else "unevenly spaced"
        i = int(np.abs(gaps - gap).argmax())
        raise InputError(
            f"{folder}: expected a slice every {gap:.3f} mm, found {gaps[i]:.3f} mm between {slices[i].path.name} and "
            f"{slices[i + 1].path.name}: slices are {what}. Export the whole series."
        )
    line = positions[0] + np.arange(len(slices))[:, None] * _step(slices)
    beside = np.abs((positions - line) - ((positions - line) @ normal)[:, None] * normal)
    off = np.linalg.norm(np.maximum(beside - 2 * rounding, 0), axis=1)
    if off.max() > BESIDE_MM:
        worst = int(off.argmax())
        raise InputError(
            f"{slices[worst].path}: expected slices along a straight line, found this one "
            f"{np.linalg.norm(beside[worst]):.2f} mm beside it. "
            "Keep the files of one axial series."
        )


def _check_none_left_out(folder: Path, slices: Sequence[Slice], normal: npt.NDArray[np.float64]) -> None:
    """Refuse a series of which every second file is missing. It is evenly spaced, but its numbers and gaps show it."""
    numbers, thick = [item.number for item in slices], {item.marks.get("SliceThickness") for item in slices}
    if None in numbers or None in thick or len(thick) > 1 or len(slices) < 3:
        return
    steps = {abs(other - one) for one, other in pairwise(number for number in numbers if number is not None)}
    try:
        thickness_mm = float(str(thick.pop()))
    except ValueError:  # of a text that is no number; nothing is computed with it
        return
    gap = float(np.dot(np.subtract(slices[1].position, slices[0].position), normal))
    if len(steps) == 1 and (step := steps.pop()) > 1 and 0 < thickness_mm * 1.5 < gap:
        raise InputError(
            f"{folder}: expected all slices of a series, found one of {step} (InstanceNumber {numbers[0]}, "
            f"{numbers[1]}, {numbers[2]}, ...), {gap:.3g} mm apart and {thickness_mm:.3g} mm thick. Export the whole "
            "series."
        )


def _unevenness(depth: npt.NDArray[np.float64]) -> float:
    """How far the farthest slice lies from its place in the even grid that fits best (Chebyshev's line)."""
    k = np.arange(len(depth))

    def farthest(step: float) -> float:
        return float(np.ptp(depth - step * k)) / 2

    middle = float(depth[-1] - depth[0]) / (len(depth) - 1)
    low, high = middle - 2 * farthest(middle), middle + 2 * farthest(middle)
    for _ in range(60):  # the function is convex
        third = (high - low) / 3
        if farthest(low + third) < farthest(high - third):
            high -= third
        else:
            low += third
    return farthest((low + high) / 2)


def _step(slices: Sequence[Slice]) -> npt.NDArray[np.float64]:
    """The step from slice to slice in mm and LPS: along the normal, unless the shift is larger than rounding."""
    _, _, normal = _directions(slices[0])
    step = (np.array(slices[-1].position) - slices[0].position) / (len(slices) - 1)
    beside = step - (step @ normal) * normal
    # each coordinate by itself: one that is the same whole number in all slices says nothing about the others
    if (np.abs(beside) * (len(slices) - 1) <= 2 * _rounding_mm(slices) + 1e-9).all():
        return step - beside
    return step


def series_header(slices: Sequence[Slice]) -> nib.Nifti1Header:
    """Header of a NIfTI file of axes (columns, rows, slices) for the slices of a series in order."""
    first = slices[0]
    along, down, _ = _directions(first)
    between_rows, between_columns = first.spacing_mm
    affine = np.eye(4)
    affine[:3] = np.stack(
        [along * between_columns, down * between_rows, _step(slices), first.position], axis=1
    )
    affine[:2] *= -1  # LPS to RAS
    header = nib.Nifti1Header()
    if max(*first.shape, len(slices)) > MOST_VOXELS:
        raise InputError(
            f"{first.path}: expected at most {MOST_VOXELS} rows, columns and slices, found {first.shape[0]} x "
            f"{first.shape[1]} in {len(slices)} slices. Export the series again."
        )
    header.set_data_shape((first.shape[1], first.shape[0], len(slices)))
    header.set_data_dtype(np.int16)
    header.set_qform(affine, code="scanner")
    header.set_sform(affine, code="scanner")
    header.set_xyzt_units("mm")
    return header


NEEDED: tuple[str, ...] = (
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
)
NEEDED += ("SeriesInstanceUID", "RescaleSlope", "RescaleIntercept")


def is_series(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds DICOM files; only the first bytes of its files are looked at."""
    return any(path.is_file() and is_dicom(path) for path in _entries(folder))


@dataclass(frozen=True)
class DicomSeries:
    """One of the series among some files.

    Attributes:
        uid: SeriesInstanceUID; None for a folder in which no header can be read.
        folder: the deepest folder that holds all files of the series.
        alone: True if this folder holds no file of another series.
        files: number of files.
        patient, number, description: from the headers, or empty.
        why_not: None for a CT; else words that say what the series is instead.
    """

    uid: str | None
    folder: Path
    alone: bool
    files: int
    patient: str = ""
    number: str = ""
    description: str = ""
    why_not: str | None = None


_OF_SERIES = ["SeriesInstanceUID", "Modality", "PatientID", "SeriesNumber", "SeriesDescription", "ImageType"]


def series_of(files: Sequence[Path]) -> list[DicomSeries]:
    """The series that some DICOM files belong to, in the order of their folders; the files may lie anywhere.

    A file whose header cannot be read counts to the series of its folder, so that reading that series names the file.

    Raises: InputError if pydicom is missing.
    """
    groups: dict[str, list[Path]] = {}
    firsts: dict[str, Any] = {}
    unknown: dict[Path, list[Path]] = {}
    kinds: dict[str, set[str]] = {}
    with _quiet_pydicom():
        for path in files:
            header = _series_header(path)
            uid = str(header.get("SeriesInstanceUID") or "") if header is not None else ""
            if not uid:
                unknown.setdefault(path.parent, []).append(path)
                continue
            groups.setdefault(uid, []).append(path)
            firsts.setdefault(uid, header)
            localizer = "LOCALIZER" in (header.get("ImageType") or ())
            kinds.setdefault(uid, set()).add(
                "localizer images" if localizer else str(header.get("Modality") or "without a modality")
            )
    owners: dict[Path, set[str]] = {}  # of a folder: the series in it and in the folders in it
    for uid, paths in [*groups.items(), *((str(folder), paths) for folder, paths in unknown.items())]:
        for folder in {path.parent for path in paths}:
            for above in (folder, *folder.parents):
                owners.setdefault(above, set()).add(uid)
    beside = {path.parent for paths in groups.values() for path in paths}
    found = [
        DicomSeries(None, folder, True, len(paths))
        for folder, paths in unknown.items()
        if folder not in beside
    ]
    for uid, paths in groups.items():
        folders = {path.parent for path in paths}
        folder = Path(os.path.commonpath(folders))
        others = kinds[uid] - {"CT"}
        found.append(
            DicomSeries(
                uid,
                folder,
                folders == {folder} and owners[folder] <= {uid, str(folder)},
                len(paths),
                patient=str(firsts[uid].get("PatientID") or ""),
                number=str(firsts[uid].get("SeriesNumber") or ""),
                description=str(firsts[uid].get("SeriesDescription") or ""),
                why_not=" and ".join(sorted(others)) if others == kinds[uid] else None,
            )
        )
    return sorted(found, key=lambda series: (series.folder, series.uid or ""))


def _series_header(path: Path) -> Any:
    """The part of a file's header that tells its series; None if the header cannot be read."""
    _pydicom(path)
    try:
        return _data_set(path, stop_before_pixels=True, specific_tags=_OF_SERIES)
    except Exception:  # reading the series says what is wrong
        return None


def slice_files(folder: Path, series: str | None = None) -> list[Path]:
    """The files of a series in the order of its slices along their normal, from its headers alone.

    Args:
        folder: as in ``read_series``. series: the SeriesInstanceUID of one series of several.

    Raises: InputError as ``read_series``.
    """
    with _quiet_pydicom():
        return [item.path for item in _ordered(Path(folder), series)]


def read_series_grid(folder: str | os.PathLike[str], series: str | None = None) -> Grid:
    """The grid of a series, from the headers of its files alone.

    Raises: InputError as ``read_series``, except for damage in the pixels.
    """
    with _quiet_pydicom():
        return grid_of(series_header(_ordered(Path(folder), series)), folder)


def _ordered(folder: Path, series: str | None) -> list[Slice]:
    files = _slice_files(folder) if series is None else _files_of_series(folder, series)
    return in_order(folder, [_slice(path) for path in files])


def _files_of_series(folder: Path, uid: str) -> list[Path]:
    """The files of one series in a folder and the folders in it.

    Raises: InputError if there is none, or if a file beside them cannot be read and may be one of its slices.
    """
    found = []
    for here in [folder, *(entry for entry in sorted(folder.rglob("*")) if entry.is_dir())]:
        entries = [path for path in _entries(here) if not path.is_dir()]
        dicom = [path for path in entries if path.is_file() and is_dicom(path)]
        uids = {path: _uid(path) for path in dicom}
        ours = [path for path in dicom if uids[path] == uid]
        if ours:
            damaged = [path for path in dicom if not uids[path]]
            _check_all_read(here, dicom, [path for path in entries if path not in uids] + damaged)
        found += ours
    if not found:
        raise InputError(
            f"{folder}: expected the files of the series {uid}, found none. Check whether the series was moved."
        )
    return found


def _uid(path: Path) -> str:
    header = _series_header(path)
    return "" if header is None else str(header.get("SeriesInstanceUID") or "")


def read_series(folder: str | os.PathLike[str], series: str | None = None) -> Volume:
    """Read the CT series of a folder in HU.

    Args:
        folder: holds the files of one series, whatever their names, with or without the 128 bytes in front of
            "DICM". Beside them DICOMDIR, and files of other well-known types, are left alone.
        series: SeriesInstanceUID of one of several; its files may then lie in folders below as well.

    Returns: Volume with int16 ``array`` (slices, rows, columns) in KiTS axes; its grid's header has the series' affine.
    Raises: InputError for what is not one whole CT series of parallel, evenly spaced slices, for a file that may be a
        slice and cannot be read, and if pydicom is missing.
    """
    folder = Path(folder)
    with _quiet_pydicom():
        slices = _ordered(folder, series)
        grid = grid_of(series_header(slices), folder)
        array = np.empty(grid.shape, np.int16)
        target = grid.file_view(array)
        for k, item in enumerate(slices):
            target[:, :, k] = _hu(item).T
    return Volume(folder, array, grid, _stated_slices(slices))


def _stated_slices(slices: Sequence[Slice]) -> int | None:
    """How many slices the headers say that there are; None where they do not, or each speaks of a piece."""
    stated = {item.stated for item in slices}
    pieces = {item.marks.get("AcquisitionNumber") for item in slices}
    return stated.pop() if len(stated) == len(pieces) == 1 else None


def _slice_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder.

    Raises: InputError if there is none, or if other files may be slices too. To leave them out silently would make the
        patient shorter, or double the distance of slices.
    """
    dicom, others = [], []
    for path in _entries(folder):
        if path.is_file() and is_dicom(path):
            dicom.append(path)
        elif path.is_file() or not path.exists():  # a link to nothing is neither file nor folder
            others.append(path)
    if not dicom:
        raise InputError(
            f"{folder}: expected a NIfTI file, or a folder with the DICOM files of one series; found a folder "
            "without DICOM files."
        )
    _check_all_read(folder, dicom, others)
    deeper = next((path for path in _deeper(folder) if is_dicom(path)), None)
    if deeper:
        raise InputError(
            f"{folder}: expected all slices of a series in one folder, found DICOM files in {deeper.parent.name} "
            f"too ({deeper.relative_to(folder)}). Put the files of each series in a folder of their own."
        )
    return dicom


def _check_all_read(folder: Path, dicom: Sequence[Path], others: Sequence[Path]) -> None:
    """Raise InputError if any of the other files of a folder may be a slice as well."""
    endings = {path.suffix.lower() for path in dicom} - {""}
    unread = [path for path in others if path.suffix.lower() in endings or not _is_beside_a_series(path)]
    if unread:
        named = ", ".join(f"{path.name} ({_what(path)})" for path in unread[:_NAMED])
        more = f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else ""
        raise InputError(
            f"{folder}: expected a DICOM slice in every file, found {len(unread)} of {len(dicom) + len(unread)} files "
            f"that are not DICOM: {named}{more}. Copy or export the series again, or remove what is no part of it."
        )


def _deeper(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Files of the folders in a folder. Links to folders are followed unless they lead up again."""
    above = (*above, folder.resolve())
    for entry in _entries(folder):
        if entry.is_dir() and entry.resolve() not in above:
            yield from (path for path in _entries(entry) if path.is_file())
            yield from _deeper(entry, above)


def _is_beside_a_series(path: Path) -> bool:
    name = path.name.lower()
    known = name in _BESIDE_A_SERIES or path.suffix.lower() in _OTHER_KINDS or name.endswith(".nii.gz")
    return known and path.exists()


def _what(path: Path) -> str:
    if not path.exists():
        return "a link to nothing"
    with path.open("rb") as file:
        start = file.read(8)
    packed = next((name for mark, name in _PACKED.items() if start.startswith(mark)), None)
    return "empty" if not start else f"still packed with {packed}" if packed else "damaged or of another type"


@contextmanager
def _quiet_pydicom() -> Iterator[None]:
    """Silence pydicom, which warns of every value that is written a little wrong and logs the errors that it raises."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


def _entries(folder: str | os.PathLike[str]) -> list[Path]:
    return sorted(path for path in Path(folder).iterdir() if not path.name.startswith("."))


def is_dicom(path: Path) -> bool:
    """Whether a file begins like a DICOM file of a scan; DICOMDIR does not count."""
    if path.name.upper() == "DICOMDIR":
        return False
    with path.open("rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" or _starts_with_an_element(start)


def _starts_with_an_element(start: bytes) -> bool:
    """Whether a file begins with the first element of a DICOM header: one without the 128 bytes and "DICM"."""
    if len(start) < 132:
        return False
    for order in ("little", "big"):
        group, element = int.from_bytes(start[:2], order), int.from_bytes(start[2:4], order)
        length = int.from_bytes(start[4:8], order)  # where the type of value is not written
        if (
            group in (2, 8)
            and element <= 0x20
            and (start[4:6] in (b"UL", b"OB", b"CS", b"UI") or length <= 0x400)
        ):
            return True
    return False


def _slice(path: Path) -> Slice:
    """The Slice of one file, without its pixels."""
    with _naming(path):
        dataset = _data_set(path, stop_before_pixels=True)
        _check_ct(path, dataset)
        return Slice(
            path,
            str(dataset.SeriesInstanceUID),
            str(dataset.get("SeriesDescription") or "unnamed"),
            shape=(int(dataset.Rows), int(dataset.Columns)),
            spacing_mm=_positive(_numbers(dataset, "PixelSpacing", 2)),
            orientation=_numbers(dataset, "ImageOrientationPatient", 6),
            position=_numbers(dataset, "ImagePositionPatient", 3),
            slope=_numbers(dataset, "RescaleSlope", 1)[0],
            intercept=_numbers(dataset, "RescaleIntercept", 1)[0],
            rounding_mm=tuple(map(_half_a_digit, dataset.ImagePositionPatient)),
            number=None if dataset.get("InstanceNumber") is None else int(dataset.InstanceNumber),
            marks={name: str(dataset[name].value) for name in (*ONE, *MARKS) if _stated(dataset, name)},
            times_s=_times_s(dataset),
            stated=_images_stated(dataset),
        )


def _stated(dataset: Any, name: str) -> bool:
    return name in dataset and not dataset[name].is_empty


def _half_a_digit(value: Any) -> float:
    """Half a unit of a decimal string's last digit that is not 0, because some software writes 2.0 for 2."""
    exponent = Decimal(str(value)).normalize().as_tuple().exponent
    return 0.5 * 10.0 ** min(int(exponent), 0)


def _times_s(dataset: Any) -> dict[str, float]:
    """When a slice was taken and made, by name; what is no time says nothing."""
    found = {name: _seconds(dataset[name].value) for name in (*TIMES, MADE) if _stated(dataset, name)}
    return {name: seconds for name, seconds in found.items() if seconds is not None}


def _seconds(moment: Any) -> float | None:
    """Of a TM (HHMMSS.ffffff) or DT (YYYYMMDDHHMMSS.ffffff&ZZXX) value, within its day or month; None of another."""
    text = str(moment).replace(":", "")  # of the standard before DICOM
    digits, _, fraction = text.partition("+")[0].partition("-")[0].partition(".")
    if not f"{digits}{fraction}".isdecimal():
        return None
    days, clock = (int(digits[6:8] or 0), digits[8:]) if len(digits) > 6 else (0, digits)
    hours, minutes, seconds = (int(clock[i : i + 2] or 0) for i in (0, 2, 4))
    return float(86400 * days + 3600 * hours + 60 * minutes + seconds) + float(f"0.{fraction or 0}")


def _images_stated(dataset: Any) -> int | None:
    """How many images the acquisition or the series has; what is no number says nothing."""
    for name in COUNTS:
        with suppress(TypeError, ValueError):
            if _stated(dataset, name):
                return int(dataset[name].value)
    return None


def _check_ct(path: Path, dataset: Any) -> None:
    modality = dataset.get("Modality")
    if modality != "CT":
        raise InputError(
            f"{path}: expected a CT slice, found modality {modality}. Give the folder of a CT series."
        )
    if "LOCALIZER" in (dataset.get("ImageType") or ()):
        raise InputError(f"{path}: expected a CT slice, found a localizer image. Remove it from the folder.")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise InputError(
            f"{path}: expected one slice a file, found an enhanced CT of {dataset.NumberOfFrames} frames. "
            "Convert it to NIfTI first, for example with dcm2niix."
        )
    missing = [name for name in NEEDED if name not in dataset or dataset[name].is_empty]
    if missing:
        raise InputError(
            f"{path}: expected a CT slice in HU, found none of: {', '.join(missing)}. Export it again."
        )
    found = dataset.get("PhotometricInterpretation"), dataset.get("RescaleType") or "HU"
    if found[0] != "MONOCHROME2" or found[1] not in ("HU", "US"):  # US: unspecified
        raise InputError(
            f"{path}: expected gray values in HU, found {found[0]} in {found[1]}. Export the original CT series."
        )


def _numbers(dataset: Any, name: str, count: int) -> tuple[float, ...]:
    values = np.atleast_1d(np.array(dataset[name].value, float))
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ValueError(f"{name} is {values.tolist()}")
    return tuple(values.tolist())


def _positive(spacing_mm: tuple[float, ...]) -> tuple[float, ...]:
    if min(spacing_mm) <= 0:
        raise ValueError(f"PixelSpacing is {list(spacing_mm)}")
    return spacing_mm


def _hu(item: Slice) -> npt.NDArray[np.int16]:
    """(rows, columns) int16."""
    with _naming(item.path):
        dataset = _data_set(item.path)
        syntax = _syntax(item.path, dataset)
        try:
            stored = dataset.pixel_array
        except (RuntimeError, NotImplementedError, ValueError, AttributeError) as error:
            if not syntax.is_compressed:
                raise
            raise InputError(
                f"{item.path}: its compression ({syntax.name}) cannot be read ({_line(error)}). "
                "Run: pip install python-gdcm, or export the series uncompressed."
            ) from error
    if stored.shape != item.shape:
        raise InputError(f"{item.path}: expected {item.shape} gray values, found {stored.shape}.")
    if not item.slope:
        raise InputError(f"{item.path}: expected a rescaling to HU, found slope 0. Export the series again.")
    hu: npt.NDArray[np.int16] = np.clip(np.rint(stored * item.slope + item.intercept), -32768, 32767).astype(
        np.int16
    )
    return hu


def _syntax(path: Path, dataset: Any) -> Any:
    """How the pixels are encoded. A file without the head "DICM" does not name its encoding; pydicom has guessed it."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    meta = dataset.file_meta
    if "TransferSyntaxUID" not in meta:
        implicit, little = dataset.original_encoding
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise InputError(
                f"{path}: expected pixels with a named compression, found compressed pixels of an unknown "
                "kind, because the head of the file is missing. Export the series again."
            )
        plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else plain
    return meta.TransferSyntaxUID


def _data_set(path: Path, **options: Any) -> Any:
    """The data set of a file, with or without the head "DICM"; ``options`` are those of ``pydicom.dcmread``."""
    _check_inflated(path)
    return _pydicom(path).dcmread(path, force=True, **options)


def _check_inflated(path: Path) -> None:
    """Refuse a deflated data set that becomes far larger than a slice.

    pydicom inflates all of it at once, even where only the header is wanted.

    Raises: InputError if it becomes more than ``MOST_INFLATED`` bytes.
    """
    with path.open("rb") as file:
        start = file.read(1 << 16)
        if start[128:132] != b"DICM" or _DEFLATED not in start:
            return
        file.seek(_end_of_head(start))
        inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while size <= MOST_INFLATED and not inflater.eof and (packed := file.read(1 << 16)):
            while packed and size <= MOST_INFLATED:
                size += len(inflater.decompress(packed, 1 << 20))
                packed = inflater.unconsumed_tail
    if size > MOST_INFLATED:
        raise InputError(
            f"{path}: expected a slice, found a compressed data set of more than {MOST_INFLATED:,} bytes. Export the "
            "series again, uncompressed."
        )


def _end_of_head(start: bytes) -> int:
    """Where the elements of group 2 end, one by one as pydicom reads them; the length that they state may be wrong."""
    at = 132
    while start[at : at + 2] == b"\x02\0":
        if start[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
            at += 12 + int.from_bytes(start[at + 8 : at + 12], "little")
        else:
            at += 8 + int.from_bytes(start[at + 6 : at + 8], "little")
    return at


def _pydicom(path: Path) -> ModuleType:
    try:
        import pydicom
    except ImportError as error:
        raise InputError(
            f"{path}: reading DICOM needs pydicom, found none. Run: pip install pydicom"
        ) from error
    return pydicom


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """In this block each of the many errors of pydicom becomes an InputError that names the file."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except OSError as error:
        if error.errno:  # of the disk, not of the contents
            raise
        raise InputError(f"{path}: damaged DICOM ({_line(error)}). Copy or export it again.") from error
    except Exception as error:
        raise InputError(f"{path}: damaged DICOM ({_line(error)}). Copy or export it again.") from error


def _line(error: object) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:197]}..."  # some quote the contents of the file
