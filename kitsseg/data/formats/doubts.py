"""Scans that can be read but are doubtful: their numbers are hardly Hounsfield units, some of their slices are no CT,
or their extent is no patient's.

``doubts_about`` looks at the voxels of a scan, and adds what the headers of a DICOM series leave doubtful
(``kitsseg.data.formats.dicom_doubts``); ``doubts_about_slices`` looks at single slices. verify lists the findings,
preprocess and predict warn. In HU air is -1000, fat -100, water 0, soft tissue 20 to 80, and little bone lies above
800: each of these leaves a mark in the histogram of a scan. Most ways to lose HU move or remove a mark. A CT of the
trunk without any of these marks is not in HU; a CT with all of them may still not be in HU.

A slice of a CT holds noise. No slice within a patient has one value only, no slice is an exact copy of another one, and
from one slice to the next air, the middle of all values and bone never move together by hundreds of HU.
"""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

from kitsseg.data.formats.grid import Doubt, Grid, Volume
from kitsseg.data.formats.slices import SliceImage

__all__ = ["doubts_about", "doubts_about_slices"]

_SAMPLED = (
    1 << 23
)  # voxels: whole slices, evenly over the scan; as good as all of them, in a tenth of a second
_LOWEST = -32768  # of int16
SPREAD_HU = 60  # between the percentiles 0.5 and 99.5; fat and soft tissue alone are more than 100 apart
NEGATIVE_SHARE = (
    0.001  # of voxels below -50 HU: air or fat is in every CT of the trunk, 13 % at least in a phantom
)
DENSE_SHARE = 0.05  # of voxels above 800 HU: bone and metal are a hundredth of a scan
SOFT_SHARE = 0.03  # of voxels between -250 and 400 HU: a thin patient in a wide picture takes a tenth
# without air, of voxels of -150 to 250 HU within 5 HU of each other: noise and tissues spread wider, 10 % is usual
NARROW_SHARE = 0.2
DEEP_SHARE = 0.05  # of voxels below -1100 HU, where only the one value of padding is
SHALLOW_SHARE = 0.15  # of voxels of -780 to -350 HU where none is below -800: there is no lung without air
# Of voxels of -350 to 1100 HU (body), those of -150 to 200 HU (fat and soft tissue) are 76 % at least in a whole scan
# and 68 % in a crop of the lung. A window that is stretched spreads them: 36 to 78 %, noise of 400 HU has 42 %.
BODY_SHARE = 0.1  # of voxels: with less body, as in a crop of the lung, its shares say nothing
TISSUE_SHARE = 0.45  # less is no body in HU, unless less than MUCH_BODY is there
MUCH_BODY = 0.2
SPREAD_TISSUE_SHARE = 0.62  # less is no body in HU, unless a part of it is as even as EVEN_SHARE
EVEN_SHARE = 0.25  # of the body within 100 HU of each other: 31 % at least, and 27 % under noise of 60 HU
WINDOWED_TISSUE_SHARE = 0.75  # less is no body in HU where values are also cut off far from tissue
CUT_OFF_SHARE = 0.1  # of voxels with exactly the lowest value, if no others lie near it: air has noise
TOP_SHARE = 0.001  # of voxels with exactly the highest value of 700 to 2000 HU
# Air that lies within 40 HU of each other, of all voxels within 150 HU. A lung has 65 %, noise of 60 HU leaves 57 %.
EVEN_AIR_SHARE = 0.75
AIR_SHARE = 0.1  # of voxels, for air to be that around a patient
BETTER = 1.25  # times as much fat and soft tissue once air is moved to -1000
ROUGH = 0.8  # of 1 for noise alone; a CT with air has 0.01 to 0.48
ROUGH_SPREAD_HU = 600.0  # noise in one kind of tissue is as rough, but does not spread so far
TISSUE_HU = -300  # a slice with hardly any voxel above this shows no body
TISSUE_OF_SLICE = 0.01
MUCH_TISSUE_OF_SLICE = (
    0.2  # in both slices beside one without any: no patient ends and begins again like this
)
LEAP_HU = 250.0  # between neighboring slices of whole scans 5 HU are usual, of small crops 145
_PLANE_SAMPLE = 1 << 14  # voxels of a slice
NAMED_SLICES = 4
KIDNEY_MM = 36.0  # a third of a kidney's length


