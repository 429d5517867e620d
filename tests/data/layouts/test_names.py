"""A case is called as the user sees it: by the path that was given, never by where a link leads."""

import json
import shlex
from pathlib import Path

import pytest
from support.cases import make_case

from kitsseg.data.layouts.find import Layout, find_cases
from kitsseg.data.layouts.names import (
    case_of_prediction,
    folder_name,
    nnunet_part,
    pattern_of,
    prediction_name,
    scan_name,
    stem_of,
)
from kitsseg.data.layouts.search import find_scans
from kitsseg.errors import InputError
from kitsseg.files.paths import as_given, relative_path
from kitsseg.scoring.evaluate import evaluate_folders

NNUNET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "kidney": 1, "tumor": 2},
    "file_ending": ".nii.gz",
}


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def nnunet(folder, *scans):
    for name in scans:
        touch(folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(NNUNET))
    return folder


# paths as they were given


def test_links_stay_and_dots_go(tmp_path, monkeypatch):
    (tmp_path / "store" / "b1").mkdir(parents=True)
    link(tmp_path / "case_1", tmp_path / "store" / "b1")
    assert as_given(tmp_path / "case_1" / "x") == tmp_path / "case_1" / "x"
    # .. after a link leads to the parent of the link's target, as for every other program
    assert as_given(tmp_path / "case_1" / ".." / "x") == tmp_path / "store" / "x"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    assert as_given("./case_1") == tmp_path / "case_1"
    assert folder_name(".") == tmp_path.name
    assert folder_name("store/..") == tmp_path.name
    # a shell that entered the folder through a link keeps that path in PWD
    monkeypatch.chdir(tmp_path / "case_1")
    monkeypatch.setenv("PWD", str(tmp_path / "case_1"))
    assert folder_name(".") == "case_1"
    for stale in (str(tmp_path), "case_1", str(tmp_path / "gone"), str(tmp_path / "store" / ".." / "case_1")):
        monkeypatch.setenv("PWD", stale)
        assert folder_name(".") == "b1"


def test_records_keep_links_and_can_be_moved(tmp_path):
    """The ".." of a recorded path are counted from the real folder of the record; links below stay as given."""
    touch(tmp_path / "store" / "x1.nii.gz")
    link(tmp_path / "p" / "data" / "imaging.nii.gz", tmp_path / "store" / "x1.nii.gz")
    (tmp_path / "disk" / "out").mkdir(parents=True)
    link(tmp_path / "p" / "out", tmp_path / "disk" / "out")
    (tmp_path / "p" / "real").mkdir()
    scan = tmp_path / "p" / "data" / "imaging.nii.gz"
    assert relative_path(scan, tmp_path / "p" / "real") == "../data/imaging.nii.gz"
    assert relative_path(scan, tmp_path / "p" / "out") == "../../p/data/imaging.nii.gz"
    # the whole project is reached through a link, whose name must not be in the record
    link(tmp_path / "mounted", tmp_path / "p")
    assert relative_path(tmp_path / "mounted" / "data" / "imaging.nii.gz", tmp_path / "p" / "real") == (
        "../data/imaging.nii.gz"
    )
    assert relative_path(scan, tmp_path / "mounted" / "real") == "../data/imaging.nii.gz"
    assert relative_path(tmp_path / "p", tmp_path / "p" / "real") == ".."


# names


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("scan.nii.gz", "scan"),
        ("SCAN.NII.GZ", "SCAN"),
        ("Scan.Nii", "Scan"),
        ("a.b.nii.gz", "a.b"),
        ("nii.gz.nii.gz", "nii.gz"),
        ("scan.gz", "scan.gz"),
        ("scan", "scan"),
    ],
)
def test_stems(name, stem):
    assert stem_of(name) == stem


def test_a_scan_by_its_file_is_called_as_by_its_folder(tmp_path):
    for part, case in (("imagesTr", "case_00003"), ("imagesTs", "case_00004")):
        data = nnunet(tmp_path / part / "Dataset1", f"{part}/{case}_0000.nii.gz")
        file = data / part / f"{case}_0000.nii.gz"
        by_folder = find_scans([data / part]).scans
        assert list(by_folder) == [case]
        assert list(find_scans([file]).scans) == [case]
        assert list(find_scans([data]).scans) == [case]
        assert list(find_scans([file, data / part, data]).scans) == [case]  # once, however often it is given
    # elsewhere _0000 is a number, of the first of several scans
    assert scan_name(touch(tmp_path / "series" / "scan_0000.nii.gz")) == "scan_0000"
    assert scan_name(touch(tmp_path / "series" / "scan_0001.nii.gz")) == "scan_0001"
    for name in ("imaging.nii.gz", "imaging.nii", "IMAGING.NII.GZ"):
        file = touch(tmp_path / name / "case_7" / name)
        assert list(find_scans([file]).scans) == list(find_scans([file.parent]).scans) == ["case_7"]
        assert list(find_scans([file.parent.parent]).scans) == ["case_7"]


