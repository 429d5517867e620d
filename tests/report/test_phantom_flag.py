"""Results on synthetic patients say so, from the scan's header to the scores."""

from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.cases import open_cache
from kitsseg.data.formats.nifti import is_phantom, read_image
from kitsseg.data.phantoms.synthesize import synthesize_cases


def test_synthetic_scans_are_marked_and_the_cache_knows(tmp_path, spec):
    synthesize_cases(tmp_path / "data", 1, (8, 32, 32))
    assert is_phantom(read_image(tmp_path / "data" / "case_00000" / "imaging.nii.gz").grid.header)
    preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    assert open_cache(tmp_path / "cache", spec)["case_00000"].phantom
