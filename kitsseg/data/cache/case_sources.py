"""The files that a cached case was made from, and what was said of them: recorded once, compared each time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kitsseg.data.cache.sources import Source, source_of, unchanged

if TYPE_CHECKING:
    from kitsseg.data.formats.slices import SliceImage
    from kitsseg.data.layouts.kits import Case

__all__ = ["CaseSources", "SliceSource", "sources_of", "sources_unchanged"]


@dataclass(frozen=True, kw_only=True)
class SliceSource:
    """The files that a slice was made from if it is a single image, and what ``slices.csv`` says of this image."""

    image: Source
    labels: Source | None
    hu_window: tuple[float, float] | None
    mask_values: tuple[int, ...]
    spacing_mm: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class CaseSources:
    """The files that a case was made from: a scan and its label map, or single images."""

    image: Source | None = None
    labels: Source | None = None
    slices: tuple[SliceSource, ...] | None = None


def sources_of(case: Case) -> CaseSources:
    """The files of a case as they are now.

    Raises: OSError if one cannot be read.
    """
    if not case.slices:
        return CaseSources(image=source_of(case.scan), labels=source_of(case.truth))
    return CaseSources(
        slices=tuple(
            SliceSource(
                image=source_of(item.image),
                labels=None if item.labels is None else source_of(item.labels),
                hu_window=item.hu_window,
                mask_values=item.mask_values,
                spacing_mm=item.spacing_mm,
            )
            for item in case.slices
        )
    )


def sources_unchanged(case: Case, made_from: CaseSources) -> bool:
    """Whether a case's files are still the files that the cached case was made from."""
    if case.slices:
        before = made_from.slices or ()
        return len(before) == len(case.slices) and all(map(_unchanged_slice, case.slices, before))
    if made_from.image is None or made_from.labels is None:
        return False
    return unchanged(made_from.image, case.scan) and unchanged(made_from.labels, case.truth)


def _unchanged_slice(item: SliceImage, before: SliceSource) -> bool:
    if (item.hu_window, item.mask_values, item.spacing_mm) != (
        before.hu_window,
        before.mask_values,
        before.spacing_mm,
    ):
        return False
    if item.labels is None or before.labels is None:
        same_labels = item.labels is None and before.labels is None
    else:
        same_labels = unchanged(before.labels, item.labels)
    return same_labels and unchanged(before.image, item.image)
