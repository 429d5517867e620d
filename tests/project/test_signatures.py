"""No function of the package takes more than seven parameters."""

import ast
from pathlib import Path

import kitsseg

MOST = 7
MODULES = sorted(Path(kitsseg.__file__).parent.rglob("*.py"))


def functions(tree):
    """(name, function, its parameters but for self and cls) of every function, methods and inner ones included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            yield node.name, node, [argument.arg for argument in every if argument.arg not in ("self", "cls")]


def too_long(code):
    return [name for name, _, parameters in functions(ast.parse(code)) if len(parameters) > MOST]


def test_no_function_takes_more_than_seven_parameters():
    found = {str(path): names for path in MODULES if (names := too_long(path.read_text(encoding="utf-8")))}
    assert len(MODULES) > 100
    assert not found, "put what belongs together into a frozen dataclass, as TrainOptions does"


def test_a_long_signature_is_found():
    assert too_long("class A:\n    def f(self, a, b, c, d, /, e, f=1, *, g): ...") == []
    assert too_long("class A:\n    def f(self, a, b, c, d, /, e, f=1, *, g, h=2): ...") == ["f"]
