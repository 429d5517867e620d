"""Tiny synthetic cases, and the real KiTS19 label maps where they are at hand."""

import contextlib
import json
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from kitsseg.data.nifti_writer import write_image
from kitsseg.recipe import PreprocessSpec

REAL = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _keep_signals():
    """main() takes over SIGTERM, which belongs to the test run."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _without_graphs():
    tf = pytest.importorskip("tensorflow")
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def eagerly():
    """Building a graph takes longer than the few steps that most tests train; for all tests of a module."""
    with _without_graphs():
        yield


@pytest.fixture
def eager():
    """As ``eagerly``, for one test."""
    with _without_graphs():
        yield


class StopAfter:
    """A progress callable that interrupts after so many calls, as Ctrl-C would."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self, *_):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="session")
def real_data():
    """Folder of real label maps and a real CT; they are not part of the package."""
    if not REAL.is_dir():
        pytest.skip("the real KiTS19 label maps and the real CT are not beside this checkout")
    return REAL


def spec_of_tests():
    return PreprocessSpec(
        spacing_mm=(None, None, None),
        crop_to_body=False,
        hu_window=(-79.0, 304.0),
        hu_mean=101.0,
        hu_std=76.9,
    )


@pytest.fixture
def spec():
    """A specification without resampling: what is cached can be compared voxel by voxel."""
    return spec_of_tests()


def make_case(folder, shape=(8, 40, 48), spacing_mm=(3.0, 0.8, 0.8), seed=0, tumor=True, positive=(2, 6)):
    """Write one case whose labels can be read off its HU: kidney is 100 and up, tumor 200 and up, the rest below 60."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    labels[positive[0] : positive[1], 10:25, 8:20] = 1
    if tumor:
        labels[positive[0] + 1 : positive[1] - 1, 14:20, 12:17] = 2
    image = (rng.integers(-60, 60, shape) + 160 * (labels == 1) + 300 * (labels == 2)).astype(np.int16)
    write_image(folder / "imaging.nii.gz", image, spacing_mm)
    write_image(folder / "segmentation.nii.gz", labels, spacing_mm)
    return image, labels


@pytest.fixture
def data(tmp_path):
    """A folder of nine tiny cases, all different."""
    for i in range(9):
        make_case(tmp_path / "data" / f"case_{i:05d}", seed=i, positive=(1 + i % 3, 5 + i % 4))
    return tmp_path / "data"


@pytest.fixture
def cached(data, spec, tmp_path):
    """The nine cases, preprocessed and opened."""
    from kitsseg.data.cache import open_cache
    from kitsseg.data.preprocess import preprocess_cases

    preprocess_cases(data, tmp_path / "cache", spec)
    return open_cache(tmp_path / "cache", spec)


def read_json(path):
    return json.loads(Path(path).read_text())


@pytest.fixture
def micro_recipe(spec):
    """unet2d so small that a phase trains in seconds on the nine tiny cases."""
    return micro_recipe_of_tests(spec)


def micro_recipe_of_tests(spec):
    from kitsseg import recipes

    tiny = recipes.get("unet2d:tiny")
    phase = replace(
        tiny.phases[0],
        sampler=replace(tiny.phases[0].sampler, patch_size=(32, 32)),
        epochs=3,
        steps_per_epoch=6,
        learning_rate=3e-3,
        schedule=replace(tiny.phases[0].schedule, patience=1, min_delta=10.0),
    )
    return replace(
        tiny,
        name="unet2d:micro",
        preprocess=spec,
        model={**tiny.model, "start_filters": 4, "n_pools": 2},
        phases=(phase,),
        inference=replace(tiny.inference, multiple=4),
    )


@dataclass(frozen=True)
class Trained:
    """One finished micro run that tests read and never change."""

    recipe: object
    data: Path
    cache: Path
    split: object
    run: Path
    calls: list


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of three epochs on nine tiny cases."""
    from kitsseg.data.preprocess import preprocess_cases
    from kitsseg.data.splits import make_split
    from kitsseg.train import train_recipe

    folder, calls = tmp_path_factory.mktemp("trained"), []
    for i in range(9):
        make_case(folder / "data" / f"case_{i:05d}", seed=i, positive=(1 + i % 3, 5 + i % 4))
    recipe = micro_recipe_of_tests(spec_of_tests())
    preprocess_cases(folder / "data", folder / "cache", recipe.preprocess)
    split = make_split([f"case_{i:05d}" for i in range(9)])
    run = train_recipe(
        recipe, folder / "cache", split, folder / "run", seed=5, progress=lambda *call: calls.append(call)
    )
    return Trained(recipe, folder / "data", folder / "cache", split, run, calls)
