"""The manifest: what it says equals the label maps, the splits, and the figures published about KiTS19."""

import csv
from dataclasses import replace
from importlib import resources

import nibabel as nib
import numpy as np
import pytest

from kitsseg.data.kits19.make_manifest import KNOWN_PROBLEMS, make_manifest
from kitsseg.data.kits19.manifest import ManifestCase, read_manifest, write_manifest
from kitsseg.data.phantoms.synthesize import synthesize_cases
from kitsseg.data.splits import load_split, split_names
from kitsseg.errors import InputError
from kitsseg.files.checksums import sha256_of


@pytest.fixture(scope="module")
def manifest():
    return read_manifest()


@pytest.fixture(scope="module")
def training(manifest):
    return [row for row in manifest.values() if row.label_sha256]


def test_a_row_for_each_of_the_300_cases_and_the_labels_of_210(manifest, training):
    assert list(manifest) == [f"case_{i:05d}" for i in range(300)]
    assert [row.case for row in training] == [f"case_{i:05d}" for i in range(210)]
    for row in training:
        assert len(row.label_sha256) == len(row.image_sha256_2019) == 64
        assert row.label_bytes < row.image_bytes_2019
        assert None not in (row.shape, row.spacing_mm, row.voxels, row.class_slices)
    for i in range(210, 300):
        assert manifest[f"case_{i:05d}"] == ManifestCase(case=f"case_{i:05d}")


def test_totals_are_those_published_of_the_210_label_maps(training):
    assert sum(row.shape[0] for row in training) == 45_424
    assert sum(np.array(row.class_slices) for row in training).tolist() == [15_831, 5_712, 16_336]
    background, kidney, tumor = sum(np.array(row.voxels) for row in training).tolist()
    assert (round(kidney / 1e6, 1), round(tumor / 1e6, 1)) == (81.7, 20.1)
    # 512 x 512 but for case_00160, whose 252 slices have 796 columns
    assert background + kidney + tumor == 45_424 * 512 * 512 + 252 * 512 * (796 - 512)
    assert round(100 * kidney / (background + kidney + tumor), 3) == 0.684
    assert round(100 * tumor / (background + kidney + tumor), 3) == 0.168
    assert [row.case for row in training if row.shape[1:] != (512, 512)] == ["case_00160"]
    lengths = {row.case: row.shape[0] for row in training}
    assert (min(lengths.values()), max(lengths, key=lengths.get), max(lengths.values())) == (
        29,
        "case_00151",
        1059,
    )
    spacings = np.array([row.spacing_mm for row in training])
    assert (spacings[:, 0] == 5).sum() == 86
    assert (np.median(spacings[:, 0]), np.median(spacings[:, 1])) == (3.0, 0.78125)
    assert (spacings[:, 1] == spacings[:, 2]).all()


def test_an_empty_prediction_has_the_published_accuracy_and_pooled_dice(training):
    """99.15 % accuracy and 0.9915 Dice over the voxels of all cases and all classes, background included."""
    background, kidney, tumor = sum(np.array(row.voxels) for row in training)
    everything = background + kidney + tumor
    assert round(100 * background / everything, 2) == 99.15
    # over all classes at once a right voxel counts twice and each voxel is in both maps: 2 B / (2 everything)
    assert round(2 * background / (2 * everything), 4) == 0.9915


def test_rows_are_consistent(training):
    for row in training:
        assert sum(row.voxels) == np.prod(row.shape), row.case
        kidney, tumor, either = row.class_slices
        assert max(kidney, tumor) <= either <= min(kidney + tumor, row.shape[0]), row.case
        assert (row.voxels[1] > 0) == (kidney > 0)
        assert (row.voxels[2] > 0) == (tumor > 0)
    assert (
        len({row.label_sha256 for row in training}) == len({row.image_sha256_2019 for row in training}) == 210
    )


def test_columns_of_the_splits_are_the_splits(manifest):
    for name in split_names():
        split = load_split(name)
        for part in ("train", "validation", "test"):
            assert {c for c, row in manifest.items() if row.splits.get(name) == part} == set(
                getattr(split, part)
            )
    assert {name for row in manifest.values() for name in row.splits} == set(split_names())


def test_known_problems_are_flagged_with_their_reason(manifest):
    flagged = {}
    for row in manifest.values():
        assert bool(row.flags) == bool(row.remark)
        for flag in row.flags:
            flagged.setdefault(flag, set()).add(int(row.case[-5:]))
    assert flagged["relabeled-2019-12-20"] == {15, 23, 37, 125}
    assert flagged["excluded-by-nnunet"] == {23, 68, 125, 133}
    assert flagged["replaced-by-nnunet"] == {15, 37}
    assert flagged["cropped-2019-04-15"] == {22, 61, 117}
    assert flagged["replaced-2019-04-15"] == {15, 60, 102, 174}
    assert set(flagged) == {flag for flag, _, _ in KNOWN_PROBLEMS}


