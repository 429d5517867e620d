"""Scans in whatever they come: flat folders, trees of DICOM, archives, nnU-Net data sets, and a mixture of all."""

import json
import os
import shutil
import stat
import tarfile
import zipfile

import numpy as np
import pytest
from support.dicom_files import noise, write_series

from kitsseg.data.formats.nifti import read_image, write_image
from kitsseg.data.layouts.find import Layout, find_cases
from kitsseg.data.layouts.scans import scan_grid
from kitsseg.data.layouts.search import find_scans
from kitsseg.errors import InputError

DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "kidney": 1, "tumor": 2},
    "numTraining": 1,
}


def scan(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.random.default_rng(seed).integers(-900, 900, (3, 8, 9)).astype(np.int16), (3, 1, 1))
    return path


def series(folder, uid, patient="anna", description="abdomen", number=3, seed=0, modality="CT", prefix=""):
    def change(_, dataset):
        dataset.SeriesInstanceUID, dataset.PatientID = uid, patient
        dataset.SeriesDescription, dataset.SeriesNumber, dataset.Modality = description, number, modality

    write_series(folder / "new", noise((4, 6, 5), seed=seed), change=change)
    for path in (folder / "new").iterdir():
        path.rename(folder / f"{prefix}{path.name}")
    (folder / "new").rmdir()
    return folder


def places(found, folder):
    return {name: str(item.path.relative_to(folder)) for name, item in found.scans.items()}


def temporary(tmp_path):
    made = []

    def new():
        made.append(tmp_path / f"unpacked{len(made)}")
        made[-1].mkdir(parents=True)
        return made[-1]

    return new


def test_a_flat_folder_of_nifti_files_is_a_cohort_and_label_maps_are_named(tmp_path):
    for name in ("anna.nii.gz", "bert_0000.nii", "anna_seg.nii.gz", "notes.txt"):
        scan(tmp_path / name) if name != "notes.txt" else (tmp_path / name).write_text("x")
    found = find_scans([tmp_path])
    assert places(found, tmp_path) == {"anna": "anna.nii.gz", "bert_0000": "bert_0000.nii"}
    assert [what for what, _ in found.left_out] == [
        str(tmp_path / "anna_seg.nii.gz"),
        f"{tmp_path}: 1 file .txt (notes.txt)",
    ]
    # given itself, it is taken
    assert list(find_scans([tmp_path / "anna_seg.nii.gz"]).scans) == ["anna_seg"]


@pytest.mark.parametrize(
    ("files", "left_out"),
    [
        (["scan.nii.gz.part"], ["1 file .part (scan.nii.gz.part)"]),
        (["CT.MHA", "sub/b.mha"], ["2 files .mha (CT.MHA, sub/b.mha)"]),
        (["1.2.840.11", "1.2.840.12"], ["2 files without an ending (1.2.840.11, 1.2.840.12)"]),
        ([f"{i}.nrrd" for i in range(4)], ["4 files .nrrd (0.nrrd, 1.nrrd, 2.nrrd, 3.nrrd)"]),
        ([f"{i}.gz" for i in range(9)], ["9 files .gz (0.gz, 1.gz, 2.gz and 6 more)"]),
        (
            ["a.hdr", "a.img", "notes"],
            ["1 file without an ending (notes)", "1 file .hdr (a.hdr)", "1 file .img (a.img)"],
        ),
    ],
)
def test_files_of_other_formats_are_counted_and_a_few_are_named(files, left_out, tmp_path):
    scan(tmp_path / "ct.nii.gz")
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no CT")
    found = find_scans([tmp_path])
    assert list(found.scans) == ["ct"]
    assert found.left_out == [(f"{tmp_path}: {what}", "neither NIfTI nor DICOM") for what in left_out]


