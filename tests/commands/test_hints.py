"""Every hint can be followed: it names an option that the command has, the nearest valid name, or the next step."""

import re
import shlex
import shutil
from dataclasses import replace

import pytest
from support.cases import make_case, read_json

from kitsseg import recipes
from kitsseg.cli import build_parser, main
from kitsseg.commands.arguments import layout_of, layout_options
from kitsseg.data.layouts.find import Layout
from kitsseg.data.phantoms.synthesize import synthesize_cases
from kitsseg.data.splits import make_split
from kitsseg.errors import InputError, command_line, did_you_mean
from kitsseg.records.run import create_run, read_run, update_run


def said(capsys, *arguments, code=1):
    """The one line of an error."""
    try:
        found = main([str(argument) for argument in arguments])
    except SystemExit as error:
        found = error.code
    text = capsys.readouterr().err
    assert found == code, text
    [line] = text.splitlines()
    return line.removeprefix("kitsseg: ")


def options_of(command):
    """All options of a command, from its own help."""
    commands = build_parser()._subparsers._group_actions[0].choices
    return {option for action in commands[command]._actions for option in action.option_strings}


# options that the command has


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def flat(folder):
    for number in range(2):
        touch(folder / f"patient{number}.nii.gz")


def dicom_tree(folder):
    (folder / "patient1" / "study1" / "series2").mkdir(parents=True)
    (folder / "patient1" / "study1" / "series2" / "IM1").write_bytes(b"\0" * 128 + b"DICM")


def dicom(folder):
    (folder / "series1").mkdir(parents=True)
    (folder / "series1" / "IM1").write_bytes(b"\0" * 128 + b"DICM")


def two_label_maps(folder):
    for name in ("imaging.nii.gz", "segmentation.nii.gz", "segmentation.nii"):
        touch(folder / "case_0" / name)


def two_scans(folder):
    for name in ("imaging.nii", "imaging.nii.gz", "segmentation.nii.gz"):
        touch(folder / "case_0" / name)


def nnunet_without_record(folder):
    touch(folder / "imagesTr" / "case_0_0000.nii.gz")
    touch(folder / "labelsTr" / "case_0.nii.gz")


def two_layouts(folder):
    two = folder / "case_0" / "imaging.nii.gz"
    touch(two)
    touch(two.with_name("segmentation.nii.gz"))
    nnunet_without_record(folder)


def empty(folder):
    folder.mkdir()


FOLDERS = [flat, dicom_tree, dicom, two_label_maps, two_scans, nnunet_without_record, two_layouts, empty]


@pytest.mark.parametrize("make", FOLDERS)
def test_advice_names_only_options_that_the_command_has(make, tmp_path, capsys, trained):
    """Checked for every command that searches for cases and for every kind of folder that it cannot interpret."""
    data = tmp_path / "data"
    make(data)
    predicted = tmp_path / "predicted"
    touch(predicted / "patient0.nii.gz")
    for command in (
        ("predict", trained.run, data, "--out", tmp_path / "out"),
        ("evaluate", predicted, data, "--out", tmp_path / "scores.csv"),
        ("preprocess", "unet2d:tiny", data, tmp_path / "cache"),
        ("verify", data),
        ("verify", data, "--labels-only"),
        ("synthesize", tmp_path / "new", "--labels", data),
        ("manifest", data, "--out", tmp_path / "manifest.csv"),
    ):
        try:
            code = main([str(word) for word in command])
        except SystemExit as error:
            code = error.code
        text = capsys.readouterr().err
        if code:
            assert "Traceback" not in text
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
            assert named <= options_of(command[0]), (command, text)


def test_the_nearest_option_and_the_help_of_the_command(capsys, tmp_path):
    for words, near in (
        (["train", "unet2d", "C", "R", "--epoch-s", "3"], "--epochs for --epoch-s"),
        (["predict", "RUN", "DATA", "--out", "P", "--labels", "*"], None),
        (["predict", "RUN", "DATA", "--output", "P"], "--out for --output"),
        (["evaluate", "P", "T", "--out=s.csv", "--layer=*.nii.gz"], None),
        (["evaluate", "P", "T", "--out=s.csv", "--lables=*.nii.gz"], "--labels for --lables"),
        (["preprocess", "unet2d", "D", "C", "--worker-s", "2"], "--workers for --worker-s"),
        (["predict", "RUN", "DATA", "--out", "P", "--mirrored"], "--mirror for --mirrored"),
    ):
        line = said(capsys, *words, code=2)
        assert line.endswith(f"Try: kitsseg {words[0]} --help")
        if near:
            assert f"Did you mean {near}?" in line
    line = said(capsys, "--verbose", "train", "unet2d", "C", "R", code=2)
    assert "--verbose" in line
    assert line.endswith("--help")


