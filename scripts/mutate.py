"""Change one operator, number or condition of a module at a time, and see whether its tests notice.

    python scripts/mutate.py kitsseg/losses.py kitsseg/scoring            # every mutant of these modules
    python scripts/mutate.py kitsseg/data/sampling --sample 40 --seed 1   # 40 of each module, drawn with this seed
    python scripts/mutate.py kitsseg/data/formats/grid.py --tests tests/data/formats/test_grid.py

The tests of a module are those of the folder that mirrors its own. They run once with the module as it is, which also
tells which of them reach which line. A mutant then runs only the quick tests that reach its line, fastest first, until
one fails; a test that takes far longer than before counts as failed. What no test of this process reaches survives.
Keras and pytest are imported once, in a process that never imports kitsseg and forks for every mutant (not on Windows).

Not mutated: texts, annotations, decorators, what a raise statement says, imports for a type checker.
Exit code 1 if a mutant survived.
"""

import argparse
import ast
import contextlib
import gc
import importlib
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

__all__ = ["Mutant", "find_mutants", "reaching"]

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

PRELOADED = ("keras", "pytest", "coverage", "tempfile", "msgspec.json", "nibabel", "pydicom", "isal.igzip", "PIL.Image",
             "scipy.ndimage", "scipy.spatial", "skimage.measure", "platformdirs", "tomllib")  # fmt: skip


@dataclass
class Mutant:
    """One change: ``parent.field``, or its item ``index``, becomes ``new``.

    Attributes:
        lines: the first line of what is changed, then the lines that are run when it matters.
    """

    parent: ast.AST
    field: str
    index: int | None
    new: Any
    lines: list[int]

    def swap(self) -> None:
        """Make the change; a second call takes it back."""
        holder, key = (vars(self.parent), self.field) if self.index is None else (
            getattr(self.parent, self.field), self.index)  # fmt: skip
        holder[key], self.new = self.new, holder[key]

    def text(self) -> str:
        before = ast.unparse(self.parent)
        self.swap()
        after = ast.unparse(self.parent)
        self.swap()
        return f"{before.splitlines()[0][:90]}  ->  {after.splitlines()[0][:90]}"


def find_mutants(tree: ast.Module, rng: random.Random) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines; integers go up or down by 1 as ``rng`` says."""
    found: list[Mutant] = []

    def visit(node: Any, parent: ast.AST, field: str, index: int | None, lines: list[int]) -> None:
        of_types = isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        if of_types or isinstance(node, ast.Raise | ast.JoinedStr):
            return
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = (
                node.end_lineno if body is None or isinstance(node, ast.FunctionDef) else body[0].lineno - 1
            )
            lines = [*range(node.lineno, (last or node.lineno) + 1)]

        def add(parent: ast.AST, field: str, index: int | None, new: Any) -> None:
            found.append(Mutant(parent, field, index, new, [getattr(parent, "lineno", lines[0]), *lines]))

        match node:
            case ast.Constant(value=bool()):
                add(parent, field, index, ast.Constant(not node.value))
            case ast.Constant(value=int()):
                add(parent, field, index, ast.Constant(node.value + rng.choice((1, -1))))
            case ast.Constant(value=float()):
                add(parent, field, index, ast.Constant(node.value * 1.5 or 1.0))
            case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
                add(parent, field, index, node.operand)
            case ast.Compare():
                for i, op in enumerate(node.ops):
                    add(node, "ops", i, OPERATORS[type(op)]())
            case ast.BinOp() | ast.BoolOp() | ast.AugAssign() if type(node.op) in OPERATORS:
                add(node, "op", None, OPERATORS[type(node.op)]())
            case ast.If() | ast.While() | ast.IfExp():
                add(node, "test", None, ast.UnaryOp(ast.Not(), node.test))
            case ast.Name(id=name) if name in NAMES and isinstance(node.ctx, ast.Load):
                add(node, "id", None, NAMES[name])
            case ast.Attribute(attr=name) if name in NAMES:
                add(node, "attr", None, NAMES[name])
        skipped = {"annotation", "returns", "decorator_list"}
        for name, value in ast.iter_fields(node):
            for i, child in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(child, ast.AST) and name not in skipped:
                    visit(child, node, name, i if isinstance(value, list) else None, lines)

    visit(tree, tree, "", None, [])
    return sorted(found, key=lambda mutant: mutant.lines[0])


class _Install(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module other code; everything that imports the module sees it."""

    def __init__(self, name: str, path: Path, code: CodeType) -> None:
        self.name, self.path, self.code = name, path, code

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        package = [str(self.path.parent)] if self.path.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            name, self.path, loader=self, submodule_search_locations=package
        )

    def exec_module(self, module: ModuleType) -> None:
        exec(self.code, vars(module))


