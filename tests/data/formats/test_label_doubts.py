"""Label maps of no patient are found; those of KiTS19, of phantoms and of parts of a patient raise no alarm."""

import csv
import tracemalloc

import numpy as np
import pytest
from support.nifti_files import write_nifti

from kitsseg.cli import main
from kitsseg.data.formats.grid import Volume
from kitsseg.data.formats.label_doubts import (
    LabelSummary,
    doubts_about_labels,
    share_in_air,
    summary_of,
)
from kitsseg.data.formats.nifti import read_image, read_labels
from kitsseg.data.phantoms.synthesize import synthesize_cases


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """(image, labels): Volumes of a phantom."""
    [case] = synthesize_cases(tmp_path_factory.mktemp("phantom"), 1, (30, 72, 72), seed=3)
    return read_image(case / "imaging.nii.gz"), read_labels(case / "segmentation.nii.gz")


def one_voxel(labels):
    one = np.zeros_like(labels)
    one[tuple(np.argwhere(labels)[0])] = 1
    return one


def with_little_tumor(labels):
    """In 40 % of the cases of KiTS19 the tumor is larger than 45 ml: its size does not tell it from a kidney."""
    little = np.minimum(labels, 1)
    little.ravel()[np.flatnonzero(labels == 2)[:30]] = 2
    return little


def body(labels):
    return np.pad(np.ones_like(labels[3:-3, 12:-12, 12:-12]), ((3, 3), (12, 12), (12, 12)))


