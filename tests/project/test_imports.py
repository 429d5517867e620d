"""Imports point one way, and what must be quick or small never imports TensorFlow or Keras."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kitsseg

PACKAGE = Path(kitsseg.__file__).parent

# From the top down; a module may import those of lower layers, and the parts of its own command.
LAYERS = [
    ["__main__", "notebook", "notebook_views"],
    ["cli"],
    ["commands"],
    ["recipes"],
    ["sweep", "cross_validate", "training_work"],
    ["prune", "shrink_run"],
    ["fine_tune"],
    ["train", "evaluate", "report", "compare", "export"],
    ["compiled", "monitor"],
    ["case_validation", "tensorboard_log", "training_state"],
    ["case_folds", "epoch_log", "optimizers", "progressive", "model_card", "pruning", "pruning_report"],
    ["predict"],
    ["ensemble"],
    ["export_check", "export_files", "segment"],
    ["engines"],
    ["exported"],
    ["evaluate_pairs", "evaluate_files", "evaluate_details", "evaluate_table", "report_page"],
    ["report_pictures", "report_chart", "report_plots", "report_run", "report_sections"],
    [
        "report_style",
        "report_views",
        "scores_file",
        "run",
        "schedules",
        "shrink",
        "predictions_file",
        "cluster",
    ],
    ["postprocess", "deep_supervision", "networks", "fold", "ladder", "lesions", "hierarchical"],
    ["distances", "channel_groups", "volume_tiles"],
    ["components"],
    ["pruning_masks", "pruning_schedules", "pruning_weights"],
    ["data", "models", "losses", "metrics", "macs", "sliding_window", "scores", "surface"],
    ["averages", "receptive_field", "checkpoints", "devices", "execution", "precision"],
    ["recipe", "errors", "atomic", "record_paths", "quiet", "memory", "replicas"],
    ["phase"],
    ["__init__"],
]
NEIGHBORS_ALLOWED = {"data", "models", "recipes", "commands"}
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports_of(path):
    """Names of kitsseg modules that a file imports, at top level or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "kitsseg")


def unit(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    here = unit(path)
    assert here in RANK, f"{path.name}: say in LAYERS where it belongs"
    for name in imports_of(path):
        there = name.split(".")[1] if "." in name else "__init__"
        if there not in RANK:  # a name of the package itself, such as __version__
            continue
        if there == here:
            assert here in NEIGHBORS_ALLOWED, f"{path.name} imports its own unit"
            continue
        assert RANK[there] > RANK[here], f"{path.relative_to(PACKAGE)} imports {name}, which is not below it"


def test_no_module_uses_tf_keras_and_only_the_data_side_imports_tensorflow():
    for path in PACKAGE.rglob("*.py"):
        names = {
            name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        roots = {(name or "").split(".")[0] for name in names}
        assert "tf_keras" not in roots
        assert not any((name or "").startswith("tensorflow.keras") for name in names)
        if unit(path) not in (
            "data",
            "devices",
            "engines",
            "export_files",
            "pruning_schedules",
            "replicas",
            "tensorboard_log",
        ):
            assert not {"tensorflow", "tensorflow_model_optimization"} & roots, path


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
        "import kitsseg.data.cache.build, kitsseg.data.sampling.slices, kitsseg.data.phantoms.synthesize",
        "import kitsseg.scoring.evaluate, kitsseg.report.report",
    ],
)
def test_what_must_be_light_imports_no_tensorflow(code):
    assert not {"tensorflow", "keras", "jax", "torch"} & modules_after(code)


def test_the_package_itself_and_help_do_not_even_import_numpy():
    assert "numpy" not in modules_after("import kitsseg.cli, kitsseg.recipe")