def test_links_into_a_store_are_called_as_the_link(tmp_path):
    """The name of the link counts if a file, a case folder, a DICOM series or a folder of nnU-Net is a link."""
    blob = touch(tmp_path / "store" / "MD5E-s1.nii.gz")
    file = link(tmp_path / "a" / "case_90007" / "imaging.nii.gz", blob)
    assert list(find_scans([file]).scans) == list(find_scans([tmp_path / "a"]).scans) == ["case_90007"]
    assert list(find_scans([link(tmp_path / "b" / "patient.nii.gz", blob)]).scans) == ["patient"]
    touch(tmp_path / "store" / "d41d8" / "imaging.nii.gz")
    folder = link(tmp_path / "c" / "case_90008", tmp_path / "store" / "d41d8")
    assert (
        list(find_scans([folder]).scans)
        == list(find_scans([folder / "imaging.nii.gz"]).scans)
        == ["case_90008"]
    )
    assert list(find_scans([tmp_path / "c"]).scans) == ["case_90008"]
    (tmp_path / "store" / "e3b0c").mkdir()
    (tmp_path / "store" / "e3b0c" / "IM1").write_bytes(b"\0" * 128 + b"DICM")
    series = link(tmp_path / "d" / "anna", tmp_path / "store" / "e3b0c")
    assert list(find_scans([series]).scans) == list(find_scans([tmp_path / "d"]).scans) == ["anna"]
    # imagesTr is a link to a folder of another name, beside its dataset.json, or another name of such a folder
    touch(tmp_path / "store" / "f00" / "case_1_0000.nii.gz")
    data = nnunet(tmp_path / "Dataset2")
    images = link(data / "imagesTr", tmp_path / "store" / "f00")
    assert find_scans([images]).scans["case_1"].path == images / "case_1_0000.nii.gz"
    assert list(find_scans([images / "case_1_0000.nii.gz"]).scans) == ["case_1"]
    mine = link(tmp_path / "mine", nnunet(tmp_path / "D", "imagesTs/case_2_0000.nii.gz") / "imagesTs")
    assert (
        list(find_scans([mine]).scans) == list(find_scans([mine / "case_2_0000.nii.gz"]).scans) == ["case_2"]
    )
    # by pattern, where nothing is left for wildcards
    [case] = find_cases(folder, need_labels=False, layout=Layout(images="imaging.nii.gz"))
    assert case.name == "case_90008"


def test_a_link_to_nothing_is_a_scan_that_is_missed(tmp_path):
    """A case that was never fetched is not left out of the cohort in silence, and stops no other."""
    touch(tmp_path / "data" / "case_0" / "imaging.nii.gz")
    link(tmp_path / "data" / "case_1" / "imaging.nii.gz", tmp_path / "annex" / "MD5E-s1")
    found = find_scans([tmp_path / "data"])
    assert list(found.scans) == ["case_0"]
    [(what, why)] = found.wrong
    assert what == str(tmp_path / "data" / "case_1" / "imaging.nii.gz")
    assert f"is a link to {tmp_path / 'annex' / 'MD5E-s1'}" in why


def test_linked_predictions_are_scored_against_their_own_truth(tmp_path):
    """In the store the two cases have exchanged numbers. The links are files in folders, folders, and flat files."""
    for k in (0, 1):
        make_case(tmp_path / "truth" / f"case_{k}", seed=k, positive=(2, 6 - k))
        make_case(tmp_path / "kept" / f"case_{1 - k}", seed=k, positive=(2, 6 - k))
        kept = tmp_path / "kept" / f"case_{1 - k}" / "segmentation.nii.gz"
        link(tmp_path / "files" / f"case_{k}" / "segmentation.nii.gz", kept)
        (tmp_path / "folders").mkdir(exist_ok=True)
        link(tmp_path / "folders" / f"case_{k}", kept.parent)
        link(tmp_path / "flat" / f"prediction_{k}.nii.gz", kept)
    for name in ("files", "folders", "flat"):
        rows = evaluate_folders(tmp_path / name, tmp_path / "truth", tmp_path / f"{name}.csv").rows
        assert [(row["case"], row["composite"]) for row in rows] == [("case_0", 1.0), ("case_1", 1.0)]
    single = tmp_path / "files" / "case_1" / "segmentation.nii.gz"
    [row] = evaluate_folders(single, tmp_path / "truth" / "case_1" / single.name, tmp_path / "s.csv").rows
    assert row["case"] == "case_1"
    text = (tmp_path / "files.json").read_text()
    assert "files/case_0/segmentation.nii.gz" in text
    assert "kept" not in text