def doubts_about(volume: Volume, clip_hu: tuple[float, float] | None = None) -> list[Doubt]:
    """What is doubtful about a CT: at most one Doubt about its content, one about its extent, and those of its headers.

    The content is the HU of the scan as a whole. Only if they raise no doubt, each slice is looked at.

    Args:
        volume: Volume of (slices, rows, columns) int16, as ``read_image`` returns it.
        clip_hu: ``PreprocessSpec.clip_hu``. If the user states that HU are clipped to this window, clipping to it
            causes no doubt.
    """
    content = _about_hu(volume.array, clip_hu) or _about_planes(volume.array)
    doubts = (content, _about_extent(volume.grid), *volume.doubts)
    return [doubt for doubt in doubts if doubt]


def doubts_about_slices(items: Sequence[SliceImage], volume: Volume) -> list[Doubt]:
    """What is doubtful about single slices: an image of one value, which is no picture of anything.

    The user states the HU of single slices, and they need not show a whole patient, so nothing else is doubted.

    Args:
        items: the images of one patient.
        volume: the stack of them, as ``read_slices`` returns it.
    """
    flat = [item.image.name for item, plane in zip(items, volume.array, strict=True) if not np.ptp(plane)]
    if not flat:
        return []
    them = "it" if len(flat) == 1 else "them"
    more = f" and {len(flat) - 1} more" if len(flat) > 1 else ""
    return [
        Doubt(
            "pixels of the images",
            f"the same value in every pixel of {flat[0]}{more}",
            "slices of a CT",
            f"Export {them} again, or remove {them} from images, masks and table, unless air alone is meant",
        )
    ]


def _about_hu(array: npt.NDArray[np.int16], clip_hu: tuple[float, float] | None) -> Doubt | None:
    histogram = _histogram(array)
    there = np.flatnonzero(histogram) + _LOWEST
    reason = _not_hu(histogram) or _stretched(histogram) or _noise(array, histogram)
    if reason is None or (clip_hu and clip_hu[0] == there[0] and there[-1] <= clip_hu[1]):
        return None
    what, advice = reason
    found = f"values from {there[0]} to {there[-1]} {what}"
    return Doubt(
        "HU of the image", found, "a CT in HU, with air near -1000, fat near -100 and water at 0", advice
    )