def test_the_manifest_equals_the_real_label_maps_counted_with_nibabel(real_data, manifest):
    """Independent of kitsseg's reader: shape and counts from nibabel's array, spacing from its zooms."""
    for path in sorted((real_data / "kits19").glob("case_*/segmentation.nii.gz"))[::6]:
        row, image = manifest[path.parent.name], nib.load(path)
        labels = np.asanyarray(image.dataobj)
        assert row.shape == labels.shape
        np.testing.assert_allclose(row.spacing_mm, image.header.get_zooms(), rtol=1e-6)
        assert row.voxels == tuple(int((labels == value).sum()) for value in (0, 1, 2))
        masks = (labels == 1, labels == 2, labels > 0)
        assert row.class_slices == tuple(int(mask.any(axis=(1, 2)).sum()) for mask in masks)


def test_regenerating_from_all_real_label_maps_changes_nothing(real_data, manifest):
    """Every figure of the labels is computed anew: the known rows keep only what a label map cannot say."""
    known = {
        case: ManifestCase(
            case=case, image_bytes_2019=row.image_bytes_2019, image_sha256_2019=row.image_sha256_2019
        )
        for case, row in manifest.items()
    }
    calls = []
    made, computed = make_manifest(real_data / "kits19", known, progress=lambda *call: calls.append(call))
    assert len(computed) == 24
    assert calls[-1][1:] == (24, 24)
    for case in computed:
        assert made[case] == manifest[case]


def test_regenerating_without_data_changes_nothing(manifest, tmp_path):
    made, computed = make_manifest(None, manifest)
    assert (made, computed) == (manifest, [])
    write_manifest(made, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (
        resources.files("kitsseg") / "data_manifest.csv"
    ).read_bytes()


def test_images_are_hashed_only_on_demand(data, manifest):
    made, computed = make_manifest(data, manifest)
    assert computed == [f"case_{i:05d}" for i in range(9)]
    assert made["case_00003"].image_sha256_2019 == manifest["case_00003"].image_sha256_2019
    assert made["case_00003"].label_sha256 == sha256_of(data / "case_00003" / "segmentation.nii.gz")
    assert made["case_00009"] == manifest["case_00009"]
    made, _ = make_manifest(data, manifest, images_2019=True)
    image = data / "case_00003" / "imaging.nii.gz"
    assert (made["case_00003"].image_bytes_2019, made["case_00003"].image_sha256_2019) == (
        image.stat().st_size,
        sha256_of(image),
    )


def test_figures_of_a_small_label_map(data):
    # make_case: labels 10:25 x 8:20 in slices 1 to 4, tumor 14:20 x 12:17 in slices 2 and 3; of 8 x 40 x 48 voxels
    row = make_manifest(data)[0]["case_00000"]
    tumor = 2 * 6 * 5
    kidney = 4 * 15 * 12 - tumor
    assert row.voxels == (8 * 40 * 48 - kidney - tumor, kidney, tumor)
    assert row.class_slices == (4, 2, 4)
    assert (row.shape, row.spacing_mm) == ((8, 40, 48), (3.0, 0.8, 0.8))
    assert row.label_bytes == (data / "case_00000" / "segmentation.nii.gz").stat().st_size


def test_writing_and_reading_give_the_same(manifest, tmp_path):
    changed = dict(manifest)
    changed["case_00001"] = replace(manifest["case_00001"], remark='a "quoted", word; a comma')
    write_manifest(changed, tmp_path / "m.csv")
    assert read_manifest(tmp_path / "m.csv") == changed
    assert b"\r" not in (tmp_path / "m.csv").read_bytes()


def message_of(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"case\n", b"\x1f\x8b\x00", b"case,slices\ncase_00000,1\n", "\ud7ff".encode("utf-16")],
)
def test_what_is_no_manifest_is_refused(tmp_path, content):
    path = tmp_path / "m.csv"
    path.write_bytes(content)
    assert str(path) in message_of(read_manifest, path)


def test_a_damaged_row_is_refused(tmp_path, manifest):
    write_manifest(manifest, tmp_path / "m.csv")
    lines = (tmp_path / "m.csv").read_text().splitlines(keepends=True)
    fields = next(csv.reader([lines[1]]))
    for wrong in ("case_00000,many," + ",".join(fields[2:]), ",".join(fields[:4]), lines[2].strip()):
        (tmp_path / "bad.csv").write_text("".join([lines[0], wrong + "\n", *lines[2:]]))
        assert "bad.csv" in message_of(read_manifest, tmp_path / "bad.csv")


def test_other_cases_and_phantoms_are_refused(data, tmp_path):
    synthesize_cases(tmp_path / "phantoms", 1, (20, 48, 48))
    assert "phantom" in message_of(make_manifest, tmp_path / "phantoms")
    (data / "case_00004").rename(data / "patient_x")
    assert "patient_x" in message_of(make_manifest, data)
