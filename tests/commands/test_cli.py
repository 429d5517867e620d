"""The command line. A command that fails writes one clear line and leaves nothing half-written.

A command that succeeds says what it wrote and which command comes next.
"""

import contextlib
import errno
import gzip
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.cases import make_case, read_json, spec_of_tests
from support.recipes import micro_recipe_of_tests

from kitsseg import cli, recipes
from kitsseg.cli import main
from kitsseg.data.cache import one_case
from kitsseg.data.formats.nifti import read_image, read_labels, write_image, write_labels
from kitsseg.inference.products import COLOR_TABLES
from kitsseg.recipe import settings
from kitsseg.records.run import read_history
from kitsseg.runtime.console import console
from kitsseg.runtime.warning_lines import warnings_as_lines
from kitsseg.version import __version__

SPACING = (3.0, 0.8, 0.8)


@pytest.fixture
def micro(monkeypatch):
    """Every recipe name means the micro recipe, so that a training takes seconds."""
    recipe = micro_recipe_of_tests(spec_of_tests())
    monkeypatch.setattr(recipes, "get", lambda name: recipe)
    return recipe


@pytest.fixture
def kitsseg(capsys):
    """A command in this process: (exit code, standard output, standard error)."""

    def call(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def complaint(kitsseg, tmp_path):
    """A function that runs a command that must fail, and returns its one error line without "kitsseg: ".

    No file in tmp_path may change. ``kept`` names the new files that the command leaves; no other file may appear.
    With ``table``, predict lists the scans before it fails.
    """

    def call(*arguments, code=1, kept=(), table=False):
        before = contents(tmp_path)
        found, out, err = kitsseg(*arguments)
        if table:
            assert re.search(r"left out, 0 \D*\n\Z", out)
            out = ""
        assert (found, out) == (code, ""), err
        after = contents(tmp_path)
        assert {path: after[path] for path in before} == before, "a file has changed or is gone"
        assert {Path(path).name for path in set(after) - set(before)} == set(kept)
        return one_line(err)

    return call


def contents(folder):
    """{path: bytes} of all files below a folder; hidden folders are listed too, with None."""
    paths = [path for path in folder.rglob("*") if path.is_file() or path.name.startswith(".")]
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def one_line(err):
    assert err.startswith("kitsseg: ")
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    return err.removeprefix("kitsseg: ").rstrip("\n")


# --- scans and label maps


def truncate(case):
    path = case / "imaging.nii.gz"
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(case):
    path = case / "imaging.nii.gz"
    stored = bytearray(path.read_bytes())
    stored[len(stored) // 2] ^= 4
    path.write_bytes(stored)


def write_text(case):
    (case / "imaging.nii.gz").write_text("<html>404, no such file</html>")


def empty_file(case):
    (case / "imaging.nii.gz").write_bytes(b"")


def stack_two_volumes(case):
    path = case / "imaging.nii.gz"
    image = nib.load(path)
    data = np.stack([np.asarray(image.dataobj)] * 2, axis=-1)
    nib.save(nib.Nifti1Image(data, image.affine), path)


def other_shape(case):
    write_image(case / "segmentation.nii.gz", np.zeros((8, 40, 47), np.uint8), SPACING)


def other_affine(case):
    write_image(case / "segmentation.nii.gz", np.zeros((8, 40, 48), np.uint8), (3.0, 0.8, 0.9))


def label_three(case):
    labels = np.zeros((8, 40, 48), np.uint8)
    labels[1, 2, 3:8] = 3  # five voxels
    write_image(case / "segmentation.nii.gz", labels, SPACING)


def fractions(case):
    write_image(case / "segmentation.nii.gz", np.full((8, 40, 48), 0.5, np.float32), SPACING)


def not_finite(case):
    image = np.zeros((8, 40, 48), np.float32)
    image[3, 2, 1] = np.nan
    write_image(case / "imaging.nii.gz", image, SPACING)


def no_voxels(case):
    path = case / "imaging.nii.gz"
    stored = bytearray(gzip.decompress(path.read_bytes()))
    stored[42:44] = b"\0\0"  # int16 at byte 42 of a NIfTI-1 header: length of the first axis
    path.write_bytes(gzip.compress(bytes(stored)))


def no_data_type(case):
    path = case / "imaging.nii.gz"
    stored = bytearray(gzip.decompress(path.read_bytes()))
    stored[70:72] = b"\x03\0"  # int16 at byte 70 of a NIfTI-1 header: the code of the data type; 4 is int16
    path.write_bytes(gzip.compress(bytes(stored)))


def constant(case):
    write_image(case / "imaging.nii.gz", np.full((8, 40, 48), -1000, np.int16), SPACING)


def one_slice(case):
    write_image(case / "imaging.nii.gz", np.arange(40 * 48, dtype=np.int16).reshape(1, 40, 48), SPACING)


def no_labels(case):
    (case / "segmentation.nii.gz").unlink()


def no_image(case):
    (case / "imaging.nii.gz").unlink()


def a_folder(case):
    (case / "imaging.nii.gz").unlink()
    (case / "imaging.nii.gz").mkdir()


DAMAGED = r"/imaging\.nii\.gz: damaged .*\(.+\)\. Download.*\.$"
SPOILED = {
    truncate: DAMAGED,
    flip_a_bit: DAMAGED,
    write_text: DAMAGED,
    empty_file: r"/imaging\.nii\.gz: damaged .*\(.*empty\)\. Download.*\.$",
    stack_two_volumes: r"/imaging\.nii\.gz: expected one 3-D volume, found 4-D data of shape \(8, 40, 48, 2\)\. "
    r"Split it first\.$",
    other_shape: r"/segmentation\.nii\.gz: .*shape \(8, 40, 48\).*imaging\.nii\.gz.*found \(8, 40, 47\)",
    other_affine: r"/segmentation\.nii\.gz: .*affine.*imaging\.nii\.gz, \[.*-0\.8.*\], "
    r"found \[.*-0\.9.*\]\. Resample",
    label_three: r"/segmentation\.nii\.gz: .*0 background, 1 kidney, 2 tumor.*found 3 in.* 5 voxels\. "
    r"In KiTS21 and KiTS23.*cyst.*--cyst",
    fractions: r"/segmentation\.nii\.gz: .*integers.*found fractions.*image",
    not_finite: r"/imaging\.nii\.gz: HU.*finite.*found NaN or infinity\. Repair",
    no_voxels: r"/imaging\.nii\.gz: .*3-D.*no voxels.*\(0, 40, 48\)",
    no_data_type: r"/imaging\.nii\.gz: damaged .*\(.*data type 3\)\. Download",
    constant: r"/imaging\.nii\.gz: .*CT in HU.*same value.*every voxel.*whole HU\. Export",
    one_slice: r"/imaging\.nii\.gz: .*two axial slices, found 1 .*\(1, 40, 48\).*Export",
    no_labels: r"/segmentation\.nii\.gz: missing.*imaging\.nii\.gz\. Complete or remove",
    no_image: r"/imaging\.nii\.gz: missing.*segmentation\.nii\.gz\. Complete or remove",
    a_folder: r"/imaging\.nii\.gz: .*NIfTI.*DICOM.*a folder without DICOM",
}


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_a_bad_case_is_named_in_one_line(spoil, complaint, tmp_path):
    case = tmp_path / "data" / "case_00000"
    make_case(case)
    spoil(case)
    kept = ["spec.json"] if spoil not in (no_labels, no_image) else []
    message = complaint("preprocess", "unet2d:tiny", tmp_path / "data", tmp_path / "cache", kept=kept)
    assert message.startswith(str(case))
    assert_matches(SPOILED[spoil], message)


def assert_matches(pattern, message):
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(message)


def test_a_scan_larger_than_the_memory(complaint, tmp_path, monkeypatch):
    make_case(tmp_path / "data" / "case_00000")

    def empty(shape, dtype):
        raise MemoryError(f"Unable to allocate {shape}")

    monkeypatch.setattr("kitsseg.data.formats.nifti.np.empty", empty)
    message = complaint("preprocess", "unet2d:tiny", tmp_path / "data", tmp_path / "c", kept=["spec.json"])
    assert_matches(
        r"/case_00000/\w+\.nii\.gz: too large.*memory.*\(8, 40, 48\).*header",
        message,
    )


def test_a_bad_case_leaves_the_whole_ones_before_it(kitsseg, tmp_path):
    for i in range(2):
        make_case(tmp_path / "data" / f"case_{i:05d}", seed=i)
    truncate(tmp_path / "data" / "case_00001")
    code, _, err = kitsseg("preprocess", "unet2d:tiny", tmp_path / "data", tmp_path / "cache")
    assert (code, "case_00001" in one_line(err)) == (1, True)
    (folder,) = (tmp_path / "cache").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["case_00000", "spec.json"]
    make_case(tmp_path / "data" / "case_00001", seed=1)
    code, out, _ = kitsseg("preprocess", "unet2d:tiny", tmp_path / "data", tmp_path / "cache")
    assert code == 0
    assert f"preprocessed 1 cases into {folder} (1 there already)" in out


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (
            "synthesize D --size 3,4",
            "argument --size: expected slices,rows,columns such as 40,128,128, found 3,4",
        ),
        ("synthesize D --size a,b,c", "argument --size: expected slices,rows,columns .* found a,b,c"),
        ("synthesize D --cases 0", "argument --cases: .*whole number from 1, found 0"),
        ("synthesize D --cases few", "argument --cases: .*whole number from 1, found few"),
        ("synthesize D --seed -1", "argument --seed: .*whole number from 0, found -1"),
        ("train unet2d C R --seed -1", "argument --seed: .*whole number from 0, found -1"),
        ("train unet2d C R --epochs 0", "argument --epochs: .*whole number from 1, found 0"),
        (
            "train unet2d C R --batch-size 99999999999",
            "argument --batch-size: .*whole number from 1 to 1048576, found 99999999999",
        ),
        ("train unet2d C R --ema often", "argument --ema: invalid float value: 'often'"),
        ("train unet2d C R --xla yes", "argument --xla: invalid choice: 'yes' .*auto.*on.*off"),
        (
            "train unet2d C R --steps-per-execution 0",
            "argument --steps-per-execution: .*whole number from 1, found 0",
        ),
        ("demo --cases 4", "argument --cases: .*whole number from 5, found 4"),
        ("train", "arguments.*required: recipe, cache, run"),
        ("predict R --out P", "arguments.*required: INPUT"),
        (
            "predict R D --out P --part all",
            "argument --part: invalid choice: 'all' .*train.*validation.*test",
        ),
        ("preprocess unet2d D C --fast", "unrecognized arguments: --fast"),
        ("segment", "invalid choice: 'segment' .*synthesize.*preprocess"),
        ("recipes list", "argument action: invalid choice: 'list' .*show"),
    ],
)
def test_wrong_arguments(arguments, pattern, complaint, tmp_path, monkeypatch):
    """Usual exit code 2, and one line that says where the help is."""
    monkeypatch.chdir(tmp_path)
    message = complaint(*arguments.split(), code=2)
    known = arguments.split()[0]
    assert_matches(pattern, message)
    assert message.endswith((". Try: kitsseg --help", f". Try: kitsseg {known} --help"))


