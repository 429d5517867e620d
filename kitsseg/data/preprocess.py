"""Cases to cache, one at a time and in a stream: the largest thing in memory is one scan as int16.

A real KiTS19 case of 834 x 512 x 512 voxels needs about 0.5 GiB. TensorFlow and Keras are never imported.
"""

import json
import math
from dataclasses import replace

import numpy as np

from kitsseg.atomic import atomic_folder, atomic_path
from kitsseg.data.cache import CACHE_VERSION, cache_folder, spec_record
from kitsseg.data.cases import find_cases
from kitsseg.data.geometry import plan_geometry
from kitsseg.data.nifti import is_phantom, read_image, read_labels
from kitsseg.data.planes import network_planes
from kitsseg.data.resample import nearest_index
from kitsseg.data.zcut import cut_range
from kitsseg.errors import InputError

__all__ = ["check_pair", "preprocess_cases"]


def preprocess_cases(data, cache, spec, progress=None):
    """Preprocess every case of a folder; cases that are done already are left alone.

    Args:
        data: folder in KiTS19 layout, labels included.
        cache: folder for the result; a sub-folder named by the digest of ``spec`` is made in it.
        spec: PreprocessSpec.
        progress: called as progress(description, done, total).

    Returns: (folder of the cache, names of the cases done now, names of those that were there).
    Raises: InputError for a bad case, or a cached case whose source files have changed since.
    """
    cases = find_cases(data)
    folder = cache_folder(cache, spec)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "spec.json").exists():
        with atomic_path(folder / "spec.json") as temporary:
            temporary.write_text(json.dumps(spec_record(spec), indent=1))
    done, kept = [], []
    for index, case in enumerate(cases):
        if progress:
            progress(f"preprocess {case.name}", index, len(cases))
        target = folder / case.name
        if target.exists():
            _check_sources(case, target)
            kept.append(case.name)
            continue
        with atomic_folder(target) as temporary:
            _write_case(case, temporary, spec)
        done.append(case.name)
    if progress:
        progress("preprocess", len(cases), len(cases))
    return folder, done, kept


def check_pair(image, labels):
    """Refuse an image and a label map that do not lie on the same voxels.

    Args:
        image, labels: Volume of each.

    Raises: InputError naming both files.
    """
    shapes = image.grid.header.get_data_shape(), labels.grid.header.get_data_shape()
    if shapes[0][:3] != shapes[1][:3]:
        raise InputError(
            f"{labels.path}: expected shape {shapes[0]} as {image.path.name} has, found {shapes[1]}. "
            "Are these two files of the same scan?"
        )
    affines = [volume.grid.header.get_best_affine() for volume in (image, labels)]
    if not np.allclose(*affines, atol=1e-3, rtol=0):
        raise InputError(
            f"{labels.path}: expected the affine of {image.path.name}, {affines[0].round(4).tolist()}, "
            f"found {affines[1].round(4).tolist()}. Resample the labels onto the scan."
        )


def _write_case(case, folder, spec):
    # the labels shrink to the box of their foreground before the scan is read: both at once would need half more
    labels = read_labels(case.labels)
    first, boxed, labels = *_foreground_box(labels.array), replace(labels, array=None)
    image = read_image(case.image)
    check_pair(image, labels)
    geometry = plan_geometry(image.array, image.grid.spacing_mm, spec)
    geometry = _cut_long_scan(geometry, first[0], first[0] + boxed.shape[0] - 1, spec)

    area = np.zeros((3, geometry.shape[0]), np.int64)
    label_start = _write_boxed_labels(folder / "labels.npy", _foreground_planes(boxed, first, geometry, area))

    planes = network_planes(image.array, geometry, spec)
    dtype, shape = (
        (np.int16, geometry.shape) if spec.channels == 1 else (np.uint8, (*geometry.shape, spec.channels))
    )
    _write_stream(folder / "image.npy", dtype, shape, planes)
    record = {
        "version": CACHE_VERSION,
        "sources": _sources(case),
        "geometry": geometry.as_dict(),
        "label_start": label_start,
        "kidney_area": area[1].tolist(),
        "tumor_area": area[2].tolist(),
        "phantom": is_phantom(image.grid.header),
        "channels": spec.channels,
    }
    (folder / "case.json").write_text(json.dumps(record))


