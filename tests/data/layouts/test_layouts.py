"""The same two patients in every layout give the same cases, caches and scores; what is not clear is refused."""

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from support.cases import make_case

from kitsseg.cli import main
from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.formats.nifti import read_labels
from kitsseg.data.layouts.find import Layout, find_cases
from kitsseg.data.layouts.nnunet import values_of_labels
from kitsseg.data.layouts.search import find_scans
from kitsseg.errors import InputError
from kitsseg.scoring.evaluate import evaluate_folders

V2 = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "kidney": 1, "tumor": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}
# as nnU-Net 1 wrote them
V1 = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "Kidney", "2": "Tumor"}, "numTraining": 2}
NAMES = ["case_00003", "case_00007"]


@pytest.fixture(scope="module")
def kits19(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kits19")
    for seed, name in enumerate(NAMES):
        make_case(folder / name, seed=seed)
    return folder


def kits21(source, folder):
    shutil.copytree(source, folder)
    for name in NAMES:
        (folder / name / "segmentation.nii.gz").rename(folder / name / "aggregated_MAJ_seg.nii.gz")
        (folder / name / "raw").mkdir()
    return folder, None


def nnunet(source, folder, record=V2, ending=".nii.gz"):
    for name in NAMES:
        for kind, old, new in (
            ("imagesTr", "imaging", f"{name}_0000"),
            ("labelsTr", "segmentation", name),
        ):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            image = nib.load(source / name / f"{old}.nii.gz")
            nib.save(image, folder / kind / f"{new}{ending}")
    (folder / "dataset.json").write_text(json.dumps(record))
    return folder, None


def nnunet_1(source, folder):
    return nnunet(source, folder, V1)


def nnunet_uncompressed(source, folder):
    return nnunet(source, folder, V2 | {"file_ending": ".nii"}, ".nii")


def by_pattern(source, folder):
    for name in NAMES:
        (folder / "a" / name).mkdir(parents=True)
        shutil.copy(source / name / "imaging.nii.gz", folder / "a" / name / "ct.nii.gz")
        shutil.copy(source / name / "segmentation.nii.gz", folder / "a" / name / "seg.nii.gz")
    return folder, Layout(images="a/*/ct.nii.gz", labels="a/*/seg.nii.gz")


def flat(source, folder):
    folder.mkdir()
    for name in NAMES:
        shutil.copy(source / name / "imaging.nii.gz", folder / f"{name}_ct.nii.gz")
        shutil.copy(source / name / "segmentation.nii.gz", folder / f"{name}_seg.nii.gz")
    return folder, Layout(images="*_ct.nii.gz", labels="*_seg.nii.gz")


LAYOUTS = [kits21, nnunet, nnunet_1, nnunet_uncompressed, by_pattern, flat]


@pytest.mark.parametrize("make", LAYOUTS)
def test_every_layout_gives_the_same_cache_and_perfect_scores(kits19, tmp_path, spec, make):
    folder, layout = make(kits19, tmp_path / "data")
    expected, _, _ = preprocess_cases(kits19, tmp_path / "expected", spec)
    found, done, _ = preprocess_cases(folder, tmp_path / "found", spec, layout=layout)
    assert done == NAMES
    for name in NAMES:
        for file in ("image.npy", "labels.npy"):
            assert (found / name / file).read_bytes() == (expected / name / file).read_bytes()
    assert list(find_scans([folder], layout).scans) == NAMES
    # truth in this layout, predictions named as KiTS19 asks for them
    (tmp_path / "out").mkdir()
    for name in NAMES:
        number = name.removeprefix("case_")
        shutil.copy(kits19 / name / "segmentation.nii.gz", tmp_path / "out" / f"prediction_{number}.nii.gz")
    result = evaluate_folders(tmp_path / "out", folder, tmp_path / "scores.csv", layout=layout)
    assert [(row["case"], row["composite"]) for row in result.rows] == [(name, 1.0) for name in NAMES]
    assert all(files.image for files in result.summary.cases.values())


def test_parts_of_an_nnunet_dataset(kits19, tmp_path):
    folder, _ = nnunet(kits19, tmp_path / "Dataset064_KiTS")
    (folder / "imagesTs").mkdir()
    shutil.copy(kits19 / NAMES[0] / "imaging.nii.gz", folder / "imagesTs" / "case_00210_0000.nii.gz")
    assert [case.name for case in find_cases(folder)] == NAMES  # test images have no labels
    assert [case.name for case in find_cases(folder, need_labels=False)] == [*NAMES, "case_00210"]
    assert list(find_scans([folder / "imagesTs"]).scans) == ["case_00210"]
    assert list(find_scans([folder / "imagesTr"]).scans) == NAMES
    assert [case.name for case in find_cases(folder / "labelsTr", need_image=False)] == NAMES
    (folder / "labelsTs").mkdir()
    with pytest.raises(InputError, match=r"labelsTs/case_00210\.nii\.gz: missing.*holds nothing"):
        find_cases(folder)
    shutil.copy(kits19 / NAMES[0] / "segmentation.nii.gz", folder / "labelsTs" / "case_00210.nii.gz")
    assert [case.name for case in find_cases(folder)] == [*NAMES, "case_00210"]
    (folder / "imagesTr" / f"{NAMES[1]}_0000.nii.gz").unlink()
    with pytest.raises(
        InputError, match=rf"imagesTr/{NAMES[1]}_0000.nii.gz: missing; the folder holds {NAMES[0]}"
    ):
        find_cases(folder)


@pytest.mark.parametrize(
    ("labels", "cyst", "values"),
    [
        ({"background": 0, "kidney": 1, "tumor": 2}, None, (0, 1, 2)),
        ({"background": 0, "Kidney": 1, "Tumour": 2}, None, (0, 1, 2)),
        ({"background": 0, "tumor": 1, "kidney": 2}, None, (0, 2, 1)),
        ({"0": "background", "1": "Kidney", "2": "Tumor"}, None, (0, 1, 2)),
        ({"background": 0, "kidney": 1, "tumor": 2, "cyst": 3}, None, (0, 1, 2, None)),
        ({"background": 0, "kidney": 1, "tumor": 2, "cyst": 3}, "kidney", (0, 1, 2, 1)),
        ({"background": 0, "kidney": 1, "cyst": 2, "tumor": 3}, "background", (0, 1, 0, 2)),
        # the regions of KiTS23's hierarchical classes
        ({"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}, None, (0, 1, 2, None)),
        ({"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}, "tumor", (0, 1, 2, 2)),
        ({"background": 0, "kidney": [1, 2], "tumor": 2}, None, (0, 1, 2)),
    ],
)
def test_label_names_of_nnunet(labels, cyst, values):
    assert values_of_labels(labels, cyst, "dataset.json") == values


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "liver": 1, "tumor": 2},
        {"background": 0, "kidney": 1},
        {"background": 0, "kidney": 1, "tumor": 2, "ignore": 3},
        {"kidney": 0, "background": 1, "tumor": 2},
        {"background": 0, "kidney left": 1, "kidney right": 2, "tumor": 3},
        {"background": 0, "kidney": "one", "tumor": 2},
        {"background": 0, "kidney": 1, "tumor": 2000},
        {"background": 0, "kidney": 1.5, "tumor": 2},
        {"background": False, "kidney": True, "tumor": 2},
        ["background", "kidney", "tumor"],
        {},
        None,
    ],
)
def test_other_label_names_are_listed(kits19, tmp_path, labels):
    folder, _ = nnunet(kits19, tmp_path / "data", V2 | {"labels": labels})
    with pytest.raises(InputError) as caught:
        find_cases(folder)
    assert str(caught.value).startswith(f"{folder / 'dataset.json'}: expected")
    assert str(labels) in str(caught.value)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            V2 | {"channel_names": {"0": "CT", "1": "PET"}},
            "one channel, CT, found {'0': 'CT', '1': 'PET'}",
        ),
        (V2 | {"channel_names": {"0": "T2"}}, "one channel, CT, found {'0': 'T2'}"),
        ({"labels": V2["labels"]}, "one channel, CT, found None"),
        (V2 | {"file_ending": ".nrrd"}, "expected file_ending .nii.gz or .nii, found .nrrd"),
        ([1], "nnU-Net dataset (Expected `object`, got `array`)"),
    ],
)
def test_nnunet_datasets_that_are_no_ct(kits19, tmp_path, record, words):
    folder, _ = nnunet(kits19, tmp_path / "data", record)
    with pytest.raises(InputError) as caught:
        find_cases(folder)
    assert words in str(caught.value)


