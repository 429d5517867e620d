"""Docstrings: arguments are explained, models can be checked against their papers, examples run."""

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest

import kitsseg

PACKAGE = Path(kitsseg.__file__).parent
# arguments that are a command's own options, and methods that Keras calls
EXEMPT = ("commands/", "cli.py")
OF_KERAS = {"ConfusionMatrix.update_state", "GroupAdamW.update_step"}
MODELS = ("unet2d", "wp_unet", "squeeze_unet", "enhanced_unet", "deeplab3d", "unet3d")
EXAMPLES = sorted(
    path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".")
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def public_functions(tree):
    """(name, function) of every function and method that ``__all__`` names."""
    names = {
        element.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        for element in node.value.elts
        if isinstance(element, ast.Constant)
    }
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            yield node.name, node
        if isinstance(node, ast.ClassDef) and node.name in names:
            methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef)]
            yield from ((f"{node.name}.{m.name}", m) for m in methods if not m.name.startswith("_"))


def unexplained(code):
    """Functions of three or more parameters whose docstring leaves one out."""
    found = []
    for name, function in public_functions(ast.parse(code)):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        parameters = [each.arg for each in arguments if each.arg not in ("self", "cls")]
        _, _, text = (ast.get_docstring(function) or "").partition("Args")
        as_another = re.match(r"(, Raises)?: as ``", text)
        missing = [each for each in parameters if not re.search(rf"\b{each}\b", text)]
        if len(parameters) >= 3 and missing and not as_another and name not in OF_KERAS:
            found.append(f"{name}: {', '.join(missing)}")
    return found


def test_every_public_function_of_three_parameters_explains_them():
    found = {
        str(path.relative_to(PACKAGE)): lacking
        for path in PACKAGE.rglob("*.py")
        if not path.relative_to(PACKAGE).as_posix().startswith(EXEMPT)
        and (lacking := unexplained(path.read_text(encoding="utf-8")))
    }
    assert not found


@pytest.mark.parametrize(
    ("docstring", "lacking"),
    [
        ("Do.", ["f: a, b, c"]),
        ("Do.\n\n    Args:\n        a, b: numbers.\n    ", ["f: c"]),
        ("Do.\n\n    Args:\n        a, b: numbers.\n        c: another.\n    ", []),
        ("Do. Args: as ``g``.", []),
    ],
)
def test_an_argument_that_is_left_out_is_found(docstring, lacking):
    assert unexplained(f'__all__ = ["f"]\ndef f(a, b, *, c):\n    """{docstring}"""\n') == lacking
    assert unexplained(f'def f(a, b, *, c):\n    """{docstring}"""\n') == []


@pytest.mark.parametrize("name", MODELS)
def test_a_model_can_be_checked_against_its_paper(name):
    text = ast.get_docstring(ast.parse((PACKAGE / "models" / f"{name}.py").read_text(encoding="utf-8")))
    parts = ["Reference:", "Stated:", "Code:", "Ours:", "Check:", "Steps ", "Example:"]
    if name == "wp_unet":  # its authors' code is not known
        parts.remove("Code:")
    assert re.findall(rf"^({'|'.join(parts)})", text, re.MULTILINE) == parts
    # the table holds every parameter of the network
    rows = re.findall(r"\)\s+([\d,]+)$", text, re.MULTILINE)
    total = {"wp_unet": 1_299_427, "squeeze_unet": 19_704_180, "deeplab3d": 562_307}.get(name)
    assert sum(int(row.replace(",", "")) for row in rows) == (
        total or int(re.search(r"^Check:\s+([\d,]+) parameters", text, re.MULTILINE)[1].replace(",", ""))
    )


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_run(module):
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried and not failed


def test_the_examples_are_found():
    assert {f"kitsseg.models.{name}" for name in MODELS} <= set(EXAMPLES)


def without_docstring(code):
    """Functions, classes and methods that ``__all__`` names and that say nothing about themselves."""
    tree = ast.parse(code)
    found = [name for name, function in public_functions(tree) if not ast.get_docstring(function)]
    names = set(
        re.findall(r"\w+", next((ast.unparse(n) for n in tree.body if "__all__" in ast.unparse(n)[:8]), ""))
    )
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in names]
    return found + [node.name for node in classes if not ast.get_docstring(node)]


def test_every_public_function_and_class_has_a_docstring():
    """The API reference is not built without; a method may have that of the class above it."""
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in PACKAGE.rglob("*.py")
        if not path.relative_to(PACKAGE).as_posix().startswith(EXEMPT)
        and (
            names := [name for name in without_docstring(path.read_text(encoding="utf-8")) if "." not in name]
        )
    }
    assert found == {}
    assert without_docstring('__all__ = ["f", "A"]\ndef f(): ...\nclass A: ...\ndef g(): ...') == ["f", "A"]
    assert without_docstring('__all__ = ["f"]\ndef f():\n    """It."""') == []
