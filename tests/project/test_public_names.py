"""README, pages and notebooks name only what a user may rely on."""

import ast
import importlib
import json
import re
from importlib.util import find_spec

import pytest
from support import ROOT

PUBLIC = {
    *("kitsseg", "kitsseg.data", "kitsseg.losses", "kitsseg.metrics", "kitsseg.models", "kitsseg.notebook"),
    *("kitsseg.pruning", "kitsseg.recipe", "kitsseg.recipes", "kitsseg.scoring"),
}
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "colab").glob("*.ipynb")])
# pages for those who change the package
INSIDE = {"architecture.md"}


def texts(path):
    """Prose, and Python as (text, whether it is Python)."""
    if path.suffix == ".ipynb":
        for cell in json.loads(path.read_text())["cells"]:
            yield "".join(cell["source"]), cell["cell_type"] == "code"
        return
    parts = re.split(r"^```(\w*)\n(.*?)^```", path.read_text(), flags=re.M | re.S)
    yield from ((text, False) for text in parts[::3])
    yield from ((code, language == "python") for language, code in zip(parts[1::3], parts[2::3]))


def not_public(text, python):
    """Imports and dotted names of kitsseg in a text that no user may rely on."""
    if python:
        runnable = re.sub(r"^(\s*)[%!].*$", r"\1pass", text, flags=re.M)  # of a notebook
        for node in ast.walk(ast.parse(runnable)):
            if isinstance(node, ast.Import):
                yield from (
                    a.name for a in node.names if a.name.startswith("kitsseg") and a.name not in PUBLIC
                )
            elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "kitsseg":
                for alias in node.names:
                    if node.module not in PUBLIC or alias.name not in names_of(node.module):
                        yield f"{node.module}.{alias.name}"
    for name in re.findall(r"\bkitsseg(?:\.\w+)+", text):
        if name in PUBLIC or name.endswith((".git", ".json", ".md")):
            continue
        module, _, last = name.rpartition(".")
        if module not in PUBLIC or last not in names_of(module):
            yield name


def names_of(module):
    return {*importlib.import_module(module).__all__, *(name.rpartition(".")[2] for name in PUBLIC)}


def unknown_imports(path):
    """What a file imports from a package that imports its names on first use, and which this package does not have.

    mypy cannot see it, because such a package answers to any name.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "") in PUBLIC:
            package = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                if name not in dir(package) and not find_spec(f"{node.module}.{name}"):
                    yield f"{node.module}.{name}"


@pytest.mark.parametrize("folder", ["benchmarks", "kitsseg", "scripts"])
def test_what_is_imported_from_a_package_is_there(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    found = {str(path.relative_to(ROOT)): [*unknown_imports(path)] for path in files}
    assert {path: names for path, names in found.items() if names} == {}


def test_an_import_that_is_not_there_is_noticed(tmp_path):
    file = tmp_path / "script.py"
    file.write_text("def f():\n    from kitsseg.scoring import read_scores, evaluate_folders, dice\n")
    assert [*unknown_imports(file)] == ["kitsseg.scoring.evaluate_folders"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_names_only_what_is_public(path):
    if path.name in INSIDE:
        return
    assert [name for text, python in texts(path) for name in not_public(text, python)] == []


def test_what_is_not_public_is_found():
    code = "from kitsseg.data.cache.cases import open_cache\nfrom kitsseg import open_cache, nowhere\n"
    assert list(not_public(code, True)) == [
        "kitsseg.data.cache.cases.open_cache",
        "kitsseg.nowhere",
        "kitsseg.data.cache.cases",
    ]
    assert list(not_public("see `kitsseg.training.train` and `kitsseg.data.find_cases`", False)) == [
        "kitsseg.training.train"
    ]