def test_damaged_or_missing_dataset_json(kits19, tmp_path):
    folder, _ = nnunet(kits19, tmp_path / "data")
    (folder / "dataset.json").write_text("{")
    with pytest.raises(InputError, match=r"dataset\.json: .*JSON record"):
        find_cases(folder)
    (folder / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"dataset\.json: missing.*names its channels"):
        find_cases(folder)
    # patterns need no record
    layout = Layout(images="imagesTr/*_0000.nii.gz", labels="labelsTr/*.nii.gz")
    assert [case.name for case in find_cases(folder, layout=layout)] == NAMES


# cysts


@pytest.fixture
def with_cyst(kits19, tmp_path):
    """KiTS23 keeps KiTS19's names: label 3, 24 voxels in slice 4, in the first case."""
    folder = shutil.copytree(kits19, tmp_path / "kits23")
    path = folder / NAMES[0] / "segmentation.nii.gz"
    image = nib.load(path)
    array = np.asanyarray(image.dataobj).copy()
    array[4, 30:34, 20:26] = 3
    nib.save(nib.Nifti1Image(array, image.affine, image.header), path)
    return folder


def test_cysts_are_refused_by_default(with_cyst, tmp_path, spec):
    with pytest.raises(InputError, match=r"found 3 in.* 24 voxels\. .* --cyst kidney, tumor or"):
        preprocess_cases(with_cyst, tmp_path / "cache", spec)


