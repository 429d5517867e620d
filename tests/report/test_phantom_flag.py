"""Results on synthetic patients say so, from the scan's header to the scores."""

import numpy as np
import pytest

from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.cases import open_cache
from kitsseg.data.formats.nifti import PHANTOM, is_phantom, read_image, write_image
from kitsseg.data.phantoms.synthesize import synthesize_cases


def test_synthetic_scans_are_marked_and_the_cache_knows(tmp_path, spec):
    synthesize_cases(tmp_path / "data", 1, (8, 32, 32))
    assert is_phantom(read_image(tmp_path / "data" / "case_00000" / "imaging.nii.gz").grid.header)
    preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    assert open_cache(tmp_path / "cache", spec)["case_00000"].phantom


@pytest.mark.parametrize(
    ("description", "expected"),
    [(PHANTOM, True), ("kitsseg phantom, no patient", True), ("", False), ("a phantom of kitsseg", False)],
)
def test_phantoms_of_every_generator_are_recognized(tmp_path, description, expected):
    """The first generator's scans carry no number; a real scan's description says something else."""
    write_image(
        tmp_path / "imaging.nii.gz",
        np.arange(120, dtype=np.int16).reshape(4, 5, 6),
        (3.0, 1.0, 1.0),
        description,
    )
    assert is_phantom(read_image(tmp_path / "imaging.nii.gz").grid.header) == expected


def test_the_generator_is_told_from_the_first_one():
    assert PHANTOM != "kitsseg phantom, no patient"