def test_a_size_too_small_for_a_patient(complaint, tmp_path):
    message = complaint("synthesize", tmp_path / "data", "--size", "4,64,64")
    assert_matches(r"--size 4,64,64: .*slices, rows and columns.* 8,32,32", message)


def test_recipes_show_without_a_name(complaint):
    assert_matches(r"recipes show: .*name of a recipe: .*unet2d", complaint("recipes", "show"))


@pytest.mark.parametrize("name", ["vnet", "unet2d:large", "unet2d:", "../unet2d"])
def test_an_unknown_recipe(name, complaint, tmp_path):
    for arguments in (("recipes", "show", name), ("preprocess", name, tmp_path, tmp_path / "cache")):
        message = complaint(*arguments)
        assert message.startswith(f"recipe {name}: expected one of ")
        assert "unet2d" in message.split("expected one of ")[1]
        assert "found no such recipe." in message


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ("preprocess unet2d:tiny nowhere C", "^nowhere: .*folder of cases.* nothing"),
        ("preprocess unet2d:tiny a.txt C", r"^a\.txt: .*folder of cases.* a file"),
        (
            "preprocess unet2d:tiny empty C",
            r"^empty: .*cases.* empty/case_00000/imaging\.nii\.gz, found ",
        ),
        ("synthesize D --labels nowhere", "^nowhere: .*folder of cases.* nothing"),
        (
            "evaluate nowhere empty --out s.csv",
            "^nowhere: .*label map.*folder.*found nothing",
        ),
        (
            "evaluate empty nowhere --out s.csv",
            "^nowhere: .*label map.*folder.*found nothing",
        ),
        (
            "evaluate empty a.txt --out s.csv",
            r"^empty: .*predictions.* none",
        ),
        (
            "evaluate empty empty --out s.txt",
            r"^s\.txt: .*\.csv.*scores",
        ),
        (
            "report nowhere --out r.html",
            r"^nowhere: .*run folder.*scores\.csv.*predictions, found nothing",
        ),
        (
            "report empty --out r.html",
            r"^empty: .*a run, a scores\.csv.*neither run\.json nor predictions\.json.*kitsseg predict",
        ),
        (
            "report a.txt --out r.html",
            r"^a\.txt: .*scores\.csv of kitsseg evaluate.*another file",
        ),
        ("report empty --out r.pdf", r"^r\.pdf: .*name.*\.html"),
        (
            "train unet2d:tiny nowhere R",
            "^nowhere: .*cache preprocess-.*, found none.*kitsseg preprocess",
        ),
        (
            "predict nowhere a.txt --out P",
            "^nowhere: .*folder of a run.*exported network.*starter.*found nothing",
        ),
        (
            "predict empty gone.nii --out P",
            r"^gone\.nii: .*scan.*folder of cases.* nothing",
        ),
    ],
)
def test_input_paths_that_lead_nowhere(arguments, pattern, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("a")
    assert_matches(pattern, complaint(*arguments.split()))


# --- folders in use


def test_cases_are_never_overwritten(complaint, data):
    before = (data / "case_00000" / "imaging.nii.gz").read_bytes()
    message = complaint("synthesize", data, "--cases", 1)
    assert message.startswith(f"{data}/case_00000: ")
    assert (data / "case_00000" / "imaging.nii.gz").read_bytes() == before


def test_folders_in_use(complaint, trained, micro, tmp_path):
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.txt").write_text("the only copy")
    message = complaint("demo", "--out", used)
    assert message.startswith(f"{used}: expected a new folder") and "--out" in message
    # train says beforehand, on standard output, which split it would have used
    message = complaint_after_split(complaint, "train", "unet2d", trained.cache, used)
    assert_matches(rf"^{used}: .*new or empty folder", message)
    message = complaint_after_split(complaint, "train", "unet2d", trained.cache, used / "thesis.txt")
    assert message.startswith(f"{used}/thesis.txt: expected a folder")
    assert (used / "thesis.txt").read_text() == "the only copy"


def complaint_after_split(complaint, *arguments, **options):
    """Like complaint(), for a command that prints something (such as its split) before it fails; nothing is printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "print", lambda *_, **__: None)
        return complaint(*arguments, **options)


def test_a_demo_needs_room(complaint, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 2**40, 77 << 20))
    (tmp_path / "empty").mkdir()
    message = complaint_after_split(complaint, "demo", "--out", tmp_path / "empty")
    assert message == (
        f"{tmp_path}/empty: the demo needs 500 MiB of disk, found 77 MiB free. Free some space."
    )


# --- caches, splits and runs


def test_a_cache_of_another_recipe(complaint, trained, tmp_path):
    message = complaint("train", "unet2d", trained.cache, tmp_path / "run")
    (made,) = trained.cache.iterdir()
    expected = f"preprocess-{recipes.get('unet2d').preprocess.digest()}"
    assert_matches(
        rf"^{trained.cache}: .*{expected}, found.*other recipes: {made.name}\. Run kitsseg preprocess",
        message,
    )
    message = complaint("train", "unet2d", made, tmp_path / "run")
    assert_matches(rf"^{made}: .*cache of version .* made by .*, found .*Use the recipe that", message)


def test_a_cache_without_cases(complaint, trained, micro, tmp_path):
    (made,) = trained.cache.iterdir()
    folder = tmp_path / "cache" / made.name
    folder.mkdir(parents=True)
    shutil.copy(made / "spec.json", folder)
    message = complaint("train", "unet2d", tmp_path / "cache", tmp_path / "run")
    assert message.startswith(f"{folder}: ") and "found none. Run kitsseg preprocess" in message


@pytest.mark.parametrize(
    ("damaged", "pattern"),
    [
        ("spec.json", r"/spec\.json: damaged \(.*\)\. Remove.*kitsseg preprocess"),
        (
            "case_00003/case.json",
            r"/case_00003/case\.json: damaged \(.*\)\. Remove.*kitsseg preprocess",
        ),
    ],
)
def test_a_damaged_cache(damaged, pattern, complaint, trained, micro, tmp_path):
    shutil.copytree(trained.cache, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    stored = (folder / damaged).read_bytes()
    (folder / damaged).write_bytes(stored[: len(stored) // 2])
    assert_matches(pattern, complaint("train", "unet2d", tmp_path / "cache", tmp_path / "run"))


def test_a_damaged_array_in_a_cache(complaint, trained, micro, tmp_path):
    """Found before training starts: inside TensorFlow's threads the message would be lost."""
    shutil.copytree(trained.cache, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    for name in ("image.npy", "labels.npy"):
        path = folder / trained.split.train[0] / name
        stored = path.read_bytes()
        path.write_bytes(stored[: len(stored) // 2])
        message = complaint_after_split(complaint, "train", "unet2d", tmp_path / "cache", tmp_path / name)
        assert_matches(rf"^{path}: missing or damaged \(.+\)\. Remove its folder", message)
        path.write_bytes(stored)


def test_sources_that_have_changed(complaint, kitsseg, tmp_path):
    case = tmp_path / "data" / "case_00000"
    make_case(case)
    arguments = ("preprocess", "unet2d:tiny", tmp_path / "data", tmp_path / "cache")
    assert kitsseg(*arguments)[0] == 0
    make_case(case, seed=7)
    message = complaint(*arguments)
    assert_matches(r"/case_00000: made from other files.*Remove this folder", message)


def test_a_split_that_does_not_fit(complaint, trained, micro, tmp_path):
    def message(split):
        return complaint("train", "unet2d", trained.cache, tmp_path / "run", "--split", split)

    assert_matches(r"^mine: .*split file.*one of .*\w+.*; found neither", message("mine").replace("\n", " "))
    path = tmp_path / "split.json"

    def write(**parts):
        path.write_text(json.dumps({"train": [], "validation": [], "test": []} | parts))

    write(train=["case_00000", "case_00001"], validation=["case_00002"], test=["case_00001"])
    assert_matches(
        rf"^{path}: split split: case_00001.*train.*test",
        message(path),
    )
    write(train=["case_00300"], validation=["case_00002"])
    assert_matches(
        rf"^--split {path}: split split: none.* 1 train cases.* 9 cases.*Preprocess",
        message(path),
    )
    path.write_text('{"train": ["case_00000"]}')
    assert_matches(rf"^{path}: expected JSON.*train, validation and test", message(path))
    path.write_text('{"train": [["case_00000"]], "validation": [{}], "test": []}')
    assert_matches(rf"^{path}: .*\$\.train\[0\]", message(path))
    path.write_bytes(b"\xff\xfe\x00")
    assert_matches(rf"^{path}: expected JSON .*malformed", message(path))


def test_too_few_cases_for_a_split(complaint, kitsseg, micro, tmp_path):
    make_case(tmp_path / "data" / "case_00000")
    assert kitsseg("preprocess", "unet2d", tmp_path / "data", tmp_path / "cache")[0] == 0
    message = complaint("train", "unet2d", tmp_path / "cache", tmp_path / "run")
    assert_matches(r"split into 3 parts.*cases, found 1", message)


def test_a_run_without_weights(complaint, trained, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    record = read_json(trained.run / "run.json") | {"status": "training"}
    (run / "run.json").write_text(json.dumps(record))
    message = complaint("predict", run, trained.data, "--out", tmp_path / "out")
    command = f"kitsseg train unet2d:micro CACHE {run} --resume"
    assert_matches(rf"^{run}/model\.keras: missing.*'training'.*{command}$", message)


def test_a_damaged_run(complaint, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    stored = (run / "model.keras").read_bytes()
    (run / "model.keras").write_bytes(stored[: len(stored) // 2])
    predict = ("predict", run, trained.data, "--out", tmp_path / "out")
    assert_matches(
        rf"^{run}/model\.keras: .*weights.*training.*found.*train again",
        complaint(*predict),
    )
    for text in ('{"status": "fini', "[1, 2]", "\udcff"):
        (run / "run.json").write_bytes(text.encode(errors="surrogateescape"))
        assert_matches(rf"^{run}/run\.json: .*record of a run.*Train again\.$", complaint(*predict))
    shutil.copy(trained.run / "run.json", run)
    (run / "history.csv").write_text(
        "phase,epoch,learning_rate,loss,val_loss\ntrain,1,0.1,0.5,0.4\ntrain,two,0.1,0.4,0.3\n"
    )
    message = complaint("report", run, "--out", tmp_path / "report.html")
    others = r".*row.*each epoch.*\(.*two.*\)\. Train again\.$"
    assert_matches(rf"^{run}/history.csv: {others}", message)


def test_a_run_that_has_finished_is_not_resumed(complaint, trained, micro):
    message = complaint_after_split(
        complaint, "train", "unet2d", trained.cache, trained.run, "--seed", 5, "--resume"
    )
    assert message.startswith(f"{trained.run}: this run has finished")


def test_a_part_without_scans(complaint, trained, tmp_path):
    scan = trained.data / trained.split.train[0]
    message = complaint("predict", trained.run, scan, "--out", tmp_path / "out", "--part", "test")
    tested = len(trained.split.test)
    assert_matches(rf"^--part test: .* {tested} test cases.*split, found none among 1 scans", message)


def test_a_bad_scan_among_good_ones(complaint, trained, tmp_path):
    """The good scan is segmented and its label map is whole; the message names the bad scan."""
    for i in range(2):
        make_case(tmp_path / "data" / f"case_{i:05d}", seed=i)
    truncate(tmp_path / "data" / "case_00001")
    kept = ["prediction_00000.nii.gz", "predictions.json", *COLOR_TABLES]
    arguments = ("predict", trained.run, tmp_path / "data", "--out", tmp_path / "out")
    message = complaint_after_split(complaint, *arguments, kept=kept)  # what was found is shown before
    expected = rf"^1 of 2 scans failed.*: case_00001 \({tmp_path}/data/case_00001/imaging\.nii\.gz: "
    assert_matches(
        expected + r"damaged .*\)\. .*/predictions\.json lists them.*same command",
        message,
    )
    assert read_labels(tmp_path / "out" / kept[0]).array.shape == (8, 40, 48)
    assert list(read_json(tmp_path / "out" / kept[1])["cases"]) == ["case_00000"]
    make_case(tmp_path / "more" / "case_00000", seed=3)
    arguments = ("predict", trained.run, tmp_path / "data", tmp_path / "more", "--out", tmp_path / "two")
    message = complaint_after_split(complaint, *arguments, kept=["predictions.json"])
    assert_matches(
        r"^3 of 3 scans failed: .*/data/case_00000/imaging.nii.gz: .*--images '\*/\*/imaging", message
    )
    assert_matches(r"/predictions\.json lists 1 of them; the same command tries them again\.$", message)


# --- scores and reports


@pytest.fixture
def predicted(data, tmp_path):
    """A folder with a perfect prediction of one of the nine cases."""
    image = read_image(data / "case_00004" / "imaging.nii.gz")
    labels = read_labels(data / "case_00004" / "segmentation.nii.gz").array
    write_labels(tmp_path / "predictions" / "prediction_00004.nii.gz", labels, image.grid)
    return tmp_path / "predictions"


def test_predictions_that_cannot_be_scored(complaint, data, predicted, tmp_path):
    arguments = ("evaluate", predicted, data, "--out", tmp_path / "scores.csv")
    file = predicted / "prediction_00004.nii.gz"
    whole = file.read_bytes()

    file.rename(predicted / "prediction_00099.nii.gz")
    message = complaint(*arguments)
    assert_matches(
        rf"^{predicted}/prediction_00099\.nii\.gz: no truth.*expected "
        rf"{data}/case_00099/segmentation\.nii\.gz, found .*case_00000",
        message,
    )
    (predicted / "prediction_00099.nii.gz").unlink()

    write_image(file, np.zeros((8, 40, 47), np.uint8), SPACING)
    message = complaint(*arguments)
    assert_matches(
        rf"^{file}: .*\(slices, rows, columns\) \(8, 40, 47\), "
        rf"its truth {data}/case_00004/segmentation\.nii\.gz \(8, 40, 48\)\. Predict",
        message,
    )
    # rows of 0.9 instead of 0.8 mm: the last of 40 lies 39 * 0.1 = 3.9 mm away
    write_image(file, np.zeros((8, 40, 48), np.uint8), (3.0, 0.9, 0.8))
    assert_matches(rf"^{file}: .*3\.9 mm away from", complaint(*arguments))

    write_image(file, np.full((8, 40, 48), 3, np.uint8), SPACING)
    assert_matches(rf"^{file}: .*0 background, 1 kidney, 2 tumor.*found 3", complaint(*arguments))

    file.write_bytes(whole[:-40])
    assert_matches(rf"^{file}: damaged or not NIfTI .*Download", complaint(*arguments))

    file.write_bytes(whole)
    shutil.copy(file, predicted / "case_00004.nii.gz")
    assert_matches(
        r"/prediction_00004.nii.gz: a second prediction of case_00004, beside ", complaint(*arguments)
    )
    (predicted / "case_00004.nii.gz").unlink()

    (predicted / "predictions.json").write_text('{"run": "somewh')
    message = complaint(*arguments)
    assert_matches(r"/predictions\.json: .*record of kitsseg predict.*\(.*Predict again", message)


def test_scores_that_are_damaged(complaint, kitsseg, data, predicted, tmp_path):
    scores = tmp_path / "scores.csv"
    assert kitsseg("evaluate", predicted, data, "--out", scores)[0] == 0
    arguments = ("report", scores, "--out", tmp_path / "report.html")
    whole = scores.read_text()
    head, row = whole.splitlines()
    again = r"\. Run kitsseg evaluate.*\.$"
    others = rf"^{scores}: .*scores of kitsseg evaluate.* others \(.*\){again}"
    for text, pattern in (
        (whole[: len(head) + 40], others),
        (head.replace("tumor_recall", "tumour_recall") + "\n" + row + "\n", others),
        (head.replace("truth_tumor_ml", "tumor") + "\n" + row + "\n", others),
        (whole.replace("1.0", "one"), others),
        ("", others),
        (
            whole.replace("case_00004", "case_00005"),
            rf"^{scores}: has 1 cases, scores.json beside it 1 others",
        ),
        (
            whole.replace("1.0", "0.9", 1),
            rf"^{scores}: the mean of tk_dice is not the 1 of scores.json{again}",
        ),
    ):
        assert text != whole
        scores.write_text(text)
        assert_matches(pattern, complaint(*arguments))
    scores.write_text(whole)
    (tmp_path / "scores.json").write_text("{")
    summary = rf"^{tmp_path}/scores\.json: .*summary of kitsseg evaluate, .*{again}"
    assert_matches(summary, complaint(*arguments))


# --- disks and folders that cannot be written


class FullDisk:
    """A file on a disk without any room."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def writing_commands(trained, tmp_path):
    """Each command that writes: (its arguments, the first file it writes)."""
    return {
        "synthesize": (("synthesize", tmp_path / "out", "--size", "8,32,32"), "case_00000"),
        "preprocess": (("preprocess", "unet2d", trained.data, tmp_path / "out"), "spec.json"),
        "train": (("train", "unet2d", trained.cache, tmp_path / "out"), "split.json"),
        "predict": (
            ("predict", trained.run, trained.data, "--out", tmp_path / "out", "--part", "test"),
            f"prediction_{trained.split.test[0].removeprefix('case_')}.nii.gz",
        ),
        "evaluate": (("evaluate", trained.data, trained.data, "--out", tmp_path / "out" / "s.csv"), "s.json"),
        "report": (("report", trained.run, "--out", tmp_path / "out" / "report.html"), "report.html"),
    }


COMMANDS = ["synthesize", "preprocess", "train", "predict", "evaluate", "report"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk(command, complaint, trained, micro, tmp_path, monkeypatch):
    arguments, first = writing_commands(trained, tmp_path)[command]
    path_open = Path.open

    def full(self, mode="r", *args, **kwargs):
        file = path_open(self, mode, *args, **kwargs)
        return FullDisk(file) if "w" in mode else file

    monkeypatch.setattr(Path, "open", full)
    message = complaint_after_split(complaint, *arguments)
    monkeypatch.undo()
    assert_matches(
        rf"^{tmp_path}/out/(.*/)?{first}: no space left.*Free some space",
        message,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_made(command, complaint, trained, micro, tmp_path):
    """The folder would lie below a file, where even root cannot make it."""
    (tmp_path / "out").write_text("a file")
    arguments, _ = writing_commands(trained, tmp_path)[command]
    if command in ("train", "predict", "preprocess"):
        arguments = [tmp_path / "out" / "below" if item == tmp_path / "out" else item for item in arguments]
    message = complaint_after_split(complaint, *arguments)
    assert_matches(
        rf"^{tmp_path}/out(/.*)?: (not a directory\. .*part.*is a file|file exists\. .+)",
        message,
    )


def test_a_folder_that_may_not_be_written(complaint, trained, tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        assert (
            self.name != "report.html"
        )  # a hidden temporary file is written; the message must name report.html
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    message = complaint("report", trained.run, "--out", tmp_path / "report.html")
    assert message.startswith(f"{tmp_path}/report.html: permission denied")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_folder_of_the_system(complaint):
    message = complaint("synthesize", "/proc/data", "--size", "8,32,32")
    assert message.startswith("/proc/data: no such file")


@contextlib.contextmanager
def largest_file(size):
    """Writes beyond ``size`` bytes really fail, as on a full disk: EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_writes_that_really_fail(tmp_path):
    """A process that cannot write files of more than 4 KiB; the cached scan is larger."""
    make_case(tmp_path / "data" / "case_00000", shape=(20, 120, 120))
    before = contents(tmp_path)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = subprocess.run(
        [sys.executable, "-m", "kitsseg", "preprocess", "unet2d:tiny", "data", "cache"],
        cwd=tmp_path,
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert_matches(
        r"^cache/preprocess-\w+/case_00000: file too large\. Raise the limit",
        one_line(done.stderr),
    )
    assert {Path(path).name for path in set(contents(tmp_path)) - set(before)} == {"spec.json"}


def test_labels_that_do_not_fit(complaint, micro, tmp_path):
    """The box of the labels, 4 * 15 * 12 = 720 bytes, and its header of 128 exceed 800 bytes; spec.json does not."""
    make_case(tmp_path / "data" / "case_00000")
    with largest_file(800):
        message = complaint("preprocess", "unet2d", tmp_path / "data", tmp_path / "cache", kept=["spec.json"])
    assert_matches(r"/case_00000: file too large\. Raise", message)


@pytest.mark.slow
def test_weights_that_do_not_fit(kitsseg, complaint, trained, micro, tmp_path):
    """The run stays as it was after the last whole epoch, and goes on when there is room."""
    run = tmp_path / "run"
    size = (trained.run / "model.keras").stat().st_size
    arguments = ("train", "unet2d", trained.cache, run, "--epochs", 1)
    with largest_file(size // 2):
        message = complaint_after_split(complaint, *arguments, kept=["run.json", "split.json"])
    assert_matches(
        rf"^{run}/checkpoint/train-00001.keras: .*(file too large|[Cc]an't write|errno = 27)", message
    )
    assert read_json(run / "run.json")["status"] == "training"
    code, out, err = kitsseg(*arguments, "--resume")
    assert (code, err) == (0, "")
    assert f"trained {micro.name}: wrote {run}" in out
    assert [row["epoch"] for row in read_history(run)] == [1]


# --- Ctrl-C


def test_ctrl_c(complaint, tmp_path, monkeypatch):
    make_case(tmp_path / "data" / "case_00000")

    def press(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(one_case, "_write_stream", press)
    message = complaint(
        "preprocess", "unet2d:tiny", tmp_path / "data", tmp_path / "cache", code=130, kept=["spec.json"]
    )
    assert message.startswith("interrupted")


# --- what goes well


def test_without_arguments_the_help(kitsseg):
    code, out, err = kitsseg()
    assert (code, err) == (0, "")
    assert (code, out) == kitsseg("--help")[:2]
    assert out.startswith("usage: kitsseg ")
    for command in (*COMMANDS, "recipes", "demo"):
        assert f"\n    {command}" in out
    assert "not a medical device" in " ".join(out.split())


def test_version(kitsseg):
    assert kitsseg("--version") == (0, f"kitsseg {__version__}\n", "")


def test_the_list_of_recipes(kitsseg, monkeypatch):
    monkeypatch.setattr(console, "width", 1000)
    code, out, err = kitsseg("recipes")
    assert (code, err) == (0, "")
    for name in recipes.names():
        recipe = recipes.get(name)
        (row,) = [line for line in out.splitlines() if f" {name} " in line and recipe.claim in line]
        assert recipe.paper in row
    assert f"next: kitsseg recipes show {recipes.names()[0]}\n" in out


@pytest.mark.parametrize("name", recipes.names())
def test_every_variant_is_listed_and_shows_its_changes_only(name, kitsseg, monkeypatch):
    monkeypatch.setattr(console, "width", 1000)
    _, listed, _ = kitsseg("recipes")
    for variant in recipes.variants(name):
        assert f" {name}:{variant.name} " in listed
        code, out, err = kitsseg("recipes", "show", f"{name}:{variant.name}")
        assert (code, err) == (0, "")
        rows = [
            tuple(cell.strip() for cell in line.split("│")[1:-1]) for line in out.splitlines() if "│" in line
        ]
        changes = [(row[0], row[3]) for row in rows if len(row) == 4]
        assert changes == [(key, variant.evidence[key]) for key in variant.changes]
        for key, value in variant.reported.items():
            assert (key, f"{value:,}") in rows


@pytest.mark.parametrize("variant", ["", ":practical", ":tiny"])
@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_with_the_evidence_of_every_setting(name, variant, kitsseg, monkeypatch):
    monkeypatch.setattr(console, "width", 1000)
    code, out, err = kitsseg("recipes", "show", name + variant)
    assert (code, err) == (0, "")
    recipe = recipes.get(name + variant)
    assert out.startswith(f"{recipe.name}: {recipe.paper}\n{recipe.claim}\n{recipe.link}\n")
    rows = [tuple(cell.strip() for cell in line.split("│")[1:-1]) for line in out.splitlines() if "│" in line]
    shown = [(key, value) for key, value in settings(recipe) if value is not None and value != ()]
    assert len(shown) > 10
    for key, value in shown:
        assert (key, str(value), recipe.evidence[key]) in rows
    for key, value in recipe.reported.items():
        assert (key, f"{value:,}") in rows
    assert f"preprocess-{recipe.preprocess.digest()}\n" in out


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """In an empty working folder, unet2d:tiny means the micro recipe with the preprocessing of unet2d:tiny."""
    spec = recipes.get("unet2d:tiny").preprocess
    micro = replace(micro_recipe_of_tests(spec_of_tests()), name="unet2d:tiny", preprocess=spec)
    monkeypatch.setattr(recipes, "get", lambda name: {"unet2d:tiny": micro}[name])
    monkeypatch.chdir(tmp_path)
    return micro


@pytest.mark.slow
def test_the_whole_road(kitsseg, tiny, tmp_path):
    """Each command names the files that it wrote and the next command. The files exist, and the next command works."""

    def succeed(command):
        code, out, err = kitsseg(*command.split())
        assert (code, err) == (0, ""), err
        return out.splitlines()

    assert succeed("synthesize DATA --cases 5 --size 16,48,48") == [
        "wrote 5 synthetic patients to DATA",
        "next: kitsseg preprocess unet2d:tiny DATA CACHE",
    ]
    cases = [f"case_{i:05d}" for i in range(5)]
    assert sorted(path.name for path in Path("DATA").iterdir()) == cases

    folder = f"CACHE/preprocess-{tiny.preprocess.digest()}"
    assert succeed("preprocess unet2d:tiny DATA CACHE") == [
        f"preprocessed 5 cases into {folder}",
        "next: kitsseg train unet2d:tiny CACHE RUN",
    ]
    assert sorted(path.name for path in Path(folder).iterdir()) == [*cases, "spec.json"]

    # 80/10/10 of 5 is 4, 0.5 and 0.5: a part gets at least one case
    lines = succeed("train unet2d:tiny CACHE RUN --epochs 1")
    record = read_json("RUN/run.json")
    computes = lines.pop(1)
    assert lines == [
        f"split 80-10-10 of 5, 3/1/1 cases to train, validate and test, hash {record['split']['hash']}",
        "trained unet2d:tiny: wrote RUN, its weights in model.keras, its losses in history.csv, a card of it in "
        "model_card.md",
        "next: kitsseg predict RUN DATA --out PREDICTIONS --part test",
    ]
    assert "the CPU, float32" in computes or "GPU, float32" in computes
    assert (record["status"], record["phantom"]) == ("finished", True)
    assert Path("RUN/model.keras").is_file()

    (test,) = record["split"]["cases"]["test"]
    assert succeed("predict RUN DATA --out PREDICTIONS --part test") == [
        "wrote 1 label map to PREDICTIONS, computed by tensorflow, beside them colors for 3D Slicer and ITK-SNAP",
        "next: kitsseg report PREDICTIONS --out report.html",
        "with reference label maps: kitsseg evaluate PREDICTIONS TRUTH --out scores.csv",
    ]
    file = Path("PREDICTIONS") / f"prediction_{test.removeprefix('case_')}.nii.gz"
    names = sorted([file.name, "predictions.json", *COLOR_TABLES])
    assert sorted(path.name for path in Path("PREDICTIONS").iterdir()) == names
    scan = nib.load(Path("DATA") / test / "imaging.nii.gz")
    assert nib.load(file).shape == scan.shape == (16, 48, 48)
    np.testing.assert_array_equal(nib.load(file).affine, scan.affine)

    lines = succeed("evaluate PREDICTIONS DATA --out scores.csv")
    assert lines[-2:] == [
        "wrote scores.csv and scores.json",
        "next: kitsseg report scores.csv --out report.html",
    ]
    mean = read_json("scores.json")["scores"]["composite"]["mean"]
    row = next(
        line.split() for line in lines if re.match(r"mean +\d", line)
    )  # not the "mean IoU" of the ladder
    assert row[3] == f"{mean:.4f}"
    assert any("phantom" in line for line in lines)

    assert succeed("report scores.csv --out report.html") == [
        "wrote report.html: open it in a browser",
        "next: kitsseg compare scores.csv OTHER_SCORES",
    ]
    page = Path("report.html").read_text()
    assert test in page
    assert "Phantom results" in page
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.slow
def test_the_demo_shows_commands_that_do_what_it_did(kitsseg, tiny):
    code, out, err = kitsseg("demo", "--cases", "5", "--out", "a folder")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    shown = [shlex.split(line)[2:] for line in lines if line.startswith("$ kitsseg ")]
    assert [words[0] for words in shown] == [
        "synthesize",
        "preprocess",
        "train",
        "predict",
        "evaluate",
        "report",
    ]
    assert not any(line.startswith("next:") for line in lines)
    assert "  open a folder/report.html  scores, training curves and pictures, in a browser" in lines
    Path("a folder").rename("first")
    Path("a folder").mkdir()
    shutil.copy("first/split.json", "a folder")
    for words in shown:
        assert kitsseg(*words)[::2] == (0, ""), words
    first, second = (read_json(f"{folder}/scores.json") for folder in ("first", "a folder"))
    assert first["split"] == second["split"]
    assert first["cases"] == second["cases"]  # the same label maps, by their hashes, and the same places


def test_real_labels_can_be_rendered(kitsseg, data, tmp_path):
    code, out, _ = kitsseg("synthesize", tmp_path / "rendered", "--labels", data)
    assert code == 0
    assert out.startswith(f"wrote 9 synthetic patients to {tmp_path / 'rendered'}\n")
    for case in data.iterdir():
        copied = tmp_path / "rendered" / case.name / "segmentation.nii.gz"
        assert copied.read_bytes() == (case / "segmentation.nii.gz").read_bytes()


def test_a_warning_of_kitsseg_is_a_line_and_one_of_others_stays_a_warning(capsys):
    inside, outside = str(Path(cli.__file__).parent / "training" / "train.py"), "/elsewhere/other.py"
    with warnings_as_lines():
        warnings.warn_explicit("[so] it is", UserWarning, inside, 3, "kitsseg.training.train")
        warnings.warn_explicit("[so] it is", UserWarning, inside, 3, "kitsseg.training.train")
        with pytest.raises(UserWarning, match="of others"):  # the tests take warnings for errors
            warnings.warn_explicit("of others", UserWarning, outside, 3, "other")
        with pytest.raises(DeprecationWarning, match="old"):
            warnings.warn_explicit("old", DeprecationWarning, inside, 3, "kitsseg.training.train")
    assert capsys.readouterr().out.splitlines() == 2 * ["warning: [so] it is"]
    with pytest.raises(UserWarning, match="after it"):
        warnings.warn_explicit("after it", UserWarning, inside, 3, "kitsseg.training.train")
