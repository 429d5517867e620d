"""Change one operator, number or condition of a module at a time, and see whether its tests notice.

    python scripts/mutate.py kitsseg/losses.py kitsseg/scoring            # every mutant of these modules
    python scripts/mutate.py kitsseg/data/sampling --sample 40 --seed 1   # 40 of each module, drawn with this seed
    python scripts/mutate.py kitsseg/data/formats/grid.py --tests tests/data/formats/test_grid.py

The quick tests of a module are those in the folder of tests/ that mirrors the module's own folder. The tests are
collected once, and run once with the unchanged module, to find out which tests reach which line. Then a process is
forked for each mutant. The forked process puts the mutant into the module and runs the tests that reach the changed
line, fastest first, until one fails. A test that takes far longer than before counts as failed. A mutant survives if no
test in this process reaches its line. The script does not run on Windows, which cannot fork.

Not mutated are texts, annotations, decorators, fields of classes, and raise statements.
The exit code is 1 if a mutant survived.
"""

import argparse
import ast
import contextlib
import gc
import importlib
import json
import os
import random
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import coverage
import pytest

__all__ = ["Mutant", "find_mutants", "install", "reaching"]

ROOT = Path(__file__).resolve().parent.parent
OPERATORS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.BitXor: ast.BitOr,
}  # fmt: skip
PAIRS = ("min max", "any all", "minimum maximum", "argmin argmax", "floor ceil", "mean sum", "equal not_equal",
         "greater_equal greater", "logical_and logical_or", "zeros ones", "cumsum cumprod")  # fmt: skip
NAMES = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}


@dataclass
class Mutant:
    """One change: ``parent.field``, or its item ``index``, becomes ``new``.

    Attributes:
        statement: of the module or of a function, that holds the change.
        function: the outermost function around it, and its qualified name; None at module level.
    """

    parent: ast.AST
    field: str
    index: int | None
    new: Any
    statement: ast.stmt
    function: tuple[ast.FunctionDef, str] | None

    def swap(self) -> None:
        """Make the change; a second call takes it back."""
        holder: Any = vars(self.parent) if self.index is None else getattr(self.parent, self.field)
        key: Any = self.field if self.index is None else self.index
        holder[key], self.new = self.new, holder[key]

    @property
    def line(self) -> int:
        return int(getattr(self.parent, "lineno", self.statement.lineno))

    def text(self) -> str:
        before = ast.unparse(self.parent)
        self.swap()
        after = ast.unparse(self.parent)
        self.swap()
        return f"{before.splitlines()[0][:90]}  ->  {after.splitlines()[0][:90]}"