@pytest.mark.parametrize("case", ["case_00210", "anna", "Größe", "患者", "a.b", "prediction"])
def test_a_prediction_names_its_case(tmp_path, case):
    assert case_of_prediction(tmp_path / prediction_name(case)) == case
    assert case_of_prediction(tmp_path / case / "segmentation.nii.gz") == case


def test_parts_of_nnunet(tmp_path):
    assert nnunet_part(tmp_path / "imagesTs") == ("images", "Ts")
    assert nnunet_part(tmp_path / "labelsTr") == ("labels", "Tr")
    assert nnunet_part(tmp_path / "imagesTs2") is None


# scans that cannot be told apart


def refused(*inputs):
    """Scan -> why it is refused, of scans whose label maps would have one name; nothing else is found."""
    found = find_scans(inputs)
    assert found.scans == {}
    return {scan.path: str(why) for _, scan, why in found.clashes()}


def test_two_scans_of_one_name_say_how_to_give_both(tmp_path):
    """The test follows the advice in the error, and so finds both scans."""
    pairs = [
        ("own/anna/ct.nii.gz", "own/berta/ct.nii.gz", ["anna", "berta"]),
        ("t/anna/1/ct.nii", "t/berta/2/ct.nii", ["anna_1", "berta_2"]),
        ("first/case_1/imaging.nii.gz", "second/case_1/imaging.nii.gz", ["first_case_1", "second_case_1"]),
        ("x/a/imagesTr/c_0000.nii.gz", "x/b/imagesTr/c_0000.nii.gz", ["a_imagesTr", "b_imagesTr"]),
    ]
    for first, second, names in pairs:
        one, two = touch(tmp_path / first), touch(tmp_path / second)
        reasons = refused(one, two)
        assert list(reasons) == [one, two]
        for scan, other in ((one, two), (two, one)):
            assert reasons[scan].startswith(f"{scan}: ")
            assert f" {other} " in reasons[scan]
        text = reasons[two]
        pattern = text.split("--images '")[1].split("'")[0]
        folder = Path(text.split("folder of both, ")[1].split(",")[0])
        assert list(find_scans([folder], Layout(images=pattern)).scans) == names
    for first, second in (
        ("e/ct.nii", "e/ct.nii.gz"),
        ("f/ct.nii", "f/deep/ct.nii"),
        ("g/CT.NII", "h/1/CT.nii"),
    ):
        for text in refused(touch(tmp_path / first), touch(tmp_path / second)).values():
            assert "--out" in text
            assert "--images" not in text


def test_two_names_whose_label_maps_would_be_one_file(tmp_path):
    """case_7 is written to prediction_7.nii.gz, where a scan of that name belongs as well."""
    case = touch(tmp_path / "case_7" / "imaging.nii.gz")
    other = touch(tmp_path / "prediction_7.nii.gz")
    reasons = refused(case, other)
    assert f" prediction_7.nii.gz for {other} too" in reasons[case]
    assert f" prediction_7.nii.gz for {case} too" in reasons[other]


def test_patterns_that_find_files_and_tell_them_apart():
    def of(*texts, fixed=True):
        return pattern_of([Path(text) for text in texts], fixed)

    assert of("a.nii.gz", "b.nii.gz") == "*.nii.gz"
    assert of("a.nii") == "*.nii"
    assert of("a/ct.nii.gz", "b/ct.nii.gz") == "*/ct.nii.gz"
    assert of("a/x.nii.gz", "b/y.nii.gz") == "*/*.nii.gz"
    assert of("img/a.nii.gz", "img/b.nii.gz") == "img/*.nii.gz"
    assert of("img/a.nii.gz", "img/b.nii.gz", fixed=False) == "*/*.nii.gz"
    assert of("a.nii", "b.nii.gz") == "*.nii*"
    assert of("A.NII.GZ") == "*.NII.GZ"
    assert of("p/s1", "p/s2") == "p/*"
    assert of("a/ct[1].nii", "b/ct[1].nii") == "*/ct?1?.nii"
    assert of("a.nii", "b/c.nii") is None


