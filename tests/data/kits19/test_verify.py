"""`kitsseg verify` finds each planted defect and names it (sheet "the data side", line 6), and is silent otherwise."""

import gzip
import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from kitsseg.data.formats.nifti import write_image
from kitsseg.data.kits19.make_manifest import make_manifest
from kitsseg.data.kits19.manifest import read_manifest
from kitsseg.data.kits19.trusted_hashes import HASHES_FILE, read_hashes
from kitsseg.data.kits19.verify import verify_data
from kitsseg.data.layouts.find import Layout
from kitsseg.data.phantoms.synthesize import render_cases, synthesize_cases
from kitsseg.errors import InputError

CASES = [f"case_{i:05d}" for i in range(9)]
IMAGE, LABELS = "imaging.nii.gz", "segmentation.nii.gz"


@pytest.fixture
def manifest(data):
    """A manifest as if KiTS19 were the nine tiny cases. Cases 1 and 2 have 9 and 10 slices, all others have 8."""
    for i, case in enumerate(CASES[:3]):
        labels = np.zeros((8 + i, 40, 48), np.uint8)
        labels[2:5, 10:20, 10:20] = 1
        write_image(data / case / LABELS, labels, (3.0, 0.8, 0.8))
        image = np.random.default_rng(i).integers(-200, 200, labels.shape).astype(np.int16)
        write_image(data / case / IMAGE, image, (3.0, 0.8, 0.8))
    return make_manifest(data, images_2019=True)[0]


def rewrite(path, change=None, spacing_mm=(3.0, 0.8, 0.8), dtype=None):
    """Write a file of make_case again, with other values or another spacing."""
    array = np.array(nib.load(path).dataobj)
    array = array.astype(dtype or array.dtype)
    if change:
        change(array)
    write_image(path, array, spacing_mm)


