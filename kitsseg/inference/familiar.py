"""Find scans that differ from the cases of KiTS19, for which the recipes were made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kitsseg.data.formats.grid import Grid
    from kitsseg.recipe import PreprocessSpec

__all__ = ["unlike_kits19"]

# of the 210 training cases, in mm: data_manifest.csv
SLICES_APART, PIXELS_APART = (0.5, 5.0), (0.4375, 1.041)
COVERED, ACROSS = (145.0, 755.0), (224.0, 533.0)
SLACK = 1.2  # beyond these ranges, before anything is said


def unlike_kits19(grid: Grid, specs: Sequence[PreprocessSpec]) -> tuple[str, ...]:
    """A sentence about each way in which a scan's grid differs from those of all cases of KiTS19.

    Args:
        grid: of the scan.
        specs: PreprocessSpec of each network that segments the scan. If all of them resample an axis, slices or pixels
            that lie closer together than in KiTS19 do not count as a difference.
    """
    slices, rows, columns = grid.spacing_mm
    extent = [count * mm for count, mm in zip(grid.shape, grid.spacing_mm, strict=True)]
    said = []
    for axis, what, value, known in (
        (0, "slices", slices, SLICES_APART),
        (1, "pixels", max(rows, columns), PIXELS_APART),
    ):
        as_it_is = any(spec.spacing_mm[axis] is None for spec in specs)
        if value > known[1] * SLACK or (as_it_is and value < known[0] / SLACK):
            said.append(
                f"its {what} are {value:.3g} mm apart, those of KiTS19 {known[0]:.2g} to {known[1]:.2g} mm"
            )
    for what, sizes, known in (
        ("slices cover", extent[:1], COVERED),
        ("pictures are", extent[1:], ACROSS),
    ):
        if min(sizes) < known[0] / SLACK or max(sizes) > known[1] * SLACK:
            size = " x ".join(f"{mm:.0f}" for mm in sizes)
            said.append(f"its {what} {size} mm, those of KiTS19 {known[0]:.0f} to {known[1]:.0f} mm")
    return tuple(said)
