"""Put the slices of a DICOM series in order, and refuse those that do not make one volume.

Slices are put in order by their position along their normal, never by name or instance number. A folder is refused if
it would silently give a wrong volume: several series or phases, a missing slice, a tilted gantry, or slices that are
not parallel. Only values of headers are looked at, so that this module needs no pydicom.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from kitsseg.errors import InputError
from kitsseg.files.checksums import crc32_of

__all__ = [
    "DISTANCE_TOLERANCE",
    "MADE",
    "MARKS",
    "NAMES",
    "ONE",
    "TIMES",
    "Slice",
    "Stated",
    "along_normal_mm",
    "distance_mm",
    "in_order",
    "number_step",
    "series_header",
    "stated_distance_mm",
    "thickness_mm",
]

JITTER_MM = (
    0.05  # no volume changes if a slice lies so far from its place; a tenth of a mm written rounds by as much
)
SAME_PLACE_MM = 0.01
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
NAMES = ("PatientName", "PatientBirthDate")  # tell patients apart where a slice has no PatientID
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
DISTANCE_TOLERANCE = 0.01  # of the distance of slices; more is no rounding of a number
_NAMED = 3  # files in a message


@dataclass(frozen=True)
class Stated:
    """What one header says about the whole, or once more about its place; None where it says nothing.

    Attributes:
        images: how many images its acquisition has, or its series.
        distance_mm, location_mm: SpacingBetweenSlices and SliceLocation, each with half a unit of its last digit.
    """

    images: int | None = None
    distance_mm: tuple[float, float] | None = None
    location_mm: tuple[float, float] | None = None


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
        stated: what needs not be said, and is compared with what is found.
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
    stated: Stated = field(default_factory=Stated)


def in_order(folder: Path, slices: Sequence[Slice]) -> list[Slice]:
    """Sort the slices of one series by their position along their normal.

    Args:
        folder: of the series, for the messages.
        slices: in any order.

    Raises: InputError if they do not make one volume of parallel, evenly spaced slices of one acquisition.
    """
    series = Counter(item.series for item in slices)
    if len(series) > 1:
        if len(series) == len(slices):
            raise InputError(
                f"{folder}: expected one DICOM series, found {len(slices)} files that each have a SeriesInstanceUID of "
                "their own. Export the series again, so that its slices share one, or give the folder of one series."
            )
        named = {item.series: item.description for item in slices}
        found = "; ".join(f"{named[uid]} ({n} files, {uid})" for uid, n in series.most_common(_NAMED))
        found += f" and {len(series) - _NAMED} more" if len(series) > _NAMED else ""
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
    _check_none_left_out(folder, slices)
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
    unknown = any("PatientID" not in item.marks for item in slices)
    for name in NAMES if unknown else ():
        firsts = {_plain_name(item.marks[name]): item for item in reversed(slices) if name in item.marks}
        if len(firsts) > 1:  # the names of patients do not belong into a log, those of files do
            one, other, *_ = sorted(item.path.name for item in firsts.values())
            raise InputError(
                f"{folder}: expected one series of one patient, found {len(firsts)} values of {name} and no PatientID, "
                f"such as in {one} and {other}. Put each in a folder of its own."
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


def _plain_name(value: str) -> str:
    """A name without what differs from one writer to another: case, empty parts, the same name in other letters."""
    return " ".join(value.partition("=")[0].replace("^", " ").upper().split())


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
        pair = [slices[same[0] + k].path for k in (0, 1)]
        first, second = (str(path.relative_to(folder) if folder in path.parents else path) for path in pair)
        copies = pair[0].stat().st_size == pair[1].stat().st_size and crc32_of(pair[0]) == crc32_of(pair[1])
        what = (
            ", the same file twice. Keep each file once"
            if copies
            else ". Keep the files of one acquisition (phase)"
        )
        raise InputError(
            f"{folder}: expected one slice at a position, found {len(same)} more, such as {first} and {second} at "
            f"{depth[same[0]]:.2f} mm{what}{'' if copies else ' and one reconstruction, each once'}."
        )
    gap = float(np.median(gaps))
    rounding = _rounding_mm(slices)
    # a missing slice puts some of the others a quarter of a gap or more away from every even grid
    allowed = min(max(JITTER_MM, float(np.abs(normal) @ rounding)), gap / 5) + 1e-6
    if _unevenness(depth) > allowed:
        odd = np.flatnonzero(np.abs(gaps - gap) > min(2 * allowed, 0.75 * np.abs(gaps - gap).max()))
        missing = sum(max(0, round(gaps[i] / gap) - 1) for i in odd)
        lacking = f"about {missing} {'slice is' if missing == 1 else 'slices are'} missing"
        what = lacking if missing else "the slices are unevenly spaced"
        i = int(np.abs(gaps - gap).argmax())
        raise InputError(
            f"{folder}: expected a slice every {gap:.3f} mm, found {gaps[i]:.3f} mm between {slices[i].path.name} and "
            f"{slices[i + 1].path.name}: {what}. Export the whole series."
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


def along_normal_mm(slices: Sequence[Slice]) -> npt.NDArray[np.float64]:
    """The place of each slice along the normal of all."""
    _, _, normal = _directions(slices[0])
    depth: npt.NDArray[np.float64] = np.array([item.position for item in slices]) @ normal
    return depth


def distance_mm(slices: Sequence[Slice]) -> tuple[float, float]:
    """The distance of neighboring slices in order, and how far the rounding of positions may move it."""
    _, _, normal = _directions(slices[0])
    depth, between = along_normal_mm(slices), len(slices) - 1
    wrong = max(float(np.abs(normal) @ _rounding_mm(slices)), JITTER_MM)
    return float(depth[-1] - depth[0]) / between, 2 * wrong / between


def stated_distance_mm(slices: Sequence[Slice]) -> tuple[float, float] | None:
    """SpacingBetweenSlices, and how far its rounding may move it.

    None where it is missing in a slice, not the same in all, or 0, which some software writes for slices without a gap
    between them. Some software writes it as negative for slices that overlap, or that run down.
    """
    stated = {item.stated.distance_mm for item in slices}
    if len(stated) > 1 or (found := stated.pop()) is None or not found[0]:
        return None
    value, rounding = found
    # a whole number is hardly a rounded one: nobody writes 3 for 2.6
    return abs(value), rounding if rounding < 0.5 else 0.0


def number_step(slices: Sequence[Slice]) -> int | None:
    """By how much InstanceNumber grows or falls from slice to slice; None where it is missing or grows unevenly."""
    numbers = [item.number for item in slices if item.number is not None]
    steps = {other - one for one, other in pairwise(numbers)}
    return abs(steps.pop()) if len(numbers) == len(slices) and len(steps) == 1 else None


def thickness_mm(slices: Sequence[Slice]) -> float | None:
    """SliceThickness; None where it is missing, not the same in all slices, or no number above 0."""
    stated = {item.marks.get("SliceThickness") for item in slices}
    try:
        found = float(str(stated.pop())) if len(stated) == 1 else math.nan
    except ValueError:  # of a text that is no number; nothing is computed with it
        return None
    return found if 0 < found < math.inf else None


def _check_none_left_out(folder: Path, slices: Sequence[Slice]) -> None:
    """Refuse a series of which every second file is missing, or more.

    It is evenly spaced, but its slices lie a multiple of SpacingBetweenSlices apart, or its numbers and gaps show it.
    """
    gap, rounding = distance_mm(slices)
    if stated := stated_distance_mm(slices):
        value, its_rounding = stated
        times = round(gap / value)
        allowed = max(DISTANCE_TOLERANCE * gap, rounding + times * its_rounding)
        if times > 1 and abs(gap - times * value) <= min(allowed, value / 4):
            raise InputError(
                f"{folder}: expected a slice every {value:.4g} mm, as SpacingBetweenSlices says, found one every "
                f"{gap:.4g} mm: {times - 1} of {times} are missing. Export the whole series, or correct "
                "SpacingBetweenSlices in the headers if none is."
            )
    step, thickness, numbers = number_step(slices), thickness_mm(slices), [item.number for item in slices]
    if len(slices) > 2 and step and step > 1 and thickness and thickness * 1.5 < gap:
        raise InputError(
            f"{folder}: expected all slices of a series, found one of {step} (InstanceNumber {numbers[0]}, "
            f"{numbers[1]}, {numbers[2]}, ...), {gap:.3g} mm apart and {thickness:.3g} mm thick. Export the whole "
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