def flip_bit(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


def rows(findings, level="error"):
    return [(f.case, f.check) for f in findings if f.level == level]


def only(findings, check):
    (found,) = [f for f in findings if f.check == check]
    return found


def swap(left, right):
    between = left.with_name("between")
    left.rename(between)
    right.rename(left)
    between.rename(right)


def test_whole_data_has_no_finding_and_its_hashes_are_recorded(data, manifest):
    calls = []
    assert verify_data(data, manifest=manifest, progress=lambda *call: calls.append(call)) == ([], CASES)
    assert calls[0] == ("verify case_00000", 0, 9)
    assert calls[-1][1:] == (9, 9)
    recorded = read_hashes(data)
    assert list(recorded) == [f"{case}/{IMAGE}" for case in CASES]
    assert {path.split("/")[0]: file.sha256 for path, file in recorded.items()} == {
        case: manifest[case].image_sha256_2019 for case in CASES
    }
    assert verify_data(data, manifest=manifest)[0] == []


def test_flipped_bit_in_the_labels(data, manifest):
    path = data / CASES[4] / LABELS
    flip_bit(path, path.stat().st_size * 4)
    findings, _ = verify_data(data, manifest=manifest)
    assert rows(findings) == [(CASES[4], "labels"), (CASES[4], "hash of the labels")]
    assert "damaged" in findings[0].found
    assert "again" in findings[0].advice


def test_flipped_bit_in_the_image(data, manifest):
    path = data / CASES[4] / IMAGE
    flip_bit(path, path.stat().st_size * 4)
    findings, _ = verify_data(data, manifest=manifest)
    assert rows(findings) == [(CASES[4], "image")]
    assert "damaged" in findings[0].found
    assert rows(findings, "warning") == []
    assert f"{CASES[4]}/{IMAGE}" not in read_hashes(data)


def test_no_flipped_bit_of_400_goes_unnoticed(tmp_path, manifest, data):
    """200 in a label map and 200 in an image; also those that change no voxel but the time in gzip's header."""
    one = tmp_path / "one" / CASES[0]
    shutil.copytree(data / CASES[0], one)
    assert verify_data(one.parent, manifest=manifest)[0] == []
    rng = np.random.default_rng(0)
    for name in (LABELS, IMAGE):
        content = (one / name).read_bytes()
        # 40 flips go into gzip's header, ten bytes that random places would seldom hit
        bits = np.concatenate([rng.integers(len(content) * 8, size=160), rng.integers(80, size=40)])
        for bit in bits.tolist():
            flip_bit(one / name, bit)
            findings, _ = verify_data(one.parent, manifest=manifest)
            assert rows(findings), (name, bit)
            (one / name).write_bytes(content)
    assert verify_data(one.parent, manifest=manifest)[0] == []


def test_swapped_images_are_named_by_their_hashes(data, manifest):
    swap(data / CASES[5] / IMAGE, data / CASES[6] / IMAGE)  # of one shape: only the hash can tell
    findings, _ = verify_data(data, manifest=manifest)
    assert rows(findings) == [(CASES[5], "hash of the image"), (CASES[6], "hash of the image")]
    assert [f.found for f in findings] == [f"the image of {CASES[6]}", f"the image of {CASES[5]}"]


def test_swapped_labels_are_named_by_their_hashes(data, manifest):
    swap(data / CASES[5] / LABELS, data / CASES[6] / LABELS)
    findings, _ = verify_data(data, manifest=manifest)
    assert rows(findings) == [(CASES[5], "hash of the labels"), (CASES[6], "hash of the labels")]
    assert [f.found for f in findings] == [f"the label map of {CASES[6]}", f"the label map of {CASES[5]}"]


def test_swapped_folders_are_named(data, manifest):
    swap(data / CASES[5], data / CASES[6])
    findings, _ = verify_data(data, manifest=manifest)
    checks = ("hash of the labels", "hash of the image")
    assert rows(findings) == [(case, check) for case in CASES[5:7] for check in checks]


def test_a_swapped_image_of_another_host_is_named_by_its_grid(data, manifest):
    """Hashes unknown: the shape, 10 slices, is that of case_00002 only."""
    other = {case: replace(row, image_sha256_2019="0" * 64) for case, row in manifest.items()}
    shutil.copy(data / CASES[2] / IMAGE, data / CASES[0] / IMAGE)
    findings, _ = verify_data(data, [CASES[0]], other)
    assert rows(findings) == [
        (CASES[0], "grid of the image"),
        (CASES[0], "grid of the labels against the image"),
    ]
    assert (findings[0].found, findings[0].expected) == ("shape 10 x 40 x 48", "shape 8 x 40 x 48")
    assert "the grid of case_00002" in findings[0].advice


def test_wrong_spacing_of_the_image(data, manifest):
    rewrite(data / CASES[3] / IMAGE, spacing_mm=(2.5, 0.8, 0.8))
    findings, _ = verify_data(data, manifest=manifest)
    assert rows(findings) == [
        (CASES[3], "grid of the image"),
        (CASES[3], "grid of the labels against the image"),
    ]
    assert (findings[0].found, findings[0].expected) == (
        "spacing 2.5 x 0.8 x 0.8 mm",
        "spacing 3 x 0.8 x 0.8 mm",
    )


def test_wrong_spacing_of_both_files(data, manifest):
    for name in (IMAGE, LABELS):
        rewrite(data / CASES[3] / name, spacing_mm=(3.0, 0.8, 0.81))
    findings, _ = verify_data(data, manifest=manifest)
    checks = ["hash of the labels", "grid of the labels", "grid of the image"]
    assert rows(findings) == [(CASES[3], check) for check in checks]


def test_image_and_labels_apart_in_space_or_turned(data, manifest):
    path = data / CASES[3] / LABELS
    image = nib.load(path)
    for column, value in ((3, 5.0), (2, 0.8)):  # 5 mm away; columns counted from the other side
        affine = image.affine.copy()
        affine[0, column] = value
        nib.save(nib.Nifti1Image(np.array(image.dataobj), affine), data / CASES[3] / "moved.nii.gz")
        (data / CASES[3] / "moved.nii.gz").rename(path)
        found = only(verify_data(data, [CASES[3]], manifest)[0], "grid of the labels against the image")
        assert found.level == "error"
        assert found.found.startswith("affine [[")


def test_labels_whose_file_has_other_axes_lie_on_the_image(data, manifest):
    path = data / CASES[3] / LABELS
    labels = nib.load(path)
    turned = nib.as_closest_canonical(labels)
    assert turned.shape != labels.shape
    nib.save(turned, data / CASES[3] / "turned.nii.gz")
    (data / CASES[3] / "turned.nii.gz").rename(path)
    findings, _ = verify_data(data, [CASES[3]], manifest)
    assert rows(findings) == [(CASES[3], "hash of the labels")]


def test_label_3(data, manifest):
    def plant(labels):
        labels[0, 0, :7] = 3

    rewrite(data / CASES[2] / LABELS, plant)
    findings, _ = verify_data(data, manifest=manifest)
    assert rows(findings) == [(CASES[2], "labels"), (CASES[2], "hash of the labels")]
    assert "found 3 in at least 7 voxels" in findings[0].found


def test_float_labels(data, manifest):
    def plant(labels):
        labels[0, 0, 0] = 0.5

    rewrite(data / CASES[2] / LABELS, plant, dtype=np.float32)
    findings, _ = verify_data(data, manifest=manifest)
    assert rows(findings) == [(CASES[2], "labels"), (CASES[2], "hash of the labels")]
    assert "fractions" in findings[0].found


def test_whole_numbers_stored_as_floats(data, manifest):
    rewrite(data / CASES[2] / LABELS, dtype=np.float32)
    findings, _ = verify_data(data, manifest=manifest)
    assert rows(findings) == [(CASES[2], "hash of the labels")]
    assert rows(findings, "warning") == [(CASES[2], "labels")]
    assert "float32" in findings[0].found


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_in_the_image(data, manifest, wrong):
    def plant(image):
        image[3, 3, 3] = wrong

    rewrite(data / CASES[2] / IMAGE, plant, dtype=np.float32)
    findings, _ = verify_data(data, manifest=manifest)
    assert rows(findings) == [(CASES[2], "image")]
    assert "NaN or infinity" in findings[0].found


def test_missing_files_and_folders(data, manifest):
    (data / CASES[1] / IMAGE).unlink()
    (data / CASES[2] / LABELS).unlink()
    shutil.rmtree(data / CASES[3])
    (data / CASES[3]).mkdir()
    findings, cases = verify_data(data, [*CASES, "case_00017"], manifest)
    assert cases == [*CASES, "case_00017"]
    assert [(f.case, f.found, f.expected) for f in findings if f.check == "files"] == [
        (CASES[1], f"the folder holds {LABELS}", IMAGE),
        (CASES[2], f"the folder holds {IMAGE}", "a label map"),
        (CASES[3], "the folder holds nothing", IMAGE),
        (CASES[3], "the folder holds nothing", "a label map"),
        ("case_00017", "no such folder", IMAGE),
    ]
    assert ("case_00017", "files") in rows(findings)
    assert (
        CASES[3] in verify_data(data, manifest=manifest)[1]
    )  # an empty folder is a case that was meant to be there


def test_labels_only(data, manifest):
    for case in CASES:
        (data / case / IMAGE).unlink()
    assert verify_data(data, manifest=manifest, labels_only=True)[0] == []
    assert len(rows(verify_data(data, manifest=manifest)[0])) == 9


def test_an_image_of_another_host_is_trusted_on_first_use_only(data, manifest):
    other = {case: replace(row, image_sha256_2019="0" * 64) for case, row in manifest.items()}
    findings, _ = verify_data(data, manifest=other)
    assert rows(findings, "error") == []
    assert rows(findings, "warning") == [(case, "hash of the image") for case in CASES]
    assert "as of 2019" in findings[0].expected
    assert verify_data(data, manifest=other)[0] == []
    rewrite(data / CASES[7] / IMAGE, lambda image: image.__setitem__((0, 0, 0), 1234))
    for _ in range(2):  # the second time as well: what is not trusted is not recorded
        findings, _ = verify_data(data, manifest=other)
        assert rows(findings) == [(CASES[7], "hash of the image")]
        assert "as recorded" in findings[0].expected
        assert HASHES_FILE in findings[0].advice


def test_the_image_of_2019_is_trusted_whatever_is_recorded(data, manifest):
    original = (data / CASES[7] / IMAGE).read_bytes()
    rewrite(data / CASES[7] / IMAGE, lambda image: image.__setitem__((0, 0, 0), 1234))
    assert len(rows(verify_data(data, manifest=manifest)[0], "warning")) == 1
    (data / CASES[7] / IMAGE).write_bytes(original)
    assert verify_data(data, manifest=manifest)[0] == []
    assert read_hashes(data)[f"{CASES[7]}/{IMAGE}"].sha256 == manifest[CASES[7]].image_sha256_2019


def test_a_case_with_an_error_is_not_trusted(data, manifest):
    other = {case: replace(row, image_sha256_2019="0" * 64) for case, row in manifest.items()}
    rewrite(data / CASES[3] / IMAGE, spacing_mm=(2.5, 0.8, 0.8))
    verify_data(data, manifest=other)
    assert f"{CASES[3]}/{IMAGE}" not in read_hashes(data)


def test_a_record_that_cannot_be_written_is_a_warning(data, manifest):
    (data / HASHES_FILE).unlink(missing_ok=True)
    (data / ".hashes.lock").mkdir()  # as a read-only folder would, also for root
    findings, _ = verify_data(data, [CASES[0]], manifest)
    assert rows(findings, "warning") == [(CASES[0], "record of the image")]


def test_a_damaged_record_is_an_error(data, manifest):
    (data / HASHES_FILE).write_text("{")
    with pytest.raises(InputError, match=HASHES_FILE):
        verify_data(data, manifest=manifest)


def test_own_cases_are_checked_by_themselves(data, manifest):
    mine = {CASES[0]: manifest[CASES[0]]}
    rewrite(data / CASES[1] / LABELS, lambda labels: labels.__setitem__((0, 0, 0), 3))
    (data / CASES[2] / LABELS).unlink()
    shutil.copy(data / CASES[3] / IMAGE, data / CASES[4] / IMAGE)
    findings, _ = verify_data(data, manifest=mine)
    assert rows(findings, "note") == [(case, "manifest") for case in CASES[1:]]
    assert {f.found for f in findings if f.level == "note"} == {"no case of KiTS19"}
    assert rows(findings) == [(CASES[1], "labels"), (CASES[4], "hash of the image")]
    assert only(findings, "hash of the image").found == f"the image of {CASES[3]}"
    assert rows(findings, "warning") == [(CASES[2], "files")]
    rewrite(data / CASES[5] / IMAGE, lambda image: image.__setitem__((0, 0, 0), 1234))
    assert (CASES[5], "hash of the image") in rows(verify_data(data, manifest=mine)[0])


def test_test_cases_need_no_labels(data, manifest):
    (data / CASES[0]).rename(data / "case_00250")
    (data / "case_00250" / LABELS).unlink()
    rewrite(data / "case_00250" / IMAGE, lambda image: image.__setitem__((0, 0, 0), 1234))
    assert verify_data(data, ["case_00250"], manifest)[0] == []


def test_phantoms_are_checked_by_themselves_and_not_recorded(tmp_path):
    synthesize_cases(tmp_path / "phantoms", 3, (20, 48, 48))
    findings, _ = verify_data(tmp_path / "phantoms")
    assert [(f.level, f.found) for f in findings] == [("note", "a phantom")] * 3
    assert not (tmp_path / "phantoms" / HASHES_FILE).exists()
    path = tmp_path / "phantoms" / CASES[1] / IMAGE
    flip_bit(path, path.stat().st_size * 7)
    assert rows(verify_data(tmp_path / "phantoms")[0]) == [(CASES[1], "image")]
    shutil.copy(tmp_path / "phantoms" / CASES[0] / IMAGE, path)
    assert (CASES[1], "hash of the image") in rows(verify_data(tmp_path / "phantoms")[0])


def test_real_label_maps_are_the_released_ones(real_data, tmp_path):
    """Three cases as released, one of them under another's name."""
    for case in ("case_00023", "case_00061", "case_00039"):
        shutil.copytree(real_data / "kits19" / case, tmp_path / case)
    assert verify_data(tmp_path, labels_only=True)[0] == []
    shutil.copy(tmp_path / "case_00061" / LABELS, tmp_path / "case_00023" / LABELS)
    findings, _ = verify_data(tmp_path, labels_only=True)
    assert rows(findings) == [("case_00023", "hash of the labels"), ("case_00023", "grid of the labels")]
    assert findings[0].found == "the label map of case_00061"
    assert read_manifest()["case_00023"].label_sha256[:12] in findings[0].expected


def test_labels_from_before_a_known_correction(real_data, tmp_path):
    shutil.copytree(real_data / "kits19" / "case_00023", tmp_path / "case_00023")
    row = replace(read_manifest()["case_00023"], label_sha256="0" * 64)
    (finding,) = verify_data(tmp_path, manifest={"case_00023": row}, labels_only=True)[0]
    assert "87,140 bytes" in finding.found
    assert "before the correction of 2019-12-20" in finding.advice


def test_links_to_nothing_are_named(data, manifest):
    (data / CASES[1] / IMAGE).unlink()
    (data / CASES[1] / IMAGE).symlink_to("object-not-fetched")
    findings, _ = verify_data(data, manifest=manifest)
    assert rows(findings) == [(CASES[1], "files")]
    assert f"{IMAGE} (a link to nothing)" in findings[0].found


def test_a_phantom_on_real_labels_still_has_its_labels_checked(real_data, tmp_path):
    render_cases(real_data / "kits19", tmp_path / "data", cases=["case_00061"])
    findings, _ = verify_data(tmp_path / "data")
    assert [(f.level, f.found) for f in findings] == [("note", "a phantom")]
    (tmp_path / "data" / "case_00061").rename(tmp_path / "data" / "case_00023")
    assert rows(verify_data(tmp_path / "data")[0])[0] == ("case_00023", "hash of the labels")


def test_an_nnunet_dataset_of_the_same_files(data, manifest, tmp_path):
    nnunet = tmp_path / "Dataset064"
    (nnunet / "imagesTr").mkdir(parents=True)
    (nnunet / "labelsTr").mkdir()
    for case in CASES:
        shutil.copy(data / case / IMAGE, nnunet / "imagesTr" / f"{case}_0000.nii.gz")
        shutil.copy(data / case / LABELS, nnunet / "labelsTr" / f"{case}.nii.gz")
    labels = {"background": 0, "kidney": 1, "tumor": 2}
    (nnunet / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": labels}))
    assert verify_data(nnunet, manifest=manifest) == ([], CASES)
    assert verify_data(nnunet / "imagesTr", manifest=manifest) == ([], CASES)
    assert list(read_hashes(nnunet)) == [f"imagesTr/{case}_0000.nii.gz" for case in CASES]
    swap(nnunet / "imagesTr" / f"{CASES[5]}_0000.nii.gz", nnunet / "imagesTr" / f"{CASES[6]}_0000.nii.gz")
    own, _ = verify_data(nnunet, manifest={})
    assert [f.found for f in own if f.level == "error"] == [
        f"the image of {CASES[6]}",
        f"the image of {CASES[5]}",
    ]
    (nnunet / "imagesTr" / f"{CASES[1]}_0000.nii.gz").unlink()
    assert (CASES[1], "files") in rows(verify_data(nnunet, manifest=manifest)[0])


def test_label_maps_with_cysts_are_not_compared_with_those_of_2019(data, manifest):
    rewrite(data / CASES[2] / LABELS, lambda labels: labels.__setitem__((0, 0, 0), 3))
    findings, _ = verify_data(data, [CASES[2]], manifest, layout=Layout(cyst="kidney"))
    assert [(f.level, f.found) for f in findings] == [("note", "labels of KiTS21 or KiTS23")]
    shutil.copy(data / CASES[1] / IMAGE, data / CASES[2] / IMAGE)
    findings, _ = verify_data(data, [CASES[2]], manifest, layout=Layout(cyst="kidney"))
    assert (CASES[2], "hash of the image") in rows(findings)  # the images are the same as in 2019


def test_one_case_folder_shares_the_record_of_its_parent(data, manifest):
    assert verify_data(data / CASES[3], manifest=manifest) == ([], [CASES[3]])
    assert list(read_hashes(data)) == [f"{CASES[3]}/{IMAGE}"]


def test_what_is_no_folder_of_cases_is_refused(tmp_path):
    with pytest.raises(InputError, match="folder of cases"):
        verify_data(tmp_path / "nothing")
    with pytest.raises(InputError, match="found none"):
        verify_data(tmp_path)


def test_a_file_that_is_not_nifti(data, manifest):
    (data / CASES[0] / IMAGE).write_bytes(gzip.compress(b"<html>404</html>"))
    (data / CASES[1] / LABELS).write_bytes(b"")
    findings, _ = verify_data(data, manifest=manifest)
    checks = [(CASES[0], "image"), (CASES[1], "labels"), (CASES[1], "hash of the labels")]
    assert rows(findings) == checks
    assert json.loads((data / HASHES_FILE).read_text()).keys() == {f"{case}/{IMAGE}" for case in CASES[2:]}