# advice that can be followed


def dicom(folder):
    folder.mkdir(parents=True)
    (folder / "IM1").write_bytes(b"\0" * 128 + b"DICM")


@pytest.mark.parametrize(
    ("files", "pattern"),
    [
        (["p0.nii.gz", "p1.nii.gz"], "*.nii.gz"),
        (["P0.NII.GZ"], "*.NII.GZ"),
        (["p0.nii"], "*.nii"),
        (["a/scan.nii.gz", "b/scan.nii.gz"], "*/scan.nii.gz"),
        (["a/1/x.nii.gz", "b/2/y.nii.gz"], "*/*/*.nii.gz"),
        (["volumes/v-0.nii", "volumes/v-1.nii"], "volumes/*.nii"),
        (["of anna's/ct 0.nii", "of anna's/ct 1.nii"], "of anna's/*.nii"),
        (["$HOME `x`/0.nii", "$HOME `x`/1.nii"], "$HOME `x`/*.nii"),
    ],
)
def test_folders_of_other_arrangements_are_told_the_pattern(tmp_path, files, pattern):
    """The error names options only for files that are needed; with these options the files are found."""
    for name in files:
        touch(tmp_path / name)
    with pytest.raises(InputError, match="--images") as caught:
        find_cases(tmp_path, need_labels=False)
    assert f"--images {shlex.quote(pattern)}" in str(caught.value)
    assert "--labels" not in str(caught.value)
    found = find_cases(tmp_path, need_labels=False, layout=Layout(images=pattern))
    assert sorted(case.image for case in found) == sorted(tmp_path / name for name in files)
    with pytest.raises(InputError, match="--labels") as caught:
        find_cases(tmp_path, need_labels=False, need_image=False)
    assert f"--labels {shlex.quote(pattern)}" in str(caught.value)
    assert "--images" not in str(caught.value)
    with pytest.raises(InputError, match="--images .* --labels PATTERN"):
        find_cases(tmp_path)
    with pytest.raises(InputError, match="holds NIfTI files") as caught:
        find_cases(tmp_path, options=())
    assert "--" not in str(caught.value)


def test_a_tree_of_dicom_is_told_which_folder_to_give(tmp_path):
    dicom(tmp_path / "one" / "patient1" / "study1" / "series2")
    dicom(tmp_path / "all" / "p1" / "st1" / "se1")
    dicom(tmp_path / "all" / "p2" / "st1" / "se4")
    dicom(tmp_path / "odd" / "p1" / "st1" / "se1")
    dicom(tmp_path / "odd" / "p2" / "se4")

    def advice(folder):
        with pytest.raises(InputError, match="DICOM series further down") as caught:
            find_cases(tmp_path / folder, need_labels=False)
        assert "synthesize" not in str(caught.value)
        assert "--labels" not in str(caught.value)
        return str(caught.value)

    study = tmp_path / "one" / "patient1" / "study1"
    assert str(study) in advice("one")
    assert list(find_scans([study]).scans) == ["series2"]
    assert "--images '*/*/*'" in advice("one")
    assert "each of their folders" in advice("all")
    assert "--images '*/st1/*'" in advice("all")
    assert list(find_scans([tmp_path / "all"], Layout(images="*/st1/*")).scans) == ["p1_se1", "p2_se4"]
    assert "--images" not in advice("odd")


def test_other_folders_without_cases(tmp_path):
    touch(tmp_path / "mha" / "a.mha")
    with pytest.raises(InputError, match=r"neither NIfTI.*nor DICOM.*but a\.mha") as caught:
        find_cases(tmp_path / "mha", need_labels=False)
    assert "synthesize" not in str(caught.value)
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    with pytest.raises(InputError, match="empty/case_00000.*holds no files.*kitsseg synthesize"):
        find_cases(tmp_path / "empty")
    # where no labels are needed, any CT will do
    for name, found in (("empty", "it holds no files"), ("empty/inner", "the folder is empty")):
        with pytest.raises(InputError) as caught:
            find_scans([tmp_path / name])
        text = str(caught.value)
        assert text.startswith(f"{tmp_path / name}: expected NIfTI files, DICOM series, PNG slices or .zip")
        assert f", found none: {found}. Check the path" in text and "synthesize" not in text
    # a loop of links ends
    link(tmp_path / "loop" / "again", tmp_path / "loop")
    with pytest.raises(InputError, match="holds no files"):
        find_cases(tmp_path / "loop", need_labels=False)