@pytest.mark.parametrize(
    "name", ["masks", "labels", "Segmentations", "ground truth", "manual_annotations-2/2020"]
)
def test_files_in_a_folder_named_as_label_maps_are_no_scans(name, tmp_path):
    for patient in ("anna", "bert"):
        scan(tmp_path / "ct" / f"{patient}.nii.gz")
        scan(tmp_path / name / f"{patient}.nii.gz")
    found = find_scans([tmp_path])
    assert list(found.scans) == ["anna", "bert"]
    [(what, why)] = found.left_out
    assert what == str(tmp_path / name)
    assert "2 NIfTI files" in why
    # given itself, the folder is taken, and so are DICOM series in it
    assert list(find_scans([tmp_path / name]).scans) == ["anna", "bert"]
    series(tmp_path / name / "carl", "1.1")
    assert "anna_3_abdomen" in find_scans([tmp_path]).scans


@pytest.mark.parametrize("name", ["kidney segmentation project", "labels and scans", "seg2ct", "2020"])
def test_a_folder_whose_name_says_more_than_labels_may_hold_scans(name, tmp_path):
    scan(tmp_path / name / "patients" / "anna.nii.gz")
    assert list(find_scans([tmp_path]).scans) == ["anna"]


def test_a_ct_of_another_name_beside_a_label_map_of_kits_is_a_scan(tmp_path):
    """segmentation.nii.gz alone makes no case of KiTS; without any CT beside it, one is missing."""
    scan(tmp_path / "p1" / "ct.nii.gz")
    series(tmp_path / "p2" / "dicom", "1.1", patient="bert")
    scan(tmp_path / "p4" / "imaging.nii.gz")
    for name in ("p1", "p2", "p3", "p4"):
        scan(tmp_path / name / "segmentation.nii.gz")
    scan(tmp_path / "p3" / "kidney_mask.nii.gz")
    found = find_scans([tmp_path])
    assert places(found, tmp_path) == {
        "bert_3_abdomen": "p2/dicom",
        "ct": "p1/ct.nii.gz",
        "p4": "p4/imaging.nii.gz",
    }
    assert sorted(what for what, _ in found.left_out) == [
        str(tmp_path / name / "segmentation.nii.gz") for name in ("p1", "p2")
    ]
    [(what, why)] = found.wrong
    assert "p3" in what
    assert "imaging.nii.gz" in what + why
    assert list(find_scans([tmp_path / "p1"]).scans) == ["ct"]


def test_files_of_one_name_in_several_folders_are_called_by_their_paths(tmp_path):
    for name in ("anna/ct.nii.gz", "bert/ct.nii.gz", "only.nii.gz"):
        scan(tmp_path / name)
    assert places(find_scans([tmp_path]), tmp_path) == {
        "anna_ct": "anna/ct.nii.gz",
        "bert_ct": "bert/ct.nii.gz",
        "only": "only.nii.gz",
    }


def test_a_tree_of_dicom_has_a_scan_for_each_series_wherever_its_files_lie(tmp_path):
    series(tmp_path / "p1" / "study", "1.1", number=2, description="Nieren / ven.", prefix="a")
    series(tmp_path / "p1" / "study", "1.2", number=3, description="Nieren / ven.", seed=1, prefix="b")
    series(tmp_path / "p1" / "scout", "1.3", modality="MR")
    # a series over two folders, as some exports have it
    series(tmp_path / "p2" / "IM0", "1.4", patient="../bert", description="", number="")
    for k, path in enumerate(sorted((tmp_path / "p2" / "IM0").iterdir())):
        (tmp_path / "p2" / "IM1").mkdir(exist_ok=True)
        if k % 2:
            path.rename(tmp_path / "p2" / "IM1" / path.name)
    found = find_scans([tmp_path])
    assert places(found, tmp_path) == {
        "anna_2_Nieren_ven": "p1/study",
        "anna_3_Nieren_ven": "p1/study",
        "bert_p2": "p2",
    }
    [(what, why)] = found.left_out
    assert "p1/scout" in what
    assert "MR" in why
    for name, seed in (("anna_2_Nieren_ven", 0), ("anna_3_Nieren_ven", 1), ("bert_p2", 0)):
        item = found.scans[name]
        volume = read_image(item.path, item.series)
        np.testing.assert_array_equal(volume.array, noise((4, 6, 5), seed=seed)[::-1] - 1024)
        assert scan_grid(item).shape == volume.grid.shape == (4, 6, 5)


