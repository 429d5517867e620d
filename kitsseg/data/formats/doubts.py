"""Scans that can be read but are doubtful: their numbers are hardly Hounsfield units, or their extent is no patient's.

``doubts_about`` looks at the voxels of a scan, and adds what the headers of a DICOM series leave doubtful
(``kitsseg.data.formats.dicom_doubts``); ``doubts_about_slices`` looks at single slices. verify lists the findings,
preprocess and predict warn. In HU air is -1000, fat -100, water 0, soft tissue 20 to 80, and little bone lies above
800: each of these leaves a mark in the histogram of a scan. Most ways to lose HU move or remove a mark. A CT of the
trunk without any of these marks is not in HU; a CT with all of them may still not be in HU.
"""

from collections.abc import Sequence

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
KIDNEY_MM = 36.0  # a third of a kidney's length


def doubts_about(volume: Volume, clip_hu: tuple[float, float] | None = None) -> list[Doubt]:
    """What is doubtful about a CT: at most one Doubt about its HU and its extent, and those of its headers.

    Args:
        volume: Volume of (slices, rows, columns) int16, as ``read_image`` returns it.
        clip_hu: ``PreprocessSpec.clip_hu``. If the user states that HU are clipped to this window, clipping to it
            causes no doubt.
    """
    doubts = (_about_hu(volume.array, clip_hu), _about_extent(volume.grid), *volume.doubts)
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
    reason = _not_hu(histogram)
    if reason is None or (clip_hu and clip_hu[0] == there[0] and there[-1] <= clip_hu[1]):
        return None
    what, advice = reason
    found = f"values from {there[0]} to {there[-1]} {what}"
    return Doubt(
        "HU of the image", found, "a CT in HU, with air near -1000, fat near -100 and water at 0", advice
    )


def _histogram(array: npt.NDArray[np.int16]) -> npt.NDArray[np.int64]:
    """Voxels of each value from -32768 on."""
    counts = np.zeros(1 << 16, np.int64)
    for plane in array[:: max(1, array.size // _SAMPLED)]:
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