@pytest.mark.parametrize(("cyst", "label"), [("kidney", 1), ("tumor", 2), ("background", 0)])
def test_cysts_become_what_the_option_says(kits19, with_cyst, tmp_path, spec, cyst, label):
    [case, _] = find_cases(with_cyst, layout=Layout(cyst=cyst))
    found = read_labels(case.labels, case.label_values).array
    expected = read_labels(kits19 / NAMES[0] / "segmentation.nii.gz").array.copy()
    expected[4, 30:34, 20:26] = label
    np.testing.assert_array_equal(found, expected)
    # the prediction lacks the cyst: 24 voxels of the truth are missed, unless cysts count as background
    (tmp_path / "out").mkdir()
    shutil.copy(kits19 / NAMES[0] / "segmentation.nii.gz", tmp_path / "out" / "prediction_00003.nii.gz")
    result = evaluate_folders(tmp_path / "out", with_cyst, tmp_path / "s.csv", layout=Layout(cyst=cyst))
    kidney = int((expected > 0).sum()) - 24 * (label > 0)
    tk = 2 * kidney / (2 * kidney + 24 * (label > 0))
    assert result.rows[0]["tk_dice"] == pytest.approx(tk, abs=1e-12)
    single = evaluate_folders(
        tmp_path / "out" / "prediction_00003.nii.gz",
        with_cyst / NAMES[0] / "segmentation.nii.gz",
        tmp_path / "one.csv",
        layout=Layout(cyst=cyst),
    )
    assert single.rows[0]["tk_dice"] == result.rows[0]["tk_dice"]
    with pytest.raises(InputError, match="also found 3"):
        evaluate_folders(tmp_path / "out", with_cyst, tmp_path / "t.csv")


def test_a_cache_made_with_other_cysts_is_refused(with_cyst, tmp_path, spec):
    with pytest.raises(InputError, match="also found 3"):
        preprocess_cases(with_cyst, tmp_path / "cache", spec)
    # the second case has no cyst, so its cached arrays are the same with and without the option
    _, done, kept = preprocess_cases(with_cyst, tmp_path / "cache", spec, layout=Layout(cyst="kidney"))
    assert (done, kept) == (NAMES[:1], NAMES[1:])
    _, done, kept = preprocess_cases(with_cyst, tmp_path / "cache", spec, layout=Layout(cyst="kidney"))
    assert (done, kept) == ([], NAMES)
    with pytest.raises(InputError, match="meaning of labels differ"):
        preprocess_cases(with_cyst, tmp_path / "cache", spec, layout=Layout(cyst="tumor"))


