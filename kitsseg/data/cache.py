"""Preprocessed cases on disk: arrays that are memory-mapped, and what is needed to sample and to undo.

    CACHE/preprocess-<digest>/spec.json                the specification, whose digest names the folder
    CACHE/preprocess-<digest>/case_00000/image.npy     int16 HU, (slices, rows, columns), C order; or, for
                                                       recipes of several channels, uint8 with a last axis
                                         labels.npy    uint8, only the box that holds kidney or tumor
                                         case.json     geometry, label box, foreground area of each slice, sources

HU stay as they are: clipping and scaling cost microseconds a crop. A case folder appears whole or not at all.
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from kitsseg.data.geometry import Geometry
from kitsseg.errors import InputError

__all__ = ["CACHE_VERSION", "CachedCase", "cache_folder", "open_cache"]

CACHE_VERSION = 1


@dataclass(frozen=True)
class CachedCase:
    """One preprocessed case.

    Attributes:
        kidney_area, tumor_area: pixels of each label in each slice.
        phantom: whether the scan was synthesized.
    """

    name: str
    folder: Path
    geometry: Geometry
    label_start: tuple[int, int, int]
    kidney_area: np.ndarray
    tumor_area: np.ndarray
    phantom: bool
    channels: int

    @cached_property
    def image(self):
        """int16 HU (slices, rows, columns), or uint8 with a last axis of channels; memory-mapped."""
        if self.channels == 1:
            return _load(self.folder / "image.npy", np.int16, self.geometry.shape)
        return _load(self.folder / "image.npy", np.uint8, (*self.geometry.shape, self.channels))

    @cached_property
    def boxed_labels(self):
        """uint8 labels of the box that starts at ``label_start``, memory-mapped; all else is background."""
        return _load(self.folder / "labels.npy", np.uint8, None)

    def labels(self, k, rows=slice(None), columns=slice(None)):
        """Labels of slice ``k``, or of a window of it (slices with non-negative bounds)."""
        _, height, width = self.geometry.shape
        y0, y1, _ = rows.indices(height)
        x0, x1, _ = columns.indices(width)
        window = np.zeros((max(y1 - y0, 0), max(x1 - x0, 0)), np.uint8)
        z, top, left = self.label_start
        box = self.boxed_labels
        if z <= k < z + box.shape[0]:
            a, b = max(y0, top), min(y1, top + box.shape[1])
            c, d = max(x0, left), min(x1, left + box.shape[2])
            if a < b and c < d:
                window[a - y0 : b - y0, c - x0 : d - x0] = box[k - z, a - top : b - top, c - left : d - left]
        return window


def cache_folder(cache, spec):
    """The folder inside ``cache`` that belongs to a specification."""
    return Path(cache) / f"preprocess-{spec.digest()}"


def open_cache(cache, spec):
    """Open the preprocessed cases of a specification.

    Args:
        cache: the folder given to ``kitsseg preprocess``, or the ``preprocess-...`` folder inside it.
        spec: PreprocessSpec of the recipe that will use them.

    Returns: dict from case name to CachedCase, sorted by name.
    Raises: InputError if there is no such cache, if it was made by another specification, or is incomplete.
    """
    cache = Path(cache)
    folder = cache if (cache / "spec.json").is_file() else cache_folder(cache, spec)
    if not (folder / "spec.json").is_file():
        others = (
            sorted(path.parent.name for path in cache.glob("preprocess-*/spec.json"))
            if cache.is_dir()
            else []
        )
        found = f"caches of other recipes: {', '.join(others)}" if others else "none"
        raise InputError(
            f"{cache}: expected the cache {folder.name}, found {found}. Run kitsseg preprocess first."
        )
    try:
        made_by = json.loads((folder / "spec.json").read_text())
    except ValueError as error:
        raise InputError(
            f"{folder / 'spec.json'}: damaged ({error}). Remove the folder and run kitsseg preprocess again."
        ) from error
    if made_by != spec_record(spec):
        raise InputError(
            f"{folder}: expected a cache of version {CACHE_VERSION} made by {asdict(spec)}, found {made_by}. "
            "Use the recipe that made it, or run kitsseg preprocess with yours."
        )
    cases = {path.parent.name: _open_case(path.parent) for path in sorted(folder.glob("[!.]*/case.json"))}
    if not cases:
        raise InputError(f"{folder}: expected preprocessed cases, found none. Run kitsseg preprocess again.")
    return cases


def spec_record(spec):
    """What ``spec.json`` holds."""
    return json.loads(json.dumps({"version": CACHE_VERSION, "spec": asdict(spec)}))


def _open_case(folder):
    try:
        record = json.loads((folder / "case.json").read_text())
        return CachedCase(
            folder.name,
            folder,
            Geometry.from_dict(record["geometry"]),
            tuple(record["label_start"]),
            np.array(record["kidney_area"], np.int64),
            np.array(record["tumor_area"], np.int64),
            bool(record["phantom"]),
            int(record["channels"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / 'case.json'}: damaged ({error!r}). Remove the folder and run kitsseg preprocess again."
        ) from error


def _load(path, dtype, shape):
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path}: missing or damaged ({error}). Remove its folder and preprocess again."
        ) from error
    if array.dtype != dtype or (shape is not None and array.shape != shape):
        raise InputError(
            f"{path}: expected {np.dtype(dtype)} of shape {shape}, found {array.dtype} {array.shape}. "
            "Remove its folder and run kitsseg preprocess again."
        )
    return array