WRONG = {
    "empty": (np.zeros_like, "only background", "leave the case out"),
    "all ones": (np.ones_like, "100% of the outermost voxels", "may be exchanged"),
    "inverted": (
        lambda labels: (labels == 0).astype(np.uint8),
        "of the outermost voxels",
        "may be exchanged",
    ),
    "background and kidney exchanged": (
        lambda labels: np.array([1, 0, 2], np.uint8)[labels],
        "outermost",
        "exchanged",
    ),
    "background and tumor exchanged": (
        lambda labels: np.array([2, 1, 0], np.uint8)[labels],
        "outermost",
        "exchanged",
    ),
    "the body": (body, "ml of kidney", "map of the body"),
    "one voxel": (one_voxel, "in 1 voxels", "incomplete"),
    "kidney and tumor exchanged": (
        lambda labels: np.array([0, 2, 1], np.uint8)[with_little_tumor(labels)],
        "ml of kidney and",
        "kidney (1) and tumor (2) may be exchanged",
    ),
    "tumor alone": (
        lambda labels: 2 * (labels > 0).astype(np.uint8),
        "0 ml of kidney and",
        "may be exchanged",
    ),
    "rolled into the air in front": (lambda labels: np.roll(labels, -34, 1), "in air", "flipped, moved"),
    "rolled into the air beside": (lambda labels: np.roll(labels, 22, 2), "in air", "flipped, moved"),
}
RIGHT = {
    "as it is": lambda labels: labels,
    "without tumor": lambda labels: (labels == 1).astype(np.uint8),
    "tumor is kidney": lambda labels: (labels > 0).astype(np.uint8),
    "one side": lambda labels: labels * (np.arange(labels.shape[2]) < labels.shape[2] // 2).astype(np.uint8),
    "half of the slices": lambda labels: (
        labels * (np.arange(len(labels)) < 15)[:, None, None].astype(np.uint8)
    ),
    "one slice": lambda labels: labels * (np.arange(len(labels)) == 15)[:, None, None].astype(np.uint8),
}


def doubts(image, labels, array):
    summary = summary_of(Volume(labels.path, array, labels.grid))
    return doubts_about_labels(summary, share_in_air(summary, image))


@pytest.mark.parametrize("name", WRONG)
def test_labels_of_no_patient_are_found(phantom, name):
    image, labels = phantom
    change, found, advice = WRONG[name]
    array = change(labels.array)
    [doubt] = doubts(image, labels, array)
    assert doubt.check == "size and place of the labels"
    assert found in doubt.found
    assert advice in doubt.advice
    assert "\n" not in str(doubt)


@pytest.mark.parametrize("name", RIGHT)
def test_labels_of_a_patient_raise_no_alarm(phantom, name):
    image, labels = phantom
    assert doubts(image, labels, RIGHT[name](labels.array)) == []


def test_crops_of_a_patient_raise_no_alarm(phantom):
    image, labels = phantom
    slices, rows, columns = (slice(where.min(), where.max() + 1) for where in np.nonzero(labels.array))
    for crop in (
        (slices, rows, columns),
        (slice(None), rows, slice(None)),
        (slice(10, 20), rows, slice(0, 36)),
    ):
        assert doubts(Volume(None, image.array[crop], image.grid), labels, labels.array[crop]) == []


@pytest.mark.parametrize("size", [(8, 32, 32), (16, 128, 128)])
def test_phantoms_raise_no_alarm(tmp_path, size):
    for case in synthesize_cases(tmp_path, 4, size, seed=1):
        labels = read_labels(case / "segmentation.nii.gz")
        assert doubts(read_image(case / "imaging.nii.gz"), labels, labels.array) == []


def test_a_scan_of_another_shape_is_not_compared(phantom):
    image, labels = phantom
    summary = summary_of(Volume(None, np.roll(labels.array, -34, 1), labels.grid))
    assert share_in_air(summary, Volume(None, image.array[:-1], image.grid)) == 0


def test_the_summary_counts_all_voxels_and_those_at_the_border(phantom):
    _, labels = phantom
    array = np.random.default_rng(0).integers(0, 3, labels.array.shape).astype(np.uint8)
    summary = summary_of(Volume(None, array, labels.grid))
    border = np.ones(array.shape, bool)
    border[1:-1, 1:-1, 1:-1] = False
    ml = np.prod(labels.grid.spacing_mm) / 1000
    assert summary.border_share == pytest.approx((array[border] > 0).mean())
    assert summary.kidney_ml == pytest.approx((array == 1).sum() * ml)
    assert summary.tumor_ml == pytest.approx((array == 2).sum() * ml)
    assert summary.voxels == np.count_nonzero(array)
    assert (array.ravel()[summary.sample] > 0).all()


def test_the_summary_copies_no_label_map(phantom):
    _, labels = phantom
    array = np.ones((400, 200, 200), np.uint8)
    tracemalloc.start()
    summary_of(Volume(None, array, labels.grid))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < array.nbytes / 2  # of labels that are everywhere, of which the sample is largest


def test_the_label_maps_of_kits19_raise_no_alarm(real_data):
    found = sorted((real_data / "kits19").glob("case_*/segmentation.nii.gz"))
    assert found
    for path in found:
        assert doubts_about_labels(summary_of(read_labels(path))) == [], path


def test_the_sizes_of_all_210_cases_of_kits19_raise_no_alarm(real_data):
    with (real_data / "kits19_label_stats.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 210
    for row in rows:
        ml = float(row["sz"]) * float(row["sy"]) * float(row["sx"]) / 1000
        kidney, tumor = int(row["kidney_voxels"]), int(row["tumour_voxels"])
        shape = (int(row["nz"]), int(row["ny"]), int(row["nx"]))
        summary = LabelSummary(shape, kidney + tumor, kidney * ml, tumor * ml, 0.0, np.zeros(0, np.int64))
        assert doubts_about_labels(summary) == [], row


def test_the_kidneys_of_a_real_ct_raise_no_alarm(real_data):
    image, labels = (read(real_data / "real_ct" / name) for read, name in (
        (read_image, "abdomen_ct.nii.gz"), (read_labels, "abdomen_kidneys.nii.gz")))  # fmt: skip
    assert doubts(image, labels, labels.array) == []


# the commands

NAMES = ("empty", "inverted", "the body", "kidney and tumor exchanged", "rolled into the air in front")


def with_number(hu, number):
    hu = hu.copy()
    hu[0, 0, 0] += number  # verify refuses an image that two cases have
    return hu


def cases(folder, phantom, names):
    image, labels = phantom
    for number, name in enumerate(names):
        case = folder / f"case_9000{number}"
        write_nifti(
            case / "imaging.nii.gz",
            image.grid.file_view(with_number(image.array, number)),
            image.grid.header.get_best_affine(),
        )
        array = labels.array if name is None else WRONG[name][0](labels.array)
        write_nifti(
            case / "segmentation.nii.gz", labels.grid.file_view(array), labels.grid.header.get_best_affine()
        )
    return folder


def test_verify_warns_of_each_case(tmp_path, capsys, phantom):
    folder = cases(tmp_path / "data", phantom, (*NAMES, None))
    assert main(["verify", str(folder), "--not-kits19"]) == 0
    out = capsys.readouterr().out
    assert f"no errors, {len(NAMES)} warnings" in out
    for number in range(len(NAMES)):
        assert sum(f"case_9000{number}" in line for line in out.splitlines() if "warning" in line) == 1


def test_verify_of_labels_alone_warns_of_their_sizes(tmp_path, capsys, phantom):
    folder = cases(tmp_path / "data", phantom, ("empty", "rolled into the air in front", None))
    assert main(["verify", str(folder), "--not-kits19", "--labels-only"]) == 0
    assert "no errors, 1 warnings" in capsys.readouterr().out.replace("1 warning\n", "1 warnings\n")


def test_preprocess_warns_in_a_line_that_names_the_file_also_of_cases_that_were_there(
    tmp_path, capsys, phantom
):
    folder = cases(tmp_path / "data", phantom, ("the body", None))
    for _ in range(2):
        assert main(["preprocess", "unet2d:tiny", str(folder), str(tmp_path / "cache")]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
        [line] = [line for line in lines if "KiTS19" not in line]
        assert str(folder / "case_90000" / "segmentation.nii.gz") in line
        assert "ml of kidney" in line


def test_a_case_without_labels_or_with_damaged_ones_is_not_judged(tmp_path, capsys, phantom):
    folder = cases(tmp_path / "data", phantom, (None,))
    labels = folder / "case_90000" / "segmentation.nii.gz"
    labels.write_bytes(labels.read_bytes()[:-20])
    assert main(["verify", str(folder), "--not-kits19"]) == 1
    assert "size and place of the labels" not in " ".join(capsys.readouterr().out.split())
