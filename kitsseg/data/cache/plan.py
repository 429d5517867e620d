"""Estimate how much disk space a cache takes, from the headers of the scans, before anything is written."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kitsseg.data.formats.grid import check_pixels
from kitsseg.data.formats.nifti import read_grid
from kitsseg.data.formats.slices import slice_size
from kitsseg.data.geometry.geometry import plan_geometry, spec_of_slices
from kitsseg.errors import InputError

if TYPE_CHECKING:
    from kitsseg.data.layouts.kits import Case
    from kitsseg.recipe import PreprocessSpec

__all__ = ["CachePlan", "cached_bytes", "free_bytes", "planned_bytes"]

# Of all voxels of the 210 training cases 4.8 % lie in the box around kidney and tumor; in small scans more.
LABEL_SHARE = 0.08
# Bytes a voxel of HU, compressed: measured on a real CT of 3 mm, whose neighbors are less alike than those of 0.8 mm.
COMPRESSED_HU = 1.07
COMPRESSED_LABEL = 0.1


def cached_bytes(
    shape: Sequence[int], spacing_mm: Sequence[float], spec: PreprocessSpec, compress: bool = False
) -> int:
    """An upper estimate of the bytes that a case takes in the cache.

    The size of the image is exact if it is not compressed and nothing is cut away by ``spec``. Cutting is ignored,
    because it is known only after the scan was read; the size of the label box and the compression are estimated.

    Args:
        shape, spacing_mm: of the scan in KiTS axes.
        spec: PreprocessSpec.
        compress: as in ``preprocess_cases``.
    """
    blank = np.broadcast_to(np.int16(0), shape)  # only its shape is looked at
    voxels = math.prod(plan_geometry(blank, spacing_mm, replace(spec, crop_to_body=False)).grid_shape)
    hu, label = (COMPRESSED_HU, COMPRESSED_LABEL) if compress else (2, 1)
    return round(voxels * ((hu if spec.channels == 1 else spec.channels) + LABEL_SHARE * label))


@dataclass(frozen=True)
class CachePlan:
    """The cases that preprocessing will write, and the space that they need.

    Attributes:
        folder: of the cache.
        spec: PreprocessSpec of the cache.
        cases: all cases of the data.
        missing: the cases that are not in the cache yet.
        bytes: upper estimate of the bytes that the missing cases take.
        compress: whether the cases are compressed.
        empty: folders of cases that hold no files.
    """

    folder: Path
    spec: PreprocessSpec
    cases: list[Case]
    missing: list[Case]
    bytes: int
    compress: bool
    empty: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        free = free_bytes(self.folder)
        return f"{len(self.missing)} cases, about {_gb(self.bytes)} at most (free: {_gb(free)})"

    def check_space(self) -> None:
        """Check that the missing cases fit on the disk.

        Raises: InputError that names the space that is needed and the space that is free.
        """
        free = free_bytes(self.folder)
        if self.bytes > free:
            smaller = "" if self.compress else ", or use --compress"
            raise InputError(
                f"{self.folder}: {len(self.missing)} cases need about {_gb(self.bytes)} of disk, found {_gb(free)} "
                f"free. Free some space, choose another folder{smaller}."
            )


def planned_bytes(cases: Iterable[Case], spec: PreprocessSpec, compress: bool = False) -> int:
    """An upper estimate of the bytes that some cases take in the cache, from the headers of their scans.

    Args:
        cases: Case of each. A scan whose header cannot be read counts as 0, since reading the whole scan will raise
            the error; a DICOM series counts as 0 as well.
        spec: PreprocessSpec.
        compress: as in ``preprocess_cases``.

    Raises: InputError for single slices that are larger than any patient, or whose header cannot be read.
    """
    sizes = []
    for case in cases:
        if case.slices:
            rows, columns = slice_size(case.slices[0].image)
            shape = (len(case.slices), rows, columns)
            pixel_mm = case.slices[0].spacing_mm or (1.0, 1.0)
            check_pixels(
                pixel_mm, case.slices[0].image, (rows, columns)
            )  # else a size without end is planned
            spacing_mm = (1.0, *pixel_mm)
            sizes.append(cached_bytes(shape, spacing_mm, spec_of_slices(spec), compress))
            continue
        try:
            grid = read_grid(case.scan)
        except (InputError, OSError):
            continue
        sizes.append(cached_bytes(grid.shape, grid.spacing_mm, spec, compress))
    return sum(sizes)


def free_bytes(folder: str | os.PathLike[str]) -> int:
    """Free bytes of the disk that holds a folder, which need not exist yet."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
