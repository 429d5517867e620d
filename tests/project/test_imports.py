"""Folders import lower ranks only, public names work, and light parts import no TensorFlow or Keras."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

import kitsseg

PACKAGE = Path(kitsseg.__file__).parent
WITH_NAMES = [
    "kitsseg",
    "kitsseg.data",
    "kitsseg.models",
    "kitsseg.notebook",
    "kitsseg.pruning",
    "kitsseg.scoring",
]
# modules that may import TensorFlow: the input side, and what talks to TensorFlow or its files
TENSORFLOW = {
    "data/sampling/slices.py",
    "export/writers.py",
    "inference/engines.py",
    "pruning/schedules.py",
    "runtime/devices.py",
    "runtime/replicas.py",
    "training/tensorboard.py",
}


def imports_of(path):
    """(module, name) of every import of a file; the name is None for ``import module``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((node.module, alias.name) for alias in node.names)


def module_name(path):
    return ".".join(("kitsseg", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def test_folders_import_lower_ranks_only():
    """The order stands in .importlinter."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as run; run()",
            "--no-cache",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_no_modules_import_each_other_in_a_circle():
    """Imports for type checkers count; a package's own module only hands names on."""
    paths = {module_name(path): path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    waiting = {
        name: {
            each
            for module, imported in imports_of(path)
            for each in (module, f"{module}.{imported}")
            if each in paths
        }
        for name, path in paths.items()
    }
    while ready := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in ready:
            del waiting[name]
    assert waiting == {}


def names_taken(tree, modules):
    """(module, name) of what a file takes from modules of the package, by an import or as an attribute of one."""
    called = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "kitsseg":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in modules:
                    called[alias.asname or alias.name] = whole
                else:
                    yield node.module, alias.name
        elif isinstance(node, ast.Import):
            called |= {
                alias.asname or alias.name: alias.name for alias in node.names if alias.name in modules
            }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in called:
            module = called[ast.unparse(node.value)]
            if f"{module}.{node.attr}" not in modules:
                yield module, node.attr


def test_nothing_is_taken_from_a_module_that_is_not_in_its_all():
    trees = {module_name(path): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    public = {
        name: set(ast.literal_eval(node.value))
        for name, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__"
    }
    private = [
        f"{name}: {module}.{taken}"
        for name, tree in trees.items()
        for module, taken in names_taken(tree, trees)
        if taken not in public.get(module, ())
    ]
    assert private == []


@pytest.mark.parametrize(
    "code",
    [
        "from kitsseg.files import paths\npaths._hidden()",
        "import kitsseg.files.paths\nkitsseg.files.paths._hidden()",
        "import kitsseg.files.paths as p\nprint(p._hidden)",
        "from kitsseg.files.paths import _hidden",
    ],
)
def test_a_private_name_is_found_however_it_is_taken(code):
    modules = {"kitsseg.files", "kitsseg.files.paths"}
    assert ("kitsseg.files.paths", "_hidden") in names_taken(ast.parse(code), modules)


def test_no_module_uses_tf_keras_and_few_import_tensorflow():
    for path in PACKAGE.rglob("*.py"):
        modules = {module for module, _ in imports_of(path)}
        roots = {module.split(".")[0] for module in modules}
        assert "tf_keras" not in roots
        assert not any(module.startswith("tensorflow.keras") for module in modules)
        if str(path.relative_to(PACKAGE)) not in TENSORFLOW:
            assert not {"tensorflow", "tensorflow_model_optimization"} & roots, path


@pytest.mark.parametrize("package", WITH_NAMES)
def test_public_names_exist_and_are_documented(package):
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name).__doc__, f"{package}.{name}"
        assert name in dir(module)
    with pytest.raises(AttributeError, match="nowhere"):
        module.nowhere  # noqa: B018
    # a type checker reads the imports that a running program never makes: both name the same
    for_checkers = {
        name
        for path, name in imports_of(Path(module.__file__))
        if path.startswith("kitsseg") and name not in (None, "on_first_use")
    }
    assert for_checkers == set(module.__all__)


def modules_after(code):
    script = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import kitsseg",
        "import kitsseg.models",
        "from kitsseg import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass",
        "from kitsseg import cli; cli.main(['recipes'])",
        "from kitsseg import cli; cli.main(['recipes', 'show', 'unet2d'])",
        "from kitsseg import preprocess_cases; from kitsseg.data import SliceBatches",
        "import kitsseg.data.phantoms.synthesize",
        "from kitsseg import evaluate_folders, write_report",
    ],
)
def test_what_must_be_light_imports_no_tensorflow(code):
    assert not {"tensorflow", "keras", "jax", "torch", "huggingface_hub", "httpx", "httpx2"} & modules_after(
        code
    )


@pytest.mark.parametrize("package", ["kitsseg.cli, kitsseg.recipe", *WITH_NAMES])
def test_packages_themselves_and_help_do_not_even_import_numpy(package):
    assert not {"numpy", "msgspec"} & modules_after(f"import {package}")


def test_help_imports_nothing_heavy():
    code = "from kitsseg import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass"
    # dataclasses comes with kitsseg.recipe, email with importlib.metadata: half of the time of --help
    assert not {"numpy", "msgspec", "rich", "dataclasses", "email"} & modules_after(code)


def test_no_two_test_modules_have_one_name():
    """Pytest imports them by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert {name for name in names if names.count(name) > 1} == set()


def test_names_of_tests_say_what_is_tested_and_quote_no_document():
    """As ``test_unet2d_3_2_rounding`` and ``test_line3_rounding`` would: a number of a section or a line."""
    quoting = re.compile(
        r"def (test_(?:(?:unet2d|wp_unet|squeeze_unet|enhanced_unet|deeplab3d|unet3d|evaluation)_|(?:line|row)_?)\d\w*)"
    )
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    name = "_".join(("test_wp_unet", "9_4_rounding"))
    assert quoting.findall(f"def {name}(") == [name]
    assert [found for text in texts for found in quoting.findall(text)] == []
