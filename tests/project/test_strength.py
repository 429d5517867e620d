"""The scripts that measure these tests: each of their changes fits the code, and is what it says."""

import ast
import gc
import random
import sys

import pytest
from support import ROOT
from support.scripts import script

pytestmark = pytest.mark.skipif(not (ROOT / "scripts" / "mutate.py").is_file(), reason="not a source tree")


def test_every_promise_can_be_broken_in_one_place_and_names_tests_that_exist():
    module = script("broken_promises")
    assert len({promise.name for promise in module.PROMISES}) == len(module.PROMISES) >= 10
    for promise in module.PROMISES:
        text = (ROOT / promise.file).read_text(encoding="utf-8")
        changed = module.broken(text, promise)
        ast.parse(changed)
        assert changed != text
        assert all((ROOT / tests).exists() for tests in promise.tests), promise.name


def test_a_change_that_fits_nowhere_or_twice_is_an_error():
    module = script("broken_promises")
    promise = module.Promise("sign", "a.py", "x + 1", "x - 1", ())
    assert module.broken("y = x + 1", promise) == "y = x - 1"
    for text, times in (("y = x", 0), ("x + 1, x + 1", 2)):
        with pytest.raises(ValueError, match=f"a.py: .*{times} times"):
            module.broken(text, promise)


SOURCE = """
if TYPE_CHECKING:
    import there

def f(a: int = 2, flag=True):
    if a < 3 and not flag:
        raise ValueError(f"{a + 1}")
    return max(a, 0.5) - 1
"""


def test_mutants_are_single_changes_and_can_be_taken_back():
    module = script("mutate")
    tree = ast.parse(SOURCE)
    before, found = ast.unparse(tree), set()
    for mutant in module.find_mutants(tree, random.Random(0)):
        mutant.swap()
        changed = [
            (a, b) for a, b in zip(before.splitlines(), ast.unparse(tree).splitlines(), strict=True) if a != b
        ]
        mutant.swap()
        assert len(changed) == 1 and ast.unparse(tree) == before
        found.add(changed[0][1].strip())
    for integer in ("a: int=1", "a: int=3"):  # up or down, as the seed says
        found.discard(f"def f({integer}, flag=True):")
    for integer in (2, 4):
        found.discard(f"if a < {integer} and (not flag):")
    for integer in (0, 2):
        found.discard(f"return max(a, 0.5) - {integer}")
    assert found == {
        "def f(a: int=2, flag=False):",
        "if a <= 3 and (not flag):",
        "if a < 3 or not flag:",
        "if a < 3 and flag:",
        "if not (a < 3 and (not flag)):",
        "return min(a, 0.5) - 1",
        "return max(a, 0.75) - 1",
        "return max(a, 0.5) + 1",
    }


def test_a_mutant_runs_the_tests_that_reach_its_line():
    module = script("mutate")
    tree = ast.parse("def f(a):\n    return max(\n        a,\n        1,\n    )\n")
    lines = {"2": ["t.py::b"], "4": ["t.py::a", "t.py::c"], "9": ["t.py::d"]}
    name, number = module.find_mutants(
        tree, random.Random(0)
    )  # max in line 2, and the 1 of the call that begins in line 2
    assert (name.line, number.line) == (2, 2)
    assert module.reaching(name, lines) == {"t.py::b"}
    assert module.reaching(number, {"4": lines["4"]}) == {"t.py::a", "t.py::c"}
    assert module.reaching(number, {"9": lines["9"]}) == set()


MODULE = """
LIMIT = 3

def below(value, limit=LIMIT, *, strict=True):
    def compared():
        return value < limit if strict else value <= limit
    return compared()

class Counter:
    step = 1

    def add(self, value):
        return value + LIMIT
"""


def test_a_mutant_acts_in_a_module_that_is_in_use(tmp_path, monkeypatch):
    """Each change by itself alters the results of the imported module; a newly imported module is unchanged."""
    mutate, seen = script("mutate"), set()
    (tmp_path / "in_use.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def results():
        below, add = in_use.below, in_use.Counter().add
        return [below(v) for v in (2, 3, 4)], [below(v, strict=False) for v in (2, 3, 4)], add(1), add(2)

    tree = ast.parse(MODULE)
    for mutant in mutate.find_mutants(tree, random.Random(0)):
        monkeypatch.delitem(sys.modules, "in_use", raising=False)
        import in_use

        expected = ([True, False, False], [True, True, False], 4, 5)
        assert results() == expected
        mutant.swap()
        gc.freeze()  # as tests/conftest.py does before the first test
        mutate.install(mutant, tree, in_use)
        assert results() != expected, mutant.text()
        mutant.swap()
        seen.add(mutant.line)
    gc.freeze()
    assert seen == {2, 4, 6, 13}  # the field of the class (line 10) is not changed


def test_a_mutant_with_which_the_module_cannot_be_imported_is_told(tmp_path, monkeypatch):
    """``tuple[int, ...] | None`` becomes ``&``, for which types have no meaning: no test could pass."""
    mutate = script("mutate")
    (tmp_path / "no_import.py").write_text("Size = tuple[int, ...] | None\n")
    monkeypatch.syspath_prepend(tmp_path)
    import no_import

    tree = ast.parse("Size = tuple[int, ...] | None\n")
    [mutant] = mutate.find_mutants(tree, random.Random(0))
    mutant.swap()
    with pytest.raises(ImportError, match="no_import"):
        mutate.install(mutant, tree, no_import)