def test_series_of_one_patient_and_description_get_different_names(tmp_path):
    for uid in ("1.1", "1.2"):
        series(tmp_path / "deep" / uid / "x", uid)
    names = list(find_scans([tmp_path]).scans)
    assert len({name.casefold() for name in names}) == 2
    assert all(name.startswith("anna_3_abdomen_") for name in names)
    assert names == list(find_scans([tmp_path]).scans)


def test_a_damaged_file_beside_one_of_several_series_is_named_when_that_is_read(tmp_path):
    folder = series(tmp_path / "deep" / "x", "1.1", prefix="a")
    series(folder, "1.2", prefix="b")
    (folder / "IM9999").write_bytes(b"nothing")
    found = find_scans([tmp_path])
    assert len(found.scans) == 2
    for item in found.scans.values():
        with pytest.raises(InputError, match="IM9999"):
            read_image(item.path, item.series)


def test_nnunets_parts_are_told_apart(tmp_path):
    root = tmp_path / "all" / "Dataset001_X"
    scan(root / "imagesTr" / "case_1_0000.nii.gz")
    scan(root / "labelsTr" / "case_1.nii.gz")
    scan(root / "imagesTs" / "case_2_0000.nii.gz")
    (root / "dataset.json").write_text(json.dumps(DATASET | {"file_ending": ".nii.gz"}))
    found = find_scans([tmp_path / "all"])
    assert {name: item.kind for name, item in found.scans.items()} == {
        "case_1": "nnU-Net imagesTr",
        "case_2": "nnU-Net imagesTs",
    }
    assert list(find_scans([root / "imagesTs"]).scans) == ["case_2"]
    (root / "dataset.json").write_text("{")
    scan(tmp_path / "all" / "other.nii.gz")
    found = find_scans([tmp_path / "all"])
    assert list(found.scans) == ["other"]
    assert [what for what, _ in found.wrong] == [str(root)]


def test_archives_hold_scans_named_by_the_archive(tmp_path):
    series(tmp_path / "in" / "DICOM" / "ST0", "1.1")
    scan(tmp_path / "in" / "imaging.nii.gz")
    archive = tmp_path / "data" / "patient 7.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((tmp_path / "in").rglob("*")):
            file.write(path, path.relative_to(tmp_path / "in"))
        file.writestr("__MACOSX/._x", "")
    found = find_scans([archive], None, temporary(tmp_path))
    assert list(found.scans) == ["patient_7"]  # the folder of a KiTS case is the case's
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((tmp_path / "in" / "DICOM").rglob("*")):
            file.write(path, path.relative_to(tmp_path / "in"))
    scan(tmp_path / "data" / "b.nii.gz")
    found = find_scans([tmp_path / "data"], None, temporary(tmp_path / "again"))
    item = found.scans["anna_3_abdomen"]
    assert item.place == archive / "DICOM" / "ST0"
    assert item.is_dicom
    assert read_image(item.path, item.series).array.shape == (4, 6, 5)
    assert "b" in found.scans
    with pytest.raises(InputError, match="Unpack it first"):
        find_scans([archive])


def entry(name, mode=0):
    info = zipfile.ZipInfo(name, (2020, 2, 3, 4, 5, 6))
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([(entry("../a.nii"), b"x")], "leads out of it"),
        ([(entry("/a.nii"), b"x")], "leads out of it"),
        ([(entry("a\\..\\..\\b.nii"), b"x")], "leads out of it"),
        ([(entry("C:/a.nii"), b"x")], "leads out of it"),
        ([(entry("a", stat.S_IFLNK | 0o777), b"/etc/passwd")], "link or a device"),
        ([(entry("a.nii"), b"x"), (entry("A.nii"), b"y")], "two entries called"),
        ([(entry("a"), b"x"), (entry("a/b"), b"y")], "folder of one name"),
        ([(entry("a.nii"), bytes(100 << 20))], "would unpack to"),
    ],
)
def test_archives_that_would_do_harm_are_refused_and_stop_no_other(tmp_path, entries, words):
    archive = tmp_path / "data" / "bad.zip"
    scan(tmp_path / "data" / "good.nii")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for info, data in entries:
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, data)
    found = find_scans([tmp_path / "data"], None, temporary(tmp_path))
    assert list(found.scans) == ["good"]
    [(what, why)] = found.wrong
    assert what == str(archive)
    assert words in why
    assert not (tmp_path / "b.nii").exists()


