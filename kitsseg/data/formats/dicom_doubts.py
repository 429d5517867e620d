"""What the headers of a DICOM series leave doubtful, though its slices make a volume.

A header says some things twice, or says them without need: the distance of slices, their places, their number. Where
one of these contradicts what was found, nobody knows which is right. The volume is read by the positions, and told.
"""

from collections.abc import Callable, Sequence

import numpy as np

from kitsseg.data.formats.dicom_order import (
    DISTANCE_TOLERANCE,
    Slice,
    along_normal_mm,
    distance_mm,
    number_step,
    stated_distance_mm,
    thickness_mm,
)
from kitsseg.data.formats.grid import Doubt

__all__ = ["series_doubts"]

_NAMED = 3  # files in a message
_WHOLE = "Copy or export the whole series again, unless you left slices out on purpose"
_PHASES = ("TemporalPositionIdentifier", "TemporalPositionIndex")


def series_doubts(slices: Sequence[Slice]) -> tuple[Doubt, ...]:
    """What is doubtful about a series: at most one Doubt of each kind.

    Args:
        slices: as ``in_order`` returns them.
    """
    kinds: tuple[Callable[[Sequence[Slice]], Doubt | None], ...] = (
        _about_count,
        _about_distance,
        _about_gaps,
        _about_locations,
        _about_rescaling,
    )
    return tuple(doubt for kind in kinds if (doubt := kind(slices)))


def _stated_images(slices: Sequence[Slice]) -> int | None:
    """How many slices the headers say that there are; None where they do not, or each speaks of a piece."""
    stated = {item.stated.images for item in slices}
    pieces = {item.marks.get("AcquisitionNumber") for item in slices}
    return stated.pop() if len(stated) == len(pieces) == 1 else None


def _about_count(slices: Sequence[Slice]) -> Doubt | None:
    """Slices that lack at an end of a series leave an even one: only a number in the headers tells of them."""
    stated = _stated_images(slices)
    if stated is None or len(slices) >= stated:
        return None
    return Doubt("slices of the series", f"{len(slices)}", f"{stated} slices, as the headers say", _WHOLE)


def _about_distance(slices: Sequence[Slice]) -> Doubt | None:
    """SpacingBetweenSlices that is not the distance of the positions; multiples of it are refused before."""
    gap, rounding = distance_mm(slices)
    if (stated := stated_distance_mm(slices)) is None:
        return None
    value, its_rounding = stated
    allowed = DISTANCE_TOLERANCE * gap + rounding + its_rounding
    thickness = thickness_mm(slices)
    # some software writes the gap between the edges of slices
    if abs(gap - value) <= allowed or (thickness and abs(abs(gap - thickness) - value) <= allowed):
        return None
    return Doubt(
        "distance of slices",
        f"one every {gap:.4g} mm by their positions",
        f"a slice every {value:.4g} mm, as SpacingBetweenSlices says",
        "The positions are used. Check in another program which is right, or export the series again",
    )


def _about_gaps(slices: Sequence[Slice]) -> Doubt | None:
    """Slices that may lack between the others, where too little is said to be sure."""
    (gap, _), step, thickness = distance_mm(slices), number_step(slices), thickness_mm(slices)
    explained = (
        len(slices) < 3
        or stated_distance_mm(slices) is not None
        or _stated_images(slices) == len(slices)
        # the slices of several phases may be numbered alternately
        or any(name in item.marks for item in slices for name in _PHASES)
    )
    if explained:
        return None
    if step is not None and step > 1:
        numbers = ", ".join(str(item.number) for item in slices[:3])
        found = f"one of {step} (InstanceNumber {numbers}, ...), {gap:.3g} mm apart"
    elif thickness is not None and 1.5 * thickness < gap and all(item.number is None for item in slices):
        found = f"slices {gap:.3g} mm apart and {thickness:.3g} mm thick, without InstanceNumber"
    else:
        return None
    return Doubt("slices of the series", found, "all slices of a series", _WHOLE)


def _about_locations(slices: Sequence[Slice]) -> Doubt | None:
    """SliceLocation that runs otherwise than the positions, in whatever direction and from whatever start."""
    stated = [item.stated.location_mm for item in slices if item.stated.location_mm is not None]
    places, roundings = np.array(stated).reshape(-1, 2).T
    if len(places) < len(slices) or not np.ptp(places):  # the same in all slices says nothing
        return None
    _, rounding = distance_mm(slices)
    rounding = rounding * (len(slices) - 1) + 2 * float(roundings.min())
    table = np.array([item.position[2] for item in slices])  # some scanners write the place of the table
    steps = np.diff(places)
    for depth in (along_normal_mm(slices), table):
        gaps = np.diff(depth)
        off = np.abs(np.abs(steps) - np.abs(gaps))
        whole = abs(abs(places[-1] - places[0]) - abs(depth[-1] - depth[0]))
        if (off <= DISTANCE_TOLERANCE * np.abs(gaps) + rounding).all() and (
            whole <= DISTANCE_TOLERANCE * abs(depth[-1] - depth[0]) + rounding
        ):
            return None
    gaps = np.diff(along_normal_mm(slices))
    worst = int(np.abs(np.abs(steps) - gaps).argmax())
    return Doubt(
        "places of slices",
        f"{gaps[worst]:.4g} mm by their positions",
        f"{abs(steps[worst]):.4g} mm between {slices[worst].path.name} and {slices[worst + 1].path.name}, as "
        "SliceLocation says",
        "The positions are used. Check in another program which is right, or export the series again",
    )


def _about_rescaling(slices: Sequence[Slice]) -> Doubt | None:
    """Slices of one CT have one rescaling; one of another rescaling may be a slice that lost its own."""
    groups: dict[tuple[float, float], list[str]] = {}
    for item in slices:
        groups.setdefault((item.slope, item.intercept), []).append(item.path.name)
    if len(groups) == 1:
        return None
    (common, most), *others = sorted(groups.items(), key=lambda group: -len(group[1]))
    told = "; ".join(f"{_rescaling(*values)} in {_named(names)}" for values, names in others[:_NAMED])
    told += f"; and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return Doubt(
        "rescaling to HU",
        told,
        f"one rescaling in all slices, as {_rescaling(*common)} in {len(most)} of {len(slices)}",
        "Compare the brightness of these slices with that of their neighbors, or export the series again",
    )


def _rescaling(slope: float, intercept: float) -> str:
    return f"RescaleSlope {slope:g} and RescaleIntercept {intercept:g}"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(sorted(names)[:_NAMED]) + more
