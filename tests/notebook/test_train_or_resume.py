"""A notebook's cell run again: the same settings give the run back, other settings are named, nothing is lost."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from support.cases import make_case, read_json

from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.cases import open_cache
from kitsseg.data.cache.parts import patients_digest
from kitsseg.data.splits import CaseSplit
from kitsseg.errors import InputError
from kitsseg.notebook import train_or_resume


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained.run, tmp_path / "run")


def other_patients(trained, folder):
    """A cache of as many cases of the same names and shapes."""
    for i in range(9):
        make_case(folder / "data" / f"case_{i:05d}", seed=100 + i, positive=(1 + i % 3, 5 + i % 4))
    preprocess_cases(folder / "data", folder / "cache", trained.recipe.preprocess)
    return folder / "cache"


def test_equal_settings_give_the_run_back(trained, run):
    before = (run / "model.keras").read_bytes()
    assert train_or_resume(trained.recipe, trained.cache, trained.split, run, seed=5) == run
    assert train_or_resume(trained.recipe, trained.cache, trained.split, run, epochs=3, seed=5) == run
    assert (run / "model.keras").read_bytes() == before


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("epochs", r"run: holds a run .*epochs was 3, is 2"),
        ("seed", r"run: holds a run .*another seed .*5, now 6"),
        ("rate", r"run: holds a run .*learning_rate was 0.003, is 0.001"),
        ("name", r"run: holds a run .*another recipe .*unet2d:micro"),
        ("split", r"run: holds a run .*another split"),
        ("patients", r"run: holds a run .*other patients"),
    ],
)
def test_other_settings_are_named(what, pattern, trained, run, tmp_path):
    recipe, cache, split, options = trained.recipe, trained.cache, trained.split, {"seed": 5}
    if what == "epochs":
        options["epochs"] = 2
    elif what == "seed":
        options["seed"] = 6
    elif what in ("rate", "name"):
        recipe = replace(recipe, phases=(replace(recipe.phases[0], learning_rate=1e-3),))
        recipe = replace(recipe, name="unet2d:other") if what == "name" else recipe
    elif what == "split":
        names = [*split.train, *split.validation, *split.test]
        split = CaseSplit("other", tuple(names[1:8]), (names[0],), (names[8],))
    else:
        cache = other_patients(trained, tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=pattern):
        train_or_resume(recipe, cache, split, run, **options)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_digest_is_of_the_patients_not_of_what_is_made_of_them(trained, tmp_path):
    spec = trained.recipe.preprocess
    names = sorted([*trained.split.train, *trained.split.validation])
    cases = open_cache(trained.cache, spec)
    expected = patients_digest(cases, names)
    assert read_json(trained.run / "run.json")["patients"] == expected
    other = replace(spec, spacing_mm=(None, 1.6, 1.6))
    preprocess_cases(trained.data, tmp_path / "cache", other)
    assert patients_digest(open_cache(tmp_path / "cache", other), reversed(names)) == expected
    assert patients_digest(cases, names[1:]) != expected
    swapped = {**cases, names[0]: cases[names[1]], names[1]: cases[names[0]]}
    assert patients_digest(swapped, names) != expected
    empty = {**cases, names[0]: replace(cases[names[0]], hu_counts=None)}
    assert patients_digest(empty, names) != expected
    assert np.unique([patients_digest(cases, [name]) for name in names]).size == len(names)