def test_a_folder_of_nothing_says_what_lies_there(tmp_path):
    (tmp_path / "a.mha").write_text("x")
    with pytest.raises(InputError, match=r"but a.mha"):
        find_scans([tmp_path])
    series(tmp_path / "mr", "1.1", modality="MR")
    with pytest.raises(InputError, match="no CT but MR"):
        find_scans([tmp_path / "mr"])


def kits(folder, *names):
    for name in names:
        scan(folder / name / "imaging.nii.gz")
    return folder


@pytest.mark.parametrize(
    ("others", "empty"),
    [
        (("case_00001", "case_00002"), "case_00005"),
        (("case_00001",), "CASE_7"),
        (("patient 1", "patient 2"), "patient 13"),
        (("1", "2"), "3"),
        (("a1b2",), "a10b20"),
    ],
)
@pytest.mark.parametrize("inside", ["", "imaging.nii.gz", "a/b"])
def test_a_case_folder_without_files_is_left_out_with_the_reason(tmp_path, others, empty, inside):
    kits(tmp_path, *others)
    (tmp_path / empty / inside).mkdir(parents=True)
    (tmp_path / empty / ".DS_Store").touch()
    found = find_scans([tmp_path])
    assert sorted(found.scans) == sorted(others)
    [(what, why)] = found.left_out
    assert what == str(tmp_path / empty)
    assert "no files" in why and "Complete or remove" in why
    assert len(find_cases(tmp_path, need_labels=False)) == len(others)


def test_other_empty_folders_are_no_fault(tmp_path):
    kits(tmp_path / "kits", "case_00001", "anna")
    for name in ("logs", "bert", "results_1", "case", ".case_00009"):
        (tmp_path / "kits" / name / "deep").mkdir(parents=True)
    series(tmp_path / "hospital" / "2021" / "CT1", "1.1")
    (tmp_path / "hospital" / "2021" / "CT2").mkdir()
    (tmp_path / "hospital" / "2022").mkdir()
    found = find_scans([tmp_path])
    assert len(found.scans) == 3
    assert found.left_out == found.wrong == []
    assert len(find_cases(tmp_path / "kits", need_labels=False)) == 2


def test_an_empty_folder_with_the_name_of_a_scan_is_left_out_with_the_reason(tmp_path):
    scan(tmp_path / "a.nii.gz")
    for name in ("b.nii.gz", "c.NII", "deep/d.nii"):
        (tmp_path / name).mkdir(parents=True)
    found = find_scans([tmp_path])
    assert list(found.scans) == ["a"]
    assert [what for what, _ in found.left_out] == [
        str(tmp_path / name) for name in ("b.nii.gz", "c.NII", "deep/d.nii")
    ]
    assert all("a folder without files" in why for _, why in found.left_out)


@pytest.mark.parametrize("name", ["b.nii.gz", "b.nii", "b.zip", "b.dcm", "b", "case_00002/imaging.nii.gz"])
def test_a_pipe_is_one_line_alone_and_left_out_in_a_folder(tmp_path, name):
    kits(tmp_path, "case_00001")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    found = find_scans([tmp_path], None, temporary(tmp_path / "new"))
    assert list(found.scans) == ["case_00001"]
    [(what, why)] = found.left_out
    assert what == str(tmp_path / name) and "a pipe, a socket" in why
    with pytest.raises(InputError, match=f"^{tmp_path / name}: .*found a named pipe"):
        find_scans([tmp_path / name], None, temporary(tmp_path / "new"))
    with pytest.raises(InputError, match=f"^{tmp_path / name}: .*found a named pipe"):
        read_image(tmp_path / name)
    if name == "b.nii.gz":
        with pytest.raises(InputError, match=f"^{tmp_path / name}: .*found a named pipe"):
            find_cases(tmp_path, need_labels=False, layout=Layout(images="b*.nii.gz"))