def test_the_nearest_command_and_choice(capsys):
    assert "Did you mean train?" in said(capsys, "trian", code=2)
    assert "Did you mean cross-validate?" in said(capsys, "crossvalidate", code=2)
    line = said(capsys, "predict", "R", "D", "--out", "P", "--part", "tests", code=2)
    assert "Did you mean test? Try: kitsseg predict --help" in line
    assert "Did you mean onnxruntime?" in said(
        capsys, "predict", "R", "D", "--out", "P", "--engine", "onnx-runtime", code=2
    )
    assert "Did you mean" not in said(capsys, "segment", code=2)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("unet2", "unet2d"),
        ("UNet2D", "unet2d"),
        ("wp-unet", "wp_unet"),
        ("squeezeunet", "squeeze_unet"),
        ("deeplab", "deeplab3d"),
        ("unet2d:practcal", "unet2d:practical"),
        ("unet2d:Tiny", "unet2d:tiny"),
        ("unet3d:tinny", "unet3d:tiny"),
        ("unet", "unet2d or unet3d"),
        ("resnet", None),
    ],
)
def test_the_nearest_recipe(name, near):
    with pytest.raises(InputError, match=f"recipe {name}: expected one of") as caught:
        recipes.get(name)
    assert (f"Did you mean {near}?" in str(caught.value)) == bool(near)
    assert ("Did you mean" in str(caught.value)) == bool(near)


def test_the_nearest_split(capsys, trained):
    from kitsseg.data.splits import load_split, split_names

    for name in split_names():
        wrong = name[:-1] + ("x" if name[-1] != "x" else "y")
        with pytest.raises(InputError, match=f"{wrong}: expected a split file") as caught:
            load_split(wrong)
        assert "Did you mean" in str(caught.value)
    with pytest.raises(InputError, match="expected a split file") as caught:
        load_split("/some/where/mine.json")
    assert "Did you mean" not in str(caught.value)


def test_nearest_names():
    assert did_you_mean("tst", ["train", "validation", "test"]) == " Did you mean test?"
    assert did_you_mean("WP-UNet", ["unet2d", "wp_unet"]) == " Did you mean wp_unet?"
    assert did_you_mean("banana", ["train", "test"]) == ""
    assert did_you_mean("x", []) == ""
    assert did_you_mean("cat", ["car", "dog", "CAP"]) == " Did you mean car or CAP?"


# the way on


def test_a_training_that_was_interrupted_names_resume(trained, tmp_path):
    """The error names --resume for an unfinished run, but not for a finished run or if run.json is damaged."""
    split, micro = make_split([path.name for path in trained.data.iterdir()]), recipes.get("unet2d:tiny")
    run = create_run(tmp_path / "run", micro, split, 0, {})
    for _ in range(2):
        with pytest.raises(InputError, match=r"run: expected a new .* unfinished run of .*--resume"):
            create_run(run, micro, split, 0, {})
    update_run(run, replace(read_run(run), status="finished"))
    with pytest.raises(InputError, match="found a finished run .* Choose") as caught:
        create_run(run, micro, split, 0, {})
    assert "--resume" not in str(caught.value)
    (run / "run.json").write_text("{")
    with pytest.raises(InputError, match="found one in use") as caught:
        create_run(run, micro, split, 0, {})
    assert "--resume" not in str(caught.value)


