"""kitsseg evaluate, compare and report as commands: the options about classes, surfaces and pictures."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from kitsseg.cli import main
from kitsseg.data.formats.nifti import write_image

MM = (3.0, 1.0, 1.0)


@pytest.fixture
def cases(tmp_path, monkeypatch):
    """Two cases with cysts; run a moves everything by one row, run b by two, and loses the tumor of one case."""
    rng = np.random.default_rng(0)
    for i in range(2):
        truth = np.zeros((8, 40, 40), np.uint8)
        truth[2:6, 10:30, 10:30] = 1
        truth[3:5, 12:16, 12:20] = 2
        truth[3:5, 20:26, 12 : 18 + i] = 3
        folder = tmp_path / "truth" / f"case_{i:05d}"
        write_image(folder / "segmentation.nii.gz", truth, MM)
        write_image(folder / "imaging.nii.gz", rng.integers(-100, 100, truth.shape).astype(np.int16), MM)
        for name, step in (("a", 1), ("b", 2)):
            moved = np.roll(truth, step, axis=1)
            if (name, i) == ("b", 1):
                moved[moved == 2] = 1
            write_image(tmp_path / name / f"prediction_{i:05d}.nii.gz", moved, MM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def run(capsys, line):
    code = main(line.split())
    out, err = capsys.readouterr()
    return code, out + err


def test_evaluate_compare_and_rank_with_cysts_and_surfaces(cases, capsys):
    for name in ("a", "b"):
        code, text = run(capsys, f"evaluate {name} truth --classes kits23 --surface --out {name}/scores.csv")
        assert code == 0
        assert "KiTS23 classes, Dice: kidney_and_mass" in text
        assert "mass: surface Dice" in text
        assert "under other definitions" in text
    assert "Tumors: 1 of 2 found; 0 of 1 predicted ones false" in text
    code, text = run(capsys, "compare a/scores.csv b/scores.csv")
    assert code == 0
    assert "ranking of KiTS23" in text
    lines = [line.split() for line in text[text.index("ranking of KiTS23") :].splitlines()]
    ranked = [line for line in lines if "and" in line]
    # a is better in Dice and in surface Dice: both ranks are 1
    assert [(line[1], line[-2]) for line in ranked] == [("a", "1"), ("b", "2")]
    assert run(capsys, "evaluate b truth --classes kits23 --out b/scores.csv")[0] == 0
    assert "ranking" not in run(capsys, "compare a/scores.csv b/scores.csv")[1]  # b has no surfaces now


def test_two_scores_of_one_folder_go_by_their_own_names(cases, capsys):
    for name in ("full", "small"):
        assert run(capsys, f"evaluate a truth --classes kits23 --out {name}.csv")[0] == 0
    code, text = run(capsys, "compare full.csv small.csv")
    assert code == 0
    assert re.match(r"no run folder .*full, small: .*trained on", text)
    assert {"full", "small"} <= {line.split()[1] for line in text.splitlines() if len(line.split()) > 2}
    message = run(capsys, "compare full.csv full.csv")[1]
    assert re.match(r"kitsseg: full\.csv: full .*full\.csv already.*NAME=full\.csv", message)


def test_cysts_need_a_word(cases, capsys):
    code, text = run(capsys, "evaluate a truth --out s.csv")
    assert code == 1 and "cyst" in text and len(text.splitlines()) == 1


def test_report_and_preview(cases, capsys):
    assert run(capsys, "evaluate a truth --classes kits23 --surface --out s.csv")[0] == 0
    code, text = run(capsys, "report s.csv --out r.html --preview worst.png")
    assert code == 0
    assert text.splitlines() == [
        "wrote worst.png: case_00000",
        "wrote r.html: open it in a browser",
        "next: kitsseg compare s.csv OTHER_SCORES",
    ]
    assert (cases / "r.html").read_text().count('<svg class="slice"') == 2 * (8 + 2)
    assert run(capsys, "report s.csv --preview one.png --case case_00001") == (
        0,
        "wrote one.png: case_00001\n",
    )
    assert not (cases / "report.html").exists()
    assert run(capsys, "report s.csv")[1].startswith("wrote report.html: open it in a browser\n")
    assert (cases / "report.html").read_text() == (cases / "r.html").read_text()
    with Image.open("one.png") as picture:
        assert min(picture.size) > 100
    for line, complaint in (
        ("report s.csv --out r.html --case case_00001", "--case .*--preview"),
        ("report s.csv --preview one.png --case case_9", "expected case_9 among its 2 cases"),
        ("report . --preview one.png", r"scores\.csv: .*kitsseg evaluate, found nothing"),
    ):
        code, text = run(capsys, line)
        assert code == 1 and re.search(complaint, text) and len(text.splitlines()) == 1


@pytest.mark.parametrize("linked", ["files", "folders"])
def test_linked_scores_go_by_the_names_of_their_links(cases, capsys, linked):
    """As in an annexed data set, where all files lie in one store."""
    store = cases / "store"
    store.mkdir()
    for name in ("a", "b"):
        where = store if linked == "files" else store / f"0{ord(name)}"
        where.mkdir(exist_ok=True)
        code, _ = run(capsys, f"evaluate {name} truth --classes kits23 --out {where / name}.csv")
        assert code == 0
        if linked == "files":
            (cases / f"run_{name}").mkdir()
            for ending in ("csv", "json"):
                (cases / f"run_{name}" / f"scores.{ending}").symlink_to(where / f"{name}.{ending}")
        else:
            for ending in ("csv", "json"):
                (where / f"{name}.{ending}").rename(where / f"scores.{ending}")
            (cases / f"run_{name}").symlink_to(where)
    code, text = run(capsys, "compare run_a/scores.csv run_b/scores.csv")
    assert code == 0
    assert text.startswith("no run folder of run_a, run_b")


@pytest.mark.parametrize("field", ["prediction", "truth", "image", "run", "also"])
@pytest.mark.parametrize("line", ["report s.csv --out r.html", "compare s.csv t.csv"])
def test_a_path_in_scores_that_is_none_is_one_line(cases, capsys, field, line):
    for name in ("s", "t"):
        assert run(capsys, f"evaluate a truth --classes kits23 --out {name}.csv")[0] == 0
    record = json.loads((cases / "s.json").read_text())
    if field == "run":
        record["run"] = "a\0b"
    elif field == "also":
        record["also"] = ["a\0b"]
    else:
        record["cases"]["case_00000"][field] = "a\0b"
    (cases / "s.json").write_text(json.dumps(record))
    code, text = run(capsys, line)
    assert code == 1
    assert len(text.splitlines()) == 1
    assert re.search(r"s\.json: .*summary of kitsseg evaluate", text)
    assert "Run kitsseg evaluate again." in text
    assert not (cases / "r.html").exists()


def test_a_path_in_the_record_of_predictions_that_is_none_is_one_line(cases, capsys):
    (cases / "a" / "predictions.json").write_text(json.dumps({"version": 1, "run": "a\0b"}))
    code, text = run(capsys, "evaluate a truth --classes kits23 --out s.csv")
    assert code == 1
    assert len(text.splitlines()) == 1
    assert re.search(r"predictions\.json: .*record of kitsseg predict", text)
    assert not (cases / "s.csv").exists()
