"""Cases to cache, one at a time and in a stream: the largest thing in memory is one scan as int16.

A real KiTS19 case of 834 x 512 x 512 voxels needs about 0.5 GiB. TensorFlow and Keras are never imported.
"""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from kitsseg.data.cache import CACHE_VERSION, cache_folder, spec_record
from kitsseg.data.cases import find_cases
from kitsseg.data.geometry import plan_geometry
from kitsseg.data.nifti import atomic_path, is_phantom, read_image, read_labels
from kitsseg.data.resample import resample_slices
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
        with _atomic_folder(target) as temporary:
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
    image, labels = read_image(case.image), read_labels(case.labels)
    check_pair(image, labels)
    geometry = plan_geometry(image.array, image.grid.spacing_mm, spec)
    box = geometry.grid_shape, geometry.start, geometry.stop

    area = np.zeros((3, geometry.shape[0]), np.int64)
    planes = list(_foreground_planes(resample_slices(labels.array, *box, linear=False), area))
    del labels
    label_start = _write_boxed_labels(folder / "labels.npy", planes)

    slices = resample_slices(image.array, *box, linear=True)
    _write_stream(folder / "image.npy", np.int16, geometry.shape, (np.rint(plane) for plane in slices))
    record = {
        "version": CACHE_VERSION,
        "sources": _sources(case),
        "geometry": geometry.as_dict(),
        "label_start": label_start,
        "kidney_area": area[1].tolist(),
        "tumor_area": area[2].tolist(),
        "phantom": is_phantom(image.grid.header),
    }
    (folder / "case.json").write_text(json.dumps(record))


def _foreground_planes(planes, area):
    """Yield (k, row offset, column offset, boxed labels) of the slices with foreground; count areas on the way."""
    for k, plane in enumerate(planes):
        area[:, k] = np.bincount(plane.ravel(), minlength=3)
        if area[1:, k].any():
            rows, columns = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
            yield k, rows[0], columns[0], plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()


def _write_boxed_labels(path, planes):
    """Write the smallest box that holds all foreground; returns where it starts."""
    if not planes:
        np.save(path, np.zeros((0, 0, 0), np.uint8))
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
    np.save(path, box)
    return [int(a) for a in start]


def _write_stream(path, dtype, shape, planes):
    """Write an ``.npy`` plane by plane; a memory map would count every written page as memory in use."""
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


@contextlib.contextmanager
def _atomic_folder(path):
    """A temporary folder beside ``path`` that becomes ``path`` if the block ends well, and vanishes if not."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        temporary.rename(path)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
