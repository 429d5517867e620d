"""Names of cases as people give them, through every command: all kinds of letters, tabs, formulas, old bytes."""

import html
import os
import shlex
import shutil
from pathlib import Path

import pytest
from support.cases import make_case, read_json, spec_of_tests
from support.recipes import micro_recipe_of_tests

from kitsseg import recipes
from kitsseg.cli import main
from kitsseg.errors import InputError
from kitsseg.files.tables import read_rows

NAMES = [
    "Größe_1",
    "患者_2",
    "tab\there",
    "new\nline",
    "=1+1",
    "a'b\"c",
    "[bold]x",
    "<b>&amp;",
    "n" * 240,
    "-rf",
]


def cases_of(path):
    return sorted(row["case"] for row in read_rows(path, {"case": str}, None, "scores", "Score again."))


def test_odd_names_go_all_the_way(tmp_path, capsys, monkeypatch, eager):
    """Preprocess, train with scores of whole cases, predict, evaluate, report, compare, verify."""
    recipe = micro_recipe_of_tests(spec_of_tests())
    monkeypatch.setattr(recipes, "get", lambda name: recipe)
    for number, name in enumerate(NAMES):
        make_case(tmp_path / "data" / name, seed=number, positive=(1 + number % 3, 5 + number % 4))
    monkeypatch.chdir(tmp_path)

    def succeed(*words):
        code = main(list(words))
        out, err = capsys.readouterr()
        assert (code, err) == (0, ""), err
        return out

    succeed("verify", "data")
    succeed("preprocess", "micro", "data", "cache")
    succeed("train", "micro", "cache", "run", "--epochs", "1", "--validate-cases-every", "1")
    split = read_json(tmp_path / "run" / "split.json")
    assert sorted(split["train"] + split["validation"] + split["test"]) == sorted(NAMES)
    assert cases_of(tmp_path / "run" / "validation_cases.csv") == sorted(split["validation"])
    succeed("predict", "run", "data", "--out", "pred")
    assert {path.name for path in (tmp_path / "pred").glob("*.nii.gz")} == {
        f"{name}.nii.gz" for name in NAMES
    }
    succeed("evaluate", "pred", "data", "--out", "scores.csv")
    assert cases_of(tmp_path / "scores.csv") == sorted(NAMES)
    succeed("report", "scores.csv", "--out", "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Größe_1" in page
    assert "<b>&amp;" not in page
    assert "&lt;b&gt;&amp;amp;" in page
    succeed("report", "run", "--out", "run.html")


def old_bytes(folder, name):
    """A folder whose name is in an old encoding, where the file system takes it."""
    path = Path(folder) / os.fsdecode(name)
    try:
        path.mkdir()
    except OSError:
        pytest.skip("this file system takes no such names")
    return path


@pytest.mark.parametrize("name", [b"M\xfcller", b"\xff", b"case_\xe9\xe8", b"a\x80b", b"caf\xe9.x"])
def test_names_in_an_old_encoding_are_refused_in_one_line(name, trained, tmp_path, capsys):
    """Every command that would write such a name refuses it before it works on the other cases."""
    data = shutil.copytree(trained.data, tmp_path / "data")
    folder = old_bytes(data, name)
    for file in (trained.data / "case_00000").iterdir():
        shutil.copy(file, folder)
    (tmp_path / "pred").mkdir()
    shutil.copy(trained.data / "case_00000" / "segmentation.nii.gz", tmp_path / "pred" / "case_00000.nii.gz")
    scan = folder / "imaging.nii.gz"
    for words in (
        ["verify", data],
        ["preprocess", "unet2d:tiny", data, tmp_path / "cache"],
        ["predict", trained.run, data, "--out", tmp_path / "out"],
        ["predict", trained.run, scan, "--out", tmp_path / "out"],
        ["evaluate", tmp_path / "pred", data, "--out", tmp_path / "scores.csv"],
    ):
        assert main([os.fspath(word) for word in words]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert "UTF-8, found b'" in line
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "scores.csv").exists()


def test_a_label_map_named_in_an_old_encoding(trained, tmp_path):
    from kitsseg.scoring.evaluate import evaluate_folders

    folder = old_bytes(tmp_path, b"pred")
    try:
        shutil.copy(
            trained.data / "case_00000" / "segmentation.nii.gz",
            folder / os.fsdecode(b"M\xfcller.nii.gz"),
        )
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(InputError, match="name in UTF-8"):
        evaluate_folders(folder, trained.data, tmp_path / "scores.csv")


def test_folders_above_in_an_old_encoding_are_refused_before_anything_is_written(
    trained, tmp_path, capsys, monkeypatch
):
    """Such a folder may be the only argument, one of several arguments, or the working folder of a command."""
    old = old_bytes(tmp_path, b"M\xfcller")
    data, out = old / "data", tmp_path / "out"
    shutil.copytree(trained.data, data)
    for words in (
        ["preprocess", "unet2d:tiny", data, out],
        ["train", "unet2d:tiny", trained.cache, old / "run"],
        ["prune", old / "run", trained.cache, out, "--sparsity", "0.5"],
        ["shrink", trained.run, old / "cache", out],
        ["export", trained.run, "--out", old / "net.onnx"],
        ["cross-validate", "unet2d:tiny", trained.cache, out, "--data", data],
        ["statistics", "unet2d:tiny", old],
        ["predict", trained.run, trained.data, data, "--out", out],
        ["predict", trained.run, trained.data, "--out", out, "--also", old / "run"],
        ["evaluate", trained.data, data, "--out", out / "s.csv"],
        ["report", old / "run", "--out", out / "r.html"],
        ["compare", f"a={old}/scores.csv", "--out", out / "c.csv"],
        ["synthesize", old / "new"],
        ["download", old / "new", "--from", trained.data],
        ["verify", data],
    ):
        assert main([os.fspath(word) for word in words]) == 1, words
        [line] = capsys.readouterr().err.splitlines()
        assert "UTF-8, found b'" in line
        assert "M\\xfcller" in line
    monkeypatch.chdir(old)
    assert main(["predict", str(trained.run), "data", "--out", "out"]) == 1
    assert "name in UTF-8" in capsys.readouterr().err
    assert not out.exists()
    assert [path.name for path in old.iterdir()] == ["data"]


def test_a_file_keeps_its_name_through_every_command_that_is_printed_as_next(tmp_path, capsys, monkeypatch):
    """Users look for their own file names again. Each printed command is taken from the output as a shell takes it."""
    names = ["Patient 7 CT", "it's (neu) #3", "50% $HOME", " blank in front", "two  blanks; & more"]
    given = tmp_path / "of the hospital's"
    given.mkdir()
    for number, name in enumerate(names):
        make_case(tmp_path / "made", seed=number)
        (tmp_path / "made" / "imaging.nii.gz").rename(given / f"{name}.nii.gz")
        (tmp_path / "truth of it").mkdir(exist_ok=True)
        (tmp_path / "made" / "segmentation.nii.gz").rename(tmp_path / "truth of it" / f"{name}.nii.gz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")

    def succeed(*words):
        assert main(list(words)) == 0, capsys.readouterr().err
        lines = [line.partition(": ") for line in capsys.readouterr().out.splitlines()]
        return [
            shlex.split(line)[1:]
            for start, _, line in lines
            if start.strip() in ("next", "with reference label maps")
        ]

    after = succeed("predict", "starter", "of the hospital's", "--out", "label maps", "--statistics")
    assert {path.name for path in (tmp_path / "label maps").glob("*.nii.gz")} == {
        f"{n}.nii.gz" for n in names
    }
    assert cases_of(tmp_path / "label maps" / "statistics.csv") == sorted(names)
    report, evaluate = after
    assert (evaluate[1], report[1]) == ("label maps", "label maps")
    succeed(*report)
    page = html.unescape(Path("report.html").read_text(encoding="utf-8"))
    assert [name for name in names if name not in page] == []
    truth = ["truth of it", "--labels", "*.nii.gz"]
    [compare_or_report, *_] = succeed(
        *[word for words in evaluate for word in (truth if words == "TRUTH" else [words])]
    )
    assert cases_of(tmp_path / "scores.csv") == sorted(names)
    succeed(*compare_or_report)
    for name in names:
        succeed("report", "label maps", "--preview", "one.png", "--case", name)
    # the same command finds each label map again
    assert "5 there already" in dry_run(capsys, "of the hospital's")


def dry_run(capsys, folder):
    assert main(["predict", "starter", folder, "--out", "label maps", "--dry-run"]) == 0
    return capsys.readouterr().out
