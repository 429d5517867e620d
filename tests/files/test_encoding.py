"""The encoding of the system decides nothing: every text file is UTF-8, and every command works under any locale."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.cases import make_case

import kitsseg
from kitsseg.files.tables import read_rows


def cases_of(path):
    """The names in a table, as its reader gives them back."""
    rows = read_rows(path, {"case": str}, None, "scores", "Score again.")
    return [row["case"] for row in rows]


def text_files_opened(tree):
    """Calls that open a file as text, and whether each names an encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("read_text", "write_text"):
            yield node, any(word.arg == "encoding" for word in node.keywords)
        elif name == "open":
            modes = [ast.unparse(each) for each in node.args]
            modes += [word.value.value for word in node.keywords if word.arg == "mode"]
            owner = ast.unparse(node.func)
            if owner in ("Image.open", "opener.open", "connections.open", "os.open", "archive.open"):
                continue
            if not any("b" in str(mode) for mode in modes):
                yield node, any(word.arg == "encoding" for word in node.keywords)


def test_every_text_file_is_opened_with_an_encoding():
    folder, seen = Path(kitsseg.__file__).parent, 0
    for path in sorted(folder.rglob("*.py")):
        for node, named in text_files_opened(ast.parse(path.read_text(encoding="utf-8"))):
            seen += 1
            assert named, f"{path.relative_to(folder)}:{node.lineno}: {ast.unparse(node)}"
    assert seen > 10
    [(_, named)] = text_files_opened(ast.parse("path.open(newline='')"))
    assert not named


OLD = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "200"}


@pytest.mark.skipif(sys.platform == "win32", reason="names of files are UTF-8 there")
@pytest.mark.parametrize(
    "locale",
    [
        OLD,
        pytest.param(OLD | {"LC_ALL": "POSIX"}, marks=pytest.mark.slow),
        pytest.param({"LC_ALL": "C.UTF-8", "COLUMNS": "200"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_commands_write_utf8_under_any_locale(locale, tmp_path):
    names = ["Größe_1", "患者_3", "a\tb", "c\nd", "=1+1", "Wałęsa's"]
    for number, name in enumerate(names):
        make_case(tmp_path / "truth" / name, seed=number)
        (tmp_path / "pred").mkdir(exist_ok=True)
        labels = tmp_path / "truth" / name / "segmentation.nii.gz"
        (tmp_path / "pred" / f"{name}.nii.gz").write_bytes(labels.read_bytes())
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONIOENCODING"} | locale

    def succeed(*words):
        done = subprocess.run(
            [sys.executable, "-m", "kitsseg", *words], cwd=tmp_path, env=environment, capture_output=True
        )
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode("utf-8")

    assert "Größe_1" in succeed("evaluate", "pred", "truth", "--out", "scores.csv")
    assert sorted(cases_of(tmp_path / "scores.csv")) == sorted(names)
    succeed("report", "scores.csv", "--out", "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Größe_1" in page
    assert "患者_3" in page
    assert "checked 6 cases" in succeed("verify", "truth")
    succeed("compare", "first=scores.csv", "second=scores.csv", "--out", "differences.csv")


# run several commands in one process, as in the process that ``kitsseg`` starts again in UTF-8 mode
ONE_BY_ONE = """
import json, sys
from kitsseg import recipes
from kitsseg.cli import main
from support.cases import spec_of_tests
from support.recipes import micro_recipe_of_tests

recipe = micro_recipe_of_tests(spec_of_tests())
known = recipes.get
recipes.get = lambda name: recipe if name in ("micro", recipe.name) else known(name)
for words in json.load(sys.stdin):
    print(words[0], main(words), flush=True)
"""
LETTERS = "Größe 患者\t1\nO'x"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_every_command_in_a_folder_of_any_letters_under_the_c_locale(tmp_path):
    """And with cases of such names: from scans to a table of cross-validation."""
    folder = tmp_path / LETTERS
    names = ["Größe_1", "患者_2", "tab\there", "new\nline", "e\u0301", "case_00005"]
    for number, name in enumerate(names):
        make_case(folder / "data" / name, seed=number, positive=(1 + number % 3, 5 + number % 4))
    make_case(folder / "scans" / "case_00210", seed=9)
    parts = {"train": names[:3], "validation": names[3:4], "test": names[4:]}
    (folder / "split.json").write_text(json.dumps(parts), encoding="utf-8")
    at = {path: str(folder / path) for path in ("data", "cache", "run", "scans", "scores.csv")}
    scores = at["scores.csv"]
    commands = [
        ["synthesize", folder / "made", "--cases", "1", "--size", "8,48,48"],
        ["download", folder / "fetched", "--from", at["scans"]],
        ["verify", at["data"], "--not-kits19"],
        ["preprocess", "micro", at["data"], at["cache"]],
        ["statistics", "micro", at["cache"]],
        ["train", "micro", at["cache"], at["run"], "--epochs", "1", "--split", folder / "split.json"],
        ["prune", at["run"], at["cache"], folder / "pruned", "--sparsity", "0.5", "--epochs", "2"],
        ["shrink", at["run"], at["cache"], folder / "small", "--keep", "0.5", "--multiple", "2", "--epochs", "1"],
        ["export", at["run"], "--out", folder / "net.tflite", "--size", "32,32"],
        ["export", at["run"], "--out", folder / "net.onnx", "--size", "32,32"],
        ["predict", at["run"], at["data"], "--out", folder / "by_run"],
        ["predict", folder / "net.tflite", at["data"], "--out", folder / "by_tflite"],
        ["predict", folder / "net.onnx", at["data"], "--out", folder / "by_onnx"],
        ["evaluate", folder / "by_run", at["data"], "--out", scores],
        ["compare", f"a={scores}", f"b={scores}", "--out", folder / "c.csv"],
        ["report", scores, "--out", folder / "scores.html"],
        ["report", at["run"], "--out", folder / "run.html"],
        ["cross-validate", "micro", at["cache"], folder / "folds", "--folds", "2", "--epochs", "1", "--data",
         at["data"]],
    ]  # fmt: skip
    environment = os.environ | OLD | {"PYTHONUTF8": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE],
        input=json.dumps([list(map(str, words)) for words in commands]).encode(),
        cwd=Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
    )
    said = done.stdout.decode("utf-8")
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-2000:]
    for words in commands:
        assert f"\n{words[0]} 0\n" in f"\n{said}", (
            f"{words[0]}: {done.stderr.decode('utf-8', 'replace')[-2000:]}"
        )
        assert f"\n{words[0]} 1\n" not in f"\n{said}"
    for made in ("by_run", "by_tflite", "by_onnx"):
        assert len(list((folder / made).glob("*.nii.gz"))) == 6
    assert (folder / "fetched" / "case_00210" / "imaging.nii.gz").is_file()
    assert len(cases_of(scores)) == 6
