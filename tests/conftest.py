"""Tiny synthetic cases, and the real KiTS19 label maps where they are at hand."""

import contextlib
import gc

import pytest
from support import REAL
from support.cases import make_case, spec_of_tests
from support.recipes import CASES, MODELS, SHAPE, Trained, micro, micro_recipe_of_tests


@contextlib.contextmanager
def _without_graphs():
    tf = pytest.importorskip("tensorflow")
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def pytest_collection_finish(session):
    """Python's garbage collector no longer looks through what TensorFlow's import left: 8 % of all tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture(autouse=True)
def no_told_width(monkeypatch):
    """Tables are as wide as in a log, wherever the tests are run from; pytest-xdist tells its workers a width."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def without_quick_start(request, monkeypatch):
    """Commands that train write no network.onnx, which takes seconds, but in the tests of that file."""
    if not request.node.path.name.startswith("test_quick_start"):
        monkeypatch.setattr("kitsseg.commands.training_options._write_quick_start", lambda run: None)


@pytest.fixture(scope="module")
def eagerly():
    """Run all tests of a module without graphs, since building one takes longer than the few steps of most tests."""
    with _without_graphs():
        yield


@pytest.fixture
def eager():
    """As ``eagerly``, for one test."""
    with _without_graphs():
        yield


@pytest.fixture(scope="session")
def real_data():
    """Folder of real label maps and a real CT; they are not part of the package."""
    if not REAL.is_dir():
        pytest.skip("the real KiTS19 label maps and the real CT are not beside this checkout")
    return REAL


@pytest.fixture
def spec():
    """A specification without resampling: what is cached can be compared voxel by voxel."""
    return spec_of_tests()


@pytest.fixture
def data(tmp_path):
    """A folder of nine tiny cases, all different."""
    for i in range(9):
        make_case(tmp_path / "data" / f"case_{i:05d}", seed=i, positive=(1 + i % 3, 5 + i % 4))
    return tmp_path / "data"


@pytest.fixture
def cached(data, spec, tmp_path):
    """The nine cases, preprocessed and opened."""
    from kitsseg.data.cache.build import preprocess_cases
    from kitsseg.data.cache.cases import open_cache

    preprocess_cases(data, tmp_path / "cache", spec)
    return open_cache(tmp_path / "cache", spec)


@pytest.fixture
def micro_recipe(spec):
    """unet2d so small that a phase trains in seconds on the nine tiny cases."""
    return micro_recipe_of_tests(spec)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of three epochs on nine tiny cases."""
    from kitsseg.data.cache.build import preprocess_cases
    from kitsseg.data.splits import make_split
    from kitsseg.training.options import TrainOptions
    from kitsseg.training.train import train_recipe

    folder, calls = tmp_path_factory.mktemp("trained"), []
    for i in range(9):
        make_case(folder / "data" / f"case_{i:05d}", seed=i, positive=(1 + i % 3, 5 + i % 4))
    recipe = micro_recipe_of_tests(spec_of_tests())
    preprocess_cases(folder / "data", folder / "cache", recipe.preprocess)
    split = make_split([f"case_{i:05d}" for i in range(9)])
    options = TrainOptions(seed=5, progress=lambda *call: calls.append(call))
    with _without_graphs():
        run = train_recipe(recipe, folder / "cache", split, folder / "run", options)
    return Trained(recipe, folder / "data", folder / "cache", split, run, calls)


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Five cases, and the caches that the micro recipes train from."""
    from kitsseg.data.cache.build import preprocess_cases

    folder = tmp_path_factory.mktemp("source")
    for i, name in enumerate(CASES):
        make_case(folder / "data" / name, SHAPE, seed=i, positive=(2, 7 + i % 3))
    for spec in {micro(name).preprocess for name in MODELS}:
        preprocess_cases(folder / "data", folder / "cache", spec)
    return folder