def find_mutants(tree: ast.Module, rng: random.Random) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines; integers go up or down by 1 as ``rng`` says."""
    found: list[Mutant] = []

    def visit(
        node: Any, place: tuple[ast.AST, str, int | None], statement: Any, function: Any, name: str
    ) -> None:
        of_types = isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        of_class = (
            isinstance(node, ast.stmt) and name and not function and not isinstance(node, ast.FunctionDef)
        )
        if of_types or of_class or isinstance(node, ast.Raise | ast.JoinedStr):
            return
        statement = node if isinstance(node, ast.stmt) else statement
        if isinstance(node, ast.FunctionDef) and not function:
            function = node, name + node.name

        def add(parent: ast.AST, field: str, index: int | None, new: Any) -> None:
            found.append(Mutant(parent, field, index, new, statement, function))

        match node:
            case ast.Constant(value=bool()):
                add(*place, ast.Constant(not node.value))
            case ast.Constant(value=int()):
                add(*place, ast.Constant(node.value + rng.choice((1, -1))))
            case ast.Constant(value=float()):
                add(*place, ast.Constant(node.value * 1.5 or 1.0))
            case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
                add(*place, node.operand)
            case ast.Compare():
                for i, op in enumerate(node.ops):
                    add(node, "ops", i, OPERATORS[type(op)]())
            case ast.BinOp() | ast.BoolOp() | ast.AugAssign() if type(node.op) in OPERATORS:
                add(node, "op", None, OPERATORS[type(node.op)]())
            case ast.If() | ast.While() | ast.IfExp():
                add(node, "test", None, ast.UnaryOp(ast.Not(), node.test))
            case ast.Name(id=word) if word in NAMES and isinstance(node.ctx, ast.Load):
                add(node, "id", None, NAMES[word])
            case ast.Attribute(attr=word) if word in NAMES:
                add(node, "attr", None, NAMES[word])
        name += f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for field, value in ast.iter_fields(node):
            for i, child in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(child, ast.AST) and field not in ("annotation", "returns", "decorator_list"):
                    visit(
                        child,
                        (node, field, i if isinstance(value, list) else None),
                        statement,
                        function,
                        name,
                    )

    visit(tree, (tree, "", None), None, None, "")
    return sorted(found, key=lambda mutant: mutant.line)


def reaching(mutant: Mutant, lines: dict[str, list[str]]) -> set[str]:
    """The tests that run the line of a mutant; if there are none, the tests that run any line of its statement."""
    last = mutant.statement.end_lineno or mutant.line
    tests = [
        set(lines.get(str(line), ())) for line in (mutant.line, *range(mutant.statement.lineno, last + 1))
    ]
    return tests[0] or set().union(*tests)


def install(mutant: Mutant, tree: ast.Module, module: ModuleType) -> None:
    """Put a mutant into a module that is in use: the code and defaults of a function, or the value of a name.

    Raises: ImportError if the statement of a mutant at module level fails, so that the module cannot be imported.
    """
    ast.fix_missing_locations(tree)
    file, names = str(module.__file__), dict(vars(module))
    if mutant.function is None:
        try:
            exec(compile(ast.Module([mutant.statement], []), file, "exec"), names)
        except Exception as error:
            raise ImportError(f"{module.__name__} cannot be imported: {error}") from error
        for name in {node.id for node in ast.walk(mutant.statement) if isinstance(node, ast.Name)}:
            old = vars(module).get(name)
            for user in list(sys.modules.values()) if names.get(name) is not old else ():
                if vars(user).get(name, user) is old:
                    setattr(user, name, names[name])
    codes = [compile(tree, file, "exec")]
    for code in codes:
        codes += [const for const in code.co_consts if isinstance(const, CodeType)]
    changed = {(code.co_qualname, code.co_firstlineno): code for code in codes}
    nodes = {_first(node): node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}

    def value(default: ast.expr) -> Any:
        return eval(compile(ast.Expression(default), file, "eval"), names)

    gc.unfreeze()  # the tests freeze what their imports left (tests/conftest.py); get_objects would leave that out
    for function in gc.get_objects():
        if not isinstance(function, FunctionType) or function.__module__ != module.__name__:
            continue
        here = function.__qualname__, function.__code__.co_firstlineno
        node = nodes.get(here[1])
        if (
            here not in changed or node is None or "<" in here[0]
        ):  # made by a decorator, or inside of another one
            continue
        if mutant.function and mutant.function[0] is node:
            function.__code__ = changed[here]
        if mutant.function is None or mutant.statement is node:
            function.__defaults__ = tuple(map(value, node.args.defaults)) or None
            given = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            function.__kwdefaults__ = {key.arg: value(default) for key, default in given if default} or None


def _first(node: ast.FunctionDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _forked(work: Callable[[], int]) -> int:
    """Run ``work`` in a child and kill what the child leaves; returns the child's exit code, negative for a signal."""
    sys.stdout.flush()
    if not (child := os.fork()):
        code = 3
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = work()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status)