def test_the_report_draws_a_truth_with_cysts(kits19, with_cyst, tmp_path):
    from kitsseg.report.report import write_report

    (tmp_path / "out").mkdir()
    shutil.copy(kits19 / NAMES[0] / "segmentation.nii.gz", tmp_path / "out" / "prediction_00003.nii.gz")
    evaluate_folders(tmp_path / "out", with_cyst, tmp_path / "s.csv", layout=Layout(cyst="kidney"))
    write_report(tmp_path / "s.csv", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "No picture" not in page
    assert "<svg" in page


def test_the_report_of_an_nnunet_dataset_whose_cysts_are_not_mentioned(kits19, tmp_path):
    """The record says that label 3 (cyst) is not allowed. No label map holds it."""
    from kitsseg.report.report import write_report

    labels = {"background": 0, "kidney": 1, "tumor": 2, "cyst": 3}
    folder, _ = nnunet(kits19, tmp_path / "data", V2 | {"labels": labels})
    shutil.copytree(folder / "labelsTr", tmp_path / "out")
    evaluate_folders(tmp_path / "out", folder, tmp_path / "s.csv")
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["cases"][NAMES[0]]["label_values"] == [0, 1, 2, None]
    write_report(tmp_path / "s.csv", tmp_path / "report.html")
    assert "No picture" not in (tmp_path / "report.html").read_text()


def test_an_unknown_word_for_cysts():
    with pytest.raises(InputError, match="cyst: .*background, kidney, tumor, found lesion"):
        Layout(cyst="lesion")


# what is not clear


def test_two_label_maps_or_two_layouts_are_refused(kits19, tmp_path):
    folder = shutil.copytree(kits19, tmp_path / "both")
    shutil.copy(folder / NAMES[0] / "segmentation.nii.gz", folder / NAMES[0] / "aggregated_MAJ_seg.nii.gz")
    with pytest.raises(
        InputError, match=r"found segmentation.nii.gz and aggregated_MAJ_seg.nii.gz. Remove one"
    ):
        find_cases(folder)
    layout = Layout(images="*/imaging.nii.gz", labels="*/segmentation.nii.gz")
    assert [case.name for case in find_cases(folder, layout=layout)] == NAMES
    mixed = shutil.copytree(kits19, tmp_path / "mixed")
    nnunet(kits19, mixed)
    with pytest.raises(InputError, match="one layout, .*case folders .* nnU-Net dataset"):
        find_cases(mixed)


def test_folders_without_cases_say_what_to_do(kits19, tmp_path):
    outer = tmp_path / "repository"
    shutil.copytree(kits19, outer / "data")
    with pytest.raises(
        InputError, match=rf"found none. There are some in {outer / 'data'}: give that folder"
    ):
        find_cases(outer)
    folder, _ = flat(kits19, tmp_path / "flat")
    with pytest.raises(InputError, match=r"which files.*scans .* --images '\*\.nii\.gz'"):
        find_cases(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="Try: kitsseg synthesize"):
        find_cases(tmp_path / "empty")
    (tmp_path / "raw" / "imagesTr").mkdir(parents=True)
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps(V2))
    with pytest.raises(InputError, match=r"images.* imagesTr/case_00000_0000\.nii\.gz, found none"):
        find_cases(tmp_path / "raw")


def test_folders_named_like_files_are_no_files(tmp_path):
    (tmp_path / "case_00000" / "imaging.nii.gz").mkdir(parents=True)
    with pytest.raises(InputError, match="found none"):
        find_cases(tmp_path, need_labels=False)
    (tmp_path / "x.nii").mkdir()
    with pytest.raises(InputError, match=r"x.nii: expected NIfTI .* found none: the folder is empty"):
        find_scans([tmp_path / "x.nii"])


def test_series_beside_nifti_files_are_not_one_layout(kits19, tmp_path):
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "IM1").write_bytes(b"\0" * 128 + b"DICM")
    assert [case.name for case in find_cases(tmp_path, need_labels=False)] == ["anna"]
    with pytest.raises(InputError, match=r"found DICOM series \(anna\)\. .*where the label maps"):
        find_cases(tmp_path)
    (tmp_path / "bert.nii.gz").touch()
    with pytest.raises(InputError, match=r"found DICOM series \(anna\) and NIfTI files \(bert.nii.gz\)"):
        find_cases(tmp_path, need_labels=False)


# patterns


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_what_the_wildcards_stand_for_names_the_case(tmp_path):
    touch(tmp_path, "p1/s2/ct.nii.gz", "p1/s3/ct.nii.gz", ".trash/s1/ct.nii.gz", "p2/._s1/ct.nii.gz")
    layout = Layout(images="*/s*/ct.nii.gz")
    cases = find_cases(tmp_path, need_labels=False, layout=layout)
    assert [case.name for case in cases] == ["p1_2", "p1_3"]
    [case] = find_cases(tmp_path / "p1" / "s2", need_labels=False, layout=Layout(images="ct.nii.gz"))
    assert (case.name, case.image) == ("s2", tmp_path / "p1" / "s2" / "ct.nii.gz")
    # folders can be meant too: those of DICOM series
    cases = find_cases(tmp_path, need_labels=False, layout=Layout(images="*/s?"))
    assert [(case.name, case.image.is_dir()) for case in cases] == [("p1_2", True), ("p1_3", True)]