def _pytest(tests: list[str], plugin: object) -> int:
    import pytest

    with tempfile.TemporaryDirectory(prefix="kitsseg-mutants-") as folder:
        options = [
            "-q",
            "-x",
            "-m",
            "not slow",
            *["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:anyio"],
        ]
        return int(pytest.main([*options, "--basetemp", f"{folder}/t", *tests], plugins=[plugin]))


def _forked(work: Callable[[], int], silent: bool = True) -> int:
    """Exit code of ``work`` in a child; negative if a signal ended it. What the child started ends with it."""
    sys.stdout.flush()
    if not (child := os.fork()):
        code = 4
        try:
            os.setsid()
            if silent:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(1, 2)
            code = work()
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status)


class _Watch:
    """As a plugin of pytest: which test reaches which line, and how long it takes."""

    def __init__(self, files: list[str], out: Path) -> None:
        import coverage

        self.files, self.out, self.seconds = files, out, defaultdict[str, float](float)
        self.coverage = coverage.Coverage(include=files, data_file=None)
        self.coverage.start()

    def pytest_runtest_setup(self, item: Any) -> None:
        self.coverage.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        lines = {file: self.coverage.get_data().contexts_by_lineno(file) for file in self.files}
        self.out.write_text(json.dumps({"lines": lines, "seconds": self.seconds}), encoding="utf-8")


class _Limit:
    """As a plugin of pytest: ends the process when a test takes far longer than it took before."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        signal.alarm(300)  # to import and to collect

    def pytest_runtest_setup(self, item: Any) -> None:
        signal.alarm(30 + 10 * int(self.seconds.get(item.nodeid, 0)))

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: self.seconds.get(item.nodeid, 0))


def reaching(mutant: Mutant, lines: dict[str, list[str]]) -> set[str]:
    """The tests that reach a mutant; "" stands for what runs on import, for all tests that is."""
    first, *others = mutant.lines
    return set(lines.get(str(first), [])) or {test for line in others for test in lines.get(str(line), [])}


def try_module(path: Path, watched: dict[str, Any], sample: int, seed: int) -> tuple[int, int]:
    """Run the mutants of a module; (mutants, survivors)."""
    rng = random.Random(f"{seed} {path.relative_to(ROOT).as_posix()}")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    mutants = find_mutants(tree, rng)
    if sample < len(mutants):
        mutants = [mutants[i] for i in sorted(rng.sample(range(len(mutants)), sample))]
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    lines, seconds, survivors = watched["lines"][str(path)], watched["seconds"], 0
    for mutant in mutants:
        tests = reaching(mutant, lines)
        tests = set(seconds) if "" in tests else tests
        mutant.swap()
        code = compile(ast.fix_missing_locations(tree), str(path), "exec")
        mutant.swap()

        def work(code: CodeType = code, tests: set[str] = tests) -> int:
            sys.meta_path.insert(0, _Install(name, path, code))
            return _pytest(sorted(tests), _Limit(seconds))

        result = _forked(work) if tests else 0
        if result == 4:
            raise RuntimeError(f"{path}: pytest would not run {sorted(tests)[:3]} ...")
        if not result:
            survivors += 1
            note = "" if tests else "  [no test reaches it]"
            print(f"{path.relative_to(ROOT).as_posix()}:{mutant.lines[0]}: {mutant.text()}{note}", flush=True)
    return len(mutants), survivors


def _groups(modules: list[Path], tests: list[str]) -> Iterator[tuple[list[str], list[Path]]]:
    """Modules by the tests that belong to them."""
    groups = defaultdict[tuple[str, ...], list[Path]](list)
    for module in modules:
        inside = module.relative_to(ROOT / "kitsseg")
        mirror = Path("tests") / (inside.parent if len(inside.parts) > 1 else f"test_{inside.name}")
        groups[tuple(tests) or (mirror.as_posix(),)].append(module)
    yield from ((list(key), group) for key, group in groups.items())


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
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    total = survived = 0
    for tests, group in _groups(files, arguments.tests):
        with tempfile.TemporaryDirectory(prefix="kitsseg-mutants-") as folder:
            out = Path(folder) / "watched.json"
            watch = lambda out=out: _pytest(tests, _Watch([str(path) for path in group], out))  # noqa: E731, B023
            if _forked(watch, silent=False):
                raise SystemExit(f"{' '.join(tests)}: expected tests that pass without a mutant; see above.")
            watched = json.loads(out.read_text(encoding="utf-8"))
        for path in group:
            mutants, survivors = try_module(path, watched, arguments.sample, arguments.seed)
            total, survived = total + mutants, survived + survivors
            print(
                f"{path.relative_to(ROOT).as_posix()}: {mutants - survivors} of {mutants} noticed", flush=True
            )
    print(f"all: {total - survived} of {total} noticed")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