def test_ctrl_c_names_resume_where_there_is_something_to_resume(tmp_path, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("kitsseg.recipes.get", interrupted)
    run = tmp_path / "run"
    call = ["train", "unet2d:tiny", tmp_path / "cache", run]
    assert "--resume" not in said(capsys, *call, code=130)
    run.mkdir()
    (run / "run.json").write_text("{}")
    assert said(capsys, *call, code=130).endswith("the same command with --resume.")
    assert "--resume" not in said(capsys, "preprocess", "unet2d:tiny", tmp_path, tmp_path / "c", code=130)


# evaluate of more than has a truth


def test_what_has_a_truth_is_scored_and_the_rest_is_named(tmp_path, capsys):
    for number in range(4):
        make_case(tmp_path / "truth" / f"case_{number}", seed=number)
        (tmp_path / "pred").mkdir(exist_ok=True)
        source = tmp_path / "truth" / f"case_{number}" / "segmentation.nii.gz"
        shutil.copy(source, tmp_path / "pred" / f"prediction_{number}.nii.gz")
    shutil.copy(source, tmp_path / "pred" / "anna.nii.gz")
    (tmp_path / "truth" / "case_1" / "segmentation.nii.gz").unlink()  # a case without a label map
    shutil.rmtree(tmp_path / "truth" / "case_3")
    scores = tmp_path / "scores.csv"
    assert main(["evaluate", str(tmp_path / "pred"), str(tmp_path / "truth"), "--out", str(scores)]) == 0
    text = capsys.readouterr().out
    assert re.search("warning: 3 predictions .*: anna, case_1, case_3", text)
    summary = read_json(scores.with_suffix(".json"))
    assert summary["prediction_without_truth"] == ["anna", "case_1", "case_3"]
    assert list(summary["cases"]) == ["case_0", "case_2"]
    assert main(["report", str(scores), "--out", str(tmp_path / "r.html")]) == 0
    assert "not scored: 3 predictions" in (tmp_path / "r.html").read_text(encoding="utf-8")
    # none at all is an error
    for number in (0, 2):
        (tmp_path / "pred" / f"prediction_{number}.nii.gz").unlink()
    line = said(capsys, "evaluate", tmp_path / "pred", tmp_path / "truth", "--out", scores)
    assert "anna.nii.gz: no truth" in line and "case_0, case_2" in line


def test_label_maps_of_other_scans_than_the_truth_are_named(trained, tmp_path, capsys):
    """Two cohorts of equal names: the label maps of one are scored against the other's truth."""
    from kitsseg.inference.cohort import predict_cases

    for folder, number in (("first", 0), ("second", 2)):
        for k in (0, 1):
            shutil.copytree(trained.data / f"case_0000{number + k}", tmp_path / folder / f"case_9000{k}")
    predict_cases(trained.run, [tmp_path / "first"], tmp_path / "out")
    call = ["evaluate", tmp_path / "out", tmp_path / "second", "--out", tmp_path / "s.csv"]
    assert main([str(word) for word in call]) == 0
    assert "warning: 2 label maps" in capsys.readouterr().out
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    call[2] = tmp_path / "copy"
    assert main([str(word) for word in call]) == 0
    assert "another scan" not in capsys.readouterr().out
    assert read_json(tmp_path / "s.json")["of_other_scans"] == []


# shares and empty cases


@pytest.mark.parametrize("keep", ["0", "-0.5", "1.5", "nan", "half", "inf"])
def test_a_share_that_is_none_names_the_option(keep, capsys, tmp_path):
    line = said(capsys, "shrink", tmp_path, tmp_path, tmp_path / "out", f"--keep={keep}", code=2)
    assert "argument --keep: " in line and " above 0 and up to 1, " in line
    assert "; found " + keep in line
    assert "choose_channels" not in line


# the next command, as it is printed


def test_the_command_after_verify_can_be_given_as_it_is_printed(tmp_path, capsys, monkeypatch):
    """The folder has a space in its name, and its files are found by patterns only."""
    synthesize_cases(tmp_path / "made", 3, (20, 48, 48))
    data = tmp_path / "my patients"
    for case in sorted((tmp_path / "made").iterdir()):
        for kind, name in (("ct", "imaging"), ("masks", "segmentation")):
            (data / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(case / f"{name}.nii.gz", data / kind / f"{case.name}.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "my patients", "--images", "ct/*.nii.gz", "--labels", "masks/*.nii.gz"]) == 0
    [command] = re.findall(r"^next: (.*)$", capsys.readouterr().out, re.M)
    assert main(shlex.split(command)[1:]) == 0
    [command] = re.findall(r"^next: (.*)$", capsys.readouterr().out, re.M)
    assert shlex.split(command)[:3] == ["kitsseg", "train", "unet2d"]
    assert len(list((tmp_path / "CACHE").glob("preprocess-*/case_0*"))) == 3


@pytest.mark.parametrize(
    "layout",
    [
        None,
        Layout(),
        Layout(images="*/c t.nii.gz", labels="it's/*.nii.gz"),
        Layout(cyst="tumor"),
        Layout(hu_window=(-160.0, 240.0)),
        Layout(hu_window=(-0.5, 1e4), mask_values=(0, 128, 255)),
        Layout(hu_window=(-1024.0, 64511.25), mask_values=(0, 65535)),
    ],
)
def test_the_options_of_a_layout_are_read_back_as_this_layout(layout):
    words = layout_options(layout)
    arguments = build_parser().parse_args(["evaluate", "P", "T", "--out", "s.csv", *words])
    assert layout_of(arguments) == (layout or Layout())


@pytest.mark.parametrize("name", ["two words", "it's", "a;b", "$HOME", "plain"])
def test_a_command_is_split_by_a_shell_into_the_words_it_was_made_of(name):
    assert shlex.split(command_line("predict", name, "--out", f"{name}/x")) == [
        "kitsseg",
        "predict",
        name,
        "--out",
        f"{name}/x",
    ]


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["predict", "starter", "", "--out", "O"], "argument 3"),
        (["predict", "starter", "D", "--out", ""], "--out"),
        (["predict", "starter", "D", "--out="], "--out"),
        (["synthesize", ""], "argument 2"),
        (["evaluate", "P", "", "--out", "s.csv"], "argument 3"),
        (["download", ""], "argument 2"),
    ],
)
def test_an_empty_word_is_never_taken_for_this_folder(words, where, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = said(capsys, *words, code=2)
    assert line.startswith(f"{where}: ") and "found an empty word" in line
    assert not list(tmp_path.iterdir())


# words that a shell has split or filled in


def test_a_path_whose_spaces_were_not_quoted_is_given_in_quotes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "my scan" / "late phase.nii.gz")
    line = said(capsys, "predict", "starter", "my", "scan/late", "phase.nii.gz", "--out", "out")
    assert line.startswith("my: ")
    assert line.endswith('quotes: "my scan/late phase.nii.gz".')
    assert "quotes" not in said(capsys, "predict", "starter", "elsewhere", "scan/late", "--out", "out")