def test_files_that_lack_their_partner(tmp_path):
    touch(tmp_path, "a_ct.nii", "b_ct.nii", "a_seg.nii", "c_seg.nii")
    layout = Layout(images="*_ct.nii", labels="*_seg.nii")
    with pytest.raises(InputError, match=r"b_seg.nii: missing; the folder holds a_ct.nii"):
        find_cases(tmp_path, need_image=False, layout=layout)
    with pytest.raises(InputError, match=r"c_ct.nii: missing"):
        find_cases(tmp_path, need_labels=False, layout=layout)
    found = find_cases(tmp_path, need_labels=False, need_image=False, layout=layout)
    assert [(case.name, case.labels is not None) for case in found] == [
        ("a", True),
        ("b", False),
        ("c", True),
    ]


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(images="*_ct.nii"), "give --labels too"),
        (Layout(labels="*_ct.nii"), "give --images too"),
        (Layout(images="*_ct.nii", labels="seg.nii"), "same number of wildcards"),
        (Layout(images="*_pet.nii", labels="*_seg.nii"), "expected cases such as *_pet.nii, found none"),
        (Layout(images="**/ct.nii", labels="x"), "'**/ct.nii': expected a pattern"),
        (Layout(images="/data/*", labels="x"), "'/data/*': expected a pattern"),
        (Layout(images="../*", labels="x"), "'../*': expected a pattern"),
        (Layout(images="[ab].nii", labels="x"), "'[ab].nii': expected a pattern"),
        (Layout(images="", labels="x"), "'': expected a pattern"),
        (Layout(images="*/*_ct.nii", labels="*/*_seg.nii"), "a second case called x_y_z beside"),
    ],
)
def test_patterns_that_cannot_be_used(tmp_path, layout, words):
    touch(tmp_path, "a_ct.nii", "x/y_z_ct.nii", "x/y_z_seg.nii", "x_y/z_ct.nii", "x_y/z_seg.nii")
    with pytest.raises(InputError) as caught:
        find_cases(tmp_path, layout=layout)
    assert words in str(caught.value)


# the command line


def test_commands_take_patterns_and_cysts(with_cyst, tmp_path, capsys):
    folder, _ = flat(with_cyst, tmp_path / "flat")
    patterns = ["--images", "*_ct.nii.gz", "--labels", "*_seg.nii.gz"]
    assert main(["preprocess", "unet2d:tiny", str(folder), str(tmp_path / "cache")]) == 1
    assert re.search("which files .*the scans", capsys.readouterr().err)
    assert main(["preprocess", "unet2d:tiny", str(folder), str(tmp_path / "cache"), *patterns]) == 1
    assert "--cyst kidney, tumor or" in capsys.readouterr().err
    command = [
        "preprocess",
        "unet2d:tiny",
        str(folder),
        str(tmp_path / "cache"),
        *patterns,
        "--cyst",
        "kidney",
    ]
    assert main(command) == 0
    assert [path.parent.name for path in sorted(tmp_path.glob("cache/*/*/case.json"))] == NAMES
    (tmp_path / "out").mkdir()
    for name in NAMES:
        shutil.copy(folder / f"{name}_seg.nii.gz", tmp_path / "out" / f"{name}.nii.gz")
    command = ["evaluate", str(tmp_path / "out"), str(folder), "--out", str(tmp_path / "s.csv"), *patterns]
    assert main([*command, "--cyst", "background"]) == 1
    assert "also found 3" in capsys.readouterr().err  # in the prediction
    with pytest.raises(SystemExit):
        main([*command, "--cyst", "lesion"])


def test_the_truth_by_pattern_needs_no_scans(kits19, tmp_path):
    folder, _ = flat(kits19, tmp_path / "flat")
    (tmp_path / "out").mkdir()
    for name in NAMES:
        shutil.copy(folder / f"{name}_seg.nii.gz", tmp_path / "out" / f"{name}.nii.gz")
    command = ["evaluate", str(tmp_path / "out"), str(folder), "--out", str(tmp_path / "s.csv")]
    assert main([*command, "--labels", "*_seg.nii.gz"]) == 0
    summary = json.loads((tmp_path / "s.json").read_text())
    assert [files["image"] for files in summary["cases"].values()] == [None, None]
    assert main([*command, "--images", "*_ct.nii.gz"]) == 1