def test_a_pipe_beside_the_slices_of_a_series_is_named(tmp_path):
    folder = series(tmp_path / "deep" / "x", "1.1", prefix="a")
    series(folder, "1.2", prefix="b")
    os.mkfifo(folder / "IM9999.dcm")
    for item in find_scans([tmp_path]).scans.values():
        with pytest.raises(InputError, match=r"IM9999.dcm \(no file\)"):
            read_image(item.path, item.series)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz", "x.nii.gz", "x"])
def test_an_archive_other_than_zip_is_to_be_unpacked_first(tmp_path, name):
    mode = next((f"w:{kind}" for kind in ("bz2", "xz") if name.endswith(kind)), "w:gz")
    with tarfile.open(tmp_path / name, "w" if name == "x.tar" else mode) as archive:
        archive.add(scan(tmp_path / "new" / "a.nii.gz"), "a/a.nii.gz")
    [item] = find_scans([tmp_path / name]).scans.values()
    for read in (scan_grid, lambda item: read_image(item.path)):
        with pytest.raises(
            InputError, match=rf"^{tmp_path / name}: .*found an archive \(.*\). Unpack it first"
        ):
            read(item)
    if name not in ("x", "x.nii.gz"):
        [(what, why)] = find_scans([tmp_path]).left_out
        assert what == str(tmp_path / name)
        assert "Unpack it first" in why


