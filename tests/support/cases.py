"""Tiny synthetic cases and the specification that leaves them as they are."""

import json
from pathlib import Path

import numpy as np

from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.formats.nifti import write_image
from kitsseg.recipe import PreprocessSpec

__all__ = ["StopAfter", "make_case", "make_cases_and_cache", "read_json", "spec_of_tests"]


class StopAfter:
    """A progress callable that interrupts after so many calls, as Ctrl-C would."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self, *_):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def spec_of_tests():
    return PreprocessSpec(
        spacing_mm=(None, None, None),
        crop_to_body=False,
        hu_window=(-79.0, 304.0),
        hu_mean=101.0,
        hu_std=76.9,
    )


def make_case(folder, shape=(8, 40, 48), spacing_mm=(3.0, 0.8, 0.8), seed=0, tumor=True, positive=(2, 6)):
    """Write one case whose labels can be read off its HU: kidney is 100 and up, tumor 200 and up, the rest below 60."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    labels[positive[0] : positive[1], 10:25, 8:20] = 1
    if tumor:
        labels[positive[0] + 1 : positive[1] - 1, 14:20, 12:17] = 2
    image = (rng.integers(-60, 60, shape) + 160 * (labels == 1) + 300 * (labels == 2)).astype(np.int16)
    write_image(folder / "imaging.nii.gz", image, spacing_mm)
    write_image(folder / "segmentation.nii.gz", labels, spacing_mm)
    return image, labels


def read_json(path):
    return json.loads(Path(path).read_text())


def make_cases_and_cache(folder, names, spec):
    """Cases in ``folder/data``, their seeds counted from 0, and the cache that preprocessing makes of them."""
    for i, name in enumerate(names):
        make_case(folder / "data" / name, seed=i)
    preprocess_cases(folder / "data", folder / "cache", spec)
    return folder
