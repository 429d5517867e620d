"""The notebooks: valid, thin, made by their script, and run cell by cell as they stand."""

import ast
import re
import shutil

import nbformat
import pytest
from nbclient import NotebookClient
from support import ROOT
from support.scripts import script

from kitsseg import recipes

NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))


def read(path):
    with path.open(encoding="utf-8") as file:
        return nbformat.read(file, as_version=4)


def code_cells(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_there_is_one_for_each_paper_and_one_to_compare():
    assert [path.stem for path in NOTEBOOKS] == sorted([*recipes.names(), "compare"])


def test_they_are_what_their_script_makes():
    script("make_notebooks").main(["--check"])


def test_one_that_somebody_changed_is_named(tmp_path, monkeypatch):
    module = script("make_notebooks")
    shutil.copytree(module.FOLDER, tmp_path / "colab")
    monkeypatch.setattr(module, "FOLDER", tmp_path / "colab")
    monkeypatch.setattr(module, "paper_notebook", lambda name: [("markdown", name)])
    with pytest.raises(SystemExit, match=r"deeplab3d\.ipynb, .*wp_unet\.ipynb: not what") as stopped:
        module.main(["--check"])
    assert "compare" not in str(stopped.value)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_valid_thin_and_hold_no_output(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert f"blob/main/colab/{path.name}" in notebook.cells[0].source
    cells = code_cells(notebook)
    assert len(cells) <= 12
    for source in cells:
        # what Colab collapses into one line: sources whose lines do not end
        assert source == "".join(source.splitlines(keepends=True))
        tree = ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", source, flags=re.M))
        assert not any(
            isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda) for node in ast.walk(tree)
        )
    assert all(
        not cell.outputs and cell.execution_count is None for cell in notebook.cells if "outputs" in cell
    )


@pytest.mark.slow
def test_every_cell_of_the_comparison_runs_from_a_clean_kernel(tmp_path):
    """As a new user would run it; only fewer patients and epochs than the form says. The others: test_sessions.py."""
    notebook = read(ROOT / "colab" / "compare.ipynb")
    form = next(cell for cell in notebook.cells if cell.source.startswith("# @title Settings"))
    # two of them to test: one cannot be compared
    form.source = re.sub(r"^PATIENTS = \d+", "PATIENTS = 8", form.source, flags=re.M)
    form.source = re.sub(r"^EPOCHS = \d+", "EPOCHS = 1", form.source, flags=re.M)
    assert "PATIENTS = 8 " in form.source and "EPOCHS = 1 " in form.source
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = "".join(
        str(output.get("data", {}).get("text/html", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert "phantom results" in shown
    runs = tmp_path / "kitsseg-notebooks" / "runs"
    assert sorted(path.parent.name for path in runs.glob("*/scores.csv")) == [
        "unet2d-demo-8",
        "wp_unet-demo-8",
    ]