def test_files_in_the_place_of_a_pattern_are_told_as_a_missing_quote(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flat(tmp_path / "ct")
    files = ["ct/patient0.nii.gz", "ct/patient1.nii.gz"]
    assert "A pattern needs quotes" in said(capsys, "verify", "ct", "--images", *files, code=2)
    assert "quotes" not in said(capsys, "verify", "ct", "--images", "*.nii.gz", "--fast", code=2)
    assert "quotes" not in said(capsys, "verify", "ct", *files, code=2)


# a recipe in the place of a network


@pytest.mark.parametrize("name", ["unet2d", "wp_unet:practical"])
def test_a_recipe_given_to_predict_is_told_to_have_no_trained_network(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = said(capsys, "predict", name, "scan.nii.gz", "--out", "out")
    assert line.startswith(f"{name}: ")
    assert f"kitsseg train {name} CACHE RUN" in line
    assert line in said(capsys, "predict", "starter", "scan.nii.gz", "--out", "out", "--also", name)
    (tmp_path / "unet2d").mkdir()  # a folder of this name is taken as the run
    assert "recipe" not in said(capsys, "predict", "unet2d", "scan.nii.gz", "--out", "out")


@pytest.mark.parametrize(
    "words",
    [
        ["train", "unet2d:tny", "cache", "run"],
        ["train", "unet2d:tiny", "cache", "run"],
        ["cross-validate", "unet2d:tny", "cache", "folds"],
    ],
)
def test_a_misspelt_recipe_or_a_missing_cache_is_told_before_keras_starts(
    words, tmp_path, monkeypatch, capsys
):
    def started(trains):
        raise AssertionError("Keras was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kitsseg.runtime.start_keras.start_keras", started)
    assert "expected" in said(capsys, *words)