def _sampled(array: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """Whole slices, evenly over the scan."""
    return array[:: max(1, array.size // _SAMPLED)]


def _histogram(array: npt.NDArray[np.int16]) -> npt.NDArray[np.int64]:
    """Voxels of each value from -32768 on."""
    counts = np.zeros(1 << 16, np.int64)
    for plane in _sampled(array):
        low = int(plane.min())
        found = np.bincount(plane.ravel().astype(np.intp) - low)
        counts[low - _LOWEST :][: len(found)] += found
    return counts


def _not_hu(histogram: npt.NDArray[np.int64]) -> tuple[str, str] | None:
    """(what speaks against HU, what to do), or None."""
    total = histogram.sum()

    def share(low: int, high: int) -> float:
        return float(histogram[low - _LOWEST : high - _LOWEST].sum() / total)

    there = np.flatnonzero(histogram) + _LOWEST
    low, high = np.searchsorted(histogram.cumsum() / total, (0.005, 0.995)) + _LOWEST
    negative, dense = share(_LOWEST, -50), share(800, -_LOWEST)
    again = "Export the CT again as HU, without scaling or clipping"
    if high - low < SPREAD_HU:
        return "that hardly differ, as after scaling to 0..1, to z-scores or to HU/1000", again
    if dense > DENSE_SHARE:
        if negative < NEGATIVE_SHARE and there[-1] <= 4500:
            return (
                f"of which {dense:.0%} are above 800 and none is negative, as where 1024 was added",
                "Subtract 1024 (the rescale intercept that was lost), or export the CT again as HU",
            )
        return f"of which {dense:.0%} are above 800, which only bone and metal are", again
    if negative < NEGATIVE_SHARE:
        how = "8-bit gray values" if there[-1] <= 255 else "negative HU clipped at 0"
        return f"without air and fat, as of {how}", again
    if there[0] == -128 and there[-1] <= 127:  # air is piled up at the lowest gray value
        return "that fit into 8 bits, as of gray values", again
    if share(-250, 400) < SOFT_SHARE:
        return (
            f"of which {share(-250, 400):.1%} are soft tissue, as where 1024 was subtracted twice",
            "Add 1024 if that was subtracted twice, or export the CT again as HU",
        )
    deep, shallow = histogram[: -1100 - _LOWEST], histogram[-780 - _LOWEST : -350 - _LOWEST]
    if (deep.sum() - deep.max()) / total > DEEP_SHARE:  # but for the commonest, which is that of padding
        return f"of which {share(_LOWEST, -1100):.0%} lie below air, as after a multiplication of HU", again
    if (
        share(_LOWEST, -800) < NEGATIVE_SHARE
        and (shallow.sum() - shallow.max()) / total > SHALLOW_SHARE  # but for where HU are clipped
    ):
        return "whose air lies above -800, as after a division of HU", again
    soft = histogram[-150 - _LOWEST : 250 - _LOWEST]
    if (
        share(_LOWEST, -500) < NEGATIVE_SHARE
        and np.convolve(soft, np.ones(5), "valid").max() > NARROW_SHARE * soft.sum()
    ):
        return "of which one kind of tissue is too even, as after a division of HU", again
    return None


def _stretched(histogram: npt.NDArray[np.int64]) -> tuple[str, str] | None:
    """What speaks against HU in the shape of the histogram: (what, what to do), or None.

    A linear map of a window keeps air low and bone high, but body no longer lies where it belongs.
    """
    total, there = int(histogram.sum()), np.flatnonzero(histogram) + _LOWEST
    lowest, highest = int(there[0]), int(there[-1])
    smooth = histogram.copy()
    smooth[[lowest - _LOWEST, highest - _LOWEST]] = 0  # where values are cut off or padded

    def count(low: int, high: int) -> int:
        return int(smooth[low - _LOWEST : high - _LOWEST].sum())

    bottom, top = (int(histogram[value - _LOWEST]) for value in (lowest, highest))
    body = count(-350, 1100)
    if body >= BODY_SHARE * total:
        tissue = count(-150, 200) / body
        even = np.convolve(smooth[-350 - _LOWEST : 1100 - _LOWEST], np.ones(100), "valid").max() / body
        cut_below = lowest < -700 and bottom > max(CUT_OFF_SHARE * total, 20 * count(lowest + 1, lowest + 61))
        # more than all that lie within 100 HU below
        cut_above = 700 <= highest <= 2000 and top > max(TOP_SHARE * total, count(highest - 100, highest))
        if (
            (tissue < TISSUE_SHARE and body >= MUCH_BODY * total)
            or (tissue < SPREAD_TISSUE_SHARE and even < EVEN_SHARE)
            or (tissue < WINDOWED_TISSUE_SHARE and (cut_below or cut_above))
        ):
            return (
                f"of which {tissue:.0%} of the body (-350 to 1100) are fat and soft tissue (-150 to 200), as where a "
                "window of HU was stretched or values were added",
                "Export the CT again as HU, without scaling or clipping",
            )
    return _moved_air(smooth, total) if body >= MUCH_BODY * total else None


def _moved_air(smooth: npt.NDArray[np.int64], total: int) -> tuple[str, str] | None:
    """Even air, as around a patient, that is not at -1000, in a scan that has more tissue once air is moved there."""
    window = np.convolve(smooth[-1200 - _LOWEST : -300 - _LOWEST], np.ones(81), "valid")
    low = int(window.argmax()) - 1200
    near = smooth[low - _LOWEST : low + 81 - _LOWEST]
    air = round(float(np.average(np.arange(low, low + 81), weights=near))) if near.any() else 0
    around = smooth[air - 150 - _LOWEST : air + 151 - _LOWEST].sum()
    deep = smooth[: -940 - _LOWEST].sum()
    if not (
        -930 <= air <= -400
        and window.max() > AIR_SHARE * total
        and window.max() > EVEN_AIR_SHARE * around
        and deep < 0.01 * total
    ):
        return None

    def tissue(moved: int) -> int:
        fat, soft = (
            smooth[a + moved - _LOWEST : b + moved - _LOWEST].sum() for a, b in ((-130, -60), (0, 90))
        )
        return int(fat + soft)

    added = air + 1000
    if tissue(added) < BETTER * tissue(0):
        return None
    return (
        f"whose air lies near {air}, with fat and soft tissue moved likewise, as where about {added} was added",
        "Export the CT again as HU, with its own rescale intercept",
    )


def _noise(array: npt.NDArray[np.int16], histogram: npt.NDArray[np.int64]) -> tuple[str, str] | None:
    """Neighboring voxels that differ as much as any two voxels: (what speaks against HU, what to do), or None."""
    values, total = np.arange(len(histogram)) + float(_LOWEST), histogram.sum()
    shares = histogram.cumsum() / total
    spread = np.searchsorted(shares, 0.995) - np.searchsorted(shares, 0.005)
    if spread < ROUGH_SPREAD_HU:
        return None
    mean = (histogram * values).sum() / total
    variance = (histogram * (values - mean) ** 2).sum() / total
    squares = count = 0.0
    for plane in _sampled(array):
        steps = np.diff(plane.astype(np.float32), axis=1)
        squares += float(np.square(steps, out=steps).sum(dtype=np.float64))
        count += steps.size
    if count == 0 or squares / count < ROUGH * 2 * variance:
        return None
    return (
        "without any order in space, as of noise or of voxels read in a wrong order",
        "Open the scan in a viewer, and export it again",
    )


def _about_planes(array: npt.NDArray[np.int16]) -> Doubt | None:
    """Slices within a patient that are no CT: of one value, copied from another slice, or moved by hundreds of HU."""
    constant: list[int] = []
    repeated: list[int] = []
    airy: list[int] = []
    bodies: list[
        int
    ] = []  # numbers of the slices that show body, their share of body, and percentiles of their HU
    shares: list[float] = []
    levels: list[npt.NDArray[np.float64]] = []
    first_of: dict[int, int] = {}
    for number, plane in enumerate(array):
        if plane.min() == plane.max():
            constant.append(number)
            continue
        step = max(1, int((plane.size / _PLANE_SAMPLE) ** 0.5))
        sample = plane[::step, ::step]
        share = np.count_nonzero(sample > TISSUE_HU) / sample.size
        if share < TISSUE_OF_SLICE:
            airy.append(number)
            continue
        other = first_of.setdefault(crc32(sample.tobytes()), number)
        if other != number and np.array_equal(array[other], plane):
            repeated.append(number)
        bodies.append(number)
        shares.append(share)
        levels.append(np.percentile(sample, (1, 50, 99)))
    kinds = (
        (_between(constant, bodies, shares, 0.0), "one value in the whole slice"),
        (_between(airy, bodies, shares, MUCH_TISSUE_OF_SLICE), "nothing but air"),
        (repeated, "exactly the voxels of another slice"),
        (_moved(bodies, levels), f"all values {LEAP_HU:g} HU or more away from the slices beside"),
    )
    parts = [f"{_numbered(numbers)} with {what}" for numbers, what in kinds if numbers]
    if not parts:
        return None
    return Doubt(
        "slices of the image",
        f"{', and '.join(parts)} (of {len(array)}, counted from the head)",
        "slices of a CT, each with its own noise and all with the same HU",
        "Export the series again: there the labels of kidney and tumor would be wrong",
    )


def _between(
    numbers: Sequence[int], bodies: Sequence[int], shares: Sequence[float], least: float
) -> list[int]:
    """Those of ``numbers`` that have slices with at least this share of body next to them on both sides.

    Slices at the ends of a scan are left out: there, padding and air are usual.
    """
    right = np.searchsorted(bodies, numbers)
    return [
        number
        for number, i in zip(numbers, right, strict=True)
        if 0 < i < len(bodies) and min(shares[i - 1], shares[i]) >= least
    ]


def _moved(numbers: Sequence[int], levels: Sequence[npt.NDArray[np.float64]]) -> list[int]:
    """The slices that lie hundreds of HU from most others, by leaps of air, middle and bone between neighbors."""
    if len(levels) < 2:
        return []
    steps = np.diff(np.array(levels), axis=0)
    leaps = np.where((steps >= LEAP_HU).all(axis=1) | (steps <= -LEAP_HU).all(axis=1), steps[:, 1], 0.0)
    if not leaps.any():
        return []
    moved = np.concatenate(([0.0], leaps.cumsum()))
    usual = np.median(moved)
    return [number for number, by in zip(numbers, moved, strict=True) if abs(by - usual) >= LEAP_HU / 2]


def _numbered(numbers: Sequence[int]) -> str:
    """ "slice 3" or "slices 3, 4, 5, 6 and 12 more", counted from 1."""
    named = ", ".join(str(number + 1) for number in numbers[:NAMED_SLICES])
    more = f" and {len(numbers) - NAMED_SLICES} more" if len(numbers) > NAMED_SLICES else ""
    return f"slice{'s' if len(numbers) > 1 else ''} {named}{more}"


def _about_extent(grid: Grid) -> Doubt | None:
    extent = [n * mm for n, mm in zip(grid.shape, grid.spacing_mm, strict=True)]
    if max(extent) >= KIDNEY_MM:
        return None
    return Doubt(
        "extent of the image",
        f"a scan of {' x '.join(f'{mm:.3g}' for mm in extent)} mm",
        f"a scan of a patient, {KIDNEY_MM:g} mm or more in one direction",
        "Check the voxel sizes in the header: they may be in centimeters",
    )
