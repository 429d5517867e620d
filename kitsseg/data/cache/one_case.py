"""Preprocess one case: from the files of a scan and its label map to the arrays and the record in a cache.

The labels shrink to the box of their foreground before the scan is read, and the arrays are written plane by plane, so
that little else than the scan as int16 is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kitsseg.data.cache.case_file import CaseFile, StoredCounts, write_case
from kitsseg.data.cache.case_sources import sources_of
from kitsseg.data.cache.compressed import write_compressed
from kitsseg.data.cache.hu_statistics import count_hu
from kitsseg.data.formats.doubts import doubts_about, doubts_about_slices
from kitsseg.data.formats.grid import kits_affine, on_the_same_voxels
from kitsseg.data.formats.label_doubts import doubts_about_labels, share_in_air, summary_of
from kitsseg.data.formats.nifti import is_phantom, read_image, read_labels
from kitsseg.data.formats.slices import read_masks, read_slices
from kitsseg.data.geometry.geometry import cut_range, plan_geometry, spec_of_slices
from kitsseg.data.geometry.label_box import foreground_box, foreground_planes, label_box
from kitsseg.data.geometry.planes import network_planes
from kitsseg.errors import InputError
from kitsseg.files.checksums import crc32_of_planes

if TYPE_CHECKING:
    from kitsseg.data.formats.grid import Volume
    from kitsseg.data.geometry.geometry import Geometry
    from kitsseg.data.layouts.kits import Case
    from kitsseg.recipe import PreprocessSpec

__all__ = ["check_pair", "preprocess_case"]


def preprocess_case(case: Case, folder: Path, spec: PreprocessSpec, compress: bool) -> None:
    """Preprocess one case and write its files.

    Args:
        case: Case with scan and label map, or with single slices.
        folder: an empty folder for the files.
        spec: PreprocessSpec.
        compress: whether the arrays are compressed with blosc2.

    Raises: InputError for a scan or a label map that cannot be read, or that do not belong together; OSError if the
        files cannot be written.
    """
    sources = sources_of(case)  # before they are read: a change in the meantime is noticed the next time
    # the labels shrink to the box of their foreground before the scan is read: both at once would need half more
    labels = read_masks(case.slices) if case.slices else read_labels(case.truth, case.label_values)
    summary = summary_of(labels)
    first, boxed, labels = *foreground_box(labels.array), replace(labels, array=np.empty(0, np.uint8))
    image = read_slices(case.slices) if case.slices else read_image(case.scan)
    check_pair(image, labels)
    spec = spec_of_slices(spec) if case.slices else spec
    # single slices need not show a whole patient
    doubts = doubts_about_slices(case.slices, image) if case.slices else doubts_about(image, spec.clip_hu)
    label_doubts = () if case.slices else doubts_about_labels(summary, share_in_air(summary, image))
    geometry = plan_geometry(image.array, image.grid.spacing_mm, spec)
    geometry = _cut_long_scan(geometry, first[0], first[0] + boxed.shape[0] - 1, spec)
    in_scan = image.array[tuple(slice(a, a + n) for a, n in zip(first, boxed.shape, strict=True))]
    low, high = spec.clip_hu or (-32768, 32767)
    hu = count_hu(np.clip(plane[mask > 0], low, high) for plane, mask in zip(in_scan, boxed, strict=True))

    with_foreground = foreground_planes(boxed, first, geometry)
    label_start, box = label_box(with_foreground)
    kidney_area, tumor_area = area = np.zeros((2, geometry.shape[0]), np.int64)
    for k, _, _, plane in with_foreground:
        area[:, k] = np.bincount(plane.ravel(), minlength=3)[1:]
    planes = network_planes(image.array, geometry, spec)
    dtype, shape = (
        (np.int16, geometry.shape) if spec.channels == 1 else (np.uint8, (*geometry.shape, spec.channels))
    )
    chunks = None
    if compress:
        chunks = (
            write_compressed(folder / "image.blosc2", dtype, planes),
            write_compressed(folder / "labels.blosc2", np.uint8, box),
        )
    else:
        _write_stream(folder / "labels.npy", np.uint8, box.shape, box)
        _write_stream(folder / "image.npy", dtype, shape, planes)
    case_file = CaseFile(
        sources=sources,
        label_values=case.label_values,
        geometry=geometry,
        label_start=tuple(label_start),
        label_shape=box.shape,
        labels_crc32=crc32_of_planes(box),
        chunks=chunks,
        kidney_area=kidney_area.tolist(),
        tumor_area=tumor_area.tolist(),
        hu_counts=StoredCounts(first=hu.first, counts=hu.counts.tolist()),
        phantom=is_phantom(image.grid.header),
        doubts=tuple(map(str, doubts)),
        label_doubts=tuple(map(str, label_doubts)),
        channels=spec.channels,
        slices=tuple(item.name for item in case.slices),
    )
    write_case(folder, case_file)


def check_pair(image: Volume, labels: Volume) -> None:
    """Refuse an image and a label map that do not lie on the same voxels; the axes of their files may differ.

    Args:
        image, labels: Volume of each.

    Raises: InputError naming both files.
    """
    shapes = image.grid.shape, labels.grid.shape
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{labels.path}: expected shape {shapes[0]} as {image.path.name} has, found {shapes[1]} (slices, rows, "
            "columns). Are these two files of the same scan?"
        )
    if not on_the_same_voxels(labels.grid, image.grid):
        expected, found = (kits_affine(volume.grid).round(4).tolist() for volume in (image, labels))
        raise InputError(
            f"{labels.path}: expected the affine of {image.path.name}, {expected}, found {found}. Resample the labels "
            "onto the scan."
        )


def _cut_long_scan(geometry: Geometry, first: int, last: int, spec: PreprocessSpec) -> Geometry:
    """Limit the slices of a long scan to a range that keeps all foreground; ``first`` and ``last`` of the scan."""
    n, grid = geometry.scan_shape[0], geometry.grid_shape[0]
    longest, margin = spec.longest_scan, spec.cut_margin
    if longest is None or n <= longest or last < first:
        return geometry
    if margin is None:
        raise ValueError("PreprocessSpec: longest_scan goes with cut_margin; found None.")
    zmin, zmax = cut_range(first, last, n, longest, margin)
    start, stop = math.floor(zmin * grid / n), math.ceil(zmax * grid / n)
    return replace(geometry, start=(start, *geometry.start[1:]), stop=(stop, *geometry.stop[1:]))


def _write_stream(
    path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...], planes: Iterable[npt.NDArray[Any]]
) -> None:
    """Write an ``.npy`` plane by plane. With a memory map every written page would count as memory in use.

    ``np.save`` is not used, because its error for a full disk does not say that the disk is full.
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for plane in planes:
            file.write(np.ascontiguousarray(plane, dtype).data)