class _Trial:
    """As a plugin of pytest: tries mutants where pytest would run the tests that it has collected."""

    def __init__(self, paths: list[Path], sample: int, seed: int) -> None:
        self.paths, self.sample, self.seed = paths, sample, seed
        self.failed: list[str] = []
        self.seconds = defaultdict[str, float](float)
        self.items: dict[str, Any] = {}
        self.total = self.survived = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_runtestloop(self, session: Any) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        modules = [
            importlib.import_module(
                ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            )
            for path in self.paths
        ]
        lines, self.seconds = self._watch()
        for path, module in zip(self.paths, modules, strict=True):
            self._try(path, module, lines[str(path)])
        return True

    def _run(self, tests: list[str], before_each: Callable[[str], object]) -> bool:
        """Whether all of these tests pass; ends with the first that does not."""
        for test, following in zip(tests, [*tests[1:], ""], strict=True):
            before_each(test)
            item = self.items[test]
            item.ihook.pytest_runtest_protocol(item=item, nextitem=self.items.get(following))
            if self.failed:
                return False
        return True

    def _watch(self) -> tuple[dict[str, dict[str, list[str]]], defaultdict[str, float]]:
        """For each file and line the tests that reach it, and the seconds of each test."""
        files = [str(path) for path in self.paths]
        with tempfile.TemporaryDirectory(prefix="kitsseg-mutants-") as folder:
            out = Path(folder) / "watched.json"

            def work() -> int:
                watch = coverage.Coverage(include=files, data_file=None, config_file=False)
                watch.start()
                self._run(list(self.items), watch.switch_context)
                watch.stop()
                lines = {file: watch.get_data().contexts_by_lineno(file) for file in files}
                watched = {"lines": lines, "seconds": self.seconds, "failed": self.failed}
                out.write_text(json.dumps(watched), encoding="utf-8")
                return 0

            code = _forked(work)
            watched = {"failed": [f"code {code}"]} if code else json.loads(out.read_text(encoding="utf-8"))
        if watched["failed"]:
            pytest.exit(
                f"expected tests that pass without a mutant, found a failure: {watched['failed'][0]}", 2
            )
        return watched["lines"], defaultdict(float, watched["seconds"])

    def _try(self, path: Path, module: ModuleType, lines: dict[str, list[str]]) -> None:
        name = path.relative_to(ROOT).as_posix()
        rng, tree = random.Random(f"{self.seed} {name}"), ast.parse(path.read_text(encoding="utf-8"))
        mutants, survivors = find_mutants(tree, rng), 0
        if self.sample < len(mutants):
            mutants = [mutants[i] for i in sorted(rng.sample(range(len(mutants)), self.sample))]
        for mutant in mutants:
            # A change at module level runs on import, so it concerns every test. A change in the head of a function
            # (its defaults) concerns the tests that run the body of the function.
            reached = reaching(mutant, lines) if mutant.function else set(self.items)
            tests = sorted(reached, key=lambda test: self.seconds[test])

            def work(mutant: Mutant = mutant, tests: list[str] = tests) -> int:
                mutant.swap()
                try:
                    install(mutant, tree, module)
                except ImportError:
                    return 1  # every test fails where its import fails
                return int(not self._run(tests, lambda test: signal.alarm(30 + 10 * int(self.seconds[test]))))

            code = _forked(work) if tests else 0
            if code == 3:
                pytest.exit(f"{name}:{mutant.line}: {mutant.text()} could not be tried.", returncode=2)
            if not code:
                survivors += 1
                print(
                    f"{name}:{mutant.line}: {mutant.text()}{'' if tests else '  [no test reaches it]'}",
                    flush=True,
                )
        print(f"{name}: {len(mutants) - survivors} of {len(mutants)} noticed", flush=True)
        self.total, self.survived = self.total + len(mutants), self.survived + survivors


def _groups(modules: list[Path], tests: list[str]) -> dict[tuple[str, ...], list[Path]]:
    """Modules by the tests that belong to them."""
    groups = defaultdict[tuple[str, ...], list[Path]](list)
    for module in modules:
        inside = module.relative_to(ROOT / "kitsseg")
        mirror = Path("tests") / (inside.parent if len(inside.parts) > 1 else f"test_{inside.name}")
        groups[tuple(tests) or (mirror.as_posix(),)].append(module)
    return groups


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "modules", nargs="+", type=Path, metavar="MODULE", help="a .py file, or a folder of them"
    )
    parser.add_argument("--tests", nargs="+", default=[], help="instead of the mirrored folder")
    parser.add_argument(
        "--sample", type=int, default=sys.maxsize, help="mutants of each module (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    files = [file.resolve() for module in arguments.modules
             for file in (sorted(module.glob("*.py")) if module.is_dir() else [module])]  # fmt: skip
    os.chdir(ROOT)
    total = survived = 0
    options = ["-q", "-s", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist"]
    for tests, group in _groups(files, arguments.tests).items():
        trial = _Trial(group, arguments.sample, arguments.seed)
        if code := pytest.main([*options, *tests], plugins=[trial]):
            raise SystemExit(f"{' '.join(tests)}: pytest ended with {int(code)}.")
        total, survived = total + trial.total, survived + trial.survived
    print(f"all: {total - survived} of {total} noticed")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
