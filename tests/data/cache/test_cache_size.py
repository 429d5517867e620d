"""How much disk a cache takes: from headers, before it is written; all of KiTS19 by the manifest's numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest
from support.cases import make_case, spec_of_tests

from kitsseg import recipes
from kitsseg.data.cache import plan as cache_size
from kitsseg.data.cache.build import plan_cache, preprocess_cases
from kitsseg.data.cache.plan import cached_bytes, free_bytes, planned_bytes
from kitsseg.data.formats.nifti import read_image, read_labels
from kitsseg.data.geometry.label_box import foreground_box
from kitsseg.data.kits19.manifest import read_manifest
from kitsseg.data.layouts.find import find_cases
from kitsseg.errors import InputError

SPEC = spec_of_tests()  # nothing is resampled


@pytest.fixture(scope="module")
def kits19():
    """(shape, spacing) of the 210 training cases."""
    rows = [row for row in read_manifest().values() if row.shape]
    assert len(rows) == 210
    return [(row.shape, row.spacing_mm) for row in rows]


def test_all_of_kits19_fits_a_colab_disk(kits19):
    """45,424 slices at their own resolution: 11,944,271,872 voxels.

    A voxel takes 2 bytes of HU and 0.08 bytes of labels: 2.08 * 11.944 = 24.84 GB. Compressed it takes 1.07 and 0.008
    bytes: 12.88 GB. The number of voxels and the 2 bytes are exact; two tests below measure the other figures.
    """
    assert sum(shape[0] for shape, _ in kits19) == 45_424
    voxels = sum(math.prod(shape) for shape, _ in kits19)
    assert voxels == 11_944_271_872
    plain = sum(cached_bytes(*case, SPEC) for case in kits19)
    assert plain == pytest.approx(2.08 * voxels, abs=210)
    assert 2 * voxels < plain < 25e9
    packed = sum(cached_bytes(*case, SPEC, compress=True) for case in kits19)
    assert packed == pytest.approx(1.078 * voxels, abs=210)
    assert packed < 13e9


@pytest.mark.parametrize(
    ("name", "bytes_per_slice"),
    [
        ("wp_unet", 256 * 256 * 2.08),
        ("squeeze_unet", 128 * 128 * 3.08),
        ("squeeze_unet:practical", 256 * 256 * 3.08),
    ],
)
def test_slices_of_one_size(name, bytes_per_slice, kits19):
    spec = recipes.get(name).preprocess
    total = sum(cached_bytes(*case, spec) for case in kits19)
    assert total == pytest.approx(45_424 * bytes_per_slice, abs=210)


def test_the_share_of_labels_is_not_too_small(real_data):
    """In 24 real label maps, small ones mostly, the boxes hold 5.7 % of the voxels; in all 210 it is 4.8 %."""
    voxels = boxed = 0
    for path in sorted((real_data / "kits19").glob("case_*/segmentation.nii.gz")):
        labels = read_labels(path).array
        voxels += labels.size
        boxed += foreground_box(labels)[1].size
    assert boxed / voxels < cache_size.LABEL_SHARE


def test_the_compressed_size_of_a_real_ct(real_data, tmp_path):
    """A CT with slices of 3 mm stands in for the CTs of KiTS19, which are not here; their noise may be different."""
    pytest.importorskip("blosc2")
    from kitsseg.data.cache.compressed import write_compressed

    image = read_image(real_data / "real_ct" / "abdomen_ct.nii.gz").array
    write_compressed(tmp_path / "a", np.int16, image)
    assert (tmp_path / "a").stat().st_size / image.size < cache_size.COMPRESSED_HU + 0.005


def test_planned_from_headers_alone(tmp_path):
    """40 x 48 pixels of 0.8 mm in 8 slices of 3 mm, to 1.5 x 1.6 x 1.6 mm: 16 x 20 x 24 voxels of 2.08 bytes."""
    spec = replace(SPEC, spacing_mm=(1.5, 1.6, 1.6), crop_to_body=True)
    path = tmp_path / "data" / "case_00000"
    make_case(path)
    make_case(tmp_path / "data" / "case_00001")
    cases = find_cases(tmp_path / "data")
    assert planned_bytes(cases, spec) == 2 * round(16 * 20 * 24 * 2.08)
    # the rest of the file is not looked at; an unreadable header counts nothing
    scan = path / "imaging.nii.gz"
    scan.write_bytes(scan.read_bytes()[:-500])
    assert planned_bytes(cases, spec) == 2 * round(16 * 20 * 24 * 2.08)
    scan.write_bytes(b"no scan")
    assert planned_bytes(cases, spec) == round(16 * 20 * 24 * 2.08)


def test_the_plan_is_what_is_written(data, tmp_path):
    plan = plan_cache(data, tmp_path / "cache", SPEC)
    assert [case.name for case in plan.missing] == [f"case_{i:05d}" for i in range(9)]
    assert not (tmp_path / "cache").exists()
    folder, _, _ = preprocess_cases(data, tmp_path / "cache", SPEC)
    written = sum(path.stat().st_size - 128 for path in folder.glob("*/image.npy"))
    assert written == 9 * 8 * 40 * 48 * 2
    assert written < plan.bytes < 1.1 * written
    assert plan_cache(data, tmp_path / "cache", SPEC).bytes == 0
    assert str(plan).startswith("9 cases, about 0.3 MB at most (free: ")


def test_a_disk_that_is_too_small(data, tmp_path, monkeypatch):
    """Refused before anything is written, with what is needed and what is free."""
    monkeypatch.setattr(
        cache_size, "free_bytes", lambda folder: 200_000
    )  # needed: 9 * 15360 * 2.08 = 287,539
    with pytest.raises(InputError, match=r"9 cases need about 0.3 MB of disk, found 0.2 MB free.*--compress"):
        preprocess_cases(data, tmp_path / "cache", SPEC)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(cache_size, "free_bytes", lambda folder: 300_000)
    preprocess_cases(data, tmp_path / "cache", SPEC)
    monkeypatch.setattr(cache_size, "free_bytes", lambda folder: 0)  # enough for what is there already
    assert len(preprocess_cases(data, tmp_path / "cache", SPEC)[2]) == 9


def test_the_free_space_of_a_folder_to_come(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") == pytest.approx(free_bytes(tmp_path), rel=0.05)
    (tmp_path / "file").touch()
    assert free_bytes(tmp_path / "file" / "c") > 0
