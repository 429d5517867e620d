"""The encoding of the system decides nothing: every text file is UTF-8, and every command works under any locale."""

import ast
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
    assert seen > 15
    [(_, named)] = text_files_opened(ast.parse("path.open(newline='')"))
    assert not named


OLD = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "200"}


@pytest.mark.skipif(sys.platform == "win32", reason="names of files are UTF-8 there")
@pytest.mark.parametrize(
    "locale", [OLD, OLD | {"LC_ALL": "POSIX"}, {"LC_ALL": "C.UTF-8", "COLUMNS": "200"}], ids=str
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
