"""Checks of a folder of single slices before it is cached, for faults that show only when images are compared."""

from collections.abc import Sequence

import numpy as np

from kitsseg.data.formats.slices import SliceImage, mirrored_masks, read_mask, read_slice
from kitsseg.data.layouts.kits import Case
from kitsseg.errors import InputError
from kitsseg.files.checksums import sha256_of
from kitsseg.recipe import PreprocessSpec

__all__ = ["check_hu_of_slices", "check_slices"]

LOOKED_AT = 40  # images whose outlines are compared with their edges


def check_slices(cases: Sequence[Case], spec: PreprocessSpec) -> None:
    """Refuse single slices that would spoil a split or a training; cases that are scans are not checked.

    Args:
        cases: those that are to be cached. spec: PreprocessSpec of the recipe.

    Raises: InputError if the recipe needs the pixel size or the HU of an image and the table does not state them, if
        one file is listed for two patients, or if the masks are mirrored against their images.
    """
    slices = [item for case in cases for item in case.slices]
    for item in slices:
        check_hu_of_slices(item, spec)
        if item.spacing_mm is None and any(spec.spacing_mm[1:]):
            raise InputError(
                f"{item.image}: expected its pixel spacing, since the recipe resamples to {spec.spacing_mm[1]:g} x "
                f"{spec.spacing_mm[2]:g} mm; found none. Add spacing_mm_rows and spacing_mm_columns to slices.csv, or "
                "use a recipe that does not, such as wp_unet."
            )
    _check_copies(slices)
    _check_mirrored(slices)


def check_hu_of_slices(item: SliceImage, spec: PreprocessSpec) -> None:
    """Refuse an image that was clipped to less than the recipe sees, unless the specification says so.

    Raises: InputError.
    """
    if item.hu_window is None:
        return  # the reader says what is missing
    low, high = item.hu_window
    seen = spec.seen_hu
    if seen is None or seen[0] < low or seen[1] > high:
        sees = "all HU" if seen is None else f"HU {seen[0]:g} to {seen[1]:g}"
        raise InputError(
            f"{item.image}: its HU were clipped to {low:g} to {high:g}, and the recipe sees {sees}. A network that is "
            "trained on such images must always be given images that are clipped in the same way. Give "
            f"--set preprocess.clip_hu={low:g},{high:g}, here and in kitsseg train."
        )


def _check_copies(slices: Sequence[SliceImage]) -> None:
    """Refuse one file under two names: for two patients it would be a leak, for one patient it would count twice."""
    sizes: dict[int, list[SliceImage]] = {}
    for item in slices:
        sizes.setdefault(item.image.stat().st_size, []).append(item)
    for alike in sizes.values():
        found: dict[str, SliceImage] = {}
        for item in alike if len(alike) > 1 else ():
            other = found.setdefault(sha256_of(item.image), item)
            if other is not item and np.ptp(read_slice(item)):  # several may show nothing but air
                raise InputError(
                    f"{item.image}: the same file as {other.image.name}, slices of patients {item.patient} and "
                    f"{other.patient}. Remove one, or name the patient that it shows."
                )


def _check_mirrored(slices: Sequence[SliceImage]) -> None:
    looked_at = slices[:: max(1, len(slices) // LOOKED_AT)]
    found = mirrored_masks([read_slice(item) for item in looked_at], [read_mask(item) for item in looked_at])
    if found:
        raise InputError(
            f"{looked_at[0].image.parent}: the masks seem to be mirrored ({found}) against the images: in most of "
            f"{len(looked_at)} images their outlines lie on edges only after mirroring. Mirror the masks back."
        )