def _foreground_box(labels):
    """Where the foreground starts, and a copy of the box that holds it."""
    slices = np.flatnonzero([plane.any() for plane in labels])
    if not len(slices):
        return (0, 0, 0), np.zeros((0, 0, 0), np.uint8)
    part = labels[slices[0] : slices[-1] + 1]
    rows, columns = np.flatnonzero(part.any(axis=(0, 2))), np.flatnonzero(part.any(axis=(0, 1)))
    box = part[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    return (int(slices[0]), int(rows[0]), int(columns[0])), box


def _cut_long_scan(geometry, first, last, spec):
    """Limit the slices of a long scan to a range that keeps all foreground; ``first`` and ``last`` of the scan."""
    n, grid = geometry.scan_shape[0], geometry.grid_shape[0]
    if spec.longest_scan is None or n <= spec.longest_scan or last < first:
        return geometry
    zmin, zmax = cut_range(first, last, n, spec.longest_scan, spec.cut_margin)
    start, stop = math.floor(zmin * grid / n), math.ceil(zmax * grid / n)
    return replace(geometry, start=(start, *geometry.start[1:]), stop=(stop, *geometry.stop[1:]))


def _foreground_planes(boxed, first, geometry, area):
    """Slices of the case with foreground: (k, row offset, column offset, boxed labels); counts areas on the way."""
    z, y, x = (
        nearest_index(n, m, a, b) - offset
        for n, m, a, b, offset in zip(
            geometry.scan_shape, geometry.grid_shape, geometry.start, geometry.stop, first, strict=True
        )
    )
    rows, columns = (np.flatnonzero((i >= 0) & (i < n)) for i, n in zip((y, x), boxed.shape[1:], strict=True))
    planes = []
    for k, source in enumerate(z):
        area[0, k] = len(y) * len(x)
        if not (0 <= source < boxed.shape[0] and len(rows) and len(columns)):
            continue
        plane = boxed[source][y[rows][:, None], x[columns]]
        area[:, k] = np.bincount(plane.ravel(), minlength=3)
        if area[1:, k].any():
            planes.append((k, int(rows[0]), int(columns[0]), plane))
    return planes


def _write_boxed_labels(path, planes):
    """Write the smallest box that holds all foreground; returns where it starts."""
    if not planes:
        _write_stream(path, np.uint8, (0, 0, 0), ())
        return [0, 0, 0]
    start = [planes[0][0], min(p[1] for p in planes), min(p[2] for p in planes)]
    stop = [
        planes[-1][0] + 1,
        max(p[1] + p[3].shape[0] for p in planes),
        max(p[2] + p[3].shape[1] for p in planes),
    ]
    box = np.zeros([b - a for a, b in zip(start, stop, strict=True)], np.uint8)
    for k, y, x, plane in planes:
        box[k - start[0], y - start[1] :, x - start[2] :][: plane.shape[0], : plane.shape[1]] = plane
    _write_stream(path, np.uint8, box.shape, box)
    return [int(a) for a in start]


def _write_stream(path, dtype, shape, planes):
    """Write an ``.npy`` plane by plane; a memory map would count every written page as memory in use.

    ``np.save`` would say of a full disk only how many items were written.
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for plane in planes:
            file.write(np.ascontiguousarray(plane, dtype).data)


def _sources(case):
    return {
        kind: {"bytes": path.stat().st_size, "modified_ns": path.stat().st_mtime_ns}
        for kind, path in (("image", case.image), ("labels", case.labels))
    }


def _check_sources(case, folder):
    try:
        record = json.loads((folder / "case.json").read_text())
        sources = record["sources"]
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise InputError(
            f"{folder}: damaged cache of a case ({error!r}). Remove this folder and run again."
        ) from error
    if sources != _sources(case):
        raise InputError(
            f"{folder}: made from other files than those in {case.image.parent} (size or time differ). "
            "Remove this folder to preprocess the case again, or use another cache folder."
        )