def test_a_zip_named_as_a_scan_is_to_be_unpacked_first(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.nii.gz", "w") as archive:
        archive.writestr("a", "x")
    with pytest.raises(InputError, match=r"x.nii.gz: .*found an archive \(zip\). Unpack it first"):
        read_image(tmp_path / "x.nii.gz")


def test_files_of_other_channels_and_another_number_of_cases_are_warned_of(tmp_path):
    root = tmp_path / "Dataset001_X"
    scan(root / "imagesTr" / "case_1_0000.nii.gz")
    scan(root / "labelsTr" / "case_1.nii.gz")
    (root / "dataset.json").write_text(json.dumps(DATASET | {"file_ending": ".nii.gz"}), "utf-8-sig")
    assert list(find_scans([root]).scans) == ["case_1"]  # nothing to say, and a byte order mark is none
    for stray in ("case_1_0001.nii.gz", "case_1_0002.nii.gz"):
        shutil.copy(root / "imagesTr" / "case_1_0000.nii.gz", root / "imagesTr" / stray)
    with pytest.warns(
        UserWarning, match=r"imagesTr: .*NAME_0000.nii.gz.* found case_1_0001.nii.gz and 1 more"
    ):
        assert [case.name for case in find_cases(root)] == ["case_1"]
    for stray in ("case_1_0001.nii.gz", "case_1_0002.nii.gz"):
        (root / "imagesTr" / stray).unlink()
    scan(root / "imagesTr" / "case_1.nii.gz")
    with pytest.warns(UserWarning, match=r"imagesTr: .* found case_1.nii.gz, left out"):
        assert list(find_scans([root]).scans) == ["case_1"]
    (root / "imagesTr" / "case_1.nii.gz").unlink()
    for stated in (0, 5):
        record = DATASET | {"file_ending": ".nii.gz", "numTraining": stated}
        (root / "dataset.json").write_text(json.dumps(record))
        with pytest.warns(UserWarning, match=rf"dataset.json: .*numTraining says, {stated}, found 1\. "):
            assert [case.name for case in find_cases(root)] == ["case_1"]


# label maps of kitsseg predict among scans


def predicted(folder, names, journal=None):
    """Label maps, and the record of them; with ``journal``, the record that a process at work keeps."""
    for name in names:
        scan(folder / f"{name}.nii.gz")
    cases = {name: {"file": f"{name}.nii.gz", "image": f"../{name}.nii.gz"} for name in names}
    if journal is None:
        (folder / "predictions.json").write_text(json.dumps({"version": 1, "cases": cases}))
        return
    lines = [json.dumps({"done": name, "case": case}) for name, case in cases.items()]
    (folder / f"predictions-{journal}.jsonl").write_text("\n".join([*lines, '{"done": "hal']))


@pytest.mark.parametrize("where", ["pred", "old/2025/pred", "x.nii"])
@pytest.mark.parametrize("journal", [None, "4711"])
def test_label_maps_that_predict_wrote_into_the_folder_of_scans_are_no_scans(where, journal, tmp_path):
    for name in ("anna", "bert"):
        scan(tmp_path / f"{name}.nii.gz")
    predicted(tmp_path / where, ["anna", "bert"], journal)
    found = find_scans([tmp_path])
    assert places(found, tmp_path) == {"anna": "anna.nii.gz", "bert": "bert.nii.gz"}
    assert dict(found.left_out)[str(tmp_path / where)].startswith("2 label maps of kitsseg")


def test_other_files_beside_label_maps_are_still_looked_at(tmp_path):
    scan(tmp_path / "anna.nii.gz")
    predicted(tmp_path, ["prediction_1"])
    scan(tmp_path / "new.nii.gz")
    found = find_scans([tmp_path])
    assert sorted(found.scans) == ["anna", "new"]
    assert dict(found.left_out)[str(tmp_path)].startswith("1 label map of kitsseg")


@pytest.mark.parametrize(
    "content",
    ["", "[1, 2]", "null", '{"cases": {"a": {"file": 3}}}', '{"cases": {"a": {"file": "../anna.nii.gz"}}}'],
)
def test_a_file_of_the_name_of_the_record_that_lists_no_label_map_hides_no_scan(content, tmp_path):
    scan(tmp_path / "anna.nii.gz")
    scan(tmp_path / "sub" / "bert.nii.gz")
    (tmp_path / "sub" / "predictions.json").write_text(content)
    assert sorted(find_scans([tmp_path]).scans) == ["anna", "bert"]


def test_the_list_of_files_on_a_disc_is_no_unknown_file(tmp_path):
    series(tmp_path / "disc" / "A", "1.2.3")
    (tmp_path / "disc" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert find_scans([tmp_path / "disc"]).left_out == []


def test_a_series_that_was_copied_into_another_folder_is_said_to_be_there_twice(tmp_path):
    series(tmp_path / "disc" / "A", "1.2.3")
    shutil.copytree(tmp_path / "disc" / "A", tmp_path / "disc" / "copy of A")
    [scan] = find_scans([tmp_path / "disc"]).scans.values()
    with pytest.raises(
        InputError, match=r"found 4 more, such as A/.* and copy of A/.*, the same file twice\."
    ):
        scan_grid(scan)


def zipped(archive, *names):
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        for name in names:
            file.write(scan(archive.parent / "packed.nii.gz"), name)
    (archive.parent / "packed.nii.gz").unlink()


CLASHES = {
    "two endings": (["ct.nii", "ct.nii.gz"], ["ct.nii", "ct.nii.gz"]),
    "two endings in capitals": (["CT.NII", "CT.nii.gz"], ["CT.NII", "CT.nii.gz"]),
    "paths that read the same": (
        ["a_b/ct.nii.gz", "a/b/ct.nii.gz"],
        ["a/b/ct.nii.gz", "a_b/ct.nii.gz"],
    ),
    "a case and a file": (["x/imaging.nii.gz", "x.nii.gz"], ["x.nii.gz", "x/imaging.nii.gz"]),
    "three at once": (
        ["x/imaging.nii", "x.nii.gz", "x.nii"],
        ["x.nii", "x.nii.gz", "x/imaging.nii"],
    ),
}


@pytest.mark.parametrize(("files", "refused"), CLASHES.values(), ids=CLASHES)
def test_scans_whose_label_maps_would_have_one_name_are_named_and_stop_no_other(files, refused, tmp_path):
    for seed, name in enumerate([*files, "other.nii.gz", "deep/last.nii.gz"]):
        scan(tmp_path / name.lower(), seed).rename(tmp_path / name)
    found = find_scans([tmp_path])
    assert sorted(found.scans) == ["last", "other"]
    assert found.wrong == []
    clashes = {str(one.path.relative_to(tmp_path)): str(why) for _, one, why in found.clashes()}
    assert sorted(clashes) == refused
    for name, why in clashes.items():
        assert why.startswith(f"{tmp_path / name}: ")
        assert sum(f"{tmp_path / other} too" in why for other in refused if other != name) == 1


def test_the_same_case_in_both_parts_of_nnunet_and_a_dicom_folder_beside_its_nifti_file_are_clashes(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(DATASET))
    for part, name in (("Tr", "k_1"), ("Ts", "k_1"), ("Ts", "k_2")):
        scan(tmp_path / "set" / f"images{part}" / f"{name}_0000.nii.gz")
    found = find_scans([tmp_path / "set"])
    assert list(found.scans) == ["k_2"]
    assert [name for name, *_ in found.clashes()] == ["k_1", "k_1"]
    series(tmp_path / "both" / "anna", "1.2")
    scan(tmp_path / "both" / "anna.nii.gz")
    scan(tmp_path / "both" / "bert.nii.gz")
    found = find_scans([tmp_path / "both"])
    assert list(found.scans) == ["bert"]
    assert sorted(one.path.name for _, one, _ in found.clashes()) == ["anna", "anna.nii.gz"]


def test_a_scan_that_is_given_twice_clashes_with_nobody(tmp_path):
    file = scan(tmp_path / "in" / "ct.nii.gz")
    (tmp_path / "in" / "linked").mkdir()
    (tmp_path / "in" / "linked" / "imaging.nii.gz").symlink_to(file)
    zipped(tmp_path / "z" / "a.zip", "ct.nii.gz", "more.nii.gz")
    for inputs, names in (
        ([file, tmp_path / "in", file], ["ct", "linked"]),
        ([tmp_path / "z" / "a.zip", tmp_path / "z", tmp_path / "z" / "a.zip"], ["ct", "more"]),
    ):
        found = find_scans(inputs, None, temporary(tmp_path / names[-1]))
        assert list(found.scans) == names
        assert found.clashing == {}


def test_archives_tell_scans_of_one_name_apart_however_they_are_given(tmp_path):
    for name in ("anna", "bert", "carl"):
        zipped(tmp_path / "in" / f"{name}.zip", "ct.nii.gz")
    archives = sorted((tmp_path / "in").iterdir())
    for inputs in ([tmp_path / "in"], archives, [*archives, tmp_path / "in"]):
        found = find_scans(inputs, None, temporary(tmp_path / f"new{len(inputs)}"))
        assert sorted(found.scans) == ["bert_ct", "carl_ct", "ct"]
        assert found.clashing == {}
    # a name that is taken even then
    scan(tmp_path / "in" / "bert_ct.nii.gz")
    found = find_scans([tmp_path / "in"], None, temporary(tmp_path / "last"))
    assert sorted(found.scans) == ["carl_ct", "ct"]
    assert [str(one.place.relative_to(tmp_path)) for _, one, _ in found.clashes()] == [
        "in/bert_ct.nii.gz",
        "in/bert.zip/ct.nii.gz",
    ]


@pytest.mark.parametrize("twice", ["imaging.nii", "segmentation.nii"])
def test_a_case_with_two_scans_or_label_maps_stops_no_other_case(twice, tmp_path):
    for case in ("case_1", "case_2", "case_3"):
        scan(tmp_path / case / "imaging.nii.gz")
        scan(tmp_path / case / "segmentation.nii.gz")
    scan(tmp_path / "case_2" / twice)
    found = find_scans([tmp_path])
    assert list(found.scans) == ["case_1", "case_3"]
    [(what, why)] = found.wrong
    assert what == str(tmp_path / "case_2")
    assert f"found {twice}.gz and {twice}" in why
    with pytest.raises(InputError, match=f"case_2: .*{twice}"):
        find_cases(tmp_path)
